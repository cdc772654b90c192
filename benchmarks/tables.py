"""The tables of compare.py: layer by layer, and suite by suite."""

from __future__ import annotations

import math

from libraries import PEERS, TIERS

from portconv.bench.layers import Layer

Results = dict[str, dict[str, dict]]  # answers of the workers, by layer id and library


def times_of(answers: dict[str, dict]) -> dict[str, float]:
    """Milliseconds, by library."""
    return {name: answer["best_ms"] for name, answer in answers.items() if "best_ms" in answer}


def best_peer(answers: dict[str, dict], peers: tuple[str, ...] = PEERS) -> tuple[str, float] | None:
    """The fastest of the peers, with its milliseconds."""
    times = {name: ms for name, ms in times_of(answers).items() if name in peers}
    return min(times.items(), key=lambda item: item[1]) if times else None


def ratio(answers: dict[str, dict], ours: str, peers: tuple[str, ...] = PEERS) -> float | None:
    """Time of the best peer over ours: above 1, portconv wins."""
    best, own = best_peer(answers, peers), times_of(answers).get(ours)
    return best[1] / own if best and own else None


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def aligned(rows: list[list[str]]) -> str:
    """A Markdown table that is readable as it stands; the first row is the head, the first two columns are text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_tiers(libraries: list[str]) -> list[str]:
    return [tier for tier in TIERS if tier in libraries]


def short(tier: str) -> str:
    return tier.removeprefix("portconv-")


def layer_table(layers: list[Layer], libraries: list[str], results: Results) -> str:
    """Milliseconds; `*` marks the fastest of all. A ratio above 1 means that the tier beats the best peer."""
    tiers = shown_tiers(libraries)
    heads = [*(f"peer/{short(tier)}" for tier in tiers), *(f"{short(tier)} engine" for tier in tiers)]
    rows = [["layer", "problem", *libraries, "best peer", *heads]]
    for layer in layers:
        answers = results[layer.id]
        times = times_of(answers)
        cells = []
        for name in libraries:
            mark = "*" if name in times and times[name] == min(times.values()) else ""
            wrong = "error" if "error" in answers.get(name, {}) else ""
            cells.append(f"{times[name]:.3g}{mark}" if name in times else wrong)
        best = best_peer(answers)
        ratios = [f"{r:.2f}" if (r := ratio(answers, tier)) else "" for tier in tiers]
        engines = [answers.get(tier, {}).get("engine", "") for tier in tiers]
        rows.append([layer.id, layer.problem, *cells, best[0] if best else "", *ratios, *engines])
    return aligned(rows)


def suite_table(layers: list[Layer], libraries: list[str], results: Results) -> str:
    """For each suite: time relative to the fastest of all, the sum over a forward pass, and the ratios of the tiers.

    The best peer's sum is that of the best peer of each layer. Sums have all layers of the suite in them or are left
    out; a mean over fewer says over how many.
    """
    tiers = shown_tiers(libraries)
    rows = [["suite", "figure", *libraries, "best peers", *(f"peer/{short(tier)}" for tier in tiers)]]
    names = list(dict.fromkeys(layer.suite for layer in layers))
    groups = {name: [layer for layer in layers if layer.suite == name] for name in names}
    if len(names) > 1:
        groups["all"] = layers
    for name, group in groups.items():
        relative: dict[str, list[float]] = {library: [] for library in [*libraries, "best"]}
        for layer in group:
            times = {name: ms for name, ms in times_of(results[layer.id]).items() if name in libraries}
            fastest = min(times.values(), default=0.0)
            for library, time in times.items():
                relative[library].append(time / fastest)
            if best := best_peer(results[layer.id]):
                relative["best"].append(best[1] / fastest)
        ratios = {tier: [r for layer in group if (r := ratio(results[layer.id], tier))] for tier in tiers}

        def cell(values: list[float], size: int = len(group)) -> str:
            if not values:
                return ""
            return f"{geometric_mean(values):.3g}" + (f" ({len(values)}/{size})" if len(values) < size else "")

        means = [cell(values) for values in relative.values()]
        rows.append([name, "geometric mean", *means, *(cell(values) for values in ratios.values())])
        worst = [f"{min(values):.2f}" if values else "" for values in ratios.values()]
        rows.append([name, "worst layer", *[""] * len(means), *worst])
        if name != "all":
            sums = [total(group, results, library) for library in [*libraries, None]]
            quotients = [quotient(group, results, tier) for tier in tiers]
            rows.append(
                [name, "sum x count, ms", *(f"{s:.3g}" if s else "" for s in sums), *map(two_places, quotients)]
            )
    return aligned(rows)


def two_places(value: float | None) -> str:
    return f"{value:.2f}" if value else ""


def total(layers: list[Layer], results: Results, library: str | None, peers: tuple[str, ...] = PEERS) -> float | None:
    """Milliseconds of a forward pass, of a library or (None) of the best peer of each layer; None if any is missing."""
    summands = []
    for layer in layers:
        best = best_peer(results[layer.id], peers)
        time = times_of(results[layer.id]).get(library) if library else (best[1] if best else None)
        if time is None:
            return None
        summands.append(layer.count * time)
    return sum(summands)


def quotient(layers: list[Layer], results: Results, tier: str, peers: tuple[str, ...] = PEERS) -> float | None:
    """The sum of the best peers over that of a tier."""
    own, best = total(layers, results, tier), total(layers, results, None, peers)
    return best / own if own and best else None
