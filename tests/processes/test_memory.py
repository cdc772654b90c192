"""The memory of a process."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from portconv.processes.memory import peak_resident, reset_peak_resident

MIB = 2**20


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say it in this way")
def test_the_peak_keeps_what_was_let_go():
    before = peak_resident()
    array = np.ones(64 * MIB, np.uint8)
    array[::4096] += 1
    del array
    assert peak_resident() >= before > MIB
    if sys.platform == "linux":
        reset_peak_resident()
        start = peak_resident()
        array = np.ones(96 * MIB, np.uint8)
        del array
        assert 90 * MIB < peak_resident() - start < 200 * MIB
        reset_peak_resident()
        assert peak_resident() - start < 32 * MIB
