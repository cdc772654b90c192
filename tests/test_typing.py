"""Type checkers find the wrong calls of tests/typing/calls.py, and nothing else there; and what `dir` shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import portconv

CALLS = Path(__file__).parent / "typing" / "calls.py"
WRONG = {n for n, line in enumerate(CALLS.read_text("utf-8").splitlines(), 1) if line.endswith("# wrong")}
ROOT = Path(__file__).parent.parent


def run(*command):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout


def test_mypy():
    pytest.importorskip("mypy")
    out = run("mypy", "--strict", "--no-error-summary", "--hide-error-context", str(CALLS))
    found = {int(n) for n in re.findall(r"^tests/typing/calls\.py:(\d+): error", out, re.MULTILINE)}
    assert found == WRONG, out


def test_pyright():
    pytest.importorskip("basedpyright")
    out = run(
        "basedpyright", "--outputjson", "--level", "error", "--pythonpath", sys.executable, "-p", str(CALLS.parent)
    )
    found = json.loads(out)["generalDiagnostics"]
    assert {d["range"]["start"]["line"] + 1 for d in found} == WRONG, found


def test_only_public_names_are_shown():
    assert dir(portconv) == sorted([*portconv.__all__, "__version__"])
    pytest.importorskip("mlx.core")
    from portconv import mlx

    assert dir(mlx) == sorted(mlx.__all__)
