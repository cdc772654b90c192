"""A job of a team: tasks that its threads take one after the other, from counters that they share.

Each thread begins with a part of its own, the same in each call, since much of what it reads and writes is then in its
core's cache already; when it is done it takes tasks of the others' parts. So a thread that has no core at the moment
delays nobody. The caller takes tasks as well. It waits in the end, and then for those alone who have begun one.

All that the threads share is a block of words. Its first word, the state, tells the job's number, whether it is open,
how many threads have joined it and how many are still at work; joining and closing are atomic changes of that word. so
a thread that comes too late for a job cannot join it, and what it has read of the job before it joins is that job's.

A job may be done by the threads of an OpenMP library in the place of the team's: that is so while the block holds the
addresses of two functions of such a library. Nobody joins then, and that library sees to it that all are done.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .kernel import compiled_for, declared, inner, kernel
from .vectors import I32, I64

__all__ = [
    "ALERT",
    "ANYWHERE",
    "APART",
    "CAN_SLEEP",
    "COUNTERS",
    "NUMBER",
    "PARALLEL",
    "active",
    "current_core",
    "is_open",
    "job_of",
    "pauses",
    "serve",
    "take",
]

# Words of a block. Those that different threads write lie two lines of the cache apart: lines are fetched in pairs.
WORD = 8
APART = 16
STATE, SLEEPERS, ARGUMENTS = 0, APART, 3 * APART
FUNCTION, PARTS, CORE, ALERT = range(2 * APART, 2 * APART + 4)
# `GOMP_parallel` and `omp_get_thread_num` of an OpenMP library whose threads do the job; 0: the team's do.
PARALLEL, NUMBER = range(2 * APART + 4, 2 * APART + 6)
COUNTERS = 1024  # the first part's; the arguments of a job end before it

# The state: threads at work, threads that have joined, whether more may join, and the number of the job.
ACTIVE, JOINED, OPEN, JOB = 1, 1 << 10, 1 << 20, 1 << 21
FIELD = (1 << 10) - 1  # of the two counts
ANYWHERE = -1  # for the core of a thread that may run on any

_pointer = I64.as_pointer()
_void = ir.VoidType()

# --- what the words are changed by ------------------------------------------------------------------------------------


def _instruction(result: Any, generate: Callable[..., Any]) -> Any:
    """An intrinsic of a tuple of integers, the first of which is a block: its code is written by `generate`."""

    def typed(_context: Any, integers: Any) -> Any:
        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            value = generate(b, *cgutils.unpack_tuple(b, args[0]))
            return context.get_dummy_value() if value is None else value

        return result(types.UniTuple(types.int64, len(integers))), lower

    return intrinsic(typed)


def _address(b: Any, block: Any, word: int) -> Any:
    return b.add(block, I64(word * WORD))


def _word(b: Any, block: Any, which: Any) -> Any:
    return b.inttoptr(b.add(block, b.mul(which, I64(WORD))), _pointer)


def _call(b: Any, name: str, result: Any, *given: Any) -> Any:
    """A call of a function of the C library."""
    kind = ir.FunctionType(result, [value.type for value in given])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), given)


def _exchange(b: Any, block: Any, expected: Any, new: Any) -> Any:
    return b.extract_value(b.cmpxchg(_word(b, block, I64(STATE)), expected, new, "seq_cst", "seq_cst"), 1)


def _do_described(b: Any, block: Any, part: Any) -> None:
    kind = ir.FunctionType(_void, [I64, I64]).as_pointer()
    b.call(b.inttoptr(b.load(_word(b, block, I64(FUNCTION))), kind), [block, part])


def _do_in_openmp(b: Any, block: Any) -> None:
    """A parallel region of as many threads as the library gives: other counts would end threads, and make new ones."""
    member = ir.Function(b.module, ir.FunctionType(_void, [I64]), b.module.get_unique_name("member"))
    member.linkage = "internal"
    c = ir.IRBuilder(member.append_basic_block())
    number = c.inttoptr(c.load(_word(c, member.args[0], I64(NUMBER))), ir.FunctionType(I32, []).as_pointer())
    part = c.sext(c.call(number, []), I64)
    with c.if_then(c.icmp_signed("<", part, c.load(_word(c, member.args[0], I64(PARTS))))):
        _do_described(c, member.args[0], part)
    c.ret_void()
    kind = ir.FunctionType(_void, [I64, I64, I32, I32]).as_pointer()
    parallel = b.inttoptr(b.load(_word(b, block, I64(PARALLEL))), kind)
    b.call(parallel, [b.ptrtoint(member, I64), block, I32(0), I32(0)])


def _store_word(b: Any, block: Any, word: Any, value: Any) -> None:
    b.store(value, _word(b, block, word))


# (block, word): its value, and with it all that was written before it was
_load = _instruction(types.int64, lambda b, block, word: b.load_atomic(_word(b, block, word), "seq_cst", WORD))
# (block, word, value)
_store = _instruction(types.void, _store_word)
# (block, word, difference): its value before
_add = _instruction(types.int64, lambda b, block, word, n: b.atomic_rmw("add", _word(b, block, word), n, "seq_cst"))
# (block, expected state, new one): whether it was the expected one, and is the new one now
_replace = _instruction(types.boolean, _exchange)
# (block, part): does the job that is described in the block
_do = _instruction(types.void, _do_described)
# (block,): the same by all threads of the OpenMP library, the calling one among them
_do_together = _instruction(types.void, _do_in_openmp)


@inner
def take(block, part, tasks):
    """The number of one of so many tasks that nobody has taken yet, or one beyond them if there is none."""
    parts = _load((block, PARTS))
    for i in range(parts):
        owner = part + i if part + i < parts else part + i - parts
        task = owner * tasks // parts + _add((block, COUNTERS + owner * APART, 1))
        if task < (owner + 1) * tasks // parts:
            return task
    return tasks


# --- waiting ----------------------------------------------------------------------------------------------------------

# What a thread does that waits at work: the other thread of its core goes first.
_X86: tuple[str, list[Any]] = ("llvm.x86.sse2.pause", [])
_ARM: tuple[str, list[Any]] = ("llvm.aarch64.hint", [I32(1)])
_PAUSE = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(platform.machine())
# Linux's number of the system call by which threads sleep until a word has changed and somebody wakes them.
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
_WAIT, _WAKE = 9 | 128, 10 | 128  # for those whose bits are among the caller's; of this process alone
ALL_BITS = 0xFFFFFFFF
CAN_SLEEP = _FUTEX is not None  # in compiled code, without Python's help


def _pause_once(b: Any, _block: Any) -> None:
    if _PAUSE is not None:
        _call(b, _PAUSE[0], _void, *_PAUSE[1])


def _current_core(b: Any, _block: Any) -> Any:
    return b.sext(_call(b, "sched_getcpu", I32), I64) if CAN_SLEEP else I64(ANYWHERE)


def _futex(what: int) -> Callable[..., None]:
    def generate(b: Any, block: Any, value: Any, bits: Any) -> None:
        if _FUTEX is not None:
            kind = ir.FunctionType(I64, [I64], var_arg=True)
            call = cgutils.get_or_insert_function(b.module, kind, "syscall")
            b.call(call, [I64(_FUTEX), _address(b, block, STATE), I64(what), value, I64(0), I64(0), bits])

    return generate


_pause = _instruction(types.void, _pause_once)
_core = _instruction(types.int64, _current_core)
# (block, state, bits): sleep, if the state is still this one
_sleep = _instruction(types.void, _futex(_WAIT))
# (block, how many, bits): wake threads
_wake = _instruction(types.void, _futex(_WAKE))


@inner
def _bits_of(core):
    return ALL_BITS if core == ANYWHERE else 1 << (core & 31)


# --- jobs -------------------------------------------------------------------------------------------------------------


def job_of(function: Any) -> Any:
    """For compiled code: a function that does a job, on threads that join it meanwhile and on the calling one.

    The job is `function(block, part, *arguments)`, in which every thread takes tasks until there are no more; part 0 is
    the calling thread's. The function that is returned has the arguments `(block, parts, patience, arguments)`; it
    returns how many threads are still at work after as many pauses as its caller has patience for.
    """

    def typed(_context: Any, _block: Any, _parts: Any, _patience: Any, arguments: Any) -> Any:
        given, counts = (types.int64, types.int64, *arguments.types), (types.int64,) * 3
        compiled_for(function, given)
        compiled_for(_run, counts)

        def lower(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            block = args[0]
            kind = context.get_value_type(arguments)
            if context.get_abi_sizeof(kind) > (COUNTERS - ARGUMENTS) * WORD:
                raise ValueError("the arguments of a job are more than its block has room for")
            call = ir.Function(b.module, ir.FunctionType(_void, [I64, I64]), b.module.get_unique_name("job"))
            call.linkage = "internal"
            c = ir.IRBuilder(call.append_basic_block())
            memory = c.inttoptr(_address(c, call.args[0], ARGUMENTS), kind.as_pointer())
            unpacked = cgutils.unpack_tuple(c, c.load(memory, align=WORD), len(arguments))
            callee = declared(context, b.module, function, given)
            context.call_conv.call_function(c, callee, types.none, given, [*call.args, *unpacked])
            c.ret_void()
            # how to call it stands in the block before a thread can join
            b.store(args[3], b.inttoptr(_address(b, block, ARGUMENTS), kind.as_pointer()), align=WORD)
            b.store(b.ptrtoint(call, I64), _word(b, block, I64(FUNCTION)))
            run = declared(context, b.module, _run, counts)
            return context.call_conv.call_function(b, run, types.int64, counts, args[:3])[1]

        return types.int64(*counts, arguments), lower

    return intrinsic(typed)


@inner
def _run(block, parts, patience):
    """The job that is described in the block; see `job_of`."""
    for owner in range(parts):
        _store((block, COUNTERS + owner * APART, 0))
    _store((block, PARTS, parts))
    if parts > 1 and _load((block, PARALLEL)) != 0:
        _do_together((block,))
        return 0
    if parts > 1:
        core = _core((block,))
        moved = core != _load((block, CORE))
        _store((block, CORE, core))
        # no thread has joined this one yet
        state = _load((block, STATE))
        _add((block, STATE, JOB + OPEN - (state & (FIELD * JOINED))))
        if moved:  # the thread whose core the caller had may sleep
            _wake((block, parts, ALL_BITS))
        elif _load((block, SLEEPERS)) > 0:
            _wake((block, parts, ALL_BITS if core == ANYWHERE else ALL_BITS ^ _bits_of(core)))
    _do((block, 0))
    if parts < 2:
        return 0
    left = _add((block, STATE, -OPEN)) & FIELD
    while left > 0 and patience > 0:
        _pause((block,))
        patience -= 1
        left = _load((block, STATE)) & FIELD
    return left


@kernel
def active(block):
    """How many threads are at work on the block's job besides the caller."""
    return _load((block, STATE)) & FIELD


@kernel
def is_open(block):
    """Whether the block has a job that more threads may join."""
    return _load((block, STATE)) & OPEN != 0


@kernel
def serve(block, core, last, can_sleep):
    """Join the jobs after number `last`, on the only `core` that this thread may use; the number of the last job.

    Waking a thread takes as long as a small layer. So a thread that finds no job waits at work, for as many pauses as
    the block's word ALERT says, and then sleeps until there is one, or returns where it cannot sleep. It does not keep
    its core for longer: after a product of NumPy's, the threads of BLAS hold their cores for milliseconds, and a thread
    that waits at work beside them comes behind them, while one that wakes goes first.
    """
    waited = 0
    while True:
        state = _load((block, STATE))
        theirs = False  # whether a caller has this core
        if state & OPEN and state // JOB != last:
            joined = state // JOINED & FIELD
            theirs = core != ANYWHERE and core == _load((block, CORE))
            if not theirs:
                if joined + 1 >= _load((block, PARTS)):
                    last = state // JOB
                elif _replace((block, state, state + ACTIVE + JOINED)):
                    last = state // JOB
                    _do((block, joined + 1))
                    _add((block, STATE, -ACTIVE))
                    waited = 0
                continue
        elif waited < _load((block, ALERT)):
            _pause((block,))
            waited += 1
            continue
        if not can_sleep:
            return last
        counted = 0 if theirs else 1  # a caller wakes nobody on its own core, and so need not try
        _add((block, SLEEPERS, counted))
        _sleep((block, state & ALL_BITS, _bits_of(core)))
        _add((block, SLEEPERS, -counted))
        waited = 0


@kernel
def current_core(block):
    """The core that this thread runs on, or `ANYWHERE` where that cannot be told."""
    return _core((block,))


@kernel
def pauses(block, count):
    """So many pauses, to see how long they take."""
    for _ in range(count):
        _pause((block,))
