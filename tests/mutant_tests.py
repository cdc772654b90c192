"""The tests' part in `make mutants`: which tests run which line, and a run of some of them in a copy of the tree.

Started as a program in a copy of the tree it is one of

    python tests/mutant_tests.py measure OUTPUT FILE   # a test file under coverage.py, which is told the test
    python tests/mutant_tests.py run FILE              # the tests that FILE lists, in that order, until one fails
"""

import functools
import json
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

TIERS = ("plain", "compiled")


# In a copy of the tree


class Recorder:
    """A pytest plugin: tells coverage.py the test that runs, and notes how long it takes and whether it passes."""

    def __init__(self, cover):
        self.cover, self.seconds, self.outcomes = cover, defaultdict(float), {}

    def pytest_runtest_logstart(self, nodeid):
        # What an earlier test left in a cache would look as if this test did not run it.
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "portconv":
                for function in vars(module).values():
                    if isinstance(function, functools._lru_cache_wrapper):
                        function.cache_clear()
        self.cover.switch_context(nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.outcomes[report.nodeid] = report.outcome


def measure_here(output, file):
    """Run a test file under coverage; write which test runs which lines, and the seconds of those that pass."""
    from coverage import Coverage

    cover = Coverage(data_file=f"{output}.coverage", source=[str(Path.cwd() / "portconv")], config_file=False)
    recorder = Recorder(cover)
    cover.start()
    status = pytest.main(["-q", "-p", "no:cacheprovider", file], plugins=[recorder])
    cover.stop()
    cover.save()
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(status)
    seconds = {test: s for test, s in recorder.seconds.items() if test not in recorder.outcomes}
    failed = [test for test, outcome in recorder.outcomes.items() if outcome == "failed"]
    Path(output).write_text(json.dumps({"seconds": seconds, "failed": failed}))
    return 0


class InOrder:
    """A pytest plugin: runs the tests that are listed, in their order, and no others."""

    def __init__(self, tests):
        self.rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])


def run_here(file):
    """Run the tests of a list; the exit status is not 0 if one of them fails, or cannot be run any more."""
    tests = json.loads(Path(file).read_text())
    status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests], plugins=[InOrder(tests)])
    if status == pytest.ExitCode.USAGE_ERROR:
        # The mutant changed what a test is called by: those that are left are found among all of their files.
        files = dict.fromkeys(test.partition("::")[0] for test in tests)
        status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *files], plugins=[InOrder(tests)])
    return int(status)


# In the checkout


def environment(folder, tier):
    """Return the variables for tests in a copy: they import what lies there, and have caches of their own."""
    return {
        "COVERAGE_CORE": "ctrace",  # the one that can be told the test on every Python
        "NUMBA_CACHE_DIR": str(folder / ".numba"),
        "PORTCONV_JIT": "0" if tier == "plain" else "1",
        "PYTHONPATH": str(folder),
    }


def label(file):
    """A name for the results of a test file, which may be called like one in another folder."""
    return Path(file).with_suffix("").as_posix().removeprefix("tests/").replace("/", ".")


def measure(job):
    """Measure one test file in a tier, unless that was done with the same code; return an error or None."""
    folder, file, tier, output = job
    if output.exists():
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    for old in output.parent.glob(f"{tier}-{label(file)}-*"):
        old.unlink()
    begin, command = time.monotonic(), [sys.executable, "tests/mutant_tests.py", "measure", str(output), file]
    variables = {**os.environ, **environment(folder, tier)}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{file} ({tier}): exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    print(f"measured {file} ({tier} tier): {time.monotonic() - begin:.0f} s", flush=True)
    return None


class Cover:
    """Which tests run a line, and how long they take."""

    def __init__(self, outputs):
        from coverage import CoverageData

        self.seconds, self.failed, self.lines = {}, [], defaultdict(lambda: defaultdict(set))
        for output in outputs:
            found = json.loads(output.read_text())
            self.seconds |= found["seconds"]
            self.failed += found["failed"]
            data = CoverageData(f"{output}.coverage")
            data.read()
            for path in data.measured_files():
                file = re.sub(r".*/worker-\d+/", "", path.replace(os.sep, "/"))
                for line, tests in data.contexts_by_lineno(path).items():
                    self.lines[file][line].update(tests)

    def tests(self, file, spans):
        """Return the tests that run a statement; of one that runs on import, those of its function or its file."""
        for span, (first, last) in enumerate(spans):
            found = set().union(*(tests for line, tests in self.lines[file].items() if first <= line <= last))
            if tests := found & self.seconds.keys():
                return tests
            if span == 0 and "" not in found:
                break
        return set()

    def choose(self, tests, limit):
        """Return the tests to run, in order: a case of each test first, the quick ones first, within the limit."""
        cases = defaultdict(list)
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            cases[test.partition("[")[0]].append(test)
        # many cases of random problems come before second cases of other tests
        least = {name: 16 if "mutant_problems" in name else 1 for name in cases}
        ranked = sorted((n // least[name], self.seconds[t], t) for name, c in cases.items() for n, t in enumerate(c))
        chosen, total = [], 0.0
        for _, seconds, test in ranked:
            if total + seconds <= limit:
                chosen.append(test)
                total += seconds
        return chosen


if __name__ == "__main__":
    sys.exit({"measure": measure_here, "run": run_here}[sys.argv[1]](*sys.argv[2:]))
