"""The problems of `portconv check`, by number: those that were designed, and drawn ones.

A number and a seed give the same problem and the same values on every machine and for every library.
"""

from __future__ import annotations

from dataclasses import replace

from ..testing.designed import DESIGNED
from ..testing.problems import Problem, Scope, draw

__all__ = ["COUNT", "QUICK_COUNT", "problem", "problems"]

COUNT, QUICK_COUNT = 120, 20  # drawn problems
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_SMALL = Scope(_DTYPES, products=1_500_000, elements=2**16)
_LARGE = Scope(_DTYPES, products=2**26, elements=2**23)
_EVERY = 12  # drawn problems, of which one may be large


def problems(seed: int, count: int = COUNT, quick: bool = False) -> list[Problem]:
    """The designed problems (without the slow ones if `quick`), and `count` drawn ones.

    Examples
    --------
    >>> chosen = problems(seed=0, count=2)
    >>> chosen[-1] == problem(chosen[-1].number, seed=0)
    True
    """
    fixed = [p for p in DESIGNED if not (quick and p.slow)]
    return fixed + [problem(len(DESIGNED) + k, seed) for k in range(count)]


def problem(number: int, seed: int) -> Problem:
    """The problem of a number. Engines and accuracies have their turns at it, so what was drawn of these is dropped."""
    if number < len(DESIGNED):
        return DESIGNED[number]
    drawn = number - len(DESIGNED)
    large = drawn % _EVERY == _EVERY - 1
    p = draw(seed, drawn, _LARGE if large else _SMALL)
    return replace(p, engine="auto", accuracy="normwise", number=number, name=f"drawn, {p.size_class}", slow=large)
