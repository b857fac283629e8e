"""The runtime monitor on real threads."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twin.emulation.deadline import monitor as module
from twin.emulation.deadline.monitor import Monitor, Sample
from twin.emulation.deadline.sched import DeadlineError, NotAdmittedError, ThreadEndedError, get_attributes, reserve
from twin.journal import Journal

if TYPE_CHECKING:
    from tests.emulation.deadline.conftest import Start

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("deadline_host")]


def cycles(monitor: Monitor, enough: Callable[[list[Sample]], bool], within_s: float = 15) -> list[Sample]:
    """Drive a monitor until ``enough``."""
    found: list[Sample] = []
    deadline_s = time.monotonic() + within_s
    while not enough(found):
        assert time.monotonic() < deadline_s, found
        time.sleep(min(0.05, monitor.due_s(time.monotonic())))
        found += monitor.step()
    return found


def test_a_budget_from_far_below_settles_at_what_the_thread_uses(tmp_path: Path, task: Start) -> None:
    _, tid = task("periodic", "--period-ms", "50", "--work-ms", "5", "--duration-s", "20")
    with Journal.create("run", folder=tmp_path) as journal, Monitor(journal, cycle_s=0.25) as monitor:
        monitor.add(tid, period_s=0.05, budget_s=0.001)

        def settled(found: list[Sample]) -> bool:
            last = found[-3:]
            return len(last) == 3 and all(0.005 <= (one.budget_s or 0) <= 0.0055 * 1.05 for one in last)

        found = cycles(monitor, settled)
        assert len(found) - 2 <= 15
        last = found[-1]
        assert last.budget_s is not None
        # The longest of a cycle: of the settled cycles, one that other programs of the host left alone.
        assert min(one.response_s or 1 for one in found[-3:]) == pytest.approx(0.005, abs=0.003)
        assert last.alpha == pytest.approx(last.budget_s / 0.05)
        assert last.delta_s == pytest.approx(2 * (0.05 - last.budget_s))
        assert get_attributes(tid).runtime_ns == pytest.approx(last.budget_s * 1e9, rel=0.01)
    assert get_attributes(tid).policy == 0
    assert not list(tmp_path.glob("*.jsonl"))


def test_threads_that_end_are_forgotten_and_the_others_go_on(tmp_path: Path, task: Start) -> None:
    told: list[str] = []
    first, first_tid = task("periodic", "--period-ms", "20", "--work-ms", "0.2", "--duration-s", "20")
    _, second_tid = task("periodic", "--period-ms", "20", "--work-ms", "0.2", "--duration-s", "20")
    with Journal.create("run", folder=tmp_path) as journal, Monitor(journal, cycle_s=0.1, tell=told.append) as monitor:
        for tid in (first_tid, second_tid):
            monitor.add(tid, period_s=0.02, budget_s=0.002)
        cycles(monitor, lambda found: {one.tid for one in found} == {first_tid, second_tid})
        first.kill()
        first.wait()
        cycles(monitor, lambda _: monitor.tids == {second_tid})
        assert told == [f"thread {first_tid}: has ended"]
        with pytest.raises(ThreadEndedError):
            monitor.add(first_tid, period_s=0.02, budget_s=0.002)
        with pytest.raises(DeadlineError, match="watched already"):
            monitor.add(second_tid, period_s=0.02, budget_s=0.002)


def test_a_reservation_of_somebody_else_is_left_alone(tmp_path: Path, task: Start) -> None:
    _, tid = task("periodic", "--work-ms", "0.2")
    reserve(tid, 0.004, 0.1)
    with (
        Journal.create("run", folder=tmp_path) as journal,
        Monitor(journal, responses=False) as monitor,
        pytest.raises(DeadlineError, match="4 ms in 100 ms by somebody else"),
    ):
        monitor.add(tid, period_s=0.1, budget_s=0.002)
    assert get_attributes(tid).runtime_ns == 4_000_000


def test_what_is_not_admitted_is_tried_again(tmp_path: Path, task: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer is replaced: giving out all of its bandwidth would disturb everything on the host."""
    full = [True]

    def scarce(tid: int, budget_s: float, period_s: float) -> None:
        if full[0] and budget_s > 0.0011:
            raise NotAdmittedError(f"thread {tid}: not admitted")
        reserve(tid, budget_s, period_s)

    monkeypatch.setattr(module, "reserve", scarce)
    told: list[str] = []
    _, tid = task("periodic", "--period-ms", "20", "--work-ms", "2", "--duration-s", "20")
    with Journal.create("run", folder=tmp_path) as journal, Monitor(journal, cycle_s=0.1, tell=told.append) as monitor:
        monitor.add(tid, period_s=0.02, budget_s=0.003)
        waiting = cycles(monitor, lambda found: len(found) >= 2)
        assert waiting[-1].budget_s is None
        assert waiting[-1].alpha is None
        assert told == [f"thread {tid}: not admitted; tried again in every cycle"]
        assert get_attributes(tid).policy == 0
        full[0] = False
        admitted = cycles(monitor, lambda found: bool(found) and found[-1].budget_s is not None)
        assert admitted[-1].used_s == pytest.approx(0.002, rel=0.3)
        full[0] = True
        # What it holds stays when more is refused.
        held_s = admitted[-1].budget_s
        later = cycles(monitor, lambda found: len(found) >= 2)
        assert all(one.budget_s is not None for one in later)
        assert held_s is not None


def test_threads_with_other_periods_have_cycles_of_whole_periods(tmp_path: Path, task: Start) -> None:
    _, tid = task("periodic", "--period-ms", "60", "--work-ms", "0.5", "--duration-s", "20")
    with Journal.create("run", folder=tmp_path) as journal, Monitor(journal, cycle_s=0.2, responses=False) as monitor:
        monitor.add(tid, period_s=0.06, budget_s=0.002)
        found = cycles(monitor, lambda found: len(found) >= 4)
        gaps = [after.time_s - before.time_s for before, after in itertools.pairwise(found[1:])]
        assert sum(gaps) / len(gaps) == pytest.approx(0.18, abs=0.03)
        assert found[-1].response_s is None
        monitor.set_period(tid, 0.03)
        assert monitor.period_s(tid) == 0.03
        assert get_attributes(tid).period_ns == 30_000_000


def test_a_monitor_watches_its_own_threads_too(tmp_path: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with Journal.create("run", folder=tmp_path) as journal, Monitor(journal, responses=False) as monitor:
            assert thread.native_id is not None
            monitor.add(thread.native_id, period_s=0.1, budget_s=0.001)
            assert os.sched_getscheduler(thread.native_id) & 0xFF == 6
            monitor.remove(thread.native_id)
            assert os.sched_getscheduler(thread.native_id) == 0
            with pytest.raises(KeyError):
                monitor.remove(thread.native_id)
    finally:
        done.set()
        thread.join()
