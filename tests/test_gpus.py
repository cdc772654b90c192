"""`make test-gpu` must not pass where nothing ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import gpus

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.fixture(autouse=True)
def _asked_anew():
    gpus.find.cache_clear()
    yield
    gpus.find.cache_clear()


def broken(module):
    raise RuntimeError("no driver\nfor this card")


@pytest.mark.parametrize("device_of", [lambda module: None, broken])
def test_without_a_gpu_it_fails_and_says_so(monkeypatch, capsys, device_of):
    monkeypatch.setattr(gpus, "FIND", dict.fromkeys(gpus.LIBRARIES, ("math", device_of)))
    assert gpus.main() == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(gpus.LIBRARIES) and "torch finds no GPU" in out
    assert ("no driver for this card" in out) == (device_of is broken)
    assert "need a GPU, and no library finds one" in err


def test_one_library_with_a_gpu_is_enough(monkeypatch, capsys):
    found = {library: ("math", lambda module: None) for library in gpus.LIBRARIES}
    monkeypatch.setattr(gpus, "FIND", found | {"jax": ("math", lambda module: "cuda:0")})
    assert gpus.main() == 0
    assert "jax: cuda:0" in capsys.readouterr().out


def test_make_asks_before_it_tests():
    _, _, recipe = MAKEFILE.read_text("utf-8").partition("\ntest-gpu: ")
    first, second = recipe.splitlines()[1:3]
    assert first.endswith("tests/gpus.py") and "-m pytest -m gpu" in second
