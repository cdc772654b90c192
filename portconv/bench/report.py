"""What `portconv bench` says: a table of the figures, reasons for those that are missing, and a document for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..processes.session import Settings
from .contest import Contest, best_peer
from .layers import Layer
from .networks import NETWORKS
from .runner import Task, Timed
from .timing import milliseconds

__all__ = [
    *("document", "gflops", "problems", "reasons", "table", "without_row"),
    *("network_document", "network_problems", "network_table"),
]

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


# --- whole networks ---------------------------------------------------------------------------------------------------


def network_table(found: Contest) -> Table:
    """The figures, network by network, the fastest library first; `to the best peer`: above 1 a library beats it."""
    caption = (
        "ms: one pass, each layer once, the best round; the best peer has a star\n"
        "first: until the first pass is done, with compiled code of an earlier process\n"
        "error: the largest, as a share of the bound; MiB: the peak of the process, and what came after the import"
    )
    if any(answer.get("disturbed") for answers in found.results.values() for answer in answers.values()):
        caption += "\n! something else used a core before or after it was timed: it may be faster than that"
    grid = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", caption=caption, caption_justify="left"
    )
    for column in ("network", "library"):
        grid.add_column(column, no_wrap=True)
    for column in ("ms", "to the best peer", "first, ms", "error", "MiB", "MiB of it"):
        grid.add_column(column, justify="right", no_wrap=True)
    for network, answers in found.results.items():
        best = best_peer(answers)
        ordered = sorted(answers.items(), key=lambda item: item[1].get("best_ms", float("inf")))
        for place, (library, answer) in enumerate(ordered):
            head = Text(network if place == 0 else "", style="bold")
            if "best_ms" not in answer:
                word = "error" if "error" in answer else "skipped"
                grid.add_row(head, Text(library), Text(word, style="bold red" if word == "error" else "dim"))
                continue
            mark = ("! " if answer.get("disturbed") else "") + ("* " if library == best else "")
            figures = (
                mark + milliseconds(answer["best_ms"]),
                f"{answers[best]['best_ms'] / answer['best_ms']:.2f}" if best else "",
                milliseconds(answer["build_ms"] + answer["first_ms"]),
                f"{answer['error_share']:.3f}" if "error_share" in answer else "",
                f"{answer['process_bytes'] / 2**20:.0f}",
                f"{answer['network_bytes'] / 2**20:.0f}",
            )
            grid.add_row(head, Text(library), *map(Text, figures), style="green" if place == 0 else None)
        grid.add_section()
    return grid


def network_problems(found: Contest) -> list[str]:
    """One line for everything that has no time, errors first, and for every library that is not there."""
    lines = [
        (kind, f"{library}, {network}: {answer[kind]}")
        for network, answers in found.results.items()
        for library, answer in answers.items()
        for kind in ("error", "skipped")
        if kind in answer
    ]
    return [
        *(line for _, line in sorted(lines, key=lambda item: item[0])),
        *(f"{library} is not here: {reason}" for library, reason in found.missing.items()),
    ]


def network_document(
    networks: Mapping[str, Sequence[Layer]], found: Contest, settings: Settings, more: Mapping[str, Any]
) -> Message:
    """Everything that is known, for a file."""
    records = {
        name: {
            "source": NETWORKS[name].source,
            "macs": sum(layer.macs for layer in layers),
            "layers": [{**layer.to_json(), "macs": layer.macs} for layer in layers],
            "results": found.results[name],
        }
        for name, layers in networks.items()
    }
    return {**more, "settings": vars(settings), "libraries": found.hellos, "networks": records}
