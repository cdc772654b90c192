"""Each operator of ONNX against the reference implementation of the package `onnx`."""

import threading
import tracemalloc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import portconv.onnx  # noqa: E402
from portconv.core.errors import ModelError  # noqa: E402
from portconv.graph import host, recurrent  # noqa: E402
from portconv.graph.running import SUPPORTED  # noqa: E402


def model(operator, x, others=(), opset=17, outputs=1, **attributes):
    """A file of one node: `x` are its inputs, `others` constants or None; the bytes of it."""
    names = [f"x{i}" for i in range(len(x))] + ["" if c is None else f"c{i}" for i, c in enumerate(others)]
    while names and not names[-1]:
        names.pop()
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, made, **attributes)
    infos = [
        helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for i, a in enumerate(x)
    ]
    constants = [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(others) if c is not None]
    results = [onnx.ValueInfoProto(name=name) for name in made]
    graph = helper.make_graph([node], "one", infos, results, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    bare = onnx.shape_inference.infer_shapes(proto)  # the types of the outputs
    del proto.graph.output[:]
    for name in made:
        found = [v for v in (*bare.graph.output, *bare.graph.value_info) if v.name == name]
        kind = found[0].type.tensor_type.elem_type or TensorProto.FLOAT
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return proto


def loaded(tmp_path, proto):
    file = tmp_path / "model.onnx"
    file.write_bytes(proto.SerializeToString())
    return portconv.onnx.load(file)


def run(tmp_path, proto, x):
    found = loaded(tmp_path, proto)(*x)
    return found if isinstance(found, tuple) else (found,)


def check(tmp_path, operator, x, others=(), opset=17, **more):
    proto = model(operator, x, others, opset, **more)
    expected = ReferenceEvaluator(proto).run(None, {f"x{i}": a for i, a in enumerate(x)})
    found = run(tmp_path, proto, x)
    assert len(found) == len(expected)
    for y, e in zip(found, expected, strict=True):
        assert y.shape == e.shape
        assert y.dtype == e.dtype
        np.testing.assert_allclose(y, e, rtol=2e-5, atol=2e-6)


def real(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


X = real(2, 3, 4, 5)
POSITIVE = np.abs(X) + np.float32(0.1)
IMAGE = real(1, 4, 7, 9)
K33 = {"kernel_shape": [3, 3]}
WEIGHT = real(4, 2, 3, 2, seed=1)

CASES = {
    **{name: ([X],) for name in (
        "Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Reciprocal", "Erf", "Sigmoid", "Tanh",
        "Relu", "HardSwish", "Softplus", "Softsign", "Identity", "HardSigmoid", "LeakyRelu", "Elu", "Dropout", "Shape",
        "Size", "Flatten", "Transpose", "Softmax", "LogSoftmax", "GlobalAveragePool", "GlobalMaxPool", "Squeeze",
    )},
    **{name: ([POSITIVE],) for name in ("Log", "Sqrt")},
    **{name: ([X, real(3, 1, 5, seed=2)],) for name in (
        "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Equal", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "PRelu",
    )},
    **{f"{name} of truths": ([X > 0, X > 1],) for name in ("And", "Or")},
    "Not": ([X > 0],),
    "Sigmoid of large": ([np.array([-80.0, -20, 0, 20, 80], np.float32)],),
    "Div of integers": ([ints(-7, 7, -7, 7), ints(2, 2, -2, -2)],),
    "Pow": ([POSITIVE], [np.float32(1.7)]),
    **{f"Pow {p}": ([POSITIVE], [np.array([p], np.float32)]) for p in (0.5, 1, 2, 3)},
    "Where": ([X > 0, X, POSITIVE],),
    "HardSigmoid with numbers": ([X], [], {"alpha": 0.5, "beta": 0.3}),
    "Gelu": ([X], [], {"opset": 20}),
    "Gelu by tanh": ([X], [], {"opset": 20, "approximate": "tanh"}),
    "Mish": ([X], [], {"opset": 18}),
    "Clip": ([X], [np.float32(-0.5), np.float32(0.7)]),
    "Clip above": ([X], [None, np.float32(0.7)]),
    "Clip by attributes": ([X], [], {"opset": 10, "min": -0.5, "max": 0.5}),
    "Cast": ([X * 5], [], {"to": TensorProto.INT32}),
    "Cast to truths": ([X.round()], [], {"to": TensorProto.BOOL}),
    # reductions
    **{f"{name} of axes": ([X], [], {"axes": [1, -1], "keepdims": 0}) for name in (
        "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    )},
    "ReduceSum": ([X], [ints(1, 2)]),
    "ReduceSum of all": ([X],),
    "ReduceSum of none": ([X], [], {"noop_with_empty_axes": 1}),
    "ArgMax": ([X], [], {"axis": 1}),
    "ArgMin": ([X], [], {"axis": -1, "keepdims": 0}),
    "Softmax along an axis": ([X], [], {"axis": 1}),
    # shapes
    "Shape in part": ([X], [], {"start": 1, "end": -1}),
    "Reshape": ([X], [ints(0, -1, 2)]),
    "Flatten at -1": ([X], [], {"axis": -1}),
    "Transpose by perm": ([X], [], {"perm": [0, 2, 3, 1]}),
    "Concat": ([X, POSITIVE], [], {"axis": -2}),
    "Slice": ([X], [ints(1, 0), ints(100, -1), ints(3, 1)]),
    "Slice by steps": ([X], [ints(-1, 0), ints(-100, 4), ints(3, 2), ints(-2, 3)]),
    "Slice of nothing": ([X], [ints(3), ints(2), ints(3)]),
    "Slice by attributes": ([X], [], {"opset": 9, "starts": [1, 0], "ends": [2, -1], "axes": [2, 3]}),
    "Gather": ([X], [np.array([[0, -1], [2, 1]])], {"axis": 1}),
    "Gather of one": ([X], [np.array(-2)], {"axis": 3}),
    "Split": ([X], [ints(1, 4)], {"axis": 3, "outputs": 2}),
    "Split in equal parts": ([X], [], {"axis": 2, "outputs": 2}),
    "Pad": ([X], [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(2)]),
    "Pad reflect": ([X], [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "Pad edge": ([X], [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    "Squeeze of axes": ([real(1, 3, 1)], [ints(-1)]),
    "Unsqueeze": ([X], [ints(0, -1)]),
    "Expand": ([real(3, 1)], [ints(2, 1, 4)]),
    "Tile": ([X], [ints(1, 2, 1, 3)]),
    "ConstantOfShape": ([ints(2, 3)], [], {"value": numpy_helper.from_array(np.array([7], np.int64))}),
    "Range": ([np.array(2), np.array(9), np.array(3)],),
    "DepthToSpace": ([real(1, 8, 2, 3)], [], {"blocksize": 2}),
    "DepthToSpace CRD": ([real(1, 8, 2, 3)], [], {"blocksize": 2, "mode": "CRD"}),
    "SpaceToDepth": ([real(1, 2, 4, 6)], [], {"blocksize": 2}),
    # images
    "Conv": ([IMAGE], [real(6, 4, 3, 3), real(6)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "Conv in groups": ([IMAGE], [real(6, 2, 3, 3)], {"group": 2, "dilations": [2, 1]}),
    "Conv of an input": ([IMAGE, real(3, 4, 2, 2)],),
    "Conv same": ([IMAGE], [real(6, 4, 2, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv same lower": ([IMAGE], [real(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    "Conv of a line": ([real(2, 4, 9)], [real(6, 4, 3), real(6)], {"pads": [1, 1]}),
    "ConvTranspose": ([IMAGE], [real(4, 3, 2, 2), real(3)], {"strides": [2, 2]}),
    "ConvTranspose with padding": (
        [IMAGE], [WEIGHT], {"strides": [3, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0]},
    ),
    "ConvTranspose with dilation": ([IMAGE], [real(4, 3, 2, 3)], {"dilations": [2, 1], "strides": [1, 2]}),
    "MaxPool": ([IMAGE], [], {**K33, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "MaxPool rounded up": ([IMAGE], [], {**K33, "strides": [2, 3], "ceil_mode": 1}),
    "MaxPool with dilation": ([IMAGE], [], {**K33, "dilations": [2, 2]}),
    "AveragePool": ([IMAGE], [], {**K33, "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "AveragePool with padding": ([IMAGE], [], {**K33, "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    "AveragePool rounded up": ([IMAGE], [], {**K33, "strides": [2, 3], "ceil_mode": 1}),
    "AveragePool of a line": ([real(2, 3, 9)], [], {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    "AveragePool with dilation": (
        [IMAGE], [], {**K33, "dilations": [2, 3], "pads": [2, 2, 1, 2], "strides": [2, 1], "opset": 19},
    ),
    "MaxPool of a volume": (
        [real(1, 2, 5, 6, 7)], [], {"kernel_shape": [3, 2, 3], "strides": [2, 2, 1], "pads": [1, 0, 1, 1, 1, 0]},
    ),
    "AveragePool of a volume": (
        [real(1, 2, 5, 6, 7)], [], {"kernel_shape": [3, 2, 3], "strides": [2, 2, 1], "pads": [1, 0, 1, 1, 1, 0]},
    ),
    "GlobalAveragePool of a line": ([real(2, 3, 9)],),
    "BatchNormalization": ([IMAGE], [real(4), real(4, seed=1), real(4, seed=2), np.abs(real(4, seed=3))]),
    "InstanceNormalization": ([IMAGE], [real(4), real(4, seed=1)]),
    "LayerNormalization": ([X], [real(4, 5), real(4, 5, seed=1)], {"axis": -2}),
    **{f"Resize {transform} {mode}": (
        [real(1, 4, 8, 10)], [None, np.array([1, 1, 1.5, 0.6], np.float32)],
        {"mode": mode, "coordinate_transformation_mode": transform},
    ) for mode in ("nearest", "linear", "cubic") for transform in (
        "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel",
    )},
    **{f"Resize {rounding}": (
        [IMAGE], [None, None, ints(1, 4, 15, 5)],
        {"nearest_mode": rounding, "coordinate_transformation_mode": "asymmetric"},
    ) for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")},
    "Resize twofold": ([IMAGE], [None, np.array([1, 1, 2, 2], np.float32)]),
    # products
    "MatMul": ([real(2, 1, 3, 4), real(3, 4, 5)],),
    "MatMul of a vector": ([real(4), real(4, 5)],),
    "Gemm": ([real(3, 4)], [real(5, 4), real(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "Gemm turned": ([real(4, 3)], [real(4, 5)], {"transA": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operator(case, tmp_path):
    x, *more = CASES[case]
    others, options = (*more, *([], {})[len(more) :])
    check(tmp_path, case.partition(" ")[0], x, others, **options)


def test_a_softmax_of_old_files_takes_all_axes_that_follow(tmp_path):
    y = run(tmp_path, model("Softmax", [X], opset=11, axis=2), [X])[0]
    np.testing.assert_allclose(y.sum((2, 3)), 1, rtol=1e-6)


def test_a_transposed_convolution_in_groups_is_one_of_each_group(tmp_path):
    weight = real(4, 2, 3, 2)
    y = run(tmp_path, model("ConvTranspose", [IMAGE], [weight], strides=[2, 1], group=2), [IMAGE])[0]
    parts = [
        run(tmp_path, model("ConvTranspose", [IMAGE[:, some]], [weight[some]], strides=[2, 1]), [IMAGE[:, some]])[0]
        for some in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(y, np.concatenate(parts, 1), rtol=1e-5, atol=1e-6)


def test_negative_padding_cuts(tmp_path):
    proto = model("Pad", [X], [ints(0, 0, -1, 0, 0, 0, 0, 2)])
    assert np.array_equal(run(tmp_path, proto, [X])[0], np.pad(X[:, :, 1:], ((0, 0), (0, 0), (0, 0), (0, 2))))


def test_upsample(tmp_path):
    x = real(1, 1, 2, 2)
    proto = model("Upsample", [x], [np.array([1, 1, 2, 3], np.float32)], opset=9)
    assert np.array_equal(run(tmp_path, proto, [x])[0], x.repeat(2, 2).repeat(3, 3))


def test_directions_of_large_matrices_go_in_turn(monkeypatch):
    threads = []

    def name(k):
        threads.append(threading.current_thread().name)
        return k

    monkeypatch.setattr(host, "cache_bytes", lambda level: 1000)
    assert host.side_by_side(name, [0, 1], nbytes=1001) == [0, 1]
    assert set(threads) == {threading.current_thread().name}
    monkeypatch.setattr(host, "cache_bytes", lambda level: 0)
    assert host.side_by_side(name, [0, 1], nbytes=1001) == [0, 1]


def test_lstm_without_weights(tmp_path):
    """A file may hold arrays of no elements."""
    nothing = model("LSTM", [real(3, 1, 2)], [real(1, 0, 2), real(1, 0, 1)], 14, hidden_size=1)
    with pytest.raises((ModelError, ValueError)):
        run(tmp_path, nothing, [real(3, 1, 2)])


@pytest.mark.parametrize("left_out", ["", "biases", "states"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_steps_of_an_lstm_are_compiled(jit, plain_tier, direction, left_out, tmp_path, monkeypatch):
    """For arrays in any order of memory, as the plain tier has it; what follows may write into the result."""
    steps, batch, size, hidden = 4, 3, 5, 21
    ways = 2 if direction == "bidirectional" else 1
    w, r, b = real(ways, 4 * hidden, size), real(ways, 4 * hidden, hidden), real(ways, 8 * hidden)
    h, c = real(ways, batch, hidden), real(ways, batch, hidden, seed=1)
    b, h, c = None if left_out == "biases" else b, *((None, None) if left_out == "states" else (h, c))
    options = {"hidden_size": hidden, "direction": direction, "layout": 1}
    if h is not None:
        h, c = (np.ascontiguousarray(state.swapaxes(0, 1)) for state in (h, c))
    x = real(batch, steps, size)
    proto = model("LSTM", [x], [w, r, b, None, h, c], 14, 3, **options)
    with plain_tier():
        expected = run(tmp_path, proto, [x])
    monkeypatch.setattr(recurrent, "lstm", None)
    network = loaded(tmp_path, proto)
    for image in (x, np.asfortranarray(x), x):
        for y, e in zip(network(image), expected, strict=True):
            assert y.shape == e.shape
            np.testing.assert_allclose(y, e, rtol=1e-5, atol=1e-6)
            y[...] = 0


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("which", ["w", "r", "b", "h"])
def test_an_lstm_whose_weights_do_not_fit(which, tmp_path):
    w, r, b, h = real(1, 8, 3), real(1, 8, 2), real(1, 16), real(1, 1, 2)
    damaged = {"w": w, "r": r, "b": b, "h": h}
    damaged[which] = damaged[which][..., :-1, :] if which in "wr" else damaged[which][..., :-1]
    others = [damaged["w"], damaged["r"], damaged["b"], None, damaged["h"]]
    with pytest.raises((ModelError, ValueError), match=r"shape|size|broadcast|mismatch"):
        run(tmp_path, model("LSTM", [real(4, 1, 3)], others, 14, hidden_size=2), [real(4, 1, 3)])


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction, peepholes, tmp_path):
    """Each direction beside the reference's forward one, which is all that it has."""
    steps, batch, size, hidden = 5, 2, 3, 4
    ways = 2 if direction == "bidirectional" else 1
    x = real(steps, batch, size)
    w, r, b = real(ways, 4 * hidden, size), real(ways, 4 * hidden, hidden), real(ways, 8 * hidden)
    h, c, p = real(ways, batch, hidden), real(ways, batch, hidden, seed=1), real(ways, 3 * hidden)
    others = [w, r, b, None, h, c, p if peepholes else None]
    found = run(tmp_path, model("LSTM", [x], others, 14, 3, hidden_size=hidden, direction=direction), [x])
    for way in range(ways):
        turned = direction == "reverse" or way == 1
        mine = [None if o is None else o[way : way + 1] for o in others]
        entered = x[::-1].copy() if turned else x
        one = model("LSTM", [entered], mine, 14, 2, hidden_size=hidden)
        y, last = ReferenceEvaluator(one).run(None, {"x0": entered})
        y = y.reshape(steps, 1, batch, hidden)
        np.testing.assert_allclose(found[0][:, way], (y[::-1] if turned else y)[:, 0], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(found[1][way], last[0], rtol=2e-5, atol=1e-6)


def test_every_operator_is_tested():
    tested = {case.partition(" ")[0] for case in CASES} | {"LSTM", "Upsample", "Constant"}
    assert tested == SUPPORTED


BAD = {
    "Reshape": ([X], [ints(7, 7)], {}),
    "Expand": ([real(1)], [ints(1 << 20, 1 << 20)], {}),
    "Tile": ([real(4)], [ints(1 << 40)], {}),
    "Pad": ([real(4)], [ints(0, 1 << 40)], {}),
    "Slice": ([X], [ints(0), ints(1), ints(9)], {}),
    "Gather": ([X], [ints(99)], {}),
    "Resize": ([IMAGE], [None, np.array([1, 1, 1e30, 1], np.float32)], {}),
    "Split": ([X], [ints(1, 1)], {"axis": 3, "outputs": 2}),
    "MaxPool": ([IMAGE], [], {"kernel_shape": [3, 3], "pads": [1 << 30, 0, 0, 0]}),
    "MaxPool of nothing": ([IMAGE], [], {"kernel_shape": [3, 0]}),
    "Range": ([np.array(value, np.float32) for value in (0, 1 << 30, 1)],),
    "Conv": ([IMAGE], [real(1, 4, 3, 3)], {"pads": [1 << 20] * 4}),
    "ConvTranspose": ([IMAGE], [WEIGHT], {"strides": [1 << 20, 1 << 20]}),
    "ConvTranspose with more rows": ([IMAGE], [WEIGHT], {"output_padding": [1 << 20, 1 << 20]}),
    "Add": ([real(1 << 15, 1), real(1, 1 << 15)],),
    "MatMul": ([real(1 << 15, 1), real(1, 1 << 15)],),
    "Gather of rows": ([real(1, 1 << 15)], [np.zeros(1 << 15, np.int64)]),
    "Concat": ([np.broadcast_to(np.float32(0), (1 << 14, 1 << 14))] * 2, [], {"axis": 0}),
    "LSTM": ([np.broadcast_to(np.float32(0), (1 << 14, 1 << 11, 1))], [real(1, 64, 1), real(1, 64, 16)]),
}


@pytest.mark.parametrize("case", BAD)
def test_sizes_that_do_not_fit_are_errors(case, tmp_path):
    operator = case.partition(" ")[0]
    x, *more = BAD[case]
    others, options = (*more, *([], {})[len(more) :])
    network = loaded(tmp_path, model_without_inference(operator, x, others, **options))
    tracemalloc.start()
    try:
        with pytest.raises((ModelError, ValueError), match=operator):
            network(*x)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def model_without_inference(operator, x, others, outputs=1, **attributes):
    names = [f"x{i}" for i in range(len(x))] + ["" if c is None else f"c{i}" for i, c in enumerate(others)]
    made = [f"y{i}" for i in range(outputs)]
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node(operator, names, made, **attributes)],
        "one",
        [helper.make_tensor_value_info(f"x{i}", kind(a.dtype), a.shape) for i, a in enumerate(x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in made],
        [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(others) if c is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
