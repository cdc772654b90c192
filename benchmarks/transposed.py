"""Transposed convolutions of decoders, layer by layer, beside PyTorch's, ONNX Runtime's and XLA's.

python benchmarks/transposed.py
python benchmarks/transposed.py --libraries numpy torch --json transposed.json

`numpy`, `torch`, `jax` and `mlx` are portconv on the arrays of these libraries, on a CPU. All take turns with the
others' own transposed convolutions, as far as they are installed: a call each that is not timed and one that is. The
best of each counts. No weight can change, so that packed ones are kept, but for MLX. A ratio is the time of the best of
the others over portconv's: above 1, portconv wins.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import checkout  # noqa: F401  before portconv
import numpy as np
from tables import aligned, geometric_mean

import portconv
from portconv.processes.files import write_json
from portconv.processes.machine import machine

LIBRARIES = ("numpy", "torch", "jax", "mlx")
THEIRS = "best other"
AGREEMENT = 1e-3  # of the largest element of a result of float32, which shows a wrong sum and no rounding


class Layer(NamedTuple):
    """A layer of a decoder, of one image: with the padding that makes the result as large as the strides say."""

    in_channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int

    @property
    def padding(self) -> int:
        return max(0, (self.kernel - self.stride) // 2)

    def __str__(self) -> str:
        return (
            f"{self.in_channels} to {self.out_channels}, {self.size}x{self.size}, kernel {self.kernel}, "
            f"stride {self.stride}"
        )


LAYERS = [
    Layer(*sizes, kernel, stride)
    for stride in (2, 4)
    for sizes in ((256, 128, 32), (64, 32, 128))
    for kernel in (2, 3, 4)
]


def peers(layer: Layer, x: np.ndarray, weight: np.ndarray, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Calls of those that are installed, by name."""
    found = {}
    if importlib.util.find_spec("torch"):
        import torch

        tensors = torch.from_numpy(x), torch.from_numpy(weight.copy())
        arguments = {"stride": layer.stride, "padding": layer.padding}
        found["PyTorch"] = lambda: torch.nn.functional.conv_transpose2d(*tensors, **arguments).numpy()
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        found["ONNX Runtime"] = onnx_runtime(layer, x, weight, threads)
    if importlib.util.find_spec("jax"):
        import jax

        turned = jax.numpy.asarray(np.ascontiguousarray(weight[:, :, ::-1, ::-1].swapaxes(0, 1)))
        image, side = jax.numpy.asarray(x), layer.kernel - 1 - layer.padding
        convolve = jax.jit(
            lambda x: jax.lax.conv_general_dilated(x, turned, (1, 1), [(side, side)] * 2, (layer.stride,) * 2)
        )
        found["XLA"] = lambda: np.asarray(convolve(image))
    return found


def onnx_runtime(layer: Layer, x: np.ndarray, weight: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    import onnx
    import onnxruntime
    from onnx import helper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the others take turns with it
    strides, pads = [layer.stride] * 2, [layer.padding] * 4
    node = helper.make_node("ConvTranspose", ["x", "weight"], ["y"], strides=strides, pads=pads)
    known = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in "xy"]
    graph = helper.make_graph([node], "layer", known[:1], known[1:], [onnx.numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def contenders(layer: Layer, names: list[str], threads: int) -> tuple[list[str], dict[str, Callable[[], np.ndarray]]]:
    """The names of the others, and calls by name; each gives its result to NumPy, without a copy where it can."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, layer.in_channels, layer.size, layer.size), dtype=np.float32)
    weight = rng.standard_normal((layer.in_channels, layer.out_channels, layer.kernel, layer.kernel), dtype=np.float32)
    weight = np.frombuffer(weight.tobytes(), np.float32).reshape(weight.shape)

    def of(name: str) -> Callable[[], np.ndarray]:
        library = portconv.get_backend(name)
        device = {"mlx": "cpu"}.get(name)
        given = [library.from_numpy(a, device=device) for a in (x, weight)]
        return lambda: library.to_numpy(portconv.conv_transpose2d(*given, stride=layer.stride, padding=layer.padding))

    theirs = peers(layer, x, weight, threads)
    return list(theirs), theirs | {name: of(name) for name in names}


def measure(layer: Layer, names: list[str], rounds: int, threads: int) -> dict[str, float]:
    """Milliseconds of each, at best, after a look at whether the results agree; and those of the best of the others."""
    theirs, calls = contenders(layer, names, threads)
    expected = calls[theirs[0]]()
    for name, call in calls.items():
        if not np.abs(call() - expected).max() <= AGREEMENT * np.abs(expected).max():
            raise SystemExit(f"{layer}: the result of {name} is not that of {theirs[0]}")
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # threads of whoever came before still spin
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best | {THEIRS: min(best[name] for name in theirs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args()
    os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(options.threads)  # XLA has no other way to say it
    import torch

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    portconv.set_num_threads(options.threads)
    times = {str(layer): measure(layer, options.libraries, options.rounds, options.threads) for layer in LAYERS}
    first = next(iter(times.values()))
    shown = [name for name in first if name != THEIRS]
    rows = [["layer", *(f"{name} ms" for name in shown), *options.libraries]]
    for layer, found in times.items():
        ratios = [f"{found[THEIRS] / found[name]:.2f}" for name in options.libraries]
        rows.append([layer, *(f"{found[name]:.2f}" for name in shown), *ratios])
    where = machine()
    print(f"{where['cpu']}, {where['usable_cores']} cores, {options.threads} threads\n")
    print(aligned(rows), end="\n\n")
    for name in options.libraries:
        shares = {layer: found[THEIRS] / found[name] for layer, found in times.items()}
        worst = min(shares, key=shares.__getitem__)
        print(
            f"{name}: geometric mean {geometric_mean(list(shares.values())):.2f}, worst {shares[worst]:.2f} ({worst})"
        )
    if options.json:
        write_json(options.json, {"machine": where, "milliseconds": times})


if __name__ == "__main__":
    main()
