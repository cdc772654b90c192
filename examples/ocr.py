"""Find and read the text in a photograph, by three networks from ONNX files, on the arrays of any library.

    pip install 'portconv[onnx,demo,jit]' && pip install --no-deps rapidocr-onnxruntime
    python examples/ocr.py [--image photograph.jpg] [--library numpy mlx] [--output portconv-ocr.png]

The package rapidocr-onnxruntime brings the networks of PP-OCR, some megabytes; none of its code is run. Another folder
with such networks is named by --models. Without --image the script draws a picture, and knows what it says. It prints
the lines that it reads with their confidence, then the times of each library, and writes the picture with the lines
framed. With several libraries, each must read the same as the first. The first run of a library takes longer, JAX's by
minutes: it compiles each operation for each size.
Exit status: 0; 1 if libraries read differently or one fails; 2 if an argument or a file is no good, or a package or
library is missing.

Sources: PP-OCR, arXiv 2009.09941; the map of text and its frames, arXiv 1911.08947, 3.5; the decoding, Graves et al.,
"Connectionist temporal classification", ICML 2006, 3.2.
"""

import argparse
import importlib.util
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

try:
    from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, UnidentifiedImageError
    from scipy import ndimage
    from scipy.spatial import ConvexHull

    importlib.import_module("onnx")
except ImportError as error:
    print(f"ocr.py: {error}. It needs onnx, pillow and scipy: pip install 'portconv[onnx,demo]'", file=sys.stderr)
    sys.exit(2)

import portconv
import portconv.onnx

PACKAGE = "rapidocr_onnxruntime"
FILES = {"finder": "*_det_infer.onnx", "turner": "*_cls_infer.onnx", "reader": "*_rec_infer.onnx"}

TEXT = 0.3  # a pixel is text from this probability on
LINE = 0.5  # and its neighbours are a line of text, if their mean is so much
GROWTH = 1.6  # the finder marks the middle of a line; its frame is wider all around by this times area over outline
SURE = 0.5  # what is read with less confidence is no text
UPSIDE_DOWN = 0.9  # a line is turned if the turner is so sure
HEIGHT = 48  # of a line, in pixels, as the turner and the reader take it
TURNER_WIDTH = 192
WIDTH_STEP = 160  # lines of similar length get one width: a library may compile what is new to it


class Problem(Exception):
    """What the user has to mend; the message says so."""


@dataclass
class Line:
    """A line of text: its frame, four points (x, y) from the top left clockwise as one reads it, and what it says."""

    frame: np.ndarray
    text: str
    confidence: float


# --- the networks, on the arrays of a library ------------------------------------------------------------------------


def load(folder):
    """Return the networks by name, and the characters that the reader knows."""
    networks = {}
    for name, pattern in FILES.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise Problem(f"{folder}: no file {pattern}")
        networks[name] = portconv.onnx.load(found[-1])
    if "character" not in networks["reader"].metadata:
        raise Problem(f"{folder}: the reader does not say which characters it knows")
    return networks, ["", *networks["reader"].metadata["character"].split("\n"), " "]  # the first is no character


def find_models():
    """Return the folder of the package's networks."""
    spec = importlib.util.find_spec(PACKAGE)  # imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise Problem(
            "the networks are missing: pip install --no-deps rapidocr-onnxruntime, or name a folder: --models"
        )
    return Path(spec.submodule_search_locations[0]) / "models"


def computed(network, backend, x):
    """The output of a network for a NumPy array, which a library computes."""
    return backend.to_numpy(network(backend.from_numpy(x)))


def as_input(pictures):
    """Pictures of one size as the networks take them: (N, 3, H, W), B, G, R, from -1 to 1."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])[..., ::-1]
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - 1


def read(picture, networks, characters, backend, side):
    """Return the lines of a picture from top to bottom, and the seconds of each stage."""
    clock = [time.perf_counter()]

    def lap():
        clock.append(time.perf_counter())

    zoom = side / max(picture.size)
    size = [max(32, round(zoom * n / 32) * 32) for n in picture.size]  # the finder halves it five times
    text = computed(networks["finder"], backend, as_input([picture.resize(size, Image.Resampling.BILINEAR)]))[0, 0]
    lap()
    frames = in_order(frames_of(text, picture.size))
    strips = [strip(picture, frame) for frame in frames]
    lap()
    for i, upside_down in enumerate(turned(strips, networks["turner"], backend)):
        if upside_down:
            strips[i] = strips[i].transpose(Image.Transpose.ROTATE_180)
            frames[i] = np.roll(frames[i], 2, axis=0)
    lap()
    found = texts(strips, networks["reader"], characters, backend)
    lap()
    lines = [Line(frame, *words) for frame, words in zip(frames, found, strict=True)]
    lines = [line for line in lines if line.text.strip() and line.confidence >= SURE]
    return lines, dict(zip(("find", "cut", "turn", "read"), np.diff(clock), strict=True))


# --- where the text is -----------------------------------------------------------------------------------------------


def frames_of(text, size):
    """The frames of the lines in a picture of that size (width, height); `text` is a probability for each pixel."""
    scale = np.divide(size, text.shape[::-1])
    labels, _ = ndimage.label(text > TEXT, np.ones((3, 3)))
    frames = []
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[place] == label
        if text[place][inside].mean() < LINE or min(inside.shape) < 3:
            continue
        rows, cols = np.nonzero(inside)
        pixels = np.stack([cols + place[1].start, rows + place[0].start], axis=1)
        edges = np.concatenate([pixels + middle for middle in ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5))])
        centre, axes, (width, height) = smallest_rectangle(edges * scale)
        margin = GROWTH * width * height / (2 * (width + height))
        half = np.array([width, height]) / 2 + margin
        frame = centre + np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half @ axes
        if height > 1.5 * width:
            frame = np.roll(frame, -1, axis=0)  # as written from the top to the bottom; if not, the turner sees it
        frames.append(np.clip(frame, 0, size))
    return frames


def smallest_rectangle(points):
    """Return centre, axes and sizes of the smallest rectangle around points; its first axis points to the right.

    One of its sides lies on a side of the convex hull.
    """
    hull = points[ConvexHull(points).vertices]
    x, y = (np.roll(hull, -1, axis=0) - hull).T
    angles = (np.arctan2(y, x) + math.pi / 4) % (math.pi / 2) - math.pi / 4  # of one of its sides, within 45 degrees
    axes = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    along = axes @ hull.T  # (K, 2, points of the hull)
    sizes = np.ptp(along, axis=2)
    best = np.argmin(sizes.prod(axis=1))
    return (along[best].max(axis=1) + along[best].min(axis=1)) / 2 @ axes[best], axes[best], sizes[best]


def in_order(frames):
    """The frames as one reads: row by row, from the left to the right."""
    rows = []
    for frame in sorted(frames, key=lambda frame: frame[:, 1].mean()):
        last = rows[-1][-1] if rows else None
        if last is not None and frame[:, 1].mean() < (last[:, 1].mean() + last[:, 1].max()) / 2:
            rows[-1].append(frame)
        else:
            rows.append([frame])
    return [frame for row in rows for frame in sorted(row, key=lambda frame: frame[:, 0].mean())]


def strip(picture, frame):
    """What is in a frame, upright, `HEIGHT` pixels high."""
    width, height = (max(1, round(math.dist(frame[0], frame[i]))) for i in (1, 3))
    quad = frame[[0, 3, 2, 1]].ravel().tolist()
    cut = picture.transform((width, height), Image.Transform.QUAD, quad, Image.Resampling.BICUBIC)
    return cut.resize((max(1, round(cut.width * HEIGHT / cut.height)), HEIGHT), Image.Resampling.BILINEAR)


# --- what it says ----------------------------------------------------------------------------------------------------


def padded(picture, width):
    """The picture with grey on its right, which is 0 for the networks; squeezed if it is wider."""
    if picture.width > width:
        return picture.resize((width, HEIGHT), Image.Resampling.BILINEAR)
    wide = Image.new("RGB", (width, HEIGHT), (128, 128, 128))
    wide.paste(picture)
    return wide


def turned(strips, turner, backend):
    """Whether each line stands upside down."""
    return [
        computed(turner, backend, as_input([padded(picture, TURNER_WIDTH)]))[0, 1] > UPSIDE_DOWN for picture in strips
    ]


def texts(strips, reader, characters, backend):
    """The text of each line, and how sure the reader is."""
    found = []
    for picture in strips:
        width = max(2, math.ceil(picture.width / WIDTH_STEP)) * WIDTH_STEP
        scores = computed(reader, backend, as_input([padded(picture, width)]))[0]
        if scores.shape[1] != len(characters):
            raise Problem(f"the reader names {len(characters)} characters, but tells {scores.shape[1]} apart")
        found.append(decoded(scores, characters))
    return found


def decoded(scores, characters):
    """The text of (steps, characters) probabilities: the best of each step, repetitions once, without the blank."""
    best = np.argmax(scores, axis=1)
    kept = (best != 0) & (best != np.concatenate([[-1], best[:-1]]))
    confidence = float(scores.max(axis=1)[kept].mean()) if kept.any() else 0.0
    return "".join(characters[i] for i in best[kept]), confidence


# --- pictures ---------------------------------------------------------------------------------------------------------

# What the drawn picture says: text, size of its letters, degrees by which it is turned, colour, place of its centre.
DRAWN = (
    ("portconv reads signs", 52, 0, "white", (480, 90)),
    ("One Conv2d for every array library", 30, 0, "black", (480, 180)),
    ("NumPy 2.0", 44, 8, "navy", (220, 300)),
    ("Metal or CPU", 44, -12, "darkred", (680, 300)),
    ("upside down", 40, 180, "black", (250, 430)),
    ("0123456789", 36, 90, "darkgreen", (880, 470)),
    ("Opening hours: 9 to 17", 24, 0, "black", (520, 540)),
)


def drawn_picture():
    """A picture (960, 640) of `DRAWN` under uneven light, a little blurred, with noise."""
    rows, cols = np.mgrid[-1:1:640j, -1:1:960j]
    light = 190 - 70 * np.hypot(rows - 0.3, cols + 0.2)
    picture = Image.fromarray((light[..., None] * [1.0, 0.95, 0.85]).astype(np.uint8))
    for text, size, angle, colour, centre in DRAWN:
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(text)
        sign = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
        ImageDraw.Draw(sign).text((2 - left, 2 - top), text, fill=255, font=font)
        sign = sign.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        corner = (centre[0] - sign.width // 2, centre[1] - sign.height // 2)
        picture.paste(colour, (*corner, corner[0] + sign.width, corner[1] + sign.height), sign)
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)))
    noise = np.random.default_rng(0).normal(0, 5, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def opened(path):
    """The picture of a file, upright, in RGB."""
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError:
        raise Problem(f"{path}: not an image, or of a kind that Pillow does not know") from None
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # on a broken file Pillow lets through whatever the decoder raised
        raise Problem(f"{path}: not readable as an image ({error})") from error


def framed(picture, lines):
    """The picture with the frames and the numbers of the lines, as they are printed."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines, start=1):
        draw.polygon([tuple(point) for point in line.frame.tolist()], outline="red", width=2)
        left, top = line.frame.min(axis=0)
        draw.text((left, max(top, 16)), str(number), fill="red", anchor="lb", font=ImageFont.load_default(16))
    return picture


def save(picture, path):
    """Write the whole file or nothing: whoever looks at `path` meanwhile sees the old one."""
    temporary = path.with_name(f".portconv-ocr-{os.getpid()}.tmp")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


# --- what the user sees ----------------------------------------------------------------------------------------------


def back_end(name):
    """The back end of a library that can be used here."""
    try:
        backend = portconv.get_backend(name)
        backend.synchronize(backend.from_numpy(np.zeros(1, np.float32)))
    except Exception as error:  # each library has its own for a missing GPU
        raise Problem(f"--library {name}: {' '.join(str(error).split())}") from error
    return backend


def print_times(times):
    """The seconds of each stage and run, by library, as a table in milliseconds."""
    stages = list(next(iter(times.values()))[0])
    print(f"\n{'milliseconds':24}" + "".join(f"{stage:>9}" for stage in (*stages, "all")))
    for name, runs in times.items():
        first, *rest = ([*(1e3 * run[stage] for stage in stages), 1e3 * sum(run.values())] for run in runs)
        print(f"{name + ', first run':24}" + "".join(f"{value:9.0f}" for value in first))
        if rest:
            best = min(rest, key=lambda row: row[-1])
            print(f"{name + ', best of ' + str(len(rest)):24}" + "".join(f"{value:9.0f}" for value in best))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Find and read the text in a photograph, on any array library.")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the photograph (default: a picture is drawn)")
    parser.add_argument(
        "--library", nargs="+", default=["numpy"], metavar="NAME", help="one or more installed ones (default: numpy)"
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER", help=f"of the networks (default: that of {PACKAGE})")
    parser.add_argument(
        "--output", type=Path, default=Path("portconv-ocr.png"), help="the PNG file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--side", type=int, default=960, help="pixels of the longer side, for finding text (default: %(default)s)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs after the first (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.side < 32:
        parser.error("--side must be at least 32")
    if arguments.repeat < 0:
        parser.error("--repeat must not be negative")
    return arguments


def run(arguments):
    """Return whether every library reads the same."""
    output = arguments.output.expanduser()
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise Problem(f"{output}: cannot be written")
    backends = {name: back_end(name) for name in arguments.library}
    picture = opened(arguments.image.expanduser()) if arguments.image else drawn_picture()
    begin = time.perf_counter()
    try:
        networks, characters = load((arguments.models or find_models()).expanduser())
    except (OSError, portconv.onnx.ModelError) as error:
        raise Problem(str(error)) from error
    print(f"{arguments.image or 'drawn'}: {picture.width} x {picture.height} pixels", end="; ")
    print(f"networks loaded in {time.perf_counter() - begin:.1f} s\n", flush=True)

    lines, times, good = None, {}, True
    for name, backend in backends.items():
        runs = []
        try:
            for _ in range(1 + arguments.repeat):
                found, seconds = read(picture, networks, characters, backend, arguments.side)
                runs.append(seconds)
        except Problem:
            raise
        except Exception as error:  # noqa: BLE001 - one library's failure must not hide the others' results
            good = False
            print(f"ocr.py: {name}: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        times[name] = runs
        if lines is None:
            lines = found
            for number, line in enumerate(lines, start=1):
                print(f"{number:3} {line.confidence:7.2%}  {line.text}")
        elif [line.text for line in found] != [line.text for line in lines]:
            good = False
            print(f"\n{name} reads otherwise:", *(line.text for line in found), sep="\n    ")
        else:
            most = max((abs(a.confidence - b.confidence) for a, b in zip(lines, found, strict=True)), default=0.0)
            print(f"\n{name} reads the same; its confidence differs by {most:.1e} at most")
    if lines is None:
        return False
    if not arguments.image:
        right = {line.text for line in lines} & {text for text, *_ in DRAWN}
        print(f"\n{len(right)} of {len(DRAWN)} lines are as they were drawn")
    print_times(times)
    save(framed(picture, lines), output)
    print(f"\npicture: {output}")
    return good


def main():
    try:
        good = run(parse_arguments())
    except Problem as problem:
        print(f"ocr.py: {problem}", file=sys.stderr)
        return 2
    if not good:
        print("ocr.py: a library failed, or reads different lines: see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
