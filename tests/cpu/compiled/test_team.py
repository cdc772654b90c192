"""The team of threads: jobs are done whoever comes, awake or asleep, and leave no trace."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from numba import types
from numba.extending import intrinsic

import portconv
from portconv.cpu import threads
from portconv.cpu.compiled import jobs, team
from portconv.cpu.compiled.gemm import kernels
from portconv.cpu.compiled.kernel import kernel
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

two_cores = pytest.mark.skipif(threads.usable_cores() < 2, reason="this process has one core only")
# so large that a thread that is asleep has the time to come
X, WEIGHT = numbers((8, 48, 64, 65)), numbers((32, 48, 3, 3), 1)
EXPECTED = reference_conv2d(X, WEIGHT, padding=1)


@pytest.fixture(autouse=True)
def _restored():
    before = portconv.get_num_threads()
    yield
    portconv.set_num_threads(before)


@pytest.fixture
def new_team(monkeypatch):
    """A team of its own for the test; its threads end with the process, asleep."""
    monkeypatch.setattr(team, "_team", None)
    monkeypatch.setattr(team, "_lock", threading.Lock())


def convolve(times=1):
    for _ in range(times):
        y = portconv.conv2d(X, WEIGHT, padding=1, engine="gemm")
    assert_close(y, EXPECTED)


def joined():
    """How many threads came to the last job."""
    return int(team._team._memory[jobs.STATE]) // jobs.JOINED & jobs.FIELD


@pytest.mark.usefixtures("new_team")
@two_cores
@pytest.mark.parametrize("pause", [0, 0.0003, 0.01])
def test_threads_join_whether_they_are_awake_or_asleep(pause):
    portconv.set_num_threads(2)
    seen = [0]
    while max(seen) == 0 and len(seen) < 100:  # on a machine that is not idle a thread may come too late
        time.sleep(pause)
        convolve(2)
        seen.append(joined())
    assert max(seen) == 1
    assert int(team._team._memory[jobs.STATE]) & (jobs.FIELD | jobs.OPEN) == 0


@pytest.mark.usefixtures("new_team")
@two_cores
def test_where_only_python_can_wake_threads(monkeypatch):
    """As on systems whose calls the compiled code does not know."""
    monkeypatch.setattr(jobs, "CAN_SLEEP", False)
    portconv.set_num_threads(2)
    seen = []
    for pause in (0, 0.0003, 0.01) * 4:
        time.sleep(pause)
        convolve()
        seen.append(joined())
    assert max(seen) == 1
    assert team._team.size == 2


@pytest.mark.usefixtures("new_team")
@two_cores
@pytest.mark.parametrize("settled", [True, False])
def test_no_more_threads_than_asked_for(monkeypatch, settled):
    """Where threads keep to cores, and where the system only says so."""
    if not settled:
        monkeypatch.setattr(team, "_settled", lambda _core, _block: False)
    for count in (2, 1, 2):
        portconv.set_num_threads(count)
        team._team = None if team._team is None and count == 1 else team._team
        convolve(20)
        if count == 2:
            assert joined() <= 1


@pytest.mark.usefixtures("new_team")
@two_cores
def test_a_process_that_has_lost_cores_since_it_was_planned(monkeypatch):
    """A block has counters for as many threads as there were cores when the team was made, and no job has more."""
    portconv.set_num_threads(2)
    plan = portconv.plan_conv2d(X, WEIGHT, padding=1, engine="gemm")
    parts = []

    def noted(block, count, *rest):
        parts.append(count)
        return kernels.gemm(block, count, *rest)

    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    packed = plan.pack(WEIGHT)
    monkeypatch.setattr(team, "launch", lambda job, *given, launch=team.launch: launch(noted, *given))
    assert_close(plan.execute(X, packed), EXPECTED)
    assert parts == [1]


@pytest.mark.usefixtures("new_team")
@two_cores
def test_the_callers_thread_is_left_as_it_was():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("the system does not tell")
    before, names = os.sched_getaffinity(0), {thread.name for thread in threading.enumerate()}
    portconv.set_num_threads(2)
    convolve(5)
    assert os.sched_getaffinity(0) == before
    assert {thread.name for thread in threading.enumerate()} - names <= {"portconv-team"}
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "portconv-team")


@pytest.mark.usefixtures("new_team")
def test_without_another_thread_the_caller_does_everything(monkeypatch):
    """As at the end of a process, when there can be no more."""

    def fail(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    portconv.set_num_threads(2)
    convolve(3)
    assert team._team is None or joined() == 0


@pytest.mark.usefixtures("new_team")
@two_cores
def test_a_thread_on_the_callers_core_leaves_the_job_to_the_others():
    """And sleeps, without being counted among those that are to be woken."""
    if not jobs.CAN_SLEEP:
        pytest.skip("threads keep to no core")
    portconv.set_num_threads(2)
    convolve(20)
    time.sleep(0.05)
    state, sleepers, core = (int(team._team._memory[word]) for word in (jobs.STATE, jobs.SLEEPERS, jobs.CORE))
    assert state & jobs.OPEN == 0
    assert 0 <= sleepers <= len(os.sched_getaffinity(0))
    assert core in os.sched_getaffinity(0)


@pytest.mark.usefixtures("new_team")
@two_cores
def test_an_error_in_the_middle_of_a_job(monkeypatch):
    """Nobody is at work any more when the caller gets its arrays back, and the next job is done as ever."""
    portconv.set_num_threads(2)
    convolve()
    real = jobs.active

    def interrupted(*arguments):
        kernels.gemm(*arguments)
        raise KeyboardInterrupt

    plan = portconv.plan_conv2d(X, WEIGHT, padding=1, engine="gemm")
    packed = plan.pack(WEIGHT)
    monkeypatch.setattr(team, "launch", lambda job, *given, launch=team.launch: launch(interrupted, *given))
    with pytest.raises(KeyboardInterrupt):
        plan.execute(X, packed)
    monkeypatch.undo()
    assert not team._lock.locked()
    assert team._team is None or real(team._team.block) == 0
    convolve(3)


def test_the_blocks_of_different_threads_are_different():
    found = []
    workers = [threading.Thread(target=lambda: found.append(team._own.block)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({team._own.block, *found}) >= 2  # that of a thread that has ended may be used again
    assert all(block % threads.ALIGNMENT == 0 for block in found)


def test_tasks_are_taken_once_each():
    """By hand: what the counter gives, and that a job is closed and empty afterwards."""
    words = np.zeros(jobs.COUNTERS + jobs.APART, np.int64)
    block = words.ctypes.data
    assert not jobs.is_open(block) and jobs.active(block) == 0
    words[jobs.STATE] = jobs.OPEN + 3 * jobs.ACTIVE
    assert jobs.is_open(block) and jobs.active(block) == 3


@intrinsic
def _owner(_context, array):
    """The address of what counts the owners of an array's memory."""

    def lower(context, b, signature, args):
        made = context.make_array(signature.args[0])(context, b, args[0])
        return b.ptrtoint(made.meminfo, context.get_value_type(types.int64))

    return types.int64(array), lower


def _look(_job, _part, array, found):
    found[0] = _owner(array)
    found[1] = _owner(array[1:])


_look_as_job = jobs.job_of(kernel(_look))


@kernel
def _launched(job, parts, patience, *arguments):
    return _look_as_job(job, parts, patience, arguments)


def test_threads_count_no_owners():
    """Two that did so at once made a depthwise layer slower than one thread."""
    found = np.full(2, -1)
    team.launch(_launched, 1, np.ones(3), found)
    assert found.tolist() == [0, 0]
