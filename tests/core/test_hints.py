"""What messages say a caller may have meant: the unit cases; whole messages are in tests/test_messages.py."""

import pytest

from portconv.core import hints


@pytest.mark.parametrize(
    ("argument", "value", "hint"),
    [
        ("padding_mode", "Edge", " 'edge' is NumPy's word for 'replicate'."),
        ("padding_mode", "refelct", " Did you mean 'reflect'?"),
        ("padding_mode", "REFLECT", " Did you mean 'reflect'?"),
        ("padding_mode", "something else", ""),
        ("padding_mode", 3, ""),
        ("no argument that is known", "x", ""),
    ],
)
def test_word(argument, value, hint):
    assert hints.word(argument, value, ("zeros", "reflect", "replicate")) == hint


def test_a_device_is_no_backend():
    for device in ("cpu", "cuda", "cuda:1", "MPS"):
        assert f"{device!r} is a device" in hints.word("backend", device, ("numpy", "torch"))


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((4, 5), "NCHW", "x[None, None]"),
        ((4, 5), "NHWC", "x[None, :, :, None]"),
        ((6, 5, 3), "NCHW", "layout='NHWC'"),
        ((3, 6, 5), "NHWC", "layout='NCHW'"),
        ((3, 4, 5), "NCHW", "batch axis of size 1"),
        ((3, 4, 3), "NCHW", "batch axis of size 1"),  # either
        ((4,), "NCHW", None),
        ((1, 2, 3, 4, 5), "NCHW", None),
    ],
)
def test_image(shape, layout, words):
    found = hints.image(shape, layout)
    assert found == "" if words is None else words in found


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "layout", "groups", "words"),
    [
        ((1, 9, 9, 3), (8, 3, 5, 5), "NCHW", 1, "layout='NHWC'"),
        ((1, 3, 9, 9), (8, 3, 5, 5), "NHWC", 1, "layout='NCHW'"),
        ((1, 9, 9, 6), (6, 1, 5, 5), "NCHW", 6, "layout='NHWC'"),
        ((1, 6, 9, 9), (6, 1, 3, 3), "NCHW", 1, "groups=6"),
        ((1, 6, 9, 9), (8, 3, 3, 3), "NCHW", 1, "groups=2"),
        ((1, 16, 9, 9), (16, 8, 3, 3), "NCHW", 1, "`conv_transpose2d`"),
        ((1, 16, 9, 9), (32, 16, 3, 3), "NCHW", 4, "(O, 4, kh, kw)"),
        ((1, 16, 9, 9), (5, 5, 16, 8), "NCHW", 1, "HWIO: permute_dims(weight, (3, 2, 0, 1))"),
        ((1, 16, 9, 9), (8, 3, 3, 16), "NCHW", 1, "OHWI: permute_dims(weight, (0, 3, 1, 2))"),
        ((1, 16, 9, 9), (3, 3, 16, 2), "NCHW", 16, "'HWCM'"),
        ((1, 16, 9, 9), (8, 7, 3, 3), "NCHW", 1, None),
        ((1, 16, 9, 9), (8, 0, 3, 3), "NCHW", 1, None),
        ((1, 16, 9, 9), (2, 8, 7, 3, 3), "NCHW", 2, None),
        ((1, 2, 9, 9), (8, 7, 3, 3), "NCHW", 4, None),
    ],
)
def test_sizes(x_shape, weight_shape, layout, groups, words):
    found = hints.sizes(x_shape, weight_shape, layout, groups)
    assert found == "" if words is None else words in found


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "layout", "groups", "words"),
    [
        ((1, 9, 9, 3), (3, 8, 5, 5), "NCHW", 1, "layout='NHWC'"),
        ((1, 3, 9, 9), (3, 8, 5, 5), "NHWC", 1, "layout='NCHW'"),
        ((1, 4, 9, 9), (8, 4, 3, 3), "NCHW", 1, "permute_dims(weight, (1, 0, 2, 3)), or `conv2d`?"),
        ((1, 4, 9, 9), (8, 4, 3, 3), "NCHW", 2, None),
        ((1, 16, 9, 9), (5, 5, 8, 16), "NCHW", 1, "HWOI: permute_dims(weight, (3, 2, 0, 1))"),
        ((1, 16, 9, 9), (8, 5, 5, 16), "NCHW", 1, "OHWI: permute_dims(weight, (3, 0, 1, 2))"),
        ((1, 16, 9, 9), (8, 7, 3, 3), "NCHW", 1, None),
        ((1, 16, 9, 9), (2, 4, 8, 3, 3), "NCHW", 2, None),
        ((1, 16, 9), (8, 16, 3), "NCW", 1, "`conv1d`"),
        ((1, 16, 9, 9, 9), (8, 3, 3, 3, 16), "NCDHW", 1, "ODHWI: permute_dims(weight, (4, 0, 1, 2, 3)) is in IODHW"),
    ],
)
def test_transposed(x_shape, weight_shape, layout, groups, words):
    found = hints.transposed(x_shape, weight_shape, layout, groups)
    assert found == "" if words is None else words in found


def test_weight():
    assert "'HWIO'" in hints.weight((3, 3, 4, 8), (8, 4, 3, 3))
    assert "'OHWI'" in hints.weight((8, 3, 3, 4), (8, 4, 3, 3))
    assert hints.weight((8, 4, 5, 5), (8, 4, 3, 3)) == hints.weight((8, 4), (8, 4, 3, 3)) == ""


def test_kernel_and_attribute():
    assert "weight[None, None]" in hints.kernel((3, 3))
    assert hints.kernel((3, 3, 3)) == ""
    assert hints.attribute("weigth", ("bias", "weight")) == "weight"
    assert hints.attribute("tag", ("bias", "weight")) is None
