"""Run the examples of documents in whatever environment this is: `python tests/readme.py README.md`.

It needs Python's standard library and the package alone, so that an environment with nothing but NumPy shows what a
reader without the other array libraries sees. pytest runs the same examples where MLX is installed.

One rule leaves examples out: a paragraph of examples (what stands between two empty lines) with an `import` of an
optional array library that is not installed is skipped whole, and printed with its lines and the library. Nothing else
is: an example that fails for another reason fails, a later example that uses a name from a skipped paragraph too.
Exit status: 0; 1 if an example fails, or if a document has none that runs.
"""

import ast
import doctest
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

OPTIONAL = ("cupy", "dask", "jax", "mlx", "torch")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # as for pytest, in pyproject.toml


def paragraphs(examples, lines):
    """Group examples that no empty line separates."""
    groups = []
    for example in examples:
        if groups and all(line.strip() for line in lines[groups[-1][-1].lineno : example.lineno]):
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def missing_libraries(example):
    """Return the optional libraries that the example imports and that are not installed."""
    try:
        nodes = list(ast.walk(ast.parse(example.source)))
    except SyntaxError:  # the run will say it, unless the example expects it
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name for name in (name.partition(".")[0] for name in names) if name in OPTIONAL and find_spec(name) is None}


def run(path):
    """Run one document; return how many examples passed, failed and were skipped."""
    text = path.read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, path.name, str(path), 0)
    kept, skipped = [], 0
    for group in paragraphs(test.examples, text.splitlines()):
        if missing := set().union(*map(missing_libraries, group)):
            first, last = group[0].lineno + 1, group[-1].lineno + group[-1].source.count("\n")
            print(f"{path}: lines {first} to {last} skipped, not installed: {', '.join(sorted(missing))}")
            skipped += len(group)
        else:
            kept += group
    test.examples = kept
    if not test.examples:
        print(f"{path}: no example that runs here")
        return 0, 1, skipped
    failed, attempted = doctest.DocTestRunner(optionflags=FLAGS).run(test)
    return attempted - failed, failed, skipped


def main(paths):
    needed = ", ".join(f"{name} {version(name)}" for name in ("numpy", "array-api-compat"))
    found = ", ".join(name for name in OPTIONAL if find_spec(name))
    print(f"portconv {version('portconv')} with {needed}", f"and {found}" if found else "alone")
    passed, failed, skipped = (sum(counts) for counts in zip(*map(run, map(Path, paths)), strict=True))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["README.md"]))
