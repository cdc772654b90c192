"""The pages in docs/: that each of their blocks is run or says why not, and that what they name is there.

pytest runs the blocks themselves, as documents (`testpaths` and `--doctest-glob` in pyproject.toml).
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest

from portconv.graph.reading import NEWEST, OLDEST
from portconv.graph.running import SUPPORTED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not {"_build", "generated"} & set(page.parts)]
NOT_RUN = re.compile(r"<!-- not run: .{10,} -->")


def blocks(page):
    """The blocks of a page: the line before, the language, the lines."""
    lines = page.read_text("utf-8").splitlines()
    inside = None
    for before, line in zip(["", *lines], lines, strict=False):
        if inside is None and (found := re.fullmatch(r"```(\w+)", line)):
            inside, start, text = found[1], before, []
        elif inside is not None and line == "```":
            yield start, inside, text
            inside = None
        elif inside is not None:
            text.append(line)


def commands(page):
    """The lines of the blocks for a shell, as words."""
    for _, language, text in blocks(page):
        if language == "sh":
            for line in "\n".join(text).replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def named(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_blocks_of_python_are_run_or_say_why_not(page):
    for before, language, text in blocks(page):
        if language in ("python", "pycon"):
            if text[0].startswith(">>>"):
                assert text[-1] == "", f"a block needs an empty line at its end, for doctest: {text[-1]}"
            else:
                assert NOT_RUN.fullmatch(before), f"neither an example nor marked `not run`: {text[0]}"


def test_the_page_on_onnx_has_every_operator():
    text = (ROOT / "docs/tutorials/onnx.md").read_text("utf-8")
    listed = text.split("These are there:")[1].split(".\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(SUPPORTED)
    assert f"Sets of operators {OLDEST} to {NEWEST} are read" in text


def portconv_for(arguments):
    pytest.importorskip("click")
    from portconv.cli.app import app

    command = app.commands[arguments[0]]
    known = {name for parameter in command.params for name in parameter.opts}
    for option in (a for a in arguments if a.startswith("--")):
        assert option in known, f"portconv {command.name} has no {option}"


def make_for(arguments):
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert arguments[0] in targets


def python_for(arguments):
    assert (ROOT / arguments[0]).is_file(), arguments[0]
    text = (ROOT / arguments[0]).read_text("utf-8") + (ROOT / "benchmarks/claims.py").read_text("utf-8")
    for option in (a for a in arguments if a.startswith("--")):
        assert f'"{option}"' in text, f"{arguments[0]} has no {option}"


def pip_for(arguments):
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    for requirement in arguments:
        if found := re.fullmatch(r"(?:portconv|\.)\[(.+)\]", requirement):
            assert set(found[1].split(",")) <= set(extras), requirement


CHECKS = {"portconv": portconv_for, "make": make_for, "python": python_for, "pip": pip_for}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_are_there(page):
    for program, *arguments in commands(page):
        if "=" not in program:
            assert program in CHECKS, program
            CHECKS[program](arguments)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_and_tests_that_are_named_are_there(page):
    text = page.read_text("utf-8")
    for file, test in re.findall(r"`((?:tests|examples|benchmarks|portconv|docs)/[\w/.-]*)(?:::(\w+))?`", text):
        assert (ROOT / file).exists() or file.startswith("docs/_build"), file
        if test:
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text("utf-8"), re.M), f"{file}::{test}"


def public_modules():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    return [
        "portconv",
        *(f"portconv.{name}" for name in re.search(r"^```public\n(.*?)^```", text, re.M | re.S)[1].split()),
    ]


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_has_an_example(name):
    library = name.rpartition(".")[2]
    if library in ("mlx", "torch"):
        pytest.importorskip({"mlx": "mlx.nn"}.get(library, library))
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert doctest.DocTestParser().get_examples(inspect.getdoc(value)), f"{name}.{public}"
