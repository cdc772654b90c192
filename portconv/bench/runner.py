"""Runs the workers: one library after the other, each in a process of its own, which may die without harm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from ..processes.session import Message, Session, Settings, Target
from . import rounds
from .layers import Layer
from .timing import Prepare, answers

__all__ = [
    *("IN_TURNS", "Task", "Timed", "better", "handle_task", "keep_best_network"),
    *("run_all", "run_network", "run_target", "run_turns"),
]

# What portconv chooses and the library's own routine are compared: on the same arrays, in turns.
IN_TURNS = ("auto", "native")


@dataclass(frozen=True)
class Task:
    """One measurement: a layer, for portconv with an engine, on a device (the library's default where it is empty)."""

    layer: Layer
    engine: str = "auto"
    device: str = ""


@dataclass
class Timed:
    """What is known of a target: its greeting, and the answers to its tasks."""

    hello: Message = field(default_factory=dict)
    answers: dict[Task, Message] = field(default_factory=dict)


def run_target(
    target: Target, tasks: Sequence[Task], settings: Settings, progress: Callable[[Task, Message], object]
) -> Timed:
    """Time the tasks, one after the other, those of `IN_TURNS` together.

    A task that kills the worker costs that task only: what was lost together is asked for one by one.
    """
    timed = Timed()
    with Session(target, settings) as session:
        pending = _together(tasks)
        while pending:
            group = pending.pop(0)
            one = group[0]
            message = {"layer": one.layer.to_json(), "engines": [t.engine for t in group], "device": one.device}
            found = session.ask({**message, "budget": settings.budget}, settings.limit * len(group))
            timed.hello = session.hello
            if "missing" in found:
                break
            if "error" in found and len(group) > 1:
                pending = [[task] for task in group] + pending
                continue
            for task, answer in zip(group, found.get("answers", [found]), strict=True):
                timed.answers[task] = answer
                progress(task, answer)
    return timed


def _together(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks in groups: those of `IN_TURNS` on a layer and a device are one, the others stand alone."""
    groups: list[list[Task]] = []
    for (_, _, turns), members in groupby(tasks, lambda t: (t.layer, t.device, t.engine in IN_TURNS)):
        group = list(members)
        groups += [group] if turns else [[task] for task in group]
    return groups


def run_network(target: Target, layers: Sequence[Layer], settings: Settings, check: bool) -> tuple[Message, Message]:
    """The greeting of a worker, and the figures of a whole network in it; it is checked in a process before that.

    The check fills the cache of compiled code, too, and leaves nothing in the memory of the process that is timed.
    """
    message = {"network": [layer.to_json() for layer in layers], "budget": settings.budget}
    checked: Message = {}
    if check:
        with Session(target, settings) as session:
            checked = session.ask({**message, "check": True})
            if "error_share" not in checked:
                return session.hello, checked
    with Session(target, settings) as session:
        found = session.ask({**message, "check": False})
        return session.hello, {**checked, **found}


def run_turns(target: Target, device: str, layers: Sequence[Layer], settings: Settings) -> Message:
    """The figures of a whole network on a device by each of `IN_TURNS`, by its name, as `rounds.answer_turns` has them.

    `missing` if there is no such library, and `error` if the worker was lost.
    """
    message = {"network": [layer.to_json() for layer in layers], "engines": IN_TURNS, "device": device}
    with Session(target, settings) as session:
        return session.ask({**message, "budget": settings.budget})


def handle_task(prepare: Callable[[str, str], Prepare], message: Message) -> Message:
    """A worker's answer to a task, or on a whole network; `prepare` is of an engine and a device."""
    if "network" in message:
        layers = [Layer.from_json(record) for record in message["network"]]
        if "engines" in message:
            named = {engine: prepare(engine, message["device"]) for engine in message["engines"]}
            return rounds.answer_turns(named, layers, message["budget"])
        if message["check"]:
            return rounds.answer_check(prepare("auto", ""), layers)
        return rounds.answer_network(prepare("auto", ""), layers, message["budget"])
    layer = Layer.from_json(message["layer"])
    prepares = [prepare(engine, message["device"]) for engine in message["engines"]]
    return {"answers": answers(prepares, layer, message["budget"])}


def run_all(
    jobs: Mapping[Target, Sequence[Task]],
    settings: Settings,
    passes: int,
    progress: Callable[[Target, Task, Message], object],
) -> dict[str, Timed]:
    """Every target over its tasks, strictly one at a time, `passes` times; what is known of each, by its name."""
    results = {target.name: Timed() for target in jobs}
    for _ in range(passes):
        for target, tasks in jobs.items():
            before = results[target.name]
            pending = [task for task in tasks if "error" not in before.answers.get(task, {})]
            if pending and "missing" not in before.hello:
                now = run_target(target, pending, settings, partial(progress, target))
                results[target.name] = keep_best(before, now)
    return results


def keep_best(before: Timed, now: Timed) -> Timed:
    """The better of two passes. An error in either stands, so that a wrong result cannot hide behind a right one."""
    kept = dict(before.answers)
    for task, found in now.answers.items():
        kept[task] = better(kept.get(task), found)
    return Timed({**before.hello, **now.hello}, kept)


def better(before: Message | None, now: Message) -> Message:
    """The better of two answers; an error in either stands."""
    if before is None or ("error" not in before and ("error" in now or _rank(now) < _rank(before))):
        return now
    return before


def keep_best_network(before: Message | None, now: Message) -> Message:
    """The better of two answers on a network, with the least memory, and the least time of the first pass, of both."""
    if before is None or "best_ms" not in before or "best_ms" not in now:
        return before if before is not None and "error" in before else now
    best = before if _rank(before) <= _rank(now) else now
    least = ("build_ms", "first_ms", "second_ms", "process_bytes", "network_bytes")
    return {**before, **best, **{key: min(before[key], now[key]) for key in least}}


def _rank(message: Message) -> tuple[bool, float]:
    """A time that nothing disturbed is better than any other."""
    return bool(message.get("disturbed")), float(message.get("best_ms", float("inf")))
