"""Runs the public suite of the array API standard on the namespace for MLX.

The suite is https://github.com/data-apis/array-api-tests, checked out with its submodule: `make array-api` does that,
at the commit that the Makefile names. The failures it may show are in `array_api_xfails.txt`, with their reasons.

    ARRAY_API_TESTS_DIR=... python tests/array_api.py [--max-examples 100] [other options of pytest] [tests]

As a pytest plugin, this file lets the suite compare dtypes with None, which in MLX raises TypeError.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def pytest_configure() -> None:
    """Dtypes compare with None: pytest itself does it to parameters of the suite's tests."""
    import mlx.core as mx

    equal = mx.Dtype.__eq__
    mx.Dtype.__eq__ = lambda a, b: isinstance(b, mx.Dtype) and equal(a, b)
    mx.Dtype.__ne__ = lambda a, b: not mx.Dtype.__eq__(a, b)


def main(arguments: list[str]) -> int:
    folder = os.environ.get("ARRAY_API_TESTS_DIR")
    if not folder or not Path(folder, "array_api_tests").is_dir():
        sys.stdout.write("Skipped: ARRAY_API_TESTS_DIR must name a checkout of data-apis/array-api-tests.\n")
        return 0
    folder = str(Path(folder).resolve())  # where pytest runs
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "ARRAY_API_TESTS_MODULE": "portconv.namespaces.mlx"}
    given = [argument for argument in arguments if argument.startswith("array_api_tests")]
    options = [argument for argument in arguments if argument not in given]
    command = [
        sys.executable, "-m", "pytest", "-p", "array_api", "-p", "no:cacheprovider", "-q", "--max-examples", "20",
        "--disable-deadline", "--disable-data-dependent-shapes",
        "--rootdir", folder,
        f"--xfails-file={HERE / 'array_api_xfails.txt'}", *options, *(given or ["array_api_tests"]),
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
