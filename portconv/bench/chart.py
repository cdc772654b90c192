"""Charts: for every layer a line, on it a mark for everything that was timed, at its time relative to the fastest.

Nothing is told by colour alone: in print a library has a shape and a place, and an engine a filling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..processes.files import replace_file
from .runner import Timed
from .timing import milliseconds

__all__ = ["COLOURS", "LOOKS", "SUFFIXES", "Series", "disturbed", "draw", "draw_networks", "load", "of_results"]

SUFFIXES = (".png", ".svg", ".pdf")
# Colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999")
# What the libraries of a comparison are called, and their colours.
LOOKS = {
    "portconv-jit": ("portconv, compiled", "#D55E00"),
    "portconv-numpy": ("portconv, plain NumPy", "#F2B48C"),
    "portconv-mlx": ("portconv, MLX arrays", "#000000"),
    "onnxruntime": ("ONNX Runtime", "#0072B2"),
    "openvino": ("OpenVINO", "#009E73"),
    "torch": ("PyTorch", "#CC79A7"),
    "torch-channels-last": ("PyTorch, channels last", "#E69F00"),
    "jax": ("JAX", "#56B4E9"),
    "opencv": ("OpenCV, filter2D", "#777777"),
    "opencv-separable": ("OpenCV, sepFilter2D", "#777777"),
    "mlx": ("mx.conv2d, CPU", "#999999"),
}
SHAPES = "os^DvPXh"  # of libraries
FILLINGS = {"auto": "none", "gemm": "full", "winograd": "top", "direct": "bottom", "fft": "left", "native": "none"}
# auto is a ring around the mark of the engine that it chose
RING, MARK = 92.0, 34.0  # square points
SLOWEST = 300.0  # beyond, a mark stands at the edge
TICKS = (1, 1.2, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300)


@dataclass(frozen=True)
class Series:
    """One kind of mark: its look, and the milliseconds by layer id. Series of different lanes never overlap.

    `filling` is the part that is filled, as Matplotlib names it: "full", "none", "left", "right", "top", "bottom".
    """

    label: str
    colour: str
    marker: str
    times: Mapping[str, float] = field(default_factory=dict)
    size: float = 30.0
    filling: str = "full"
    lane: int = 0

    @property
    def look(self) -> dict[str, Any]:
        """What `plot` takes."""
        paint = {"color": self.colour, "fillstyle": self.filling, "markerfacecoloralt": "white"}
        shape = {
            "marker": self.marker,
            "markersize": self.size**0.5,
            "markeredgewidth": 0 if self.filling == "full" else 1,
        }
        return {"linestyle": "none", "label": self.label, **paint, **shape}


def of_results(results: Mapping[str, Timed]) -> tuple[list[Series], list[list[Series]]]:
    """The series of `portconv bench`, a lane and a shape for each library and device, a filling for each engine.

    And a legend of both.
    """
    times: dict[tuple[str, str], dict[str, float]] = {}
    for name, timed in results.items():
        for task, found in timed.answers.items():
            if "best_ms" in found:
                place = name if task.device.startswith("cpu") else f"{name}, {task.device}"
                times.setdefault((place, task.engine), {})[task.layer.id] = found["best_ms"]
    places = list(dict.fromkeys(place for place, _ in times))
    engines = sorted(dict.fromkeys(engine for _, engine in times), key=lambda engine: engine != "auto")
    marks = {
        engine: Series(engine, "#555555", "o", {}, RING if engine == "auto" else MARK, FILLINGS.get(engine, "right"))
        for engine in engines
    }
    looks = [(COLOURS[lane % len(COLOURS)], SHAPES[lane % len(SHAPES)]) for lane in range(len(places))]
    series = [
        replace(marks[engine], colour=colour, marker=shape, times=times[place, engine], lane=lane)
        for lane, (place, (colour, shape)) in enumerate(zip(places, looks, strict=True))
        for engine in engines
        if (place, engine) in times
    ]
    shapes = [Series(place, *look, size=70) for place, look in zip(places, looks, strict=True)]
    return series, [shapes, list(marks.values())]


def load(machine: Mapping[str, Any]) -> str:
    """What a chart says of the machine's load before the timing, by `processes.machine`; empty where it has none."""
    average = machine.get("load_average")
    return "" if average is None else f"load of the machine before: {average:.2f} on {machine['usable_cores']} cores"


def disturbed(results: Mapping[str, Timed]) -> list[str]:
    """The ids of the layers with a time that was taken while something else used a core."""
    answers = [answer for timed in results.values() for answer in timed.answers.items()]
    return [task.layer.id for task, found in answers if found.get("disturbed")]


def draw(
    series: Sequence[Series],
    rows: Sequence[str],
    title: str,
    target: str | Path,
    legend: Sequence[Sequence[Series]] | None = None,
    disturbed: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Draw the marks of the layers `rows` (ids, the first on top) and write the chart.

    On the right stands the time of the fastest, to which the others relate.
    The first series lies on top of the others. `legend` has the rows of the legend, if it is not that of the series.
    Of the layers `disturbed` (ids) some time was taken while something else used a core: they have a mark.
    """
    from matplotlib.figure import Figure

    fastest = {row: min((s.times[row] for s in series if row in s.times), default=0.0) for row in rows}
    shown = [row for row in reversed(rows) if fastest[row] > 0]
    used = [s for s in series if any(row in s.times for row in shown)]
    lanes = 1 + max((s.lane for s in used), default=0)
    pitch = 0.21 if lanes == 1 else 0.10 + 0.16 * lanes  # inches for a layer
    keys = legend or [used[i : i + 4] for i in range(0, len(used), 4)]
    height = 1.0 + 0.2 * len(keys) + pitch * max(len(shown), 2)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes: Any = figure.subplots()
    slowest = 1.0
    for s in reversed(used):
        step = 0.84 / lanes
        shift = (lanes - 1) * step / 2 - s.lane * step
        points = [(s.times[row] / fastest[row], y + shift) for y, row in enumerate(shown) if row in s.times]
        slowest = max(slowest, *(x for x, _ in points))
        xs, ys = zip(*((min(x, SLOWEST), y) for x, y in points), strict=True)
        axes.plot(xs, ys, zorder=3, clip_on=False, **s.look)
    if lanes > 1:
        for y in range(0, len(shown), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
    _axes(axes, [f"! {row}" if row in disturbed else row for row in shown], min(slowest, SLOWEST))
    beyond = f"; beyond {SLOWEST:g} at the edge" if slowest > SLOWEST else ""
    remark = "\n! something else used a core while it was timed" if any(row in disturbed for row in shown) else ""
    remark += f"\n{caption}" if caption else ""
    axes.set_xlabel(f"time relative to the fastest, which is on the right (left is better{beyond}){remark}", fontsize=9)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(shown)), [f"{milliseconds(fastest[row])} ms" for row in shown], fontsize=8)
    right.tick_params(axis="y", length=0)
    right.spines["right"].set_visible(False)
    figure.suptitle(title, fontsize=10)
    if used:
        # Matplotlib fills a legend by columns: transposed, with blanks where a row is short
        blank = Series(" ", "none", "s", size=0)
        handles = [axes.plot([], [], **key.look)[0] for column in zip_longest(*keys, fillvalue=blank) for key in column]
        columns = max(map(len, keys))
        labels = [str(handle.get_label()) for handle in handles]
        where: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": columns}
        axes.legend(handles, labels, fontsize=8, frameon=False, **where)
    replace_file(target, lambda file: figure.savefig(file, dpi=130))


LONGEST = 4.2  # times the fastest: where a bar of a network is cut


def draw_networks(document: Mapping[str, Any], target: str | Path) -> None:
    """Draw a panel of bars for each network of what `report.network_document` gives, and write the chart.

    A bar is the time of a pass in one library; libraries without a time are left out.
    """
    from matplotlib.figure import Figure

    shown = {
        network: sorted((found["best_ms"], name) for name, found in here["results"].items() if "best_ms" in found)
        for network, here in document["networks"].items()
    }
    bars = max(map(len, shown.values()), default=0)
    columns = 2 if len(shown) > 1 else 1
    rows = max(-(-len(shown) // columns), 1)
    figure = Figure(figsize=(4.8 * columns, 0.5 + rows * (0.55 + 0.23 * max(bars, 2))), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (network, times) in zip(panels.flat, shown.items(), strict=False):
        fastest = times[0][0] if times else 1.0
        for place, (spent, name) in enumerate(times):
            _, colour = LOOKS.get(name, (name, "#777777"))
            length = spent / fastest
            axes.barh(place, min(length, LONGEST), color=colour, height=0.74, zorder=3)
            cut = "... " if length > LONGEST else ""
            axes.text(min(length, LONGEST) + 0.05, place, f"{cut}{milliseconds(spent)} ms", va="center", fontsize=8)
        axes.set_yticks(range(len(times)), [LOOKS.get(name, (name,))[0] for _, name in times], fontsize=8)
        for label, (_, name) in zip(axes.get_yticklabels(), times, strict=True):
            label.set_fontweight("bold" if name.startswith("portconv") else "normal")
        axes.set_title(network, fontsize=10, loc="left")
        axes.invert_yaxis()
        axes.set_xlim(0, LONGEST + 0.9)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    where, threads = document["machine"], document["settings"]["threads"]
    title = f"All convolutions of a network, one image, float32, {threads} threads; {where['cpu']}"
    figure.suptitle(f"{title}, {where['usable_cores']} cores", fontsize=10)
    if caption := load(where):
        figure.supxlabel(caption, fontsize=8)
    replace_file(target, lambda file: figure.savefig(file, dpi=130))


def _axes(axes: Any, shown: Sequence[str], slowest: float) -> None:
    edge = max(slowest * 1.08, 2.1)
    crowded = {*((1.2, 1.5) if edge > 4 else ()), *((20, 50, 200) if edge > 30 else ())}
    ticks = [tick for tick in TICKS if tick <= edge and tick not in crowded]
    axes.set_xscale("log")
    axes.set_xlim(edge**-0.012, edge)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.set_ylim(-0.6, max(len(shown), 1) - 0.4)
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.grid(axis="y", color="#eeeeee", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
