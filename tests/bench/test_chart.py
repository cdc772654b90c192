"""The chart of `portconv bench`."""

from __future__ import annotations

import pytest

from portconv.bench import chart
from tests.bench.helpers import RESULTS, SECOND, TINY


def test_chart_series():
    series, legend = chart.of_results(RESULTS)
    assert [(s.label, dict(s.times), s.lane) for s in series] == [
        ("auto", {TINY.id: 2.0, SECOND.id: 5.0}, 0),
        ("auto", {TINY.id: 0.001}, 1),
        ("native", {TINY.id: 0.0025}, 1),
    ]
    assert [[s.label for s in row] for row in legend] == [["numpy", "torch, cuda:0"], ["auto", "native"]]


@pytest.mark.filterwarnings("default")  # those of Matplotlib's own parser of fonts
@pytest.mark.parametrize("results", [RESULTS, {}])
def test_chart(tmp_path, results):
    series, legend = chart.of_results(results)
    chart.draw(series, [TINY.id, SECOND.id], "title", tmp_path / "chart.png", legend)
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
