"""Files of weights: what is written comes back with its layouts, and nothing in a file does harm."""

from __future__ import annotations

import io
import json
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

import portconv
from portconv import weights
from portconv.formats import npz

SUFFIXES = (".npz", ".safetensors")


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    """Of a file that does not exist yet."""
    if request.param == ".safetensors":
        pytest.importorskip("safetensors", reason="it is not installed")
    return tmp_path / f"net{request.param}"


def write(path, arrays, texts=None):
    """A file as another program writes it."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        pytest.importorskip("safetensors.numpy").save_file(arrays, path, texts)
    return path


def numbers(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


IMAGE = numbers(1, 6, 7, 8)


# --- what is written comes back ---------------------------------------------------------------------------------------


def test_layers_come_back(path):
    convs = {"a.conv": portconv.Conv2d(6, 8, 3, groups=2, rng=1), "b": portconv.Conv2d(3, 8, 3, bias=False, rng=2)}
    linear = numbers(10, 4)
    weights.save(path, {**convs, "linear.weight": linear}, metadata={"by": "ä"})
    loaded = weights.load(path)
    assert loaded.layouts == {"a.conv.weight": "GOIHW", "b.weight": "OIHW"} and loaded.metadata == {"by": "ä"}
    assert set(loaded) == {"a.conv.weight", "a.conv.bias", "b.weight", "linear.weight"} and len(loaded) == 4
    np.testing.assert_array_equal(loaded["linear.weight"], linear)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    others = {"a.conv": portconv.Conv2d(6, 8, 3, groups=2), "b": portconv.Conv2d(3, 8, 3, bias=False)}
    weights.load(path, into=others)
    for name, conv in convs.items():
        np.testing.assert_array_equal(others[name].weight, conv.weight)
    alone = path.with_stem("alone")
    weights.save(alone, convs["b"])
    weights.load(alone, into=others["b"])
    again = path.with_stem("again")
    weights.save(again, loaded, metadata=loaded.metadata)
    copied = weights.load(again)  # and not its bytes: the package writes texts in any order
    assert (copied.layouts, copied.metadata) == (loaded.layouts, loaded.metadata) and set(copied) == set(loaded)
    for name, array in loaded.items():
        np.testing.assert_array_equal(copied[name], array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "bool"])
def test_dtypes_and_orders_of_memory(path, dtype):
    values = (100 * numbers(4, 3, 2, 5)).astype(dtype)
    for array in (values, values[::-1, :, ::2], values.T, np.asfortranarray(values), values.astype(values.dtype.str)):
        big = array.astype(array.dtype.newbyteorder(">"))
        weights.save(
            path, {"w": array, "big": big, "scalar": array[0, 0, 0, 0], "none": array[:0]}, weight_layout="OHWI"
        )
        loaded = weights.load(path)
        for name, expected in (("w", array), ("big", big), ("none", array[:0])):
            np.testing.assert_array_equal(loaded[name], expected)
            assert loaded[name].dtype == dtype and loaded.layouts[name] == "OHWI"


def test_layers_and_arrays_of_every_library(torch, mx, path):
    nn, ours = pytest.importorskip("mlx.nn"), pytest.importorskip("portconv.mlx")
    theirs = nn.Conv2d(6, 8, 3, groups=2)
    layers = {
        "torch": torch.nn.Conv2d(6, 8, 3, groups=2), "nn": theirs, "mlx": ours.Conv2d.from_mlx(theirs),
        "mlx oihw": ours.Conv2d(6, 8, 3, groups=2), "moved": portconv.Conv2d(6, 8, 3, groups=2, backend="torch"),
    }  # fmt: skip
    weights.save(path, {**layers, "tensor": torch.ones(3), "array": mx.ones((2, 2)).astype(mx.bfloat16)})
    loaded = weights.load(path)
    found = {name: loaded.layouts[f"{name}.weight"] for name in layers}
    assert found == {"torch": "OIHW", "nn": "OHWI", "mlx": "OHWI", "mlx oihw": "GOIHW", "moved": "GOIHW"}
    assert loaded["array"].dtype == np.float32 and loaded["tensor"].sum() == 3
    for source, layer in layers.items():
        kinds = (
            portconv.Conv2d(6, 8, 3, groups=2), torch.nn.Conv2d(6, 8, 3, groups=2), ours.Conv2d(6, 8, 3, groups=2),
            ours.Conv2d(6, 8, 3, groups=2, weight_layout="OHWI"),
        )  # fmt: skip
        for target in kinds:
            weights.load(path, into={source: target})
            of = portconv.get_backend("mlx" if isinstance(target, nn.Module) else "torch")
            found = of.to_numpy(target(of.from_numpy(IMAGE)))
            if source in ("nn", "mlx"):
                expected = np.array(layer(mx.array(IMAGE.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2)
            else:
                own = portconv.get_backend("mlx" if source == "mlx oihw" else "torch")
                expected = own.to_numpy(layer(own.from_numpy(IMAGE)))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_other_programs_read_them(mx, torch, path):
    conv = portconv.Conv2d(3, 8, 3, rng=0)
    weights.save(path, conv)
    np.testing.assert_array_equal(np.array(mx.load(str(path))["weight"]), conv.weight)
    if path.suffix == ".npz":
        np.testing.assert_array_equal(np.load(path, allow_pickle=False)["weight"], conv.weight)
    else:
        loaded = pytest.importorskip("safetensors.torch").load_file(path)
        torch.testing.assert_close(loaded["weight"], torch.tensor(conv.weight), rtol=0, atol=0)


# --- layouts are named ------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_say_its_layouts(path):
    """The same numbers, in either layout; the shape is that of both."""
    weight = numbers(8, 3, 3, 3)
    write(path, {"c.weight": weight, "c.bias": numbers(1, 8, 1, 1), "linear": numbers(3, 3)})
    with pytest.raises(weights.WeightsError, match=r"net.* the layout of 'c.weight', \(8, 3, 3, 3\).*'OHWI' \(MLX\)"):
        weights.load(path)
    conv = portconv.Conv2d(3, 8, 3)
    for layout, expected in (("OIHW", weight), ("OHWI", weight.transpose(0, 3, 1, 2))):
        for stated in (layout, {"c.weight": layout}):
            weights.load(path, into={"c": conv}, weight_layout=stated)
            np.testing.assert_array_equal(conv.weight, expected)
    assert weights.load(path, weight_layout={}).layouts == {}
    with pytest.raises(weights.WeightsError, match=r"`c\.weight` in layout GOIHW must have 5 axes, but got 4"):
        weights.load(path, weight_layout="GOIHW")
    with pytest.raises(ValueError, match="`weight_layout` must be 'OIHW'"):
        weights.load(path, weight_layout="NCHW")


def test_what_a_file_says_is_believed_against_the_caller(path):
    weights.save(path, {"w": numbers(8, 3, 3, 3)}, weight_layout="OHWI")
    assert weights.load(path, weight_layout="OHWI").layouts == {"w": "OHWI"}
    for stated in ("OIHW", {"w": "OIHW"}):
        with pytest.raises(
            weights.WeightsError, match=r"`weight_layout` is 'OIHW' for 'w', but .*net.* says that it is OHWI"
        ):
            weights.load(path, weight_layout=stated)


def test_one_layout_for_the_whole_file(tmp_path):
    pytest.importorskip("safetensors", reason="it is not installed")
    arrays = {"w": numbers(8, 3, 3, 3), "bias": numbers(1, 8, 1, 1), "v": numbers(3)}
    path = write(tmp_path / "a.safetensors", arrays, {"portconv.layout": "OHWI"})
    assert weights.load(path).layouts == {"w": "OHWI"}
    for text in ("NCHW", "[]", '{"w": "NCHW"}', '{"x": "OIHW"}', '{"w": ["OIHW"]}', "{" * 9999, '{"w": "GOIHW"}'):
        with pytest.raises(weights.WeightsError, match=r"a\.safetensors"):
            weights.load(write(path, arrays, {"portconv.layout": text}))


def test_arrays_are_written_with_their_layout(path):
    arrays = {"w": numbers(8, 3, 3, 3), "v": numbers(2, 2, 2, 2, 2), "bias": numbers(1, 8, 1, 1)}
    with pytest.raises(ValueError, match=r"`content` does not say the layout of 'w', \(8, 3, 3, 3\), and of 1 more"):
        weights.save(path, arrays)
    with pytest.raises(ValueError, match="`v` in layout OHWI must have 4 axes, but got 5"):
        weights.save(path, arrays, weight_layout="OHWI")
    assert not path.exists()
    weights.save(path, arrays, weight_layout={"w": "OHWI"})
    assert weights.load(path).layouts == {"w": "OHWI"}


# --- errors change nothing --------------------------------------------------------------------------------------------


def test_layers_stay_as_they_were(path):
    weights.save(path, {"a": portconv.Conv2d(3, 8, 3, rng=1), "b": portconv.Conv2d(8, 4, 3, rng=1), "c.bias": IMAGE[0]})
    for second, message in (
        ({"b": portconv.Conv2d(8, 4, 5)}, r"'b.weight', \(4, 8, 3, 3\) OIHW, is .*, but this layer has \(4, 8, 5, 5\)"),
        ({"b": portconv.Conv2d(8, 4, 3, bias=False)}, "and no 'b.bias' for this layer, but has"),
        ({"x": portconv.Conv2d(8, 4, 3)}, "must have the weight of a convolution 'x.weight'"),
        ({"b": np.ones(3)}, "`into` must have layers that are portconv.Conv2d"),
        ({"c": portconv.Conv2d(8, 4, 3)}, "'c.weight'"),
    ):
        first = portconv.Conv2d(3, 8, 3, rng=9)
        before = first.weight.copy()
        with pytest.raises((TypeError, ValueError), match=message):
            weights.load(path, into={"a": first, **second})
        np.testing.assert_array_equal(first.weight, before)


def test_a_file_is_there_whole_or_not_at_all(path, monkeypatch):
    weights.save(path, {"a": numbers(3)})
    before = path.read_bytes()

    def fail(file, *args):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(f"portconv.formats.{path.suffix[1:]}.write", fail)
    with pytest.raises(KeyboardInterrupt):
        weights.save(path, {"a": numbers(4)})
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (3, {}, "`content` must be a layer, or a mapping"),
        ({3: np.ones(3)}, {}, "texts for names, but got 3"),
        ({"a": [1]}, {}, "a builtins.list for 'a', which is neither"),
        ({"a": np}, {}, "for 'a', which is neither"),
        ({"a": np.ones(3, complex)}, {}, "complex128 for 'a'"),
        ({"a": np.array(["x"])}, {}, "for 'a', which is none of numbers"),
        ({"a": np.ones(1)}, {"metadata": {"a": 1}}, "`metadata` must be a mapping of texts"),
        ({"a": np.ones(1)}, {"metadata": {"portconv.layout": "OIHW"}}, "`metadata` must be"),
        ({"a": portconv.Conv2d(1, 1, 1), "a.bias": np.ones(1)}, {}, "'a.bias'.* twice"),
        ({"portconv": np.ones(1)}, {}, "cannot be called 'portconv'"),
    ],
)
def test_content_that_is_none(tmp_path, content, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        weights.save(tmp_path / "a.npz", content, **options)
    assert not list(tmp_path.iterdir())


def test_names_of_files(tmp_path):
    for name in ("a", "a.pt", "a.npz.bak"):
        for call in (weights.load, lambda path: weights.save(path, {})):
            with pytest.raises(ValueError, match=r"`path` must end with '.safetensors' or '.npz', but got"):
                call(tmp_path / name)
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError):
            weights.load(str(tmp_path / f"none{suffix}"))
        (tmp_path / f"folder{suffix}").mkdir()
        with pytest.raises(IsADirectoryError):
            weights.load(tmp_path / f"folder{suffix}")


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda path: weights.save(path, {"a": np.ones(3)}), weights.load):
        with pytest.raises(ImportError, match=r"portconv\[safetensors\].*or use a .npz file"):
            call(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
    weights.save(tmp_path / "a.npz", {"a": np.ones(3)})
    assert len(weights.load(tmp_path / "a.npz")) == 1


# --- files that are damaged, or made to do harm -----------------------------------------------------------------------


def refused(path, data, *words):
    """One error that names the file, and no memory for what the file claims to hold."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(weights.WeightsError) as error:
            weights.load(path, weight_layout="OIHW")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value) and "damaged" in str(error.value)
    assert all(word in str(error.value) for word in words), error.value
    assert peak < 2_000_000


def test_a_file_cut_off_or_changed_anywhere(path):
    weights.save(path, {"w": numbers(4, 3, 3, 3), "b": numbers(4)}, weight_layout="OIHW")
    data = path.read_bytes()
    for end in (0, 1, 7, 8, 9, 40, len(data) // 2, len(data) - 1):
        refused(path, data[:end])
    rng = np.random.default_rng(0)
    for _ in range(60):  # a bit may be one of a number's; what comes is an error of ours or arrays of these names
        changed = bytearray(data)
        changed[rng.integers(min(len(data), 400))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            loaded = weights.load(path, weight_layout="OIHW")
        except weights.WeightsError:
            continue
        assert sum(array.nbytes for array in loaded.values()) <= len(data)


HEADERS = {
    "a billion elements": {"w": {"dtype": "F32", "shape": [1_000_000_000, 10, 10], "data_offsets": [0, 16]}},
    "beyond the end": {"w": {"dtype": "F32", "shape": [1_000_000_000], "data_offsets": [0, 4_000_000_000]}},
    "too large to count": {"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}},
    "before the beginning": {"w": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}},
    "backwards": {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
    "fewer bytes": {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
    "overlapping": {n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"},
    "negative": {"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
    "no number": {"w": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}},
    "no dtype": {"w": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}},
    "no object": [1, 2],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_safetensors(tmp_path, kind):
    pytest.importorskip("safetensors", reason="it is not installed")
    header = json.dumps(HEADERS[kind]).encode()
    refused(tmp_path / "a.safetensors", struct.pack("<Q", len(header)) + header + bytes(16))


@pytest.mark.parametrize("length", [2**63, 2**40, 99_999_999, 10_000, 17])
def test_lengths_of_headers_of_safetensors(tmp_path, length):
    pytest.importorskip("safetensors", reason="it is not installed")
    refused(tmp_path / "a.safetensors", struct.pack("<Q", length) + b"{}" + bytes(16))


def archive(members, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return data.getvalue()


def header(shape="(4,)", descr="'<f4'", version=(1, 0)):
    """The header of an array, as NumPy writes it, with whatever it says."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text


ARRAYS = {
    "a billion elements": (header("(1000000000, 10)") + bytes(16), "40000000000 bytes, but 16 are there"),
    "too large to count": (header("(4611686018427387904, 4611686018427387904)") + bytes(16), "but 16 are there"),
    "one too few": (header("(5,)") + bytes(16), "20 bytes, but 16 are there"),
    "one too many": (header("(3,)") + bytes(16), "12 bytes, but 16 are there"),
    "negative": (header("(-2, -2)") + bytes(16), "16 are there"),
    "pickled": (header("(1,)", "'|O'") + bytes(8), "dtype object"),
    "records": (header("(1,)", "[('a', '<f4')]") + bytes(4), "none of numbers"),
    "version": (header(version=(3, 0)) + bytes(16), "version (3, 0)"),
    "no version": (header(version=(9, 0)) + bytes(16), ""),
    "code": (header("__import__('os').getcwd()") + bytes(16), ""),
    "nested": (header("(" * 5000 + ")" * 5000), ""),
    "long": (header("(" + "1," * 30_000 + ")"), ""),
    "no array": (b"hello", ""),
    "empty": (b"", ""),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_members_of_npz(tmp_path, kind):
    data, word = ARRAYS[kind]
    refused(tmp_path / "a.npz", archive([("w.npy", data)]), word)


def test_archives(tmp_path):
    path, good = tmp_path / "a.npz", header() + bytes(16)
    refused(path, archive([("w.npy", good), ("code.py", b"1/0")]), "'code.py' is no array")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive([("w.npy", good), ("w.npy", good)])
    refused(path, twice, "several members")
    # bytes that unpack to a thousand times as many
    size = 100_000_000
    bomb = archive([("w.npy", header(f"({size},)", "'|u1'") + bytes(size))], zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    refused(path, bomb, "would unpack to")
    # a size that is none of the member's
    plain = archive([("w.npy", header("(1000000,)") + bytes(16))])
    at = plain.rindex(b"PK\x01\x02") + 24
    refused(path, plain[:at] + struct.pack("<I", 4_000_062) + plain[at + 4 :], "bytes should be there, and are not")
    flipped = bytearray(plain := archive([("w.npy", good)]))
    flipped[plain.index(good) + len(good) - 1] ^= 1
    refused(path, bytes(flipped), "CRC")
    for text in (b"[1]", b'{"a": 1}', b"{", b"[" * 99_999):
        refused(path, archive([(f"{npz.METADATA}.npy", header(f"({len(text)},)", "'|u1'") + text)]))


def test_compressed_archives_are_read(tmp_path):
    weight = numbers(4, 3, 3, 3)
    np.savez_compressed(tmp_path / "a.npz", w=weight, zeros=np.zeros(1_000_000))
    loaded = weights.load(tmp_path / "a.npz", weight_layout="OIHW")
    np.testing.assert_array_equal(loaded["w"], weight)
