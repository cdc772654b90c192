"""NumPy's steps and threads: what the `numpy` backend runs, and the `mlx` backend on a CPU device."""
