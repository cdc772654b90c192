"""The environment of workers."""

from __future__ import annotations

from portconv.processes import session


def test_environment(monkeypatch):
    monkeypatch.setenv("PORTCONV_JIT", "1")
    found = session.environment(3, {"PORTCONV_JIT": None, "NEW": "x"})
    assert "PORTCONV_JIT" not in found and found["NEW"] == "x"
    assert {found[name] for name in session.THREAD_VARIABLES} == {"3"}
    assert "PORTCONV_NUM_THREADS" in session.THREAD_VARIABLES
