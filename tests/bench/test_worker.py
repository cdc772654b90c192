"""The worker that times portconv."""

from __future__ import annotations

import os

import numpy as np
import pytest

import portconv
from portconv.bench import runner, worker
from portconv.bench.runner import Task
from tests.bench.helpers import SETTINGS, TINY


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
