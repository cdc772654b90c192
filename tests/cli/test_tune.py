"""The command `portconv tune`: what it times, keeps, shows and forgets, and how it ends."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import portconv
from portconv.cli import main
from portconv.dispatch import measurement, path, wisdom
from portconv.processes.session import Target
from tests.helpers import lines

pytestmark = pytest.mark.usefixtures("in_plain_tier")


SIZES = ["--x", "1x2x12x13", "--weight", "3x2x3x3", "--padding", "1"]
GIVEN = ["tune", *SIZES]
SHAPES = (1, 2, 12, 13), (3, 2, 3, 3)


def plan(*shapes, **options):
    """A plan as another process would make it."""
    path.forget_plans()
    return portconv.plan_conv2d(*(shapes or SHAPES), **{"padding": 1, "strategy": "measure", **options})


def layers_file(tmp_path, *records):
    file = tmp_path / "layers.json"
    file.write_text(json.dumps([{"N": 1, "Cout": 3, "kh": 3, "kw": 3, "padding": 1, **record} for record in records]))
    return ["--layers", str(file)]


# --- tuning -----------------------------------------------------------------------------------------------------------


def test_from_start_to_end(run_python, tmp_path):
    """One process tunes, by the clock; another one has the engine that was fastest."""
    environment = {"PORTCONV_CACHE_DIR": str(tmp_path / "cache"), "PORTCONV_WISDOM": "1", "PORTCONV_JIT": "0"}
    arguments = [*GIVEN, "--bias", "--json", str(tmp_path / "tuned.json")]
    out = run_python(
        f"""
        import sys
        from portconv.cpu import busy
        from portconv.cli import main
        busy.disturbed = lambda threads: False  # whatever else the machine does
        sys.exit(main({arguments!r}))
        """,
        **environment,
    )
    document = json.loads((tmp_path / "tuned.json").read_text())
    (layer,) = document["layers"]
    assert layer["seconds"][layer["fastest"]] == min(layer["seconds"].values()) > 0
    assert layer["gain"] == pytest.approx(layer["seconds"][layer["engine"]] / layer["seconds"][layer["fastest"]])
    assert document["library"] == "numpy" and document["device"] == "cpu" and document["machine"]["cores"]
    assert document["wisdom"] == str(tmp_path / "cache" / "wisdom.json")
    assert "given/layer" in out and layer["fastest"] in out and document["wisdom"] in out
    found = run_python(
        """
        import portconv
        plan = portconv.plan_conv2d((1, 2, 12, 13), (3, 2, 3, 3), True, padding=1, strategy="measure")
        print(plan.engine, plan.chosen_by)
        """,
        **environment,
    )
    assert found.split() == [layer["fastest"], "wisdom"]


def test_it_times_in_the_environment_of_the_workers_of_bench(cache, monkeypatch):
    """BLAS reads it when it is loaded: so another process times, and the command has its status."""
    module, seen = importlib.import_module("portconv.cli.tune"), []

    def run(command, env):
        seen.append((command, env))
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(module, "backend_target", lambda _library: Target("", "", (), (("A", "4"), ("B", "5"))))
    monkeypatch.setenv("A", "4")
    monkeypatch.delenv("B", raising=False)
    assert main([*GIVEN, "--bias"]) == 1
    ((command, environment),) = seen
    assert command[3:] == [*GIVEN, "--bias"] and environment == {**os.environ, "B": "5"}
    compile(command[2], "", "exec")
    monkeypatch.setenv("B", "5")  # as in that process, which starts no other one
    assert main(GIVEN) == 0 and len(seen) == 1


def test_the_table_says_what_it_gains(cache, timed, tmp_path, capsys):
    records = {"Cin": 2, "H": 12, "W": 13, "id": "a", "count": 3}, {"Cin": 8, "H": 40, "W": 40, "id": "b"}
    assert main(["tune", *layers_file(tmp_path, *records), "--json", str(tmp_path / "tuned.json")]) == 0
    document = json.loads((tmp_path / "tuned.json").read_text())
    for layer in document["layers"]:
        assert (layer["fastest"], layer["gain"]) == ("fft", pytest.approx(3.0))
        assert layer["engine"] != "fft"
    assert document["sum"] == pytest.approx({"before": 4 * 0.003, "after": 4 * 0.001, "gain": 3.0})
    rows = [line.split() for line in lines(capsys.readouterr().out)]
    a, total = (rows[place + 1] for place, row in enumerate(rows) if row[0] in ("layers/a", "sum"))
    assert a == [document["layers"][0]["engine"], "3", "fft", "1", "3.00"]
    assert total == ["12", "4", "3.00"]


def test_it_measures_anew(cache, timed):
    for count in (1, 2):
        assert main(GIVEN) == 0
        assert len(timed) == count
    assert len(wisdom.load()) == 1
    assert (plan().engine, plan().chosen_by) == ("fft", "wisdom")
    assert len(timed) == 2


def test_equal_layers_are_timed_once(cache, timed, tmp_path):
    same = {"Cin": 2, "H": 12, "W": 13}
    arguments = layers_file(tmp_path, {**same, "id": "a"}, {**same, "id": "b"}, {**same, "id": "c", "bias": True})
    assert main(["tune", *arguments]) == 0
    assert len(timed) == len(wisdom.load()) == 2


def test_a_dry_run_keeps_nothing(cache, timed, capsys):
    assert main([*GIVEN, "--dry-run"]) == 0
    assert len(timed) == 1 and not cache.exists()
    out = capsys.readouterr().out
    assert "fft" in out and "Nothing was kept." in out


@pytest.mark.parametrize(
    ("options", "same", "others"),
    [
        (["--layout", "NHWC"], {"layout": "NHWC"}, {"layout": "NCHW"}),
        (["--dtype", "float64"], {"dtype": "float64"}, {"dtype": "float32"}),
        (["--accuracy", "elementwise"], {"accuracy": "elementwise"}, {"accuracy": "normwise"}),
        (["--padding", "0x1x2x0"], {"padding": ((0, 1), (2, 0))}, {"padding": 1}),
        (["--padding", "same", "--stride", "2"], {"padding": "same", "stride": 2}, {"stride": 2}),
    ],
)
def test_options_of_the_problem(cache, timed, options, same, others):
    assert main([*GIVEN, *options]) == 0

    def found(options):
        nhwc = options.get("layout") == "NHWC"
        return plan((1, 12, 13, 2) if nhwc else SHAPES[0], SHAPES[1], **options).chosen_by

    assert found(same) == "wisdom"
    assert found(others) == "measurement"


@pytest.mark.parametrize("name", ["mlx", "torch", "jax"])
def test_another_library(library, cache, name):
    arrays = library(name)
    assert main([*GIVEN, "--library", name]) == 0
    x, weight = (arrays.array(np.ones(shape, np.float32)) for shape in SHAPES)
    assert plan(x, weight).chosen_by == "wisdom"
    assert plan().chosen_by == "measurement"


def test_json_on_stdout(cache, timed, capsys):
    assert main([*GIVEN, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["layers"][0]["fastest"] == "fft"
    assert "given/layer" in err


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_show_and_clear(cache, timed, capsys, tmp_path):
    file = cache / "wisdom.json"
    assert main(["tune", "--show"]) == 0
    assert f"Nothing is kept yet in {file}." in capsys.readouterr().out
    assert main(GIVEN) == 0
    capsys.readouterr()
    assert main(["tune", "--show", "--json", str(tmp_path / "kept.json")]) == 0
    out = capsys.readouterr().out
    ((key, record),) = wisdom.load().items()
    assert key[0] in out and record.when in out and "height=12, width=13" in out and "\nfft " in out
    document = json.loads((tmp_path / "kept.json").read_text())
    assert document["measurements"] == [{"environment": key[0], "problem": key[1], **record._asdict()}]
    for word in ("deleted", "was not there"):
        assert main(["tune", "--clear"]) == 0
        assert word in capsys.readouterr().out and not file.exists()
    assert len(timed) == 1


def test_a_damaged_file_shows_before_the_timing(cache, timed, capsys):
    cache.mkdir()
    (cache / "wisdom.json").write_text("{")
    for arguments in (GIVEN, ["tune", "--show"]):
        assert main(arguments) == 2
        (line,) = lines(capsys.readouterr().err)
        assert line.startswith("portconv tune: ") and "wisdom.json is damaged" in line
    assert timed == []
    assert main([*GIVEN, "--dry-run"]) == 0
    assert main(["tune", "--clear"]) == 0
    assert main(GIVEN) == 0
    assert len(wisdom.load()) == 1


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nonesuch"], "nonesuch"),
        (["--x", "1x2x3x3"], "both --x and --weight"),
        (["--layers", "nonesuch.json"], "nonesuch.json cannot be read"),
        (["--select", "nonesuch"], "no"),
        ([*SIZES, "--library", "nonesuch"], "nonesuch"),
        ([*SIZES, "--padding", "1x2x3"], "expected sizes such as 2 or 2x1 or 0x1x0x1"),
        ([*SIZES, "--device", "nonesuch"], "device 'nonesuch' is none of cpu"),
        ([*SIZES, "--dtype", "int8"], "--dtype"),
        ([*SIZES, "--dtype", "bfloat16"], "'bfloat16' does not exist in NumPy"),
        ([*SIZES, "--json", "/nonesuch/a.json"], "/nonesuch/a.json cannot be written"),
        (["--show", "--clear"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line_and_status_2(cache, timed, capsys, monkeypatch, arguments, message):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # it cannot be imported: then NumPy has no bfloat16
    assert main(["tune", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and timed == [] and not cache.exists()
    (line,) = lines(err)
    assert line.startswith("portconv tune: ") and message in line


def test_switched_off_it_would_keep_nothing(cache, timed, capsys, monkeypatch):
    monkeypatch.setenv("PORTCONV_WISDOM", "0")
    assert main(GIVEN) == 2
    assert "PORTCONV_WISDOM is 0" in capsys.readouterr().err and timed == []
    assert main([*GIVEN, "--dry-run"]) == 0


def test_a_layer_that_cannot_be_timed_is_status_1(cache, timed, capsys, monkeypatch, tmp_path):
    measure = measurement.measure

    def failing(backend, problem, **options):
        if problem.height == 40:
            raise MemoryError("too much")
        return measure(backend, problem, **options)

    monkeypatch.setattr(measurement, "measure", failing)
    sizes = {"Cin": 2, "H": 40, "W": 40, "id": "a"}, {"Cin": 2, "H": 12, "W": 13, "id": "b"}
    assert main(["tune", *layers_file(tmp_path, *sizes), "--json", str(tmp_path / "tuned.json")]) == 1
    assert "/a: MemoryError: too much" in capsys.readouterr().out
    a, b = json.loads((tmp_path / "tuned.json").read_text())["layers"]
    assert a["error"] == "MemoryError: too much" and b["fastest"] == "fft"
    assert len(wisdom.load()) == 1


def test_interrupted_it_keeps_what_it_has(cache, capsys, monkeypatch, tmp_path):
    calls = []

    def fastest(engines, expected):
        calls.append(engines)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return dict.fromkeys(engines, 1.0)

    monkeypatch.setattr(measurement, "_fastest", fastest)
    sizes = [{"Cin": 2, "H": size, "W": size, "id": str(size)} for size in (8, 9, 10)]
    assert main(["tune", *layers_file(tmp_path, *sizes)]) == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")
    assert len(calls) == 2 and len(wisdom.load()) == 1
    assert sorted(file.name for file in cache.iterdir()) == ["wisdom.json", "wisdom.lock"]


def test_a_disturbed_layer_is_told_and_not_kept(cache, timed, capsys, monkeypatch, tmp_path):
    probes = [True] * measurement.ATTEMPTS  # while the first layer has its turn
    monkeypatch.setattr(measurement.busy, "disturbed", lambda threads: bool(probes) and probes.pop())
    monkeypatch.setattr(measurement, "PAUSE", 0.0)
    sizes = {"Cin": 2, "H": 40, "W": 40, "id": "a"}, {"Cin": 2, "H": 12, "W": 13, "id": "b"}
    assert main(["tune", *layers_file(tmp_path, *sizes), "--json", str(tmp_path / "tuned.json")]) == 0
    out, err = capsys.readouterr()
    assert "disturbed" in out and "/a: something else used a core" in out and "/a: something else" in err
    a, b = json.loads((tmp_path / "tuned.json").read_text())["layers"]
    assert a["disturbed"] is True and "seconds" not in a
    assert b["fastest"] == "fft" and len(wisdom.load()) == 1
