"""``sched_deadline`` on the flow fidelity, decision by decision, and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from controllers.base import ControllerContext
from controllers.sched_deadline import SchedDeadline
from topologies.model import Container, EdgeServer, Host, Link, Partition, PeriodicTask, Topology
from twin.flow import FlowBackend
from twin.knobs import refusal
from twin.load import Load
from twin.types import Action, Kpi, Observation, Outcome

CYCLE_S = 0.5


def topology(*works_s: float, edge_cpus: int = 2, period_s: float = 0.1) -> Topology:
    tasks = tuple(PeriodicTask(period_s=period_s, work_s=work_s) for work_s in works_s)
    return Topology(name="t", nodes=(Container(name="edge", tasks=tasks),), links=(), edge=EdgeServer(cpus=edge_cpus))


def context(of: Topology, *scope: str) -> ControllerContext:
    every = (*(f"task:{name}" for name in of.tasks), *(f"node:{node.name}" for node in of.nodes))
    return ControllerContext(topology=of, scope=scope or every, interval_s=CYCLE_S, seed=1)


class Played:
    """A run of the flow model with the controller asked in every interval."""

    def __init__(self, of: Topology, events: Mapping[float, Action] | None = None, **params: Any) -> None:
        self.controller = SchedDeadline(context(of), **params)
        self.session = FlowBackend().open(of, Load(flows=(), duration_s=3600.0), seed=1)
        self.seen: list[Observation] = []
        self.refused: list[Outcome] = []
        self._events = dict(events or {})

    def until(self, end_s: float) -> Observation:
        while (now_s := self.seen[-1].time_s if self.seen else 0.0) < end_s - 1e-9:
            if now_s in self._events:
                (outcome,) = self.session.apply([self._events[now_s]])
                assert outcome.applied, outcome.reason
            self.seen.append(self.session.advance(now_s + CYCLE_S))
            self.controller.observe(self.seen[-1])
            actions = list(self.controller.act())
            assert all(refusal(action) is None for action in actions)
            self.refused += [outcome for outcome in self.session.apply(actions) if not outcome.applied]
        return self.seen[-1]

    def of(self, number: int, kpi: str, since_s: float = 0.0) -> list[float]:
        found = [one.get(f"task:edge.{number}", kpi, -1.0) for one in self.seen if one.time_s > since_s]
        return [value for value in found if value >= 0]


def alphas(seen: Observation, count: int = 2) -> list[float]:
    return [seen.get(f"task:edge.{number}", "dl_alpha_ratio", 0.0) for number in range(1, count + 1)]


def test_the_period_comes_from_the_wake_ups_and_the_budget_from_the_use() -> None:
    played = Played(topology(0.01, 0.02))
    played.until(12.0)
    for number, work_s in ((1, 0.01), (2, 0.02)):
        assert played.of(number, "dl_period_s")[-1] == pytest.approx(0.1, rel=0.01)
        assert played.of(number, "dl_budget_s")[0] == pytest.approx(0.002)
        # Within 15 cycles of the first reservation at most 5 % above C (1 + ovh), and the response is C.
        late = played.of(number, "dl_budget_s")[15:]
        assert max(late) <= 1.05 * 1.1 * work_s
        assert min(late) >= work_s
        assert played.of(number, "task_response_max_s")[-1] == pytest.approx(work_s)
        assert played.of(number, "deadline_miss_ratio")[-1] == 0
    assert not played.refused


def test_a_period_told_better_later_is_taken() -> None:
    controller, entity = SchedDeadline(context(topology(0.01, period_s=0.05))), "task:edge.1"

    def periods_us(time_s: float, **kpis: float) -> list[object]:
        controller.observe(Observation(time_s, tuple(Kpi(time_s, entity, name, value) for name, value in kpis.items())))
        return [action.value for action in controller.act() if action.knob == "dl_period_us"]

    assert periods_us(0.5, wakeup_period_s=0.0509) == [50_900]
    held = {"dl_period_s": 0.0509, "dl_budget_s": 0.002, "dl_used_s": 0.002}
    assert periods_us(1.0, wakeup_period_s=0.05, **held) == [50_000]


def test_nothing_is_reserved_before_a_period_is_known() -> None:
    played = Played(topology(0.01))
    assert alphas(played.until(0.5), 1) == [0.0]
    played = Played(topology(0.01), first_period_s=0.05, budget_s=0.01)
    assert played.until(1.0).value("task:edge.1", "dl_period_s") == pytest.approx(0.05)
    assert played.until(8.0).value("task:edge.1", "dl_period_s") == pytest.approx(0.1, rel=0.01)


def test_a_changed_need_is_followed_within_three_cycles() -> None:
    work = {10.0: 30_000.0, 20.0: 20_000.0}
    played = Played(topology(0.01), {at: Action("task:edge.1", "task_work_us", us) for at, us in work.items()})
    played.until(30.0)
    cycles = 3 * CYCLE_S
    budgets = {one.time_s: one.get("task:edge.1", "dl_budget_s", 0.0) for one in played.seen}
    assert all(budget >= 0.03 for time_s, budget in budgets.items() if 10 + cycles < time_s <= 20)
    assert all(budget <= 1.05 * 1.1 * 0.02 for time_s, budget in budgets.items() if time_s > 20 + cycles)


def test_bandwidth_goes_by_priority_and_nobody_gets_nothing() -> None:
    played = Played(
        topology(0.05, 0.04, 0.03),
        period_s=0.1,
        budget_s=0.01,
        max_bandwidth=0.8,
        priorities={"edge.1": 2, "task:edge.2": 1},
    )
    found = alphas(played.until(60.0), 3)
    assert found[0] == pytest.approx(0.055 * 10, rel=0.02)  # all that it wants
    assert 0.053 <= found[2] < found[1] < 0.4
    assert max(sum(alphas(one, 3)) for one in played.seen) <= 0.8 + 1e-6
    assert played.of(1, "task_response_max_s")[-1] == pytest.approx(0.05)
    # What the others lack shows in their service delay.
    deltas = [played.of(number, "dl_delta_s")[-1] for number in (1, 2, 3)]
    assert deltas == sorted(deltas)


def test_equals_share_what_is_short() -> None:
    played = Played(topology(0.06, 0.06), period_s=0.1, budget_s=0.01, max_bandwidth=0.8)
    played.until(60.0)
    for number in (1, 2):
        assert sum(played.of(number, "dl_alpha_ratio", 50.0)) / 20 == pytest.approx(0.4, rel=0.1)


def test_an_equal_one_that_wants_little_gets_it() -> None:
    played = Played(topology(0.01, 0.06), period_s=0.1, budget_s=0.012, max_bandwidth=0.5)
    played.until(30.0)
    assert min(played.of(1, "dl_alpha_ratio", 3.0)) >= 0.1
    assert max(played.of(1, "task_response_max_s", 3.0)) == pytest.approx(0.01)
    assert max(played.of(2, "dl_alpha_ratio", 3.0)) <= 0.4 + 1e-6


def test_what_is_short_comes_back_when_the_important_one_needs_less() -> None:
    events = {15.0: Action("task:edge.1", "task_work_us", 10_000.0), 60.0: Action("task:edge.1", "task_work_us", 5e4)}
    played = Played(
        topology(0.05, 0.04), events, period_s=0.1, budget_s=0.01, max_bandwidth=0.75, priorities={"edge.1": 1}
    )
    assert alphas(played.until(15.0))[1] < 0.3
    assert played.until(60.0).value("task:edge.2", "task_response_max_s") == pytest.approx(0.04)
    assert alphas(played.seen[-1])[1] == pytest.approx(0.44, rel=0.02)
    found = alphas(played.until(90.0))
    assert found[0] == pytest.approx(0.55, rel=0.02)
    assert 0 < found[1] <= 0.2 + 1e-6


def test_the_kernel_saying_no_is_learned_and_tried_again() -> None:
    """One CPU gives out 0.9; the two want 0.55 and 0.55."""
    events = {15.0: Action("task:edge.2", "task_work_us", 20_000.0)}
    played = Played(topology(0.05, 0.05, edge_cpus=1), events, period_s=0.1, budget_s=0.01, priorities={"edge.1": 1})
    found = alphas(played.until(15.0))
    assert played.refused and "not admitted" in played.refused[0].reason
    assert found[0] == pytest.approx(0.55, rel=0.03)
    assert 0.25 <= found[1] <= 0.35 + 1e-6
    assert played.of(1, "task_response_max_s")[-1] == pytest.approx(0.05)
    found = alphas(played.until(60.0))
    assert found[1] == pytest.approx(0.22, rel=0.03)
    assert not [one for one in played.refused if one.time_s > 50]


def test_degrading_by_period_keeps_jobs_whole() -> None:
    played = Played(
        topology(0.05, 0.02),
        period_s=0.1,
        budget_s=0.02,
        max_bandwidth=0.65,
        priorities={"edge.1": 1},
        degrade="period",
    )
    played.until(40.0)
    assert played.of(1, "dl_period_s")[-1] == pytest.approx(0.1)
    assert played.of(2, "dl_period_s")[-1] > 0.15
    assert played.of(2, "dl_delta_s")[-1] > 0.25
    assert sum(alphas(played.seen[-1])) <= 0.65 + 1e-6


@pytest.mark.parametrize("degrade", ["budget", "period"])
def test_the_service_delay_stays_within_its_bound(degrade: str) -> None:
    played = Played(
        topology(0.05, 0.02),
        period_s=0.1,
        budget_s=0.02,
        max_bandwidth=0.65,
        priorities={"edge.1": 1},
        degrade=degrade,
        max_delta_s={"edge.2": 0.06},
    )
    played.until(20.0)
    assert max(played.of(2, "dl_delta_s")) <= 0.06 + 1e-5  # knobs are in whole microseconds
    assert played.of(1, "dl_delta_s")[-1] == pytest.approx(0.09, rel=0.03)
    assert sum(alphas(played.seen[-1])) <= 0.65 + 1e-3


def partitions() -> Topology:
    nodes = (
        Partition(name="p1", cores=2, critical=True),
        Partition(name="p2"),
        Host(name="h"),
        Container(name="empty"),
    )
    return Topology(name="t", nodes=nodes, links=(Link(a="p1", b="h"), Link(a="p2", b="h")))


def observed(time_s: float, **rows: tuple[float, float, float]) -> Observation:
    names = ("wakeup_period_s", "dl_budget_s", "dl_used_s")
    kpis = [
        Kpi(time_s, f"node:{entity}", name, value)
        for entity, values in rows.items()
        for name, value in zip(names, values, strict=True)
        if value
    ]
    kpis += [Kpi(time_s, f"node:{entity}", "dl_period_s", values[0]) for entity, values in rows.items() if values[1]]
    return Observation(time_s, tuple(kpis))


def test_a_partition_has_a_reservation_for_each_of_its_virtual_cpus() -> None:
    controller = SchedDeadline(context(partitions()), budget_s=0.005, max_bandwidth=0.5)
    controller.observe(observed(0.5, p1=(0.05, 0, 0), p2=(0.1, 0, 0)))
    assert list(controller.act()) == [
        Action("node:p1", "dl_period_us", 50_000.0),
        Action("node:p1", "dl_runtime_us", 5_000.0),
        Action("node:p2", "dl_period_us", 100_000.0),
        Action("node:p2", "dl_runtime_us", 5_000.0),
    ]
    for cycle in range(2, 12):
        controller.observe(observed(cycle / 2, p1=(0.05, 0.009, 0.0081), p2=(0.1, 0.02, 0.02)))
        actions = {(one.entity, one.knob): float(one.value) for one in controller.act()}
    # 2 x 8.9 of 50 ms for the critical one, and what is left of 0.5 CPUs for the other.
    assert ("node:p1", "dl_runtime_us") not in actions or actions["node:p1", "dl_runtime_us"] == pytest.approx(8910)
    assert actions["node:p2", "dl_runtime_us"] <= (0.5 - 2 * 8.91 / 50) * 100e3 + 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"period_s": 0}, "period_s must be a number in [0.001, 4.1943], got 0"),
        ({"budget_s": "2ms"}, "budget_s must be a number in [0.0001, 4.1943], got '2ms'"),
        ({"period_s": 0.1, "budget_s": 0.09}, "budget_s must be at most 0.08 (max_share of period_s), got 0.09"),
        ({"first_period_s": 0.01, "budget_s": 0.009}, "budget_s must be at most 0.008 (max_share of first_period_s)"),
        ({"overallocation": 0.01}, "overallocation must be a number in [0.03, 10], got 0.01"),
        ({"samples": 1.5}, "samples must be a whole number in [1, 1000], got 1.5"),
        ({"max_share": 2}, "max_share must be a number in [0.01, 1], got 2"),
        ({"max_bandwidth": -1}, "max_bandwidth must be a number in [0.001, 1024], got -1"),
        ({"priorities": {"edge.7": 1}}, "priorities: no 'edge.7' here; known: edge.1, edge.2"),
        ({"priorities": 3}, "priorities must be a mapping with keys from edge.1, edge.2, got 3"),
        ({"priorities": {"node:edge.1": 1}}, "priorities: no 'node:edge.1' here; known: edge.1, edge.2"),
        (
            {"priorities": {"task:edge.1": 1, "edge.1": 2}},
            "priorities: edge.1 is given twice, as edge.1 and task:edge.1",
        ),
        ({"degrade": "both"}, "degrade must be one of budget, period, got 'both'"),
        ({"degrade": ["budget"]}, "degrade must be one of budget, period, got ['budget']"),
        ({"max_delta_s": {"edge.1": 0}}, "max_delta_s.edge.1 must be a number in [0.001, 60], got 0"),
        ({"max_delta_s": "no"}, "max_delta_s must be a number in [0.001, 60], got 'no'"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        SchedDeadline(context(topology(0.01, 0.02)), **params)
    assert message in str(caught.value)


def test_a_scope_without_tasks_is_refused() -> None:
    of = topology(0.01)
    with pytest.raises(ValueError, match="scope: has no task of a container and no partition"):
        SchedDeadline(context(of, "node:edge"))
