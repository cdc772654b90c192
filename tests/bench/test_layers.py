"""Files and sizes of layers."""

from __future__ import annotations

import json

import pytest

import portconv
from portconv.bench.layers import Layer, LayerError, load, padding_of, parse_sizes

RECORD = {"N": 1, "Cin": 4, "H": 8, "W": 9, "Cout": 6, "kh": 3, "kw": 1}


@pytest.mark.parametrize("wrap", [list, lambda r: {"shapes": r}, lambda r: {"sets": {"mine": r}}])
def test_files_of_layers(tmp_path, wrap):
    file = tmp_path / "mine.json"
    more = {"id": "b", "stride": 2, "padding": [1, 0], "groups": 2, "padding_mode": "reflect", "count": 5}
    file.write_text(json.dumps(wrap([RECORD, RECORD | more])))
    first, second = load(file)
    assert first == Layer("mine", "0", 1, 4, (8, 9), 6, (3, 1))
    assert second == Layer(
        "mine", "b", 1, 4, (8, 9), 6, (3, 1), (2, 2), (1, 0), groups=2, padding_mode="reflect", count=5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("7", "must hold a list"),
        ("{}", "must hold a list"),
        ("[3]", "layer 0: N, Cin"),
        (json.dumps([{k: v for k, v in RECORD.items() if k != "kw"}]), "layer 0: kw missing"),
        (json.dumps([RECORD | {"groups": 3}]), "`groups`"),
        (json.dumps([RECORD | {"stride": 0}]), "must be at least 1, but got 0"),
        (json.dumps([RECORD | {"groups": 0}]), "`groups` must be a positive int"),
        (json.dumps([RECORD | {"Cin": "4"}]), "`in_channels` must be a positive int"),
        (json.dumps([RECORD | {"stride": [1, 2, 3]}]), "layer 0: "),
        (json.dumps([RECORD | {"H": "8"}]), "must be an int"),
        (json.dumps([RECORD | {"padding_mode": "none"}]), "`padding_mode`"),
        (json.dumps([RECORD | {"kh": 30}]), "does not fit"),
        (json.dumps([RECORD | {"N": 0}]), "`batch` must be a positive int"),
        (json.dumps([RECORD | {"W": 0, "padding": 1}]), "height and a width of at least 1"),
        (json.dumps([RECORD | {"taps": "wavelet"}]), "`taps`"),
        (json.dumps([RECORD | {"taps": "sobel"}]), "3x3"),
    ],
)
def test_wrong_files_of_layers(tmp_path, text, message):
    file = tmp_path / "layers.json"
    file.write_text(text)
    with pytest.raises(LayerError, match=message) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(LayerError, match="cannot be read"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "padding"),
    [
        ("same", (0, 1, 1, 1)),
        ("valid", (0, 0)),
        (1, (1, 1)),
        ([0, 2], (0, 2)),
        ([1, 1, 2, 2], (1, 2)),
        ([1, 0, 2, 3],) * 2,
    ],
)
def test_padding(tmp_path, given, padding):
    """It is what `portconv.conv2d` makes of it."""
    sizes = (8, 9), (3, 3), (2, 2), (1, 1)
    assert padding_of(given, *sizes) == tuple(padding)
    file = tmp_path / "layers.json"
    file.write_text(json.dumps([{**RECORD, "kw": 3, "stride": 2, "padding": given}]))
    (layer,) = load(file)
    as_array = given if isinstance(given, (str, int)) or len(given) == 2 else (tuple(given[:2]), tuple(given[2:]))
    expected = portconv.conv2d_output_shape(layer.x_shape, layer.weight_shape, 2, as_array)
    assert layer.y_shape == expected == portconv.conv2d_output_shape(layer.x_shape, layer.weight_shape, **layer.options)


def test_sizes():
    assert parse_sizes("2x3", (1, 2)) == (2, 3)
    for text in ("", "1x2", "1x2x3xa", "1x2x3x-4"):
        with pytest.raises(LayerError, match="expected sizes such as 1x64x56x56"):
            parse_sizes(text)
