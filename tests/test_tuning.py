"""`portconv.tune`: what it times, gives back and keeps."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv import wisdom
from portconv.cpu import busy
from portconv.dispatch import measurement, path

pytestmark = pytest.mark.usefixtures("in_plain_tier")

SHAPES = (1, 2, 12, 13), (3, 2, 3, 3)


def measured_plan(*shapes, **options):
    return portconv.plan_conv2d(*(shapes or SHAPES), strategy="measure", **{"padding": 1, **options})


def test_by_the_clock(cache):
    plan = portconv.tune(*SHAPES, padding=1)
    seconds = {c.engine: c.seconds for c in plan.candidates if c.measured}
    assert plan.chosen_by == "measurement" and plan.output_shape == (1, 3, 12, 13)
    assert seconds[plan.engine] == min(seconds.values()) > 0
    ((key, record),) = wisdom.load().items()
    assert record.seconds == seconds and f"portconv={portconv.__version__}" in key[0]
    x, weight = (np.ones(shape, np.float32) for shape in SHAPES)
    np.testing.assert_allclose(plan.execute(x, plan.pack(weight))[0, 0, 1, 1], 18)


def test_what_it_keeps_serves_this_process_and_later_ones(cache, timed):
    assert measured_plan().chosen_by == "measurement"
    wisdom.clear()
    assert portconv.tune(*SHAPES, padding=1).engine == "fft"
    assert len(timed) == 2  # anew, although it was measured before
    assert (measured_plan().engine, measured_plan().chosen_by) == ("fft", "wisdom")
    path.forget_plans()  # as another process
    assert (measured_plan().engine, measured_plan().chosen_by) == ("fft", "wisdom")
    assert len(timed) == 2


def test_it_need_not_keep_anything(cache, timed):
    before = measured_plan()
    wisdom.clear()
    assert portconv.tune(*SHAPES, padding=1, remember=False).chosen_by == "measurement"
    assert wisdom.load() == {} and measured_plan() is before
    with pytest.raises(TypeError, match="`remember`"):
        portconv.tune(*SHAPES, remember=np.ones(2))


def test_a_disturbed_machine(cache, timed, monkeypatch):
    monkeypatch.setattr(busy, "disturbed", lambda threads: True)
    monkeypatch.setattr(measurement, "PAUSE", 0.0)
    plan = portconv.tune(*SHAPES, padding=1)
    assert plan.chosen_by.startswith("heuristic, since something else used a core")
    assert plan.engine == portconv.plan_conv2d(*SHAPES, padding=1).engine
    assert timed == [] and wisdom.load() == {} and not any(c.measured for c in plan.candidates)


def test_nothing_to_time(cache, timed):
    plan = portconv.tune((0, 2, 12, 13), SHAPES[1], padding=1)
    assert plan.chosen_by == "heuristic" and timed == [] and wisdom.load() == {}


@pytest.mark.parametrize(
    ("options", "x_shape"),
    [
        ({"stride": 2, "padding_mode": "reflect"}, (1, 2, 12, 13)),
        ({"layout": "NHWC"}, (1, 12, 13, 2)),
        ({"accuracy": "elementwise", "dtype": "float64"}, (1, 2, 12, 13)),
        ({"bias": True}, (1, 2, 12, 13)),
    ],
    ids=str,
)
def test_its_arguments_are_those_of_planning(cache, timed, options, x_shape):
    plan = portconv.tune(x_shape, SHAPES[1], **{"padding": 1, **options})
    found = measured_plan(x_shape, SHAPES[1], **options)
    assert found.chosen_by == "wisdom" and found.problem == plan.problem
    assert measured_plan().chosen_by == "measurement"


def test_a_kernel_larger_than_the_image(cache, timed):
    """What is planned is what is left of the kernel, for `strategy="measure"` and here."""
    plan = portconv.tune((1, 2, 3, 3), (2, 2, 9, 9), padding=4)
    assert plan.problem.kernel == (9, 9) and any(c.measured for c in plan.candidates)
    assert measured_plan((1, 2, 3, 3), (2, 2, 9, 9), padding=4).chosen_by == "wisdom"
    assert len(timed) == 1


def test_arrays(backend, cache, timed):
    x, weight = (backend.array(np.ones(shape, np.float32)) for shape in SHAPES)
    assert portconv.tune(x, weight, padding=1).chosen_by == "measurement"
    assert measured_plan(x, weight).chosen_by == "wisdom"
    assert len(timed) == 1


def test_its_errors():
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        portconv.tune(*SHAPES, stride=0)
    with pytest.raises(TypeError, match="engine"):
        portconv.tune(*SHAPES, engine="gemm")
