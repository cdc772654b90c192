"""Write megengine.npz: what MegEngine 1.13 computes for a designed list of 2-D convolutions.

Run with Python 3.8, the last version that MegEngine has wheels for:

    pip install MegEngine==1.13.0
    python tests/golden/generate_megengine.py

On one machine a second run writes the same bytes. Another processor may change the last bits of the results, since
MegEngine picks its routines by instruction set; that is why the tests compare within rounding errors.

What the file holds (no pickles):

* `manifest`: JSON as UTF-8 bytes (dtype uint8). Its parts:
    - `cases`: one convolution each. `x`, `weight`, `bias` and `y` name arrays of the file, `changes` lists single
      elements to overwrite in them before use: that is how NaN and Inf get in. `args` are the arguments of `conv2d`.
      In cases with finite float32 data `dy` names the cotangent of the result, and `dx`, `dweight` and `dbias` the
      gradients of `sum(dy * y)`.
    - `modules`: constructor arguments with the repr, the attributes and the parameters of the module.
    - `initial`: statistics of freshly made weights.
    - `refused`: calls that raise.
    - `observed`: behaviour worth knowing that is no case: see `observe`.
* `x_*`, `w_*`, `b_*`: seeded random inputs, shared between cases.
* `y/<case>`: the results; `dx/<case>`, `dw/<case>` and `db/<case>`: their gradients.

Observed on a CPU, 1.13.0: float16 data is computed. With compute_mode "default" the sums are kept in float16, so errors
reach 1.5 float16 eps of sum |x| |w| and a partial sum above 65504 is Inf; with "float32" they are kept in float32 and
rounded once, plus once more when a bias is added. float64 data is silently computed in float32.
"""

import argparse
import json
import zlib
from pathlib import Path

import megengine as mge
import megengine.autodiff as ad
import megengine.functional as F
import megengine.module as M
import numpy as np

X = (2, 4, 7, 8)  # not square, so that a swap of height and width shows


def case(name, kernel=3, x=X, out=4, bias=False, changes=(), dtype="float32", x_dtype=None, **args):
    """One case of `design`; its family is the part of the name before the slash."""
    return dict(name=name, kernel=kernel, x=x, out=out, bias=bias, changes=list(changes), dtype=dtype,
                x_dtype=x_dtype or dtype, args=args)  # fmt: skip


def design():
    """The list of cases."""
    pixel = lambda value, *index: ["x", list(index or (0, 1, 4, 4)), value]  # noqa: E731
    tap = lambda value, *index: ["weight", list(index), value]  # noqa: E731

    yield case("stride/1")
    yield case("stride/2", stride=2)
    yield case("stride/3", stride=3)
    yield case("stride/pair-1-2", stride=(1, 2))
    yield case("stride/pair-3-1", stride=(3, 1), padding=1)
    yield case("stride/above-kernel", kernel=2, stride=3)
    yield case("stride/1x1-by-2", kernel=1, stride=2)
    yield case("stride/above-input", stride=11, padding=1)

    yield case("padding/0", kernel=5)
    yield case("padding/1", padding=1)
    yield case("padding/pair-1-2", padding=(1, 2))
    yield case("padding/pair-2-0", padding=(2, 0))
    yield case("padding/1x1-by-1", kernel=1, padding=1)
    yield case("padding/above-kernel", kernel=2, padding=3)
    yield case("padding/stride-2", kernel=5, padding=(1, 2), stride=(2, 2))
    yield case("padding/larger-than-input", x=(1, 2, 2, 3), kernel=5, padding=4)

    yield case("dilation/2", dilation=2)
    yield case("dilation/2-same-size", dilation=2, padding=2)
    yield case("dilation/pair-1-3", dilation=(1, 3), padding=(1, 2))
    yield case("dilation/pair-3-1", dilation=(3, 1), padding=(1, 2))
    yield case("dilation/2-stride-2", dilation=2, stride=2, padding=2)
    yield case("dilation/1x1", kernel=1, dilation=4)  # of no effect
    yield case("dilation/2-grouped", dilation=2, groups=2, padding=1)
    yield case("dilation/2-depthwise", dilation=2, groups=4, padding=2)

    yield case("groups/2", groups=2, out=6, padding=1)
    yield case("groups/2-bias", groups=2, out=6, padding=1, bias=True)
    yield case("groups/2-stride-2", groups=2, out=6, stride=2)
    yield case("groups/2-1x1", groups=2, out=6, kernel=1)
    yield case("groups/3", x=(1, 6, 7, 6), groups=3, out=9)
    yield case("groups/depthwise", groups=4, padding=1)
    yield case("groups/depthwise-5x5", groups=4, kernel=5, padding=2)
    yield case("groups/depthwise-stride-2", groups=4, padding=1, stride=2, bias=True)
    yield case("groups/depthwise-multiplier-2", groups=4, out=8, padding=1)
    yield case("groups/depthwise-multiplier-3-bias", groups=4, out=12, stride=(2, 1), bias=True)
    yield case("groups/fewer-outputs", x=(1, 8, 7, 6), groups=2, out=2)

    for kernel in ((1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (2, 2), (4, 3), (6, 6), (7, 8)):
        yield case("kernel/{}x{}".format(*kernel), kernel=kernel)
    for kernel in ((5, 5), (1, 7), (7, 1), (2, 2), (4, 3)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        yield case("kernel/{}x{}-padded".format(*kernel), kernel=kernel, padding=padding, bias=True)

    for mode in ("zeros", "reflect", "replicate"):
        yield case(f"padding_mode/{mode}-0", out=2, padding_mode=mode)
        yield case(f"padding_mode/{mode}-1", out=2, padding_mode=mode, padding=1, bias=True)
        yield case(f"padding_mode/{mode}-pair-1-2", out=2, padding_mode=mode, padding=(1, 2), kernel=(3, 5))
        yield case(f"padding_mode/{mode}-stride-2", out=2, padding_mode=mode, padding=2, kernel=5, stride=2)
        yield case(f"padding_mode/{mode}-dilation-2", out=2, padding_mode=mode, padding=2, dilation=2)
        yield case(f"padding_mode/{mode}-grouped", out=2, padding_mode=mode, padding=1, groups=2)
        yield case(f"padding_mode/{mode}-depthwise", padding_mode=mode, padding=1, groups=4, bias=True)
        yield case(f"padding_mode/{mode}-2x2", out=2, padding_mode=mode, padding=1, kernel=2)
        yield case(f"padding_mode/{mode}-1x1", out=2, padding_mode=mode, padding=(0, 1), kernel=1)
        yield case(f"padding_mode/{mode}-largest-reflection", x=(1, 2, 4, 5), padding_mode=mode, padding=(3, 4))
    yield case("padding_mode/replicate-above-input", out=2, x=(1, 2, 2, 3), padding_mode="replicate", padding=4)
    yield case("padding_mode/replicate-single-pixel", out=2, x=(1, 2, 1, 1), padding_mode="replicate", padding=1)

    yield case("bias/3x3", bias=True)
    yield case("bias/1x1", kernel=1, bias=True)
    yield case("bias/everything", kernel=(3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=True)

    yield case("channels/1-to-1", x=(1, 1, 9, 10), out=1)
    yield case("channels/3-to-8", x=(1, 3, 9, 10), out=8, padding=1)
    yield case("channels/16-to-2", x=(1, 16, 5, 6), out=2, padding=1, bias=True)
    yield case("channels/1-to-5-1x1", x=(1, 1, 5, 6), out=5, kernel=1)
    yield case("channels/compute_mode-has-no-effect", compute_mode="float32")

    yield case("batch/1", x=(1, 4, 7, 8))
    yield case("batch/5", x=(5, 3, 6, 5), padding=1, bias=True)
    yield case("batch/5-grouped", x=(5, 4, 6, 5), groups=2, padding=1)
    yield case("batch/7-1x1-output", x=(7, 3, 3, 3), out=5)

    # The division by the stride rounds down: the last rows and columns of the input are then not read.
    yield case("output_size/stride-3-kernel-2", kernel=2, stride=3)
    yield case("output_size/stride-2-even-input", x=(1, 2, 8, 8), stride=2, padding=1)
    yield case("output_size/stride-2-odd-input", x=(1, 2, 9, 9), stride=2, padding=1)
    yield case("output_size/stride-4-3", x=(1, 2, 10, 11), stride=(4, 3))
    yield case("output_size/stride-2-dilation-3", x=(1, 2, 10, 11), stride=2, dilation=3)
    yield case("output_size/reflect-stride-3", x=(1, 2, 10, 11), stride=3, padding=1, padding_mode="reflect")
    yield case("output_size/exact-fit", x=(2, 2, 5, 7), kernel=(5, 7))
    yield case("output_size/exact-fit-padded-dilated", x=(2, 2, 5, 7), dilation=(3, 4), padding=1)

    for name, args in (
        ("plain", {}),
        ("padded", dict(padding=1)),
        ("stride-2-grouped", dict(padding=1, stride=2, groups=2)),
        ("bias", dict(bias=True)),
        ("1x1", dict(kernel=1)),
        ("dilation", dict(dilation=2)),
        ("reflect", dict(padding=2, padding_mode="reflect")),
        ("replicate", dict(padding=2, padding_mode="replicate")),
    ):
        yield case("empty_batch/" + name, x=(0, 4, 7, 8), **args)

    # Large enough for tiles and blocks, and for a transform to spread what is not finite.
    yield case("large/3x3", x=(1, 8, 23, 20), out=3, padding=1, bias=True)
    yield case("large/5x5", x=(1, 4, 23, 20), out=4, padding=2)
    yield case("large/7x7-stride-2", x=(1, 3, 30, 29), out=4, kernel=7, stride=2, padding=3)
    yield case("large/13x13-depthwise", x=(1, 2, 29, 30), out=2, kernel=13, padding=6, groups=2)
    yield case("large/31x31", x=(1, 1, 48, 45), out=1, kernel=31, padding=15)
    yield case("large/1x1", x=(1, 16, 12, 13), out=8, kernel=1, bias=True)
    yield case("large/weights-far-apart", x=(1, 8, 23, 20), out=3, padding=1, changes=[tap("1e6", 2, 3, 1, 1)])

    shapes = (
        ("1x1", dict(kernel=1)),
        ("3x3", dict(padding=1)),
        ("5x5", dict(kernel=5, padding=2)),
        ("2x2", dict(kernel=2)),
        ("4x3", dict(kernel=(4, 3), padding=1)),
        ("1x7", dict(kernel=(1, 7), padding=(0, 3))),
        ("3x3-stride-2", dict(padding=1, stride=2)),
        ("3x3-dilation-2", dict(padding=2, dilation=2)),
        ("3x3-grouped", dict(padding=1, groups=2)),
        ("3x3-depthwise", dict(padding=1, groups=4)),
        ("3x3-reflect", dict(padding=1, padding_mode="reflect")),
        ("3x3-replicate", dict(padding=2, padding_mode="replicate")),
    )
    for name, args in shapes:
        yield case("nan_input/" + name, x=(1, 4, 7, 8), changes=[pixel("nan")], **args)
        yield case("inf_input/" + name, x=(1, 4, 7, 8), changes=[pixel("inf")], **args)
    corner = pixel("nan", 1, 3, 0, 0)
    yield case("nan_input/corner-zeros", padding=1, changes=[corner])
    yield case("nan_input/corner-reflect", padding=2, padding_mode="reflect", changes=[corner])
    yield case("nan_input/corner-replicate", padding=2, padding_mode="replicate", changes=[corner])
    yield case("nan_input/not-read", x=(1, 2, 10, 11), stride=2, changes=[pixel("nan", 0, 0, 9, 0)])
    yield case("nan_input/bias", padding=1, bias=True, changes=[pixel("nan")])
    yield case("nan_input/large-3x3", x=(1, 8, 23, 20), out=3, padding=1, changes=[pixel("nan", 0, 5, 11, 7)])
    blur = dict(x=(1, 2, 29, 30), out=2, kernel=13, groups=2)
    yield case("nan_input/large-13x13", changes=[pixel("nan", 0, 1, 3, 26)], **blur)
    yield case("inf_input/minus", padding=1, changes=[pixel("-inf")])
    # Inf - Inf where both lie in one receptive field, Inf elsewhere.
    yield case("inf_input/both-signs", padding=1, changes=[pixel("inf"), pixel("-inf", 0, 1, 4, 6)])
    yield case("inf_input/times-zero", padding=1, changes=[pixel("inf"), tap("0", 2, 1, 0, 2)])
    yield case("inf_input/large-3x3", x=(1, 8, 23, 20), out=3, padding=1, changes=[pixel("inf", 0, 5, 11, 7)])
    yield case("inf_input/large-31x31", x=(1, 1, 48, 45), out=1, kernel=31, changes=[pixel("-inf", 0, 0, 40, 3)])
    # The results are finite, but the sums in an engine's transform may overflow.
    yield case("huge_input/3x3", x=(1, 4, 7, 8), padding=1, changes=[pixel("2e37", 0, 1, 3, 4)])
    yield case("huge_input/large-3x3", x=(1, 8, 23, 20), out=3, padding=1, changes=[pixel("2e37", 0, 1, 20, 3)])
    yield case("huge_input/large-5x5", x=(1, 4, 23, 20), out=3, kernel=5, changes=[pixel("5e36", 0, 1, 11, 10)])
    yield case("huge_input/large-13x13", changes=[pixel("2e36", 0, 1, 14, 15)], **blur)
    yield case("huge_input/large-31x31", x=(1, 1, 48, 45), out=1, kernel=31, changes=[pixel("5e35", 0, 0, 24, 22)])

    # Only where no zero padding is read: Inf * 0 is NaN or 0 there, see `observe`.
    yield case("nan_weight/3x3", changes=[tap("nan", 1, 2, 0, 1)])
    yield case("inf_weight/3x3", changes=[tap("inf", 1, 2, 0, 1)])
    yield case("inf_weight/1x1", kernel=1, changes=[tap("-inf", 1, 2, 0, 0)])
    yield case("inf_weight/5x5-stride-2", kernel=5, stride=2, changes=[tap("inf", 1, 2, 4, 1)])
    yield case("inf_weight/grouped", groups=2, changes=[tap("inf", 1, 0, 1, 2, 2)])
    yield case("inf_weight/depthwise", groups=4, changes=[tap("-inf", 2, 0, 0, 1, 1)])
    yield case("inf_weight/reflect", padding=1, padding_mode="reflect", changes=[tap("inf", 1, 2, 0, 1)])
    yield case("inf_weight/replicate", padding=1, padding_mode="replicate", changes=[tap("inf", 1, 2, 0, 1)])

    half = dict(dtype="float16")
    for mode in ("default", "float32"):
        yield case(f"float16/{mode}-3x3", padding=1, compute_mode=mode, **half)
        yield case(f"float16/{mode}-1x1", kernel=1, compute_mode=mode, **half)
        yield case(f"float16/{mode}-5x5-bias", kernel=5, padding=2, compute_mode=mode, bias=True, **half)
        yield case(f"float16/{mode}-stride-2", stride=2, compute_mode=mode, **half)
        yield case(f"float16/{mode}-dilation-2", dilation=2, compute_mode=mode, **half)
        yield case(f"float16/{mode}-grouped", groups=2, padding=1, compute_mode=mode, bias=True, **half)
        yield case(f"float16/{mode}-depthwise", groups=4, padding=1, compute_mode=mode, **half)
        yield case(f"float16/{mode}-reflect", padding=1, padding_mode="reflect", compute_mode=mode, **half)
        yield case(f"float16/{mode}-nan", padding=1, compute_mode=mode, changes=[pixel("nan")], **half)
        yield case(f"float16/{mode}-empty", x=(0, 4, 7, 8), compute_mode=mode, **half)
    yield case("float16/float32-many-channels", x=(1, 64, 4, 4), out=2, padding=1, compute_mode="float32", **half)
    # The sum is within float16, the largest partial sum is not.
    sums = [pixel("200", 0, channel, 4, 4) for channel in range(3)]
    sums += [tap(value, 1, channel, 0, 0) for channel, value in enumerate(("400", "300", "-500"))]
    yield case("float16/float32-large-partial-sums", kernel=1, compute_mode="float32", changes=sums, **half)

    # Mixed dtypes: the result is float32.
    yield case("mixed_dtype/float16-x", x_dtype="float16", padding=1)
    yield case("mixed_dtype/uint8-x", x_dtype="uint8", padding=1, bias=True)
    yield case("mixed_dtype/int8-x", x_dtype="int8", groups=2)
    yield case("mixed_dtype/int32-x", x_dtype="int32", stride=2)


def random_array(prefix, shape, dtype, store):
    """The stored random array of this shape: seeded by its name, so that a new case changes no other."""
    name = "_".join([prefix, "x".join(map(str, shape))] + ([] if dtype == "float32" else [dtype]))
    if name not in store:
        random = np.random.RandomState(zlib.crc32(name.encode()))
        if dtype.startswith("float"):
            store[name] = random.standard_normal(shape).astype(dtype)
        else:
            info = np.iinfo(dtype)
            store[name] = random.randint(max(info.min, -1000), min(info.max, 1000) + 1, shape).astype(dtype)
    return name


def pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def run_case(entry, store):
    """Compute one case with the module, and with the function where it can express the case; both must agree."""
    args, groups = entry["args"], entry["args"].get("groups", 1)
    channels, kernel = entry["x"][1], pair(entry["kernel"])
    shape = (entry["out"], channels // groups, *kernel)
    if groups > 1:
        shape = (groups, entry["out"] // groups, *shape[1:])
    names = {
        "x": random_array("x", entry["x"], entry["x_dtype"], store),
        "weight": random_array("w", shape, entry["dtype"], store),
        "bias": random_array("b", (1, entry["out"], 1, 1), entry["dtype"], store) if entry["bias"] else None,
    }
    arrays = {key: None if name is None else store[name].copy() for key, name in names.items()}
    for key, index, value in entry["changes"]:
        arrays[key][tuple(index)] = float(value)

    module = M.Conv2d(channels, entry["out"], entry["kernel"], bias=entry["bias"], **args)
    module.weight = mge.Parameter(arrays["weight"])
    if entry["bias"]:
        module.bias = mge.Parameter(arrays["bias"])
    y = module(mge.Tensor(arrays["x"])).numpy()
    if args.get("padding_mode", "zeros") == "zeros":
        kwargs = {key: value for key, value in args.items() if key != "padding_mode"}
        bias = mge.Tensor(arrays["bias"]) if entry["bias"] else None
        again = F.conv2d(mge.Tensor(arrays["x"]), mge.Tensor(arrays["weight"]), bias, **kwargs).numpy()
        assert y.dtype == again.dtype and y.tobytes() == again.tobytes(), entry["name"]
    names["y"] = "y/" + entry["name"]
    store[names["y"]] = y
    # its gradients refuse float32 data with compute_mode="float32"
    plain = entry["dtype"] == entry["x_dtype"] == "float32" and "compute_mode" not in args
    if y.size and plain and not entry["changes"]:
        names["dy"] = random_array("dy", y.shape, "float32", store)
        for key, value in run_gradients(module, arrays["x"], store[names["dy"]]).items():
            names["d" + key] = "d{}/{}".format(key[0], entry["name"])
            store[names["d" + key]] = value
    return dict(names, name=entry["name"], kernel_size=entry["kernel"], changes=entry["changes"], args=args)


def run_gradients(module, x, dy):
    """Gradients of `sum(dy * module(x))`: of the image, the weight and the bias, if there is one."""
    image = mge.Tensor(x)
    wanted = {"x": image, **dict(module.named_parameters())}
    with ad.GradManager() as manager:
        manager.attach(list(wanted.values()))
        manager.backward(module(image), mge.Tensor(dy))
    return {key: tensor.grad.numpy() for key, tensor in wanted.items()}


MODULES = [
    ([4, 8, 3], {}),
    ([4, 8, [3, 5]], {}),
    ([4, 8, 3], {"stride": 2}),
    ([4, 8, 3], {"stride": [1, 2]}),
    ([4, 8, 3], {"padding": 1}),
    ([4, 8, 3], {"padding": [0, 2]}),
    ([4, 8, 3], {"dilation": 2}),
    ([4, 8, 3], {"dilation": [2, 1]}),
    ([4, 8, 3], {"groups": 2}),
    ([4, 4, 3], {"groups": 4}),
    ([4, 8, 3], {"groups": 4}),
    ([4, 8, 3], {"bias": False}),
    ([4, 8, 3], {"bias": 0}),
    ([4, 8, 3], {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1, "bias": True}),
    ([4, 8, 3], {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False}),
    ([4, 8, 3, 2, 1, 2, 2, False], {}),
    ([4, 8, 3, 1, 1, 1, 1, True, "cross_correlation", "float32", "reflect"], {}),
    ([4, 8, 3], {"padding": 1, "padding_mode": "replicate"}),
    ([4, 8, 3], {"compute_mode": "float32"}),
    ([4, 8, [1, 7]], {"name": "first"}),
]


def describe_module(args, kwargs):
    module = M.Conv2d(*args, **kwargs)
    names = "in_channels out_channels kernel_size stride padding dilation groups conv_mode compute_mode padding_mode"
    return {
        "args": args,
        "kwargs": kwargs,
        "repr": repr(module),
        "attributes": {name: getattr(module, name) for name in names.split()},
        "state_dict": [[key, value.shape, str(value.dtype)] for key, value in module.state_dict().items()],
        "named_parameters": [name for name, _ in module.named_parameters()],
    }


def describe_initial(args, kwargs):
    """Initial weights: their spread shows which fan-in is used, also when grouped."""
    module = M.Conv2d(*args, **kwargs)
    weight = module.weight.numpy().astype(np.float64)
    return {
        "args": args,
        "kwargs": kwargs,
        "shape": weight.shape,
        "mean": weight.mean(),
        "std": weight.std(),
        "largest": np.abs(weight).max(),
        "kurtosis": (weight**4).mean() / (weight**2).mean() ** 2,  # 3 if normal, 1.8 if uniform
        "bias_is_zero": bool((module.bias.numpy() == 0).all()),
    }


REFUSED = [
    ("kernel-above-input", [1, 4, 5, 6], [2, 4, 6, 3], {}),
    ("kernel-above-padded-input", [1, 4, 5, 6], [2, 4, 3, 9], {"padding": 1}),
    ("dilated-kernel-above-input", [1, 4, 5, 6], [2, 4, 3, 3], {"dilation": 3}),
    ("dilated-kernel-above-input-width", [1, 4, 9, 6], [2, 4, 3, 3], {"dilation": (1, 3)}),
    ("reflect-equals-height", [1, 4, 5, 6], [2, 4, 3, 3], {"padding": (5, 1), "padding_mode": "reflect"}),
    ("reflect-equals-width", [1, 4, 5, 6], [2, 4, 3, 3], {"padding": (1, 6), "padding_mode": "reflect"}),
    ("other-channels", [1, 3, 5, 6], [2, 4, 3, 3], {}),
    ("other-channels-grouped", [1, 6, 5, 6], [2, 2, 2, 3, 3], {"groups": 2}),
    ("rank-3", [4, 5, 6], [2, 4, 3, 3], {}),
    ("rank-5", [1, 1, 4, 5, 6], [2, 4, 3, 3], {}),
    ("no-height", [1, 4, 0, 6], [2, 4, 3, 3], {"padding": 2}),
    ("padding-mode-unknown", [1, 4, 5, 6], [2, 4, 3, 3], {"padding": 1, "padding_mode": "mirror"}),
    ("padding-mode-upper-case", [1, 4, 5, 6], [2, 4, 3, 3], {"padding": 1, "padding_mode": "REFLECT"}),
    ("compute-mode-unknown", [1, 4, 5, 6], [2, 4, 3, 3], {"compute_mode": "float64"}),
    ("conv-mode-unknown", [1, 4, 5, 6], [2, 4, 3, 3], {"conv_mode": "convolution"}),
    ("stride-0", [1, 4, 5, 6], [2, 4, 3, 3], {"stride": 0}),
    ("dilation-0", [1, 4, 5, 6], [2, 4, 3, 3], {"dilation": (1, 0)}),
    ("padding-negative", [1, 4, 5, 6], [2, 4, 3, 3], {"padding": -1}),
    ("padding-triple", [1, 4, 5, 6], [2, 4, 3, 3], {"padding": (1, 1, 1)}),
]


def failure(function):
    """The name of what `function` raises, or None.

    MegEngine computes in the background: one and the same failure shows as RuntimeError or, later, as AsyncError.
    """
    try:
        function()
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        return type(error).__name__.replace("Async", "Runtime")
    return None


def run_refused(name, x_shape, weight_shape, args):
    def call():
        # The module, because its constructor catches the stride 0 that ends the process in the functional form.
        groups = args.get("groups", 1)
        out, channels = int(np.prod(weight_shape[:-3])), weight_shape[-3] * groups
        module = M.Conv2d(channels, out, tuple(weight_shape[-2:]), bias=False, **args)
        module(mge.Tensor(np.ones(x_shape, np.float32))).numpy()  # errors are reported when the result is read

    error = failure(call)
    assert error, "not refused: " + name
    return {"name": name, "x_shape": x_shape, "weight_shape": weight_shape, "args": args, "error": error}


def observe():
    """Behaviour that is recorded to be known, not to be compared."""
    x, weight = np.ones((1, 4, 13, 13), np.float32), np.ones((2, 4, 3, 3), np.float32)
    conv = lambda x, w, *args, **kwargs: F.conv2d(mge.Tensor(x), mge.Tensor(w), *args, **kwargs).numpy()  # noqa: E731
    works = lambda function: failure(function) is None  # noqa: E731
    half_x, half_weight = np.full((1, 4, 5, 5), 200, "float16"), np.full((1, 4, 3, 3), 20, "float16")
    half_weight[:, 2:] *= -1
    weight_inf = weight.copy()
    weight_inf[0, 0, 0, 0] = np.inf
    return {
        "float64 data gives": str(conv(x.astype("float64"), weight.astype("float64")).dtype),
        "float16 data, float32 weight gives": str(conv(x.astype("float16"), weight).dtype),
        "float32 data, float16 weight gives": str(conv(x, weight.astype("float16")).dtype),
        "int32 data and weight": failure(lambda: conv(x.astype("int32"), weight.astype("int32"))),
        "int8 data and weight": failure(lambda: conv(x.astype("int8"), weight.astype("int8"))),
        "NumPy array as input": failure(lambda: F.conv2d(x, mge.Tensor(weight))),
        "compute_mode in capitals works": works(lambda: conv(x, weight, compute_mode="FLOAT32")),
        "conv_mode in capitals works": works(lambda: conv(x, weight, conv_mode="CROSS_CORRELATION")),
        "4-D weight with groups=2": failure(lambda: conv(x, np.ones((2, 2, 3, 3), np.float32), groups=2)),
        "5-D weight with groups=1": failure(lambda: conv(x, weight[None])),
        "bias of shape (O,)": failure(lambda: conv(x, weight, mge.Tensor(np.ones(2, np.float32)))),
        "float16 sum 72000 - 72000, default": str(conv(half_x, half_weight).flat[0]),
        "float16 sum 72000 - 72000, float32": str(conv(half_x, half_weight, compute_mode="float32").flat[0]),
        "no input channels, 4 x 2 outputs, gives the shape": conv(x[:, :0], weight[:, :0]).shape,
        # Inf * 0: the taps in the zero padding count in most routines, not in the dilated one.
        "NaN from an Inf weight on zero padding": int(np.isnan(conv(x, weight_inf, padding=1)).sum()),
        "NaN from an Inf weight on zero padding, dilation 2": int(
            np.isnan(conv(x, weight_inf, padding=2, dilation=2)).sum()
        ),
        "kernel_size=3.7 is": M.Conv2d(4, 2, 3.7).kernel_size,
        "kernel_size='35' is": M.Conv2d(4, 2, "35").kernel_size,
        "kernel_size=True is": M.Conv2d(4, 2, True).kernel_size,
        "in_channels not divisible by groups": failure(lambda: M.Conv2d(5, 4, 3, groups=2)),
        "out_channels not divisible by groups": failure(lambda: M.Conv2d(4, 5, 3, groups=2)),
        "unknown padding_mode at construction": failure(lambda: M.Conv2d(4, 2, 3, padding_mode="mirror")),
        "load_state_dict, key missing": failure(lambda: M.Conv2d(4, 2, 3).load_state_dict({"weight": weight})),
        "load_state_dict, key missing, strict=False": failure(
            lambda: M.Conv2d(4, 2, 3).load_state_dict({"weight": weight}, strict=False)
        ),
        "load_state_dict, bias of shape (O,)": failure(
            lambda: M.Conv2d(4, 2, 3).load_state_dict({"weight": weight, "bias": np.zeros(2, np.float32)})
        ),
    }


def main():
    parser = argparse.ArgumentParser(description="Write the golden values of MegEngine.")
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).with_name("megengine.npz"))
    output = parser.parse_args().output

    mge.random.seed(20240229)
    store = {}
    cases = [run_case(entry, store) for entry in design()]
    assert len({entry["name"] for entry in cases}) == len(cases)
    manifest = {
        "megengine": mge.__version__,
        "cases": cases,
        "modules": [describe_module(*entry) for entry in MODULES],
        "initial": [
            describe_initial([64, 128, 3], {}),
            describe_initial([64, 128, 3], {"groups": 4}),
            describe_initial([256, 768, [5, 3]], {"groups": 256}),
            describe_initial([256, 256, 1], {"bias": True}),
        ],
        "observed": observe(),
        "refused": [run_refused(*entry) for entry in REFUSED],
    }
    text = json.dumps(manifest, indent=1)
    np.savez_compressed(output, manifest=np.frombuffer(text.encode(), np.uint8), **store)
    print(f"{output}: {len(cases)} cases, {len(store)} arrays, {output.stat().st_size} bytes")
    print(json.dumps({key: manifest[key] for key in ("observed", "initial")}, indent=1))


if __name__ == "__main__":
    main()
