"""Fits the constants of portconv's cost estimates to this machine, and says how good its choices are.

python benchmarks/fit_costs.py --tier portconv-jit                     # measure the suites, fit, print the constants
python benchmarks/fit_costs.py --tier portconv-numpy --layers FILE     # on other layers
python benchmarks/fit_costs.py --tier portconv-jit --check             # only the share of good choices, no fit
Every engine that can run a layer is timed, unless its estimate is 10 times the least. Each estimate is a sum of counts
times constants, so that the constants are a least-squares fit of relative errors, none of them negative. The share of
layers whose chosen engine takes at most 1.25 times as long as the best one is printed before and after the fit. The
constants go into portconv/engines/costs.py (plain) and portconv/cpu/compiled/costs.py (compiled).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import checkout  # noqa: F401  before portconv
from libraries import TIERS, missing

from portconv.bench.layers import Layer, LayerError, load
from portconv.bench.suites import SUITES, select
from portconv.processes.files import write_json
from portconv.processes.machine import machine
from portconv.processes.session import environment

GOOD = 1.25  # times the best engine's time
WORTH_TIMING = 10.0  # times the least estimate
BUDGET = 0.1  # seconds for an engine on a layer
LONGEST = 3.0  # seconds: what is estimated to take longer is not timed
TRUST = 0.5  # in a constant as it was, where one measurement counts 1
ROUNDS = 4  # of fit and new tiling: the constants decide which tiles are estimated


# --- in the process that times


def problem_of(layer: Layer):
    import portconv

    return portconv.plan_conv2d(layer.x_shape, layer.weight_shape, False, **layer.options).problem


def time_engines(layer: Layer) -> dict[str, float]:
    """Seconds of every engine, the best call of those within the budget."""
    import portconv
    from portconv.bench.reference import make_data

    x, weight, _ = make_data(layer)
    plan = portconv.plan_conv2d(x, weight, **layer.options)
    able = [c for c in plan.candidates if c.why_not is None]
    least = min(c.seconds for c in able)
    found = {}
    for c in able:
        if c.seconds > min(WORTH_TIMING * least, max(LONGEST, 2 * least)):
            continue
        one = portconv.plan_conv2d(x, weight, engine=c.engine, **layer.options)
        packed = one.pack(weight)
        one.execute(x, packed)
        best, deadline = float("inf"), time.perf_counter() + BUDGET
        while best == float("inf") or time.perf_counter() < deadline:
            start = time.perf_counter()
            one.execute(x, packed)
            best = min(best, time.perf_counter() - start)
        found[c.engine] = best
    return found


def serve() -> None:
    """Layers come one a line, answers go one a line."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(time_engines(Layer.from_json(json.loads(line)))), file=channel, flush=True)


# --- the fit


def estimates(problem, plain, jit) -> dict[str, float]:
    """Seconds of every engine that can run, with these constants."""
    from portconv.cpu.bridge import host_candidates

    return {c.engine: c.seconds for c in host_candidates(problem, plain, jit) if c.why_not is None}


def counts(problem, engine: str, plain, jit, compiled: bool) -> list[float]:
    """What each constant is multiplied by. An estimate is linear in them, so that is its derivative."""
    at = estimates(problem, plain, jit)[engine]
    row = []
    for name, value in zip(*fields(plain, jit, compiled), strict=True):
        step = max(value, 1e-13) * 1e-5
        moved = replaced(plain, jit, compiled, {name: value + step})
        row.append((estimates(problem, *moved)[engine] - at) / step)
    return row


def fields(plain, jit, compiled: bool) -> tuple[list[str], list[float]]:
    costs = jit if compiled else plain
    names = [name for name in costs._fields if name != "threads"]
    return names, [getattr(costs, name) for name in names]


def replaced(plain, jit, compiled: bool, values: dict[str, float]):
    return (plain, jit._replace(**values)) if compiled else (plain._replace(**values), jit)


def nonnegative(a, b):
    """Least squares with no negative coefficient: the most negative one is left out, until there is none."""
    import numpy as np

    kept = list(range(a.shape[1]))
    while True:
        solution = np.zeros(a.shape[1])
        solution[kept] = np.linalg.lstsq(a[:, kept], b, rcond=None)[0]
        worst = min(kept, key=lambda i: solution[i])
        if solution[worst] >= 0 or len(kept) == 1:
            return np.maximum(solution, 0)
        kept.remove(worst)


def fit(measured, plain, jit, compiled: bool):
    """The constants that predict the measurements best. `measured` lists (problem, engine, seconds)."""
    import numpy as np

    for _ in range(ROUNDS):
        names, values = fields(plain, jit, compiled)
        rows = np.array([counts(p, engine, plain, jit, compiled) for p, engine, _ in measured])
        seconds = np.array([s for *_, s in measured])
        scaled = rows * np.array(values) / seconds[:, None]  # columns in units of today's constants
        # rows that draw each constant to what it was, a little: some are hardly measured at all
        weak = TRUST * np.eye(len(values))
        factors = nonnegative(
            np.vstack([scaled, weak]), np.concatenate([np.ones(len(scaled)), TRUST * np.ones(len(values))])
        )
        new = {
            name: float(value * max(factor, 1e-3)) for name, value, factor in zip(names, values, factors, strict=True)
        }
        plain, jit = replaced(plain, jit, compiled, new)
    return plain, jit


def judge(results, plain, jit) -> tuple[float, list[str]]:
    """The share of layers with a good choice, and the others in words."""
    good, others = 0, []
    for layer, problem, times in results:
        chosen = estimates(problem, plain, jit)
        chosen = {engine: seconds for engine, seconds in chosen.items() if engine in times}
        pick = min(chosen, key=chosen.get)
        best = min(times, key=times.get)
        if times[pick] <= GOOD * times[best]:
            good += 1
        else:
            others.append(f"{layer.id}: {pick} takes {times[pick] / times[best]:.2f} times as long as {best}")
    return good / len(results), others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="portconv-jit", help="default: portconv-jit")
    parser.add_argument("--suite", nargs="+", choices=[*SUITES, "all"], default=["all"])
    parser.add_argument("--layers", nargs="+", metavar="FILE", help="layers from JSON files instead")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--check", action="store_true", help="do not fit")
    parser.add_argument(
        "--times", metavar="FILE", help="measurements: read from there if it exists, else written there"
    )
    parser.add_argument("--json", metavar="FILE", help="write the constants and the shares there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if (reason := missing(options.tier)) is not None:
        parser.error(reason)
    try:
        layers = [layer for file in options.layers for layer in load(file)] if options.layers else select(options.suite)
    except LayerError as error:
        parser.error(str(error))
    times = json.loads(Path(options.times).read_text()) if options.times and Path(options.times).exists() else {}
    command = [sys.executable, __file__, "--serve"]
    env = environment(options.threads, dict(TIERS[options.tier]))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=env) as worker:
        for number, layer in enumerate(layers, 1):
            if layer.id in times:
                continue
            worker.stdin.write(json.dumps(layer.to_json()) + "\n")
            worker.stdin.flush()
            times[layer.id] = json.loads(worker.stdout.readline())
            shown = ", ".join(f"{engine} {1e3 * s:.3g}" for engine, s in times[layer.id].items())
            print(f"{number}/{len(layers)} {layer.id}: {shown} ms", file=sys.stderr, flush=True)
        worker.stdin.close()
    if options.times:
        write_json(options.times, times)

    # in this process: the estimates, for the same tier and the same number of threads
    os.environ.update({k: v for k, v in dict(TIERS[options.tier]).items() if v is not None})
    os.environ["PORTCONV_NUM_THREADS"] = str(options.threads)
    from portconv.cpu.compiled.costs import COMPILED
    from portconv.engines.costs import CPU

    compiled = options.tier == "portconv-jit"
    results = [(layer, problem_of(layer), times[layer.id]) for layer in layers]
    where = machine()
    print(f"{where['cpu']}, {options.threads} threads, {options.tier}, {len(results)} layers")
    share, others = judge(results, CPU, COMPILED)
    print(f"As it is: the choice is within {GOOD} times the best for {100 * share:.0f} % of the layers")
    for line in others:
        print(f"  {line}")
    document = {
        "machine": where,
        "tier": options.tier,
        "share": share,
        "constants": (COMPILED if compiled else CPU)._asdict(),
    }
    if not options.check:
        measured = [(p, engine, s) for _, p, found in results for engine, s in found.items()]
        if compiled:  # the compiled engines' constants only: fft has none of its own
            measured = [(p, engine, s) for p, engine, s in measured if engine != "fft"]
        plain, jit = fit(measured, CPU, COMPILED, compiled)
        fitted, others = judge(results, plain, jit)
        print(f"Fitted: {100 * fitted:.0f} %")
        for line in others:
            print(f"  {line}")
        for name, value in zip(*fields(plain, jit, compiled), strict=True):
            print(f"    {name}={value:.2g},")
        document |= {"fitted_share": fitted, "fitted_constants": (jit if compiled else plain)._asdict()}
    if options.json:
        write_json(options.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
