"""``local_search``: climbs on the batched flow model from a rounded linear program and random starts."""

from __future__ import annotations

import numpy as np

from controllers.iab.problem import Allocations, Decision, PathProblem
from controllers.iab.relaxation import lp_relaxation

EVALUATIONS = 6_000
_RANDOM_STARTS = 64
_ROUNDED_STARTS = 64
# Nothing below this counts as better: it is rounding, and J is at most 2.
_BETTER = 1e-9


def local_search(problem: PathProblem, rng: np.random.Generator) -> Decision:
    """Start from the best of: rounded linear program, paths drawn by its shares, random; then climb.

    The linear program is :func:`~controllers.iab.relaxation.lp_relaxation`, whose bound is returned
    too. Evaluates about ``EVALUATIONS`` allocations, so that the same seed gives the same decision on
    every host.
    """
    relaxed = lp_relaxation(problem)
    drawn = [
        rng.choice(len(share), _ROUNDED_STARTS, p=share / share.sum())
        if share.sum() > 0
        else rng.integers(0, len(share), _ROUNDED_STARTS)
        for share in (np.clip(share, 0.0, None) for share in relaxed.shares)
    ]
    starts = np.vstack((relaxed.allocation()[None], np.stack(drawn, axis=1), problem.random(_RANDOM_STARTS, rng)))
    start = starts[np.argmax(problem.objective(starts))]
    goal = (1 + problem.gamma) * relaxed.efficiency_bound + (1 - problem.gamma)
    found, steps = climb(problem, start, rng, evaluations=EVALUATIONS - len(starts), goal=goal)
    return Decision(found, len(starts) + steps, relaxed.efficiency_bound)


def climb(
    problem: PathProblem, start: Allocations, rng: np.random.Generator, *, evaluations: int, goal: float
) -> tuple[Allocations, int]:
    """The best allocation found from ``start``, shape (F,), and how many were evaluated.

    Every round evaluates all changes of one flow. Those that help are tried together, the best one,
    the best two, the best four and so on, since most of them concern different links. Where none
    helps, some flows are given random paths and the climb goes on from there; the best place is
    returned to unless the new one is at least as good. Ends at ``goal``, an upper bound on J, or after
    ``evaluations``.
    """
    flows, paths = _changes(problem)
    here = start.copy()
    value = best_value = float(problem.objective(here[None])[0])
    best, steps = here, 1
    while steps < evaluations and best_value < goal - _BETTER and len(flows):
        near = np.repeat(here[None], len(flows), axis=0)
        near[np.arange(len(flows)), flows] = paths
        gains = problem.objective(near) - value
        gains[paths == here[flows]] = -np.inf
        steps += len(flows)
        helpful = np.argsort(-gains, kind="stable")
        helpful = helpful[gains[helpful] > _BETTER]
        if len(helpful):
            together = _together(here, flows[helpful], paths[helpful])
            values = problem.objective(together)
            steps += len(together)
            place = int(np.argmax(values))
            here, value = together[place], float(values[place])
        if value > best_value + _BETTER or (not len(helpful) and value >= best_value - _BETTER):
            best, best_value = here, max(value, best_value)
        if not len(helpful):
            here = _kicked(problem, best, rng)
            value = float(problem.objective(here[None])[0])
            steps += 1
    return best, steps


def _changes(problem: PathProblem) -> tuple[Allocations, Allocations]:
    """Every (flow, path) of the flows that have a choice."""
    pairs = [(flow, path) for flow, count in enumerate(problem.model.path_counts) for path in range(count) if count > 1]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _together(here: Allocations, flows: Allocations, paths: Allocations) -> Allocations:
    """``here`` with the first 1, 2, 4, ... changes, one per flow."""
    _, first = np.unique(flows, return_index=True)
    first.sort()
    flows, paths = flows[first], paths[first]
    counts = [*(1 << power for power in range(len(flows).bit_length())), len(flows)]
    found = np.repeat(here[None], len(counts), axis=0)
    for row, count in zip(found, counts, strict=True):
        row[flows[:count]] = paths[:count]
    return found


def _kicked(problem: PathProblem, allocation: Allocations, rng: np.random.Generator) -> Allocations:
    """``allocation`` with random paths for 2 to 5 flows."""
    flows = rng.choice(problem.model.flows, min(problem.model.flows, int(rng.integers(2, 6))), replace=False)
    kicked = allocation.copy()
    kicked[flows] = rng.integers(0, problem.model.path_counts[flows])
    return kicked
