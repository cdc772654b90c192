"""Runs the checks: every library in a process of its own, whose death or silence is a failure of that library alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, TypeVar

from ..machine import usable_cores
from ..processes.session import Session, Settings, Target
from ..testing.problems import Problem

__all__ = ["ACCURACIES", "CheckError", "Checks", "Library", "Run", "libraries"]

Message = dict[str, Any]
Question = TypeVar("Question")

# MLX and JAX come last: NumPy's compiled engines, which they use, are compiled by then.
BUILT_IN = ("numpy", "torch", "dask", "array_api_strict", "cupy", "mlx", "jax")
# Many times slower than the others: who does not name them gets a part of the problems, and one accuracy.
SLOW = {"array_api_strict": 8}
PADDING_MODES = ("reflect", "replicate", "circular")  # how names of problems begin
ACCURACIES = ("normwise", "elementwise")
MAX_LOST = 3  # processes, until a library is given up


class CheckError(ValueError):
    """What was asked for cannot be had; the message is for users."""


@dataclass(frozen=True)
class Run:
    """One call: a problem by its number, on a device, with an engine, to an accuracy."""

    device: str
    engine: str
    accuracy: str
    number: int


@dataclass
class Library:
    """A library to be checked, and what is known of it."""

    name: str
    tier: str = ""  # "compiled" or "plain", of NumPy
    stride: int = 1  # every so many problems only
    missing: str = ""  # why it cannot be imported
    error: str = ""  # what befell the library as a whole
    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, Message] = field(default_factory=dict)
    compiled: Message = field(default_factory=dict)  # of NumPy's compiled tier: state, version, cache
    results: dict[Run, Message] = field(default_factory=dict)
    seconds: float = 0.0  # that its runs took, while others ran beside it

    @property
    def label(self) -> str:
        """The name, and the tier where there are two."""
        return f"{self.name} ({self.tier})" if self.tier else self.name

    def part(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems that it gets: all, or every so many and each padding mode."""
        return [
            p
            for place, p in enumerate(problems)
            if place % self.stride == 0 or p.name.partition(",")[0] in PADDING_MODES
        ]

    @property
    def target(self) -> Target:
        """Its process."""
        # threads that spin while they wait would take the cores from the other libraries: ten times the time
        variables = {"OMP_WAIT_POLICY": "PASSIVE"} | ({"PORTCONV_JIT": "0"} if self.tier == "plain" else {})
        return Target(self.label, "portconv.check.worker", (self.name,), tuple(variables.items()))


def libraries(names: Sequence[str] = ()) -> list[Library]:
    """Those named, or all that portconv knows and those of plug-ins, installed or not; NumPy in both tiers."""
    plugins = [entry.name for entry in entry_points(group="portconv.backends")]
    found = []
    for name in dict.fromkeys(names or [*BUILT_IN, *plugins]):
        if name == "numpy" and os.environ.get("PORTCONV_JIT", "1") != "0" and importlib.util.find_spec("numba"):
            found += [Library(name, "plain"), Library(name, "compiled")]
        else:
            found.append(Library(name, stride=1 if names else SLOW.get(name, 1)))
    return found


class Checks:
    """The libraries with their processes; close it to end them."""

    def __init__(self, found: Sequence[Library], limit: float) -> None:
        settings = Settings(threads=usable_cores(), limit=limit)
        self.libraries = list(found)
        self._sessions = [Session(library.target, settings) for library in self.libraries]
        self._stop = threading.Event()

    def __enter__(self) -> Checks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._stop.set()
        for session in self._sessions:
            session.close()

    def _each(self, work: Callable[[Library, Session], None]) -> None:
        """Do it with all of them, as many at a time as there are cores."""
        pool = ThreadPoolExecutor(max(1, usable_cores()))
        try:
            for done in [pool.submit(work, *pair) for pair in zip(self.libraries, self._sessions, strict=True)]:
                done.result()
        except BaseException:
            self._end()  # else the pool would wait for all the work that is left
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def survey(self, needed: bool = False) -> None:
        """Find out which libraries are there, with which devices and engines.

        Raises
        ------
        CheckError
            If they are `needed`, and one cannot be imported.
        """

        def ask(library: Library, session: Session) -> None:
            answer = session.ask({})
            library.versions = session.hello.get("versions", {})
            library.missing = answer.get("missing", "")
            library.devices = answer.get("devices", {})
            library.compiled = answer.get("compiled", {})
            if reason := answer.get("error") or answer.get("failed"):
                library.error = f"asked for its devices: {_named_signal(reason)}"
            if library.missing or library.error:
                session.close()

        self._each(ask)
        for library in self.libraries:
            if needed and library.missing:
                raise CheckError(f"library {library.name!r}: {library.missing}")

    def choose(
        self,
        problems: Sequence[Problem],
        devices: Sequence[str],
        engines: Sequence[str],
        accuracies: Sequence[str] = (),
    ) -> dict[str, list[Run]]:
        """The runs of every library, by label, after `survey`; all devices, engines and accuracies if none is named.

        Raises
        ------
        CheckError
            If a device or an engine that was named is known to none of the libraries.
        """
        here = [library for library in self.libraries if library.devices]
        _known("device", devices, {device for library in here for device in library.devices})
        offered = {engine for library in here for d in library.devices.values() for engine in d["engines"]}
        _known("engine", engines, {"auto", *offered})
        return {
            library.label: [
                Run(device, engine, accuracy, p.number)
                for p in library.part(problems)
                for device, there in library.devices.items()
                if not devices or device in devices
                for engine in ("auto", *there["engines"])
                if not engines or engine in engines
                for accuracy in (
                    ACCURACIES[:1] if library.stride > 1 or p.slow or p.mistake or p.gradient else ACCURACIES
                )
                if not accuracies or accuracy in accuracies
            ]
            for library in here
        }

    def run(self, runs: dict[str, list[Run]], seed: int, progress: Callable[[Library, int], object]) -> None:
        """Do them; `progress` gets the library and how many more of its runs are done."""

        def keep(library: Library, run: Run, found: Message) -> None:
            library.results[run] = found

        self.ask(runs, {"seed": seed}, keep, progress)

    def ask(
        self,
        questions: Mapping[str, Sequence[Question]],
        more: Message,
        keep: Callable[[Library, Question, Message], object],
        progress: Callable[[Library, int], object],
    ) -> None:
        """Ask every library, by label, its questions one by one: objects whose attributes, and `more`, are the message.

        `keep` gets each answer, and `progress` how many more questions are done with. A library that is given up leaves
        the rest unanswered, and `Library.error` says so.
        """

        def work(library: Library, session: Session) -> None:
            start, lost = time.perf_counter(), 0
            mine = questions.get(library.label, [])
            for done, question in enumerate(mine):
                if self._stop.is_set():
                    return
                found = session.ask({**vars(question), **more})
                if reason := found.get("error") or found.get("missing"):
                    found = {"failed": _named_signal(reason)}
                    lost += 1
                keep(library, question, found)
                library.seconds = time.perf_counter() - start
                if lost == MAX_LOST and done + 1 < len(mine):
                    library.error = f"given up after {lost} lost processes; {len(mine) - done - 1} runs left out"
                    progress(library, len(mine) - done)
                    break
                progress(library, 1)
            session.close()

        self._each(work)


def _known(what: str, wanted: Sequence[str], known: set[str]) -> None:
    for name in wanted:
        if name not in known:
            raise CheckError(f"{what} {name!r} is none of {', '.join(sorted(known)) or 'those that are here'}.")


def _named_signal(reason: str) -> str:
    """`status -11` in words, and what a time-out is."""

    def name(found: re.Match[str]) -> str:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(int(found[1])).name}"
        return found[0]

    if reason.startswith("over "):
        return f"no answer: {reason}, so its process was ended"
    return re.sub(r"ended with status -(\d+)", name, reason)
