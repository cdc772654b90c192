"""Files that are damaged or mean harm: one clear error, and nothing that is read or allocated."""

import tracemalloc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from portconv.onnx import ModelError, load  # noqa: E402


def network(nodes, constants=(), inputs=("x",), outputs=("y",), opset=17):
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "network", infos, results, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def adding(constant, **more):
    return network([helper.make_node("Add", ["x", "c"], ["y"])], [constant], **more)


def tensor(**fields):
    made = TensorProto(name="c", data_type=TensorProto.FLOAT)
    for name, value in fields.items():
        getattr(made, name).extend(value) if isinstance(value, list) else setattr(made, name, value)
    return made


def external(location, **more):
    made = tensor(dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        made.external_data.add(key=key, value=str(value))
    return made


def refused(tmp_path, proto, match):
    file = tmp_path / "folder" / "model.onnx"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=match):
            load(file)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_truncated_file(tmp_path):
    whole = adding(numpy_helper.from_array(np.ones(4, np.float32), "c")).SerializeToString()
    for end in (1, len(whole) // 2, len(whole) - 1):
        refused(tmp_path, whole[:end], "damaged|refuses|no network|set of operators|needs")


def test_what_is_no_onnx_file(tmp_path):
    refused(tmp_path, b"\x89PNG and so on" * 10, "no ONNX file")
    refused(
        tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "`git lfs pull` fetches it"
    )
    refused(tmp_path, b"", "is empty")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.onnx")


def test_what_is_no_path_is_told_how_to_become_a_file():
    with pytest.raises(TypeError, match=r"but got ModelProto\. Write it to a file: `onnx\.save\(model, path\)`"):
        load(network([helper.make_node("Relu", ["x"], ["y"])]))
    with pytest.raises(TypeError, match="but got bytes"):
        load(b"model.onnx")
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"but got Sequential\. `torch\.onnx\.export` writes a model to a file"):
        load(torch.nn.Sequential())


def test_inputs_in_a_dict_are_told_how_to_be_named(tmp_path):
    onnx.save(network([helper.make_node("Relu", ["x"], ["y"])]), tmp_path / "model.onnx")
    loaded, inputs = load(tmp_path / "model.onnx"), {"x": np.ones((1, 2, 4, 4), np.float32)}
    with pytest.raises(TypeError, match=r"but got dict\. Inputs by name are network\(\*\*inputs\)"):
        loaded(inputs)
    np.testing.assert_array_equal(loaded(**inputs), inputs["x"])


@pytest.mark.parametrize(
    "constant",
    [
        tensor(dims=[1 << 31], raw_data=b"1234"),
        tensor(dims=[1 << 20, 1 << 20, 1 << 20, 1 << 20], raw_data=b""),
        tensor(dims=[-4], raw_data=b"1234"),
        tensor(dims=[4], raw_data=b"1234"),
        tensor(dims=[4], float_data=[1.0, 2.0]),
        tensor(dims=[1 << 27], float_data=[1.0]),
    ],
)
def test_sizes_that_are_not_those_of_the_data(tmp_path, constant):
    refused(tmp_path, adding(constant), "constant 'c'|array of shape")


def test_a_shape_of_a_billion_elements(tmp_path):
    shape = numpy_helper.from_array(np.array([1 << 15, 1 << 15], np.int64), "s")
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    refused(tmp_path, network(nodes, [shape]), "ConstantOfShape.*at most")


def test_a_cycle_and_a_gap(tmp_path):
    cycle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    refused(tmp_path, network([*cycle, helper.make_node("Relu", ["b"], ["y"])]), "cycle")
    refused(tmp_path, network([helper.make_node("Relu", ["nothing"], ["y"])]), "'nothing'")
    refused(tmp_path, network([helper.make_node("Relu", ["x"], ["z"])]), "output 'y'")
    refused(tmp_path, network([helper.make_node("Relu", ["x"], ["y"]) for _ in range(2)]), "there already")


def test_operators_that_there_are_not(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("NonMaxSuppression", ["a", "a"], ["y"])]
    refused(tmp_path, network(nodes), "NonMaxSuppression")
    damaged = network([helper.make_node(name, ["x"], ["y"]) for name in ("Relx", "Rely")]).SerializeToString()
    refused(tmp_path, damaged.replace(b"Relx", b"Rel\xff"), "Rel")
    refused(tmp_path, network([helper.make_node("Relu", ["x"], ["y"], domain="com.x")]), r"com\.x\.Relu")
    refused(tmp_path, network([helper.make_node("Relu", ["x"], ["y"])], opset=3), "set of operators")


def test_attributes_that_make_no_sense(tmp_path):
    refused(tmp_path, network([helper.make_node("Relu", ["x"], ["y"], speed=3)]), "speed")
    refused(tmp_path, network([helper.make_node("Concat", ["x", "x"], ["y"])]), "axis")
    for attribute in (onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.GRAPH, onnx.AttributeProto.TENSOR):
        node = helper.make_node("Relu", ["x"], ["y"])
        node.attribute.add(name="kind", type=attribute)
        refused(tmp_path, network([node]), "kind|UNDEFINED")


def test_external_data(tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    numbers = np.arange(4, dtype=np.float32)
    for file in (folder / "below" / "data", tmp_path / "secret"):
        file.write_bytes(b"12345678" + numbers.tobytes())
    good = adding(external("below/data", offset=8, length=16))
    (folder / "good.onnx").write_bytes(good.SerializeToString())
    x = np.ones((1, 2, 4, 4), np.float32)
    assert np.array_equal(load(folder / "good.onnx")(x), x + numbers)

    (folder / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "below/../../secret", "link", ""):
        refused(tmp_path, adding(external(location, offset=8)), "outside the folder")
    refused(tmp_path, adding(external("nowhere")), "not there")
    for place in ({"offset": 16}, {"offset": -8}, {"length": 4}, {"length": 1 << 40}, {"offset": "a"}):
        refused(tmp_path, adding(external("below/data", **place)), "constant 'c'|no number")


def test_what_a_file_says_of_itself(tmp_path):
    proto = network([helper.make_node("Relu", ["x"], ["y"])])
    helper.set_model_props(proto, {"character": "a\nb\n", "author": ""})
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert load(tmp_path / "model.onnx").metadata == {"character": "a\nb\n", "author": ""}


def test_inputs_are_checked(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(network([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString())
    net = load(file)
    assert repr(net) == "Network(x float32 (1, 2, 4, 4) -> y float32, of any shape, 1 nodes)"
    x = np.ones((1, 2, 4, 4), np.float32)
    assert np.array_equal(net(x=x), x)
    with pytest.raises(ValueError, match=r"`x` must be float32 \(1, 2, 4, 4\).* Add a batch axis"):
        net(x[0])
    with pytest.raises(TypeError, match=r"float64\. Convert it: `astype\('float32'\)`"):
        net(x.astype(np.float64))
    for arrays, named in (((), {}), ((x, x), {}), ((x,), {"x": x}), ((), {"z": x})):
        with pytest.raises(TypeError, match="the network takes x"):
            net(*arrays, **named)
    with pytest.raises(TypeError, match=r"must be an array.*`numpy\.asarray`"):
        net([1.0])
    with pytest.raises(TypeError, match="`path`"):
        load(3)
