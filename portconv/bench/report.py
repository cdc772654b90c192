"""What `portconv bench` says: a table of the figures, reasons for those that are missing, and a document for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.text import Text

from ..processes.session import Settings
from .comparison import Row, verdict
from .contest import Contest, best_peer
from .layers import Layer
from .networks import NETWORKS
from .runner import Task, Timed
from .tables import Column, Grouped, Line, Section, word
from .timing import milliseconds

__all__ = [
    *("document", "gflops", "problems", "reasons", "table", "without_row"),
    *("comparison_problems", "comparison_table", "network_document", "network_problems", "network_table"),
]

Message = dict[str, Any]
Results = Mapping[str, Timed]  # by the backend's name
LeftOut = Mapping[tuple[str, Task], str]

DISTURBED = "\n! something else used a core then: it may be faster"


def gflops(layer: Layer, milliseconds: float) -> float:
    """Billions of multiplications and additions a second, those of the direct sum whatever the engine does."""
    return 2e-6 * layer.macs / milliseconds


def _rows(results: Results) -> list[tuple[str, Task, Message]]:
    return [(name, task, found) for name, timed in results.items() for task, found in timed.answers.items()]


def table(layers: Sequence[Layer], results: Results) -> Grouped:
    """The figures, layer by layer; the fastest of a layer has a star."""
    caption = (
        "* the fastest of its layer\n"
        "tier: how the engine is carried out; native: by the library\n"
        "ratio: the library's own time over that of portconv's choice\n"
        "error: the largest, as a share of the bound; MiB: workspace"
    )
    if any(found.get("disturbed") for _, _, found in _rows(results)):
        caption += DISTURBED
    sections = []
    for layer in layers:
        rows = [row for row in _rows(results) if row[1].layer == layer]
        fastest = min((found["best_ms"] for _, _, found in rows if "best_ms" in found), default=None)
        heading = Text.assemble((layer.id, "bold"), "  ", (layer.problem, "dim"))
        sections.append(Section(heading, [_line(results, row, fastest) for row in rows]))
    texts = [Column(head, is_number=False) for head in ("library", "device", "engine", "tier")]
    return Grouped([*texts, *map(Column, ("ms", "ratio", "GFLOP/s", "error", "MiB"))], sections, caption, lead=2)


def _line(results: Results, row: tuple[str, Task, Message], fastest: float | None) -> Line:
    name, task, found = row
    engine = f"auto: {found['engine']}" if task.engine == "auto" and "engine" in found else task.engine
    cells: list[str | Text] = [name, task.device, engine]
    if "best_ms" not in found:
        return Line([*cells, word(found)])
    best, ratio = found["best_ms"] == fastest, native_ratio(results, name, task)
    figures = (
        found["tier"],
        ("! " if found.get("disturbed") else "") + ("* " if best else "") + milliseconds(found["best_ms"]),
        "" if ratio is None else f"{ratio:.2f}",
        f"{gflops(task.layer, found['best_ms']):.1f}",
        f"{found['error_share']:.3f}",
        f"{found['workspace_bytes'] / 2**20:.1f}",
    )
    return Line([*cells, *figures], style="green" if best else None)


def native_ratio(results: Results, name: str, task: Task) -> float | None:
    """The time of the library's own routine over that of portconv's choice; None where there are not both.

    Above 1 portconv's choice is faster. `task` is that of the choice.
    """
    answers = results[name].answers
    native = answers.get(replace(task, engine="native"), {})
    if task.engine != "auto" or "best_ms" not in native:
        return None
    return float(native["best_ms"] / answers[task]["best_ms"])


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
        {
            **layer.to_json(),
            "macs": layer.macs,
            "results": [_record(results, *row) for row in rows if row[1].layer == layer],
        }
        for layer in layers
    ]
    hellos = {name: timed.hello for name, timed in results.items()}
    return {**more, "settings": vars(settings), "backends": hellos, "layers": records}


def _record(results: Results, name: str, task: Task, found: Message) -> Message:
    """One row; `chosen` is the engine that computed it, where `engine` may be auto."""
    record: Message = {"backend": name, "device": task.device, "engine": task.engine}
    record |= {"chosen" if key == "engine" else key: value for key, value in found.items()}
    if "best_ms" in found:
        record["gflops"] = gflops(task.layer, found["best_ms"])
        if (ratio := native_ratio(results, name, task)) is not None:
            record["native_over_auto"] = ratio
    return record


# --- whole networks ---------------------------------------------------------------------------------------------------


def network_table(found: Contest) -> Grouped:
    """The figures, network by network, the fastest library first."""
    caption = (
        "tier: native is the library's own\n"
        "ms: one pass, each layer once, the best round\n"
        "* the best peer; to peer: above 1 a library beats that\n"
        "first, ms: until the first pass, compiled code being there\n"
        "error: the largest, as a share of the bound\n"
        "MiB: the process at its peak; of it: since the import"
    )
    if any(answer.get("disturbed") for answers in found.results.values() for answer in answers.values()):
        caption += DISTURBED
    sections = []
    for network, answers in found.results.items():
        best = best_peer(answers)
        ordered = sorted(answers.items(), key=lambda item: item[1].get("best_ms", float("inf")))
        lines = []
        for place, (library, answer) in enumerate(ordered):
            if "best_ms" not in answer:
                lines.append(Line([library, word(answer)]))
                continue
            mark = ("! " if answer.get("disturbed") else "") + ("* " if library == best else "")
            figures = (
                *_what_ran(answer["layers"]),
                mark + milliseconds(answer["best_ms"]),
                f"{answers[best]['best_ms'] / answer['best_ms']:.2f}" if best else "",
                milliseconds(answer["build_ms"] + answer["first_ms"]),
                f"{answer['error_share']:.3f}" if "error_share" in answer else "",
                f"{answer['process_bytes'] / 2**20:.0f}",
                f"{answer['network_bytes'] / 2**20:.0f}",
            )
            lines.append(Line([library, *figures], style="green" if place == 0 else None))
        sections.append(Section(Text(network, style="bold"), lines))
    texts = [Column(head, is_number=False) for head in ("library", "tier", "device")]
    numbers = ("ms", "to peer", "first, ms", "error", "MiB", "of it")
    return Grouped([*texts, *map(Column, numbers)], sections, caption)


def _what_ran(layers: Sequence[Message]) -> tuple[str, str]:
    """The tier of most layers, with a + if there are others, and the device."""
    tiers = [layer["tier"] for layer in layers]
    most = max(dict.fromkeys(tiers), key=tiers.count)
    return most + ("+" if len(set(tiers)) > 1 else ""), layers[0]["device"]


def comparison_table(found: Mapping[str, Sequence[Row]]) -> Grouped:
    """Each library's own routines and portconv's choice, network by network, the fastest first; and what to use."""
    caption = (
        "own, choice: one pass by the library's own routines and by\n"
        "portconv's choice, in turns on the same arrays\n"
        "ratio: above 1 the choice is faster\n"
        "engines: the layers with an engine of portconv's; its tier"
    )
    if any(answer.get("disturbed") for rows in found.values() for row in rows for answer in row.answers.values()):
        caption += DISTURBED
    sections = []
    for network, rows in found.items():
        ordered = sorted(rows, key=lambda row: min(_times(row), default=float("inf")))
        heading, said = Text(network, style="bold"), verdict(rows)
        lines = [_comparison_line(row) for row in ordered]
        sections.append(Section(heading, lines, "nothing has a time" if said is None else str(said)))
    texts = [Column(head, is_number=False) for head in ("library", "device")]
    numbers = [Column(head) for head in ("own, ms", "choice, ms", "ratio", "engines")]
    return Grouped([*texts, *numbers, Column("tier", is_number=False)], sections, caption, lead=2)


def _times(row: Row) -> list[float]:
    return [answer["best_ms"] for answer in row.answers.values() if "best_ms" in answer]


def _comparison_line(row: Row) -> Line:
    def shown(engine: str) -> str | Text:
        answer = row.answers.get(engine, {})
        if "best_ms" not in answer:
            return word(answer) if "error" in answer else "-"
        return ("! " if answer.get("disturbed") else "") + milliseconds(answer["best_ms"])

    ratio, layers = row.ratio, len(row.layers)
    return Line(
        [
            *(row.library, row.device, shown("native"), shown("auto")),
            "" if ratio is None else f"{ratio:.2f}",
            f"{len(row.own)} of {layers}" if layers else "",
            ", ".join(row.tiers),
        ]
    )


def comparison_problems(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """One line for every error, and for every library without a routine of its own for the whole network."""
    return [
        f"{row.library} {row.device} {engine}, {network}: {answer[kind]}"
        for kind in ("error", "skipped")
        for network, rows in found.items()
        for row in rows
        for engine, answer in row.answers.items()
        if kind in answer
    ]


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
    networks: Mapping[str, Sequence[Layer]],
    found: Contest,
    settings: Settings,
    more: Mapping[str, Any],
    compared: Mapping[str, Sequence[Row]] | None = None,
) -> Message:
    """Everything that is known, for a file."""
    records = {
        name: {
            "source": NETWORKS[name].source,
            "macs": sum(layer.macs for layer in layers),
            "layers": [{**layer.to_json(), "macs": layer.macs} for layer in layers],
            "results": found.results[name],
            **({} if compared is None else _comparison_record(compared[name])),
        }
        for name, layers in networks.items()
    }
    return {**more, "settings": vars(settings), "libraries": found.hellos, "networks": records}


def _comparison_record(rows: Sequence[Row]) -> Message:
    said = verdict(rows)
    return {"comparison": [row.to_json() for row in rows], "verdict": None if said is None else vars(said)}
