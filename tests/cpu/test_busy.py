"""Whether something else uses the cores, by clocks that say what they are told."""

from __future__ import annotations

from portconv.cpu import busy

REAL_DISTURBED = busy.disturbed  # which no other test asks


def test_a_core_that_another_program_takes(monkeypatch):
    """By a clock that gives each thread the share that it is told."""

    class Clock:
        now, share = 0.0, 1.0

        def perf_counter(self):
            self.now += 1e-4
            return self.now

        def thread_time(self):
            return self.share * self.now

    clock = Clock()
    monkeypatch.setattr(busy, "time", clock)
    for clock.share, verdict in ((1.0, False), (0.95, False), (0.66, True), (0.5, True)):
        assert REAL_DISTURBED(1) is verdict


def test_threads_that_wake_on_one_core_get_a_second_try(monkeypatch):
    shares = [0.5, 1.0]
    monkeypatch.setattr(busy, "least_share", lambda threads: shares.pop(0))
    assert not REAL_DISTURBED(2)
    shares += [0.5, 0.6]
    assert REAL_DISTURBED(2)
