"""The console of the commands: how wide it is, and where it writes."""

from __future__ import annotations

from portconv.cli.screen import screen


def test_what_is_no_terminal_has_no_edge_unless_it_is_given_one(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert screen().width == 200 and not screen("a.json").stderr
    monkeypatch.setenv("COLUMNS", "60")
    assert screen().width == 60
    assert screen("-").stderr  # stdout has the document
