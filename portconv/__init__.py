"""portconv: one `Conv2d` for NumPy, MLX, PyTorch, JAX and every other array API library."""

import importlib
from typing import TYPE_CHECKING, Any

from .core.version import __version__ as __version__

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """The public names, loaded with the first that is asked for: `portconv.namespaces.mlx` needs no convolution."""
    public = importlib.import_module("portconv.public")  # by `from . import` it would be asked for here, without end
    globals().update({each: getattr(public, each) for each in public.__all__}, __all__=public.__all__)
    if name in globals():  # modules among them, which these names have loaded
        return globals()[name]
    raise AttributeError(f"module 'portconv' has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    """The public names: what an editor offers."""
    return sorted([*importlib.import_module("portconv.public").__all__, "__version__"])
