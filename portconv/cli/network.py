"""`portconv bench --network`: whole networks, by portconv and by every peer that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

import portconv

from ..bench import chart as charts
from ..bench import report
from ..bench.contest import contest, contestants, is_ours
from ..bench.networks import NETWORKS, network
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
    settings: Settings,
    passes: int,
    json_file: str | None,
    chart_file: str | None,
) -> int:
    """Time the networks, print a table, write the files; 1 if portconv failed at one, else 0."""
    where = machine()
    cores = f"{where['usable_cores']} of {where['cores']} cores"
    console.print(f"{where['cpu']}, {cores}, {where['os']}, {settings.threads} threads", markup=False)
    chosen = {name: network(name) for name in (NETWORKS if "all" in names else dict.fromkeys(names))}
    log = Console(stderr=True, highlight=False)

    def progress(network: str, library: str, answer: dict[str, Any]) -> None:
        log.print(f"{network} {library}: {describe(answer)}", markup=False, soft_wrap=True)

    found = contest(contestants(backends, peers), chosen, settings, passes, progress)
    console.print(report.network_table(found))
    for line in report.network_problems(found):
        console.print(line, markup=False, soft_wrap=True)
    more = {"portconv": portconv.__version__, "machine": where, "passes": passes}
    document = report.network_document(chosen, found, settings, more)
    if json_file is not None:
        write_json(json_file, document)
    if chart_file is not None:
        charts.draw_networks(document, chart_file)
    ours = [answer for here in found.results.values() for library, answer in here.items() if is_ours(library)]
    return 1 if any("error" in answer for answer in ours) else 0
