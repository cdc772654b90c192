"""The worker that times portconv."""

from __future__ import annotations

import os

import numpy as np
import pytest

import portconv
from portconv.bench import rounds, runner, timing, worker
from portconv.bench.runner import Task
from tests.bench.helpers import SETTINGS, TINY, exact, other
from tests.helpers import Wrapper


def test_portconvs_worker():
    engines = ("auto", "fft", "no such engine")
    tasks = [Task(TINY, engine, "cpu") for engine in engines]
    timed = runner.run_target(worker.backend_target("numpy"), tasks, SETTINGS, lambda *_: None)
    auto, fft, wrong = timed.answers.values()
    assert (
        fft["engine"] == "fft" and auto["engine"] == portconv.plan_conv2d((1, 2, 8, 9), (3, 2, 3, 3), padding=1).engine
    )
    assert 0 < fft["error_share"] <= 1 and fft["best_ms"] > 0 and fft["workspace_bytes"] > 0
    assert "no such engine" in wrong["error"]
    assert timed.hello["versions"]["numpy"] == np.__version__


class Lazy(Wrapper):
    """A library whose results are not there until someone waits for them."""

    def __init__(self):
        super().__init__("lazy")
        self.waited = []
        portconv.register_backend(self.name, self)

    def synchronize(self, x, /):
        self.waited.append(x)


@pytest.mark.usefixtures("registry_as_it_was")
@pytest.mark.parametrize("engine", ["auto", "gemm"])
def test_every_call_waits_for_its_result(engine):
    library = Lazy()
    (x, weight, bias), _ = exact(TINY)
    prepared = worker.prepare("lazy", engine, "")(TINY, x, weight, bias)
    assert len(library.waited) == 1  # for the image, before the clock starts
    for calls in (2, 3):
        y = prepared.call()
        assert len(library.waited) == calls and library.waited[-1] is y


@pytest.mark.usefixtures("registry_as_it_was")
def test_what_was_timed_was_waited_for(monkeypatch):
    library, calls = Lazy(), []
    monkeypatch.setattr(timing, "SETTLE", 0.0)
    monkeypatch.setattr(portconv.Conv2d, "__call__", lambda conv, x: calls.append(x) or exact(TINY)[1])
    images = worker.Images("lazy")
    prepares = {engine: worker.prepare("lazy", engine, "", images) for engine in ("auto", "gemm")}
    timing.answers(list(prepares.values()), TINY, 0.01)
    assert len(calls) > 4 and len(library.waited) == len(calls) + 1  # and the image
    assert len({id(x) for x in calls}) == 1  # both convolve the same array
    calls.clear(), library.waited.clear()
    rounds.answer_turns(prepares, [TINY], 0.0)
    assert len(calls) >= 8 and len(library.waited) >= len(calls)


def test_each_row_says_what_ran(tier):
    (x, weight, bias), _ = exact(TINY)
    notes = {e: worker.prepare("numpy", e, "cpu")(TINY, x, weight, bias).notes() for e in ("direct", "fft")}
    assert notes["direct"]["engine"] == "direct" and notes["direct"]["device"] == "cpu"
    assert (notes["direct"]["tier"], notes["fft"]["tier"]) == (tier, "plain")  # there is no compiled fft
    with pytest.raises(timing.Unsupported, match="NumPy has no convolution of its own"):
        worker.prepare("numpy", "native", "cpu")(TINY, x, weight, bias)


def test_layout():
    layer = other("odd", size=(7, 9), padding=(1, 0), stride=(2, 1), bias=True)
    (x, weight, bias), y = exact(layer)
    images = worker.Images("numpy", "NHWC")
    prepared = worker.prepare("numpy", "auto", "cpu", images)(layer, x, weight, bias)
    result = prepared.call()
    assert result.shape == tuple(layer.y_shape[axis] for axis in (0, 2, 3, 1))
    np.testing.assert_allclose(prepared.to_numpy(result), y, atol=1e-5)
    assert worker.backend_target("numpy", layout="NHWC").arguments == ("numpy", "--layout", "NHWC")


@pytest.mark.skipif(os.environ.get("OPENBLAS_THREAD_TIMEOUT", "4") != "4", reason="the user's own setting counts")
def test_the_environment_of_the_compiled_tier(tier):
    """The threads of BLAS, which portconv's compete with, sleep at once; in the plain tier they are the engine."""
    variables = dict(worker.backend_target("numpy").variables)
    assert variables == ({"OPENBLAS_THREAD_TIMEOUT": "4"} if tier == "compiled" else {})
    assert dict(worker.tier_target("portconv-jit").variables)["OPENBLAS_THREAD_TIMEOUT"] == "4"
    assert dict(worker.tier_target("portconv-numpy").variables) == {"PORTCONV_JIT": "0"}


def test_the_users_environment_counts(run_python):
    code = "from portconv.bench import worker; print(dict(worker.tier_target('portconv-jit').variables))"
    assert "'OPENBLAS_THREAD_TIMEOUT': '20'" in run_python(code, OPENBLAS_THREAD_TIMEOUT="20")
