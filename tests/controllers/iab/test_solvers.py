from __future__ import annotations

import itertools

import numpy as np
import pytest

from controllers.iab.brute_force import brute_force
from controllers.iab.local_search import climb, local_search
from controllers.iab.optimal import optimal
from controllers.iab.problem import PathProblem, SolveError
from controllers.iab.registry import SOLVERS, make_solver
from controllers.iab.relaxation import lp_relaxation, mixed_integer, objective_bound
from controllers.iab.side_by_side import MANY_SOLVERS
from controllers.iab.subset_sum import subset_sum
from topologies.iab import IabFlow, IabLink, IabNetwork, IabNode, IabPath, generate


def stream() -> np.random.Generator:
    return np.random.default_rng(7)


def value(problem: PathProblem, allocation: np.ndarray) -> float:
    return float(problem.objective(allocation[None])[0])


def two_ways(demands_bps: list[float], wide_bps: float, narrow_bps: float) -> IabNetwork:
    """Flows of one node each, all over one relay; mmWave is ``wide_bps``, Sub-6 ``narrow_bps`` into the donor."""
    sources = [IabNode(f"n{number}") for number in range(len(demands_bps))]
    links = [IabLink("r", "d", "mmwave", wide_bps), IabLink("r", "d", "sub6", narrow_bps)]
    links += [IabLink(node.id, "r", band, 1e12) for node in sources for band in ("mmwave", "sub6")]
    flows = [
        IabFlow(
            f"f{node.id}", node.id, demand, tuple(IabPath(band, (node.id, "r", "d")) for band in ("sub6", "mmwave"))
        )
        for node, demand in zip(sources, demands_bps, strict=True)
    ]
    return IabNetwork((IabNode("d", donor=True), IabNode("r"), *sources), tuple(links), tuple(flows))


@pytest.mark.parametrize("gamma", [-1.0, -0.3, 0.0, 1.0])
def test_brute_force_is_the_best_of_all_one_by_one(gamma: float) -> None:
    problem = PathProblem(generate(8, k_paths=2, seed=3), gamma)
    every = np.array(list(itertools.product(*(range(count) for count in problem.model.path_counts))))
    decision = brute_force(problem, stream())
    assert decision.steps == len(every)
    assert value(problem, decision.allocation) == max(value(problem, one) for one in every)


def test_brute_force_refuses_what_it_cannot_finish() -> None:
    with pytest.raises(SolveError, match=r"brute_force: at most 16777216 allocations can be tried, .* 57 flows"):
        brute_force(PathProblem(generate(60, seed=1)), stream())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 1.0])
def test_local_search_is_near_brute_force_at_20_nodes(seed: int, gamma: float) -> None:
    problem = PathProblem(generate(20, k_paths=1, seed=seed), gamma)
    exact = value(problem, brute_force(problem, stream()).allocation)
    assert exact * 0.995 <= value(problem, local_search(problem, stream()).allocation) <= exact


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_are_near_at_60_nodes(seed: int) -> None:
    problem = PathProblem(generate(60, k_paths=3, seed=seed))
    weak = lp_relaxation(problem).efficiency_bound
    decision = local_search(problem, stream())
    reached = value(problem, decision.allocation) / 2
    assert decision.efficiency_bound == weak
    assert 0.98 * weak <= reached <= weak + 1e-9


@pytest.mark.parametrize("gamma", [-1.0, -0.5, 0.0, 0.7, 1.0])
def test_optimal_is_exact_where_all_can_be_tried(gamma: float) -> None:
    for seed in range(3):
        problem = PathProblem(generate(12, k_paths=1, seed=seed), gamma)
        exact = value(problem, brute_force(problem, stream()).allocation)
        decision = optimal(problem, stream())
        assert decision.objective_bound is not None and decision.efficiency_bound is not None
        assert value(problem, decision.allocation) == pytest.approx(exact, abs=1e-6)
        assert exact - 1e-9 <= decision.objective_bound <= exact + 2e-6
        assert lp_relaxation(problem).efficiency_bound >= decision.efficiency_bound - 1e-6


@pytest.mark.parametrize("gamma", [-1.0, -0.4, 0.0, 0.8, 1.0])
def test_bounds_are_above_the_best_of_all_allocations(gamma: float) -> None:
    # Few flows and low demands, where the bound is not far off.
    for seed, nodes in ((1, 6), (2, 9), (3, 12)):
        for load in ("low", "high"):
            problem = PathProblem(generate(nodes, k_paths=1, seed=seed, load=load), gamma)
            every = np.array(list(itertools.product(*(range(count) for count in problem.model.path_counts))))
            best = float(problem.objective(every).max())
            weak = lp_relaxation(problem)
            program = mixed_integer(problem, time_limit_s=10, gap=1e-6)
            bounds = [objective_bound(problem, one.efficiency_bound) for one in (program, weak)]
            assert best - 1e-9 <= bounds[0] <= bounds[1] + 1e-3
            assert bounds[1] <= weak.objective_bound(gamma) + 1e-9


def test_the_bound_on_fairness_sees_what_efficiency_costs() -> None:
    # Carrying 11 of 12 takes rates of 1, 5 and 5: Jain's index (11^2 / (3 * 51)) = 0.79.
    problem = PathProblem(two_ways([1.0, 5.0, 6.0], wide_bps=10.0, narrow_bps=1.0), 0.5)
    bound = objective_bound(problem, 11 / 12)
    assert value(problem, np.array([0, 1, 1])) == pytest.approx(1.5 * 11 / 12 + 0.5 * 121 / 153)
    assert value(problem, np.array([0, 1, 1])) - 1e-9 <= bound < 1.5 * 11 / 12 + 0.5 * 0.9


def test_optimal_where_not_all_can_be_tried_is_within_its_bound() -> None:
    problem = PathProblem(generate(30, k_paths=3, seed=1), 0.0)
    decision = optimal(problem, stream())
    assert decision.objective_bound is not None
    reached = value(problem, decision.allocation)
    assert reached <= decision.objective_bound <= 1.1 * reached
    assert decision.objective_bound < lp_relaxation(problem).objective_bound(0.0)


@pytest.mark.parametrize("name", sorted(MANY_SOLVERS))
@pytest.mark.parametrize("gamma", [-1.0, 0.3, 1.0])
def test_side_by_side_as_one_by_one(name: str, gamma: float) -> None:
    problem = PathProblem(generate(15, k_paths=2, seed=4), gamma)
    matrices = [generate(15, k_paths=2, seed=4, matrix=matrix) for matrix in range(4)]
    demands = np.array([network.demand_bps() for network in matrices])
    many = MANY_SOLVERS[name](problem, demands, [np.random.default_rng(row) for row in range(4)])
    for row, (network, decision) in enumerate(zip(matrices, many, strict=True)):
        for alone in (PathProblem(network, gamma), problem.with_demand(demands[row])):
            expected = SOLVERS[name](alone, np.random.default_rng(row))
            assert decision.allocation.tolist() == expected.allocation.tolist()
            assert decision.steps == expected.steps
            assert decision.efficiency_bound == pytest.approx(expected.efficiency_bound)


def test_another_traffic_matrix_of_the_same_network() -> None:
    problem = PathProblem(generate(20, seed=4, load="low"))
    other = generate(20, seed=4, load="high", matrix=3)
    changed = problem.with_demand(other.demand_bps())
    assert changed.network == other
    allocations = problem.random(50, stream())
    np.testing.assert_allclose(changed.objective(allocations), PathProblem(other).objective(allocations), rtol=1e-9)
    twice = changed.with_demand(problem.model.demand_bps)
    np.testing.assert_allclose(twice.objective(allocations), problem.objective(allocations), rtol=1e-9)


def test_the_program_packs_what_greed_does_not() -> None:
    # 5 into the narrow link and 6 + 4 into the wide one is full; greed puts 6 and 5 together.
    problem = PathProblem(two_ways([6.0, 5.0, 4.0], wide_bps=10.0, narrow_bps=5.0))
    found = mixed_integer(problem, time_limit_s=10, gap=1e-6)
    assert found.efficiency_bound == pytest.approx(1.0)
    assert found.allocation().tolist() == [1, 0, 1]
    assert value(problem, local_search(problem, stream()).allocation) == pytest.approx(2.0)


def test_subset_sum_takes_large_flows_first() -> None:
    problem = PathProblem(two_ways([2.0, 7.0], wide_bps=7.0, narrow_bps=2.0))
    assert subset_sum(problem, stream()).allocation.tolist() == [0, 1]
    assert subset_sum(problem, stream()).steps == 4


@pytest.mark.parametrize("name", ["subset_sum", "random", "local_search", "prior_search"])
@pytest.mark.parametrize("gamma", [-1.0, 0.5])
def test_every_controller_gives_valid_paths_and_is_repeatable(name: str, gamma: float) -> None:
    problem = PathProblem(generate(30, k_paths=3, seed=2, broken=3), gamma)
    solver = make_solver(name, problem)
    decision = solver(problem, stream())
    assert (decision.allocation >= 0).all() and (decision.allocation < problem.model.path_counts).all()
    assert decision.allocation.tolist() == solver(problem, stream()).allocation.tolist()


def test_controllers_are_in_the_order_of_the_paper() -> None:
    means = {}
    for gamma in (1.0, -1.0):
        for name in ("random", "subset_sum", "local_search"):
            problems = [PathProblem(generate(40, seed=seed), gamma) for seed in range(6)]
            means[name] = np.mean([value(p, SOLVERS[name](p, stream()).allocation) for p in problems])
        assert means["random"] < means["subset_sum"] < means["local_search"]


def test_climbing_never_goes_below_its_start() -> None:
    problem = PathProblem(generate(25, seed=9), 0.0)
    for start in problem.random(5, stream()):
        found, steps = climb(problem, start, stream(), evaluations=300, goal=2.0)
        assert value(problem, found) >= value(problem, start)
        assert steps >= 300


def test_networks_without_a_choice_or_without_load() -> None:
    single = PathProblem(two_ways([3.0], wide_bps=10.0, narrow_bps=10.0))
    idle = PathProblem(two_ways([0.0, 0.0], wide_bps=10.0, narrow_bps=10.0))
    for problem in (single, idle):
        for name in SOLVERS:
            assert value(problem, SOLVERS[name](problem, stream()).allocation) == pytest.approx(2.0)


def test_problems_out_of_range() -> None:
    with pytest.raises(SolveError, match=r"gamma: must be in -1\.\.1, got nan"):
        PathProblem(generate(10), float("nan"))
    with pytest.raises(SolveError, match="flows: the network has none"):
        PathProblem(IabNetwork((IabNode("d", donor=True),), ()))
