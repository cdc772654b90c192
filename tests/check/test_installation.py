"""What is found of the processor."""

from __future__ import annotations

import numpy as np
import pytest

from portconv.check import installation


@pytest.mark.parametrize(
    ("names", "bits"),
    [(["X86_V2", "X86_V3"], 256), (["SSE3", "AVX512F"], 512), (["NEON", "ASIMD"], 128), ([], None)],
)
def test_vectors(monkeypatch, names, bits):
    monkeypatch.setattr(
        np, "show_config", lambda mode: {"SIMD Extensions": {"baseline": names[:1], "found": names[1:]}}
    )
    assert installation.vector_bits() == bits
