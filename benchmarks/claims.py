"""What portconv promises, and whether measurements keep it.

A promise on speed is a ratio to a peer that was measured in the same run, so that it says the same on a fast machine
and on a slow one. The limits are to hold on two kinds of processor: AMD's Zen 4, whose vectors of 512 bits take two
turns, and Intel's Sapphire Rapids, where code that is level with its peers on the first was seen at 0.55 of them.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import checkout  # noqa: F401  before portconv
import memory
import overhead
import startup
from libraries import TIERS, missing
from tables import Results, best_peer, geometric_mean, quotient, ratio, times_of

from portconv.bench import suites
from portconv.bench.contest import Contest
from portconv.bench.layers import Layer
from portconv.bench.networks import network

# What the mean and the worst ratio are taken over, unless layers are named on the command line.
MIX = ["resnet50", "vgg19", "mobilenet_v1", "convnext_tiny", "replknet31", "filters"]
RESNET = suites.suite("resnet50")
RESNET_AND_VGG = RESNET + suites.suite("vgg19")
LARGE_KERNELS = [layer for layer in suites.suite("replknet31") if min(layer.kernel) >= 31]
BLURS = [layer for layer in suites.suite("filters") if layer.kernel == (31, 31)]

# Peers that portconv on NumPy is measured against; MLX needs seconds for some layers, and OpenCV has no networks.
NETWORK_PEERS = ("torch", "torch-channels-last", "onnxruntime", "openvino", "jax")
PEERS = (*NETWORK_PEERS, "opencv", "opencv-separable")

# time of the best peer over portconv's, over the mix: its geometric mean, and that of the worst layer
MEAN_RATIO = {"portconv-jit": 1.0, "portconv-numpy": 0.25}
WORST_RATIO = {"portconv-jit": 0.55, "portconv-numpy": 0.04}
RESNET_RATIO = 1.0  # of the sums over a forward pass, compiled, the best peer of each layer
# whole networks, compiled, each layer once a round: time of the best single peer over portconv's
NETWORK_RATIO = {"vgg19": 1.1, "resnet50": 1.1, "mobilenet_v3": 0.95, "convnext_t": 0.95}
SLOWER_AT_MOST = 5.0  # than the best peer
LARGE_KERNEL_SPEEDUP = 3.0  # over PyTorch's default layout
BLUR_SLOWER_AT_MOST = 1.3  # than OpenCV
MLX_SPEEDUP = 20.0  # over mx.conv2d on CPU
# of what PyTorch takes in the same run: for a whole call on the same image; for its import and the same convolution
OVERHEAD_SHARE = 0.5
STARTUP_SHARE = {"portconv-jit": 0.9, "portconv-numpy": 0.25}
SCRATCH_MIB = 64.0

NAMES = {"portconv-jit": "compiled", "portconv-numpy": "plain NumPy"}


@dataclass(frozen=True)
class Verdict:
    claim: str
    figure: str
    verdict: str  # "pass", "FAIL" or "not measured"


def decided(claim: str, figure: str, kept: bool) -> Verdict:
    return Verdict(claim, figure, "pass" if kept else "FAIL")


def jobs(libraries: list[str], mix: list[Layer]) -> dict[str, list[Layer]]:
    """The layers that each of the libraries has to run."""

    def needed(library: str) -> list[Layer]:
        if library in ("mlx", "portconv-mlx"):
            return RESNET
        if library in TIERS:
            return [*mix, *RESNET_AND_VGG, *LARGE_KERNELS, *BLURS]
        if library in NETWORK_PEERS:
            return [*mix, *RESNET_AND_VGG, *(LARGE_KERNELS if library == "torch" else ())]
        return [*mix, *BLURS]

    return {library: list(dict.fromkeys(needed(library))) for library in libraries}


# --- speed ------------------------------------------------------------------------------------------------------------


def _unmeasured(claim: str, layers: list[Layer], ours: str, peers: tuple[str, ...], results: Results) -> Verdict | None:
    """The verdict where a figure is missing: portconv's own error is a failure."""
    for layer in layers:
        answers = results[layer.id]
        own = answers.get(ours)
        if own is None:
            return Verdict(claim, missing(ours) or f"{ours} was not run", "not measured")
        if "best_ms" not in own:
            return Verdict(claim, f"{layer.id}: {own.get('error') or own.get('skipped')}", "FAIL")
        if best_peer(answers, peers) is None:
            return Verdict(claim, f"{layer.id}: no figure from {', '.join(peers)}", "not measured")
    return None


def _slowest(
    claim: str, layers: list[Layer], ours: str, peers: tuple[str, ...], limit: float, results: Results
) -> Verdict:
    """The worst layer decides: portconv's time over that of the best peer must be `limit` at most."""
    if verdict := _unmeasured(claim, layers, ours, peers, results):
        return verdict
    worst, where = max((1 / ratio(results[layer.id], ours, peers), layer.id) for layer in layers)
    # A limit below one is a promise to be faster, and reads better as a speed-up.
    figure = f"{worst:.2f} times as long" if limit >= 1 else f"{1 / worst:.2f} times as fast"
    best, _ = best_peer(results[where], peers)
    return decided(claim, f"at worst {figure} ({where}, {best})", worst <= limit)


def _ratios(tier: str, mix: list[Layer], results: Results) -> list[Verdict]:
    """Geometric mean and worst of the ratios over the layers that a peer can run."""
    claims = [
        f"{NAMES[tier]}: time of the best peer over portconv's, geometric mean at least {MEAN_RATIO[tier]:g}",
        f"{NAMES[tier]}: the same, worst layer, at least {WORST_RATIO[tier]:g}",
    ]
    layers = [layer for layer in mix if best_peer(results[layer.id], PEERS)] or mix
    for claim in claims:
        if verdict := _unmeasured(claim, layers, tier, PEERS, results):
            return [Verdict(claim, verdict.figure, verdict.verdict) for claim in claims]
    ratios = {layer.id: ratio(results[layer.id], tier, PEERS) for layer in layers}
    mean, worst = geometric_mean(list(ratios.values())), min(ratios, key=ratios.get)
    best, _ = best_peer(results[worst], PEERS)
    return [
        decided(claims[0], f"{mean:.2f} ({len(layers)} layers)", mean >= MEAN_RATIO[tier]),
        decided(claims[1], f"{ratios[worst]:.2f} ({worst}, {best})", ratios[worst] >= WORST_RATIO[tier]),
    ]


def _resnet(results: Results) -> Verdict:
    ours = "portconv-jit"
    claim = f"{NAMES[ours]}: all of ResNet-50, sum of the best peers over portconv's, at least {RESNET_RATIO:g}"
    if verdict := _unmeasured(claim, RESNET, ours, NETWORK_PEERS, results):
        return verdict
    found = quotient(RESNET, results, ours, NETWORK_PEERS)
    convolutions = sum(layer.count for layer in RESNET)
    own = sum(layer.count * times_of(results[layer.id])[ours] for layer in RESNET)
    return decided(claim, f"{found:.2f} ({convolutions} convolutions, {own:.1f} ms)", found >= RESNET_RATIO)


def networks(libraries: list[str]) -> tuple[list[str], dict[str, list[Layer]]]:
    """The libraries that run whole networks, and these."""
    taking_part = [name for name in libraries if name == "portconv-jit" or name in NETWORK_PEERS]
    return taking_part, {name: network(name) for name in NETWORK_RATIO}


def _network(name: str, found: Contest) -> Verdict:
    ours, limit = "portconv-jit", NETWORK_RATIO[name]
    claim = f"{NAMES[ours]}: {name} as a whole, time of the best single peer over portconv's, at least {limit:g}"
    answers = found.results.get(name, {})
    own = answers.get(ours)
    if own is None:
        return Verdict(claim, missing(ours) or f"{ours} was not run", "not measured")
    if "best_ms" not in own:
        return Verdict(claim, own.get("error") or own.get("skipped"), "FAIL")
    best = best_peer(answers, NETWORK_PEERS)
    if best is None:
        return Verdict(claim, f"no figure from {', '.join(NETWORK_PEERS)}", "not measured")
    quotient = best[1] / own["best_ms"]
    figure = f"{quotient:.2f} ({best[0]} {best[1]:.1f} ms, portconv {own['best_ms']:.1f} ms)"
    return decided(claim, figure, quotient >= limit)


# --- memory, overhead, start ------------------------------------------------------------------------------------------


def _measured(claim: str, tier: str, measure: Callable[[], tuple[str, bool]], peer: str = "") -> Verdict:
    """The verdict on a figure that processes of their own give; where `peer` is named, beside that of a peer."""
    if reason := missing(tier) or (missing(peer) if peer else None):
        return Verdict(claim, reason, "not measured")
    try:
        return decided(claim, *measure())
    except subprocess.CalledProcessError as error:
        return Verdict(claim, f"its process ended with status {error.returncode}", "FAIL")


def _overhead(tier: str, threads: int) -> Verdict:
    def measure() -> tuple[str, bool]:
        own = overhead.in_new_process("numpy", 3, threads, tier)["overhead_us"]
        whole = overhead.in_new_process("torch", 3, threads, "torch")["call_us"]
        return f"{own / whole:.2f} ({own:.1f} us of {whole:.1f} us)", own <= OVERHEAD_SHARE * whole

    claim = (
        f"{NAMES[tier]}: a call on a 1x1x8x8 image costs, beyond the engine's own work, "
        f"{OVERHEAD_SHARE:g} of PyTorch's whole call at most"
    )
    return _measured(claim, tier, measure, "torch")


def _startup(tier: str, threads: int) -> Verdict:
    def measure() -> tuple[str, bool]:
        own = startup.measure(threads, tier)["import_and_call_s"]
        peer = startup.measure(threads, "torch")["import_and_call_s"]
        return f"{own / peer:.2f} ({own:.2f} s of {peer:.2f} s)", own <= STARTUP_SHARE[tier] * peer

    claim = (
        f"{NAMES[tier]}: import and first convolution in a new process take {STARTUP_SHARE[tier]:g} of PyTorch's "
        f"time at most"
    )
    return _measured(claim, tier, measure, "torch")


def _scratch(tier: str, layers: list[Layer], threads: int) -> Verdict:
    def measure() -> tuple[str, bool]:
        found = memory.measure_all(layers, threads, tier, lambda _: None)
        worst = max(found, key=lambda figures: figures["scratch_mib"])
        figure = f"at most {worst['scratch_mib']:.1f} MiB ({worst['id']}, of {len(found)} layers)"
        return figure, worst["scratch_mib"] <= SCRATCH_MIB

    claim = f"{NAMES[tier]}: scratch memory of {SCRATCH_MIB:g} MiB at most on every layer"
    return _measured(claim, tier, measure)


def judge(
    results: Results, whole: Contest, mix: list[Layer], threads: int, progress: Callable[[str], None]
) -> list[Verdict]:
    """All verdicts: those on speed from `results` and `whole`, the others from measurements of their own."""
    plain = "portconv-numpy"
    results = defaultdict(dict, results)  # a library that was left out has no answers
    verdicts = [
        *(_network(name, whole) for name in NETWORK_RATIO),
        *_ratios("portconv-jit", mix, results),
        _resnet(results),
        *_ratios(plain, mix, results),
        _slowest(
            f"{NAMES[plain]}: ResNet-50 and VGG-19 within {SLOWER_AT_MOST:g} times the best peer",
            *(RESNET_AND_VGG, plain, NETWORK_PEERS, SLOWER_AT_MOST, results),
        ),
        _slowest(
            f"{NAMES[plain]}: 31x31 of RepLKNet {LARGE_KERNEL_SPEEDUP:g} times faster than PyTorch's default layout",
            *(LARGE_KERNELS, plain, ("torch",), 1 / LARGE_KERNEL_SPEEDUP, results),
        ),
        _slowest(
            f"{NAMES[plain]}: 31x31 filters of 2048x2048 within {BLUR_SLOWER_AT_MOST:g} times OpenCV's filter2D",
            *(BLURS, plain, ("opencv",), BLUR_SLOWER_AT_MOST, results),
        ),
        _slowest(
            f"MLX on CPU: ResNet-50 {MLX_SPEEDUP:g} times faster than mx.conv2d",
            *(RESNET, "portconv-mlx", ("mlx",), 1 / MLX_SPEEDUP, results),
        ),
    ]
    everything = suites.select(["all"], mix)
    for tier in TIERS:
        progress(f"{tier}: overhead of a call")
        verdicts.append(_overhead(tier, threads))
        progress(f"{tier}: start of a process")
        verdicts.append(_startup(tier, threads))
        progress(f"{tier}: scratch memory of {len(everything)} layers")
        verdicts.append(_scratch(tier, everything, threads))
    return verdicts
