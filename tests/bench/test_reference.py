"""The check of a result before the clock, and the taps of filters."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.bench import reference
from tests.bench.helpers import TINY, exact, other

LAYERS = [
    TINY,
    other("strided", stride=(2, 1), dilation=(1, 2), bias=True),
    other("grouped", in_channels=4, out_channels=6, groups=2, batch=2),
    *(other(mode, padding=(2, 3), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
    other("sides", padding=(0, 2, 1, 0), stride=(2, 2)),
    other("double", dtype="float64", accuracy="elementwise"),
    *(other(dtype, dtype=dtype, accuracy="elementwise") for dtype in ("float16", "bfloat16")),
    other("sobel", in_channels=2, out_channels=2, groups=2, taps="sobel"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_the_check_agrees_with_the_oracle(layer):
    data, y = exact(layer)
    assert 0 < reference.check(layer, *data, y) < 1
    for wrong in (
        y[:, ::-1],
        (y + np.float32(1e-3)).astype(y.dtype),
        np.where(y == y[0, 0, 0, 0], np.nan, y),
    ):  # the corner is checked
        assert reference.check(layer, *data, wrong) > 1


def test_the_check_wants_shape_and_dtype():
    data, y = exact(TINY)
    for wrong in (y[..., :-1], y.astype(np.float64)):
        with pytest.raises(ValueError, match=r"expected \(1, 3, 8, 9\) float32"):
            reference.check(TINY, *data, wrong)


@pytest.mark.parametrize(("taps", "total"), [("gaussian", 1), ("box", 1), ("sobel", 0)])
def test_taps(taps, total):
    layer = other("filter", in_channels=2, out_channels=2, groups=2, taps=taps)
    weight = reference.make_data(layer)[1]
    assert np.linalg.matrix_rank(weight[1, 0]) == 1
    assert weight[0].sum() == pytest.approx(total, abs=1e-6)
    np.testing.assert_allclose(weight[0, 0], np.outer(*reference.separable_taps(layer)), rtol=1e-6)
    assert reference.separable_taps(TINY) is None
