"""`portconv check`: every library, device and engine that is here against a float64 sum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

import portconv

from ..check import report
from ..check.problems import COUNT, QUICK_COUNT, problem, problems
from ..check.runner import CheckError, Checks
from ..check.runner import libraries as libraries_named
from ..processes.files import write_json, write_text
from ..processes.machine import machine
from ..testing.problems import Problem
from .options import json_option, output, several
from .progress import libraries_bar
from .screen import screen

__all__ = ["check"]


@click.command(short_help="Verify the libraries, devices and engines that are here.")
@several("library", "device", "engine", "dtype", "layout", "accuracy", engine="By default auto and all; repeatable.")
@click.option(
    "--count", type=click.IntRange(0), metavar="N", help=f"Drawn problems; by default {COUNT}, {QUICK_COUNT} if quick."
)
@click.option("--quick", is_flag=True, help="Leave out large problems, and most of the drawn ones.")
@click.option("--seed", type=click.IntRange(0), metavar="N", default=0, help="Of sizes and values; by default 0.")
@click.option("--problem", "number", type=click.IntRange(0), metavar="N", help="Only the problem of this number.")
@click.option(
    "--limit",
    type=click.FloatRange(1),
    metavar="SECONDS",
    default=120,
    help="Until a call is given up; by default 120.",
)
@json_option
@click.option(
    "--publish",
    "page_file",
    metavar="FILE",
    type=click.Path(),
    callback=output(".md"),
    help="Write what was found there, as a page (.md).",
)
def check(
    libraries: Sequence[str],
    devices: Sequence[str],
    engines: Sequence[str],
    dtypes: Sequence[str],
    layouts: Sequence[str],
    accuracies: Sequence[str],
    count: int | None,
    quick: bool,
    seed: int,
    number: int | None,
    limit: float,
    json_file: str | None,
    page_file: str | None,
) -> int:
    """Compare results with a float64 sum, on designed and drawn problems, each library in a process of its own.

    A result must have the right shape, dtype and device, and its error must be within the bound that portconv states;
    calls that make no sense must be errors. The exit status is 1 if anything failed: a wrong result, a crash, no
    answer.

    \b
    portconv check
    portconv check --library mlx --device gpu --json mlx.json
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    start = time.perf_counter()
    chosen = [
        problem
        for problem in _chosen(number, seed, count, quick)
        if problem.dtype in (dtypes or [problem.dtype]) and _layout(problem) in (layouts or [_layout(problem)])
    ]
    if not chosen:
        raise click.UsageError("no problem has that dtype and layout.", click.get_current_context())
    console = screen(json_file)
    with Checks(libraries_named(libraries), limit) as checks:
        try:
            checks.survey(needed=bool(libraries))
            runs = checks.choose(chosen, devices, engines, accuracies)
        except CheckError as error:
            raise click.UsageError(str(error), click.get_current_context()) from None
        where = machine()
        console.print(
            f"portconv {portconv.__version__}, {where['cpu']}, {where['usable_cores']} cores, {where['os']}\n"
            f"{len(chosen)} problems, seed {seed}",
            markup=False,
        )
        for library in checks.libraries:
            if runs.get(library.label) and library.stride > 1:
                hint = f"--library {library.name} for all"
                console.print(
                    f"{library.label} is slow and gets about one problem in {library.stride}; {hint}.", markup=False
                )
        with libraries_bar(runs) as progress:
            checks.run(runs, seed, progress)
    found = checks.libraries
    failures = report.failures(found, chosen, seed)
    console.print(report.table(found, chosen))
    _print(console, "refused, engine by engine:", report.refusals(found))
    _print(console, "", report.missing(found))
    _print(console, "failed:", failures)
    seconds = time.perf_counter() - start
    ran = sum("refused" not in m for library in found for m in library.results.values())
    verdict = "FAILED" if failures else "passed" if ran else "nothing was checked"
    console.print(f"{verdict}: {ran} results in {seconds:.0f} s", markup=False)
    if json_file is not None:
        more: dict[str, Any] = {"portconv": portconv.__version__, "machine": where, "seconds": seconds, "seed": seed}
        write_json(json_file, report.document(found, chosen, {**more, "passed": not failures}))
    if page_file is not None:
        today = time.strftime("%Y-%m-%d", time.gmtime())
        write_text(page_file, report.page(found, chosen, where, portconv.__version__, today, seed))
    return 1 if failures else 0


def _print(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines:
        console.print("\n".join([title, *lines] if title else lines), markup=False, soft_wrap=True)
        console.print()


def _layout(problem: Problem) -> str:
    return str(problem.arguments.get("layout", "NCHW"))


def _chosen(number: int | None, seed: int, count: int | None, quick: bool) -> list[Problem]:
    if number is not None:
        return [problem(number, seed)]
    return problems(seed, count if count is not None else QUICK_COUNT if quick else COUNT, quick)
