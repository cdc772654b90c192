"""The libraries that a user could have instead, each timed in a process of its own as its users would call it.

A library is a function of the thread count that imports it and returns what prepares layers. The environment has the
thread counts already: most libraries read them only once. What is not installed says so when its worker starts.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..processes.serve import serve, versions
from ..processes.session import Target
from .layers import Layer
from .reference import separable_taps
from .runner import handle_task
from .timing import Prepare, Prepared, Unsupported

__all__ = ["NETWORK_PEERS", "PEERS", "main", "target_of"]

# The words of ONNX, JAX and others for the modes of padding.
_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _mlx(_threads: int) -> Prepare:
    """`mx.conv2d` as MLX likes it best: NHWC input and OHWI weight, both contiguous. It has no setting for threads."""
    mx = importlib.import_module("mlx.core")
    mx.set_default_device(mx.cpu)
    modes = {"zeros": None, "replicate": "edge"}

    def prepare(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        if layer.padding_mode not in modes:
            raise Unsupported(f"mx.pad has no {layer.padding_mode}")
        mode = modes[layer.padding_mode]
        x = mx.array(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        weight = mx.array(np.ascontiguousarray(weight.transpose(0, 2, 3, 1)))
        bias = None if bias is None else mx.array(bias)
        mx.eval(x, weight)
        itself = mode is None and len(layer.padding) == 2  # whether the convolution pads
        padding = layer.padding if itself else 0
        pairs = ((0, 0), *layer.sides, (0, 0))

        def call() -> Any:
            padded = x if itself else mx.pad(x, pairs, mode=mode or "constant")
            y = mx.conv2d(padded, weight, layer.stride, padding, layer.dilation, layer.groups)
            if bias is not None:
                y = y + bias
            mx.eval(y)
            return y

        return Prepared(call, lambda y: np.array(y).transpose(0, 3, 1, 2))

    return prepare


def _torch(threads: int, channels_last: bool) -> Prepare:
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def prepare(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        if len(layer.padding) == 4:
            raise Unsupported("torch.nn.Conv2d pads opposite sides alike")
        conv = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, bias=layer.bias, **layer.options)
        conv.weight.copy_(torch.from_numpy(weight))
        if layer.bias:
            conv.bias.copy_(torch.from_numpy(bias))
        conv = conv.eval().to(memory_format=memory_format)
        tensor = torch.from_numpy(x).contiguous(memory_format=memory_format)
        return Prepared(lambda: conv(tensor), lambda y: y.numpy())

    return prepare


def _onnxruntime(threads: int) -> Prepare:
    onnx = importlib.import_module("onnx")
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    if hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        # Each layer is a session here. With pools of their own, the threads of one would spin against those of the
        # next, and ResNet-50 would take 1000 ms in the place of 45; a network in one session has one pool, too.
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def prepare(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        tensors = [to_tensor(weight, "weight")]
        inputs = ["x", "weight"]
        if bias is not None:
            tensors.append(to_tensor(bias, "bias"))
            inputs.append("bias")
        nodes = []
        (top, bottom), (left, right) = layer.sides
        sides = [top, left, bottom, right]
        if layer.padding_mode != "zeros":
            pads = np.array([0, 0, top, left, 0, 0, bottom, right], dtype=np.int64)
            tensors.append(to_tensor(pads, "pads"))
            nodes.append(helper.make_node("Pad", ["x", "pads"], ["padded"], mode=_MODES[layer.padding_mode]))
            inputs[0] = "padded"
            sides = [0] * 4
        nodes.append(
            helper.make_node(
                "Conv",
                inputs,
                ["y"],
                strides=layer.stride,
                pads=sides,
                dilations=layer.dilation,
                group=layer.groups,
            )
        )
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, layer.x_shape)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, layer.y_shape)],
            tensors,
        )
        # Not the newest versions: onnx may be ahead of what the installed runtime reads.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Prepared(lambda: session.run(None, {"x": x})[0], lambda y: y)

    return prepare


def _openvino(threads: int) -> Prepare:
    # Its telemetry would start a process of its own and report over the network; without that package it has a stub.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # which is how Python writes "not there"
    openvino = importlib.import_module("openvino")
    ops = openvino.opset13
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else CPUs with bfloat16 instructions may use them
    }
    modes = {"reflect": "reflect", "replicate": "edge"}  # and no circular

    def prepare(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        source = value = ops.parameter(layer.x_shape, np.float32)
        before, after = zip(*layer.sides, strict=True)
        if layer.padding_mode != "zeros":
            if layer.padding_mode not in modes:
                raise Unsupported(f"its Pad has no {layer.padding_mode}")
            pads = (np.array([0, 0, *padding]) for padding in (before, after))
            value = ops.pad(value, *pads, modes[layer.padding_mode])
            before = after = (0, 0)
        if layer.groups == 1:
            value = ops.convolution(value, ops.constant(weight), layer.stride, before, after, layer.dilation)
        else:
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            value = ops.group_convolution(value, ops.constant(grouped), layer.stride, before, after, layer.dilation)
        if bias is not None:
            value = ops.add(value, ops.constant(bias.reshape(1, -1, 1, 1)))
        model = openvino.Model([value], [source], "layer")
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        call = partial(request.infer, [x], share_inputs=True, share_outputs=True)
        return Prepared(call, lambda results: results[0])

    return prepare


def _jax(_threads: int) -> Prepare:
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax = importlib.import_module("jax")
    jnp = jax.numpy

    def prepare(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        pairs = list(layer.sides)

        def conv(x: Any, weight: Any, bias: Any) -> Any:
            padding = pairs
            if layer.padding_mode != "zeros":
                x = jnp.pad(x, [(0, 0), (0, 0), *pairs], mode=_MODES[layer.padding_mode])
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
        compiled = jax.jit(conv)
        return Prepared(lambda: compiled(x, weight, bias).block_until_ready(), np.asarray)

    return prepare


def _opencv(threads: int, separable: bool) -> Prepare:
    """One call a channel: `filter2D` with the whole kernel, or `sepFilter2D` where it is a column times a row."""
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(threads)
    modes = {"zeros": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101, "replicate": cv2.BORDER_REPLICATE}

    def prepare(layer: Layer, x: Any, weight: Any, bias: Any) -> Prepared:
        centred = all(k % 2 and p == (k // 2, k // 2) for k, p in zip(layer.kernel, layer.sides, strict=True))
        if not (layer.is_depthwise and centred and layer.stride == layer.dilation == (1, 1)):
            raise Unsupported("filter2D is for one channel, stride 1, same size")
        if layer.padding_mode not in modes:
            raise Unsupported(f"filter2D has no {layer.padding_mode}")
        factors = separable_taps(layer) if separable else None
        if separable and factors is None:
            raise Unsupported("the kernel is not separable")
        border = modes[layer.padding_mode]
        shifts = [0.0] * layer.out_channels if bias is None else bias.tolist()

        def filtered(plane: Any, kernel: Any, target: Any, shift: float) -> None:
            if factors is None:
                cv2.filter2D(plane, cv2.CV_32F, kernel[0], dst=target, delta=shift, borderType=border)
            else:
                column, row = factors
                cv2.sepFilter2D(plane, cv2.CV_32F, row, column, dst=target, delta=shift, borderType=border)

        def call() -> Any:
            y = np.empty_like(x)
            for image, result in zip(x, y, strict=True):
                for plane, kernel, target, shift in zip(image, weight, result, shifts, strict=True):
                    filtered(plane, kernel, target, shift)
            return y

        return Prepared(call, lambda y: y)

    return prepare


PEERS: dict[str, Callable[[int], Prepare]] = {
    "torch": partial(_torch, channels_last=False),
    "torch-channels-last": partial(_torch, channels_last=True),
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "jax": _jax,
    "opencv": partial(_opencv, separable=False),
    "opencv-separable": partial(_opencv, separable=True),
    "mlx": _mlx,
}


# OpenCV has no convolution of several channels.
NETWORK_PEERS = tuple(name for name in PEERS if not name.startswith("opencv"))


def target_of(peer: str) -> Target:
    """The worker for a peer."""
    return Target(peer, "portconv.bench.peers", (peer,))


def _with_notes(prepare: Prepare, layer: Layer, *data: Any) -> Prepared:
    """A layer that says what ran, as portconv's do."""
    return replace(prepare(layer, *data), notes=lambda: {"engine": "native", "tier": "native", "device": "cpu"})


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=PEERS)
    library = parser.parse_args().library
    prepare: Prepare | None = None

    def hello() -> dict[str, Any]:
        nonlocal prepare
        try:
            prepare = PEERS[library](int(os.environ["OMP_NUM_THREADS"]))
        except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
            return {"missing": f"{type(error).__name__}: {error}"}
        return {"versions": versions()}

    def prepared(_engine: str, _device: str) -> Prepare:
        assert prepare is not None  # else `serve` has ended after the hello
        return partial(_with_notes, prepare)

    serve(hello, lambda message: handle_task(prepared, message))
