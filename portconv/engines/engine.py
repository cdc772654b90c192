"""What an engine is: an algorithm with a name, what it says of a problem, and how it is bound to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..core.backend import Candidate, EnginePlan
from ..core.problem import Problem
from .costs import Costs
from .steps import Steps

__all__ = ["Engine"]


class Engine(NamedTuple):
    """An algorithm. Both functions see sizes only; the steps say what the library has, and how much memory it allows.

    Attributes
    ----------
    name
        What users write as ``engine=``.
    candidate
        The estimate for a problem, or why the engine cannot run it.
    build
        The plan of a problem that it can run.
    """

    name: str
    candidate: Callable[[Problem, Steps, Costs], Candidate]
    build: Callable[[Problem, Steps, Costs], EnginePlan]
