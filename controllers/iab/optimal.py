"""``optimal``: efficiency by mixed-integer programming, with a proven bound."""

from __future__ import annotations

import numpy as np

from controllers.iab.local_search import climb
from controllers.iab.problem import Decision, PathProblem, SolveError
from controllers.iab.relaxation import mixed_integer

TIME_LIMIT_S = 30.0
GAP = 1e-4
_EVALUATIONS = 10_000


def optimal(problem: PathProblem, rng: np.random.Generator) -> Decision:
    """The allocation of the mixed-integer program, improved step by step on the flow model.

    The program leaves the rates free where the network shares links max-min fairly, so its allocation
    may carry less than it says; local search then looks for a better one near by. ``efficiency_bound``
    holds for every allocation: where it is reached, the allocation is optimal, elsewhere the gap is
    what is not proven. SolveError unless gamma is 1: fairness is not linear.
    """
    if problem.gamma != 1:
        raise SolveError(f"optimal: gamma must be 1 (fairness is not linear), got {problem.gamma:g}; use local_search")
    relaxed = mixed_integer(problem, time_limit_s=TIME_LIMIT_S, gap=GAP)
    found, steps = climb(
        problem, relaxed.allocation(), rng, evaluations=_EVALUATIONS, goal=2 * relaxed.efficiency_bound
    )
    return Decision(found, steps, relaxed.efficiency_bound)
