"""PyTorch's own convolution: where it is offered, and that it is asked for what is meant."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_all_arguments(torch, padding_mode, layout):
    x, weight, bias = numbers((2, 4, 9, 11)), numbers((6, 2, 3, 3), 1), numbers((6,), 2)
    for options in (
        {},
        {"padding": 2, "stride": (2, 1)},
        {"padding": ((3, 0), (1, 2)), "dilation": (1, 2)},
        {"padding": "same"},
    ):
        options = {**options, "groups": 2, "padding_mode": padding_mode}
        image = torch.tensor(x if layout == "NCHW" else x.transpose(0, 2, 3, 1).copy())
        y = portconv.conv2d(
            image, torch.tensor(weight), torch.tensor(bias), **options, layout=layout, engine="native"
        ).numpy()
        assert_close(y if layout == "NCHW" else y.transpose(0, 3, 1, 2), reference_conv2d(x, weight, bias, **options))


@pytest.mark.parametrize("last", [False, True])
def test_long_sums_keep_the_bound(torch, last):
    """PyTorch itself is off by 8 or 314 eps c, by the memory format, where all 4,608 terms are alike."""
    x, weight = np.full((1, 512, 9, 9), 0.1, "f4"), np.full((4, 512, 3, 3), 0.3, "f4")
    image = torch.tensor(x).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    for accuracy in ("normwise", "elementwise"):
        y = portconv.conv2d(image, torch.tensor(weight), padding=1, engine="native", accuracy=accuracy)
        assert_close(y.numpy(), reference_conv2d(x, weight, padding=1), accuracy=accuracy)


def test_sums_in_parts_are_those_of_all_arguments(torch):
    x, weight, bias = numbers((2, 12, 20, 21)), numbers((6, 6, 9, 7), 1), numbers((6,), 2)
    for options in ({"padding": (3, 4)}, {"stride": 2, "padding": 1}, {"padding": ((5, 0), (1, 2))}, {"dilation": 2}):
        y = portconv.conv2d(*map(torch.tensor, (x, weight, bias)), **options, groups=2, engine="native")
        assert_close(y.numpy(), reference_conv2d(x, weight, bias, **options, groups=2))


def test_where_it_is_left_out(torch):
    for device, out in (("cpu", None), ("meta", "element by element")):
        plan = portconv.plan_conv2d((1, 1, 9, 9), (4, 1, 3, 3), accuracy="elementwise", backend="torch", device=device)
        why_not = next(c.why_not for c in plan.candidates if c.engine == "native")
        assert why_not is None if out is None else out in why_not


MISSES = """
    import numpy as np, torch, portconv

    for size, kernel, stride, padding, dilation in (
        ((5, 1), (5, 2), 2, 5, 2), ((6, 2), (2, 1), 3, 1, 3), ((1, 4), (1, 1), 3, 4, 2), ((2, 1), (4, 2), 2, 3, 2),
    ):
        x, weight = torch.ones(2, 8, *size), torch.ones(17, 8, *kernel)
        bias = torch.arange(17.0)
        for form in (torch.contiguous_format, torch.channels_last):
            arrays = [a.clone(memory_format=form).requires_grad_() for a in (x, weight)]
            y = portconv.conv2d(*arrays, bias, stride, padding, dilation, engine="native")
            assert (y == bias.reshape(1, -1, 1, 1)).all()
            y.sum().backward()
            assert not arrays[0].grad.any() and not arrays[1].grad.any()
    print("done")
"""


def test_an_axis_where_no_tap_meets_the_image(run_python):
    """PyTorch's own function ends the process there."""
    assert run_python(MISSES).split() == ["done"]


def test_weights_are_not_kept_alive(torch):
    weight = torch.ones(2, 3, 3, 3)
    gone = weakref.ref(weight)
    for _ in range(2):
        portconv.conv2d(torch.ones(1, 3, 5, 5), weight, engine="native")
    del weight
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("values", [(np.inf, -np.inf), (np.nan, 1), (3e38, 3e38)])
def test_weights_that_show_in_the_padding(torch, values):
    """What is not finite there; weights whose sum has no room in the dtype are as good as others."""
    weight = np.full((16, 16, 3, 3), 1e38, np.float32)
    weight[0, 0, 0, :2] = values
    x = np.zeros((1, 16, 40, 40), np.float32)  # so large that PyTorch leaves the padding out
    y = portconv.conv2d(*map(torch.from_numpy, (x, weight)), padding=1, engine="native")
    with np.errstate(invalid="ignore"):
        expected = portconv.conv2d(x, weight, padding=1, engine="gemm")
    np.testing.assert_array_equal(y.numpy(), expected)
    assert np.isfinite(expected[:, 1]).all() and np.isfinite(expected[:, 0]).all() == (values == (3e38, 3e38))


def test_infinite_pixels_stay_where_they_are(torch):
    """OneDNN makes NaN of their neighbours in bfloat16."""
    x = torch.tensor(numbers((2, 3, 7, 29))).bfloat16()
    x[1, 1, 3, 20] = torch.inf
    weight = torch.tensor(numbers((4, 3, 3, 2), 1)).bfloat16()
    y = portconv.conv2d(x, weight, engine="native")
    expected = torch.nn.functional.conv2d(x.double(), weight.double())
    np.testing.assert_array_equal(y.isfinite().numpy(), expected.isfinite().numpy())


def test_full_precision_on_gpus(torch):
    """Within the call alone, whatever the user has set."""
    native = pytest.importorskip("portconv.backends.torch.native")

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.float32

    before = torch.backends.cudnn.allow_tf32
    with native._full_precision(OnGpu()):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_out(torch):
    x, weight = torch.tensor(numbers((1, 2, 8, 8))), torch.tensor(numbers((3, 2, 3, 3)))
    out = torch.zeros(1, 6, 6, 3).permute(0, 3, 1, 2)
    assert portconv.conv2d(x, weight, engine="native", out=out) is out
    assert_close(out.numpy(), reference_conv2d(x.numpy(), weight.numpy()))


def test_many_parts_of_a_small_layer_cost_their_calls(torch):
    """As those of squeeze-and-excitation blocks, of one pixel each: by the flops alone they would cost nothing."""
    squeeze = portconv.plan_conv2d((1, 480, 1, 1), (120, 480, 1, 1), backend="torch")
    costs = {candidate.engine: candidate.seconds for candidate in squeeze.candidates}
    short = portconv.plan_conv2d((1, 120, 1, 1), (480, 120, 1, 1), backend="torch")
    assert costs["native"] > 5 * next(c.seconds for c in short.candidates if c.engine == "native")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_no_image_of_one_channel_is_said_to_have_it_last(torch, layout, monkeypatch):
    """OneDNN writes beyond the memory of such an image where a kernel of one row leaves out rows."""
    seen, own = [], torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a: seen.append(a[0].stride()) or own(*a))
    x, weight = numbers((2, 9, 8, 1)), numbers((2, 1, 1, 3), 1)
    image = torch.tensor(x) if layout == "NHWC" else torch.tensor(x).permute(0, 3, 1, 2)
    y = portconv.conv2d(image, torch.tensor(weight), stride=(2, 1), layout=layout, engine="native").numpy()
    y = y if layout == "NCHW" else y.transpose(0, 3, 1, 2)
    assert seen == [(72, 72, 8, 1)]
    assert_close(y, reference_conv2d(x.transpose(0, 3, 1, 2), weight, stride=(2, 1)))


def test_a_weight_of_one_row_has_gradients_channels_last(torch):
    """Its strides are of no meaning along axes of one element, but PyTorch's own gradient refuses unusual ones."""
    x = torch.ones(1, 3, 3, 2, requires_grad=True)
    weight = torch.empty_strided((1, 2, 1, 2), (2, 1, 8, 2)).fill_(1).requires_grad_()
    portconv.conv2d(x, weight, layout="NHWC", engine="native").sum().backward()
    assert weight.grad.eq(6).all() and x.grad.sum() == 24
