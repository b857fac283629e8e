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
action of the last policy whose mean action is feasible by the strict definition.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from controllers.microopt.problem import Problem, Solution, state


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
    begin_s = time.perf_counter()
    peak = problem.with_traffic(lambda traffic: traffic.at_peak())
    u, evaluations, trace = _train(peak, rng, options or Options())
    found = state(
        problem, u, solver="cadrl", time_s=time.perf_counter() - begin_s, evaluations=evaluations, trace=trace
    )
    return replace(found, solver="cadrl")


def cadrl_plus(problem: Problem, rng: np.random.Generator, options: Options | None = None) -> Solution:
    """With the distribution of the traffic."""
    begin_s = time.perf_counter()
    u, evaluations, trace = _train(problem, rng, options or Options())
    return state(
        problem, u, solver="cadrl_plus", time_s=time.perf_counter() - begin_s, evaluations=evaluations, trace=trace
    )


class _Policy(nn.Module):
    """Independent normals around a mean in [0, 1]; log standard deviation independent of the state."""

    def __init__(self, inputs: int, actions: int, options: Options) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, options.width), nn.Tanh(), nn.Linear(options.width, options.width), nn.Tanh()
        )
        self.head = nn.Linear(options.width, actions)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.fill_(math.log(options.start / (1 - options.start)))
        self.log_std = nn.Parameter(torch.full((actions,), options.start_log_std))

    def forward(self, observed: Tensor) -> torch.distributions.Normal:
        mean = torch.sigmoid(self.head(self.body(observed)))
        return torch.distributions.Normal(mean, self.log_std.clamp(-5, 0).exp(), validate_args=False)


def _train(problem: Problem, rng: np.random.Generator, options: Options) -> tuple[Tensor, int, list[dict[str, Any]]]:
    begin_s = time.perf_counter()
    shape = problem.low.shape
    low, high = problem.low.reshape(-1), problem.high.reshape(-1)
    observed = _observation(problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        policy = _Policy(observed.numel(), low.numel(), options)
        critic = nn.Sequential(nn.Linear(observed.numel(), options.width), nn.Tanh(), nn.Linear(options.width, 1))
        cost_critic = nn.Sequential(
            nn.Linear(observed.numel(), options.width), nn.Tanh(), nn.Linear(options.width, len(problem.slices))
        )
    actor_step = torch.optim.Adam(policy.parameters(), lr=options.rate)
    critic_step = torch.optim.Adam([*critic.parameters(), *cost_critic.parameters()], lr=options.critic_rate)
    best: Tensor | None = None
    fallback = _placed(torch.full_like(low, options.start), low, high, shape)
    least = math.inf
    evaluations = 0
    trace: list[dict[str, Any]] = []
    for number in range(options.iterations):
        fraction = number / max(1, options.iterations - 1)
        with torch.no_grad():
            # Exploration is annealed: with a wide policy the barrier keeps the mean far inside.
            policy.log_std.clamp_(max=options.start_log_std + fraction * (options.end_log_std - options.start_log_std))
            distribution = policy(observed)
            noise = torch.tensor(rng.standard_normal((options.batch, low.numel())), dtype=torch.float32)
            action = distribution.mean + noise * distribution.stddev
            before = distribution.log_prob(action).sum(-1)
            u = (low + action.clamp(0, 1) * (high - low)).reshape(-1, *shape)
            beta = _drawn_beta(problem, u, options.slots, rng)
            over = (u.sum(-2) - 1).clamp_min(0).sum(-1)
            # Outside the capacities an allocation cannot be carried out: all its users count as degraded.
            beta = torch.where((over > 0).unsqueeze(-1), torch.ones_like(beta), beta)
            reward = -problem.cost(u)
            gain = reward - critic(observed)
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            worse = beta - cost_critic(observed)
            mean_beta = beta.mean(0)
        evaluations += options.batch
        for _ in range(options.epochs):
            distribution = policy(observed)
            ratio = (distribution.log_prob(action).sum(-1) - before).exp()
            clipped = torch.minimum(ratio * gain, ratio.clamp(1 - options.clip, 1 + options.clip) * gain).mean()
            # J_C of the new policy, by importance sampling on the batch of the old one.
            predicted = mean_beta + ((ratio - 1).unsqueeze(-1) * worse).mean(0)
            slack = problem.beta_thresh - predicted
            if bool((slack > 0).all()):
                loss = -clipped - slack.log().sum() / options.t
            else:
                loss = (-slack).clamp_min(0).sum() * 10
            actor_step.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            actor_step.step()
            error = ((critic(observed) - reward.unsqueeze(-1)) ** 2).mean()
            error = error + ((cost_critic(observed) - beta) ** 2).mean()
            critic_step.zero_grad()
            error.backward()
            critic_step.step()
        with torch.no_grad():
            mean = _placed(policy(observed).mean, low, high, shape)
            expected = problem.expected_beta(mean.unsqueeze(0))[0]
            within = bool(problem.within(mean.unsqueeze(0))[0])
        evaluations += 1
        if within and bool((expected <= problem.beta_thresh * (1 - 1e-4)).all()):
            best = mean
        excess = float((expected - problem.beta_thresh).amax()) + (0.0 if within else 1.0)
        if excess < least:
            least, fallback = excess, mean
        trace.append(
            {
                "iteration": number,
                "time_s": time.perf_counter() - begin_s,
                "evaluations": evaluations,
                "cost": None if best is None else float(problem.cost(best.unsqueeze(0))[0]),
                "mean_beta": float(mean_beta.mean()),
            }
        )
    return best if best is not None else fallback, evaluations, trace


def _placed(unit: Tensor, low: Tensor, high: Tensor, shape: torch.Size) -> Tensor:
    return (low + unit.clamp(0, 1) * (high - low)).reshape(shape)


def _observation(problem: Problem) -> Tensor:
    """Deciles of the traffic of every slice as parts of the most users that its model has seen."""
    parts = [
        torch.tensor(demand.traffic.thinned(10).values / demand.model.traffic_range[1], dtype=torch.float32)
        for demand in problem.slices
    ]
    return torch.cat(parts)


def _drawn_beta(problem: Problem, u: Tensor, slots: int, rng: np.random.Generator) -> Tensor:
    """beta of one interval of ``slots`` slots per allocation, (B, S): what an environment would show."""
    found = []
    for s, demand in enumerate(problem.slices):
        values, weights = demand.traffic.values, demand.traffic.weights
        thin = demand.traffic.thinned(24) if values.size > 24 else demand.traffic
        values, weights = thin.values, thin.weights
        users = torch.tensor(values, dtype=torch.float32)
        chance = demand.components(problem.natural(u[:, s]), users).cdf(demand.threshold)
        picked = torch.tensor(rng.choice(values.size, (u.shape[0], slots), p=weights))
        x = users[picked]
        hit = torch.tensor(rng.random((u.shape[0], slots)), dtype=torch.float32) < chance.gather(1, picked)
        found.append((x * hit).sum(-1) / x.sum(-1))
    return torch.stack(found, dim=-1)
