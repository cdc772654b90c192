"""The errors of portconv are kinds of Python's own."""

from __future__ import annotations

from portconv import UnsupportedError


def test_unsupported_is_a_value_error():
    assert issubclass(UnsupportedError, ValueError)
