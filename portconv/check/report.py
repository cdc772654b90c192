"""What `portconv check` says: a table, the failures, the reasons of refusals, and a document for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from ..bench.tables import Column, Grouped, Line, Section
from ..testing.problems import Problem
from . import markdown
from .runner import ACCURACIES, Library, Run

__all__ = ["document", "failures", "missing", "page", "refusals", "repeat", "summary", "table"]

Row = dict[str, Any]


HALF = ("float16", "bfloat16")


def summary(library: Library, problems: Sequence[Problem]) -> list[Row]:
    """A row for each device and engine: what ran, what was refused, the largest errors, the verdict.

    Errors of 16-bit results stand apart: rounding to that dtype alone takes nearly all of what is allowed.
    """
    half = {p.number for p in problems if p.result_dtype in HALF}
    # an engine may refuse everything, and a library a dtype, but no library float32
    due = any(p.dtype == "float32" and not p.mistake for p in library.part(problems))
    rows = []
    for device, engine in dict.fromkeys((run.device, run.engine) for run in library.results):
        found = {r: m for r, m in library.results.items() if (r.device, r.engine) == (device, engine)}
        passed = {run: m["share"] for run, m in found.items() if "share" in m}
        shares = {run: share for run, share in passed.items() if run.number not in half}
        raised = [run for run, m in found.items() if "raised" in m]
        failed = [run for run, m in found.items() if "failed" in m]
        worst = {a: max((s for r, s in shares.items() if r.accuracy == a), default=None) for a in ACCURACIES}
        ran = {run.number for run in [*passed, *raised, *failed]}
        refused = {run.number for run, m in found.items() if "refused" in m} - ran
        checked = bool(passed) or (engine == "auto" and not due)
        verdict = "FAILED" if failed or (engine == "auto" and not checked) else "passed" if checked else "not offered"
        rows.append(
            {
                "library": library.label,
                "device": device,
                "engine": engine,
                "problems": len(ran),
                "refused": len(refused),
                "failed": len({run.number for run in failed}),
                **worst,
                "16-bit": max((s for r, s in passed.items() if r.number in half), default=None),
                "worst_problem": failed[0].number if failed else _worst(shares or passed),
                "verdict": verdict,
            }
        )
    return rows


def _worst(shares: dict[Run, float]) -> int | None:
    return max(shares, key=lambda run: shares[run]).number if shares else None


def table(libraries: Sequence[Library], problems: Sequence[Problem]) -> Grouped:
    """The rows of all of them, but for engines that a library does not have at all."""
    names = {p.number: p.name for p in problems}
    caption = (
        "normwise, elementwise, 16-bit: the largest error that\n"
        "passed, as a share of the bound of that accuracy, results\n"
        "of 16 bits apart; run, refused: problems; worst: the\n"
        "problem of the largest error, by its number and its name"
    )
    sections = []
    for library in libraries:
        lines = []
        for row in summary(library, problems):
            if row["verdict"] == "not offered":
                continue
            number = row["worst_problem"]
            shares = ["-" if row[a] is None else f"{row[a]:.3f}" for a in (*ACCURACIES, "16-bit")]
            worst = ["-", ""] if number is None else [str(number), names[number]]
            verdict = Text(row["verdict"], style="bold red" if row["verdict"] == "FAILED" else "green")
            counts = str(row["problems"]), str(row["refused"])
            lines.append(Line([row["device"], row["engine"], verdict, *counts, *shares, *worst]))
        if lines or library.error:
            error = f"FAILED: {library.error}" if library.error else ""
            sections.append(Section(Text(library.label, style="bold"), lines, error))
    heads = ("device", "engine", "verdict", "run", "refused", *ACCURACIES, "16-bit", "worst", "problem")
    words = ("device", "engine", "verdict", "problem")
    return Grouped([Column(head, is_number=head not in words) for head in heads], sections, caption)


def repeat(library: Library, run: Run, seed: int) -> str:
    """The command that runs one problem again."""
    before = "PORTCONV_JIT=0 " if library.tier == "plain" else ""
    device = f'"{run.device}"' if set(run.device) & set(" ()'") else run.device
    return (
        f"{before}portconv check --library {library.name} --device {device} --engine {run.engine} "
        f"--problem {run.number} --seed {seed}"
    )


def failures(libraries: Sequence[Library], problems: Sequence[Problem], seed: int, most: int = 5) -> list[str]:
    """What went wrong, the first `most` of each device and engine, with the command that repeats it."""
    known = {p.number: p for p in problems}
    lines = []
    for library in libraries:
        if library.error:
            lines.append(f"{library.label}: {library.error}")
        shown: Counter[tuple[str, str]] = Counter()
        seen = set()  # a problem may fail in either accuracy
        for run, found in library.results.items():
            key = run.device, run.engine
            if "failed" not in found or (key, run.number) in seen:
                continue
            seen.add((key, run.number))
            shown[key] += 1
            if shown[key] <= most:
                p = known[run.number]
                lines.append(
                    f"{library.label} {run.device} {run.engine}, problem {p.number} ({p.name}, {run.accuracy})"
                )
                lines.append(f"    {found['failed']}")
                lines.append(f"    {p!r}")
                lines.append(f"    {repeat(library, run, seed)}")
        for (device, engine), count in shown.items():
            if count > most:
                lines.append(f"{library.label} {device} {engine}: {count - most} more failures")
        for row in summary(library, problems):
            if row["verdict"] == "FAILED" and not row["failed"]:
                reason = next(m["refused"] for r, m in library.results.items() if r.engine == "auto")
                lines.append(f"{library.label} {row['device']} auto: every problem was refused, the first: {reason}")
    return lines


def refusals(libraries: Sequence[Library], most: int = 10) -> list[str]:
    """The reasons of refusals with their counts of problems, the most frequent first."""
    seen = {
        (found["refused"], library.label, run.engine, run.number)
        for library in libraries
        for run, found in library.results.items()
        if "refused" in found
    }
    counts = Counter(reason for reason, *_ in seen)
    lines = []
    for reason, count in counts.most_common(most):
        who = sorted({f"{label} {engine}" for r, label, engine, _ in seen if r == reason})
        more = f" and {len(who) - 3} more" if len(who) > 3 else ""
        lines.append(f"{count:>6}  {reason}  [{', '.join(who[:3])}{more}]")
    if len(counts) > most:
        lines.append(f"{sum(counts.values()) - sum(c for _, c in counts.most_common(most)):>6}  other reasons")
    return lines


def missing(libraries: Sequence[Library]) -> list[str]:
    """Libraries that are not here, and why."""
    return [f"{library.label}: not checked: {library.missing}" for library in libraries if library.missing]


def document(libraries: Sequence[Library], problems: Sequence[Problem], more: dict[str, Any]) -> dict[str, Any]:
    """Everything, for a file: the summary, what is known of the libraries, every problem and every run."""
    return {
        **more,
        "libraries": {
            library.label: {
                "versions": library.versions,
                "devices": library.devices,
                "seconds": library.seconds,
                "missing": library.missing or None,
                "error": library.error or None,
                "problems": [p.number for p in library.part(problems)] if library.results else [],
            }
            for library in libraries
        },
        "summary": [row for library in libraries for row in summary(library, problems)],
        "problems": {p.number: {**vars(p), "call": repr(p)} for p in problems},
        "runs": [
            {"library": library.label, **vars(run), **found}
            for library in libraries
            for run, found in library.results.items()
        ],
    }


def page(
    libraries: Sequence[Library], problems: Sequence[Problem], where: dict[str, Any], version: str, day: str, seed: int
) -> str:
    """What was found, as a page in Markdown: what one shows who asks whether the numbers are right."""
    failed = failures(libraries, problems, seed)
    rows = []
    for library in libraries:
        versions = library.versions.get("mlx.core" if library.name == "mlx" else library.name, "-")
        for row in summary(library, problems):
            if row["verdict"] != "not offered":
                shares = ["-" if row[a] is None else f"{row[a]:.3f}" for a in (*ACCURACIES, "16-bit")]
                counts = str(row["problems"]), str(row["refused"])
                names = (library.label, versions, row["device"], row["engine"])
                rows.append([*(markdown.text(name) for name in names), *counts, *shares, row["verdict"]])
    head = ("library", "version", "device", "engine", "problems", "refused", *ACCURACIES, "16-bit", "verdict")
    blocks = [
        f"# portconv {version}: {'FAILED' if failed else 'passed'}",
        f"{day}; {markdown.text(where['cpu'])}, {where['usable_cores']} cores, {markdown.text(where['os'])}, Python "
        f"{where['python']}. Made by `portconv check --publish`, seed {seed}.",
        f"{len(problems)} problems, designed and drawn, each compared with a float64 sum. The numbers are the largest "
        "error found, as a share of the bound that is promised for that accuracy: 1 is the bound. Results of 16 bits "
        "stand apart, since their rounding alone takes nearly all of it.",
        "\n".join(markdown.table(head, rows)),
    ]
    blocks += ["\n".join(f"* {markdown.text(line)}" for line in missing(libraries))] if missing(libraries) else []
    blocks += ["## What failed", "```\n" + "\n".join(failed) + "\n```"] if failed else []
    return "\n\n".join(blocks) + "\n"
