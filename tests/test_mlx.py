"""`portconv.mlx.Conv2d` as a layer of mlx.nn: its results, gradients, training, files, modes and transformations."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import threading
from functools import partial

import numpy as np
import pytest

import portconv
from portconv.testing import assert_close, reference_conv2d

CASES = {
    "plain": {},
    "no bias": dict(bias=False),
    "strided": dict(stride=(2, 1), padding=1),
    "dilated": dict(dilation=2, padding=(2, 1)),
    "grouped": dict(groups=2, padding=1),
    "depthwise": dict(groups=4, padding=1, out_channels=8),
    "same": dict(padding="same", stride=2),
    "four sides": dict(padding=((0, 2), (1, 0))),
    "reflect": dict(padding=2, padding_mode="reflect"),
    "NHWC": dict(layout="NHWC", padding=1),
    "NHWC grouped": dict(layout="NHWC", groups=2),
    "gemm": dict(engine="gemm", accuracy="elementwise"),
    "OHWI": dict(weight_layout="OHWI", padding=1),
    "OHWI grouped": dict(weight_layout="OHWI", groups=2, layout="NHWC"),
}
WITHOUT_SIDES = {name: options for name, options in CASES.items() if name not in ("same", "four sides", "reflect")}


@pytest.fixture(scope="session")
def conv2d(mx):
    """The layer's class."""
    return importlib.import_module("portconv.mlx").Conv2d


@pytest.fixture(scope="session")
def nn(mx):
    return importlib.import_module("mlx.nn")


@pytest.fixture(scope="session")
def optim(mx):
    return importlib.import_module("mlx.optimizers")


def numbers(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make(conv2d, mx, **options):
    """A layer of 4 to 6 channels, its bias not zero, and an image."""
    layer = conv2d(4, options.pop("out_channels", 6), 3, rng=3, **options)
    if "bias" in layer:
        layer.bias = mx.array(numbers(layer.bias.shape, 4))
    return layer, numbers((2, 9, 10, 4) if layer.layout == "NHWC" else (2, 4, 9, 10), 5)


def exact(layer, x, weight=None):
    """What the layer should give, and the measure of its error, from the oracle in float64."""
    bias = None if layer.bias is None else np.array(layer.bias, dtype=np.float64)
    weight = np.array(layer.weight, dtype=np.float64) if weight is None else weight
    return reference_conv2d(
        x, oihw(layer, weight), bias, layer.stride, layer.padding, layer.dilation, layer.groups,
        padding_mode=layer.padding_mode, layout=layer.layout,
    )  # fmt: skip


def oihw(layer, weight):
    """A weight as the oracle takes it."""
    return weight.transpose(0, 3, 1, 2) if layer.weight_layout == "OHWI" else weight


def check(layer, x, mx):
    assert_close(np.array(layer(mx.array(x))), exact(layer, x), accuracy=layer.accuracy)


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_forward(mx, conv2d, case):
    layer, x = make(conv2d, mx, **CASES[case])
    check(layer, x, mx)
    layer.eval()
    for _ in range(2):
        check(layer, x, mx)
    assert layer.output_shape(x.shape) == layer(mx.array(x)).shape
    assert layer.plan(mx.array(x)).output_shape == layer.output_shape(x.shape)
    assert layer.plan(x.shape).engine in layer.explain(x.shape)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(mx, conv2d, dtype):
    layer = conv2d(3, 5, 3, padding=1, dtype=getattr(mx, dtype), rng=0)
    assert layer.weight.dtype == layer.bias.dtype == getattr(mx, dtype)
    x = mx.array(numbers((1, 3, 8, 8))).astype(getattr(mx, dtype))
    wide = mx.float64 if dtype == "float64" else mx.float32
    image, weight = (np.array(a.astype(wide), dtype=np.float64) for a in (x, layer.weight))
    expected = reference_conv2d(image, weight, padding=1)
    for training in (True, False):
        y = layer.train(training)(x)
        assert y.dtype == getattr(mx, dtype)
        assert_close(np.array(y.astype(wide)), expected, dtype=dtype)


def test_initial_weights_are_those_of_the_portable_layer(mx, conv2d):
    for options in ({}, dict(groups=4), dict(bias=False)):
        layer, module = conv2d(8, 12, (3, 5), rng=7, **options), portconv.Conv2d(8, 12, (3, 5), rng=7, **options)
        np.testing.assert_array_equal(np.array(layer.weight), module.weight)
        assert repr(layer) == repr(module)
        assert (layer.bias is None) == (module.bias is None)
    layer = conv2d(64, 64, 3, groups=4)  # MegEngine counts all input channels, grouped or not
    assert np.std(np.array(layer.weight)) == pytest.approx((1 / (9 * 64)) ** 0.5, rel=0.05)
    assert not np.any(np.array(layer.bias))


def test_mlx_seed_governs_the_initial_weights(mx, conv2d):
    drawn = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        layer = conv2d(2, 3, 3)
        drawn.append(np.array(layer.weight))
        layer.reset_parameters()
        assert not np.array_equal(drawn[-1], np.array(layer.weight))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_parameters_are_weight_and_bias(mx, conv2d):
    assert set(conv2d(2, 3, 3).parameters()) == {"weight", "bias"}
    assert set(conv2d(2, 3, 3, bias=False).parameters()) == {"weight"}
    assert set(conv2d(2, 3, 3, stride=2).state) == {"weight", "bias"}
    assert conv2d(4, 6, 3, groups=2).weight.shape == (2, 3, 2, 3, 3)
    assert conv2d(4, 6, 3).bias.shape == (1, 6, 1, 1)


def test_arguments_are_those_of_the_portable_layer(conv2d):
    """But for the place of the parameters, which are MLX's, and their form, which may be."""
    portable, mine = (dict(inspect.signature(cls).parameters) for cls in (portconv.Conv2d, conv2d))
    del mine["weight_layout"]
    for name in ("backend", "device"):
        del portable[name]
    assert list(mine.values()) == list(portable.values())


def test_repr_within_a_model(mx, conv2d, nn):
    model = nn.Sequential(conv2d(4, 8, 3, 2, 1, groups=2, bias=False), nn.ReLU())
    inner = "Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, bias=False)"
    assert repr(model) == f"Sequential(\n  (layers.0): {inner}\n  (layers.1): ReLU()\n)"


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_gradients_against_finite_differences(mx, conv2d, nn, case):
    """Along random directions, the loss differentiated numerically in float64 by the oracle."""
    layer, x = make(conv2d, mx, **CASES[case])
    shape = layer.output_shape(x.shape)
    factor = numbers(shape, 8)

    def loss(x):
        return mx.sum(mx.array(factor) * mx.square(layer(x)))

    _, gradients = nn.value_and_grad(layer, loss)(mx.array(x))
    gradients["x"] = mx.grad(loss)(mx.array(x))
    at = {"x": x, **layer.parameters()}
    at = {name: np.array(value, dtype=np.float64) for name, value in at.items()}
    assert gradients.keys() == at.keys()

    def exact_loss(values):
        y, *_ = reference_conv2d(
            values["x"], oihw(layer, values["weight"]), values.get("bias"), layer.stride, layer.padding, layer.dilation,
            layer.groups, padding_mode=layer.padding_mode, layout=layer.layout,
        )  # fmt: skip
        return np.sum(factor.astype(np.float64) * y**2)

    for seed, name in enumerate(at):
        direction = numbers(at[name].shape, 20 + seed).astype(np.float64)
        step = 1e-4
        up, down = (exact_loss(at | {name: at[name] + sign * step * direction}) for sign in (1, -1))
        found = np.array(gradients[name], dtype=np.float64)
        assert found.shape == at[name].shape
        slope, scale = np.sum(found * direction), np.linalg.norm(found) * np.linalg.norm(direction)
        assert scale > 0
        assert abs(slope - (up - down) / (2 * step)) < 1e-5 * scale, name


@pytest.mark.parametrize("case", WITHOUT_SIDES)
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_gradients_against_torch(mx, conv2d, nn, torch, case, mode):
    """In evaluation mode, too, where the packed weight was kept before there was any gradient to record."""
    layer, x = make(conv2d, mx, **WITHOUT_SIDES[case])
    layer.train(mode == "training")
    mx.eval(layer(mx.array(x)))
    _, gradients = nn.value_and_grad(layer, lambda x: mx.mean(mx.sin(layer(x))))(mx.array(x))
    image, weight, bias = torch_parameters(torch, layer, x)
    torch_forward(torch, layer, image, weight, bias).sin().mean().backward()
    expected = {"weight": weight.grad, **({} if bias is None else {"bias": bias.grad})}
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(np.array(gradients[name]), value.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
    check(layer, x, mx)


def torch_parameters(torch, layer, x):
    weight = torch.tensor(np.array(layer.weight), requires_grad=True)
    bias = None if layer.bias is None else torch.tensor(np.array(layer.bias), requires_grad=True)
    return torch.tensor(x), weight, bias


def torch_forward(torch, layer, image, weight, bias):
    if layer.layout == "NHWC":
        image = image.permute(0, 3, 1, 2)
    if layer.weight_layout == "OHWI":
        weight = weight.permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(
        image, weight.reshape(layer.out_channels, -1, *layer.kernel_size), None if bias is None else bias.reshape(-1),
        layer.stride, layer.padding, layer.dilation, layer.groups,
    )  # fmt: skip
    return y.permute(0, 2, 3, 1) if layer.layout == "NHWC" else y


# --- training ---------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": (
        lambda optim: optim.SGD(learning_rate=0.1, momentum=0.9),
        lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "Adam": (
        lambda optim: optim.Adam(learning_rate=0.01, bias_correction=True),
        lambda torch, p: torch.optim.Adam(p, lr=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("case", ["strided", "grouped"])
def test_training_steps_are_those_of_torch(mx, conv2d, nn, optim, torch, name, case):
    layer, x = make(conv2d, mx, **CASES[case])
    target = numbers(layer.output_shape(x.shape), 9)
    image, weight, bias = torch_parameters(torch, layer, x)
    mine, theirs = OPTIMIZERS[name]
    mine, theirs = mine(optim), theirs(torch, [weight, bias])
    step = nn.value_and_grad(layer, lambda x, y: mx.mean(mx.square(layer(x) - y)))
    losses, before = [], np.array(layer.weight)
    for _ in range(5):
        value, gradients = step(mx.array(x), mx.array(target))
        mine.update(layer, gradients)
        theirs.zero_grad()
        loss = torch.mean((torch_forward(torch, layer, image, weight, bias) - torch.tensor(target)) ** 2)
        loss.backward()
        theirs.step()
        losses.append((value.item(), loss.item()))
        check(layer, x, mx)
    np.testing.assert_allclose(*np.transpose(losses), rtol=1e-4)
    assert np.abs(np.array(layer.weight) - before).max() > 0.01
    np.testing.assert_allclose(np.array(layer.weight), weight.detach().numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.array(layer.bias), bias.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_frozen_parameters_are_left_alone(mx, conv2d, nn, optim):
    layer, x = make(conv2d, mx)
    layer.freeze(keys="weight")
    assert set(layer.trainable_parameters()) == {"bias"}
    before = {name: np.array(value) for name, value in layer.parameters().items()}
    optimizer = optim.SGD(learning_rate=0.1)
    step = nn.value_and_grad(layer, lambda x: mx.mean(mx.square(layer(x))))
    for _ in range(2):
        _, gradients = step(mx.array(x))
        assert set(gradients) == {"bias"}
        optimizer.update(layer, gradients)
        check(layer, x, mx)
    np.testing.assert_array_equal(np.array(layer.weight), before["weight"])
    assert np.all(np.array(layer.bias) != before["bias"])
    layer.unfreeze()
    _, gradients = step(mx.array(x))
    assert set(gradients) == {"weight", "bias"}
    optim.SGD(learning_rate=0.1).update(layer, gradients)  # MLX's optimizers keep to the parameters they began with
    assert not np.array_equal(np.array(layer.weight), before["weight"])
    check(layer, x, mx)


# --- the packed weight is that of the moment --------------------------------------------------------------------------


def _optimize(layer, mx):
    nn, optim = importlib.import_module("mlx.nn"), importlib.import_module("mlx.optimizers")
    _, gradients = nn.value_and_grad(layer, lambda x: mx.mean(mx.square(layer(x))))(mx.ones((1, 4, 5, 5)))
    optim.SGD(learning_rate=0.5).update(layer, gradients)


def _in_place(layer, change):
    weight = layer.weight
    change(weight)
    assert layer.weight is weight


def square(layer):
    """The axes of a weight with those of the kernel exchanged."""
    return (0, 2, 1, 3) if layer.weight_layout == "OHWI" else (0, 1, 3, 2)


CHANGES = {
    "assignment": lambda layer, mx: setattr(layer, "weight", layer.weight + 1),
    "update": lambda layer, mx: layer.update({"weight": layer.weight + 1}),
    "apply": lambda layer, mx: layer.apply(lambda a: a + 1),
    "load_weights": lambda layer, mx: layer.load_weights([("weight", layer.weight + 1)], strict=False),
    "set_dtype": lambda layer, mx: layer.set_dtype(mx.float16),
    "item": lambda layer, mx: _in_place(layer, lambda w: w.__setitem__((0, 0, 0), 7.0)),
    "slice": lambda layer, mx: _in_place(layer, lambda w: w.__setitem__(slice(1, 3), 7.0)),
    "all": lambda layer, mx: _in_place(layer, lambda w: w.__setitem__(slice(None), w * 2)),
    # the same memory, read in another order
    "transposed": lambda layer, mx: _in_place(layer, lambda w: w.__setitem__(slice(None), w.transpose(square(layer)))),
    "+=": lambda layer, mx: _in_place(layer, lambda w: w.__iadd__(1)),
    "*=": lambda layer, mx: _in_place(layer, lambda w: w.__imul__(3)),
    "reset": lambda layer, mx: layer.reset_parameters(11),
    "optimizer": _optimize,
}


@pytest.mark.parametrize(("dtype", "weight_layout"), [("float32", "OIHW"), ("bfloat16", "OIHW"), ("float32", "OHWI")])
@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen"])
@pytest.mark.parametrize("change", CHANGES)
def test_results_follow_the_weight_at_once(mx, conv2d, change, weight_layout, mode, dtype):
    if (change, mode) == ("optimizer", "frozen"):
        change = "assignment"
    layer, x = make(conv2d, mx, weight_layout=weight_layout)
    layer.set_dtype(getattr(mx, dtype))
    image = mx.array(x).astype(getattr(mx, dtype))
    if mode == "evaluation":
        layer.eval()
    elif mode == "frozen":
        layer.freeze()
    for _ in range(3):  # the second and third find what the one before left
        before = np.array(layer(image).astype(mx.float32))
        values = np.array(layer.weight.astype(mx.float32))
        CHANGES[change](layer, mx)
        y = layer(image)
        after = np.array(y.astype(mx.float32))
        parameters = [np.array(p.astype(mx.float32)) for p in (layer.weight, layer.bias)]
        weight = oihw(layer, parameters[0])
        assert_close(
            after, reference_conv2d(np.array(image.astype(mx.float32)), weight, parameters[1]),
            dtype=str(y.dtype).rpartition(".")[2],
        )  # fmt: skip
        if not np.array_equal(values, parameters[0]):
            assert not np.array_equal(before, after)


def test_values_written_from_outside_mlx_show_while_training(mx, conv2d):
    layer, x = make(conv2d, mx)
    check(layer, x, mx)
    np.array(layer.weight, copy=False)[0] = 7
    check(layer, x, mx)
    assert np.array(layer.weight)[0, 0, 0, 0] == 7


def packs(monkeypatch):
    """Counts how often a weight is packed from here on."""
    module = importlib.import_module("portconv.mlx")
    made, plan_for = [], module.plan_for

    class Counted:
        def __init__(self, plan):
            self.plan, self.problem, self.stamp, self.execute = plan, plan.problem, plan.stamp, plan.execute

        def pack(self, weight):
            made.append(weight)
            return self.plan.pack(weight)

    def counted(*args, **options):
        library, plan = plan_for(*args, **options)
        return library, Counted(plan)

    monkeypatch.setattr(module, "plan_for", counted)
    return made


@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI"])
def test_an_unchanged_weight_is_packed_once(mx, conv2d, monkeypatch, weight_layout):
    made = packs(monkeypatch)
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        layer, x = make(conv2d, mx, engine="gemm", weight_layout=weight_layout)
        layer.set_dtype(dtype)
        for prepare in (layer.eval, lambda layer=layer: layer.train().freeze()):
            prepare()
            made.clear()
            for n in (1, 2, 1):
                layer(mx.array(x[:n]))
            assert len(made) <= 1
            layer.weight[0] = 2
            layer(mx.array(x))
            layer(mx.array(x))
            assert 1 <= len(made) <= 2
        made.clear()
        layer.unfreeze()
        layer(mx.array(x))
        layer(mx.array(x))
        assert len(made) == 2


def test_few_packed_weights_are_kept(mx, conv2d):
    layer = conv2d(1, 1, 9, engine="fft").eval()
    for size in range(9, 60):
        layer(mx.ones((1, 1, size, 2 * size)))
    assert 1 <= len(layer._packs._cache) <= importlib.import_module("portconv.mlx").MAX_PACKS


def test_packs_of_former_values_are_let_go(mx, conv2d):
    """They hold the memory of the weight as it was, too."""
    layer = conv2d(1, 1, 9, engine="fft").eval()
    images = [mx.ones((1, 1, size, 2 * size)) for size in (20, 90, 200)]
    for image in images:
        layer(image)
    assert len(layer._packs._cache) == 3
    layer.weight[0] = 2
    layer(images[0])
    assert len(layer._packs._cache) == 1
    layer.train()(images[0])
    assert len(layer._packs._cache) == 0


def test_threads_share_a_layer(mx, conv2d):
    layer, x = make(conv2d, mx)
    layer.eval()
    expected, results = exact(layer, x), []
    for _ in range(3):
        thread = threading.Thread(target=lambda: results.append(np.array(layer(mx.array(x)))))
        thread.start()
        thread.join()
    assert len(results) == 3
    for y in results:
        assert_close(y, expected)


# --- files and copies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_in_files(mx, conv2d, nn, tmp_path, kind, groups):
    def model(seed):
        return nn.Sequential(conv2d(4, 6, 3, groups=groups, rng=seed), nn.ReLU(), conv2d(6, 2, 1, bias=False, rng=seed))

    file, x = str(tmp_path / f"weights.{kind}"), mx.array(numbers((1, 4, 6, 6)))
    saved, loaded = model(1), model(2).eval()
    saved.save_weights(file)
    keys = {"layers.0.weight", "layers.0.bias", "layers.2.weight"}
    assert set(mx.load(file)) == keys
    assert not np.array_equal(np.array(loaded(x)), np.array(saved(x)))
    loaded.load_weights(file)
    np.testing.assert_array_equal(np.array(loaded(x)), np.array(saved(x)))
    wrong = nn.Sequential(conv2d(4, 6, 5, rng=1), nn.ReLU(), conv2d(6, 2, 1, bias=False, rng=1))
    before = np.array(wrong.layers[0].weight)
    with pytest.raises(ValueError, match="shape"):
        wrong.load_weights(file)
    np.testing.assert_array_equal(np.array(wrong.layers[0].weight), before)
    portable = portconv.Conv2d(4, 6, 3, groups=groups)
    portable.load_state_dict(saved.layers[0].parameters())
    image = numbers((1, 4, 6, 6))
    np.testing.assert_allclose(portable(image), np.array(saved.layers[0](mx.array(image))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_are_independent(mx, conv2d, how):
    layer, x = make(conv2d, mx, groups=2, stride=2, layout="NHWC")
    layer.eval()
    expected = exact(layer, x)
    check(layer, x, mx)
    other = how(layer)
    assert repr(other) == repr(layer) and not other.training
    assert_close(np.array(other(mx.array(x))), expected)
    other.weight[:] = 0
    other.bias = mx.zeros_like(other.bias)
    assert not np.any(np.array(other(mx.array(x))))
    assert_close(np.array(layer(mx.array(x))), expected)


# --- transformations --------------------------------------------------------------------------------------------------


def test_a_compiled_training_step_is_the_eager_one(mx, conv2d, nn, optim):
    def train(compiled):
        layer, x = make(conv2d, mx)
        optimizer = optim.SGD(learning_rate=0.1, momentum=0.9)
        state = [layer.state, optimizer.state]

        def step(x):
            value, gradients = nn.value_and_grad(layer, lambda x: mx.mean(mx.square(layer(x))))(x)
            optimizer.update(layer, gradients)
            return value

        if compiled:
            step = partial(mx.compile, inputs=state, outputs=state)(step)
        losses = [step(mx.array(x)).item() for _ in range(4)]
        check(layer, x, mx)
        return losses

    eager, compiled = train(False), train(True)
    assert eager[-1] < 0.9 * eager[0]
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_inference_follows_the_state(mx, conv2d, training):
    layer, x = make(conv2d, mx)
    layer.train(training)
    check(layer, x, mx)
    compiled = mx.compile(lambda x: layer(x), inputs=layer.state)
    for _ in range(2):
        assert_close(np.array(compiled(mx.array(x))), exact(layer, x))
        layer.weight = layer.weight * 2
    check(layer, x, mx)


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_constant_weight(mx, conv2d, training):
    """Without the state among its inputs a compiled function keeps the weight of its first call, as MLX documents."""
    layer, x = make(conv2d, mx)
    layer.train(training)
    compiled = mx.compile(lambda x: layer(x))
    for _ in range(2):
        assert_close(np.array(compiled(mx.array(x))), exact(layer, x))
        check(layer, x, mx)
    layer.weight[0] = 3
    check(layer, x, mx)


@pytest.mark.parametrize("training", [True, False])
def test_vmap(mx, conv2d, training):
    layer, x = make(conv2d, mx)
    layer.train(training)
    check(layer, x, mx)
    images = np.stack([x, 2 * x, x + 1])
    y = np.array(mx.vmap(layer)(mx.array(images)))
    for image, result in zip(images, y, strict=True):
        assert_close(result, exact(layer, image))
    ensemble = np.stack([numbers(layer.weight.shape, seed) for seed in range(3)])

    def member(weight, x):
        layer.update({"weight": weight})
        return layer(x)

    y = np.array(mx.vmap(member, in_axes=(0, None))(mx.array(ensemble), mx.array(x)))
    for weight, result in zip(ensemble, y, strict=True):
        assert_close(result, exact(layer, x, weight))


def test_checkpoint(mx, conv2d, nn):
    layer, x = make(conv2d, mx)

    def gradients(call):
        return nn.value_and_grad(layer, lambda x: mx.mean(mx.sin(call(x))))(mx.array(x))

    (plain, expected), (value, found) = gradients(layer), gradients(nn.utils.checkpoint(layer))
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)
    for name in ("weight", "bias"):
        np.testing.assert_allclose(np.array(found[name]), np.array(expected[name]), rtol=1e-5, atol=1e-7)


# --- weights of other frameworks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["assigned", "updated", "loaded"])
def test_grouped_weights_of_pytorch(mx, conv2d, way):
    layer, x = make(conv2d, mx, groups=2)
    own, weight = layer.weight.shape, mx.array(np.array(layer.weight)[::-1].reshape(6, 2, 3, 3))
    if way == "assigned":
        layer.weight = weight
    elif way == "updated":
        layer.update({"weight": weight})
    else:
        layer.load_weights([("weight", weight)], strict=False)
    assert layer.weight.shape == own
    np.testing.assert_array_equal(np.array(layer.weight).reshape(weight.shape), np.array(weight))
    check(layer, x, mx)
    layer.weight = mx.ones((6, 4, 3, 3))  # not of two groups
    with pytest.raises(ValueError, match=r"`weight` must have shape \(2, 3, 2, 3, 3\) or \(6, 2, 3, 3\)"):
        layer(mx.array(x))


def trees(mx, bias, weight):
    return {"bias": mx.array(numbers(bias)), "weight": mx.array(numbers(weight))}


def filled(mx, nn, *arguments, **options):
    """MLX's own layer, its bias not zero."""
    layer = nn.Conv2d(*arguments, **options)
    if "bias" in layer:
        layer.bias = mx.array(numbers(layer.bias.shape, 4))
    return layer


NN_CASES = {
    "ambiguous": ((3, 8, 3), {}),
    "no bias": ((3, 8, 3), dict(bias=False)),
    "strided": ((4, 6, (3, 5)), dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2))),
    "grouped, ambiguous": ((6, 8, 3), dict(groups=2, padding=1)),
    "depthwise": ((4, 8, 3), dict(groups=4, padding=1)),
}


@pytest.mark.parametrize("case", NN_CASES)
def test_layers_of_mlx(mx, conv2d, nn, case):
    arguments, options = NN_CASES[case]
    theirs = filled(mx, nn, *arguments, **options)
    x = numbers((2, 9, 10, arguments[0]), 5)
    expected = np.array(theirs(mx.array(x)))
    for weight_layout in ("OHWI", "OIHW"):
        ours = conv2d.from_mlx(theirs, weight_layout=weight_layout)
        np.testing.assert_allclose(np.array(ours(mx.array(x))), expected, rtol=1e-4, atol=1e-5)
    ours = conv2d.from_mlx(theirs, layout="NCHW", engine="gemm", name="a")
    y = np.array(ours(mx.array(x.transpose(0, 3, 1, 2)))).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert (ours.engine, ours.name, ours.weight_layout) == ("gemm", "a", "OHWI")
    ours.weight[0] = 7  # a copy
    np.testing.assert_array_equal(np.array(theirs(mx.array(x))), expected)


@pytest.mark.parametrize("case", NN_CASES)
def test_parameter_trees_and_files_of_mlx(mx, conv2d, nn, tmp_path, case):
    """In both directions, strictly."""
    arguments, options = NN_CASES[case]
    theirs = nn.Sequential(filled(mx, nn, *arguments, **options))
    ours = nn.Sequential(conv2d(*arguments, **options, weight_layout="OHWI", layout="NHWC", rng=0))
    x = mx.array(numbers((2, 9, 10, arguments[0]), 5))
    file = str(tmp_path / "weights.safetensors")
    theirs.save_weights(file)
    ours.load_weights(file)
    np.testing.assert_allclose(np.array(ours(x)), np.array(theirs(x)), rtol=1e-4, atol=1e-5)
    ours.layers[0].reset_parameters(1)
    ours.update(theirs.parameters())
    np.testing.assert_allclose(np.array(ours(x)), np.array(theirs(x)), rtol=1e-4, atol=1e-5)
    ours.layers[0].reset_parameters(1)
    theirs.update(ours.parameters())
    np.testing.assert_allclose(np.array(ours(x)), np.array(theirs(x)), rtol=1e-4, atol=1e-5)


def test_trees_of_unknown_layout_are_refused(mx, conv2d, nn):
    """The shapes of both weights are (8, 3, 3, 3)."""
    ours, theirs = conv2d(3, 8, 3, rng=0), filled(mx, nn, 3, 8, 3)
    before = {name: np.array(value) for name, value in ours.parameters().items()}
    for call in (
        lambda: ours.update(theirs.parameters()),
        lambda: ours.update({"bias": theirs.bias}),
        lambda: ours.load_weights(list(theirs.parameters().items()), strict=False),
        lambda: nn.Sequential(ours).update({"layers": [{"bias": theirs.bias, "weight": theirs.weight}]}),
    ):
        with pytest.raises(ValueError, match=r"(?s)bias of shape \(8,\).*from_mlx\(layer\).*weight_layout='OHWI'"):
            call()
        for name, value in ours.parameters().items():
            np.testing.assert_array_equal(np.array(value), before[name])
    grouped = conv2d(6, 8, 3, groups=2, rng=0)
    with pytest.raises(ValueError, match=r"weight of shape \(8, 3, 3, 3\).*GOIHW"):
        grouped.update(filled(mx, nn, 6, 8, 3, groups=2).parameters())
    portable = conv2d(3, 8, 3, weight_layout="OHWI")
    with pytest.raises(ValueError, match=r"bias of shape \(1, 8, 1, 1\)"):
        portable.update(ours.parameters())
    # what is assigned has the form that the layer documents; what another layer would refuse, this one cannot mistake
    grouped.weight = mx.array(numbers((8, 3, 3, 3)))
    ours.bias = theirs.bias
    assert ours.bias.shape == (1, 8, 1, 1)
    wide = conv2d(4, 8, 3)
    wide.update(trees(mx, (8,), (8, 4, 3, 3)))
    assert wide.bias.shape == (1, 8, 1, 1)


@pytest.mark.parametrize("weight_layout", ["OIHW", "OHWI"])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_ambiguous_shape_do_all_that_others_do(mx, conv2d, nn, optim, tmp_path, bias, weight_layout):
    layer = conv2d(3, 8, 3, bias=bias, weight_layout=weight_layout, rng=0)
    model, x = nn.Sequential(layer, nn.ReLU()), mx.array(numbers((1, 3, 6, 6)))
    optimizer, step = optim.Adam(0.01), nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x))))
    losses = []
    for _ in range(3):
        loss, gradients = step(x)
        optimizer.update(model, gradients)
        losses.append(loss.item())
    assert losses[2] < losses[0]
    check(layer, np.array(x), mx)
    model.set_dtype(mx.float16)
    model.set_dtype(mx.float32)
    file = str(tmp_path / "weights.npz")
    model.save_weights(file)
    other = nn.Sequential(conv2d(3, 8, 3, bias=bias, weight_layout=weight_layout), nn.ReLU())
    other.load_weights(file)
    for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(np.array(same(x)), np.array(model(x)))


def test_a_weight_in_the_other_layout_is_named(mx, conv2d, nn):
    layer = conv2d(4, 6, 3)
    layer.update(nn.Conv2d(4, 6, 3).parameters())
    with pytest.raises(ValueError, match=r"but got \(6, 3, 3, 4\)\. That would be its shape in OHWI.*`weight_layout`"):
        layer(mx.ones((1, 4, 9, 9)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, nn: c(3, 8, 3, weight_layout="HWIO"), ValueError, "`weight_layout` must be 'OIHW' or 'OHWI', but"),
        (lambda c, nn: c(3, 8, 3, weight_layout=None), TypeError, "`weight_layout` must be 'OIHW' or 'OHWI', but got"),
        (lambda c, nn: c.from_mlx(nn.Linear(3, 4)), TypeError, "`layer` must be an mlx.nn.Conv2d, but got mlx.*Linear"),
        (lambda c, nn: c.from_mlx(nn.ConvTranspose2d(3, 4, 3)), TypeError, "must be an mlx.nn.Conv2d"),
        (lambda c, nn: c.from_mlx(type("Own", (nn.Conv2d,), {"__call__": abs})(3, 4, 3)), TypeError, "of its own"),
    ],
)
def test_errors_about_layouts(conv2d, nn, call, error, message):
    with pytest.raises(error, match=message):
        call(conv2d, nn)


# --- errors -----------------------------------------------------------------------------------------------------------

BAD = [
    dict(in_channels=0), dict(in_channels=2.0), dict(out_channels=True), dict(kernel_size=0), dict(kernel_size=(3,)),
    dict(stride=0), dict(stride="2"), dict(padding=-1), dict(padding="full"), dict(dilation=0), dict(groups=3),
    dict(groups=0), dict(conv_mode="convolution"), dict(compute_mode="float16"), dict(padding_mode="edge"),
    dict(layout="CHWN"), dict(engine=3), dict(accuracy="exact"), dict(strategy="guess"), dict(name=3),
    dict(dtype="int8"), dict(rng="seed"), dict(bias=np.ones(2)),
]  # fmt: skip


@pytest.mark.parametrize("options", BAD, ids=str)
def test_errors_are_those_of_the_portable_layer(conv2d, options):
    options = dict(in_channels=4, out_channels=8, kernel_size=3) | options
    with pytest.raises((TypeError, ValueError)) as expected:
        portconv.Conv2d(**options)
    with pytest.raises(expected.type) as found:
        conv2d(**options)
    assert str(found.value) == str(expected.value)


def test_errors_of_calls(mx, conv2d):
    layer, x = make(conv2d, mx)
    with pytest.raises(TypeError, match=r"`x` must be an mlx.core.array, but got ndarray.*portconv\.Conv2d"):
        layer(x)
    with pytest.raises(ValueError, match="`x` must have 4 axes"):
        layer(mx.array(x[0]))
    with pytest.raises(ValueError, match="5 channels"):
        layer(mx.ones((1, 5, 9, 9)))
    with pytest.raises(ValueError, match="does not fit"):
        layer(mx.ones((1, 4, 2, 9)))
    with pytest.raises(TypeError, match="complex64"):
        layer(mx.ones((1, 4, 9, 9)).astype(mx.complex64))
    with pytest.raises(AttributeError):
        layer.stride = 2
    assert layer.stride == (1, 1)
    for name, wrong, message in (
        ("weight", mx.ones((6, 4, 5, 5)), r"`weight` must have shape \(6, 4, 3, 3\), but got \(6, 4, 5, 5\)"),
        ("weight", np.ones((6, 4, 3, 3), np.float32), "`weight` is one of numpy"),
        ("bias", mx.ones((5,)), r"`bias` must have shape \(1, 6, 1, 1\)"),
    ):
        right = layer[name]
        setattr(layer, name, wrong)
        with pytest.raises((TypeError, ValueError), match=message):
            layer(mx.array(x))
        setattr(layer, name, right)
    check(layer, x, mx)


def test_without_mlx(run_python):
    out = run_python("""
        import sys
        import portconv
        assert "portconv.mlx" not in sys.modules
        sys.modules["mlx"] = sys.modules["mlx.core"] = None
        try:
            import portconv.mlx
        except ImportError as error:
            print(error)
    """)
    assert "portconv.mlx needs MLX" in out and "pip install 'portconv[mlx]'" in out


@pytest.mark.parametrize(
    "options", [{"stride": 2, "groups": 2}, {"padding_mode": "reflect"}, {"layout": "NHWC"}], ids=str
)
def test_exported_functions(mx, conv2d, tmp_path, options):
    layer = conv2d(4, 6, 3, padding=1, engine="native", rng=0, **options)
    x = mx.array(np.random.default_rng(0).standard_normal((2, 8, 9, 4) if options.get("layout") else (2, 4, 8, 9)))
    file = str(tmp_path / "layer.mlxfn")
    mx.export_function(file, lambda x: layer(x), x)
    (y,) = mx.import_function(file)(x)
    np.testing.assert_allclose(np.array(y), np.array(layer(x)), rtol=1e-6, atol=1e-6)
