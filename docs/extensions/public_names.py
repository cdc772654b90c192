"""The reference: a page for every public name, made from what the package says is public, whenever the pages are made.

Public are the names in `portconv.__all__`, and the modules that docs/architecture.md lists, with those in their
`__all__`. In docstrings, what stands between single backticks becomes a link if it is one of them, and code if not.
"""

from __future__ import annotations

import importlib
import inspect
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.ext.autodoc.mock import mock
from sphinx.roles import XRefRole

HERE = Path(__file__).resolve().parents[1]
FOLDER = "reference/generated"


@lru_cache(maxsize=1)
def public_modules() -> list[str]:
    """The public modules beside `portconv` itself, as docs/architecture.md lists them."""
    text = (HERE / "architecture.md").read_text("utf-8")
    return re.search(r"^```public\n(.*?)^```", text, re.M | re.S)[1].split()


def kind_of(value: Any) -> str:
    """The directive of autodoc for a name."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if callable(value) and not hasattr(value, "__origin__") else "data"


def members(value: type) -> list[str]:
    """What a class has of portconv's own: not what it inherits from a layer of another library."""
    own = [base for base in value.__mro__ if base.__module__.startswith("portconv")]
    found = {name: member for base in reversed(own) for name, member in vars(base).items()}
    documented = {
        name: member
        for name, member in found.items()
        if not name.startswith("_") and (inspect.getdoc(member) or isinstance(member, classmethod))
    }
    return [
        name for name, member in documented.items() if callable(member) or isinstance(member, (classmethod, property))
    ]


def object_page(name: str, value: Any) -> str:
    """The page of one name."""
    kind, title = kind_of(value), name
    lines = [title, "=" * len(title), "", f".. auto{kind}:: {name}"]
    if kind == "class" and (named := members(value)):
        lines += [f"   :members: {', '.join(named)}"]
    if kind == "data":
        lines += ["   :no-value:", "", f"   The type ``{value}``."]
    return "\n".join([*lines, ""])


def table(title: str, names: list[str]) -> list[str]:
    """A heading, and a table of names of the current module, each with the first line of its docstring."""
    if not names:
        return []
    rows = [f"   {name}" for name in names]
    return [title, "-" * len(title), "", ".. autosummary::", "   :nosignatures:", "", *rows, ""]


def module_page(name: str, module: ModuleType) -> str:
    """The page of a module: what it is, and a table of its names."""
    kinds = {each: kind_of(getattr(module, each)) for each in module.__all__}
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", "   :no-index:", "", f".. py:module:: {name}", ""]
    for title, kind in (("Classes", "class"), ("Functions", "function"), ("Errors", "exception"), ("Types", "data")):
        lines += table(title, [each for each, of in kinds.items() if of == kind])
    pages = [f"   {each} <{name}.{each}>" for each in module.__all__]
    return "\n".join([*lines, ".. toctree::", "   :hidden:", "", *pages, ""])


def write_pages(app: Any, config: Any) -> None:
    """Write the pages, where they differ from those that are there."""
    pages: dict[str, str] = {}
    about = [".. autosummary::", ""]
    with mock(config.autodoc_mock_imports):
        for name in ("portconv", *(f"portconv.{each}" for each in public_modules())):
            module = importlib.import_module(name)
            pages[f"module.{name}"] = module_page(name, module)
            pages |= {f"{name}.{each}": object_page(f"{name}.{each}", getattr(module, each)) for each in module.__all__}
            about.append(f"   {name}")
    app.config.public_names = {name.removeprefix("module.") for name in pages}
    folder = Path(app.srcdir, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modules.txt").write_text("\n".join([*about, ""]), "utf-8")
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def before_napoleon(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep the docstring of a property: napoleon takes what stands before a colon in its first line for its type."""
    if what == "property":
        app.config.properties[name] = list(lines)


def after_napoleon(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Attributes that are described together, apart: Sphinx would take the first for the type of the second."""
    if what == "property":
        lines[:] = app.config.properties.pop(name)
    for place, line in reversed(list(enumerate(lines))):
        if (found := re.match(r":ivar ([\w, ]+): (.*)", line)) is not None:
            *others, last = found[1].split(", ")
            lines[place : place + 1] = [f":ivar {other}: see ``{last}``" for other in others]
            lines.insert(place + len(others), f":ivar {last}: {found[2]}")


class PublicRole(XRefRole):
    """A link to a public name, if the text is one, with or without `portconv` before it; code if not."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        found, whole = self.config.public_names, self.text.startswith("portconv.")
        name = self.text if whole else f"portconv.{self.text}"
        owner = name.rpartition(".")[0]
        if (name in found and (whole or not is_module(name))) or (owner in found and not is_module(owner)):
            self.refdomain, self.reftype, self.target, self.title = "py", "obj", name, self.text
            self.has_explicit_title, self.classes = True, ["xref", "py", "py-obj"]
            return self.create_xref_node()
        return [nodes.literal(self.rawtext, self.text)], []


def is_module(name: str) -> bool:
    return name == "portconv" or name.removeprefix("portconv.") in public_modules()


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("public_names", set(), "", types=(set,))
    app.add_config_value("properties", {}, "", types=(dict,))
    app.add_role("public", PublicRole())
    app.connect("config-inited", write_pages)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    return {"parallel_read_safe": True}
