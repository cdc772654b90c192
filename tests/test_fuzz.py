"""A fixed share of the random problems, the same in every run; `make fuzz` draws on for as long as one likes.

They run in a process of their own, so that one that kills it is a failure of that problem, and not the end of all
tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import portconv
from portconv.cpu import bridge
from portconv.testing import Scope, scope_of
from tests import relatives
from tests.relatives import OPERATIONS

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
# Of the operations beside `conv2d`, in turns.
RELATIVES = {
    ("numpy", "compiled"): 72,
    ("numpy", "plain"): 54,
    ("mlx", "compiled"): 36,
    ("torch", "compiled"): 36,
    ("jax", "compiled"): 18,
    ("array_api_strict", "compiled"): 27,
    ("dask", "compiled"): 27,
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
    found = fuzzed(library, request, tmp_path, share, "conv2d", SHARES[share])
    for axis, expected in classes(*share).items():
        missing = expected - set(found["counts"][axis])
        assert not missing, f"{axis}: nothing was computed of {missing}; {found['counts'][axis]}"


@pytest.mark.parametrize("share", RELATIVES, ids="-".join)
def test_the_fixed_share_of_other_operations_passes(library, request, tmp_path, share):
    found = fuzzed(library, request, tmp_path, share, "relatives", RELATIVES[share])
    assert set(found["counts"]["operation"]) == set(OPERATIONS)
    assert share[0] in FEW or "gradient" in found["counts"]["call"]


def fuzzed(library, request, tmp_path, share, operation, count):
    """What was found with so many problems, none of which may fail."""
    name, tier = share
    library(name)  # or the test is skipped
    if share == ("numpy", "compiled"):
        request.getfixturevalue("jit")
    result = tmp_path / "fuzz.json"
    command = [sys.executable, str(FUZZ), "--backend", name, "--tier", tier, "--seed", str(SEED), "--json", str(result)]
    command += ["--operation", operation, "--count", str(count), "--seconds", "900", "--shrink", "20"]
    command += ["--device", DEVICES.get(name, "")]
    if share == ("numpy", "compiled") and sys.platform.startswith("linux"):
        command.append("--guard")
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    refused = sum(found["refused"].values())
    assert found["passed"] + refused == count and not found["failures"]
    assert refused < 0.2 * count
    assert 0 < found["worst"] <= 1
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_value_is_noticed(operation, monkeypatch):
    drawn = (relatives.draw(SEED, number, Scope(), operation) for number in range(1000))
    plain = {"gradient": False, "out_dtype": "", "data": "normal", "kernel": "normal", "dtype": "float32"}
    p = next(p for p in drawn if p.x_shape[0] and not p.x_dtype and all(getattr(p, k) == v for k, v in plain.items()))
    p = replace(p, orders=("C", "C", "C"), engine="auto", threads=0)
    assert relatives.verify(p).share <= 1
    function = getattr(portconv, operation)

    def wrong(*args, **kwargs):
        y = function(*args, **kwargs)
        y[(-1,) * y.ndim] += 1e-3 * max(1, abs(y).max())
        return y

    monkeypatch.setattr(portconv, operation, wrong)
    with pytest.raises(AssertionError, match="the error"):
        relatives.verify(p)
    assert relatives.shrink(p, lambda some: some.x_shape[-1] > 1, 1.0).x_shape[0] == 1
