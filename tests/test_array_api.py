"""The public suite of the array API standard: what it may complain about, and the program that runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_expected_failures_have_reasons():
    lines = (Path(__file__).parent / "array_api_xfails.txt").read_text("utf-8").splitlines()
    reason = ""
    for line in lines:
        if not line.strip():
            reason = ""
        elif line.startswith("#"):
            reason = line
        else:
            assert re.fullmatch(r"array_api_tests/test_\w+\.py::\S.*", line), line
            assert len(reason.split()) > 3, f"no reason for {line}"


def test_the_suite_is_skipped_where_it_is_absent(tmp_path):
    runner = Path(__file__).parent / "array_api.py"
    done = subprocess.run(
        [sys.executable, str(runner)],
        env={"ARRAY_API_TESTS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Skipped" in done.stdout
