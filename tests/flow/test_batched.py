"""The batched rates against the scalar path and against lexicographic linear programs."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from topologies.iab import generate
from twin.flow.batched import Array, BatchedFlows, efficiency, fairness
from twin.flow.maxmin import max_min

Paths = list[list[list[int]]]


def usage_of(paths: Paths, links: int, allocation: list[int]) -> Array:
    usage = np.zeros((links, len(paths)))
    for flow, index in enumerate(allocation):
        usage[paths[flow][index], flow] = 1
    return usage


def by_linear_programs(usage: Array, capacity: Array, demand: Array) -> Array:
    """Lexicographic max-min, independent of filling: raise the level of all free flows together, fix
    those that no linear program can raise any further, repeat. Rates are scaled to about 1."""
    flows = demand.size
    scale = max(capacity.max(), demand.max(initial=0.0), 1.0)
    capacity, demand = capacity / scale, demand / scale
    fixed = np.full(flows, np.nan)
    while np.isnan(fixed).any():
        free = np.isnan(fixed)
        # The only variable is the common level t: usage (fixed + t) <= capacity, t <= demand.
        rows = np.concatenate((usage[:, free].sum(axis=1), np.ones(free.sum())))
        limits = np.concatenate((capacity - usage[:, ~free] @ fixed[~free], demand[free]))
        found = linprog([-1.0], A_ub=rows[:, None], b_ub=np.maximum(limits, 0.0), bounds=(0, None), method="highs")
        assert found.status == 0, found.message
        level = found.x[0]
        # A free flow can go further only if another linear program says so.
        for flow in np.flatnonzero(free):
            bounds = [
                (fixed[other], fixed[other]) if not free[other] else (level - 1e-9, demand[other] + 1e-9)
                for other in range(flows)
            ]
            cost = np.zeros(flows)
            cost[flow] = -1
            most = linprog(cost, A_ub=usage, b_ub=capacity + 1e-9, bounds=bounds, method="highs")
            assert most.status == 0, most.message
            if most.x[flow] <= level + 1e-7:
                fixed[flow] = level
        assert np.isnan(fixed).sum() < free.sum()
    return fixed * scale


@st.composite
def cases(draw: st.DrawFn) -> tuple[Paths, Array, Array]:
    links = draw(st.integers(1, 6))
    path = st.lists(st.integers(0, links - 1), unique=True, max_size=4)
    paths = draw(st.lists(st.lists(path, min_size=1, max_size=3), min_size=1, max_size=7))
    capacity = draw(st.lists(st.integers(1, 40), min_size=links, max_size=links))
    demand = draw(st.lists(st.integers(0, 40), min_size=len(paths), max_size=len(paths)))
    return paths, np.array(capacity) / 4, np.array(demand) / 4


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_same_rates_as_the_scalar_path(case: tuple[Paths, Array, Array], seed: int) -> None:
    paths, capacity, demand = case
    model = BatchedFlows(paths, capacity, demand)
    rng = np.random.default_rng(seed)
    allocations = rng.integers(0, model.path_counts, (12, model.flows))
    demands = rng.integers(0, 40, (12, model.flows)) / 4
    capacities = rng.integers(1, 40, (12, model.links)) / 4
    found = model.rates(allocations)
    other_demand = model.rates(allocations, demand_bps=demands)
    other_both = model.rates(allocations, demand_bps=demands, capacity_bps=capacities)
    for row, allocation in enumerate(allocations.tolist()):
        usage = usage_of(paths, model.links, allocation)
        for rates, limits, offered in (
            (found, capacity, demand),
            (other_demand, capacity, demands[row]),
            (other_both, capacities[row], demands[row]),
        ):
            np.testing.assert_allclose(rates[row], max_min(usage, limits, offered)[0], rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.sampled_from([1e-9, 1.0, 1e6]))
def test_usage_other_than_one(case: tuple[Paths, Array, Array], seed: int, unit: float) -> None:
    paths, capacity, demand = case
    rng = np.random.default_rng(seed)
    usage = [[[unit * float(rng.integers(1, 9)) / 4 for _ in path] for path in choices] for choices in paths]
    model = BatchedFlows(paths, capacity * unit, demand, usage=usage)
    allocations = rng.integers(0, model.path_counts, (8, model.flows))
    demands = rng.integers(0, 40, (8, model.flows)) / 4
    found, other = model.rates(allocations), model.rates(allocations, demand_bps=demands)
    for row, allocation in enumerate(allocations.tolist()):
        matrix = np.zeros((model.links, model.flows))
        for flow, path in enumerate(allocation):
            matrix[paths[flow][path], flow] = usage[flow][path]
        # The scalar path wants capacities that are not tiny.
        for rates, offered in ((found[row], demand), (other[row], demands[row])):
            np.testing.assert_allclose(rates, max_min(matrix / unit, capacity, offered)[0], rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e6, 1e9]))
def test_same_rates_as_linear_programming(case: tuple[Paths, Array, Array], seed: int, scale: float) -> None:
    paths, capacity, demand = case[0], case[1] * scale, case[2] * scale
    model = BatchedFlows(paths, capacity, demand)
    allocations = np.random.default_rng(seed).integers(0, model.path_counts, (2, model.flows))
    for rates, allocation in zip(model.rates(allocations), allocations.tolist(), strict=True):
        expected = by_linear_programs(usage_of(paths, model.links, allocation), capacity, demand)
        np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize(("nodes", "load"), [(20, "high"), (60, "high"), (60, "low")])
def test_networks_of_the_generator(nodes: int, load: str) -> None:
    network = generate(nodes, k_paths=3, load=load, seed=5)
    paths, capacity, demand = network.path_links(), network.capacity_bps(), network.demand_bps()
    model = BatchedFlows(paths, capacity, demand)
    allocations = np.random.default_rng(1).integers(0, model.path_counts, (300, model.flows))
    rates = model.rates(allocations)
    for row, allocation in enumerate(allocations.tolist()):
        expected = max_min(usage_of(paths, model.links, allocation), capacity, demand)[0]
        np.testing.assert_allclose(rates[row], expected, rtol=1e-9)
    usage = usage_of(paths, model.links, allocations[0].tolist())
    if nodes == 20:
        np.testing.assert_allclose(rates[0], by_linear_programs(usage, capacity, demand), rtol=1e-6)


def test_a_chain_of_bottlenecks_fills_in_order() -> None:
    # Flow k crosses links k and k + 1: each link is full only after the one before it.
    paths = [[[link, link + 1]] for link in range(5)] + [[[link]] for link in range(6)]
    capacity = np.array([2.0, 8.0, 20.0, 44.0, 92.0, 188.0])
    demand = np.full(11, 1e3)
    rates = BatchedFlows(paths, capacity, demand).rates(np.zeros((3, 11), dtype=int))
    expected = max_min(usage_of(paths, 6, [0] * 11), capacity, demand)[0]
    np.testing.assert_allclose(rates, np.tile(expected, (3, 1)), rtol=1e-9)


def test_threads_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = generate(30, seed=2)
    model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps())
    allocations = np.random.default_rng(3).integers(0, model.path_counts, (2000, model.flows))
    expected = model.rates(allocations)
    np.testing.assert_array_equal(model.rates(allocations, threads=2), expected)
    monkeypatch.setattr("twin.flow.batched._NumpyOps.chunk", 1)
    np.testing.assert_allclose(model.rates(allocations), expected, rtol=1e-9)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorch_gives_the_same_numbers() -> None:
    network = generate(40, seed=2)
    arguments = network.path_links(), network.capacity_bps(), network.demand_bps()
    rng = np.random.default_rng(3)
    for usage in (None, [[rng.uniform(0.5, 2, len(path)).tolist() for path in choices] for choices in arguments[0]]):
        model = BatchedFlows(*arguments, usage=usage)
        tensors = BatchedFlows(*arguments, usage=usage, device="cpu")
        allocations = rng.integers(0, model.path_counts, (500, model.flows))
        np.testing.assert_allclose(tensors.rates(allocations), model.rates(allocations), rtol=1e-9)


def test_empty_batches_and_networks() -> None:
    model = BatchedFlows([[[0]]], [1.0], [2.0])
    assert model.rates(np.zeros((0, 1), dtype=int)).shape == (0, 1)
    assert model.rates([[0]]).tolist() == [[1.0]]
    assert BatchedFlows([], [1.0], []).rates(np.zeros((4, 0), dtype=int)).shape == (4, 0)
    assert BatchedFlows([[[]]], [1.0], [2.0]).rates([[0]]).tolist() == [[2.0]]


def test_efficiency_and_fairness() -> None:
    rates = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    assert efficiency(rates, np.array([2.0, 2.0])).tolist() == [0.5, 0.5, 0.0]
    assert fairness(rates).tolist() == [1.0, 0.5, 1.0]
    assert efficiency(np.zeros((1, 2)), np.zeros(2)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("paths", "capacity", "demand", "message"),
    [
        ([[]], [1.0], [1.0], "flow 0: has no path"),
        ([[[0], [0, 0]]], [1.0], [1.0], "flow 0: path 1 crosses a link twice"),
        ([[[1]]], [1.0], [1.0], r"flow 0: path 0 has a link outside 0\.\.0"),
        ([[[0]]], [0.0], [1.0], "capacity_bps: must be above 0, got 0"),
        ([[[0]]], [float("nan")], [1.0], "capacity_bps: must be in .* got nan"),
        ([[[0]]], [1.0], [-1.0], "demand_bps: must be in .* got -1"),
        ([[[0]]], [1.0], [1.0, 2.0], r"demand_bps: shape must be \(1,\), got \(2,\)"),
    ],
)
def test_networks_that_do_not_fit(paths: Paths, capacity: list[float], demand: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchedFlows(paths, capacity, demand)


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ([[[0.0]]], "usage: flow 0: path 0: must be in .* got 0"),
        ([[[float("nan")]]], "got nan"),
        ([[[1.0, 1.0]]], "usage: must have one number for every link of every path"),
    ],
)
def test_usage_that_does_not_fit(usage: list[list[list[float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchedFlows([[[0]]], [1.0], [1.0], usage=usage)


@pytest.mark.parametrize(
    ("allocations", "message"),
    [
        ([[0, 2]], r"allocation 0: flow 1: path must be in 0\.\.1, got 2"),
        ([[0, 0], [-1, 0]], r"allocation 1: flow 0: path must be in 0\.\.0, got -1"),
        ([[0.0, 1.0]], "must be whole numbers"),
        ([0, 1], r"shape must be \(allocations, 2\), got \(2,\)"),
    ],
)
def test_allocations_that_do_not_fit(allocations: object, message: str) -> None:
    model = BatchedFlows([[[0]], [[0], [1]]], [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=message):
        model.rates(allocations)  # type: ignore[arg-type]
