"""``prior_search``: local search that a learned prior over paths starts, narrows and kicks.

The prior (:mod:`agents.path_prior`) says how likely each path is in a good allocation. It gives the
starts, the paths that are worth a try, and the flows and paths of a kick; every allocation is still
evaluated on the flow model, so that a wrong prior costs time, never a wrong rate.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.path_prior import PathPrior, graph, read_prior, shipped
from controllers.iab.problem import Allocations, Decision, PathProblem, Solver
from controllers.iab.relaxation import lp_relaxation
from twin.flow.batched import Array

EVALUATIONS = 6_000
_DRAWN_STARTS = 94
_RANDOM_STARTS = 32
# Up to the first optimum, paths that the prior thinks less likely are not tried, unless they are the
# flow's likeliest two.
_LEAST = 0.01
# The prior is sharp where it was sure in training; kicks go to its less likely paths too.
_HEAT = 2.0
# With fewer evaluations there is one climb, from the prior; with more, others begin elsewhere, where the
# prior may be wrong.
_FEW = 800
_EVEN = 0.05
_BETTER = 1e-9


def controller(problem: PathProblem, policy: Path | None) -> Solver:  # noqa: ARG001 the same for every problem
    """The path controller ``prior_search``, with the prior of a file or the one that comes with TwinBed."""
    prior = shipped() if policy is None else read_prior(policy)

    def solve(problem: PathProblem, rng: np.random.Generator) -> Decision:
        return prior_search(problem, rng, prior)

    return solve


def prior_search(
    problem: PathProblem, rng: np.random.Generator, prior: PathPrior, *, evaluations: int = EVALUATIONS
) -> Decision:
    """Start from the best of: the prior's likeliest, draws from it, the rounded linear program; then climb.

    Evaluates about ``evaluations`` allocations, so that the same seed gives the same decision on every
    host. The bound of the linear program is returned too.
    """
    relaxed = lp_relaxation(problem)
    goal = relaxed.objective_bound(problem.gamma)
    table = by_flow(problem, prior.probabilities(graph(problem, relaxed)))
    kinds = [
        np.vstack((table.argmax(axis=1)[None], draw(table, _DRAWN_STARTS, rng), relaxed.allocation()[None])),
        problem.random(_RANDOM_STARTS, rng),
        draw(by_flow(problem, (np.concatenate(relaxed.shares) + _EVEN).astype(np.float32)), _RANDOM_STARTS, rng),
        problem.random(_RANDOM_STARTS, rng),
    ]
    if evaluations < _FEW:
        kinds = kinds[:1]
    climbs = [_Climb(problem, table, starts, rng) for starts in kinds]
    spent = sum(map(len, kinds))
    left = evaluations - spent
    # Half of what is left for all, half of the rest for the better half, and so on.
    while climbs:
        share = left // (2 * len(climbs)) if len(climbs) > 1 else left
        for climb in climbs:
            taken = climb.go_on(share, goal)
            left, spent = left - taken, spent + taken
        climbs = sorted(climbs, key=lambda climb: -climb.best_value)[: max(1, len(climbs) // 2)]
        if len(climbs) == 1 and (left <= 0 or climbs[0].best_value >= goal - _BETTER or not climbs[0].can_change):
            break
    return Decision(climbs[0].best, spent, relaxed.efficiency_bound, goal)


def by_flow(problem: PathProblem, values: NDArray[np.float32]) -> Array:
    """Values of all paths, shape (N,), as a table of shape (F, most paths), 0 where a flow has fewer."""
    counts = problem.model.path_counts
    table = np.zeros((len(counts), int(counts.max())))
    table[np.arange(table.shape[1]) < counts[:, None]] = values
    return table


def draw(table: Array, count: int, rng: np.random.Generator) -> Allocations:
    """``count`` allocations, shape (count, F), with paths drawn by the rows of ``table``, shape (F, P)."""
    reached = np.cumsum(table, axis=1)
    reached /= reached[:, -1:]
    drawn = rng.random((count, len(table), 1)) >= reached[:, :-1]
    found: Allocations = drawn.sum(axis=2)
    return found


class _Climb:
    """Local search from the best of ``starts``, shape (S, F), that can go on later.

    Every round evaluates changes of one flow, at first to paths that the prior, ``table`` of shape
    (F, P), thinks worth it, after the first optimum to all; then those that help together: the best
    one, two, four and so on. Where none helps, a few flows are drawn anew, from the prior or evenly, and
    the climb goes on from there, or from the best again when that was in vain.
    """

    def __init__(self, problem: PathProblem, table: Array, starts: Allocations, rng: np.random.Generator) -> None:
        self._problem, self._table = problem, table
        self._kicks = _Kicks(problem, table, rng)
        self._flows, self._paths = _changes(problem, table, _LEAST)
        self.can_change = len(self._flows) > 0
        values = problem.objective(starts)
        place = int(values.argmax())
        self._here, self._value = starts[place], float(values[place])
        self.best, self.best_value = self._here, self._value

    def go_on(self, evaluations: int, goal: float) -> int:
        """Until J reaches ``goal`` or about so many evaluations are done; how many they were."""
        steps = 0
        while steps < evaluations and self.best_value < goal - _BETTER and self.can_change:
            steps += self._round()
        return steps

    def _round(self) -> int:
        problem, flows, paths, here = self._problem, self._flows, self._paths, self._here
        near = np.repeat(here[None], len(flows), axis=0)
        near[np.arange(len(flows)), flows] = paths
        gains = problem.objective(near) - self._value
        gains[here[flows] == paths] = -np.inf
        helpful = np.argsort(-gains, kind="stable")[: int((gains > _BETTER).sum())]
        if len(helpful):
            tried = _together(here, flows[helpful], paths[helpful])
            values = problem.objective(tried)
            place = int(values.argmax())
            self._here, self._value = tried[place], float(values[place])
            if self._value > self.best_value + _BETTER:
                self.best, self.best_value = self._here, self._value
            return len(flows) + len(tried)
        self._flows, self._paths = _changes(problem, self._table, 0.0)
        if self._value >= self.best_value - _BETTER:
            self.best, self.best_value = here, max(self._value, self.best_value)
        self._here = self._kicks.apply(self.best)
        self._value = float(problem.objective(self._here[None])[0])
        return len(flows) + 1


def _changes(problem: PathProblem, table: Array, least: float) -> tuple[Allocations, Allocations]:
    """The flows and paths of the changes to try: those at least so likely, and the likeliest two of each flow."""
    counts = problem.model.path_counts
    second = np.sort(table, axis=1)[:, -2:].min(axis=1)
    known = (np.arange(table.shape[1]) < counts[:, None]) & (counts > 1)[:, None]
    flows, paths = np.nonzero(known & ((table >= least) | (table >= second[:, None])))
    return flows, paths


def _together(here: Allocations, flows: Allocations, paths: Allocations) -> Allocations:
    """``here`` with the first 1, 2, 4, ... changes and with all, one per flow."""
    _, first = np.unique(flows, return_index=True)
    first.sort()
    flows, paths = flows[first], paths[first]
    counts = [*(1 << power for power in range(len(flows).bit_length())), len(flows)]
    found = np.repeat(here[None], len(counts), axis=0)
    for row, count in zip(found, counts, strict=True):
        row[flows[:count]] = paths[:count]
    return found


class _Kicks:
    """Other paths for 2 to 5 flows, a hundred kicks drawn at a time: a draw alone takes 10 times as long.

    Half of them take any flows and paths, half the flows of which the prior is less certain, and paths
    that it prefers.
    """

    _AHEAD = 100

    def __init__(self, problem: PathProblem, table: Array, rng: np.random.Generator) -> None:
        self._problem, self._rng, self._next = problem, rng, self._AHEAD
        known = np.arange(table.shape[1]) < problem.model.path_counts[:, None]
        warm = np.where(known, np.maximum(table, 1e-4), 0.0) ** (1 / _HEAT)
        self._warm = warm / warm.sum(axis=1, keepdims=True)
        self._doubt = np.maximum(1 - self._warm.max(axis=1), 1e-3)

    def apply(self, allocation: Allocations) -> Allocations:
        """The next kick of an allocation, shape (F,)."""
        if self._next == self._AHEAD:
            rng, shape = self._rng, (self._AHEAD, len(self._warm))
            evenly = rng.random((self._AHEAD, 1)) < 0.5
            # Exponentials with rates w come in the order of draws that are weighted by w.
            late = rng.standard_exponential(shape) / np.where(evenly, 1.0, self._doubt)
            rank = np.argsort(np.argsort(late, axis=1), axis=1)
            self._changed = rank < rng.integers(2, 6, (self._AHEAD, 1))
            likely = draw(self._warm, self._AHEAD, rng)
            self._paths = np.where(evenly, self._problem.random(self._AHEAD, rng), likely)
            self._next = 0
        number, self._next = self._next, self._next + 1
        return np.where(self._changed[number], self._paths[number], allocation)
