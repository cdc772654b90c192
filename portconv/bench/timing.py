"""The clock of the workers: correctness first, then the time of a call in steady state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from portconv import machine

from . import reference
from .layers import Layer

__all__ = [
    *("SLOW", "Prepare", "Prepared", "Unsupported"),
    *("answer", "answers", "describe", "lead_in", "milliseconds", "reported", "seconds", "seems_disturbed", "wrong"),
]

WARM_UP = 0.1  # seconds
ROUND = 0.02  # seconds; short calls are repeated so that a round lasts as long
ROUNDS = 25
# Seconds until a library's own threads have ceased to spin for more work, 30 ms in ONNX Runtime, 100 ms in OpenBLAS:
# before, they would seem to be another program.
SETTLE = 0.12
SLOW = 10.0  # seconds; calls as slow as this are not repeated
# Seconds of untimed calls before each turn, where several take turns: the threads of the one before may still spin.
LEAD_IN = 0.02


class Unsupported(Exception):
    """The library cannot run this layer."""


@dataclass
class Prepared:
    """A layer as a library has it: weight packed, input in the layout that it likes."""

    call: Callable[[], Any]  # one finished evaluation: it waits for the result as the library needs it
    to_numpy: Callable[[Any], Any]  # its result as an NCHW array
    notes: Callable[[], dict[str, Any]] = dict  # more to report, asked after timing


Prepare = Callable[[Layer, Any, Any, Any], Prepared]  # of a layer, its input, weight, and bias or None


def seconds(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def lead_in(call: Callable[[], Any]) -> None:
    """Call it, untimed, until the threads of what ran before are at rest and its own are awake."""
    start = time.perf_counter()
    call()
    while time.perf_counter() - start < LEAD_IN:
        call()


def _steady_state(calls: Sequence[Callable[[], Any]], budget: float) -> list[list[float]]:
    """Seconds a call, of each of `calls` a figure for each round, in turns, within about `budget` seconds for each."""
    deadline = time.perf_counter() + budget * len(calls)
    repeats = [_repeats(call, min(WARM_UP, budget)) for call in calls]
    rounds: list[list[float]] = [[] for _ in calls]
    for done in range(ROUNDS):
        if done and time.perf_counter() >= deadline:
            break
        for call, repeat, figures in zip(calls, repeats, rounds, strict=True):
            if len(calls) > 1:
                lead_in(call)
            begin = time.perf_counter()
            for _ in range(repeat):
                call()
            figures.append((time.perf_counter() - begin) / repeat)
    return rounds


def _repeats(call: Callable[[], Any], warm_up: float) -> int:
    """How many calls make a round; it is warm after that."""
    start = time.perf_counter()
    calls = 0
    while (spent := time.perf_counter() - start) < warm_up or calls == 0:
        call()
        calls += 1
    return max(1, round(ROUND * calls / spent))


@dataclass
class _Contender:
    """One of those that take turns on a layer. It has `prepared` if its first result was right."""

    prepare: Prepare
    prepared: Prepared | None = None
    rounds: list[float] = field(default_factory=list)  # seconds of a call
    found: dict[str, Any] = field(default_factory=dict)  # its answer

    def begin(self, layer: Layer, data: tuple[Any, Any, Any]) -> dict[str, Any]:
        """The figures of its first call, or the error."""
        start = time.perf_counter()
        prepared = self.prepare(layer, *data)
        built = time.perf_counter()
        y = prepared.call()
        first = time.perf_counter() - built
        share = reference.check(layer, *data, prepared.to_numpy(y))
        if share > 1:
            return {"error": wrong(share)}
        del y
        # a slow first call may have compiled something; if the second is as slow, that must do
        if first >= SLOW and (again := seconds(prepared.call)) >= SLOW:
            self.rounds = [min(first, again)]
        self.prepared = prepared
        return {"build_ms": 1e3 * (built - start), "first_ms": 1e3 * first, "error_share": share}

    def end(self, disturbed: bool) -> dict[str, Any]:
        """All figures."""
        assert self.prepared is not None
        ordered = sorted(self.rounds)
        return {
            "best_ms": 1e3 * ordered[0],
            "median_ms": 1e3 * ordered[len(ordered) // 2],
            "rounds": len(ordered),
            **self.found,
            "disturbed": disturbed,
            **self.prepared.notes(),
        }


def _time(contenders: Sequence[_Contender], budget: float) -> dict[str, Any]:
    """Fill in the rounds of those that have none yet, and say whether something disturbed them."""
    disturbed = seems_disturbed()
    quick = [each for each in contenders if not each.rounds]
    calls = [each.prepared.call for each in quick if each.prepared is not None]
    for each, rounds in zip(quick, _steady_state(calls, budget), strict=True):
        each.rounds = rounds
    return {"disturbed": seems_disturbed() or disturbed}


def answers(prepares: Sequence[Prepare], layer: Layer, budget: float) -> list[dict[str, Any]]:
    """The figures of a layer by several, which take turns, or `skipped` or `error` with the reason.

    A wrong result is an error and gets no time.
    """
    data = reference.make_data(layer)
    contenders = [_Contender(prepare) for prepare in prepares]
    for each in contenders:
        each.found = reported(partial(each.begin, layer, data))
    ready = [each for each in contenders if each.prepared is not None]
    timed = reported(partial(_time, ready, budget)) if ready else {}
    for each in ready:
        each.found = timed if "error" in timed else reported(partial(each.end, timed["disturbed"]))
    return [each.found for each in contenders]


def answer(prepare: Prepare, layer: Layer, budget: float) -> dict[str, Any]:
    """The figures of a layer by one, as `answers` has them."""
    return answers([prepare], layer, budget)[0]


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
