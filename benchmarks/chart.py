"""Draws the results of compare.py, each library's time of every layer, and those of `portconv bench --network`.

python benchmarks/chart.py results.json chart.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkout  # noqa: F401  before portconv

from portconv.bench.chart import LOOKS, Series, draw, draw_networks, load

# marker, size, filling; the first on top
STYLES = {
    "portconv-jit": ("o", 60, "full"),
    "portconv-numpy": ("o", 52, "none"),
    "onnxruntime": ("s", 26, "full"),
    "openvino": ("^", 30, "full"),
    "torch": ("v", 30, "full"),
    "torch-channels-last": ("D", 22, "full"),
    "jax": ("P", 34, "full"),
    "opencv": ("X", 34, "full"),
    "opencv-separable": ("d", 34, "full"),
    "portconv-mlx": ("o", 40, "none"),
    "mlx": ("*", 30, "full"),
}


def draw_document(document: dict, target: str | Path) -> None:
    if "layers" not in document:  # what `portconv bench --network` wrote
        draw_networks(document, target)
        return
    series = []
    for library, (marker, size, filling) in STYLES.items():
        label, colour = LOOKS[library]
        times = {
            f"{layer['suite']}/{layer['name']}": layer["results"][library]["best_ms"]
            for layer in document["layers"]
            if "best_ms" in layer["results"].get(library, {})
        }
        series.append(Series(label, colour, marker, times, size, filling))
    rows = [f"{layer['suite']}/{layer['name']}" for layer in document["layers"]]
    machine, threads = document["machine"], document["settings"]["threads"]
    title = f"Steady state, float32, {threads} threads, {machine['cpu']}"
    draw(series, rows, title, target, caption=load(machine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what --json wrote")
    parser.add_argument("chart", type=Path, help=".png, .svg or .pdf to write")
    options = parser.parse_args()
    draw_document(json.loads(options.results.read_text(encoding="utf-8")), options.chart)


if __name__ == "__main__":
    main()
