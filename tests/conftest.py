"""What the tests share: one `backend` for every array library, the libraries themselves, and a fresh interpreter.

PORTCONV_EXPECT_BACKENDS, a comma-separated list of libraries, makes a library that is missing a failure; without it the
tests of a missing library are skipped. PORTCONV_EXPECT_JIT=1 does the same for the compiled tier. PORTCONV_JIT=0 runs
everything in the plain tier alone. Slow libraries run a share of the parameters; PORTCONV_TEST_EVERYTHING=1 runs all.

A test marked `every_device` runs on GPUs, too, where a library finds one; these parameters are marked `gpu`. `-m gpu`
runs them, and without it each test has one of them for each library. PORTCONV_EXPECT_GPU, a comma-separated list of
libraries, makes a GPU that is missing a failure.
"""

from __future__ import annotations

import atexit
import importlib
import os
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

import portconv
from portconv.core import array_types
from portconv.cpu import bridge, busy, gradient
from portconv.dispatch import measurement, packing, path, planner, registry, wisdom
from portconv.engines import ENGINES
from tests import gpus

# An assertion in a module of helpers says what it found, as one in a test does.
pytest.register_assert_rewrite("tests.helpers", "tests.cpu.compiled.helpers")
settings.register_profile("portconv", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("portconv")

# No test reads or writes what the user has measured, nor does any doctest or process that a test starts.
_cache = tempfile.TemporaryDirectory(prefix="portconv-tests-")
atexit.register(_cache.cleanup)
os.environ.update(PORTCONV_WISDOM="0", PORTCONV_CACHE_DIR=_cache.name)
# What is compared with stderr must not depend on whether something was compiled.
os.environ["PORTCONV_QUIET"] = "1"


def _named(variable):
    return {name for name in os.environ.get(variable, "").replace(" ", "").split(",") if name}


EXPECTED, EXPECTED_ON_GPU = _named("PORTCONV_EXPECT_BACKENDS"), _named("PORTCONV_EXPECT_GPU")
MODULES = {"mlx": "mlx.core", "dask": "dask.array"}  # where the module to import is not called like the library
# What runs portconv's engines on NumPy does so in the compiled tier where there is one; "numpy-plain" does without.
TIERS = ("compiled", "plain") if bridge.jit_enabled() else ("plain",)
NUMPY = ("numpy", "numpy-plain", "numpy-readonly") if len(TIERS) == 2 else ("numpy", "numpy-readonly")
LIBRARIES = (*NUMPY, "array_api_strict", "mlx", "torch", "jax", "dask")
ON_GPU = tuple(f"{name}-gpu" for name in gpus.LIBRARIES)
# What runs the same engines as others gets a share of the parameters of a test: one of so many, the first among them.
# Coprime to the number of engines, so that each has its turn. Tests of few parameters keep all of them,
# PORTCONV_TEST_EVERYTHING=1 keeps all everywhere.
SHARES = {"dask": 7, "array_api_strict": 7, "numpy-readonly": 7, "jax-gpu": 7}
FEW = 6


def load(name):
    """The library's module; a missing one fails the test if it is expected, and skips it otherwise."""
    try:
        module = importlib.import_module(MODULES.get(name, name))
    except ImportError as error:
        message = f"{name} cannot be imported: {error}"
    else:
        if name == "mlx":  # portconv's own engines run on its CPU device; backends/test_mlx.py has a test of the GPU
            module.set_default_device(module.cpu)
        if name == "jax" and module.default_backend() != "cpu":
            module.config.update("jax_default_device", module.devices("cpu")[0])
        return module
    if name in EXPECTED:
        pytest.fail(f"{message}, but PORTCONV_EXPECT_BACKENDS names it")
    pytest.skip(message)


def gpu_of(package):
    """The library's GPU, as it names it itself; without one the test fails if it is expected, and is skipped else."""
    device, reason = gpus.find(package)
    if device is not None:
        return device
    if package in EXPECTED_ON_GPU:
        pytest.fail(f"{reason}, but PORTCONV_EXPECT_GPU names {package}")
    pytest.skip(reason)


@contextmanager
def on_its_device(library):
    """Within it MLX computes on the GPU, if that is the library's: its arrays have no device of their own."""
    if library.name != "mlx-gpu":
        yield
        return
    library.module.set_default_device(library.device)
    try:
        yield
    finally:
        library.module.set_default_device(library.module.cpu)


def engines_of(name):
    """The engines that run with a library."""
    return ("auto", *ENGINES, *(("native",) if name.partition("-")[0] in ("mlx", "torch", "jax") else ()))


def reason_against(engine, x, weight, bias=None, **options):
    """Why an engine cannot run a problem, of arrays or shapes: what the planner says of it; None if it can."""
    if engine == "auto":
        return None
    candidates = portconv.plan_conv2d(x, weight, bias, **options).candidates
    (reason,) = [candidate.why_not for candidate in candidates if candidate.engine == engine]
    return reason


@contextmanager
def plain_tier_only():
    """Within it NumPy's engines run in the plain tier, and no plan or packed weight passes in or out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORTCONV_JIT", "0")
        _forget()
        yield
    _forget()
    bridge.jit_enabled()  # the next to ask may be a test that sets the variable for a process which it starts


def _forget():
    bridge.jit_enabled.cache_clear()
    path.forget_plans()
    gradient._plan.cache_clear()
    packing.packs = packing.PackCache(packing.packs.limit_bytes)


class Library:
    """Arrays of one library, made and read without portconv."""

    def __init__(self, name):
        self.name = name  # as in LIBRARIES
        self.package = name.partition("-")[0]  # as portconv calls the library
        self.device = gpu_of(self.package) if name in ON_GPU else None
        self.module = load(self.package)

    def __repr__(self):
        return self.name

    @property
    def dtypes(self):
        """Floating dtypes that the library has, as it is configured by default."""
        lacking = {
            "numpy": {"bfloat16"},
            "dask": {"bfloat16"},
            "array_api_strict": {"bfloat16", "float16"},
            "jax": {"float64"},
            "jax-gpu": {"float64"},
            "mlx-gpu": {"float64"},
            "cupy-gpu": {"bfloat16"},
        }.get(self.name, {"bfloat16"} if self.package == "numpy" else set())
        if "mps" in str(self.device):
            lacking = {"float64"}
        return [name for name in ("float16", "bfloat16", "float32", "float64") if name not in lacking]

    @property
    def engines(self):
        return engines_of(self.name)

    def why_not(self, engine, *arrays, **options):
        """Why an engine cannot run a problem, or None."""
        return reason_against(engine, *arrays, **options)

    def dtype(self, name):
        """The library's dtype object of a standard name."""
        if self.package == "mlx" and name == "bool":
            return self.module.bool_
        if self.package == "dask":  # whose dtypes are NumPy's
            return np.dtype(name)
        return getattr(self.module.numpy if self.package == "jax" else self.module, name)

    def array(self, x, dtype=None):
        """An array of the library with the values of a NumPy array; `dtype` by its standard name."""
        x = np.array(x)  # a copy: the test may go on to change its own
        name = dtype or x.dtype.name
        if self.package == "numpy":
            y = x.astype(name)
            y.flags.writeable = self.name != "numpy-readonly"
            return y
        if self.package == "mlx":
            return self.module.array(x, dtype=self.dtype(name))
        if self.package == "torch":
            return self.module.asarray(x).to(self.dtype(name)).to(self.device or "cpu")
        if self.package == "jax":
            y = self.module.numpy.asarray(x, dtype=self.dtype(name))
            return y if self.device is None else self.module.device_put(y, self.device)
        if self.package == "cupy":
            return self.module.asarray(x, dtype=name)
        if self.package == "dask":
            # Dask divides by the size where it chooses chunks
            return self.module.from_array(x.astype(name), chunks="auto" if x.size else x.shape)
        return self.module.astype(self.module.asarray(x), self.dtype(name))

    def numpy(self, y):
        """The values as a NumPy array (bfloat16 as float32), after a check that `y` is an array of this library."""
        self.check(y)
        if self.dtype_name(y) == "bfloat16":
            y = y.astype(self.dtype("float32")) if self.package != "torch" else y.float()
        if self.package == "torch":
            return y.detach().cpu().numpy()
        return y.get() if self.package == "cupy" else np.array(y)

    def dtype_name(self, y):
        return str(y.dtype).rpartition(".")[2]

    @property
    def array_type(self):
        if self.package == "numpy":
            return np.ndarray
        if self.package == "mlx":
            return self.module.array
        if self.package == "torch":
            return self.module.Tensor
        if self.package == "dask":
            return self.module.Array
        if self.package == "jax":
            return self.module.Array
        if self.package == "cupy":
            return self.module.ndarray
        return type(self.module.asarray(0.0))

    def check(self, y):
        assert isinstance(y, self.array_type), f"expected an array of {self.name}, got {type(y)}"
        if self.package == "numpy":
            assert type(y) is np.ndarray
        if self.device is not None and self.package != "mlx":
            assert y.device == self.device


@pytest.fixture(scope="session")
def backend(request):
    return Library(request.param)


def pytest_generate_tests(metafunc):
    """A test that asks for `backend` runs with every library; one that also asks for `engine`, with every engine."""
    marks = dict.fromkeys(LIBRARIES, ())
    if metafunc.definition.get_closest_marker("every_device"):
        marks |= dict.fromkeys(ON_GPU, pytest.mark.gpu)
    if {"backend", "engine"} <= set(metafunc.fixturenames):
        pairs = [pytest.param(name, engine, marks=mark) for name, mark in marks.items() for engine in engines_of(name)]
        metafunc.parametrize(("backend", "engine"), pairs, indirect=["backend"])
    elif "backend" in metafunc.fixturenames:
        names = [pytest.param(name, marks=mark) for name, mark in marks.items()]
        metafunc.parametrize("backend", names, indirect=True)
    elif "tier" in metafunc.fixturenames:
        metafunc.parametrize("tier", TIERS, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Thin out the parameters of slow libraries, and of GPUs unless they are asked for: so many tests deselected."""
    if os.environ.get("PORTCONV_TEST_EVERYTHING", "0") not in ("", "0"):
        return
    gpus_wanted = "gpu" in config.option.markexpr
    groups = {}
    for item in items:
        library = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if library in SHARES or library in ON_GPU:
            groups.setdefault((item.function, library), []).append(item)
    spared = set()
    for (_, library), group in groups.items():
        if library in ON_GPU and not gpus_wanted:
            spared.update(group[1:])
        elif len(group) > FEW:
            spared.update(item for n, item in enumerate(group) if n % SHARES.get(library, 1))
    config.hook.pytest_deselected(items=[item for item in items if item in spared])
    items[:] = [item for item in items if item not in spared]


@pytest.fixture(scope="session")
def tier(request):
    """The name of the tier that the test runs in: a test that asks for `tier` runs in both."""
    return request.param


@pytest.fixture(autouse=True)
def _the_tier(request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") == "numpy-plain" or (parameters.get("tier") == "plain" and len(TIERS) == 2):
        with plain_tier_only():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _the_default_device(request):
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") in ON_GPU:
        with on_its_device(request.getfixturevalue("backend")):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _quiet_machine():
    """No test depends on what else the machine does."""
    # not by `monkeypatch`: what tests change by it would then outlive the tier that `_the_tier` sets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy, "disturbed", lambda threads: False)
        yield


@pytest.fixture(scope="session")
def plain_tier():
    """A context in which NumPy's engines run in the plain tier."""
    return plain_tier_only


@pytest.fixture
def timed(monkeypatch):
    """The engines timed, problem by problem; the clock says that fft is the fastest, and all others alike."""
    seen = []

    def fastest(calls, expected):
        seen.append(set(calls))
        return {engine: 0.001 if engine == "fft" else 0.003 for engine in calls}

    monkeypatch.setattr(measurement, "_fastest", fastest)
    return seen


@pytest.fixture
def in_plain_tier():
    """Lets the test run in the plain tier."""
    with plain_tier_only():
        yield


@pytest.fixture
def plain(monkeypatch):
    """Lets processes that the test starts compile nothing."""
    monkeypatch.setenv("PORTCONV_JIT", "0")


@pytest.fixture(scope="session")
def jit():
    """Skips a test of the compiled tier where there is none, or fails it if there should be one."""
    if os.environ.get("PORTCONV_JIT", "1") == "0":
        pytest.skip("PORTCONV_JIT=0")
    if len(TIERS) < 2:
        if os.environ.get("PORTCONV_EXPECT_JIT", "0") not in ("", "0"):
            pytest.fail("Numba cannot be imported, but PORTCONV_EXPECT_JIT asks for the compiled tier")
        pytest.skip("Numba cannot be imported")


@pytest.fixture(scope="session")
def why_not():
    """The function that says why an engine cannot run a problem."""
    return reason_against


@pytest.fixture(scope="session")
def needs():
    """The function that skips the test if an engine cannot run a problem."""

    def skip(engine, *arrays, **options):
        if (reason := reason_against(engine, *arrays, **options)) is not None:
            pytest.skip(f"{engine}: {reason}")

    return skip


@pytest.fixture
def nothing_runs(monkeypatch):
    """Makes everything fail that would come after the checks of arguments."""

    def called(*args, **kwargs):
        raise AssertionError("the checks were not complete, but the planner was asked for a plan")

    monkeypatch.setattr(planner, "plan", called)


@pytest.fixture
def registry_as_it_was(monkeypatch):
    """What the test registers is forgotten after it, and so are the libraries of the types that it has seen."""
    for name in ("_registered", "_loaded"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    for name in ("_known", "_library_of_type"):
        monkeypatch.setattr(array_types, name, getattr(array_types, name).copy())


@pytest.fixture
def packs(monkeypatch):
    """A cache of packed weights of the test's own, with room for 128 KiB."""
    cache = packing.PackCache(limit_bytes=128 << 10)
    monkeypatch.setattr(packing, "packs", cache)
    return cache


@pytest.fixture(scope="session")
def unchangeable():
    """Makes a NumPy array like another one that nobody can change: the only kind whose pack is kept without a copy."""
    return lambda values: np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape)


@pytest.fixture(scope="session")
def library():
    """Makes the `Library` of a name."""
    return Library


@pytest.fixture
def gpu(request):
    """The `Library` of the parameter on its GPU, for tests with a choice of their own among libraries."""
    library = Library(f"{request.param}-gpu")
    with on_its_device(library):
        yield library


@pytest.fixture(scope="session")
def mx():
    return load("mlx")


@pytest.fixture(scope="session")
def torch():
    return load("torch")


@pytest.fixture(scope="session")
def jax():
    return load("jax")


@pytest.fixture
def plans(monkeypatch):
    """The plans that calls inside the test were given, in order."""
    made, plan = [], path.plan_of

    def remember(*args, **kwargs):
        made.append(plan(*args, **kwargs))
        return made[-1]

    remember.cache_clear = plan.cache_clear
    monkeypatch.setattr(path, "plan_of", remember)
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of the test's own where measurements are kept, and from which they are recalled; not there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PORTCONV_CACHE_DIR", str(folder))
    monkeypatch.delenv("PORTCONV_WISDOM")
    monkeypatch.setattr(wisdom, "_warned", set())
    path.forget_plans()
    yield folder
    path.forget_plans()


@pytest.fixture(scope="session")
def run_python():
    """Runs code in a fresh interpreter, which must end normally, and gives what it printed."""
    root = str(Path(portconv.__file__).parents[1])

    def run(code, *, timeout=120, **environment):
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
