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
rounds open for this use; here they are two hidden layers of 32 and 150 rounds. Many problems are searched side by
side, each with networks, points, multipliers and random numbers of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from controllers.microopt.problem import Problem, Solution
from controllers.microopt.stack import Found, Layers, Stack, in_stacks, normal, uniform

_POOL_CHUNK = 250
"""Points of the pool at once: what all draws make of them stays in the cache of a core."""
_BLOCK = 50
"""Steps of learning for which random numbers are drawn at once."""


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
    return atlas_batch([problem], [rng], options)[0]


def atlas_plus(problem: Problem, rng: np.random.Generator, options: Options | None = None) -> Solution:
    """With the distribution of the traffic."""
    return atlas_plus_batch([problem], [rng], options)[0]


def atlas_batch(
    problems: Sequence[Problem], rngs: Sequence[np.random.Generator], options: Options | None = None
) -> list[Solution]:
    """:func:`atlas` for many problems; ``time_s`` is the share of each in the time of all."""
    peaks = [problem.with_traffic(lambda traffic: traffic.at_peak()) for problem in problems]
    found = in_stacks(peaks, rngs, lambda stack, generators: _Search(stack, generators, options or Options()).run())
    return [one.judged(problem, "atlas") for one, problem in zip(found, problems, strict=True)]


def atlas_plus_batch(
    problems: Sequence[Problem], rngs: Sequence[np.random.Generator], options: Options | None = None
) -> list[Solution]:
    """:func:`atlas_plus` for many problems; ``time_s`` is the share of each in the time of all."""
    found = in_stacks(problems, rngs, lambda stack, generators: _Search(stack, generators, options or Options()).run())
    return [one.judged(problem, "atlas_plus") for one, problem in zip(found, problems, strict=True)]


class _Networks:
    """One Bayesian network per problem: normal weights, means and log spreads in rows of (N, P)."""

    def __init__(self, layers: Layers, generators: Sequence[torch.Generator], rate: float) -> None:
        self.layers, self.generators = layers, generators
        self.mean = layers.drawn(generators).requires_grad_(True)
        self.spread = torch.full_like(self.mean, -5.0).requires_grad_(True)
        self.optimiser = torch.optim.Adam([self.mean, self.spread], lr=rate)

    def fit(self, known: Tensor, quality: Tensor, steps: int, options: Options) -> None:
        """Steps on the evidence bound per row: squared error over twice the noise variance, KL over the rows.

        ``known`` (N, rows, in), ``quality`` (N, rows, out). A step draws one network and some rows.
        """
        count = known.shape[1]
        whole = torch.cat((known, quality), dim=-1)
        for begin in range(0, steps, _BLOCK):
            size = min(_BLOCK, steps - begin)
            noise = normal(self.generators, size, self.layers.parameters)
            rows = (uniform(self.generators, size, options.fit_rows) * count).long().clamp_max(count - 1)
            for step in range(size):
                picked = whole.gather(1, rows[:, step].unsqueeze(-1).expand(-1, -1, whole.shape[-1]))
                deviation = functional.softplus(self.spread)
                drawn = self.mean + deviation * noise[:, step]
                error = self.layers.forward(picked[..., : known.shape[-1]], drawn, functional.silu)
                error = error - picked[..., known.shape[-1] :]
                fitted = (error**2).mean((-1, -2)).sum() / (2 * options.noise**2)
                # KL from the prior, a standard normal of every weight.
                divergence = (0.5 * (deviation**2 + self.mean**2 - 1) - deviation.log()).sum()
                self.optimiser.zero_grad()
                (fitted + divergence / count / 10).backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()

    def draw(self, count: int) -> Tensor:
        """``count`` networks of each problem, (N, count, P)."""
        with torch.no_grad():
            noise = normal(self.generators, count, self.layers.parameters)
            return self.mean.unsqueeze(1) + functional.softplus(self.spread).unsqueeze(1) * noise


class _Search:
    """The rounds of Atlas for all problems of a stack."""

    def __init__(self, stack: Stack, generators: Sequence[torch.Generator], options: Options) -> None:
        self.stack, self.generators, self.options = stack, generators, options
        self.inputs = stack.first.low.numel()
        self.layers = Layers(self.inputs, options.width, options.width, len(stack.first.slices))

    def run(self) -> list[Found]:
        begin_s = time.perf_counter()
        stack, options, count = self.stack, self.options, self.stack.count
        target = 1 - stack.beta_thresh
        networks = _Networks(self.layers, self.generators, options.rate)
        multiplier = torch.zeros_like(target)
        known = uniform(self.generators, options.random_points, self.inputs)
        quality = 1 - stack.expected_beta(stack.placed(known))
        networks.fit(known, quality, options.first_fit_steps, options)
        cheapest = self._cheapest(known, quality)
        traces: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        for number in range(options.rounds):
            fresh = self._thompson(networks, multiplier, target)
            answer = 1 - stack.expected_beta(stack.placed(fresh))
            known, quality = torch.cat((known, fresh), 1), torch.cat((quality, answer), 1)
            multiplier = (multiplier - options.dual_rate * (answer.mean(1) - target)).clamp_min(0)
            networks.fit(known, quality, options.fit_steps, options)
            cheapest = torch.minimum(cheapest, self._cheapest(fresh, answer))
            share_s = (time.perf_counter() - begin_s) / count
            for trace, cost, price in zip(traces, cheapest.tolist(), multiplier.mean(-1).tolist(), strict=True):
                trace.append(
                    {
                        "iteration": number,
                        "time_s": share_s,
                        "evaluations": known.shape[1],
                        "cost": cost if cost < float("inf") else None,
                        "multiplier": price,
                    }
                )
        best = self._best(known, quality)
        share_s = (time.perf_counter() - begin_s) / count
        return [Found(best[n], known.shape[1], traces[n], share_s) for n in range(count)]

    def _thompson(self, networks: _Networks, multiplier: Tensor, target: Tensor) -> Tensor:
        """The point of a pool that each drawn network thinks best, (N, parallel, in)."""
        options = self.options
        drawn = networks.draw(options.parallel)
        picked = []
        for n, generator in enumerate(self.generators):
            pool = torch.rand(options.pool, self.inputs, generator=generator)
            u = self.stack.placed(pool)
            usage = self.stack.cost(u) / u.shape[-1]
            value = (-usage).expand(options.parallel, -1)
            if bool((multiplier[n] > 0).any()):  # else the networks have no say
                pieces = [
                    self.layers.forward(
                        piece.expand(options.parallel, -1, -1), drawn[n], lambda x: functional.silu(x, inplace=True)
                    )
                    for piece in torch.split(pool, _POOL_CHUNK)
                ]
                value = value + ((torch.cat(pieces, 1) - target[n]) * multiplier[n]).sum(-1)
            best = torch.where(self.stack.within(u), value, -torch.inf).argmax(-1)
            picked.append(pool[best])
        return torch.stack(picked)

    def _cheapest(self, known: Tensor, quality: Tensor) -> Tensor:
        """Least cost of the feasible ones, (N,), infinite where none is."""
        u = self.stack.placed(known)
        feasible = self.stack.excess(u, 1 - quality) <= 0
        return torch.where(feasible, self.stack.cost(u), torch.inf).amin(-1)

    def _best(self, known: Tensor, quality: Tensor) -> Tensor:
        """The cheapest feasible of the evaluated points, else the one nearest to it, (N, S, K)."""
        u = self.stack.placed(known)
        excess = self.stack.excess(u, 1 - quality)
        order = torch.where(excess <= 0, self.stack.cost(u), 1e6 * (1 + excess))
        return self.stack.first_feasible(u, excess, order)
