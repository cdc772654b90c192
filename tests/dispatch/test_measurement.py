"""The choice by the clock: what is timed, how often, and what is not kept."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.dispatch import measurement, path, wisdom
from tests.helpers import ones


def count_measurements(monkeypatch):
    measured = []
    measure = measurement._measured

    def counted(backend, problem, able):
        measured.append(problem)
        return measure(backend, problem, able)

    monkeypatch.setattr(measurement, "_measured", counted)
    path.forget_plans()
    return measured


def test_measure_runs_once(backend, monkeypatch):
    measured = count_measurements(monkeypatch)
    x, weight, bias = backend.array(ones(1, 2, 12, 13)), backend.array(ones(3, 2, 3, 3)), backend.array(ones(3))
    results = [portconv.conv2d(x, weight, bias, strategy="measure") for _ in range(3)]
    assert len(measured) == 1
    for y in results:
        np.testing.assert_allclose(backend.numpy(y), 19)
    plan = portconv.plan_conv2d(x, weight, bias, strategy="measure")
    assert len(measured) == 1
    assert plan.chosen_by == "measurement"
    timed = [c for c in plan.candidates if c.why_not is None and "not measured" not in c.note]
    assert plan.engine == min(timed, key=lambda c: c.seconds).engine
    module = portconv.Conv2d(2, 3, 3, strategy="measure")
    for _ in range(3):
        module(x)
    assert len(measured) == 1


def test_measure_chooses_what_was_fastest(monkeypatch, tier):
    """The clock decides, not the estimate."""
    library = portconv.get_backend("numpy")
    ticks = {"gemm": 3.0, "winograd": 4.0, "direct": 1.0, "fft": 2.0}
    now, execute = [0.0], {}
    for engine in ticks:
        kind = type(portconv.plan_conv2d((1, 2, 12, 14), (3, 2, 3, 3), engine=engine))
        execute[engine] = kind.execute

        def slow(self, *args, engine=engine):
            now[0] += ticks[engine]
            return execute[engine](self, *args)

        monkeypatch.setattr(kind, "execute", slow)
    monkeypatch.setattr(measurement.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measurement, "WORTH_MEASURING", 1e9)
    path.forget_plans()
    plan = portconv.plan_conv2d((1, 2, 12, 14), (3, 2, 3, 3), strategy="measure", backend=library)
    assert plan.engine == "direct"
    assert {c.engine: c.seconds for c in plan.candidates if c.why_not is None} == ticks
    path.forget_plans()


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int32", "float16", "bfloat16", "float64"])
def test_measure_with_every_dtype(backend, dtype):
    if dtype in ("float16", "bfloat16", "float64") and dtype not in backend.dtypes:
        dtype = "float32"
    weight_dtype = dtype if dtype in backend.dtypes else "float32"
    x, weight = backend.array(ones(1, 2, 9, 9), dtype), backend.array(ones(3, 2, 3, 3), weight_dtype)
    y = portconv.conv2d(x, weight, strategy="measure", padding=1, padding_mode="reflect")
    np.testing.assert_allclose(backend.numpy(y).astype(float), 18)


def test_measure_of_an_empty_batch_and_a_named_engine(monkeypatch):
    measured = count_measurements(monkeypatch)
    assert portconv.conv2d(ones(0, 2, 9, 9), ones(3, 2, 3, 3), strategy="measure").shape == (0, 3, 7, 7)
    assert portconv.plan_conv2d((1, 2, 9, 9), (3, 2, 3, 3), strategy="measure", engine="fft").engine == "fft"
    assert measured == []


@pytest.fixture
def probes(monkeypatch, cache):
    """What the probes will say, one after the other, the last one for ever; and the problems that were measured."""
    answers = []
    monkeypatch.setattr(
        measurement.busy, "disturbed", lambda threads: answers.pop(0) if len(answers) > 1 else answers[0]
    )
    monkeypatch.setattr(measurement, "PAUSE", 0.0)
    return answers, count_measurements(monkeypatch)


@pytest.mark.parametrize(
    ("said", "measured", "kept"),
    [
        ([False], 1, True),
        ([True], 0, False),
        ([True, False], 1, True),  # one program has just ended
        ([False, True, False], 2, True),  # one came and went
        ([False, True, False, True, False, True], 3, False),
        ([False, True], 1, False),
    ],
)
def test_disturbed_times_are_not_kept(probes, said, measured, kept):
    answers, problems = probes
    answers += said
    shapes = (1, 2, 9, 9), (3, 2, 3, 3)
    plan = portconv.plan_conv2d(*shapes, strategy="measure")
    assert len(problems) == measured
    assert len(wisdom.load()) == kept
    if kept:
        assert plan.chosen_by == "measurement"
    else:
        estimated = portconv.plan_conv2d(*shapes)
        assert plan.engine == estimated.engine and plan.candidates == estimated.candidates
        assert "heuristic, since something else used a core" in plan.explain() and "estimated ms" in plan.explain()
    assert portconv.plan_conv2d(*shapes, strategy="measure") is plan  # a layer does not wait in every call


# --- the clock --------------------------------------------------------------------------------------------------------


def test_calls_take_turns_within_a_bound(monkeypatch):
    now, called = [0.0], []
    durations = {"fast": 1e-5, "medium": measurement.MEASURED_SECONDS / 4, "slow": 100.0, "compiled": 1e-3}

    def call_of(name):
        def call():
            first = name == "compiled" and name not in called
            called.append(name)
            now[0] += 50.0 if first else durations[name]

        return call

    monkeypatch.setattr(measurement.time, "perf_counter", lambda: now[0])
    best = measurement._turns({name: call_of(name) for name in durations})
    assert best == pytest.approx(durations, rel=1e-6)
    counts = {name: called.count(name) for name in durations}
    assert counts["slow"] == 2
    assert counts["fast"] == counts["compiled"] == 1 + measurement.TURNS * measurement.CALLS
    assert 4 <= counts["medium"] <= 7
    turns = [name for name, before in zip(called, ["", *called], strict=False) if name != before]
    assert turns.count("fast") == 1 + measurement.TURNS


def test_a_surprise_is_timed_again(monkeypatch):
    answers = []
    monkeypatch.setattr(measurement, "_turns", lambda calls: dict(zip(calls, answers.pop(0), strict=True)))
    calls = dict.fromkeys(("gemm", "fft", "direct"))
    answers[:] = [(24.0, 3.0, 1.6), (0.9, 1.7)]  # gemm was disturbed
    assert measurement._fastest(calls, "gemm") == {"gemm": 0.9, "fft": 3.0, "direct": 1.6}
    answers[:] = [(24.0, 3.0, 1.6)]
    assert measurement._fastest(calls, "direct") == {"gemm": 24.0, "fft": 3.0, "direct": 1.6}
    assert answers == []
