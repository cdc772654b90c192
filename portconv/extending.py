"""What the author of a back end imports: the protocol, what passes between a back end and portconv, NumPy's engines.

A back end is an object with the members of `Backend`. One whose arrays NumPy can see without a copy gets portconv's own
engines from `host_candidates` and `host_plan`. Gradients are NumPy's, unless it is `Differentiable`, too; so are
activations and residuals, unless it is `Finishing`, and pooling and interpolation, unless it is `Windowing`. Transposed
convolutions need one that is `Assembling`. `conv2d` packs weights that may change unseen once, if it is `Showing`.
`portconv.register_backend`, or an entry point of the group ``portconv.backends``, makes it serve the arrays of its
library; `portconv.testing.check_backend` verifies it. `warmup_gradients` compiles ahead what NumPy's gradients need.
`examples/plugin` is a whole one.
"""

from .core.backend import (
    ArrayInfo,
    Assembling,
    Backend,
    Candidate,
    Differentiable,
    Finishing,
    PackedWeight,
    Plan,
    Showing,
    Windowing,
)
from .core.problem import Problem
from .cpu.bridge import host_candidates, host_plan
from .cpu.gradient import warmup_gradients
from .cpu.machine import host_environment

__all__ = [
    "ArrayInfo",
    "Assembling",
    "Backend",
    "Candidate",
    "Differentiable",
    "Finishing",
    "PackedWeight",
    "Plan",
    "Problem",
    "Showing",
    "Windowing",
    "host_candidates",
    "host_environment",
    "host_plan",
    "warmup_gradients",
]
