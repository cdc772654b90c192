"""What `portconv check` and `portconv info` are made of: problems, their verification in a process for each library.

It uses portconv as its users do, by the public names only. Nothing here is loaded by `import portconv`.
"""
