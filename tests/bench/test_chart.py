"""The chart of `portconv bench`."""

from __future__ import annotations

import re

import pytest

from portconv.bench import chart
from portconv.bench.runner import Task, Timed
from tests.bench.helpers import RESULTS, SECOND, TINY


def test_chart_series():
    series, legend = chart.of_results(RESULTS)
    assert [(s.label, dict(s.times), s.lane) for s in series] == [
        ("auto", {TINY.id: 2.0, SECOND.id: 5.0}, 0),
        ("auto", {TINY.id: 0.001}, 1),
        ("native", {TINY.id: 0.0025}, 1),
    ]
    assert [[s.label for s in row] for row in legend] == [["numpy", "torch, cuda:0"], ["auto", "native"]]


def test_print_tells_libraries_and_engines_apart():
    engines = ("auto", "gemm", "winograd", "direct", "fft", "native")
    answers = {Task(TINY, engine, "cpu"): {"best_ms": 1.0} for engine in engines}
    series, (libraries, marks) = chart.of_results({name: Timed({}, answers) for name in ("numpy", "torch", "mlx")})
    shapes = {s.lane: s.marker for s in series}
    assert [shapes[lane] for lane in range(3)] == [s.marker for s in libraries] and len(set(shapes.values())) == 3
    assert [s.label for s in marks] == list(engines) and len({(s.filling, s.size) for s in marks}) == len(engines)


@pytest.mark.filterwarnings("default")  # those of Matplotlib's own parser of fonts
@pytest.mark.parametrize("results", [RESULTS, {}])
def test_chart(tmp_path, results):
    series, legend = chart.of_results(results)
    chart.draw(series, [TINY.id, SECOND.id], "title", tmp_path / "chart.png", legend)
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("default")
def test_a_chart_has_times_the_load_and_its_legend_on_top(tmp_path):
    series, legend = chart.of_results(RESULTS)
    caption = chart.load({"load_average": 0.25, "usable_cores": 2})
    chart.draw(series, [TINY.id, SECOND.id], "title", tmp_path / "a.svg", legend, caption=caption)
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- 0.001 ms -->" in drawn and "<!-- 5 ms -->" in drawn  # of the fastest of each layer
    assert "load of the machine before: 0.25 on 2 cores" in drawn and chart.load({"load_average": None}) == ""
    heights = {  # from the top
        word: float(re.search(rf"<!-- {word} -->\s*<g [^>]*translate\([\d.]+ ([\d.]+)\)", drawn)[1])
        for word in ("title", "numpy", "auto", TINY.id)
    }
    assert sorted(heights, key=heights.get) == list(heights)


@pytest.mark.filterwarnings("default")
def test_a_chart_of_networks_has_the_load(tmp_path):
    machine = {"cpu": "a CPU", "usable_cores": 2, "load_average": 0.25}
    networks = {"vgg19": {"results": {"torch": {"best_ms": 1234.5}, "portconv-jit": {"best_ms": 617.0}}}}
    document = {"machine": machine, "settings": {"threads": 1}, "networks": networks}
    chart.draw_networks(document, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "617 ms" in drawn and "load of the machine before: 0.25 on 2 cores" in drawn
