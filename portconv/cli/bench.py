"""`portconv bench`: every library, device and engine that is here, on layers of published networks or on one's own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import portconv

from ..bench import chart as charts
from ..bench import report, suites
from ..bench.layers import LayerError
from ..bench.networks import NETWORKS, network
from ..bench.peers import NETWORK_PEERS
from ..bench.runner import Task, Timed, run_all
from ..bench.survey import Choice, SurveyError, choose, survey, unasked
from ..bench.timing import describe
from ..bench.worker import backend_target
from ..machine import usable_cores
from ..processes.files import write_json
from ..processes.machine import machine
from ..processes.session import Settings, Target
from .network import bench_networks
from .options import json_option, layer_options, layers_of, one, output, several
from .screen import screen

__all__ = ["bench"]


@click.command(short_help="Compare the libraries, devices and engines that are here.")
@layer_options
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME",
    type=click.Choice([*NETWORKS, "all"]),
    help="A whole network beside other libraries, see --list; repeatable.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    type=click.Choice(NETWORK_PEERS),
    help="Which others, by default all that are installed; repeatable.",
)
@several(
    *("library", "device", "engine"),
    library="By default all there are but Dask; repeatable.",
    engine="By default all worth a try; repeatable.",
)
@click.option("--backend", "backends", multiple=True, hidden=True)  # what --library was called
@one("dtype", "layout", "accuracy")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="For every library; by default all cores.")
@click.option(
    "--budget", metavar="SECONDS", type=click.FloatRange(0), help="To time an engine; by default 0.5, a network 5."
)
@click.option(
    "--limit", metavar="SECONDS", type=click.FloatRange(1), help="Until it is given up; by default 60, a network 600."
)
@click.option("--passes", metavar="N", type=click.IntRange(1), default=1, help="Run all so often, and keep the best.")
@json_option
@click.option(
    "--chart",
    "chart_file",
    metavar="FILE",
    type=click.Path(),
    callback=output(*charts.SUFFIXES),
    help="Draw it: .png, .svg, .pdf.",
)
@click.option("--list", "list_suites", is_flag=True, help="List suites and networks, and stop.")
def bench(
    networks: Sequence[str],
    peers: Sequence[str],
    libraries: Sequence[str],
    backends: Sequence[str],
    devices: Sequence[str],
    engines: Sequence[str],
    dtype: str,
    layout: str,
    accuracy: str,
    threads: int | None,
    budget: float | None,
    limit: float | None,
    passes: int,
    json_file: str | None,
    chart_file: str | None,
    list_suites: bool,
    **given: Any,
) -> int:
    """Time the libraries, devices and engines on the same layers, each library in a process of its own.

    A result is checked against a float64 sum before it is timed: a wrong one gets no time, and the exit status is 1.
    Every call waits for its result as the library needs it. What portconv chooses and the library's own routine take
    turns on the same arrays. GFLOP/s count the operations of the direct sum, whatever an engine does instead. Dask
    takes part only if it is named.

    With --network, all convolutions of a network in their order, each once a round, by portconv on NumPy arrays and by
    PyTorch, ONNX Runtime, OpenVINO, JAX and MLX on the CPU, whichever are installed; and the memory that each needs.
    Then each array library on each of its devices, by its own routines and by portconv's choice, in turns: which one
    should that network run on here?

    \b
    portconv bench --suite mobilenet_v1 --library numpy --chart chart.png
    portconv bench --x 1x64x56x56 --weight 64x64x3x3 --padding 1 --json results.json
    portconv bench --network resnet50 --network vgg19 --chart networks.png
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    if list_suites:
        for name, suite in suites.SUITES.items():
            click.echo(f"{name:<15} {len(suite.rows):>2} layers  {suite.source}")
        click.echo("\nnetworks, for --network:")
        for name, whole in NETWORKS.items():
            click.echo(f"{name:<15} {len(network(name)):>2} layers  {whole.source}")
        return 0
    if chart_file is not None:
        importlib.import_module("matplotlib")  # its absence must show before the timing
    console = screen(json_file)
    libraries = (*libraries, *backends)
    usual = (0.5, 60.0) if not networks else (5.0, 600.0)
    settings = Settings(
        threads or usable_cores(), usual[0] if budget is None else budget, usual[1] if limit is None else limit
    )
    if networks:
        _check_alone(devices, engines, given, (dtype, accuracy))
        return bench_networks(console, networks, libraries, peers, layout, settings, passes, json_file, chart_file)
    if peers:
        raise click.UsageError("--peer needs --network.", click.get_current_context())
    try:
        layers = layers_of(**given, dtype=dtype, accuracy=accuracy)
        found = survey(layers, libraries, settings, layout)
        choice = choose(found, layers, engines, devices)
    except (LayerError, SurveyError) as error:
        raise click.UsageError(str(error), click.get_current_context()) from None

    where = machine()
    console.print(_heading(where, settings, found), markup=False)
    results = _timed(choice, settings, passes, layout)
    console.print(report.table(layers, results))
    wrong = report.problems(results)
    left_out = choice.left_out if engines else {}  # else nobody has asked for them
    without = report.without_row(layers, results, choice.left_out)
    for line in [*wrong, *report.reasons(left_out), *without, *unasked(libraries)]:
        console.print(line, markup=False)
    if json_file is not None:
        more = {"portconv": portconv.__version__, "machine": where, "passes": passes, "layout": layout, "dtype": dtype}
        more["accuracy"] = accuracy
        more["devices"] = _devices(found)
        write_json(json_file, report.document(layers, results, choice.left_out, settings, more))
    if chart_file is not None:
        title = f"portconv {portconv.__version__}, {dtype}, {settings.threads} threads, {where['cpu']}"
        series, legend = charts.of_results(results)
        rows, disturbed = [layer.id for layer in layers], charts.disturbed(results)
        charts.draw(series, rows, title, chart_file, legend, disturbed, charts.load(where))
    return 1 if wrong else 0


def _check_alone(
    devices: Sequence[str], engines: Sequence[str], given: dict[str, Any], promised: tuple[str, str]
) -> None:
    """A network has its layers, in float32, on the devices that are here, by the engines that portconv chooses."""
    if promised != ("float32", "normwise"):
        raise click.UsageError("--network is timed in float32, normwise.", click.get_current_context())
    others = {"--device": devices, "--engine": engines, "--suite": given["names"], "--layers": given["file"]}
    others |= {"--x": given["x_shape"], "--weight": given["weight_shape"], "--select": given["pattern"]}
    for option, value in others.items():
        if value:
            raise click.UsageError(f"--network and {option} exclude each other.", click.get_current_context())


def _heading(where: dict[str, Any], settings: Settings, found: dict[str, Any]) -> str:
    cores = f"{where['usable_cores']} of {where['cores']} cores"
    lines = [f"{where['cpu']}, {cores}, {where['os']}, {settings.threads} threads"]
    places = [
        f"{name} {device}" + (f" ({kind})" if kind else "")
        for name, kinds in _devices(found).items()
        for device, kind in kinds.items()
    ]
    lines.append(", ".join(places))
    if (where["load_average"] or 0) > 0.5:
        load = f"Load average {where['load_average']:.2f}"
        lines.append(f"{load}: other programs are at work, and the figures mean little.")
    return "\n".join(lines)


def _devices(found: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {name: {d: here["hardware"] for d, here in backend["devices"].items()} for name, backend in found.items()}


def _timed(choice: Choice, settings: Settings, passes: int, layout: str) -> dict[str, Timed]:
    """Every backend over its tasks, `passes` times, with a bar on a terminal and a line for each task elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=passes * sum(map(len, choice.tasks.values())))

        def progress(target: Target, task: Task, found: dict[str, Any]) -> None:
            where = f"{target.name} {task.device} {task.engine} {task.layer.id}"
            bar.update(shown, advance=1, description=where)
            if not console.is_terminal:
                console.print(f"{where}: {describe(found)}", markup=False, soft_wrap=True)

        jobs = {backend_target(name, layout=layout): tasks for name, tasks in choice.tasks.items()}
        results = run_all(jobs, settings, passes, progress)
    for name, timed in results.items():
        if "missing" in timed.hello:  # it was there when asked before, so it is no bad input
            timed.answers = {task: {"error": timed.hello["missing"]} for task in choice.tasks[name]}
    return results
