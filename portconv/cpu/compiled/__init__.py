"""The compiled tier: the engines' loops in Numba, on vector registers and threads. It needs the extra `portconv[jit]`.

`products.py` and `moves.py` have the innermost loops, made of `vectors.py`; `memory.py` has the windows. A folder for
each engine has its blocks, `kernels.py`, and binds them to problems, `plan.py`, on the common `base.py`. Nothing but
`plans.py` is called from outside, and nothing here is imported before a convolution on a CPU needs it.
"""
