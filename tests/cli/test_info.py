"""`portconv info`: what it finds is what is there."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv import wisdom
from portconv.check import installation
from portconv.check.runner import Library
from portconv.cli import main


@pytest.fixture
def libraries(monkeypatch):
    """Lets `info` ask for these only: the others take seconds to import."""

    def choose(*found):
        monkeypatch.setattr(installation, "libraries", lambda: list(found))

    return choose


def test_info(libraries, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PORTCONV_JIT", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    libraries(Library("numpy"), Library("nonesuch"))
    file = tmp_path / "info.json"
    assert main(["info", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["portconv"] == portconv.__version__ and platform.python_version() in found["python"]
    numpy = found["libraries"]["numpy"]
    assert numpy["version"] == np.__version__ and numpy["missing"] is None
    offered = {c.engine for c in portconv.plan_conv2d((1, 1, 9, 9), (1, 1, 3, 3)).candidates}
    assert set(numpy["devices"]["cpu"]["engines"]) == offered
    assert "nonesuch" in found["libraries"]["nonesuch"]["missing"] and not found["libraries"]["nonesuch"]["devices"]
    assert found["compiled_tier"] == {"state": "off", "why": "PORTCONV_JIT is 0"}
    assert found["threads"] == portconv.get_num_threads() and found["environment"]["OMP_NUM_THREADS"] == "1"
    assert found["machine"]["vector_bits"] in (None, 128, 256, 512)
    for part in (np.__version__, portconv.__version__, "OMP_NUM_THREADS=1", "PORTCONV_JIT is 0", "nonesuch: "):
        assert part in out
    assert platform.python_version() in out and "gemm, winograd, direct, fft" in out


def test_json_on_stdout(libraries, capsys):
    libraries()
    assert main(["info", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["libraries"] == {}


def test_the_compiled_tier(jit, libraries, capsys):
    libraries(Library("numpy", "compiled"), Library("numpy", "plain"))
    found = installation.installation()
    import numba

    tier = found["compiled_tier"]
    assert tier["state"] == "on" and tier["numba"] == numba.__version__ and tier["cache"]
    notes = found["libraries"]["numpy (compiled)"]["devices"]["cpu"]["engines"]
    assert notes["gemm"].startswith("compiled")
    assert not found["libraries"]["numpy (plain)"]["devices"]["cpu"]["engines"]["gemm"].startswith("compiled")


def test_mlx(mx, libraries):
    libraries(Library("mlx"))
    found = installation.installation()["libraries"]["mlx"]
    assert found["version"] == mx.__version__
    assert "cpu" in found["devices"] and all("native" in here["able"] for here in found["devices"].values())


def test_wisdom(libraries, cache, capsys, monkeypatch):
    libraries()
    assert main(["info"]) == 0
    assert f"{cache}/wisdom.json (not written yet)" in capsys.readouterr().out
    wisdom.save({})
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"{cache}/wisdom.json\n" in out and "not written yet" not in out


def test_no_home_for_wisdom(libraries, capsys, monkeypatch):
    libraries()

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    for variable in ("PORTCONV_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    assert main(["info"]) == 0
    assert "wisdom: " in (out := capsys.readouterr().out) and "There is no home folder" in out


def test_wrong_thread_counts_are_shown(run_python):
    out = run_python(
        """
        from portconv.check import installation
        from portconv.cli import main
        installation.libraries = lambda: []
        main(["info"])
        """,
        PORTCONV_NUM_THREADS="many",
    )
    assert "must be a positive integer, but got 'many'" in out


def test_bad_input(capsys):
    assert main(["info", "--json", "/nonesuch/a.json"]) == 2
    assert "cannot be written" in capsys.readouterr().err
