"""The clock of whole networks: every layer once a round, in the order of a forward pass.

So it is in life: between two calls of a layer all others have been called, its weights have left the caches, and the
threads have done something else. What one layer repeated shows is what the machine can do at best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..processes.memory import peak_resident, reset_peak_resident
from . import reference
from .layers import Layer
from .timing import SLOW, Prepare, Prepared, Unsupported, lead_in, reported, seems_disturbed, wrong

__all__ = ["answer_check", "answer_network", "answer_turns"]

LEAST_ROUNDS, MOST_ROUNDS = 3, 200


def answer_check(prepare: Prepare, layers: Sequence[Layer]) -> dict[str, Any]:
    """Nothing if all layers are computed right; else `error`, or `skipped` where the library cannot run one."""
    return reported(lambda: _check(prepare, layers))


def _check(prepare: Prepare, layers: Sequence[Layer]) -> dict[str, Any]:
    largest = 0.0
    for layer in layers:
        x, weight, bias = reference.make_data(layer)
        try:
            prepared = prepare(layer, x, weight, bias)
        except Unsupported as reason:
            raise Unsupported(f"{layer.id}: {reason}") from None
        share = reference.check(layer, x, weight, bias, prepared.to_numpy(prepared.call()))
        if share > 1:
            return {"error": f"{layer.id}: {wrong(share)}"}
        largest = max(largest, share)
    return {"error_share": largest}


def answer_network(prepare: Prepare, layers: Sequence[Layer], budget: float) -> dict[str, Any]:
    """The figures of a network and of its layers; nothing is checked, so that the memory is that of the library.

    Times are in milliseconds: `best_ms` and `median_ms` of the rounds, `build_ms` to make all layers, `first_ms` and
    `second_ms` of the first two passes. `process_bytes` is the most memory that the process had, `network_bytes` how
    much of it came after the import of the library: inputs, weights, what they were packed to, and scratch memory.
    """
    return reported(lambda: _network(prepare, layers, budget))


def _network(prepare: Prepare, layers: Sequence[Layer], budget: float) -> dict[str, Any]:
    reset_peak_resident()
    imported = peak_resident()
    build, prepared = 0.0, []
    for layer in layers:
        data = reference.make_data(layer)
        start = time.perf_counter()
        prepared.append(prepare(layer, *data))
        build += time.perf_counter() - start
    del data
    calls = [each.call for each in prepared]
    disturbed = seems_disturbed()
    first = sum(_round(calls))
    rounds = [_round(calls)]
    deadline = time.perf_counter() + budget
    # a slow first pass may have compiled something; if the second is as slow, that must do
    while sum(rounds[0]) < SLOW and _wanted(len(rounds), deadline):
        rounds.append(_round(calls))
    peak = peak_resident()
    disturbed = seems_disturbed() or disturbed
    return {
        **_figures(list(map(sum, rounds))),
        "rounds": len(rounds),
        "build_ms": 1e3 * build,
        "first_ms": 1e3 * first,
        "second_ms": 1e3 * sum(rounds[0]),
        "process_bytes": peak,
        "network_bytes": max(peak - imported, 0),
        "disturbed": disturbed,
        "layers": _of_layers(layers, prepared, rounds),
    }


def answer_turns(prepares: Mapping[str, Prepare], layers: Sequence[Layer], budget: float) -> dict[str, Any]:
    """The figures of a network by several that take turns in one process, by the names in `prepares`.

    Each is checked first, and has `error` or `skipped` if that fails; else `error_share`, and of the rounds, a pass by
    each in turns, `best_ms` and `median_ms`, those of the `layers`, `rounds`, and `disturbed`.
    """
    found = {name: reported(partial(_check, prepare, layers)) for name, prepare in prepares.items()}
    right = {name: prepares[name] for name, answer in found.items() if "error_share" in answer}
    timed = reported(partial(_turns, right, layers, budget)) if right else {}
    return {name: {**answer, **timed.get(name, timed)} if name in right else answer for name, answer in found.items()}


def _turns(prepares: Mapping[str, Prepare], layers: Sequence[Layer], budget: float) -> dict[str, Any]:
    prepared: dict[str, list[Prepared]] = {name: [] for name in prepares}
    for layer in layers:
        data = reference.make_data(layer)
        for name, prepare in prepares.items():
            prepared[name].append(prepare(layer, *data))
    calls = {name: [each.call for each in made] for name, made in prepared.items()}
    first = max(sum(_round(each)) for each in calls.values())  # it packs, too
    rounds: dict[str, list[list[float]]] = {name: [] for name in prepares}
    disturbed = seems_disturbed()
    deadline = time.perf_counter() + budget * len(calls)
    done = 0
    while done == 0 or (first < SLOW and _wanted(done, deadline)):
        for name in calls:
            lead_in(partial(_round, calls[name]))
            rounds[name].append(_round(calls[name]))
        done += 1
    disturbed = seems_disturbed() or disturbed
    return {
        name: {
            **_figures(list(map(sum, rounds[name]))),
            "rounds": done,
            "disturbed": disturbed,
            "layers": _of_layers(layers, prepared[name], rounds[name]),
        }
        for name in calls
    }


def _wanted(rounds: int, deadline: float) -> bool:
    """Whether another round is to be run after so many."""
    return rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() < deadline)


def _of_layers(
    layers: Sequence[Layer], prepared: Sequence[Prepared], rounds: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """The figures of each layer, and what it says of itself."""
    return [
        {"id": layer.id, **_figures([one[place] for one in rounds]), **prepared[place].notes()}
        for place, layer in enumerate(layers)
    ]


def _round(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Seconds of each layer in one pass."""
    seconds = []
    before = time.perf_counter()
    for call in calls:
        call()
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return seconds


def _figures(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"best_ms": 1e3 * ordered[0], "median_ms": 1e3 * ordered[len(ordered) // 2]}
