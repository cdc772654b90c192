"""Write layers.npz: what layers of Keras and Flax say of themselves and compute, on JAX on a CPU.

    python tests/golden/generate_layers.py

It was written with Keras 3.15.1, Flax 0.12.8 and JAX 0.10.2. The file says for each case the layer's class, its
attributes, parameters, an image and the result.
"""

import json
import os
from pathlib import Path

import numpy as np

os.environ["KERAS_BACKEND"] = "jax"

KERAS = {
    "plain": ("Conv2D", (6, (3, 2)), dict(strides=(2, 1), dilation_rate=1)),
    "ambiguous, same": ("Conv2D", (3, 3), dict(strides=2, padding="same")),
    "grouped, no bias": ("Conv2D", (6, 3), dict(groups=3, use_bias=False, dilation_rate=2)),
    "activation": ("Conv2D", (4, 3), dict(activation="gelu")),
    "depthwise": ("DepthwiseConv2D", (3,), dict(depth_multiplier=2, strides=2, padding="same")),
}
FLAX = {
    "plain": ((6, (3, 2)), dict(strides=(2, 1), padding="VALID")),
    "same": ((3, (3, 3)), dict(strides=2, padding="SAME", use_bias=False)),
    "grouped": ((6, (3, 3)), dict(feature_group_count=3, kernel_dilation=2, padding=((1, 0), (2, 1)))),
    "circular": ((4, (4, 3)), dict(padding="CIRCULAR")),
    "reflect": ((4, (4, 3)), dict(padding="REFLECT", strides=2, kernel_dilation=(1, 2))),
    "sides": ((4, (3, 3)), dict(padding=(1, 2))),
}
CHANNELS = 3


def image(seed):
    return np.random.default_rng(seed).standard_normal((1, 9, 8, CHANNELS)).astype(np.float32)


def keras_layers():
    """Name, layer and image of each case."""
    import keras

    for seed, (name, (kind, arguments, options)) in enumerate(KERAS.items()):
        rng = np.random.default_rng(seed)
        layer = getattr(keras.layers, kind)(*arguments, **options)
        layer.build((None, None, None, CHANNELS))
        layer.set_weights([rng.standard_normal(w.shape).astype(np.float32) for w in layer.get_weights()])
        yield f"keras {name}", layer, image(seed)


def flax_layers():
    """Name, layer, its parameters (None if it holds them) and image of each case."""
    import jax
    from flax import linen, nnx

    for seed, (name, ((features, kernel_size), options)) in enumerate(FLAX.items()):
        x = image(seed)
        layer = linen.Conv(features, kernel_size, **options)
        params = layer.init(jax.random.key(seed), x)
        bias = jax.random.normal(jax.random.key(seed + 10), (features,))
        if options.get("use_bias", True):
            params["params"]["bias"] = bias
        yield f"linen {name}", layer, params, x
        held = nnx.Conv(CHANNELS, features, kernel_size, rngs=nnx.Rngs(seed), **options)
        if held.bias is not None:
            held.bias[...] = bias
        yield f"nnx {name}", held, None, x


ATTRIBUTES = {
    "keras": (
        "name", "built", "strides", "padding", "dilation_rate", "data_format", "use_bias", "groups", "depth_multiplier",
    ),
    "flax": (
        "kernel_size", "strides", "padding", "input_dilation", "kernel_dilation", "feature_group_count", "use_bias",
        "mask", "conv_general_dilated",
    ),
}  # fmt: skip


def main():
    manifest, store = {}, {}

    def add(name, library, layer, kernel, bias, x, y):
        kind = type(layer)
        function = getattr(layer, "activation", None)
        found = {a: getattr(layer, a) for a in ATTRIBUTES[library] if hasattr(layer, a)}
        if callable(found.get("conv_general_dilated")):  # jax.lax's, of nnx
            found["conv_general_dilated"] = None
        manifest[name] = {"module": kind.__module__, "class": kind.__qualname__, "attributes": found}
        if library == "keras":
            manifest[name]["activation"] = [function.__module__, function.__name__]
        arrays = {"kernel": kernel, "x": x, "y": y, **({} if bias is None else {"bias": bias})}
        store.update({f"{name}/{key}": np.asarray(value) for key, value in arrays.items()})

    for name, layer, x in keras_layers():
        kernel, *bias = layer.get_weights()
        add(name, "keras", layer, kernel, bias[0] if bias else None, x, layer(x))
    for name, layer, params, x in flax_layers():
        if params is None:
            bias = None if layer.bias is None else layer.bias[...]
            add(name, "flax", layer, layer.kernel[...], bias, x, layer(x))
        else:
            found = params["params"]
            add(name, "flax", layer, found["kernel"], found.get("bias"), x, layer.apply(params, x))
    text = json.dumps(manifest)
    output = Path(__file__).with_name("layers.npz")
    np.savez_compressed(output, manifest=np.frombuffer(text.encode(), np.uint8), **store)
    print(f"{output}: {len(manifest)} layers, {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
