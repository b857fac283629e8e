"""Progressive filling against an independent solver: lexicographic max-min by linear programs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from twin.flow.maxmin import UNLIMITED, Array, max_min


def by_linear_programs(usage: Array, capacity: Array, demand: Array) -> Array:
    """Raise the common level as far as it goes, fix the flows that can go no further, repeat."""
    flows = demand.size
    fixed: dict[int, float] = {}
    while len(fixed) < flows:
        free = [flow for flow in range(flows) if flow not in fixed]
        level = _level(usage, capacity, demand, fixed, free)
        stuck = [flow for flow in free if _highest(usage, capacity, demand, fixed, free, level, flow) <= level + 1e-7]
        assert stuck
        fixed |= dict.fromkeys(stuck, level)
    return np.array([fixed[flow] for flow in range(flows)])


def _level(usage: Array, capacity: Array, demand: Array, fixed: dict[int, float], free: list[int]) -> float:
    # variables: rates, then the level t
    flows = demand.size
    above = np.zeros((len(free), flows + 1))
    for row, flow in enumerate(free):
        above[row, flow], above[row, flows] = -1, 1
    rows = np.vstack((np.hstack((usage, np.zeros((usage.shape[0], 1)))), above))
    limits = np.concatenate((capacity, np.zeros(len(free))))
    bounds = [(fixed.get(flow, 0.0), fixed.get(flow, demand[flow])) for flow in range(flows)] + [(0, None)]
    objective = np.zeros(flows + 1)
    objective[flows] = -1
    found = linprog(objective, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
    assert found.status == 0, found.message
    return float(found.x[flows])


def _highest(
    usage: Array, capacity: Array, demand: Array, fixed: dict[int, float], free: list[int], level: float, flow: int
) -> float:
    bounds = [
        (max(0.0, level - 1e-9), demand[index]) if index in free else (fixed[index] - 1e-9, fixed[index])
        for index in range(demand.size)
    ]
    objective = np.zeros(demand.size)
    objective[flow] = -1
    found = linprog(objective, A_ub=usage, b_ub=capacity + 1e-9, bounds=bounds, method="highs")
    assert found.status == 0, found.message
    return float(found.x[flow])


@st.composite
def networks(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    flows, resources = draw(st.integers(1, 6)), draw(st.integers(0, 5))
    weights = st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0, 3.0])
    usage = [[draw(weights) for _ in range(flows)] for _ in range(resources)]
    capacity = [float(draw(st.integers(1, 40))) / 4 for _ in range(resources)]
    demand = [float(draw(st.integers(0, 40))) / 4 for _ in range(flows)]
    return np.array(usage).reshape(resources, flows), np.array(capacity), np.array(demand)


@settings(max_examples=120, deadline=None)
@given(networks())
def test_same_rates_as_linear_programming(network: tuple[Array, Array, Array]) -> None:
    usage, capacity, demand = network
    rates, limit = max_min(usage, capacity, demand)
    np.testing.assert_allclose(rates, by_linear_programs(usage, capacity, demand), atol=1e-5)
    for flow, resource in enumerate(limit):
        if resource == UNLIMITED:
            assert rates[flow] == pytest.approx(demand[flow])
        else:
            assert usage[resource, flow] > 0
            assert usage[resource] @ rates == pytest.approx(capacity[resource])


@settings(max_examples=100, deadline=None)
@given(networks(), st.sampled_from([1e-3, 1e6, 1e9]))
def test_units_do_not_matter(network: tuple[Array, Array, Array], scale: float) -> None:
    usage, capacity, demand = network
    scaled = max_min(usage, capacity * scale, demand * scale)[0]
    np.testing.assert_allclose(scaled, max_min(usage, capacity, demand)[0] * scale, rtol=1e-6, atol=1e-6 * scale)


def test_a_textbook_line_of_two_links() -> None:
    # flow 0 crosses both links, flows 1 and 2 one each; capacities 1 and 2
    usage = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    rates, limit = max_min(usage, np.array([1.0, 2.0]), np.full(3, 10.0))
    assert rates.tolist() == [0.5, 0.5, 1.5]
    assert limit.tolist() == [0, 0, 1]


def test_no_capacity_means_no_rate() -> None:
    rates, limit = max_min(np.array([[1.0, 0.0]]), np.array([0.0]), np.array([5.0, 5.0]))
    assert rates.tolist() == [0, 5]
    assert limit.tolist() == [0, UNLIMITED]


def test_no_resources() -> None:
    rates, _ = max_min(np.zeros((0, 2)), np.zeros(0), np.array([1.0, 2.0]))
    assert rates.tolist() == [1, 2]
