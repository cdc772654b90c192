"""The scripts in examples/ as a user runs them."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import portconv

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script, *arguments, without=(), folder=None, before=""):
    """Run a script in a fresh interpreter, after the line `before`; packages of `without` cannot be imported there."""
    code = f"""
{before}
import runpy, sys

class Without:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {without!r}:
            raise ImportError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without)
sys.argv[:] = {[script, *arguments]!r}
runpy.run_path({str(EXAMPLES / script)!r}, run_name="__main__")
"""
    path = os.pathsep.join([str(Path(portconv.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
    )


@pytest.fixture(scope="session")
def safetensors():
    """What the scripts need besides array libraries."""
    for name in ("rich", "sklearn"):
        pytest.importorskip(name)
    return pytest.importorskip("safetensors.numpy")


@pytest.fixture(scope="session")
def trained(mx, safetensors, tmp_path_factory):
    """The file of a short training, and what the training printed."""
    file = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    done = run("digits_train.py", str(file), "--epochs", "8")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in file.parent.iterdir()] == ["digits.safetensors"]
    return file, done.stdout


@pytest.fixture
def script(safetensors, monkeypatch, capsys):
    """Runs a script in this process: gives its exit status and its stderr; `change` is given its module before.

    What it prints is kept as the attribute `out`.
    """

    def call(name, *arguments, change=lambda module: None):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        change(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        status = module.main()
        call.out, err = capsys.readouterr()
        return status, err

    return call


@pytest.fixture
def demo(script, monkeypatch, tmp_path):
    """Runs the demo on a small image with the back ends of that name; gives its exit status and its stderr."""
    Image = pytest.importorskip("PIL.Image")
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(file)

    def call(*names, change=lambda module: None):
        monkeypatch.setattr(portconv, "available_backends", lambda: names)
        return script("demo", file, "--output", tmp_path / "out.png", change=change)

    return call


def test_demo(demo, tmp_path):
    assert demo("numpy") == (0, "")
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_demo_fails_with_a_filter_that_is_inaccurate_or_stops(demo):
    """In one row of three: the others stay."""

    def alter(answer):
        def change(module):
            measure = module.measure

            def altered(name, *arguments):
                row, result = measure(name, *arguments)
                return (answer(row), result) if name == "sharpen" else (row, result)

            module.measure = altered

        return change

    def inaccurate(row):
        row.within_bound = False
        return row

    def stops(row):
        raise RuntimeError("out of memory")

    status, err = demo("numpy", change=alter(inaccurate))
    assert status == 1 and "less accurate than promised" in err
    status, err = demo("numpy", change=alter(stops))
    assert status == 1 and "sharpen, numpy: RuntimeError: out of memory" in err


def test_demo_fails_with_a_wrong_result(demo):
    def change(module):
        exact_result = module.exact_result
        module.exact_result = lambda conv, x: (exact_result(conv, x)[0] + 1, exact_result(conv, x)[1])

    assert demo("numpy", change=change)[0] == 1


def test_demo_fails_where_no_back_end_is_usable(demo):
    """A table without rows proves nothing."""

    def change(module):
        module.usable_backends = lambda x, asked: []

    status, err = demo("numpy", change=change)
    assert status == 1 and "no back end" in err


def table(out):
    """The rows of the table by back end, percentages as numbers."""
    rows = [re.fullmatch(r" *(\w+) +([\d.]+)% +([\d.]+)% +([\d,]+) *", line) for line in out.splitlines()]
    return {row[1]: (float(row[2]), float(row[3]), int(row[4].replace(",", ""))) for row in rows if row}


def test_digits_are_learnt_and_read_alike_everywhere(trained):
    file, out = trained
    learnt = float(re.search(r"held-out digits: ([\d.]+)%", out)[1])
    assert learnt >= 97
    done = run("digits_classify.py", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = table(done.stdout)
    assert rows.keys() >= {"numpy", "mlx"}
    for name, (accuracy, agreement, speed) in rows.items():
        assert accuracy == learnt, name
        assert agreement == 100, name
        assert speed > 0, name


def test_digits_are_read_without_mlx(trained):
    file, out = trained
    done = run("digits_classify.py", str(file), without=("mlx", "torch", "jax", "dask", "cupy"))
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert "numpy" in rows and "mlx" not in rows
    assert f"{rows['numpy'][0]:.2f}%" in out


def test_digits_are_learnt_in_numpy_alone(safetensors, plain, tmp_path):
    file = tmp_path / "digits.safetensors"
    alone = ("mlx", "torch", "jax", "dask", "cupy")
    done = run("digits_train.py", str(file), "--library", "numpy", without=alone)
    assert done.returncode == 0, done.stderr
    learnt = re.search(r"held-out digits: ([\d.]+)%", done.stdout)[1]
    assert float(learnt) >= 97
    done = run("digits_classify.py", str(file), without=alone)
    assert done.returncode == 0, done.stderr
    assert f"{table(done.stdout)['numpy'][0]:.2f}" == learnt


def test_held_out_digits_were_not_trained_on(trained, safetensors):
    with importlib.import_module("safetensors").safe_open(trained[0], framework="numpy") as file:
        held_out = json.loads(file.metadata()["held_out"])
    assert len(set(held_out)) == len(held_out) == 1797 // 5
    assert set(held_out) < set(range(1797))


@pytest.mark.parametrize("library", ["mlx", "numpy"])
def test_training_is_repeatable(mx, script, tmp_path, safetensors, library):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        assert script("digits_train", file, "--epochs", 1, "--seed", seed, "--library", library)[0] == 0
    first, again, other = (safetensors.load_file(file) for file in files)
    for name, value in first.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-3, atol=1e-5)
        assert not np.allclose(other[name], value, rtol=1e-3, atol=1e-5)


def test_back_ends_that_differ_or_fail_are_reported(trained, script, monkeypatch):
    monkeypatch.setattr(portconv, "available_backends", lambda: ("numpy", "mlx"))

    def alter(answer):
        def change(module):
            classify = module.classify
            module.classify = lambda network, images, name: (
                answer(*classify(network, images, name)) if name == "mlx" else classify(network, images, name)
            )

        return change

    def one_other(found, speed):
        found[0] = (found[0] + 1) % 10
        return found, speed

    def failure(found, speed):
        raise RuntimeError("out of memory")

    assert script("digits_classify", trained[0])[0] == 0
    status, err = script("digits_classify", trained[0], change=alter(one_other))
    assert status == 1 and "differently" in err
    status, err = script("digits_classify", trained[0], change=alter(failure))
    assert status == 1 and "mlx: RuntimeError: out of memory" in err


def test_files_that_are_no_good(script, safetensors, tmp_path):
    missing, text, foreign, other = (
        tmp_path / f"{name}.safetensors" for name in ("missing", "text", "foreign", "other")
    )
    text.write_text("weights")
    safetensors.save_file({"a": np.ones(3, np.float32)}, foreign)
    shapes = {"conv1.weight": (16, 1, 5, 5), "conv1.bias": (1, 16, 1, 1), "linear.weight": (10, 128)}
    safetensors.save_file({name: np.ones(s, np.float32) for name, s in shapes.items()}, other, {"held_out": "[1, 2]"})
    for file, message in (
        (missing, "no such file; examples/digits_train.py writes one"),
        (tmp_path, "irectory"),
        (text, "not a safetensors file"),
        (foreign, "not written by examples/digits_train.py (it does not say which digits were held out)"),
        (other, "`weight` must have shape (16, 1, 3, 3)"),
    ):
        status, err = script("digits_classify", file)
        assert status == 2, file
        assert err.startswith(f"digits_classify.py: {file}: ") and message in err and err.count("\n") == 1


def test_training_refuses_a_bad_file_before_it_begins(mx, script, tmp_path):
    def no_work(module):
        module.train = None

    for file, message in (
        (tmp_path / "digits.npz", "must end with .safetensors"),
        (tmp_path / "none" / "digits.safetensors", "no folder"),
    ):
        status, err = script("digits_train", file, change=no_work)
        assert status == 2 and message in err
    (tmp_path / "folder.safetensors").mkdir()
    assert script("digits_train", tmp_path / "folder.safetensors", change=no_work)[0] == 2
    with pytest.raises(SystemExit) as stop:
        script("digits_train", tmp_path / "digits.safetensors", "--epochs", 0)
    assert stop.value.code == 2


SCRIPTS = {
    "demo": (), "digits_classify": ("digits.safetensors",), "digits_train": ("digits.safetensors",),
    "gigapixel": ("blurred.zarr",), "ocr": (), "portable": (),
}  # fmt: skip


@pytest.fixture
def onnx():
    """What examples/ocr.py needs."""
    pytest.importorskip("PIL.Image")
    return pytest.importorskip("onnx")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(onnx, zarr, script, capsys, name):
    with pytest.raises(SystemExit) as stop:
        script(name, "--help")
    assert stop.value.code == 0
    assert f"usage: {name}.py" in (out := capsys.readouterr().out) and ("--library" in out) == (name != "gigapixel")


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - {"gigapixel"}))
def test_a_library_that_is_not_there(onnx, script, trained, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained[0], "digits.safetensors")
    status, err = script(name, *SCRIPTS[name], "--library", "nowhere")
    assert status == 2 and f"{name}.py: --library nowhere: " in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["digits.safetensors"]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("digits_train", "mlx"),
        ("digits_classify", "safetensors"),
        ("gigapixel", "zarr"),
        ("ocr", "onnx"),
        ("demo", "rich"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(name, package):
    done = run(f"{name}.py", *SCRIPTS[name], without=(package,))
    assert done.returncode == 2
    assert (
        re.search(r"pip install 'portconv\[((mlx,|onnx,)?demo|zarr)\]'", done.stderr) and done.stderr.count("\n") == 1
    )


def test_the_pipeline_runs_on_a_library(script):
    assert script("portable", "--library", "array_api_strict") == (0, "")
    assert "bright pixels" in script.out and re.search(r"second run, ms +[\d.]+\n$", script.out)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_digits_are_learnt_alike_by_libraries(script, tmp_path, library):
    """In the first steps: later ones magnify what is rounded."""
    if library not in portconv.available_backends():
        pytest.skip("it is not installed")
    losses = {}

    def learn(module):
        rng = np.random.default_rng(0)
        images, targets = rng.random((module.BATCH, 1, 8, 8), np.float32), rng.integers(0, 10, module.BATCH)
        for name in ("numpy", library):
            network = module.made(name, 0, 100)
            losses[name] = [network.step(images, targets) for _ in range(4)]

    script("digits_train", tmp_path / "no.npz", change=learn)
    np.testing.assert_allclose(losses[library], losses["numpy"], rtol=1e-4)
    assert losses["numpy"][3] < losses["numpy"][0]


# --- gigapixel --------------------------------------------------------------------------------------------------------


@pytest.fixture
def zarr():
    pytest.importorskip("dask.array", reason="Dask is not installed")
    return pytest.importorskip("zarr", reason="Zarr is not installed")


def values(zarr, path):
    return zarr.open_array(str(path), mode="r")[...]


def test_gigapixel(zarr, tmp_path):
    """Ragged chunks, and values that are those of the whole image at once."""
    done = run("gigapixel.py", "out.zarr", "--size", "700", "--chunk", "256", "--sigma", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.zarr", "out.zarr.source"]
    assert "9 chunks" in done.stdout and "100%" in done.stdout
    image, found = (values(zarr, tmp_path / name) for name in ("out.zarr.source", "out.zarr"))
    line = np.exp(-(np.arange(-9, 10) ** 2) / 18)
    padded = np.pad(image.astype(float), 9, "edge")
    rows = np.apply_along_axis(np.convolve, 0, padded, line / line.sum(), "valid")
    exact = np.apply_along_axis(np.convolve, 1, rows, line / line.sum(), "valid")
    assert found.shape == (700, 700) and found.dtype == np.uint8
    assert np.abs(found - exact).max() < 0.51
    again = run("gigapixel.py", "other.zarr", "--source", "out.zarr.source", "--sigma", "3", folder=tmp_path)
    assert again.returncode == 0
    np.testing.assert_array_equal(values(zarr, tmp_path / "other.zarr"), found)


def test_gigapixel_refuses_before_it_begins(zarr, script, tmp_path):
    (tmp_path / "there.zarr").mkdir()
    (tmp_path / "source.zarr").mkdir()
    zarr.save(str(tmp_path / "floats.zarr"), np.ones((9, 9)))
    for arguments, message in (
        (
            ["new.zarr", "--source", "floats.zarr"],
            "must be an array (height, width) of uint8, but is (9, 9) of float64",
        ),
        (["new.zarr", "--source", "source.zarr"], "is no Zarr array"),
        (["there.zarr"], "exists. Name another file"),
        (["none/new.zarr", "--size", "99"], "is no folder"),
    ):
        paths = [tmp_path / a if "zarr" in a else a for a in arguments]
        status, err = script("gigapixel", *paths)
        assert status == 2 and message in err, err

    def full(module):
        module.shutil.disk_usage = lambda folder: SimpleNamespace(free=1 << 20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", shutil.disk_usage)  # which is put back at the end
        status, err = script("gigapixel", tmp_path / "new.zarr", "--size", "99", change=full)
    assert status == 2 and "has 1 MiB free" in err
    assert not [file for file in tmp_path.iterdir() if file.name.startswith("new")]
    with pytest.raises(SystemExit) as stop:
        script("gigapixel", tmp_path / "new.zarr", "--size", "0")
    assert stop.value.code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_gigapixel_leaves_nothing_when_the_disk_is_full(zarr, tmp_path):
    """As a limit on the size of files has it: the system refuses to write in the middle of the work."""
    assert run("gigapixel.py", "out.zarr", "--size", "512", "--chunk", "128", folder=tmp_path).returncode == 0
    before = sorted(tmp_path.iterdir())
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
    arguments = ["gigapixel.py", "new.zarr", "--source", "out.zarr.source", "--sigma", "0.4"]  # noise takes its room
    done = run(*arguments, folder=tmp_path, before=limit)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "gigapixel.py: new.zarr cannot be written: " in done.stderr and "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_gigapixel_starts_anew_after_it_was_killed(zarr, tmp_path):
    (tmp_path / "out.zarr.incomplete").mkdir()
    (tmp_path / "out.zarr.incomplete" / "zarr.json").write_text("half")
    assert run("gigapixel.py", "out.zarr", "--size", "200", folder=tmp_path).returncode == 0
    assert values(zarr, tmp_path / "out.zarr").shape == (200, 200)
    assert not (tmp_path / "out.zarr.incomplete").exists()


# --- ocr --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ocr(onnx):
    spec = importlib.util.spec_from_file_location("ocr", EXAMPLES / "ocr.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("degrees", [0, 20, -35, 90])
def test_a_line_is_framed_and_cut_upright(ocr, degrees):
    """A strip of 200x20 text pixels in a map of half the size of the picture, red on its left, blue on its right."""
    angle = np.radians(degrees)
    right, down = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])

    def corners(centre, width, height):
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        return [tuple(centre + i * width / 2 * right + j * height / 2 * down) for i, j in signs]

    rows, cols = np.mgrid[:300, :320] + 0.5
    along, across = ((cols - 160) * axis[0] + (rows - 150) * axis[1] for axis in (right, down))
    probability = np.where((abs(along) <= 100) & (abs(across) <= 10), 0.9, 0.1)
    probability[3:10, 3:20] = 0.4  # not sure enough
    picture = ocr.Image.new("RGB", (640, 600), "white")
    draw = ocr.ImageDraw.Draw(picture)
    draw.polygon(corners(np.array([320, 300]) - 100 * right, 200, 40), fill="red")
    draw.polygon(corners(np.array([320, 300]) + 100 * right, 200, 40), fill="blue")

    (frame,) = ocr.frames_of(probability, picture.size)
    margin = 2 * 1.6 * 400 * 40 / (2 * 440)
    np.testing.assert_allclose(frame, corners(np.array([320, 300]), 400 + margin, 40 + margin), atol=3.5)
    cut = np.asarray(ocr.strip(picture, frame)).astype(int)
    assert cut.shape[0] == ocr.HEIGHT and 4 < cut.shape[1] / cut.shape[0] < 6
    middle = cut[ocr.HEIGHT // 2, [cut.shape[1] // 4, 3 * cut.shape[1] // 4]]
    np.testing.assert_allclose(middle, [[255, 0, 0], [0, 0, 255]], atol=3)


def test_frames_are_in_the_order_of_reading(ocr):
    def frame(left, top):
        return np.array([(left, top), (left + 50, top), (left + 50, top + 20), (left, top + 20)], float)

    places = [(10, 12), (90, 9), (170, 11), (20, 40), (5, 70), (80, 73)]
    found = ocr.in_order([frame(*places[i]) for i in (5, 2, 3, 0, 4, 1)])
    assert [tuple(f[0]) for f in found] == places


def test_repetitions_and_blanks_are_no_characters(ocr):
    best, sure = [0, 1, 1, 0, 1, 2, 2, 0, 3], [0.9, 0.8, 0.6, 0.9, 0.7, 0.5, 0.5, 0.9, 1.0]
    scores = np.zeros((9, 4))
    scores[np.arange(9), best] = sure
    text, confidence = ocr.decoded(scores, ["", "l", "o", " "])
    assert text == "llo " and confidence == pytest.approx((0.8 + 0.7 + 0.5 + 1.0) / 4)
    assert ocr.decoded(scores[:1], ["", "l", "o", " "]) == ("", 0.0)


def colour_networks(onnx, folder):
    """A finder of what is not green, a turner that turns everything, and a reader of r for red and b for blue."""
    node, pixels = onnx.helper.make_node, ["x"]

    def write(name, nodes, weight, bias, **metadata):
        constants = {"w": np.array(weight, np.float32)[:, :, None, None], "b": np.array(bias, np.float32)}
        graph = onnx.helper.make_graph(
            [node("Conv", [*pixels, "w", "b"], ["c"]), *nodes],
            name,
            [onnx.helper.make_tensor_value_info("x", 1, ["n", 3, "h", "w"])],
            [onnx.helper.make_tensor_value_info("y", 1, None)],
            [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 11)], ir_version=8)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, folder / name)

    write("a_det_infer.onnx", [node("Sigmoid", ["c"], ["y"])], [[0, -9, 0]], [0])
    write(
        "a_cls_infer.onnx",
        [node("GlobalAveragePool", ["c"], ["g"]), node("Flatten", ["g"], ["y"])],
        [[0, 0, 0]] * 2,
        [0, 1],
    )
    columns = [
        node("AveragePool", ["c"], ["p"], kernel_shape=[48, 8], strides=[48, 8]),
        node("Squeeze", ["p"], ["s"], axes=[2]),
        node("Transpose", ["s"], ["t"], perm=[0, 2, 1]),
        node("Softmax", ["t"], ["y"], axis=2),
    ]
    weight = [[0, 0, 0], [-4, 0, 4], [4, 0, -4], [0, 0, 0]]  # of B, G, R
    write("a_rec_infer.onnx", columns, weight, [2, 0, 0, -9], character="r\nb")


def test_a_picture_is_read(onnx, script, tmp_path):
    image = importlib.import_module("PIL.Image").new("RGB", (320, 200), "white")
    image.paste("red", (40, 30, 240, 60))
    image.paste("red", (60, 120, 160, 150))
    image.paste("blue", (160, 120, 260, 150))
    image.save(tmp_path / "photograph.png")
    options = ["--image", tmp_path / "photograph.png", "--models", tmp_path, "--output", tmp_path / "out.png"]
    status, err = script("ocr", *options)
    assert status == 2 and "no file *_det_infer.onnx" in err and err.count("\n") == 1
    colour_networks(onnx, tmp_path)
    assert script("ocr", *options, "--library", "numpy", "array_api_strict", "--repeat", 1) == (0, "")
    text = script.out
    assert re.search(r"^  1 +\d\d\.\d\d%  r\n  2 +\d\d\.\d\d%  br$", text, re.MULTILINE), text
    assert "array_api_strict reads the same" in text and re.search(r"^numpy, best of 1( +\d+){5}$", text, re.MULTILINE)
    written = importlib.import_module("PIL.Image").open(tmp_path / "out.png")
    assert written.size == (320, 200) and written.tobytes() != image.tobytes()


def test_networks_that_are_not_installed(ocr, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ocr.Problem, match="pip install --no-deps rapidocr-onnxruntime"):
        ocr.find_models()
