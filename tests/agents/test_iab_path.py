from __future__ import annotations

import math

import numpy as np
import pytest

from agents.iab_path import PathSearchError, PathSearches, PathSpace, Traffic
from topologies.iab import IabNetwork, generate
from twin.flow.maxmin import max_min


def figure_16(
    network: IabNetwork, demand: np.ndarray, actions: list[int], gamma: float, steps: int
) -> tuple[list[float], list[list[float]], int]:
    """Rewards, rates and the step of the end, line by line, on one list per variable."""
    paths = network.path_links()
    bands = [[path.band for path in flow.paths] for flow in network.flows]
    count = len(paths)
    selected = []
    for flow in range(count):
        sub6, mmwave = ([p for p in range(len(paths[flow])) if bands[flow][p] == band] for band in ("sub6", "mmwave"))
        selected.append({2 * k + b: p for b, found in enumerate((sub6, mmwave)) for k, p in enumerate(found)})
    current = [min(slots) for slots in selected]
    capacity = network.capacity_bps()
    low, high = [math.inf, math.inf], [-math.inf, -math.inf]
    rewards, rates = [], []
    for n, action in enumerate(actions):
        flow, slot = action % count, action // count
        if slot in selected[flow]:
            current[flow] = slot
        usage = np.zeros((len(capacity), count))
        for f, s in enumerate(current):
            usage[paths[f][selected[f][s]], f] = 1
        phi = max_min(usage, capacity, demand)[0].tolist()
        thr = sum(phi) / sum(demand)
        fair = sum(phi) ** 2 / (count * sum(x * x for x in phi))
        scaled = []
        for place, value in enumerate((thr, fair)):
            before = low[place], high[place]
            low[place], high[place] = min(low[place], value), max(high[place], value)
            if math.isinf(before[0]) or (before[0] == before[1] == value):
                scaled.append(0.0)
            elif before[0] == before[1]:
                scaled.append(math.copysign(1.0, value - before[0]))
            else:
                raw = (value - before[0] - (before[1] - value)) / (before[1] - before[0])
                scaled.append(min(1.0, max(-1.0, raw)))
        rewards.append((1 + gamma) * scaled[0] + (1 - gamma) * scaled[1])
        rates.append(list(phi))
        if (1 + gamma) * thr + (1 - gamma) * fair >= 2 - 1e-9 or n + 1 == steps:
            return rewards, rates, n + 1
    return rewards, rates, len(actions)


@pytest.mark.parametrize("gamma", [1.0, 0.0, -0.7, -1.0])
def test_is_figure_16(gamma: float) -> None:
    network = generate(20, k_paths=3, seed=4)
    space = PathSpace(network)
    assert space.k_paths == 3 and space.actions == 17 * 6
    rng = np.random.default_rng(1)
    demand = Traffic.of_load("low").draw(rng, (2, space.flows))
    actions = rng.integers(0, space.actions, (120, 2))
    expected = [figure_16(network, demand[row], actions[:, row].tolist(), gamma, 100) for row in range(2)]
    searches = PathSearches(space, 2, gamma=gamma, episode_steps=100)
    searches.restart(demand)
    for n in range(min(one[2] for one in expected)):
        reward, terminated, truncated = searches.step(actions[n])
        assert reward == pytest.approx([one[0][n] for one in expected], abs=1e-9)
        assert searches.rates_bps == pytest.approx(np.array([one[1][n] for one in expected]), rel=1e-9)
    assert (truncated | terminated).any()
    lacking = (space.index_of < 0).sum()
    assert lacking > 0 and searches.refused.sum() > 0


def test_the_best_of_the_episode_is_kept() -> None:
    space = PathSpace(generate(12, k_paths=2, seed=2))
    searches = PathSearches(space, 8, gamma=0.5)
    rng = np.random.default_rng(0)
    searches.restart(Traffic.of_load("high").draw(rng, (8, space.flows)))
    seen = [searches.objective.copy()]
    for _ in range(50):
        searches.step(rng.integers(0, space.actions, 8))
        seen.append(searches.objective.copy())
    assert searches.best_objective == pytest.approx(np.max(seen, axis=0))
    rates = space.model.rates(searches.best_allocation, demand_bps=searches.demand_bps)
    assert rates.sum(axis=1) / searches.demand_bps.sum(axis=1) == pytest.approx(searches.best_efficiency)


def test_terminates_where_everything_is_carried_and_is_truncated_after_the_steps() -> None:
    space = PathSpace(generate(8, k_paths=1, seed=1))
    searches = PathSearches(space, 2, episode_steps=3)
    demand = np.full((2, space.flows), 1e9)
    demand[0] = 1e3
    searches.restart(demand)
    for n in range(3):
        _, terminated, truncated = searches.step(np.zeros(2, dtype=np.int64))
        assert terminated.tolist() == [True, False]
        assert truncated.tolist() == [False, n == 2]


def test_masks_name_other_paths_of_flows_with_demand() -> None:
    space = PathSpace(generate(20, k_paths=3, seed=4))
    searches = PathSearches(space, 1)
    demand = Traffic(1e8, 2e8, 0.4).draw(np.random.default_rng(3), (1, space.flows))
    assert (demand == 0).any()
    searches.restart(demand)
    for action in np.flatnonzero(searches.masks()[0]):
        slot, flow = divmod(int(action), space.flows)
        assert demand[0, flow] > 0 and space.index_of[flow, slot] >= 0
        if searches.masks()[0, action]:
            searches.step(np.array([action]))
            assert not searches.masks()[0, action]
        assert searches.allocation[0, flow] == space.index_of[flow, slot]
    assert searches.refused[0] == 0


def test_rows_with_networks_of_their_own() -> None:
    spaces = [PathSpace(generate(15, k_paths=2, seed=seed), k_paths=2) for seed in range(3)]
    rng = np.random.default_rng(5)
    demand = Traffic.of_load("high").draw(rng, (3, 12))
    actions = rng.integers(0, spaces[0].actions, (40, 3))
    names = {space.names for space in spaces}
    assert len(names) == 1
    together = PathSearches(spaces, 3)
    together.restart(demand)
    alone = [PathSearches(space, 1) for space in spaces]
    for row, one in enumerate(alone):
        one.restart(demand[row : row + 1])
    for step in actions:
        reward, _, _ = together.step(step)
        for row, one in enumerate(alone):
            assert one.step(step[row : row + 1])[0][0] == pytest.approx(reward[row])
    observed = np.vstack([one.observation() for one in alone])
    assert together.observation() == pytest.approx(observed)


def test_a_broken_link_leaves_the_other_slots_where_they_were() -> None:
    whole = PathSpace(generate(30, k_paths=3, seed=7))
    broken = PathSpace(generate(30, k_paths=3, seed=7, broken=3), flows=whole.names, k_paths=3, like=whole)
    before, after = whole.paths_by_slot(), broken.paths_by_slot()
    shared = [(name, path) for name in after for path in after[name] if path in before[name]]
    assert len(shared) > 50
    assert all(before[name][path] == after[name][path] for name, path in shared)


def test_an_idle_flow_may_be_missing() -> None:
    network = generate(20, k_paths=1, seed=1)
    few = IabNetwork(network.nodes, network.links, network.flows[::2])
    space = PathSpace(few, flows=[flow.id for flow in network.flows])
    searches = PathSearches(space, 1)
    searches.restart(space.demand_bps[None])
    assert (searches.rates_bps[0, 1::2] == 0).all()
    assert space.decided(searches.allocation).shape == (1, len(few.flows))
    expected = PathSpace(few)
    alone = PathSearches(expected, 1)
    alone.restart(expected.demand_bps[None])
    assert alone.objective == pytest.approx(searches.objective)


def test_mistakes_are_named() -> None:
    network = generate(8, k_paths=1, seed=1)
    space = PathSpace(network)
    searches = PathSearches(space, 2)
    searches.restart(np.ones((2, space.flows)))
    cases = [
        (lambda: searches.step(np.array([0, 10])), r"action: must be in 0\.\.9, got 10"),
        (lambda: searches.step(np.array([0.5, 1.0])), "must be 2 whole numbers"),
        (lambda: searches.restart(np.ones((1, 3))), "demand: shape must be"),
        (lambda: PathSearches(space, 1, gamma=2), r"gamma: must be in -1\.\.1, got 2"),
        (lambda: PathSearches(space, 1, episode_steps=0), "episode_steps: must be a whole number, at least 1, got 0"),
        (lambda: PathSpace(network, flows=["x"]), "flow f-n1: not among the 1 flows"),
        (lambda: PathSpace(generate(8, k_paths=3, seed=3), k_paths=1), "more than 1 paths in band"),
        (lambda: Traffic(5, 4), r"low must be above 0 and at most high, got 5\.\.4"),
        (lambda: Traffic(1, 4, 0), r"active_probability: must be in \(0, 1\], got 0"),
    ]
    for call, message in cases:
        with pytest.raises(PathSearchError, match=message):
            call()  # type: ignore[no-untyped-call]


def test_traffic() -> None:
    rng = np.random.default_rng(0)
    demand = Traffic(100.0, 200.0, 0.4).draw(rng, (2000, 6))
    active = demand > 0
    assert active.any(axis=1).all()
    assert active.mean() == pytest.approx(0.4, abs=0.03)
    assert demand[active].min() >= 100 and demand.max() <= 200
    network = generate(20, load="low", seed=0)
    like = Traffic.like(network)
    assert 200e6 <= like.low_bps <= min(flow.demand_bps for flow in network.flows)
    assert 550e6 >= like.high_bps > max(flow.demand_bps for flow in network.flows)
    assert Traffic.like(generate(20, load="low", seed=0, matrix=1)) == like
