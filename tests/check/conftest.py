"""What the tests of checks share: a plug-in that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin" / "src" / "tinyarray"


@pytest.fixture
def plugin(tmp_path, monkeypatch, plain):
    """Installs the example plug-in with a fault: what its own engine does before it gives back a result."""

    def install(fault, at_import=""):
        site = tmp_path / "site"
        info = site / "tinyarray-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyarray\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[portconv.backends]\ntinyarray = faulty:FaultyBackend\n")
        (site / "tinyarray").symlink_to(PLUGIN)
        (site / "faulty.py").write_text(
            "import os, signal, time\nfrom dataclasses import dataclass\n"
            "from tinyarray.portconv_backend import LoopPlan, TinyBackend\n"
            f"{at_import}\n"
            "class FaultyPlan(LoopPlan):\n"
            "    def execute(self, x, weight, bias=None, /):\n"
            "        y = super().execute(x, weight, bias)\n"
            "        p = self.problem\n"
            f"        {fault}\n"
            "        return y\n\n"
            "class FaultyBackend(TinyBackend):\n"
            "    def build(self, problem, engine, /):\n"
            "        if engine == 'native':\n"
            "            return FaultyPlan(problem, engine)\n"
            "        return super().build(problem, engine)\n"
        )
        monkeypatch.syspath_prepend(str(site))

    return install
