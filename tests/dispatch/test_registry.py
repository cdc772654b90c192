"""Which backend serves an array: known libraries, registered ones, and plug-ins."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from importlib import metadata
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import portconv
from portconv.core import array_types
from portconv.core.backend import Backend
from portconv.dispatch import registry
from portconv.testing import check_backend
from tests.helpers import WEIGHT, Wrapper, X

pytestmark = pytest.mark.usefixtures("registry_as_it_was")


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
        check_backend(bare)
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


def test_a_backend_that_is_named_may_alone_know_its_arrays():
    class Boxed:
        def __init__(self, values):
            self.values = values

    class Boxes(Wrapper):
        @staticmethod
        def unwrap(x):
            return Wrapper.unwrap(x.values if isinstance(x, Boxed) else x)

    boxes, x, weight = Boxes("boxes"), Boxed(X), Boxed(WEIGHT)
    bias, residual = Boxed(np.ones(3, np.float32)), Boxed(np.ones((1, 3, 4, 4), np.float32))
    expected = portconv.plan_conv2d(X, WEIGHT, True, residual=True).problem
    assert portconv.plan_conv2d(x, weight, bias, residual=residual, backend=boxes).problem == expected
    with portconv.use_backend(boxes):
        assert portconv.plan_conv2d(x, weight, True, residual=True).problem == expected
    with pytest.raises(TypeError, match="`x_or_shape` must be an array or a shape"):
        portconv.plan_conv2d(x, weight)


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


# --- libraries that cannot be imported --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "extra"), [("mlx", "mlx"), ("torch", "torch"), ("jax", "jax"), ("cupy", "cupy"), ("dask", "dask")]
)
def test_a_missing_library_names_the_extra(run_python, name, extra):
    run_python(f"""
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {name!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Missing())
        import numpy as np, portconv

        x, weight = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
        for call in (
            lambda: portconv.get_backend({name!r}),
            lambda: portconv.Conv2d(1, 1, 3, backend={name!r}),
            lambda: portconv.Conv2d(1, 1, 3).to({name!r}),
            lambda: portconv.conv2d(x, weight, backend={name!r}),
            lambda: portconv.plan_conv2d(x.shape, weight.shape, backend={name!r}),
        ):
            try:
                call()
            except ImportError as error:
                assert "portconv[{extra}]" in str(error) and {name!r} in str(error), error
            else:
                raise AssertionError("no ImportError")
        assert {name!r} not in portconv.available_backends()
        assert portconv.conv2d(x, weight).shape == (1, 1, 2, 2)
    """, PORTCONV_JIT="0")  # fmt: skip


def test_a_broken_library_says_what_is_broken(run_python):
    """MLX without its compute package raises an ImportError of another kind than that for a missing module."""
    run_python("""
        import sys

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("mlx"):
                    raise ImportError("libmlx.so: cannot open shared object file")

        sys.meta_path.insert(0, Broken())
        import portconv
        try:
            portconv.get_backend("mlx")
        except ImportError as error:
            assert "libmlx.so" in str(error) and "portconv[mlx]" in str(error), error
        else:
            raise AssertionError("no ImportError")
    """)
