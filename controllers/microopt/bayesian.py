"""``atlas`` and ``atlas_plus``: Bayesian optimisation with a Bayesian neural network and Thompson sampling.

Source: "Atlas: Automate Online Service Configuration in Network Slicing" (CoNEXT 2022), the offline stage, with
what "MicroOpt" (section VI-A2) changes: the slice model answers instead of a simulator, the quality is
1 - E[beta] with target 1 - beta_thresh, and the action is the allocation. ``atlas`` knows constant traffic only and
takes the peak; ``atlas_plus`` is given the distribution.

1. 100 random allocations are evaluated.
2. A Bayesian neural network (independent normal weights, learned by variational inference) is fitted to all
   (allocation, quality).
3. 15 parallel Thompson draws: each samples one network and picks, out of 10,000 uniform points, the one with the
   largest multiplier (Q - target) - usage; usage is eta . r divided by the number of resources.
4. They are evaluated; multiplier <- [multiplier - 0.1 (mean Q - target)]^+, from 0. Back to 2.

The answer is the cheapest evaluated allocation that is feasible. Both papers leave the network's size and the number of
rounds open for this use; here they are two hidden layers of 32 and 150 rounds.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from controllers.microopt.problem import Problem, Solution, state


@dataclass(frozen=True, kw_only=True)
class Options:
    """Numbers of the released offline stage; ``fit_steps`` per round, ``first_fit_steps`` for the random points."""

    random_points: int = 100
    parallel: int = 15
    pool: int = 10_000
    rounds: int = 150
    dual_rate: float = 0.1
    width: int = 32
    fit_steps: int = 30
    fit_rows: int = 256
    first_fit_steps: int = 400
    rate: float = 5e-3
    noise: float = 0.02


def atlas(problem: Problem, rng: np.random.Generator, options: Options | None = None) -> Solution:
    """The method as published: for the peak of the traffic, judged by the traffic of ``problem``."""
    begin_s = time.perf_counter()
    peak = problem.with_traffic(lambda traffic: traffic.at_peak())
    u, evaluations, trace = _search(peak, rng, options or Options())
    return state(problem, u, solver="atlas", time_s=time.perf_counter() - begin_s, evaluations=evaluations, trace=trace)


def atlas_plus(problem: Problem, rng: np.random.Generator, options: Options | None = None) -> Solution:
    """With the distribution of the traffic."""
    begin_s = time.perf_counter()
    u, evaluations, trace = _search(problem, rng, options or Options())
    found = state(
        problem, u, solver="atlas_plus", time_s=time.perf_counter() - begin_s, evaluations=evaluations, trace=trace
    )
    return replace(found, solver="atlas_plus")


class BayesianNetwork(nn.Module):
    """Weights are independent normals; ``forward`` uses one draw of each, by the local reparameterisation of a
    whole network: (N, in) to (N, out), the same network for all N rows."""

    def __init__(self, inputs: int, width: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        sizes = [(inputs, width), (width, width), (width, outputs)]
        self.means, self.spreads = nn.ParameterList(), nn.ParameterList()
        for a, b in sizes:
            bound = 1 / math.sqrt(a)
            drawn = torch.rand(a + 1, b, generator=generator)
            self.means.append(nn.Parameter((2 * drawn - 1) * bound))
            self.spreads.append(nn.Parameter(torch.full((a + 1, b), -5.0)))

    def draw(self) -> list[Tensor]:
        """The weights of one network."""
        return [
            mean + functional.softplus(spread) * torch.randn(mean.shape, generator=self.generator)
            for mean, spread in zip(self.means, self.spreads, strict=True)
        ]

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        for number, weight in enumerate(weights):
            x = torch.addmm(weight[-1], x, weight[:-1])
            if number < len(weights) - 1:
                x = functional.silu(x)
        return x

    def divergence(self) -> Tensor:
        """KL from the prior, a standard normal of every weight."""
        total = torch.zeros(())
        for mean, spread in zip(self.means, self.spreads, strict=True):
            deviation = functional.softplus(spread)
            total = total + (0.5 * (deviation**2 + mean**2 - 1) - deviation.log()).sum()
        return total


def _search(problem: Problem, rng: np.random.Generator, options: Options) -> tuple[Tensor, int, list[dict[str, Any]]]:
    begin_s = time.perf_counter()
    shape = problem.low.shape
    low, high = problem.low.reshape(-1), problem.high.reshape(-1)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    target = 1 - problem.beta_thresh
    network = BayesianNetwork(low.numel(), options.width, len(problem.slices), generator)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.rate)
    multiplier = torch.zeros(len(problem.slices))

    def uniform(count: int) -> Tensor:
        return torch.rand(count, low.numel(), generator=generator)

    def fit(steps: int) -> None:
        # The evidence bound per row: squared error over twice the noise variance, KL over the rows.
        for _ in range(steps):
            optimiser.zero_grad()
            rows = torch.randint(known.shape[0], (options.fit_rows,), generator=generator)
            error = network(known[rows], network.draw()) - quality[rows]
            loss = (error**2).mean() / (2 * options.noise**2) + network.divergence() / known.shape[0] / 10
            loss.backward()
            optimiser.step()

    def evaluate(unit: Tensor) -> Tensor:
        with torch.no_grad():
            return 1 - problem.expected_beta((low + unit * (high - low)).reshape(-1, *shape))

    known = uniform(options.random_points)
    quality = evaluate(known)
    fit(options.first_fit_steps)
    trace: list[dict[str, Any]] = []
    for number in range(options.rounds):
        pool = uniform(options.pool)
        u = (low + pool * (high - low)).reshape(-1, *shape)
        usage = problem.cost(u) / shape[1]
        allowed = problem.within(u)
        picked = []
        with torch.no_grad():
            for _ in range(options.parallel):
                value = ((network(pool, network.draw()) - target) * multiplier).sum(-1) - usage
                picked.append(pool[int(torch.where(allowed, value, -torch.inf).argmax())])
        fresh = torch.stack(picked)
        answer = evaluate(fresh)
        known, quality = torch.cat((known, fresh)), torch.cat((quality, answer))
        multiplier = (multiplier - options.dual_rate * (answer.mean(0) - target)).clamp_min(0)
        fit(options.fit_steps)
        place, feasible = _best(problem, low + known * (high - low), quality, shape)
        cost = problem.cost((low + known[place] * (high - low)).reshape(1, *shape))
        trace.append(
            {
                "iteration": number,
                "time_s": time.perf_counter() - begin_s,
                "evaluations": known.shape[0],
                "cost": float(cost[0]) if feasible else None,
                "multiplier": float(multiplier.mean()),
            }
        )
    place, _ = _best(problem, low + known * (high - low), quality, shape)
    return (low + known[place] * (high - low)).reshape(shape), known.shape[0], trace


def _best(problem: Problem, flat: Tensor, quality: Tensor, shape: torch.Size) -> tuple[int, bool]:
    """The cheapest feasible of the evaluated points, else the one nearest to it."""
    u = flat.reshape(-1, *shape)
    beta = 1 - quality
    cost, within = problem.cost(u), problem.within(u)
    # A hair below the threshold: rounding must not make a point on the edge infeasible when it is checked.
    feasible = (beta <= problem.beta_thresh * (1 - 1e-4)).all(-1) & within
    if bool(feasible.any()):
        return int(torch.where(feasible, cost, torch.inf).argmin()), True
    excess = (beta - problem.beta_thresh).clamp_min(0).amax(-1) + (u.sum(-2) - 1).clamp_min(0).sum(-1)
    return int(excess.argmin()), False
