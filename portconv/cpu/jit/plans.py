"""The compiled engines bound to problems: what is computed once per problem, and the call of the kernels."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from ...backend import Candidate, PackedWeight, Plan
from ...engines import taps, winograd
from ...shapes import axis_source
from ...spec import Problem
from .. import separable, threads
from . import direct as direct_kernels
from . import gemm as gemm_kernels
from . import winograd as winograd_kernels
from .costs import JIT, JitCosts
from .vectors import MAX_VECTORS, ROWS, VECTOR_BYTES, lanes

__all__ = ["build", "candidates"]

Array = np.ndarray[Any, Any]
Ints = tuple[int, ...]

CACHE_BYTES = 256 << 10  # of one core's second cache, for the window of a strip
MAX_WINDOW_BYTES = 2 << 20  # of a strip, above which it holds some channels at a time
MANY_WEIGHT_BYTES = 4 << 20
SMALL_IMAGE = 512  # columns of a whole image that is one strip
WORTH_COLUMNS = 384  # columns of a strip that read many weights
MAX_STRIP_BYTES = 12 << 20  # of a strip of `direct`
MAX_WORKSPACE_BYTES = 56 << 20
MAX_AXIS = 1 << 20  # elements of a padded axis
MAX_TERMS = 1 << 17  # of a sum: there is a table of them
BLOCK_BYTES = 1280 << 10  # transformed inputs and outputs of a thread's block
JOINED_BYTES = 24 << 20  # of a block that all threads share
JOINED_WEIGHT_BYTES = 12 << 20  # transformed weights from which on reading them once is worth the waiting
WINOGRAD_CHUNK = 64  # see engines/winograd.py
CHUNK = {"normwise": 192, "elementwise": 32}  # see engines/gemm.py


@lru_cache(maxsize=256)
def build(problem: Problem, engine: str) -> JitPlan | None:
    """The compiled plan, or None where the plain one has to do: its tables and strips suit images, not long rows."""
    top, bottom, left, right = problem.padding
    axes = problem.height + top + bottom, problem.width + left + right
    terms = problem.in_channels // problem.groups * problem.kernel[0] * problem.kernel[1]
    if max(axes) > MAX_AXIS or terms > MAX_TERMS or problem.batch == 0:
        return None
    plan = _made(problem, engine)
    return plan if plan is None or plan.workspace_bytes <= MAX_WORKSPACE_BYTES else None


def _made(problem: Problem, engine: str) -> JitPlan | None:
    if engine == "winograd":
        return WinogradPlan.make(problem)
    if engine == "direct":
        return DirectPlan.make(problem)
    return GemmPlan.make(problem) if engine == "gemm" else None


def candidates(problem: Problem, costs: JitCosts = JIT) -> dict[str, Candidate]:
    """The estimates of the engines that have a compiled form for the problem, by name."""
    found = {}
    for engine in ("gemm", "winograd", "direct"):
        if engine == "winograd" and winograd.why_not(problem) is not None:
            continue
        if (plan := build(problem, engine)) is not None:
            found[engine] = Candidate(engine, plan.seconds(costs), plan.workspace_bytes, note=plan.note)
    return found


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _flat(x: Array, dtype: str, layout: str) -> tuple[Array, Ints]:
    """The memory of `x` in the dtype of the computation, without its shape, and its steps (B, C, H, W) in elements."""
    if x.dtype != dtype:
        with np.errstate(all="ignore"):
            x = x.astype(dtype)
    if not x.flags.c_contiguous and not all(s > 0 and s % x.itemsize == 0 for s in x.strides):
        x = np.ascontiguousarray(x)
    if x.flags.c_contiguous:
        flat = x.reshape(-1)
        flat.flags.writeable = False  # one type, whatever the caller's array is
    else:
        extent = 1 + sum((n - 1) * (s // x.itemsize) for n, s in zip(x.shape, x.strides, strict=True))
        flat = np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,), writeable=False)
    return flat, _steps(x, layout)


def _steps(x: Array, layout: str) -> Ints:
    b, *rest = (s // x.itemsize for s in x.strides)
    return (b, rest[2], rest[0], rest[1]) if layout == "NHWC" else (b, *rest)


def _sources(p: Problem) -> tuple[Array, Array]:
    """Where each row, and each column, of the padded image comes from; -1 for zeros."""
    top, bottom, left, right = p.padding
    rows = _axis_sources(p.height, top, bottom, p.padding_mode)
    return rows, _axis_sources(p.width, left, right, p.padding_mode)


def _axis_sources(size: int, before: int, after: int, mode: str) -> Array:
    source = axis_source(-before, size + after, size, before, after, mode)
    lead, trail = ([-1 if i is None else i for i in part] for part in (source.lead, source.trail))
    inner = np.arange(source.inner.start, source.inner.stop)
    return _read_only(np.concatenate([lead, inner, trail]).astype(np.int64))


@dataclass(frozen=True)
class JitPlan(Plan):
    """What the compiled engines share: the result is made here, and the kernels fill it in."""

    tables: tuple[Array, ...] = ()  # what the kernels look up, in the order of their arguments
    geometry: Ints = ()
    parts: int = 1
    scratch: int = 0  # elements of scratch memory: of each thread, or of all in `winograd`

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled"

    def seconds(self, costs: JitCosts) -> float:
        """The estimate."""
        raise NotImplementedError  # abstract: every engine has its own

    def execute(self, x: Any, weight: PackedWeight, bias: Any = None, /) -> Any:
        self.check_stamp(weight)
        p = self.problem
        y = np.empty(p.out_shape, p.compute_dtype)
        if y.size:
            flat, steps = _flat(x, p.compute_dtype, p.layout)
            out = y.reshape(-1)
            shift = np.zeros(p.out_channels, y.dtype) if bias is None else bias.reshape(-1).astype(y.dtype, copy=False)
            shift = np.ascontiguousarray(shift)
            shift.flags.writeable = False
            self.fill(flat, steps, out, _steps(y, p.layout), weight.data, shift)
        if y.dtype == p.dtype:
            return y
        with np.errstate(all="ignore"):  # an overflow of float16 is infinity, and no warning
            return y.astype(p.dtype)

    def fill(self, x: Array, x_steps: Ints, y: Array, y_steps: Ints, data: Any, bias: Array) -> None:
        """Compute the result into `y`."""
        raise NotImplementedError  # abstract: every engine has its own


def _contiguous(x: Array, steps: Ints, p: Problem) -> tuple[Array, Ints]:
    """A copy (B, C, H, W), for views whose rows are not runs in memory, where a kernel reads the image in place."""
    shape = (p.batch, p.in_channels, p.height, p.width)
    view = np.lib.stride_tricks.as_strided(x, shape, [s * x.itemsize for s in steps])
    copy = np.ascontiguousarray(view)
    return _read_only(copy.reshape(-1)), tuple(s // copy.itemsize for s in copy.strides)


def _read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


# --- gemm


@dataclass(frozen=True)
class GemmPlan(JitPlan):
    """`gemm`: see kernels in `gemm.py`. The window of a strip fits a core's cache, channel by channel if need be."""

    in_place: bool = False  # the image itself is the window

    @classmethod
    def make(cls, p: Problem) -> GemmPlan:
        """Choose the form and the sizes of strips."""
        oh, ow = p.out_size
        inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
        size, lane = p.itemsize, lanes(p.compute_dtype)
        every = taps.taps(p.kernel, p.stride, p.dilation)
        tile_rows, tile_vectors = gemm_kernels.tile_shape(outputs)
        halo_rows, halo_cols = taps.halo(p)
        in_place = len(every) == 1 and p.stride == (1, 1) and not any(p.padding) and p.layout == "NCHW"
        # rows of the image that start off a vector's boundary are read slowly, each many times: better copied once
        in_place = in_place and p.x_dtype == p.compute_dtype and p.height * p.width % lane == 0
        # "shift": taps are offsets into the phases of the window, and the halo's columns are computed for nothing;
        # "gather": every tap has its own copy
        phases = sorted({tap.phase for tap in every})
        shift = _shifting_pays(p, len(phases), halo_cols)
        line = ow + halo_cols if shift else ow
        if shift:
            planes = [(a, p.stride[0], b, p.stride[1]) for a, b in phases]
            where = [(phases.index(tap.phase), tap.row * line + tap.col) for tap in every]
        else:
            (sh, sw), (dh, dw) = p.stride, p.dilation
            planes = [(i * dh, sh, j * dw, sw) for i in range(p.kernel[0]) for j in range(p.kernel[1])]
            where, halo_rows = [(n, 0) for n in range(len(every))], 0
        if in_place:
            planes = []

        parts = threads.usable_cores()
        count = max(len(planes), 1)
        row_bytes = line * count * size
        # A strip's window fits the cache. Where the weights are so many that short strips would read them too often,
        # the strip is as long as to be worth it, and holds some channels at a time.
        rows, at_a_time = max(1, min(oh, CACHE_BYTES // (row_bytes * inputs) - halo_rows)), inputs
        weight_bytes = inputs * len(every) * outputs * size
        if oh * line <= SMALL_IMAGE and row_bytes * inputs * (oh + halo_rows) <= MAX_WINDOW_BYTES:
            rows = oh  # cutting it would leave register tiles half empty
        if weight_bytes > MANY_WEIGHT_BYTES:
            rows = max(rows, min(oh, -(-WORTH_COLUMNS // line)))
        if not in_place and row_bytes * inputs * (rows + halo_rows) > MAX_WINDOW_BYTES:
            at_a_time = max(1, 2 * CACHE_BYTES // (row_bytes * (rows + halo_rows)))
        strips = -(-oh // rows)
        output_parts = 1
        if p.batch * p.groups * strips < 4 * parts:  # too few for an even share: more strips, or share the outputs
            if oh // (strips * parts) >= 4 and not (outputs >= 64 * parts and halo_rows * 4 > rows):
                strips = _round_up(strips, parts)
            elif outputs >= 2 * parts * tile_rows:
                output_parts = parts
            else:
                strips = min(oh, _round_up(strips, parts))
        rows = -(-oh // strips)
        plane = p.height * p.width if in_place else _round_up((rows + halo_rows) * line, lane)
        channel_step = p.height * p.width if in_place else count * plane
        offsets = np.array([n * plane + at for n, at in where], np.int64)
        table = (np.arange(inputs, dtype=np.int64)[:, None] * channel_step + offsets).reshape(-1) * size
        window = 0 if in_place else at_a_time * count * plane + tile_vectors * lane
        sums = tile_rows * tile_vectors * lane * gemm_kernels.LEVELS
        terms = at_a_time * len(every)
        tail = terms * tile_vectors * lane
        tail_table = np.arange(terms, dtype=np.int64) * (tile_vectors * lane * size)
        block = tile_vectors if window * size > 2 * CACHE_BYTES or weight_bytes <= CACHE_BYTES else 1 << 40
        if in_place and rows * line * inputs * size > 2 * CACHE_BYTES:
            block = tile_vectors
        scratch = _round_up(window + sums + tail, 16)
        geometry = (
            p.batch, p.groups, inputs, outputs, tile_rows, tile_vectors, strips, output_parts, oh, ow, halo_rows, line,
            plane, p.stride[0], p.padding[2], p.width, len(every), int(table[: terms].max()), at_a_time,
            CHUNK[p.accuracy], block, int(in_place), scratch, window, sums,
        )  # fmt: skip
        every_table = (
            _read_only(table), _read_only(tail_table), _read_only(np.array(planes, np.int64).reshape(-1, 4)),
            *_sources(p),
        )  # fmt: skip
        tasks = p.batch * p.groups * strips * output_parts
        return cls(
            p, "gemm", parts * scratch * size, tables=every_table, geometry=geometry, parts=min(parts, max(tasks, 1)),
            scratch=scratch, in_place=in_place,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        p = self.problem
        return ("gemm", "jit", p.weight_shape, p.compute_dtype)

    @property
    def note(self) -> str:
        """For `explain`."""
        return "compiled, in place" if self.in_place else f"compiled, {self.geometry[6]} strips"

    def seconds(self, costs: JitCosts) -> float:
        """As in the base."""
        (batch, groups, inputs, outputs, tile_rows, _, strips, output_parts, oh, ow, halo_rows, line, _, stride, _, _,
         n_taps, *_) = self.geometry  # fmt: skip
        planes, lane = self.tables[2], lanes(self.problem.compute_dtype)
        rows = -(-oh // strips)
        vectors = -(-((rows - 1) * line + ow) // lane)
        tiles = -(-outputs // tile_rows)
        images = batch * groups * strips
        product = costs.single if tile_rows == 1 else costs.product
        filled_rows = images * output_parts * inputs * len(planes) * (rows + halo_rows)
        element = costs.filled if self.problem.stride[1] == 1 and self.problem.layout == "NCHW" else costs.strided
        runs = batch * groups * outputs * (oh if line != ow else strips) + images * outputs * vectors / 3
        work = (
            images * vectors * tiles * tile_rows * inputs * n_taps * product
            + filled_rows * (costs.row + line * element)
            + runs * costs.line
            + batch * groups * outputs * oh * ow / lane * costs.stored
            + images * output_parts * costs.task
        )
        return costs.launch + work * _per_thread(threads.get_num_threads(), images * output_parts)

    def pack(self, weight: Any, /) -> PackedWeight:
        data = pack_gemm(weight, self.problem)
        return PackedWeight(self.stamp, data, data.nbytes)

    def fill(self, x: Array, x_steps: Ints, y: Array, y_steps: Ints, data: Any, bias: Array) -> None:
        """As in the base."""
        p, g, tables = self.problem, self.geometry, self.tables
        if self.in_place and x_steps[1:] != (p.height * p.width, p.width, 1):
            x, x_steps = _contiguous(x, x_steps, p)
        scratch = threads.scratch(self.parts * self.scratch, y.dtype)
        threads.launch(
            gemm_kernels.gemm_alone, gemm_kernels.gemm_team, self.parts,
            x, x_steps, y, y_steps, data, bias, *tables, g, scratch,
        )  # fmt: skip


def _per_thread(parts: int, tasks: int) -> float:
    """The share of the work that the busiest thread has."""
    return -(-tasks // parts) / tasks if tasks else 1.0


def _shifting_pays(p: Problem, phases: int, halo_cols: int) -> bool:
    """Whether computing the halo's columns costs less than a copy of the window for every tap."""
    ow, n_taps = p.out_size[1], p.kernel[0] * p.kernel[1]
    outputs = p.out_channels // p.groups
    wasted = halo_cols / ow * n_taps * outputs / 16  # vector operations per input element
    copied = (n_taps - phases) * 0.4
    return n_taps == 1 or wasted < copied


def pack_gemm(weight: Array, p: Problem) -> Array:
    """(G, tiles, I/G x kh x kw, outputs of a tile): what a register tile reads, in its order."""
    g, o, i, kh, kw = p.weight_shape
    tile = gemm_kernels.tile_shape(o)[0]
    tiles = -(-o // tile)
    padded = np.zeros((g, tiles * tile, i * kh * kw), p.compute_dtype)
    padded[:, :o] = weight.reshape(g, o, i * kh * kw)
    packed = np.ascontiguousarray(padded.reshape(g, tiles, tile, i * kh * kw).transpose(0, 1, 3, 2))
    return _read_only(packed.reshape(-1))


# --- winograd


@dataclass(frozen=True)
class WinogradPlan(JitPlan):
    """`winograd`: see kernels in `winograd.py`."""

    tile: winograd.Tile = None  # type: ignore[assignment]
    sizes: Ints = ()
    together: bool = False
    lines: int = 0
    block_lines: int = 0
    exact: GemmPlan = None  # type: ignore[assignment]

    @classmethod
    def make(cls, p: Problem) -> WinogradPlan:
        """Choose the tile and the blocks."""
        exact = GemmPlan.make(p)
        plans = [cls.with_tile(p, tile, exact) for tile in winograd.tiles_for(p)]
        return min(plans, key=lambda plan: plan.seconds(JIT))

    @classmethod
    def with_tile(cls, p: Problem, tile: winograd.Tile, exact: GemmPlan) -> WinogradPlan:
        """Bind a tile to a problem."""
        oh, ow = p.out_size
        (mh, mw), (nh, nw) = tile.outputs, tile.size
        size, lane = p.itemsize, lanes(p.compute_dtype)
        parts = threads.usable_cores()
        down, row_tiles = -(-oh // mh), -(-ow // mw)
        c_pad, o_pad = _round_up(p.in_channels, lane), _round_up(p.out_channels, lane)
        tile_bytes = nh * nw * (c_pad + o_pad) * size
        together = joined(p, tile)
        # a line's tiles fill register tiles, and no more of them than the cache holds
        room = max((JOINED_BYTES if together else BLOCK_BYTES) // tile_bytes, 2 * ROWS)
        segments = -(-row_tiles // room)
        across = -(-row_tiles // segments)
        lines = p.batch * down * segments
        block_lines = max(1, min(lines, room // across))
        if not together:
            block_lines = max(1, min(-(-lines // parts), block_lines))
            block_lines = -(-lines // _round_up(-(-lines // block_lines), parts)) if lines >= parts else 1
        padded = _round_up(block_lines * across, ROWS)
        v, m = nh * nw * padded * c_pad, nh * nw * padded * o_pad
        stage = (max(nh * ((across - 1) * mw + nw), mh * across * mw) + lane) * lane
        own = stage + max(lane, nh * nw) * lane + (0 if together else v + m)
        scratch = parts * own + (v + m if together else 0)
        number = winograd.TILES.index(tile)
        geometry = (
            p.in_channels, c_pad, p.out_channels, o_pad, down, row_tiles, segments, across, mh, mw, nh, nw, oh, ow,
            p.padding[2], p.width, WINOGRAD_CHUNK, number,
        )  # fmt: skip
        return cls(
            p, "winograd", scratch * size, tile=tile, tables=_sources(p), geometry=geometry, sizes=(own, v, m, stage),
            together=together, lines=lines, block_lines=block_lines, parts=parts, scratch=scratch,
            exact=exact,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        p = self.problem
        return ("winograd", "jit", p.weight_shape, p.compute_dtype, self.tile)

    @property
    def note(self) -> str:
        """For `explain`."""
        return f"compiled, {winograd.note(self.tile)}"

    def seconds(self, costs: JitCosts) -> float:
        """As in the base."""
        p = self.problem
        channels, c_pad, outputs, o_pad, _, _, _, across, mh, mw, nh, nw, oh, ow, *_ = self.geometry
        lane = lanes(p.compute_dtype)
        tiles = self.lines * across
        blocks = -(-self.lines // self.block_lines)
        padded = blocks * _round_up(-(-self.lines // blocks) * across, ROWS)
        work = (
            nh * nw * padded * channels * o_pad / lane * costs.product
            + nh * nw * tiles * (c_pad + o_pad) / lane * costs.transform
            + self.lines * c_pad / lane * nh * ((across - 1) * mw + nw) * costs.stage
            + p.batch * outputs * oh * -(-ow // lane) * (costs.line + costs.stored)
            + blocks * costs.task
            + blocks * nh * nw * channels * o_pad * p.itemsize * costs.weight
        )
        share = 1 / self.parts if self.together else _per_thread(self.parts, blocks)
        return costs.launch * (1 + 0.3 * self.together * blocks) + work * share

    def pack(self, weight: Any, /) -> PackedWeight:
        p = self.problem
        lane = lanes(p.compute_dtype)
        exact = self.exact.pack(weight)
        wide = np.asarray(weight, np.float64).reshape(p.out_channels, p.in_channels, *p.kernel)
        with np.errstate(all="ignore"):
            products = winograd.transformed(wide, self.tile, np, np.float64).transpose(0, 2, 1)
            padded = np.zeros((*products.shape[:2], _round_up(p.out_channels, lane)), p.compute_dtype)
            padded[:, :, : p.out_channels] = products
        # panels as wide as a register tile, each with all its channels
        vectors = padded.shape[2] // lane
        panels = -(-vectors // MAX_VECTORS)
        edges = [i * vectors // panels * lane for i in range(panels + 1)]
        parts = [padded[:, :, a:b].reshape(len(padded), -1) for a, b in pairwise(edges)]
        data = _read_only(np.ascontiguousarray(np.concatenate(parts, axis=1)).reshape(-1))
        return PackedWeight(self.stamp, (data, exact.data), data.nbytes + exact.nbytes)

    def fill(self, x: Array, x_steps: Ints, y: Array, y_steps: Ints, data: Any, bias: Array) -> None:
        """As in the base."""
        marks = np.zeros(self.parts * lanes(y.dtype.name), y.dtype)
        threads.launch(
            winograd_kernels.winograd_alone, winograd_kernels.winograd_team, self.parts,
            self.together, self.lines, self.block_lines, x, x_steps, y, y_steps, data[0], bias, *self.tables,
            self.geometry, threads.scratch(self.scratch, y.dtype), self.sizes, marks,
        )  # fmt: skip
        # an input that is not finite reaches every output of its tile, and an overflow in the transforms some
        if marks.any():
            self.exact.fill(x, x_steps, y, y_steps, data[1], bias)


def joined(p: Problem, tile: winograd.Tile) -> bool:
    """Whether the threads do one step after the other together."""
    weight_bytes = tile.size[0] * tile.size[1] * p.in_channels * p.out_channels * p.itemsize
    return weight_bytes > JOINED_WEIGHT_BYTES


# --- direct


@dataclass(frozen=True)
class DirectPlan(JitPlan):
    """`direct`: see kernels in `direct.py`. Strides are left to the plain engine."""

    passes: Ints = ()  # the geometry for separable kernels
    copied: bool = False

    @classmethod
    def make(cls, p: Problem) -> DirectPlan | None:
        """Choose the patch and the strips."""
        if p.stride != (1, 1):
            return None
        # masks cost where the CPU has no masked loads
        copied = VECTOR_BYTES < 32 or p.layout != "NCHW" or (any(p.padding) and p.padding_mode != "zeros")
        geometry = _direct_geometry(p, copied)
        passes = _direct_geometry(p, True) if p.in_channels == p.groups and p.kernel[0] * p.kernel[1] > 1 else geometry
        if max(geometry[-4], passes[-4]) * p.itemsize > MAX_STRIP_BYTES:
            return None
        tasks = p.batch * p.out_channels * geometry[14] * geometry[15]
        parts, scratch = threads.usable_cores(), max(geometry[-4], passes[-4])
        return cls(
            p, "direct", parts * scratch * p.itemsize, tables=_sources(p), geometry=geometry, passes=passes,
            parts=min(parts, max(tasks, 1)), scratch=scratch, copied=copied,
        )  # fmt: skip

    @property
    def stamp(self) -> Hashable:
        p = self.problem
        return ("direct", "jit", p.weight_shape, p.compute_dtype, self.splits)

    @property
    def splits(self) -> bool:
        """Whether two passes over a separable kernel would pay."""
        (kh, kw), p = self.problem.kernel, self.problem
        return p.in_channels == p.groups and kh * kw >= 2 * (kh + kw)

    def seconds(self, costs: JitCosts) -> float:
        """As in the base."""
        p = self.problem
        (batch, inputs, outputs, group_outputs, kh, kw, dh, dw, top, _, height, _, oh, ow, strips, col_strips, copied,
         rows, vectors, *_, window_cols) = self.geometry  # fmt: skip
        lane = lanes(p.compute_dtype)
        wide = -(-ow // (vectors * lane))
        patches = batch * outputs * (-(-oh // rows) + strips - 1) * (wide + col_strips - 1)
        # kernel rows that meet the image, on the average
        reached = (min(oh, height + top - i * dh) - max(0, top - i * dh) for i in range(kh))
        met = kh if copied else sum(max(rows_met, 0) for rows_met in reached) / oh
        filled_rows = copied * batch * inputs * (outputs // group_outputs) * (oh + strips * (kh - 1) * dh) * col_strips
        element = costs.filled if p.layout == "NCHW" else costs.strided
        work = (
            patches * (costs.patch + rows * vectors * inputs * met * kw * costs.tap)
            + filled_rows * (costs.row + window_cols * element)
            + batch * outputs * oh * wide * costs.line
            + batch * outputs * oh * ow / lane * costs.stored
        )
        return costs.launch + work * _per_thread(self.parts, batch * outputs * strips * col_strips)

    def pack(self, weight: Any, /) -> PackedWeight:
        g, o, _, kh, kw = self.problem.weight_shape
        packed = np.array(weight, self.problem.compute_dtype, order="C")
        if self.splits and (found := separable.factors(packed.reshape(g * o, kh, kw), packed.dtype.name)) is not None:
            packed = np.concatenate([factor.reshape(-1) for factor in found])
        data = _read_only(packed.reshape(-1))
        return PackedWeight(self.stamp, data, data.nbytes, separable=data.size != weight.size)

    def fill(self, x: Array, x_steps: Ints, y: Array, y_steps: Ints, data: Any, bias: Array) -> None:
        """As in the base."""
        p = self.problem
        two = data.size != p.out_channels * (p.in_channels // p.groups) * p.kernel[0] * p.kernel[1]
        if not self.copied and not two and x_steps[3] != 1:
            x, x_steps = _contiguous(x, x_steps, p)
        threads.launch(
            direct_kernels.direct_alone, direct_kernels.direct_team, self.parts, x, x_steps, y, y_steps, data, bias,
            *self.tables, self.passes if two else self.geometry, two,
            threads.scratch(self.parts * self.scratch, y.dtype),
        )  # fmt: skip


def _direct_geometry(p: Problem, copied: bool) -> Ints:
    oh, ow = p.out_size
    (kh, kw), (dh, dw) = p.kernel, p.dilation
    inputs, outputs = p.in_channels // p.groups, p.out_channels // p.groups
    size, lane = p.itemsize, lanes(p.compute_dtype)
    top, _, left, _ = p.padding
    parts = threads.usable_cores()
    rows, vectors = next((s for s in direct_kernels.SHAPES if s[1] * lane >= ow), direct_kernels.SHAPES[-1])
    reach_rows, reach_cols = (kh - 1) * dh, (kw - 1) * dw
    # wide windows are cut, so that a strip is high enough to be worth its halo
    col_strips = 1
    if copied and (reach_rows + 4 * rows) * (ow + reach_cols) * inputs * size > CACHE_BYTES:
        col_strips = max(1, ow // max(256, 4 * reach_cols))
    window_cols = -(-ow // col_strips) + reach_cols
    row_bytes = window_cols * inputs * size
    strip = max(rows, min(oh, CACHE_BYTES // row_bytes - reach_rows) // rows * rows)
    strips = -(-oh // strip)
    if p.batch * p.out_channels * strips * col_strips < 4 * parts:
        strips = min(-(-oh // rows), _round_up(max(strips, 4 * parts // max(p.batch * p.out_channels, 1)), parts))
    window_rows = -(-oh // strips) + reach_rows
    # the last patch of a strip may have rows too many, and the last of a row columns
    room = (inputs * window_rows + rows) * window_cols + vectors * lane if copied else 0
    sums = rows * vectors * lane * gemm_kernels.LEVELS + vectors * lane  # and a row of zeros
    scratch = _round_up(2 * room + sums, 16)
    return (
        p.batch, inputs, p.out_channels, outputs, kh, kw, dh, dw, top, left, p.height, p.width, oh, ow, strips,
        col_strips, int(copied), rows, vectors, CHUNK[p.accuracy], scratch, room, window_rows, window_cols,
    )  # fmt: skip
