"""What can run here: the backends, devices and engines for every layer, found out without any timing.

Asking imports the libraries, so the asking is done in a process of its own; `survey` is its caller's side.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import portconv

from ..processes.devices import devices, hardware, placement
from ..processes.serve import serve
from ..processes.session import Session, Settings, Target
from .layers import Layer
from .runner import Task

__all__ = ["Choice", "SurveyError", "choose", "main", "survey", "unasked"]

# A library for checking programs, many times slower than the NumPy that it wraps: only for those who name it.
# Dask's tasks take milliseconds each, whatever is in them: it is for images larger than memory.
NOT_UNASKED = {"array_api_strict", "dask"}
# An engine whose estimate is so many times the least is not worth its time, unless it is named.
WORTH_TIMING = 30.0


class SurveyError(ValueError):
    """What was asked for cannot be had; the message is for users."""


# --- in the process that imports the libraries ------------------------------------------------------------------------


def _offers(name: str, device: str, layer: Layer, layout: str) -> dict[str, Any]:
    """The engine that auto would choose, and all candidates; or why there is none."""
    n, c, h, w = layer.x_shape
    x_shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
    options: dict[str, Any] = {
        "backend": name,
        "device": placement(name, device),
        "layout": layout,
        "dtype": layer.dtype,
    }
    options |= {"accuracy": layer.accuracy, **layer.options}
    try:
        plan = portconv.plan_conv2d(x_shape, layer.weight_shape, layer.bias, **options)
    except (TypeError, ValueError) as error:
        return {"why_not": str(error)}
    candidates = [
        {"engine": c.engine, "seconds": c.seconds if c.why_not is None else None, "why_not": c.why_not}
        for c in plan.candidates
    ]
    return {"chosen": plan.engine, "candidates": candidates}


def _backend(name: str, layers: list[Layer], layout: str) -> dict[str, Any]:
    try:
        portconv.get_backend(name)
    except (ImportError, ValueError) as error:
        return {"missing": str(error)}
    found = {}
    for device in devices(name):
        offers = {layer.id: _offers(name, device, layer, layout) for layer in layers}
        found[device] = {"hardware": hardware(name, device), "layers": offers}
    return {"devices": found}


def main() -> None:
    """Answer one question on stdin: which of these backends (null: all) can run which of these layers, and how."""

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        names = message["backends"] or [name for name in portconv.available_backends() if name not in NOT_UNASKED]
        layers = [Layer.from_json(record) for record in message["layers"]]
        return {"backends": {name: _backend(name, layers, message["layout"]) for name in names}}

    serve(dict, handle)


# --- in the process that asks -----------------------------------------------------------------------------------------


def survey(
    layers: Sequence[Layer], backends: Sequence[str], settings: Settings, layout: str = "NCHW"
) -> dict[str, Any]:
    """What `main` answers, by the backend's name.

    Raises
    ------
    SurveyError
        If a backend that was named cannot be had.
    """
    question = {"backends": list(backends), "layers": [layer.to_json() for layer in layers], "layout": layout}
    with Session(Target("survey", "portconv.bench.survey"), settings) as session:
        answer = session.ask(question, limit=600)
    if "error" in answer:
        raise SurveyError(f"looking for backends failed: {answer['error']}")
    found: dict[str, Any] = answer["backends"]
    for name, backend in found.items():
        if "missing" in backend:
            raise SurveyError(f"library {name!r}: {backend['missing']}")
    return found


def unasked(backends: Sequence[str]) -> list[str]:
    """What is said of libraries that are installed and take part only if they are named; none is imported for that."""
    if backends or importlib.util.find_spec("dask") is None:
        return []
    return ["Dask is left out: its tasks take milliseconds each, whatever is in them; --library dask times it."]


@dataclass(frozen=True)
class Choice:
    """What to time for each backend, and what is left out, with the reason."""

    tasks: dict[str, list[Task]]
    left_out: dict[tuple[str, Task], str]


def choose(found: dict[str, Any], layers: Sequence[Layer], engines: Sequence[str], wanted: Sequence[str]) -> Choice:
    """Which tasks to run, by backend: the engines and devices named, or all that are worth it.

    Raises
    ------
    SurveyError
        If an engine or a device that was named is known to none of the backends.
    """
    known = {device for backend in found.values() for device in backend["devices"]}
    if unknown := set(wanted) - known:
        raise SurveyError(f"device {unknown.pop()!r} is none of {', '.join(sorted(known))}.")
    tasks: dict[str, list[Task]] = {}
    left_out: dict[tuple[str, Task], str] = {}
    offered = {"auto"}
    for name, backend in found.items():
        for device, here in backend["devices"].items():
            if wanted and device not in wanted:
                continue
            for layer in layers:
                offers = here["layers"][layer.id]
                offered |= {candidate["engine"] for candidate in offers.get("candidates", ())}
                for engine, why_not in _engines(offers, engines).items():
                    task = Task(layer, engine, device)
                    if why_not is None:
                        tasks.setdefault(name, []).append(task)
                    else:
                        left_out[name, task] = why_not
    if unknown := set(engines) - offered:
        raise SurveyError(f"engine {unknown.pop()!r} is none of {', '.join(sorted(offered))}.")
    return Choice(tasks, left_out)


def _engines(offers: dict[str, Any], named: Sequence[str]) -> dict[str, str | None]:
    """The engines to time (None), and those to leave out with the reason."""
    if "why_not" in offers:
        return dict.fromkeys(named or ["auto"], offers["why_not"])
    verdicts: dict[str, str | None] = {"auto": None}
    least = min(c["seconds"] for c in offers["candidates"] if c["why_not"] is None)
    # the library's own routine comes next, since the two take turns, and is worth its time whatever its estimate
    for c in sorted(offers["candidates"], key=lambda c: (c["engine"] != "native", c["seconds"] or 0.0)):
        verdicts[c["engine"]] = c["why_not"]
        costly = c["why_not"] is None and c["engine"] != "native" and c["seconds"] > WORTH_TIMING * least
        if costly and not named:
            verdicts[c["engine"]] = f"its estimate is {c['seconds'] / least:.0f} times the least"
    if named:
        return {engine: verdicts.get(engine, "the backend does not have it") for engine in named}
    return verdicts
