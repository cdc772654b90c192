"""How many threads a convolution uses, and that many callers, forks and errors leave it usable."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from functools import cache

import numpy as np
import pytest

import portconv
from portconv.cpu import blas, threads
from portconv.cpu.steps import NumpySteps
from portconv.dispatch import path
from portconv.testing import assert_close, reference_conv2d
from tests.helpers import numbers

try:
    from portconv.cpu.compiled import team
except ImportError:  # without Numba there is the plain tier alone
    team = None

CORES = threads.usable_cores()
ENGINES = ("gemm", "winograd", "fft", "direct")
PLAIN_THREADS = ("direct", "fft")  # the engines that use portconv's own threads in the plain tier
two_cores = pytest.mark.skipif(CORES < 2, reason="this process has one core only")


@pytest.fixture(autouse=True)
def _restored():
    before = portconv.get_num_threads()
    yield
    portconv.set_num_threads(before)


# x shape, weight shape, arguments: enough tasks for several threads, of every form that an engine takes
PROBLEMS = {
    "3x3": ((2, 32, 40, 41), (24, 32, 3, 3), {"padding": 1}),
    "3x3, many channels": ((1, 320, 14, 14), (330, 320, 3, 3), {"padding": 1}),
    "5x5": ((1, 48, 30, 30), (16, 48, 5, 5), {"padding": 2}),
    "1x1": ((2, 64, 28, 28), (64, 64, 1, 1), {}),
    "1x1, small image": ((1, 256, 4, 4), (512, 256, 1, 1), {}),
    "depthwise": ((1, 32, 60, 61), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    "stride": ((1, 3, 97, 98), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
    "dilation, reflect": ((1, 8, 50, 50), (8, 8, 3, 3), {"dilation": 3, "padding": 3, "padding_mode": "reflect"}),
    "NHWC": ((2, 30, 31, 16), (24, 16, 3, 3), {"padding": 1, "layout": "NHWC"}),
    "blur": ((1, 1, 200, 220), (1, 1, 15, 15), {"padding": 7}),
}


def problem(name, dtype="f4"):
    x_shape, weight_shape, options = PROBLEMS[name]
    return numbers(x_shape, dtype=dtype), numbers(weight_shape, 1, dtype), options


@cache
def reference_of(name, dtype):
    x, weight, options = problem(name, dtype)
    return reference_conv2d(x, weight, **options)


# --- the setting ------------------------------------------------------------------------------------------------------


def test_the_default_is_what_the_process_may_use():
    assert 1 <= portconv.get_num_threads() <= CORES


@pytest.mark.parametrize("count", [1.0, 2.5, True, False, np.True_, "2", None, [2], np.float32(2)])
def test_a_count_is_an_integer(count):
    before = portconv.get_num_threads()
    with pytest.raises(TypeError, match="`count`"):
        portconv.set_num_threads(count)
    assert portconv.get_num_threads() == before


@pytest.mark.parametrize("count", [0, -1, np.int64(0), -(2**40), 2**31])
def test_a_count_is_at_least_one(count):
    before = portconv.get_num_threads()
    with pytest.raises(ValueError, match="`count`"):
        portconv.set_num_threads(count)
    assert portconv.get_num_threads() == before


@pytest.mark.parametrize("count", [1, 2, np.int64(1), np.uint8(2), 1000])
def test_a_count_is_kept(count):
    portconv.set_num_threads(count)
    assert portconv.get_num_threads() == min(int(count), CORES)
    assert type(portconv.get_num_threads()) is int


@pytest.mark.parametrize("text", ["1", " 1 ", "2", "64", ""])
def test_the_environment_sets_it(run_python, text):
    out = run_python("import portconv; print(portconv.get_num_threads())", PORTCONV_NUM_THREADS=text)
    if text.strip():
        assert int(out) == min(int(text), CORES)
    else:
        assert 1 <= int(out) <= CORES


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1,2", "\u00b2"])
def test_nonsense_in_the_environment_is_refused(run_python, text):
    """By a message that names the variable, when the number is needed, and not by an import."""
    run_python(
        """
        import numpy as np, portconv
        for call in (portconv.get_num_threads, lambda: portconv.conv2d(*(np.ones((1, 4, 9, 9), "f4"),) * 2)):
            try:
                call()
            except ValueError as error:
                assert "`PORTCONV_NUM_THREADS`" in str(error), error
            else:
                raise AssertionError("accepted")
        portconv.set_num_threads(1)  # says what the environment did not
        assert portconv.get_num_threads() == 1
        portconv.conv2d(*(np.ones((1, 4, 9, 9), "f4"),) * 2)
        """,
        PORTCONV_NUM_THREADS=text,
    )


def test_what_the_program_says_counts_more_than_the_environment(run_python):
    out = run_python(
        """
        import portconv
        portconv.set_num_threads(2)
        print(portconv.get_num_threads())
        """,
        PORTCONV_NUM_THREADS="1",
    )
    assert int(out) == min(2, CORES)


@pytest.mark.parametrize("own", ["", "2"])
def test_the_setting_of_blas_counts_where_there_is_no_other(run_python, own):
    code = "import portconv; print(portconv.get_num_threads())"
    out = run_python(code, OMP_NUM_THREADS="1", PORTCONV_NUM_THREADS=own)
    assert int(out) == min(int(own or 1), CORES)


# --- its effect -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted(monkeypatch):
    """The number of parts of every job, 1 where its caller is alone, and of threads of the plain tier's pool."""
    parts, run = [], threads.run
    launch = team and team.launch

    def counted_launch(job, most, *arguments):
        def noted(block, count, *rest):
            parts.append(count)
            return job(block, count, *rest)

        launch(noted, most, *arguments)

    def counted_run(task, items, count):
        parts.append(min(count, len(items)))
        return run(task, items, count)

    with monkeypatch.context() as patch:
        if team is not None:
            patch.setattr(team, "launch", counted_launch)
        patch.setattr(threads, "run", counted_run)
        yield parts
        if not parts:  # the plain tier does alone what has one part
            parts.append(1)


@two_cores
@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_a_convolution_uses_that_many(engine, tier, monkeypatch, needs):
    """Plans that were made under another setting, too."""
    x, weight, options = problem("3x3" if engine != "fft" else "blur")
    x = np.concatenate([x] * 8)
    for count in (2, 1, 2, 1):
        portconv.set_num_threads(count)
        with counted(monkeypatch) as parts:
            portconv.conv2d(x, weight, **options, engine=engine)
        assert max(parts) == count or (tier == "plain" and engine not in PLAIN_THREADS and max(parts) == 1)


def test_limits_that_overlap_without_nesting(monkeypatch):
    """Of two threads the first to come leaves first: the limit stays for the second, and ends with it."""
    now = [8]
    setting = blas._Setting(lambda: now[0], lambda count: now.__setitem__(0, count))
    monkeypatch.setattr(blas, "_setting", lambda: setting)
    first, second = blas.limited(1), blas.limited(1)
    with first:
        second.__enter__()
    assert now == [1]
    second.__exit__(None, None, None)
    assert now == [8]


@two_cores
@pytest.mark.parametrize("engine", ["gemm", "winograd"])
def test_blas_keeps_to_the_setting(engine, plain_tier, monkeypatch):
    """In the plain tier, whose products are NumPy's; and its own setting is what it was."""
    if not blas.can_limit():
        pytest.skip("NumPy's BLAS is not an OpenBLAS of its wheels")
    seen, matmul = [], np.matmul

    def recorded(*args, **kwargs):
        seen.append(blas._setting().get())
        return matmul(*args, **kwargs)

    x, weight, options = problem("3x3")
    with plain_tier():
        before = blas._setting().get()
        plan = portconv.plan_conv2d(x, weight, **options, engine=engine)
        packed = plan.pack(weight)
        monkeypatch.setattr(np, "matmul", recorded)
        portconv.set_num_threads(1)
        plan.execute(x, packed)
        assert set(seen) == {1}
        assert blas._setting().get() == before


@two_cores
@pytest.mark.parametrize("engine", ["gemm", "winograd", "fft", "direct"])
def test_plans_made_for_one_thread_use_more_later(engine, tier, monkeypatch):
    shape = (16, 16, 61, 62) if engine != "fft" else (8, 1, 201, 202)
    weight = numbers((16, 16, 3, 3) if engine != "fft" else (1, 1, 15, 15))
    portconv.set_num_threads(1)
    portconv.conv2d(numbers(shape), weight, engine=engine)
    portconv.set_num_threads(2)
    with counted(monkeypatch) as parts:
        portconv.conv2d(numbers(shape), weight, engine=engine)
    assert max(parts) == 2 or (tier == "plain" and engine not in PLAIN_THREADS)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_results_do_not_depend_on_the_number_of_threads(name, engine, tier, needs, dtype):
    x, weight, options = problem(name, dtype)
    needs(engine, x, weight, **options)
    results = []
    for count in (1, 2, 1):
        portconv.set_num_threads(count)
        path.forget_plans()
        results.append(portconv.conv2d(x, weight, **options, engine=engine))
    np.testing.assert_array_equal(results[0], results[2])
    # A BLAS on two threads may cut a product elsewhere, and OpenBLAS's kernels for Zen 5 then add in another order.
    if not (tier == "plain" and engine in ("gemm", "winograd")):
        np.testing.assert_array_equal(results[0], results[1])
    for y in results[:2]:
        assert_close(y, reference_of(name, dtype))


# --- callers at once --------------------------------------------------------------------------------------------------


def work_at_once(count, work):
    """Call `work(number)` on so many threads, all starting at the same time; raise the first error."""
    errors, start = [], threading.Barrier(count)

    def body(number):
        try:
            start.wait(60)
            work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            errors.append(error)

    workers = [threading.Thread(target=body, args=(n,), daemon=True) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert not worker.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def test_eight_callers_at_once(tier, why_not):
    """Each with sizes, engines and a scratch memory of its own, and the right result."""
    cases = []
    for name in ("3x3", "1x1", "depthwise", "stride", "NHWC", "3x3, many channels"):
        x, weight, options = problem(name)
        exact = reference_conv2d(x, weight, **options)
        engines = ENGINES if name != "3x3, many channels" else ("gemm", "winograd")  # the others take their time
        able = [engine for engine in engines if why_not(engine, x, weight, **options) is None]
        cases += [(x, weight, options, engine, exact) for engine in able]

    def work(number):
        for n in np.random.default_rng(number).permutation(len(cases)):
            x, weight, options, engine, expected = cases[n]
            assert_close(portconv.conv2d(x, weight, **options, engine=engine), expected)

    work_at_once(8, work)


def test_one_module_for_all_callers(tier):
    x = numbers((1, 16, 30, 31))
    for engine in ENGINES:
        module = portconv.Conv2d(16, 16, 3, padding=1, engine=engine, rng=1)
        expected = reference_conv2d(x, module.weight, module.bias, padding=1)
        work_at_once(8, lambda _, m=module, e=expected: [assert_close(m(x), e) for _ in range(5)])


def test_the_setting_may_change_meanwhile(tier):
    x, weight, options = problem("3x3")
    expected = reference_conv2d(x, weight, **options)

    def work(number):
        for n in range(20):
            if number < 2:
                portconv.set_num_threads(1 + (n + number) % 2)
            engine = ("gemm", "winograd", "direct")[(n + number) % 3]
            assert_close(portconv.conv2d(x, weight, **options, engine=engine), expected)

    work_at_once(4, work)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_leaves_everything_usable(engine, tier, monkeypatch):
    x, weight, options = problem("3x3")
    expected = reference_conv2d(x, weight, **options)
    assert_close(portconv.conv2d(x, weight, **options, engine=engine), expected)
    with monkeypatch.context() as patch:

        def broken(*arguments, **options):
            raise KeyboardInterrupt

        if team is not None:
            patch.setattr(team, "launch", lambda _job, *arguments, launch=team.launch: launch(broken, *arguments))
        patch.setattr(NumpySteps, "finish", broken)
        for count in (1, 2):
            portconv.set_num_threads(count)
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    portconv.conv2d(x, weight, **options, engine=engine)
    for count in (1, 2):
        portconv.set_num_threads(count)
        assert_close(portconv.conv2d(x, weight, **options, engine=engine), expected)
    with pytest.raises(ValueError, match="`weight`"):
        portconv.conv2d(x, weight[:, :3], **options, engine=engine)
    assert_close(portconv.conv2d(x, weight, **options, engine=engine), expected)
    assert team is None or not team._lock.locked()


# --- forks ------------------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a fork is not safe")
JIT = ("1", "0") if os.environ.get("PORTCONV_JIT", "1") != "0" else ("0",)

FORK = """
    import os, signal, sys, time, warnings
    import numpy as np, portconv
    from portconv.testing import assert_close, reference_conv2d
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, about forks of threaded processes
    signal.alarm(90)  # the default is to die of it; faulthandler has a lock that a fork may copy while it is held
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 32, 40, 40)).astype("f4")
    weight = rng.standard_normal((32, 32, 3, 3)).astype("f4")
    expected = reference_conv2d(x, weight, padding=1)

    def convolve():
        for engine in ("gemm", "winograd", "direct", "fft", "auto"):
            assert_close(portconv.conv2d(x, weight, padding=1, engine=engine), expected)

    def wait_for(child):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, status

    def fork(work):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(60)
                work()
                status = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        return child
"""


@linux
@pytest.mark.parametrize("jit", JIT)
def test_a_forked_child_convolves(run_python, jit):
    """And so do its children, several at once, and the parent between and after them."""
    code = """
    convolve()
    wait_for(fork(convolve))
    convolve()
    children = [fork(convolve) for _ in range(3)]
    convolve()
    for child in children:
        wait_for(child)
    wait_for(fork(lambda: (convolve(), wait_for(fork(convolve)), convolve())))
    convolve()
    print("done")
    """
    assert run_python(FORK + code, PORTCONV_JIT=jit) == "done\n"


@linux
@pytest.mark.parametrize("jit", JIT)
def test_a_child_that_is_forked_before_the_first_convolution(run_python, jit):
    code = """
    child = fork(lambda: (convolve(), wait_for(fork(convolve))))
    convolve()
    wait_for(child)
    print("done")
    """
    assert run_python(FORK + code, PORTCONV_JIT=jit) == "done\n"


@linux
@pytest.mark.parametrize("jit", JIT)
def test_forks_while_other_threads_convolve(run_python, jit):
    """Whoever holds a lock at that moment does not exist in the child.

    In the plain tier without matrix products: NumPy alone hangs if a process forks while a thread is in OpenBLAS.
    """
    engines = ("gemm", "winograd", "direct") if jit == "1" else ("direct",)
    code = f"""
    import threading
    engines = {engines!r}
    convolve()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            for engine in engines:
                portconv.conv2d(x, weight, padding=1, engine=engine)

    def child():
        for engine in engines:
            assert_close(portconv.conv2d(x, weight, padding=1, engine=engine), expected)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(5):
        time.sleep(0.02)
        wait_for(fork(child))
    stop.set()
    for worker in workers:
        worker.join()
    convolve()
    print("done")
    """
    assert run_python(FORK + code, PORTCONV_JIT=jit) == "done\n"


@linux
@pytest.mark.parametrize("jit", JIT)
def test_multiprocessing_by_fork(run_python, jit):
    code = """
    import multiprocessing

    def job(n):
        convolve()
        return n * float(portconv.conv2d(np.ones((1, 4, 5, 5), "f4"), np.ones((1, 4, 3, 3), "f4"))[0, 0, 1, 1])

    convolve()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(job, range(4)) == [36.0 * n for n in range(4)]
    convolve()
    print("done")
    """
    assert run_python(FORK + code, PORTCONV_JIT=jit) == "done\n"
