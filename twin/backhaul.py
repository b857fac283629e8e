"""What backhaul flows should have carried, and how well all of them fared: the same for every fidelity.

The prediction is that of the flow model for the demands of the load, the paths that the flows were put on
and the links as actions left them; a backend contributes what it measured. Efficiency and fairness are
equations 1 and 2 of NANCY D4.2 §4.2, over the flows that offered something::

    efficiency = sum_f x_f / sum_f d_f            fairness = (sum_f x_f)^2 / (F sum_f x_f^2)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from topologies.model import Topology
from twin.flow.backhaul import Backhaul
from twin.flow.batched import efficiency, fairness
from twin.load import Load
from twin.types import Kpi, Observation, Outcome

DERIVED = (
    "path_index",
    "predicted_throughput_bps",
    "backhaul_efficiency",
    "backhaul_fairness",
    "link_utilisation_ratio",
)


@dataclass
class _Link:
    bandwidth_bps: float | None
    loss_ratio: float
    up: bool = True


class BackhaulMonitor:
    """Follows paths and links through one run and derives the KPIs of :data:`DERIVED`."""

    def __init__(self, topology: Topology, load: Load) -> None:
        """ValueError when the load does not fit the topology."""
        self._model = Backhaul(topology, load)
        self._path_index = {flow.name: flow.path_index for flow in topology.backhaul}
        self._links = {link.name: _Link(link.bandwidth_bps, link.loss_ratio) for link in topology.links}
        self._banded = tuple(link.name for link in topology.links if link.band is not None)
        self._time_s = 0.0

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """Take in what became of actions; those that were refused changed nothing."""
        for outcome in outcomes:
            action = outcome.action
            scope, _, name = action.entity.partition(":")
            if not outcome.applied or name not in (self._links if scope == "link" else self._path_index):
                continue
            match scope, action.knob:
                case "flow", "path_index":
                    self._path_index[name] = int(float(action.value))
                case "link", "link_state":
                    self._links[name].up = action.value == "up"
                case "link", "bandwidth_mbps":
                    self._links[name].bandwidth_bps = float(action.value) * 1e6
                case "link", "loss_ratio":
                    self._links[name].loss_ratio = float(action.value)

    def derive(self, observation: Observation) -> list[Kpi]:
        """KPIs of the interval that ends with ``observation``; none without backhaul flows.

        Efficiency and fairness are of what was measured: absent while nothing is offered, fairness also
        while nothing arrives.
        """
        start_s, time_s = self._time_s, observation.time_s
        self._time_s = time_s
        if not self._path_index:
            return []
        carried = self._model.carried(start_s, time_s, self._path_index, self._links)
        kpis = []
        measured, offered = [], []
        for name, predicted in zip(self._model.names, carried.throughput_bps.tolist(), strict=True):
            entity = f"flow:{name}"
            kpis.append(Kpi(time_s, entity, "path_index", float(self._path_index[name])))
            kpis.append(Kpi(time_s, entity, "predicted_throughput_bps", predicted))
            demand = observation.get(entity, "offered_bps", 0.0)
            if demand > 0:
                offered.append(demand)
                measured.append(observation.get(entity, "throughput_bps", 0.0))
        for link in self._banded:
            limit, entity = self._links[link].bandwidth_bps, f"link:{link}"
            if limit:
                rate = observation.get(entity, "link_throughput_bps", 0.0)
                kpis.append(Kpi(time_s, entity, "link_utilisation_ratio", rate / limit))
        if offered:
            rates = np.array(measured)
            kpis.append(Kpi(time_s, "run", "backhaul_efficiency", float(efficiency(rates, np.array(offered)))))
            if rates.any():
                kpis.append(Kpi(time_s, "run", "backhaul_fairness", float(fairness(rates))))
        return kpis
