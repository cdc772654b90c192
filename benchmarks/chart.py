"""Draws the results of compare.py: for every layer, each library's time relative to the fastest.

python benchmarks/chart.py results.json chart.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkout  # noqa: F401  before portconv

from portconv.bench.chart import Series, draw

# label, colour (of Okabe and Ito, which colour-blind readers can tell apart), marker, size, hollow; the first on top
STYLES = {
    "portconv-jit": ("portconv, compiled", "#D55E00", "o", 60, False),
    "portconv-numpy": ("portconv, plain NumPy", "#D55E00", "o", 52, True),
    "onnxruntime": ("ONNX Runtime", "#0072B2", "s", 26, False),
    "openvino": ("OpenVINO", "#009E73", "^", 30, False),
    "torch": ("PyTorch", "#CC79A7", "v", 30, False),
    "torch-channels-last": ("PyTorch, channels last", "#E69F00", "D", 22, False),
    "jax": ("JAX", "#56B4E9", "P", 34, False),
    "opencv": ("OpenCV, filter2D", "#777777", "X", 34, False),
    "opencv-separable": ("OpenCV, sepFilter2D", "#777777", "d", 34, False),
    "portconv-mlx": ("portconv, MLX arrays", "#000000", "o", 40, True),
    "mlx": ("mx.conv2d, CPU", "#000000", "*", 30, False),
}


def draw_document(document: dict, target: str | Path) -> None:
    series = []
    for library, (label, colour, marker, size, hollow) in STYLES.items():
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
    parser.add_argument("results", type=Path, help="what compare.py --json wrote")
    parser.add_argument("chart", type=Path, help=".png, .svg or .pdf to write")
    options = parser.parse_args()
    draw_document(json.loads(options.results.read_text(encoding="utf-8")), options.chart)


if __name__ == "__main__":
    main()
