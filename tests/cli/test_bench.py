"""The command `portconv bench`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import importlib.util
import json

import pytest

import portconv
from portconv.bench.comparison import Row
from portconv.bench.contest import Contest
from portconv.bench.runner import Timed
from portconv.cli import bench as command
from portconv.cli import main
from portconv.cli import network as network_command
from tests.helpers import lines

GIVEN = ["bench", "--x", "1x4x9x8", "--weight", "6x2x3x3", "--padding", "1x0", "--library", "numpy", "--budget", "0.01"]


def test_a_layer_from_start_to_end(run_python, tmp_path):
    table, chart = tmp_path / "table.json", tmp_path / "chart.png"
    arguments = [*GIVEN, "--bias", "--passes", "2", "--threads", "1", "--json", str(table), "--chart", str(chart)]
    out = run_python(
        f"import sys; from portconv.cli import main; sys.exit(main({arguments!r}))", PYTHONWARNINGS="ignore"
    )
    document = json.loads(table.read_text())
    (layer,) = document["layers"]
    assert (layer["groups"], layer["padding"], layer["bias"]) == (2, [1, 0], True)
    rows = {row["engine"]: row for row in layer["results"]}
    assert {"auto", "gemm", "fft", "direct"} <= set(rows)
    for engine in ("auto", "gemm"):
        assert rows[engine]["best_ms"] > 0 and 0 <= rows[engine]["error_share"] <= 1
        assert rows[engine]["backend"] == "numpy" and rows[engine]["device"] == "cpu"
    assert rows["auto"]["chosen"] in rows
    assert document["machine"]["cores"] and document["settings"]["threads"] == 1 and document["passes"] == 2
    assert document["portconv"] == portconv.__version__
    assert "given/layer" in out and "auto: " in out and "GFLOP/s" in out
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chart.png", "table.json"]


def test_json_on_stdout_and_named_engines(run_python):
    arguments = [*GIVEN, "--engine", "direct", "--engine", "native", "--json", "-"]
    arguments += ["--dtype", "float64", "--accuracy", "elementwise", "--padding", "0x1x2x0"]
    out = run_python(f"import sys; from portconv.cli import main; sys.exit(main({arguments!r}))")
    (layer,) = json.loads(out)["layers"]
    assert (layer["dtype"], layer["accuracy"], layer["padding"]) == ("float64", "elementwise", [0, 1, 2, 0])
    direct, native = layer["results"]
    assert direct["engine"] == "direct" and direct["best_ms"] > 0
    assert "skipped" in native


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch"], "nonesuch"),
        (["bench", "--nonesuch"], "--nonesuch"),
        (["bench", "--suite", "nonesuch"], "nonesuch"),
        (["bench", "--x", "1x2x3", "--weight", "1x1x1x1"], "expected sizes such as 1x64x56x56"),
        (["bench", "--x", "1x2x3x3"], "both --x and --weight"),
        (["bench", "--x", "1x3x9x9", "--weight", "4x2x3x3"], "3 channels"),
        (["bench", "--x", "1x2x3x3", "--weight", "4x2x5x5"], "given/layer"),
        (["bench", "--x", "1x2x9x9", "--weight", "4x2x3x3", "--stride", "0"], "must be at least 1"),
        (["bench", "--layers", "nonesuch.json"], "nonesuch.json cannot be read"),
        (["bench", "--select", "nonesuch"], "no"),
        (["bench", "--select", "("], "regular expression"),
        (["bench", "--threads", "0"], "--threads"),
        (["bench", "--budget", "soon"], "--budget"),
        (["bench", "--json", "/nonesuch/a.json"], "/nonesuch/a.json cannot be written"),
        (["bench", "--json", "/"], "is a directory"),
        (["bench", "--chart", "chart.bmp"], "must end in .png"),
        ([*GIVEN, "--library", "nonesuch"], "nonesuch"),
        ([*GIVEN, "--backend", "nonesuch"], "nonesuch"),  # as it was called
        (["bench", "--network", "vgg19", "--dtype", "float64"], "--network is timed in float32"),
        (["bench", "--network", "nonesuch"], "'nonesuch' is not one of"),
        (["bench", "--network", "vgg19", "--peer", "opencv"], "--peer"),
        (["bench", "--peer", "torch"], "--peer needs --network"),
        (["bench", "--network", "vgg19", "--suite", "vgg19"], "--network and --suite exclude each other"),
        (["bench", "--network", "vgg19", "--engine", "fft"], "--network and --engine exclude each other"),
        ([*GIVEN, "--engine", "nonesuch"], "engine 'nonesuch' is none of auto, "),
        ([*GIVEN, "--device", "nonesuch"], "device 'nonesuch' is none of cpu"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(command, "run_all", lambda *_: pytest.fail("something was timed"))
    monkeypatch.setattr(network_command, "contest", lambda *_: pytest.fail("something was timed"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = lines(err)
    assert line.startswith("portconv") and message in line


def test_a_wrong_result_is_status_1(capsys, monkeypatch, tmp_path):
    def wrong(jobs, settings, passes, progress):
        ((target, tasks),) = jobs.items()
        return {target.name: Timed({"versions": {}}, {tasks[0]: {"error": "wrong result: 7 times the bound"}})}

    monkeypatch.setattr(command, "run_all", wrong)
    assert main([*GIVEN, "--engine", "gemm", "--json", str(tmp_path / "a.json")]) == 1
    out = capsys.readouterr().out
    assert "numpy cpu gemm, given/layer: wrong result: 7 times the bound" in out
    (row,) = json.loads((tmp_path / "a.json").read_text())["layers"][0]["results"]
    assert "error" in row and "best_ms" not in row


def test_interrupted(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_all", interrupt)
    assert main(GIVEN) == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")


# --- whole networks ---------------------------------------------------------------------------------------------------

FIGURES = {
    "best_ms": 2.0,
    "build_ms": 1.0,
    "first_ms": 4.0,
    "process_bytes": 1 << 20,
    "network_bytes": 1 << 20,
    "error_share": 0.5,
    "disturbed": False,
    "layers": [{"id": "a/b", "engine": "gemm", "tier": "compiled", "device": "cpu"}],
}
ROWS = [Row("numpy", "cpu", {"auto": {**FIGURES, "median_ms": 2.1}, "native": {"skipped": "it has none"}})]


@pytest.fixture(autouse=True)
def _nothing_compared(monkeypatch):
    """The comparison of libraries, of which a network's summary is made, takes no time."""
    monkeypatch.setattr(network_command, "survey", lambda *_: {"numpy": {"devices": {"cpu": {}}}})
    monkeypatch.setattr(network_command, "compare", lambda places, networks, *_: dict.fromkeys(networks, ROWS))


def contest_with(seen, **answers):
    """What stands for the timing: it gives these answers for every network, and notes what it was asked."""

    def contest(targets, networks, settings, passes, progress):
        seen.append(([target.name for target in targets], list(networks), settings, passes))
        return Contest({}, dict.fromkeys(networks, answers))

    return contest


@pytest.mark.filterwarnings("default")  # those of Matplotlib's own parser of fonts
def test_a_network(capsys, monkeypatch, tmp_path):
    seen, table, chart = [], tmp_path / "a.json", tmp_path / "a.png"
    monkeypatch.setattr(network_command, "contest", contest_with(seen, torch={**FIGURES}, portconv={**FIGURES}))
    files = ["--json", str(table), "--chart", str(chart)]
    arguments = ["--network", "vgg19", "--network", "convnext_t", "--peer", "torch", "--threads", "2", "--passes", "3"]
    assert main(["bench", *arguments, *files]) == 0
    ((targets, networks, settings, passes),) = seen
    assert targets == ["portconv-jit", "portconv-numpy", "torch"] and networks == ["vgg19", "convnext_t"]
    assert (settings.threads, settings.budget, settings.limit, passes) == (2, 5.0, 600.0, 3)
    out = capsys.readouterr().out
    assert "torch" in out and "numpy on cpu, by portconv's choice, is the fastest: 2 ms" in out
    document = json.loads(table.read_text())
    assert set(document["networks"]) == {"vgg19", "convnext_t"} and document["machine"]["cpu"]
    assert document["networks"]["vgg19"]["verdict"]["library"] == "numpy" and document["layout"] == "NCHW"
    assert document["networks"]["vgg19"]["comparison"][0]["own_layers"] == 1
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_all_networks_and_the_status(capsys, monkeypatch):
    seen, wrong = [], {"error": "wrong result"}
    monkeypatch.setattr(network_command, "contest", contest_with(seen, torch=wrong, portconv={**FIGURES}))
    assert main(["bench", "--network", "all", "--budget", "0.1"]) == 0  # a peer's error is not ours
    assert len(seen[0][1]) == 4 and seen[0][2].budget == 0.1
    monkeypatch.setattr(network_command, "contest", contest_with(seen, portconv=wrong))
    capsys.readouterr()
    assert main(["bench", "--network", "all"]) == 1
    out = capsys.readouterr().out
    assert "portconv, vgg19: wrong result" in out
    # Dask takes part only if it is named, and that is said where it is there
    assert ("--library dask times it" in out) == (importlib.util.find_spec("dask") is not None)
    main(["bench", "--network", "all", "--library", "numpy"])
    assert "Dask" not in capsys.readouterr().out
