"""``microopt``: primal-dual gradient descent through the slice model, batched over many starts.

Source: "MicroOpt: Model-Driven Slice Resource Optimization in 5G and Beyond Networks", section IV-B, Algorithm 1.
Taken as printed: the Lagrangian (equation 6), reparameterised QoS (equation 5), a sigmoid instead of the
indicator in the inner loop, the indicator itself in the outer one, starts by random sampling. Departures, and why:

- The surrogate is sigmoid(rho (q_thresh - q)). Printed is rho (q - q_thresh), which counts the users who are served
  well.
- rho grows from 4 to 40 per standard deviation of the QoS. The printed 10^4 saturates: hardly any sample then
  has a gradient.
- The answer is the cheapest feasible point. Printed is "the best LB": the Lagrangian of a point that may be
  infeasible.
- Normal draws are taken at equal steps of probability and kept for the whole solve (common random numbers), so
  that the sampled Lagrangian is a fixed smooth function and sampling adds no noise to its minimum.
- All starts descend at once, each with multipliers of its own; a start is kept between outer iterations instead
  of drawn anew.
- Whether a point is feasible is asked of the closed form of E[beta], not of samples: it is what the strict
  definition tends to with ever more samples, and needs none. Multipliers follow the samples, as in the paper.
- Where the descent finds nothing feasible, shares of the capacities are drawn and refined for the least violation.
- Two steps end the search: points are moved to the boundary of the feasible set along their gradient, then along
  the boundary to lower cost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from controllers.microopt.problem import CHECK_VALUES, OPTIMISER_VALUES, Problem, Solution, state
from controllers.microopt.slice_model import QosDistribution

GRADIENT_VALUES = 16
"""Traffic values in the inner loop: enough for a direction; feasibility is judged on more."""
RESTORE_DRAWN, RESTORE_KEPT, RESTORE_ROUNDS = 512, 16, 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """``margin``: E[beta] is kept below (1 - margin) beta_thresh, so that a check with finitely many samples holds;
    ``draws``: QoS draws per start and slice, spread over the traffic values."""

    candidates: int = 384
    starts: int = 14
    outer: int = 14
    inner: int = 6
    draws: int = 256
    rate: float = 0.04
    dual_rate: float = 4.0
    capacity_rate: float = 2.0
    rho: tuple[float, float] = (4.0, 40.0)
    margin: float = 0.01
    polish: int = 5


def solve(
    problem: Problem, rng: np.random.Generator, *, options: Options | None = None, warm: Tensor | None = None
) -> Solution:
    """The cheapest feasible allocation found, or the least bad one marked infeasible.

    ``warm`` is an allocation (S, K) in normalised units, such as that of the last interval: one start more.
    """
    return _Search(problem, rng, options or Options(), warm).solution()


def microopt_sigmas(problem: Problem, rng: np.random.Generator, sigmas: float, name: str) -> Solution:
    """Section VI-C: optimise a scalar model that predicts the mean less ``sigmas`` standard deviations.

    What is returned is judged by the whole distribution: with the mean alone half of the users are degraded.
    """
    scalar = replace(problem, slices=tuple(replace(demand, sigmas=sigmas) for demand in problem.slices))
    return replace(_Search(scalar, rng, Options(), None).solution(), solver=name)


class _Search:
    """One solve: the state of Algorithm 1 for all starts."""

    def __init__(self, problem: Problem, rng: np.random.Generator, options: Options, warm: Tensor | None) -> None:
        self.begin_s = time.perf_counter()
        self.problem, self.rng, self.options = problem, rng, options
        self.bound = problem.beta_thresh * (1 - options.margin)
        self.evaluations = 0
        self.best: Tensor | None = None
        self.best_cost = float("inf")
        self.least_bad: tuple[float, float, Tensor] | None = None
        self.trace: list[dict[str, Any]] = []
        self.values = min(GRADIENT_VALUES, max(demand.traffic.values.size for demand in problem.slices))
        self.draws = max(8, options.draws // self.values)
        steps = torch.tensor(ndtri((np.arange(self.draws) + 0.5) / self.draws), dtype=torch.float32)
        self.normal = steps
        self.scale: list[float] = []
        self.u = self._starts(warm)
        self.multiplier = torch.ones(self.u.shape[0], len(problem.slices))
        self.prices = torch.zeros(self.u.shape[0], len(problem.resources))

    def solution(self) -> Solution:
        self._descend(self.options.outer)
        if self.best is None:
            # Nearly or not at all feasible: the margin is given up, and the cost for now.
            self.bound = self.problem.beta_thresh * (1 - 2e-4)
            self._restore()
        if self.best is not None:
            self._polish()
            self._keep_fine()
        self._note(len(self.trace), self.options.rho[1], self.u)
        return state(
            self.problem,
            self.best if self.best is not None else self._least_bad(),
            solver="microopt",
            time_s=time.perf_counter() - self.begin_s,
            evaluations=self.evaluations,
            trace=self.trace,
        )

    def _descend(self, outers: int) -> None:
        """Algorithm 1: inner steps of Adam on all starts, then multipliers; at the end, the boundary."""
        options = self.options
        first, second = torch.zeros_like(self.u), torch.zeros_like(self.u)
        step = 0
        for outer in range(outers):
            fraction = outer / max(1, outers - 1)
            rho = options.rho[0] * (options.rho[1] / options.rho[0]) ** fraction
            rate = options.rate * 0.1**fraction
            for _ in range(options.inner):
                step += 1
                gradient = self._gradient(rho)
                # Adam, with the projection of line 5 of Algorithm 1 onto the box.
                first.mul_(0.8).add_(gradient, alpha=0.2)
                second.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
                move = (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
                self.u = self._box(self.u - rate * move)
            self._dual_step(len(self.trace), rho)
        self._record(self._to_boundary(self.u, self.prices))

    def _restore(self) -> None:
        """Look for the point that misses its thresholds by the least, whatever it costs, until none is missed.

        Slices that share capacities are hard to make feasible by descent: where one has too little for anybody, E[beta]
        is flat. Shares of the capacities are drawn instead, and the best of them changed by ever less.
        """
        problem, rng = self.problem, self.rng
        shape = problem.low.shape

        def drawn(count: int) -> Tensor:
            share = torch.tensor(rng.dirichlet(np.ones(shape[0]), (count, shape[1])), dtype=torch.float32)
            # Mostly all that there is, since who gets more is seldom served worse.
            part = torch.tensor(rng.uniform(0.5, 1.5, (count, 1, shape[1])), dtype=torch.float32).clamp_max(1)
            return self._fitted(problem.low + share.transpose(1, 2) * part * (1 - problem.low.sum(0)))

        known = [self.u, problem.everything.unsqueeze(0)]
        if self.least_bad is not None:
            known.append(self.least_bad[2].unsqueeze(0))
        tried = torch.cat((self._fitted(torch.cat(known)), drawn(RESTORE_DRAWN)))
        reach = 0.5
        for _ in range(RESTORE_ROUNDS):
            beta = self._beta(tried)
            self._record(tried, beta)
            if self.best is not None:
                return
            excess = beta - self.bound
            order = torch.argsort(excess.amax(-1) + 0.05 * excess.clamp_min(0).mean(-1))[:RESTORE_KEPT]
            kept = tried[order]
            noise = torch.tensor(rng.standard_normal((RESTORE_KEPT * 16, *shape)), dtype=torch.float32)
            base = kept.repeat(-(-noise.shape[0] // kept.shape[0]), 1, 1)[: noise.shape[0]]
            moved = problem.low + (base - problem.low).clamp_min(1e-4) * (reach * noise).exp()
            tried = torch.cat((kept, self._fitted(moved)))
            reach *= 0.75

    def _fitted(self, u: Tensor) -> Tensor:
        """Points scaled into the box, and down to the capacities where they exceed them."""
        low = self.problem.low
        above = self._box(u) - low
        room = (1 - low.sum(0)).clamp_min(0) / above.sum(-2, keepdim=True).clamp_min(1e-9)
        return low + above * room.clamp_max(1)

    def _box(self, u: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(u, self.problem.low), self.problem.high)

    def _beta(self, u: Tensor) -> Tensor:
        self.evaluations += u.shape[0]
        with torch.no_grad():
            return self.problem.expected_beta(u)

    def _starts(self, warm: Tensor | None) -> Tensor:
        """Random points: the cheapest feasible ones, the nearly feasible ones, all of everything, and ``warm``."""
        low, high = self.problem.low, self.problem.high
        count, options = self.options.candidates, self.options
        drawn = torch.tensor(self.rng.random((count, *low.shape)), dtype=torch.float32)
        u = low + drawn * (high - low)
        u = torch.cat((u, self.problem.everything.unsqueeze(0), low.unsqueeze(0)))
        if warm is not None:
            u = torch.cat((u, self._box(warm).unsqueeze(0)))
        self._scales(u)
        beta = self._beta(u)
        self._record(u, beta)
        excess = (beta - self.bound).clamp_min(0).sum(-1) + (u.sum(-2) - 1).clamp_min(0).sum(-1)
        order = torch.argsort(excess * 10 + self.problem.cost(u))
        kept = u[order[: options.starts]]
        extra = [self.problem.everything.unsqueeze(0)] + ([self._box(warm).unsqueeze(0)] if warm is not None else [])
        return torch.cat((kept, *extra)).clone()

    def _scales(self, u: Tensor) -> None:
        """Standard deviation of each slice's QoS, the unit of rho; of a scalar model: that of its distribution."""
        for s, (demand, (users, _)) in enumerate(
            zip(self.problem.slices, self.problem.nodes(self.values), strict=True)
        ):
            with torch.no_grad():
                found = replace(demand, sigmas=None).components(self.problem.natural(u[:64, s]), users)
            self.scale.append(float(found.std().mean()))

    def _quality(self, u: Tensor, s: int) -> tuple[QosDistribution, Tensor]:
        users, share = self.problem.nodes(self.values)[s]
        return self.problem.slices[s].components(self.problem.natural(u[:, s]), users), share

    def _draw(self, found: QosDistribution) -> Tensor:
        """Equation 5, (B, X, M, N): the draws of every component, which their weights then average."""
        return found.means.unsqueeze(-1) + found.stds.unsqueeze(-1) * self.normal

    def _gradient(self, rho: float) -> Tensor:
        """Gradient of the surrogate Lagrangian with respect to every start, (B, S, K)."""
        u = self.u.detach().requires_grad_(True)
        self.evaluations += u.shape[0]
        beta = []
        for s, demand in enumerate(self.problem.slices):
            found, share = self._quality(u, s)
            soft = torch.sigmoid((demand.threshold - self._draw(found)) * (rho / self.scale[s])).mean(-1)
            beta.append((found.weights * soft).sum(-1) @ share)
        lagrangian = (
            self.problem.cost(u)
            + (self.multiplier * (torch.stack(beta, -1) - self.bound)).sum(-1)
            + (self.prices * (u.sum(-2) - 1)).sum(-1)
        )
        return torch.autograd.grad(lagrangian.sum(), u)[0]

    def _dual_step(self, outer: int, rho: float) -> None:
        """Lines 8 to 11 of Algorithm 1: multipliers by the strict definition, then the best feasible point."""
        with torch.no_grad():
            strict = []
            for s, demand in enumerate(self.problem.slices):
                found, share = self._quality(self.u, s)
                hit = (self._draw(found) <= demand.threshold).float().mean(-1)
                strict.append((found.weights * hit).sum(-1) @ share)
            excess = torch.stack(strict, -1) - self.bound
            self.multiplier = (self.multiplier + self.options.dual_rate * excess).clamp_min(0)
            over = self.u.sum(-2) - 1
            self.prices = (self.prices + self.options.capacity_rate * over).clamp_min(0)
        self._record(self.u)
        self._note(outer, rho, self.u)

    def _note(self, outer: int, rho: float, u: Tensor) -> None:
        with torch.no_grad():
            cost = self.problem.cost(u)
        self.trace.append(
            {
                "iteration": outer,
                "time_s": time.perf_counter() - self.begin_s,
                "evaluations": self.evaluations,
                "cost": None if self.best is None else self.best_cost,
                "mean_cost_of_starts": float(cost.mean()),
                "multiplier": float(self.multiplier.mean()),
                "rho": rho,
            }
        )

    def _record(self, u: Tensor, beta: Tensor | None = None) -> None:
        """Keep the cheapest feasible and the least bad of some points."""
        beta = self._beta(u) if beta is None else beta
        cost = self.problem.cost(u)
        within = self.problem.within(u)
        feasible = (beta <= self.bound).all(-1) & within
        if bool(feasible.any()):
            place = int(torch.where(feasible, cost, torch.inf).argmin())
            if float(cost[place]) < self.best_cost:
                self.best, self.best_cost = u[place].clone(), float(cost[place])
        if bool(within.any()):
            excess = torch.where(within, (beta - self.problem.beta_thresh).clamp_min(0).amax(-1), torch.inf)
            place = int((excess + 1e-6 * cost).argmin())
            least = (float(excess[place]), float(cost[place]), u[place].clone())
            if self.least_bad is None or least[:2] < self.least_bad[:2]:
                self.least_bad = least

    def _least_bad(self) -> Tensor:
        """The point of least excess; where hardly anybody is served anywhere, all of everything."""
        least = self.least_bad
        if least is None or least[0] > 1 - float(self.problem.beta_thresh.max()) - 1e-3:
            return self.problem.everything
        return least[2]

    def _slopes(self, u: Tensor) -> Tensor:
        """Gradient of the exact E[beta] of every slice with respect to its own allocation, (B, S, K)."""
        at = u.detach().requires_grad_(True)
        self.evaluations += u.shape[0]
        return torch.autograd.grad(self.problem.expected_beta(at).sum(), at)[0]

    def _to_boundary(self, u: Tensor, prices: Tensor, steps: int = 14) -> Tensor:
        """Points moved to E[beta] = bound: on the segment between a feasible end and an infeasible end.

        The ends lie along the direction in which a unit of price buys the most, and towards everything or
        nothing where that has no end. Bisection per slice; a point without ends stays. ``prices`` are
        those of the capacities, (B, K) or (1, K).
        """
        low, high = self.problem.low.expand_as(u), self.problem.high.expand_as(u)
        better = -self._slopes(u) / (self.problem.price + prices).unsqueeze(-2)
        # A flat point (all users served, or none) has no direction of its own.
        norm = better.abs().amax(-1, keepdim=True)
        direction = torch.where(norm > 1e-6, better.clamp_min(0) / norm.clamp_min(1e-12), torch.ones_like(u))
        direction = torch.where(direction.amax(-1, keepdim=True) > 0, direction, torch.ones_like(u))
        inside = (self._beta(u) <= self.bound).unsqueeze(-1)
        corner = torch.where(inside, low, high)
        along = self._box(u + torch.where(inside, -direction, direction) * 2.0)
        turned = ((self._beta(along) <= self.bound).unsqueeze(-1)) != inside
        end = torch.where(turned, along, corner)
        turned = ((self._beta(end) <= self.bound).unsqueeze(-1)) != inside
        good = torch.where(inside, u, end)
        bad = torch.where(inside, end, u)
        for _ in range(steps):
            middle = (good + bad) / 2
            fits = (self._beta(middle) <= self.bound).unsqueeze(-1)
            good, bad = torch.where(fits, middle, good), torch.where(fits, bad, middle)
        # Without an infeasible end the cheapest point of the segment is its end.
        return torch.where(turned, good, torch.where(inside, end, u))

    def _polish(self) -> None:
        """Slide the best point along the boundary of the feasible set, in ever smaller steps.

        One slice at a time, and several at once in random proportions: where a capacity binds, what one slice
        takes another one must give.
        """
        assert self.best is not None
        count = len(self.problem.slices)
        prices = self.prices.mean(0, keepdim=True)
        reach = 0.2
        for _ in range(self.options.polish):
            slope = self._slopes(self.best.unsqueeze(0))[0]
            steps = torch.cat((torch.linspace(-1, 1, 17), torch.linspace(-0.1, 0.1, 8))) * reach
            tangents = [_tangents(slope[s]) for s in range(count)]
            tries = [self.best.unsqueeze(0)]
            for s in range(count):
                for tangent in tangents[s]:
                    moved = self.best.repeat(steps.numel(), 1, 1)
                    moved[:, s] += steps.unsqueeze(-1) * tangent
                    tries.append(moved)
            if count > 1:
                moved = self.best.repeat(64, 1, 1)
                for s in range(count):
                    for tangent in tangents[s]:
                        share = torch.tensor(self.rng.uniform(-1, 1, 64), dtype=torch.float32).unsqueeze(-1)
                        moved[:, s] += share * tangent * reach
                tries.append(moved)
            self._record(self._to_boundary(self._box(torch.cat(tries)), prices, steps=10))
            reach *= 0.35 if count == 1 else 0.6

    def _keep_fine(self) -> None:
        """The optimiser saw few traffic values; where the check on many disagrees, go to its boundary."""
        assert self.best is not None
        if all(demand.traffic.values.size <= OPTIMISER_VALUES for demand in self.problem.slices):
            return
        end = torch.maximum(self.problem.everything, self.best)
        share = torch.linspace(0, 0.1, 33).reshape(-1, 1, 1)
        line = self.best + share * (end - self.best)
        allowed = self.problem.beta_thresh * (1 - 0.5 * self.options.margin)
        self.evaluations += line.shape[0]
        with torch.no_grad():
            fine = self.problem.expected_beta(line, CHECK_VALUES)
        fits = (fine <= allowed).all(-1) & self.problem.within(line)
        if bool(fits.any()):
            self.best = line[int(fits.float().argmax())]
            self.best_cost = float(self.problem.cost(self.best.unsqueeze(0))[0])


def _tangents(slope: Tensor) -> list[Tensor]:
    """Directions that keep E[beta] of a slice to first order, one per pair of resources, of unit size."""
    found = []
    for i in range(slope.numel()):
        for j in range(i + 1, slope.numel()):
            direction = torch.zeros_like(slope)
            direction[i], direction[j] = slope[j], -slope[i]
            size = direction.abs().max()
            if size > 1e-12:
                found.append(direction / size)
    return found or [torch.ones_like(slope)]
