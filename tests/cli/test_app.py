"""The command `portconv`: its help, and what it needs."""

from __future__ import annotations

import sys

import pytest

import portconv
from portconv.cli import main


def test_python_m(run_python):
    out = run_python("""
        import runpy, sys
        sys.argv = ["portconv", "bench", "--list"]
        try:
            runpy.run_module("portconv", run_name="__main__")
        except SystemExit as stop:
            print("status", stop.code)
    """)
    assert "resnet50" in out and "DeepBench" in out and out.endswith("status 0\n")


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert portconv.__version__ in capsys.readouterr().out
    assert main(["bench", "--help"]) == 0
    assert "--padding-mode" in capsys.readouterr().out
    assert main([]) == 2
    assert "bench" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(capsys, shell):
    assert main(["completion", shell]) == 0
    assert f"_PORTCONV_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["be"], {"bench"}),
        (["check", "--acc"], {"--accuracy"}),
        (["bench", "--library", "nu"], {"numpy"}),
        (["check", "--engine", "win"], {"winograd"}),
        (["tune", "--dtype", "float"], {"float16", "float32", "float64"}),
        (["bench", "--back"], set()),  # the former name, which still works
    ],
)
def test_what_a_shell_asks_is_answered(capsys, monkeypatch, words, offered):
    """As the script of `portconv completion bash` asks."""
    monkeypatch.setenv("_PORTCONV_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(["portconv", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    found = capsys.readouterr().out.splitlines()
    assert {line.partition(",")[2] for line in found if line} == offered


@pytest.mark.parametrize("name", ["click", "rich", "matplotlib"])
def test_without_the_extra(run_python, name):
    out = run_python(f"""
        import contextlib, io, sys
        sys.modules[{name!r}] = None
        from portconv.cli import main
        with contextlib.redirect_stderr(io.StringIO()) as err:
            status = main(["bench", "--chart", "a.png"])
        print(status, err.getvalue(), end="")
    """)
    assert out == f"1 portconv: {name} is not installed; pip install 'portconv[bench]' brings it.\n"


def test_info_goes_without(run_python):
    out = run_python("""
        import sys
        sys.modules["click"] = sys.modules["rich"] = None
        from portconv.check import installation
        from portconv.check.runner import Library
        from portconv.cli import main
        installation.libraries = lambda: [Library("numpy"), Library("nonesuch")]
        print("status", main(["info"]))
    """)
    assert f"portconv:       {portconv.__version__}" in out and out.endswith("status 0\n")
    assert ", cpu: gemm, winograd, direct, fft" in out and "nonesuch:       " in out


def test_other_missing_modules_are_no_matter_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "portconv.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"portconv\.cli\.app"):
        main(["bench", "--list"])
