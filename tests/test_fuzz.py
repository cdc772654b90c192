"""A fixed share of the random problems, the same in every run; `make fuzz` draws on for as long as one likes.

They run in a process of their own, so that one that kills it is a failure of that problem, and not the end of all
tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from portconv.cpu import bridge
from portconv.testing import scope_of

FUZZ = Path(__file__).parent / "fuzz.py"
SEED = 1
# How many problems; those of libraries that are slow are too few to have each class of everything.
SHARES = {
    ("numpy", "compiled"): 500,
    ("numpy", "plain"): 500,
    ("mlx", "compiled"): 300,
    ("torch", "compiled"): 200,
    ("jax", "compiled"): 40,
    ("array_api_strict", "compiled"): 70,
    ("dask", "compiled"): 250,
}
# Not the one where arrays are made by default: whatever an engine makes must be on the device of the image.
DEVICES = {"array_api_strict": "array_api_strict.Device('device1')"}
HOST = {"numpy", "mlx", "jax", "dask"}  # libraries that NumPy's engines compute for
FEW = {"jax", "array_api_strict"}


def classes(name, tier):
    """What there is to count, where a share is so large that all of it comes."""
    scope = scope_of(name, DEVICES.get(name))
    small = name in FEW
    return {
        "engine": set(scope.engines),
        "tier": {"compiled"}
        if tier == "compiled" and name in HOST and bridge.jit_enabled()
        else {"array API" if name == "array_api_strict" else "plain"},
        "dtype": {"float32"} if small else {*scope.dtypes, *scope.x_dtypes},
        "memory order": {"C"} if small else set(scope.orders),
        "size": {"small"} if small else {"empty", "tiny", "small", "medium", "large"},
        "call": {"conv2d"} if small else {*scope.calls, *(["gradient"] if scope.gradients else [])},
    }


@pytest.mark.parametrize("share", SHARES, ids="-".join)
def test_the_fixed_share_passes(library, request, tmp_path, share):
    name, tier = share
    library(name)  # or the test is skipped
    if share == ("numpy", "compiled"):
        request.getfixturevalue("jit")
    result = tmp_path / "fuzz.json"
    command = [sys.executable, str(FUZZ), "--backend", name, "--tier", tier, "--seed", str(SEED), "--json", str(result)]
    command += ["--count", str(SHARES[share]), "--seconds", "900", "--shrink", "20"]
    command += ["--device", DEVICES.get(name, "")]
    if share == ("numpy", "compiled") and sys.platform.startswith("linux"):
        command.append("--guard")
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    refused = sum(found["refused"].values())
    assert found["passed"] + refused == SHARES[share] and not found["failures"]
    assert refused < 0.2 * SHARES[share]
    assert 0 < found["worst"] <= 1
    for axis, expected in classes(name, tier).items():
        missing = expected - set(found["counts"][axis])
        assert not missing, f"{axis}: nothing was computed of {missing}; {found['counts'][axis]}"
