"""Which backend serves an array: known libraries, registered ones, plug-ins, and whatever follows the standard."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import shutil
import sys
import threading
import warnings
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv import testing
from portconv.backends import cupy
from portconv.core import array_types
from portconv.core.backend import ArrayInfo, Backend
from portconv.dispatch import registry

X, WEIGHT = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)


class Wrapper:
    """A backend that does what NumPy's does, and counts its plans."""

    def __init__(self, name="wrapper"):
        self.inner, self.name, self.built = portconv.get_backend("numpy"), name, 0

    def describe(self, x, /):
        return self.inner.describe(self.unwrap(x))

    def candidates(self, problem, /):
        return self.inner.candidates(problem)

    def build(self, problem, engine, /):
        self.built += 1
        return self.inner.build(problem, engine)

    def cache_token(self, weight, /):
        return None

    def from_numpy(self, x, /, *, dtype=None, device=None):
        return self.inner.from_numpy(x, dtype=dtype, device=device)

    def to_numpy(self, x, /):
        return self.inner.to_numpy(self.unwrap(x))

    def synchronize(self, x, /):
        pass

    def environment(self, problem, /):
        return self.inner.environment(problem)

    @staticmethod
    def unwrap(x):
        if not isinstance(x, np.ndarray):
            raise TypeError(f"no array: {type(x).__name__}")
        return x


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch):
    for name in ("_registered", "_loaded"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    for name in ("_known", "_library_of_type"):
        monkeypatch.setattr(array_types, name, getattr(array_types, name).copy())


@pytest.fixture
def plugins(monkeypatch):
    """Pretends that packages with these entry points are installed."""

    def install(**backends):
        holder = type(sys)("portconv_test_plugins")
        entries = []
        for name, backend in backends.items():
            setattr(holder, "backend_" + name, backend)
            entries.append(EntryPoint(name, f"portconv_test_plugins:backend_{name}", "portconv.backends"))
        monkeypatch.setitem(sys.modules, "portconv_test_plugins", holder)

        pretend(monkeypatch, *entries)

    return install


def pretend(monkeypatch, *entries):
    """Make these the entry points for backends."""
    real = metadata.entry_points

    def entry_points(**kwargs):
        return entries if kwargs == {"group": "portconv.backends"} else real(**kwargs)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    array_types._library_of_type.clear()


def array_type(package):
    """A kind of array whose type lives in `package`."""
    return type("Array", (np.ndarray,), {"__module__": package + ".core"})


# --- known libraries --------------------------------------------------------------------------------------------------


def test_arrays_find_their_backend(backend):
    found = portconv.get_backend(backend.array(X))
    assert found.name == backend.package
    assert found is portconv.get_backend(backend.package)
    assert found is portconv.get_backend(found)
    assert isinstance(found, Backend)


def test_describe(backend):
    library = portconv.get_backend(backend.package)
    default = str(pytest.importorskip("jax").devices()[0]).lower() if backend.package == "jax" else "cpu"
    for dtype in (*backend.dtypes, "uint8", "int32"):
        info = library.describe(backend.array(np.ones((2, 3)), dtype))
        assert isinstance(info, ArrayInfo)
        assert (info.shape, info.dtype, info.traced) == ((2, 3), dtype, False)
        assert default in info.device.lower()
    for value in ([1.0], 1.0, "x", None):
        with pytest.raises(TypeError):
            library.describe(value)


def test_numpy_and_back(backend):
    library = portconv.get_backend(backend.package)
    for dtype in (*backend.dtypes, "uint8", "int32", "bool"):
        values = np.array([[0, 1, 2], [3, 4, 100]])
        array = library.from_numpy(values.astype("float32" if dtype == "bfloat16" else dtype), dtype=dtype)
        backend.check(array)
        assert library.describe(array).dtype.rstrip("_") == dtype
        back = library.to_numpy(array)
        assert type(back) is np.ndarray
        assert back.dtype == ("float32" if dtype == "bfloat16" else dtype)
        np.testing.assert_array_equal(back, values.astype(back.dtype))
        library.synchronize(array)


def test_available_backends(monkeypatch):
    names = portconv.available_backends()
    assert isinstance(names, tuple)
    assert "numpy" in names
    for name, module in {
        "mlx": "mlx.core",
        "torch": "torch",
        "jax": "jax",
        "dask": "dask.array",
        "cupy": "cupy",
    }.items():
        try:
            importlib.import_module(module)
        except ImportError:
            assert name not in names
        else:
            assert name in names
    broken = EntryPoint("broken", "no_such_module:backend", "portconv.backends")
    pretend(monkeypatch, broken)
    assert portconv.available_backends() == names


# --- register_backend -------------------------------------------------------------------------------------------------


def test_register_backend():
    backend = Wrapper()
    array = X.view(array_type("mylib"))
    portconv.register_backend("mylib", backend)
    assert portconv.get_backend("mylib") is backend
    assert portconv.get_backend(array) is backend
    assert "mylib" in portconv.available_backends()
    y = portconv.conv2d(array, WEIGHT.view(type(array)))
    assert backend.built == 1
    np.testing.assert_allclose(y, 18)
    with pytest.raises(TypeError, match=r"numpy.*mylib|mylib.*numpy"):
        portconv.conv2d(array, WEIGHT)
    module = portconv.Conv2d(2, 3, 3, backend="mylib")
    assert module(array).shape == (1, 3, 4, 4)
    assert module(X).shape == (1, 3, 4, 4)


def test_a_type_seen_before_it_was_registered():
    array = X.view(array_type("latelib"))
    assert portconv.get_backend(array).name == "numpy"  # a kind of ndarray
    backend = Wrapper()
    portconv.register_backend("latelib", backend)
    assert portconv.get_backend(array) is backend


@pytest.mark.parametrize("name", ["numpy", "torch", "mlx"])
def test_known_names_cannot_be_taken(name):
    with pytest.raises(ValueError, match=f"`name`.*{name}"):
        portconv.register_backend(name, Wrapper())
    assert portconv.get_backend("numpy").name == "numpy"


def test_a_name_can_be_taken_once():
    portconv.register_backend("mylib", Wrapper())
    with pytest.raises(ValueError, match="`name`"):
        portconv.register_backend("mylib", Wrapper())


def test_what_cannot_be_registered():
    for name in (3, None, "my lib", "", b"mylib"):
        with pytest.raises(TypeError, match="`name`"):
            portconv.register_backend(name, Wrapper())

    class Half:
        name = "half"

        def describe(self, x, /):
            return None

    for backend in (Half(), None, "numpy", Wrapper):
        with pytest.raises(TypeError, match="`backend`"):
            portconv.register_backend("mylib", backend)
    with pytest.raises(TypeError, match=r"candidates.*build"):
        portconv.register_backend("mylib", Half())


@pytest.mark.parametrize("member", ["name", "describe", "build", "synchronize", "environment"])
def test_a_member_that_is_missing_is_named(member, plugins):
    numpy = portconv.get_backend("numpy")
    members = ("name", "describe", "candidates", "build", "cache_token", "from_numpy", "to_numpy", "synchronize")
    had = {name: getattr(numpy, name) for name in (*members, "environment") if name != member}
    bare = type("Bare", (), had)()
    with pytest.raises(TypeError, match=rf"`backend` must have .*; Bare lacks {member}\.$"):
        portconv.register_backend("mylib", bare)
    with pytest.raises(TypeError, match=rf"`backend` Bare lacks {member}\.$"):
        portconv.conv2d(X, WEIGHT, backend=bare)
    with pytest.raises(TypeError, match=rf"`backend` Bare lacks {member}\.$"):
        testing.check_backend(bare)
    plugins(otherlib=bare)
    with pytest.raises(TypeError, match=rf"'otherlib' .* is no portconv backend: it lacks {member}\.$"):
        portconv.get_backend("otherlib")


# --- backend=, use_backend --------------------------------------------------------------------------------------------


def test_the_argument_wins():
    first, second = Wrapper("first"), Wrapper("second")
    with portconv.use_backend(first):
        portconv.conv2d(X, WEIGHT, backend=second)
    assert (first.built, second.built) == (0, 1)
    portconv.conv2d(X, WEIGHT, stride=2, backend="numpy")
    assert (first.built, second.built) == (0, 1)


def test_use_backend_nests_and_ends():
    outer, inner = Wrapper("outer"), Wrapper("inner")
    with portconv.use_backend(outer) as given:
        assert given is outer
        with portconv.use_backend(inner):
            portconv.conv2d(X, WEIGHT)
        assert (outer.built, inner.built) == (0, 1)
        portconv.conv2d(X, WEIGHT)
        assert (outer.built, inner.built) == (1, 1)
        module = portconv.Conv2d(2, 3, 3)
        module(X)
        assert outer.built == 2
    portconv.conv2d(X, WEIGHT)
    module(X)
    assert (outer.built, inner.built) == (2, 1)


def test_use_backend_ends_with_an_exception():
    backend = Wrapper()
    with pytest.raises(RuntimeError, match="stop"), portconv.use_backend(backend):
        raise RuntimeError("stop")
    portconv.conv2d(X, WEIGHT)
    assert backend.built == 0
    with pytest.raises(ValueError, match="`backend`"), portconv.use_backend("nothing"):
        pass
    with pytest.raises(TypeError), portconv.use_backend(None):
        pass


def test_use_backend_belongs_to_its_thread():
    backend = Wrapper()
    found = []
    with portconv.use_backend(backend):
        thread = threading.Thread(target=lambda: found.append(registry.resolve(X).name))
        thread.start()
        thread.join()
        found.append(registry.resolve(X).name)
    assert found == ["numpy", "wrapper"]


def test_use_backend_belongs_to_its_task():
    first, second = Wrapper("first"), Wrapper("second")

    async def work(backend):
        with portconv.use_backend(backend):
            await asyncio.sleep(0)
            found = registry.resolve(X).name
            await asyncio.sleep(0)
            return found, registry.resolve(X).name

    async def both():
        return await asyncio.gather(work(first), work(second))

    assert asyncio.run(both()) == [("first", "first"), ("second", "second")]


# --- plug-ins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["instance", "class"])
def test_a_plugin_serves_its_library(plugins, form):
    backend = Wrapper("plugged")
    plugins(
        plugged=backend
        if form == "instance"
        else type("Plugged", (Wrapper,), {"__init__": lambda self: Wrapper.__init__(self, "plugged")})
    )
    array = X.view(array_type("plugged"))
    found = portconv.get_backend(array)
    assert found.name == "plugged"
    assert portconv.get_backend("plugged") is found
    assert "plugged" in portconv.available_backends()
    portconv.conv2d(array, WEIGHT.view(type(array)))
    assert found.built == 1


def test_a_plugin_for_a_known_library_changes_nothing_unless_named(plugins):
    backend = Wrapper("fastnumpy")
    plugins(numpy=backend)
    registry._loaded.clear()  # as in a fresh process
    assert portconv.get_backend(X).name == "numpy"
    assert portconv.get_backend("numpy") is not backend
    portconv.conv2d(X, WEIGHT)
    portconv.Conv2d(2, 3, 3)(X)
    assert backend.built == 0
    assert portconv.get_backend("fastnumpy") is backend
    portconv.conv2d(X, WEIGHT, backend="fastnumpy")
    assert backend.built == 1


def test_what_was_registered_goes_before_a_plugin(plugins):
    plugin, backend = Wrapper("theirs"), Wrapper("ours")
    plugins(somelib=plugin)
    portconv.register_backend("somelib", backend)
    assert portconv.get_backend("somelib") is backend
    assert portconv.get_backend(X.view(array_type("somelib"))) is backend


def test_a_plugin_that_is_no_backend(plugins):
    plugins(plugged=object())
    with pytest.raises(TypeError, match="plugged"):
        portconv.get_backend("plugged")
    assert "plugged" not in portconv.available_backends()


def test_no_plugin_is_imported_for_a_known_library(plugins, monkeypatch):
    broken = EntryPoint("other", "no_such_module:backend", "portconv.backends")
    pretend(monkeypatch, broken)
    assert portconv.get_backend(X).name == "numpy"
    np.testing.assert_allclose(portconv.conv2d(X, WEIGHT), 18)


# --- any library that follows the standard ----------------------------------------------------------------------------


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


# --- array_namespace --------------------------------------------------------------------------------------------------


def test_array_namespace(backend):
    xp = portconv.array_namespace(backend.array(X))
    assert xp is portconv.array_namespace(None, backend.array(X), 2.0, 1, backend.array(WEIGHT), None)
    y = xp.sum(xp.reshape(backend.array(X), (-1,)))
    backend.check(xp.zeros((2, 3)))
    assert float(y) == 72
    assert xp.concat is not None
    if backend.package == "mlx":
        assert xp.__name__ == "portconv.namespaces.mlx"


def test_array_namespace_of_several_libraries(library):
    arrays = {name: library(name).array(X) for name in ("numpy", "mlx", "torch", "jax", "array_api_strict")}
    for mine, x in arrays.items():
        for other, y in arrays.items():
            if mine != other:
                with pytest.raises(TypeError):
                    portconv.array_namespace(x, y)


@pytest.mark.parametrize("values", [(), (None,), (1.0,), ([1.0, 2.0],), ("x",)])
def test_array_namespace_of_no_array(values):
    with pytest.raises(TypeError):
        portconv.array_namespace(*values)


# --- check_backend ----------------------------------------------------------------------------------------------------


@pytest.mark.not_dask
def test_check_backend(backend):
    results = testing.check_backend(backend.package, dtypes=tuple(backend.dtypes))
    assert {result.engine for result in results} == set(backend.engines) - {"auto"}
    assert all(0 <= result.worst <= 1 for result in results)
    for dtype in backend.dtypes:
        for layout in ("NCHW", "NHWC"):
            assert sum(dtype in result.problem and layout in result.problem for result in results) > 20


def test_dask():
    """Also with the engine that the other tests spare it, and with arrays in several chunks."""
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 4, 9, 8)).astype("f4"), rng.standard_normal((6, 2, 3, 3)).astype("f4")
    for mode, engine in itertools.product(("zeros", "reflect", "replicate", "circular"), ("auto", "gemm", "direct")):
        options = {"stride": (1, 2), "padding": 1, "groups": 2, "padding_mode": mode}
        expected = testing.reference_conv2d(x, weight, **options)
        y = portconv.conv2d(da.from_array(x, chunks=(1, 2, 5, 8)), da.from_array(weight), engine=engine, **options)
        assert isinstance(y, da.Array)
        assert y.dtype == np.float32
        testing.assert_close(y.compute(), expected)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("bad", ["image", "weight"])
def test_dask_is_quiet_about_data_that_are_not_finite(engine, bad):
    """Its tasks run in threads of their own, which know nothing of the caller's settings."""
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 4, 12, 10)).astype("f4"), rng.standard_normal((6, 4, 3, 3)).astype("f4")
    spoiled = x[0, 1] if bad == "image" else weight[2, 1]
    spoiled[1, 1], spoiled[1, 2], spoiled[2, 1] = np.nan, np.inf, -np.inf
    expected = testing.reference_conv2d(x, weight, padding=1).y
    for dtype in ("float32", "float16"):
        scale = 1 if dtype == "float32" else 1e4  # results of float16 overflow besides
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            arrays = da.from_array(x.astype(dtype)), da.from_array((weight * scale).astype(dtype))
            y = portconv.conv2d(*arrays, da.ones((6,), dtype=dtype), padding=1, engine=engine).compute()
        assert np.isnan(y[np.isnan(expected)]).all()
        assert np.isnan(y).any()


def test_dask_warns_of_what_the_user_computes():
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    x = da.log(da.from_array(-X))
    y = portconv.conv2d(x, da.from_array(WEIGHT), engine="gemm")
    with pytest.warns(RuntimeWarning, match="invalid value encountered in log"):
        y.compute()


def test_dask_computes_nothing_before_it_is_asked():
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    computed = []

    def seen(block):
        computed.append(block.shape)
        return block

    x = da.from_array(X).map_blocks(seen, dtype="f4", meta=np.empty((0,) * 4, "f4"))
    y = portconv.conv2d(x, da.from_array(WEIGHT), engine="gemm")
    assert computed == []
    y.compute()
    assert computed == [X.shape]


def test_dask_arrays_of_unknown_size():
    """Dask gives NaN for a size that it would have to compute."""
    da = pytest.importorskip("dask.array", reason="Dask is not installed")
    x = da.ones((3, 2, 6, 6))
    x = x[x[:, 0, 0, 0] > 0]
    with pytest.raises(ValueError, match=r"`x`.*nan"):
        portconv.conv2d(x, da.from_array(WEIGHT))


class Broken(Wrapper):
    """Results that something was done to."""

    def __init__(self, spoil, engine="gemm"):
        super().__init__("broken")
        self.spoil, self.engine = spoil, engine

    def build(self, problem, engine, /):
        plan = self.inner.build(problem, engine)
        if engine != self.engine:
            return plan
        spoil, execute = self.spoil, type(plan).execute

        def spoiled(this, x, weight, bias=None, /):
            return spoil(execute(this, x, weight, bias), problem)

        fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
        return type("Spoiled", (type(plan),), {"execute": spoiled})(**fields)


def beyond_the_bound(y, problem):
    y = y.copy()
    y[..., -1:] *= np.float32(1.001)
    return y


SPOILERS = {
    "one value": beyond_the_bound,
    "sign": lambda y, problem: -y,
    "shape": lambda y, problem: y[..., :-1],
    "extra axis": lambda y, problem: y[None],
    "layout": lambda y, problem: y.transpose(0, 2, 3, 1) if problem.layout == "NCHW" else y,
    "dtype": lambda y, problem: y.astype(np.float64),
    "bias twice": lambda y, problem: y + np.float32(problem.epilogue.bias),
    "padding mode": lambda y, problem: y * np.float32(problem.padding_mode != "circular"),
    "NaN": lambda y, problem: np.full_like(y, np.nan),
}


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_check_backend_finds_what_is_broken(spoiler, engine):
    with pytest.raises(AssertionError, match=engine):
        testing.check_backend(Broken(SPOILERS[spoiler], engine))


@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_check_backend_passes_what_is_not_broken(engine):
    assert testing.check_backend(Broken(lambda y, problem: y, engine))


def test_check_backend_finds_a_broken_protocol():
    class Silent(Wrapper):
        def describe(self, x, /):
            return self.inner.describe(np.asarray(x))

    class Rounding(Wrapper):
        def to_numpy(self, x, /):
            return super().to_numpy(x) + 1

    class Idle(Wrapper):
        def candidates(self, problem, /):
            return [candidate for candidate in super().candidates(problem) if candidate.why_not]

    class Misnamed(Wrapper):
        def describe(self, x, /):
            return super().describe(x)._replace(dtype="f4")

    for kind, error, message in (
        (Silent, AssertionError, "describe.. of a string raised no TypeError"),
        (Rounding, AssertionError, "to_numpy.from_numpy.x.. changed the values"),
        (Idle, portconv.UnsupportedError, "No engine of the backend 'wrapper' can run this"),
        (Misnamed, AssertionError, "gave ArrayInfo.*dtype='f4'"),
    ):
        with pytest.raises(error, match=message):
            testing.check_backend(kind())


def test_an_empty_array_of_dask(library):
    dask = library("dask")
    for shape in ((0, 16, 205, 5), (0, 3, 4, 5), (2, 0, 7, 7)):
        array = portconv.get_backend("dask").from_numpy(np.zeros(shape, "f4"), dtype="float16")
        assert array.shape == shape and array.dtype == "float16" and dask.numpy(array).shape == shape


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


def test_jax_stays_on_its_second_device(run_python):
    pytest.importorskip("jax", reason="JAX is not installed")
    run_python("""
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        import jax, numpy as np, portconv
        device = jax.devices("cpu")[1]
        x, weight = (jax.device_put(np.ones(shape, "f4"), device) for shape in ((1, 2, 7, 8), (3, 2, 3, 3)))
        for y in (portconv.conv2d(x, weight), portconv.Conv2d(2, 3, 3)(x)):
            assert y.devices() == {device}, y.devices()
        layer = portconv.Conv2d(2, 3, 3, backend="jax", device="cpu:1")
        assert layer.weight.devices() == {device}
        assert portconv.Conv2d(2, 3, 3, backend="jax", device="cpu").weight.devices() == {jax.devices("cpu")[0]}
    """)


def test_dask_adds_the_terms_of_one_group_one_by_one(library):
    """Not those of all groups: what `direct` is refused for is the number of terms of one output."""
    library("dask")
    for groups, refused in ((1, True), (64, False)):
        plan = portconv.plan_conv2d(
            (1, 64, 9, 9), (64, 64 // groups, 5, 5), groups=groups, padding=2, backend="dask", engine="auto"
        )
        offered = {c.engine: c.why_not for c in plan.candidates}
        assert bool(offered["direct"]) is refused


def test_to_the_device_where_it_is(backend):
    x = backend.array(X)
    device = portconv.device(x)
    y = portconv.to_device(x, device)
    backend.check(y)
    assert portconv.device(y) == device
    np.testing.assert_array_equal(backend.numpy(y), X)


def test_cupy_sees_zeros_by_their_bits():
    # CuPy's own comparisons take subnormal numbers for zero; NumPy stands in for CuPy, where there is no GPU
    steps = cupy._CupySteps(np)
    for dtype, subnormal in (("float32", 1e-40), ("float64", 1e-310)):
        x = np.array([0.0, -0.0, subnormal, -subnormal, 1.0, np.nan], dtype)
        assert steps.is_zero(x).tolist() == [True, True, False, False, False, False]
        assert steps.transformable(np.ones((2, 3, 3, 3), dtype), dtype)
        assert not steps.transformable(np.full((2, 3, 3, 3), subnormal, dtype), dtype)


def test_dask_is_not_asked_for_thousands_of_tasks(library):
    backend = library("dask")
    x, weight = np.ones((1, 16, 20, 16), np.float32), np.ones((3, 16, 15, 15), np.float32)
    with pytest.raises(portconv.UnsupportedError, match="Dask would take minutes to order the tasks of its 3600 terms"):
        portconv.conv2d(backend.array(x), backend.array(weight), engine="direct")
    plan = portconv.plan_conv2d(backend.array(x), backend.array(weight), accuracy="elementwise")
    assert plan.engine == "gemm"
    y = portconv.conv2d(backend.array(x), backend.array(weight[..., :3, :3]), engine="direct")
    np.testing.assert_array_equal(backend.numpy(y), np.full((1, 3, 18, 14), 144, np.float32))
