"""Compiled long short-term memory: `kernels.py` says how."""
