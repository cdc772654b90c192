"""Which library should a network run on here? Each with its own routine and with portconv's choice, in turns.

A library is compared on each kind of device that it has. Portconv's choice may be the library's own routine, layer by
layer; where a library has none that computes the whole network, that has no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..processes.session import Message, Settings
from .layers import Layer
from .runner import better, run_turns
from .worker import backend_target

__all__ = ["Row", "Verdict", "compare", "verdict"]

WAYS = {"auto": "by portconv's choice", "native": "by its own routines"}


@dataclass
class Row:
    """A library on a device: the answers by portconv's choice (auto) and by the library's own routines (native)."""

    library: str
    device: str
    answers: dict[str, Message] = field(default_factory=dict)

    def milliseconds(self, engine: str) -> float | None:
        """Of the best pass, None if there is none."""
        return self.answers.get(engine, {}).get("best_ms")

    @property
    def ratio(self) -> float | None:
        """The time of the library's own routines over that of portconv's choice."""
        native, auto = self.milliseconds("native"), self.milliseconds("auto")
        return native / auto if native is not None and auto is not None else None

    @property
    def layers(self) -> list[Message]:
        """What portconv's choice was, layer by layer."""
        return list(self.answers.get("auto", {}).get("layers", ()))

    @property
    def own(self) -> list[Message]:
        """The layers on which an engine of portconv's ran."""
        return [layer for layer in self.layers if layer["engine"] != "native"]

    @property
    def tiers(self) -> list[str]:
        """How portconv's engines were carried out, the most frequent first."""
        found = [layer["tier"] for layer in self.own]
        return sorted(dict.fromkeys(found), key=found.count, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        shares = {"own_layers": len(self.own), "all_layers": len(self.layers), "native_over_auto": self.ratio}
        return {"backend": self.library, "device": self.device, **self.answers, **shares}


def compare(
    places: Sequence[tuple[str, str]],
    networks: Mapping[str, Sequence[Layer]],
    settings: Settings,
    passes: int,
    layout: str,
    progress: Callable[[str, Row], object],
) -> dict[str, list[Row]]:
    """The rows of each network, one for each of `places`, pairs of a library and a device; the best of `passes` counts.

    An error in any of them stands, and what failed once is not tried again.
    """
    found = {name: [Row(*place) for place in places] for name in networks}
    for _ in range(passes):
        for name, layers in networks.items():
            for row in found[name]:
                if any("error" in answer for answer in row.answers.values()):
                    continue
                target = backend_target(row.library, layout=layout)
                now = run_turns(target, row.device, layers, settings)
                if lost := now.get("missing") or now.get("error"):
                    now = {"auto": {"error": lost}}
                row.answers = {engine: better(row.answers.get(engine), answer) for engine, answer in now.items()}
                progress(name, row)
    return found


@dataclass(frozen=True)
class Verdict:
    """The fastest, those that are as fast within the noise of the rounds, and the next behind them with its ratio."""

    library: str
    device: str
    way: str  # "auto" or "native"
    best_ms: float
    within_noise: tuple[str, ...] = ()
    behind: str = ""
    ratio: float | None = None

    def __str__(self) -> str:
        text = f"{self.library} on {self.device}, {WAYS[self.way]}, is the fastest: {self.best_ms:.3g} ms"
        if self.within_noise:
            text += f"; within noise of it: {', '.join(self.within_noise)}"
        if self.behind:
            text += f"; {self.behind} takes {self.ratio:.2f} times as long"
        return text


def verdict(rows: Sequence[Row]) -> Verdict | None:
    """Which library and device to use, each at its best; None if nothing has a time.

    Two are the same within noise if their best rounds differ by no more than the best round of either from its median.
    """
    ranked = sorted(
        (
            (answer["best_ms"], answer["median_ms"], row, engine)
            for row in rows
            if (timed := {engine: a for engine, a in row.answers.items() if "best_ms" in a})
            for engine, answer in [min(timed.items(), key=lambda item: float(item[1]["best_ms"]))]
        ),
        key=lambda one: one[0],
    )
    if not ranked:
        return None
    best, median, first, way = ranked[0]
    near, behind = [], None
    for its_best, its_median, row, _ in ranked[1:]:
        if its_best - best <= max(median - best, its_median - its_best):
            near.append(f"{row.library} on {row.device}")
        elif behind is None:
            behind = (f"{row.library} on {row.device}", its_best / best)
    name, ratio = behind or ("", None)
    return Verdict(first.library, first.device, way, best, tuple(near), name, ratio)
