"""Files and sizes of layers."""

from __future__ import annotations

import json

import pytest

from portconv.bench.layers import Layer, LayerError, load, parse_sizes

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


def test_sizes():
    assert parse_sizes("2x3", (1, 2)) == (2, 3)
    for text in ("", "1x2", "1x2x3xa", "1x2x3x-4"):
        with pytest.raises(LayerError, match="expected sizes such as 1x64x56x56"):
            parse_sizes(text)
