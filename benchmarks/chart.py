"""Draws the results of compare.py: for every layer, each library's time relative to the fastest.

python benchmarks/chart.py results.json chart.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

# Colours of Okabe and Ito, which colour-blind readers can tell apart.
STYLES = {
    "portconv-numpy": ("portconv (plain NumPy)", "#D55E00", "o"),
    "onnxruntime": ("ONNX Runtime", "#0072B2", "s"),
    "openvino": ("OpenVINO", "#009E73", "^"),
    "torch": ("PyTorch", "#CC79A7", "v"),
    "torch-channels-last": ("PyTorch, channels last", "#E69F00", "D"),
    "jax": ("JAX", "#56B4E9", "P"),
    "opencv": ("OpenCV", "#999999", "X"),
    "mlx": ("mx.conv2d, CPU", "#000000", "*"),
}
SLOWEST = 300.0  # beyond, a mark stands at the edge


def draw(document: dict, target: Path) -> None:
    layers = [layer for layer in document["layers"] if "best_ms" in layer["results"].get("portconv-numpy", {})]
    layers.reverse()  # the first on top
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.19 * len(layers)), layout="constrained")
    fastest = [min(a["best_ms"] for a in layer["results"].values() if "best_ms" in a) for layer in layers]
    for library, (label, colour, marker) in STYLES.items():
        points = [
            (min(layer["results"][library]["best_ms"] / best, SLOWEST), row)
            for row, (layer, best) in enumerate(zip(layers, fastest, strict=True))
            if "best_ms" in layer["results"].get(library, {})
        ]
        if points:
            ours = library.startswith("portconv")
            size, order = (52, 3) if ours else (26, 2)
            style = {"c": colour, "marker": marker, "label": label, "linewidths": 0}
            axes.scatter(*zip(*points, strict=True), s=size, zorder=order, **style)
    axes.set_xscale("log")
    axes.set_xlim(0.93, SLOWEST * 1.1)
    axes.set_xticks([1, 2, 3, 5, 10, 30, 100, 300], ["1", "2", "3", "5", "10", "30", "100", "300"])
    axes.minorticks_off()
    axes.set_ylim(-0.7, len(layers) - 0.3)
    names = [f"{layer['id'] if 'id' in layer else layer['suite'] + '/' + layer['name']}" for layer in layers]
    axes.set_yticks(range(len(layers)), names, fontsize=7)
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.grid(axis="y", color="#f0f0f0", zorder=0)
    axes.set_xlabel("time relative to the fastest library (1 is the fastest; left is better)")
    machine, threads = document["machine"], document["settings"]["threads"]
    axes.set_title(f"Steady state, float32, {threads} threads, {machine['cpu']}", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.06 - 1.5 / len(layers)), ncols=4, fontsize=8, frameon=False)
    figure.savefig(target, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what compare.py --json wrote")
    parser.add_argument("chart", type=Path, help="PNG or SVG to write")
    options = parser.parse_args()
    draw(json.loads(options.results.read_text(encoding="utf-8")), options.chart)


if __name__ == "__main__":
    main()
