"""Two worker processes, one of which is killed on the way."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

da = pytest.importorskip("dask.array", reason="Dask is not installed")
distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")


@pytest.fixture(scope="module")
def client():
    """Two processes on this machine's loopback, without a dashboard."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


def problem():
    x, weight, bias = numbers((2, 3, 90, 80)), numbers((4, 3, 5, 5)), numbers((4,))
    options = {"padding": 2, "padding_mode": "reflect"}
    chunks = (1, 2, (20, 33, 37), 25)
    return x, [da.from_array(x, chunks=chunks), da.from_array(weight), da.from_array(bias)], options


def test_two_processes(client):
    x, arrays, options = problem()
    y = portconv.conv2d(*arrays, **options)
    found = client.compute(y).result()
    assert_close(found, reference_conv2d(x, *(a.compute() for a in arrays[1:]), **options))
    layer = portconv.Conv2d(3, 4, 5, padding=2, rng=0)
    np.testing.assert_allclose(client.compute(layer(arrays[0])).result(), layer(x), atol=1e-5)


def test_a_worker_dies_on_the_way(client, tmp_path):
    """The chunks that it had are computed again by the other one, and by the process that replaces it."""
    x, arrays, options = problem()
    died = tmp_path / "died"

    def dies(block, block_info=None):
        # the block that one of the last tasks reads takes its process with it, once
        if block_info[0]["chunk-location"] == (1, 0, 2, 3) and not died.exists():
            died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    image = arrays[0].rechunk({1: 3}).map_blocks(dies, dtype="f4", meta=arrays[0]._meta)
    before = {worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()}
    y = portconv.conv2d(image, *arrays[1:], **options)
    found = client.compute(y).result(timeout=120)
    assert int(died.read_text()) in before
    assert_close(found, reference_conv2d(x, *(a.compute() for a in arrays[1:]), **options))
