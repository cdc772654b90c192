"""What `portconv bench` and the repository's `benchmarks/` share: layers, checks, clocks, workers, tables and charts.

It uses portconv as its users do, by the public names only. Nothing here is loaded by `import portconv`.
"""
