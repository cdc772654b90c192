"""Runs one problem with the arrays of one library, and compares the result with the exact one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import portconv
from portconv import machine, testing

from ..processes.devices import devices, hardware, placement
from ..testing.problems import Problem
from .cells import cell_problems
from .problems import problem

__all__ = ["describe_library", "verify", "verify_cell"]

Message = dict[str, Any]

TOO_SLOW = 0.3  # seconds, by estimate, that an engine may take for one of the large problems


def describe_library(name: str) -> Message:
    """A library's devices, and of each the hardware and the engines: what they are, or why they cannot run a layer."""
    found = {}
    for device in devices(name):
        plan = portconv.plan_conv2d(
            (1, 16, 32, 32), (16, 16, 3, 3), padding=1, backend=name, device=placement(name, device)
        )
        engines = {c.engine: c.why_not or c.note for c in plan.candidates}
        able = [c.engine for c in plan.candidates if c.why_not is None]
        found[device] = {"hardware": hardware(name, device), "engines": engines, "able": able}
    return {"devices": found, "compiled": _compiled_tier() if name == "numpy" else {}}


def _compiled_tier() -> Message:
    """The state of the compiled tier in this process, and where it keeps its code."""
    if not any(c.note.startswith("compiled") for c in portconv.plan_conv2d((1, 1, 8, 8), (1, 1, 3, 3)).candidates):
        return {"state": "off"}
    folder = machine.code_folder()
    files = list(Path(folder).glob("*.nbc")) if folder else []
    size = sum(file.stat().st_size for file in files)
    version = sys.modules["numba"].__version__
    return {"state": "on", "numba": version, "cache": folder, "files": len(files), "mib": round(size / 2**20, 1)}


def verify(name: str, number: int, seed: int, device: str, engine: str, accuracy: str) -> Message:
    """One run: ``share``, the largest error as a share of the bound, or ``refused`` or ``failed`` with the reason.

    A mistake gives ``raised``, the error that it should be.
    """
    p = replace(problem(number, seed), engine=engine, accuracy=accuracy)
    if p.gradient and name == "jax" and engine != "auto":
        return {"refused": "too slow for a check: JAX compiles every gradient for a second"}
    return _outcome(p, name, placement(name, device))


def verify_cell(name: str, mode: str, dtype: str, device: str, engine: str) -> Message:
    """A cell of the device matrix: the worst of its problems, as `verify` has it; refused if all of them are."""
    place = placement(name, device)
    found = [_outcome(p, name, place) for p in cell_problems(name, mode, dtype, engine)]
    failed = [m for m in found if "failed" in m]
    shares = [m for m in found if "share" in m]
    return failed[0] if failed else max(shares, key=lambda m: float(m["share"])) if shares else found[0]


def _outcome(p: Problem, name: str, place: str | None) -> Message:
    try:
        if p.slow and (estimate := _estimate(p, name, place)) > TOO_SLOW:
            return {"refused": f"too slow for a check, more than {TOO_SLOW:g} s by estimate", "estimate": estimate}
        found = testing.verify(p, name, place)
    except portconv.UnsupportedError as error:
        return {"refused": _one_line(error)}
    except AssertionError as error:
        return {"failed": str(error)}
    except Exception as error:  # noqa: BLE001  it belongs in the report, and the next problem gets its turn
        return {"failed": _one_line(error)}
    if found.share is None:
        return {"refused": found.reason}
    return {"raised": found.reason} if p.mistake else {"share": found.share}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _estimate(p: Problem, name: str, device: str | None) -> float:
    """Seconds that the engine would take; 0 for a dtype that the library has not, which another one will say."""
    layout = p.argument("layout")
    x_shape = p.x_shape if layout == "NCHW" else tuple(p.x_shape[axis] for axis in (0, 2, 3, 1))
    try:
        plan = portconv.plan_conv2d(x_shape, p.weight_shape, **p.keywords(), dtype=p.dtype, backend=name, device=device)
    except (TypeError, portconv.UnsupportedError):
        return 0.0
    return min(c.seconds for c in plan.candidates if c.engine == plan.engine)
