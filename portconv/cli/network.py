"""`portconv bench --network`: whole networks, by portconv and by every peer that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

import portconv

from ..bench import chart as charts
from ..bench import report
from ..bench.comparison import Row, compare
from ..bench.contest import contest, contestants, is_ours
from ..bench.networks import NETWORKS, network
from ..bench.survey import SurveyError, survey, unasked
from ..bench.timing import describe
from ..processes.files import write_json
from ..processes.machine import machine
from ..processes.session import Settings

__all__ = ["bench_networks"]


def bench_networks(
    console: Console,
    names: Sequence[str],
    backends: Sequence[str],
    peers: Sequence[str],
    layout: str,
    settings: Settings,
    passes: int,
    json_file: str | None,
    chart_file: str | None,
) -> int:
    """Time the networks, print the tables, write the files; 1 if portconv failed at one, else 0."""
    try:
        here = survey([], backends, settings)
    except SurveyError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    places = [(name, device) for name, backend in here.items() for device in backend["devices"]]
    where = machine()
    cores = f"{where['usable_cores']} of {where['cores']} cores"
    console.print(f"{where['cpu']}, {cores}, {where['os']}, {settings.threads} threads", markup=False)
    chosen = {name: network(name) for name in (NETWORKS if "all" in names else dict.fromkeys(names))}
    log = Console(stderr=True, highlight=False)

    def progress(network: str, library: str, answer: dict[str, Any]) -> None:
        log.print(f"{network} {library}: {describe(answer)}", markup=False, soft_wrap=True)

    def compared_so_far(network: str, row: Row) -> None:
        for engine, answer in row.answers.items():
            log.print(
                f"{network} {row.library} {row.device} {engine}: {describe(answer)}", markup=False, soft_wrap=True
            )

    found = contest(contestants(backends, peers, layout), chosen, settings, passes, progress)
    compared = compare(places, chosen, settings, passes, layout, compared_so_far)
    console.print(report.network_table(found))
    console.print(report.comparison_table(compared))
    for line in [*report.network_problems(found), *report.comparison_problems(compared), *unasked(backends)]:
        console.print(line, markup=False, soft_wrap=True)
    more = {"portconv": portconv.__version__, "machine": where, "passes": passes, "layout": layout}
    document = report.network_document(chosen, found, settings, more, compared)
    if json_file is not None:
        write_json(json_file, document)
    if chart_file is not None:
        charts.draw_networks(document, chart_file)
    ours = [answer for here in found.results.values() for library, answer in here.items() if is_ours(library)]
    ours += [answer for rows in compared.values() for row in rows for answer in row.answers.values()]
    return 1 if any("error" in answer for answer in ours) else 0
