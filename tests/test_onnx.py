"""`portconv.onnx`: one file on the arrays of every library, and published networks beside ONNX Runtime."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import portconv  # noqa: E402
import portconv.onnx  # noqa: E402
from portconv.graph import reference  # noqa: E402


def real(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def file_of(folder, nodes, constants, shape, name="net.onnx", sizes=None):
    """A file of a network `x -> y`; constants by name."""
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )  # fmt: skip
    path = folder / name
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def recogniser(folder):
    """What a recogniser of text is made of: convolutions, shapes that are computed, an LSTM, a product, a softmax."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"]),
        node("HardSwish", ["n"], ["h"]),
        node("GlobalAveragePool", ["h"], ["mean"]),
        node("Conv", ["mean", "e", "f"], ["hidden"]),
        node("Relu", ["hidden"], ["rectified"]),
        node("Conv", ["rectified", "g"], ["open"]),
        node("HardSigmoid", ["open"], ["gate"]),
        node("Mul", ["h", "gate"], ["excited"]),
        node("ConvTranspose", ["excited", "u"], ["r"], strides=[2, 2]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("AveragePool", ["p"], ["q"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Resize", ["q", "", "scales"], ["z"], mode="linear"),
        node("Shape", ["z"], ["size"]),
        node("Gather", ["size", "zero"], ["batch"]),
        node("Unsqueeze", ["batch", "first"], ["batch1"]),
        node("Concat", ["batch1", "rest"], ["shape"], axis=0),
        node("Reshape", ["z", "shape"], ["flat"]),
        node("Transpose", ["flat"], ["sequence"], perm=[2, 0, 1]),
        node("LSTM", ["sequence", "lw", "lr", "lb"], ["o", "last"], hidden_size=4),
        node("Squeeze", ["o", "one"], ["l"]),
        node("MatMul", ["l", "k"], ["scores"]),
        node("Slice", ["scores", "starts", "ends", "axes", "steps"], ["turned"]),
        node("Softmax", ["turned"], ["y"], axis=-1),
    ]
    constants = {
        "w": real(4, 3, 3, 3), "b": real(4), "s": real(4), "t": real(4, seed=1), "m": real(4, seed=2),
        "v": np.abs(real(4, seed=3)), "u": real(4, 2, 2, 2), "scales": np.array([1, 1, 1, 2], np.float32),
        "zero": np.array(0), "first": np.array([0]), "rest": np.array([12, -1]), "lw": real(1, 16, 12),
        "e": real(2, 4, 1, 1), "f": real(2), "g": real(4, 2, 1, 1),
        "lr": real(1, 16, 4), "lb": real(1, 32), "one": np.array([1]), "k": real(4, 7), "starts": np.array([-1]),
        "ends": np.array([-100]), "axes": np.array([0]), "steps": np.array([-1]),
    }  # fmt: skip
    return file_of(folder, nodes, constants, ["n", 3, 6, "w"])


@pytest.mark.parametrize("library", ["numpy", "mlx", "torch", "jax", "array_api_strict"])
def test_one_file_on_the_arrays_of_every_library(library, tmp_path):
    if library not in portconv.available_backends():
        pytest.skip("it is not installed")
    path = recogniser(tmp_path)
    network, backend, reference = portconv.onnx.load(path), portconv.get_backend(library), ReferenceEvaluator(str(path))
    for width in (5, 8, 5):  # twice with what has been kept
        image = real(2, 3, 6, width)
        x = backend.from_numpy(image)
        y = network(x)
        assert type(y) is type(x)
        np.testing.assert_allclose(backend.to_numpy(y), reference.run(None, {"x": image})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["mlx", "jax"])
def test_a_network_that_is_traced_is_one_of_the_library(library, tmp_path):
    """What has no values yet cannot be seen by NumPy, as it is else for these libraries on a CPU."""
    if library not in portconv.available_backends():
        pytest.skip("it is not installed")
    module = importlib.import_module({"mlx": "mlx.core", "jax": "jax"}[library])
    path = recogniser(tmp_path)
    network, backend, image = portconv.onnx.load(path), portconv.get_backend(library), real(2, 3, 6, 5)
    traced = (module.compile if library == "mlx" else module.jit)(network)
    for _ in range(2):
        y = backend.to_numpy(traced(backend.from_numpy(image)))
        np.testing.assert_allclose(y, network(image), rtol=1e-4, atol=1e-5)


def test_a_run_leaves_alone_what_others_hold(tmp_path):
    """Sums and products are written into the memory of an operand only where nobody else sees it."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"]), node("Add", ["a", "k"], ["b"]), node("Transpose", ["b"], ["t"]),
        node("Mul", ["b", "k"], ["d"]), node("Mul", ["x", "d"], ["e"]), node("GlobalAveragePool", ["e"], ["g"]),
        node("Add", ["e", "g"], ["f"]), node("Transpose", ["t"], ["u"]), node("Sub", ["f", "u"], ["y"]),
    ]  # fmt: skip
    path = file_of(tmp_path, nodes, {"w": real(4, 4, 1, 1), "k": real(1, 4, 1, 1)}, [1, 4, 5, 6])
    network, x = portconv.onnx.load(path), real(1, 4, 5, 6)
    before = x.copy()
    expected = ReferenceEvaluator(str(path)).run(None, {"x": x})[0]
    kept = network(x)
    for _ in range(2):
        np.testing.assert_allclose(network(x), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(kept, network(x))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_the_convolution_of_the_reference_evaluator(rank):
    image, sizes = real(2, 4, 7, 8, 5, 3)[(..., *(0,) * (4 - rank))], (3, 2, 2, 1)[:rank]
    weight = real(6, 2, *sizes)
    for options in (
        {"strides": [2, 1, 1, 1][:rank], "pads": [1, 0, 1, 0][:rank] + [0, 1, 0, 0][:rank]},
        {"dilations": [2, 1, 1, 1][:rank], "auto_pad": "SAME_LOWER"},
    ):
        for names in (["x", "w"], ["x", "w", "b"]):
            node = helper.make_node("Conv", names, ["y"], group=2, kernel_shape=sizes, **options)
            infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*names, "y")]
            model = helper.make_model(helper.make_graph([node], "one", infos[:-1], infos[-1:]))
            given = {"x": image, "w": weight, "b": real(6)}
            given = {name: given[name] for name in names}
            expected = ReferenceEvaluator(model).run(None, given)[0]
            y = ReferenceEvaluator(model, new_ops=[portconv.onnx.ReferenceConv]).run(None, given)[0]
            assert y.dtype == expected.dtype
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_the_transposed_convolution_of_the_reference_evaluator():
    x, weight, bias = real(2, 4, 5, 6), real(4, 6, 3, 2), real(6)
    for options in ({"output_padding": [1, 0], "pads": [1, 0, 0, 1]}, {"dilations": [2, 1], "auto_pad": "SAME_UPPER"}):
        node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2], **options)
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xwby"]
        model = helper.make_model(helper.make_graph([node], "one", infos[:-1], infos[-1:]))
        given = {"x": x, "w": weight, "b": bias}
        expected = ReferenceEvaluator(model).run(None, given)[0]
        y = ReferenceEvaluator(model, new_ops=[portconv.onnx.ReferenceConvTranspose]).run(None, given)[0]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_without_the_package(tmp_path, monkeypatch):
    path = recogniser(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"portconv\[onnx\]"):
        portconv.onnx.load(path)
    reference.reference_conv.cache_clear()
    with pytest.raises(ImportError, match=r"portconv\[onnx\]"):
        _ = portconv.onnx.ReferenceConv


# --- published networks, where they are installed, of the packages rapidocr-onnxruntime and ddddocr -------------------

OCR = "rapidocr_onnxruntime/models/ch_"
NETWORKS = {
    OCR + "PP-OCRv4_det_infer.onnx": (3, 160, 224),
    OCR + "ppocr_mobile_v2.0_cls_infer.onnx": (3, 48, 192),
    OCR + "PP-OCRv4_rec_infer.onnx": (3, 48, 160),
    "ddddocr/common_det.onnx": (3, 416, 416),
    "ddddocr/common.onnx": (1, 64, 120),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_published_network_gives_what_onnx_runtime_does(name):
    runtime = pytest.importorskip("onnxruntime")
    package, _, rest = name.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.origin:
        pytest.skip(f"{package} is not installed")
    path = Path(found.origin).parent / rest
    pil = pytest.importorskip("PIL")
    pytest.importorskip("PIL.ImageDraw")
    samples = pytest.importorskip("sklearn.datasets")
    channels, height, width = NETWORKS[name]
    picture = pil.Image.fromarray(samples.load_sample_image("china.jpg")[:height, :width])
    pil.ImageDraw.Draw(picture).text((5, 5), "Hello 2024", fill="white", font_size=40)  # there is text to be found
    photograph = np.asarray(picture)[:, :, :channels]
    scale = 1.0 if "common_det" in name else 1 / 127.5
    image = np.ascontiguousarray(photograph.transpose(2, 0, 1)[None], np.float32) * np.float32(scale)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: image})[0]
    y = portconv.onnx.load(path)(image)
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()
