"""The device matrix: its page in docs/, and that it names what fails, dies and is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from portconv.check.cells import DTYPES, modes
from portconv.cli import main
from portconv.dispatch import registry
from portconv.engines import ENGINES
from portconv.processes.devices import KINDS, absent

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "matrix.md"


def tables(text):
    """The rows of every table, as lists of cells, by the heading above it."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ") and "---" not in line:
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_page_has_every_back_end_and_device():
    text = PAGE.read_text(encoding="utf-8")
    found = tables(text)
    _, *summary = found["The device matrix"]
    assert set(KINDS) == set(registry._KNOWN) == {row[0].partition(" ")[0] for row in summary}
    for library in registry._KNOWN:
        assert not absent(library, [row[1] for row in summary if row[0].partition(" ")[0] == library])
    for label, device, *_, verdict in summary:
        if verdict.startswith("not run"):
            continue
        assert verdict == "passed", f"{label}, {device}: {verdict}"
        library = label.partition(" ")[0]
        head, *rows = found[f"{label}, {device}"]
        assert head[2:] == [f"`{mode}`" for mode in modes(library)]
        assert {tuple(row[:2]) for row in rows} >= {(e, d) for e in ("auto", "native", *ENGINES) for d in DTYPES}
        assert all(len(row) == len(head) and all(row) for row in rows)
    notes = text.partition("## Notes")[2]
    for number in {part.partition(")")[0] for part in text.split("(#note-")[1:]}:
        assert f'<a id="note-{number}"></a>' in notes
    assert "portconv matrix docs/matrix.md" in text and "FAILED" not in text


def test_a_page_of_numpy(plain, tmp_path, capsys):
    for name in ("matrix.md", "again.md"):
        assert main(["matrix", str(tmp_path / name), "--library", "numpy"]) == 0
    text, again = ((tmp_path / name).read_text() for name in ("matrix.md", "again.md"))
    assert text == again.replace("again.md", "matrix.md")
    head, *rows = tables(text)["numpy, cpu"]
    assert head == ["engine", "dtype", "`conv2d`", "`Conv2d`", "`conv2d_vjp`"]
    for engine, dtype, *cells in rows:
        for cell in cells:
            assert cell.startswith("refused [") if engine == "native" else 0 < float(cell) <= 1, (engine, dtype)
    assert "NumPy has no convolution of its own" in text
    assert {f.name for f in tmp_path.iterdir()} == {"matrix.md", "again.md"}


WRONG = "y.data[:1] = type(y.data)('fd'[y.dtype == 'float64'], [y.data[0] + 1e-3])"


@pytest.mark.parametrize(
    ("fault", "verdict", "note"),
    [
        (f"if y.dtype == 'float32' and y.data: {WRONG}", "FAILED", "times the bound"),
        ("os.abort()", "not run", "was killed by SIGABRT"),
    ],
)
def test_what_fails_is_on_the_page_and_in_the_status(plugin, tmp_path, capsys, fault, verdict, note):
    plugin(fault)
    file = tmp_path / "matrix.md"
    assert main(["matrix", str(file), "--library", "tinyarray"]) == 1
    text = file.read_text()
    (row,) = tables(text)["The device matrix"][1:]
    assert verdict in row[3] and row[4] == "FAILED"
    rows = {tuple(cells[:2]): cells[2:] for cells in tables(text)["tinyarray, cpu"]}
    assert "**FAILED** [" in " ".join(rows["native", "float32"] + rows["auto", "float16"] + rows["auto", "float32"])
    assert note in text.partition("## Notes")[2]
    assert "failed: tinyarray" in capsys.readouterr().err


def test_a_library_of_which_nothing_passes(plugin, tmp_path, capsys):
    plugin("pass", at_import="os.abort()")
    file = tmp_path / "matrix.md"
    assert main(["matrix", str(file), "--library", "tinyarray"]) == 1
    assert "SIGABRT" in file.read_text() and "failed: tinyarray" in capsys.readouterr().err


def test_a_library_that_is_not_there(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("portconv.check.runner.BUILT_IN", ("cupy",))
    monkeypatch.setattr("portconv.check.runner.entry_points", lambda group: [])
    # a module that cannot be imported, whether or not CuPy is installed here
    (tmp_path / "cupy.py").write_text("raise ImportError('no CUDA here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "matrix.md"
    assert main(["matrix", str(file)]) == 0
    (row,) = tables(file.read_text())["The device matrix"][1:]
    assert row[:2] == ["cupy", "cuda"] and row[4].startswith("not run [1]")
    assert "no CUDA here" in file.read_text()


def test_a_page_is_there_whole_or_not_at_all(plain, tmp_path, monkeypatch, capsys):
    file = tmp_path / "matrix.md"
    file.write_text("what was there")

    def half(path, text, **options):
        with path.open("w") as out:
            out.write(text[: len(text) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        main(["matrix", str(file), "--library", "numpy"])
    assert file.read_text() == "what was there" and [f.name for f in tmp_path.iterdir()] == ["matrix.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nonesuch/a.md"], "/nonesuch/a.md cannot be written"),
        (["-", "--library", "nonesuch"], "library 'nonesuch': "),
        (["-", "--limit", "0"], "--limit"),
        ([], "FILE"),
    ],
)
def test_bad_input_is_one_line_and_status_2(plain, capsys, arguments, message):
    assert main(["matrix", *arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert out == "" and message in line
