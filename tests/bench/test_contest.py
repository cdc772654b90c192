"""Whole networks, library by library."""

from __future__ import annotations

import io
import json

import pytest

from portconv.bench import chart, contest, report, runner
from portconv.bench.contest import Contest
from portconv.bench.networks import network
from portconv.processes.session import Target
from tests.bench.helpers import SECOND, SETTINGS, TINY

FIGURES = {
    "best_ms": 2.0,
    "median_ms": 2.5,
    "rounds": 3,
    "build_ms": 1.0,
    "first_ms": 4.0,
    "second_ms": 3.0,
    "process_bytes": 300 << 20,
    "network_bytes": 100 << 20,
    "disturbed": False,
    "error_share": 0.125,
    "layers": [{"id": TINY.id, "best_ms": 2.0, "median_ms": 2.0, "engine": "x", "tier": "compiled", "device": "cpu"}],
}
FOUND = Contest(
    {"portconv-jit": {"versions": {}}, "torch": {"versions": {}}, "jax": {"missing": "no jax"}},
    {
        "vgg19": {
            "torch": {**FIGURES, "best_ms": 3.0},
            "portconv-jit": FIGURES,
            "onnxruntime": {**FIGURES, "best_ms": 30.0, "disturbed": True},
        },
        "resnet50": {"portconv-jit": {"error": "wrong result"}, "mlx": {"skipped": "too odd"}},
    },
)


def test_who_takes_part():
    names = [target.name for target in contest.contestants()]
    assert names[:3] == ["portconv-jit", "portconv-numpy", "torch"] and "onnxruntime" in names
    assert not [name for name in names if "opencv" in name]
    assert [target.name for target in contest.contestants(["mlx"], ["jax"])] == ["portconv-mlx", "jax"]


@pytest.mark.parametrize("name", ["portconv-jit", "portconv-numpy"])
def test_portconv_runs_networks(name, jit):
    (target,) = (target for target in contest.contestants() if target.name == name)
    seen = []
    found = contest.contest([target], {"vgg19": [TINY, SECOND]}, SETTINGS, 2, lambda *what: seen.append(what))
    answer = found.results["vgg19"][name]
    assert answer["best_ms"] > 0 and 0 < answer["error_share"] <= 1 and not found.missing
    assert [layer["id"] for layer in answer["layers"]] == [TINY.id, SECOND.id] and answer["layers"][0]["engine"]
    assert [what[:2] for what in seen] == [("vgg19", name)] * 2


def test_passes_take_turns_and_what_failed_is_not_repeated(monkeypatch):
    log = []

    def run(target, layers, settings, check):
        log.append((target.name, check))
        if target.name == "missing":
            return {"missing": "not here"}, {"missing": "not here"}
        return {"name": target.name}, {"error": "it died"} if target.name == "dies" else FIGURES

    monkeypatch.setattr(contest, "run_network", run)
    targets = [Target(name, "") for name in ("good", "missing", "dies", "better")]
    found = contest.contest(targets, {"vgg19": [TINY]}, SETTINGS, 2, lambda *_: None)
    assert log[:4] == [("good", True), ("missing", True), ("dies", True), ("better", True)]
    assert log[4:] == [("good", False), ("better", False)]
    assert found.missing == {"missing": "not here"} and found.results["vgg19"]["dies"] == {"error": "it died"}
    assert set(found.results["vgg19"]) == {"good", "dies", "better"}


def test_the_best_pass_counts_with_the_least_memory():
    slow = {**FIGURES, "best_ms": 5.0, "network_bytes": 1, "first_ms": 3.5}
    for first, second in ((FIGURES, slow), (slow, FIGURES)):
        best = runner.keep_best_network(first, second)
        assert (best["best_ms"], best["network_bytes"], best["first_ms"]) == (2.0, 1, 3.5)
    assert runner.keep_best_network(None, slow) == slow
    disturbed = {**FIGURES, "best_ms": 1.0, "disturbed": True}
    assert runner.keep_best_network(disturbed, slow)["best_ms"] == 5.0
    lost = {"error": "over 1 s"}
    assert runner.keep_best_network(FIGURES, lost) == runner.keep_best_network(lost, FIGURES) == lost


def test_the_best_peer_is_one_library_for_the_whole():
    assert contest.best_peer(FOUND.results["vgg19"]) == "torch" and contest.best_peer(FOUND.results["resnet50"]) is None


def test_the_table_and_the_reasons():
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.network_table(FOUND))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["portconv-jit", "compiled", "cpu", "2", "1.50", "5", "0.125", "300", "100"] in lines
    assert ["torch", "compiled", "cpu", "*", "3", "1.00", "5", "0.125", "300", "100"] in lines
    assert ["onnxruntime", "compiled", "cpu", "!", "30", "0.10", "5", "0.125", "300", "100"] in lines
    assert lines.index(["resnet50"]) > lines.index(["vgg19"])
    assert ["portconv-jit", "error"] in lines and ["mlx", "skipped"] in lines
    assert report.network_problems(FOUND) == [
        "portconv-jit, resnet50: wrong result",
        "mlx, resnet50: too odd",
        "jax is not here: no jax",
    ]


@pytest.mark.filterwarnings("default")  # those of Matplotlib's own parser of fonts
def test_the_document_and_its_chart(tmp_path):
    networks = {"vgg19": network("vgg19"), "resnet50": network("resnet50")}
    more = {"machine": {"cpu": "a processor", "usable_cores": 2}}
    document = json.loads(json.dumps(report.network_document(networks, FOUND, SETTINGS, more)))
    assert document["networks"]["vgg19"]["results"]["torch"]["best_ms"] == 3.0
    assert len(document["networks"]["resnet50"]["layers"]) == 53
    assert document["libraries"]["jax"] == {"missing": "no jax"}
    chart.draw_networks(document, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
