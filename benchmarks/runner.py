"""Runs the workers, one library after the other, and describes the machine.

This module and the scripts that use it import no array library, so that the processes that they start inherit neither
threads nor, on Linux, a peak of resident memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from suites import Layer

HERE = Path(__file__).resolve().parent
START_LIMIT = 180.0  # seconds to import a library


@dataclass(frozen=True)
class Settings:
    threads: int = 2
    budget: float = 1.0  # seconds to time one layer
    limit: float = 60.0  # seconds after which a layer is given up


class WorkerLost(Exception):
    """A worker died, or was ended because it took too long."""


class Worker:
    """One library in a process of its own."""

    def __init__(self, library: str, settings: Settings):
        command = [sys.executable, str(HERE / "workers.py"), library]
        command += ["--threads", str(settings.threads), "--budget", str(settings.budget)]
        self._limit = settings.limit
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  see close
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            start_new_session=True,  # so that helper processes of a library end with it
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def hello(self) -> dict:
        return self._receive(START_LIMIT)

    def ask(self, layer: Layer) -> dict:
        with contextlib.suppress(OSError):  # it has died: the reader tells
            self._process.stdin.write(json.dumps(layer.to_json()) + "\n")
            self._process.stdin.flush()
        return self._receive(self._limit)

    def _receive(self, limit: float) -> dict:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise WorkerLost(f"over {limit:g} s") from None
        if not line:
            status = self._process.wait()
            raise WorkerLost(f"its process ended with status {status}. {self._last_error()}".strip())
        return json.loads(line)

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
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()


def run_library(
    library: str, layers: list[Layer], settings: Settings, progress: Callable[[str], None]
) -> tuple[dict, dict[str, dict]]:
    """What the worker says of itself, and its answer for each layer id. A layer that kills it costs that layer only."""
    hello, answers = {}, {}
    worker = None
    try:
        for layer in layers:
            try:
                if worker is None:
                    worker = Worker(library, settings)
                    hello = worker.hello()
                    if "missing" in hello:
                        return hello, {}
                answers[layer.id] = worker.ask(layer)
            except WorkerLost as reason:
                answers[layer.id] = {"error": str(reason)}
                worker.close()
                worker = None
            progress(f"{library:>20}  {layer.id}: {describe(answers[layer.id])}")
    finally:
        if worker is not None:
            worker.close()
    return hello, answers


def describe(answer: dict) -> str:
    if "best_ms" in answer:
        return f"{answer['best_ms']:.3g} ms" + (f" ({answer['engine']})" if "engine" in answer else "")
    return answer.get("error") or f"skipped, {answer.get('skipped')}"


def run_libraries(
    jobs: dict[str, list[Layer]], settings: Settings, progress: Callable[[str], None], passes: int = 1
) -> tuple[dict[str, dict], dict[str, dict[str, dict]]]:
    """Every library over its layers, strictly one at a time; the best of the passes is kept.

    Returns what each worker says of itself, and the answers by layer id and library.
    """
    hellos: dict[str, dict] = {}
    results: dict[str, dict[str, dict]] = {layer.id: {} for layers in jobs.values() for layer in layers}
    for _ in range(passes):
        for library, layers in jobs.items():
            # An error in any pass stands, so that a wrong result cannot hide behind a later right one.
            pending = [layer for layer in layers if "error" not in results[layer.id].get(library, {})]
            if not pending or "missing" in hellos.get(library, {}):
                continue
            hellos[library], answers = run_library(library, pending, settings, progress)
            if "missing" in hellos[library]:
                progress(f"{library:>20}  cannot be imported: {hellos[library]['missing']}")
            for layer, answer in answers.items():
                before = results[layer].get(library)
                if before is None or "error" in answer or answer.get("best_ms", 0) < before.get("best_ms", 0):
                    results[layer][library] = answer
    return hellos, results


def run_json(script: str, *arguments: str) -> dict:
    """The JSON that another script of this folder prints with `--json -`, from a process of its own."""
    command = [sys.executable, str(HERE / script), "--json", "-", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(done.stdout)


def cpu_model() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if sys.platform == "linux":
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        if sys.platform == "darwin":
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return platform.processor() or platform.machine()


def machine() -> dict:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "os": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: str, document: dict) -> None:
    """Written beside its place and moved there, so that a reader never sees half a file. `-` is stdout."""
    text = json.dumps(document, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.resolve().parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)  # mkstemp makes it private
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
