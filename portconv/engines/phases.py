"""Transposed convolutions: convolutions, one for each phase of the strides, and the result out of their results.

No zeros are put between the pixels of the image; `transposed` says which convolutions they are, which are planned like
any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..core.backend import Candidate, EnginePlan, PackedWeight, Plan, executed
from ..core.dtypes import FLOATING
from ..core.problem import Problem, TransposedProblem
from .steps import Steps
from .transposed import Phase, image_gradient_phases

__all__ = ["TransposedPlan", "assembled", "common_engine", "packed", "part", "turned"]

AXES = {"NCHW": (2, 3), "NHWC": (1, 2)}  # of rows and columns


def _index(rows: slice, cols: slice, layout: str) -> tuple[slice, ...]:
    every = slice(None)
    return (every, rows, cols, every) if layout == "NHWC" else (every, every, rows, cols)


def part(phase: Phase, dy: Any) -> Any:
    """What a phase reads of the cotangent, in the layout of its problem."""
    return dy[_index(phase.rows.source, phase.cols.source, phase.problem.layout)]


def packed(phase: Phase, plan: Plan, weight: Any, steps: Steps) -> PackedWeight:
    """A weight (G, O/G, I/G, kh, kw), of the convolution whose gradient it is, packed for a plan of the phase."""
    return plan.pack(turned(phase, weight, steps.xp))


def turned(phase: Phase, weight: Any, xp: Any) -> Any:
    """The weight of the phase out of that of the convolution whose gradient it is."""
    taps = xp.flip(weight[..., phase.rows.taps, phase.cols.taps], axis=(-2, -1))
    return xp.permute_dims(taps, (0, 2, 1, 3, 4))


def assembled(
    parts: Sequence[tuple[Phase, Any]],
    shape: tuple[int, ...],
    dtype: str,
    steps: Steps,
    layout: str = "NCHW",
    elsewhere: Any = None,
) -> Any:
    """The whole out of the parts that the phases fill; what none of them fills is `elsewhere`, or zero.

    `elsewhere` can be broadcast to any shape of these channels. It is rounded to the dtype of the whole where it
    stands, and not before: what differentiates it adds in the dtype that it has.
    """
    if len(parts) == 1 and tuple(parts[0][1].shape) == shape:
        return parts[0][1]

    def blank(size: tuple[int, ...]) -> Any:
        if elsewhere is None:
            return steps.zeros(size, steps.dtype(dtype))
        return steps.rounded(steps.zeros(size, elsewhere.dtype) + elsewhere, dtype)

    if not parts:
        return blank(shape)
    if steps.assigns():
        whole = blank(shape)
        for phase, value in parts:
            whole[_index(phase.rows.target, phase.cols.target, layout)] = value
        return whole
    vertical, horizontal = AXES[layout]
    lines: dict[int, list[tuple[slice, Any]]] = {}  # of the rows of one phase, by the first of them
    targets = {phase.rows.target.start: phase.rows.target for phase, _ in parts}
    for phase, value in parts:
        lines.setdefault(phase.rows.target.start, []).append((phase.cols.target, value))
    rows = [
        (targets[start], _interleaved(found, shape[horizontal], horizontal, steps, blank))
        for start, found in lines.items()
    ]
    return _interleaved(rows, shape[vertical], vertical, steps, blank)


def _interleaved(
    parts: Sequence[tuple[slice, Any]], size: int, axis: int, steps: Steps, blank: Callable[[tuple[int, ...]], Any]
) -> Any:
    """Parts, each with its places along an axis of this size, as one array, blank where there is none."""
    values, count = [value for _, value in parts], sum(value.shape[axis] for _, value in parts)
    sources, first = [count] * size, 0
    for target, value in parts:
        for n, place in enumerate(range(size)[target]):
            sources[place] = first + n
        first += value.shape[axis]
    if count in sources:
        values.append(blank(tuple(1 if a == axis else n for a, n in enumerate(values[0].shape))))
    xp = steps.xp
    whole = steps.contiguous(xp.concat(values, axis=axis)) if len(values) > 1 else values[0]
    return whole if sources == list(range(size)) else xp.take(whole, xp.asarray(sources, **steps.device), axis=axis)


def common_engine(plans: Sequence[Plan]) -> str | None:
    """The engine of the largest phase if all others have it, too, or else the library's own routine; or None.

    The routine may be better at a small phase, but not so much as to have each phase apart.
    """
    largest = max(plans, key=lambda plan: plan.problem.flops, default=None)
    others = {plan.engine for plan in plans} - {"native"}
    return largest.engine if largest is not None and others == {largest.engine} else None


class _Packed(NamedTuple):
    whole: PackedWeight | None  # for all phases at once
    packs: list[PackedWeight]  # for the phases, if they have been needed
    weight: Any  # as it was given, for whatever it may have to be packed for yet


@dataclass(frozen=True, kw_only=True)
class TransposedPlan(Plan):
    """The plan of a transposed convolution: the phases of its strides, each with the plan of its convolution.

    All phases read the image. Libraries that differentiate them add what they find for it in the image's own dtype: one
    rounding error after the other, where the sums have a wider one. So the plan `wide` is for those, of an image that
    is cast first.

    The plan `at_once`, if there is one, computes all phases of arrays that NumPy can see.
    """

    problem: TransposedProblem
    phases: tuple[tuple[Phase, Plan], ...]
    steps: Steps
    wide: TransposedPlan | None = None
    at_once: Plan | None = None

    @classmethod
    def of(
        cls,
        problem: TransposedProblem,
        plan: Callable[[Problem], Plan],
        steps: Steps,
        at_once: Callable[[TransposedProblem, str], Plan | None] | None = None,
    ) -> TransposedPlan:
        """The plan of a problem whose epilogue has a bias at most.

        `plan` gives the plans of the convolutions, and `at_once` one for all of them, of an engine, if there is one.
        """
        changes: dict[str, Any] = {"epilogue": problem.epilogue, "out_dtype": problem.out_dtype}
        phases = tuple(
            (phase, plan(replace(phase.problem, **changes)))
            for phase in image_gradient_phases(problem.convolution, problem.x_dtype)
        )
        wide, differentiates = None, problem.traced or type(steps).records is not Steps.records
        to = problem.compute_dtype
        if len(phases) > 1 and problem.x_dtype in FLOATING and problem.x_dtype != to and differentiates:
            wide = cls.of(replace(problem, x_dtype=to, dtype=to, out_dtype=problem.result_dtype), plan, steps)
        plans = sorted((plan for _, plan in phases), key=lambda plan: -plan.problem.flops)
        engines = dict.fromkeys(plan.engine for plan in plans)
        first = plans[0] if plans else None
        together = None if at_once is None or (engine := common_engine(plans)) is None else at_once(problem, engine)
        candidates: tuple[Candidate, ...] = first.candidates if first else ()
        sizes = [plan.workspace_bytes for plan in plans if together is None or type(steps).seen is not Steps.seen]
        return cls(
            problem=problem, engine="+".join(engines) or "none",
            workspace_bytes=max([*sizes, 0 if together is None else together.workspace_bytes]), candidates=candidates,
            chosen_by=first.chosen_by if first else "", phases=phases, steps=steps, wide=wide, at_once=together,
        )  # fmt: skip

    @cached_property
    def stamp(self) -> Hashable:
        taps = ((str(phase.rows.taps), str(phase.cols.taps), plan.stamp) for phase, plan in self.phases)
        return ("transposed", self.problem.weight_shape, *taps, None if self.at_once is None else self.at_once.stamp)

    @property
    def tier(self) -> str:
        return self.phases[0][1].tier if self.phases else ""

    @cached_property
    def _filled(self) -> bool:
        """Whether every element of the result is one of some phase."""
        oh, ow = self.problem.out_size
        count = sum(len(range(oh)[phase.rows.target]) * len(range(ow)[phase.cols.target]) for phase, _ in self.phases)
        return count == oh * ow

    def warmup(self) -> tuple[str, ...]:
        plans = [plan for _, plan in self.phases]
        if self.at_once is not None:
            plans = [self.at_once, *(plans if type(self.steps).seen is not Steps.seen else [])]
        return tuple(dict.fromkeys(name for plan in plans for name in plan.warmup()))

    def pack(self, weight: Any, /) -> PackedWeight:
        weight = self.steps.xp.reshape(weight, self.problem.weight_shape)
        if self.at_once is not None and self.steps.seen(weight):
            whole = self.at_once.pack(weight)
            # only where arrays may be hidden from NumPy the phases may be needed as well
            needed = self.wide is not None or type(self.steps).seen is not Steps.seen
            return PackedWeight(self.stamp, _Packed(whole, [], weight if needed else None), whole.nbytes)
        packs = self._packed(weight)
        nbytes = sum(pack.nbytes for pack in packs)
        needed = self.wide is not None or not self.phases or not self.problem.batch
        return PackedWeight(self.stamp, _Packed(None, packs, weight if needed else None), nbytes)

    def _packed(self, weight: Any) -> list[PackedWeight]:
        return [packed(phase, plan, weight, self.steps) for phase, plan in self.phases]

    def _packs(self, data: _Packed) -> list[PackedWeight]:
        """The weight packed for the phases, which it is once."""
        if data.whole is not None and not data.packs:
            data.packs[:] = self._packed(data.weight)
        return data.packs

    def _whole(self, data: _Packed, *arrays: Any) -> PackedWeight | None:
        """The weight packed for all phases at once, if such arrays can be had so."""
        given = [array for array in arrays if array is not None]
        return data.whole if data.whole is not None and self.steps.seen(*given) else None

    def fuses(self, x: Any, weight: PackedWeight, bias: Any = None, residual: Any = None, /) -> bool:
        whole = self._whole(weight.data, x, bias, residual)
        if self.at_once is not None and whole is not None:
            return self.at_once.fuses(x, whole, bias, residual)
        if not self._filled:
            return False
        calls = zip(self.phases, self._packs(weight.data), strict=True)
        return all(
            plan.fuses(part(phase, x), pack, bias, self._target(phase, residual)) for (phase, plan), pack in calls
        )

    def rebuilt(self, change: Callable[[Problem], Problem], build: Callable[[Problem, str], Plan]) -> Plan:
        phases = tuple((phase, plan.rebuilt(change, build)) for phase, plan in self.phases)
        changed: Any = change(self.problem)
        # it is for arrays that nobody differentiates
        together = None if self.at_once is None else self.at_once.rebuilt(change, build)
        return replace(self, problem=changed, phases=phases, wide=None, at_once=together)

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, steps = self.problem, self.steps
        whole = self._whole(weight.data, x, bias, residual)
        if self.at_once is not None and whole is not None:
            if out is None or isinstance(self.at_once, EnginePlan):
                return executed(self.at_once, x, whole, bias, residual, out)
            out[...] = executed(self.at_once, x, whole, bias, residual)
            return out
        if p.batch == 0 and out is None:  # MLX dies of the gradients of some operations on no images
            arrays = [array for array in (x, weight.data.weight, bias) if array is not None]
            return self._linked(steps.zeros(p.out_shape, steps.dtype(p.result_dtype)), *arrays)
        if bias is not None and (p.traced or steps.records(bias)):  # as for the image, but no phase minds
            bias = steps.cast(bias, p.compute_dtype)
        if self.wide is not None and (p.traced or steps.records(x)):
            x = steps.cast(x, p.compute_dtype)
            return executed(self.wide, x, self.wide.pack(weight.data.weight), bias, residual, out)
        written = out
        if written is None and steps.writes and len(self.phases) > 1 and p.result_dtype != "bfloat16":
            written = steps.xp.empty(p.out_shape, dtype=steps.dtype(p.result_dtype), **steps.device)
        into = written is not None and steps.writes
        elsewhere = None if bias is None or self._filled else self._bias(bias)
        if into and not self._filled:
            written[...] = 0 if elsewhere is None else steps.rounded(elsewhere, p.result_dtype)
        parts = []
        for (phase, plan), pack in zip(self.phases, self._packs(weight.data), strict=True):
            options = {"residual": self._target(phase, residual), "out": self._target(phase, written) if into else None}
            execute: Any = plan.execute
            given = {name: array for name, array in options.items() if array is not None}
            parts.append((phase, execute(part(phase, x), pack, bias, **given)))
        if into:
            return written
        dtype = p.result_dtype
        if elsewhere is not None and not steps.assigns() and dtype in ("float16", "bfloat16"):
            # one line is repeated there, whose gradient is added in its dtype
            dtype, parts = p.compute_dtype, [(phase, steps.cast(y, p.compute_dtype)) for phase, y in parts]
        y = assembled(parts, p.out_shape, dtype, steps, p.layout, elsewhere)
        y = y if dtype == p.result_dtype else steps.rounded(y, p.result_dtype)
        if not parts:
            y = self._linked(y, x, weight.data.weight)
        if out is None:
            return y
        out[...] = y
        return out

    def _linked(self, y: Any, *arrays: Any) -> Any:
        """The result with gradients of zeros, and not none, with respect to arrays that nothing in it was made of."""
        if not self.steps.records(*arrays):
            return y
        for array in arrays:
            y = y + self.steps.cast(self.steps.xp.sum(array[:0, ...]), self.problem.result_dtype)
        return y

    def _target(self, phase: Phase, y: Any) -> Any:
        """The part of the result, or of an array like it, that a phase fills."""
        return None if y is None else y[_index(phase.rows.target, phase.cols.target, self.problem.layout)]

    def _bias(self, bias: Any) -> Any:
        """The sums where no tap meets the image: the bias."""
        shape = (1, 1, 1, -1) if self.problem.layout == "NHWC" else (1, -1, 1, 1)
        return self.steps.cast(self.steps.xp.reshape(bias, shape), self.problem.compute_dtype)

    def explain(self) -> str:
        how = "" if self.at_once is None else ", all at once where NumPy can see the arrays"
        return "\n".join(
            [f"{len(self.phases)} phases of the strides{how}", *(plan.explain() for _, plan in self.phases)]
        )
