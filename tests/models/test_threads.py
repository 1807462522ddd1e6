"""A busy machine gets fewer threads and a warning; a quiet one is left alone."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from dynasurge.models import threads
from dynasurge.models.threads import Watch, choose_threads


class Machine:
    """Two cores, of which other processes keep `busy` busy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy: float) -> None:
        self.busy, self.now, self.threads = busy, 0.0, 2
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(threads, "psutil", self)
        monkeypatch.setattr(
            threads, "time", SimpleNamespace(perf_counter=self.clock, sleep=self.sleep)
        )
        own = SimpleNamespace(get_num_threads=lambda: self.threads, set_num_threads=self.use)
        monkeypatch.setattr(threads, "torch", own)
        choose_threads.cache_clear()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def use(self, count: int) -> None:
        self.threads = count

    def Process(self) -> SimpleNamespace:
        return SimpleNamespace(cpu_affinity=lambda: [0, 2])

    def cpu_times(self, percpu: bool) -> list[SimpleNamespace]:
        used = {"user": self.busy / 2 * self.now, "idle": 99.0, "guest": 7.0 * self.now}
        other = {"user": 5.0 * self.now}  # a core that is not ours
        return [SimpleNamespace(_asdict=lambda own=own: own) for own in (used, other, used)]


@pytest.mark.parametrize(("busy", "left"), [(0.0, 2), (0.6, 2), (0.9, 1), (2.0, 1)])
def test_threads_are_as_many_as_idle_cores(
    busy: float, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, busy)
    monkeypatch.setattr(os, "times", lambda: (0.0,) * 5)
    if left == 2:
        choose_threads()
    else:
        with pytest.warns(
            UserWarning, match="1 of 2 threads: other processes keep .* busy; set OMP"
        ):
            choose_threads()
    assert machine.threads == left


def test_the_users_own_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    choose_threads()
    assert machine.threads == 2


def test_a_run_beside_busy_processes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.0)
    monkeypatch.setattr(os, "times", lambda: (0.0,) * 5)
    watch = Watch()
    machine.now += 0.5
    assert watch.warning() is None, "too short to tell"
    machine.now += 9.5
    assert watch.others() == pytest.approx(1.0)
    assert str(watch.warning()).startswith("other processes kept 1.0 of 2 cores busy meanwhile")
    machine.busy, watch = 0.1, Watch()
    machine.now += 10
    assert watch.warning() is None, "a tenth of a core is noise"


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 1.5)
    monkeypatch.setattr(
        os, "times", lambda: (0.9 * machine.now, 0.1 * machine.now, 0.3 * machine.now, 0.0, 9.0)
    )
    watch = Watch()
    machine.now += 10
    assert watch.others() == pytest.approx(0.2), (
        "what this process and its children did is left out"
    )


def test_it_reads_a_real_machine() -> None:
    assert watch_for(0.05) <= (os.cpu_count() or 1) + 0.5


def watch_for(seconds: float) -> float:
    watch = Watch()
    time.sleep(seconds)
    return watch.others()
