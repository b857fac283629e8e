"""``brute_force``: every allocation there is (baseline of NANCY D4.2 §4.2, Figure 19)."""

from __future__ import annotations

import math

import numpy as np

from controllers.iab.problem import Decision, PathProblem, SolveError

# 20 nodes with one path per band have 2^17 allocations; 2^24 take 8 s, half a minute without Numba.
MOST_ALLOCATIONS = 1 << 24
_BATCH = 1 << 16


def brute_force(problem: PathProblem, rng: np.random.Generator) -> Decision:  # noqa: ARG001 every solver gets a stream
    """The allocation with the largest J, exactly; the first of equals in lexicographic order.

    SolveError above ``MOST_ALLOCATIONS`` allocations.
    """
    counts = [int(count) for count in problem.model.path_counts]
    total = math.prod(counts)
    if total > MOST_ALLOCATIONS:
        raise SolveError(
            f"brute_force: at most {MOST_ALLOCATIONS} allocations can be tried, "
            f"the paths of {len(counts)} flows make {total:.3g}; use local_search or optimal"
        )
    best, best_value = np.zeros(len(counts), dtype=np.int64), -math.inf
    for start in range(0, total, _BATCH):
        numbers = np.arange(start, min(total, start + _BATCH))
        allocations = np.stack(np.unravel_index(numbers, counts), axis=1)
        values = problem.objective(allocations)
        place = int(np.argmax(values))
        if values[place] > best_value:
            best, best_value = allocations[place], float(values[place])
    return Decision(best, steps=total, objective_bound=best_value)
