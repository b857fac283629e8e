"""Problems of one shape solved side by side: a leading axis N over traffic, thresholds and seeds.

The rivals learn small networks for each problem, whose cost is the number of calls rather than arithmetic: for
twenty problems at once it is hardly larger than for one. Every problem keeps random numbers of its own, so that what
it gets does not depend on which others are solved beside it (but for rounding).

``u`` is (N, B, S, K): N problems, B candidates, S slices, K resources, in the normalised units of ``problem``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controllers.microopt.problem import CHECK_VALUES, OPTIMISER_VALUES, Problem, ProblemError, Solution, state

_CHUNK = 1 << 16
CHECKED = 50
BatchSolver = Callable[[Sequence[Problem], Sequence[np.random.Generator]], list[Solution]]


@dataclass(frozen=True)
class Found:
    """What was found for one problem of a stack: an allocation (S, K), and the share of the time of all."""

    u: Tensor
    evaluations: int
    trace: list[dict[str, Any]]
    time_s: float

    def judged(self, problem: Problem, solver: str) -> Solution:
        """By the traffic and thresholds of ``problem``, which may be others than those it was sought for."""
        return state(problem, self.u, solver=solver, time_s=self.time_s, evaluations=self.evaluations, trace=self.trace)


class Stack:
    """E[beta] of many problems at once. ProblemError unless they differ in traffic and thresholds only."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        self.first = self.problems[0]
        if len({shape_key(problem) for problem in self.problems}) > 1:
            raise ProblemError("problems solved side by side must share model, slices, capacities and traffic shape")
        self.count = len(self.problems)
        self.beta_thresh = torch.stack([problem.beta_thresh for problem in self.problems])
        self._thresholds = torch.tensor(
            [[demand.threshold for demand in problem.slices] for problem in self.problems], dtype=torch.float32
        )
        self._nodes: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def nodes(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Users (N, X) and their weights in equation 1 (N, X), of every slice; at most ``count`` values."""
        if count not in self._nodes:
            each = [problem.nodes(count) for problem in self.problems]
            self._nodes[count] = [
                (torch.stack([one[s][0] for one in each]), torch.stack([one[s][1] for one in each]))
                for s in range(len(self.first.slices))
            ]
        return self._nodes[count]

    def degraded(self, u: Tensor, s: int, users: Tensor) -> Tensor:
        """P(q <= q_thresh) of slice ``s`` for allocations (N, B, K) and users (N, X), shape (N, B, X)."""
        demand = self.first.slices[s]
        threshold = self._thresholds[:, s].reshape(-1, 1, 1)
        step = max(1, _CHUNK // (users.numel() or 1))
        return torch.cat(
            [
                demand.quality(users.unsqueeze(1), self.first.natural(piece).unsqueeze(-2)).cdf(threshold)
                for piece in torch.split(u, step, dim=1)
            ],
            dim=1,
        )

    def expected_beta(self, u: Tensor, count: int = OPTIMISER_VALUES) -> Tensor:
        """Exact E[beta] over the QoS distribution, (N, B, S)."""
        with torch.no_grad():
            return torch.stack(
                [
                    (self.degraded(u[:, :, s], s, users) @ share.unsqueeze(-1)).squeeze(-1)
                    for s, (users, share) in enumerate(self.nodes(count))
                ],
                dim=-1,
            )

    def excess(self, u: Tensor, beta: Tensor) -> Tensor:
        """By how much allocations miss their thresholds and the capacities, (N, B); 0 where they keep both.

        A hair below the threshold counts as on it: a batch of another size rounds differently, and a point on
        the edge must not become infeasible when it is checked.
        """
        over = (u.sum(-2) - 1 - 1e-6).clamp_min(0).sum(-1)
        return (beta - self.beta_thresh.unsqueeze(1) * (1 - 1e-4)).clamp_min(0).amax(-1) + over

    def within(self, u: Tensor) -> Tensor:
        """Whether the capacities hold, (N, B)."""
        return self.first.within(u)

    def cost(self, u: Tensor) -> Tensor:
        """sum_s eta . r_s, (N, B)."""
        return self.first.cost(u)

    def placed(self, unit: Tensor) -> Tensor:
        """Points (N, B, S K) of the unit cube as allocations between the least and the largest, (N, B, S, K)."""
        low, high = self.first.low.reshape(-1), self.first.high.reshape(-1)
        u = low + unit.clamp(0, 1) * (high - low)
        return u.reshape(*u.shape[:-1], *self.first.low.shape)

    def first_feasible(self, u: Tensor, excess: Tensor, order: Tensor) -> Tensor:
        """Of points (N, B, S, K) the first one that is feasible, else the one of least ``excess``, (N, S, K).

        ``excess`` and ``order`` are (N, B): how far a point misses, and which one is preferred (the smallest, the
        earlier of equals). A search looks at few traffic values, the check at many: the first :data:`CHECKED`
        are checked.
        """
        places = torch.argsort(order, dim=-1, stable=True)[:, :CHECKED]
        ranked = u.gather(1, places[..., None, None].expand(-1, -1, *u.shape[2:]))
        excess = excess.gather(1, places)
        if any(demand.traffic.values.size > OPTIMISER_VALUES for demand in self.first.slices):
            checked = self.excess(ranked, self.expected_beta(ranked, CHECK_VALUES))
            excess = torch.maximum(excess, checked)
        feasible = excess <= 0
        place = torch.where(feasible.any(-1), feasible.float().argmax(-1), excess.argmin(-1))
        return ranked[torch.arange(u.shape[0]), place]


def shape_key(problem: Problem) -> tuple[object, ...]:
    """Problems with equal keys can be stacked."""
    return (
        tuple(
            (
                id(demand.model),
                demand.slice_name,
                demand.qos,
                demand.sigmas,
                min(demand.traffic.values.size, CHECK_VALUES),
            )
            for demand in problem.slices
        ),
        tuple(problem.scale.tolist()),
        tuple(problem.price.tolist()),
        problem.extrapolate,
    )


def in_stacks(
    problems: Sequence[Problem],
    rngs: Sequence[np.random.Generator],
    search: Callable[[Stack, list[torch.Generator]], list[Found]],
) -> list[Found]:
    """``search`` for each group of problems that can be stacked; what it finds in the order of ``problems``."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, problem in enumerate(problems):
        groups.setdefault(shape_key(problem), []).append(place)
    found: dict[int, Found] = {}
    for places in groups.values():
        generators = [torch.Generator().manual_seed(int(rngs[place].integers(2**31))) for place in places]
        stack = Stack([problems[place] for place in places])
        found.update(zip(places, search(stack, generators), strict=True))
    return [found[place] for place in range(len(problems))]


def uniform(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Uniform draws, (N, *shape), each problem's from its own generator."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def normal(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Standard normal draws, (N, *shape)."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


class Layers:
    """Networks of equal shape, one per problem: weights of all layers in rows of one (N, P) tensor, biases last."""

    def __init__(self, *widths: int) -> None:
        self.sizes = [(a + 1, b) for a, b in itertools.pairwise(widths)]
        self.parameters = sum(a * b for a, b in self.sizes)

    def drawn(self, generators: Sequence[torch.Generator]) -> Tensor:
        """First weights, as torch.nn.Linear draws them, (N, P)."""
        parts = []
        for a, b in self.sizes:
            bound = 1 / (a - 1) ** 0.5
            parts.append((2 * uniform(generators, a * b) - 1) * bound)
        return torch.cat(parts, dim=-1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """(..., P) to one (..., in + 1, out) per layer."""
        return [
            part.reshape(*flat.shape[:-1], *size)
            for part, size in zip(torch.split(flat, [a * b for a, b in self.sizes], dim=-1), self.sizes, strict=True)
        ]

    def forward(self, x: Tensor, flat: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, rows, in) through the networks (N, P) to (N, rows, out)."""
        weights = self.split(flat)
        for number, weight in enumerate(weights):
            x = torch.baddbmm(weight[:, -1:], x, weight[:, :-1])
            if number < len(weights) - 1:
                x = activation(x)
        return x
