"""Whole networks from ONNX files by `portconv.onnx`, on the arrays of every library, beside ONNX Runtime.

python benchmarks/onnx_files.py detector.onnx 1 3 416 640
python benchmarks/onnx_files.py classifier.onnx 1 3 224 224 --libraries numpy mlx --seconds 4
PORTCONV_JIT=0 python benchmarks/onnx_files.py classifier.onnx 1 3 224 224

All take turns, some calls each, with a rest in between in which the threads of the one before fall asleep. The best
call of each counts. A ratio is portconv's time over ONNX Runtime's: below 1, portconv wins. The largest difference is
relative to the largest value of ONNX Runtime's outputs.
"""

from __future__ import annotations

import argparse
import time

import checkout  # noqa: F401  before portconv
import numpy as np
import onnxruntime
from tables import aligned

import portconv
import portconv.onnx

CALLS = 4  # in a turn
REST = 0.05  # seconds


def runtime(path, image, threads):
    """A call of ONNX Runtime's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})[0]


def ours(path, image, library):
    """A call of portconv's, whose result is there when it returns."""
    backend, network = portconv.get_backend(library), portconv.onnx.load(path)
    x = backend.from_numpy(image, device="cpu")

    def call():
        y = network(x)
        y = y[0] if isinstance(y, tuple) else y
        backend.synchronize(y)
        return y

    return call, backend.to_numpy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("shape", type=int, nargs=4, help="of the image: N C H W")
    parser.add_argument("--libraries", nargs="+", default=["numpy"], choices=["numpy", "mlx", "torch", "jax"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    portconv.set_num_threads(options.threads)
    if "mlx" in options.libraries:
        import mlx.core as mx

        mx.set_default_device(mx.cpu)
    image = np.random.default_rng(0).random(options.shape, np.float32)
    calls = {"ONNX Runtime": runtime(options.file, image, options.threads)}
    expected = calls["ONNX Runtime"]()
    rows = [["arrays of", "ms", "ONNX Runtime's ms", "ratio", "largest difference"]]
    differences = {}
    for library in options.libraries:
        calls[library], to_numpy = ours(options.file, image, library)
        differences[library] = np.abs(to_numpy(calls[library]()) - expected).max() / np.abs(expected).max()
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            time.sleep(REST)
            for _ in range(CALLS):
                before = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - before)
    other = best["ONNX Runtime"]
    for name in options.libraries:
        ratio = best[name] / other
        rows.append([name, f"{best[name] * 1e3:.2f}", f"{other * 1e3:.2f}", f"{ratio:.2f}", f"{differences[name]:.1e}"])
    print(aligned(rows))


if __name__ == "__main__":
    main()
