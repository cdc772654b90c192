"""The command `portconv run`: what it says, and how it ends."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.cli import main
from tests.helpers import lines

onnx = pytest.importorskip("onnx")


@pytest.fixture
def files(tmp_path):
    """A network that gives the mean of each channel, and an image of one colour."""
    helper = onnx.helper
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["g"]), helper.make_node("Flatten", ["g"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["n", 3, "h", 64])],
        [helper.make_tensor_value_info("y", 1, ["n", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (100, 70), (255, 51, 0)).save(tmp_path / "i.png")
    return [str(tmp_path / "n.onnx"), str(tmp_path / "i.png")]


def test_it_runs_a_network_on_an_image(files, tmp_path, capsys):
    assert main(["run", *files, "--output", str(tmp_path / "o.npz"), "--mean", "0.5", "--deviation", "2"]) == 0
    first, second, third = lines(capsys.readouterr().out)
    assert first.startswith("Network(x float32 (n, 3, h, 64)")
    assert second.startswith("numpy, (1, 3, 64, 64): ")
    assert third == "y: float32 (1, 3), from -0.25 to 0.25; largest 0: 0.25, 1: -0.15, 2: -0.25"
    np.testing.assert_allclose(np.load(tmp_path / "o.npz")["y"], [[0.25, -0.15, -0.25]], rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "32", "32"], "images of 32 x 64"),
        (["--library", "nothing"], "nothing"),
        (["--device", "gpu"], "none of cpu"),
        (["--deviation", "0"], "--deviation"),
        (["--output", "/nowhere/o.npz"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(files, more, message, capsys):
    assert main(["run", *files, *more]) == 2
    out, err = capsys.readouterr()
    (line,) = lines(err)
    assert out == "" and line.startswith("portconv run: ") and message in line


def test_what_is_no_network_or_no_image(files, capsys):
    model, image = files
    for arguments, message in (([image, image], "no ONNX file"), ([model, model], "cannot identify")):
        assert main(["run", *arguments]) == 2
        assert message in capsys.readouterr().err
