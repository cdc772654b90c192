"""What importing portconv loads, and which module may import which."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import portconv

PACKAGE = Path(portconv.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

OPTIONAL = {"torch", "jax", "jaxlib", "mlx", "cupy", "dask", "numba", "scipy", "array_api_strict", "tensorflow", "onnx"}
OPTIONAL |= {"keras"}
COMPILER = {"numba", "scipy"}  # which Numba imports, where it is installed
TOOLS = {"click", "rich", "matplotlib"}  # of the extra `bench`
# What a module may import from outside: nobody else may name a library.
LIBRARIES = {
    "mlx": {"mlx"},
    "torch": {"torch"},
    "torch_library": {"torch"},
    "graph.reading": {"onnx"},
    "graph.reference": {"onnx"},
    "keras": {"keras"},
    "processes.devices": {"mlx", "torch", "jax"},
    "testing.calls": {"mlx", "torch", "jax"},
    "bench.peers": {"mlx", "torch", "jax", "onnx"},  # in processes of their own
}

TESTS = Path(__file__).parent
ARCHITECTURE = TESTS.parent / "docs" / "architecture.md"
# Of rooms whose modules have a test file of their own name: those that have none, and where they are tested.
TESTED_ELSEWHERE = {
    "engines.costs": "dispatch/test_planner.py",
    "engines.engine": "dispatch/test_planner.py",
    "engines.overlap_save": "engines/test_fft.py",
    "engines.phases": "test_transposed.py",
    "dispatch.transposed": "test_transposed.py",
    "transposed_module": "test_transposed.py",
    "cpu.compiled.direct": "cpu/compiled/test_plans.py",
    "engines.windows": "test_windows.py",
    "dispatch.windows": "test_windows.py",
    "backends.dask.pooling": "test_windows.py",
}


def block(name):
    """The lines of a block of docs/architecture.md."""
    return re.search(rf"```{name}\n(.*?)```", ARCHITECTURE.read_text("utf-8"), re.DOTALL).group(1).splitlines()


def floors():
    """The rooms, lowest first, as docs/architecture.md lists them: a module's rank is its floor and its place there."""
    ranks = {}
    for floor, line in enumerate(block("floors")):
        name, *rooms = line.split()
        outer = ranks.get(name, (floor,))  # a room that has rooms of its own
        ranks["" if name == "portconv" else name] = (*outer, len(rooms))  # the floor's own file comes last
        for place, room in enumerate(rooms):
            ranks[f"{name}.{room}"] = (*outer, place)
    return ranks


RANK = floors()
PUBLIC_MODULES = " ".join(block("public")).split()
PROGRAMS = {"processes", "bench", "check", "cli", "__main__"}  # above the library: they use it as its users do


def module_name(file):
    """`backends.mlx` of portconv/backends/mlx.py, `engines` of portconv/engines/__init__.py."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(file) for file in FILES}


class Imports(ast.NodeVisitor):
    """The imports of a module: portconv's own modules, other packages; and of each, those made at import time."""

    def __init__(self, file):
        self.name, self.is_package = module_name(file), file.name == "__init__.py"
        self.own, self.own_at_once, self.others, self.others_at_once = set(), set(), set(), set()
        self.dynamic = set()  # imported by a function of importlib
        self.named = set()  # names of portconv's: `functional.conv2d` of `from portconv.functional import conv2d`
        self._inside = 0
        self.visit(ast.parse(file.read_text("utf-8")))

    def visit_FunctionDef(self, node):
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_If(self, node):
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):  # never run
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node):
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node):
        if node.level:
            parts = self.name.split(".") if self.name else []
            parts = parts if self.is_package else parts[:-1]
            parts = parts[: len(parts) - node.level + 1]
            base = ".".join(["portconv", *parts, *([node.module] if node.module else [])])
        else:
            base = node.module
        for alias in node.names:
            inner = f"{base}.{alias.name}".removeprefix("portconv").lstrip(".")
            if base.partition(".")[0] == "portconv":
                self.named.add(inner)
            self._add(f"{base}.{alias.name}" if base.startswith("portconv") and inner in NAMES else base)

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name) and node.value.id == "portconv":
            self.named.add(node.attr)
        self.generic_visit(node)

    def visit_Call(self, node):
        """`importlib.import_module("...")` with a name that stands there."""
        if ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant):
                self.dynamic.add(name.value.removeprefix("portconv."))
        self.generic_visit(node)

    def _add(self, name):
        package, _, rest = name.partition(".")
        target = (
            (self.own, self.own_at_once, rest) if package == "portconv" else (self.others, self.others_at_once, package)
        )
        target[0].add(target[2])
        if not self._inside:
            target[1].add(target[2])


IMPORTS = {module_name(file): Imports(file) for file in FILES}


def rank(name):
    """The floor of a module and its place there: those of the room that it stands in."""
    return RANK[room(name)]


def room(name):
    """The room of a module as the table has it: `backends.*` for one of several that stand there without an order."""
    while name not in RANK:
        parent = name.rpartition(".")[0]
        assert parent, "no room"
        name = f"{parent}.*" if f"{parent}.*" in RANK else parent
    return name


# --- at import time ---------------------------------------------------------------------------------------------------


def test_import_loads_no_array_library(run_python):
    out = run_python("""
        import sys
        before = set(sys.modules)
        from portconv import conv2d
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """)
    assert "numpy" in out.split()
    assert not (OPTIONAL | TOOLS) & set(out.split())


def test_import_loads_nothing_that_measures(run_python):
    out = run_python("""
        import sys
        import numpy
        before = set(sys.modules)
        from portconv import conv2d
        print(*sorted(set(sys.modules) - before))
    """)
    loaded = set(out.split())
    assert "portconv.machine" in loaded
    assert not {"json", "tempfile", "subprocess", "importlib.metadata", "pathlib"} & loaded
    assert not {f"portconv.{name}" for name in ("dispatch.wisdom", "dispatch.measurement", "cpu.bridge")} & loaded


def test_the_namespace_for_mlx_loads_no_convolution(run_python, library):
    library("mlx")
    out = run_python("""
        import sys
        import portconv.namespaces.mlx
        print(*sorted(name for name in sys.modules if name.partition(".")[0] == "portconv"))
        import portconv
        portconv.Conv2d, portconv.functional  # public names, and the modules that they have loaded
        print("portconv.functional" in sys.modules, hasattr(portconv, "conv3d"), hasattr(portconv, "conv4d"))
    """)
    before, after = out.splitlines()
    rest = [name for name in before.split() if not name.startswith("portconv.namespaces")]
    assert rest == ["portconv", "portconv.core", "portconv.core.errors", "portconv.core.version"]
    assert after == "True True False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="imports each module in a fork of one process")
def test_a_module_can_be_the_first_that_is_imported(run_python):
    """`import portconv.onnx` before anything else. Public names are loaded when one is asked for, which may be then."""
    names = [name for name in sorted(NAMES) if "." not in name] + ["namespaces.mlx"]
    out = run_python(
        f"""
        import importlib, os
        import numpy
        for name in {names}:
            child = os.fork()
            if child == 0:
                status = 0
                try:
                    importlib.import_module("portconv." + name if name else "portconv")
                except ModuleNotFoundError as error:  # of what is not installed
                    status = int(error.name.partition(".")[0] == "portconv")
                except BaseException as error:
                    print(name, repr(error), flush=True)
                    status = 1
                os._exit(status)
            print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        """,
        PORTCONV_QUIET="1",
    )
    assert [line for line in out.splitlines() if not line.endswith(" 0")] == []
    assert len(out.splitlines()) == len(names)


@pytest.mark.parametrize("jit", ["0", "1"])
def test_numpy_calls_load_no_other_library(run_python, jit):
    """But Numba, and what it brings, where the compiled tier is wanted: and that by the first convolution only."""
    out = run_python(
        """
        import sys

        def loaded():
            return {name.partition(".")[0] for name in sys.modules}

        import numpy as np, portconv
        module = portconv.Conv2d(2, 3, 3)
        portconv.set_num_threads(portconv.get_num_threads())
        print(*sorted(loaded()))
        x = np.ones((1, 2, 40, 40), np.float32)
        for engine in ("auto", "gemm", "winograd", "fft", "direct"):
            portconv.conv2d(x, np.ones((2, 2, 3, 3), np.float32), engine=engine)
        module(x)
        try:
            portconv.conv2d([1.0], x)
        except TypeError:
            pass
        assert "portconv.dispatch.wisdom" not in sys.modules
        print(*sorted(loaded()))
        """,
        PORTCONV_JIT=jit,
    )
    before, after = (set(line.split()) for line in out.splitlines())
    assert not OPTIONAL & before
    assert not (OPTIONAL - (COMPILER if jit == "1" else set())) & after


@pytest.mark.parametrize("name", ["torch", "jax", "array_api_strict"])
@pytest.mark.parametrize("jit", ["0", "1"])
def test_a_library_loads_no_other_library(run_python, library, name, jit):
    library(name)
    out = run_python(
        f"""
        import sys
        import {name}
        before = {{module.partition(".")[0] for module in sys.modules}}
        import portconv
        xp = {name}.numpy if {name!r} == "jax" else {name}
        portconv.conv2d(xp.ones((1, 2, 8, 8)), xp.ones((3, 2, 3, 3)))
        print(*sorted({{module.partition(".")[0] for module in sys.modules}} - before))
        """,
        PORTCONV_JIT=jit,
    )
    allowed = {name, name + "lib"}
    if name in ("jax", "torch") and jit == "1":  # whose arrays on a CPU NumPy's engines convolve
        allowed |= COMPILER
    assert not (OPTIONAL - allowed) & set(out.split())


# --- directions -------------------------------------------------------------------------------------------------------


def test_every_module_has_its_room():
    assert len(FILES) > 20
    for name in NAMES:
        rank(name)
    for listed in RANK:
        assert listed in NAMES or listed.endswith(".*"), f"docs/architecture.md lists {listed}, which does not exist"


@pytest.mark.parametrize("name", sorted(NAMES - {""}))
def test_directions(name):
    for other in IMPORTS[name].own | (IMPORTS[name].dynamic & NAMES):
        if not (other == name.rpartition(".")[0] or name == other.rpartition(".")[0]):  # a package and its files
            assert rank(other) <= rank(name), f"portconv.{name} imports portconv.{other}, which stands above it"
            depth = room(name).count(".") + 1
            if room(name) == room(other) and room(name).endswith(".*"):
                assert name.split(".")[:depth] == other.split(".")[:depth], f"portconv.{name} imports portconv.{other}"


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.partition(".")[0] in PROGRAMS))
def test_programs_use_public_names(name):
    imported = IMPORTS[name].own | (IMPORTS[name].dynamic & NAMES)
    assert {other.partition(".")[0] for other in imported} <= {"", *PUBLIC_MODULES} | PROGRAMS
    named = {found for found in IMPORTS[name].named if found not in NAMES and found.partition(".")[0] not in PROGRAMS}
    for module, _, public in (found.rpartition(".") for found in named):
        if module.partition(".")[0] != "testing":  # whose files are public, too
            found = importlib.import_module(f"portconv.{module}".rstrip("."))
            assert public in found.__all__ or public.startswith("__"), f"{module}.{public}"


def test_no_cycles():
    """Within a layer, too, every import points one way."""
    seen = set()

    def reach(name, path):
        assert name not in path, " imports ".join([*path, name])
        if name not in seen:
            for other in IMPORTS[name].own_at_once - {name}:
                reach(other, [*path, name])
            seen.add(name)

    for name in NAMES - {""}:
        reach(name, [])


def test_backends_do_not_import_each_other():
    backends = {name for name in NAMES if name.startswith("backends.")}
    assert {"backends.numpy", "backends.mlx", "backends.array_api"} <= backends
    for name in backends | {"backends"}:
        others = {other for other in IMPORTS[name].own | IMPORTS[name].dynamic if other.startswith("backends.")}
        assert {other.split(".")[1] for other in others} <= {"base", name.partition(".")[2].partition(".")[0]}


def test_engines_import_no_array_library():
    engines = {name for name in NAMES if name.partition(".")[0] == "engines"}
    assert {"engines.gemm", "engines.fft", "engines.direct"} <= engines
    for name in engines:
        assert not IMPORTS[name].dynamic, name
        assert IMPORTS[name].others <= set(sys.stdlib_module_names), name


def test_the_core_is_without_arrays():
    core = {name for name in NAMES if name.partition(".")[0] == "core"}
    assert "core.problem" in core
    for name in core:
        assert IMPORTS[name].others <= set(sys.stdlib_module_names), name


def test_the_registry_imports_no_backend():
    """It loads them by their names, when an array of theirs appears."""
    assert not {name for name in IMPORTS["dispatch.registry"].own if name.startswith("backends")}
    assert not IMPORTS["dispatch.registry"].others & OPTIONAL


@pytest.mark.parametrize("name", sorted(NAMES))
def test_libraries_are_imported_by_their_backends_only(name):
    allowed = LIBRARIES.get(name, set())
    if name.startswith("cpu.compiled."):  # imported by a plan, not before
        allowed = {"numba"}
    # rooms that are imported by the first array of their library
    rooms = ("mlx", "torch", "jax", "dask")
    whole = [one for one in rooms if name.startswith((f"namespaces.{one}", f"backends.{one}"))]
    allowed = allowed | set(whole)
    own = {name.rpartition(".")[2]} if room(name) == "backends.*" and not whole else set()
    allowed = allowed | own
    assert not IMPORTS[name].others_at_once & own - {"numpy"}
    named = IMPORTS[name].others | {other.partition(".")[0] for other in IMPORTS[name].dynamic}
    assert not (named & OPTIONAL) - allowed
    if name not in ("mlx", "torch", "torch_library") and not whole and not name.startswith("cpu.compiled."):
        assert not IMPORTS[name].others_at_once & OPTIONAL
    files = {"safetensors"} if name == "formats.safetensors" else set()  # imported by a file of this kind
    assert "safetensors" not in IMPORTS[name].others_at_once
    third = IMPORTS[name].others - OPTIONAL - own - set(sys.stdlib_module_names)
    tools = TOOLS if name.partition(".")[0] in PROGRAMS else set()
    # of LLVM's code
    writers = {"vectors", "activations", "conversions", "runs", "products", "moves", "jobs", "gradient.products",
               "windows.cells"}  # fmt: skip
    llvm = {"llvmlite"} if name in [f"cpu.compiled.{room}" for room in writers] else set()
    assert third <= {"numpy", "array_api_compat"} | tools | llvm | files, f"portconv.{name} depends on {third}"


def test_testing_uses_what_third_parties_may_use():
    for name in NAMES:
        if name.partition(".")[0] == "testing":
            others = {other for other in IMPORTS[name].own if other.partition(".")[0] != "testing"}
            assert others <= {"", "core.array_types", "core.backend", "dispatch.registry"}, name


# --- tests ------------------------------------------------------------------------------------------------------------


def modules_with_tests():
    """The modules of these rooms, and the folders of compiled engines."""
    for file in FILES:
        name = module_name(file)
        room, _, module = name.partition(".")
        if (room in ("engines", "dispatch", "backends") and module) or (
            name.startswith("cpu.compiled.") and file.name == "__init__.py"
        ):
            yield name


@pytest.mark.parametrize("name", list(modules_with_tests()))
def test_a_module_has_a_test_file_of_its_name(name):
    folder, _, module = name.replace(".", "/").rpartition("/")
    own = f"{folder}/test_{module}.py"
    assert (TESTS / TESTED_ELSEWHERE.get(name, own)).is_file()
    assert name not in TESTED_ELSEWHERE or not (TESTS / own).exists(), f"{name} has a test file: no exception is needed"


# --- what is public ---------------------------------------------------------------------------------------------------


def test_public_names():
    assert set(portconv.__all__) >= {
        "Conv2d", "UnsupportedError", "array_namespace", "available_backends", "conv2d", "conv2d_output_shape",
        "environment", "get_backend",
        "plan_conv2d", "register_backend", "tune", "use_backend", "warmup",
    }  # fmt: skip
    for name in portconv.__all__:
        assert getattr(portconv, name) is not None


def public_objects():
    for name in portconv.__all__:
        value = getattr(portconv, name)
        yield name, value
        if inspect.isclass(value):
            own = [base for base in value.__mro__ if base.__module__.startswith("portconv")]
            members = {member: inner for base in reversed(own) for member, inner in vars(base).items()}
            for member, inner in members.items():
                if not member.startswith("_") and (callable(inner) or isinstance(inner, property)):
                    yield f"{name}.{member}", inner


@pytest.mark.parametrize(("name", "value"), list(public_objects()), ids=[name for name, _ in public_objects()])
def test_public_names_are_documented(name, value):
    assert inspect.getdoc(value), name
    assert len(inspect.getdoc(value).split()) > 2 or name in ("Conv2d.padding_mode",)


def test_functions_show_how_they_are_called():
    for name in (
        "conv2d",
        "Conv2d",
        "plan_conv2d",
        "tune",
        "warmup",
        "environment",
        "conv2d_output_shape",
        "avg_pool2d",
        "global_avg_pool2d",
        "interpolate2d",
        "max_pool2d",
        "array_namespace",
        "device",
        "is_mlx_array",
        "size",
        "to_device",
        "get_backend",
        "use_backend",
        "available_backends",
    ):
        assert doctest.DocTestParser().get_examples(inspect.getdoc(getattr(portconv, name))), f"{name} has no example"


@pytest.mark.parametrize("file", FILES, ids=[module_name(file) or "portconv" for file in FILES])
def test_modules_are_documented(file):
    assert ast.get_docstring(ast.parse(file.read_text("utf-8")))


def test_positional_order_is_megengines():
    order = ["stride", "padding", "dilation", "groups"]
    for function, first, rest in (
        (portconv.conv2d, ["x", "weight", "bias"], ["conv_mode", "compute_mode"]),
        (
            portconv.Conv2d,
            ["in_channels", "out_channels", "kernel_size"],
            ["bias", "conv_mode", "compute_mode", "padding_mode"],
        ),
    ):
        parameters = inspect.signature(function).parameters.values()
        assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [*first, *order, *rest]
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert keywords >= {"layout", "engine", "accuracy", "strategy", "backend"}


def test_tuning_takes_the_arguments_of_planning():
    planning, tuning = (inspect.signature(f).parameters for f in (portconv.plan_conv2d, portconv.tune))
    expected = {name: (p.kind, p.default) for name, p in planning.items() if name not in ("engine", "strategy")}
    assert {name: (p.kind, p.default) for name, p in tuning.items() if name != "remember"} == expected
    assert [name for name in tuning if name != "remember"] == list(expected)


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_modules_are_there(name):
    if name in ("mlx", "torch"):
        pytest.importorskip({"mlx": "mlx.nn"}.get(name, name), reason="it is not installed")
    module = importlib.import_module(f"portconv.{name}")
    assert module.__all__
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_version():
    try:
        installed = metadata.version("portconv")
    except metadata.PackageNotFoundError:
        pytest.skip("portconv is not installed here, only imported")
    assert portconv.__version__ == installed


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
