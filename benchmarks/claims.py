"""What portconv promises, and whether measurements keep it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import suites
from runner import run_json
from suites import Layer

RESNET = suites.suite("resnet50")
RESNET_AND_VGG = RESNET + suites.suite("vgg19")
LARGE_KERNELS = [layer for layer in suites.suite("replknet31") if min(layer.kernel) >= 31]
BLURS = [layer for layer in suites.suite("filters") if layer.kernel == (31, 31)]

# Peers that plain NumPy is measured against; OpenCV has no such layers, and MLX needs seconds for some.
NUMPY_PEERS = ("torch", "torch-channels-last", "onnxruntime", "openvino", "jax")

SLOWER_AT_MOST = 3.0  # than the best peer
LARGE_KERNEL_SPEEDUP = 3.0  # over PyTorch's default layout
BLUR_SLOWER_AT_MOST = 1.3  # than OpenCV
MLX_SPEEDUP = 20.0  # over mx.conv2d on CPU
OVERHEAD_US = 30.0
SCRATCH_MIB = 64.0

Results = dict[str, dict[str, dict]]  # answers of the workers, by layer id and library


@dataclass(frozen=True)
class Verdict:
    claim: str
    figure: str
    verdict: str  # "pass", "FAIL" or "not measured"


def jobs(libraries: list[str]) -> dict[str, list[Layer]]:
    """The layers that each of the libraries has to run."""
    needed = {
        "portconv-numpy": RESNET_AND_VGG + LARGE_KERNELS + BLURS,
        **dict.fromkeys(NUMPY_PEERS, RESNET_AND_VGG),
        "torch": RESNET_AND_VGG + LARGE_KERNELS,
        "opencv": BLURS,
        "portconv-mlx": RESNET,
        "mlx": RESNET,
    }
    return {library: layers for library, layers in needed.items() if library in libraries}


def _speed(
    claim: str, layers: list[Layer], ours: str, peers: tuple[str, ...], limit: float, results: Results
) -> Verdict:
    """The worst layer decides: portconv's time over that of the best peer must be `limit` at most."""
    worst, where = 0.0, ""
    for layer in layers:
        answers = results[layer.id]
        own = answers.get(ours)
        if own is None:
            return Verdict(claim, f"{ours} is not installed", "not measured")
        if "best_ms" not in own:
            return Verdict(claim, f"{layer.id}: {own.get('error') or own.get('skipped')}", "FAIL")
        times = {peer: answers[peer]["best_ms"] for peer in peers if "best_ms" in answers.get(peer, {})}
        if not times:
            return Verdict(claim, f"{layer.id}: no figure from {', '.join(peers)}", "not measured")
        best = min(times, key=times.get)
        if own["best_ms"] / times[best] > worst:
            worst, where = own["best_ms"] / times[best], f"{layer.id}, {best}"
    # A limit below one is a promise to be faster, and reads better as a speed-up.
    figure = f"{worst:.2f} times as long" if limit >= 1 else f"{1 / worst:.2f} times as fast"
    return Verdict(claim, f"at worst {figure} ({where})", "pass" if worst <= limit else "FAIL")


def _overhead(threads: int) -> Verdict:
    claim = f"a call on a 1x1x8x8 image costs {OVERHEAD_US:g} us at most beyond the engine's own work"
    try:
        overhead = run_json("overhead.py", "--threads", str(threads))["overhead_us"]
    except subprocess.CalledProcessError as error:
        return Verdict(claim, str(error), "not measured")
    return Verdict(claim, f"{overhead:.1f} us", "pass" if overhead <= OVERHEAD_US else "FAIL")


def _scratch(threads: int) -> Verdict:
    claim = f"scratch memory of {SCRATCH_MIB:g} MiB at most on every layer"
    try:
        layers = run_json("memory.py", "--suite", "all", "--threads", str(threads))["layers"]
    except subprocess.CalledProcessError as error:
        return Verdict(claim, str(error), "not measured")
    worst = max(layers, key=lambda layer: layer["scratch_mib"])
    figure = f"at most {worst['scratch_mib']:.1f} MiB ({worst['id']}, of {len(layers)} layers)"
    return Verdict(claim, figure, "pass" if worst["scratch_mib"] <= SCRATCH_MIB else "FAIL")


def judge(results: Results, threads: int, progress: Callable[[str], None]) -> list[Verdict]:
    """All verdicts: those on speed from `results`, those on overhead and memory from scripts of their own."""
    verdicts = [
        _speed(
            f"NumPy: ResNet-50 and VGG-19 within {SLOWER_AT_MOST:g} times the best peer",
            RESNET_AND_VGG,
            "portconv-numpy",
            NUMPY_PEERS,
            SLOWER_AT_MOST,
            results,
        ),
        _speed(
            f"NumPy: 31x31 kernels of RepLKNet {LARGE_KERNEL_SPEEDUP:g} times faster than PyTorch's default layout",
            LARGE_KERNELS,
            "portconv-numpy",
            ("torch",),
            1 / LARGE_KERNEL_SPEEDUP,
            results,
        ),
        _speed(
            f"NumPy: 31x31 blur of 2048x2048 within {BLUR_SLOWER_AT_MOST:g} times OpenCV's filter2D",
            BLURS,
            "portconv-numpy",
            ("opencv",),
            BLUR_SLOWER_AT_MOST,
            results,
        ),
        _speed(
            f"MLX on CPU: ResNet-50 {MLX_SPEEDUP:g} times faster than mx.conv2d",
            RESNET,
            "portconv-mlx",
            ("mlx",),
            1 / MLX_SPEEDUP,
            results,
        ),
    ]
    progress("overhead of a call")
    verdicts.append(_overhead(threads))
    progress("scratch memory of every layer")
    verdicts.append(_scratch(threads))
    return verdicts
