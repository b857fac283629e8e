"""What a path controller decides on, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from topologies.iab import IabNetwork
from twin.flow.batched import Array, BatchedFlows, efficiency, fairness

Allocations = NDArray[np.int64]


class SolveError(ValueError):
    """A problem that a controller cannot solve; the message says why, in one line."""


@dataclass(frozen=True)
class PathProblem:
    """Choose one path per flow such that J is large.

    J = (1 + gamma) efficiency + (1 - gamma) fairness, with ``gamma`` from -1 (fairness only) to 1
    (efficiency only); the reward of NANCY D4.2 §4.2, equation 3. 0 <= J <= 2. SolveError on a
    ``gamma`` out of range or a network without flows.
    """

    network: IabNetwork
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not -1 <= self.gamma <= 1:
            raise SolveError(f"gamma: must be in -1..1, got {self.gamma}")
        if not self.network.flows:
            raise SolveError("flows: the network has none, so there is nothing to decide")

    @cached_property
    def model(self) -> BatchedFlows:
        """The batched flow model of the network."""
        return BatchedFlows(self.network.path_links(), self.network.capacity_bps(), self.network.demand_bps())

    def objective(self, allocations: Allocations) -> Array:
        """J of every allocation, shapes (B, F) to (B,)."""
        return self.score(self.model.rates(allocations), self.model.demand_bps)

    def score(self, rates_bps: Array, demand_bps: Array) -> Array:
        """J of rates of shape (..., F), shape (...)."""
        return (1 + self.gamma) * efficiency(rates_bps, demand_bps) + (1 - self.gamma) * fairness(rates_bps)

    def random(self, count: int, rng: np.random.Generator) -> Allocations:
        """``count`` allocations, every path of a flow equally likely, shape (count, F)."""
        return rng.integers(0, self.model.path_counts, (count, self.model.flows))


@dataclass(frozen=True)
class Decision:
    """An allocation, shape (F,), and the number of allocations that were evaluated for it.

    ``efficiency_bound`` is an upper bound on the efficiency of any allocation, where the controller
    has one.
    """

    allocation: Allocations
    steps: int
    efficiency_bound: float | None = None


Solver = Callable[[PathProblem, np.random.Generator], Decision]
