"""The modules beside `Conv2d` against MegEngine's: golden/relatives.npz, see golden/generate_relatives.py."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import portconv

with np.load(Path(__file__).parent / "golden" / "relatives.npz", allow_pickle=False) as file:
    ARRAYS = {name: file[name] for name in file.files}
MANIFEST = json.loads(ARRAYS["manifest"].tobytes())
EPS = np.finfo(np.float32).eps
CASES = {case["name"]: case for case in MANIFEST["cases"]}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def made(entry, **options):
    """The module here with the arguments of MegEngine's."""
    convert = lambda value: tuple(value) if isinstance(value, list) else value  # noqa: E731
    kwargs = {key: convert(value) for key, value in entry["kwargs"].items()}
    return getattr(portconv, entry["kind"])(*map(convert, entry["args"]), **kwargs, **options)


def arrays(case, *names):
    return [ARRAYS.get(f"{case['name']}/{name}") for name in names]


def computed(case, change=lambda a: a):
    """Result and gradients, of the arrays with something done to them."""
    module = made(case)
    module.load_state_dict({name: change(*arrays(case, name)) for name in case["named_parameters"]})
    x, dy = (change(a) for a in arrays(case, "x", "dy"))
    y, vjp = module.vjp(x)
    np.testing.assert_array_equal(module(x), y)
    return [y, *vjp(dy)]


def test_there_are_cases():
    assert MANIFEST["megengine"] == "1.13.0"
    assert Counter(case["kind"] for case in CASES.values()) == {"ConvTranspose2d": 12, "Conv1d": 4, "Conv3d": 4}


@every_case
def test_results_and_gradients(case, tier):
    found, magnitudes = computed(case), computed(case, np.abs)
    for got, c, expected in zip(found, magnitudes, arrays(case, "y", "dx", "dweight", "dbias"), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert got.shape == expected.shape and got.dtype == expected.dtype
            # the bound of each side
            assert (np.abs(got - expected) <= 2 * EPS * (8 * c + 24 * c.max())).all()


@every_case
def test_module_looks_like_megengines(case):
    module = made(case)
    shown = re.sub(r", output_padding=\(\d, \d\)", "", repr(module))  # which MegEngine leaves out
    assert shown == case.get("repr", shown)
    for name, value in case["attributes"].items():
        assert getattr(module, name) == (tuple(value) if isinstance(value, list) else value), name
    state = module.state_dict()
    assert [[key, list(value.shape), str(value.dtype)] for key, value in state.items()] == case["state_dict"]
    assert list(dict(module.named_parameters())) == case["named_parameters"]


@pytest.mark.parametrize("entry", MANIFEST["initial"], ids=lambda entry: f"{entry['kind']}-{entry['shape']}")
def test_initial_weights(entry):
    weight = made(entry, rng=7).weight
    assert list(weight.shape) == entry["shape"]
    assert abs(weight.std() / entry["std"] - 1) < 8 / (2 * weight.size) ** 0.5


@pytest.mark.parametrize("entry", MANIFEST["refused"], ids=lambda entry: f"{entry['kind']}-{entry['shape']}")
def test_what_megengine_refuses_is_refused(entry):
    with pytest.raises(ValueError):
        made(entry)(np.ones(entry["shape"], np.float32))
