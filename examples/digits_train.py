"""Train a small network of portconv.mlx layers to read handwritten digits, with MLX.

    python examples/digits_train.py digits.safetensors [--seed 0] [--epochs 15]

The digits are scikit-learn's, 1797 images of 8x8 pixels; a fifth of them is held out to measure the accuracy. The file
keeps the weights and which digits were held out; examples/digits_classify.py reads it, without MLX.
Exit status: 0; 2 if an argument or the file is no good.
"""

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import numpy as np
    from mlx.utils import tree_flatten
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from sklearn.datasets import load_digits
except ImportError as error:
    sys.exit(f"digits_train.py: {error}. It needs MLX, rich and scikit-learn: pip install 'portconv[mlx,demo]'")

import portconv.mlx

BATCH = 48
MAX_SEED = 2**63 - 1


class FileProblem(Exception):
    """A file that cannot be written; the message is meant for the user."""


class Digits(nn.Module):
    """Two convolutions, each with ReLU and pooling, and a linear layer: (N, 1, 8, 8) to a score for each digit."""

    def __init__(self):
        super().__init__()
        self.conv1 = portconv.mlx.Conv2d(1, 16, 3, padding=1)
        self.conv2 = portconv.mlx.Conv2d(16, 32, 3, padding=1)
        self.linear = nn.Linear(32 * 2 * 2, 10)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = max_pool(nn.relu(conv(x)))
        return self.linear(x.reshape(x.shape[0], -1))


def max_pool(x):
    """The maxima of squares of 2x2 pixels."""
    n, channels, height, width = x.shape
    return mx.max(x.reshape(n, channels, height // 2, 2, width // 2, 2), axis=(3, 5))


def load(rng):
    """Return images (N, 1, 8, 8) from 0 to 1, their digits, and the indices to train on and to hold out."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    order = rng.permutation(len(images))
    held_out = len(images) // 5
    return images, digits.target.astype(np.int32), order[held_out:], order[:held_out]


def accuracy(model, images, targets):
    model.eval()
    found = mx.argmax(model(mx.array(images)), axis=1)
    model.train()
    return float(np.mean(np.array(found) == targets))


def train(model, images, targets, epochs, rng, after_epoch):
    """Train on the images in random order, in batches of one size; `after_epoch` is given each epoch's mean loss."""
    batches = len(images) // BATCH
    optimizer = optim.Adam(learning_rate=optim.cosine_decay(3e-3, epochs * batches))
    state = [model.state, optimizer.state]
    loss_and_gradients = nn.value_and_grad(model, lambda x, y: nn.losses.cross_entropy(model(x), y, reduction="mean"))

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y):
        loss, gradients = loss_and_gradients(x, y)
        optimizer.update(model, gradients)
        return loss

    for _ in range(epochs):
        losses = []
        for indices in np.array_split(rng.permutation(len(images))[: batches * BATCH], batches):
            losses.append(step(mx.array(images[indices]), mx.array(targets[indices])))
            mx.eval(losses[-1], state)
        after_epoch(sum(loss.item() for loss in losses) / batches)


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


def save(model, held_out, path):
    """Write the whole file or nothing: whoever looks at `path` meanwhile sees the old one."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.tmp.safetensors")
    about = {"format": "mlx", "held_out": json.dumps(held_out.tolist())}
    try:
        mx.save_safetensors(str(temporary), tree_flatten(model.parameters(), destination={}), about)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # MLX says all in a RuntimeError
        raise FileProblem(f"{path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits with MLX.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the .safetensors file to write")
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
    mx.random.seed(arguments.seed)
    images, targets, seen, held_out = load(rng)
    model = Digits()
    started = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("training", total=arguments.epochs, loss="")
        train(
            model, images[seen], targets[seen], arguments.epochs, rng,
            lambda loss: progress.update(task, advance=1, loss=f"loss {loss:.4f}"),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    save(model, held_out, path)
    share = accuracy(model, images[held_out], targets[held_out])
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
