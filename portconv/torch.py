"""`Conv2d` as a layer of PyTorch's, and the exchange of a model's own layers for it.

After ``import portconv.torch``, `torch.compile` and `torch.export` take `portconv.conv2d` as one operation.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

try:
    import torch
except ImportError as error:
    raise ImportError(
        f"portconv.torch needs PyTorch, which cannot be imported ({error}). "
        "Install it with: pip install 'portconv[torch]'"
    ) from error

from . import torch_library  # noqa: F401  # from now on `torch.compile` knows `conv2d`
from .core import hints
from .core.backend import PackedWeight, Plan
from .dispatch.arguments import Conv2dSpec
from .dispatch.path import plan_for, prepared
from .dispatch.registry import resolve

if TYPE_CHECKING:
    from .core.words import Accuracy, Strategy

__all__ = ["Comparison", "Conv2d", "compare", "replace_convolutions"]


class _Bound(NamedTuple):
    """How images like the last one are convolved, as long as the weight has not changed."""

    key: tuple[Any, ...]
    weight: Any
    plan: Plan
    packed: PackedWeight


class Conv2d(torch.nn.Conv2d):  # type: ignore[misc]  # PyTorch is not typed here
    """`torch.nn.Conv2d`, computed by whichever of portconv's engines, or PyTorch's own, is the fastest.

    It is a `torch.nn.Conv2d` in all else: initial weights, `state_dict`, `repr`, hooks, optimizers, `.to`, pickles. In
    `torch.compile`, `torch.export` and `torch.jit` PyTorch's own convolution computes.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        As in `torch.nn.Conv2d`.
    engine, accuracy, strategy
        As in `portconv.conv2d`.

    Attributes
    ----------
    weight
        ``(O, I/groups, kh, kw)``.
    bias
        ``(O,)``, or None.

    Raises
    ------
    TypeError, ValueError
        As `torch.nn.Conv2d`, and for values that `portconv.conv2d` does not allow.

    Examples
    --------
    >>> import torch, portconv.torch
    >>> model = torch.nn.Sequential(portconv.torch.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
    >>> model(torch.ones(2, 3, 32, 32)).shape
    torch.Size([2, 8, 32, 32])
    >>> model[0].load_state_dict(torch.nn.Conv2d(3, 8, 3).state_dict())
    <All keys matched successfully>
    """

    # What layers have that were made from PyTorch's.
    engine = "auto"
    accuracy = "normwise"
    strategy = "heuristic"
    _bound: _Bound | None = None  # of the last call

    def __init__(
        self,
        *args: Any,
        engine: str = "auto",
        accuracy: Accuracy = "normwise",
        strategy: Strategy = "heuristic",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.engine, self.accuracy, self.strategy = engine, accuracy, strategy
        self._spec  # noqa: B018  # complains about them

    @classmethod
    def of(cls, layer: Any, **options: Any) -> Conv2d:
        """A layer with all that a `torch.nn.Conv2d` has, its parameters and hooks too; `options` are for this class."""
        _check_options(options)
        own: Conv2d = _like(layer, cls)
        for name, value in options.items():
            setattr(own, name, value)
        own._spec  # noqa: B018  # complains about them
        return own

    @cached_property
    def _spec(self) -> Conv2dSpec:
        return Conv2dSpec.normalise(
            self.stride, self.padding, self.dilation, self.groups, padding_mode=self.padding_mode, engine=self.engine,
            accuracy=self.accuracy, strategy=self.strategy,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return _lasting(self)

    def plan(self, x: Any) -> Any:
        """How an image ``(N, C, H, W)`` would be computed; see `portconv.plan_conv2d`."""
        return plan_for(self._spec, x, self.weight, self.bias)[1]

    def _conv_forward(self, input: Any, weight: Any, bias: Any) -> Any:  # noqa: A002  # PyTorch's name
        if torch.compiler.is_compiling() or torch.jit.is_scripting() or torch.jit.is_tracing():
            return super()._conv_forward(input, weight, bias)
        if input.ndim == 3:  # one image, as PyTorch allows it
            return self._conv_forward(input.unsqueeze(0), weight, bias).squeeze(0)
        library = resolve(input)
        token = library.cache_token(weight)
        bias_dtype = None if bias is None else bias.dtype
        key = (token, library, input.shape, input.dtype, input.device, weight.dtype, weight.device, bias_dtype)
        bound = self._bound
        if token is None or bound is None or bound.key != key or bound.weight is not weight:
            bound = _Bound(key, weight, *prepared(self._spec, input, weight, bias))
            if token is not None:
                self._bound = bound
        return bound.plan.execute(input, bound.packed, bias)


def replace_convolutions(model: Any, **options: Any) -> int:
    """Exchange the `torch.nn.Conv2d` layers of a model for `Conv2d`, in place.

    They keep their parameters, which optimizers know, and their hooks. Layers of other classes, those derived from
    `torch.nn.Conv2d` among them, stay as they are.

    Parameters
    ----------
    model
        A `torch.nn.Module`. If it is such a layer itself, it has none within it, and stays: take ``Conv2d.of(model)``.
    options
        `engine`, `accuracy` and `strategy` of the new layers.

    Returns
    -------
    int
        How many were exchanged.

    Raises
    ------
    TypeError
        If `model` is no `torch.nn.Module`, or there is no such option.

    Examples
    --------
    >>> import torch, portconv.torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1))
    >>> portconv.torch.replace_convolutions(model)
    2
    >>> type(model[0]).__module__
    'portconv.torch'
    """
    _check_model(model)
    _check_options(options)
    return _exchange(model, torch.nn.Conv2d, partial(Conv2d.of, **options))


def _check_options(options: dict[str, Any]) -> None:
    """What a layer is made of stays as it is: the stride in its attributes is not all that there is of it."""
    known = ("engine", "accuracy", "strategy")
    for name in options:
        if name not in known:
            near = hints.attribute(name, known)
            mend = "" if near is None else f" Did you mean {near!r}?"
            raise TypeError(f"the options are 'engine', 'accuracy' and 'strategy', but got {name!r}.{mend}")


def _check_model(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        kind = type(model)
        raise TypeError(f"`model` must be a torch.nn.Module, but got {kind.__module__}.{kind.__qualname__}.")


def _exchange(model: Any, kind: type, make: Callable[[Any], Any]) -> int:
    """Put what is made of them in the place of all layers of exactly this class; returns how many there were."""
    made: dict[int, Any] = {}  # a layer may stand in several places
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # `named_children` leaves out what stands there twice
            if type(child) is kind:
                if id(child) not in made:
                    made[id(child)] = make(child)
                setattr(module, name, made[id(child)])
    return len(made)


def _exchanged(model: Any, kind: type, make: Callable[[Any], Any]) -> Any:
    """The model after that, or what is made of it if it is such a layer itself."""
    if type(model) is kind:
        return make(model)
    _exchange(model, kind, make)
    return model


def _like(layer: Any, kind: Any) -> Any:
    """A layer of this class with all that another one has."""
    own = kind.__new__(kind)
    own.__dict__.update(_lasting(layer))
    return own


def _lasting(layer: Any) -> dict[str, Any]:
    """What a layer has, without what follows from it."""
    return {name: value for name, value in layer.__dict__.items() if name not in ("_spec", "_bound")}


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; `str` of it is a table.

    Attributes
    ----------
    layers
        Name, engine, milliseconds of PyTorch's own, milliseconds of portconv's, for each convolution.
    model_ms
        Milliseconds of the whole model with PyTorch's own, and with portconv's. It is the whole that counts: a layer
        that is timed alone finds in the caches what other operators would have driven out.

    Examples
    --------
    >>> from portconv.torch import Comparison
    >>> print(Comparison((("conv1", "winograd", 2.0, 1.0),), (2.5, 1.5)))
    layer      engine     torch ms  portconv ms  ratio
    conv1      winograd      2.000        1.000   2.00
    all 1                    2.000        1.000   2.00
    the model                2.500        1.500   1.67
    """

    layers: tuple[tuple[str, str, float, float], ...]
    model_ms: tuple[float, float]

    @property
    def torch_ms(self) -> float:
        """Milliseconds of all convolutions by PyTorch's own."""
        return sum(ms for *_, ms, _ in self.layers)

    @property
    def portconv_ms(self) -> float:
        """The same by portconv's."""
        return sum(ms for *_, ms in self.layers)

    def __str__(self) -> str:
        rows = [
            *self.layers,
            (f"all {len(self.layers)}", "", self.torch_ms, self.portconv_ms),
            ("the model", "", *self.model_ms),
        ]
        width = max(len("layer"), *(len(name) for name, *_ in rows))
        lines = [f"{'layer':{width}}  {'engine':8}  {'torch ms':>9}  {'portconv ms':>11}  {'ratio':>5}"]
        for name, engine, theirs, ours in rows:
            ratio = theirs / ours if ours else 1.0
            lines.append(f"{name:{width}}  {engine:8}  {theirs:9.3f}  {ours:11.3f}  {ratio:5.2f}")
        return "\n".join(lines)


def compare(model: Any, x: Any, rounds: int = 5) -> Comparison:
    """Time each convolution of a model on an input, by PyTorch's own and by portconv's; the model stays as it is.

    Times are the best of some rounds, without gradients.

    Parameters
    ----------
    model
        A `torch.nn.Module` with `torch.nn.Conv2d` layers, or with those that `replace_convolutions` has made of them.
    x
        What the model is called with.
    rounds
        How often each layer is timed.

    Raises
    ------
    TypeError
        If `model` is no `torch.nn.Module`, or a convolution in it is given what is no tensor.

    Examples
    --------
    >>> import torch, portconv.torch
    >>> found = portconv.torch.compare(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), torch.ones(1, 3, 20, 20))
    >>> [name for name, *_ in found.layers]
    ['0']
    """
    _check_model(model)
    theirs = _exchanged(copy.deepcopy(model), Conv2d, partial(_like, kind=torch.nn.Conv2d))
    ours = _exchanged(copy.deepcopy(model), torch.nn.Conv2d, Conv2d.of)
    inputs: list[tuple[str, Any]] = []

    def note(name: str, _layer: Any, arguments: Any) -> None:
        if not isinstance(arguments[0], torch.Tensor):
            kind = type(arguments[0])
            raise TypeError(
                f"`x` must be what the model takes, but its convolution {name!r} got {kind.__module__}.{kind.__name__} "
                f"and no torch.Tensor. `torch.from_numpy` makes one of a NumPy array."
            )
        inputs.append((name, arguments[0].detach()))

    own = {name: layer for name, layer in ours.named_modules() if type(layer) is Conv2d}
    hooks = [theirs.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in own]
    with torch.no_grad():
        theirs(x)
        for hook in hooks:
            hook.remove()
        found = []
        for name, image in inputs:
            layers = theirs.get_submodule(name), own[name]
            times = [_best(partial(layer._conv_forward, image, layer.weight, layer.bias), rounds) for layer in layers]
            batch = image if image.ndim == 4 else image.unsqueeze(0)
            found.append((name, own[name].plan(batch).engine, times[0], times[1]))
        both = [_best(partial(each, x), rounds) for each in (theirs, ours)]
    return Comparison(tuple(found), (both[0], both[1]))


def _best(call: Callable[[], Any], rounds: int) -> float:
    """Milliseconds of a call, at best."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    once()  # packs, and may compile
    return min(once() for _ in range(rounds))
