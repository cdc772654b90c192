"""Calls that a beginner gets wrong, each with the words that its message must have to put them right."""

import numpy as np
import pytest

import portconv
from portconv import weights

X = np.zeros((1, 3, 32, 32), np.float32)
WEIGHT = np.zeros((8, 3, 3, 3), np.float32)
PHOTO = np.zeros((1, 24, 32, 3), np.uint8)
WIDE = np.zeros((1, 16, 9, 9), np.float32)
SOUND = np.zeros((1, 4, 20), np.float32)
VOLUME = np.zeros((1, 4, 5, 9, 9), np.float32)


def layer(*args, **kwargs):
    return portconv.Conv2d(*(args or (3, 8, 3)), **kwargs)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def filtered(**options):
    return lambda: portconv.conv2d(X, WEIGHT, **options)


WRONG = {
    # images
    "a photograph": (lambda: portconv.conv2d(PHOTO, WEIGHT), "last axis of `x` has 3: did you mean layout='NHWC'?"),
    "a photograph into a layer": (lambda: layer()(PHOTO), "did you mean layout='NHWC'?"),
    "a photograph, depthwise": (
        lambda: portconv.conv2d(PHOTO, zeros(3, 1, 3, 3), groups=3), "did you mean layout='NHWC'?",
    ),
    "a photograph without a batch": (lambda: portconv.conv2d(PHOTO[0], WEIGHT), "x[None] and layout='NHWC'"),
    "an image without a batch": (lambda: portconv.conv2d(X[0], WEIGHT), "Add a batch axis of size 1: x[None]"),
    "a gray image": (lambda: portconv.conv2d(PHOTO[0, :, :, 0], zeros(1, 1, 3, 3)), "x[None, None]"),
    "a gray image, NHWC": (
        lambda: portconv.conv2d(PHOTO[0, :, :, 0], zeros(1, 1, 3, 3), layout="NHWC"), "x[None, :, :, None]",
    ),
    "NCHW for NHWC": (lambda: portconv.conv2d(X, WEIGHT, layout="NHWC"), "did you mean layout='NCHW'?"),
    "a signal without a batch": (
        lambda: portconv.conv1d(zeros(3, 32), zeros(8, 3, 3)), "Add a batch axis of size 1: x[None]",
    ),
    "a volume without a batch": (
        lambda: portconv.conv3d(zeros(1, 8, 8, 8), zeros(1, 1, 3, 3, 3)), "Add a batch axis of size 1: x[None]",
    ),
    "nothing": (lambda: layer()(None), "expected a NumPy array, but got NoneType."),
    "nothing for the weight": (lambda: portconv.conv2d(X, None), "`weight` must be an array, but got NoneType."),
    "a list": (lambda: portconv.conv2d([[1, 2], [3, 4]], WEIGHT), "`numpy.asarray`"),
    "a shape that lacks an axis": (lambda: portconv.plan_conv2d((1, 3, 32), (8, 3, 3, 3)), "4 axes, NCHW, but got 3"),
    "a kernel larger than the image": (lambda: portconv.conv2d(X, zeros(8, 3, 33, 33)), "or more padding"),
    "too much reflection": (filtered(padding=40, padding_mode="reflect"), "`padding_mode='replicate'`"),
    # weights
    "HWIO": (lambda: portconv.conv2d(WIDE, zeros(5, 5, 16, 8)), "HWIO: permute_dims(weight, (3, 2, 0, 1)) is in OIHW"),
    "OHWI": (lambda: portconv.conv2d(WIDE, zeros(8, 3, 3, 16)), "OHWI: permute_dims(weight, (0, 3, 1, 2)) is in OIHW"),
    "Keras's depthwise": (lambda: portconv.conv2d(WIDE, zeros(3, 3, 16, 1), groups=16), "weight_layout='HWCM'"),
    "a transposed convolution's": (lambda: portconv.conv2d(WIDE, zeros(16, 8, 3, 3)), "`conv_transpose2d`"),
    "a filter of two axes": (lambda: portconv.conv2d(X, zeros(3, 3)), "weight[None, None]"),
    "groups forgotten": (lambda: portconv.conv2d(X, zeros(3, 1, 3, 3)), "Did you mean groups=3?"),
    "a whole weight with groups": (lambda: portconv.conv2d(X, zeros(6, 3, 3, 3), groups=3), "(O, 1, kh, kw)"),
    # transposed convolutions, signals, volumes
    "a convolution's, transposed": (
        lambda: portconv.conv_transpose2d(WIDE, zeros(8, 16, 3, 3)), "permute_dims(weight, (1, 0, 2, 3)), or `conv2d`?",
    ),
    "HWOI": (
        lambda: portconv.conv_transpose2d(WIDE, zeros(5, 5, 8, 16)), "HWOI: permute_dims(weight, (3, 2, 0, 1)) is in",
    ),
    "MLX's, transposed": (
        lambda: portconv.conv_transpose2d(WIDE, zeros(8, 3, 3, 16)), "OHWI: permute_dims(weight, (3, 0, 1, 2)) is in",
    ),
    "a photograph, transposed": (
        lambda: portconv.conv_transpose2d(PHOTO, zeros(3, 8, 2, 2)), "did you mean layout='NHWC'?",
    ),
    "volumes with channels last": (
        lambda: portconv.conv3d(zeros(1, 5, 9, 9, 4), zeros(8, 4, 3, 3, 3)), "did you mean layout='NDHWC'?",
    ),
    "DHWIO": (
        lambda: portconv.conv3d(VOLUME, zeros(3, 3, 3, 4, 8)), "DHWIO: permute_dims(weight, (4, 3, 0, 1, 2)) is in",
    ),
    "ODHWI": (
        lambda: portconv.conv3d(VOLUME, zeros(8, 3, 3, 3, 4)), "ODHWI: permute_dims(weight, (0, 4, 1, 2, 3)) is in",
    ),
    "a whole kernel of volumes with groups": (
        lambda: portconv.conv3d(VOLUME, zeros(8, 4, 3, 3, 3), groups=2), "(O, 2, kd, kh, kw)",
    ),
    "other groups than the weight's": (
        lambda: portconv.conv3d(VOLUME, zeros(2, 4, 2, 3, 3, 3), groups=4), "with 6 axes is (G, O/G, I/G, kd, kh, kw)",
    ),
    "a kernel of one plane": (lambda: portconv.conv3d(VOLUME, zeros(8, 4, 3, 3)), "weight[..., None, :, :]"),
    "the bias of other channels": (
        lambda: portconv.conv3d(VOLUME, zeros(8, 4, 3, 3, 3), zeros(4)), "(1, 8, 1, 1, 1) or (8,)",
    ),
    "the same, transposed": (
        lambda: portconv.conv_transpose3d(VOLUME, zeros(4, 8, 3, 3, 3), zeros(4)), "(1, 8, 1, 1, 1) or (8,)",
    ),
    "a volume's, transposed": (
        lambda: portconv.conv_transpose3d(VOLUME, zeros(8, 4, 3, 3, 3)), "(weight, (1, 0, 2, 3, 4)), or `conv3d`?",
    ),
    "groups of 6 axes, transposed": (
        lambda: portconv.conv_transpose3d(VOLUME, zeros(2, 2, 8, 3, 3, 3), groups=4), "(G, I/G, O/G, kd, kh, kw)",
    ),
    "same, transposed": (
        lambda: portconv.conv_transpose3d(VOLUME, zeros(4, 8, 3, 3, 3), padding="same"), "has no size of its own: give",
    ),
    "signals with channels last": (
        lambda: portconv.conv1d(zeros(1, 20, 4), zeros(8, 4, 3)), "did you mean layout='NWC'?",
    ),
    "a layer of signals": (lambda: portconv.Conv1d(4, 8, 3)(zeros(1, 20, 4)), "did you mean layout='NWC'?"),
    "a transposed layer of signals": (
        lambda: portconv.ConvTranspose1d(4, 8, 3).vjp(zeros(1, 20, 4)), "did you mean layout='NWC'?",
    ),
    "the bias of a signal": (lambda: portconv.conv1d(SOUND, zeros(8, 4, 3), zeros(4)), "(1, 8, 1) or (8,)"),
    "a signal's, transposed": (
        lambda: portconv.conv_transpose1d(SOUND, zeros(8, 4, 3)), "permute_dims(weight, (1, 0, 2)), or `conv1d`?",
    ),
    # files of weights
    "PyTorch's file": (lambda: weights.load("net.pt"), "goes to `load_state_dict`"),
    "Keras's file": (lambda: weights.load("net.h5"), "`portconv.weights.from_keras`"),
    "one array's file": (lambda: weights.load("net.npy"), "`portconv.weights.from_arrays`"),
    "a network's file": (lambda: weights.load("net.onnx"), "`portconv.onnx.load`"),
    "a layer before the path": (lambda: weights.save(layer(), "net.npz"), "but got Conv2d. It stands first."),
    "ohwi": (lambda: weights.from_arrays(WEIGHT, weight_layout="ohwi"), "Did you mean 'OHWI'?"),
    "integers": (lambda: portconv.conv2d(X, np.ones((8, 3, 3, 3), int)), "Convert it: `astype('float32')`"),
    "a layer's HWIO": (lambda: setattr(layer(), "weight", zeros(3, 3, 3, 8)), "weight_layout='HWIO'"),
    "a layer's OHWI": (
        lambda: layer(16, 8, 3).load_state_dict({"weight": zeros(8, 3, 3, 16), "bias": zeros(8)}), "'OHWI'",
    ),
    "a number for the bias": (lambda: portconv.conv2d(X, WEIGHT, 2), "before the stride; without a bias it is None"),
    "False for the bias": (lambda: portconv.conv2d(X, WEIGHT, False), "without a bias it is None"),
    "the bias of a matrix product": (lambda: portconv.conv2d(X, WEIGHT, zeros(1, 8)), "(1, 8, 1, 1) or (8,)"),
    # words of other libraries
    "edge": (filtered(padding=1, padding_mode="edge"), "NumPy's word for 'replicate'"),
    "nearest": (filtered(padding=1, padding_mode="nearest"), "SciPy's word for 'replicate'"),
    "mirror": (filtered(padding=1, padding_mode="mirror"), "SciPy's word for 'reflect'"),
    "wrap": (filtered(padding=1, padding_mode="wrap"), "word for 'circular'"),
    "constant": (filtered(padding=1, padding_mode="constant"), "word for 'zeros'"),
    "symmetric": (filtered(padding=1, padding_mode="symmetric"), "does not exist here: pad with `numpy.pad`"),
    "same as a mode": (filtered(padding_mode="same"), "`padding='same'`"),
    "a slip": (filtered(padding=1, padding_mode="refelct"), "Did you mean 'reflect'?"),
    "SAME": (filtered(padding="SAME"), "Did you mean 'same'?"),
    "full": (filtered(padding="full"), "`padding=(kh - 1, kw - 1)`"),
    "four numbers": (filtered(padding=(1, 1, 1, 1)), "((top, bottom), (left, right))"),
    "channels_last": (filtered(layout="channels_last"), "Did you mean 'NHWC'?"),
    "nhwc": (filtered(layout="nhwc"), "Did you mean 'NHWC'?"),
    "PyTorch's order": (lambda: layer(3, 8, 3, 1, 1, 1, 1, True, "reflect"), "PyTorch has it at this place"),
    "mathematics": (filtered(conv_mode="convolution"), "weight[:, :, ::-1, ::-1]"),
    "ReLU": (filtered(activation="ReLU"), "Did you mean 'relu'?"),
    "swish": (filtered(activation="swish"), "Did you mean 'silu'?"),
    "im2col": (filtered(engine="im2col"), "Matrix products are 'gemm' here"),
    "measured by itself": (filtered(strategy="auto"), "'heuristic'"),
    "linear": (lambda: portconv.interpolate2d(X, scale_factor=2, mode="linear"), "Did you mean 'bilinear'?"),
    "area": (lambda: portconv.interpolate2d(X, 8, mode="area"), "`avg_pool2d` has the means of areas"),
    # libraries, devices, dtypes
    "pytorch": (lambda: layer(backend="pytorch"), "Did you mean 'torch'?"),
    "np": (lambda: layer(backend="np"), "Did you mean 'numpy'?"),
    "tensorflow": (lambda: layer(backend="tensorflow"), "`tensor.numpy()`"),
    "to a device": (lambda: layer().to("cpu"), "'cpu' is a device: name the library first"),
    "to another device": (lambda: layer().to("cuda:0"), "`to('torch', 'cuda:0')`"),
    "half": (lambda: layer(dtype="half"), "Did you mean 'float16'?"),
    "float": (lambda: layer().astype(float), "Did you mean 'float32'?"),
    "uint": (filtered(out_dtype="uint"), "Did you mean 'uint8'?"),
    # attributes
    "a slip in an attribute": (lambda: setattr(layer(), "weigth", WEIGHT), "Did you mean 'weight'?"),
    "the plural": (lambda: setattr(layer(), "strides", 2), "Did you mean 'stride'?"),
    "what is fixed": (lambda: setattr(layer(), "stride", 2), "`stride` of a Conv2d cannot be changed: make a new one"),
    "keys of a state": (lambda: layer().load_state_dict({"weights": WEIGHT}), "strict=False"),
    "the state of a model": (
        lambda: layer().load_state_dict({"a.weight": WEIGHT, "b.weight": WEIGHT, "b.bias": zeros(8), "b.n": 1}),
        "for its layer 'b' hand over {'bias': state['b.bias'], 'weight': state['b.weight']}",
    ),
    # gradients
    "a cotangent of float64": (
        lambda: layer().vjp(X)[1](np.zeros((1, 8, 30, 30))), "Convert it: `astype('float32')`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_says_how_to_mend_it(what):
    call, words = WRONG[what]
    with pytest.raises((TypeError, ValueError, AttributeError)) as error:
        call()
    assert words in str(error.value)


@pytest.mark.parametrize(("one", "other"), [("numpy", "torch"), ("torch", "numpy"), ("mlx", "torch")])
def test_arrays_of_two_libraries_are_told_how_to_meet(library, one, other):
    x, weight = library(one).array(X), library(other).array(WEIGHT)
    with pytest.raises(TypeError, match="convert one of them, as by `") as error:
        portconv.conv2d(x, weight)
    converted = eval(str(error.value).split("`")[-2], {"portconv": portconv, "x": x, "weight": weight})
    assert portconv.conv2d(x, converted).shape == (1, 8, 30, 30)


def test_layers_without_names_are_told_where_these_stand(tmp_path):
    weights.save(tmp_path / "net.npz", {"conv1": layer()})
    with pytest.raises(
        TypeError, match=r"by the names that stand before '\.weight' in the file: {'conv1': model\.conv1}"
    ):
        weights.load(tmp_path / "net.npz", into=[layer()])


def test_a_layer_keeps_attributes_of_the_users_own():
    conv = layer()
    conv.tag, conv._seen, conv.name = "first", 1, "stem"
    assert (conv.tag, conv._seen, conv.name) == ("first", 1, "stem")


def test_a_device_that_is_not_here_is_refused_at_once():
    mx = pytest.importorskip("mlx.core")
    if mx.is_available(mx.gpu):
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="MLX finds no GPU"):
        layer(backend="mlx", device="gpu")
