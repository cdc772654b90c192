"""A plan in words: one line, or a table of its candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .epilogue import Epilogue

if TYPE_CHECKING:
    from .backend import Candidate, Plan
    from .problem import Problem

__all__ = ["line", "table"]

MEASURED = ("measurement", "wisdom")  # how a plan was chosen by the clock: in this process, or before


def line(plan: Plan) -> str:
    """The engine and its tier, the sizes, and what differs from the defaults."""
    p = plan.problem
    note = next((c.note for c in plan.candidates if c.engine == plan.engine), "")
    weight = (p.out_channels, p.in_channels // p.groups, *p.kernel)
    sizes = f"{p.x_dtype} {_times(p.x_shape)} by {'' if p.x_dtype == p.dtype else p.dtype + ' '}{_times(weight)}"
    chosen = f", chosen by {plan.chosen_by}" if plan.chosen_by else ""
    engine = f"{plan.engine} ({note})" if note else plan.engine
    return f"<{type(plan).__name__} {engine}: {', '.join([sizes, *_options(p)])}, on {p.device}{chosen}>"


def _times(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _options(p: Problem) -> Iterator[str]:
    """What differs from the defaults; of a pair of equal sizes one."""
    top, bottom, left, right = p.padding
    if p.stride != (1, 1):
        yield f"stride {_pair(p.stride)}"
    if any(p.padding):
        even = (top, left) == (bottom, right)
        yield f"padding {_pair((top, left))}" if even else f"padding (({top}, {bottom}), ({left}, {right}))"
    if p.padding_mode != "zeros":
        yield p.padding_mode
    if p.dilation != (1, 1):
        yield f"dilation {_pair(p.dilation)}"
    if p.groups > 1:
        yield f"groups {p.groups}"
    if p.epilogue != Epilogue():
        yield str(p.epilogue)
    if p.layout != "NCHW":
        yield p.layout
    if p.accuracy != "normwise":
        yield p.accuracy
    if p.out_dtype is not None:
        yield f"as {p.out_dtype}"


def _pair(sizes: tuple[int, int]) -> str:
    return _times(dict.fromkeys(sizes))


def table(plan: Plan) -> str:
    """Every candidate: its cost, its workspace, and why the losers lost."""
    return "\n".join([_title(plan), *_rows(plan.candidates, plan.engine, plan.chosen_by in MEASURED)])


def _title(plan: Plan) -> str:
    p = plan.problem
    options = [f"kernel {p.kernel[0]}x{p.kernel[1]}", f"stride {p.stride}", f"padding {p.padding} {p.padding_mode}"]
    options += [f"dilation {p.dilation}", f"groups {p.groups}", f"accuracy {p.accuracy}"]
    sizes = f"{p.x_shape} {p.layout} {p.x_dtype} -> {p.out_shape} {p.result_dtype} on {p.device}"
    return f"{sizes}\n{', '.join(options)}; engine chosen by {plan.chosen_by or 'the caller'}"


def _rows(candidates: Iterable[Candidate], chosen: str, measured: bool) -> list[str]:
    ordered = sorted(candidates, key=lambda c: (c.engine != chosen, c.why_not is not None, c.seconds))
    best = next((c.seconds for c in ordered if c.engine == chosen), 0.0)
    rows = [f"  {'engine':<8} {'measured ms' if measured else 'estimated ms':>13} {'workspace MiB':>14}  verdict"]
    for c in ordered:
        verdict = c.why_not or (
            "chosen" if c.engine == chosen else f"{c.seconds / best:.1f} times the cost" if best else "not chosen"
        )
        cost = "-" if c.why_not else f"{c.seconds * 1e3:.3f}"
        space = "-" if c.why_not else f"{c.workspace_bytes / 2**20:.1f}"
        mark, note = "* " if c.engine == chosen else "  ", f" ({c.note})" if c.note else ""
        rows.append(f"{mark}{c.engine:<8} {cost:>13} {space:>14}  {verdict}{note}")
    return rows
