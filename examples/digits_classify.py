"""Read handwritten digits with the network that examples/digits_train.py trained, on every installed array library.

    pip install 'portconv[demo]'
    python examples/digits_classify.py digits.safetensors [--library numpy torch]

The network is made once, with NumPy weights; it then takes the arrays of every library. MLX is not needed. The table
shows for each back end how many of the held-out digits it reads correctly, how many it reads as the first back end
does, and its speed.
Exit status: 0; 1 if back ends disagree or one fails; 2 if the file is no good, or a package or library is missing.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from safetensors import SafetensorError, safe_open
    from sklearn.datasets import load_digits
except ImportError as error:
    needed = "rich, safetensors and scikit-learn: pip install 'portconv[demo]'"
    print(f"digits_classify.py: {error}. It needs {needed}", file=sys.stderr)
    sys.exit(2)

import portconv


class Problem(Exception):
    """What the user has to mend; the message says so."""


class Digits:
    """Two convolutions, each with ReLU and pooling, and a linear layer, for arrays of any library."""

    def __init__(self, weights):
        """Take the weights, NumPy arrays by name, or raise a `ValueError` that says what is wrong with them."""
        self.convs = [
            portconv.Conv2d(1, 16, 3, padding=1, activation="relu"),
            portconv.Conv2d(16, 32, 3, padding=1, activation="relu"),
        ]
        for i, conv in enumerate(self.convs, start=1):
            conv.load_state_dict(part(weights, f"conv{i}"))
        self.linear = part(weights, "linear")
        shapes = {name: value.shape for name, value in self.linear.items()}
        if shapes != {"weight": (10, 128), "bias": (10,)}:
            raise ValueError(f"`linear` must have a weight (10, 128) and a bias (10,), but got {shapes}.")

    def scores(self, x):
        """(N, 1, 8, 8) to (N, 10), by what every array library has."""
        backend, xp = portconv.get_backend(x), portconv.array_namespace(x)
        for conv in self.convs:
            x = portconv.max_pool2d(conv(x), 2)
        weight, bias = (backend.from_numpy(a) for a in (self.linear["weight"].T, self.linear["bias"]))
        return xp.matmul(xp.reshape(x, (x.shape[0], -1)), weight) + bias


def part(weights, prefix):
    """The weights whose names begin so."""
    return {name[len(prefix) + 1 :]: value for name, value in weights.items() if name.startswith(prefix + ".")}


def load(path):
    """Return the network, and the images and digits that it was not trained on."""
    if path.is_dir():  # the library says "No such device"
        raise Problem(f"{path}: is a directory")
    digits = load_digits()
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            about = file.metadata() or {}
        if "held_out" not in about:
            raise ValueError("it does not say which digits were held out")
        held_out = np.array(json.loads(about["held_out"]), dtype=np.int64)
        network = Digits(weights)
        images, targets = digits.images[held_out], digits.target[held_out]
        if images.ndim != 3 or not len(images):
            raise ValueError(f"`held_out` must be a list of indices, but got {about['held_out'][:40]}")
    except FileNotFoundError:
        raise Problem(f"{path}: no such file; examples/digits_train.py writes one") from None
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise Problem(f"{path}: not a safetensors file ({error})") from error
    except (ValueError, TypeError, LookupError) as error:
        raise Problem(f"{path}: not written by examples/digits_train.py ({error})") from error
    return network, (images[:, None] / 16).astype(np.float32), targets


def usable_backends(x, asked):
    """Return the names of the backends that can compute with `x`, of those asked for or all; say why another cannot."""
    names = []
    for name in asked or portconv.available_backends():
        try:
            portconv.array_namespace(portconv.get_backend(name).from_numpy(x))  # a plug-in's arrays may have none
        except Exception as error:  # each library has its own for a missing GPU
            if asked:
                raise Problem(f"--library {name}: {error}") from error
            print(f"digits_classify.py: {name} is installed, but not usable here: {one_line(error)}", file=sys.stderr)
        else:
            names.append(name)
    return names


def classify(network, images, name, repeats=5, budget_seconds=0.5):
    """Return the digits that a back end reads, and its images per second at best."""
    backend = portconv.get_backend(name)
    x = backend.from_numpy(images)
    backend.synchronize(network.scores(x))  # warm-up: packs the weights, compiles what the library compiles
    best, started = math.inf, time.perf_counter()
    for _ in range(repeats):
        begin = time.perf_counter()
        scores = network.scores(x)
        backend.synchronize(scores)  # libraries with lazy or asynchronous execution have done nothing before this
        end = time.perf_counter()
        best = min(best, end - begin)
        if end - started > budget_seconds:
            break
    return np.argmax(backend.to_numpy(scores), axis=1), len(images) / best


def make_table(rows):
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("backend", overflow="fold")
    for heading in ("accuracy", "agreement", "images/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, accuracy, agreement, speed in rows:
        style = None if agreement == 1 else "bold red"
        table.add_row(name, f"{accuracy:.2%}", f"{agreement:.2%}", f"{speed:,.0f}", style=style)
    return table


def one_line(error):
    return " ".join(str(error).split())


def run(path, libraries):
    """Return whether every back end reads every digit alike."""
    network, images, targets = load(path)
    rows, failures, first = [], [], None
    for name in usable_backends(images, libraries):
        try:
            found, speed = classify(network, images, name)
        except Exception as error:  # noqa: BLE001 - one library's failure must not hide the others' results
            failures.append(f"{name}: {type(error).__name__}: {one_line(error)}")
            continue
        first = found if first is None else first
        rows.append((name, np.mean(found == targets), np.mean(found == first), speed))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(f"{path}: {len(images)} digits that it was not trained on", markup=False, soft_wrap=True)
    console.print(make_table(rows))
    for failure in failures:
        print(f"digits_classify.py: {failure}", file=sys.stderr)
    return not failures and all(agreement == 1 for _, _, agreement, _ in rows)


def main():
    parser = argparse.ArgumentParser(description="Read handwritten digits on every installed array library.")
    parser.add_argument("file", type=Path, metavar="FILE", help="what digits_train.py wrote")
    parser.add_argument(
        "--library", nargs="+", default=(), metavar="NAME", help="numpy, mlx, torch, jax, ... (default: all installed)"
    )
    arguments = parser.parse_args()
    try:
        good = run(arguments.file.expanduser(), arguments.library)
    except Problem as problem:
        print(f"digits_classify.py: {one_line(problem)}", file=sys.stderr)
        return 2
    if not good:
        print("digits_classify.py: a back end failed, or reads digits differently: see the table", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
