"""Winograd's minimal filtering: tiles of outputs by fewer multiplications, for small kernels at stride 1.

F(m, r) computes m outputs of an r-tap filter with m + r - 1 multiplications instead of m r:
`y = A^T [(G g) * (B^T d)]`. Two-dimensional tiles nest it along both axes. Summed over channels, each of the
(mh + kh - 1) (mw + kw - 1) products is a matrix product of its own.

The transforms multiply rounding errors: larger tiles save more and lose more. Offered are the tiles whose errors were
seen to keep the normwise bound on random, positive and near-constant data with margin; some need a number of channels,
over whose sum errors average out.

Sources: Winograd, "Arithmetic complexity of computations", SIAM 1980 (the construction from points of evaluation, after
Toom and Cook); Lavin, Gray, "Fast algorithms for convolutional neural networks", arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from ..core.backend import Candidate, EnginePlan, PackedWeight
from ..core.integers import Pair
from ..core.problem import Problem
from ..core.shapes import ranges
from . import gemm
from .accuracy import TILE_TERMS
from .costs import Costs
from .cropped import met_mask
from .engine import Engine
from .steps import Block, Steps

__all__ = [
    "ENGINE",
    "NAME",
    "TILES",
    "Tile",
    "WinogradPlan",
    "matrices",
    "transformed",
    "why_not",
    "without_unmet",
]

NAME = "winograd"

Matrix = tuple[tuple[Fraction, ...], ...]

# One point more stands at infinity. Of all choices for the fourth and fifth, -2 and 1/2 lose least: a fifth of what the
# usual 2 and -2 lose, which was measured with a single channel. Barabasz, Anderson, Soodhalter, Gregg, "Error analysis
# and improving the accuracy of Winograd convolution for deep neural networks", arXiv 1803.10986, found the like.
POINTS = tuple(Fraction(*p) for p in ((0, 1), (1, 1), (-1, 1), (-2, 1), (1, 2), (2, 1), (-1, 2)))


# Terms of a sum before it is added to others: on constant data the rounding errors of a sum add up, as in gemm.py, and
# the transforms multiply them.
MAX_WORKSPACE_BYTES = 48 << 20


class Tile(NamedTuple):
    """Outputs of a tile, the kernel it is for, and from how many input channels on its errors are small enough."""

    outputs: Pair
    kernel: Pair
    channels: int

    @property
    def size(self) -> Pair:
        """Inputs of a tile, and products."""
        return self.outputs[0] + self.kernel[0] - 1, self.outputs[1] + self.kernel[1] - 1


TILES = (
    Tile((4, 4), (3, 3), 4),
    Tile((2, 2), (3, 3), 1),
    Tile((2, 2), (5, 5), 4),
    Tile((1, 6), (1, 3), 4),
    Tile((6, 1), (3, 1), 4),
    Tile((1, 4), (1, 5), 4),
    Tile((4, 1), (5, 1), 4),
    Tile((1, 2), (1, 7), 4),
    Tile((2, 1), (7, 1), 4),
)


def _product(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of `x - root`, the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


@lru_cache(maxsize=64)
def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A^T (m x n), G (n x r), B^T (n x n) of F(m, r), with n = m + r - 1; exact."""
    n = m + r - 1
    if n == 1:
        one = ((Fraction(1),),)
        return one, one, one
    points = list(POINTS[: n - 1])
    others = [[q for q in points if q != p] for p in points]
    a_t = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    g, b_t = [], []
    for p, rest in zip(points, others, strict=True):
        scale = Fraction(1)
        for q in rest:
            scale *= p - q
        g.append([p**k / scale for k in range(r)])
        b_t.append([*_product(rest), Fraction(0)])
    g.append([Fraction(int(k == r - 1)) for k in range(r)])
    b_t.append(_product(points))
    as_tuples = [tuple(tuple(row) for row in matrix) for matrix in (a_t, g, b_t)]
    return as_tuples[0], as_tuples[1], as_tuples[2]


def why_not(p: Problem) -> str | None:
    """What keeps the engine from running a problem."""
    if p.accuracy == "elementwise":
        return "its error depends on the largest values of a tile; accuracy='elementwise' excludes that"
    if p.traced:
        return "while tracing it cannot see, and keep in its place, an input that is not finite"
    if p.stride != (1, 1) or p.dilation != (1, 1):
        return "it is for stride 1 and dilation 1"
    if p.groups != 1:
        return "it is for layers without groups"
    if not any(tile.kernel == p.kernel for tile in TILES):
        kernels = dict.fromkeys(f"{tile.kernel[0]}x{tile.kernel[1]}" for tile in TILES)
        return f"it has no tiles for a {p.kernel[0]}x{p.kernel[1]} kernel, only for {', '.join(kernels)}"
    tiles = [tile for tile in TILES if tile.kernel == p.kernel]
    if p.in_channels < min(tile.channels for tile in tiles):
        return f"with {p.in_channels} input channels its error would be too large"
    return None


def tiles_for(p: Problem) -> list[Tile]:
    """The tiles that keep the bound."""
    return [tile for tile in TILES if tile.kernel == p.kernel and p.in_channels >= tile.channels]


def transformed(weight: Any, tile: Tile, xp: Any, dtype: Any, **place: Any) -> Any:
    """`G g G^T` of a weight (O, I, kh, kw) as (products, O, I), by one matrix product in the weight's dtype.

    `place` says where the weight is, in the keywords of the namespace's creation functions.
    """
    o, i, kh, kw = weight.shape
    g = _kron(matrices(tile.outputs[0], kh)[1], matrices(tile.outputs[1], kw)[1])
    flat = xp.permute_dims(xp.reshape(weight, (o * i, kh * kw)), (1, 0))
    return xp.reshape(xp.matmul(xp.asarray(g, dtype=dtype, **place), flat), (len(g), o, i))


def without_unmet(weight: Any, p: Problem, steps: Steps) -> Any:
    """The weight with zeros in the place of taps that meet only padding: tiles are for whole kernels."""
    mask = met_mask(p)
    if mask is None:
        return weight
    return steps.xp.where(steps.xp.asarray(mask, **steps.device), weight, steps.xp.zeros_like(weight))


def _kron(a: Matrix, b: Matrix) -> list[list[float]]:
    """The Kronecker product: both axes' transform of a flattened tile in one matrix."""
    return [[float(x * y) for x in row_a for y in row_b] for row_a in a for row_b in b]


class Tiling(NamedTuple):
    """The tile, and how many rows of tiles of how many images are one block."""

    tile: Tile
    lines: int
    batch: int
    workspace_bytes: int
    tiles: int  # of the whole problem
    tasks: int


def _cut(p: Problem, tile: Tile, block_bytes: int) -> Tiling:
    oh, ow = p.out_size
    down, across = -(-oh // tile.outputs[0]), -(-ow // tile.outputs[1])
    products = tile.size[0] * tile.size[1]
    # inputs twice, since their transform is a copy, too; so is that of the outputs, into fewer
    line_bytes = across * p.itemsize * products * 2 * (p.in_channels + p.out_channels)
    lines = max(1, min(down, block_bytes // line_bytes))
    lines = -(-down // -(-down // lines))
    batch = max(1, min(p.batch, block_bytes // (line_bytes * lines))) if lines == down else 1
    tasks = -(-down // lines) * -(-max(p.batch, 1) // batch)
    return Tiling(tile, lines, batch, 2 * line_bytes * lines * batch, p.batch * down * across, tasks)


@lru_cache(maxsize=1024)
def tiling(p: Problem, costs: Costs, block_bytes: int) -> Tiling:
    """The tile that costs least."""
    tilings = (_cut(p, tile, block_bytes) for tile in tiles_for(p))
    return min(tilings, key=lambda t: (t.workspace_bytes > MAX_WORKSPACE_BYTES, _seconds(p, t, costs)))


def _seconds(p: Problem, t: Tiling, costs: Costs) -> float:
    products = t.tile.size[0] * t.tile.size[1]
    tile_outputs = t.tile.outputs[0] * t.tile.outputs[1]
    channels = p.in_channels + p.out_channels
    per_tile = 2.0 * products * p.in_channels * p.out_channels  # the products between the transforms
    per_tile += 2.0 * products * (products * p.in_channels + tile_outputs * p.out_channels)  # transforms
    weight = products * p.in_channels * p.out_channels * t.tasks  # read once for every block
    moved = t.tiles * products * channels * 2.0 + weight * 8.0
    if p.packed_once:  # in float64, and cast
        moved += products * p.in_channels * p.out_channels * 8.0
    return (
        t.tiles * per_tile * costs.gemm_flop
        + moved * costs.element
        + t.tasks * (costs.task + (products + 10) * costs.call + (p.in_channels + products) * 30 * costs.row)
    )


def candidate(p: Problem, steps: Steps, costs: Costs) -> Candidate:
    """The estimate, or why the problem is none for tiles."""
    reason = why_not(p)
    if reason is not None:
        return Candidate(NAME, why_not=reason)
    t = tiling(p, costs, steps.block_bytes)
    if t.workspace_bytes > MAX_WORKSPACE_BYTES:
        return Candidate(NAME, why_not=f"a row of its tiles would take {t.workspace_bytes >> 20} MiB")
    return Candidate(NAME, _seconds(p, t, costs), t.workspace_bytes, note=note(t.tile))


def note(tile: Tile) -> str:
    """`F(4x4, 3x3)`."""
    (mh, mw), (kh, kw) = tile.outputs, tile.kernel
    return f"F({mh}x{mw}, {kh}x{kw})"


def build(p: Problem, steps: Steps, costs: Costs) -> WinogradPlan:
    """Bind the engine to a problem."""
    t = tiling(p, costs, steps.block_bytes)
    return WinogradPlan(p, NAME, t.workspace_bytes, steps=steps, tiling=t)


class Data(NamedTuple):
    """A packed weight."""

    products: Any  # (products, O, I), or None where the transform loses digits of the weight: gemm does all the work
    forward: Any  # (products, products): the transform of a tile's inputs
    back: Any  # (outputs, products): the transform of the products
    exact: PackedWeight  # gemm's, for the blocks with values that are not finite


@dataclass(frozen=True, kw_only=True)
class WinogradPlan(EnginePlan):
    """See the module."""

    steps: Steps
    tiling: Tiling

    @cached_property  # every call compares it
    def stamp(self) -> Hashable:
        p = self.problem
        return (NAME, self.steps.place, p.weight_shape, p.compute_dtype, self.tiling.tile, met_mask(p))

    def pack(self, weight: Any, /) -> PackedWeight:
        steps, p, tile = self.steps, self.problem, self.tiling.tile
        weight = without_unmet(weight, p, steps)
        exact = gemm.pack(weight, p, steps)
        nbytes = exact.nbytes
        products = None
        if steps.transformable(weight, p.compute_dtype):
            wide = steps.pack_dtype or p.compute_dtype
            weight = steps.xp.reshape(steps.cast(weight, wide), (p.out_channels, p.in_channels, *p.kernel))
            products = transformed(weight, tile, steps.xp, steps.dtype(wide), **steps.device)
            products = steps.keep(steps.cast(products, p.compute_dtype))
            nbytes += exact.nbytes // (p.kernel[0] * p.kernel[1]) * tile.size[0] * tile.size[1]
        dtype, device = steps.dtype(p.compute_dtype), steps.device
        both = [_kron(*(matrices(m, r)[which] for m, r in zip(*tile[:2], strict=True))) for which in (2, 0)]
        forward, back = (steps.xp.asarray(matrix, dtype=dtype, **device) for matrix in both)
        return PackedWeight(self.stamp, Data(products, forward, back, exact), nbytes)

    def execute(
        self, x: Any, weight: PackedWeight, bias: Any = None, /, *, residual: Any = None, out: Any = None
    ) -> Any:
        if weight.stamp != self.stamp:
            raise self.packed_for_another(weight)
        p, steps, t = self.problem, self.steps, self.tiling
        x = steps.cbhw(x, p.layout)
        data: Data = weight.data
        oh, ow = p.out_size
        rows = t.lines * t.tile.outputs[0]
        everything = slice(0, p.out_channels)
        tasks = [
            Block(everything, batch, part, slice(0, ow))
            for batch in ranges(p.batch, t.batch)
            for part in ranges(oh, rows)
        ]

        def compute(block: Block) -> Iterator[tuple[Block, Any]]:
            value = None if data.products is None else self._tiles(x, data, block)
            # An input that is not finite reaches every output of the tile, as does an overflow in the transforms.
            if value is None or not steps.all_finite(value):
                yield from gemm.values(x, data.exact.data, block, p, steps)
            else:
                yield block, value[:, :, : block.rows.stop - block.rows.start, :ow]

        return steps.assemble(p, bias, tasks, compute, residual=residual, out=out, parallel=True, products=True)

    def _tiles(self, x: Any, data: Data, block: Block) -> Any:
        """The outputs of whole tiles, (O, B, rows, columns)."""
        p, steps, xp = self.problem, self.steps, self.steps.xp
        (mh, mw), (nh, nw) = self.tiling.tile.outputs, self.tiling.tile.size
        down, across = -(-(block.rows.stop - block.rows.start) // mh), -(-p.out_size[1] // mw)
        images = block.batch.stop - block.batch.start
        top, _, left, _ = p.padding
        rows = slice(block.rows.start - top, block.rows.start - top + (down - 1) * mh + nh)
        cols = slice(-left, -left + (across - 1) * mw + nw)
        window = steps.window(x, Block(slice(0, p.in_channels), block.batch, rows, cols), p)
        elements = [
            window[:, :, i : i + (down - 1) * mh + 1 : mh, j : j + (across - 1) * mw + 1 : mw]
            for i in range(nh)
            for j in range(nw)
        ]
        count = images * down * across
        stack = xp.reshape(steps.stack(elements, axis=0), (nh * nw, p.in_channels * count))
        tiles = steps.product("tiles", data.forward, stack)
        tiles = xp.reshape(tiles, (nh * nw, p.in_channels, count))
        channels = ranges(p.in_channels, -(-p.in_channels // -(-p.in_channels // TILE_TERMS["plain"])))
        pairs = ((data.products[:, :, some], tiles[:, some, :]) for some in channels)
        summed = steps.sum_of_products(pairs, "matmul")
        summed = xp.reshape(summed, (nh * nw, p.out_channels * count))
        outputs = steps.product("tiles", data.back, summed)
        outputs = xp.reshape(outputs, (mh, mw, p.out_channels, images, down, across))
        outputs = xp.permute_dims(outputs, (2, 3, 4, 0, 5, 1))
        return xp.reshape(outputs, (p.out_channels, images, down * mh, across * mw))


ENGINE = Engine(NAME, candidate, build)
