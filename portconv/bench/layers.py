"""`Layer`, one convolution problem as data, and how it is read from a file or from a command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import portconv

__all__ = ["TAPS", "Layer", "LayerError", "distinct", "load", "padding_of", "parse_sizes"]

TAPS = ("random", "gaussian", "box", "sobel")


class LayerError(ValueError):
    """A layer, or a file of layers, that makes no sense; the message is for users."""


@dataclass(frozen=True)
class Layer:
    """One convolution problem.

    Sizes are (height, width), and where its sides differ `padding` is (top, bottom, left, right).

    `taps` says what the weight is: random numbers, which no engine can profit from, or the taps of a filter that users
    run, all of which are separable. `count` says how often the layer occurs in one forward pass. `dtype` and `accuracy`
    are what it is computed in and to, as `portconv.plan_conv2d` takes them; peers know float32 alone.
    """

    suite: str
    name: str
    batch: int
    in_channels: int
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = False
    count: int = 1
    taps: str = "random"
    dtype: str = "float32"
    accuracy: str = "normwise"

    @property
    def id(self) -> str:
        """What tables and files call it."""
        return f"{self.suite}/{self.name}"

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """Shape of the image, NCHW."""
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight, (O, I/groups, kh, kw)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The padding as ((top, bottom), (left, right))."""
        top, bottom, left, right = (
            self.padding if len(self.padding) == 4 else (n for n in self.padding for _ in range(2))
        )
        return (top, bottom), (left, right)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that portconv and PyTorch call alike; sides that differ are for portconv alone."""
        return {
            "stride": self.stride,
            "padding": self.sides if len(self.padding) == 4 else self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """Shape of the result, NCHW."""
        sizes = zip(self.size, self.kernel, self.stride, self.sides, self.dilation, strict=True)
        height, width = ((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return (self.batch, self.out_channels, height, width)

    @property
    def macs(self) -> int:
        """Multiplications and additions of the direct sum, counted as one."""
        batch, channels, height, width = self.y_shape
        return batch * channels * height * width * self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved with kernels of its own, to one channel."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def problem(self) -> str:
        """The sizes in short, what is usual being left out."""
        text = f"{'x'.join(map(str, self.x_shape))} * {'x'.join(map(str, self.weight_shape))}"
        for letter, value, usual in (
            ("s", self.stride, (1, 1)),
            ("p", self.padding, (0, 0)),
            ("d", self.dilation, (1, 1)),
            ("g", (self.groups, self.groups), (1, 1)),
        ):
            text += f" {letter}{_short(value)}" if value != usual else ""
        return text + (f" {self.padding_mode}" if self.padding_mode != "zeros" else "")

    def check(self) -> Layer:
        """The layer itself; `LayerError`, of one line, if it cannot be computed."""
        for what in ("batch", "in_channels", "out_channels", "groups", "count"):
            value = getattr(self, what)
            if not isinstance(value, int) or value < 1:
                raise LayerError(f"layer {self.id}: `{what}` must be a positive int, but got {value!r}.")
        try:
            portconv.conv2d_output_shape(self.x_shape, self.weight_shape, **self.options)
        except (TypeError, ValueError) as error:
            raise LayerError(f"layer {self.id}: {str(error).splitlines()[0]}") from None
        if min(*self.x_shape, *self.y_shape, *self.kernel) < 1:
            raise LayerError(f"layer {self.id}: nothing to compute in {self.problem}.")
        if self.taps not in TAPS:
            raise LayerError(f"layer {self.id}: `taps` must be one of {', '.join(TAPS)}, but got {self.taps!r}.")
        if self.taps == "sobel" and self.kernel != (3, 3):
            raise LayerError(f"layer {self.id}: a Sobel filter is 3x3, but the kernel is {_short(self.kernel)}.")
        return self

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Layer:
        """The layer that `to_json` wrote."""
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in record.items()}
        return cls(**fields)


def _short(value: tuple[int, ...]) -> str:
    return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))


def parse_sizes(text: str, lengths: tuple[int, ...] = (4,)) -> tuple[int, ...]:
    """The integers of a text such as ``1x64x56x56``; there must be as many as one of `lengths`.

    Examples
    --------
    >>> parse_sizes("1x64x56x56")
    (1, 64, 56, 56)
    """
    parts = text.lower().replace(",", "x").split("x")
    try:
        sizes = tuple(int(part) for part in parts)
    except ValueError:
        sizes = ()
    if len(sizes) not in lengths or min(sizes) < 0:
        four = "1x64x56x56" if lengths == (4,) else "0x1x0x1"
        wanted = " or ".join({1: "2", 2: "2x1", 4: four}.get(length, str(length)) for length in lengths)
        raise LayerError(f"expected sizes such as {wanted}, but got {text!r}.")
    return sizes


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    height, width = value
    return (height, width)


def padding_of(
    value: Any, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, ...]:
    """The padding of a layer from a number, (height, width), (top, bottom, left, right), "same" or "valid".

    "same" gives ceil(size / stride) outputs, and an odd rest goes to the bottom and the right, as in `portconv.conv2d`.

    Examples
    --------
    >>> padding_of("same", (9, 8), (3, 3), (2, 2), (1, 1))
    (1, 1, 0, 1)
    """
    if value == "same":
        sides: list[int] = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max((-(-n // max(s, 1)) - 1) * s + d * (k - 1) + 1 - n, 0)
            sides += [total // 2, total - total // 2]
        value = sides
    elif value == "valid":
        value = 0
    if isinstance(value, int) or len(value) != 4:
        return _pair(value)
    top, bottom, left, right = value
    return (top, left) if (top, left) == (bottom, right) else (top, bottom, left, right)


_REQUIRED = ("N", "Cin", "H", "W", "Cout", "kh", "kw")


def load(path: str | Path) -> list[Layer]:
    """Layers from a JSON file: a list of records, `{"shapes": [...]}`, or `{"sets": {suite: [...]}}`.

    A record has N, Cin, H, W, Cout, kh, kw; it may have stride, padding, dilation (an int or a pair each; padding also
    "same", "valid" or four sides: top, bottom, left, right), groups, padding_mode, bias, count, taps, id or name, and
    suite.

    Raises
    ------
    LayerError
        If the file cannot be read, or does not hold that.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LayerError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise LayerError(f"{path} is no JSON: {error}.") from None
    layers = [_from_record(record, path, index) for index, record in enumerate(_records(content, path))]
    return distinct(layer.check() for layer in layers)


def _records(content: Any, path: Path) -> list[Any]:
    if isinstance(content, dict) and isinstance(content.get("sets"), dict):
        return [{"suite": name, **record} for name, members in content["sets"].items() for record in members]
    records = content.get("shapes") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise LayerError(f'{path} must hold a list of layers, {{"shapes": [...]}} or {{"sets": {{...}}}}.')
    return records


def _from_record(record: Any, path: Path, index: int) -> Layer:
    missing = [key for key in _REQUIRED if key not in record] if isinstance(record, dict) else list(_REQUIRED)
    if missing:
        raise LayerError(f"{path}, layer {index}: {', '.join(missing)} missing.")
    try:
        sizes = (record["H"], record["W"]), (record["kh"], record["kw"])
        steps = _pair(record.get("stride", 1)), _pair(record.get("dilation", 1))
        return Layer(
            suite=str(record.get("suite", path.stem)),
            name=str(record.get("id", record.get("name", index))),
            batch=record["N"],
            in_channels=record["Cin"],
            size=sizes[0],
            out_channels=record["Cout"],
            kernel=sizes[1],
            stride=steps[0],
            padding=padding_of(record.get("padding", 0), *sizes, *steps),
            dilation=steps[1],
            groups=record.get("groups", 1),
            padding_mode=record.get("padding_mode", "zeros"),
            bias=bool(record.get("bias", False)),
            count=record.get("count", 1),
            taps=record.get("taps", "random"),
        )
    except (TypeError, ValueError) as error:
        raise LayerError(f"{path}, layer {index}: {error}.") from None


def distinct(layers: Iterable[Layer]) -> list[Layer]:
    """Each layer once; different layers of the same id get numbers, since results are kept by id."""
    found: dict[str, Layer] = {}
    for layer in dict.fromkeys(layers):
        number, renamed = 1, layer
        while renamed.id in found:
            number += 1
            renamed = replace(layer, name=f"{layer.name}#{number}")
        found[renamed.id] = renamed
    return list(found.values())
