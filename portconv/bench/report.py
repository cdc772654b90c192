"""What `portconv bench` says: a table of the figures, reasons for those that are missing, and a document for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..processes.session import Settings
from .layers import Layer
from .runner import Task, Timed
from .timing import milliseconds

__all__ = ["document", "gflops", "problems", "reasons", "table", "without_row"]

Message = dict[str, Any]
Results = Mapping[str, Timed]  # by the backend's name
LeftOut = Mapping[tuple[str, Task], str]


def gflops(layer: Layer, milliseconds: float) -> float:
    """Billions of multiplications and additions a second, those of the direct sum whatever the engine does."""
    return 2e-6 * layer.macs / milliseconds


def _rows(results: Results) -> list[tuple[str, Task, Message]]:
    return [(name, task, found) for name, timed in results.items() for task, found in timed.answers.items()]


def table(layers: Sequence[Layer], results: Results) -> Table:
    """The figures, layer by layer; the fastest of a layer has a star."""
    caption = "* the fastest of its layer; error: the largest, as a share of the bound; MiB: workspace"
    if any(found.get("disturbed") for _, _, found in _rows(results)):
        caption += "\n! something else used a core before or after it was timed: it may be faster than that"
    grid = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", caption=caption, caption_justify="left"
    )
    grid.add_column("layer")  # the only one that gives way on a narrow terminal
    for column in ("backend", "device", "engine"):
        grid.add_column(column, no_wrap=True)
    for column in ("ms", "GFLOP/s", "error", "MiB"):
        grid.add_column(column, justify="right", no_wrap=True)
    for layer in layers:
        rows = [row for row in _rows(results) if row[1].layer == layer]
        fastest = min((found["best_ms"] for _, _, found in rows if "best_ms" in found), default=None)
        heads = [Text(layer.id, style="bold"), Text(layer.problem, style="dim")]
        for line in range(max(len(rows), len(heads))):
            head = heads[line] if line < len(heads) else Text()
            cells, best = _cells(rows[line], fastest) if line < len(rows) else ([], False)
            grid.add_row(head, *cells, style="green" if best else None)
        grid.add_section()
    return grid


def _cells(row: tuple[str, Task, Message], fastest: float | None) -> tuple[list[Text], bool]:
    name, task, found = row
    engine = f"auto: {found['engine']}" if task.engine == "auto" and "engine" in found else task.engine
    cells = [Text(name), Text(task.device), Text(engine)]
    if "best_ms" not in found:
        word = "error" if "error" in found else "skipped"
        return [*cells, Text(word, style="bold red" if word == "error" else "dim")], False
    best = found["best_ms"] == fastest
    figures = (
        ("! " if found.get("disturbed") else "") + ("* " if best else "") + milliseconds(found["best_ms"]),
        f"{gflops(task.layer, found['best_ms']):.1f}",
        f"{found['error_share']:.3f}",
        f"{found['workspace_bytes'] / 2**20:.1f}",
    )
    return [*cells, *map(Text, figures)], best


def problems(results: Results) -> list[str]:
    """One line for every error."""
    wrong = [(name, task, found["error"]) for name, task, found in _rows(results) if "error" in found]
    return [f"{_where(name, task)}: {error}" for name, task, error in wrong]


def reasons(left_out: LeftOut) -> list[str]:
    """One line for everything that was left out."""
    return [f"left out: {_where(name, task)}: {why}" for (name, task), why in left_out.items()]


def without_row(layers: Sequence[Layer], results: Results, left_out: LeftOut) -> list[str]:
    """Why nothing at all can compute a layer."""
    timed = {task.layer for _, task, _ in _rows(results)}
    nowhere = [layer for layer in layers if layer not in timed]
    return reasons({key: why for key, why in left_out.items() if key[1].layer in nowhere and key[1].engine == "auto"})


def _where(name: str, task: Task) -> str:
    return f"{name} {task.device} {task.engine}, {task.layer.id}"


def document(
    layers: Sequence[Layer], results: Results, left_out: LeftOut, settings: Settings, more: Mapping[str, Any]
) -> Message:
    """Everything that is known, for a file."""
    rows = _rows(results) + [(name, task, {"skipped": why}) for (name, task), why in left_out.items()]
    records = [
        {**layer.to_json(), "macs": layer.macs, "results": [_record(*row) for row in rows if row[1].layer == layer]}
        for layer in layers
    ]
    hellos = {name: timed.hello for name, timed in results.items()}
    return {**more, "settings": vars(settings), "backends": hellos, "layers": records}


def _record(name: str, task: Task, found: Message) -> Message:
    """One row; `chosen` is the engine that computed it, where `engine` may be auto."""
    record: Message = {"backend": name, "device": task.device, "engine": task.engine}
    record |= {"chosen" if key == "engine" else key: value for key, value in found.items()}
    return record | ({"gflops": gflops(task.layer, found["best_ms"])} if "best_ms" in found else {})
