"""Equation 2 of MicroOpt: the cheapest allocation that keeps the QoS degradation of every slice below its threshold.

Source: "MicroOpt: Model-Driven Slice Resource Optimization in 5G and Beyond Networks", section III::

    min  sum_s eta . r_s    subject to  E[beta_s] <= beta_thresh_s for every slice s,  sum_s r_s <= R

with beta of equation 1. For traffic x with weights w and a model that gives P(q <= q_thresh | x, r) in closed form,
the expectation over the QoS is exact::

    E[beta](r) = sum_x w(x) x P(q <= q_thresh | x, r) / sum_x w(x) x

Optimisers work in normalised units u = r / R, so that every resource is in [0, 1]. Tensors: ``u`` is (B, S, K): B
candidates, S slices, K resources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controllers.microopt.slice_data import DELAY, THROUGHPUT, SliceModelError
from controllers.microopt.slice_model import QosDistribution, SliceModel
from controllers.microopt.traffic import Traffic

CAPACITY = {"cpu_millicores": 4500.0, "bandwidth_mbps": 50.0, "prb_share": 1.0}
"""R of a slice's resources, and 1 / eta: the largest allocations of the paper's slice (section V-D)."""
RESOURCES = ("cpu_millicores", "bandwidth_mbps")
OPTIMISER_VALUES = 32
"""Traffic values that an optimiser looks at; the final check is on :data:`CHECK_VALUES`."""
CHECK_VALUES = 1024
_CHUNK = 1 << 16
_POINT = 1e-6


class ProblemError(SliceModelError):
    """A problem that cannot be stated; the message is one line for the user."""


@dataclass(frozen=True)
class SliceDemand:
    """One slice: its model, the traffic of the interval, and its thresholds.

    ``q_thresh``: in the unit of the QoS (Mbit/s per user; seconds of delay, where less is better).
    ``beta_thresh``: largest E[beta], in (0, 1). ``sigmas``: None for the model's distribution; a number
    k stands for a scalar model that predicts k standard deviations below the mean (the paper's
    ablation, section VI-C).
    """

    model: SliceModel
    traffic: Traffic
    q_thresh: float
    beta_thresh: float
    slice_name: str | None = None
    qos: str = THROUGHPUT
    sigmas: float | None = None

    def __post_init__(self) -> None:
        name = self.slice_name or "slice"
        if not (math.isfinite(self.q_thresh) and self.q_thresh > 0):
            raise ProblemError(f"{name}: q-thresh must be a positive number, got {self.q_thresh:g}")
        if not 0 < self.beta_thresh < 1:
            raise ProblemError(f"{name}: beta must be between 0 and 1, got {self.beta_thresh:g}")
        self.model.network(self.slice_name, self.qos)

    def components(self, allocation: Tensor, users: Tensor) -> QosDistribution:
        """QoS of ``users`` (X,) under allocations (B, K), components of shape (B, X, M); more is better."""
        return self.quality(users, allocation.unsqueeze(-2))

    def quality(self, users: Tensor, allocation: Tensor) -> QosDistribution:
        """QoS of users (...) under allocations (..., K), which broadcast; more is better."""
        sign = -1.0 if self.qos == DELAY else 1.0
        found = self.model.distribution(users, allocation, slice_name=self.slice_name, qos=self.qos)
        if self.sigmas is not None:
            scalar = (sign * found.mean() - self.sigmas * found.std()).unsqueeze(-1)
            return QosDistribution(torch.ones_like(scalar), scalar, torch.full_like(scalar, _POINT))
        return QosDistribution(found.weights, sign * found.means, found.stds)

    @property
    def threshold(self) -> float:
        """``q_thresh`` on the scale where more is better."""
        return -self.q_thresh if self.qos == DELAY else self.q_thresh


@dataclass(frozen=True)
class Problem:
    """Slices that share capacities. ``capacity`` R and ``eta`` by resource name (default: 1 / R).

    The search stays where the models have data, unless ``extrapolate``: then up to R, flagged in the solution.
    """

    slices: tuple[SliceDemand, ...]
    capacity: Mapping[str, float] = field(default_factory=dict)
    eta: Mapping[str, float] = field(default_factory=dict)
    extrapolate: bool = False

    def __post_init__(self) -> None:
        if not self.slices:
            raise ProblemError("a problem needs at least one slice")
        for name, given in (("capacity", self.capacity), ("eta", self.eta)):
            for key, value in given.items():
                if key not in self.resources:
                    raise ProblemError(f"{name}: no resource {key!r}; resources: {', '.join(self.resources)}")
                if not (math.isfinite(value) and value > 0):
                    raise ProblemError(f"{name}: {key} must be positive, got {value:g}")
        for demand in self.slices:
            names = tuple(resource.name for resource in demand.model.resources)
            if names != self.resources:
                raise ProblemError(
                    f"slices must share resources: one model has {', '.join(self.resources)}, "
                    f"another has {', '.join(names)}"
                )
        over = [
            f"{name} {sum(low):g} of {high:g}"
            for name, high, low in zip(
                self.resources,
                self.scale.tolist(),
                zip(*(demand.model.low.tolist() for demand in self.slices), strict=True),
                strict=True,
            )
            if sum(low) > high * (1 + 1e-9)
        ]
        if over:
            raise ProblemError(f"capacity: less than the least that the models know: {', '.join(over)}")

    @cached_property
    def resources(self) -> tuple[str, ...]:
        return tuple(resource.name for resource in self.slices[0].model.resources)

    @cached_property
    def scale(self) -> Tensor:
        """R, shape (K,)."""
        most = self.slices[0].model.high.tolist()
        known = [
            self.capacity.get(name, CAPACITY.get(name, high)) for name, high in zip(self.resources, most, strict=True)
        ]
        return torch.tensor(known, dtype=torch.float32)

    @cached_property
    def price(self) -> Tensor:
        """eta in normalised units, shape (K,): 1 each unless given."""
        found = [
            self.eta.get(name, 1 / CAPACITY.get(name, scale)) * scale
            for name, scale in zip(self.resources, self.scale.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=torch.float32)

    @cached_property
    def low(self) -> Tensor:
        """Least allocation in normalised units, (S, K)."""
        return torch.stack([demand.model.low for demand in self.slices]) / self.scale

    @cached_property
    def high(self) -> Tensor:
        """Largest allocation in normalised units, (S, K)."""
        if self.extrapolate:
            return torch.ones(len(self.slices), len(self.resources))
        return (torch.stack([demand.model.high for demand in self.slices]) / self.scale).clamp_max(1.0)

    def natural(self, u: Tensor) -> Tensor:
        """Allocation in the units of the resources."""
        return u * self.scale

    def cost(self, u: Tensor) -> Tensor:
        """sum_s eta . r_s, shape (B,)."""
        return (u * self.price).sum((-1, -2))

    @cached_property
    def everything(self) -> Tensor:
        """As much of all as the capacities allow, in equal parts above the least; normalised, (S, K)."""
        room = (1 - self.low.sum(0)) / (self.high - self.low).sum(0).clamp_min(1e-9)
        return self.low + (self.high - self.low) * room.clamp(0, 1)

    @cached_property
    def _nodes(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        return {}

    def nodes(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Users (X,) and their weights in equation 1, w x / sum w x, (X,), of every slice; at most ``count`` values."""
        if count not in self._nodes:
            found = []
            for demand in self.slices:
                thin = demand.traffic.thinned(count)
                users = torch.tensor(thin.values, dtype=torch.float32)
                share = torch.tensor(thin.values * thin.weights, dtype=torch.float32)
                found.append((users, share / share.sum()))
            self._nodes[count] = found
        return self._nodes[count]

    def expected_beta(self, u: Tensor, count: int = OPTIMISER_VALUES) -> Tensor:
        """Exact E[beta] over the QoS distribution, (B, S); differentiable."""
        return torch.stack([self.slice_beta(u[:, s], s, count) for s in range(len(self.slices))], dim=-1)

    def slice_beta(self, u: Tensor, s: int, count: int = OPTIMISER_VALUES) -> Tensor:
        """Exact E[beta] of slice ``s`` for allocations (B, K), shape (B,); large batches in pieces."""
        demand, (users, share) = self.slices[s], self.nodes(count)[s]
        step = max(1, _CHUNK // users.numel())
        parts = [
            demand.components(self.natural(piece), users).cdf(demand.threshold) @ share
            for piece in torch.split(u, step)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @cached_property
    def beta_thresh(self) -> Tensor:
        """(S,)."""
        return torch.tensor([demand.beta_thresh for demand in self.slices], dtype=torch.float32)

    def within(self, u: Tensor) -> Tensor:
        """Whether the capacities hold, (B,)."""
        return (u.sum(-2) <= 1 + 1e-6).all(-1)

    def sampled_beta(self, u: Tensor, draws: int, rng: np.random.Generator) -> Tensor:
        """Equation 1 by drawing users and QoS, (B, S): the strict definition without the closed form.

        For checks: independent of every number that an optimiser has seen.
        """
        found = []
        for s, demand in enumerate(self.slices):
            users = rng.choice(demand.traffic.values, draws, p=demand.traffic.weights)
            distinct, place = np.unique(users, return_inverse=True)
            per = demand.components(self.natural(u[:, s]), torch.tensor(distinct, dtype=torch.float32))
            normal = torch.tensor(rng.standard_normal(draws), dtype=torch.float32)
            uniform = torch.tensor(rng.random(draws), dtype=torch.float32)
            picked = QosDistribution(*(part[:, place] for part in (per.weights, per.means, per.stds)))
            quality = picked.sample(normal.expand(u.shape[0], -1), uniform.expand(u.shape[0], -1)).detach()
            x = torch.tensor(users, dtype=torch.float32)
            found.append(((quality <= demand.threshold) * x).sum(-1) / x.sum())
        return torch.stack(found, dim=-1)

    def with_traffic(self, change: Any) -> Problem:
        """The same problem with ``change(traffic)`` of every slice."""
        return replace(self, slices=tuple(replace(demand, traffic=change(demand.traffic)) for demand in self.slices))


@dataclass(frozen=True)
class SliceSolution:
    """What one slice gets. ``extrapolated``: the allocation or the traffic lies outside the model's data."""

    name: str
    allocation: dict[str, float]
    expected_beta: float
    q_thresh: float
    beta_thresh: float
    extrapolated: bool


@dataclass(frozen=True)
class Solution:
    """The answer of a solver: ``cost`` is sum eta . r, ``feasible`` by the strict definition, ``evaluations`` how many
    allocations were evaluated; ``trace`` is a list of plain rows."""

    solver: str
    slices: tuple[SliceSolution, ...]
    cost: float
    feasible: bool
    time_s: float
    evaluations: int
    trace: tuple[dict[str, Any], ...] = ()
    reason: str = ""

    @property
    def allocation(self) -> dict[str, float]:
        """By resource, summed over the slices."""
        names = self.slices[0].allocation
        return {name: sum(part.allocation[name] for part in self.slices) for name in names}

    @property
    def expected_beta(self) -> float:
        """The largest of the slices."""
        return max(part.expected_beta for part in self.slices)


def state(
    problem: Problem,
    u: Tensor,
    *,
    solver: str,
    time_s: float,
    evaluations: int,
    trace: Sequence[dict[str, Any]] = (),
) -> Solution:
    """The solution that the allocation (S, K) is for ``problem``, judged by the model's whole distribution."""
    honest = replace(problem, slices=tuple(replace(demand, sigmas=None) for demand in problem.slices))
    with torch.no_grad():
        beta = honest.expected_beta(u.unsqueeze(0), CHECK_VALUES)[0]
    natural = problem.natural(u)
    parts = []
    for s, demand in enumerate(problem.slices):
        low, high = demand.model.traffic_range
        values = demand.traffic.values[demand.traffic.weights > 0]
        inside = bool(demand.model.in_hull(natural[s]))
        known = bool((values >= low - 1e-6).all() and (values <= high + 1e-6).all())
        parts.append(
            SliceSolution(
                name=demand.slice_name or demand.model.slices[0],
                allocation={
                    name: _tidy(value) for name, value in zip(problem.resources, natural[s].tolist(), strict=True)
                },
                expected_beta=float(beta[s]),
                q_thresh=demand.q_thresh,
                beta_thresh=demand.beta_thresh,
                extrapolated=not (inside and known),
            )
        )
    broken = [
        f"{part.name}: E[beta] {part.expected_beta:.4g} above {part.beta_thresh:g}"
        for part in parts
        if part.expected_beta > part.beta_thresh
    ]
    if not bool(problem.within(u.unsqueeze(0))[0]):
        broken.append("the capacities are exceeded")
    return Solution(
        solver=solver,
        slices=tuple(parts),
        cost=float(problem.cost(u.unsqueeze(0))[0]),
        feasible=not broken,
        time_s=time_s,
        evaluations=evaluations,
        trace=tuple(trace),
        reason="; ".join(broken),
    )


def check_resources(model: SliceModel, where: str, expected: Sequence[str] = RESOURCES) -> None:
    """SliceModelError unless the model was fitted on these resources."""
    names = tuple(resource.name for resource in model.resources)
    if names != tuple(expected):
        raise SliceModelError(f"{where}: fitted on {', '.join(names)}; needs {', '.join(expected)}")


def _tidy(value: float) -> float:
    """Seven significant figures: what a float32 holds."""
    return float(f"{value:.7g}")
