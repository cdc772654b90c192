"""Measurements outlive the process: what is kept, when it is used, and that nothing in a file can do harm."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import portconv
from portconv.core.epilogue import Epilogue
from portconv.cpu import locks
from portconv.cpu import machine as host
from portconv.dispatch import measurement, path, wisdom
from portconv.testing import assert_close, check_backend, reference_conv2d
from tests.helpers import SHAPES, plan

pytestmark = pytest.mark.usefixtures("in_plain_tier")


ENVIRONMENT = {"backend": "numpy", "threads": "2"}


@pytest.fixture
def measured(monkeypatch):
    """The problems that were measured."""
    problems, measure = [], measurement._measured

    def counted(backend, problem, able):
        problems.append(problem)
        return measure(backend, problem, able)

    monkeypatch.setattr(measurement, "_measured", counted)
    return problems


def problem():
    return portconv.plan_conv2d(*SHAPES).problem


def record(number, seconds=1.0):
    return wisdom.Record({"gemm": seconds}, f"2026-01-01T00:00:{number:02d}+00:00")


def files(folder):
    return sorted(file.name for file in folder.iterdir())


def processes(code, count, folder):
    """Processes that run the code at the same time, as they are started."""
    root = str(Path(portconv.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "PORTCONV_CACHE_DIR": str(folder), "PORTCONV_WISDOM": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return [subprocess.Popen([*command, str(n)], env=env) for n in range(count)]


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_another_process_knows(run_python, tmp_path):
    code = """
        import sys
        import numpy as np, portconv
        from portconv.cpu import busy
        from portconv.dispatch import measurement
        busy.disturbed = lambda threads: False  # whatever else the machine does
        if {second}:
            measurement._fastest = None
        x, weight = np.ones((1, 2, 12, 13), np.float32), np.ones((3, 2, 3, 3), np.float32)
        assert (portconv.conv2d(x, weight, strategy="measure") == 18).all()
        plan = portconv.plan_conv2d(x, weight, strategy="measure")
        assert f"engine chosen by {{plan.chosen_by}}" in plan.explain() and "measured ms" in plan.explain()
        print(plan.engine, plan.chosen_by, [c.seconds for c in plan.candidates if c.why_not is None])
    """
    options = {"PORTCONV_CACHE_DIR": str(tmp_path), "PORTCONV_WISDOM": "1", "PORTCONV_JIT": "0"}
    first, second = (run_python(code.format(second=second), **options) for second in (False, True))
    assert " measurement " in first and " wisdom " in second
    assert first.replace("measurement", "wisdom") == second  # the same engine, and the same times to show
    assert files(tmp_path) == ["wisdom.json", "wisdom.lock"]


def test_every_library(backend, cache, measured):
    """What one process measures with a library's arrays, another one finds; and the environment tells where it was."""
    x, weight = (backend.array(np.ones(shape, np.float32)) for shape in SHAPES)
    for chosen_by in ("measurement", "wisdom"):
        path.forget_plans()
        np.testing.assert_allclose(backend.numpy(portconv.conv2d(x, weight, strategy="measure")), 18, rtol=1e-5)
        assert portconv.plan_conv2d(x, weight, strategy="measure").chosen_by == chosen_by
    assert len(measured) == 1
    ((environment, _),) = wisdom.load()
    assert f"portconv={portconv.__version__}; backend={backend.package}; " in environment
    assert backend.package == "numpy" or f"{backend.package}={metadata.version(backend.package)}" in environment
    assert host.processor() in environment and "threads=" in environment


def test_heuristic_plans_and_named_engines_neither_read_nor_write(cache, monkeypatch):
    monkeypatch.setattr(wisdom, "_current", lambda: pytest.fail("the file was read"))
    portconv.conv2d(*(np.ones(shape, np.float32) for shape in SHAPES))
    portconv.plan_conv2d(*SHAPES, strategy="measure", engine="fft")
    assert not cache.exists()


def test_switched_off(cache, measured, monkeypatch):
    plan()
    before = (cache / "wisdom.json").read_bytes()
    monkeypatch.setenv("PORTCONV_WISDOM", "0")
    assert plan().chosen_by == "measurement"
    assert plan((1, 2, 9, 9), (3, 2, 3, 3)).chosen_by == "measurement"
    assert (cache / "wisdom.json").read_bytes() == before
    monkeypatch.setenv("PORTCONV_WISDOM", "1")
    assert plan().chosen_by == "wisdom"


def test_the_tests_leave_the_users_file_alone():
    assert os.environ["PORTCONV_WISDOM"] == "0"
    assert not wisdom.path().is_relative_to(Path.home())


# --- what is taken from it --------------------------------------------------------------------------------------------


def rewrite(**seconds):
    """Other times for what was measured last."""
    ((key, old),) = wisdom.load().items()
    wisdom.save({key: wisdom.Record({**old.seconds, **seconds}, "2999-01-01T00:00:00+00:00")})


def test_the_engine_is_taken_from_it_and_the_result_is_right(cache, measured):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in SHAPES)
    plan()
    for engine in ("fft", "direct", "gemm", "winograd"):
        rewrite(**dict.fromkeys(("fft", "direct", "gemm", "winograd"), 1.0) | {engine: 1e-9})
        assert (plan().engine, plan().chosen_by) == (engine, "wisdom")
        y = portconv.conv2d(x, weight, strategy="measure")
        assert_close(y, reference_conv2d(x, weight))
    assert len(measured) == 1


@pytest.mark.parametrize("engine", ["native", "nonesuch"])
def test_an_engine_that_cannot_run_is_not_taken(cache, measured, engine):
    """Whatever made it run when it was measured: times that include it are not those of today's candidates."""
    plan()
    rewrite(**{engine: 1e-9})
    found = plan()
    assert found.chosen_by == "measurement" and found.engine != engine
    assert len(measured) == 2


def test_an_engine_that_was_not_measured_gets_its_chance(cache, measured):
    plan()
    ((key, old),) = wisdom.load().items()
    assert len(old.seconds) > 1
    engine = min((c for c in portconv.plan_conv2d(*SHAPES).candidates), key=lambda c: c.seconds).engine
    left = {name: value for name, value in old.seconds.items() if name != engine}
    wisdom.save({key: wisdom.Record(left, "2998-01-01T00:00:00+00:00")})
    assert plan().chosen_by == "measurement"


@pytest.mark.parametrize("what", ["portconv", "numpy", "blas", "processor", "threads", "tier"])
def test_other_versions_and_machines_are_kept_and_not_used(cache, measured, monkeypatch, what):
    plan()
    place, name, value = {
        "portconv": (wisdom, "__version__", "99.0"),
        "numpy": (np, "__version__", "99.0"),
        "blas": (host, "_blas", lambda: "another"),
        "processor": (host, "processor", lambda: "another"),
        "threads": (host, "get_num_threads", lambda: 99),
        "tier": (host, "_tier", lambda: "another"),
    }[what]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, value)
        assert plan().chosen_by == "measurement"
        assert plan().chosen_by == "wisdom"
    assert plan().chosen_by == "wisdom"
    assert len(measured) == len(wisdom.load()) == 2


def test_every_field_of_a_problem_counts(cache):
    base = problem()
    wisdom.remember(ENVIRONMENT, base, {"gemm": 1.0})
    assert wisdom.recall(ENVIRONMENT, base) == {"gemm": 1.0}
    assert wisdom.recall({**ENVIRONMENT, "threads": "3"}, base) is None
    for field in dataclasses.fields(base):
        if field.name == "packed_once":  # what was timed are calls, not packing
            continue
        old = getattr(base, field.name)
        new = {bool: lambda v: not v, int: lambda v: v + 1, str: lambda v: v + "x", tuple: lambda v: (*v[:-1], 7)}
        new |= {Epilogue: lambda v: Epilogue(bias=not v.bias), type(None): lambda _: "uint8"}
        other = dataclasses.replace(base, **{field.name: new[type(old)](old)})
        assert wisdom.recall(ENVIRONMENT, other) is None, field.name


def test_the_check_of_backends_knows_environments(cache):
    kind = type(portconv.get_backend("numpy"))
    assert check_backend(type("Right", (kind,), {"name": "right"})())
    wrong = type("Wrong", (kind,), {"name": "wrong", "environment": lambda self, problem: {"threads": 2}})
    with pytest.raises(AssertionError, match=r"environment\(\).*'threads': 2"):
        check_backend(wrong())
    wordy = type("Wordy", (kind,), {"name": "wordy", "environment": lambda self, problem: {"threads": "two"}})
    with pytest.raises(AssertionError, match=r"environment\(\).*in digits, but gave 'two'"):
        check_backend(wordy())


def test_backends_of_different_names_share_nothing(cache, measured):
    kind = type(portconv.get_backend("numpy"))
    for name in ("one", "other"):
        backend = type(name, (kind,), {"name": name})()
        assert plan(backend=backend).chosen_by == "measurement"
        assert plan(backend=backend).chosen_by == "wisdom"
    assert len(wisdom.load()) == 2


# --- files that cannot be used ----------------------------------------------------------------------------------------

GOOD = {"gemm": 1.0}
WHEN = "2026-01-01T00:00:00+00:00"


def document(seconds, when=WHEN):
    return json.dumps({wisdom.MARK: wisdom.FORMAT, "measurements": {"e": {"p": {"seconds": seconds, "when": when}}}})


UNUSABLE = {
    "empty": "",
    "truncated": document(GOOD)[:-20],
    "binary": b"\xff\xfe\x00\x01",
    "deep": "[" * 200_000,
    "foreign": '{"anything": 1}',
    "a list": "[]",
    "another format": json.dumps({wisdom.MARK: wisdom.FORMAT + 1, "measurements": {}}),
    "without measurements": json.dumps({wisdom.MARK: wisdom.FORMAT}),
    "measurements a list": json.dumps({wisdom.MARK: wisdom.FORMAT, "measurements": []}),
    "no seconds": document({}),
    "seconds a list": document([1.0]),
    "negative": document({"gemm": -1.0}),
    "NaN": document({"gemm": float("nan")}),
    "infinite": document({"gemm": float("inf")}),
    "a word": document({"gemm": "1"}),
    "a boolean": document({"gemm": True}),
    "huge": document(GOOD).replace("1.0", "9" * 5000),
    "no time": document(GOOD, "yesterday"),
    "time a number": document(GOOD, 7),
}


def warnings_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


def plan_two():
    assert plan().chosen_by == "measurement"
    assert plan((1, 2, 9, 9), (3, 2, 3, 3)).chosen_by == "measurement"


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_file_costs_one_warning_and_is_left_alone(cache, case):
    content = UNUSABLE[case].encode() if isinstance(UNUSABLE[case], str) else UNUSABLE[case]
    cache.mkdir()
    file = cache / "wisdom.json"
    file.write_bytes(content)
    (message,) = warnings_of(plan_two)
    assert str(file) in message and "portconv tune --clear" in message
    assert file.read_bytes() == content
    for function in (wisdom.load, lambda: wisdom.save({})):
        with pytest.raises(wisdom.WisdomError, match=r"wisdom\.json"):
            function()
    assert files(cache) == ["wisdom.json", "wisdom.lock"]
    assert wisdom.clear() is True
    assert warnings_of(plan_two) == []
    assert len(wisdom.load()) == 2


def test_a_folder_that_is_a_file(cache):
    cache.write_text("here")
    (message,) = warnings_of(plan_two)
    assert str(cache) in message and "PORTCONV_CACHE_DIR" in message


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_a_file_that_is_none(cache, kind):
    cache.mkdir()
    (cache.joinpath("wisdom.json").mkdir if kind == "directory" else lambda: os.mkfifo(cache / "wisdom.json"))()
    (message,) = warnings_of(plan_two)
    assert "wisdom.json is no file" in message


def test_a_folder_that_cannot_be_written(cache, measured, monkeypatch):
    """What stands there is used all the same."""
    plan()

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    (message,) = warnings_of(lambda: (plan((1, 2, 9, 9), (3, 2, 3, 3)), plan((1, 2, 8, 9), (3, 2, 3, 3))))
    assert f"{cache / 'wisdom.json'} cannot be written (Permission denied)" in message
    assert plan().chosen_by == "wisdom"
    assert len(measured) == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize(("mode", "word"), [(0o500, "written"), (0o000, "read")])
def test_permissions(cache, mode, word):
    cache.mkdir()
    cache.chmod(mode)
    try:
        (message,) = warnings_of(plan_two)
    finally:
        cache.chmod(0o700)
    assert f"cannot be {word}" in message and files(cache) == []


def test_no_home(monkeypatch):
    monkeypatch.setenv("PORTCONV_WISDOM", "1")
    monkeypatch.setattr(wisdom, "_warned", set())
    monkeypatch.delenv("PORTCONV_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(wisdom.Path, "home", nowhere)
    (message,) = warnings_of(plan_two)
    assert "PORTCONV_CACHE_DIR" in message


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/home/u/.cache/portconv"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/portconv"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/u/.cache/portconv"),
        ("linux", {"XDG_CACHE_HOME": "/x", "PORTCONV_CACHE_DIR": "/own"}, "/own"),
        ("linux", {"PORTCONV_CACHE_DIR": "~/own"}, "/home/u/own"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/u/Library/Caches/portconv"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/portconv"),
        ("win32", {}, "/home/u/AppData/Local/portconv"),
    ],
)
def test_path(monkeypatch, platform, variables, expected):
    for name in ("PORTCONV_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/u", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wisdom.sys, "platform", platform)
    assert wisdom.path() == Path(expected, "wisdom.json")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_save_load_clear(cache):
    assert wisdom.load() == {} and wisdom.clear() is False
    wisdom.save({("a", "p"): record(2), ("b", "p"): record(1)})
    wisdom.save({("a", "q"): record(3)})
    assert wisdom.load() == {("b", "p"): record(1), ("a", "p"): record(2), ("a", "q"): record(3)}
    wisdom.load().clear()  # a copy
    assert len(wisdom.load()) == 3
    assert wisdom.clear() is True
    assert wisdom.load() == {} and wisdom.clear() is False


def test_of_two_records_the_later_one_stays(cache):
    wisdom.save({("a", "p"): record(5, 5.0)})
    wisdom.save({("a", "p"): record(4, 4.0)})
    assert wisdom.load() == {("a", "p"): record(5, 5.0)}
    wisdom.save({("a", "p"): record(6, 6.0)})
    assert wisdom.load() == {("a", "p"): record(6, 6.0)}


def test_the_oldest_leave(cache, monkeypatch):
    monkeypatch.setattr(wisdom, "MAX_RECORDS", 5)
    for number in (3, 9, 1, 7, 5, 2, 8):
        wisdom.save({("e", str(number)): record(number)})
    assert [name for _, name in wisdom.load()] == ["3", "5", "7", "8", "9"]


def test_writers_at_once_lose_nothing(tmp_path):
    code = """
        import sys
        from portconv.dispatch import wisdom
        for number in range(20):
            mine = wisdom.Record({"gemm": 1.0}, f"2026-01-01T00:00:{number:02d}+00:00")
            wisdom.save({(f"of {sys.argv[1]}", str(number)): mine, ("of all", str(number)): mine})
    """
    running, file = processes(code, 4, tmp_path), tmp_path / "wisdom.json"
    seen = 0
    while any(process.poll() is None for process in running):
        if file.exists():
            json.loads(file.read_text())  # whole at every moment
            seen += 1
    assert [process.returncode for process in running] == [0] * 4
    assert seen > 3
    written = json.loads(file.read_text())["measurements"]
    assert {name: len(problems) for name, problems in written.items()} == {
        **{f"of {n}": 20 for n in range(4)},
        "of all": 20,
    }
    assert files(tmp_path) == ["wisdom.json", "wisdom.lock"]


def test_threads_at_once_lose_nothing(cache, monkeypatch):
    monkeypatch.setattr(wisdom, "LOCK_SECONDS", 60.0)  # on a busy machine each waits for all others

    def write(name):
        for number in range(15):
            wisdom.save({(name, str(number)): record(number)})

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wisdom.load()) == 60


def test_a_lock_that_nobody_gives_back_holds_up_nobody_for_ever(cache, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(wisdom, "LOCK_SECONDS", 0.1)
    cache.mkdir()
    with (cache / "wisdom.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        start = time.monotonic()
        wisdom.save({("a", "p"): record(1)})
        assert 0.1 <= time.monotonic() - start < 5
    assert len(wisdom.load()) == 1


def test_without_locks(cache, monkeypatch):
    """On Windows, and on file systems that have none."""
    monkeypatch.setattr(locks, "fcntl", None)
    wisdom.save({("a", "p"): record(1)})
    assert len(wisdom.load()) == 1 and files(cache) == ["wisdom.json"]


def half(_document, stream, **_options):
    stream.write('{"portconv wis')
    stream.flush()
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_file_as_it_was(cache, monkeypatch):
    wisdom.save({("a", "p"): record(1)})
    before = (cache / "wisdom.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(wisdom.json, "dump", half)
        with pytest.raises(KeyboardInterrupt):
            plan()
    assert (cache / "wisdom.json").read_bytes() == before
    assert files(cache) == ["wisdom.json", "wisdom.lock"]
    assert plan().chosen_by == "measurement"


def test_a_killed_writer_leaves_the_file_as_it_was(cache):
    wisdom.save({("a", "p"): record(1)})
    code = """
        import os, signal
        from portconv.dispatch import wisdom
        def half(_document, stream, **_options):
            stream.write('{"portconv wis')
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        wisdom.json.dump = half
        wisdom.save({("a", "q"): wisdom.Record({"gemm": 1.0}, "2026-01-01T00:00:01+00:00")})
    """
    (process,) = processes(code, 1, cache)
    assert process.wait(60) == -signal.SIGKILL
    assert len(files(cache)) == 3  # what it had begun
    assert wisdom.load() == {("a", "p"): record(1)}
    wisdom.save({("a", "q"): record(2)})  # its lock went with it
    assert len(wisdom.load()) == 2
    wisdom.clear()
    assert files(cache) == ["wisdom.lock"]


# --- measuring --------------------------------------------------------------------------------------------------------


def test_an_interrupted_measurement_changes_nothing(cache, monkeypatch):
    def interrupt(calls, expected):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measurement, "_fastest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan()
    assert not cache.exists()
    assert portconv.plan_conv2d(*SHAPES, strategy="measure").chosen_by == "measurement"


def test_values_that_jax_traces_are_not_measured(jax, cache, monkeypatch):
    monkeypatch.setattr(measurement, "_fastest", lambda *_: pytest.fail("something was timed"))
    path.forget_plans()
    x, weight = (jax.numpy.ones(shape) for shape in SHAPES)
    y = jax.jit(lambda a: portconv.conv2d(a, weight, strategy="measure"))(x)
    np.testing.assert_allclose(np.asarray(y), 18, rtol=1e-6)
    assert not cache.exists()


def test_measuring_inside_jit(jax, cache):
    """Arrays that have values are measured there, too."""
    path.forget_plans()
    x, weight = (jax.numpy.ones(shape) for shape in SHAPES)
    y = jax.jit(lambda a: portconv.conv2d(x, weight, strategy="measure") + a)(0.0)
    np.testing.assert_allclose(np.asarray(y), 18, rtol=1e-6)
    assert plan(x, weight).chosen_by == "wisdom"


def test_measuring_inside_a_transformation_of_mlx(mx, cache):
    """What is timed are arrays of its own, which have values there, too."""
    x, weight = (mx.ones(shape) for shape in SHAPES)
    y = mx.compile(lambda a: portconv.conv2d(a, weight, strategy="measure"))(x)
    np.testing.assert_allclose(np.array(y), 18, rtol=1e-5)
    assert plan(x, weight).chosen_by == "wisdom"
