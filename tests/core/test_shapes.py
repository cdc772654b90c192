"""Which elements of an image an output needs: integers, against counting one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from portconv.core.shapes import axis_source
from tests.helpers import PAD_MODES


@pytest.mark.parametrize("mode", PAD_MODES)
def test_a_window_reads_what_padding_puts_there(mode):
    for size, before, after, step in itertools.product((1, 4, 7), (0, 1, 3), (0, 2, 6), (1, 2, 3)):
        if mode == "reflect" and max(before, after) >= size:
            continue
        padded = np.pad(np.arange(1, size + 1), (before, after), mode=PAD_MODES[mode])  # zeros are outside
        for start, stop in itertools.combinations(range(-before, size + after + 1), 2):
            found = axis_source(slice(start, stop, step), size, before, after, mode)
            values = [0 if i is None else 1 + i for i in (*found.lead, *range(size)[found.inner], *found.trail)]
            assert values == padded[start + before : stop + before : step].tolist(), (size, before, after, found)
