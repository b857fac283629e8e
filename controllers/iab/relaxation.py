"""The path problem with free rates, as a linear program and as a mixed-integer one.

With x_fp the rate of flow f on its path p, y_fp in {0, 1} whether it takes it, u_fp the least of the
demand and the capacities along the path::

    maximise    sum_fp x_fp
    subject to  x_fp <= u_fp y_fp,   sum_p y_fp = 1 for every f,
                sum of x_fp over the paths that cross link l <= capacity of l

The rates need not be max-min fair, so the optimum, divided by the offered load, is an upper bound on
the efficiency of every allocation; with 0 <= y_fp <= 1 it is a weaker bound that takes milliseconds.

Fairness is Jain's index (sum_f x_f)^2 / (F sum_f x_f^2), with x_f = sum_p x_fp. Rates that carry S in
all have at most that with the least sum of squares::

    q(S) = minimise  sum_f x_f^2   subject to the same,  sum_f x_f = S

The rates may be scaled down, so that the most Jain's index S^2 / (F q(S)) never rises with S. Between
two totals S < T, J is therefore at most (1 + gamma) T / D + (1 - gamma) S^2 / (F q(S)), with the offered
load D; the largest of these over intervals that cover all totals is a bound on J. q is convex in x: with
squares replaced by tangents, x^2 >= 2 a x - a^2, a linear program gives a lower bound on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from controllers.iab.problem import Allocations, PathProblem, SolveError
from twin.flow.batched import Array

_TANGENTS = 40
_SPLITS = 24
# J closer than this is not worth another linear program.
_INTERVAL = 1e-3


@dataclass(frozen=True)
class Relaxed:
    """``shares``: y_fp, flow by flow; ``efficiency_bound``: upper bound on the efficiency, in [0, 1]."""

    shares: tuple[Array, ...]
    efficiency_bound: float

    def objective_bound(self, gamma: float) -> float:
        """The bound on J that follows, since no fairness is above 1."""
        return (1 + gamma) * self.efficiency_bound + (1 - gamma)

    def allocation(self) -> Allocations:
        """The path with the largest share of every flow, shape (F,)."""
        return np.array([int(np.argmax(share)) for share in self.shares], dtype=np.int64)


def lp_relaxation(problem: PathProblem, demand_bps: Array | None = None) -> Relaxed:
    """The linear program: flows may split over their paths. Solved by HiGHS.

    With x_fp = u_fp y_fp the rates drop out: maximise sum u_fp y_fp. ``demand_bps`` of shape (F,)
    instead of the problem's.
    """
    model = problem.model
    demand = model.demand_bps if demand_bps is None else demand_bps
    most, cross, choose = _matrices(problem, demand)
    if most.sum() == 0:
        return Relaxed(_by_flow(problem, np.zeros(most.size)), 1.0)
    scale, capacity = _scaled(problem, most)
    found = linprog(
        -most / scale,
        A_ub=sparse.vstack((cross @ sparse.diags_array(most / scale), choose), format="csr"),
        b_ub=np.concatenate((capacity, np.ones(model.flows))),
        bounds=(0, None),
        method="highs",
    )
    if found.status != 0:
        raise SolveError(f"linear program: {found.message}")
    return Relaxed(_by_flow(problem, found.x), _efficiency(demand, -found.fun * scale))


def mixed_integer(problem: PathProblem, *, time_limit_s: float, gap: float) -> Relaxed:
    """The mixed-integer program, solved by HiGHS until the relative ``gap`` or the time limit.

    SolveError when no allocation was found in time. The bound is HiGHS's proven one.
    """
    model = problem.model
    most, cross, choose = _matrices(problem, model.demand_bps)
    if most.sum() == 0:
        return Relaxed(_by_flow(problem, np.zeros(most.size)), 1.0)
    scale, capacity = _scaled(problem, most)
    count = most.size
    eye = sparse.eye_array(count)
    found = milp(
        np.concatenate((-np.ones(count), np.zeros(count))),
        integrality=np.repeat([0, 1], count),
        bounds=Bounds(0, np.concatenate((most / scale, np.ones(count)))),
        constraints=[
            LinearConstraint(sparse.hstack((eye, -sparse.diags_array(most / scale)), format="csr"), ub=0),
            LinearConstraint(sparse.hstack((choose * 0, choose), format="csr"), lb=1, ub=1),
            LinearConstraint(sparse.hstack((cross, cross * 0), format="csr"), ub=capacity),
        ],
        options={"time_limit": time_limit_s, "mip_rel_gap": gap},
    )
    if found.x is None:
        raise SolveError(f"optimal: no allocation found within {time_limit_s:g} s: {found.message}")
    return Relaxed(_by_flow(problem, found.x[count:]), _efficiency(model.demand_bps, -found.mip_dual_bound * scale))


def objective_bound(problem: PathProblem, efficiency_bound: float) -> float:
    """An upper bound on J of any allocation; ``efficiency_bound`` is one on the efficiency.

    Splits the interval of totals with the largest bound until it is within ``_INTERVAL`` of what the
    free rates at one of its ends reach, at most ``_SPLITS`` times.
    """
    demand = problem.model.demand_bps
    gamma = problem.gamma
    offered_bps = float(demand.sum())
    if gamma == 1 or offered_bps == 0:
        return (1 + gamma) * efficiency_bound + (1 - gamma)
    squares = _LeastSquares(problem)

    def fairness_bound(total_bps: float) -> float:
        return min(1.0, squares.fairness_bound(total_bps))

    # Totals from almost nothing on, where all rates may be equal.
    most_bps = efficiency_bound * offered_bps
    marks = [0.0, most_bps]
    fair = [1.0, fairness_bound(most_bps)]
    for _ in range(_SPLITS):
        tops = [(1 + gamma) * end / offered_bps + (1 - gamma) * fair[place] for place, end in enumerate(marks[1:])]
        worst = int(np.argmax(tops))
        reached = max(
            (1 + gamma) * mark / offered_bps + (1 - gamma) * value for mark, value in zip(marks, fair, strict=True)
        )
        if tops[worst] - reached <= _INTERVAL:
            break
        middle = (marks[worst] + marks[worst + 1]) / 2
        marks.insert(worst + 1, middle)
        fair.insert(worst + 1, fairness_bound(middle))
    return max((1 + gamma) * end / offered_bps + (1 - gamma) * fair[place] for place, end in enumerate(marks[1:]))


class _LeastSquares:
    """q(S) of the relaxation 0 <= y_fp <= 1, by tangents at ``_TANGENTS`` rates of every flow."""

    def __init__(self, problem: PathProblem) -> None:
        model = problem.model
        most, cross, choose = _matrices(problem, model.demand_bps)
        self._scale, capacity = _scaled(problem, most)
        self._flows = model.flows
        paths = most.size
        demand = np.minimum(model.demand_bps / self._scale, 1.0)
        # Variables: x_fp, then a square t_f per flow; tangents at every rate that a flow may have.
        slopes = np.outer(np.linspace(0.0, 1.0, _TANGENTS + 1)[1:], np.maximum(demand, 1e-9))
        tangents = [
            sparse.hstack((sparse.diags_array(2 * slope) @ choose, -sparse.eye_array(model.flows))) for slope in slopes
        ]
        none = sparse.csr_array((cross.shape[0] + model.flows, model.flows))
        limits = sparse.hstack((sparse.vstack((cross, choose)), none))
        self._rows = sparse.vstack((limits, *tangents), format="csr")
        self._limits = np.concatenate((capacity, demand, (slopes**2).ravel()))
        self._most = most / self._scale
        self._cost = np.concatenate((np.zeros(paths), np.ones(model.flows)))
        self._total = sparse.csr_array(np.concatenate((np.ones(paths), np.zeros(model.flows)))[None])
        self._bounds = np.column_stack(
            (np.zeros(self._cost.size), np.concatenate((self._most, np.full(model.flows, np.inf))))
        )

    def fairness_bound(self, total_bps: float) -> float:
        """At least the most Jain's index of rates that carry ``total_bps``; 1 where nothing was proven."""
        total = total_bps / self._scale
        found = linprog(
            self._cost, A_ub=self._rows, b_ub=self._limits, A_eq=self._total, b_eq=[total],
            bounds=self._bounds, method="highs",
        )  # fmt: skip
        # The efficiency bound may lie above what the relaxation carries, by rounding.
        return float(total**2 / (self._flows * found.fun)) if found.status == 0 and found.fun > 0 else 1.0


def _matrices(problem: PathProblem, demand_bps: Array) -> tuple[Array, sparse.csr_array, sparse.csr_array]:
    """u_fp; which paths cross which link, shape (L, paths); which paths are whose, shape (F, paths)."""
    model = problem.model
    paths = [(flow, path) for flow, choices in enumerate(model.paths) for path in choices]
    most = np.array([min(demand_bps[flow], *model.capacity_bps[list(path)]) for flow, path in paths])
    over = [(link, number) for number, (_, path) in enumerate(paths) for link in path]
    rows, columns = zip(*over, strict=True)
    cross = sparse.csr_array((np.ones(len(over)), (rows, columns)), shape=(model.links, len(paths)))
    owners = [flow for flow, _ in paths]
    choose = sparse.csr_array((np.ones(len(paths)), (owners, np.arange(len(paths)))), shape=(model.flows, len(paths)))
    return most, cross, choose


def _scaled(problem: PathProblem, most: Array) -> tuple[float, Array]:
    """The largest u_fp, and the capacities in multiples of it, none above what all flows need.

    HiGHS takes less than 1e-7 for nothing, so the rates must be near 1.
    """
    scale = float(most.max())
    return scale, np.minimum(problem.model.capacity_bps / scale, problem.model.flows)


def _by_flow(problem: PathProblem, values: Array) -> tuple[Array, ...]:
    return tuple(np.split(values, np.cumsum(problem.model.path_counts)[:-1]))


def _efficiency(demand_bps: Array, carried_bps: float) -> float:
    return min(1.0, carried_bps / float(demand_bps.sum()))
