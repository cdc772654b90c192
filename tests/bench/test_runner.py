"""Workers that may die, and the passes of which the best one counts."""

from __future__ import annotations

import pytest

from portconv.bench import runner
from portconv.bench.runner import Task, Timed
from portconv.processes.session import Settings, Target
from tests.bench.helpers import SETTINGS, TINY, other

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
    if name == "fragile" and "native" in message["engines"]:
        os._exit(3)
    print("noise on stdout")
    figures = {"best_ms": 1.0, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}
    return {"answers": [{**figures, "asked": message["engines"]} for _ in message["engines"]]}

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


def test_portconvs_choice_and_the_librarys_routine_are_asked_together(fake):
    tasks = [Task(TINY, engine, device) for device in "ab" for engine in ("auto", "native", "gemm", "fft")]
    timed = runner.run_target(fake, tasks, SETTINGS, lambda *_: None)
    asked = [answer["asked"] for answer in timed.answers.values()]
    assert asked == [["auto", "native"], ["auto", "native"], ["gemm"], ["fft"]] * 2
    assert list(timed.answers) == tasks


def test_a_routine_that_kills_the_worker_costs_portconvs_choice_nothing(fake):
    auto, native = (Task(other("fragile"), engine) for engine in ("auto", "native"))
    timed = runner.run_target(fake, [auto, native], SETTINGS, lambda *_: None)
    assert timed.answers[auto]["best_ms"] == 1.0 and "ended with status 3" in timed.answers[native]["error"]


def test_missing_libraries(fake):
    target = Target("fake", "fake_worker", ("absent",))
    timed = runner.run_target(target, [Task(TINY)], SETTINGS, lambda *_: pytest.fail("nothing was timed"))
    assert timed == Timed({"missing": "no such library"}, {})


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
