"""What is compared: portconv, in two tiers and on MLX arrays, and the libraries that compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import checkout  # noqa: F401  before portconv

from portconv.bench import peers
from portconv.bench.worker import TIERS, backend_target, tier_target
from portconv.processes.session import environment

HERE = Path(__file__).resolve().parent

OURS = (*TIERS, "portconv-mlx")
PEERS = tuple(peers.PEERS)

TARGETS = {
    **{tier: tier_target(tier) for tier in TIERS},
    "portconv-mlx": backend_target("mlx", "portconv-mlx"),
    **{name: peers.target_of(name) for name in PEERS},
}


def missing(tier: str) -> str | None:
    """Why a tier, or PyTorch, cannot be measured, or None."""
    needed = {"portconv-jit": "numba", "torch": "torch"}.get(tier)
    return f"{needed} is not installed" if needed and find_spec(needed) is None else None


def run_child(script: str, arguments: dict, threads: int, tier: str) -> dict:
    """What a script of this folder prints as JSON when it runs in a new process as `script --child ARGUMENTS`."""
    command = [sys.executable, str(HERE / script), "--child", json.dumps(arguments)]
    env = environment(threads, dict(TIERS.get(tier, ())))
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True, env=env)
    return json.loads(done.stdout)
