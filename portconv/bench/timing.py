"""The clock of the workers: correctness first, then the time of a call in steady state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from portconv import machine

from . import reference
from .layers import Layer

__all__ = [
    *("SLOW", "Prepare", "Prepared", "Unsupported"),
    *("answer", "describe", "milliseconds", "reported", "seconds", "seems_disturbed", "wrong"),
]

WARM_UP = 0.1  # seconds
ROUND = 0.02  # seconds; short calls are repeated so that a round lasts as long
ROUNDS = 25
# Seconds until a library's own threads have ceased to spin for more work, 30 ms in ONNX Runtime, 100 ms in OpenBLAS:
# before, they would seem to be another program.
SETTLE = 0.12
SLOW = 10.0  # seconds; calls as slow as this are not repeated


class Unsupported(Exception):
    """The library cannot run this layer."""


@dataclass
class Prepared:
    """A layer as a library has it: weight packed, input in the layout that it likes."""

    call: Callable[[], Any]  # one finished evaluation
    to_numpy: Callable[[Any], Any]  # its result as an NCHW array
    notes: Callable[[], dict[str, Any]] = dict  # more to report, asked after timing


Prepare = Callable[[Layer, Any, Any, Any], Prepared]  # of a layer, its input, weight, and bias or None


def seconds(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _steady_state(call: Callable[[], Any], budget: float) -> list[float]:
    """Seconds a call, one figure for each round, within about `budget` seconds in all."""
    start = time.perf_counter()
    calls = 0
    while (spent := time.perf_counter() - start) < min(WARM_UP, budget) or calls == 0:
        call()
        calls += 1
    repeats = max(1, round(ROUND * calls / spent))
    deadline = start + budget
    rounds: list[float] = []
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() < deadline):
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        rounds.append((time.perf_counter() - begin) / repeats)
    return rounds


def _time(prepare: Prepare, layer: Layer, budget: float) -> dict[str, Any]:
    x, weight, bias = reference.make_data(layer)
    start = time.perf_counter()
    prepared = prepare(layer, x, weight, bias)
    built = time.perf_counter()
    disturbed = seems_disturbed()
    begun = time.perf_counter()
    y = prepared.call()
    first = time.perf_counter() - begun
    share = reference.check(layer, x, weight, bias, prepared.to_numpy(y))
    if share > 1:
        return {"error": wrong(share)}
    del y
    # a slow first call may have compiled something; if the second is as slow, that must do
    again = first if first < SLOW else seconds(prepared.call)
    rounds = sorted(_steady_state(prepared.call, budget)) if again < SLOW else [min(first, again)]
    disturbed = seems_disturbed() or disturbed
    return {
        "best_ms": 1e3 * rounds[0],
        "median_ms": 1e3 * rounds[len(rounds) // 2],
        "rounds": len(rounds),
        "build_ms": 1e3 * (built - start),
        "first_ms": 1e3 * first,
        "error_share": share,
        "disturbed": disturbed,
        **prepared.notes(),
    }


def answer(prepare: Prepare, layer: Layer, budget: float) -> dict[str, Any]:
    """The figures of a layer, or `skipped` or `error` with the reason. A wrong result is an error and gets no time."""
    return reported(lambda: _time(prepare, layer, budget))


def reported(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives back, or `skipped` or `error` with the reason."""
    try:
        return work()
    except Unsupported as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001  it belongs in the report, and the next layer gets its turn
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def seems_disturbed() -> bool:
    """Whether something else uses a core that this process needs."""
    time.sleep(SETTLE)
    return machine.disturbed()


def wrong(share: float) -> str:
    """What is said of a wrong result, by its error as a share of the bound."""
    return f"wrong result: the error is {share:.3g} times the bound"


def describe(found: dict[str, Any]) -> str:
    """An answer in a few words."""
    if "best_ms" in found:
        engine = f" ({found['engine']})" if "engine" in found else ""
        return f"{milliseconds(found['best_ms'])} ms{engine}" + (", disturbed" if found.get("disturbed") else "")
    return str(found.get("error") or f"skipped, {found.get('skipped')}")


def milliseconds(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
