"""Searches for paths in IAB networks, step by step and many at once: the dynamics of PHaul on arrays.

NANCY D4.2 §4.2, Figure 16. Every row is one search, an episode of its own: an action gives one flow one
path, the batched flow model answers with the rates, and the reward tells whether they became better.
No learning package is needed here; the environments and the training wrap these arrays.

Actions: with F flows, action ``a`` puts flow ``a mod F`` on slot ``a div F`` (line 22). A flow has
2 K slots, Sub-6 and mmWave in turn, {sub6 1, mmwave 1, ..., sub6 K, mmwave K}; one that it has no path
for, the one that it is on, and every slot of a flow without demand are masked. Where a mask is not used,
an action without a path changes nothing and is counted in ``refused``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controllers.iab.problem import SolveError
from topologies.iab import BANDS, LOADS_BPS, IabNetwork, IabPath
from twin.flow.batched import Array, BatchedFlows

Integers = NDArray[np.int64]
# N_steps of the paper's evaluation.
EPISODE_STEPS = 300
Flags = NDArray[np.bool_]
# J is at most 2; what is nearer than this is there but for rounding.
LARGEST_OBJECTIVE = 2 - 1e-9
# Beyond every efficiency and fairness: the minus and plus infinity of lines 13 and 14, but a checkpoint holds it.
_BEYOND = 1e300


class PathSearchError(SolveError):
    """Networks, traffic or actions that do not fit a search; one line."""


@dataclass(frozen=True)
class Traffic:
    """Random demands: a flow is active with a probability, then uniform in ``low_bps``..``high_bps``."""

    low_bps: float
    high_bps: float
    active_probability: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low_bps <= self.high_bps:
            raise PathSearchError(f"demand: low must be above 0 and at most high, got {self.low_bps}..{self.high_bps}")
        if not 0 < self.active_probability <= 1:
            raise PathSearchError(f"active_probability: must be in (0, 1], got {self.active_probability}")

    @classmethod
    def of_load(cls, load: str, active_probability: float = 1.0) -> Traffic:
        """``low`` or ``high`` of NANCY D4.2 §4.2: 250 to 500 or 500 to 750 Mbit/s."""
        return cls(*LOADS_BPS[load], active_probability)

    @classmethod
    def like(cls, network: IabNetwork, rates_bps: Sequence[float] = ()) -> Traffic:
        """From the least to the largest demand of a network, or of ``rates_bps`` where there are some.

        Rounded outwards to twentieths of the largest capacity, so that most traffic matrices of one
        topology have the same range.
        """
        demands = [rate for rate in rates_bps or network.demand_bps().tolist() if rate > 0]
        if not demands:
            raise PathSearchError("demand: every flow of the network has 0 bit/s, so there is nothing to learn from")
        unit = float(network.capacity_bps().max()) / 20
        high = unit * (math.floor(max(demands) / unit) + 1)
        return cls(unit * math.floor(min(demands) / unit) or min(demands), high)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Demands in bit/s; the last axis are flows, of which at least one is active."""
        active = rng.random(shape) < self.active_probability
        one = rng.integers(0, shape[-1], shape[:-1])
        np.put_along_axis(active, one[..., None], ~active.any(axis=-1, keepdims=True) | _at(active, one), axis=-1)
        return np.where(active, rng.uniform(self.low_bps, self.high_bps, shape), 0.0)


def _at(values: Flags, place: Integers) -> Flags:
    return np.take_along_axis(values, place[..., None], axis=-1)


def most_paths(network: IabNetwork) -> int:
    """K: the most paths of a flow in one band."""
    return max((sum(path.band == band for path in flow.paths) for flow in network.flows for band in BANDS), default=0)


class PathSpace:
    """The flows and slots that a search works on, for one network.

    ``flows`` are the names of the F flows, by default those of the network; a flow that the network
    lacks has no path and no demand. ``k_paths`` is K, by default the most paths of a flow in one band.
    ``like`` is a network whose slots are kept: a path that is the same there has the same slot here, so
    that a policy finds paths where it learned them after links broke. PathSearchError where the
    network has other flows or more paths.

    ``index_of``, shape (F, 2 K), is the path index in the network of every slot, -1 for none;
    ``slot_of``, shape (F, most paths), the other way round. ``scale_bps`` is the largest capacity.
    """

    def __init__(
        self,
        network: IabNetwork,
        *,
        flows: Sequence[str] | None = None,
        k_paths: int | None = None,
        like: PathSpace | None = None,
    ) -> None:
        if not network.flows:
            raise PathSearchError("flows: the network has none, so there is nothing to decide")
        self.network = network
        self.names = tuple(flows if flows is not None else (flow.id for flow in network.flows))
        self.k_paths = k_paths or most_paths(network)
        self.flows, self.slots = len(self.names), len(BANDS) * self.k_paths
        self.actions = self.flows * self.slots
        here = {flow.id: flow for flow in network.flows}
        for name in here:
            if name not in self.names:
                raise PathSearchError(f"flow {name}: not among the {self.flows} flows of the search")
        links = dict(zip((flow.id for flow in network.flows), network.path_links(), strict=True))
        self.demand_bps = np.array([here[name].demand_bps if name in here else 0.0 for name in self.names])
        # A flow that is not there crosses no link.
        self.model = BatchedFlows(
            [links.get(name, [()]) for name in self.names], network.capacity_bps(), self.demand_bps
        )
        self.index_of = np.full((self.flows, self.slots), -1, dtype=np.int64)
        self.slot_of = np.zeros((self.flows, int(self.model.path_counts.max())), dtype=np.int64)
        known = {} if like is None else like.paths_by_slot()
        for row, name in enumerate(self.names):
            if name in here:
                self._place(row, name, here[name].paths, known.get(name, {}))
        self.present = self.index_of.max(axis=1) >= 0
        # Gamma_i = 0 for every flow (line 12): its first slot.
        self.first_slot = np.argmax(self.index_of >= 0, axis=1)
        self.first_index = np.maximum(np.take_along_axis(self.index_of, self.first_slot[:, None], 1)[:, 0], 0)
        self.scale_bps = float(self.model.capacity_bps.max())

    def _place(self, row: int, name: str, paths: Sequence[IabPath], known: dict[IabPath, int]) -> None:
        free = {band: [place for place in range(self.slots) if BANDS[place % len(BANDS)] == band] for band in BANDS}
        rest = []
        for index, path in enumerate(paths):
            if path in known and known[path] in free[path.band]:
                free[path.band].remove(known[path])
                self.index_of[row, known[path]], self.slot_of[row, index] = index, known[path]
            else:
                rest.append((index, path))
        for index, path in rest:
            if not free[path.band]:
                raise PathSearchError(f"flow {name}: more than {self.k_paths} paths in band {path.band}")
            slot = free[path.band].pop(0)
            self.index_of[row, slot], self.slot_of[row, index] = index, slot

    def paths_by_slot(self) -> dict[str, dict[IabPath, int]]:
        """The slot of every path of every flow."""
        rows = {name: row for row, name in enumerate(self.names)}
        return {
            flow.id: {path: int(self.slot_of[rows[flow.id], index]) for index, path in enumerate(flow.paths)}
            for flow in self.network.flows
        }

    @cached_property
    def allowed(self) -> Flags:
        """Whether a flow has a slot, in the order of the actions, shape (2 K, F)."""
        found: Flags = (self.index_of >= 0).T.copy()
        return found

    def decided(self, allocation: Integers) -> Integers:
        """Path indices in the order of the network's flows, shape (..., flows), of allocations here."""
        row = {name: number for number, name in enumerate(self.names)}
        return allocation[..., [row[flow.id] for flow in self.network.flows]]


class PathSearches:
    """``count`` searches side by side, over one space or, each row, over a space of its own.

    All spaces have the same F and K. Rows are started with :meth:`restart`; :meth:`step` takes one
    action per row and never restarts by itself. Public arrays, one row per search:

    - ``demand_bps``, ``rates_bps``: shape (B, F), the paper's lambda and phi
    - ``allocation``: shape (B, F), path indices; ``slots``: the same as slots, the paper's Gamma
    - ``step_count``, ``refused``: shape (B,), steps done, and those whose action named no path
    - ``efficiency``, ``fairness``, ``objective``: shape (B,), of the present allocation, in [0, 1],
      [0, 1] and [0, 2]; fairness counts the flows with demand only
    - ``best_objective``, ``best_efficiency``, ``best_fairness``, ``best_allocation``: of the best
      allocation of the episode, Gamma = 0 included
    """

    def __init__(
        self,
        spaces: PathSpace | Sequence[PathSpace],
        count: int,
        *,
        gamma: float = 1.0,
        episode_steps: int = EPISODE_STEPS,
        threads: int = 1,
    ) -> None:
        if not -1 <= gamma <= 1:
            raise PathSearchError(f"gamma: must be in -1..1, got {gamma}")
        for name, value in (("episode_steps", episode_steps), ("searches", count), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PathSearchError(f"{name}: must be a whole number, at least 1, got {value!r}")
        self.shared = isinstance(spaces, PathSpace)
        self.spaces: list[PathSpace] = [spaces] * count if isinstance(spaces, PathSpace) else list(spaces)
        if len(self.spaces) != count or len({(space.flows, space.slots) for space in self.spaces}) != 1:
            raise PathSearchError("networks: all rows must have the same number of flows and of paths per band")
        self.count, self.gamma, self.episode_steps, self.threads = count, gamma, episode_steps, threads
        self.flows, self.slots_per_flow = self.spaces[0].flows, self.spaces[0].slots
        self.actions = self.flows * self.slots_per_flow
        self._rows = np.arange(count)
        table = (count, self.flows)
        self.demand_bps, self.rates_bps = np.zeros(table), np.zeros(table)
        self.allocation, self.slots = np.zeros(table, dtype=np.int64), np.zeros(table, dtype=np.int64)
        self.best_allocation = np.zeros(table, dtype=np.int64)
        self.step_count, self.refused = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self.efficiency, self.fairness, self.objective = np.zeros(count), np.zeros(count), np.zeros(count)
        self.best_objective, self.best_efficiency, self.best_fairness = (np.zeros(count) for _ in range(3))
        # Running bounds of equation 5, line 13 and 14: least and largest, efficiency and fairness.
        self.least, self.largest = np.full((2, count), _BEYOND), np.full((2, count), -_BEYOND)
        self._stacked()

    def _stacked(self) -> None:
        space = self.spaces[0]
        self._index_of = space.index_of if self.shared else np.stack([one.index_of for one in self.spaces])
        self._scale = np.array([one.scale_bps for one in self.spaces])[:, None]

    def restart(
        self, demand_bps: Array, rows: Flags | None = None, *, spaces: Sequence[PathSpace] | None = None
    ) -> None:
        """Begin new episodes (procedure ``Init``) in ``rows``, all by default.

        ``demand_bps`` has shape (restarted rows, F), in bit/s; ``spaces`` are their new spaces.
        """
        where = self._rows if rows is None else np.flatnonzero(rows)
        if not len(where):
            return
        demand = np.asarray(demand_bps, dtype=np.float64)
        if demand.shape != (len(where), self.flows):
            raise PathSearchError(f"demand: shape must be {(len(where), self.flows)}, got {demand.shape}")
        if spaces is not None:
            self.shared = False
            for row, space in zip(where, spaces, strict=True):
                if (space.flows, space.slots) != (self.flows, self.slots_per_flow):
                    raise PathSearchError("networks: must have the same number of flows and of paths per band")
                self.spaces[row] = space
            self._stacked()
        one = self.spaces[0]
        mine = None if self.shared else [self.spaces[row] for row in where]
        present = one.present if mine is None else np.stack([space.present for space in mine])
        self.demand_bps[where] = np.where(present, demand, 0.0)
        self.allocation[where] = one.first_index if mine is None else [space.first_index for space in mine]
        self.slots[where] = one.first_slot if mine is None else [space.first_slot for space in mine]
        self.step_count[where] = self.refused[where] = 0
        self.least[:, where], self.largest[:, where] = _BEYOND, -_BEYOND
        self._offered = self.demand_bps.sum(axis=1)
        self._active = (self.demand_bps > 0).sum(axis=1)
        self._masks: Flags | None = None
        self._evaluate(where)
        self._keep(where)

    def _keep(self, rows: Integers) -> None:
        """The present allocations of some rows are the best of their episodes."""
        self.best_allocation[rows] = self.allocation[rows]
        self.best_objective[rows] = self.objective[rows]
        self.best_efficiency[rows], self.best_fairness[rows] = self.efficiency[rows], self.fairness[rows]

    def step(self, actions: NDArray[np.integer[Any]]) -> tuple[Array, Flags, Flags]:
        """One action per row, shape (B,): rewards in [-2, 2], ``terminated`` and ``truncated``, each (B,).

        The reward is that of equations 4 and 5 with the bounds of the episode so far, the present
        allocation included: r = (1 + gamma) t + (1 - gamma) f, where t and f are efficiency and
        fairness scaled to -1 (the worst of the episode) .. 1 (the best), 0 while there is only one
        value. Lines 3 to 8 update the bounds afterwards, which is the same once a value beyond them
        is cut off at the -2 and 2 of equation 4. An episode terminates when J of equation 3 is 2, which
        no allocation exceeds (the r(n) without a hat of line 18), and is truncated after
        ``episode_steps``. PathSearchError on an action out of range.
        """
        given = np.asarray(actions)
        if given.shape != (self.count,) or given.dtype.kind not in "iu":
            raise PathSearchError(f"actions: must be {self.count} whole numbers, got shape {given.shape} {given.dtype}")
        if given.min() < 0 or given.max() >= self.actions:
            wrong = given[(given < 0) | (given >= self.actions)][0]
            raise PathSearchError(f"action: must be in 0..{self.actions - 1}, got {wrong}")
        slot, flow = np.divmod(given.astype(np.int64, copy=False), self.flows)
        index = self._index_of[flow, slot] if self.shared else self._index_of[self._rows, flow, slot]
        known = index >= 0
        self.refused += ~known
        changed = np.flatnonzero(known & (self.slots[self._rows, flow] != slot))
        if len(changed):
            self.allocation[changed, flow[changed]] = index[changed]
            self.slots[changed, flow[changed]] = slot[changed]
            self._evaluate(changed)
        return self.score()

    def measure(self, demand_bps: Array, rates_bps: Array, allocation: Integers, *, begin: bool = False) -> None:
        """Take demands, rates and paths from a network that runs, not from the model; :meth:`score` follows.

        Bit/s and path indices of all rows, each of shape (B, F). With ``begin`` new episodes begin with
        what was measured.
        """
        if begin:
            self.restart(demand_bps)
        self.demand_bps[:] = demand_bps
        self._offered = self.demand_bps.sum(axis=1)
        self._active = (self.demand_bps > 0).sum(axis=1)
        self._masks = None
        self.allocation[:] = allocation
        for row, space in enumerate(self.spaces):
            self.slots[row] = space.slot_of[np.arange(self.flows), self.allocation[row]]
        self._judge(self._rows, np.asarray(rates_bps, dtype=np.float64))
        if begin:
            self._keep(self._rows)

    def score(self) -> tuple[Array, Flags, Flags]:
        """Count a step of every row and rate the present figures; see :meth:`step`."""
        self.step_count += 1
        values = np.stack((self.efficiency, self.fairness))
        np.minimum(self.least, values, out=self.least)
        np.maximum(self.largest, values, out=self.largest)
        spread = self.largest - self.least
        scaled = np.divide(2 * values - self.least - self.largest, spread, out=np.zeros_like(spread), where=spread > 0)
        np.clip(scaled, -1.0, 1.0, out=scaled)  # rounding only
        reward: Array = (1 + self.gamma) * scaled[0] + (1 - self.gamma) * scaled[1]
        better = np.flatnonzero(self.objective > self.best_objective)
        if len(better):
            self._keep(better)
        terminated = self.objective >= LARGEST_OBJECTIVE
        return reward, terminated, (self.step_count >= self.episode_steps) & ~terminated

    def observation(self) -> NDArray[np.float32]:
        """The state {lambda, phi, Gamma} of line 20, shape (B, 3 F).

        Demands and rates in units of the network's largest link capacity, slots divided by 2 K - 1.
        """
        found = np.empty((self.count, 3, self.flows), dtype=np.float32)
        np.divide(self.demand_bps, self._scale, out=found[:, 0], casting="same_kind")
        np.divide(self.rates_bps, self._scale, out=found[:, 1], casting="same_kind")
        np.multiply(self.slots, 1 / max(1, self.slots_per_flow - 1), out=found[:, 2], casting="same_kind")
        return found.reshape(self.count, -1)

    def masks(self) -> Flags:
        """Which actions change something, shape (B, 2 K F): they name another path of a flow with demand.

        All actions where none does.
        """
        if self._masks is None:
            allowed = self.spaces[0].allowed if self.shared else np.stack([space.allowed for space in self.spaces])
            self._masks = allowed & (self.demand_bps > 0)[:, None, :]
        found = self._masks.copy()
        np.put_along_axis(found, self.slots[:, None, :], False, axis=1)
        found = found.reshape(self.count, -1)
        found[~found.any(axis=1)] = True
        return found

    def _evaluate(self, rows: Integers) -> None:
        """Rates and criteria (``EffectiveRates``, equations 1 to 3) of some rows."""
        everything = len(rows) == self.count
        demand = self.demand_bps if everything else self.demand_bps[rows]
        allocation = self.allocation if everything else self.allocation[rows]
        if self.shared:
            rates = self.spaces[0].model.rates(allocation, demand_bps=demand, threads=self.threads)
        else:
            rates = np.empty_like(demand)
            for place, row in enumerate(rows):
                part = slice(place, place + 1)
                rates[part] = self.spaces[row].model.rates(allocation[part], demand_bps=demand[part])
        self._judge(rows, rates)

    def _judge(self, rows: Integers, rates: Array) -> None:
        """Take in the rates of some rows, shape (rows, F), and their criteria."""
        self.rates_bps[rows] = rates
        carried = rates.sum(axis=1)
        offered, squares = self._offered[rows], self._active[rows] * np.einsum("bf,bf->b", rates, rates)
        self.efficiency[rows] = np.divide(carried, offered, out=np.ones_like(carried), where=offered > 0)
        self.fairness[rows] = np.divide(carried**2, squares, out=np.ones_like(carried), where=squares > 0)
        self.objective[rows] = (1 + self.gamma) * self.efficiency[rows] + (1 - self.gamma) * self.fairness[rows]
