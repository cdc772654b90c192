"""Transposed convolutions of decoders, layer by layer, beside PyTorch's own.

python benchmarks/transposed.py
python benchmarks/transposed.py --libraries numpy torch --json transposed.json

`numpy`, `torch`, `jax` and `mlx` are portconv on the arrays of these libraries, on a CPU. All take turns with PyTorch's
own transposed convolution, a call each that is not timed and one that is. The best of each counts. No weight can
change, so that packed ones are kept, but for MLX. A ratio is PyTorch's time over portconv's: above 1, portconv wins.
"""

from __future__ import annotations

import argparse
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
PEER = "PyTorch"
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


def contenders(layer: Layer, names: list[str]) -> dict[str, Callable[[], np.ndarray]]:
    """Calls by name, PyTorch's own first; each gives its result to NumPy, without a copy where it can."""
    import torch

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, layer.in_channels, layer.size, layer.size), dtype=np.float32)
    weight = rng.standard_normal((layer.in_channels, layer.out_channels, layer.kernel, layer.kernel), dtype=np.float32)
    weight = np.frombuffer(weight.tobytes(), np.float32).reshape(weight.shape)
    arguments = {"stride": layer.stride, "padding": layer.padding}
    tensors = torch.from_numpy(x), torch.from_numpy(weight.copy())

    def of(name: str) -> Callable[[], np.ndarray]:
        library = portconv.get_backend(name)
        device = {"mlx": "cpu"}.get(name)
        given = [library.from_numpy(a, device=device) for a in (x, weight)]
        return lambda: library.to_numpy(portconv.conv_transpose2d(*given, **arguments))

    own = {PEER: lambda: torch.nn.functional.conv_transpose2d(*tensors, **arguments).numpy()}
    return own | {name: of(name) for name in names}


def measure(layer: Layer, names: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds of each, at best, after a look at whether the results agree."""
    calls = contenders(layer, names)
    expected = calls[PEER]()
    for name, call in calls.items():
        if not np.abs(call() - expected).max() <= AGREEMENT * np.abs(expected).max():
            raise SystemExit(f"{layer}: the result of {name} is not that of {PEER}")
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # threads of whoever came before still spin
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


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
    times = {str(layer): measure(layer, options.libraries, options.rounds) for layer in LAYERS}
    rows = [["layer", f"{PEER} ms", *(f"{name} ms" for name in options.libraries), *options.libraries]]
    for layer, found in times.items():
        ratios = [f"{found[PEER] / found[name]:.2f}" for name in options.libraries]
        rows.append([layer, *(f"{found[name]:.2f}" for name in (PEER, *options.libraries)), *ratios])
    where = machine()
    print(f"{where['cpu']}, {where['usable_cores']} cores, {options.threads} threads\n")
    print(aligned(rows), end="\n\n")
    for name in options.libraries:
        shares = {layer: found[PEER] / found[name] for layer, found in times.items()}
        worst = min(shares, key=shares.__getitem__)
        print(
            f"{name}: geometric mean {geometric_mean(list(shares.values())):.2f}, worst {shares[worst]:.2f} ({worst})"
        )
    if options.json:
        write_json(options.json, {"machine": where, "milliseconds": times})


if __name__ == "__main__":
    main()
