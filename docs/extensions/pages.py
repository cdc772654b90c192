"""What the pages have that is read elsewhere as well: by GitHub, by doctest, by the tests."""

from __future__ import annotations

import re
from typing import Any

from pygments.lexers.special import TextLexer

BLOCKS = ("floors", "public")  # of docs/architecture.md, which the tests read


def adapt(app: Any, page: str, source: list[str]) -> None:
    """Leave out the empty line at the end of blocks, which doctest needs; link public names, and notes in HTML."""
    text = re.sub(r"\n\n(`{3,})\n", r"\n\1\n", source[0])
    text = re.sub(r"\[(\d+)\]\(#note-\1\)", r'<a href="#note-\1">\1</a>', text)  # docs/matrix.md
    if page.startswith("reference/generated/"):
        return
    public = app.config.public_names

    def linked(found: re.Match[str]) -> str:
        return f"{{py:obj}}{found[0]}" if found[1] in public else found[0]

    blocks = re.split(r"(^`{3,}[^\n]*\n.*?^`{3,}$)", text, flags=re.M | re.S)
    blocks[::2] = [re.sub(r"(?<![`}\[])`(portconv(?:\.\w+)+)`(?![`\]])", linked, block) for block in blocks[::2]]
    source[0] = "".join(blocks)


def setup(app: Any) -> dict[str, Any]:
    for name in BLOCKS:
        app.add_lexer(name, TextLexer)
    app.connect("source-read", adapt)
    return {"parallel_read_safe": True}
