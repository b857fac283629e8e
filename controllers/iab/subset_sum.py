"""``subset_sum``: the greedy baseline of NANCY D4.2 §4.2, after the subset-sum heuristic of bin packing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from controllers.iab.problem import Decision, PathProblem
from twin.flow.batched import Array

# J and carried parts of the load closer than this are equal: the rest is rounding.
_EQUAL = 1e-9


def subset_sum(problem: PathProblem, rng: np.random.Generator) -> Decision:
    """Flows in the order of falling demand, each on the path with the largest J so far.

    J is that of the flows which have a path already; of equal paths the one that carries more wins,
    then the first. Evaluates every path of every flow once.
    """
    return subset_sum_many(problem, problem.model.demand_bps[None], [rng])[0]


def subset_sum_many(
    problem: PathProblem,
    demand_bps: Array,
    rngs: Sequence[np.random.Generator],  # noqa: ARG001 every solver gets streams
) -> list[Decision]:
    """The same for traffic matrices of shape (M, F)."""
    model = problem.model
    matrices, flows = demand_bps.shape
    most = int(model.path_counts.max())
    offered = demand_bps.sum(axis=1, keepdims=True)
    allocation = np.zeros((matrices, flows), dtype=np.int64)
    placed_bps = np.zeros_like(demand_bps)
    order = np.argsort(-demand_bps, axis=1, kind="stable")
    every = np.arange(matrices)
    for place in range(flows):
        flow = order[:, place]
        placed_bps[every, flow] = demand_bps[every, flow]
        # Every path of the flow; those that it does not have repeat its last one.
        paths = np.minimum(np.arange(most), model.path_counts[flow][:, None] - 1)
        choices = np.repeat(allocation[:, None], most, axis=1)
        choices[every, :, flow] = paths
        demand = np.repeat(placed_bps, most, axis=0)
        rates = model.rates(choices.reshape(-1, flows), demand_bps=demand)
        value = problem.score(rates, demand, np.full(len(rates), place + 1)).reshape(matrices, most)
        carried = rates.sum(axis=1).reshape(matrices, most) / np.where(offered > 0, offered, 1.0)
        carried = np.where(value >= value.max(axis=1, keepdims=True) - _EQUAL, carried, -1.0)
        best = np.argmax(carried >= carried.max(axis=1, keepdims=True) - _EQUAL, axis=1)
        allocation[every, flow] = paths[every, best]
    steps = int(model.path_counts.sum())
    return [Decision(chosen, steps) for chosen in allocation]
