"""What is wrong is seen: beside what tests/check/test_verify.py has."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

import portconv
from portconv.testing import Problem, calls, verification, verify

PLAIN = Problem((2, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}, bias_shape=(4,))
ZEROS = Problem((1, 1, 4, 5), (1, 1, 1, 1), bias_shape=(1,), data="zero", kernel="zero")
conv2d = portconv.conv2d


def one_wrong_value(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    y[-1, -1, -1, -1] += 1e-4
    return y


def a_row_less(x, weight, bias, **options):
    return conv2d(x, weight, bias, **options)[:, :, :-1]


def wider(x, weight, bias, **options):
    return conv2d(x, weight, bias, **options).astype(np.float64)


def the_bias_itself(x, weight, bias, **options):
    return np.broadcast_to(bias.reshape(1, 1, 1, 1), x.shape)


def the_image_itself(x, weight, bias, **options):
    return x[...]


def the_weight_itself(x, weight, bias, **options):
    return np.broadcast_to(weight, x.shape)


def changed(which):
    def call(*arrays, **options):
        y = conv2d(*arrays, **options)
        arrays[which].reshape(-1)[-1] += 1
        return y

    return call


def warned(x, weight, bias, **options):
    warnings.warn("overflow encountered in multiply", RuntimeWarning, stacklevel=1)
    return conv2d(x, weight, bias, **options)


def raising(error):
    def call(*arrays, **options):
        raise error

    return call


@pytest.mark.parametrize(
    ("p", "broken", "message"),
    [
        (PLAIN, one_wrong_value, r"1 of 576 outputs"),
        (PLAIN, a_row_less, r"the result has shape \(2, 4, 8, 8\)"),
        (PLAIN, wider, r"the result is float64 on cpu, not float32"),
        (ZEROS, the_bias_itself, r"shares memory with `bias`"),
        (replace(ZEROS, bias_shape=None), the_image_itself, r"shares memory with `x`"),
        (replace(ZEROS, bias_shape=None), the_weight_itself, r"shares memory with `weight`"),
        (PLAIN, changed(0), r"changed `x`"),
        (PLAIN, changed(1), r"changed `weight`"),
        (PLAIN, changed(2), r"changed `bias`"),
        (PLAIN, warned, r"raised RuntimeWarning: overflow"),
        (PLAIN, raising(IndexError("index 9 is out of bounds")), r"raised IndexError"),
        (PLAIN, raising(ValueError("bad sizes")), r"raised ValueError"),
        (PLAIN, raising(portconv.UnsupportedError("`engine` has none for this.")), r"refused"),
        (replace(PLAIN, engine="gemm"), raising(portconv.UnsupportedError("none for this")), r"names no argument"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_seen(monkeypatch, p, broken, message):
    assert verify(p).share <= 1
    with warnings.catch_warnings():
        for module in (calls, verification):
            monkeypatch.setattr(module, "conv2d", lambda *arrays, backend=None, **options: broken(*arrays, **options))
        with pytest.raises(AssertionError, match=message):
            verify(p)


def test_a_named_engine_may_refuse(monkeypatch):
    for module in (calls, verification):
        monkeypatch.setattr(module, "conv2d", raising(portconv.UnsupportedError("`engine` 'gemm' has none for this.")))
    found = verify(replace(PLAIN, engine="gemm"))
    assert found.share is None and "has none for this" in found.reason


def test_a_layer_that_keeps_its_old_weight_is_seen(monkeypatch):
    p = replace(PLAIN, call="layer")
    assert verify(p).share <= 1
    monkeypatch.setattr(portconv.Conv2d, "_forget_copies", lambda self: self.__dict__.setdefault("_bound", {}))
    with pytest.raises(AssertionError):
        verify(p)


def test_threads_are_as_many_as_before():
    before = portconv.get_num_threads()
    verify(replace(PLAIN, threads=2 if before == 1 else 1))
    assert portconv.get_num_threads() == before
