"""What is timed, and what gets no time."""

from __future__ import annotations

import numpy as np

from portconv.bench import timing
from tests.bench.helpers import TINY, exact


def prepare_with(change):
    calls = []

    def prepare(layer, x, weight, bias):
        y = change(exact(layer)[1])
        return timing.Prepared(lambda: calls.append(1) or y, lambda y: y, lambda: {"engine": "mine"})

    return prepare, calls


def test_a_right_result_is_timed():
    prepare, calls = prepare_with(lambda y: y)
    found = timing.answer(prepare, TINY, 0.01)
    assert 0 < found["best_ms"] <= found["median_ms"]
    assert found["error_share"] < 1 and found["engine"] == "mine"
    assert len(calls) > 2


def test_a_wrong_result_gets_no_time():
    prepare, calls = prepare_with(lambda y: y * np.float32(1.001))
    found = timing.answer(prepare, TINY, 0.01)
    assert list(found) == ["error"] and "times the bound" in found["error"]
    assert len(calls) == 1


def test_slow_calls_are_not_repeated(monkeypatch):
    monkeypatch.setattr(timing, "SLOW", 0.0)
    prepare, calls = prepare_with(lambda y: y)
    assert timing.answer(prepare, TINY, 0.01)["rounds"] == 1
    assert len(calls) == 2


def test_several_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "SETTLE", 0.0)
    monkeypatch.setattr(timing, "LEAD_IN", 0.0)
    monkeypatch.setattr(timing, "ROUND", 0.0)  # one call a round
    log = []

    def prepare_as(name, error=0.0):
        def prepare(layer, x, weight, bias):
            y = exact(layer)[1] + np.float32(error)
            return timing.Prepared(lambda: log.append(name) or y, lambda y: y, lambda: {"engine": name})

        return prepare

    first, wrong, second = timing.answers([prepare_as("a"), prepare_as("b", 1.0), prepare_as("c")], TINY, 0.0)
    assert (first["engine"], second["engine"], list(wrong)) == ("a", "c", ["error"])
    assert log == ["a", "b", "c", "a", "c", "a", "a", "c", "c"]  # first calls, warm up, one turn with its lead
    assert first["rounds"] == second["rounds"] == 1


def test_what_a_library_raises():
    def unsupported(*_):
        raise timing.Unsupported("not this")

    def broken(*_):
        raise RuntimeError("oh")

    assert timing.answer(unsupported, TINY, 0.01) == {"skipped": "not this"}
    assert timing.answer(broken, TINY, 0.01) == {"error": "RuntimeError: oh"}
