"""``optimal``: the best allocation there is, or the best one found together with a proven bound."""

from __future__ import annotations

import math

import numpy as np

from controllers.iab.brute_force import MOST_ALLOCATIONS, brute_force
from controllers.iab.local_search import climb, local_search
from controllers.iab.problem import Allocations, Decision, PathProblem
from controllers.iab.relaxation import mixed_integer, objective_bound

TIME_LIMIT_S = 30.0
GAP = 1e-4
_EVALUATIONS = 6_000
# J is computed to about 1e-9; what is left of a gap below this is rounding.
_PROVEN = 1e-6


def optimal(problem: PathProblem, rng: np.random.Generator) -> Decision:
    """The better of ``local_search`` and a mixed-integer program improved step by step; all where that proves nothing.

    The program leaves the rates free where the network shares links max-min fairly, so its allocation
    may carry less than it says; climbing then looks for a better one near by. ``objective_bound`` holds
    for every allocation: that of the program, with fairness bounded by
    :func:`~controllers.iab.relaxation.objective_bound`. Where it is not reached and there are at most
    ``MOST_ALLOCATIONS`` allocations, all are tried: then allocation and bound are exact. Elsewhere the
    gap is what is not proven.
    """
    relaxed = mixed_integer(problem, time_limit_s=TIME_LIMIT_S, gap=GAP)
    bound = objective_bound(problem, relaxed.efficiency_bound)
    found, steps = climb(problem, relaxed.allocation(), rng, evaluations=_EVALUATIONS, goal=bound)
    value = _value(problem, found)
    if value < bound - _PROVEN:
        other = local_search(problem, rng)
        steps += other.steps
        if _value(problem, other.allocation) > value:
            found, value = other.allocation, _value(problem, other.allocation)
    if value < bound - _PROVEN and math.prod(problem.model.path_counts.tolist()) <= MOST_ALLOCATIONS:
        every = brute_force(problem, rng)
        found, steps = every.allocation, steps + every.steps
        bound = _value(problem, found)
    return Decision(found, steps, relaxed.efficiency_bound, bound)


def _value(problem: PathProblem, allocation: Allocations) -> float:
    return float(problem.objective(allocation[None])[0])
