"""The path problem with free rates, as a linear program and as a mixed-integer one.

With x_fp the rate of flow f on its path p, y_fp in {0, 1} whether it takes it, u_fp the least of the
demand and the capacities along the path::

    maximise    sum_fp x_fp
    subject to  x_fp <= u_fp y_fp,   sum_p y_fp = 1 for every f,
                sum of x_fp over the paths that cross link l <= capacity of l

The rates need not be max-min fair, so the optimum, divided by the offered load, is an upper bound on
the efficiency of every allocation; with 0 <= y_fp <= 1 it is a weaker bound that takes milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from controllers.iab.problem import Allocations, PathProblem, SolveError
from twin.flow.batched import Array


@dataclass(frozen=True)
class Relaxed:
    """``shares``: y_fp, flow by flow; ``efficiency_bound``: upper bound on the efficiency, in [0, 1]."""

    shares: tuple[Array, ...]
    efficiency_bound: float

    def allocation(self) -> Allocations:
        """The path with the largest share of every flow, shape (F,)."""
        return np.array([int(np.argmax(share)) for share in self.shares], dtype=np.int64)


def lp_relaxation(problem: PathProblem) -> Relaxed:
    """The linear program: flows may split over their paths. Solved by HiGHS.

    With x_fp = u_fp y_fp the rates drop out: maximise sum u_fp y_fp.
    """
    model = problem.model
    most, cross, choose = _matrices(problem)
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
    return Relaxed(_by_flow(problem, found.x), _efficiency(problem, -found.fun * scale))


def mixed_integer(problem: PathProblem, *, time_limit_s: float, gap: float) -> Relaxed:
    """The mixed-integer program, solved by HiGHS until the relative ``gap`` or the time limit.

    SolveError when no allocation was found in time. The bound is HiGHS's proven one.
    """
    most, cross, choose = _matrices(problem)
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
    return Relaxed(_by_flow(problem, found.x[count:]), _efficiency(problem, -found.mip_dual_bound * scale))


def _matrices(problem: PathProblem) -> tuple[Array, sparse.csr_array, sparse.csr_array]:
    """u_fp; which paths cross which link, shape (L, paths); which paths are whose, shape (F, paths)."""
    model = problem.model
    paths = [(flow, path) for flow, choices in enumerate(model.paths) for path in choices]
    most = np.array([min(model.demand_bps[flow], *model.capacity_bps[list(path)]) for flow, path in paths])
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


def _efficiency(problem: PathProblem, carried_bps: float) -> float:
    offered_bps = float(problem.model.demand_bps.sum())
    return min(1.0, carried_bps / offered_bps)
