"""``local_search``: climbs on the batched flow model from a rounded linear program and random starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from controllers.iab.problem import Allocations, Decision, PathProblem
from controllers.iab.relaxation import Relaxed, lp_relaxation
from twin.flow.batched import Array

EVALUATIONS = 6_000
_RANDOM_STARTS = 64
_ROUNDED_STARTS = 64
# Nothing below this counts as better: it is rounding, and J is at most 2.
_BETTER = 1e-9
# Traffic matrices whose changes are evaluated together: enough that loops in Python do not count.
_TOGETHER = 32


def local_search(problem: PathProblem, rng: np.random.Generator) -> Decision:
    """Start from the best of: rounded linear program, paths drawn by its shares, random; then climb.

    The linear program is :func:`~controllers.iab.relaxation.lp_relaxation`, whose bound is returned
    too. Evaluates about ``EVALUATIONS`` allocations, so that the same seed gives the same decision on
    every host.
    """
    return local_search_many(problem, problem.model.demand_bps[None], [rng])[0]


def local_search_many(problem: PathProblem, demand_bps: Array, rngs: Sequence[np.random.Generator]) -> list[Decision]:
    """The same for traffic matrices of shape (M, F), each with its own stream."""
    found: list[Decision] = []
    for first in range(0, len(demand_bps), _TOGETHER):
        found += _search(problem, demand_bps[first : first + _TOGETHER], rngs[first : first + _TOGETHER])
    return found


def _search(problem: PathProblem, demand_bps: Array, rngs: Sequence[np.random.Generator]) -> list[Decision]:
    matrices, flows = demand_bps.shape
    relaxed = [lp_relaxation(problem, demand) for demand in demand_bps]
    starts = np.stack([_starts(problem, one, rng) for one, rng in zip(relaxed, rngs, strict=True)])
    each = starts.shape[1]
    values = problem.objective(starts.reshape(-1, flows), np.repeat(demand_bps, each, axis=0)).reshape(matrices, each)
    best = starts[np.arange(matrices), values.argmax(axis=1)]
    bounds = np.array([one.objective_bound(problem.gamma) for one in relaxed])
    allocations, steps = climb_many(problem, demand_bps, best, rngs, evaluations=EVALUATIONS - each, goals=bounds)
    return [
        Decision(allocation, each + int(count), one.efficiency_bound, float(bound))
        for allocation, count, one, bound in zip(allocations, steps, relaxed, bounds, strict=True)
    ]


def _starts(problem: PathProblem, relaxed: Relaxed, rng: np.random.Generator) -> Allocations:
    """The rounded program, draws by its shares, and random allocations, shape (starts, F)."""
    # A flow with no share of any path takes all of them alike.
    shares = np.zeros((problem.model.flows, int(problem.model.path_counts.max())))
    for flow, share in enumerate(relaxed.shares):
        part = np.clip(share, 0.0, None)
        shares[flow, : len(part)] = part / part.sum() if part.sum() > 0 else 1 / len(part)
    reached = np.cumsum(shares, axis=1)
    # The last path stands for the rounding of the sum.
    drawn = (rng.random((_ROUNDED_STARTS, len(shares), 1)) >= reached[:, :-1]).sum(axis=2)
    drawn = np.minimum(drawn, problem.model.path_counts - 1)
    return np.vstack((relaxed.allocation()[None], drawn, problem.random(_RANDOM_STARTS, rng)))


def climb(
    problem: PathProblem, start: Allocations, rng: np.random.Generator, *, evaluations: int, goal: float
) -> tuple[Allocations, int]:
    """:func:`climb_many` for the demands of the problem and one start, shape (F,)."""
    found, steps = climb_many(
        problem, problem.model.demand_bps[None], start[None], [rng], evaluations=evaluations, goals=np.array([goal])
    )
    return found[0], int(steps[0])


def climb_many(
    problem: PathProblem,
    demand_bps: Array,
    starts: Allocations,
    rngs: Sequence[np.random.Generator],
    *,
    evaluations: int,
    goals: Array,
) -> tuple[Allocations, NDArray[np.int64]]:
    """The best allocations found, shape (M, F), for demands and from starts of that shape; evaluations (M,).

    Every round evaluates all changes of one flow. Those that help are tried together, the best one,
    the best two, the best four and so on, since most of them concern different links. Where none
    helps, some flows are given random paths and the climb goes on from there; the best place is
    returned to unless the new one is at least as good. Ends at a goal, an upper bound on J of shape
    (M,), or after ``evaluations``. A climb does not depend on those beside it.
    """
    flows, paths = _changes(problem)
    matrices = len(starts)
    here, best = starts.copy(), starts.copy()
    value = problem.objective(here, demand_bps)
    best_value = value.copy()
    steps = np.ones(matrices, dtype=np.int64)
    if not len(flows):
        return best, steps
    kicks = [_Kicks(problem, rng) for rng in rngs]
    active = np.arange(matrices)
    while len(active := active[(steps[active] < evaluations) & (best_value[active] < goals[active] - _BETTER)]):
        gain, path = _gains(problem, here[active], demand_bps[active], value[active], flows, paths)
        steps[active] += len(flows)
        helpful = (gain > _BETTER).sum(axis=1)
        moves, top = active[helpful > 0], active[helpful == 0]
        if len(moves):
            rows, tried = _together(here[moves], gain[helpful > 0], path[helpful > 0], helpful[helpful > 0])
            values = problem.objective(tried, demand_bps[moves[rows]])
            first = np.searchsorted(rows, np.arange(len(moves)))
            steps[moves] += np.diff(np.append(first, len(rows)))
            chosen = _first_best(values, rows, first)
            here[moves], value[moves] = tried[chosen], values[chosen]
        better = active[
            (value[active] > best_value[active] + _BETTER)
            | ((helpful == 0) & (value[active] >= best_value[active] - _BETTER))
        ]
        best[better] = here[better]
        best_value[better] = np.maximum(value[better], best_value[better])
        if len(top):
            here[top] = [kicks[number].apply(best[number]) for number in top]
            value[top] = problem.objective(here[top], demand_bps[top])
            steps[top] += 1
    return best, steps


def _changes(problem: PathProblem) -> tuple[Allocations, Allocations]:
    """Every (flow, path) of the flows that have a choice."""
    pairs = [(flow, path) for flow, count in enumerate(problem.model.path_counts) for path in range(count) if count > 1]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _gains(
    problem: PathProblem,
    here: Allocations,
    demand_bps: Array,
    value: Array,
    flows: Allocations,
    paths: Allocations,
) -> tuple[Array, Allocations]:
    """What the best change of each flow adds to J, and the path it takes, both of shape (A, F)."""
    count, every = len(flows), np.arange(len(flows))
    near = np.repeat(here[:, None], count, axis=1)
    near[:, every, flows] = paths
    gains = problem.objective(near.reshape(-1, here.shape[1]), np.repeat(demand_bps, count, axis=0))
    gains = gains.reshape(len(here), count) - value[:, None]
    gains[here[:, flows] == paths] = -np.inf
    grid = np.full((len(here), here.shape[1], int(problem.model.path_counts.max())), -np.inf)
    grid[:, flows, paths] = gains
    return grid.max(axis=2), grid.argmax(axis=2)


def _together(
    here: Allocations, gain: Array, path: Allocations, helpful: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Allocations]:
    """Each of ``here`` with the first 1, 2, 4, ... helpful changes and with all, and whose each row is."""
    rank = np.argsort(np.argsort(-gain, axis=1, kind="stable"), axis=1)
    sizes = 1 << np.arange(int(helpful.max()).bit_length() + 1)
    # The last size of each is the first that holds all of its changes.
    rows, place = np.nonzero(np.concatenate(([0], sizes[:-1])) < helpful[:, None])
    count = np.minimum(sizes[place], helpful[rows])
    return rows, np.where(rank[rows] < count[:, None], path[rows], here[rows])


def _first_best(values: Array, rows: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of the first largest value of each row."""
    largest = np.maximum.reduceat(values, first)
    places = np.flatnonzero(values == largest[rows])
    return places[np.searchsorted(rows[places], np.arange(len(first)))]


class _Kicks:
    """Random paths for 2 to 5 random flows, drawn a hundred at a time: a draw alone takes 10 times as long."""

    _AHEAD = 100

    def __init__(self, problem: PathProblem, rng: np.random.Generator) -> None:
        self._problem, self._rng = problem, rng
        self._next = self._AHEAD

    def apply(self, allocation: Allocations) -> Allocations:
        if self._next == self._AHEAD:
            flows = self._problem.model.flows
            sizes = self._rng.integers(2, 6, self._AHEAD)
            rank = np.argsort(np.argsort(self._rng.random((self._AHEAD, flows)), axis=1), axis=1)
            self._changed = rank < sizes[:, None]
            self._paths = self._problem.random(self._AHEAD, self._rng)
            self._next = 0
        number, self._next = self._next, self._next + 1
        return np.where(self._changed[number], self._paths[number], allocation)
