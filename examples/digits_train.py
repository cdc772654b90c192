"""Train a small network of portconv layers to read handwritten digits: with MLX, NumPy, PyTorch or JAX.

    pip install 'portconv[mlx,demo]'
    python examples/digits_train.py digits.safetensors [--library numpy] [--seed 0] [--epochs 15]

With MLX the layers are portconv.mlx's, and MLX differentiates. With NumPy, PyTorch, JAX and the like they are
`portconv.Conv2d`, whose `vjp` gives the gradients; the rest of the network is written out here, in the functions of the
array API. The digits are scikit-learn's, 1797 images of 8x8 pixels; a
fifth of them is held out to measure the accuracy. The file keeps the weights and which digits were held out;
examples/digits_classify.py reads it, with any library.
Exit status: 0; 2 if an argument or the file is no good, or a library is missing.
"""

import argparse
import json
import math
import os
import sys
import time
from functools import partial
from pathlib import Path

try:
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from safetensors import SafetensorError
    from safetensors.numpy import save_file
    from sklearn.datasets import load_digits
except ImportError as error:
    needed = "rich, safetensors and scikit-learn: pip install 'portconv[demo]'"
    print(f"digits_train.py: {error}. It needs {needed}", file=sys.stderr)
    sys.exit(2)

import portconv

BATCH = 48
RATE = 3e-3  # of learning, at first; it falls to nothing along half a cosine
MAX_SEED = 2**63 - 1


class Problem(Exception):
    """What the user has to mend; the message says so."""


# --- the network in any library ---------------------------------------------------------------------------------------


class Digits:
    """Two convolutions, each with ReLU and pooling, and a linear layer: (N, 1, 8, 8) to a score for each digit.

    It is of the functions of the array API alone, on the arrays of one library.
    """

    def __init__(self, backend, seed, steps):
        rng = np.random.default_rng(seed)
        self.convs = [
            portconv.Conv2d(1, 16, 3, padding=1, activation="relu", rng=rng),
            portconv.Conv2d(16, 32, 3, padding=1, activation="relu", rng=rng),
        ]
        for conv in self.convs:
            conv.to(backend)
        weight = rng.uniform(-1, 1, (10, 128)).astype(np.float32) / np.float32(math.sqrt(128))
        self.weight, self.bias = backend.from_numpy(weight), backend.from_numpy(np.zeros(10, np.float32))
        self.backend, self.xp = backend, portconv.array_namespace(self.bias)
        self.adam, self.steps = Adam(), steps

    def scores(self, x):
        """Of NumPy's images, as NumPy's array."""
        x = self.backend.from_numpy(x)
        for conv in self.convs:
            x = portconv.max_pool2d(conv(x), 2)
        return self.backend.to_numpy(self.linear(self.xp.reshape(x, (x.shape[0], -1))))

    def linear(self, features):
        return features @ self.xp.matrix_transpose(self.weight) + self.bias

    def step(self, x, targets):
        """Learn from a batch of NumPy's; returns its mean loss."""
        xp, count, backward = self.xp, len(x), []
        x, wanted = self.backend.from_numpy(x), self.backend.from_numpy(np.eye(10, dtype=np.float32)[targets])
        for i, conv in enumerate(self.convs):
            # nobody asks for the gradient of the first image
            y, vjp = conv.vjp(x, wrt=("weight", "bias") if i == 0 else None)
            x = portconv.max_pool2d(y, 2)
            backward.append((y, x, vjp))
        features = xp.reshape(x, (count, -1))
        scores = self.linear(features)
        shares = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
        shares = shares / xp.sum(shares, axis=1, keepdims=True)
        loss = -xp.sum(xp.log(xp.sum(shares * wanted, axis=1))) / count

        d_scores = (shares - wanted) / count
        found = {
            "linear.weight": xp.matrix_transpose(d_scores) @ features,
            "linear.bias": xp.sum(d_scores, axis=0),
        }
        dx = xp.reshape(d_scores @ self.weight, x.shape)
        for i, (y, pooled, vjp) in reversed(list(enumerate(backward, start=1))):
            dx, found[f"conv{i}.weight"], found[f"conv{i}.bias"] = vjp(max_pool_gradient(y, pooled, dx))
        rate = RATE * (1 + math.cos(math.pi * self.adam.count / self.steps)) / 2
        self.take({name: a + self.adam.change(xp, name, found[name], rate) for name, a in self.parameters().items()})
        self.adam.count += 1
        return float(loss)

    def parameters(self):
        """By name."""
        layers = {f"conv{i}.{name}": a for i, conv in enumerate(self.convs, 1) for name, a in conv.named_parameters()}
        return {**layers, "linear.weight": self.weight, "linear.bias": self.bias}

    def weights(self):
        """By name, as NumPy arrays."""
        return {name: self.backend.to_numpy(value) for name, value in self.parameters().items()}

    def take(self, parameters):
        for i, conv in enumerate(self.convs, start=1):
            conv.weight, conv.bias = parameters[f"conv{i}.weight"], parameters[f"conv{i}.bias"]
        self.weight, self.bias = parameters["linear.weight"], parameters["linear.bias"]


class Adam:
    """Kingma & Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980."""

    def __init__(self, decay=(0.9, 0.999), small=1e-8):
        self.decay, self.small, self.means, self.count = decay, small, {}, 0

    def change(self, xp, name, gradient, rate):
        """What to add to a parameter."""
        one, two = self.decay
        mean, square = self.means.get(name, (0, 0))
        mean, square = one * mean + (1 - one) * gradient, two * square + (1 - two) * gradient**2
        self.means[name] = mean, square
        first, second = mean / (1 - one ** (self.count + 1)), square / (1 - two ** (self.count + 1))
        return -rate * first / (xp.sqrt(second) + self.small)


def max_pool_gradient(y, pooled, dx):
    """The gradient of `y` before pooling: that of a square goes to its largest pixels."""
    xp = portconv.array_namespace(y)
    n, channels, height, width = y.shape
    squares = xp.reshape(y, (n, channels, height // 2, 2, width // 2, 2))
    largest = squares == pooled[:, :, :, None, :, None]
    spread = xp.where(largest, dx[:, :, :, None, :, None], xp.zeros_like(squares))
    return xp.reshape(spread, y.shape)


# --- the network in MLX -----------------------------------------------------------------------------------------------


def mlx_digits(seed, steps):
    """The same network of MLX's layers; MLX differentiates it, and compiles a step of its training."""
    try:
        import mlx.core as mx
        import mlx.nn as nn
        import mlx.optimizers as optim
        from mlx.utils import tree_flatten
    except ImportError as error:
        raise Problem(f"{error}. Install MLX: pip install 'portconv[mlx,demo]', or use --library numpy") from error
    import portconv.mlx

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = portconv.mlx.Conv2d(1, 16, 3, padding=1, activation="relu")
            self.conv2 = portconv.mlx.Conv2d(16, 32, 3, padding=1, activation="relu")
            self.linear = nn.Linear(32 * 2 * 2, 10)

        def __call__(self, x):
            for conv in (self.conv1, self.conv2):
                x = portconv.max_pool2d(conv(x), 2)
            return self.linear(x.reshape(x.shape[0], -1))

    class MlxDigits:
        def __init__(self):
            mx.random.seed(seed)
            network = self.network = Network()
            optimizer = optim.Adam(learning_rate=optim.cosine_decay(RATE, steps))
            self.state = [network.state, optimizer.state]
            loss_and_gradients = nn.value_and_grad(
                network, lambda x, y: nn.losses.cross_entropy(network(x), y, reduction="mean")
            )

            @partial(mx.compile, inputs=self.state, outputs=self.state)
            def learn(x, y):
                loss, gradients = loss_and_gradients(x, y)
                optimizer.update(network, gradients)
                return loss

            self.learn = learn

        def scores(self, x):
            self.network.eval()
            found = np.array(self.network(mx.array(x)))
            self.network.train()
            return found

        def step(self, x, targets):
            loss = self.learn(mx.array(x), mx.array(targets))
            mx.eval(loss, self.state)
            return loss.item()

        def weights(self):
            return {name: np.array(value) for name, value in tree_flatten(self.network.parameters())}

    return MlxDigits()


def made(library, seed, steps):
    """The network in a library that can be used here, for so many steps of training."""
    if library == "mlx":
        return mlx_digits(seed, steps)
    if library == "dask":
        raise Problem(
            "--library dask: its arrays are computed at the end, and a step of training needs those before it"
        )
    try:
        return Digits(portconv.get_backend(library), seed, steps)
    except Exception as error:  # each library has its own for a missing GPU
        raise Problem(f"--library {library}: {' '.join(str(error).split())}") from error


# --- the training -----------------------------------------------------------------------------------------------------


def load(rng):
    """Return images (N, 1, 8, 8) from 0 to 1, their digits, and the indices to train on and to hold out."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    order = rng.permutation(len(images))
    held_out = len(images) // 5
    return images, digits.target.astype(np.int32), order[held_out:], order[:held_out]


def batches(count):
    """Of one size, of so many images; the rest waits for the next pass."""
    return count // BATCH


def train(network, images, targets, epochs, rng, after_epoch):
    """Train on the images in random order, in batches of one size; `after_epoch` is given each epoch's mean loss."""
    count = batches(len(images))
    for _ in range(epochs):
        parts = np.array_split(rng.permutation(len(images))[: count * BATCH], count)
        losses = [network.step(images[indices], targets[indices]) for indices in parts]
        after_epoch(sum(losses) / count)


def check_output(path):
    """Find out before the work starts, rather than after it."""
    if path.suffix != ".safetensors":
        raise Problem(f"{path}: the name must end with .safetensors")
    if path.exists() and not path.is_file():
        raise Problem(f"{path}: exists and is not a file")
    if not path.parent.is_dir():
        raise Problem(f"{path}: no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise Problem(f"{path}: no permission to write in {path.parent}")


def save(weights, held_out, path):
    """Write the whole file or nothing: whoever looks at `path` meanwhile sees the old one."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.safetensors")
    try:
        save_file(weights, temporary, {"held_out": json.dumps(held_out.tolist())})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise Problem(f"{path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--library", default="mlx", metavar="NAME", help="an installed one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and split (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the digits (default: %(default)s)")
    arguments = parser.parse_args()
    if not 0 <= arguments.seed <= MAX_SEED:
        parser.error(f"--seed must be from 0 to {MAX_SEED}, but got {arguments.seed}")
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, but got {arguments.epochs}")
    return arguments


def run(arguments):
    path = arguments.file.expanduser()
    check_output(path)
    rng = np.random.default_rng(arguments.seed)
    images, targets, seen, held_out = load(rng)
    network = made(arguments.library, arguments.seed, arguments.epochs * batches(len(seen)))
    started = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("training", total=arguments.epochs, loss="")
        train(
            network, images[seen], targets[seen], arguments.epochs, rng,
            lambda loss: progress.update(task, advance=1, loss=f"loss {loss:.4f}"),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    save({name: np.ascontiguousarray(value) for name, value in network.weights().items()}, held_out, path)
    share = np.mean(np.argmax(network.scores(images[held_out]), axis=1) == targets[held_out])
    print(f"accuracy on {len(held_out)} held-out digits: {share:.2%} after {seconds:.1f} s of training")
    print(f"weights: {path}")


def main():
    try:
        run(parse_arguments())
    except Problem as problem:
        print(f"digits_train.py: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
