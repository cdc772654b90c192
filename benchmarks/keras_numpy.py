"""Layers and models of Keras's on its NumPy back end: with portconv's functions, beside Keras's own, which call JAX.

    python benchmarks/keras_numpy.py
    python benchmarks/keras_numpy.py --seconds 10 --select Conv2D

Both take turns, a call each that is not timed and three that are. The best of each counts, and the median. A ratio is
the time of Keras's own over portconv's: above 1, portconv wins. Times are those of whole calls, Keras's share included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import checkout  # noqa: F401  before portconv
import numpy as np
from tables import aligned

import portconv.keras

os.environ["KERAS_BACKEND"] = "numpy"
from keras import Input, Model, Sequential, layers


def mobilenet():
    x = image = Input((96, 96, 3))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(32, 3, 2, "same", use_bias=False)(x)))
    for filters, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1)):
        x = layers.DepthwiseConv2D(3, stride, "same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(x)))
    return Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def vgg():
    model = Sequential([Input((64, 64, 3))])
    for filters in (32, 64, 128):
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(10))
    return model


CASES = {
    "Conv2D(64, 3)": (lambda: layers.Conv2D(64, 3, padding="same"), (1, 56, 56, 64)),
    "Conv2D(256, 1)": (lambda: layers.Conv2D(256, 1), (1, 56, 56, 64)),
    "Conv2D(512, 3)": (lambda: layers.Conv2D(512, 3, padding="same"), (1, 7, 7, 512)),
    "Conv2D(64, 7, 2)": (lambda: layers.Conv2D(64, 7, 2, "same"), (1, 224, 224, 3)),
    "Conv2D(8, 3)": (lambda: layers.Conv2D(8, 3, padding="same"), (1, 8, 8, 8)),
    "DepthwiseConv2D(3)": (lambda: layers.DepthwiseConv2D(3, padding="same"), (1, 56, 56, 128)),
    "SeparableConv2D(128, 3)": (lambda: layers.SeparableConv2D(128, 3, padding="same"), (1, 28, 28, 128)),
    "Conv2DTranspose(64, 4, 2)": (lambda: layers.Conv2DTranspose(64, 4, 2, "same"), (1, 28, 28, 128)),
    "Conv1D(64, 9)": (lambda: layers.Conv1D(64, 9, padding="same"), (1, 2048, 64)),
    "Conv3D(32, 3)": (lambda: layers.Conv3D(32, 3, padding="same"), (1, 16, 32, 32, 16)),
    "Conv3DTranspose(16, 3, 2)": (lambda: layers.Conv3DTranspose(16, 3, 2, "same"), (1, 8, 16, 16, 32)),
    "MaxPooling2D(3, 2)": (lambda: layers.MaxPooling2D(3, 2, "same"), (1, 112, 112, 64)),
    "AveragePooling2D(2)": (lambda: layers.AveragePooling2D(2), (1, 56, 56, 64)),
    "like MobileNet": (mobilenet, (1, 96, 96, 3)),
    "like VGG": (vgg, (4, 64, 64, 3)),
}


def timed(layer, x, count):
    layer(x)
    for _ in range(count):
        before = time.perf_counter()
        layer(x)
        yield time.perf_counter() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case")
    parser.add_argument("--select", default="", help="cases whose names have this in them")
    options = parser.parse_args()
    rows = [["case", "image", "portconv ms", "Keras's own ms", "ratio", "of medians"]]
    for name, (build, shape) in CASES.items():
        if options.select not in name:
            continue
        layer, x = build(), np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        expected = layer(x)
        portconv.keras.install()
        for _ in range(2):  # the kernel is packed at its second use
            np.testing.assert_allclose(layer(x), expected, rtol=1e-3, atol=1e-4)
        ours, theirs = [], []
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end:
            portconv.keras.uninstall()
            theirs += timed(layer, x, 3)
            portconv.keras.install()
            ours += timed(layer, x, 3)
        portconv.keras.uninstall()
        ratios = [f"{f(theirs) / f(ours):.2f}" for f in (min, statistics.median)]
        times = [f"{min(found) * 1e3:.3f}" for found in (ours, theirs)]
        rows.append([name, "x".join(map(str, shape)), *times, *ratios])
    print(aligned(rows))


if __name__ == "__main__":
    main()
