"""The bounds of errors, and the comparison with the exact result."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.testing import Reference, assert_close, error_bound, reference_conv2d
from tests.helpers import numbers


def plain(values):
    """A reference whose magnitudes are all one."""
    return Reference(values, np.ones(values.shape), np.ones(values.shape), 1)


def test_error_bound():
    c, largest = np.array([[1.0, 3.0], [10.0, 2.0]]), np.array([[4.0], [20.0]])
    reference = Reference(c, c, largest, 9)
    eps, tiny = np.finfo(np.float32).eps, np.finfo(np.float32).tiny
    np.testing.assert_array_equal(error_bound(reference, "float32", "elementwise"), 8 * eps * c + 9 * tiny)
    np.testing.assert_array_equal(error_bound(reference, "float16"), 8 * eps * c + 24 * eps * largest + 9 * tiny)
    np.testing.assert_array_equal(error_bound(reference, "float64", "elementwise"), 8 * np.finfo(np.float64).eps * c)


@pytest.mark.parametrize("accuracy", ["elementwise", "normwise"])
def test_assert_close_draws_the_line_at_the_bound(accuracy):
    expected = reference_conv2d(numbers((1, 2, 6, 6)), numbers((1, 2, 3, 3), 1))
    bound = error_bound(expected, "float32", accuracy)
    assert assert_close(expected.y, expected, dtype="float32", accuracy=accuracy) == 0
    share = assert_close(expected.y + 0.5 * bound, expected, dtype="float32", accuracy=accuracy)
    assert 0.49 < share < 0.51
    wrong = expected.y.copy()
    wrong[0, 0, 2, 3] += 1.01 * bound[0, 0, 2, 3]
    with pytest.raises(AssertionError, match=r"\(0, 0, 2, 3\)"):
        assert_close(wrong, expected, dtype="float32", accuracy=accuracy)


@pytest.mark.parametrize(("got", "right"), [(np.nan, 1), (1, np.nan), (np.inf, -np.inf), (np.inf, 1), (np.nan, np.inf)])
def test_assert_close_compares_values_that_are_not_finite(got, right):
    expected = np.ones((1, 1, 2, 2))
    actual = expected.copy()
    actual[0, 0, 1, 1], expected[0, 0, 1, 1] = got, right
    with pytest.raises(AssertionError):
        assert_close(actual, plain(expected))
    assert_close(expected, plain(expected))


def test_assert_close_compares_shapes():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.ones((1, 1, 2, 1)), plain(np.ones((1, 1, 2, 2))))


def test_integers_may_be_half_a_step_off():
    """A sum that lies between two integers may become either, one that is too large the largest, and NaN 0."""
    x = np.array([2.5, 2.6, 300.0, -4.0, np.nan], np.float32).reshape(1, 1, 1, 5)
    exact = reference_conv2d(x, np.ones((1, 1, 1, 1), np.float32))
    for values in ([2, 3, 255, 0, 0], [3, 3, 255, 0, 0]):
        assert assert_close(np.array(values, np.uint8).reshape(1, 1, 1, 5), exact, computed="float32") == 0
    for values in ([4, 3, 255, 0, 0], [2, 2, 255, 0, 0], [2, 3, 254, 0, 0], [2, 3, 255, 1, 0], [2, 3, 255, 0, 255]):
        with pytest.raises(AssertionError):
            assert_close(np.array(values, np.uint8).reshape(1, 1, 1, 5), exact, computed="float32")


def test_a_result_of_float64_is_as_exact_as_its_sums():
    x = np.full((1, 1, 1, 1), 1 / 3, np.float32)
    exact = reference_conv2d(x, np.full((1, 1, 1, 1), 1 / 3, np.float32))
    rounded = (x * np.float32(1 / 3)).astype(np.float64)
    assert assert_close(rounded, exact, computed="float32") <= 1
    with pytest.raises(AssertionError):
        assert_close(rounded, exact)
