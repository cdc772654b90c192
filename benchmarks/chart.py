"""Draws the results of compare.py, each library's time of every layer, and those of `portconv bench --network`.

python benchmarks/chart.py results.json chart.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkout  # noqa: F401  before portconv

from portconv.bench.chart import LOOKS, Series, draw, draw_networks

# marker, size, hollow; the first on top
STYLES = {
    "portconv-jit": ("o", 60, False),
    "portconv-numpy": ("o", 52, True),
    "onnxruntime": ("s", 26, False),
    "openvino": ("^", 30, False),
    "torch": ("v", 30, False),
    "torch-channels-last": ("D", 22, False),
    "jax": ("P", 34, False),
    "opencv": ("X", 34, False),
    "opencv-separable": ("d", 34, False),
    "portconv-mlx": ("o", 40, True),
    "mlx": ("*", 30, False),
}


def draw_document(document: dict, target: str | Path) -> None:
    if "layers" not in document:  # what `portconv bench --network` wrote
        draw_networks(document, target)
        return
    series = []
    for library, (marker, size, hollow) in STYLES.items():
        label, colour = LOOKS[library]
        times = {
            f"{layer['suite']}/{layer['name']}": layer["results"][library]["best_ms"]
            for layer in document["layers"]
            if "best_ms" in layer["results"].get(library, {})
        }
        series.append(Series(label, colour, marker, times, size, hollow))
    rows = [f"{layer['suite']}/{layer['name']}" for layer in document["layers"]]
    machine, threads = document["machine"], document["settings"]["threads"]
    draw(series, rows, f"Steady state, float32, {threads} threads, {machine['cpu']}", target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what --json wrote")
    parser.add_argument("chart", type=Path, help=".png, .svg or .pdf to write")
    options = parser.parse_args()
    draw_document(json.loads(options.results.read_text(encoding="utf-8")), options.chart)


if __name__ == "__main__":
    main()
