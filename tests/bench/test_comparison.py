"""Which library a network should run on: the rows, the verdict, the table."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from portconv.bench import comparison, report
from portconv.bench.comparison import Row, verdict
from portconv.bench.contest import Contest
from tests.bench.helpers import SECOND, SETTINGS, TINY


def answer(best, median=None, engines=("gemm",)):
    layers = [{"engine": name, "tier": "native" if name == "native" else "compiled"} for name in engines]
    return {"best_ms": best, "median_ms": median or best, "layers": layers}


ROWS = [
    Row("torch", "cpu", {"auto": answer(20.0, 22.0, ("native", "gemm")), "native": answer(30.0)}),
    Row("numpy", "cpu", {"auto": answer(10.0, 10.5, ("gemm", "direct")), "native": {"skipped": "a/b: it has none"}}),
    Row("mlx", "gpu", {"auto": {"error": "wrong result"}, "native": answer(10.4)}),
]


def test_the_verdict_names_the_fastest_and_what_is_as_fast_within_the_noise():
    said = verdict(ROWS)
    assert (said.library, said.device, said.way, said.best_ms) == ("numpy", "cpu", "auto", 10.0)
    assert said.within_noise == ("mlx on gpu",) and (said.behind, said.ratio) == ("torch on cpu", 2.0)
    assert str(said) == (
        "numpy on cpu, by portconv's choice, is the fastest: 10 ms; within noise of it: mlx on gpu; torch on cpu takes "
        "2.00 times as long"
    )


def test_a_difference_above_the_noise_counts():
    rows = [Row("a", "cpu", {"auto": answer(10.0, 10.1)}), Row("b", "cpu", {"native": answer(10.2, 10.3)})]
    assert verdict(rows).within_noise == () and verdict(rows).behind == "b on cpu"
    rows = [Row("a", "cpu", {"auto": answer(12.0)}), Row("b", "cpu", {"auto": answer(15.0), "native": answer(11.0)})]
    assert (verdict(rows).library, verdict(rows).way) == ("b", "native")
    assert verdict([Row("a", "cpu", {"auto": {"error": "it died"}})]) is None and verdict([]) is None


def test_libraries_take_turns_and_what_failed_is_not_repeated(monkeypatch):
    log, times = [], iter((4.0, 3.0))

    def run(target, device, layers, settings):
        log.append((target.name, device, target.arguments[-1]))
        return {"error": "it died"} if target.name == "dies" else {"auto": answer(next(times)), "native": answer(5.0)}

    monkeypatch.setattr(comparison, "run_turns", run)
    places = [("good", "gpu"), ("dies", "cpu")]
    found = comparison.compare(places, {"net": [TINY, SECOND]}, SETTINGS, 2, "NHWC", lambda *_: None)
    good, dies = found["net"]
    assert log == [("good", "gpu", "NHWC"), ("dies", "cpu", "NHWC"), ("good", "gpu", "NHWC")]
    assert good.answers["auto"]["best_ms"] == 3.0 and good.ratio == pytest.approx(5 / 3)
    assert dies.answers == {"auto": {"error": "it died"}} and dies.ratio is None and not dies.layers


def test_a_real_network_on_numpy():
    found = comparison.compare([("numpy", "cpu")], {"net": [TINY, SECOND]}, SETTINGS, 1, "NCHW", lambda *_: None)
    (row,) = found["net"]
    assert row.answers["auto"]["best_ms"] > 0 and "NumPy has no convolution" in row.answers["native"]["skipped"]
    assert len(row.own) == 2 and row.tiers and verdict([row]).library == "numpy"


def test_the_table_and_the_document():
    console = Console(width=80, file=io.StringIO())
    console.print(report.comparison_table({"vgg19": ROWS}))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["torch", "cpu", "30", "20", "1.50", "1", "of", "2", "compiled"] in lines
    fastest, failed = ["numpy", "cpu", "-", "10", "2", "of", "2", "compiled"], ["mlx", "gpu", "10.4", "error"]
    assert lines.index(fastest) < lines.index(failed)
    assert report.comparison_problems({"vgg19": ROWS}) == [
        "mlx gpu auto, vgg19: wrong result",
        "numpy cpu native, vgg19: a/b: it has none",
    ]
    document = report.network_document({"vgg19": [TINY]}, Contest({}, {"vgg19": {}}), SETTINGS, {}, {"vgg19": ROWS})
    network = json.loads(json.dumps(document))["networks"]["vgg19"]
    assert network["verdict"]["library"] == "numpy" and network["verdict"]["within_noise"] == ["mlx on gpu"]
    assert network["comparison"][0] == ROWS[0].to_json() and network["comparison"][0]["native_over_auto"] == 1.5
