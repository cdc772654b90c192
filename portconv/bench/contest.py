"""Whole networks by portconv and by every peer that is installed: who takes part, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..processes.session import Message, Settings, Target
from . import peers
from .layers import Layer
from .runner import keep_best_network, run_network
from .worker import TIERS, backend_target, tier_target

__all__ = ["Contest", "best_peer", "contest", "contestants", "is_ours"]


@dataclass
class Contest:
    """What is known: the greetings by library, and the answers by network and library."""

    hellos: dict[str, Message] = field(default_factory=dict)
    results: dict[str, dict[str, Message]] = field(default_factory=dict)

    @property
    def missing(self) -> dict[str, str]:
        """Why a library could not take part, by library."""
        return {name: hello["missing"] for name, hello in self.hellos.items() if "missing" in hello}


def contestants(backends: Iterable[str] = (), others: Iterable[str] = (), layout: str = "NCHW") -> list[Target]:
    """Portconv on these backends (by default NumPy, in both tiers), in a layout, and these peers (by default all)."""
    ours: list[Target] = []
    for name in backends or ["numpy"]:
        if name == "numpy":
            ours += [tier_target(tier, layout) for tier in TIERS]
        else:
            ours.append(backend_target(name, f"portconv-{name}", layout))
    return [*ours, *(peers.target_of(name) for name in others or peers.NETWORK_PEERS)]


def is_ours(library: str) -> bool:
    """Whether it is portconv."""
    return library.startswith("portconv")


def contest(
    targets: Sequence[Target],
    networks: Mapping[str, Sequence[Layer]],
    settings: Settings,
    passes: int,
    progress: Callable[[str, str, Message], object],
) -> Contest:
    """Every target over every network, strictly one at a time, `passes` times in turns; the best counts.

    A wrong result in any of them is an error, and what failed once is not tried again.
    """
    found = Contest(results={name: {} for name in networks})
    for turn in range(passes):
        for name, layers in networks.items():
            for target in targets:
                before = found.results[name].get(target.name)
                if target.name in found.missing or (before is not None and "best_ms" not in before):
                    continue
                hello, now = run_network(target, layers, settings, check=turn == 0)
                found.hellos[target.name] = {**found.hellos.get(target.name, {}), **hello}
                if "missing" not in now:
                    found.results[name][target.name] = keep_best_network(before, now)
                    progress(name, target.name, now)
    return found


def best_peer(answers: Mapping[str, Message]) -> str | None:
    """The fastest of the libraries that are not portconv, for the whole network; None if there is none."""
    times = {name: found["best_ms"] for name, found in answers.items() if "best_ms" in found and not is_ours(name)}
    return min(times, key=lambda name: times[name], default=None)
