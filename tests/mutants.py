"""How many small errors in the code the tests notice: `make mutants SAMPLE=200 SEED=1`.

cosmic-ray lists the small changes ("mutants") that can be made in the modules of `mutants.toml`; what that file leaves
out is skipped, and a sample of the rest is drawn by the seed. Each mutant is written into a copy of the tree, one copy
for each worker, and the tests that run its line are run on it, in a process of its own. These tests are known from one
run of the suite under coverage.py. They come one case of each test first, quick ones before slow ones, as many as
passed within `seconds` there; so the tests without a mutant finish well within the limit, and a mutant that does not
let them finish is caught.

Everything is kept in .mutants: the coverage until the code or a test changes, and `session.sqlite`, which the reports
of cosmic-ray read (`cr-html`). Exit status: 0; 1 if fewer mutants than `least` percent are caught; 2 if a run is void.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import mutant_tests

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "tests" / "mutants.toml"
FOLDER = ROOT / ".mutants"
WORKERS = 2
COLUMNS = ("caught", "timeout", "survived", "no test", "equivalent")


def worker_folder(number):
    return FOLDER / f"worker-{number}"


def copy_tree(folder):
    """Copy the tree for a worker, who keeps the cache of its compiled code from the last time."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name != ".numba":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__"), dirs_exist_ok=True)


def measure(settings):
    """Find out which tests run which lines; return that for each tier, or exit if the tests cannot be run."""
    files = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py"))
    files = [f for f in files if not any(re.search(entry["file"], f) for entry in settings["left-out"])]
    files.append("tests/mutant_problems.py")
    shared = [ROOT / "tests/conftest.py", ROOT / "tests/mutant_tests.py", *sorted(ROOT.glob("tests/**/helpers.py"))]
    code = [*sorted(ROOT.glob("portconv/**/*.py")), *shared]
    common = hashlib.sha256(b"".join(path.read_bytes() for path in code)).digest()
    outputs, jobs = defaultdict(list), []
    for tier in mutant_tests.TIERS:
        for file in files if tier == "plain" else sorted(set(files) & set(settings["compiled"])):
            digest = hashlib.sha256(common + (ROOT / file).read_bytes()).hexdigest()[:16]
            outputs[tier].append(FOLDER / "coverage" / f"{tier}-{mutant_tests.label(file)}-{digest}.json")
            jobs.append((worker_folder(len(jobs) % WORKERS), file, tier, outputs[tier][-1]))
    with multiprocessing.Pool(WORKERS) as pool:
        errors = [error for error in pool.imap_unordered(mutant_tests.measure, jobs) if error]
    if errors:
        print(*errors, sep="\n", file=sys.stderr)
        sys.exit(2)
    covers = {tier: mutant_tests.Cover(outputs[tier]) for tier in mutant_tests.TIERS}
    for tier, cover in covers.items():
        for test in cover.failed:
            print(f"mutants.py: {test} fails without a mutant ({tier} tier): it is not used", file=sys.stderr)
    return covers


# Which mutants count


class Source:
    """What is at a position of a file: its line, the functions and the statement around it, types and texts."""

    def __init__(self, path):
        self.text = path.read_text(encoding="utf-8")
        self.lines, self.tree = self.text.splitlines(), ast.parse(self.text)
        self.parts = defaultdict(list)
        for node in ast.walk(self.tree):
            self.parts["annotation"] += filter(None, (getattr(node, name, None) for name in ("annotation", "returns")))
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                self.parts["text"] += [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]
            if isinstance(node, ast.JoinedStr):
                self.parts["text"].append(node)

    def within(self, kind, row, col):
        """Whether a position is in an annotation, or in the text of an error or of an f-string."""
        at = (row, len(self.lines[row - 1][:col].encode()))  # ast counts bytes
        nodes = self.parts[kind]
        return any((n.lineno, n.col_offset) <= at < (n.end_lineno, n.end_col_offset) for n in nodes)

    def around(self, row):
        """Return the names of the functions and classes around a line; and the lines of statement, function, file."""
        names, statement, function = [], (row, row), []
        for node in ast.walk(self.tree):  # outer ones first
            first = min([d.lineno for d in getattr(node, "decorator_list", ())], default=getattr(node, "lineno", 0))
            if not isinstance(node, ast.stmt) or not first <= row <= node.end_lineno:
                continue
            body = getattr(node, "body", [])
            if hasattr(node, "name"):
                names.append(node.name)
                function = [(body[0].lineno, node.end_lineno)]
            if not body:
                statement = (first, node.end_lineno)
            elif row < body[0].lineno:
                statement = (first, body[0].lineno - 1)
            else:
                statement = (row, row)
        return names, [statement, *function, (1, len(self.lines))]


def reason(entries, source, mutation):
    """Why the configuration leaves a mutant out, or None."""
    row, col = mutation.start_pos
    names, _ = source.around(row)
    for entry in entries:
        if (
            re.search(entry.get("file", ""), mutation.module_path.as_posix())
            and re.search(entry.get("line", ""), source.lines[row - 1])
            and re.search(entry.get("operator", ""), mutation.operator_name)
            and ("function" not in entry or any(re.fullmatch(entry["function"], name) for name in names))
            and ("within" not in entry or source.within(entry["within"], row, col))
        ):
            return entry["reason"]
    return None


def is_equivalent(entries, mutation, diff):
    """Whether the configuration lists a mutant as one that changes nothing, by its lines before and after."""
    lines = [line for line in diff.splitlines() if re.match(r"[-+](?!\+\+ |-- )", line)]
    before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    file = mutation.module_path.as_posix()
    return any((entry["file"], entry["before"], entry["after"]) == (file, before, after) for entry in entries)


def is_program(source, mutation):
    """Whether Python can read a mutant at all: any test would notice one that it cannot."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    try:
        compile(mutate_code(source.text, get_operator(mutation.operator_name)(), mutation.occurrence), "", "exec")
    except SyntaxError:
        return False
    return True


def draw(db, entries, sources, count, seed):
    """Leave the sample in the session and skip the rest; print how many mutants are left out, and why."""
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    skipped, counts = {}, Counter({"replacements of operators that tell nothing": db.num_results})
    pending = {item.job_id: item.mutations[0] for item in db.pending_work_items}
    for job, mutation in pending.items():
        if found := reason(entries, sources[mutation.module_path.as_posix()], mutation):
            skipped[job] = found
            counts[found] += 1
    every = [job for job in pending if job not in skipped]
    every.sort(key=lambda job: (str(pending[job].module_path), pending[job].operator_name, pending[job].occurrence))
    random.Random(seed).shuffle(every)
    sample, no_program = [], "drawn, but no program: a `*` or `/` of a signature or a call, taken for an operator"
    for job in every:
        if len(sample) == count:
            break
        if is_program(sources[pending[job].module_path.as_posix()], pending[job]):
            sample.append(job)
        else:
            skipped[job] = no_program
            counts[no_program] += 1
    notes = defaultdict(list)
    for job in pending.keys() - set(sample):
        notes[skipped.get(job, "not drawn")].append(job)
    for note, jobs in notes.items():
        db.set_multiple_results(jobs, WorkResult(WorkerOutcome.SKIPPED, output=note))
    print(f"{len(every)} mutants, of which {len(sample)} are drawn with seed {seed}. Left out:")
    for text, number in counts.most_common():
        print(f"{number:6}  {text}")


# Testing them


def start_worker(numbers):
    os.chdir(worker_folder(numbers.get()))


def work(job):
    """Test a mutant, in the copy where this process works."""
    from cosmic_ray.mutating import mutate_and_test

    item, tests, tier, timeout = job
    os.environ.update(mutant_tests.environment(Path.cwd(), tier))
    Path(".tests.json").write_text(json.dumps(tests))
    begin = time.monotonic()
    result = mutate_and_test(item.mutations, f"'{sys.executable}' tests/mutant_tests.py run .tests.json", timeout)
    return item, result, time.monotonic() - begin


def outcome_of(result, mutation, equivalent):
    """What became of a mutant; "void" where the tests could not begin."""
    summaries = re.findall(r"^(?:=+ )?(no tests ran|\d+ \w+).* in [\d.]+s", result.output, re.MULTILINE)
    ran = result.output == "timeout" or (summaries and summaries[-1] != "no tests ran")
    if result.worker_outcome != "normal" or result.test_outcome == "incompetent" or not ran:
        return "void"
    if is_equivalent(equivalent, mutation, result.diff):
        return "equivalent"
    if result.is_killed:
        return "timeout" if result.output == "timeout" else "caught"
    return "survived"


def report(counts, notes, least):
    """Print the table and what was not caught; return whether enough was."""
    width = max(map(len, [*counts, "module"]))
    total = sum(counts.values(), Counter())
    print(f"\n{'module':{width}}" + "".join(f"{column:>12}" for column in COLUMNS))
    for module, row in [*sorted(counts.items()), ("total", total)]:
        print(f"{module:{width}}" + "".join(f"{row[column]:12}" for column in COLUMNS))
    print(*notes, sep="\n\n")
    caught, every = total["caught"] + total["timeout"], sum(total.values()) - total["equivalent"]
    percent = 100 * caught / max(every, 1)
    print(f"\n{caught} of {every} caught: {percent:.1f} %; at least {least} % are asked for")
    return percent >= least


def main(sample, seed):
    import toml
    from cosmic_ray.work_db import WorkDB, use_db

    config = toml.loads(CONFIG.read_text())
    settings, session, scripts = config["tests"], FOLDER / "session.sqlite", Path(sys.executable).parent
    sources = {name: Source(ROOT / name) for name in config["cosmic-ray"]["module-path"]}
    for number in range(WORKERS):
        copy_tree(worker_folder(number))
    covers = measure(settings)
    session.unlink(missing_ok=True)
    for command in (["cosmic-ray", "init", CONFIG, session], ["cr-filter-operators", session, CONFIG]):
        subprocess.run([scripts / command[0], *command[1:]], cwd=ROOT, check=True)
    counts, notes, jobs, seconds = defaultdict(Counter), [], [], []
    with use_db(session, WorkDB.Mode.open) as db, multiprocessing.Manager() as manager:
        draw(db, config["left-out"], sources, sample, seed)
        for item in sorted(db.pending_work_items, key=lambda item: str(item.mutations)):
            file, row = item.mutations[0].module_path.as_posix(), item.mutations[0].start_pos[0]
            found = ((tier, cover.tests(file, sources[file].around(row)[1])) for tier, cover in covers.items())
            found = [(tier, covers[tier].choose(tests, settings["seconds"])) for tier, tests in found]
            if found := [(tests, tier) for tier, tests in found if tests]:  # the plain tier, where it runs the line
                jobs.append((item, *found[0], config["cosmic-ray"]["timeout"]))
            else:
                counts[file]["no test"] += 1
                notes.append(f"no test: {file}:{row}: {sources[file].lines[row - 1].strip()}")
        numbers = manager.Queue()
        for number in range(WORKERS):
            numbers.put(number)
        with multiprocessing.Pool(WORKERS, start_worker, (numbers,)) as pool:
            for item, result, took in pool.imap_unordered(work, jobs):
                db.set_result(item.job_id, result)
                mutation = item.mutations[0]
                outcome = outcome_of(result, mutation, config.get("equivalent", []))
                file, row = mutation.module_path.as_posix(), mutation.start_pos[0]
                counts[file][outcome] += 1
                seconds.append(took)
                if outcome in ("survived", "void"):
                    notes.append(f"{outcome}: {file}:{row}\n{result.output if outcome == 'void' else result.diff}")
                place = f"{len(seconds)}/{len(jobs)} {file}:{row} {mutation.operator_name}"
                print(f"{place}: {outcome}, {took:.0f} s", flush=True)
    enough = report(counts, notes, settings["least"])
    print(f"{sum(seconds) / max(len(seconds), 1):.1f} s for a mutant on average")
    return 2 if any(row["void"] for row in counts.values()) else int(not enough)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=200, help="mutants to draw (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: %(default)s)")
    arguments = parser.parse_args()
    sys.exit(main(arguments.sample, arguments.seed))
