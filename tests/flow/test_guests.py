"""Partitions in the flow model."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.execution import execute
from scenarios.loader import load_scenario
from scenarios.registry import find_scenario
from tests.partition_network import load, network, walk
from topologies.model import Partition, PeriodicTask
from twin.deadline.admission import Admission
from twin.deadline.reservation import Reservation
from twin.flow import FlowBackend
from twin.flow.guests import Guests, GuestServer
from twin.types import Observation

SHORT, LONG = PeriodicTask(period_s=0.04, work_s=0.005), PeriodicTask(period_s=0.1, work_s=0.01)
WORKS_S = (0.005, 0.01)


def test_the_walk_of_every_backend_and_twice_the_same() -> None:
    def played() -> list[Observation]:
        with FlowBackend().open(network(), load(), seed=1) as session:
            return walk(session, patience=20).seen

    assert played() == played()


def test_the_library_scenario_keeps_what_it_asserts(tmp_path: Path) -> None:
    ended = execute(load_scenario(find_scenario("edge_partitions"), fidelity="flow"), runs=tmp_path)
    assert ended.result.status == "VALID"
    assert ended.assertions
    assert [one.text for one in ended.assertions if not one.passed] == []


def test_tasks_of_a_guest_share_its_processor() -> None:
    rows, used_s = GuestServer((SHORT, LONG), cores=1).step(0.4, None, WORKS_S)
    # Both are released at 0 and have half of it: the short one ends when each had 5 ms, the long one 5 ms later.
    assert rows[0].responses_s[:2] == pytest.approx([0.010, 0.005])
    assert rows[1].responses_s == pytest.approx([0.015, 0.01, 0.015, 0.01], abs=0.0051)
    assert used_s == pytest.approx(10 * 0.005 + 4 * 0.01) == pytest.approx(sum(row.used_s for row in rows))


def test_tasks_on_two_processors_do_not_meet() -> None:
    rows, _ = GuestServer((SHORT, LONG), cores=2).step(0.4, None, WORKS_S)
    assert max(rows[0].responses_s) == pytest.approx(0.005)
    assert max(rows[1].responses_s) == pytest.approx(0.01)


def test_a_supply_delays_what_exceeds_a_budget() -> None:
    rows, _ = GuestServer((SHORT,), cores=1).step(0.04, Reservation(0.003, 0.010), (0.005,))
    # 3 ms of the first period, then the rest at the beginning of the second.
    assert rows[0].responses_s == pytest.approx([0.012])


def test_no_task_gets_more_than_the_supply() -> None:
    server = GuestServer((SHORT, LONG), cores=1)
    used_s = sum(server.step(0.25, Reservation(0.002, 0.020), WORKS_S)[1] for _ in range(8))
    assert used_s == pytest.approx(0.1 * 2, rel=0.01)


def test_a_critical_partition_takes_what_others_had_reserved() -> None:
    nodes = (
        Partition(name="other"),
        Partition(name="control", critical=True, cores=2),
    )
    topology = network().__class__(
        name="edge",
        nodes=nodes + tuple(node for node in network().nodes if node.kind == "switch"),
        links=tuple(type(network().links[0])(a="s1", b=node.name) for node in nodes),
    )
    guests = Guests(topology, Admission(2))
    assert guests.set_state("control", "ready", 0.0) is None
    guests.set_period("other", 10_000)
    assert guests.set_budget("other", 5_000) is None
    assert guests.limit_millicores("other") == 500
    assert guests.set_state("control", "deployed", 0.0) is None  # 2 x 0.8 of 1.8 CPUs: 0.5 is too much
    assert guests.limit_millicores("other") == 1000
    assert "not admitted" in str(guests.set_budget("other", 5_000))
