"""`portconv tune`: times the engines on this machine for the layers that one runs, and keeps which were fastest."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.text import Text

import portconv
from portconv import wisdom

from ..bench.layers import Layer, LayerError
from ..bench.tables import Column, Grouped, Line, Section
from ..bench.timing import milliseconds
from ..bench.worker import backend_target
from ..processes.files import write_json
from ..processes.machine import machine
from .options import Arrays, json_option, layer_options, layers_of, one
from .progress import each
from .screen import screen

__all__ = ["tune"]

_DISTURBED = "something else used a core whenever it was timed; nothing is kept for it"
# What a list of measurements need not repeat.
USUAL = {
    *("stride=(1, 1)", "padding=(0, 0, 0, 0)", "dilation=(1, 1)", "groups=1", "padding_mode=zeros", "epilogue=none"),
    *("layout=NCHW", "accuracy=normwise", "traced=False"),
}


@click.command(short_help="Find the fastest engines on this machine, for strategy='measure'.")
@layer_options
@one("library", "device", "dtype", "layout", "accuracy")
@click.option("--dry-run", is_flag=True, help="Time everything, but keep nothing.")
@json_option
@click.option("--show", is_flag=True, help="Show what is kept, and stop.")
@click.option("--clear", is_flag=True, help="Forget everything that is kept, and stop.")
def tune(
    library: str,
    device: str | None,
    dtype: str,
    layout: str,
    accuracy: str,
    dry_run: bool,
    json_file: str | None,
    show: bool,
    clear: bool,
    **given: Any,
) -> int:
    """Time the engines on this machine, and keep which were fastest, where strategy="measure" finds it.

    The table says what that gains over the engines that portconv would choose by its estimates. A layer that cannot be
    timed makes the exit status 1. Run it while nothing else does: of a layer that was disturbed nothing is kept.

    \b
    portconv tune --suite resnet50 --library mlx
    portconv tune --x 1x64x56x56 --weight 64x64x3x3 --padding 1
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    context = click.get_current_context()
    console = screen(json_file)
    try:
        if show and clear:
            raise click.UsageError("--show and --clear exclude each other.", context)
        if show:
            return _show(console, json_file)
        if clear:
            there = wisdom.clear()
            console.print(f"{wisdom.path()}: {'deleted' if there else 'was not there'}.", markup=False, soft_wrap=True)
            return 0
        layers = layers_of(**given, dtype=dtype, accuracy=accuracy)
        arrays = Arrays.of(library, device, dtype=dtype, layout=layout, accuracy=accuracy)
        if not dry_run:
            if not wisdom.enabled():
                raise click.UsageError("PORTCONV_WISDOM is 0. Unset it, or use --dry-run to keep nothing.", context)
            wisdom.save({})  # what cannot be kept must show at once, and not after the timing
    except (LayerError, ImportError, ValueError, wisdom.WisdomError) as error:
        raise click.UsageError(str(error), context) from None

    if variables := {n: v for n, v in backend_target(library).variables if v is not None and os.environ.get(n) != v}:
        return _in_environment(variables, context.obj)
    where = machine()
    lines = [f"{where['cpu']}, {where['os']}", str(arrays)]
    if (where["load_average"] or 0) > 0.5:
        lines.append(f"Load average {where['load_average']:.2f}: other programs are at work; better tune without them.")
    console.print("\n".join(lines), markup=False)
    rows = each(layers, _Tuner(arrays, not dry_run).row, _verdict)
    console.print(_table(rows))
    for row in rows:
        if row.error:
            console.print(f"{row.layer.id}: {row.error}", markup=False, soft_wrap=True)
        elif row.disturbed:
            console.print(f"{row.layer.id}: {_DISTURBED}", markup=False, soft_wrap=True)
    kept = None if dry_run else str(wisdom.path())
    console.print(f"Kept in {kept}." if kept else "Nothing was kept.", markup=False, soft_wrap=True)
    if json_file is not None:
        head = {"portconv": portconv.__version__, "machine": where, "library": library, "device": arrays.device}
        documents = {"layers": [row.document() for row in rows], "sum": _sum(rows)}
        write_json(json_file, {**head, **arrays.options, "wisdom": kept, **documents})
    return 1 if any(row.error for row in rows) else 0


def _in_environment(variables: dict[str, str], arguments: list[str]) -> int:
    """Do it in a process with these variables, in which a neighbour disturbs least: libraries read them when loaded."""
    # it sees the modules that this one sees, as the workers of `portconv bench` do
    code = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; from portconv.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], env={**os.environ, **variables}).returncode


# --- timing -----------------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """A layer: the engine by estimates, and the seconds of every engine that was timed; or why there are none."""

    layer: Layer
    engine: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""
    disturbed: bool = False  # something else used a core: there are no times, and nothing is kept

    @property
    def fastest(self) -> str:
        return min(self.seconds, key=lambda engine: self.seconds[engine])

    @property
    def before_and_after(self) -> tuple[float, float]:
        """Seconds with the engine by estimates, and with the fastest."""
        return self.seconds[self.engine], self.seconds[self.fastest]

    def document(self) -> dict[str, Any]:
        """What is known, as JSON has it."""
        if self.error:
            return {**self.layer.to_json(), "error": self.error}
        if self.disturbed:
            return {**self.layer.to_json(), "engine": self.engine, "disturbed": True}
        before, after = self.before_and_after
        found = {"engine": self.engine, "fastest": self.fastest, "seconds": self.seconds, "gain": _gain(before, after)}
        return {**self.layer.to_json(), **found}


@dataclass
class _Tuner:
    """Times layers on arrays of one library, on one device."""

    arrays: Arrays
    remember: bool
    plans: dict[Any, Any] = field(default_factory=dict)  # by problem: networks repeat their layers

    def row(self, layer: Layer) -> _Row:
        """The layer with its times."""
        arguments, options = self.arrays.arguments(layer)
        try:
            estimated = portconv.plan_conv2d(*arguments, **options)
            problem = estimated.problem
            if problem not in self.plans:
                self.plans[problem] = portconv.tune(*arguments, **options, remember=self.remember)
        except Exception as error:  # noqa: BLE001  it belongs in the report, and the next layer gets its turn
            return _Row(layer, error=f"{type(error).__name__}: {error}"[:300])
        seconds = {c.engine: c.seconds for c in self.plans[problem].candidates if c.measured}
        return _Row(layer, estimated.engine, seconds, disturbed=not seconds)


def _verdict(row: _Row) -> str:
    if row.error or row.disturbed:
        return row.error or _DISTURBED
    return f"{row.fastest}, {_ms(row.seconds[row.fastest])} ms"


# --- what it says -----------------------------------------------------------------------------------------------------


def _gain(before: float, after: float) -> float:
    return before / after if after else 1.0


def _sum(rows: list[_Row]) -> dict[str, float]:
    """One pass over all layers, each as often as it occurs."""
    pairs = [(row.layer.count, *row.before_and_after) for row in rows if row.seconds]
    before, after = sum(n * b for n, b, _ in pairs), sum(n * a for n, _, a in pairs)
    return {"before": before, "after": after, "gain": _gain(before, after)}


def _columns(*heads: str) -> list[Column]:
    return [Column(head, is_number=head in ("ms", "gain")) for head in heads]


def _table(rows: list[_Row]) -> Grouped:
    sections = [
        Section(Text.assemble((row.layer.id, "bold"), "  ", (row.layer.problem, "dim")), [_line(row)]) for row in rows
    ]
    total = _sum(rows)
    figures = ("", _ms(total["before"]), "", _ms(total["after"]), f"{total['gain']:.2f}")
    heading = Text.assemble(("sum", "bold"), "  ", ("each as often as it occurs", "dim"))
    return Grouped(
        _columns("by estimate", "ms", "fastest", "ms", "gain"), [*sections, Section(heading, [Line(figures)])], lead=0
    )


def _line(row: _Row) -> Line:
    if row.error:
        return Line([Text("error", style="bold red")])
    if row.disturbed:
        return Line([row.engine, "", Text("disturbed", style="yellow")])
    before, after = row.before_and_after
    figures = (row.engine, _ms(before), row.fastest, _ms(after), f"{_gain(before, after):.2f}")
    return Line(figures, style="green" if row.fastest != row.engine else None)


def _ms(seconds: float) -> str:
    return milliseconds(1e3 * seconds)


def _show(console: Console, json_file: str | None) -> int:
    """What is kept, by circumstances."""
    records = wisdom.load()
    if not records:
        console.print(f"Nothing is kept yet in {wisdom.path()}.", markup=False, soft_wrap=True)
    for environment in dict.fromkeys(environment for environment, _ in records):
        sections = []
        for (where, problem), record in records.items():
            if where == environment:
                engine = min(record.seconds, key=lambda name: record.seconds[name])
                words = ", ".join(word for word in problem.split("; ") if word not in USUAL)
                line = Line([engine, _ms(record.seconds[engine]), record.when])
                sections.append(Section(Text(words, style="bold"), [line]))
        console.print(environment, markup=False, soft_wrap=True)
        console.print(Grouped(_columns("fastest", "ms", "measured"), sections, lead=0))
    if json_file is not None:
        listed = [
            {"environment": where, "problem": what, **record._asdict()} for (where, what), record in records.items()
        ]
        write_json(json_file, {"wisdom": str(wisdom.path()), "measurements": listed})
    return 0
