"""The libraries beside portconv: each that is installed computes the same, and one that is not says so."""

from __future__ import annotations

import pytest

from portconv.bench import peers, runner
from portconv.bench.runner import Task
from tests.bench.helpers import SETTINGS, TINY, other

LAYERS = [
    TINY,
    other("strides", stride=(2, 1), dilation=(1, 2), bias=True),
    other("groups", in_channels=4, out_channels=6, groups=2),
    other("depthwise", in_channels=4, out_channels=4, groups=4, padding_mode="reflect"),
    other("separable", in_channels=3, out_channels=3, groups=3, padding_mode="replicate", taps="gaussian"),
    other("circular", padding_mode="circular"),
    other("sides", padding=(0, 2, 1, 0)),
]


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peers_compute_the_same(name):
    timed = runner.run_target(peers.target_of(name), [Task(layer) for layer in LAYERS], SETTINGS, lambda *_: None)
    if "missing" in timed.hello:
        pytest.skip(timed.hello["missing"])
    assert timed.hello["versions"]
    assert not [found for found in timed.answers.values() if "error" in found]
    computed = [found for found in timed.answers.values() if "best_ms" in found]
    assert computed and all(0 <= found["error_share"] <= 1 for found in computed)


def test_a_peer_that_is_not_there(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('not here')")
    monkeypatch.syspath_prepend(tmp_path)
    timed = runner.run_target(peers.target_of("opencv"), [Task(TINY)], SETTINGS, lambda *_: None)
    assert timed.hello == {"missing": "ImportError: not here"} and not timed.answers
