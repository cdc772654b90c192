"""Which chunks a chunk of the result reads: against the indices that NumPy's padding has in each place."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import PAD_MODES

pytest.importorskip("dask.array", reason="Dask is not installed")
from portconv.backends.dask.windows import Axis, output_chunks, whole, windows


@st.composite
def axes(draw):
    chunks = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)))
    size, mode = sum(chunks), draw(st.sampled_from(sorted(PAD_MODES)))
    most = {"reflect": size - 1, "circular": size}.get(mode, 25)
    before, after = draw(st.integers(0, min(most, 25))), draw(st.integers(0, min(most, 25)))
    extent, stride = draw(st.integers(1, size + before + after)), draw(st.integers(1, 7))
    return Axis(chunks, (size + before + after - extent) // stride + 1, extent, stride, before, after, mode)


@given(axes())
def test_windows_have_what_numpys_padding_has(axis):
    size = sum(axis.chunks)
    padded = np.pad(np.arange(1, size + 1), (axis.before, axis.after), PAD_MODES[axis.mode])
    starts = [0, *accumulate(axis.chunks)]
    sizes = output_chunks(axis)
    assert sum(sizes) == axis.outputs and min(sizes) > 0 and len(sizes) <= len(axis.chunks)
    first = 0
    for count, window in zip(sizes, windows(axis, sizes), strict=True):
        found = np.zeros(window.size, int)
        for piece in window.pieces:
            chunk = window.blocks[piece.block]
            found[piece.target] = np.arange(starts[chunk] + 1, starts[chunk + 1] + 1)[piece.source]
        found = np.pad(found, (window.before, window.after))
        begin = first * axis.stride
        np.testing.assert_array_equal(found, padded[begin : begin + (count - 1) * axis.stride + axis.extent])
        first += count


@given(axes())
def test_no_chunk_reads_more_than_its_halo_needs(axis):
    """All windows together read each chunk a few times, however small chunks are, and no chunk they do not need."""
    found = windows(axis, output_chunks(axis))
    assert sum(len(window.blocks) for window in found) <= 3 * len(axis.chunks) + 2 * len(found)
    for window in found:
        assert {piece.block for piece in window.pieces} == set(range(len(window.blocks)))


def test_chunks_follow_those_of_the_image():
    """With padding "same" exactly; with stride each gets its share of the outputs, and ragged ones stay ragged."""
    assert output_chunks(Axis((10, 7, 12), 29, 5, 1, 2, 2, "zeros")) == (10, 7, 12)
    assert output_chunks(Axis((10, 8, 12), 15, 3, 2, 1, 1, "zeros")) == (5, 4, 6)
    assert output_chunks(Axis((10, 7, 12), 25, 5, 1, 0, 0, "zeros")) == (8, 7, 10)


def test_chunks_smaller_than_the_halo_are_gathered():
    """But a single one between larger ones, as at the end of an image, stays what it is."""
    assert output_chunks(Axis((2,) * 21, 42, 9, 1, 4, 4, "zeros")) == (8,) * 5 + (2,)
    assert output_chunks(Axis((20, 3, 20, 3), 46, 9, 1, 4, 4, "zeros")) == (20, 3, 20, 3)
    assert output_chunks(Axis((1, 1, 1), 1, 3, 1, 0, 0, "zeros")) == (1,)


def test_an_axis_in_one_chunk_leaves_its_padding_to_the_plan():
    (window,) = whole(Axis((9,), 9, 5, 1, 2, 2, "reflect"))
    assert (window.blocks, window.size, window.before, window.after) == ((0,), 9, 2, 2)
