"""The batched rates against the scalar path and against lexicographic linear programs."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from topologies.iab import generate
from twin.flow.batched import Array, BatchedFlows, JoinedFlows, efficiency, fairness
from twin.flow.batched_arrays import NumpyOps
from twin.flow.maxmin import max_min

Paths = list[list[list[int]]]
# Compiled by Numba, arrays on NumPy, tensors on PyTorch: the test dependencies have all three.
DEVICES = (None, "numpy", "cpu")


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
    capacity = draw(st.lists(st.integers(0, 40), min_size=links, max_size=links))
    demand = draw(st.lists(st.integers(0, 40), min_size=len(paths), max_size=len(paths)))
    return paths, np.array(capacity) / 4, np.array(demand) / 4


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_same_rates_as_the_scalar_path(case: tuple[Paths, Array, Array], seed: int) -> None:
    paths, capacity, demand = case
    rng = np.random.default_rng(seed)
    for device in DEVICES:
        model = BatchedFlows(paths, capacity, demand, device=device)
        allocations = rng.integers(0, model.path_counts, (6, model.flows))
        demands = rng.integers(0, 40, (6, model.flows)) / 4
        capacities = rng.integers(0, 40, (6, model.links)) / 4
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
    for device in DEVICES:
        model = BatchedFlows(paths, capacity * unit, demand, usage=usage, device=device)
        allocations = rng.integers(0, model.path_counts, (4, model.flows))
        demands = rng.integers(0, 40, (4, model.flows)) / 4
        found, other = model.rates(allocations), model.rates(allocations, demand_bps=demands)
        for row, allocation in enumerate(allocations.tolist()):
            matrix = np.zeros((model.links, model.flows))
            for flow, path in enumerate(allocation):
                matrix[paths[flow][path], flow] = usage[flow][path]
            # The scalar path wants capacities that are not tiny.
            for rates, offered in ((found[row], demand), (other[row], demands[row])):
                np.testing.assert_allclose(rates, max_min(matrix / unit, capacity, offered)[0], rtol=1e-9, atol=1e-9)
            single = BatchedFlows.from_matrix(matrix, capacity * unit, demand, device=device)
            np.testing.assert_allclose(single.rates(np.zeros((1, model.flows), dtype=int))[0], found[row], rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(cases(), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.booleans())
def test_different_networks_side_by_side(nets: list[tuple[Paths, Array, Array]], seed: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    usages = [
        [[(rng.integers(1, 9, len(path)) / 4).tolist() for path in choices] for choices in paths]
        for paths, _, _ in nets
    ]
    alone = [
        # Without usages in one of them, since such networks may be joined with others.
        BatchedFlows(*net, usage=usage if weighted and number else None)
        for number, (net, usage) in enumerate(zip(nets, usages, strict=True))
    ]
    for device in DEVICES:
        joined = JoinedFlows(alone, device=device)
        which = rng.integers(0, len(nets), 12)
        allocations = rng.integers(0, joined.path_counts[which])
        demands = rng.integers(0, 40, (12, joined.flows)) / 4
        capacities = rng.integers(0, 40, (12, joined.links)) / 4
        plain = joined.rates(which, allocations)
        other_demand = joined.rates(which, allocations, demand_bps=demands)
        other_both = joined.rates(which, allocations, demand_bps=demands, capacity_bps=capacities)
        carried, fair = joined.evaluate(which, allocations)
        other_carried, _ = joined.evaluate(which, allocations, demand_bps=demands)
        for row, number in enumerate(which):
            model = alone[number]
            mine = allocations[row : row + 1, : model.flows]
            demand, capacity = demands[row : row + 1, : model.flows], capacities[row : row + 1, : model.links]
            for found, expected in (
                (plain, model.rates(mine)),
                (other_demand, model.rates(mine, demand_bps=demand)),
                (other_both, model.rates(mine, demand_bps=demand, capacity_bps=capacity)),
            ):
                np.testing.assert_allclose(found[row, : model.flows], expected[0], rtol=1e-9, atol=1e-9)
                assert not found[row, model.flows :].any()
            expected_carried, expected_fair = model.evaluate(mine)
            assert carried[row] == pytest.approx(expected_carried[0]) and fair[row] == pytest.approx(expected_fair[0])
            assert other_carried[row] == pytest.approx(model.evaluate(mine, demand_bps=demand)[0][0])


@pytest.mark.parametrize("device", DEVICES)
def test_joined_networks_against_the_scalar_path(device: str | None) -> None:
    nets = [generate(nodes, k_paths=k, seed=seed, broken=b) for nodes, k, seed, b in ((20, 3, 1, 0), (60, 1, 2, 5))]
    models = [BatchedFlows(net.path_links(), net.capacity_bps(), net.demand_bps()) for net in nets]
    joined = JoinedFlows(models, device=device)
    which = np.arange(40) % 2
    allocations = np.random.default_rng(4).integers(0, joined.path_counts[which])
    rates = joined.rates(which, allocations)
    for row, number in enumerate(which):
        net, model = nets[number], models[number]
        usage = usage_of(net.path_links(), model.links, allocations[row, : model.flows].tolist())
        expected = max_min(usage, net.capacity_bps(), net.demand_bps())[0]
        np.testing.assert_allclose(rates[row, : model.flows], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("networks", "allocations", "message"),
    [
        ([0, 2], [[0, 0], [0, 0]], r"networks: must be in 0\.\.1, got 0\.\.2"),
        ([0], [[0, 0], [0, 0]], r"networks: shape must be \(2,\), got \(1,\)"),
        ([0.0], [[0, 0]], "networks: must be whole numbers"),
        ([1], [[0, 1]], r"allocation 0: flow 1: path must be in 0\.\.0, got 1"),
        ([0, 0], [[0, 1], [0, 2]], r"allocation 1: flow 1: path must be in 0\.\.1, got 2"),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_joined_rows_that_do_not_fit(networks: object, allocations: object, message: str, device: str | None) -> None:
    wide, narrow = BatchedFlows([[[0]], [[0], [1]]], [1.0, 1.0], [1.0, 1.0]), BatchedFlows([[[0]]], [1.0], [1.0])
    with pytest.raises(ValueError, match=message):
        JoinedFlows([wide, narrow], device=device).rates(networks, allocations)


def test_nothing_to_join() -> None:
    with pytest.raises(ValueError, match="models: needs at least one network, got none"):
        JoinedFlows([])


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e6, 1e9]))
def test_same_rates_as_linear_programming(case: tuple[Paths, Array, Array], seed: int, scale: float) -> None:
    paths, capacity, demand = case[0], case[1] * scale, case[2] * scale
    models = [BatchedFlows(paths, capacity, demand, device=device) for device in DEVICES]
    allocations = np.random.default_rng(seed).integers(0, models[0].path_counts, (2, models[0].flows))
    for row, allocation in enumerate(allocations.tolist()):
        expected = by_linear_programs(usage_of(paths, models[0].links, allocation), capacity, demand)
        for model in models:
            np.testing.assert_allclose(model.rates(allocations)[row], expected, rtol=1e-6, atol=1e-6 * scale)


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


@pytest.mark.parametrize("device", DEVICES)
def test_threads_and_chunks_change_nothing(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = generate(30, seed=2)
    model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps(), device=device)
    allocations = np.random.default_rng(3).integers(0, model.path_counts, (2000, model.flows))
    expected = model.rates(allocations)
    np.testing.assert_allclose(model.rates(allocations, threads=2), expected, rtol=1e-12)
    if device is not None:
        monkeypatch.setattr(model._ops, "chunk", 1)
        np.testing.assert_allclose(model.rates(allocations), expected, rtol=1e-9)


def test_arrays_and_compiled_code_give_the_same_numbers() -> None:
    network = generate(40, seed=2)
    arguments = network.path_links(), network.capacity_bps(), network.demand_bps()
    rng = np.random.default_rng(3)
    for usage in (None, [[rng.uniform(0.5, 2, len(path)).tolist() for path in choices] for choices in arguments[0]]):
        model, arrays, tensors = (BatchedFlows(*arguments, usage=usage, device=device) for device in DEVICES)
        allocations = rng.integers(0, model.path_counts, (500, model.flows))
        expected = model.rates(allocations)
        np.testing.assert_allclose(arrays.rates(allocations), expected, rtol=1e-9)
        np.testing.assert_allclose(tensors.rates(allocations), expected, rtol=1e-9)


def test_tensors_stay_tensors() -> None:
    import torch

    model = BatchedFlows([[[0], [1]], [[0]]], [3.0, 1.0], [2.0, 2.0], device="cpu")
    allocations = torch.tensor([[0, 0], [1, 0]], dtype=torch.int32)
    found = model.rates(allocations)
    assert torch.is_tensor(found)
    assert found.tolist() == [[1.5, 1.5], [1.0, 2.0]]
    other = model.rates(allocations, demand_bps=torch.tensor([[0.5, 9.0], [9.0, 0.5]]))
    assert other.tolist() == [[0.5, 2.5], [1.0, 0.5]]
    joined = JoinedFlows([model, model], device="cpu").rates(torch.tensor([0, 1]), allocations)
    assert torch.is_tensor(joined) and joined.tolist() == found.tolist()
    with pytest.raises(ValueError, match=r"allocations: must be whole numbers, got torch\.float32"):
        model.rates(torch.zeros((1, 2)))


def test_numpy_where_numba_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twin.flow.batched._fill_rows", lambda: None)
    model = BatchedFlows([[[0], [1]], [[0]]], [3.0, 1.0], [2.0, 2.0])
    assert isinstance(model._ops, NumpyOps)
    assert model.rates([[0, 0], [1, 0]]).tolist() == [[1.5, 1.5], [1.0, 2.0]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_link_without_capacity_carries_nothing(device: str | None) -> None:
    model = BatchedFlows([[[0], [1]], [[0]], [[1]]], [0.0, 3.0], [2.0, 2.0, 0.0], device=device)
    assert model.rates([[0, 0, 0], [1, 0, 0]]).tolist() == [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]


def test_one_allocation_at_a_time_is_quick() -> None:
    network = generate(60, k_paths=3, seed=1)
    model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps())
    allocation = np.zeros((1, model.flows), dtype=np.int64)
    model.rates(allocation)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        model.rates(allocation)
        times.append(time.perf_counter() - start)
    # About 6 us on an idle core; a loop over flows in Python takes milliseconds.
    assert statistics.median(times) < 150e-6


def test_empty_batches_and_networks() -> None:
    for device in DEVICES:
        model = BatchedFlows([[[0]]], [1.0], [2.0], device=device)
        assert model.rates(np.zeros((0, 1), dtype=int)).shape == (0, 1)
        assert model.rates([[0]]).tolist() == [[1.0]]
        assert BatchedFlows([], [1.0], [], device=device).rates(np.zeros((4, 0), dtype=int)).shape == (4, 0)
        assert BatchedFlows([[[]]], [1.0], [2.0], device=device).rates([[0]]).tolist() == [[2.0]]


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
        ([[[0]]], [-2.0], [1.0], r"capacity_bps: must be in 0\.\..* got -2"),
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
    for device in DEVICES:
        model = BatchedFlows([[[0]], [[0], [1]]], [1.0, 1.0], [1.0, 1.0], device=device)
        with pytest.raises(ValueError, match=message):
            model.rates(allocations)  # type: ignore[arg-type]
