"""What the library says of the machine: what times depend on, and whether something else uses it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv import machine
from portconv.cpu import busy
from portconv.cpu import machine as cpu_machine


def test_environment(tier):
    here = portconv.environment()
    assert here["portconv"] == portconv.__version__ and here["numpy"] == np.__version__
    assert here["cpu"] == machine.processor() and here["usable_cores"] == machine.usable_cores() <= os.cpu_count()
    assert here["threads"] == portconv.get_num_threads() and here.get("vector_bits") == machine.vector_bits()
    assert here["tier"].startswith("numba ") if tier == "compiled" else here["tier"] == "plain"
    assert {type(value) for value in here.values()} <= {str, int}
    assert list(here) == list(portconv.environment())


def test_the_environment_of_a_backend(backend):
    x = backend.array(np.ones((1, 1, 2, 2), np.float32))
    here = portconv.environment(x)
    problem = portconv.plan_conv2d(x, x).problem
    library = portconv.get_backend(x)
    assert (here["backend"], here["device"]) == (library.name, problem.device)
    said = library.environment(problem)
    assert said and {name: str(here[name]) for name in said} == dict(said)
    assert here == portconv.environment(library, device=problem.device)
    assert set(portconv.environment()) - {"vector_bits"} <= set(here) and type(here["threads"]) is int
    assert portconv.environment(library.name)["backend"] == library.name


def test_its_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"`backend` must be one of .* but got 'nonesuch'"):
        portconv.environment("nonesuch")
    with pytest.raises(ValueError, match="`device`"):
        portconv.environment("numpy", device="gpu")
    with pytest.raises(TypeError, match="`device` must be a string or None"):
        portconv.environment("numpy", device=0)
    with pytest.raises(TypeError, match="`backend`"):
        portconv.environment([1.0])


def test_what_is_set_wrong_is_an_error(run_python):
    out = run_python(
        """
        import portconv
        try:
            portconv.environment()
        except ValueError as error:
            print(error)
        """,
        PORTCONV_NUM_THREADS="many",
    )
    assert "must be a positive integer, but got 'many'" in out


def test_disturbed_asks_for_the_threads_that_are_used(monkeypatch):
    asked = []
    monkeypatch.setattr(busy, "disturbed", lambda threads: asked.append(threads) or True)
    assert machine.disturbed() and machine.disturbed(7)
    assert asked == [portconv.get_num_threads(), 7]


@pytest.mark.parametrize(
    ("names", "bits"),
    [(["X86_V2", "X86_V3"], 256), (["SSE3", "AVX512F"], 512), (["NEON", "ASIMD"], 128), ([], None)],
)
def test_vectors(monkeypatch, names, bits):
    found = {"baseline": names[:1], "found": names[1:]}
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": found})
    assert machine.vector_bits() == bits
    assert ("vector_bits" in portconv.environment()) is (bits is not None)


def test_the_folder_of_compiled_code(jit):
    portconv.conv2d(np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32))
    folder = machine.code_folder()
    assert folder == sys.modules["portconv.cpu.compiled.memory"].fill_plane.kernel.stats.cache_path
    assert Path(folder).is_dir()


def test_the_plain_tier_has_no_code(plain_tier):
    with plain_tier():
        assert machine.code_folder() is None


def test_memory_is_that_of_the_container_where_it_has_less(monkeypatch, tmp_path):
    here = machine.memory_bytes()
    assert here is None or here > 2**20
    files = [tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes", tmp_path / "not there"]
    files[0].write_text("max\n")
    files[1].write_text(f"{2**63 - 4096}\n")
    monkeypatch.setattr(cpu_machine, "_MEMORY_LIMITS", files)
    physical = machine.memory_bytes()
    files[0].write_text("4194304\n")
    assert machine.memory_bytes() == 4194304 and (sys.platform == "win32" or physical > 4194304)
    monkeypatch.setattr(cpu_machine, "_MEMORY_LIMITS", ())
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert machine.memory_bytes() is None
