"""Times portconv and its peers on the same layers, each library in a process of its own, and prints the ratios.

python benchmarks/compare.py --suite resnet50 vgg19
python benchmarks/compare.py --claims --json claims.json
"""

from __future__ import annotations

import argparse
import math
import sys

import claims
import suites
from runner import Settings, describe, machine, run_libraries, write_json
from suites import Layer
from workers import LIBRARIES

OURS = ("portconv-numpy", "portconv-mlx")


def peers_of(answers: dict[str, dict]) -> dict[str, float]:
    """Milliseconds of the libraries that are not portconv."""
    return {name: a["best_ms"] for name, a in answers.items() if name not in OURS and "best_ms" in a}


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def aligned(rows: list[list[str]]) -> str:
    """A Markdown table that is readable as it stands; the first row is the head, the first two columns are text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def problem(layer: Layer) -> str:
    """The sizes in short, what is usual being left out."""

    def short(value: tuple[int, int]) -> str:
        return str(value[0]) if value[0] == value[1] else "x".join(map(str, value))

    text = f"{'x'.join(map(str, layer.x_shape))} * {'x'.join(map(str, layer.weight_shape))}"
    for letter, value, usual in (
        ("s", layer.stride, (1, 1)),
        ("p", layer.padding, (0, 0)),
        ("d", layer.dilation, (1, 1)),
        ("g", (layer.groups, layer.groups), (1, 1)),
    ):
        text += f" {letter}{short(value)}" if value != usual else ""
    return text + (f" {layer.padding_mode}" if layer.padding_mode != "zeros" else "")


def layer_table(layers: list[Layer], libraries: list[str], results: dict[str, dict[str, dict]]) -> str:
    """Milliseconds; `*` marks the fastest of all. A ratio above 1 means that portconv-numpy beats the best peer."""
    rows = [["layer", "problem", *libraries, "best peer", "peer/portconv", "engine", "pack", "first"]]
    for layer in layers:
        answers = results[layer.id]
        times = {name: answer["best_ms"] for name, answer in answers.items() if "best_ms" in answer}
        cells = []
        for name in libraries:
            mark = "*" if name in times and times[name] == min(times.values()) else ""
            wrong = "error" if "error" in answers.get(name, {}) else ""
            cells.append(f"{times[name]:.3g}{mark}" if name in times else wrong)
        peers, own = peers_of(answers), answers.get("portconv-numpy", {})
        best = min(peers, key=peers.get) if peers else ""
        ratio = f"{peers[best] / own['best_ms']:.2f}" if best and "best_ms" in own else ""
        extra = [f"{own[key]:.3g}" if key in own else "" for key in ("pack_ms", "first_ms")]
        rows.append([layer.id, problem(layer), *cells, best, ratio, own.get("engine", ""), *extra])
    return aligned(rows)


def suite_table(layers: list[Layer], libraries: list[str], results: dict[str, dict[str, dict]]) -> str:
    """For each suite: time relative to the fastest of all, as a geometric mean, and the sum over a forward pass."""
    rows = [["suite", "figure", *libraries, "peer/portconv"]]
    names = list(dict.fromkeys(layer.suite for layer in layers))
    groups = {name: [layer for layer in layers if layer.suite == name] for name in names}
    if len(names) > 1:
        groups["all"] = layers
    for name, group in groups.items():
        relative: dict[str, list[float]] = {library: [] for library in libraries}
        total = dict.fromkeys(libraries, 0.0)
        ratios = []
        for layer in group:
            answers = results[layer.id]
            times = {library: answer["best_ms"] for library, answer in answers.items() if "best_ms" in answer}
            for library, time in times.items():
                relative[library].append(time / min(times.values()))
                total[library] += layer.count * time
            peers = peers_of(answers)
            if peers and "portconv-numpy" in times:
                ratios.append(min(peers.values()) / times["portconv-numpy"])

        def cell(values: list[float], figure: float, size: int = len(group)) -> str:
            """A library that did not run every layer gets no total, and its mean is marked with how many it ran."""
            if not values:
                return ""
            return f"{figure:.3g}" + (f" ({len(values)}/{size})" if len(values) < size else "")

        means = [cell(values, geometric_mean(values)) if values else "" for values in relative.values()]
        rows.append([name, "geometric mean", *means, f"{geometric_mean(ratios):.2f}" if ratios else ""])
        if name != "all":
            sums = [f"{total[lib]:.3g}" if len(relative[lib]) == len(group) else "" for lib in libraries]
            rows.append([name, "sum x count, ms", *sums, ""])
    return aligned(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=[*suites.SUITES, "all"], help="default: resnet50")
    parser.add_argument("--layers", metavar="FILE", help="layers from a JSON file instead")
    parser.add_argument("--select", metavar="REGEX", default="", help="only layers whose suite/name has a match")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), metavar="NAME")
    parser.add_argument("--threads", type=int, default=2, help="for every library (default: 2)")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds to time a layer (default: 1)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds until a layer is given up (default: 60)")
    parser.add_argument("--passes", type=int, default=1, help="run all so often, keep the best (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    parser.add_argument("--claims", action="store_true", help="measure the promises; status 1 if one fails")
    parser.add_argument("--list", action="store_true", help="list suites and libraries, and stop")
    options = parser.parse_args()
    if options.claims and (options.suite or options.layers or options.select):
        parser.error("--claims chooses the layers itself")
    return options


def main() -> int:
    options = arguments()
    if options.list:
        for name, suite in suites.SUITES.items():
            print(f"{name:<15} {len(suite.rows):>2} layers  {suite.source}")
        print("libraries:", ", ".join(LIBRARIES))
        return 0
    settings = Settings(options.threads, options.budget, options.limit)
    where = machine()
    cores = f"{where['usable_cores']} of {where['cores']} cores"
    print(f"{where['cpu']}, {cores}, {where['os']}, {options.threads} threads")
    if (where["load_average"] or 0) > 0.5:
        print(f"Load average {where['load_average']:.2f}: other programs are at work, and the figures mean little.")

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if options.claims:
        jobs = claims.jobs(options.libraries)
        layers = list(dict.fromkeys(layer for needed in jobs.values() for layer in needed))
    else:
        layers = suites.choose(options.suite or ["resnet50"], options.layers, options.select)
        jobs = dict.fromkeys(options.libraries, layers)
    hellos, results = run_libraries(jobs, settings, progress, options.passes)
    installed = [library for library in jobs if "missing" not in hellos.get(library, {})]

    print("\nMilliseconds, steady state with packed weights; * the fastest; pack, first: of portconv-numpy\n")
    print(layer_table(layers, installed, results))
    print("\nTime relative to the fastest library, geometric mean; `count` is how often a forward pass has the layer\n")
    print(suite_table(layers, installed, results))
    for library in jobs:
        if library not in installed:
            print(f"\n{library} cannot be imported: {hellos[library]['missing']}")
    for layer in layers:
        for library, answer in results[layer.id].items():
            if "error" in answer:
                print(f"\n{library}, {layer.id}: {describe(answer)}")

    verdicts = claims.judge(results, options.threads, progress) if options.claims else []
    if verdicts:
        print("\nClaims\n")
        print(aligned([["verdict", "claim", "figure"], *([v.verdict, v.claim, v.figure] for v in verdicts)]))
    if options.json:
        document = {
            "machine": where,
            "settings": {**vars(settings), "passes": options.passes},
            "libraries": hellos,
            "layers": [{**layer.to_json(), "macs": layer.macs, "results": results[layer.id]} for layer in layers],
            "claims": [vars(verdict) for verdict in verdicts],
        }
        write_json(options.json, document)
    kept = all(verdict.verdict == "pass" for verdict in verdicts)
    failed = any("error" in answers.get(ours, {}) for answers in results.values() for ours in OURS)
    return 0 if kept and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
