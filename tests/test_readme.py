"""The program behind `make readme`: what it runs, what it leaves out, and what it never leaves out."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("readme", Path(__file__).with_name("readme.py"))
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)

WITH_MLX = """
>>> a = 1
>>> import mlx.core as mx
>>> b = mx.array(a)
"""


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs a document where the optional libraries `without` are not installed; gives exit status and output."""

    def call(text, without=("mlx",)):
        found = importlib.util.find_spec
        monkeypatch.setattr(readme, "find_spec", lambda name: None if name in without else found(name))
        document = tmp_path / "document.md"
        document.write_text(f"Text.\n\n```python\n{text}\n\n```\n")
        return int(readme.main([str(document)])), capsys.readouterr().out

    return call


def test_a_paragraph_that_needs_a_missing_library_is_skipped_and_named(run):
    status, out = run(f">>> 1 + 1\n2\n{WITH_MLX}\n>>> 'after'\n'after'")
    assert status == 0
    assert "document.md: lines 7 to 9 skipped, not installed: mlx\n" in out
    assert out.endswith("2 passed, 0 failed, 3 skipped\n")


def test_examples_with_the_library_run(run, mx):
    status, out = run(WITH_MLX, without=())
    assert status == 0 and out.endswith("3 passed, 0 failed, 0 skipped\n")


@pytest.mark.parametrize(
    "failing",
    [
        ">>> 1 + 1\n3",
        ">>> b  # of the paragraph that was skipped",
        ">>> import no_such_module  # not an array library",
        ">>> 1 +",
    ],
)
def test_every_other_failure_fails(run, failing):
    status, out = run(f"{WITH_MLX}\n{failing}")
    assert status == 1 and out.endswith("0 passed, 1 failed, 3 skipped\n")


def test_an_example_equal_to_a_skipped_one_runs(run):
    status, out = run(f"{WITH_MLX}\n>>> a = 1\n>>> a\n1")
    assert status == 0 and out.endswith("2 passed, 0 failed, 3 skipped\n")


@pytest.mark.parametrize("text", ["", WITH_MLX])
def test_a_document_without_examples_that_run_fails(run, text):
    assert run(text)[0] == 1
