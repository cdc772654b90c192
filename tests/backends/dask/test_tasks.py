"""What the tasks do: they are small, pack a weight once, and share the threads."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import portconv
from portconv.cpu.threads import allowed_threads
from tests.helpers import numbers

da = pytest.importorskip("dask.array", reason="Dask is not installed")
from portconv.backends.dask import tasks  # noqa: E402  # not without Dask

SHAPE, KERNEL = (1, 3, 40, 44), (4, 3, 3, 3)


def convolved(**options):
    x = da.from_array(numbers(SHAPE), chunks=(1, 3, 10, 11))
    return x, portconv.conv2d(x, da.from_array(numbers(KERNEL)), padding=1, **options)


def own_tasks(y):
    return [task for key, task in y.dask.layers[y.name].items() if key[0] == y.name]


def test_a_task_is_small_and_can_be_sent():
    _, y = convolved()
    for task in own_tasks(y):
        assert len(pickle.dumps(task)) < 3000
    sent = pickle.loads(pickle.dumps(own_tasks(y)[0]))
    assert sent.args[0] == own_tasks(y)[0].args[0]


class Counted:
    """A plan that counts how often it packs."""

    stamp = "counted"

    def __init__(self):
        self.count = 0

    def pack(self, weight):
        self.count += 1
        return weight


def test_a_weight_is_packed_once_by_all_threads_of_a_process():
    weight, plan = tasks.Weight(np.ones((2, 3))), Counted()
    with ThreadPoolExecutor(8) as pool:
        packed = list(pool.map(lambda _: weight.packed(plan), range(50)))
    assert plan.count == 1 and all(one is weight.value for one in packed)
    sent = pickle.loads(pickle.dumps(weight))
    sent.packed(plan)
    assert plan.count == 2, "another process packs anew"


def test_the_chunks_of_a_result_share_a_packed_weight_and_the_threads(monkeypatch):
    packs, shares = [], []
    planned, shared = tasks._planned, tasks._shared_threads

    class Counting:
        def __init__(self, plan):
            self.plan, self.stamp = plan, plan.stamp

        def pack(self, weight):
            packs.append(self.stamp)
            return self.plan.pack(weight)

        def execute(self, *arguments):
            return self.plan.execute(*arguments)

    monkeypatch.setattr(tasks, "_planned", lambda *arguments: Counting(planned(*arguments)))
    monkeypatch.setattr(tasks, "_shared_threads", lambda: shares.append(1) or shared())
    _, y = convolved(engine="gemm")
    y.compute()
    assert len(shares) == y.npartitions == 16
    assert len(packs) == len(set(packs)) < 16


def test_tasks_share_the_threads(monkeypatch):
    """What one convolution may use, they use together: Dask's threads times portconv's are too many."""
    monkeypatch.setattr(tasks, "get_num_threads", lambda: 4)
    monkeypatch.setattr("portconv.cpu.threads.get_num_threads", lambda: 4)
    with tasks._shared_threads():
        assert allowed_threads() == 4
        seen = []

        def second():
            with tasks._shared_threads():
                seen.append(allowed_threads())

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert seen == [2]
    with tasks._shared_threads():
        assert allowed_threads() == 4
    assert not tasks._at_work


def test_a_window_in_one_chunk_is_a_view_of_it(monkeypatch):
    """Nothing is copied where a chunk is all that is read."""
    seen = []
    original = tasks._window
    monkeypatch.setattr(tasks, "_window", lambda *a: seen.append((a[1], original(*a))) or seen[-1][1])
    x = numbers((4, 3, 16, 16))
    y = portconv.conv2d(da.from_array(x, chunks=(1, 3, 16, 16)), da.from_array(numbers(KERNEL)), padding=1)
    y.compute(scheduler="synchronous")
    assert len(seen) == 4
    for (block,), window in seen:
        assert window.base is block or np.shares_memory(window, block)
