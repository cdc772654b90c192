"""Locks between processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

from portconv.cpu import locks

pytest.importorskip("fcntl")

HOLD = """
    import sys, time
    from pathlib import Path
    from portconv.cpu.locks import locked
    with locked(Path(sys.argv[1]), 60):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """The file, and another process that holds it."""
    file = tmp_path / "file.lock"
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield file, process
        process.kill()


def test_one_process_at_a_time(other):
    file, process = other
    start = time.monotonic()
    with locks.locked(file, 0.2) as mine:
        assert not mine
    assert 0.2 <= time.monotonic() - start < 10
    process.stdin.close()  # it ends, and gives the lock back
    with locks.locked(file, 60) as mine:
        assert mine
        with locks.locked(file, 0.0) as again:  # the same process, from another thread as it were
            assert not again
    with locks.locked(file, 0.0) as mine:
        assert mine


def test_a_process_that_dies_holds_up_nobody(other):
    file, process = other
    process.kill()
    process.wait()
    with locks.locked(file, 60) as mine:
        assert mine


def test_it_is_given_back_after_an_error(tmp_path):
    file = tmp_path / "file.lock"
    with pytest.raises(KeyboardInterrupt), locks.locked(file, 0.0):
        raise KeyboardInterrupt
    with locks.locked(file, 0.0) as mine:
        assert mine


def test_without_locks(tmp_path, monkeypatch):
    """On Windows, and on file systems that have none."""

    def flock(_stream, _operation):
        raise OSError("no locks available")

    with monkeypatch.context() as patch:
        patch.setattr(locks.fcntl, "flock", flock)
        with locks.locked(tmp_path / "file.lock", 60) as mine:
            assert mine
    monkeypatch.setattr(locks, "fcntl", None)
    with locks.locked(tmp_path / "nonesuch" / "file.lock", 60) as mine:
        assert mine


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(OSError, match="nonesuch"), locks.locked(tmp_path / "nonesuch" / "file.lock", 60):
        pass
