"""Every way to call a library, on the CPU and on the GPUs that are here."""

from __future__ import annotations

import pytest

import portconv
from portconv import testing
from portconv.check.cells import DTYPES, cell_problems, modes
from portconv.testing import calls, verification
from tests.gpus import LIBRARIES

MODES = [(name, mode) for name in LIBRARIES for mode in modes(name)]


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, mode in MODES if mode not in modes("numpy")])
def test_every_mode_and_that_it_sees_what_is_wrong(library, monkeypatch, name, mode):
    module = library(name).module
    (p,) = cell_problems(name, mode, "float32", "auto")
    assert 0 < testing.verify(p, name).share <= 1
    conv2d = portconv.conv2d
    for place in (calls, verification):
        monkeypatch.setattr(place, "conv2d", lambda *arrays, **options: conv2d(*arrays, **options) * 1.001)
    if mode == "torch.compile":  # which calls a layer
        forward = module.nn.Conv2d._conv_forward
        monkeypatch.setattr(module.nn.Conv2d, "_conv_forward", lambda *arrays: 1.001 * forward(*arrays))
    with pytest.raises(AssertionError, match="times the bound"):
        testing.verify(p, name)


def place_of(gpu):
    """The GPU as portconv calls it; MLX has one device at a time, and CuPy has no other kind."""
    return str(gpu.device) if gpu.package in ("torch", "jax") else None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gpu", "mode"), MODES, indirect=["gpu"])
def test_every_mode_on_a_gpu(gpu, mode, dtype):
    for engine in gpu.engines if mode != "torch.compile" else ["auto"]:
        for p in cell_problems(gpu.package, mode, dtype, engine):
            found = testing.verify(p, gpu.package, place_of(gpu))
            assert found.share is not None or engine != "auto" or dtype not in gpu.dtypes, found.reason


@pytest.mark.gpu
@pytest.mark.parametrize("gpu", LIBRARIES, indirect=True)
def test_drawn_problems_on_a_gpu(gpu):
    scope = testing.scope_of(gpu.package, place_of(gpu))
    scope = scope._replace(products=min(scope.products, 2**24))  # the oracle is slower than the GPU
    for number in range(30 if gpu.package == "jax" else 200):
        testing.verify(testing.draw(1, number, scope), gpu.package, place_of(gpu))
