"""The table of `portconv bench` and its file."""

from __future__ import annotations

import importlib
import io
import json

import pytest
from rich.console import Console
from rich.text import Text

from portconv.bench import chart, report, tables, timing, worker
from portconv.bench.runner import Task, Timed
from portconv.cpu import busy
from tests.bench.helpers import RESULTS, SECOND, SETTINGS, TINY


def test_table(capsys):
    console = importlib.import_module("rich.console").Console(width=200)
    console.print(report.table([TINY, SECOND], RESULTS))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    gflops = f"{2 * TINY.macs / 0.001 / 1e6:.1f}"
    assert ["given/tiny", *TINY.problem.split()] in lines
    assert ["numpy", "cpu", "auto:", "gemm", "compiled", "2", "0.0", "0.250", "3.0"] in lines
    assert ["numpy", "cpu", "fft", "error"] in lines
    assert ["torch", "cuda:0", "auto:", "gemm", "compiled", "*", "0.001", "2.50", gflops, "0.250", "3.0"] in lines
    assert ["torch", "cuda:0", "native", "native", "0.0025"] in [line[:5] for line in lines]
    assert report.problems(RESULTS) == ["numpy cpu fft, given/tiny: wrong result"]


@pytest.mark.parametrize("width", [60, 80])
def test_tables_fit_narrow_terminals(width):
    found = {"best_ms": 1234.0, "error_share": 0.25, "workspace_bytes": 999 << 20, "disturbed": True}
    found |= {"engine": "winograd", "tier": "array API"}
    console = Console(width=width, file=io.StringIO())
    console.print(report.table([TINY], {"torch": Timed({}, {Task(TINY, "auto", "cuda:0"): found})}))
    out = console.file.getvalue()
    assert "auto: winograd array API ! * 1234" in out and "999.0" in out and "…" not in out
    # at 60 columns library and device have a line of their own, which needs none on a wide one
    assert [line.strip() == "torch cuda:0" for line in out.splitlines()].count(True) == (width == 60)
    assert max(map(len, out.splitlines())) <= width and "not shown" not in out


def test_what_does_not_fit_is_left_out_and_said():
    columns = [tables.Column("engine", is_number=False), tables.Column("ms"), tables.Column("MiB")]
    made = tables.Grouped(columns, [tables.Section(Text("a"), [tables.Line(["gemm", "12", "3.4"])])], lead=0)
    shown = []
    for width in (200, 11):
        console = Console(width=width, file=io.StringIO())
        console.print(made)
        shown.append([line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()])
    assert shown[0] == ["engine ms MiB", "─" * 13, "a", "gemm   12 3.4"]  # a line is no longer than the table
    assert shown[1][:4] == ["engine ms", "─" * 9, "a", "gemm   12"]
    assert " ".join(shown[1][4:]) == "not shown at this width: MiB"


def test_document():
    left_out = {("numpy", Task(SECOND, "fft", "cpu")): "slow"}
    made = report.document([TINY, SECOND], RESULTS, left_out, SETTINGS, {"portconv": "1"})
    made = json.loads(json.dumps(made))
    first, second = made["layers"]
    assert first["results"][0]["chosen"] == "gemm" and first["results"][0]["engine"] == "auto"
    assert first["results"][0]["gflops"] == pytest.approx(1e-6 * TINY.macs)
    assert second["results"][1] == {"backend": "numpy", "device": "cpu", "engine": "fft", "skipped": "slow"}
    ratios = {row["engine"]: row.get("native_over_auto") for row in first["results"] if row["backend"] == "torch"}
    assert ratios == {"auto": pytest.approx(2.5), "native": None}
    assert made["settings"]["threads"] == 1 and first["macs"] == TINY.macs


def test_what_was_disturbed_says_so(monkeypatch, tmp_path):
    prepare = worker.prepare("numpy", "direct", "cpu")
    probes = [False, True]
    monkeypatch.setattr(busy, "disturbed", lambda threads: probes.pop(0))
    found = timing.answer(prepare, TINY, 0.01)
    assert found["disturbed"] is True and timing.describe(found).endswith(", disturbed")
    probes += [False, False]
    quiet = timing.answer(prepare, SECOND, 0.01)
    assert quiet["disturbed"] is False and "disturbed" not in timing.describe(quiet)
    results = {"numpy": Timed({}, {Task(TINY, "direct", "cpu"): found, Task(SECOND, "direct", "cpu"): quiet})}

    console = Console(width=200, file=io.StringIO())
    console.print(report.table([TINY, SECOND], results))
    lines = console.file.getvalue().splitlines()
    assert ["! * " in line for line in lines if "direct" in line] == [True, False]
    assert sum("something else used a core" in line for line in lines) == 1

    assert chart.disturbed(results) == [TINY.id]
    series, legend = chart.of_results(results)
    chart.draw(series, [TINY.id, SECOND.id], "title", tmp_path / "a.svg", legend, chart.disturbed(results))
    drawn = (tmp_path / "a.svg").read_text()
    assert f"! {TINY.id}" in drawn and f"! {SECOND.id}" not in drawn and "something else used a core" in drawn
