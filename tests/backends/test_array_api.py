"""Any library that follows the array API standard, and devices."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv import testing
from tests.helpers import WEIGHT, X

pytestmark = pytest.mark.usefixtures("registry_as_it_was")


@pytest.fixture
def conforming(tmp_path, monkeypatch, library):
    """A conforming library that nobody has heard of: array_api_strict under another name."""
    source = Path(library("array_api_strict").module.__file__).parent
    shutil.copytree(source, tmp_path / "unheardof", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    for file in (tmp_path / "unheardof").glob("*.py"):
        file.write_text(file.read_text().replace("import array_api_strict\n", "import unheardof as array_api_strict\n"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield importlib.import_module("unheardof")
    for name in [name for name in sys.modules if name.partition(".")[0] == "unheardof"]:
        del sys.modules[name]


def test_any_library_that_follows_the_standard(conforming):
    x, weight = conforming.asarray(X), conforming.asarray(WEIGHT)
    y = portconv.conv2d(x, weight, padding=1)
    assert type(y) is type(x)
    assert type(y).__module__.startswith("unheardof")
    np.testing.assert_allclose(np.asarray(y), portconv.conv2d(X, WEIGHT, padding=1), rtol=1e-6)
    assert portconv.get_backend(x).name == portconv.get_backend("unheardof").name == "unheardof"
    assert testing.check_backend("unheardof")
    assert portconv.Conv2d(2, 3, 3)(x).shape == (1, 3, 4, 4)


def test_a_library_whose_namespace_is_a_module_within_it(conforming, monkeypatch):
    """As with `jax.numpy` and `dpctl.tensor`, the array says where: `__array_namespace__`."""
    package = type(sys)("outerlib")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "outerlib", package)
    monkeypatch.setitem(sys.modules, "outerlib.tensor", conforming)
    monkeypatch.setattr(type(conforming.asarray(X)), "__module__", "outerlib._core")
    x, weight = conforming.asarray(X), conforming.asarray(WEIGHT)
    y = portconv.conv2d(x, weight)
    np.testing.assert_allclose(np.asarray(y), 18, rtol=1e-6)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_all_is_made_on_the_device_of_the_image(library, engine, mode):
    xp = library("array_api_strict").module
    device = xp.Device("device1")
    rng = np.random.default_rng(7)
    values = [rng.standard_normal(shape, np.float32) for shape in ((2, 4, 9, 8), (6, 4, 3, 3), (6,))]
    arrays = [xp.asarray(a, device=device) for a in values]
    options = {"padding": 2, "padding_mode": mode}
    y = portconv.conv2d(*arrays, **options, engine=engine)
    assert y.device == device
    found = portconv.get_backend("array_api_strict").to_numpy(y)
    testing.assert_close(found, testing.reference_conv2d(*values, **options))


def test_a_layer_of_another_library_goes_to_the_device_of_the_image(library):
    xp = library("array_api_strict").module
    device = xp.Device("device1")
    x = np.random.default_rng(7).standard_normal((1, 2, 7, 8), np.float32)
    layer = portconv.Conv2d(2, 3, 3, rng=0)
    y = layer(xp.asarray(x, device=device))
    assert y.device == device
    found = portconv.get_backend("array_api_strict").to_numpy(y)
    testing.assert_close(found, testing.reference_conv2d(x, layer.weight, layer.bias))
