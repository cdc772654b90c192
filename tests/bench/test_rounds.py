"""The clock of whole networks."""

from __future__ import annotations

import time

import numpy as np
import pytest

from portconv.bench import rounds, timing
from portconv.bench.timing import Prepared, Unsupported
from tests.bench.helpers import SECOND, TINY, exact, other


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(timing, "SETTLE", 0.0)


def library(log, *, error=0.0, seconds=0.0):
    """What prepares layers for a library that knows the result, and logs what it is called with."""

    def prepare(layer, x, weight, bias):
        if layer.name == "unsupported":
            raise Unsupported("too odd")
        log.append(("build", layer.name))
        y = exact(layer)[1] + np.float32(error)

        def call():
            log.append(("call", layer.name))
            time.sleep(seconds)
            return y

        return Prepared(call, lambda y: y, lambda: {"engine": f"engine of {layer.name}"})

    return prepare


def test_each_layer_runs_once_a_round_in_the_order_of_the_network():
    log = []
    found = rounds.answer_network(library(log, seconds=0.002), [TINY, SECOND], budget=0.05)
    calls = [name for what, name in log if what == "call"]
    assert calls == ["tiny", "second"] * (found["rounds"] + 1)  # and the first pass
    assert log[:2] == [("build", "tiny"), ("build", "second")]
    assert rounds.LEAST_ROUNDS < found["rounds"] <= 14  # the second pass, and at most 13 that start within 50 ms
    assert 4 <= found["best_ms"] <= found["median_ms"]
    assert {layer["id"]: layer["engine"] for layer in found["layers"]} == {
        TINY.id: "engine of tiny",
        SECOND.id: "engine of second",
    }
    assert found["best_ms"] >= sum(layer["best_ms"] for layer in found["layers"]) >= 4
    assert found["process_bytes"] >= found["network_bytes"] >= 0 and found["first_ms"] >= 4


def test_a_slow_network_runs_three_rounds_and_a_very_slow_one_a_single_one(monkeypatch):
    assert rounds.answer_network(library([]), [TINY], budget=0.0)["rounds"] == rounds.LEAST_ROUNDS
    monkeypatch.setattr(rounds, "SLOW", 0.001)
    assert rounds.answer_network(library([], seconds=0.002), [TINY], budget=9.0)["rounds"] == 1


def test_networks_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "LEAD_IN", 0.0)
    log, others = [], []
    prepares = {"auto": library(log), "native": library(log), "wrong": library(others, error=1.0)}
    found = rounds.answer_turns(prepares, [TINY, SECOND], budget=0.0)
    calls = [name for what, name in log if what == "call"]
    # the checks, the first passes, and of each round a lead and a pass
    assert calls == ["tiny", "second"] * 2 * (2 + 2 * rounds.LEAST_ROUNDS)
    assert found["auto"]["rounds"] == found["native"]["rounds"] == rounds.LEAST_ROUNDS
    assert 0 < found["auto"]["best_ms"] <= found["auto"]["median_ms"] and found["auto"]["error_share"] < 1
    assert [layer["engine"] for layer in found["native"]["layers"]] == ["engine of tiny", "engine of second"]
    assert list(found["wrong"]) == ["error"]
    assert [name for what, name in others if what == "call"] == ["tiny"]  # no time for a wrong result


def test_a_network_that_one_cannot_run_is_timed_by_the_other():
    def fussy(layer, x, weight, bias):
        raise Unsupported("too odd")

    found = rounds.answer_turns({"auto": library([]), "native": fussy}, [TINY], budget=0.0)
    assert found["native"] == {"skipped": "given/tiny: too odd"} and found["auto"]["best_ms"] > 0
    assert rounds.answer_turns({"native": fussy}, [TINY], budget=0.0) == {"native": found["native"]}


def test_the_check_names_the_layer():
    assert 0 <= rounds.answer_check(library([]), [TINY, SECOND])["error_share"] < 0.1
    wrong = rounds.answer_check(library([], error=1.0), [TINY, SECOND])
    assert wrong["error"].startswith("given/tiny: wrong result: the error is ")
    assert rounds.answer_check(library([]), [TINY, other("unsupported")]) == {"skipped": "given/unsupported: too odd"}


def test_what_fails_is_an_answer():
    def broken(layer, x, weight, bias):
        raise RuntimeError("no memory")

    assert rounds.answer_network(broken, [TINY], 0.1) == {"error": "RuntimeError: no memory"}
