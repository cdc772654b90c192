"""The charts of the pages: drawn when the pages are made, from the committed results and from errors measured here.

A page has one by the directive `chart`, with its name and the text for those who do not see it:

    ```{chart} networks-epyc-zen4-2cores-vgg19
    :alt: ONNX Runtime takes 2.3 times as long as portconv.
    ```

Each is drawn twice, for light pages and for dark ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from matplotlib import style
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

import portconv
from portconv.bench.chart import LOOKS
from portconv.testing import error_bound, reference_conv2d

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE.parent / "benchmarks" / "results"
FOLDER = "_build/charts"  # beside the pages, and not a part of them
STYLES = {"light": "default", "dark": "dark_background"}
PLAIN = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.transparent": True}
OURS, THEIRS = "#D55E00", "#56B4E9"  # of Okabe and Ito
WIDTH = 5.6  # inches: to be read on a phone

Chart = Callable[[], Figure]


def machine(document: dict[str, Any]) -> str:
    """Where results were measured."""
    return f"{document['machine']['cpu'].replace('(R)', '').strip()}, {document['settings']['threads']} threads"


def figure(height: float) -> tuple[Figure, Any]:
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, drawn.subplots()


# --- speed ------------------------------------------------------------------------------------------------------------


def network(results: dict[str, Any], title: str) -> Figure:
    """A bar for the time of each library."""
    times = sorted((found["best_ms"], name) for name, found in results.items() if "best_ms" in found)
    drawn, axes = figure(0.55 + 0.28 * len(times))
    longest = 4.5 * times[0][0]
    for place, (ms, name) in enumerate(times):
        colour = OURS if name.startswith("portconv") else THEIRS
        axes.barh(place, min(ms, longest), color=colour, height=0.72, alpha=1 if name != "portconv-numpy" else 0.55)
        cut = "… " if ms > longest else ""
        axes.text(min(ms, longest) + longest / 80, place, f"{cut}{ms:.3g} ms", va="center")
    axes.set_yticks(range(len(times)), [LOOKS[name][0] for _, name in times])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.22)
    axes.set_xticks([])
    axes.spines[["bottom"]].set_visible(False)
    axes.set_title(title, fontsize=9, loc="left")
    return drawn


def layers(document: dict[str, Any]) -> Figure:
    """For each suite a dot a layer: how many times as long the best other library takes, and their mean."""
    suites: dict[str, list[float]] = {}
    for layer in document["layers"]:
        times = {name: found["best_ms"] for name, found in layer["results"].items() if "best_ms" in found}
        peers = [ms for name, ms in times.items() if not name.startswith("portconv")]
        if peers and "portconv-jit" in times:
            suites.setdefault(layer["suite"], []).append(min(peers) / times["portconv-jit"])
    means = {suite: math.exp(sum(map(math.log, found)) / len(found)) for suite, found in suites.items()}
    order = sorted(suites, key=means.__getitem__)
    drawn, axes = figure(0.9 + 0.36 * len(order))
    for place, suite in enumerate(order):
        axes.scatter(suites[suite], [place] * len(suites[suite]), s=16, color=THEIRS, alpha=0.75, linewidths=0)
        axes.scatter(means[suite], place, s=90, marker="|", color=OURS, linewidths=3)
        axes.text(means[suite], place + 0.22, f"{means[suite]:.2f}", ha="center", color=OURS, fontsize=8)
    axes.axvline(1, color="#888888", linewidth=1, zorder=0)
    axes.set_xscale("log")
    ticks = [0.5, 0.7, 1, 1.5, 2, 3]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.5, len(order) - 0.3)
    axes.set_xlabel("time of the best other library over portconv's: on the right portconv is faster", fontsize=8)
    axes.set_title(f"{machine(document)}, float32, one image", fontsize=9, loc="left")
    return drawn


def gigapixel(document: dict[str, Any]) -> Figure:
    """The cost of a pixel as images grow."""
    drawn, axes = figure(3.0)
    looks = zip((OURS, "#0072B2", "#009E73"), "osd", strict=True)
    for library, (colour, marker) in zip(dict.fromkeys(r["library"] for r in document["results"]), looks, strict=False):
        rows = [r for r in document["results"] if r["library"] == library and r.get("nanoseconds_per_pixel")]
        sizes, costs = ([r[key] for r in rows] for key in ("megapixels", "nanoseconds_per_pixel"))
        axes.plot(sizes, costs, color=colour, marker=marker, label=library)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("megapixels")
    axes.set_ylabel("nanoseconds for a pixel")
    axes.set_title(f"{machine(document)}, float32", fontsize=9, loc="left")
    axes.legend(frameon=False)
    return drawn


# --- accuracy ---------------------------------------------------------------------------------------------------------

ENGINES = {"gemm": "o", "winograd": "s", "fft": "^", "direct": "D"}
CHANNELS = (1, 4, 16, 64, 256, 1024)


def long_sums() -> Figure:
    """The error of sums of a constant, whose roundings all go the same way, as they grow longer."""
    drawn, axes = figure(3.4)
    eps = float(np.finfo(np.float32).eps)
    found: dict[str, list[float]] = {name: [] for name in ("one after the other", *ENGINES)}
    for channels in CHANNELS:
        x = np.full((1, channels, 12, 12), 0.1, np.float32)
        weight = np.full((1, channels, 3, 3), 0.3, np.float32)
        exact = reference_conv2d(x, weight)
        for engine in ENGINES:
            error = np.abs(portconv.conv2d(x, weight, engine=engine) - exact.y) / (eps * exact.c)
            found[engine].append(max(float(error.max()), 1e-2))
        terms = np.full(9 * channels, x[0, 0, 0, 0] * weight[0, 0, 0, 0], np.float32)
        error = abs(float(np.cumsum(terms)[-1]) - exact.y.flat[0]) / (eps * exact.c.flat[0])
        found["one after the other"].append(max(error, 1e-2))
    terms = [9 * channels for channels in CHANNELS]
    axes.plot(terms, found.pop("one after the other"), color="#888888", linestyle="--", label="one after the other")
    for (engine, errors), colour in zip(found.items(), (OURS, "#0072B2", "#009E73", "#CC79A7"), strict=True):
        axes.plot(terms, errors, marker=ENGINES[engine], markersize=4, color=colour, label=engine)
    axes.axhline(8, color="#E69F00", linewidth=1)
    axes.text(terms[0], 9.5, "the bound of accuracy='elementwise': 8 eps c", color="#E69F00", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("terms of a sum")
    axes.set_ylabel("largest error, in eps c")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, 0.93))
    return drawn


def shares() -> Figure:
    """The largest error of each engine as a share of its bound, for layers of many kinds."""
    rng = np.random.default_rng(0)
    kinds: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
        "1x1": ((1, 64, 14, 14), (32, 64, 1, 1), {}),
        "3x3": ((1, 16, 24, 24), (16, 16, 3, 3), {"padding": 1}),
        "3x3, 256 channels": ((1, 256, 10, 10), (8, 256, 3, 3), {"padding": 1}),
        "3x3, stride 2": ((1, 16, 25, 25), (16, 16, 3, 3), {"stride": 2}),
        "depthwise 7x7": ((1, 8, 24, 24), (8, 1, 7, 7), {"groups": 8, "padding": 3}),
        "5x5, reflect": ((1, 4, 24, 24), (4, 4, 5, 5), {"padding": 2, "padding_mode": "reflect"}),
        "31x31": ((1, 2, 64, 64), (1, 2, 31, 31), {"padding": 15}),
    }
    drawn, axes = figure(3.2)
    colours = (OURS, "#0072B2", "#009E73", "#CC79A7")
    for place, (engine, marker) in enumerate(ENGINES.items()):
        for row, (x_shape, weight_shape, options) in enumerate(kinds.values()):
            largest = 0.0
            for spread in (0, 3):  # of a normal image, and of one whose pixels differ by powers of ten
                x = rng.standard_normal(x_shape) * 10 ** rng.uniform(-spread, spread, x_shape)
                x, weight = x.astype(np.float32), rng.standard_normal(weight_shape).astype(np.float32)
                exact = reference_conv2d(x, weight, **options)
                try:
                    y = portconv.conv2d(x, weight, engine=engine, **options)
                except portconv.UnsupportedError:
                    continue
                largest = max(largest, float((np.abs(y - exact.y) / error_bound(exact, "float32")).max()))
            if largest:
                label = engine if not row or (engine == "winograd" and row == 1) else None
                shift = (place - 1.5) * 0.17
                axes.scatter(largest, row + shift, marker=marker, s=22, color=colours[place], label=label)
    axes.axvline(1, color="#E69F00", linewidth=1)
    axes.text(0.9, -0.62, "the bound", color="#E69F00", fontsize=8, ha="right")
    axes.set_xscale("log")
    axes.set_xlim(5e-4, 1.6)
    axes.set_ylim(len(kinds) - 0.5, -0.9)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("largest error, as a share of the bound")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return drawn


# --- photographs ------------------------------------------------------------------------------------------------------


def photographs() -> Figure:
    """What the tutorial of this name makes of its photograph."""
    photo = load_sample_image("china.jpg")

    def per_channel(kernel: np.ndarray) -> np.ndarray:
        weight = np.broadcast_to(kernel.astype(np.float32), (3, 1, *kernel.shape))
        same = {"padding": "same", "padding_mode": "reflect", "groups": 3, "layout": "NHWC", "out_dtype": "uint8"}
        return portconv.conv2d(photo[None], weight, **same)[0]

    def gaussian(size: int, sigma: float) -> np.ndarray:
        line = np.exp(-(((np.arange(size) - size // 2) / sigma) ** 2) / 2)
        return np.outer(line, line) / line.sum() ** 2

    sharpen = -gaussian(5, 1.2)
    sharpen[2, 2] += 2
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    weight = np.stack([sobel, sobel.T])[:, None] * luma[:, None, None]
    both = portconv.conv2d(photo[None], weight, padding=1, padding_mode="replicate", layout="NHWC")[0]
    pictures = {
        "the photograph": photo,
        "blurred": per_channel(gaussian(31, 6.0)),
        "sharpened": per_channel(sharpen),
        "its edges": np.hypot(both[..., 0], both[..., 1]),
    }
    drawn = Figure(figsize=(WIDTH, 4.2), layout="constrained", dpi=150)
    for place, (title, picture) in zip(drawn.subplots(2, 2).flat, pictures.items(), strict=True):
        place.imshow(picture, cmap="gray")
        place.set_title(title, fontsize=9)
        place.set_axis_off()
    return drawn


# --- all of them ------------------------------------------------------------------------------------------------------


def charts() -> Iterator[tuple[str, Chart, Path | None]]:
    """Name, how it is drawn, and the file that it is drawn from."""
    for path in sorted(RESULTS.glob("networks-*.json")):
        document = json.loads(path.read_text("utf-8"))
        title = f"{machine(document)}, float32, one image"
        for name, found in document["networks"].items():
            yield f"{path.stem}-{name}", lambda found=found, title=title: network(found["results"], title), path
    for path in sorted(RESULTS.glob("claims-*.json")):
        yield path.stem, lambda path=path: layers(json.loads(path.read_text("utf-8"))), path
    for path in sorted(RESULTS.glob("gigapixel-*.json")):
        yield path.stem, lambda path=path: gigapixel(json.loads(path.read_text("utf-8"))), path
    yield "photographs", photographs, None
    yield "long-sums", long_sums, None
    yield "shares", shares, None


def draw_all(app: Any) -> None:
    """Draw what is not there yet, or older than the results and this file."""
    folder = Path(app.srcdir, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart, source in charts():
        newest = max(path.stat().st_mtime for path in (Path(__file__), source) if path is not None)
        for theme, look in STYLES.items():
            target = folder / f"{name}.{theme}.svg"
            if not target.is_file() or target.stat().st_mtime < newest:
                with style.context([look, PLAIN]):
                    chart().savefig(target, metadata={"Date": None})


class ChartDirective(Directive):
    """A chart, for light pages and for dark ones."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}  # noqa: RUF012  as docutils has it

    def run(self) -> list[nodes.Node]:
        name, alt = self.arguments[0], self.options["alt"]
        where = f"/{FOLDER}/{name}"
        known = {name for name, *_ in charts()}
        if name not in known:
            raise self.error(f"there is no chart {name!r}; there are {', '.join(sorted(known))}")
        return [
            nodes.image(uri=f"{where}.{theme}.svg", alt=alt, classes=["chart", f"only-{theme}"]) for theme in STYLES
        ]


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("chart", ChartDirective)
    app.connect("builder-inited", draw_all)
    return {"parallel_read_safe": True}
