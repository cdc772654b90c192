"""Draws problems and verifies them for as long as one likes: `make fuzz SECONDS=600 BACKEND=numpy TIER=plain SEED=1`.

They are of all operations in turns, or of one: `OPERATION=conv2d`, or those beside it: `OPERATION=relatives`.
One process works and another one watches it, so that a problem that kills the process, or never ends, is a failure of
that problem like any other. A failure is made as small as it can be, and printed as one call that repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

SHOWN = ("operation", "engine", "tier", "dtype", "memory order", "size", "call")
LIMIT = 120.0  # seconds until a problem is given up


def arguments(given=None):
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=10**9, help="problems, if that comes first")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--operation", default="all", help="the name of a function; relatives: all but conv2d; or all")
    parser.add_argument("--device", default="")
    parser.add_argument("--tier", choices=("compiled", "plain"), default="compiled")
    parser.add_argument("--threads", type=int, default=0, help="1 or 2; by default drawn")
    parser.add_argument("--guard", action="store_true", help="whoever leaves the compiled tier's memory is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    parser.add_argument("--most", type=int, default=5, help="failures after which it ends")
    parser.add_argument("--shrink", type=float, default=60, help="seconds to look for a smaller problem that fails")
    parser.add_argument("--json", default="", help="file for the counts and the failures")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(given)


# --- the process that works -------------------------------------------------------------------------------------------


def work(options):
    """Verify one problem after the other; a line before each, and one after it."""
    from dataclasses import replace

    from portconv import testing
    from portconv.dispatch import path
    from tests import relatives

    if options.backend == "mlx" and options.device:
        import mlx.core as mx

        mx.set_default_device(getattr(mx, options.device))
    device = None if options.backend == "mlx" else options.device or None
    scope = testing.scope_of(options.backend, device)
    several = {"all": ("conv2d", *relatives.OPERATIONS), "relatives": relatives.OPERATIONS}
    operations = several.get(options.operation, (options.operation,))
    if not {*operations} <= {*several["all"]}:
        sys.exit(f"no operation is called {options.operation!r}; there are {', '.join((*several['all'], *several))}")
    guard = None
    if options.guard:
        import guard_pages

        guard = guard_pages.install()

    def say(**message):
        print(json.dumps(message), flush=True)

    def failed(p):
        say(trying=repr(p))
        try:
            room.verify(p, options.backend, device)
        except AssertionError:
            return True
        return False

    for number in range(options.first, options.first + options.count):
        operation = operations[number % len(operations)]
        room = testing if operation == "conv2d" else relatives
        drawn = () if room is testing else (operation,)
        p = room.draw(options.seed, number, scope, *drawn)
        if options.threads:
            p = replace(p, threads=options.threads)
        say(number=number, problem=repr(p), operation=operation)
        if guard is not None:
            guard.at_the_end = number % 2 == 0
            path.forget_plans()  # each table takes a part of what mappings of memory there may be
        call = "gradient" if p.gradient else p.call
        facts = {"operation": operation, "dtype": p.dtypes[0], "size": p.size_class, "call": call}
        try:
            found = room.verify(p, options.backend, device)
        except AssertionError as error:
            say(failed=str(error), smaller=repr(room.shrink(p, failed, options.shrink)), **facts)
            continue
        if found.share is None:
            say(refused=found.reason)
        else:
            orders = {order for order, shape in zip(p.orders, (1, 1, p.bias_shape), strict=True) if shape}
            say(share=found.share, engine=found.engine, tier=found.tier, orders=sorted(orders), **facts)


# --- the process that watches -----------------------------------------------------------------------------------------


class Watch:
    """Starts the worker, again after its death, and counts what it says."""

    def __init__(self, options):
        self.options = options
        self.counts = {name: Counter() for name in SHOWN}
        self.refused, self.failures = Counter(), []
        self.passed, self.worst = 0, 0.0
        self.now, self.trying, self.last = None, "", time.monotonic()
        self.room = ""  # what the current problem is imported from

    def run(self):
        end = time.monotonic() + self.options.seconds
        first, most = self.options.first, self.options.first + self.options.count
        while time.monotonic() < end and first < most and len(self.failures) < self.options.most:
            first = self._until_it_ends(first, most - first, end)

    def _until_it_ends(self, first, count, end):
        """The number to go on with."""
        o = self.options
        command = [
            sys.executable,
            "-X",
            "faulthandler",
            __file__,
            "--worker",
            "--first",
            str(first),
            "--count",
            str(count),
        ]
        for name in ("backend", "operation", "device", "tier", "threads", "seed", "shrink"):
            command += [f"--{name}", str(getattr(o, name))] if getattr(o, name) != "" else []
        command += ["--guard"] if o.guard else []
        root = str(Path(__file__).parent.parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        environment = {**os.environ, "PYTHONPATH": path, "PORTCONV_WISDOM": "0"}
        if o.tier == "plain":
            environment["PORTCONV_JIT"] = "0"
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        errors = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True)
        reader.start()
        watchdog = threading.Thread(target=self._watch, args=(process, end), daemon=True)
        self.now, self.last = None, time.monotonic() + LIMIT  # importing and compiling takes its time
        watchdog.start()
        for line in process.stdout:
            self.last = max(self.last, time.monotonic())
            self._hear(json.loads(line))
            if time.monotonic() > end or len(self.failures) >= o.most:
                break
        process.kill()
        process.wait()
        reader.join(5)
        ended = time.monotonic() > end or len(self.failures) >= o.most
        if self.now is None:
            if not ended and process.returncode not in (0, -9):
                sys.exit(f"make fuzz: the process ended with status {process.returncode}:\n{''.join(errors)}")
            return first + count
        number, problem = self.now
        if not ended:
            reason = f"the process ended with status {process.returncode}"
            if process.returncode == -9:
                reason = f"no answer within {LIMIT:g} s"
            self._fail(number, problem, f"{reason}; {''.join(errors)[-2000:]}", self.trying or problem)
        return number + 1

    def _watch(self, process, end):
        while process.poll() is None:
            if time.monotonic() > self.last + LIMIT or time.monotonic() > end + LIMIT:
                process.kill()
            time.sleep(0.5)

    def _hear(self, message):
        if "problem" in message:
            self.now, self.trying = (message["number"], message["problem"]), ""
            self.room = "portconv.testing" if message["operation"] == "conv2d" else "tests.relatives"
            return
        if "trying" in message:
            self.trying = message["trying"]
            return
        if "failed" in message:
            self._fail(*self.now, message["failed"], message["smaller"])
        elif "refused" in message:
            self.refused[message["refused"]] += 1
        else:
            self.passed += 1
            self.worst = max(self.worst, message["share"])
            for name in SHOWN:
                if message.get(name):
                    self.counts[name][message[name]] += 1
            self.counts["memory order"].update(message["orders"])
        self.now = None

    def _fail(self, number, problem, reason, smaller):
        self.failures.append({"number": number, "problem": problem, "reason": reason, "smaller": smaller})
        before = "PORTCONV_JIT=0 " if self.options.tier == "plain" else ""
        device = f", {self.options.device!r}" if self.options.device else ""
        call = f"from {self.room} import *; verify({smaller}, {self.options.backend!r}{device})"
        print(f"FAILED: problem {number} of seed {self.options.seed}: {reason}\n  {problem}\n  repeat it, smaller:")
        print(f"  {before}{sys.executable} -c {json.dumps(call)}\n", flush=True)
        if self.options.guard:
            o = self.options
            again = f"--backend {o.backend} --operation {o.operation} --tier {o.tier} --guard --seed {o.seed}"
            again += f" --first {number} --count 1"
            print(f"  or, with guarded memory: {sys.executable} tests/fuzz.py {again}\n", flush=True)

    def report(self):
        """Lines of what was computed and compared, and what was not."""
        lines = []
        for name, counter in self.counts.items():
            lines.append(f"  {name:<13}" + ", ".join(f"{key} {count}" for key, count in counter.most_common()))
        refused = sum(self.refused.values())
        lines.append(f"largest error: {self.worst:.3f} of the bound; {refused} calls refused, which are not counted")
        o = self.options
        what = f"{o.backend} {o.tier}, {o.operation}, seed {o.seed}" + (f", {o.threads} threads" if o.threads else "")
        lines.append(f"{what}: {self.passed} passed, {len(self.failures)} failed")
        return lines


def main():
    options = arguments()
    if options.worker:
        work(options)
        return 0
    start = time.monotonic()
    watch = Watch(options)
    watch.run()
    print(*watch.report(), sep="\n")
    if options.json:
        document = {
            "options": vars(options), "seconds": time.monotonic() - start, "passed": watch.passed, "worst": watch.worst,
            "counts": {name: dict(counter) for name, counter in watch.counts.items()}, "refused": dict(watch.refused),
            "failures": watch.failures,
        }  # fmt: skip
        Path(options.json).write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 1 if watch.failures or not watch.passed else 0


if __name__ == "__main__":
    sys.exit(main())
