"""Train a small network of portconv layers to read handwritten digits: with MLX, or in NumPy alone.

    python examples/digits_train.py digits.safetensors [--library numpy] [--seed 0] [--epochs 15]

With MLX the layers are portconv.mlx's, and MLX differentiates. In NumPy they are `portconv.Conv2d`, whose `vjp` gives
the gradients; the rest of the network is written out here. The digits are scikit-learn's, 1797 images of 8x8 pixels; a
fifth of them is held out to measure the accuracy. The file keeps the weights and which digits were held out;
examples/digits_classify.py reads it, with any library.
Exit status: 0; 2 if an argument or the file is no good.
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
    sys.exit(f"digits_train.py: {error}. It needs rich, safetensors and scikit-learn: pip install 'portconv[demo]'")

import portconv

BATCH = 48
RATE = 3e-3  # of learning, at first; it falls to nothing along half a cosine
MAX_SEED = 2**63 - 1


class FileProblem(Exception):
    """A file that cannot be written; the message is meant for the user."""


# --- the network in NumPy ---------------------------------------------------------------------------------------------


class NumpyDigits:
    """Two convolutions, each with ReLU and pooling, and a linear layer: (N, 1, 8, 8) to a score for each digit."""

    def __init__(self, seed, steps):
        rng = np.random.default_rng(seed)
        self.convs = [
            portconv.Conv2d(1, 16, 3, padding=1, activation="relu", rng=rng),
            portconv.Conv2d(16, 32, 3, padding=1, activation="relu", rng=rng),
        ]
        self.weight = rng.uniform(-1, 1, (10, 128)).astype(np.float32) / np.float32(math.sqrt(128))
        self.bias = np.zeros(10, np.float32)
        self.adam, self.steps = Adam(), steps

    def scores(self, x):
        for conv in self.convs:
            x = portconv.max_pool2d(conv(x), 2)
        return x.reshape(len(x), -1) @ self.weight.T + self.bias

    def step(self, x, targets):
        """Learn from a batch; returns its mean loss."""
        backward = []
        for i, conv in enumerate(self.convs):
            # nobody asks for the gradient of the first image
            y, vjp = conv.vjp(x, wrt=("weight", "bias") if i == 0 else None)
            x = portconv.max_pool2d(y, 2)
            backward.append((y, x, vjp))
        features = x.reshape(len(x), -1)
        scores = features @ self.weight.T + self.bias
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        loss = -np.log(shares[np.arange(len(x)), targets]).mean()

        d_scores = shares
        d_scores[np.arange(len(x)), targets] -= 1
        d_scores /= len(x)
        found = {"linear.weight": d_scores.T @ features, "linear.bias": d_scores.sum(axis=0)}
        dx = (d_scores @ self.weight).reshape(x.shape)
        for i, (y, pooled, vjp) in reversed(list(enumerate(backward, start=1))):
            dx, found[f"conv{i}.weight"], found[f"conv{i}.bias"] = vjp(max_pool_gradient(y, pooled, dx))
        rate = RATE * (1 + math.cos(math.pi * self.adam.count / self.steps)) / 2
        self.take({name: value + self.adam.change(name, found[name], rate) for name, value in self.weights().items()})
        self.adam.count += 1
        return loss

    def weights(self):
        """By name, as NumPy arrays."""
        layers = {f"conv{i}.{name}": a for i, conv in enumerate(self.convs, 1) for name, a in conv.named_parameters()}
        return {**layers, "linear.weight": self.weight, "linear.bias": self.bias}

    def take(self, weights):
        for i, conv in enumerate(self.convs, start=1):
            conv.weight, conv.bias = weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]
        self.weight, self.bias = weights["linear.weight"], weights["linear.bias"]


class Adam:
    """Kingma & Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980."""

    def __init__(self, decay=(0.9, 0.999), small=1e-8):
        self.decay, self.small, self.means, self.count = decay, small, {}, 0

    def change(self, name, gradient, rate):
        """What to add to a parameter."""
        one, two = self.decay
        mean, square = self.means.get(name, (0, 0))
        mean, square = one * mean + (1 - one) * gradient, two * square + (1 - two) * gradient**2
        self.means[name] = mean, square
        first, second = mean / (1 - one ** (self.count + 1)), square / (1 - two ** (self.count + 1))
        return (-rate * first / (np.sqrt(second) + self.small)).astype(np.float32)


def squares(x):
    """Images cut into squares of 2x2 pixels: (N, C, H/2, 2, W/2, 2)."""
    n, channels, height, width = x.shape
    return x.reshape(n, channels, height // 2, 2, width // 2, 2)


def max_pool_gradient(y, pooled, dx):
    """The gradient of `y` before pooling: that of a square goes to its largest pixels."""
    largest = squares(y) == pooled[:, :, :, None, :, None]
    return (largest * dx[:, :, :, None, :, None]).reshape(y.shape)


# --- the network in MLX -----------------------------------------------------------------------------------------------


def mlx_digits(seed, steps):
    """The same network of MLX's layers; MLX differentiates it, and compiles a step of its training."""
    try:
        import mlx.core as mx
        import mlx.nn as nn
        import mlx.optimizers as optim
        from mlx.utils import tree_flatten
    except ImportError as error:
        sys.exit(f"digits_train.py: {error}. Install MLX: pip install 'portconv[mlx,demo]', or use --library numpy")
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


NETWORKS = {"mlx": mlx_digits, "numpy": NumpyDigits}

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
        raise FileProblem(f"{path}: the name must end with .safetensors")
    if path.exists() and not path.is_file():
        raise FileProblem(f"{path}: exists and is not a file")
    if not path.parent.is_dir():
        raise FileProblem(f"{path}: no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise FileProblem(f"{path}: no permission to write in {path.parent}")


def save(weights, held_out, path):
    """Write the whole file or nothing: whoever looks at `path` meanwhile sees the old one."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.safetensors")
    try:
        save_file(weights, temporary, {"held_out": json.dumps(held_out.tolist())})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise FileProblem(f"{path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--library", choices=tuple(NETWORKS), default="mlx", help="default: %(default)s")
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
    network = NETWORKS[arguments.library](arguments.seed, arguments.epochs * batches(len(seen)))
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
    except FileProblem as problem:
        print(f"digits_train.py: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
