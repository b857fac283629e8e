"""Path controllers of runs: what they see, what they decide, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from controllers.base import ControllerContext
from controllers.iab import path_controller
from controllers.iab.path_controller import Best, LocalSearch, PathController, Phaul, Random, SubsetSum
from controllers.iab.problem import Decision, PathProblem, SolveError
from topologies.backhaul import from_network, scaled
from topologies.iab import generate
from topologies.model import BackhaulFlow, BackhaulPath, Host, IabDonor, IabNode, Link, Switch, Topology
from twin.types import Action, Kpi, Observation

ONE_HOP = BackhaulPath("mmwave", ("n1", "d1"))
TWO_HOPS = BackhaulPath("mmwave", ("n2", "n1", "d1"))
DIRECT = BackhaulPath("sub6", ("n2", "d2"))
SLOW = BackhaulPath("sub6", ("n1", "d1"))


def two_donors() -> Topology:
    """f1 has mmWave or slow Sub-6 to d1; f2 shares f1's mmWave link or takes 3 Mbit/s of Sub-6 to d2."""
    return Topology(
        name="two-donors",
        nodes=(IabDonor(name="d1"), IabDonor(name="d2"), IabNode(name="n1"), IabNode(name="n2"), Host(name="cu")),
        links=(
            Link(a="n1", b="d1", band="mmwave", bandwidth_bps=6e6),
            Link(a="n2", b="n1", band="mmwave", bandwidth_bps=6e6),
            Link(a="n2", b="d2", band="sub6", bandwidth_bps=3e6),
            Link(a="n1", b="d1", band="sub6", bandwidth_bps=1e6),
            Link(a="d1", b="cu"),
            Link(a="d2", b="cu"),
        ),
        backhaul=(
            BackhaulFlow(name="f1", source="n1", sink="cu", paths=(SLOW, ONE_HOP)),
            BackhaulFlow(name="f2", source="n2", sink="cu", paths=(TWO_HOPS, DIRECT)),
        ),
    )


def context(topology: Topology, *, scope: tuple[str, ...] | None = None, seed: int = 1) -> ControllerContext:
    flows = tuple(f"flow:{flow.name}" for flow in topology.backhaul)
    return ControllerContext(topology=topology, scope=flows if scope is None else scope, interval_s=1.0, seed=seed)


def seen(
    offered: Mapping[str, float], paths: Mapping[str, int], *, down: tuple[str, ...] = (), time_s: float = 1.0
) -> Observation:
    values = [
        *((f"flow:{name}", "offered_bps", rate) for name, rate in offered.items()),
        *((f"flow:{name}", "path_index", float(index)) for name, index in paths.items()),
        *((f"link:{name}", "link_up", 0.0) for name in down),
    ]
    return Observation(time_s, tuple(Kpi(time_s, entity, name, value) for entity, name, value in values))


BUSY = {"f1": 5e6, "f2": 5e6}
START = {"f1": 0, "f2": 0}


def decide(controller: PathController, observation: Observation) -> dict[str, float | str]:
    controller.observe(observation)
    actions = controller.act()
    assert all(action.knob == "path_index" for action in actions)
    return {action.entity: action.value for action in actions}


def test_flows_are_moved_to_the_paths_that_carry_most() -> None:
    controller = LocalSearch(context(two_donors()))
    # 5 of f1 on mmWave and 3 of f2 on Sub-6; only changes are emitted.
    assert decide(controller, seen(BUSY, START)) == {"flow:f1": 1, "flow:f2": 1}
    assert decide(LocalSearch(context(two_donors())), seen(BUSY, {"f1": 1, "f2": 0})) == {"flow:f2": 1}


def test_nothing_is_decided_before_the_first_observation_or_while_nothing_is_sent() -> None:
    controller = Best(context(two_donors()))
    assert controller.act() == []
    assert decide(controller, seen({}, START)) == {}


def test_a_broken_link_is_left_at_once_and_taken_again_when_it_is_back() -> None:
    controller = Best(context(two_donors()))
    good = {"f1": 1, "f2": 1}
    assert decide(controller, seen(BUSY, good)) == {}
    assert decide(controller, seen(BUSY, good, down=("n1-d1@mmwave",))) == {"flow:f1": 0}
    assert decide(controller, seen(BUSY, {"f1": 0, "f2": 1})) == {"flow:f1": 1}


def test_the_wired_link_of_a_donor_counts() -> None:
    controller = Best(context(two_donors()))
    assert decide(controller, seen(BUSY, {"f1": 1, "f2": 1}, down=("d2-cu",)))["flow:f2"] == 0


def test_a_flow_without_a_path_that_is_up_is_left_alone() -> None:
    controller = Best(context(two_donors()))
    down = ("n2-n1@mmwave", "n2-d2@sub6")
    assert decide(controller, seen(BUSY, START, down=down)) == {"flow:f1": 1}
    everything = (*down, "n1-d1@sub6", "n1-d1@mmwave")
    assert decide(controller, seen(BUSY, START, down=everything)) == {}


class Counting:
    """A solver that counts how often it is asked, and answers path 0 for every flow."""

    def __init__(self) -> None:
        self.asked: list[PathProblem] = []

    def __call__(self, problem: PathProblem, rng: np.random.Generator) -> Decision:  # noqa: ARG002
        self.asked.append(problem)
        return Decision(np.zeros(len(problem.network.flows), dtype=np.int64), 1)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    solver = Counting()
    monkeypatch.setattr(path_controller, "make_solver", lambda *_: solver)
    return solver


def test_it_thinks_again_only_when_something_changed(counting: Counting) -> None:
    controller = PathController(context(two_donors()), demand_tolerance=0.1)
    asked = []
    for observation in (
        seen(BUSY, START),
        seen(BUSY, START),
        seen({"f1": 5.4e6, "f2": 5e6}, START),  # within the tolerance
        seen({"f1": 6e6, "f2": 5e6}, START),
        seen({"f1": 6e6}, START),  # f2 fell silent
        seen({"f1": 6e6}, START, down=("n1-d1@mmwave",)),
        seen({"f1": 6e6}, {"f1": 1, "f2": 0}, down=("n2-d2@sub6",)),
        seen({"f1": 6e6}, {"f1": 1, "f2": 0}, down=("n2-d2@sub6",)),  # another hand moved f1
    ):
        controller.observe(observation)
        controller.act()
        asked.append(len(counting.asked))
    assert asked == [1, 1, 1, 2, 3, 4, 5, 6]
    assert [flow.id for flow in counting.asked[2].network.flows] == ["f1"]
    assert [flow.demand_bps for flow in counting.asked[1].network.flows] == [6e6, 5e6]


def test_capacities_are_those_of_now(counting: Counting) -> None:
    controller = PathController(context(two_donors()))
    less = Kpi(1.0, "link:n1-d1@mmwave", "bandwidth_limit_bps", 2e6)
    observation = seen(BUSY, START)
    controller.observe(replace(observation, kpis=(*observation.kpis, less)))
    controller.act()
    assert counting.asked[0].network.capacity_bps().tolist() == [2e6, 6e6, 3e6, 1e6]


def test_flows_out_of_scope_stay_and_are_reckoned_with(counting: Counting) -> None:
    controller = PathController(context(two_donors(), scope=("flow:f2",)))
    assert decide(controller, seen(BUSY, {"f1": 1, "f2": 1})) == {"flow:f2": 0}
    assert [[path.band for path in flow.paths] for flow in counting.asked[0].network.flows] == [
        ["mmwave"],
        ["mmwave", "sub6"],
    ]


def test_with_min_gain_flows_stay_where_little_is_to_be_won() -> None:
    topology = two_donors()
    observation = seen({"f1": 5e6, "f2": 3.1e6}, {"f1": 1, "f2": 0})  # 6 of 8.1 carried; 8 of 8.1 is possible
    assert decide(Best(context(topology)), observation) == {"flow:f2": 1}
    assert decide(Best(context(topology), min_gain=0.4), observation) == {"flow:f2": 1}
    assert decide(Best(context(topology), min_gain=0.6), observation) == {}
    # A path that is broken is left whatever the gain.
    broken = seen({"f1": 5e6, "f2": 3.1e6}, {"f1": 1, "f2": 0}, down=("n2-n1@mmwave",))
    assert decide(Best(context(topology), min_gain=2.0), broken) == {"flow:f2": 1}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.array([0, 2]), "solver best: flow f2: path index must be in 0..1, got 2"),
        (np.array([-1, 0]), "solver best: flow f1: path index must be in 0..1, got -1"),
        (np.array([0.0, np.nan]), "solver best: flow f1: path index must be in 0..1, got 0.0"),
        (np.array([0]), "solver best: must give 2 path indices, got shape (1,)"),
    ],
)
def test_an_answer_that_is_none_is_refused_whole_and_asked_for_again(
    answer: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = PathController(context(two_donors()))
    monkeypatch.setattr(path_controller, "make_solver", lambda *_: lambda *_: Decision(answer, 1))
    controller.observe(seen(BUSY, START))
    with pytest.raises(SolveError) as caught:
        controller.act()
    assert str(caught.value) == message
    monkeypatch.undo()
    assert [action.entity for action in controller.act()] == ["flow:f1", "flow:f2"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"solver": "magic"}, "solver must be one of subset_sum, random"),
        ({"gamma": 2}, "gamma must be a number in [-1, 1], got 2"),
        ({"demand_tolerance": -1}, "demand_tolerance must be a number in [0, 1]"),
        ({"min_gain": "much"}, "min_gain must be a number in [0, 2]"),
        ({"solver": "optimal", "policy": "learned.npz"}, "policy: optimal does not learn, so it takes none"),
        ({"solver": "phaul"}, "policy is missing: the file of what phaul learned (twin train, --policy FILE)"),
        ({"solver": "phaul", "policy": "/nowhere/learned.npz"}, "/nowhere/learned.npz"),
    ],
)
def test_bad_parameters_are_named_before_the_run(params: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        PathController(context(two_donors()), **params)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_needs_flows_to_act_on() -> None:
    plain = Topology(name="plain", nodes=(Switch(name="s1"),), links=())
    with pytest.raises(ValueError, match="the topology has no backhaul flows"):
        Best(context(plain))
    with pytest.raises(ValueError, match="the scope has no backhaul flow"):
        Best(context(two_donors(), scope=("node:n1",)))
    with pytest.raises(ValueError, match="policy is missing"):
        Phaul(context(two_donors()))


@pytest.mark.parametrize("kind", [Random, SubsetSum, LocalSearch])
def test_the_same_seed_decides_the_same(kind: type[PathController]) -> None:
    network = scaled(generate(12, seed=2), 0.01)
    topology = from_network(network).topology("drawn")
    demand = {flow.id: flow.demand_bps for flow in network.flows}
    observation = seen(demand, dict.fromkeys(demand, 0))

    def moves(seed: int) -> list[Action]:
        controller = kind(context(topology, seed=seed))
        controller.observe(observation)
        return list(controller.act())

    assert moves(1) == moves(1) != []
    if kind is Random:
        assert moves(1) != moves(2)
