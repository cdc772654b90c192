"""What `portconv bench` is made of: layers, the check before the clock, workers that may die, tables, charts."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import portconv
from portconv.bench import chart, reference, report, runner, suites, survey, timing, worker
from portconv.bench.layers import Layer, LayerError, distinct, load, parse_sizes
from portconv.bench.runner import Task, Timed
from portconv.cpu import busy
from portconv.processes import files, session
from portconv.processes.session import Settings, Target
from portconv.testing import reference_conv2d

TINY = Layer("given", "tiny", 1, 2, (8, 9), 3, (3, 3), padding=(1, 1))
SETTINGS = Settings(threads=1, budget=0.01, limit=30)
BENCHMARKS = Path(portconv.__file__).parents[1] / "benchmarks"


def other(name, **changes):
    return Layer(**{**TINY.__dict__, "name": name, **changes})


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", suites.suite("all"), ids=lambda layer: layer.id)
def test_suites_are_problems(layer):
    layer.check()
    arguments = layer.stride, layer.padding, layer.dilation, layer.groups
    assert portconv.conv2d_output_shape(layer.x_shape, layer.weight_shape, *arguments) == layer.y_shape
    assert Layer.from_json(json.loads(json.dumps(layer.to_json()))) == layer


@pytest.mark.parametrize(
    ("name", "convolutions", "billions"),
    [
        ("resnet50", 53, 4.087),  # 4.1 in the publications, with 2 million of the last, linear layer
        ("vgg19", 16, 19.508),
        ("mobilenet_v1", 27, 0.568),
        ("deepbench", 55, None),
    ],
)
def test_suites_are_the_published_ones(name, convolutions, billions):
    layers = suites.suite(name)
    assert sum(layer.count for layer in layers) == convolutions
    if billions:
        assert sum(layer.count * layer.macs for layer in layers) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_ids_are_distinct():
    layers = suites.suite("all")
    assert len({layer.id for layer in layers}) == len(layers) > 150
    assert distinct([TINY, TINY, other("tiny", groups=1, count=2)])[1].id == "given/tiny#2"


def test_filters_come_with_their_own_taps_and_with_random_ones():
    taps = {layer.name: layer.taps for layer in suites.suite("filters")}
    assert {"gaussian", "box", "sobel", "random"} == set(taps.values())
    assert all(name.startswith(kind) for name, kind in taps.items())


RECORD = {"N": 1, "Cin": 4, "H": 8, "W": 9, "Cout": 6, "kh": 3, "kw": 1}


@pytest.mark.parametrize("wrap", [list, lambda r: {"shapes": r}, lambda r: {"sets": {"mine": r}}])
def test_files_of_layers(tmp_path, wrap):
    file = tmp_path / "mine.json"
    more = {"id": "b", "stride": 2, "padding": [1, 0], "groups": 2, "padding_mode": "reflect", "count": 5}
    file.write_text(json.dumps(wrap([RECORD, RECORD | more])))
    first, second = load(file)
    assert first == Layer("mine", "0", 1, 4, (8, 9), 6, (3, 1))
    assert second == Layer(
        "mine", "b", 1, 4, (8, 9), 6, (3, 1), (2, 2), (1, 0), groups=2, padding_mode="reflect", count=5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("7", "must hold a list"),
        ("{}", "must hold a list"),
        ("[3]", "layer 0: N, Cin"),
        (json.dumps([{k: v for k, v in RECORD.items() if k != "kw"}]), "layer 0: kw missing"),
        (json.dumps([RECORD | {"groups": 3}]), "`groups`"),
        (json.dumps([RECORD | {"stride": 0}]), "must be at least 1, but got 0"),
        (json.dumps([RECORD | {"groups": 0}]), "`groups` must be a positive int"),
        (json.dumps([RECORD | {"Cin": "4"}]), "`in_channels` must be a positive int"),
        (json.dumps([RECORD | {"stride": [1, 2, 3]}]), "layer 0: "),
        (json.dumps([RECORD | {"H": "8"}]), "must be an int"),
        (json.dumps([RECORD | {"padding_mode": "none"}]), "`padding_mode`"),
        (json.dumps([RECORD | {"kh": 30}]), "does not fit"),
        (json.dumps([RECORD | {"N": 0}]), "`batch` must be a positive int"),
        (json.dumps([RECORD | {"W": 0, "padding": 1}]), "height and a width of at least 1"),
        (json.dumps([RECORD | {"taps": "wavelet"}]), "`taps`"),
        (json.dumps([RECORD | {"taps": "sobel"}]), "3x3"),
    ],
)
def test_wrong_files_of_layers(tmp_path, text, message):
    file = tmp_path / "layers.json"
    file.write_text(text)
    with pytest.raises(LayerError, match=message) as caught:
        load(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(LayerError, match="cannot be read"):
        load(tmp_path / "none.json")


def test_sizes():
    assert parse_sizes("2x3", (1, 2)) == (2, 3)
    for text in ("", "1x2", "1x2x3xa", "1x2x3x-4"):
        with pytest.raises(LayerError, match="expected sizes such as 1x64x56x56"):
            parse_sizes(text)


def test_select():
    assert [layer.name for layer in suites.select(["vgg19"], [TINY], "conv1|tiny")] == ["conv1_1", "conv1_2", "tiny"]
    with pytest.raises(LayerError, match="none of 9 layers"):
        suites.select(["vgg19"], pattern="resnet")
    with pytest.raises(LayerError, match="no regular expression"):
        suites.select(["vgg19"], pattern="(")


# --- the check --------------------------------------------------------------------------------------------------------


LAYERS = [
    TINY,
    other("strided", stride=(2, 1), dilation=(1, 2), bias=True),
    other("grouped", in_channels=4, out_channels=6, groups=2, batch=2),
    *(other(mode, padding=(2, 3), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
    other("sobel", in_channels=2, out_channels=2, groups=2, taps="sobel"),
]


def exact(layer):
    x, weight, bias = data = reference.make_data(layer)
    options = {"padding_mode": layer.padding_mode}
    y, *_ = reference_conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups, **options)
    return data, y.astype(np.float32)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_the_check_agrees_with_the_oracle(layer):
    data, y = exact(layer)
    assert 0 < reference.check(layer, *data, y) < 1
    for wrong in (y[:, ::-1], y + np.float32(1e-3), np.where(y == y[0, 0, 0, 0], np.nan, y)):  # the corner is checked
        assert reference.check(layer, *data, wrong) > 1


def test_the_check_wants_shape_and_dtype():
    data, y = exact(TINY)
    for wrong in (y[..., :-1], y.astype(np.float64)):
        with pytest.raises(ValueError, match=r"expected \(1, 3, 8, 9\) float32"):
            reference.check(TINY, *data, wrong)


@pytest.mark.parametrize(("taps", "total"), [("gaussian", 1), ("box", 1), ("sobel", 0)])
def test_taps(taps, total):
    layer = other("filter", in_channels=2, out_channels=2, groups=2, taps=taps)
    weight = reference.make_data(layer)[1]
    assert np.linalg.matrix_rank(weight[1, 0]) == 1
    assert weight[0].sum() == pytest.approx(total, abs=1e-6)
    np.testing.assert_allclose(weight[0, 0], np.outer(*reference.separable_taps(layer)), rtol=1e-6)
    assert reference.separable_taps(TINY) is None


def prepare_with(change):
    calls = []

    def prepare(layer, x, weight, bias):
        y = change(exact(layer)[1])
        return timing.Prepared(lambda: calls.append(1) or y, lambda y: y, lambda: {"engine": "mine"})

    return prepare, calls


def test_a_right_result_is_timed():
    prepare, calls = prepare_with(lambda y: y)
    found = timing.answer(prepare, TINY, 0.01)
    assert 0 < found["best_ms"] <= found["median_ms"]
    assert found["error_share"] < 1 and found["engine"] == "mine"
    assert len(calls) > 2


def test_a_wrong_result_gets_no_time():
    prepare, calls = prepare_with(lambda y: y * np.float32(1.001))
    found = timing.answer(prepare, TINY, 0.01)
    assert list(found) == ["error"] and "times the bound" in found["error"]
    assert len(calls) == 1


def test_slow_calls_are_not_repeated(monkeypatch):
    monkeypatch.setattr(timing, "SLOW", 0.0)
    prepare, calls = prepare_with(lambda y: y)
    assert timing.answer(prepare, TINY, 0.01)["rounds"] == 1
    assert len(calls) == 2


def test_what_a_library_raises():
    def unsupported(*_):
        raise timing.Unsupported("not this")

    def broken(*_):
        raise RuntimeError("oh")

    assert timing.answer(unsupported, TINY, 0.01) == {"skipped": "not this"}
    assert timing.answer(broken, TINY, 0.01) == {"error": "RuntimeError: oh"}


# --- workers ----------------------------------------------------------------------------------------------------------

WORKER = """
import os, sys, time
from portconv.processes.serve import serve

def handle(message):
    name = message["layer"]["name"]
    if name == "dies":
        sys.stderr.write("something about it\\n")
        os._exit(3)
    if name == "sleeps":
        time.sleep(60)
    print("noise on stdout")
    return {"best_ms": 1.0, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}

def main():
    serve(lambda: {"missing": "no such library"} if "absent" in sys.argv else {"arguments": sys.argv[1:]}, handle)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "fake_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    return Target("fake", "fake_worker", ("one",))


def test_a_task_that_kills_its_worker_costs_that_task_only(fake):
    tasks = [Task(other(name)) for name in ("a", "dies", "b", "sleeps", "c")]
    seen = []
    timed = runner.run_target(fake, tasks, Settings(3, 0.01, 1.0), lambda task, found: seen.append(task))
    assert seen == tasks and timed.hello == {"arguments": ["one"]}
    a, dies, b, sleeps, c = timed.answers.values()
    assert dies == {"error": "its process ended with status 3. something about it"}
    assert sleeps == {"error": "over 1 s"}
    assert len({a["pid"], b["pid"], c["pid"]}) == 3
    assert a["threads"] == "3"


def test_missing_libraries(fake):
    target = Target("fake", "fake_worker", ("absent",))
    timed = runner.run_target(target, [Task(TINY)], SETTINGS, lambda *_: pytest.fail("nothing was timed"))
    assert timed == Timed({"missing": "no such library"}, {})


def test_environment(monkeypatch):
    monkeypatch.setenv("PORTCONV_JIT", "1")
    found = session.environment(3, {"PORTCONV_JIT": None, "NEW": "x"})
    assert "PORTCONV_JIT" not in found and found["NEW"] == "x"
    assert {found[name] for name in session.THREAD_VARIABLES} == {"3"}
    assert "PORTCONV_NUM_THREADS" in session.THREAD_VARIABLES


def test_the_best_pass_counts_unless_one_was_wrong():
    task = Task(TINY)

    def best(*messages):
        timed = Timed()
        for message in messages:
            timed = runner.keep_best(timed, Timed({}, {task: message}))
        return timed.answers[task]

    fast, slow, wrong = {"best_ms": 1.0}, {"best_ms": 2.0}, {"error": "wrong"}
    assert best(slow, fast) == best(fast, slow) == fast
    assert best(fast, wrong) == best(wrong, fast) == wrong
    disturbed = {"best_ms": 0.5, "disturbed": True}
    assert best(disturbed, slow) == best(slow, disturbed) == slow


def test_portconvs_worker():
    engines = ("auto", "fft", "no such engine")
    tasks = [Task(TINY, engine, "cpu") for engine in engines]
    timed = runner.run_target(survey.target_of("numpy"), tasks, SETTINGS, lambda *_: None)
    auto, fft, wrong = timed.answers.values()
    assert (
        fft["engine"] == "fft" and auto["engine"] == portconv.plan_conv2d((1, 2, 8, 9), (3, 2, 3, 3), padding=1).engine
    )
    assert 0 < fft["error_share"] <= 1 and fft["best_ms"] > 0 and fft["workspace_bytes"] > 0
    assert "no such engine" in wrong["error"]
    assert timed.hello["versions"]["numpy"] == np.__version__


# --- what is run ------------------------------------------------------------------------------------------------------


def test_survey():
    found = survey.survey([TINY], ["numpy"], SETTINGS)
    offers = found["numpy"]["devices"]["cpu"]["layers"][TINY.id]
    assert offers["chosen"] in {c["engine"] for c in offers["candidates"] if c["why_not"] is None}
    with pytest.raises(survey.SurveyError, match="`backend` must be one of"):
        survey.survey([TINY], ["nonesuch"], SETTINGS)


def found_of(**seconds):
    candidates = [
        {"engine": name, "seconds": None if isinstance(s, str) else s, "why_not": s if isinstance(s, str) else None}
        for name, s in seconds.items()
    ]
    offers = {TINY.id: {"chosen": "a", "candidates": candidates}}
    return {"lib": {"devices": {"dev": {"hardware": "", "layers": offers}}}}


def test_engines_worth_their_time_are_chosen():
    found = found_of(a=1.0, b=29.0, c=31.0, d="because")
    choice = survey.choose(found, [TINY], [], [])
    assert [task.engine for task in choice.tasks["lib"]] == ["auto", "a", "b"]
    assert {task.engine: why for (_, task), why in choice.left_out.items()} == {
        "c": "its estimate is 31 times the least",
        "d": "because",
    }
    choice = survey.choose(found, [TINY], ["c", "d"], ["dev"])
    assert choice.tasks == {"lib": [Task(TINY, "c", "dev")]}
    assert choice.left_out == {("lib", Task(TINY, "d", "dev")): "because"}


def test_unknown_engines_and_devices():
    with pytest.raises(survey.SurveyError, match="engine 'x' is none of a, auto"):
        survey.choose(found_of(a=1.0), [TINY], ["x"], [])
    with pytest.raises(survey.SurveyError, match="device 'x' is none of dev"):
        survey.choose(found_of(a=1.0), [TINY], [], ["x"])


def test_a_layer_that_nothing_can_run():
    found = found_of(a=1.0)
    found["lib"]["devices"]["dev"]["layers"][TINY.id] = {"why_not": "too large"}
    choice = survey.choose(found, [TINY], [], [])
    assert choice.tasks == {}
    assert report.without_row([TINY], {}, choice.left_out) == ["left out: lib dev auto, given/tiny: too large"]


# --- tables, charts, files --------------------------------------------------------------------------------------------

SECOND = other("second")
GOOD = {"engine": "gemm", "error_share": 0.25, "workspace_bytes": 3 << 20}
RESULTS = {
    "numpy": Timed(
        {"versions": {}},
        {
            Task(TINY, "auto", "cpu"): {"best_ms": 2.0, **GOOD},
            Task(TINY, "fft", "cpu"): {"error": "wrong result"},
            Task(SECOND, "auto", "cpu"): {"best_ms": 5.0, **GOOD},
        },
    ),
    "torch": Timed({"versions": {}}, {Task(TINY, "auto", "cuda:0"): {"best_ms": 0.001, **GOOD}}),
}


def test_table(capsys):
    console = importlib.import_module("rich.console").Console(width=200)
    console.print(report.table([TINY, SECOND], RESULTS))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    gflops = f"{2 * TINY.macs / 0.001 / 1e6:.1f}"
    assert ["given/tiny", "numpy", "cpu", "auto:", "gemm", "2", "0.0", "0.250", "3.0"] in lines
    assert [*TINY.problem.split(), "numpy", "cpu", "fft", "error"] in lines
    assert ["torch", "cuda:0", "auto:", "gemm", "*", "0.001", gflops, "0.250", "3.0"] in lines
    assert report.problems(RESULTS) == ["numpy cpu fft, given/tiny: wrong result"]


def test_document():
    left_out = {("numpy", Task(SECOND, "fft", "cpu")): "slow"}
    made = report.document([TINY, SECOND], RESULTS, left_out, SETTINGS, {"portconv": "1"})
    made = json.loads(json.dumps(made))
    first, second = made["layers"]
    assert first["results"][0]["chosen"] == "gemm" and first["results"][0]["engine"] == "auto"
    assert first["results"][0]["gflops"] == pytest.approx(1e-6 * TINY.macs)
    assert second["results"][1] == {"backend": "numpy", "device": "cpu", "engine": "fft", "skipped": "slow"}
    assert made["settings"]["threads"] == 1 and first["macs"] == TINY.macs


def test_chart_series():
    series, legend = chart.of_results(RESULTS)
    assert [(s.label, dict(s.times), s.lane) for s in series] == [
        ("auto", {TINY.id: 2.0, SECOND.id: 5.0}, 0),
        ("auto", {TINY.id: 0.001}, 1),
    ]
    assert [[s.label for s in row] for row in legend] == [["numpy", "torch, cuda:0"], ["auto"]]


@pytest.mark.filterwarnings("default")  # those of Matplotlib's own parser of fonts
@pytest.mark.parametrize("results", [RESULTS, {}])
def test_chart(tmp_path, results):
    series, legend = chart.of_results(results)
    chart.draw(series, [TINY.id, SECOND.id], "title", tmp_path / "chart.png", legend)
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_disturbed_says_so(monkeypatch, tmp_path):
    prepare = worker.prepare("numpy", "direct", "cpu")
    probes = [False, True]
    monkeypatch.setattr(busy, "disturbed", lambda threads: probes.pop(0))
    found = timing.answer(prepare, TINY, 0.01)
    assert found["disturbed"] is True and timing.describe(found).endswith(", disturbed")
    probes += [False, False]
    quiet = timing.answer(prepare, SECOND, 0.01)
    assert quiet["disturbed"] is False and "disturbed" not in timing.describe(quiet)
    results = {"numpy": Timed({}, {Task(TINY, "direct", "cpu"): found, Task(SECOND, "direct", "cpu"): quiet})}

    console = Console(width=200, file=io.StringIO())
    console.print(report.table([TINY, SECOND], results))
    lines = console.file.getvalue().splitlines()
    assert ["! * " in line for line in lines if "direct" in line] == [True, False]
    assert sum("something else used a core" in line for line in lines) == 1

    assert chart.disturbed(results) == [TINY.id]
    series, legend = chart.of_results(results)
    chart.draw(series, [TINY.id, SECOND.id], "title", tmp_path / "a.svg", legend, chart.disturbed(results))
    drawn = (tmp_path / "a.svg").read_text()
    assert f"! {TINY.id}" in drawn and f"! {SECOND.id}" not in drawn and "something else used a core" in drawn


def test_files_are_there_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.json"
    files.write_json(target, {"a": 1})

    def fail(file):
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_file(target, fail)
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


# --- the repository's own comparison ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def claims():
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks/ is not part of this distribution")
    before = sys.path[:]
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("claims")
    sys.path[:] = before


def answers(**milliseconds):
    return {name.replace("_", "-"): {"best_ms": ms} for name, ms in milliseconds.items()}


def test_ratios_are_taken_against_the_best_peer(claims):
    tables = importlib.import_module("tables")
    found = answers(portconv_numpy=4.0, portconv_jit=1.0, torch=3.0, onnxruntime=2.0, portconv_mlx=1.5)
    found["jax"] = {"error": "wrong"}
    assert tables.best_peer(found) == ("onnxruntime", 2.0)
    assert tables.ratio(found, "portconv-jit") == 2.0 and tables.ratio(found, "portconv-numpy") == 0.5
    assert tables.ratio(found, "portconv-numpy", ("torch",)) == 0.75
    assert tables.ratio(answers(torch=1.0), "portconv-jit") is None
    twice = other("second", count=2)
    results = {TINY.id: found, twice.id: answers(portconv_jit=2.0, torch=1.0)}
    assert tables.total([TINY, twice], results, "portconv-jit") == 5.0
    assert tables.quotient([TINY, twice], results, "portconv-jit") == pytest.approx(4 / 5)
    assert tables.quotient([TINY, twice], results, "portconv-numpy") is None

    def cells(table):
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]

    names = ["portconv-jit", "torch", "onnxruntime"]
    assert cells(tables.layer_table([TINY, twice], names, results))[2:] == [
        ["given/tiny", TINY.problem, "1*", "3", "2", "onnxruntime", "2.00", ""],
        ["given/second", TINY.problem, "2", "1*", "", "torch", "0.50", ""],
    ]
    assert cells(tables.suite_table([TINY, twice], names, results))[2:] == [
        ["given", "geometric mean", "1.41", "1.73", "2 (1/2)", "1.41", "1"],
        ["given", "worst layer", "", "", "", "", "0.50"],
        ["given", "sum x count, ms", "5", "5", "", "4", "0.80"],
    ]


def test_claims_can_fail(claims, monkeypatch):
    monkeypatch.setattr(claims, "missing", lambda tier: None)

    def verdicts(first, second):
        return [v.verdict for v in claims._ratios("portconv-jit", [TINY, SECOND], {TINY.id: first, SECOND.id: second})]

    fast, slow = answers(portconv_jit=1.0, torch=4.0), answers(portconv_jit=2.0, torch=1.0)
    assert verdicts(fast, fast) == ["pass", "pass"]
    assert verdicts(fast, slow) == ["pass", "FAIL"]  # 4 and 0.5
    assert verdicts(slow, slow) == ["FAIL", "FAIL"]
    assert verdicts(fast, answers(torch=1.0)) == ["not measured"] * 2
    assert verdicts(fast, {"portconv-jit": {"error": "wrong"}, **answers(torch=1.0)}) == ["FAIL"] * 2
    assert verdicts(fast, answers(portconv_jit=9.0)) == ["pass", "pass"]  # no peer can run it

    slowest = claims._slowest("c", [TINY, SECOND], "portconv-jit", ("torch",), 1.5, {TINY.id: fast, SECOND.id: slow})
    assert slowest.verdict == "FAIL" and "2.00 times as long (given/second, torch)" in slowest.figure


def test_claims_run_what_they_need(claims):
    jobs = claims.jobs(["portconv-jit", "torch", "mlx", "opencv"], [TINY])
    assert all(TINY in jobs[name] for name in ("portconv-jit", "torch", "opencv"))
    assert jobs["mlx"] == suites.suite("resnet50")
    assert set(claims.LARGE_KERNELS) <= set(jobs["torch"]) & set(jobs["portconv-jit"])
    assert {"box31_2048", "random31_2048"} <= {layer.name for layer in jobs["opencv"]}
