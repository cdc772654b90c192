"""Compiled squeeze and excitation: `kernels.py` says how."""
