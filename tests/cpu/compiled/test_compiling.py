"""What goes on around a compilation: processes that start together compile once, and a line says why they wait."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import portconv
from portconv.cpu import locks
from tests.cpu.compiled.helpers import SOURCE

pytestmark = pytest.mark.usefixtures("jit")

# --- processes that start together ------------------------------------------------------------------------------------

# It begins when all have imported what they need, and prints the sum, and how many functions it compiled and loaded.
RUN = """
import json, sys, time
from pathlib import Path
folder, number, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.path.insert(0, sys.argv[1])
import numpy as np
import small
(folder / f"ready{number}").write_text("")
while len(list(folder.glob("ready*"))) < count:
    time.sleep(0.01)
x = np.ones((3, 4))
small.double_rows(x)
small.double(x[0])
small.double(np.ones(1, np.int16))
functions = small.double, small.double_rows
print(json.dumps({
    "sum": x.sum(),
    "compiled": sum(f.stats.cache_misses.total() for f in functions),
    "found": sum(f.stats.cache_hits.total() for f in functions),
}))
"""


@pytest.mark.skipif(locks.fcntl is None, reason="there are no locks")
def test_processes_that_start_together_compile_once(tmp_path):
    (tmp_path / "small.py").write_text(SOURCE)
    root = str(Path(portconv.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(tmp_path)]
    started = [
        subprocess.Popen([*command, str(n), "3"], stdout=subprocess.PIPE, text=True, env=environment) for n in range(3)
    ]
    found = []
    for process in started:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        found.append(json.loads(out))
    assert all(one["sum"] == 32.0 and one["compiled"] + one["found"] == 3 for one in found)
    assert sum(one["compiled"] for one in found) == 3  # `double` for two dtypes
    names = sorted(file.name.partition("-")[0] for file in (tmp_path / "cache").rglob("*.nbc"))
    assert names == ["small.double", "small.double", "small.double_rows"]


# --- the lock ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiling(monkeypatch):
    """The module, as in a process that has compiled nothing yet."""
    from portconv.cpu.compiled import compiling

    monkeypatch.setattr(compiling, "_patient", True)
    monkeypatch.setattr(compiling, "_told", False)
    monkeypatch.delenv("PORTCONV_QUIET", raising=False)
    return compiling


def function():
    """What would be compiled."""


function.__module__ = "portconv.cpu.compiled.gemm.kernels"


def free(folder):
    with locks.locked(folder / "portconv.lock", 0.0) as mine:
        return mine


with_locks = pytest.mark.skipif(locks.fcntl is None, reason="there are no locks")


@with_locks
def test_the_turn_lasts_as_long_as_the_compilation(compiling, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with compiling.compilation():
        assert free(one)
        compiling.begin(function, str(one))
        assert not free(one) and free(two)
        for folder in (one, two):  # functions that it calls
            with compiling.compilation():
                compiling.begin(function, str(folder))
                assert not free(one) and free(two) == (folder == one)
        assert not free(one) and free(two)
    with suppress(KeyboardInterrupt), compiling.compilation():
        compiling.begin(function, str(one))
        raise KeyboardInterrupt
    assert free(one) and free(two)


@with_locks
def test_it_waits_for_another_process_so_long_and_no_longer(compiling, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "LOCK_SECONDS", 0.3)
    with locks.locked(tmp_path / "portconv.lock", 0.0):
        for least, most in ((0.3, 10), (0.0, 0.2)):  # once it has lost patience, it compiles on its own
            start = time.monotonic()
            with compiling.compilation():
                compiling.begin(function, str(tmp_path))
            assert least <= time.monotonic() - start < most


def test_a_folder_that_is_not_there_is_no_matter_of_the_lock(compiling, tmp_path):
    with compiling.compilation():
        compiling.begin(function, str(tmp_path / "nonesuch"))
    assert compiling._patient


# --- the line ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(compiling, tmp_path, monkeypatch):
    """Lets a compilation take so long that it is told; pytest's own handlers of log records are away."""
    monkeypatch.setattr(compiling, "SILENT_SECONDS", 0.05)

    def run(folder=tmp_path, seconds=0.4):
        before = threading.active_count()
        with monkeypatch.context() as patch, compiling.compilation():
            patch.setattr(logging.getLogger(), "handlers", [])
            compiling.begin(function, None if folder is None else str(folder))
            with compiling.compilation():
                compiling.begin(function, None if folder is None else str(folder))
                time.sleep(seconds)
        assert threading.active_count() == before

    return run


def test_what_takes_long_is_told_once(slow, tmp_path, capsys):
    slow(seconds=0.0)
    assert capsys.readouterr().err == ""
    slow()
    assert capsys.readouterr().err == (
        f"portconv: compiling the kernels of gemm for this machine, once, as of each engine, for some seconds; "
        f"later processes find them in {tmp_path}\n"
    )
    slow()
    assert capsys.readouterr() == ("", "")


def test_no_folder_keeps_them(slow, capsys):
    slow(folder=None)
    assert "no folder can keep them" in capsys.readouterr().err


@with_locks
def test_who_waits_for_another_process_is_told(slow, tmp_path, capsys, monkeypatch, compiling):
    monkeypatch.setattr(compiling, "LOCK_SECONDS", 0.5)
    with locks.locked(tmp_path / "portconv.lock", 0.0):
        slow(seconds=0.0)
    assert "another process is compiling the kernels of gemm" in capsys.readouterr().err


def test_an_environment_variable_makes_it_quiet(slow, capsys, monkeypatch):
    monkeypatch.setenv("PORTCONV_QUIET", "1")
    slow()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PORTCONV_QUIET", "0")
    slow()
    assert "portconv: " in capsys.readouterr().err


def test_who_has_set_up_logging_gets_a_record(slow, capsys, monkeypatch):
    stream = io.StringIO()
    logger = logging.getLogger("portconv")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    slow()
    logger.manager._clear_cache()
    assert "compiling the kernels of gemm" in stream.getvalue()
    assert capsys.readouterr().err == ""


def test_programs_without_stderr(slow, monkeypatch, compiling):
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed):
        monkeypatch.setattr(compiling, "_told", False)
        monkeypatch.setattr(sys, "stderr", stderr)
        slow()
        assert compiling._told


def test_where_no_thread_can_be_started(slow, capsys, monkeypatch, compiling):
    def start(_timer):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(compiling.Timer, "start", start)
    slow()
    assert capsys.readouterr().err == ""


def test_real_kernels(run_python, tmp_path):
    """Of `gemm`, without a second's patience: told where they are compiled, and not where they are loaded.

    They are compiled once each, also where others call them with literals, and register tiles when they are needed; and
    addresses are integers: the sum of a signed and an unsigned one would be a float64.
    """
    code = """
    import contextlib, io
    import numpy as np, portconv
    from portconv.cpu.compiled import compiling
    compiling.SILENT_SECONDS = 0.01
    portconv.set_num_threads(1)  # the team has kernels of its own
    x, weight = np.ones((1, 1, 9, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert (portconv.conv2d(x, weight, engine="gemm") == 9).all()
    print(err.getvalue(), end="")
    from portconv.cpu.compiled import jobs, memory
    from portconv.cpu.compiled.gemm import kernels
    called = kernels.tile.kernel, kernels._products.kernel, kernels._store.kernel, jobs._run
    inlined = memory.read, memory._fill_edge, memory.pairs_due  # and loaded with those that they are part of
    for function in (*called, kernels._gemm, kernels.gemm, *inlined):
        signatures = list(function.overloads)
        assert len(signatures) == 1 or function in inlined and not signatures, signatures  # compiled, or loaded
        assert not any(str(kind) == "float64" for signature in signatures for kind in signature), signatures
    with contextlib.redirect_stderr(io.StringIO()):
        portconv.conv2d(x, np.ones((20, 1, 3, 3), np.float32), engine="gemm")  # by register tiles of more rows
    assert len(kernels.tile.kernel.overloads) == 2 and len(kernels._products.kernel.overloads) == 1
    """
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PORTCONV_QUIET": "", "PORTCONV_JIT": "1"}
    (line,) = run_python(code, **environment).splitlines()
    assert line.startswith("portconv: compiling the kernels of weights for this machine, once, ")  # which come first
    assert str(tmp_path) in line
    assert run_python(code, **environment) == ""
