"""The patches of tests/defects still apply: one that does not says nothing about the tests any more."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "defects"
ROOT = FOLDER.parent.parent

_spec = importlib.util.spec_from_file_location("portconv_defects", FOLDER / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


def test_there_are_twelve():
    assert len(run.defects()) == 12


@pytest.mark.parametrize("defect", run.defects(), ids=lambda defect: defect.name)
def test_a_defect_applies(defect, tmp_path):
    for file in defect.files:
        assert file.startswith("portconv/"), "a defect of the tests would be no defect of the library"
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, tmp_path / file)
    if shutil.which("git"):
        done = run.apply(defect.patch, tmp_path)
    elif shutil.which("patch"):
        command = ["patch", "-p1", "-F0", "-i", str(defect.patch)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    else:
        pytest.skip("neither git nor patch is here")
    assert done.returncode == 0, done.stdout + done.stderr
    for file in defect.files:
        assert (tmp_path / file).read_bytes() != (ROOT / file).read_bytes()
        compile((tmp_path / file).read_text(encoding="utf-8"), file, "exec")
