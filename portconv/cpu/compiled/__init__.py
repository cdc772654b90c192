"""The compiled tier: the engines' loops in Numba, on vector registers and threads. It needs the extra `portconv[jit]`.

`vectors.py` has the innermost loops, `memory.py` the windows, and one file for each engine its blocks; the files
`..._plan.py` bind them to problems, on the common `base.py`. Nothing but `plans.py` is called from outside, and nothing
here is imported before a convolution on a CPU needs it.
"""
