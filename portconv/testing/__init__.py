"""What tests of convolutions need, portconv's own and others'.

`reference_conv2d` and `reference_gradients` are exact, `error_bound` and `assert_close` know what portconv promises,
`draw`, `verify` and `shrink` look for a call that breaks a promise, and `check_backend` is for authors of backends.
"""

from .backends import CheckResult, check_backend
from .bounds import assert_close, error_bound
from .oracle import Reference, reference_at, reference_conv2d, reference_gradients
from .problems import Problem, Scope, draw, fits
from .shrinking import shrink
from .values import make_data
from .verification import Outcome, scope_of, verify

__all__ = [
    "CheckResult",
    "Outcome",
    "Problem",
    "Reference",
    "Scope",
    "assert_close",
    "check_backend",
    "draw",
    "error_bound",
    "fits",
    "make_data",
    "reference_at",
    "reference_conv2d",
    "reference_gradients",
    "scope_of",
    "shrink",
    "verify",
]
