"""``grid``: every point of a grid, refined; ``peak_alloc``: the same for the peak of the traffic.

``grid`` is the optimum that others are compared with: 401 values of each resource between the bounds, then three times
21 x 21 points around each of the 20 best feasible ones, down to 0.001 % of a resource's range. It is exact up to that
resolution where the feasible set is not thinner than a step of the first grid (4 times coarser with distributions).

``peak_alloc`` is the paper's baseline (section VI-A2): a static allocation for 5 users, q_thresh 5 Mbit/s,
beta_thresh 0.01, by brute force. Its authors took 4.96 h; here all points are one batch. The run-time
controller of this name calculates from what each segment costs instead, and needs no model.

Several slices: the grids are searched slice by slice for the allocations that no other one undercuts in every resource
(the Pareto front of the feasible set), and these are combined under the capacities. Where no combination fits, the
answer is the one that misses the thresholds by the least.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from controllers.microopt.problem import CHECK_VALUES, OPTIMISER_VALUES, Problem, Solution, state
from controllers.microopt.slice_model import THROUGHPUT
from controllers.microopt.traffic import constant

POINTS_PER_AXIS = 401
POINTS_WITH_DISTRIBUTION = 101
REFINE_POINTS = 21
REFINEMENTS = 3
REFINED = 20
FRONT = 1500
CHECKED = 100
LEAST_EXCESS = 0.01
"""How exactly the least bad combination of several slices is found."""
ROUNDING = 1e-4
"""Relative: a batch of another size rounds E[beta] differently, and a point on the edge must stay feasible."""
PEAK_USERS, PEAK_Q_THRESH_MBPS, PEAK_BETA = 5.0, 5.0, 0.01


def grid(problem: Problem, rng: np.random.Generator) -> Solution:  # noqa: ARG001 nothing is drawn
    """The optimum on a grid; infeasible when no point of it is feasible: then the point of least E[beta]."""
    begin_s = time.perf_counter()
    if len(problem.slices) == 1:
        u, evaluations, levels = _one_slice(problem)
    else:
        u, evaluations, levels = _several(problem)
    return state(problem, u, solver="grid", time_s=time.perf_counter() - begin_s, evaluations=evaluations, trace=levels)


def peak_alloc(problem: Problem, rng: np.random.Generator) -> Solution:
    """The allocation for the peak, judged by the traffic and thresholds of ``problem``.

    Delay has no peak threshold in the paper: there the strictest that the problem asks for is taken.
    """
    begin_s = time.perf_counter()
    slices = tuple(
        replace(
            demand,
            traffic=constant(max(PEAK_USERS, demand.traffic.peak)),
            q_thresh=PEAK_Q_THRESH_MBPS if demand.qos == THROUGHPUT else demand.q_thresh,
            beta_thresh=PEAK_BETA,
        )
        for demand in problem.slices
    )
    found = grid(replace(problem, slices=slices), rng)
    u = torch.tensor([[part.allocation[name] for name in problem.resources] for part in found.slices]) / problem.scale
    stated = state(
        problem,
        u,
        solver="peak_alloc",
        time_s=time.perf_counter() - begin_s,
        evaluations=found.evaluations,
        trace=found.trace,
    )
    if found.feasible:
        return stated
    note = "no allocation serves the peak: " + found.reason
    return replace(stated, reason=f"{stated.reason}; {note}" if stated.reason else note)


def _axes(low: Tensor, high: Tensor, points: int) -> Tensor:
    """All points of a grid between two corners, (points ** K, K)."""
    axes = [torch.linspace(float(a), float(b), points) for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes) if len(axes) > 1 else axes[0].unsqueeze(-1)


def _axis_points(problem: Problem, s: int) -> int:
    per_axis = POINTS_PER_AXIS if problem.slices[s].traffic.values.size == 1 else POINTS_WITH_DISTRIBUTION
    # Three resources and more: as many points in total.
    scaled = round(float(per_axis) ** (2 / max(2, len(problem.resources))))
    return max(9, int(scaled))


def _one_slice(problem: Problem) -> tuple[Tensor, int, list[dict[str, object]]]:
    low, high = problem.low[0], problem.high[0]
    points = _axis_points(problem, 0)
    bound = float(problem.beta_thresh[0]) * (1 - ROUNDING)
    evaluations = 0
    levels: list[dict[str, object]] = []
    spacing = (high - low) / (points - 1)
    tried = _axes(low, high, points)
    best: Tensor | None = None
    shift = 0.0
    begin_s = time.perf_counter()
    for level in range(REFINEMENTS + 1):
        with torch.no_grad():
            beta = problem.slice_beta(tried, 0, OPTIMISER_VALUES)
        evaluations += tried.shape[0]
        cost = tried @ problem.price
        feasible = beta <= bound + shift
        if not bool(feasible.any()) and best is not None:
            return _checked(problem, best.unsqueeze(0), bound).unsqueeze(0), evaluations, levels
        if not bool(feasible.any()):
            # Nothing is feasible: the least bad point, the cheapest of equals.
            place = int((beta + 1e-6 * cost).argmin())
            # Where hardly anybody is served anywhere, all of everything.
            hopeless = float(beta[place]) > 1 - 1e-3
            return (problem.everything if hopeless else tried[place].unsqueeze(0)), evaluations, levels
        ranked = torch.where(feasible, cost, torch.inf)
        order = torch.argsort(ranked)[:REFINED]
        order = order[torch.isfinite(ranked[order])]
        best = tried[order[0]]
        # Few traffic values stand for many: the difference that they make here is the same close by.
        with torch.no_grad():
            shift = float(beta[order[0]] - problem.slice_beta(best.unsqueeze(0), 0, CHECK_VALUES)[0])
        levels.append(
            {
                "iteration": level,
                "time_s": time.perf_counter() - begin_s,
                "evaluations": evaluations,
                "cost": float(cost[order[0]]),
                "step": (spacing * problem.scale).tolist(),
            }
        )
        if level == REFINEMENTS:
            break
        # A first grid is coarse: neighbours of the best may hide behind each other, so several are refined.
        refine = REFINE_POINTS if len(problem.resources) == 2 else 7
        offsets = _axes(-spacing * 1.5, spacing * 1.5, refine)
        near = (tried[order].unsqueeze(1) + offsets).reshape(-1, low.numel())
        tried = torch.cat((tried[order], torch.minimum(torch.maximum(near, low), high)))
        spacing = 3 * spacing / (refine - 1)
    assert best is not None
    if problem.slices[0].traffic.values.size > OPTIMISER_VALUES:
        best = _checked(problem, tried[torch.argsort(ranked)[:CHECKED]], bound)
    return best.unsqueeze(0), evaluations, levels


def _checked(problem: Problem, ranked: Tensor, bound: float) -> Tensor:
    """The cheapest of some points that the check on many traffic values finds feasible.

    Where E[beta] is steep, as with data without noise, all may miss it by a hair: then the nearest point towards
    everything that does not.
    """
    way = torch.linspace(0, 0.1, CHECKED).unsqueeze(-1)
    for points in (ranked, ranked[0] + way * (problem.everything[0] - ranked[0])):
        with torch.no_grad():
            fits = problem.slice_beta(points, 0, CHECK_VALUES) <= bound
        if bool(fits.any()):
            return points[int(fits.float().argmax())]
    return ranked[0]


def _several(problem: Problem) -> tuple[Tensor, int, list[dict[str, object]]]:
    begin_s = time.perf_counter()
    points = [_axes(problem.low[s], problem.high[s], _axis_points(problem, s)) for s in range(len(problem.slices))]
    with torch.no_grad():
        beta = [problem.slice_beta(each, s, OPTIMISER_VALUES) for s, each in enumerate(points)]
    evaluations = sum(each.shape[0] for each in points)
    chosen = _cheapest(problem, points, beta, 0.0)
    if chosen is None:
        # The least bad: the smallest excess over all thresholds that some combination can do with.
        low, high = 0.0, 1.0
        while high - low > LEAST_EXCESS:
            middle = (low + high) / 2
            found = _cheapest(problem, points, beta, middle)
            low, high, chosen = (middle, high, chosen) if found is None else (low, middle, found)
        # Where hardly anybody is served anywhere, all of everything.
        return (problem.everything if chosen is None else chosen), evaluations, []
    level: dict[str, object] = {
        "iteration": 0,
        "time_s": time.perf_counter() - begin_s,
        "evaluations": evaluations,
        "cost": float((chosen @ problem.price).sum()),
    }
    return chosen, evaluations, [level]


def _cheapest(problem: Problem, points: list[Tensor], beta: list[Tensor], excess: float) -> Tensor | None:
    """Of all combinations within the capacities whose E[beta] is at most each threshold plus ``excess``, (S, K)."""
    total = torch.zeros(1, len(problem.resources))
    chosen = torch.zeros(1, 0, len(problem.resources))
    for s, each in enumerate(points):
        feasible = beta[s] <= problem.beta_thresh[s] * (1 - ROUNDING) + excess
        if not bool(feasible.any()):
            return None
        front = _front(each[feasible])
        first, second = torch.meshgrid(torch.arange(total.shape[0]), torch.arange(front.shape[0]), indexing="ij")
        first, second = first.reshape(-1), second.reshape(-1)
        summed = total[first] + front[second]
        fits = (summed <= 1 + 1e-6).all(-1)
        if not bool(fits.any()):
            return None
        first, second, summed = first[fits], second[fits], summed[fits]
        keep = _front_places(summed)
        total = summed[keep]
        chosen = torch.cat((chosen[first[keep]], front[second[keep]].unsqueeze(1)), dim=1)
    return chosen[int((total @ problem.price).argmin())]


def _front(points: Tensor) -> Tensor:
    return points[_front_places(points)]


def _front_places(points: Tensor) -> Tensor:
    """Places of the points that no other one undercuts or equals in every resource, at most :data:`FRONT`."""
    order = np.lexsort(points.T.numpy()[::-1])
    ranked = points[order].double()
    if points.shape[1] == 2:
        lowest = torch.cummin(ranked[:, 1], 0).values
        keep = torch.ones(len(order), dtype=torch.bool)
        keep[1:] = ranked[1:, 1] < lowest[:-1] - 1e-9
        places = order[keep.numpy()]
    else:
        kept: list[int] = []
        front = torch.empty(0, points.shape[1], dtype=torch.float64)
        for place, row in zip(order, ranked, strict=True):
            if not bool((front <= row + 1e-9).all(-1).any()):
                front = torch.cat((front, row.unsqueeze(0)))
                kept.append(int(place))
        places = np.array(kept)
    if len(places) > FRONT:
        places = places[np.linspace(0, len(places) - 1, FRONT).round().astype(int)]
    return torch.tensor(places)
