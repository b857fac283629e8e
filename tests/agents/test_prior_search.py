from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agents
from agents import checkpoint
from agents.checkpoint import CheckpointError
from agents.path_prior import AGENT, LAYERS, graph, read_prior, shipped
from agents.prior_search import by_flow, controller, draw, prior_search
from controllers.iab.brute_force import brute_force
from controllers.iab.local_search import local_search
from controllers.iab.problem import PathProblem
from controllers.iab.registry import make_solver
from controllers.iab.relaxation import lp_relaxation
from topologies.iab import IabNetwork, generate

WEIGHTS = Path(agents.__file__).parent / "data" / "path_prior.npz"
KINDS = ("weight", "bias")


def value(problem: PathProblem, allocation: np.ndarray) -> float:
    return float(problem.objective(allocation[None])[0])


@pytest.mark.parametrize("gamma", [1.0, 0.0, -1.0])
def test_finds_the_best_of_all_allocations(gamma: float) -> None:
    problem = PathProblem(generate(16, k_paths=1, seed=3), gamma)
    best = value(problem, brute_force(problem, np.random.default_rng(0)).allocation)
    found = prior_search(problem, np.random.default_rng(0), shipped())
    assert value(problem, found.allocation) >= 0.995 * best
    assert found.objective_bound is not None and found.objective_bound >= best - 1e-9


def test_the_prior_knows_more_than_chance_on_networks_it_never_saw() -> None:
    """Of equally many allocations, those drawn from the prior are better, for every criterion and size."""
    for nodes, gamma in ((15, 1.0), (40, 0.0), (90, -1.0)):
        problem = PathProblem(generate(nodes, k_paths=3, seed=77), gamma)
        table = by_flow(problem, shipped().probabilities(graph(problem, lp_relaxation(problem))))
        rng = np.random.default_rng(0)
        likely = problem.objective(draw(table, 64, rng))
        random = problem.objective(problem.random(64, rng))
        assert likely.mean() > random.mean() * 1.1
        assert likely.max() > random.max()


def test_beats_local_search_where_evaluations_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controllers.iab.local_search.EVALUATIONS", 300)
    gains = []
    for seed in range(4):
        problem = PathProblem(generate(60, k_paths=3, seed=seed), 0.0)
        ours = prior_search(problem, np.random.default_rng(seed), shipped(), evaluations=300)
        theirs = local_search(problem, np.random.default_rng(seed))
        assert ours.steps < 600 and theirs.steps < 600
        gains.append(value(problem, ours.allocation) / value(problem, theirs.allocation) - 1)
    assert np.mean(gains) > 0.02


def test_the_same_seed_decides_the_same() -> None:
    problem = PathProblem(generate(30, k_paths=3, seed=5, broken=3, active_probability=0.6), 0.5)
    one, two = (prior_search(problem, np.random.default_rng(4), shipped()) for _ in range(2))
    other = prior_search(problem, np.random.default_rng(5), shipped())
    assert one.allocation.tolist() == two.allocation.tolist() and one.steps == two.steps
    assert other.steps != one.steps or other.allocation.tolist() != one.allocation.tolist()


def test_probabilities() -> None:
    problem = PathProblem(generate(25, k_paths=2, seed=1, active_probability=0.5), -0.5)
    table = by_flow(problem, shipped().probabilities(graph(problem, lp_relaxation(problem))))
    known = np.arange(table.shape[1]) < problem.model.path_counts[:, None]
    assert table.sum(axis=1) == pytest.approx(np.ones(len(table)), abs=1e-5)
    assert (table[~known] == 0).all() and (table >= 0).all()
    drawn = draw(table, 4000, np.random.default_rng(0))
    assert (drawn < problem.model.path_counts).all()
    seen = np.stack([(drawn == path).mean(axis=0) for path in range(table.shape[1])], axis=1)
    assert seen == pytest.approx(table, abs=0.04)


def scaled(network: IabNetwork, factor: float) -> IabNetwork:
    links = tuple(replace(link, capacity_bps=link.capacity_bps * factor) for link in network.links)
    flows = tuple(replace(flow, demand_bps=flow.demand_bps * factor) for flow in network.flows)
    return replace(network, links=links, flows=flows)


def test_does_not_depend_on_units_or_names() -> None:
    network = generate(20, k_paths=2, seed=9)
    one, two = (PathProblem(net, 0.0) for net in (network, scaled(network, 0.01)))
    ours, theirs = (shipped().probabilities(graph(it, lp_relaxation(it))) for it in (one, two))
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("idle", [True, False])
def test_odd_problems(idle: bool) -> None:
    """A flow with one path only, one flow, no demand."""
    network = generate(8, k_paths=1, seed=2)
    flow = network.flows[0]
    only = replace(flow, paths=flow.paths[:1], demand_bps=0.0 if idle else flow.demand_bps)
    problem = PathProblem(replace(network, flows=(only,)), 0.0)
    found = prior_search(problem, np.random.default_rng(0), shipped())
    assert found.allocation.tolist() == [0]


def test_best_is_this_and_a_policy_may_be_given(tmp_path: Path) -> None:
    problem = PathProblem(generate(20, k_paths=2, seed=4), 1.0)
    path = tmp_path / "prior.npz"
    meta, arrays = checkpoint.read(WEIGHTS, AGENT)
    assert "--seed" in meta["command"] and "torch" in meta["versions"]
    checkpoint.write(path, AGENT, {}, arrays)
    decisions = [
        solver(problem, np.random.default_rng(1))
        for solver in (
            make_solver("best", problem),
            make_solver("prior_search", problem, path),
            controller(problem, None),
        )
    ]
    assert len({decision.steps for decision in decisions}) == 1
    assert len({tuple(decision.allocation) for decision in decisions}) == 1
    checkpoint.write(path, AGENT, {}, {**arrays, "path.weight": arrays["path.weight"][:, 1:]})
    with pytest.raises(CheckpointError, match=rf"layer path must have shape \({LAYERS['path'][0]}, "):
        make_solver("prior_search", problem, path)


def test_training_sees_what_deciding_sees() -> None:
    torch = pytest.importorskip("torch")
    from agents.path_prior_training import Joined, Net

    net = Net()
    prior = shipped()
    names = {f"layers.{name}.{kind}": part[at] for name, part in prior.weights.items() for at, kind in enumerate(KINDS)}
    net.load_state_dict({name: torch.from_numpy(array) for name, array in names.items()})
    problems = [PathProblem(generate(n, k_paths=k, seed=n), g) for n, k, g in ((10, 1, 1.0), (30, 3, -1.0), (50, 4, 0))]
    graphs = [graph(problem, lp_relaxation(problem)) for problem in problems]
    with torch.no_grad():
        together = net(Joined(graphs)).exp().numpy()
    assert together == pytest.approx(np.concatenate([prior.probabilities(one) for one in graphs]), abs=2e-5)


def test_training_learns_and_is_the_same_for_the_same_seed() -> None:
    pytest.importorskip("torch")
    from agents.path_prior_training import examples, train

    found = examples(4, 3)
    nets = [train(found, steps, 3) for steps in (1, 30, 30)]
    weights = [np.concatenate([value.detach().numpy().ravel() for value in net.parameters()]) for net in nets]
    assert (weights[1] == weights[2]).all() and (weights[0] != weights[1]).any()

    from agents.path_prior_training import Joined

    joined = Joined([one.seen for one in found])

    def drawn(net) -> float:  # type: ignore[no-untyped-def]
        chances = net(joined).exp().detach().numpy()
        rng, first, mean = np.random.default_rng(0), 0, []
        for one in found:
            last = first + int(one.problem.model.path_counts.sum())
            table = by_flow(one.problem, chances[first:last])
            mean.append(one.problem.objective(draw(table, 64, rng)).mean())
            first = last
        return float(np.mean(mean))

    assert drawn(nets[1]) > drawn(nets[0])


def test_the_file_is_small_and_readable() -> None:
    path = WEIGHTS
    assert path.stat().st_size < 1 << 20
    assert set(read_prior(path).weights) == set(LAYERS)
