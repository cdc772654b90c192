"""The protocols: what an array library's adapter offers, and what passes between it, the planner and the engines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from .explain import line, table
from .problem import Problem
from .windows import WindowOperation

__all__ = [
    "ArrayInfo",
    "Assembling",
    "Backend",
    "Candidate",
    "Differentiable",
    "EnginePlan",
    "Finishing",
    "PackedWeight",
    "Plan",
    "Pullback",
    "Wanted",
    "Windowing",
    "check_result",
    "executed",
    "lacking",
]


class ArrayInfo(NamedTuple):
    """What a backend says of an array: `dtype` by its standard name ("float32"), `device` in the library's own words.

    `traced` is true for an array whose values are not known yet, such as those inside `jax.jit`.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.get_backend("numpy").describe(np.zeros((1, 2), np.float16))
    ArrayInfo(shape=(1, 2), dtype='float16', device='cpu', traced=False)
    """

    shape: tuple[int, ...]
    dtype: str
    device: str
    traced: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine's offer for a problem: what it would cost, or why it cannot run.

    Examples
    --------
    >>> from portconv.extending import Candidate
    >>> Candidate("native", why_not="it reads NCHW only").engine
    'native'
    """

    engine: str
    seconds: float = float("inf")  # estimated; "measure" replaces it by what the clock said
    workspace_bytes: int = 0
    why_not: str | None = None
    note: str = ""
    if_separable: float | None = None  # the share of the seconds that a separable kernel takes, in two passes
    measured: bool = False  # whether `seconds` is what the clock said, now or in an earlier process
    tier: str = ""  # how it is carried out: "compiled", "plain" (NumPy), "array API"; a library's own has none


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in the form that one engine reads; `stamp` names the engine and what else the form depends on.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> plan = portconv.plan_conv2d((1, 4, 20, 20), (8, 4, 3, 3))
    >>> packed = plan.pack(np.ones((8, 4, 3, 3), np.float32))
    >>> packed.stamp == plan.stamp, packed.nbytes > 0
    (True, True)
    """

    stamp: Hashable
    data: Any
    nbytes: int
    separable: bool = False  # packed for two one-dimensional passes


@dataclass(frozen=True)
class Plan:
    """An engine bound to a problem. It holds no arrays, so one plan serves any number of calls and threads.

    Subclasses give `stamp`, `pack` and `execute`. The planner fills in `candidates` and `chosen_by`:
    "heuristic", "measurement", "wisdom" (measured by an earlier process) or "the caller".

    Examples
    --------
    >>> import numpy as np, portconv
    >>> x, weight = np.ones((1, 4, 20, 20), np.float32), np.ones((8, 4, 3, 3), np.float32)
    >>> plan = portconv.plan_conv2d(x, weight, engine="gemm")
    >>> plan.engine, plan.chosen_by, plan.execute(x, plan.pack(weight)).shape
    ('gemm', 'the caller', (1, 8, 18, 18))
    """

    problem: Problem
    engine: str
    workspace_bytes: int = 0
    candidates: tuple[Candidate, ...] = field(default=(), compare=False)
    chosen_by: str = field(default="", compare=False)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # `dataclass` gives a class that has no `__repr__` of its own one with all fields, tables of indices among them
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]  # the inherited one

    def __repr__(self) -> str:
        return line(self)

    @property
    def stamp(self) -> Hashable:
        """What a packed weight depends on; plans with equal stamps share packed weights."""
        raise NotImplementedError  # abstract: every subclass has its own

    @property
    def tier(self) -> str:
        """How the engine is carried out, as its candidate says: ``"compiled"``, ``"plain"`` (NumPy) or ``"array API"``.

        ``"native"`` is a routine of the library's own. Empty for an engine whose back end does not say it.
        """
        if self.engine == "native":
            return "native"
        return next((c.tier for c in self.candidates if c.engine == self.engine), "")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, in the problem's layout."""
        return self.problem.out_shape

    def pack(self, weight: Any, /) -> PackedWeight:
        """The weight, OIHW or (G, O/G, I/G, kh, kw), in the form that `execute` reads."""
        raise NotImplementedError  # abstract: every subclass has its own

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        """Convolve `x`, which must have the problem's shape, dtype and layout.

        Plans of libraries with a `check_out` take ``out=``, too: an array that becomes the result, and is returned.
        """
        raise NotImplementedError  # abstract: every subclass has its own

    def ready(self, weight: PackedWeight, bias: Any = None, /) -> Callable[..., Any]:
        """`execute` as a function ``run(x, residual=None)``, for many calls with a weight and a bias that stay."""
        return lambda x, residual=None: executed(self, x, weight, bias, residual)

    def warmup(self) -> tuple[str, ...]:
        """Compile ahead what `execute` may run, or load what was compiled before; nothing is computed.

        Returns the names of what had to be compiled. Most plans have nothing to compile.
        """
        return ()

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        """Whether these arrays can have their residual and activation where results are stored.

        It is asked of plans of problems that have them. Where a library differentiates or traces, its operations do it.
        """
        return True

    def rebuilt(self, change: Callable[[Problem], Problem], build: Callable[[Problem, str], Plan]) -> Plan:
        """The same plan of a problem that is changed in what follows the sums."""
        return replace(build(change(self.problem), self.engine), candidates=self.candidates, chosen_by=self.chosen_by)

    def cut(self, array: Any, index: tuple[Any, ...]) -> Any:
        """``array[index]`` of an image or a weight, for a plan of what the whole leaves after cropping."""
        return array[index]

    def packed_for_another(self, weight: PackedWeight) -> ValueError:
        """The error for a weight with another stamp than the plan's: it would be read as garbage."""
        return ValueError(
            f"`weight` was packed for {weight.stamp}, but this plan needs {self.stamp}. "
            f"Pack it with this plan's `pack`."
        )

    def explain(self) -> str:
        """A table of every candidate: its cost, its workspace, and why the losers lost."""
        return table(self)


def executed(plan: Plan, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, out: Any = None) -> Any:
    """What a plan makes of arrays, with those that not every plan takes."""
    options = {"residual": residual, "out": out}
    execute: Any = plan.execute
    return execute(x, weight, bias, **{name: array for name, array in options.items() if array is not None})


@dataclass(frozen=True)
class EnginePlan(Plan):
    """A plan of one of portconv's own engines, which can also write the result into memory of the caller's."""

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        """As in `Plan`, with the residual if the problem has one.

        `out`, of the result's shape and dtype, is filled in and returned if the library can write.
        """
        raise NotImplementedError  # abstract: every subclass has its own


@runtime_checkable
class Backend(Protocol):
    """The adapter of one array library. Stateless: two calls with equal arguments mean the same thing.

    Examples
    --------
    >>> import portconv
    >>> from portconv.extending import Backend
    >>> isinstance(portconv.get_backend("numpy"), Backend)
    True
    """

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """What users write as `backend=`; for a library's own adapter the top-level package of its array type."""

    def describe(self, x: Any, /) -> ArrayInfo:
        """Shape, dtype and device of an array of this library; `TypeError` for anything else."""

    def candidates(self, problem: Problem, /) -> Sequence[Candidate]:
        """Every engine there is, those that cannot run with `why_not`. Cheap and pure: it sees no arrays."""

    def build(self, problem: Problem, engine: str, /) -> Plan:
        """The plan of a candidate that can run."""

    def cache_token(self, weight: Any, /) -> Hashable | None:
        """A value that changes whenever the array's contents do, or `None` if they may change unseen."""

    def from_numpy(self, x: Any, /, *, dtype: str | None = None, device: str | None = None) -> Any:
        """A NumPy array as an array of this library, by default of the same dtype and on the default device."""

    def to_numpy(self, x: Any, /) -> Any:
        """An array of this library as a NumPy array; bfloat16 comes as float32."""

    def synchronize(self, x: Any, /) -> None:
        """Wait until the values of `x` exist: for clocks."""

    def environment(self, problem: Problem, /) -> Mapping[str, str]:
        """What the times of its engines depend on beyond the problem: while it is equal, what was measured counts.

        The library's version at least, and the processor or GPU behind `problem.device`. An engine on the CPU says by
        ``threads``, in digits, on how many: measurements wait until so many cores are free. For NumPy's engines
        `portconv.extending.host_environment` says it all.
        """


# The gradients of image, weight and bias for a cotangent, None where they are not wanted; and which are wanted.
Pullback: TypeAlias = "Callable[[Any], tuple[Any, Any, Any]]"
Wanted: TypeAlias = "tuple[bool, bool, bool]"


class Differentiable(Protocol):
    """What a back end may have besides the members of `Backend`: derivatives of its own.

    Where it has none NumPy computes them, and the arrays come and go by `to_numpy` and `from_numpy`.

    Examples
    --------
    >>> import portconv
    >>> callable(portconv.get_backend("numpy").vjp)
    True
    """

    def vjp(
        self, plan: Plan, x: Any, weight: Any, bias: Any, wanted: Wanted, pack: Callable[[], PackedWeight], /
    ) -> tuple[Any, Pullback]:
        """The result of a plan for these arrays, and the function of a cotangent that gives the gradients.

        The cotangent has the shape, dtype and device of the result, each gradient those of its argument; what is not
        wanted is to be None, and to cost nothing. `pack` gives the packed weight, which may be kept from earlier calls.
        """


class Assembling(Protocol):
    """What a back end may have besides the members of `Backend`: transposed convolutions.

    These are convolutions, planned like any other, whose results are put together in the operations of the library.

    Examples
    --------
    >>> import portconv
    >>> callable(portconv.get_backend("numpy").steps)
    True
    """

    def steps(self, problem: Problem, /) -> Any:
        """The `Steps` (`portconv.engines.steps`) of the library's arrays on the device of a problem.

        A back end may have a method `at_once(problem, engine)` besides: a plan that computes the whole transposed
        convolution out of arrays that NumPy can see, or None. Its `pack` gets the weight as (G, I/G, O/G, kh, kw); with
        a `fuses` of the back end its `rebuilt` must give the plan of a problem with an activation or a residual.
        """


class Finishing(Protocol):
    """What a back end may have besides the members of `Backend`: what follows the sums, in operations of its own.

    Where it has none NumPy computes it, and the arrays come and go by `to_numpy` and `from_numpy`. A back end whose
    `build` takes problems with a residual or an activation, too, says so by a method `fuses(problem, engine)`.

    Examples
    --------
    >>> import portconv
    >>> callable(portconv.get_backend("torch").finisher)
    True
    """

    def finisher(self, problem: Problem, /) -> Any:
        """A `Finisher` (`portconv.engines.finished`) for the residual, the activation and the dtype of a result."""


class Windowing(Protocol):
    """What a back end may have besides the members of `Backend`: pooling and interpolation in operations of its own.

    Where it has none NumPy computes them, and the arrays come and go by `to_numpy` and `from_numpy`.

    Examples
    --------
    >>> import portconv
    >>> callable(portconv.get_backend("numpy").windowed)
    True
    """

    def windowed(self, x: Any, info: ArrayInfo, operation: WindowOperation, /) -> Any:
        """The result of a `Pooling` or a `Resizing` (`portconv.core.windows`) of an image, in its dtype."""


class Showing(Protocol):
    """What a back end may have besides the members of `Backend`: the memory of arrays that may change unseen.

    `conv2d` packs such a weight once, too, and compares it in each call with a copy of what it was.

    Examples
    --------
    >>> import numpy as np, portconv
    >>> portconv.get_backend("numpy").shown(np.zeros((1, 1, 3, 3))).shape
    (1, 1, 3, 3)
    """

    def shown(self, weight: Any, /) -> Any:
        """The array's memory as an array of NumPy's, without a copy; None where it cannot be seen so."""


def check_result(info: ArrayInfo, p: Problem) -> None:
    """Whether an array of the caller's can become the result of a problem: its shape, dtype and device."""
    if info.shape != p.out_shape:
        raise ValueError(f"`out` must have the shape of the result, {p.out_shape} {p.layout}, but got {info.shape}.")
    if info.dtype != p.result_dtype:
        raise TypeError(
            f"`out` must have the dtype of the result, {p.result_dtype}, but got {info.dtype}. "
            f"`out_dtype` gives the result another one."
        )
    if info.device != p.device:
        raise ValueError(f"`out` must be on the device of `x`, {p.device}, but got {info.device}.")


_MEMBERS = (
    *("name", "describe", "candidates", "build", "cache_token", "from_numpy", "to_numpy", "synchronize"),
    "environment",
)


def lacking(backend: object) -> list[str]:
    """The members of `Backend` that an object has not, for the message of an error."""
    return [member for member in _MEMBERS if not hasattr(backend, member)]
