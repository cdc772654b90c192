"""The compiled steps of an LSTM, beside those in operations of NumPy."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import portconv
from portconv.cpu.compiled import team
from portconv.graph import recurrent
from tests.cpu.compiled.helpers import GUARDED
from tests.helpers import numbers

plan = pytest.importorskip("portconv.cpu.compiled.recurrent.plan")

pytestmark = pytest.mark.usefixtures("jit")

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
FEW_AND_MANY_BYTES = [0, 1 << 40]  # up to which a thread has a direction: the threads share each step, or do not


def both(steps, sequences, size, direction="forward", states=True, change=None):
    """The results compiled, and those of NumPy, in float64."""
    ways = DIRECTIONS[direction]
    recurrences = numbers((ways, 4 * size, size)) / np.sqrt(size, dtype=np.float32)
    entering = numbers((steps, sequences, ways, 4 * size))
    h, c = numbers((2, ways, sequences, size)) if states else (None, None)
    if change is not None:
        change(recurrences, entering, h, c)
    compiled = plan.CompiledLstm(recurrences)
    entered = compiled.padded(entering.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1).reshape(steps, sequences, -1)
    found = compiled(entered, h, c, direction == "reverse")
    wide = [None if a is None else a.astype(np.float64) for a in (recurrences, entering, h, c)]
    x = np.zeros((steps, sequences, 1))
    with np.errstate(all="ignore"):
        expected = recurrent.lstm(
            np, x, None, wide[0], None, wide[2], wide[3], None, direction, lambda a: np.tanh(a / 2) / 2 + 0.5,
            lambda one, all_of_them: [one(k) for k in all_of_them],
            lambda rows, way: wide[1][:, :, way].reshape(len(rows), -1),
        )  # fmt: skip
    return found, expected


def compare(found, expected):
    for y, e in zip(found, expected, strict=True):
        assert y.dtype == np.float32 and y.shape == e.shape
        np.testing.assert_allclose(y, e, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("limit", FEW_AND_MANY_BYTES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("size", [1, 15, 16, 33, 100])
@pytest.mark.parametrize("sequences", [1, 2, 7])
def test_steps(monkeypatch, sequences, size, direction, limit):
    monkeypatch.setattr(plan, "ALONE_BYTES", limit)
    compare(*both(5, sequences, size, direction))
    compare(*both(1, sequences, size, direction, states=False))


@pytest.mark.parametrize("limit", FEW_AND_MANY_BYTES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads(monkeypatch, count, limit):
    """More than there are blocks, too."""
    monkeypatch.setattr(plan, "ALONE_BYTES", limit)
    before = portconv.get_num_threads()
    monkeypatch.setattr(plan.threads, "allowed_threads", lambda: count)
    try:
        compare(*both(6, 1, 20, "bidirectional"))
        compare(*both(6, 1, 77))
    finally:
        portconv.set_num_threads(before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_usual_number(value):
    """It reaches the same outputs: those of its unit, and from the next step on all of its sequence if it is NaN."""

    def in_what_enters(_recurrences, entering, _h, _c):
        entering[2, 1, 0, 3] = entering[3, 0, 1, 30] = value

    def in_states(_recurrences, _entering, h, c):
        h[0, 0, 3], c[1, 1, 5] = value, value

    def in_weights(recurrences, _entering, _h, _c):
        recurrences[1, 40, 7] = value

    for change in (in_what_enters, in_states, in_weights):
        compare(*both(6, 2, 19, "bidirectional", change=change))


def test_threads_share_the_steps_of_large_matrices_alone(monkeypatch):
    launched = []
    monkeypatch.setattr(team, "launch", lambda _job, parts, *arguments: launched.append(parts))
    monkeypatch.setattr(plan, "ALONE_BYTES", 4 * 4 * 32 * 32)
    monkeypatch.setattr(plan.threads, "allowed_threads", lambda: 3)
    for size, direction in ((32, "bidirectional"), (32, "forward"), (16, "forward"), (48, "bidirectional")):
        both(2, 1, size, direction)
    assert launched == [2, 3, 3, 1, 3, 3, 3, 3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by Linux's mprotect here")
def test_no_byte_beyond_the_arrays_is_touched(run_python):
    run_python(f"""{GUARDED}
    numpy = guard_pages.install()
    from portconv.cpu.compiled.recurrent import plan
    for size in (1, 16, 20, 48):
        for sequences in (1, 3, 4):
            for plan.ALONE_BYTES in (0, 1 << 40):
                for numpy.at_the_end in (True, False):
                    lstm = plan.CompiledLstm(numbers(2, 4 * size, size))
                    entering = copy(numbers(3, sequences, 2 * 4 * lstm.units), numpy.at_the_end)
                    before = numpy.made
                    for result in lstm(entering, None, None, False):
                        assert np.isfinite(result).all()
                    assert numpy.made > before
    """)
