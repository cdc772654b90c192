"""A step of a training, layer by layer: the result and the gradients of image and weight, beside PyTorch's own.

python benchmarks/gradients.py                            # ResNet-50's distinct layers, a batch of 8
python benchmarks/gradients.py --suite mobilenet_v1 --select dw --libraries numpy torch --json gradients.json

`numpy`, `torch`, `jax` and `mlx` are portconv on the arrays of these libraries, on a CPU: PyTorch's by autograd, the
others' by `conv2d_vjp`. All take turns with PyTorch's own convolution, a call each that is not timed and one that is.
The best of each counts. A ratio is PyTorch's time over portconv's: above 1, portconv wins.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace

import checkout  # noqa: F401  before portconv
import numpy as np
from tables import aligned, geometric_mean

import portconv
from portconv.bench import suites
from portconv.bench.layers import Layer
from portconv.processes.files import write_json
from portconv.processes.machine import machine

LIBRARIES = ("numpy", "torch", "jax", "mlx")
PEER = "PyTorch"
AGREEMENT = 1e-3  # of the largest element of a gradient of float32, which shows a wrong sum and no rounding

Gradients = tuple[np.ndarray, np.ndarray]
Step = Callable[[], tuple[object, object]]


def by_autograd(x, weight, dy, convolve) -> tuple[Step, Callable[..., Gradients]]:
    """A step with tensors of PyTorch, and what makes NumPy's arrays of its gradients."""
    import torch

    x, weight = (torch.from_numpy(a).requires_grad_() for a in (x, weight))
    dy = torch.from_numpy(dy)

    def step():
        x.grad = weight.grad = None
        convolve(x, weight).backward(dy)
        return x.grad, weight.grad

    return step, lambda found: tuple(a.numpy() for a in found)


def by_vjp(name: str, layer: Layer, x, weight, dy) -> tuple[Step, Callable[..., Gradients]]:
    """The same with arrays of another library."""
    library = portconv.get_backend(name)
    device = {"mlx": "cpu"}.get(name)
    x, weight, dy = (library.from_numpy(a, device=device) for a in (x, weight, dy))

    def step():
        y, vjp = portconv.conv2d_vjp(x, weight, **layer.options, wrt=("x", "weight"))
        found = vjp(dy)[:2]
        for array in (y, *found):
            library.synchronize(array)
        return found

    return step, lambda found: tuple(library.to_numpy(a) for a in found)


def contenders(layer: Layer, names: list[str]) -> dict[str, tuple[Step, Callable[..., Gradients]]]:
    """Their steps by name, PyTorch's own first."""
    import torch

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in (layer.x_shape, layer.weight_shape)]
    arrays.append(rng.standard_normal(layer.y_shape, dtype=np.float32))
    native = {key: value for key, value in layer.options.items() if key != "padding_mode"}
    found = {PEER: by_autograd(*arrays, lambda x, w: torch.nn.functional.conv2d(x, w, **native))}
    for name in names:
        if name == "torch":
            found[name] = by_autograd(*arrays, lambda x, w: portconv.conv2d(x, w, **layer.options))
        else:
            found[name] = by_vjp(name, layer, *arrays)
    return found


def measure(layer: Layer, names: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds of each, at best, after a look at whether the gradients agree."""
    steps = contenders(layer, names)
    expected: Gradients | None = None
    for name, (step, shown) in steps.items():
        found = shown(step())
        expected = expected or found
        for got, wanted in zip(found, expected, strict=True):
            if not np.abs(got - wanted).max() <= AGREEMENT * np.abs(wanted).max():
                raise SystemExit(f"{layer.id}: the gradients of {name} are not those of {PEER}")
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            step()  # threads of whoever came before still spin
            start = time.perf_counter()
            step()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[name for name in suites.SUITES if name != "filters"], default="resnet50")
    parser.add_argument("--select", default="", metavar="TEXT", help="only layers whose name has this in it")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args()
    os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(options.threads)  # XLA has no other way to say it
    import torch

    torch.set_num_threads(options.threads)
    portconv.set_num_threads(options.threads)
    layers = [
        replace(layer, batch=options.batch)
        for layer in suites.suite(options.suite)
        if options.select in layer.name and layer.padding_mode == "zeros"
    ]
    if not layers:
        parser.error(f"no layer of {options.suite} has {options.select!r} in its name")
    times = {layer.id: measure(layer, options.libraries, options.rounds) for layer in layers}
    rows = [["layer", "problem", f"{PEER} ms", *(f"{name} ms" for name in options.libraries), *options.libraries]]
    for layer in layers:
        found = times[layer.id]
        ratios = [f"{found[PEER] / found[name]:.2f}" for name in options.libraries]
        rows.append([layer.id, layer.problem, *(f"{found[name]:.2f}" for name in (PEER, *options.libraries)), *ratios])
    where = machine()
    print(f"{where['cpu']}, {where['usable_cores']} cores, {options.threads} threads, batch {options.batch}\n")
    print(aligned(rows), end="\n\n")
    for name in options.libraries:
        ratios = {layer: found[PEER] / found[name] for layer, found in times.items()}
        worst = min(ratios, key=ratios.__getitem__)
        print(
            f"{name}: geometric mean {geometric_mean(list(ratios.values())):.2f}, worst {ratios[worst]:.2f} ({worst})"
        )
    if options.json:
        write_json(options.json, {"machine": where, "batch": options.batch, "milliseconds": times})


if __name__ == "__main__":
    main()
