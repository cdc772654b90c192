"""Graphs: lazy, one task for each chunk of the result, and the values that NumPy's arrays give."""

from __future__ import annotations

from itertools import product

import dask
import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import PAD_MODES, numbers

da = pytest.importorskip("dask.array", reason="Dask is not installed")

ENGINES = ("auto", "gemm", "fft", "direct", "winograd")


def refuse(*_args, **_options):
    raise AssertionError("something is computed while the graph is made")


def chunked(rng, shape, most=12):
    """Random chunks of every axis, ragged ones and single pixels among them."""
    chunks = []
    for size in shape:
        sizes = []
        while size > sum(sizes):
            sizes.append(min(int(rng.integers(1, most + 1)), size - sum(sizes)))
        chunks.append(tuple(sizes) or (0,))
    return tuple(chunks)


def lazily(x, weight, bias=None, chunks=None, **options):
    """The graph of a convolution, made while nothing can be computed."""
    rng = np.random.default_rng(x.shape)
    with dask.config.set(scheduler=refuse):
        arrays = [da.from_array(x, chunks=chunks or chunked(rng, x.shape))]
        arrays += [da.from_array(a, chunks=chunked(rng, a.shape, 3)) for a in (weight, bias) if a is not None]
        y = portconv.conv2d(*arrays, **options)
    y.dask.validate()
    return y


def check(x, weight, bias=None, chunks=None, accuracy="normwise", **options):
    y = lazily(x, weight, bias, chunks, accuracy=accuracy, **options)
    arguments = {name: value for name, value in options.items() if name not in ("engine", "out_dtype")}
    found = y.compute()
    assert type(found) is np.ndarray and found.shape == y.shape and found.dtype == y.dtype == y._meta.dtype
    assert tuple(map(sum, y.chunks)) == found.shape
    reference = reference_conv2d(x, weight, bias, **arguments)
    computed = np.result_type(weight, *([x] if x.dtype.kind == "f" else []), *([] if bias is None else [bias]))
    assert_close(found, reference, accuracy=accuracy, computed=computed.name)


@pytest.mark.parametrize("mode", sorted(PAD_MODES))
@pytest.mark.parametrize("engine", ENGINES)
def test_any_chunks_give_the_same_values(mode, engine):
    rng = np.random.default_rng(list(f"{mode}{engine}".encode()))
    for _ in range(6 if engine == "winograd" else 12):
        plain = engine == "winograd"
        g, i, o = (1, 5, 3) if plain else (int(n) for n in rng.integers(1, 4, 3))
        kernel = (3, 3) if plain else tuple(rng.integers(1, 8, 2))
        stride, dilation = ((1, 1), (1, 1)) if plain else (rng.integers(1, 5, 2), rng.integers(1, 4, 2))
        sizes = [
            int(d) * (int(k) - 1) + 1 + int(n) for d, k, n in zip(dilation, kernel, rng.integers(0, 30, 2), strict=True)
        ]
        most = [{"reflect": size - 1, "circular": size}.get(mode, 20) for size in sizes]
        padding = tuple(tuple(int(n) for n in rng.integers(0, min(m, 12) + 1, 2)) for m in most)
        shape = (int(rng.integers(1, 4)), g * i, *sizes)
        check(
            numbers(shape), numbers((g * o, i, *kernel)), numbers((g * o,)), engine=engine, stride=stride,
            dilation=dilation, padding=padding, groups=g, padding_mode=mode,
        )  # fmt: skip


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "bool"])
def test_layouts_and_dtypes(layout, dtype):
    x = (numbers((2, 3, 31, 26)) * 50).astype(dtype)
    x = x if layout == "NCHW" else x.transpose(0, 2, 3, 1)
    weight = numbers((4, 3, 5, 3), dtype=dtype if "float" in dtype else "float32")
    for mode in ("zeros", "reflect"):
        check(x, weight, padding="same", padding_mode=mode, layout=layout)
        check(x, weight, stride=2, layout=layout, accuracy="elementwise")
    y = lazily(x, weight, padding=2, layout=layout, out_dtype="uint8")
    assert y.dtype == "uint8" and y.compute().dtype == "uint8"


def test_integers_are_exact():
    """Rounding included, so that chunks cannot be seen in the result."""
    x, weight = np.random.default_rng(0).integers(0, 255, (1, 2, 37, 41)).astype("u1"), np.ones((2, 1, 5, 5), "f4")
    options = {"padding": "same", "padding_mode": "reflect", "groups": 2, "engine": "direct", "out_dtype": "uint16"}
    np.testing.assert_array_equal(lazily(x, weight, **options).compute(), portconv.conv2d(x, weight, **options))


def test_padding_wider_than_all_chunks():
    """Chunks of the result that read zeros alone are the bias; replicated ones are the edge."""
    x, weight, bias = numbers((1, 2, 5, 6)), numbers((3, 2, 3, 3)), numbers((3,))
    for mode in ("zeros", "replicate"):
        check(x, weight, bias, chunks=(1, 2, 1, 2), padding=(70, 33), padding_mode=mode)


def test_what_is_not_finite_stays_in_its_receptive_field():
    x, weight = numbers((1, 16, 40, 40)), numbers((2, 16, 3, 3))
    x[0, 1, 9, 20], x[0, 0, 30, 10] = np.nan, np.inf
    for engine in ENGINES:
        check(x, weight, chunks=(1, 16, 10, 10), padding=2, engine=engine)


def test_an_empty_batch_and_empty_chunks():
    weight = numbers((3, 2, 3, 3))
    assert lazily(numbers((0, 2, 9, 9)), weight, padding=1).compute().shape == (0, 3, 9, 9)
    x = da.from_array(numbers((3, 2, 9, 9)), chunks=((2, 0, 1), 2, 9, 9))
    y = portconv.conv2d(x, da.from_array(weight))
    assert y.chunks[0] == (2, 0, 1)
    np.testing.assert_array_equal(y.compute(), portconv.conv2d(x.compute(), weight))


def tasks_of(y):
    return len(y.dask.layers[y.name])


def test_one_task_for_each_chunk_whatever_the_kernel():
    x = da.zeros((3, 2, 256, 256), chunks=(1, 1, 64, 64), dtype="f4")
    counts = [
        tasks_of(portconv.conv2d(x, da.zeros((5, 2, k, k), dtype="f4"), padding=k // 2, engine=engine))
        for k, engine in product((1, 3, 15, 63), ("auto", "gemm", "direct", "fft"))
    ]
    assert set(counts) == {3 * 4 * 4 + 1}, "and one for the weight"
    y = portconv.conv2d(x.rechunk({1: 2}).persist(), da.zeros((5, 2, 9, 9), dtype="f4"))
    assert len(dict(y.dask)) == 2 * 48 + 2, "chunks of the image and of the result, the weight, and it once more"


def test_edges_grow_with_the_chunks_alone():
    """A chunk reads its neighbours; where chunks are smaller than the halo, a few times as many."""
    x = da.zeros((1, 1, 200, 200), chunks=(1, 1, 4, 4), dtype="f4")
    for k in (3, 9, 33, 99):
        y = portconv.conv2d(x, da.zeros((1, 1, k, k), dtype="f4"), padding=k // 2)
        reads = sum(len(task.dependencies) for task in y.dask.layers[y.name].values())
        assert reads <= 10 * 50 * 50, k


def test_a_chunk_reads_its_halo_and_no_more():
    """Computing a corner of the result computes the chunks of the image that it needs."""
    seen = []
    x = da.zeros((1, 1, 80, 80), chunks=(1, 1, 10, 10), dtype="f4")
    x = x.map_blocks(
        lambda b, block_info=None: seen.append(block_info[0]["chunk-location"]) or b, dtype="f4", meta=x._meta
    )
    y = portconv.conv2d(x, da.ones((1, 1, 5, 5), dtype="f4"), padding=2)
    y[:, :, 20:30, 40:50].compute(scheduler="synchronous")
    assert {place[2:] for place in seen} == set(product((1, 2, 3), (3, 4, 5))) and len(seen) == 9


def test_equal_calls_have_equal_names():
    x, weight = numbers((1, 2, 20, 20)), numbers((3, 2, 3, 3))
    names = [
        lazily(x, weight, padding=p, engine=e).name for p, e in ((1, "auto"), (1, "auto"), (2, "auto"), (1, "gemm"))
    ]
    assert names[0] == names[1] and len(set(names)) == 3


def test_a_plan_that_is_handed_down():
    """The engine named is asked of every chunk; without a name each chunk has its own, two passes among them."""
    shape, weight = (1, 1, 4096, 4096), (1, 1, 31, 31)
    named = portconv.plan_conv2d(shape, weight, padding=15, backend="dask", engine="gemm")
    free = portconv.plan_conv2d(shape, weight, padding=15, backend="dask")
    assert named.chunk_engine == "gemm" and free.chunk_engine == "auto"
    assert "each chunk is computed by numpy" in named.explain()
    assert "two passes" in free.explain()
    assert "cannot" not in free.explain().splitlines()[0]


def test_the_chunk_that_estimates_are_for():
    """No larger than Dask's, but large enough for kernel and padding."""
    for shape, weight, options, expected in (
        ((2, 1, 32768, 32768), (1, 1, 31, 31), {}, (1, 1, 4096, 8192)),
        ((5, 3, 500, 400), (4, 3, 3, 3), {}, (1, 3, 500, 400)),
        ((1, 2**13, 200, 90), (1, 2**13, 99, 1), {}, (1, 2**13, 100, 23)),
        ((1, 2**16, 40, 40), (1, 2**16, 3, 3), {"padding": 30, "padding_mode": "reflect"}, (1, 2**16, 40, 40)),
        ((1, 2**26, 1, 1), (1, 2**26, 1, 1), {}, (1, 2**26, 1, 1)),
    ):
        plan = portconv.plan_conv2d(shape, weight, backend="dask", **options)
        assert str(expected) in plan.explain().splitlines()[-3 if "two passes" in plan.explain() else -2]


def test_an_engine_that_cannot_run_is_refused_at_once():
    x = da.zeros((1, 2, 30, 30), chunks=(1, 2, 10, 10), dtype="f4")
    for engine, kernel, match in (
        ("winograd", 4, "winograd"),
        ("native", 3, "no convolution of its own"),
        ("x", 3, "'x'"),
    ):
        with dask.config.set(scheduler=refuse), pytest.raises(portconv.UnsupportedError, match=match):
            portconv.conv2d(x, da.zeros((2, 2, kernel, kernel), dtype="f4"), engine=engine)


def test_a_plan_takes_its_own_weights_alone():
    plan = portconv.plan_conv2d((1, 2, 9, 9), (3, 2, 3, 3), backend="dask")
    packed = portconv.plan_conv2d((1, 2, 9, 9), (3, 2, 5, 5), backend="dask").pack(da.zeros((3, 2, 5, 5), dtype="f4"))
    with pytest.raises(ValueError, match="`weight` was packed for"):
        plan.execute(da.zeros((1, 2, 9, 9), dtype="f4"), packed)


def test_memory_holds_a_few_chunks(run_python):
    """Of an image of 256 MiB and its result, a row of chunks and those at work."""
    grown = run_python("""
        import dask.array as da, numpy as np, portconv
        from portconv.processes.memory import peak_resident

        class Nowhere:
            def __setitem__(self, where, chunk):
                pass

        def convolve(size):
            x = da.random.default_rng(0).random((1, 1, size, size), chunks=(1, 1, 512, 512), dtype="f4")
            y = portconv.conv2d(x, da.full((1, 1, 15, 15), 1 / 225, dtype="f4"), padding="same", padding_mode="reflect")
            kind = dict(lock=False, return_stored=True, load_stored=False)
            da.store(y, Nowhere(), **kind, scheduler="threads", num_workers=2)
            return peak_resident()

        before = convolve(1024)
        print((convolve(8192) - before) / 2**20)
    """)
    assert float(grown) < 70
