"""A conversation with a worker: a process that may die or hang without harm."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["Message", "Session", "Settings", "Target", "environment"]

Message = dict[str, Any]
START_LIMIT = 180.0  # seconds to import a library
THREAD_VARIABLES = (
    "PORTCONV_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "PJRT_NPROC",  # XLA has no other way to say it
    "NPROC",
)


@dataclass(frozen=True)
class Settings:
    """How long and on how many threads to time."""

    threads: int = 2
    budget: float = 1.0  # seconds to time one task
    limit: float = 60.0  # seconds after which a task is given up


@dataclass(frozen=True)
class Target:
    """What a worker is: a module whose `main` serves, its arguments, and changes of the environment (None: unset)."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    variables: tuple[tuple[str, str | None], ...] = ()


def environment(threads: int, variables: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment for a worker: that of this process, no notices, the thread counts, and other changes."""
    # set before it starts, since most libraries read them only once; what it writes on stderr counts as its last words
    changed = {
        **os.environ,
        "PORTCONV_QUIET": "1",
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        **(variables or {}),
    }
    return {name: value for name, value in changed.items() if value is not None}


class WorkerLost(Exception):
    """A worker died, or was ended because it took too long."""


class _Worker:
    """One library in a process of its own."""

    def __init__(self, target: Target, threads: int) -> None:
        # The worker sees the modules that this process sees, installed or not, as multiprocessing's children do.
        code = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; from {target.module} import main; main()"
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  see close
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *target.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=environment(threads, dict(target.variables)),
            start_new_session=True,  # so that helper processes of a library end with it
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # it has died: the reader tells
            self._stdin.write(json.dumps(message) + "\n")
            self._stdin.flush()

    def receive(self, limit: float) -> Message:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise WorkerLost(f"over {limit:g} s") from None
        if not line:
            status = self._process.wait()
            raise WorkerLost(f"its process ended with status {status}. {self._last_error()}".strip())
        message: Message = json.loads(line)
        return message

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1][:200] if lines else ""

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        self._errors.close()


class Session:
    """A conversation with a target. Its worker starts when it is first needed, and again after it was lost."""

    def __init__(self, target: Target, settings: Settings) -> None:
        self.target, self.settings = target, settings
        self.hello: Message = {}
        self._worker: _Worker | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def ask(self, message: Message, limit: float | None = None) -> Message:
        """The worker's answer; `error` if it was lost over it, and `missing` if it cannot import its library."""
        try:
            if self._worker is None:
                self._worker = _Worker(self.target, self.settings.threads)
                self.hello = self._worker.receive(START_LIMIT)
            if "missing" in self.hello:
                return self.hello
            self._worker.send(message)
            return self._worker.receive(self.settings.limit if limit is None else limit)
        except WorkerLost as reason:
            self.close()
            return {"error": str(reason)}
