"""The comparison of benchmarks/: ratios to the best peer, and claims that can fail."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import portconv
from portconv.bench import suites
from portconv.bench.contest import Contest
from tests.bench.helpers import SECOND, TINY, other

BENCHMARKS = Path(portconv.__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def claims():
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of this distribution")
    before = sys.path[:]
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("claims")
    sys.path[:] = before


def answers(**milliseconds):
    return {name.replace("_", "-"): {"best_ms": ms} for name, ms in milliseconds.items()}


def test_ratios_are_taken_against_the_best_peer(claims):
    tables = importlib.import_module("tables")
    found = answers(portconv_numpy=4.0, portconv_jit=1.0, torch=3.0, onnxruntime=2.0, portconv_mlx=1.5)
    found["jax"] = {"error": "wrong"}
    assert tables.best_peer(found) == ("onnxruntime", 2.0)
    assert tables.ratio(found, "portconv-jit") == 2.0 and tables.ratio(found, "portconv-numpy") == 0.5
    assert tables.ratio(found, "portconv-numpy", ("torch",)) == 0.75
    assert tables.ratio(answers(torch=1.0), "portconv-jit") is None
    twice = other("second", count=2)
    results = {TINY.id: found, twice.id: answers(portconv_jit=2.0, torch=1.0)}
    assert tables.total([TINY, twice], results, "portconv-jit") == 5.0
    assert tables.quotient([TINY, twice], results, "portconv-jit") == pytest.approx(4 / 5)
    assert tables.quotient([TINY, twice], results, "portconv-numpy") is None

    def cells(table):
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]

    names = ["portconv-jit", "torch", "onnxruntime"]
    assert cells(tables.layer_table([TINY, twice], names, results))[2:] == [
        ["given/tiny", TINY.problem, "1*", "3", "2", "onnxruntime", "2.00", ""],
        ["given/second", TINY.problem, "2", "1*", "", "torch", "0.50", ""],
    ]
    assert cells(tables.suite_table([TINY, twice], names, results))[2:] == [
        ["given", "geometric mean", "1.41", "1.73", "2 (1/2)", "1.41", "1"],
        ["given", "worst layer", "", "", "", "", "0.50"],
        ["given", "sum x count, ms", "5", "5", "", "4", "0.80"],
    ]


def test_claims_can_fail(claims, monkeypatch):
    monkeypatch.setattr(claims, "missing", lambda tier: None)

    def verdicts(first, second):
        return [v.verdict for v in claims._ratios("portconv-jit", [TINY, SECOND], {TINY.id: first, SECOND.id: second})]

    fast, slow = answers(portconv_jit=1.0, torch=4.0), answers(portconv_jit=2.0, torch=1.0)
    assert verdicts(fast, fast) == ["pass", "pass"]
    assert verdicts(fast, slow) == ["pass", "FAIL"]  # 4 and 0.5
    assert verdicts(slow, slow) == ["FAIL", "FAIL"]
    assert verdicts(fast, answers(torch=1.0)) == ["not measured"] * 2
    assert verdicts(fast, {"portconv-jit": {"error": "wrong"}, **answers(torch=1.0)}) == ["FAIL"] * 2
    assert verdicts(fast, answers(portconv_jit=9.0)) == ["pass", "pass"]  # no peer can run it

    slowest = claims._slowest("c", [TINY, SECOND], "portconv-jit", ("torch",), 1.5, {TINY.id: fast, SECOND.id: slow})
    assert slowest.verdict == "FAIL" and "2.00 times as long (given/second, torch)" in slowest.figure


def test_claims_on_whole_networks_can_fail(claims, monkeypatch):
    monkeypatch.setattr(claims, "missing", lambda tier: None)

    def verdict(**milliseconds):
        found = Contest({}, {"vgg19": answers(**milliseconds)})
        return claims._network("vgg19", found).verdict

    assert verdict(portconv_jit=1.0, torch=1.2, onnxruntime=3.0) == "pass"  # the best single peer
    assert verdict(portconv_jit=1.0, torch=1.05) == "FAIL"
    assert verdict(portconv_jit=1.0, mlx=1.05) == verdict(torch=1.0) == "not measured"
    wrong = Contest({}, {"vgg19": {"portconv-jit": {"error": "wrong"}, **answers(torch=1.0)}})
    assert claims._network("vgg19", wrong).verdict == "FAIL"
    assert claims._network("resnet50", wrong).verdict == "not measured"
    libraries, networks = claims.networks(["portconv-jit", "portconv-numpy", "torch", "mlx", "opencv"])
    assert libraries == ["portconv-jit", "torch"] and len(networks["resnet50"]) == 53


@pytest.mark.parametrize(("own", "expected"), [(1.0, "pass"), (4.0, "FAIL")])
def test_claims_on_overhead_and_start_are_ratios(claims, monkeypatch, own, expected):
    monkeypatch.setattr(claims, "missing", lambda tier: None)
    whole = {"torch": {"call_us": 4.0}, "numpy": {"overhead_us": own}}
    monkeypatch.setattr(claims.overhead, "in_new_process", lambda library, *_: whole[library])
    monkeypatch.setattr(claims.startup, "measure", lambda _, tier: {"import_and_call_s": 8 if tier == "torch" else own})
    assert claims._overhead("portconv-jit", 2).verdict == expected
    assert claims._startup("portconv-numpy", 2).verdict == expected
    monkeypatch.setattr(claims, "missing", lambda tier: "torch is not installed" if tier == "torch" else None)
    assert claims._overhead("portconv-jit", 2).verdict == claims._startup("portconv-jit", 2).verdict == "not measured"


def test_claims_run_what_they_need(claims):
    jobs = claims.jobs(["portconv-jit", "torch", "mlx", "opencv"], [TINY])
    assert all(TINY in jobs[name] for name in ("portconv-jit", "torch", "opencv"))
    assert jobs["mlx"] == suites.suite("resnet50")
    assert set(claims.LARGE_KERNELS) <= set(jobs["torch"]) & set(jobs["portconv-jit"])
    assert {"box31_2048", "random31_2048"} <= {layer.name for layer in jobs["opencv"]}
