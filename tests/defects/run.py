"""Whether the random problems and `portconv check` find small errors that were put into the code: `make defects`.

Every patch in this folder is a slip of one or two lines that a person may well make. It is applied to a copy of the
tree, and `tests/fuzz.py` looks for a problem that fails there and does not fail without the patch; so does `portconv
check --quick`. The text before the diff says what it breaks, and in lines of their own where to look:

    fuzz: BACKEND=numpy TIER=plain
    check: --library numpy

Exit status 0: the random problems found every defect that was tried within the time, and the check all but two.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Always the same one: compiled code is kept by the path of its source.
FOLDER = ROOT / ".defects"
TREE, CODE, LOCK = FOLDER / "tree", FOLDER / "numba", FOLDER / "lock"
KERNELS = "portconv/cpu/compiled/"
COMPILING = 240  # seconds more where the copy cannot use code that was compiled before
SHRINKING = 10  # seconds that may be spent on a smaller problem, once one is found
MISSED_BY_CHECK = 2  # defects that the check may overlook


class Defect(NamedTuple):
    """A patch, and where to look for what it breaks."""

    name: str
    backend: str
    tier: str
    check: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def patch(self) -> Path:
        return HERE / f"{self.name}.patch"

    @property
    def recompiles(self) -> bool:
        """Whether the code that was compiled for other copies is not its own."""
        return any(file.startswith(KERNELS) for file in self.files)


def defects(names=()) -> list[Defect]:
    """Those of these names, or all of this folder."""
    found = []
    for patch in sorted(HERE.glob("*.patch")):
        text = patch.read_text(encoding="utf-8")
        where = re.search(r"^fuzz: BACKEND=(\w+) TIER=(compiled|plain)$", text, re.MULTILINE)
        check = re.search(r"^check: (.+)$", text, re.MULTILINE)
        files = re.findall(r"^\+\+\+ b/(\S+)$", text, re.MULTILINE)
        if not (where and check and files):
            sys.exit(f"{patch.name}: a line `fuzz: BACKEND=... TIER=...`, a line `check: ...` or the diff is missing")
        found.append(Defect(patch.stem, where[1], where[2], tuple(check[1].split()), tuple(files)))
    for name in names:
        if name not in {d.name for d in found}:
            sys.exit(f"{name!r} is none of {', '.join(d.name for d in found)}")
    return [d for d in found if not names or d.name in names]


def apply(patch: Path, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`git apply` in a folder that need not be a repository."""
    # a tree that lies within a repository would be taken for a part of it
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    command = ["git", "apply", *options, str(patch)]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def tracked() -> list[str]:
    """The files that git knows; there are others beside them, of gigabytes."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        sys.exit(f"The defects are put into a copy of what git tracks, but {ROOT} is no git clone.")
    return subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")


def copy_tree(defect: Defect | None = None) -> None:
    """Make the copy anew, with the defect in it."""
    names = tracked()
    shutil.rmtree(TREE, ignore_errors=True)
    for name in names:
        if name and (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    if defect is not None and (done := apply(defect.patch, TREE)).returncode:
        sys.exit(f"{defect.patch.name} does not apply:\n{done.stderr}")


def environment(defect: Defect, tree: Path, patched: bool) -> dict[str, str]:
    """Of a process that imports portconv from this tree."""
    code = FOLDER / f"numba-{defect.name}" if patched and defect.recompiles else CODE
    tier = {"PORTCONV_JIT": "0"} if defect.tier == "plain" else {}
    others = {name: value for name, value in os.environ.items() if name != "PORTCONV_JIT"}
    return {**others, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(code), "PORTCONV_WISDOM": "0", **tier}


# --- the random problems ----------------------------------------------------------------------------------------------


def fuzz(defect: Defect, seed: int, limit: float) -> tuple[float | None, dict]:
    """The seconds until a problem failed, None if none did; and what there is to know of the failure."""
    result = FOLDER / "fuzz.json"
    first, spent = 0, 0.0
    limit += COMPILING * (defect.recompiles and defect.tier == "compiled")
    while spent < limit:
        result.unlink(missing_ok=True)
        command = [sys.executable, "tests/fuzz.py", "--seconds", f"{limit - spent:.0f}", "--most", "1"]
        command += ["--shrink", str(SHRINKING), "--backend", defect.backend, "--tier", defect.tier]
        command += ["--seed", str(seed), "--first", str(first), "--json", str(result)]
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=TREE, env=environment(defect, TREE, True), capture_output=True, text=True, check=False
        )
        spent += time.monotonic() - start
        if not result.is_file():
            return spent, {"number": first, "reason": f"the process died: {done.stderr[-500:]}"}
        failures = json.loads(result.read_text(encoding="utf-8"))["failures"]
        if not failures:
            return None, {}
        (failure,) = failures
        if passes_without(defect, failure["smaller"]):
            return spent, failure
        print(f"  problem {failure['number']} fails without the defect, too: {failure['smaller']}", flush=True)
        first = failure["number"] + 1
    return None, {}


def passes_without(defect: Defect, problem: str) -> bool:
    """Whether the tree without the defect keeps its promises on a problem."""
    code = f"from portconv.testing import Problem, verify; verify({problem}, {defect.backend!r})"
    command, where = [sys.executable, "-c", code], environment(defect, ROOT, False)
    try:
        done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, check=False, timeout=COMPILING)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


# --- `portconv check` -------------------------------------------------------------------------------------------------


_known: dict[tuple[str, ...], set[str]] = {}  # failures without any defect, by what was asked for


def check(defect: Defect) -> bool:
    """Whether the check fails with the defect, in a way in which it does not fail without."""
    found = failed_runs(defect, True)
    if not found:
        return False
    asked = (*defect.check, defect.tier)
    if asked not in _known:
        copy_tree()
        _known[asked] = failed_runs(defect, False)
    return bool(found - _known[asked])


def failed_runs(defect: Defect, patched: bool) -> set[str]:
    """The runs of the check that failed: library, problem, engine and so on."""
    result = FOLDER / "check.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "portconv", "check", *defect.check, "--quick", "--json", str(result)]
    done = subprocess.run(
        command, cwd=TREE, env=environment(defect, TREE, patched), capture_output=True, text=True, check=False
    )
    if not result.is_file():
        sys.exit(f"portconv check ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    document = json.loads(result.read_text(encoding="utf-8"))
    names = ("library", "device", "engine", "accuracy", "number")
    found = {" ".join(str(run[name]) for name in names) for run in document["runs"] if "failed" in run}
    return found | {f"{name}: given up" for name, library in document["libraries"].items() if library["error"]}


# --- the report -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="defects; by default all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the random problems")
    parser.add_argument("--seconds", type=float, default=300, help="for the random problems, of each defect")
    parser.add_argument("--no-check", action="store_true", help="leave out `portconv check`")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    try:
        LOCK.touch(exist_ok=False)
    except FileExistsError:
        sys.exit(
            f"another run is at work on {TREE}, and would delete this one's files; if there is none, delete {LOCK}"
        )
    try:
        return report(options)
    finally:
        LOCK.unlink()


def report(options: argparse.Namespace) -> int:
    """Try the defects one after the other, and print what found them; the exit status."""
    rows, missed, overlooked = [], 0, 0
    for defect in defects(options.names):
        print(f"{defect.name} ({defect.backend}, {defect.tier}) ...", flush=True)
        copy_tree(defect)
        seconds, failure = fuzz(defect, options.seed, options.seconds)
        missed += seconds is None
        by_fuzz = "no" if seconds is None else f"after {seconds:.0f} s (problem {failure['number']})"
        if failure:
            print(f"  {failure['reason'][:300]}\n  {failure.get('smaller', '')}", flush=True)
        by_check = "-"
        if not options.no_check:
            seen = check(defect)
            overlooked += not seen
            by_check = "yes" if seen else "no"
        rows.append((defect.name, by_fuzz, by_check))
        shutil.rmtree(FOLDER / f"numba-{defect.name}", ignore_errors=True)
    print(f"\n{'defect':<20}{'found by fuzz':<32}found by check")
    for name, by_fuzz, by_check in rows:
        print(f"{name:<20}{by_fuzz:<32}{by_check}")
    print(f"{len(rows) - missed} of {len(rows)} found by random problems of seed {options.seed}", end="")
    print("" if options.no_check else f", {len(rows) - overlooked} by portconv check --quick")
    return 1 if missed or overlooked > MISSED_BY_CHECK else 0


if __name__ == "__main__":
    sys.exit(main())
