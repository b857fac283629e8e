"""What the slices were promised and what they got: the same derivation for every fidelity.

QoS q of a slice is its throughput per active UE, summed over the directions in which its flows run
(downlink for streams, uplink for telemetry). Degradation is equation 1 of "MicroOpt: Model-driven
Slice Resource Optimization in 5G and Beyond Networks" (§III), running since the start::

    beta(t) = sum_{k<=t} x(k) 1[q(k) <= q_thresh] / sum_{k<=t} x(k)

with x the active UEs of interval k.

Latency is the 95th percentile of the one-way delay, the slower direction. Request/response traffic
has no one-way measurement; a slice with nothing else is judged by half of the round trip of its
probe packets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from topologies.model import Sla, Topology
from twin.knobs import SLA_KNOBS, refusal
from twin.load import Direction, Load
from twin.types import Action, Kpi, Observation, Outcome

DERIVED = (
    "qos_bps",
    "q_thresh_bps",
    "beta_thresh",
    "qos_degradation_ratio",
    "qos_degradation_to_thresh",
    "sla_violation_s",
)


LATENCY_KPIS = (
    "active_ues",
    "delay_dl_p95_s",
    "delay_ul_p95_s",
    "offered_dl_bps",
    "offered_ul_bps",
    "rtt_p95_s",
    "requests_per_s",
    "request_failures_per_s",
)


def latency_s(values: Mapping[str, float]) -> float | None:
    """Latency of one slice in one interval from its :data:`LATENCY_KPIS`, see above.

    Infinite when something was sent and nothing arrived, None when there was nothing to judge.
    """
    if values.get("active_ues", 1.0) <= 0:
        return None
    found = []
    for way in ("dl", "ul"):
        if f"delay_{way}_p95_s" in values:
            found.append(values[f"delay_{way}_p95_s"])
        elif values.get(f"offered_{way}_bps", 0.0) > 0:
            return math.inf
    if found:
        return max(found)
    if "rtt_p95_s" in values:
        return values["rtt_p95_s"] / 2
    if values.get("request_failures_per_s", 0.0) > 0 and values.get("requests_per_s", 0.0) <= 0:
        return math.inf
    return None


class SlaMonitor:
    """Follows the promises of all slices through one run. SLA knobs change them as it goes."""

    def __init__(self, topology: Topology, load: Load) -> None:
        self._directions: dict[str, tuple[Direction, ...]] = {}
        for slice_ in topology.slices:
            used = {flow.direction for flow in load.flows if flow.slice == slice_.name}
            self._directions[slice_.name] = tuple(way for way in ("dl", "ul") if way in used)
        self._sla = {slice_.name: slice_.sla for slice_ in topology.slices}
        self._users = dict.fromkeys(self._sla, 0.0)
        self._degraded = dict.fromkeys(self._sla, 0.0)
        self._violation_s = dict.fromkeys(self._sla, 0.0)
        self._time_s = 0.0

    def sla(self, slice_name: str) -> Sla:
        """The promises in force."""
        return self._sla[slice_name]

    def apply(self, action: Action, time_s: float) -> Outcome:
        """Carry out an action on one of the SLA knobs."""
        reason = refusal(action)
        name = action.entity.partition(":")[2]
        if reason is None and name not in self._sla:
            reason = f"no slice named {name}; slices: {', '.join(self._sla) or 'none'}"
        if reason is not None:
            return Outcome(action, applied=False, reason=reason, time_s=time_s)
        value = float(action.value)
        match action.knob:
            case "q_thresh_mbps":
                change = {"q_thresh_bps": value * 1e6}
            case "beta_thresh":
                change = {"beta_thresh": value}
            case "latency_bound_s":
                change = {"latency_bound_s": value}
            case _:
                raise ValueError(f"{action.knob} is no SLA knob; SLA knobs: {', '.join(SLA_KNOBS)}")
        self._sla[name] = replace(self._sla[name], **change)
        return Outcome(action, applied=True, time_s=time_s)

    def derive(self, observation: Observation) -> list[Kpi]:
        """The KPIs of :data:`DERIVED` after this interval.

        QoS is absent while no UE is active, thresholds that were not promised are, degradation is until a UE
        was active and without a threshold, violation is for a slice that was promised nothing.
        """
        time_s = observation.time_s
        length_s = time_s - self._time_s
        self._time_s = time_s
        kpis: list[Kpi] = []
        for name, sla in self._sla.items():
            entity = f"slice:{name}"
            active = observation.get(entity, "active_ues", 0.0)
            quality = None
            if active > 0 and self._directions[name]:
                total = sum(observation.get(entity, f"throughput_{way}_bps", 0.0) for way in self._directions[name])
                quality = total / active
                kpis.append(Kpi(time_s, entity, "qos_bps", quality))
            degraded = quality is not None and sla.q_thresh_bps is not None and quality <= sla.q_thresh_bps
            beta = None
            if sla.beta_thresh is not None:
                kpis.append(Kpi(time_s, entity, "beta_thresh", sla.beta_thresh))
            if sla.q_thresh_bps is not None:
                kpis.append(Kpi(time_s, entity, "q_thresh_bps", sla.q_thresh_bps))
                self._users[name] += active
                self._degraded[name] += active if degraded else 0.0
                if self._users[name] > 0:
                    beta = self._degraded[name] / self._users[name]
                    kpis.append(Kpi(time_s, entity, "qos_degradation_ratio", beta))
                    if sla.beta_thresh:
                        kpis.append(Kpi(time_s, entity, "qos_degradation_to_thresh", beta / sla.beta_thresh))
            if sla != Sla():
                # With a beta threshold single bad intervals are part of the promise; without one they break it.
                broken = degraded if sla.beta_thresh is None else beta is not None and beta > sla.beta_thresh
                if broken or _late(observation, entity, sla):
                    self._violation_s[name] += length_s
                kpis.append(Kpi(time_s, entity, "sla_violation_s", self._violation_s[name]))
        return kpis


def _late(observation: Observation, entity: str, sla: Sla) -> bool:
    if sla.latency_bound_s is None:
        return False
    found = {name: observation.get(entity, name, math.nan) for name in LATENCY_KPIS}
    latency = latency_s({name: value for name, value in found.items() if not math.isnan(value)})
    return latency is not None and latency > sla.latency_bound_s
