"""Write relatives.npz: what MegEngine 1.13 computes by its modules ConvTranspose2d, Conv1d and Conv3d.

Run as generate_megengine.py, whose notes on machines hold here, too:

    python tests/golden/generate_relatives.py

What the file holds (no pickles): `manifest`, JSON as UTF-8 bytes, whose `cases` name a module, its arguments and what
it says of itself; and for each case the arrays `<case>/x`, `weight`, `bias` and `y`, the cotangent `dy` of the result,
and `dx`, `dweight` and `dbias`, the gradients of `sum(dy * y)`. `refused` are modules and calls that raise.

Observed on a CPU, 1.13.0: `ConvTranspose2d` with groups and an `output_padding` raises an error, and so does `Conv1d`
with groups; `repr` of a `Conv1d` raises another.
"""

import argparse
import json
import zlib
from pathlib import Path

import megengine as mge
import megengine.autodiff as ad
import megengine.module as M
import numpy as np

CASES = [
    ("ConvTranspose2d", "plain", (2, 3, 5, 6), [3, 4, 3], {}),
    ("ConvTranspose2d", "stride", (1, 4, 5, 6), [4, 2, 4], {"stride": 2, "padding": 1}),
    ("ConvTranspose2d", "pairs", (1, 3, 5, 6), [3, 2, (2, 3)], {"stride": (3, 2), "padding": (0, 1)}),
    ("ConvTranspose2d", "output-padding", (2, 3, 5, 6), [3, 4, 3], {"stride": 2, "padding": 1, "output_padding": 1}),
    ("ConvTranspose2d", "output-padding-pair", (1, 2, 4, 5), [2, 3, 3], {"stride": (3, 2), "output_padding": (2, 1)}),
    ("ConvTranspose2d", "stride-above-kernel", (1, 2, 4, 5), [2, 3, (2, 1)], {"stride": (4, 3)}),
    ("ConvTranspose2d", "dilation", (1, 3, 6, 5), [3, 2, (3, 2)], {"dilation": (2, 3), "stride": 2, "padding": 1}),
    ("ConvTranspose2d", "common-factor", (1, 2, 5, 6), [2, 2, 3], {"dilation": (4, 3), "stride": (2, 3)}),
    ("ConvTranspose2d", "groups", (2, 6, 5, 4), [6, 4, 3], {"groups": 2, "stride": 2, "padding": 1}),
    ("ConvTranspose2d", "depthwise", (1, 5, 6, 7), [5, 5, 4], {"groups": 5, "stride": 2, "padding": 1}),
    ("ConvTranspose2d", "no-bias", (1, 3, 4, 4), [3, 2, 2], {"stride": 2, "bias": False}),
    ("ConvTranspose2d", "in-order", (1, 4, 4, 5), [4, 6, 3, 2, 1, 0, 1, 2, True], {}),
    ("Conv1d", "plain", (2, 3, 11), [3, 4, 3], {}),
    ("Conv1d", "stride", (2, 3, 11), [3, 4, 5], {"stride": 3, "padding": 2, "dilation": 2}),
    ("Conv1d", "reflect", (1, 2, 9), [2, 2, 3], {"padding": 2, "padding_mode": "reflect", "bias": False}),
    ("Conv1d", "in-order", (1, 4, 9), [4, 6, 3, 2, 1, 1, 1, False], {}),
    ("Conv3d", "plain", (2, 2, 4, 5, 6), [2, 3, 3], {}),
    ("Conv3d", "triples", (1, 2, 5, 6, 7), [2, 3, (2, 3, 1)], {"stride": (1, 2, 3), "padding": (1, 0, 2)}),
    ("Conv3d", "dilation", (1, 2, 6, 6, 5), [2, 2, (3, 2, 2)], {"dilation": (2, 1, 3), "padding": 1, "bias": False}),
    ("Conv3d", "groups", (1, 4, 4, 5, 4), [4, 2, 2], {"groups": 2, "stride": 2, "padding": 1}),
]  # fmt: skip

REFUSED = [
    ("ConvTranspose2d", (1, 3, 4, 4), [3, 2, 3], {"padding": 4}),
    ("ConvTranspose2d", (1, 3, 4, 4), [3, 2, 3], {"groups": 2}),
    ("ConvTranspose2d", (1, 4, 4, 4), [3, 2, 3], {}),
    ("ConvTranspose2d", (3, 4, 4), [3, 2, 3], {}),
    ("ConvTranspose2d", (1, 3, 4, 4), [3, 2, 3], {"stride": 0}),
    ("Conv1d", (1, 3, 4), [3, 2, 5], {}),
    ("Conv1d", (1, 2, 4), [3, 2, 3], {}),
    ("Conv3d", (1, 3, 4, 4, 4), [3, 2, 5], {}),
    ("Conv3d", (1, 2, 4, 4, 4), [3, 2, 3], {}),
]
ATTRIBUTES = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation", "groups",
    "conv_mode", "compute_mode", "padding_mode",
)  # fmt: skip


def numbers(name, shape):
    """Seeded by the name, so that a new case changes no other."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def run_case(kind, name, shape, arguments, keywords, store):
    case = kind + "/" + name
    module = getattr(M, kind)(*arguments, **keywords)
    store[case + "/x"] = numbers(case + "/x", shape)
    for parameter, tensor in module.named_parameters():
        value = store[case + "/" + parameter] = numbers(case + "/" + parameter, tensor.shape)
        setattr(module, parameter, mge.Parameter(value))
    image = mge.Tensor(store[case + "/x"])
    wanted = {"x": image, **dict(module.named_parameters())}
    with ad.GradManager() as manager:
        manager.attach(list(wanted.values()))
        y = module(image)
        dy = store[case + "/dy"] = numbers(case + "/dy", y.shape)
        manager.backward(y, mge.Tensor(dy))
    store[case + "/y"] = y.numpy()
    for parameter, tensor in wanted.items():
        store[case + "/d" + parameter] = tensor.grad.numpy()
    attributes = {key: getattr(module, key) for key in ATTRIBUTES if hasattr(module, key)}
    if kind != "ConvTranspose2d":  # the others have one that says nothing
        del attributes["output_padding"]
    said = {} if kind == "Conv1d" else {"repr": repr(module)}  # that of Conv1d raises an error
    state = [[key, list(value.shape), str(value.dtype)] for key, value in module.state_dict().items()]
    return dict(
        said, name=case, kind=kind, args=arguments, kwargs=keywords, attributes=attributes, state_dict=state,
        named_parameters=[key for key, _ in module.named_parameters()],
    )  # fmt: skip


def refused(kind, shape, arguments, keywords):
    try:
        getattr(M, kind)(*arguments, **keywords)(mge.Tensor(np.ones(shape, np.float32))).numpy()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        return {"kind": kind, "shape": shape, "args": arguments, "kwargs": keywords, "error": type(error).__name__}
    raise AssertionError("not refused: {} {} {} {}".format(kind, shape, arguments, keywords))


def initial(kind, arguments, keywords):
    """Initial weights: their spread shows which channels are counted, also when grouped."""
    weight = getattr(M, kind)(*arguments, **keywords).weight.numpy().astype(np.float64)
    return {"kind": kind, "args": arguments, "kwargs": keywords, "shape": weight.shape, "std": weight.std()}


def main():
    parser = argparse.ArgumentParser(description="Write the golden values of MegEngine's other convolutions.")
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).with_name("relatives.npz"))
    output = parser.parse_args().output

    mge.random.seed(20240229)
    store = {}
    manifest = {
        "megengine": mge.__version__,
        "cases": [run_case(*entry, store=store) for entry in CASES],
        "initial": [
            initial("ConvTranspose2d", [64, 256, 3], {}),
            initial("ConvTranspose2d", [64, 256, 3], {"groups": 4}),
            initial("Conv1d", [128, 256, 5], {"groups": 2}),
            initial("Conv3d", [32, 64, (2, 3, 3)], {}),
        ],
        "refused": [refused(*entry) for entry in REFUSED],
    }
    text = json.dumps(manifest, indent=1)
    np.savez_compressed(output, manifest=np.frombuffer(text.encode(), np.uint8), **store)
    print(output, len(store), "arrays", output.stat().st_size, "bytes")
    print(json.dumps({key: manifest[key] for key in ("initial", "refused")}, indent=1))


if __name__ == "__main__":
    main()
