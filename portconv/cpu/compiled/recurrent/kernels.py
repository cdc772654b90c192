"""Long short-term memory, some units at a time: their four gates, their cells and what they give, in registers.

A block is as many units as a vector has lanes. Its weights lie in the order in which they are read, term by term the
vectors of its four gates, so that nothing is read twice and no gate is ever written to memory.
"""

from __future__ import annotations

from typing import Any

from ..activations import sigmoid, tanh
from ..jobs import job_of, take
from ..kernel import address, inner, kernel, words
from ..vectors import I64, VECTOR_BYTES, Vectors, in_groups, intrinsic_of, loop
from .geometry import GATES, Geometry

__all__ = ["lstm"]

TOGETHER = 2 if VECTOR_BYTES == 32 else 4  # sequences whose gates are in registers at a time
ABREAST = 2  # sums of each gate where there is one sequence, so that none waits for another

_geometry = words(len(Geometry._fields))


def _units() -> Any:
    """One step of a block, for some sequences.

    Arguments: address of the weights, of what enters, of the state before, of the cells and of the state after; bytes
    between two gates of what enters, and in each of these between sequences; terms; sequences.
    """

    def generate(
        b: Any, v: Vectors, weights: Any, entering: Any, before: Any, cells: Any, after: Any, gate: Any,
        entering_step: Any, before_step: Any, cells_step: Any, after_step: Any, terms: Any, sequences: Any,
    ) -> None:  # fmt: skip
        line = GATES * VECTOR_BYTES

        def some(first: Any, many: int) -> None:
            abreast = ABREAST if many == 1 else 1
            states = [v.at(before, b.mul(b.add(first, I64(n)), before_step)) for n in range(many)]

            def added(k: Any, sums: list[Any], count: int) -> list[Any]:
                found = list(sums)
                for i in range(count):
                    term = b.add(b.mul(k, I64(count)), I64(i))
                    place = v.at(weights, b.mul(term, I64(line)))
                    factors = [v.load(v.at(place, g * VECTOR_BYTES)) for g in range(GATES)]
                    for n, state in enumerate(states):
                        value = v.load_splat(v.at(state, b.mul(term, I64(v.size))))
                        for g, factor in enumerate(factors):
                            at = (i * many + n) * GATES + g
                            found[at] = v.fma(factor, value, found[at])
                return found

            groups = b.sdiv(terms, I64(abreast))
            nothing = [v.zero] * (abreast * many * GATES)
            sums = loop(b, groups, nothing, lambda k, s: added(k, s, abreast), may_be_none=True)
            if abreast > 1:
                done = b.mul(groups, I64(abreast))
                rest = b.sub(terms, done)
                sums = loop(b, rest, sums, lambda k, s: added(b.add(k, done), s, 1), may_be_none=True)
            for n in range(many):
                which = b.add(first, I64(n))
                enters = v.at(entering, b.mul(which, entering_step))
                gates = []
                for g in range(GATES):
                    total = sums[n * GATES + g]
                    for i in range(1, abreast):
                        total = b.fadd(total, sums[(i * many + n) * GATES + g])
                    gates.append(b.fadd(total, v.load(v.at(enters, b.mul(gate, I64(g))))))
                opened, shown, kept = (sigmoid(v, value) for value in gates[:3])
                place = v.at(cells, b.mul(which, cells_step))
                cell = b.fadd(b.fmul(kept, v.load(place)), b.fmul(opened, tanh(v, gates[3])))
                v.store(cell, place)
                v.store(b.fmul(shown, tanh(v, cell)), v.at(after, b.mul(which, after_step)))

        in_groups(b, sequences, (TOGETHER, 1), some)

    return intrinsic_of(generate)


_step = _units()


@inner
def _some_units(job, part, weights, entering, first_state, cells, states, numbers):
    """Tasks are the directions, each with all steps; or the blocks of one direction and step, in shares of a thread.

    The weights of every other step are read from their end on: what a cache holds of them then is what was read last.
    """
    (tasks, shares, blocks, first_way, backward, first_step, length, steps, ways, sequences, units,
     terms) = _geometry(address(numbers))  # fmt: skip
    size = weights.itemsize
    line = units * size  # of a sequence
    every = ways * sequences * line  # of a step
    gates_line = ways * GATES * line
    block_bytes = terms * GATES * VECTOR_BYTES
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        way, low, high = first_way, 0, blocks
        if shares == 0:
            way = task
        else:
            share, i = divmod(task, tasks // shares)
            low, high = share * blocks // shares, (share + 1) * blocks // shares
            i = high - 1 - i if first_step & 1 else low + i
            if i < low or i >= high:
                continue
            low, high = i, i + 1
        turned = backward == 1 or way == 1
        own = way * sequences * line
        for step in range(first_step, first_step + length):
            t = steps - 1 - step if turned else step
            before = address(first_state) + own
            if step > 0:
                before = address(states) + (t + 1 if turned else t - 1) * every + own
            enters = address(entering) + t * sequences * gates_line + way * GATES * line
            for j in range(low, high):
                i = high - 1 - (j - low) if step & 1 and length > 1 else j
                at = i * VECTOR_BYTES
                _step(weights, (address(weights) + (way * blocks + i) * block_bytes, enters + at, before,
                                address(cells) + own + at, address(states) + t * every + own + at, line,
                                gates_line, line, line, line, terms, sequences))  # fmt: skip


_lstm = job_of(_some_units)


@kernel
def lstm(job, parts, patience, weights, entering, first_state, cells, states, numbers):
    """Some steps, as a job of the team."""
    return _lstm(job, parts, patience, (weights, entering, first_state, cells, states, numbers))
