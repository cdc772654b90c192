"""What depends on nothing but the sizes of the inputs: it is found, and computed once for each of them."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import portconv.onnx  # noqa: E402
from portconv.graph import running  # noqa: E402
from portconv.graph.model import Graph, Node, Value  # noqa: E402
from portconv.graph.sizes import in_order, of_sizes  # noqa: E402

node = helper.make_node
# the shape of the image decides where it is cut, its numbers how often it is repeated
NODES = [
    node("Relu", ["x"], ["r"]), node("Shape", ["r"], ["s"]), node("Gather", ["s", "two"], ["h"]),
    node("Div", ["h", "two"], ["half"]), node("Concat", ["half", "half"], ["ends"], axis=0),
    node("Slice", ["r", "zeros", "ends", "axes"], ["c"]), node("Add", ["half", "two"], ["more"]),
    node("Cast", ["more"], ["number"], to=TensorProto.FLOAT), node("Add", ["c", "number"], ["d"]),
    node("ReduceMax", ["x"], ["most"], keepdims=0), node("Cast", ["most"], ["n"], to=TensorProto.INT64),
    node("Reshape", ["n", "one"], ["often"]), node("Concat", ["ones", "often"], ["repeats"], axis=0),
    node("Tile", ["d", "repeats"], ["y"]), node("Shape", ["y"], ["data"]), node("Add", ["data", "half"], ["z"]),
]  # fmt: skip
CONSTANTS = {
    "two": np.array([2]), "zeros": np.array([0, 0]), "axes": np.array([2, 3]), "one": np.array([1]),
    "ones": np.array([1, 1, 1]),
}  # fmt: skip
OUTPUTS = {"y": TensorProto.FLOAT, "more": TensorProto.INT64, "z": TensorProto.INT64}


@pytest.fixture
def file(tmp_path):
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])]
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in OUTPUTS.items()]
    constants = [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()]
    graph = helper.make_graph(NODES, "net", infos, outputs, constants)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def image(height, width, most):
    x = np.random.default_rng(height).random((1, 3, height, width), np.float32)
    x[0, 0, 0, 0] = most
    return x


def test_what_depends_on_sizes_alone(file):
    graph = portconv.onnx.load(file)._run.graph
    assert of_sizes(graph) == {"s", "h", "half", "ends", "more", "number"}


def test_it_is_computed_as_soon_as_it_can_be():
    nodes = (
        Node("Relu", ("x",), ("a",)), Node("Abs", ("a",), ("b",)), Node("Shape", ("a",), ("s",)),
        Node("Shape", ("x",), ("t",)), Node("Add", ("s", "t"), ("u",)), Node("Reshape", ("b", "u"), ("y",)),
    )  # fmt: skip
    value = Value("float32", (None,))
    graph = Graph({"x": value}, {"y": value}, {}, nodes)
    found = in_order(graph, of_sizes(graph))
    assert [node.outputs[0] for node in found] == ["t", "a", "s", "u", "b", "y"]


def test_values_of_sizes_are_those_of_each_image(file):
    network, evaluator = portconv.onnx.load(file), ReferenceEvaluator(str(file))
    for height, width, most in ((6, 8, 2), (6, 8, 3), (8, 9, 3), (6, 8, 2), (8, 9, 1)):
        x = image(height, width, most)
        for y, expected in zip(network(x), evaluator.run(None, {"x": x}), strict=True):
            np.testing.assert_array_equal(y, expected)


def test_what_is_remembered_is_nobody_elses(file):
    network, x = portconv.onnx.load(file), image(6, 8, 2)
    expected = [y.copy() for y in network(x)]
    for y in network(x):
        y[...] = 0
    for y, before in zip(network(x), expected, strict=True):
        np.testing.assert_array_equal(y, before)


def test_it_is_computed_once_for_each_size(file, monkeypatch):
    network, ran = portconv.onnx.load(file), []
    call = running._Step.__call__
    monkeypatch.setattr(running._Step, "__call__", lambda step, *given: ran.append(step.node) or call(step, *given))
    counts = []
    for height in (6, 6, 8, 8, 6):
        before = len(ran)
        network(image(height, 8, 2))
        counts.append(len(ran) - before)
    assert counts == [16, 10, 16, 10, 10]


@pytest.mark.parametrize("limit", ["MAX_SIZES", "MOST_SIZED"])
def test_memory_is_bounded(file, monkeypatch, limit):
    monkeypatch.setattr(running, limit, 1)
    network = portconv.onnx.load(file)
    for height in (4, 6, 8):
        network(image(height, 8, 2))
    assert len(network._run._known) == (1 if limit == "MAX_SIZES" else 0)
