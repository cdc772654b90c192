"""The command `portconv warmup`: what it says, and how it ends."""

from __future__ import annotations

import pytest

import portconv
from portconv import extending
from portconv.cli import main
from portconv.core.backend import Plan
from tests.helpers import lines

SIZES = ["--x", "1x2x12x13", "--weight", "3x2x3x3", "--padding", "1"]


@pytest.fixture
def planned(monkeypatch):
    """The problems that were warmed up, in the plain tier; each of them has two kernels to compile."""
    problems = []

    def warmup(plan):
        problems.append(plan.problem)
        return "one", "two"

    monkeypatch.setattr(Plan, "warmup", warmup)
    monkeypatch.setattr(portconv, "environment", lambda: {"tier": "numba 1"})
    return problems


@pytest.mark.usefixtures("jit")
def test_it_compiles_what_a_layer_needs(capsys):
    for _ in range(2):
        assert main(["warmup", *SIZES]) == 0
        out, err = capsys.readouterr()
        (told,) = lines(out)
    assert told.startswith("Nothing had to be compiled")
    assert "given/layer: " in err and ", nothing to compile" in err


def test_it_says_what_was_compiled(in_plain_tier, planned, capsys):
    assert main(["warmup", *SIZES, "--dtype", "float64", "--layout", "NHWC", "--bias"]) == 0
    (problem,) = planned
    assert problem.dtype == "float64" and problem.x_shape == (1, 12, 13, 2) and problem.epilogue.bias
    out, err = capsys.readouterr()
    assert out.startswith("Compiled one, two in ")
    assert "compiled one, two in" in err


def test_gradients(in_plain_tier, planned, capsys, monkeypatch):
    monkeypatch.setattr(extending, "warmup_gradients", lambda plan: (plan.problem.dtype,))
    assert main(["warmup", *SIZES, "--gradients"]) == 0
    assert capsys.readouterr().out.startswith("Compiled one, two, float32 in ")


def test_suites(in_plain_tier, planned, capsys):
    assert main(["warmup", "--suite", "resnet50", "--select", "conv1"]) == 0
    assert planned and "resnet50/" in capsys.readouterr().err


def test_without_the_compiled_tier(in_plain_tier, capsys):
    assert main(["warmup", *SIZES]) == 0
    (told,) = lines(capsys.readouterr().out)
    assert told.startswith("Nothing to compile: ")


def test_a_layer_that_fails_is_status_1(in_plain_tier, capsys, monkeypatch):
    def warmup(_plan):
        raise MemoryError("too much")

    monkeypatch.setattr(Plan, "warmup", warmup)
    assert main(["warmup", *SIZES]) == 1
    assert "given/layer: MemoryError: too much" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nonesuch"], "nonesuch"),
        (["--x", "1x2x3x3"], "both --x and --weight"),
        ([*SIZES, "--library", "nonesuch"], "nonesuch"),
        ([*SIZES, "--device", "nonesuch"], "device 'nonesuch' is none of cpu"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, message):
    assert main(["warmup", *arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = lines(err)
    assert out == "" and line.startswith("portconv warmup: ") and message in line
