"""What follows a convolution becomes part of it, where that computes the same, and nowhere else."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import portconv.onnx  # noqa: E402

node = helper.make_node


def real(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "w": real(4, 4, 3, 3), "b": real(4), "s": real(4), "t": real(4, seed=1), "m": real(4, seed=2),
    "v": np.abs(real(4, seed=3)), "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6),
    "squeeze": real(2, 4, 1, 1), "excite": real(4, 2, 1, 1), "two": real(2), "one": real(1, 2, 1, 1),
    "large": real(2, 4, 3, 3), "matrix": real(5, 7), "shift": real(7), "one number": real(1), "rows": real(5, 7),
    "square": real(5, 5),
    "channels": real(4, 1, 1), "columns": real(5), "image": real(1, 4, 5, 5), "row": real(1, 4, 1, 5),
}  # fmt: skip
CONV = node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1])
NORM = node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"])
POOL = node("GlobalAveragePool", ["x"], ["p"])
SQUEEZE = [POOL, node("Conv", ["p", "squeeze", "two"], ["h"]), node("Relu", ["h"], ["r"])]
EXCITE = [*SQUEEZE, node("Conv", ["r", "excite"], ["e"]), node("Sigmoid", ["e"], ["g"])]
GATED = node("Mul", ["x", "g"], ["y"])
SWISH = [node("Add", ["c", "three"], ["a"]), node("Clip", ["a", "zero", "six"], ["k"])]
CASES = {
    "normalization and relu": ([CONV, NORM, node("Relu", ["n"], ["y"])], ["Conv"]),
    "a transposed convolution": (
        [node("ConvTranspose", ["x", "w", "b"], ["c"]), NORM, node("Mul", ["n", "channels"], ["y"])], ["ConvTranspose"],
    ),
    "factors and terms": (
        [CONV, node("Mul", ["channels", "c"], ["d"]), node("Sub", ["d", "three"], ["e"]),
         node("Div", ["e", "six"], ["f"]), node("Add", ["f", "channels"], ["g"]), node("Sigmoid", ["g"], ["y"])],
        ["Conv"],
    ),
    "silu": ([CONV, node("Sigmoid", ["c"], ["g"]), node("Mul", ["g", "c"], ["y"])], ["Conv"]),
    "hard swish": (
        [CONV, *SWISH, node("Mul", ["c", "k"], ["p"]), node("Div", ["p", "six"], ["y"])], ["Conv"],
    ),
    "hard swish by a hard sigmoid": (
        [CONV, node("HardSigmoid", ["c"], ["g"], alpha=1 / 6), node("Mul", ["c", "g"], ["y"])], ["Conv"],
    ),
    "another hard sigmoid": (
        [CONV, node("HardSigmoid", ["c"], ["g"]), node("Mul", ["c", "g"], ["y"])], ["Conv", "HardSigmoid", "Mul"],
    ),
    "a gate": (
        [CONV, node("HardSigmoid", ["c"], ["g"], alpha=0.3, beta=0.4), node("Mul", ["x", "g"], ["y"])], ["Conv", "Mul"],
    ),
    "relu6": ([CONV, node("Clip", ["c", "zero", "six"], ["y"])], ["Conv"]),
    "another clip": ([CONV, node("Clip", ["c", "zero", "three"], ["y"])], ["Conv", "Clip"]),
    "leaky relu": ([CONV, node("LeakyRelu", ["c"], ["y"], alpha=0.2)], ["Conv"]),
    "a residual": ([CONV, node("Add", ["x", "c"], ["a"]), node("Relu", ["a"], ["y"])], ["Conv"]),
    "a residual that is broadcast": (
        [CONV, node("GlobalAveragePool", ["x"], ["z"]), node("Add", ["c", "z"], ["a"]), node("Relu", ["a"], ["y"])],
        ["GlobalAveragePool", "Conv"],
    ),
    "a residual that is larger": (
        [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["z"]),
         node("Conv", ["z", "w"], ["d"], pads=[1, 1, 1, 1]), node("Add", ["d", "x"], ["a"]),
         node("Relu", ["a"], ["y"])],
        ["Conv", "GlobalAveragePool", "Conv"],
    ),
    "two residuals": (
        [CONV, node("Add", ["x", "c"], ["a"]), node("Add", ["a", "x"], ["y"])], ["Conv", "Add"],
    ),
    "what is read twice stays": (
        [CONV, node("Relu", ["c"], ["r"]), node("Add", ["c", "r"], ["y"])], ["Conv", "Relu", "Add"],
    ),
    "terms of columns": ([CONV, node("Add", ["c", "columns"], ["y"])], ["Conv", "Add"]),
    "terms of rows and channels": ([CONV, node("Add", ["c", "row"], ["y"])], ["Conv", "Add"]),
    "terms of pixels": ([CONV, node("Add", ["c", "image"], ["y"])], ["Conv", "Add"]),
    "a number that is divided": ([CONV, node("Div", ["three", "c"], ["y"])], ["Conv", "Div"]),
    "numbers after an activation": (
        [CONV, node("Relu", ["c"], ["r"]), node("Mul", ["r", "three"], ["d"]), node("Add", ["six", "d"], ["e"]),
         node("Add", ["e", "x"], ["y"])], ["Conv", "Add"],
    ),
    "squeeze and excitation": ([*EXCITE, GATED], ["Excitation"]),
    "squeeze and excitation, turned": (
        [CONV, node("GlobalAveragePool", ["c"], ["p"]), *SQUEEZE[1:], *EXCITE[3:], node("Mul", ["g", "c"], ["d"]),
         node("Add", ["c", "d"], ["y"])], ["Conv", "Excitation", "Add"],
    ),
    "gates of a hard sigmoid": (
        [*EXCITE[:-1], node("HardSigmoid", ["e"], ["g"], alpha=0.3, beta=0.4), GATED], ["Excitation"],
    ),
    "gates that others read": (
        [*EXCITE, node("Mul", ["x", "g"], ["d"]), node("Add", ["d", "g"], ["y"])],
        ["GlobalAveragePool", "Conv", "Conv", "Mul", "Add"],
    ),
    "gates of another image": (
        [node("Relu", ["x"], ["q"]), *EXCITE, node("Mul", ["q", "g"], ["y"])],
        ["Relu", "GlobalAveragePool", "Conv", "Conv", "Mul"],
    ),
    "one gate": (
        [*SQUEEZE, node("Conv", ["r", "one"], ["g"]), GATED], ["GlobalAveragePool", "Conv", "Conv", "Mul"],
    ),
    "a kernel that is larger": (
        [POOL, node("Conv", ["p", "large"], ["h"], pads=[1, 1, 1, 1]), node("Conv", ["h", "excite"], ["g"]), GATED],
        ["GlobalAveragePool", "Conv", "Conv", "Mul"],
    ),
    "gates with a border": (
        [POOL, node("Conv", ["p", "squeeze"], ["h"]), node("Conv", ["h", "excite"], ["g"], pads=[2, 2, 2, 2]), GATED],
        ["GlobalAveragePool", "Conv", "Conv", "Mul"],
    ),
    "a product and its shift": (
        [node("MatMul", ["x", "matrix"], ["p"]), node("Add", ["shift", "p"], ["a"]),
         node("Add", ["a", "shift"], ["y"])],
        ["MatMul", "Add"],
    ),
    "a product that is read twice": (
        [node("MatMul", ["x", "matrix"], ["p"]), node("Add", ["p", "shift"], ["q"]), node("Mul", ["p", "q"], ["y"])],
        ["MatMul", "Add", "Mul"],
    ),
    "a product and one number": (
        [node("MatMul", ["x", "matrix"], ["p"]), node("Add", ["p", "one number"], ["y"])], ["MatMul", "Add"],
    ),
    "a product and its columns' rows": (
        [node("MatMul", ["x", "matrix"], ["p"]), node("Add", ["p", "rows"], ["y"])], ["MatMul", "Add"],
    ),
    "a shifted matrix": (
        [node("MatMul", ["square", "x"], ["p"]), node("Add", ["p", "columns"], ["y"])], ["MatMul", "Add"],
    ),
    "an activation comes first": (
        [CONV, node("Relu", ["c"], ["r"]), node("Mul", ["r", "channels"], ["y"])], ["Conv", "Mul"],
    ),
}  # fmt: skip


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("case", CASES)
def test_fusing(case, tmp_path):
    nodes, left = CASES[case]
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items() if k in used],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    network, x = portconv.onnx.load(path), real(1, 4, 5, 5)
    assert [n.operator for n in network._run.graph.nodes] == left
    expected = ReferenceEvaluator(str(path)).run(None, {"x": x})[0]
    for _ in range(2):
        y = network(x)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
