"""``cadrl`` and ``cadrl_plus``: constrained reinforcement learning by interior-point policy optimisation (IPO).

Source: "IPO: Interior-Point Policy Optimization under Constraints" (AAAI 2020, arXiv 1910.09615), used for slices in
"A Constrained Reinforcement Learning Based Approach for Network Slicing" (ICNP 2020) and called CaDRL in
"MicroOpt" (section VI-A2). PPO whose clipped objective carries a logarithmic barrier for each constraint::

    maximise  L_CLIP(theta) + sum_i log(d_i - J_Ci(theta)) / t

State: the traffic (``cadrl``: its peak; ``cadrl_plus``: its deciles). Action: the allocation, in [0, 1]^K of its
range. Reward: -eta . r. Cost: beta of the interval, limit d = beta_thresh. An episode is one reconfiguration interval,
so that the return is the reward and the advantage is the reward less the critic. The policy is trained from scratch for
the given traffic, as in MicroOpt. It starts feasible: at nearly all of everything. When a batch leaves the feasible set
(the logarithm then has no value), the step minimises the violation instead.

beta of an interval is drawn: the indicator of equation 1 over ``slots`` draws of users and QoS. The answer is the mean
action of the last policy whose mean action is feasible by the strict definition. Many problems are trained side by
side, each with networks and random numbers of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controllers.microopt.problem import Problem, Solution
from controllers.microopt.stack import Found, Layers, Stack, in_stacks, normal, uniform

_DRAWN_VALUES = 24
"""Traffic values of the environment."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """``t``: sharpness of the barrier (IPO: 20 to 50); ``slots``: time slots of one interval."""

    iterations: int = 250
    batch: int = 128
    slots: int = 60
    epochs: int = 8
    width: int = 64
    t: float = 50.0
    clip: float = 0.2
    rate: float = 1e-3
    critic_rate: float = 3e-3
    start: float = 0.9
    start_log_std: float = -1.5
    end_log_std: float = -3.0


def cadrl(problem: Problem, rng: np.random.Generator, options: Options | None = None) -> Solution:
    """For the peak of the traffic, judged by the traffic of ``problem``."""
    return cadrl_batch([problem], [rng], options)[0]


def cadrl_plus(problem: Problem, rng: np.random.Generator, options: Options | None = None) -> Solution:
    """With the distribution of the traffic."""
    return cadrl_plus_batch([problem], [rng], options)[0]


def cadrl_batch(
    problems: Sequence[Problem], rngs: Sequence[np.random.Generator], options: Options | None = None
) -> list[Solution]:
    """:func:`cadrl` for many problems; ``time_s`` is the share of each in the time of all."""
    peaks = [problem.with_traffic(lambda traffic: traffic.at_peak()) for problem in problems]
    found = in_stacks(peaks, rngs, lambda stack, generators: _train(stack, generators, options or Options()))
    return [one.judged(problem, "cadrl") for one, problem in zip(found, problems, strict=True)]


def cadrl_plus_batch(
    problems: Sequence[Problem], rngs: Sequence[np.random.Generator], options: Options | None = None
) -> list[Solution]:
    """:func:`cadrl_plus` for many problems; ``time_s`` is the share of each in the time of all."""
    found = in_stacks(problems, rngs, lambda stack, generators: _train(stack, generators, options or Options()))
    return [one.judged(problem, "cadrl_plus") for one, problem in zip(found, problems, strict=True)]


class _Policies:
    """One policy per problem: independent normals around a mean in (0, 1); the log standard deviation does not depend
    on the state."""

    def __init__(self, inputs: int, actions: int, generators: Sequence[torch.Generator], options: Options) -> None:
        self.layers = Layers(inputs, options.width, options.width, actions)
        flat = self.layers.drawn(generators)
        head = self.layers.split(flat)[-1]
        head[:, :-1] *= 0.01
        head[:, -1] = math.log(options.start / (1 - options.start))
        self.weights = flat.requires_grad_(True)
        self.log_std = torch.full((flat.shape[0], actions), options.start_log_std, requires_grad=True)

    def mean(self, observed: Tensor) -> Tensor:
        """(N, 1, inputs) to (N, 1, actions)."""
        return torch.sigmoid(self.layers.forward(observed, self.weights, torch.tanh))

    def log_prob(self, action: Tensor, observed: Tensor) -> Tensor:
        """(N, batch, actions) to (N, batch)."""
        log_std = self.log_std.clamp(-5, 0).unsqueeze(1)
        scaled = (action - self.mean(observed)) / log_std.exp()
        return (-0.5 * scaled**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def clip_gradients(self) -> None:
        """The gradient of each problem's policy to a norm of at most 1."""
        assert self.weights.grad is not None and self.log_std.grad is not None
        norm = torch.cat((self.weights.grad, self.log_std.grad), -1).norm(dim=-1, keepdim=True)
        for gradient in (self.weights.grad, self.log_std.grad):
            gradient *= (1 / (norm + 1e-6)).clamp_max(1)


def _train(stack: Stack, generators: Sequence[torch.Generator], options: Options) -> list[Found]:
    begin_s = time.perf_counter()
    count, slices = stack.count, len(stack.first.slices)
    actions = stack.first.low.numel()
    observed = torch.stack([_observation(problem) for problem in stack.problems]).unsqueeze(1)
    policies = _Policies(observed.shape[-1], actions, generators, options)
    # Column 0 of the critics is the reward, the others are beta of each slice; each output has a body of its own.
    layers = [Layers(observed.shape[-1], options.width, outputs) for outputs in (1, slices)]
    critics = [one.drawn(generators).requires_grad_(True) for one in layers]
    actor_step = torch.optim.Adam([policies.weights, policies.log_std], lr=options.rate)
    critic_step = torch.optim.Adam(critics, lr=options.critic_rate)
    sources = [_drawn_from(stack, s) for s in range(slices)]
    means, misses = [], []
    cost = torch.full((count,), torch.inf)
    evaluations = 0
    traces: list[list[dict[str, Any]]] = [[] for _ in range(count)]

    def expected(which: int) -> Tensor:
        return layers[which].forward(observed, critics[which], torch.tanh)

    for number in range(options.iterations):
        fraction = number / max(1, options.iterations - 1)
        with torch.no_grad():
            # Exploration is annealed: with a wide policy the barrier keeps the mean far inside.
            policies.log_std.clamp_(
                max=options.start_log_std + fraction * (options.end_log_std - options.start_log_std)
            )
            noise = normal(generators, options.batch, actions)
            action = policies.mean(observed) + noise * policies.log_std.clamp(-5, 0).exp().unsqueeze(1)
            before = policies.log_prob(action, observed)
            u = stack.placed(action)
            beta = _drawn_beta(stack, u, options.slots, sources, generators)
            # Outside the capacities an allocation cannot be carried out: all its users count as degraded.
            over = (u.sum(-2) - 1).clamp_min(0).sum(-1) > 0
            beta = torch.where(over.unsqueeze(-1), torch.ones_like(beta), beta)
            reward = -stack.cost(u)
            gain = reward - expected(0)[..., 0]
            gain = (gain - gain.mean(-1, keepdim=True)) / (gain.std(-1, keepdim=True) + 1e-8)
            worse = beta - expected(1)
            mean_beta = beta.mean(1)
        evaluations += options.batch
        for _ in range(options.epochs):
            ratio = (policies.log_prob(action, observed) - before).exp()
            clipped = torch.minimum(ratio * gain, ratio.clamp(1 - options.clip, 1 + options.clip) * gain).mean(-1)
            # J_C of the new policy, by importance sampling on the batch of the old one.
            predicted = mean_beta + ((ratio - 1).unsqueeze(-1) * worse).mean(1)
            slack = stack.beta_thresh - predicted
            inside = (slack > 0).all(-1)
            barrier = torch.where(slack > 0, slack, torch.ones_like(slack)).log().sum(-1) / options.t
            loss = torch.where(inside, -clipped - barrier, (-slack).clamp_min(0).sum(-1) * 10)
            actor_step.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            policies.clip_gradients()
            actor_step.step()
            error = ((expected(0)[..., 0] - reward) ** 2).mean(-1) + ((expected(1) - beta) ** 2).mean((-1, -2))
            critic_step.zero_grad()
            error.sum().backward()  # type: ignore[no-untyped-call]
            critic_step.step()
        with torch.no_grad():
            mean = stack.placed(policies.mean(observed))
            excess = stack.excess(mean, stack.expected_beta(mean))
            cost = torch.where((excess <= 0)[:, 0], stack.cost(mean)[:, 0], cost)
            means.append(mean)
            misses.append(excess)
        evaluations += 1
        share_s = (time.perf_counter() - begin_s) / count
        for n, trace in enumerate(traces):
            trace.append(
                {
                    "iteration": number,
                    "time_s": share_s,
                    "evaluations": evaluations,
                    "cost": float(cost[n]) if math.isfinite(cost[n]) else None,
                    "mean_beta": float(mean_beta[n].mean()),
                }
            )
    # The last feasible one first; where none is, the least bad.
    missed = torch.cat(misses, 1).flip(1)
    answer = stack.first_feasible(torch.cat(means, 1).flip(1), missed, torch.where(missed <= 0, 0, 1 + missed))
    share_s = (time.perf_counter() - begin_s) / count
    return [Found(answer[n], evaluations, traces[n], share_s) for n in range(count)]


def _observation(problem: Problem) -> Tensor:
    """Deciles of the traffic of every slice as parts of the most users that its model has seen."""
    parts = [
        torch.tensor(demand.traffic.thinned(10).values / demand.model.traffic_range[1], dtype=torch.float32)
        for demand in problem.slices
    ]
    return torch.cat(parts)


def _drawn_beta(
    stack: Stack, u: Tensor, slots: int, sources: list[tuple[Tensor, Tensor]], generators: Sequence[torch.Generator]
) -> Tensor:
    """beta of one interval of ``slots`` slots per allocation, (N, B, S): what an environment would show."""
    found = []
    for s, (users, likely) in enumerate(sources):
        chance = stack.degraded(u[:, :, s], s, users)
        drawn = uniform(generators, *u.shape[1:2], slots)
        if users.shape[1] == 1:
            found.append((drawn < chance).float().mean(-1))
            continue
        place = uniform(generators, u.shape[1] * slots)
        picked = torch.searchsorted(likely, place).clamp_max(users.shape[1] - 1).reshape(-1, u.shape[1], slots)
        x = users.unsqueeze(1).expand(-1, u.shape[1], -1).gather(-1, picked)
        hit = drawn < chance.gather(-1, picked)
        found.append((x * hit).sum(-1) / x.sum(-1))
    return torch.stack(found, dim=-1)


def _drawn_from(stack: Stack, s: int) -> tuple[Tensor, Tensor]:
    """Users that slots of a slice draw from, (N, X), and their cumulative probability, (N, X)."""
    thin = [problem.slices[s].traffic.thinned(_DRAWN_VALUES) for problem in stack.problems]
    users = torch.tensor(np.stack([one.values for one in thin]), dtype=torch.float32)
    return users, torch.tensor(np.stack([one.weights for one in thin]), dtype=torch.float32).cumsum(-1)
