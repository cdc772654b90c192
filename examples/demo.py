"""Edges, blur and sharpening of a photograph with portconv.Conv2d, on every array library that is installed.

    pip install 'portconv[mlx,demo]'
    python examples/demo.py [IMAGE] [--library numpy mlx] [--output portconv-demo.png]

Each filter is one Conv2d, made once with NumPy weights; it then takes the arrays of every library. The table shows
where each filter ran, with which engine, and how long it took; then the error against a direct sum in float64 and the
bound that portconv promises, at the output that comes closest to its bound. The pictures are written as one PNG file.
Exit status: 0; 1 if a filter fails or is less accurate than promised; 2 if a file is no good, or a package or library
is missing.
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

try:
    from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from sklearn.datasets import load_sample_image
except ImportError as error:
    print(f"demo.py: {error}. It needs pillow, rich and scikit-learn: pip install 'portconv[demo]'", file=sys.stderr)
    sys.exit(2)

import portconv
from portconv.testing import error_bound, reference_conv2d

SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=np.float32)
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601: how much R, G and B add to the brightness

Image.MAX_IMAGE_PIXELS = 200_000_000  # cameras do that today; Pillow warns above and refuses twice as many


class Problem(Exception):
    """What the user has to mend; the message says so."""


# The filters


def gaussian(size, sigma):
    """Return a Gaussian kernel of shape (size, size) that sums to one."""
    profile = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    kernel = np.outer(profile, profile)
    return (kernel / kernel.sum()).astype(np.float32)


def edge_filter():
    """Sobel's two kernels in one layer; its weights mix R, G and B to brightness on the way."""
    conv = portconv.Conv2d(3, 2, 3, padding=1, padding_mode="replicate", bias=False)
    kernels = np.stack([SOBEL_X, SOBEL_X.T])
    conv.weight = kernels[:, None] * LUMA[:, None, None]  # (2, 3, 3, 3) = (out, in, height, width)
    return conv


def same_filter_per_channel(kernel, padding_mode):
    """One kernel for R, G and B alike: as many groups as channels."""
    size = len(kernel)
    conv = portconv.Conv2d(3, 3, size, padding=size // 2, groups=3, padding_mode=padding_mode, bias=False)
    conv.weight = np.broadcast_to(kernel, (3, 1, 1, size, size))  # (groups, out per group, in per group, height, width)
    return conv


def make_filters(height, width):
    """Return the filters by name; each takes and returns arrays of shape (1, channels, height, width)."""
    # Mirroring needs an image that is larger than the border; repeating the edge does not.
    blur_padding = "reflect" if min(height, width) > 15 else "replicate"
    identity = np.zeros((5, 5), np.float32)
    identity[2, 2] = 1
    unsharp_mask = 2 * identity - gaussian(5, sigma=1.2)  # the picture, plus what a blur takes away from it
    return {
        "Sobel edges": edge_filter(),
        "31x31 blur": same_filter_per_channel(gaussian(31, sigma=6), blur_padding),
        "sharpen": same_filter_per_channel(unsharp_mask, "replicate"),
    }


# Running and checking them


@dataclass
class Row:
    """One line of the table."""

    filter: str
    backend: str
    device: str = ""
    engine: str = ""
    milliseconds: float = math.nan
    error: float = math.nan
    bound: float = math.nan
    within_bound: bool = False


def usable_backends(x, asked):
    """Return the names of the backends that can hold `x`, of those asked for or of all; say why another one cannot."""
    names = []
    for name in asked or portconv.available_backends():
        try:
            portconv.get_backend(name).from_numpy(x)
        except Exception as error:  # each library has its own for a missing GPU
            if asked:
                raise Problem(f"--library {name}: {error}") from error
            print(f"demo.py: {name} is installed, but not usable here: {one_line(error)}", file=sys.stderr)
        else:
            names.append(name)
    return names


def time_call(conv, x, backend, repeats=5, budget_seconds=1.0):
    """Return the result and the best time in seconds."""
    backend.synchronize(conv(x))  # warm-up: packs the weights, compiles what the library compiles
    best, started = math.inf, time.perf_counter()
    for _ in range(repeats):
        begin = time.perf_counter()
        y = conv(x)
        backend.synchronize(y)  # libraries with lazy or asynchronous execution have done nothing before this
        end = time.perf_counter()
        best = min(best, end - begin)
        if end - started > budget_seconds:
            break
    return y, best


def exact_result(conv, x):
    """Return the float64 result, with the sums of magnitudes on which the error bound rests."""
    return reference_conv2d(
        x,
        np.asarray(conv.weight),
        None,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
        layout=conv.layout,
    )


def measure(filter_name, conv, photo, exact, backend_name):
    """Run a filter on a backend; return its line of the table and the result as a NumPy array."""
    backend = portconv.get_backend(backend_name)
    x = backend.from_numpy(photo)
    backend.synchronize(x)
    y, seconds = time_call(conv, x, backend)
    result = backend.to_numpy(y)

    error = np.abs(result - exact.y)
    bound = error_bound(exact, result.dtype.name, accuracy=conv.accuracy)
    share = error / bound
    worst = np.argmax(share)  # the output that comes closest to its bound
    row = Row(
        filter=filter_name,
        backend=backend_name,
        device=str(backend.describe(y).device),
        engine=conv.plan(x).engine,
        milliseconds=1e3 * seconds,
        error=float(error.flat[worst]),
        bound=float(bound.flat[worst]),
        within_bound=bool(np.all(share <= 1)),  # false for NaN too
    )
    return row, result


# Files


def load_photo(path, max_side):
    """Return an RGB image; without a path, the photograph that comes with scikit-learn."""
    if path is None:
        return Image.fromarray(load_sample_image("china.jpg"))
    try:
        with Image.open(path) as file:
            image = to_rgb(ImageOps.exif_transpose(file))  # upright, as the camera was held
    except UnidentifiedImageError:
        raise Problem(f"{path}: not an image, or of a kind that Pillow does not know") from None
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # on a broken file Pillow lets through whatever the decoder raised
        raise Problem(f"{path}: not readable as an image ({error})") from error
    image.thumbnail((max_side, max_side))  # leaves smaller ones alone
    return image


def to_rgb(image):
    """Convert grayscale, palette, transparent and 16-bit images."""
    if image.mode.startswith("I"):  # 16 bits: keep the upper 8; Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def check_output(path):
    """Find out before the work starts, rather than after it."""
    try:
        replaceable = path.is_file() or not path.exists()
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error
    if not replaceable:
        raise Problem(f"{path}: exists and is not a file")
    if not path.parent.is_dir():
        raise Problem(f"{path}: no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise Problem(f"{path}: no permission to write in {path.parent}")


def save_png(image, path):
    """Write the whole file or nothing: whoever looks at `path` meanwhile sees the old one."""
    temporary = path.with_name(f".portconv-demo-{os.getpid()}.tmp")
    try:
        image.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# What the user sees


def to_image(y):
    """Return the picture of a filter's result, which has the shape (channels, height, width)."""
    if len(y) == 2:
        strength = np.hypot(y[0], y[1])  # how steep the gradient (d/dx, d/dy) is
        y = np.broadcast_to(strength * (255 / max(strength.max(), 1)), (3, *strength.shape))
    return Image.fromarray(y.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8))


def contact_sheet(pictures, caption_height=28, margin=8, least_side=320):
    """Return the pictures, two in a row, each under its caption; small ones are magnified."""
    width, height = next(iter(pictures.values())).size
    zoom = max(1, least_side // max(width, height))
    width, height = zoom * width, zoom * height
    cell_width = max(width, least_side) + margin  # the captions need some width
    cell_height = caption_height + height + margin
    rows = math.ceil(len(pictures) / 2)
    sheet = Image.new("RGB", (2 * cell_width + margin, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for i, (caption, picture) in enumerate(pictures.items()):
        left, top = margin + i % 2 * cell_width, i // 2 * cell_height
        draw.text((left, top + 5), caption, fill="black", font=font)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top + caption_height))
    return sheet


def make_table(rows):
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("filter", no_wrap=True)
    table.add_column("backend", overflow="fold")
    table.add_column("device", no_wrap=True, max_width=12)
    table.add_column("engine", no_wrap=True)
    for heading in ("ms", "error", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row, next_row in zip_longest(rows, rows[1:]):
        table.add_row(
            row.filter,
            row.backend,
            row.device,
            row.engine,
            f"{row.milliseconds:.2f}",
            f"{row.error:.1e}",
            f"{row.bound:.1e}",
            "ok" if row.within_bound else "FAILED",
            style=None if row.within_bound else "bold red",
            end_section=next_row is not None and row.filter != next_row.filter,
        )
    return table


def one_line(error):
    return " ".join(str(error).split())


def parse_arguments():
    parser = argparse.ArgumentParser(description="Filter a photograph with portconv on every installed array library.")
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="an image file (default: a photograph)")
    parser.add_argument(
        "--library", nargs="+", default=(), metavar="NAME", help="numpy, mlx, torch, jax, ... (default: all installed)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("portconv-demo.png"), help="the PNG file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--max-side", type=int, default=1024, help="larger images are scaled down to this (default: %(default)s pixels)"
    )
    arguments = parser.parse_args()
    if arguments.max_side < 1:
        parser.error("--max-side must be at least 1")
    return arguments


def run(arguments):
    """Return whether every filter ran on every backend, as accurately as promised."""
    image_path = arguments.image and arguments.image.expanduser()
    output = arguments.output.expanduser()
    check_output(output)
    photo = load_photo(image_path, arguments.max_side)
    width, height = photo.size

    # uint8 goes in as it is: portconv converts an image of integers to the dtype of the weight.
    x = np.asarray(photo).transpose(2, 0, 1)[None]  # (1, 3, height, width)
    filters = make_filters(height, width)
    names = usable_backends(x, arguments.library)
    if not names:
        print("demo.py: no back end is usable here", file=sys.stderr)
        return False

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(f"{image_path or 'china.jpg'}: {width} x {height} pixels", markup=False, soft_wrap=True)
    rows, failures, pictures = [], [], {"original": photo}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(filters) * (1 + len(names)))
        for filter_name, conv in filters.items():
            progress.update(task, description=f"{filter_name}: float64")
            exact = exact_result(conv, x)
            progress.advance(task)
            for backend_name in names:
                progress.update(task, description=f"{filter_name}: {backend_name}")
                try:
                    row, result = measure(filter_name, conv, x, exact, backend_name)
                except Exception as error:  # noqa: BLE001 - one library's failure must not hide the others' results
                    rows.append(Row(filter_name, backend_name))
                    failures.append(f"{filter_name}, {backend_name}: {type(error).__name__}: {one_line(error)}")
                else:
                    rows.append(row)
                    if filter_name not in pictures:
                        pictures[filter_name] = to_image(result[0])
                progress.advance(task)

    console.print(make_table(rows))
    for failure in failures:
        print(f"demo.py: {failure}", file=sys.stderr)
    save_png(contact_sheet(pictures), output)
    console.print(f"pictures: {output}", markup=False, soft_wrap=True)
    return all(row.within_bound for row in rows)


def main():
    try:
        good = run(parse_arguments())
    except Problem as problem:
        print(f"demo.py: {one_line(problem)}", file=sys.stderr)
        return 2
    if not good:
        print("demo.py: a filter failed, or its result is less accurate than promised: see the table", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
