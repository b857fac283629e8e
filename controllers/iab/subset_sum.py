"""``subset_sum``: the greedy baseline of NANCY D4.2 §4.2, after the subset-sum heuristic of bin packing."""

from __future__ import annotations

import numpy as np

from controllers.iab.problem import Decision, PathProblem


def subset_sum(problem: PathProblem, rng: np.random.Generator) -> Decision:  # noqa: ARG001 every solver gets a stream
    """Flows in the order of falling demand, each on the path with the largest J so far.

    J is that of the flows which have a path already; of equal paths the one that carries more wins,
    then the first. Evaluates every path of every flow once.
    """
    model = problem.model
    allocation = np.zeros(model.flows, dtype=np.int64)
    placed = np.zeros(model.flows, dtype=bool)
    steps = 0
    for flow in np.argsort(-model.demand_bps, kind="stable"):
        placed[flow] = True
        choices = np.repeat(allocation[None], model.path_counts[flow], axis=0)
        choices[:, flow] = np.arange(len(choices))
        demand = np.where(placed, model.demand_bps, 0.0)
        rates = model.rates(choices, demand_bps=np.broadcast_to(demand, choices.shape))
        value = problem.score(rates[:, placed], demand[placed])
        best = value >= value.max() - 1e-9
        allocation = choices[np.argmax(np.where(best, rates.sum(axis=1), -1.0))]
        steps += len(choices)
    return Decision(allocation, steps)
