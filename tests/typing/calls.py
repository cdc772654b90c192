"""Right and wrong calls, as type checkers see them: each line that ends in "wrong" has an error, and no other."""

from typing import Any

import numpy as np
import numpy.typing as npt

import portconv

x = np.zeros((1, 3, 32, 32), np.float32)
photo: npt.NDArray[np.uint8] = np.zeros((1, 32, 32, 3), np.uint8)
weight = np.zeros((8, 3, 3, 3), np.float32)
bias = np.zeros(8, np.float32)
one = np.int64(1)

# what is right
y: npt.NDArray[Any] = portconv.conv2d(x, weight, bias, 2, 1)
y = portconv.conv2d(x, weight, None, (1, 2), ((1, 2), (0, 1)), [1, 1], one, padding_mode="reflect")
y = portconv.conv2d(x, weight, padding="same", layout="NHWC", accuracy="elementwise", strategy="measure", out=y)
y = portconv.conv2d(photo, weight, activation=("leaky_relu", 0.2), residual=y, out_dtype="uint8", engine="my engine")
floats: npt.NDArray[np.float32] = portconv.conv2d(photo, weight)  # the result is not of the type of the image
pooled: npt.NDArray[np.uint8] = portconv.max_pool2d(photo, 2, padding=(1, 0), layout="NHWC")
y = portconv.avg_pool2d(x, (2, 2), mode="average")
y = portconv.interpolate2d(x, scale_factor=2, mode="nearest")
conv = portconv.Conv2d(3, 8, (3, 3), padding="same", activation="relu", rng=0)
y = conv(photo, residual=y)
name: "str | None" = conv.name
shape: tuple[int, ...] = conv.output_shape((1, 3, 9, 9))
engine: str = portconv.plan_conv2d(x, (8, 3, 3, 3), bias=True, stride=2).engine

# what is not
portconv.conv2d([[1.0]], weight)  # wrong
portconv.conv2d(x, weight, 2)  # wrong
portconv.conv2d(x, weight, stride=1.5)  # wrong
portconv.conv2d(x, weight, padding="SAME")  # wrong
portconv.conv2d(x, weight, padding_mode="edge")  # wrong
portconv.conv2d(x, weight, layout="channels_last")  # wrong
portconv.conv2d(x, weight, strides=2)  # wrong
portconv.conv2d(x, weight, activation="swish")  # wrong
portconv.plan_conv2d(x, weight, accuracy="high")  # wrong
portconv.max_pool2d(x, 2, layout="HWC")  # wrong
portconv.interpolate2d(x, 2, mode="bicubic")  # wrong
portconv.Conv2d(3, 8, 3, padding_mode="symmetric")  # wrong
portconv.Conv2d(3, 8)  # wrong
portconv.Conv2d(3, 8, "3")  # wrong
conv([[1.0]])  # wrong
conv.stride = (2, 2)  # wrong
conv.weigth  # noqa: B018  # wrong
number: int = conv(x)  # wrong
