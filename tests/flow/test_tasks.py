"""Periodic tasks and reservations on the flow fidelity."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies.model import Container, EdgeServer, Host, Link, Partition, PeriodicTask, Topology
from twin.backend import Session
from twin.deadline.reservation import Reservation
from twin.deadline.served import ReservedTask
from twin.flow import FlowBackend
from twin.load import Load
from twin.types import Action, Observation


def session(*tasks: tuple[float, float], edge_cpus: int = 2, cpu_millicores: float | None = None) -> Session:
    container = Container(
        name="edge",
        cpu_millicores=cpu_millicores,
        tasks=tuple(PeriodicTask(period_s=period_s, work_s=work_s) for period_s, work_s in tasks),
    )
    topology = Topology(name="t", nodes=(container,), links=(), edge=EdgeServer(cpus=edge_cpus))
    return FlowBackend().open(topology, Load(flows=(), duration_s=3600.0), seed=1)


def do(on: Session, entity: str, knob: str, value: float | str) -> str:
    (outcome,) = on.apply([Action(entity, knob, value)])
    assert outcome.applied == (not outcome.reason)
    return outcome.reason


def reserve(on: Session, budget_us: float, period_us: float = 100_000, task: str = "task:edge.1") -> str:
    assert do(on, task, "dl_period_us", period_us) == ""
    return do(on, task, "dl_runtime_us", budget_us)


def values(seen: Observation, entity: str = "task:edge.1") -> dict[str, float]:
    return {kpi.name: kpi.value for kpi in seen.kpis if kpi.entity == entity}


def test_a_task_without_a_reservation_has_a_core() -> None:
    with session((0.1, 0.03), (0.05, 0.02)) as on:
        seen = on.advance(2.0)
        first = values(seen)
        assert first == {
            "jobs_per_s": 10.0,
            "task_response_p50_s": pytest.approx(0.03),
            "task_response_p99_s": pytest.approx(0.03),
            "task_response_max_s": pytest.approx(0.03),
            "deadline_miss_ratio": 0.0,
            "wakeup_period_s": pytest.approx(0.1, rel=1e-3),
        }
        assert values(seen, "task:edge.2")["wakeup_period_s"] == pytest.approx(0.05, rel=1e-3)
        assert values(seen, "node:edge")["cpu_used_millicores"] == pytest.approx(300 + 400)


def test_tasks_without_reservations_share_the_limit_of_their_node() -> None:
    with session((0.1, 0.03), (0.1, 0.03), cpu_millicores=400) as on:
        found = values(on.advance(10.0))
        # 20 ms of every 100 ms for each: a job waits for the quota of the next period, and the backlog grows.
        assert found["jobs_per_s"] == pytest.approx(20 / 3, rel=0.02)
        assert found["deadline_miss_ratio"] > 0.9
        assert do(on, "node:edge", "cpu_millicores", 1000) == ""
        found = values(on.advance(30.0))
        assert found["jobs_per_s"] > 10  # the backlog is made good
        assert values(on.advance(31.0))["task_response_max_s"] == pytest.approx(0.03)


def test_a_reservation_is_what_a_task_gets() -> None:
    with session((0.1, 0.02)) as on:
        on.advance(1.0)
        assert reserve(on, 10_000) == ""
        found = values(on.advance(2.0))
        assert found["dl_budget_s"] == pytest.approx(0.01)
        assert found["dl_period_s"] == pytest.approx(0.1)
        assert found["dl_used_s"] == pytest.approx(0.01)
        assert found["dl_alpha_ratio"] == pytest.approx(0.1)
        assert found["dl_delta_s"] == pytest.approx(0.18)
        assert found["jobs_per_s"] == 5
        assert found["deadline_miss_ratio"] == 1
        assert do(on, "task:edge.1", "dl_runtime_us", 0) == ""
        found = values(on.advance(3.0))
        assert "dl_budget_s" not in found and "dl_used_s" not in found
        assert found["jobs_per_s"] == 15
        assert values(on.advance(4.0))["task_response_max_s"] == pytest.approx(0.02)


def test_work_can_change_while_it_runs() -> None:
    with session((0.1, 0.02)) as on:
        assert do(on, "task:edge.1", "task_work_us", 5000) == ""
        assert values(on.advance(1.0))["task_response_max_s"] == pytest.approx(0.005)
        assert do(on, "task:edge.1", "task_work_us", 0) == ""
        found = values(on.advance(2.0))
        assert (found["jobs_per_s"], found["task_response_max_s"]) == (10, 0)


def test_reservations_are_admitted_against_the_edge_server() -> None:
    with session(*[(0.1, 0.01)] * 3, edge_cpus=1) as on:
        assert reserve(on, 50_000) == ""
        assert reserve(on, 40_000, task="task:edge.2") == ""
        reason = reserve(on, 1_000, task="task:edge.3")
        assert reason == (
            "task:edge.3 dl_runtime_us: 1 ms of 100 ms not admitted: the other reservations have 0.900 of the 0.9 CPUs "
            "that may be given out (0.9 of each of the 1 CPUs)"
        )
        # A refused change leaves what there was.
        assert "not admitted" in reserve(on, 60_000)
        assert values(on.advance(1.0))["dl_budget_s"] == pytest.approx(0.05)
        assert do(on, "task:edge.2", "dl_runtime_us", 0) == ""
        assert reserve(on, 1_000, task="task:edge.3") == ""


@pytest.mark.parametrize(
    ("entity", "knob", "value", "message"),
    [
        ("task:edge.1", "dl_runtime_us", 1000, "has no period yet; set dl_period_us before"),
        ("task:edge.9", "dl_runtime_us", 1000, "no task named 'edge.9'; tasks: edge.1, edge.2"),
        ("task:edge.1", "dl_period_us", 1, "must be a number in [100, 4.1943e+06], got 1"),
        ("task:edge.1", "cpu_millicores", 100, "knob cpu_millicores acts on slice or node"),
        ("task:edge.2", "dl_runtime_us", 200_000, "must be 0 or in [1.024, 100000] (at most the period"),
        ("task:edge.2", "dl_runtime_us", 1, "must be 0 or in [1.024, 100000] (at most the period"),
    ],
)
def test_what_cannot_be_is_refused(entity: str, knob: str, value: float, message: str) -> None:
    with session((0.1, 0.01), (0.1, 0.01)) as on:
        assert do(on, "task:edge.2", "dl_period_us", 100_000) == ""
        assert message in do(on, entity, knob, value)
        assert "dl_budget_s" not in values(on.advance(1.0))


def test_a_killed_node_loses_reservations_and_backlog() -> None:
    with session((0.1, 0.02), edge_cpus=1) as on:
        assert reserve(on, 1_000) == ""
        on.advance(5.0)
        assert do(on, "node:edge", "node_state", "down") == ""
        assert values(on.advance(6.0)) == {}
        assert "node edge is down" in reserve_reason(on)
        assert do(on, "node:edge", "node_state", "up") == ""
        found = values(on.advance(7.0))
        assert "dl_budget_s" not in found
        assert "has no period yet" in reserve_reason(on)  # the threads are new ones
        assert found["task_response_max_s"] == pytest.approx(0.02)
        assert reserve(on, 90_000) == ""  # what it had is free again


def reserve_reason(on: Session) -> str:
    return do(on, "task:edge.1", "dl_runtime_us", 1000)


def test_two_runs_are_the_same() -> None:
    def play() -> list[Observation]:
        with session((0.1, 0.02), (0.033, 0.01)) as on:
            found = [on.advance(1.0)]
            reserve(on, 15_000)
            return [*found, *(on.advance(float(second)) for second in range(2, 12))]

    assert play() == play()


def test_knobs_of_partitions_are_not_for_the_tasks_inside() -> None:
    guest = Partition(name="p1", tasks=(PeriodicTask(period_s=0.1, work_s=0.01),))
    topology = Topology(name="t", nodes=(guest, Host(name="h")), links=(Link(a="p1", b="h"),))
    with FlowBackend().open(topology, Load(flows=(), duration_s=60.0), seed=1) as on:
        assert do(on, "task:p1.1", "dl_runtime_us", 1000) != ""


@settings(max_examples=60, deadline=None)
@given(
    period_s=st.floats(0.005, 0.2),
    share=st.floats(0.05, 1.0),
    task_period_s=st.floats(0.005, 0.3),
    cuts=st.lists(st.floats(0.001, 0.5), min_size=2, max_size=30),
)
def test_the_supply_is_never_below_the_supply_bound_function(
    period_s: float, share: float, task_period_s: float, cuts: list[float]
) -> None:
    """In every interval in which a task always has work, whatever the steps of the simulation."""
    held = Reservation(share * period_s, period_s)
    task = ReservedTask(task_period_s)
    marks = [(0.0, 0.0)]
    for length_s in cuts:
        task.step(length_s, held, 10.0)  # more work than time
        marks.append((task.now_s, task.executed_s))
    for (start_s, before_s), (stop_s, after_s) in itertools.combinations(marks, 2):
        assert after_s - before_s >= held.supply_s(stop_s - start_s) - 1e-9
        assert after_s - before_s <= stop_s - start_s + 1e-9


def test_a_reservation_after_none_begins_at_once() -> None:
    task = ReservedTask(0.1)
    assert task.step(1.05, None, 0.01).responses_s == [pytest.approx(0.01)] * 11
    assert task.step(0.1, Reservation(0.002, 0.1), 0.01).used_s == pytest.approx(0.002)
    served = task.step(0.1, None, 0.01)
    assert served.used_s == pytest.approx(0.018)
    assert served.backlog_s == 0
    assert served.awake_s[0] == (pytest.approx(1.1), pytest.approx(0.058))
