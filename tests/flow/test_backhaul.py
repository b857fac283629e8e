"""Backhaul flows on the flow fidelity: max-min fair rates, broken links, changes of demand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance import BackhaulConformance
from topologies.backhaul import from_network, scaled
from topologies.iab import IabNetwork, generate
from topologies.model import BackhaulFlow, BackhaulPath, Host, IabDonor, IabNode, Link, Topology
from twin.backend import Backend, BackendError
from twin.backhaul import BackhaulMonitor
from twin.flow import FlowBackend
from twin.flow.batched import BatchedFlows
from twin.load import Activity, BackhaulDemand, Load
from twin.types import Action, Kpi, Observation, Outcome

ONE_HOP = BackhaulPath("mmwave", ("n1", "d1"))
TWO_HOPS = BackhaulPath("mmwave", ("n2", "n1", "d1"))
DIRECT = BackhaulPath("sub6", ("n2", "d1"))


class TestFlowBackhaul(BackhaulConformance):
    @classmethod
    def make_backend(cls) -> Backend:
        return FlowBackend()


def chain(**changes: object) -> Topology:
    """Two flows share n1-d1@mmwave (6 Mbit/s); the flow of n2 may go round it at 1 Mbit/s."""
    parts: dict[str, object] = {
        "name": "chain",
        "nodes": (IabDonor(name="d1"), IabNode(name="n1"), IabNode(name="n2"), Host(name="cu")),
        "links": (
            Link(a="n1", b="d1", band="mmwave", bandwidth_bps=6e6),
            Link(a="n2", b="n1", band="mmwave", bandwidth_bps=5e6),
            Link(a="n2", b="d1", band="sub6", bandwidth_bps=1e6),
            Link(a="d1", b="cu"),
        ),
        "backhaul": (
            BackhaulFlow(name="f1", source="n1", sink="cu", paths=(ONE_HOP,)),
            BackhaulFlow(name="f2", source="n2", sink="cu", paths=(TWO_HOPS, DIRECT)),
        ),
    }
    return Topology(**(parts | changes))  # type: ignore[arg-type]


def steady(rates: dict[str, float], duration_s: float = 60.0) -> Load:
    demands = [BackhaulDemand(flow=name, activities=(Activity(0.0, duration_s, rate),)) for name, rate in rates.items()]
    return Load(flows=(), duration_s=duration_s, backhaul=tuple(demands))


def rates(seen: Observation, names: Sequence[str] = ("f1", "f2")) -> list[float]:
    return [seen.value(f"flow:{name}", "throughput_bps") for name in names]


def demands_of(network: IabNetwork) -> Load:
    return steady({flow.id: flow.demand_bps for flow in network.flows})


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(4, 40),
    seed=st.integers(0, 1000),
    load=st.sampled_from(["low", "high"]),
    active=st.floats(0.3, 1.0),
    choice=st.integers(0, 2**32 - 1),
)
def test_rates_are_those_of_the_batched_model(nodes: int, seed: int, load: str, active: float, choice: int) -> None:
    network = scaled(generate(nodes, load=load, seed=seed, active_probability=active), 0.01)
    if not network.flows:
        return
    model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps())
    chosen = np.random.default_rng(choice).integers(0, model.path_counts)
    expected = model.rates(chosen[None])[0]
    topology = from_network(network).topology("drawn")
    with FlowBackend().open(topology, demands_of(network), seed=1) as session:
        outcomes = session.apply(
            [
                Action(f"flow:{flow.id}", "path_index", int(index))
                for flow, index in zip(network.flows, chosen, strict=True)
            ]
        )
        assert all(outcome.applied for outcome in outcomes)
        seen = session.advance(1.0)
    found = rates(seen, [flow.id for flow in network.flows])
    assert found == pytest.approx(expected, rel=1e-6)
    for number, link in enumerate(network.links):
        carried = sum(
            rate for flow, index, rate in zip(model.paths, chosen, expected, strict=True) if number in flow[index]
        )
        assert seen.value(f"link:{link.a}-{link.b}@{link.band}", "link_throughput_bps") == pytest.approx(carried)


def test_a_flow_over_a_broken_link_carries_nothing_until_it_takes_another_path() -> None:
    with FlowBackend().open(chain(), steady({"f1": 4e6, "f2": 4e6}), seed=1) as session:
        assert rates(session.advance(1.0)) == pytest.approx([3e6, 3e6])
        session.apply([Action("link:n2-n1@mmwave", "link_state", "down")])
        broken = session.advance(2.0)
        assert rates(broken) == pytest.approx([4e6, 0.0])
        assert broken.value("flow:f2", "offered_bps") == 4e6
        assert broken.value("link:n2-n1@mmwave", "link_up") == 0.0
        session.apply([Action("flow:f2", "path_index", 1)])
        assert rates(session.advance(3.0)) == pytest.approx([4e6, 1e6])
        session.apply([Action("link:n2-n1@mmwave", "link_state", "up"), Action("flow:f2", "path_index", 0)])
        assert rates(session.advance(4.0)) == pytest.approx([3e6, 3e6])


def test_wired_links_rates_and_losses_count() -> None:
    wired = (*chain().links[:-1], Link(a="cu", b="d1", bandwidth_bps=2e6))
    with FlowBackend().open(chain(links=wired), steady({"f1": 4e6, "f2": 4e6}), seed=1) as session:
        assert rates(session.advance(1.0)) == pytest.approx([1e6, 1e6])
        session.apply([Action("link:cu-d1", "bandwidth_mbps", 4.0), Action("link:n2-n1@mmwave", "loss_ratio", 0.25)])
        seen = session.advance(2.0)
        assert rates(seen) == pytest.approx([2e6, 1.5e6])
        assert seen.value("link:cu-d1", "link_throughput_bps") == pytest.approx(4e6)
        session.apply([Action("link:cu-d1", "link_state", "down")])
        assert rates(session.advance(3.0)) == [0.0, 0.0]


def test_demand_changes_within_an_interval_count_by_their_share() -> None:
    load = Load(
        flows=(),
        duration_s=10.0,
        backhaul=(
            BackhaulDemand(flow="f1", activities=(Activity(0.0, 0.25, 2e6), Activity(0.25, 10.0, 4e6))),
            BackhaulDemand(flow="f2", activities=(Activity(0.5, 10.0, 4e6),)),
        ),
    )
    with FlowBackend().open(chain(), load, seed=1) as session:
        seen = session.advance(1.0)
    assert seen.value("flow:f1", "offered_bps") == pytest.approx(0.25 * 2e6 + 0.75 * 4e6)
    assert seen.value("flow:f2", "offered_bps") == pytest.approx(2e6)
    assert rates(seen) == pytest.approx([0.25 * 2e6 + 0.25 * 4e6 + 0.5 * 3e6, 1.5e6])


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (Action("flow:f2", "path_index", 2), "flow:f2 path_index: must be a whole number in [0, 1], got 2"),
        (Action("flow:f2", "path_index", -1), "must be a whole number in"),
        (Action("flow:f2", "path_index", 0.5), "must be a whole number in"),
        (Action("flow:f2", "path_index", float("nan")), "must be a whole number in"),
        (Action("flow:f9", "path_index", 0), "no flow named 'f9'; flows: f1, f2"),
        (Action("node:n1", "path_index", 0), "knob path_index acts on flow, got 'node:n1'"),
        (Action("node:n1", "node_state", "down"), "an iab-node has no container"),
    ],
)
def test_what_a_flow_lacks_is_refused_and_changes_nothing(action: Action, reason: str) -> None:
    with FlowBackend().open(chain(), steady({"f1": 4e6, "f2": 4e6}), seed=1) as session:
        (outcome,) = session.apply([action])
        assert not outcome.applied
        assert reason in outcome.reason
        assert rates(session.advance(1.0)) == pytest.approx([3e6, 3e6])


@pytest.mark.parametrize(
    ("demands", "reason"),
    [
        ([("f9", 1e6)], "backhaul flow f9: no such flow; flows: f1, f2"),
        ([("f1", 1e6), ("f1", 2e6)], "backhaul flow f1: has two demands"),
    ],
)
def test_a_load_that_does_not_fit_is_refused(demands: list[tuple[str, float]], reason: str) -> None:
    items = [BackhaulDemand(flow=name, activities=(Activity(0.0, 1.0, rate),)) for name, rate in demands]
    with pytest.raises(BackendError, match=reason):
        FlowBackend().open(chain(), Load(flows=(), duration_s=1.0, backhaul=tuple(items)), seed=1)


def test_the_monitor_predicts_what_the_flow_model_finds() -> None:
    topology, load = chain(), steady({"f1": 4e6, "f2": 4e6})
    monitor = BackhaulMonitor(topology, load)
    walk = [
        [],
        [Action("link:n2-n1@mmwave", "link_state", "down")],
        [Action("flow:f2", "path_index", 1), Action("flow:f1", "path_index", 5)],
        [Action("link:n1-d1@mmwave", "bandwidth_mbps", 2.0), Action("link:n1-d1@mmwave", "loss_ratio", 0.1)],
        [Action("link:n2-n1@mmwave", "link_state", "up"), Action("flow:f2", "path_index", 0)],
    ]
    with FlowBackend().open(topology, load, seed=1) as session:
        for count, actions in enumerate(walk, start=1):
            monitor.note(session.apply(actions))
            seen = session.advance(float(count))
            derived = Observation(seen.time_s, tuple(monitor.derive(seen)))
            for name in ("f1", "f2"):
                predicted = derived.value(f"flow:{name}", "predicted_throughput_bps")
                assert predicted == pytest.approx(seen.value(f"flow:{name}", "throughput_bps"))
            total = sum(rates(seen))
            assert derived.value("run", "backhaul_efficiency") == pytest.approx(total / 8e6)
            squares = sum(rate**2 for rate in rates(seen))
            assert derived.value("run", "backhaul_fairness") == pytest.approx(total**2 / (2 * squares))
            assert derived.value("flow:f2", "path_index") == (1 if count in (3, 4) else 0)
    assert derived.value("link:n1-d1@mmwave", "link_utilisation_ratio") == pytest.approx(1.0)


def test_the_monitor_judges_by_what_was_measured_and_only_active_flows() -> None:
    monitor = BackhaulMonitor(chain(), steady({"f1": 4e6, "f2": 4e6}))
    measured = {("flow:f1", "offered_bps"): 4e6, ("flow:f1", "throughput_bps"): 1e6, ("flow:f2", "offered_bps"): 0.0}
    seen = Observation(1.0, tuple(Kpi(1.0, entity, name, value) for (entity, name), value in measured.items()))
    derived = Observation(1.0, tuple(monitor.derive(seen)))
    assert derived.value("run", "backhaul_efficiency") == pytest.approx(0.25)
    assert derived.value("run", "backhaul_fairness") == pytest.approx(1.0)
    silent = monitor.derive(Observation(2.0, ()))
    assert not [kpi for kpi in silent if kpi.entity == "run"]


def test_refused_outcomes_change_no_prediction() -> None:
    monitor = BackhaulMonitor(chain(), steady({"f1": 4e6, "f2": 4e6}))
    monitor.note([Outcome(Action("link:n2-n1@mmwave", "link_state", "down"), applied=False)])
    derived = Observation(1.0, tuple(monitor.derive(Observation(1.0, ()))))
    assert derived.value("flow:f2", "predicted_throughput_bps") == pytest.approx(3e6)
