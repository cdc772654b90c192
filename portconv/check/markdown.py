"""Tables in Markdown, for the pages that `portconv check` and `portconv matrix` write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["table", "text"]


def text(words: str) -> str:
    """Words in which Markdown sees no table and no HTML."""
    return words.replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
