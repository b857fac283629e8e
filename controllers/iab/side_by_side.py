"""Path controllers that decide many traffic matrices of a network at once, several times faster than one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from controllers.iab.local_search import local_search_many
from controllers.iab.problem import Decision, ManySolver, PathProblem
from controllers.iab.registry import make_solver
from controllers.iab.subset_sum import subset_sum_many
from twin.flow.batched import Array

MANY_SOLVERS: dict[str, ManySolver] = {
    "subset_sum": subset_sum_many,
    "local_search": local_search_many,
}


def decide_all(
    name: str,
    problem: PathProblem,
    demand_bps: Array,
    rngs: Sequence[np.random.Generator],
    policy: Path | None = None,
) -> list[Decision]:
    """Decisions of the controller ``name`` for demands of shape (M, F), in bit/s, each with its own stream.

    Side by side for ``MANY_SOLVERS`` and for controllers whose solver has a :data:`ManySolver` as its
    attribute ``many``; else one by one. SolveError as :func:`~controllers.iab.registry.make_solver`.
    """
    if name in MANY_SOLVERS and policy is None:
        return MANY_SOLVERS[name](problem, demand_bps, rngs)
    many: ManySolver | None = getattr(make_solver(name, problem, policy), "many", None)
    if many is not None:
        return many(problem, demand_bps, rngs)
    found = []
    for demand, rng in zip(demand_bps, rngs, strict=True):
        one = problem.with_demand(demand)
        found.append(make_solver(name, one, policy)(one, rng))
    return found
