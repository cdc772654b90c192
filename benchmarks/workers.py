"""Times one library in this process: `python workers.py LIBRARY --threads 2`, driven by `runner.py`.

It first writes one JSON line about itself, then reads a layer a line on stdin and answers each with a JSON line. A
library is a function of the thread count that imports it and returns `prepare(layer, x, weight, bias)`, which returns a
`Prepared`. Nothing heavy is imported before the thread counts are set: most libraries read them only once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from suites import Layer

# What is measured is the checkout that this folder lies in, whatever else is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "PJRT_NPROC",  # XLA has no other way to say it
    "NPROC",
)
WARM_UP = 0.1  # seconds
ROUND = 0.02  # seconds; short calls are repeated so that a round lasts as long
ROUNDS = 25
SLOW = 10.0  # seconds; a first call as slow as this is not repeated


class Unsupported(Exception):
    """The library cannot run this layer."""


@dataclass
class Prepared:
    call: Callable[[], Any]  # one finished evaluation
    to_numpy: Callable[[Any], Any]  # its result as an NCHW array
    notes: Callable[[], dict] = dict  # more to report, asked after timing


# --- the libraries


def make_conv(layer: Layer, weight, bias):
    import portconv

    conv = portconv.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias,
        padding_mode=layer.padding_mode,
    )
    conv.weight = weight.reshape(conv.weight.shape)
    if layer.bias:
        conv.bias = bias.reshape(conv.bias.shape)
    return conv


def portconv_numpy(_threads: int):
    """Takes the thread count from the environment."""
    import numpy as np

    import portconv  # noqa: F401  that it is missing must show here

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        conv = make_conv(layer, weight, bias)

        def notes():
            plan = conv.plan(x)
            return {"engine": plan.engine, "pack_ms": 1e3 * seconds(lambda: plan.pack(conv.weight))}

        return Prepared(lambda: conv(x), np.asarray, notes)

    return prepare


def portconv_mlx(_threads: int):
    """MLX arrays on the CPU device, NCHW in memory."""
    import mlx.core as mx
    import numpy as np

    import portconv  # noqa: F401

    mx.set_default_device(mx.cpu)

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        conv = make_conv(layer, weight, bias)
        x = mx.array(x)
        mx.eval(x)

        def call():
            y = conv(x)
            mx.eval(y)
            return y

        return Prepared(call, np.array, lambda: {"engine": conv.plan(x).engine})

    return prepare


def mlx_library(_threads: int):
    """`mx.conv2d` as MLX likes it best: NHWC input and OHWI weight, both contiguous. It has no setting for threads."""
    import mlx.core as mx
    import numpy as np

    mx.set_default_device(mx.cpu)
    modes = {"zeros": None, "replicate": "edge"}

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        if layer.padding_mode not in modes:
            raise Unsupported(f"mx.pad has no {layer.padding_mode}")
        mode = modes[layer.padding_mode]
        x = mx.array(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        weight = mx.array(np.ascontiguousarray(weight.transpose(0, 2, 3, 1)))
        bias = None if bias is None else mx.array(bias)
        mx.eval(x, weight)
        padding = layer.padding if mode is None else 0
        pairs = ((0, 0), *((p, p) for p in layer.padding), (0, 0))

        def call():
            padded = x if mode is None else mx.pad(x, pairs, mode=mode)
            y = mx.conv2d(padded, weight, layer.stride, padding, layer.dilation, layer.groups)
            if bias is not None:
                y = y + bias
            mx.eval(y)
            return y

        return Prepared(call, lambda y: np.array(y).transpose(0, 3, 1, 2))

    return prepare


def torch_library(threads: int, channels_last: bool):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        conv = torch.nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias=layer.bias,
            padding_mode=layer.padding_mode,
        )
        conv.weight.copy_(torch.from_numpy(weight))
        if layer.bias:
            conv.bias.copy_(torch.from_numpy(bias))
        conv = conv.eval().to(memory_format=memory_format)
        tensor = torch.from_numpy(x).contiguous(memory_format=memory_format)
        return Prepared(lambda: conv(tensor), lambda y: y.numpy())

    return prepare


def onnxruntime_library(threads: int):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        import numpy as np

        tensors = [numpy_helper.from_array(weight, "weight")]
        inputs = ["x", "weight"]
        if bias is not None:
            tensors.append(numpy_helper.from_array(bias, "bias"))
            inputs.append("bias")
        nodes = []
        height, width = layer.padding
        if layer.padding_mode != "zeros":
            pads = np.array([0, 0, height, width, 0, 0, height, width], dtype=np.int64)
            tensors.append(numpy_helper.from_array(pads, "pads"))
            nodes.append(helper.make_node("Pad", ["x", "pads"], ["padded"], mode=modes[layer.padding_mode]))
            inputs[0] = "padded"
            height = width = 0
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                ["y"],
                strides=layer.stride,
                pads=(height, width, height, width),
                dilations=layer.dilation,
                group=layer.groups,
            )
        )
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.x_shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, layer.y_shape)],
            tensors,
        )
        # Not the newest versions: onnx may be ahead of what the installed runtime reads.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Prepared(lambda: session.run(None, {"x": x})[0], lambda y: y)

    return prepare


def openvino_library(threads: int):
    # Its telemetry would start a process of its own and report over the network; without that package it has a stub.
    sys.modules["openvino_telemetry"] = None
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else CPUs with bfloat16 instructions may use them
    }
    modes = {"reflect": "reflect", "replicate": "edge"}

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        import numpy as np

        source = value = ops.parameter(layer.x_shape, np.float32)
        padding = layer.padding
        if layer.padding_mode != "zeros":
            if layer.padding_mode not in modes:
                raise Unsupported(f"its Pad has no {layer.padding_mode}")
            pads = np.array([0, 0, *padding])
            value = ops.pad(value, pads, pads, modes[layer.padding_mode])
            padding = (0, 0)
        if layer.groups == 1:
            value = ops.convolution(value, ops.constant(weight), layer.stride, padding, padding, layer.dilation)
        else:
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            value = ops.group_convolution(value, ops.constant(grouped), layer.stride, padding, padding, layer.dilation)
        if bias is not None:
            value = ops.add(value, ops.constant(bias.reshape(1, -1, 1, 1)))
        model = openvino.Model([value], [source], "layer")
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        call = partial(request.infer, [x], share_inputs=True, share_outputs=True)
        return Prepared(call, lambda results: results[0])

    return prepare


def jax_library(_threads: int):
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np

    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        pairs = [(p, p) for p in layer.padding]

        @jax.jit
        def conv(x, weight, bias):
            padding = pairs
            if layer.padding_mode != "zeros":
                x = jnp.pad(x, [(0, 0), (0, 0), *pairs], mode=modes[layer.padding_mode])
                padding = [(0, 0), (0, 0)]
            y = jax.lax.conv_general_dilated(
                x,
                weight,
                layer.stride,
                padding,
                rhs_dilation=layer.dilation,
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
                feature_group_count=layer.groups,
            )
            return y if bias is None else y + bias[:, None, None]

        x, weight = jnp.asarray(x), jnp.asarray(weight)
        bias = None if bias is None else jnp.asarray(bias)
        return Prepared(lambda: conv(x, weight, bias).block_until_ready(), np.asarray)

    return prepare


def opencv_library(threads: int):
    """`filter2D`, one call a channel: its own convolution of one image with one kernel."""
    import cv2
    import numpy as np

    cv2.setNumThreads(threads)
    modes = {"zeros": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101, "replicate": cv2.BORDER_REPLICATE}

    def prepare(layer: Layer, x, weight, bias) -> Prepared:
        centred = all(k % 2 and p == k // 2 for k, p in zip(layer.kernel, layer.padding, strict=True))
        if not (layer.is_depthwise and centred and layer.stride == layer.dilation == (1, 1)):
            raise Unsupported("filter2D is for one channel, stride 1, same size")
        if layer.padding_mode not in modes:
            raise Unsupported(f"filter2D has no {layer.padding_mode}")
        border = modes[layer.padding_mode]
        shifts = [0.0] * layer.out_channels if bias is None else bias.tolist()

        def call():
            y = np.empty_like(x)
            for image, result in zip(x, y, strict=True):
                for plane, kernel, target, shift in zip(image, weight, result, shifts, strict=True):
                    cv2.filter2D(plane, cv2.CV_32F, kernel[0], dst=target, delta=shift, borderType=border)
            return y

        return Prepared(call, lambda y: y)

    return prepare


LIBRARIES = {
    "portconv-numpy": portconv_numpy,
    "portconv-mlx": portconv_mlx,
    "torch": partial(torch_library, channels_last=False),
    "torch-channels-last": partial(torch_library, channels_last=True),
    "onnxruntime": onnxruntime_library,
    "openvino": openvino_library,
    "jax": jax_library,
    "opencv": opencv_library,
    "mlx": mlx_library,
}

# --- the timing


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def steady_state(call: Callable[[], Any], budget: float) -> list[float]:
    """Seconds a call, one figure for each round, within about `budget` seconds in all."""
    start = time.perf_counter()
    calls = 0
    while (spent := time.perf_counter() - start) < min(WARM_UP, budget) or calls == 0:
        call()
        calls += 1
    repeats = max(1, round(ROUND * calls / spent))
    deadline = start + budget
    rounds = []
    while len(rounds) < ROUNDS and (not rounds or time.perf_counter() < deadline):
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        rounds.append((time.perf_counter() - begin) / repeats)
    return rounds


def time_layer(prepare, layer: Layer, budget: float) -> dict:
    import reference

    x, weight, bias = reference.make_data(layer)
    start = time.perf_counter()
    prepared = prepare(layer, x, weight, bias)
    built = time.perf_counter()
    y = prepared.call()
    first = time.perf_counter() - built
    wrong = reference.check(layer, x, weight, bias, prepared.to_numpy(y))
    if wrong:
        return {"error": wrong}
    del y
    rounds = sorted(steady_state(prepared.call, budget)) if first < SLOW else [first]
    return {
        "best_ms": 1e3 * rounds[0],
        "median_ms": 1e3 * rounds[len(rounds) // 2],
        "rounds": len(rounds),
        "build_ms": 1e3 * (built - start),
        "first_ms": 1e3 * first,
        **prepared.notes(),
    }


def answer(prepare, layer: Layer, budget: float) -> dict:
    try:
        return time_layer(prepare, layer, budget)
    except Unsupported as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # noqa: BLE001  it belongs in the report, and the next layer gets its turn
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def versions() -> dict:
    """Versions of the array libraries that this process has loaded, and the BLAS that NumPy was built with."""
    import numpy as np

    names = ("portconv", "numpy", "mlx.core", "torch", "onnxruntime", "openvino", "jax", "cv2")
    found = {name: str(getattr(sys.modules[name], "__version__", "?")) for name in names if name in sys.modules}
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {**found, "blas": f"{blas.get('name')} {blas.get('version')}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds to time one layer")
    arguments = parser.parse_args()

    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(arguments.threads)))
    # The libraries print to stdout as they like; the answers keep a channel of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict) -> None:
        print(json.dumps(message), file=channel, flush=True)

    try:
        prepare = LIBRARIES[arguments.library](arguments.threads)
    except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
        send({"missing": f"{type(error).__name__}: {error}"})
        return
    send({"versions": versions()})
    for line in sys.stdin:
        send(answer(prepare, Layer.from_json(json.loads(line)), arguments.budget))


if __name__ == "__main__":
    main()
