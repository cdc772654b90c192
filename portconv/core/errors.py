"""The error types of portconv and the sentences that several modules share.

Every message names the argument in backticks, says what was expected and what came, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ModelError",
    "UnsupportedError",
    "WeightsError",
    "choices",
    "missing_library",
    "no_array",
]


class UnsupportedError(ValueError):
    """An engine or backend that the user named cannot run this problem; the message says why.

    Examples
    --------
    >>> import portconv
    >>> portconv.plan_conv2d((1, 1, 9, 9), (1, 1, 3, 3), engine="native")
    Traceback (most recent call last):
      ...
    portconv.core.errors.UnsupportedError: `engine` 'native' cannot run this with the backend 'numpy': NumPy has no ...
    """


class ModelError(ValueError):
    """A file of a network is damaged, makes no sense or needs what there is not here; the message says what.

    Examples
    --------
    >>> import tempfile
    >>> from portconv import onnx
    >>> with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
    ...     try:
    ...         onnx.load(file.name)
    ...     except onnx.ModelError:
    ...         print("it is empty")
    it is empty
    """


class WeightsError(ValueError):
    """A file of weights cannot be used, or does not say enough; the message names it and says how to mend that.

    Examples
    --------
    >>> import tempfile
    >>> from portconv import weights
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     try:
    ...         weights.load(file.name)
    ...     except weights.WeightsError:
    ...         print("it is empty")
    it is empty
    """


def choices(names: Iterable[str]) -> str:
    """`'a', 'b' or 'c'`, for messages that list what an argument may be."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def no_array(name: str, value: object) -> TypeError:
    """The error for an argument that is no array of any library."""
    mend = "Lists, numbers and images of Pillow become arrays by `numpy.asarray`."
    if name == "bias" and isinstance(value, (int, float)):  # `False`, or a stride
        mend = "It stands before the stride; without a bias it is None."
    if value is None:
        return TypeError(f"`{name}` must be an array, but got NoneType.")
    return TypeError(f"`{name}` must be an array, but got {type(value).__name__}. {mend}")


def missing_library(name: str, extra: str | None, cause: BaseException | None = None) -> ImportError:
    """The error for a library that is not installed, or is installed and cannot be imported."""
    how = f"pip install 'portconv[{extra}]'" if extra else f"pip install {name}"
    why = f" ({cause})" if cause is not None else ""
    error = ImportError(f"`backend` {name!r} needs a library that cannot be imported{why}. Install it with: {how}")
    error.__cause__ = cause
    return error
