"""Max-min fair rates of backhaul flows: each on one of its paths, from an IAB node to the sink.

A path crosses the links of its band and the wired link of its donor. Where all links of a path are up, the
flow takes part in the max-min fair sharing of their capacities (:mod:`twin.flow.maxmin`, the rates of
:class:`twin.flow.batched.BatchedFlows`); over a link that is down it carries nothing. Backhaul meets no
other traffic: links with a band and the wired links of the sink carry nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from topologies.model import Topology
from twin.flow.maxmin import Array, max_min
from twin.load import Load


class Condition(Protocol):
    """What the model needs to know of a link now; None is not limited."""

    bandwidth_bps: float | None
    loss_ratio: float
    up: bool


@dataclass(frozen=True)
class Carried:
    """Means over an interval, in bit/s: offered and delivered per flow, shape (flows,), and carried per link."""

    offered_bps: Array
    throughput_bps: Array
    link_bps: Mapping[str, float]


class Backhaul:
    """The backhaul flows of a topology under a load; knows nothing of what actions changed."""

    def __init__(self, topology: Topology, load: Load) -> None:
        """ValueError when the load names a flow that the topology lacks, or one twice."""
        self.names = tuple(flow.name for flow in topology.backhaul)
        known = {flow.name: number for number, flow in enumerate(topology.backhaul)}
        self._routes = tuple(
            tuple((*path.links, topology.link_named(f"{path.nodes[-1]}-{flow.sink}").name) for path in flow.paths)
            for flow in topology.backhaul
        )
        self.links = frozenset(link for routes in self._routes for route in routes for link in route)
        steps: dict[float, dict[int, float]] = {}
        seen: set[str] = set()
        for demand in load.backhaul:
            if demand.flow not in known or demand.flow in seen:
                what = (
                    "has two demands" if demand.flow in seen else f"no such flow; flows: {', '.join(known) or 'none'}"
                )
                raise ValueError(f"backhaul flow {demand.flow}: {what}")
            seen.add(demand.flow)
            for item in demand.activities:
                # Where one activity begins as another ends, the beginning decides.
                steps.setdefault(item.stop_s, {}).setdefault(known[demand.flow], 0.0)
                steps.setdefault(item.start_s, {})[known[demand.flow]] = item.rate
        self._changes_s = np.array(sorted(steps), dtype=np.float64)
        self._demands = np.zeros((len(steps) + 1, len(self.names)))
        for row, time_s in enumerate(self._changes_s.tolist(), start=1):
            self._demands[row] = self._demands[row - 1]
            for number, rate in steps[time_s].items():
                self._demands[row, number] = rate
        self._last: tuple[object, Array] | None = None

    def carried(
        self, start_s: float, stop_s: float, path_index: Mapping[str, int], links: Mapping[str, Condition]
    ) -> Carried:
        """What flows and links carry in [``start_s``, ``stop_s``), on these paths over links in this condition."""
        offered, delivered = np.zeros(len(self.names)), np.zeros(len(self.names))
        link_bps = dict.fromkeys(self.links, 0.0)
        routes = [self._routes[number][path_index[name]] for number, name in enumerate(self.names)]
        survival = np.array([float(np.prod([1 - links[link].loss_ratio for link in route])) for route in routes])
        inside = self._changes_s[(self._changes_s > start_s) & (self._changes_s < stop_s)]
        marks = [start_s, *inside.tolist(), stop_s]
        for begin_s, end_s in itertools.pairwise(marks):
            share = (end_s - begin_s) / (stop_s - start_s)
            demand = self._demands[int(np.searchsorted(self._changes_s, begin_s, side="right"))]
            rates = self._rates(demand, routes, links)
            offered += share * demand
            delivered += share * rates * survival
            for route, rate in zip(routes, rates.tolist(), strict=True):
                for link in route:
                    link_bps[link] += share * rate
        return Carried(offered, delivered, link_bps)

    def _rates(self, demand: Array, routes: Sequence[tuple[str, ...]], links: Mapping[str, Condition]) -> Array:
        open_ = np.array([all(links[link].up for link in route) for route in routes], dtype=bool)
        limits = {
            link: limit
            for route, up in zip(routes, open_, strict=True)
            for link in route
            if up and (limit := links[link].bandwidth_bps) is not None
        }
        key = (demand.tobytes(), tuple(routes), open_.tobytes(), tuple(limits.items()))
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        rows = {link: row for row, link in enumerate(limits)}
        usage = np.zeros((len(rows), len(routes)))
        for number, route in enumerate(routes):
            if open_[number]:
                usage[[rows[link] for link in route if link in rows], number] = 1.0
        rates, _ = max_min(usage, np.array(list(limits.values()), dtype=np.float64), np.where(open_, demand, 0.0))
        self._last = (key, rates)
        return rates
