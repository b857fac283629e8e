"""Reservations of threads on this host, without a network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.emulation.deadline.conftest import Start, deadline_host, task
from twin.emulation.deadline.sched import SCHED_DEADLINE, ThreadEndedError, get_attributes
from twin.emulation.errors import EmulationError
from twin.emulation.reservations import Reservations, _whole, threads_of
from twin.journal import Journal

__all__ = ["deadline_host", "task"]
pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("deadline_host")]


def test_late_readings_and_those_after_them(tmp_path: Path, task: Start) -> None:
    """A reading right after a late one says nothing; what was used then counts in the one after it."""
    _, tid = task("periodic", "--period-ms", "20", "--work-ms", "2", "--duration-s", "30")
    with Journal.create("run", folder=tmp_path) as journal:
        reservations = Reservations(journal)
        reservations.hold("task:a.1", [tid])
        reservations.set_period("task:a.1", 20_000)
        reservations.set_budget("task:a.1", 4000)
        found = []
        for number, wait_s in enumerate((0.2, 0.8, 0.0, 0.2, 0.2), start=1):
            time.sleep(wait_s)  # of real threads that run meanwhile
            found.append({kpi.name: kpi.value for kpi in reservations.kpis(0.2 * number)})
        reservations.close()
    assert "dl_used_s" not in found[2] and found[2]["dl_budget_s"] == pytest.approx(0.004)
    for number in (1, 3, 4):
        assert found[number]["dl_used_s"] == pytest.approx(0.002, rel=0.3)
    assert get_attributes(tid).policy == 0
    assert not list(tmp_path.glob("*.jsonl"))


def test_all_threads_of_an_entity_or_none(tmp_path: Path, task: Start) -> None:
    first, tid = task("periodic", "--period-ms", "100", "--work-ms", "1", "--duration-s", "30")
    second, other = task("periodic", "--period-ms", "100", "--work-ms", "1", "--duration-s", "30")
    with Journal.create("run", folder=tmp_path) as journal:
        reservations = Reservations(journal)
        reservations.hold("node:p1", [tid, other])
        reservations.set_period("node:p1", 100_000)
        reservations.set_budget("node:p1", 2000)
        assert {get_attributes(one).policy for one in (tid, other)} == {SCHED_DEADLINE}
        second.kill()
        second.wait()
        with pytest.raises(EmulationError, match="has ended"):
            reservations.set_budget("node:p1", 3000)
        assert get_attributes(tid).runtime_ns == 2_000_000  # as before
        reservations.let_go("node:p1")
        assert get_attributes(tid).policy == 0
        with pytest.raises(EmulationError, match="does not run"):
            reservations.set_budget("node:p1", 3000)
        with pytest.raises(ThreadEndedError, match=f"thread {other} of node:p1: has ended"):
            reservations.hold("node:p1", [tid, other])
        assert reservations.kpis(1.0) == []
        reservations.close()
        reservations.close()
    first.kill()


def test_threads_are_known_by_their_ids_inside(task: Start) -> None:
    process, _ = task("periodic", "--duration-s", "5")
    assert threads_of(process.pid, []) == []
    with pytest.raises(EmulationError, match=f"process 7 among the children of {process.pid}: has ended"):
        threads_of(process.pid, [7])


@pytest.mark.parametrize(
    ("elapsed_s", "nominal_s", "period_s", "expected_s"),
    [
        (0.53, 0.5, 0.1, 0.5),
        (0.57, 0.5, 0.1, 0.6),
        (0.53, 0.5, 0.1001, 0.5),
        (0.53, 0.5, 0.15, 0.53),  # jobs of 150 ms do not come in whole numbers in 500 ms
        (0.53, 0.5, 0.7, 0.53),
        (0.26, 0.5, 0.5, 0.5),
    ],
)
def test_whole_periods(elapsed_s: float, nominal_s: float, period_s: float, expected_s: float) -> None:
    assert _whole(elapsed_s, nominal_s, period_s) == pytest.approx(expected_s)
