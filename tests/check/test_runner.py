"""What runs the checks of libraries: it names the back end that is wrong, and survives one that dies or hangs."""

from __future__ import annotations

import json
import shlex

import pytest

from portconv.check import runner
from portconv.cli import main
from tests.helpers import named


def test_a_wrong_back_end_is_named(plugin, capsys):
    plugin("y.data[:1] = type(y.data)('fd'[y.dtype == 'float64'], [y.data[0] + 1e-3]) if y.data else y.data[:1]")
    number = named("3x3").number
    arguments = ["check", "--library", "tinyarray", "--library", "numpy", "--problem", str(number)]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    verdicts, label = {}, ""  # by library, which has a line of its own, and engine
    for words in map(str.split, out.splitlines()):
        if words[:1] == ["cpu"]:
            verdicts[label, words[1]] = words[2]
        label = " ".join(words) if len(words) < 3 and words else label
    assert verdicts["tinyarray", "native"] == "FAILED"
    assert {verdicts["tinyarray", e] for e in ("gemm", "fft", "direct")} == {"passed"}
    assert {verdict for (library, _), verdict in verdicts.items() if library == "numpy"} == {"passed"}
    assert f"tinyarray cpu native, problem {number} (3x3, normwise)" in out and "times the bound" in out
    (again,) = [line for line in out.splitlines() if line.strip().startswith("portconv check")]
    assert main(shlex.split(again)[1:]) == 1
    assert "times the bound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("p.groups == 3 and os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("p.groups == 3 and time.sleep(100)", "no answer: over 2 s, so its process was ended"),
    ],
)
def test_a_back_end_that_dies_or_hangs(plugin, capsys, tmp_path, monkeypatch, fault, message):
    plugin(fault)
    chosen = [named("groups, 4-D weight"), named("one pixel"), named("mistake: groups 0")]
    monkeypatch.setattr("portconv.cli.check._chosen", lambda *_: chosen)
    file = tmp_path / "check.json"
    arguments = ["check", "--library", "tinyarray", "--library", "numpy", "--limit", "2", "--json", str(file)]
    assert main([*arguments, "--engine", "native", "--engine", "direct"]) == 1
    assert message in capsys.readouterr().out
    runs = [run for run in json.loads(file.read_text())["runs"] if run["library"] == "tinyarray"]
    assert {r["number"] for r in runs if "failed" in r} == {chosen[0].number}
    assert {r["engine"] for r in runs if "failed" in r} == {"native"}
    assert {r["number"] for r in runs if "share" in r and r["engine"] == "native"} == {chosen[1].number}
    assert {r["number"] for r in runs if "raised" in r} == {chosen[2].number}


def test_a_back_end_that_always_dies_is_given_up(plugin, capsys):
    plugin("os.abort()")
    assert main(["check", "--library", "tinyarray", "--engine", "native", "--quick", "--count", "0"]) == 1
    out = capsys.readouterr().out
    assert f"given up after {runner.MAX_LOST} lost processes" in out and "SIGABRT" in out


def test_a_back_end_that_dies_on_import(plugin, capsys):
    plugin("pass", at_import="os.abort()")
    assert main(["check", "--library", "tinyarray", "--library", "numpy", "--problem", "1"]) == 1
    out = capsys.readouterr().out
    assert "tinyarray: asked for its devices: its process was killed by SIGABRT" in out and "numpy" in out


def test_a_back_end_that_refuses_everything(plugin, capsys):
    plugin("pass", at_import="TinyBackend.candidates = lambda self, problem: []")
    assert main(["check", "--library", "tinyarray", "--problem", "1"]) == 1
    assert "tinyarray" in capsys.readouterr().out


def test_plugins_and_libraries_that_are_not_here(plugin, monkeypatch):
    plugin("pass")
    found = {library.name: library for library in runner.libraries()}
    assert {"numpy", "mlx", "torch", "jax", "cupy", "dask", "array_api_strict", "tinyarray"} <= set(found)
    with runner.Checks([runner.Library("nonesuch"), found["tinyarray"]], 60) as checks:
        checks.survey()
        absent, present = checks.libraries
    assert "nonesuch" in absent.missing and not absent.devices
    assert set(present.devices) == {"cpu"} and {"native", "gemm"} <= set(present.devices["cpu"]["engines"])


def test_both_tiers_of_numpy(jit, monkeypatch):
    labels = [library.label for library in runner.libraries(["numpy"])]
    assert labels == ["numpy (plain)", "numpy (compiled)"]
    monkeypatch.setenv("PORTCONV_JIT", "0")
    assert [library.label for library in runner.libraries(["numpy"])] == ["numpy"]
