"""Compiled code on disk: a folder that cannot be written and files that are damaged cost time, and no result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import portconv
from tests.cpu.compiled.helpers import SOURCE

pytestmark = pytest.mark.usefixtures("jit")

# What it computes, the warnings, and how many functions were compiled and how many were found.
RUN = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np
    import small
    x = np.ones((3, 4))
    small.double_rows(x)
    small.double(x[0])
    small.double(np.ones(1, np.int16))
functions = small.double, small.double_rows
print(json.dumps({
    "sum": x.sum(),
    "warnings": [str(w.message) for w in caught if "NUMBA_CACHE_DIR" in str(w.message)],
    "compiled": sum(sum(f.stats.cache_misses.values()) for f in functions),
    "found": sum(sum(f.stats.cache_hits.values()) for f in functions),
}))
"""
SUM = 32.0


@pytest.fixture
def nowhere(tmp_path):
    """Folders that cannot be made, not by root either: below a file."""
    file = tmp_path / "file"
    file.write_text("")
    return str(file / "folder")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of the small module."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "small.py").write_text(SOURCE)
    return folder


@pytest.fixture(scope="module")
def run_small(run_python, source):
    """Runs the small module in a fresh interpreter; `first` comes first in the path."""

    def run(first="", **environment):
        path = [first, str(source)] if first else [str(source)]
        return json.loads(run_python(f"import sys; sys.path[:0] = {path}\n{RUN}", **environment))

    return run


@pytest.fixture(scope="module")
def written(run_small, tmp_path_factory):
    """A folder with the code of the small module."""
    folder = tmp_path_factory.mktemp("cache")
    first = run_small(NUMBA_CACHE_DIR=str(folder))
    assert first == {"sum": SUM, "warnings": [], "compiled": 3, "found": 0}  # `double` for two dtypes
    return folder


@pytest.fixture
def kept(written, tmp_path):
    """The same, for one test alone."""
    return Path(shutil.copytree(written, tmp_path / "kept"))


@pytest.fixture
def package(tmp_path):
    """A copy of the package."""
    folder = tmp_path / "release" / "portconv"
    shutil.copytree(Path(portconv.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def homeless(nowhere):
    return dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE"), nowhere)


def test_without_a_folder_it_is_compiled_in_memory_and_said_once(run_small, source, nowhere):
    beside = source / "__pycache__"
    shutil.rmtree(beside, ignore_errors=True)
    beside.write_text("a file, where the folder would be")
    found = run_small(**homeless(nowhere))
    beside.unlink()
    (warning,) = found.pop("warnings")
    assert nowhere in warning and str(beside) in warning
    assert found == {"sum": SUM, "compiled": 3, "found": 0}


def test_the_next_folder_serves_where_the_first_cannot_be_written(run_small, source, nowhere):
    assert run_small(NUMBA_CACHE_DIR=nowhere)["warnings"] == []
    assert list((source / "__pycache__").glob("*.nbc"))


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def garble(file):
    file.write_bytes(bytes(range(255, 0, -1)) * 8)


def zero(file):
    """As a file system leaves it after a loss of power."""
    file.write_bytes(bytes(file.stat().st_size))


def alter(file):
    """One byte of the code itself: it can still be read, and would run."""
    data = bytearray(file.read_bytes())
    start = data.index(b"\x7fELF") + 64 if b"\x7fELF" in data else len(data) // 2
    data[start] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_damaged_files_are_replaced(run_small, kept, suffix):
    kinds = [truncate, empty, garble, zero, *([alter] if suffix == "nbc" else [])]
    files = sorted(kept.rglob(f"*.{suffix}"))
    for first in range(0, len(kinds), len(files)):  # a kind for each file, and the next ones in the next round
        for n, file in enumerate(files):
            kinds[(first + n) % len(kinds)](file)
        assert run_small(NUMBA_CACHE_DIR=str(kept)) == {"sum": SUM, "warnings": [], "compiled": 3, "found": 0}
    assert run_small(NUMBA_CACHE_DIR=str(kept)) == {"sum": SUM, "warnings": [], "compiled": 0, "found": 3}
    assert not list(kept.rglob("*.tmp.*"))


def test_the_file_of_another_signature(run_small, kept):
    """A process leaves it that ends between writing an index anew, which numbers the files anew, and the code."""
    one, two = sorted(kept.rglob("small.double-*.nbc"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert run_small(NUMBA_CACHE_DIR=str(kept)) == {"sum": SUM, "warnings": [], "compiled": 2, "found": 1}
    assert run_small(NUMBA_CACHE_DIR=str(kept))["found"] == 3


def test_damaged_files_that_cannot_be_replaced(run_small, kept):
    """Folders in their places serve, since root may write anywhere."""
    for file in kept.rglob("*.nbi"):
        file.unlink()
        file.mkdir()
    found = run_small(NUMBA_CACHE_DIR=str(kept))
    (warning,) = found.pop("warnings")
    assert str(kept) in warning
    assert found == {"sum": SUM, "compiled": 3, "found": 0}


@pytest.mark.parametrize("changed", ["vectors", "gemm/kernels", "../../engines/winograd"])
def test_code_is_compiled_anew_for_other_sources(run_small, kept, package, changed):
    """A new release may change a function that is part of another function's code, and not that other's file."""
    with (package / "cpu" / "compiled" / f"{changed}.py").open("a") as file:
        file.write("# changed\n")
    found = run_small(str(package.parent), NUMBA_CACHE_DIR=str(kept))
    assert found == {"sum": SUM, "warnings": [], "compiled": 3, "found": 0}


def test_code_is_kept_where_only_plans_are_others(run_small, kept, package):
    with (package / "cpu" / "compiled" / "gemm" / "plan.py").open("a") as file:
        file.write("# changed\n")
    found = run_small(str(package.parent), NUMBA_CACHE_DIR=str(kept))
    assert found == {"sum": SUM, "warnings": [], "compiled": 0, "found": 3}


def test_a_convolution_without_a_folder(run_python, package, nowhere):
    """As installed where the user may not write, with all kernels of an engine."""
    for folder in (package / "cpu" / "compiled", package / "cpu" / "compiled" / "direct"):
        (folder / "__pycache__").write_text("")
    code = f"""
        import sys, warnings
        sys.path.insert(0, {str(package.parent)!r})
        import numpy as np
        import portconv
        x, weight = np.ones((1, 1, 5, 5), np.float32), np.ones((1, 1, 3, 3), np.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                y = portconv.conv2d(x, weight, engine="direct")
        plan = portconv.plan_conv2d(x, weight, engine="direct")
        print(portconv.__file__, (y == 9).all(), type(plan).__module__, [str(w.message) for w in caught])
        """
    out = run_python(code, PORTCONV_JIT="1", **homeless(nowhere))
    assert out.startswith(str(package)) and " True portconv.cpu.compiled.direct.plan " in out
    assert out.count("NUMBA_CACHE_DIR") == 1 and str(package) in out.partition("compiled.direct.plan")[2]
