"""What a path controller decides on, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    def prepare(self) -> None:
        """Make the model now instead of with the first decision."""
        self.model.path_counts  # noqa: B018 a cached property

    def with_demand(self, demand_bps: Array) -> PathProblem:
        """The same network with another traffic matrix, shape (F,), in bit/s."""
        pairs = zip(self.network.flows, demand_bps.tolist(), strict=True)
        flows = tuple(replace(flow, demand_bps=demand) for flow, demand in pairs)
        found = PathProblem(replace(self.network, flows=flows), self.gamma)
        # Fills the cached property, since the model of another demand costs next to nothing.
        found.__dict__["model"] = self.model.with_demand(demand_bps)
        return found

    def objective(self, allocations: Allocations, demand_bps: Array | None = None) -> Array:
        """J of every allocation, shapes (B, F) to (B,); ``demand_bps`` of shape (B, F) instead of the network's."""
        offered = self.model.demand_bps if demand_bps is None else demand_bps
        return self.score(self.model.rates(allocations, demand_bps=demand_bps), offered)

    def score(self, rates_bps: Array, demand_bps: Array, flows: ArrayLike | None = None) -> Array:
        """J of rates of shape (..., F), shape (...); ``flows`` is F where rates are padded with zeros."""
        # What has no weight is not computed: half of the searches do without one of the two.
        if self.gamma == 1:
            return 2 * efficiency(rates_bps, demand_bps)
        if self.gamma == -1:
            return 2 * fairness(rates_bps, flows)
        return (1 + self.gamma) * efficiency(rates_bps, demand_bps) + (1 - self.gamma) * fairness(rates_bps, flows)

    def random(self, count: int, rng: np.random.Generator) -> Allocations:
        """``count`` allocations, every path of a flow equally likely, shape (count, F)."""
        drawn = rng.random((count, self.model.flows)) * self.model.path_counts
        return drawn.astype(np.int64)


@dataclass(frozen=True)
class Decision:
    """An allocation, shape (F,), and the number of allocations that were evaluated for it.

    Where the controller has them: ``efficiency_bound`` is an upper bound on the efficiency of any
    allocation, ``objective_bound`` one on J.
    """

    allocation: Allocations
    steps: int
    efficiency_bound: float | None = None
    objective_bound: float | None = None


Solver = Callable[[PathProblem, np.random.Generator], Decision]
# Decides the traffic matrices of one network side by side, demands of shape (M, F) in bit/s and a
# stream for each; the decisions are those of the Solver of the same name, one by one.
ManySolver = Callable[[PathProblem, Array, Sequence[np.random.Generator]], list[Decision]]
