"""The worker that times portconv."""

from __future__ import annotations

import numpy as np

import portconv
from portconv.bench import runner, survey
from portconv.bench.runner import Task
from tests.bench.helpers import SETTINGS, TINY


def test_portconvs_worker():
    engines = ("auto", "fft", "no such engine")
    tasks = [Task(TINY, engine, "cpu") for engine in engines]
    timed = runner.run_target(survey.target_of("numpy"), tasks, SETTINGS, lambda *_: None)
    auto, fft, wrong = timed.answers.values()
    assert (
        fft["engine"] == "fft" and auto["engine"] == portconv.plan_conv2d((1, 2, 8, 9), (3, 2, 3, 3), padding=1).engine
    )
    assert 0 < fft["error_share"] <= 1 and fft["best_ms"] > 0 and fft["workspace_bytes"] > 0
    assert "no such engine" in wrong["error"]
    assert timed.hello["versions"]["numpy"] == np.__version__
