"""The library of an array, by the name of its type; no array library is imported to find out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["ENTRY_POINT_GROUP", "extend", "library_of", "plugins"]

ENTRY_POINT_GROUP = "portconv.backends"

_SYNONYMS = {"jaxlib": "jax"}
# Top-level packages of array types that a backend is known for; the registry extends it.
_known: set[str] = set()
_library_of_type: dict[type, str | None] = {}


def library_of(x: object) -> str | None:
    """The array library of `x`, by the first class of its type that one is known for; `None` if it is no array."""
    kind = type(x)
    try:
        return _library_of_type[kind]
    except KeyError:
        found = _library_of_type[kind] = _find_library(kind)
        return found


def extend(*packages: str) -> None:
    """Take the types of these top-level packages for arrays."""
    _known.update(packages)
    _library_of_type.clear()


def plugins() -> tuple[EntryPoint, ...]:
    """The entry points of installed packages that serve array types of theirs."""
    from importlib.metadata import entry_points  # 20 ms, which the arrays of known libraries need not wait for

    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _find_library(kind: type) -> str | None:
    if issubclass(kind, tuple):  # a shape, such as torch.Size
        return None
    packages = [cls.__module__.partition(".")[0] for cls in kind.__mro__]
    packages = [_SYNONYMS.get(package, package) for package in packages if package != "builtins"]
    for package in packages:
        if package in _known or package in {entry.name for entry in plugins()}:
            return package
    return packages[0] if packages and hasattr(kind, "__array_namespace__") else None
