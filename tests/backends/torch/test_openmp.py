"""Jobs on the threads of PyTorch's own operators: done whoever calls, once each, and never after a fork."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import portconv
from portconv.cpu import threads
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

pytest.importorskip("numba")
from portconv.cpu.compiled import jobs, team
from portconv.cpu.compiled.kernel import kernel

X, WEIGHT = numbers((1, 32, 40, 41)), numbers((48, 32, 3, 3), 1)
EXPECTED = reference_conv2d(X, WEIGHT, padding=1)

FORK = """
import os, signal
import torch, portconv
from portconv.backends.torch import openmp
x, weight = torch.ones(1, 32, 40, 40), torch.ones(32, 32, 3, 3)
def convolved():
    return portconv.conv2d(x, weight, engine="gemm").numpy()
(x + 1).sum()  # on PyTorch's threads
expected = convolved()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if openmp.found is None and (convolved() == expected).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (convolved() == expected).all())
"""


def _mark(_block, part, found):
    found[part] += 1


_mark_as_job = jobs.job_of(kernel(_mark))


@kernel
def _marked(block, parts, patience, *arguments):
    return _mark_as_job(block, parts, patience, arguments)


@pytest.fixture
def openmp(torch, monkeypatch):
    """PyTorch's library, a team of its own for the test, and as many threads as it wants."""
    from portconv.backends.torch import openmp

    if openmp.found is None:
        if sys.platform == "linux":
            pytest.fail("PyTorch's OpenMP library was not found")
        pytest.skip("PyTorch has no OpenMP library here")
    if threads.usable_cores() < 2:
        pytest.skip("this process has one core only")
    monkeypatch.setattr(team, "_team", None)
    monkeypatch.setattr(team, "_lock", threading.Lock())
    ours, theirs = portconv.get_num_threads(), torch.get_num_threads()
    portconv.set_num_threads(2)
    torch.set_num_threads(2)
    yield openmp
    portconv.set_num_threads(ours)
    torch.set_num_threads(theirs)


def convolve(torch, engine="gemm"):
    y = portconv.conv2d(torch.tensor(X), torch.tensor(WEIGHT), padding=1, engine=engine)
    assert_close(y.numpy(), EXPECTED)


@pytest.mark.parametrize("engine", ["gemm", "winograd", "direct"])
def test_no_threads_of_our_own_beside_pytorchs(torch, openmp, engine):
    before = {thread.ident for thread in threading.enumerate()}
    for _ in range(3):
        convolve(torch, engine)
    assert team._team.openmp is openmp.found
    assert {thread.ident for thread in threading.enumerate()} == before
    portconv.conv2d(X, WEIGHT, padding=1, engine=engine)
    assert team._team.openmp is None
    assert team._team.size == 2


@pytest.mark.parametrize("theirs", [2, 5])
def test_each_thread_has_one_part(torch, openmp, theirs):
    """Where the library has more threads than a job has parts, the others do nothing."""
    torch.set_num_threads(theirs)
    found = np.zeros(8, np.int64)
    for _ in range(10):
        with threads.at_most(theirs, openmp.found):
            team.launch(_marked, 2, found)
    assert found.tolist() == [10, 10, 0, 0, 0, 0, 0, 0]


def test_one_thread_leaves_the_library_alone(torch, openmp):
    torch.set_num_threads(1)
    convolve(torch)
    assert team._team is None


def test_several_callers_at_once(torch, openmp):
    with ThreadPoolExecutor(4) as callers:
        for done in [callers.submit(convolve, torch) for _ in range(80)]:
            done.result()


def test_within_a_parallel_region(torch, openmp):
    """The library gives a region within another one a single thread, which does all of the job."""
    done = []

    def member(_data):
        convolve(torch)  # what it raises is no more than printed here
        done.append(threading.get_ident())

    region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel = ctypes.CFUNCTYPE(None, region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(openmp.found.parallel)
    parallel(region(member), None, 2, 0)
    assert len(set(done)) == 2


def test_gradients(torch, openmp):
    x, weight = torch.tensor(X, requires_grad=True), torch.tensor(WEIGHT, requires_grad=True)
    portconv.conv2d(x, weight, padding=1, engine="gemm").square().sum().backward()
    dx, dweight = x.grad, weight.grad
    x.grad = weight.grad = None
    torch.nn.functional.conv2d(x, weight, padding=1).square().sum().backward()
    torch.testing.assert_close(dx, x.grad, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(dweight, weight.grad, rtol=1e-4, atol=1e-2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
def test_a_forked_child_has_a_team_of_its_own(openmp):
    """The library's threads are not there, and it would wait for them for ever."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0", "True"], done.stderr


@pytest.mark.parametrize("why", ["no OpenMP", "no function"])
def test_without_such_a_library(monkeypatch, openmp, why):
    if why == "no OpenMP":
        monkeypatch.setattr(openmp.torch.backends.openmp, "is_available", lambda: False)
    else:
        monkeypatch.setattr(openmp.ctypes, "CDLL", lambda _name: type("Empty", (dict,), {"__getitem__": _missing})())
    assert openmp._find() is None


def _missing(_library, name):
    raise AttributeError(name)
