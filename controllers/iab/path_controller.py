"""``iab_paths``: keeps the backhaul flows of a running IAB network on paths that a solver chooses.

At every decision it takes what the sources offered and which links are up from the last observation,
gives the solver the network that is left (links and paths that are up, flows that send), and changes the
paths of the flows that the solver moved. The other controllers of this module are the same with a solver of
their own, so that a run can name a solver as its controller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from controllers.base import ControllerContext
from controllers.iab.problem import Allocations, PathProblem, SolveError
from controllers.iab.registry import make_solver, solver_names
from controllers.params import number
from topologies.backhaul import to_network
from topologies.iab import IabNetwork
from topologies.model import BackhaulFlow
from twin.types import Action, Observation

# Without what they learned, these would learn while the network runs.
_NEED_POLICY = ("phaul",)


class PathController:
    """Chooses the path of every backhaul flow, by a named solver (twin iab solve); reroutes around broken links.

    ``solver``: a name that ``twin iab solve --controller`` knows. ``policy``: the file of a solver that
    learned. ``gamma``: from -1, fairness only, to 1, efficiency only. It decides when a link broke or came
    back, when another hand moved a flow, or when a demand changed by more than ``demand_tolerance`` of
    itself since the last decision. With ``min_gain`` flows stay on paths that work unless the objective
    (0 to 2) grows by more than this. Flows out of scope stay where they are and are reckoned with.
    """

    def __init__(
        self,
        context: ControllerContext,
        solver: str = "best",
        policy: str | None = None,
        gamma: float = 1.0,
        demand_tolerance: float = 0.05,
        min_gain: float | None = None,
    ) -> None:
        self._topology = context.topology
        self._gamma = number("gamma", gamma, -1, 1)
        self._tolerance = number("demand_tolerance", demand_tolerance, 0, 1)
        self._min_gain = None if min_gain is None else number("min_gain", min_gain, 0, 2)
        self._flows = {flow.name: flow for flow in context.topology.backhaul}
        if not self._flows:
            raise ValueError("the topology has no backhaul flows, so there is no path to choose")
        self._mine = {name for name in self._flows if f"flow:{name}" in context.scope}
        if not self._mine:
            raise ValueError("the scope has no backhaul flow; name them as flow:NAME")
        if solver not in solver_names():
            raise ValueError(f"solver must be one of {', '.join(solver_names())}, got {solver!r}")
        if solver in _NEED_POLICY and policy is None:
            raise ValueError(f"policy is missing: the file of what {solver} learned (twin train, --policy FILE)")
        self._solver = solver
        self._policy = None if policy is None else Path(policy)
        self._rng = np.random.default_rng(context.seed)
        self._seen: Observation | None = None
        self._basis: _Basis | None = None
        self._decided: dict[str, int] = {}
        # A policy that does not fit the topology is found here, before the run starts.
        make_solver(solver, PathProblem(to_network(context.topology), self._gamma), self._policy)

    def prepare(self) -> None:
        """Load the compiled flow model, which would take longer than a decision may."""
        problem = PathProblem(to_network(self._topology), self._gamma)
        problem.objective(np.zeros((1, problem.model.flows), dtype=np.int64))

    def observe(self, observation: Observation) -> None:
        self._seen = observation

    def act(self) -> Sequence[Action]:
        """Moves of the flows that change their path; ValueError when the solver's answer is none."""
        if self._seen is None:
            return []
        basis = _Basis(
            {name: self._seen.get(f"flow:{name}", "offered_bps", 0.0) for name in self._flows},
            frozenset(
                link.name for link in self._topology.links if self._seen.get(f"link:{link.name}", "link_up", 1.0) == 0
            ),
            {
                link.name: self._seen.get(f"link:{link.name}", "bandwidth_limit_bps", link.bandwidth_bps or math.inf)
                for link in self._topology.links
                if link.band is not None
            },
        )
        now = {
            name: int(self._seen.get(f"flow:{name}", "path_index", flow.path_index))
            for name, flow in self._flows.items()
        }
        moved = any(now[name] != index for name, index in self._decided.items())
        if self._basis is not None and not moved and self._basis.like(basis, self._tolerance):
            return []
        chosen = self._choose(basis, now)
        # Only now: a decision that failed is tried again.
        self._basis = basis
        self._decided = {name: chosen.get(name, now[name]) for name in self._mine}
        return [Action(f"flow:{name}", "path_index", index) for name, index in chosen.items() if index != now[name]]

    def _choose(self, basis: _Basis, now: Mapping[str, int]) -> dict[str, int]:
        """The path of every flow that is to have one."""
        usable = {
            name: [
                index
                for index in range(len(flow.paths))
                if (name in self._mine or index == now[name]) and not basis.down & self._links(flow, index)
            ]
            for name, flow in self._flows.items()
            if basis.offered_bps[name] > 0
        }
        usable = {name: indices for name, indices in usable.items() if indices}
        if not usable:
            return {}
        problem = PathProblem(self._network(basis, usable), self._gamma)
        decision = make_solver(self._solver, problem, self._policy)(problem, self._rng)
        allocation = _checked(
            self._solver, decision.allocation, list(usable), [len(found) for found in usable.values()]
        )
        if self._min_gain is not None and all(now[name] in indices for name, indices in usable.items()):
            stay = np.array([indices.index(now[name]) for name, indices in usable.items()])
            before, after = problem.objective(np.stack((stay, allocation)))
            if after <= before + self._min_gain:
                return {}
        return {
            name: indices[place]
            for (name, indices), place in zip(usable.items(), allocation.tolist(), strict=True)
            if name in self._mine
        }

    def _links(self, flow: BackhaulFlow, index: int) -> set[str]:
        """Names of the links of a path, the wired one of its donor included."""
        path = flow.paths[index]
        return {*path.links, self._topology.link_named(f"{path.nodes[-1]}-{flow.sink}").name}

    def _network(self, basis: _Basis, usable: Mapping[str, Sequence[int]]) -> IabNetwork:
        """What is left: links that are up, flows that send and the paths that they may take."""
        whole = to_network(self._topology, basis.offered_bps)
        links = []
        for link in whole.links:
            name = f"{link.a}-{link.b}@{link.band}"
            if name not in basis.down:
                links.append(replace(link, capacity_bps=basis.capacity_bps[name]))
        flows = [
            replace(flow, paths=tuple(flow.paths[index] for index in usable[flow.id]))
            for flow in whole.flows
            if flow.id in usable
        ]
        return IabNetwork(whole.nodes, tuple(links), tuple(flows))


class _Basis:
    """What a decision rests on: offered by flow, links that are down, capacity by link."""

    def __init__(
        self, offered_bps: Mapping[str, float], down: frozenset[str], capacity_bps: Mapping[str, float]
    ) -> None:
        self.offered_bps = offered_bps
        self.down = down
        self.capacity_bps = capacity_bps

    def like(self, other: _Basis, tolerance: float) -> bool:
        """Whether nothing changed but demands, and these little."""
        return (
            self.down == other.down
            and self.capacity_bps == other.capacity_bps
            and all(
                (other.offered_bps[name] > 0) == (offered > 0)
                and abs(other.offered_bps[name] - offered) <= tolerance * offered
                for name, offered in self.offered_bps.items()
            )
        )


def _checked(solver: str, found: Allocations, names: Sequence[str], counts: Sequence[int]) -> Allocations:
    """The allocation, or SolveError that names the first flow whose path index is none."""
    array = np.asarray(found)
    if array.shape != (len(names),):
        raise SolveError(f"solver {solver}: must give {len(names)} path indices, got shape {array.shape}")
    for name, count, value in zip(names, counts, array.tolist(), strict=True):
        if not isinstance(value, int) or not 0 <= value < count:
            raise SolveError(f"solver {solver}: flow {name}: path index must be in 0..{count - 1}, got {value}")
    return array


class _Named(PathController):
    """A path controller whose solver is its name."""

    solver: ClassVar[str]

    def __init__(
        self,
        context: ControllerContext,
        policy: str | None = None,
        gamma: float = 1.0,
        demand_tolerance: float = 0.05,
        min_gain: float | None = None,
    ) -> None:
        super().__init__(context, self.solver, policy, gamma, demand_tolerance, min_gain)


class SubsetSum(_Named):
    """Paths of backhaul flows, greedily by falling demand: a baseline of NANCY D4.2 §4.2."""

    solver = "subset_sum"


class Random(_Named):
    """Paths of backhaul flows by lot: a baseline of NANCY D4.2 §4.2."""

    solver = "random"


class BruteForce(_Named):
    """Paths of backhaul flows, the best of all allocations; small networks only."""

    solver = "brute_force"


class Optimal(_Named):
    """Paths of backhaul flows by a mixed-integer program."""

    solver = "optimal"


class LocalSearch(_Named):
    """Paths of backhaul flows by local search from a rounded linear program."""

    solver = "local_search"


class Best(_Named):
    """Paths of backhaul flows by the strongest solver that decides in a fraction of a second."""

    solver = "best"


class Phaul(_Named):
    """Paths of backhaul flows by PHaul, the learned search of NANCY D4.2 §4.2; needs policy (twin train)."""

    solver = "phaul"


class PriorSearch(_Named):
    """Paths of backhaul flows by local search with a learned prior over paths, for any topology."""

    solver = "prior_search"
