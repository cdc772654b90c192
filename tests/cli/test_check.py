"""The command `portconv check`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json

import numpy as np
import pytest

import portconv
from portconv.check.problems import problems
from portconv.cli import main


def one_line(text):
    (line,) = [line for line in text.splitlines() if line.strip()]
    return line


def test_numpy_passes(plain, tmp_path, capsys):
    file, page = tmp_path / "check.json", tmp_path / "check.md"
    written = ["--json", str(file), "--publish", str(page)]
    assert main(["check", "--library", "numpy", "--quick", "--count", "4", *written]) == 0
    out = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert [row["engine"] for row in document["summary"]] == ["auto", "gemm", "winograd", "direct", "fft", "native"]
    rows = {row["engine"]: row for row in document["summary"]}
    assert {rows[e]["verdict"] for e in ("auto", "gemm", "winograd", "direct", "fft")} == {"passed"}
    assert rows["native"]["verdict"] == "not offered" and rows["winograd"]["elementwise"] is None
    assert 0 < rows["gemm"]["elementwise"] <= 1 and 0 < rows["fft"]["normwise"] <= 1
    chosen = problems(0, 4, quick=True)
    assert len(document["problems"]) == len(chosen)
    runs = document["runs"]
    assert {run["number"] for run in runs} == {p.number for p in chosen}
    mistakes = {p.number for p in chosen if p.mistake}
    assert len(mistakes) > 20 and all("raised" in run for run in runs if run["number"] in mistakes)
    assert all(0 <= run["share"] <= 1 for run in runs if "share" in run)
    assert document["passed"] and document["machine"]["cores"] and document["portconv"] == portconv.__version__
    assert document["libraries"]["numpy"]["versions"]["numpy"] == np.__version__
    assert "NumPy has no convolution of its own" in out and out.strip().splitlines()[-1].startswith("passed: ")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["check.json", "check.md"]
    lines = page.read_text().splitlines()
    assert lines[0] == f"# portconv {portconv.__version__}: passed" and "failed" not in page.read_text()
    told = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| numpy")]
    assert [row[3] for row in told] == ["auto", "gemm", "winograd", "direct", "fft"]
    assert told[1][1] == np.__version__ and told[1][6] == f"{rows['gemm']['normwise']:.3f}"


def test_problems_of_a_dtype_a_layout_and_an_accuracy(plain, tmp_path, capsys):
    file, only = tmp_path / "check.json", ["--dtype", "float16", "--layout", "NHWC", "--accuracy", "elementwise"]
    arguments = ["--library", "numpy", "--engine", "auto", "--quick", "--count", "30", *only]
    assert main(["check", *arguments, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["problems"] and document["runs"]
    for problem in document["problems"].values():
        assert problem["dtype"] == "float16" and problem["arguments"]["layout"] == "NHWC"
    assert {run["accuracy"] for run in document["runs"]} == {"elementwise"}
    assert main(["check", "--problem", "0", "--dtype", "bfloat16"]) == 2
    assert "no problem has that dtype and layout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--library", "nonesuch"], "library 'nonesuch': "),
        (["--device", "nonesuch"], "device 'nonesuch' is none of cpu"),
        (["--engine", "nonesuch"], "engine 'nonesuch' is none of auto, direct"),
        (["--count", "-1"], "--count"),
        (["--seed", "x"], "--seed"),
        (["--limit", "0"], "--limit"),
        (["--json", "/nonesuch/a.json"], "/nonesuch/a.json cannot be written"),
        (["--json", "/"], "is a directory"),
        (["--json", "/dev/null"], "/dev/null is no file"),
        (["--json", "page.md", "--publish", "page.md"], "page.md is named twice"),
        (["--publish", "page.txt"], "must end in .md"),
    ],
)
def test_bad_input_is_one_line_and_status_2(plain, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("portconv.check.runner.Checks.run", lambda *_: pytest.fail("something was checked"))
    library = [] if "--library" in arguments else ["--library", "numpy"]
    assert main(["check", *library, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in one_line(err)
