"""The example plug-in, found through a real entry point: installed as metadata on the path of a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"


@pytest.fixture
def site(tmp_path):
    """A folder that looks as if `pip install ./examples/plugin` had filled it."""
    info = tmp_path / "tinyarray-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyarray\nVersion: 0.1.0\n")
    declared = (PLUGIN / "pyproject.toml").read_text().partition('[project.entry-points."portconv.backends"]\n')[2]
    line = declared.splitlines()[0].replace('"', "")
    (info / "entry_points.txt").write_text(f"[portconv.backends]\n{line}\n")
    (tmp_path / "tinyarray").symlink_to(PLUGIN / "src" / "tinyarray")
    return tmp_path


def run(site, code):
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plugin_is_found_by_its_array_type(site):
    out = run(
        site,
        "import portconv, tinyarray\n"
        "conv = portconv.Conv2d(1, 1, 3, padding=1, bias=False)\n"
        "conv.weight = __import__('numpy').ones((1, 1, 3, 3))\n"
        "y = conv(tinyarray.Array(range(16), (1, 1, 4, 4)))\n"
        "print(type(y).__name__, list(y.data)[:2], 'tinyarray' in portconv.available_backends())",
    )
    assert out.split("\n")[0] == "Array [10.0, 18.0] True"  # 0 + 1 + 4 + 5, then 2 + 6 more


def test_plugin_passes_the_check_of_back_ends(site):
    out = run(
        site,
        "from portconv.testing import check_backend\n"
        "print(sorted({r.engine for r in check_backend('tinyarray', dtypes=('float32', 'float64'))}))",
    )
    assert out.strip() == "['direct', 'fft', 'gemm', 'native', 'winograd']"


def test_plugin_times_its_engines(site):
    out = run(
        site, "import runpy, sys; sys.argv[1:] = ['--size', '6']\nrunpy.run_module('tinyarray', run_name='__main__')"
    )
    assert {line.split()[0] for line in out.splitlines()} == {"native", "gemm", "winograd", "fft", "direct"}
    assert out.count(" ms\n") >= 3
