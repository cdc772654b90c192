"""`portconv check`: its problems, that it sees what is wrong, and that it survives what it checks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv.check import runner
from portconv.check.problems import problem, problems
from portconv.check.verify import verify
from portconv.cli import main
from portconv.testing import calls, fits, make_data, reference_conv2d, reference_gradients, verification
from portconv.testing.values import rounded

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin" / "src" / "tinyarray"
DESIGNED = problems(0, 0)
RANDOM = problems(0, 100)[len(DESIGNED) :]


GRADIENTS = [p for p in DESIGNED if p.gradient]


def named(name):
    (found,) = [p for p in DESIGNED if p.name == name]
    return found


def one_line(text):
    (line,) = [line for line in text.splitlines() if line.strip()]
    return line


# --- the problems -----------------------------------------------------------------------------------------------------


def test_a_number_and_a_seed_are_a_problem():
    for p in (DESIGNED[3], RANDOM[7]):
        assert problem(p.number, 0) == p
        first, second = make_data(p), make_data(p)
        np.testing.assert_array_equal(first.x, second.x)
        np.testing.assert_array_equal(first.weight, second.weight)
    assert problem(RANDOM[7].number, 1) != RANDOM[7]
    assert [p.number for p in DESIGNED] == list(range(len(DESIGNED)))
    assert len({p.name for p in DESIGNED}) == len(DESIGNED)
    assert problems(0, 5, quick=True) == [p for p in DESIGNED if not p.slow] + RANDOM[:5]


@pytest.mark.parametrize("p", [*DESIGNED, *RANDOM[:30]], ids=lambda p: f"{p.number} {p.name}")
def test_problems_are_what_they_say(p):
    if p.mistake:
        return
    shape = p.x_shape if p.argument("layout") == "NCHW" else tuple(p.x_shape[axis] for axis in (0, 2, 3, 1))
    shape = portconv.conv2d_output_shape(shape, p.weight_shape, **p.arguments)  # raises for what does not fit
    assert fits(p)
    assert shape == (p.out_shape if p.argument("layout") == "NCHW" else tuple(p.out_shape[a] for a in (0, 2, 3, 1)))


def test_rounding_to_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(5000) * 10.0 ** np.arange(-25, 25).repeat(100)
    values = np.append(values, [np.inf, -np.inf, np.nan, 0.0])
    expected = values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounded(values, "bfloat16"), expected)


def test_data_are_what_their_name_says():
    assert np.isnan(make_data(named("nan, 3x3")).x).sum() >= 1
    assert np.isposinf(make_data(named("inf, 3x3")).x).any()
    data = make_data(named("long sum of a constant, 3x3"))
    assert np.unique(data.x).size == np.unique(data.weight).size == 1


# --- what is wrong is seen --------------------------------------------------------------------------------------------

conv2d = portconv.conv2d


def silently_float32(x, weight, bias, **options):
    arrays = [None if a is None else a.astype("float32") for a in (x, weight, bias)]
    return conv2d(*arrays, **options).astype(weight.dtype)


def another_dtype(x, weight, bias, **options):
    return conv2d(x, weight, bias, **options).astype("float64")


def spreading_nan(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    return y if np.isfinite(x).all() else np.full_like(y, np.nan)


def last_images_zero(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    y[256:] = 0
    return y


def transposed(x, weight, bias, **options):
    return conv2d(x, weight[..., ::-1, ::-1], bias, **options)


def in_place(x, weight, bias, **options):
    y = conv2d(x, weight, bias, **options)
    x[0, 0, 0, 0] += 1
    return y


def one_more_row(x, weight, bias, **options):
    return np.concatenate([y := conv2d(x, weight, bias, **options), y[:, :, -1:]], axis=2)


def sum_in_float16(x, weight, bias, **options):
    y = np.zeros(())
    for c in range(weight.shape[1]):
        y = y + conv2d(x[:, c : c + 1], weight[:, c : c + 1], None, **options)
    return y


def never_an_error(x, weight, bias, **options):
    return np.zeros((1, 1, 1, 1), "float32")


def wrong_name(x, weight, bias, **options):
    raise ValueError("bad sizes")


def other_error(x, weight, bias, **options):
    raise RuntimeError("no stream in this thread")


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (silently_float32, "float64, dilated"),
        (another_dtype, "3x3"),
        (spreading_nan, "nan, 3x3"),
        (spreading_nan, "inf, NHWC"),
        (last_images_zero, "3x3, 64 channels, batch 300"),
        (last_images_zero, "batch 257 of one channel"),
        (transposed, "182x182"),
        (in_place, "3x3"),
        (one_more_row, "3x3"),
        (sum_in_float16, "float16, long sum of a constant"),
        (never_an_error, "mistake: groups 0"),
        (never_an_error, "mistake: kernel beyond the image by less than the stride"),
        (wrong_name, "mistake: stride 0"),
        (other_error, "mistake: image as a list"),
        (other_error, "1x1"),
    ],
)
def test_what_is_wrong_is_seen(monkeypatch, broken, name):
    p = named(name)
    arguments = "numpy", p.number, 0, "cpu", "auto", "normwise"
    right = verify(*arguments)
    assert ("raised" in right) if p.mistake else (right["share"] <= 1)
    for module in (calls, verification):
        monkeypatch.setattr(module, "conv2d", lambda *arrays, backend=None, **options: broken(*arrays, **options))
    assert set(verify(*arguments)) == {"failed"}


@pytest.mark.parametrize("p", GRADIENTS, ids=lambda p: p.name)
def test_exact_gradients(p):
    """By their definition: the convolution is linear in the image and in the weight."""
    data, rng = make_data(p), np.random.default_rng(1)
    x, dy = data.x, data.dy
    if p.argument("layout") == "NHWC":
        x, dy = x.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    dx, dweight, dbias = (found.y for found in reference_gradients(x, data.weight, dy, **p.arguments))
    assert (dx.shape, dweight.shape) == (x.shape, data.weight.shape)
    for _ in range(3):
        other_x, other_weight = (rng.standard_normal(a.shape) for a in (x, data.weight))
        by_x, c, *_ = reference_conv2d(other_x, data.weight, **p.arguments)
        np.testing.assert_allclose((dx * other_x).sum(), (dy * by_x).sum(), atol=1e-12 * c.sum())
        by_weight, c, *_ = reference_conv2d(x, other_weight, **p.arguments)
        np.testing.assert_allclose((dweight * other_weight).sum(), (dy * by_weight).sum(), atol=1e-12 * c.sum())
    axes = (0, 1, 2) if p.arguments.get("layout") == "NHWC" else (0, 2, 3)
    np.testing.assert_allclose(dbias, dy.sum(axis=axes, dtype=np.float64))


def test_terms_of_gradients_count_every_copy_of_a_pixel():
    x, weight, dy = np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), np.ones((1, 1, 5, 5))
    of_x, of_weight, of_bias = reference_gradients(x, weight, dy, padding=2, padding_mode="replicate")
    assert float(of_x.y[0, 0, 0, 0]) == 25
    assert of_x.terms == of_weight.terms == of_bias.terms == 25


@pytest.mark.parametrize("name", ["mlx", "torch", "jax"])
def test_a_wrong_gradient_is_seen(monkeypatch, request, name):
    library = request.getfixturevalue({"mlx": "mx"}.get(name, name))
    arguments = (
        name,
        named("gradient, groups, stride 2").number,
        0,
        "cpu:0" if name == "jax" else "cpu",
        "auto",
        "normwise",
    )
    assert verify(*arguments)["share"] <= 1

    def steeper(x, weight, bias=None, **options):
        """The right result, whose gradients are 1.001 times the right ones."""
        y = conv2d(x, weight, bias, **options)
        fixed = {"mlx": lambda y: library.stop_gradient(y), "torch": lambda y: y.detach()}.get(name)
        return y + (y - (fixed or library.lax.stop_gradient)(y)) * 0.001

    conv2d = portconv.conv2d
    for module in (calls, verification):
        monkeypatch.setattr(module, "conv2d", steeper)
    assert "gradient of `x`" in verify(*arguments)["failed"]


def test_gradients_where_there_are_none():
    assert "does not differentiate" in verify("numpy", GRADIENTS[0].number, 0, "cpu", "auto", "normwise")["refused"]


def test_accuracy_is_passed_on():
    number = named("3x3").number
    assert "refused" in verify("numpy", number, 0, "cpu", "fft", "elementwise")
    assert "share" in verify("numpy", number, 0, "cpu", "fft", "normwise")
    assert "NumPy has no convolution" in verify("numpy", number, 0, "cpu", "native", "normwise")["refused"]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch):
    """One tier is enough, and nothing is compiled."""
    monkeypatch.setenv("PORTCONV_JIT", "0")


@pytest.fixture
def plugin(tmp_path, monkeypatch, plain):
    """Installs the example plug-in with a fault: what its own engine does before it gives back a result."""

    def install(fault, at_import=""):
        site = tmp_path / "site"
        info = site / "tinyarray-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyarray\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[portconv.backends]\ntinyarray = faulty:FaultyBackend\n")
        (site / "tinyarray").symlink_to(PLUGIN)
        (site / "faulty.py").write_text(
            "import os, signal, time\nfrom dataclasses import dataclass\n"
            "from tinyarray.portconv_backend import LoopPlan, TinyBackend\n"
            f"{at_import}\n"
            "class FaultyPlan(LoopPlan):\n"
            "    def execute(self, x, weight, bias=None, /):\n"
            "        y = super().execute(x, weight, bias)\n"
            "        p = self.problem\n"
            f"        {fault}\n"
            "        return y\n\n"
            "class FaultyBackend(TinyBackend):\n"
            "    def build(self, problem, engine, /):\n"
            "        if engine == 'native':\n"
            "            return FaultyPlan(problem, engine)\n"
            "        return super().build(problem, engine)\n"
        )
        monkeypatch.syspath_prepend(str(site))

    return install


def test_numpy_passes(plain, tmp_path, capsys):
    file = tmp_path / "check.json"
    assert main(["check", "--library", "numpy", "--quick", "--count", "4", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert [row["engine"] for row in document["summary"]] == ["auto", "gemm", "winograd", "direct", "fft", "native"]
    rows = {row["engine"]: row for row in document["summary"]}
    assert {rows[e]["verdict"] for e in ("auto", "gemm", "winograd", "direct", "fft")} == {"passed"}
    assert rows["native"]["verdict"] == "not offered" and rows["winograd"]["elementwise"] is None
    assert 0 < rows["gemm"]["elementwise"] <= 1 and 0 < rows["fft"]["normwise"] <= 1
    chosen = problems(0, 4, quick=True)
    assert len(document["problems"]) == len(chosen)
    runs = document["runs"]
    assert {run["number"] for run in runs} == {p.number for p in chosen}
    mistakes = {p.number for p in chosen if p.mistake}
    assert len(mistakes) > 20 and all("raised" in run for run in runs if run["number"] in mistakes)
    assert all(0 <= run["share"] <= 1 for run in runs if "share" in run)
    assert document["passed"] and document["machine"]["cores"] and document["portconv"] == portconv.__version__
    assert document["libraries"]["numpy"]["versions"]["numpy"] == np.__version__
    assert "NumPy has no convolution of its own" in out and out.strip().splitlines()[-1].startswith("passed: ")
    assert [f.name for f in tmp_path.iterdir()] == ["check.json"]


def test_a_wrong_back_end_is_named(plugin, capsys):
    plugin("y.data[:1] = type(y.data)('fd'[y.dtype == 'float64'], [y.data[0] + 1e-3]) if y.data else y.data[:1]")
    number = named("3x3").number
    arguments = ["check", "--library", "tinyarray", "--library", "numpy", "--problem", str(number)]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    verdicts = {(w[0], w[2]): w[-1] for line in out.splitlines() if len(w := line.split()) > 6 and w[1] == "cpu"}
    assert verdicts["tinyarray", "native"] == "FAILED"
    assert {verdicts["tinyarray", e] for e in ("gemm", "fft", "direct")} == {"passed"}
    assert {verdict for (library, _), verdict in verdicts.items() if library == "numpy"} == {"passed"}
    assert f"tinyarray cpu native, problem {number} (3x3, normwise)" in out and "times the bound" in out
    (again,) = [line for line in out.splitlines() if line.strip().startswith("portconv check")]
    assert main(shlex.split(again)[1:]) == 1
    assert "times the bound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("p.groups == 3 and os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("p.groups == 3 and time.sleep(100)", "no answer: over 2 s, so its process was ended"),
    ],
)
def test_a_back_end_that_dies_or_hangs(plugin, capsys, tmp_path, monkeypatch, fault, message):
    plugin(fault)
    chosen = [named("groups, 4-D weight"), named("one pixel"), named("mistake: groups 0")]
    monkeypatch.setattr("portconv.cli.check._chosen", lambda *_: chosen)
    file = tmp_path / "check.json"
    arguments = ["check", "--library", "tinyarray", "--library", "numpy", "--limit", "2", "--json", str(file)]
    assert main([*arguments, "--engine", "native", "--engine", "direct"]) == 1
    assert message in capsys.readouterr().out
    runs = [run for run in json.loads(file.read_text())["runs"] if run["library"] == "tinyarray"]
    assert {r["number"] for r in runs if "failed" in r} == {chosen[0].number}
    assert {r["engine"] for r in runs if "failed" in r} == {"native"}
    assert {r["number"] for r in runs if "share" in r and r["engine"] == "native"} == {chosen[1].number}
    assert {r["number"] for r in runs if "raised" in r} == {chosen[2].number}


def test_a_back_end_that_always_dies_is_given_up(plugin, capsys):
    plugin("os.abort()")
    assert main(["check", "--library", "tinyarray", "--engine", "native", "--quick", "--count", "0"]) == 1
    out = capsys.readouterr().out
    assert f"given up after {runner.MAX_LOST} lost processes" in out and "SIGABRT" in out


def test_a_back_end_that_dies_on_import(plugin, capsys):
    plugin("pass", at_import="os.abort()")
    assert main(["check", "--library", "tinyarray", "--library", "numpy", "--problem", "1"]) == 1
    out = capsys.readouterr().out
    assert "tinyarray: asked for its devices: its process was killed by SIGABRT" in out and "numpy" in out


def test_a_back_end_that_refuses_everything(plugin, capsys):
    plugin("pass", at_import="TinyBackend.candidates = lambda self, problem: []")
    assert main(["check", "--library", "tinyarray", "--problem", "1"]) == 1
    assert "tinyarray" in capsys.readouterr().out


def test_plugins_and_libraries_that_are_not_here(plugin, monkeypatch):
    plugin("pass")
    found = {library.name: library for library in runner.libraries()}
    assert {"numpy", "mlx", "torch", "jax", "cupy", "dask", "array_api_strict", "tinyarray"} <= set(found)
    with runner.Checks([runner.Library("nonesuch"), found["tinyarray"]], 60) as checks:
        checks.survey()
        absent, present = checks.libraries
    assert "nonesuch" in absent.missing and not absent.devices
    assert set(present.devices) == {"cpu"} and {"native", "gemm"} <= set(present.devices["cpu"]["engines"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--library", "nonesuch"], "library 'nonesuch': "),
        (["--device", "nonesuch"], "device 'nonesuch' is none of cpu"),
        (["--engine", "nonesuch"], "engine 'nonesuch' is none of auto, direct"),
        (["--count", "-1"], "--count"),
        (["--seed", "x"], "--seed"),
        (["--limit", "0"], "--limit"),
        (["--json", "/nonesuch/a.json"], "/nonesuch/a.json cannot be written"),
        (["--json", "/"], "is a directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(plain, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("portconv.cli.check._run", lambda *_: pytest.fail("something was checked"))
    library = [] if "--library" in arguments else ["--library", "numpy"]
    assert main(["check", *library, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in one_line(err)


def test_both_tiers_of_numpy(jit, monkeypatch):
    labels = [library.label for library in runner.libraries(["numpy"])]
    assert labels == ["numpy (plain)", "numpy (compiled)"]
    monkeypatch.setenv("PORTCONV_JIT", "0")
    assert [library.label for library in runner.libraries(["numpy"])] == ["numpy"]
