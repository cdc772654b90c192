"""Times portconv and its peers on the same layers, each library in a process of its own, and prints the ratios.

python benchmarks/compare.py --suite resnet50 vgg19
python benchmarks/compare.py --claims --json claims.json --chart claims.png
"""

from __future__ import annotations

import argparse
import sys

import checkout  # noqa: F401  before portconv
import claims
from libraries import OURS, TARGETS
from rich.console import Console
from tables import Results, aligned, layer_table, suite_table

from portconv.bench import suites
from portconv.bench.contest import Contest, contest
from portconv.bench.layers import Layer, LayerError, load
from portconv.bench.report import network_table
from portconv.bench.runner import Task, run_all
from portconv.bench.timing import describe
from portconv.processes.files import write_json
from portconv.processes.machine import machine
from portconv.processes.session import Settings, Target


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=[*suites.SUITES, "all"], default=[], help="default: resnet50")
    parser.add_argument("--layers", metavar="FILE", help="layers from a JSON file")
    parser.add_argument("--select", metavar="REGEX", default="", help="only layers whose suite/name has a match")
    parser.add_argument("--libraries", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=2, help="for every library (default: 2)")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds to time a layer (default: 1)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds until a layer is given up (default: 60)")
    parser.add_argument("--passes", type=int, default=1, help="run all so often, keep the best (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    parser.add_argument("--chart", metavar="FILE", help="draw them, as .png, .svg or .pdf")
    parser.add_argument("--claims", action="store_true", help="measure the promises; status 1 if one fails")
    parser.add_argument("--list", action="store_true", help="list suites and libraries, and stop")
    options = parser.parse_args()
    names = options.suite or ([] if options.layers else ["resnet50"])
    if options.claims and not (options.suite or options.layers):
        names = claims.MIX
    try:
        options.chosen = suites.select(names, load(options.layers) if options.layers else [], options.select)
    except LayerError as error:
        parser.error(str(error))
    return options


def run(jobs: dict[str, list[Layer]], settings: Settings, passes: int) -> tuple[dict[str, dict], Results]:
    """What each worker says of itself, and the answers by layer id and library."""

    def progress(target: Target, task: Task, found: dict) -> None:
        print(f"{target.name:>20}  {task.layer.id}: {describe(found)}", file=sys.stderr, flush=True)

    # the peers compute on the CPU, and so does portconv here, with MLX arrays on a Mac, too
    tasks = {TARGETS[name]: [Task(layer, device="cpu") for layer in layers] for name, layers in jobs.items()}
    timed = run_all(tasks, settings, passes, progress)
    results: Results = {layer.id: {} for layers in jobs.values() for layer in layers}
    for library, found in timed.items():
        for task, answer in found.answers.items():
            results[task.layer.id][library] = answer
    return {library: found.hello for library, found in timed.items()}, results


def whole_networks(options: argparse.Namespace, settings: Settings) -> Contest:
    """The networks that claims are about."""

    def progress(network: str, library: str, found: dict) -> None:
        print(f"{library:>20}  {network}, whole: {describe(found)}", file=sys.stderr, flush=True)

    libraries, networks = claims.networks(options.libraries)
    # a network takes as long as some layers
    longer = Settings(settings.threads, 5 * settings.budget, 10 * settings.limit)
    return contest([TARGETS[name] for name in libraries], networks, longer, options.passes, progress)


def main() -> int:
    options = arguments()
    if options.list:
        for name, suite in suites.SUITES.items():
            print(f"{name:<15} {len(suite.rows):>2} layers  {suite.source}")
        print("libraries:", ", ".join(TARGETS))
        return 0
    settings = Settings(options.threads, options.budget, options.limit)
    where = machine()
    cores = f"{where['usable_cores']} of {where['cores']} cores"
    print(f"{where['cpu']}, {cores}, {where['os']}, {options.threads} threads")
    if (where["load_average"] or 0) > 0.5:
        print(f"Load average {where['load_average']:.2f}: other programs are at work, and the figures mean little.")

    jobs = dict.fromkeys(options.libraries, options.chosen)
    if options.claims:
        jobs = claims.jobs(options.libraries, options.chosen)
    layers = list(dict.fromkeys(layer for needed in jobs.values() for layer in needed))
    whole = whole_networks(options, settings) if options.claims else Contest()
    hellos, results = run(jobs, settings, options.passes)
    installed = [library for library in jobs if "missing" not in hellos[library]]

    print("\nMilliseconds, steady state with packed weights; * the fastest\n")
    print(layer_table(layers, installed, results))
    print("\nTime relative to the fastest library; `count` is how often a forward pass has the layer\n")
    print(suite_table(layers, installed, results))
    for library in jobs:
        if library not in installed:
            print(f"\n{library} cannot be imported: {hellos[library]['missing']}")
    for layer in layers:
        for library, answer in results[layer.id].items():
            if "error" in answer:
                print(f"\n{library}, {layer.id}: {describe(answer)}")

    answers = [answer for found in (results, whole.results) for here in found.values() for answer in here.values()]
    if disturbed := sum(bool(answer.get("disturbed")) for answer in answers):
        print(f"\n{disturbed} of {len(answers)} times were taken while something else used a core: they mean little.")
        print("More --passes keep the undisturbed ones.")

    verdicts = []
    if options.claims:
        Console(width=200).print(network_table(whole))
        verdicts = claims.judge(
            results, whole, options.chosen, options.threads, lambda line: print(line, file=sys.stderr)
        )
        print("\nClaims\n")
        print(aligned([["verdict", "claim", "figure"], *([v.verdict, v.claim, v.figure] for v in verdicts)]))
    document = {
        "machine": where,
        "settings": {**vars(settings), "passes": options.passes},
        "libraries": hellos,
        "layers": [{**layer.to_json(), "macs": layer.macs, "results": results[layer.id]} for layer in layers],
        "networks": whole.results,
        "claims": [vars(verdict) for verdict in verdicts],
    }
    if options.json:
        write_json(options.json, document)
    if options.chart:
        import chart

        chart.draw_document(document, options.chart)
    kept = all(verdict.verdict == "pass" for verdict in verdicts)
    failed = any("error" in answers.get(ours, {}) for answers in results.values() for ours in OURS)
    return 0 if kept and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
