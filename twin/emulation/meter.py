"""From the counters of programs, cgroups and links to KPIs, one interval at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twin.emulation.dataplane import histogram
from twin.emulation.plan import Plan
from twin.load import Load
from twin.types import Kpi

RANKS = (50, 95, 99)
Stats = Mapping[str, Any]


class Deltas:
    """Growth of cumulative counters between two readings; a smaller value means a restart at 0."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], float] = {}

    def __call__(self, key: tuple[str, ...], value: float) -> float:
        last = self._last.get(key, 0.0)
        self._last[key] = value
        return value - last if value >= last else value


@dataclass
class _Way:
    """One direction of one entity in one interval."""

    bytes: float = 0.0
    offered_bytes: float = 0.0
    packets: float = 0.0
    lost: float = 0.0
    sent: float = 0.0
    delays: list[Stats] = field(default_factory=list)
    jitters_us: list[float] = field(default_factory=list)
    gap_us: float = 0.0

    def add(self, other: _Way) -> None:
        self.bytes += other.bytes
        self.offered_bytes += other.offered_bytes
        self.packets += other.packets
        self.lost += other.lost
        self.sent += other.sent
        self.delays += other.delays
        self.jitters_us += other.jitters_us
        self.gap_us = max(self.gap_us, other.gap_us)


@dataclass
class _Tally:
    """What one UE or slice did in one interval."""

    ways: dict[str, _Way] = field(default_factory=lambda: {"dl": _Way(), "ul": _Way()})
    rtts: list[Stats] = field(default_factory=list)
    responses: list[Stats] = field(default_factory=list)
    requests: float = 0.0
    failures: float = 0.0
    has_requests: bool = False

    def add(self, other: _Tally) -> None:
        for name, way in self.ways.items():
            way.add(other.ways[name])
        self.rtts += other.rtts
        self.responses += other.responses
        self.requests += other.requests
        self.failures += other.failures
        self.has_requests = self.has_requests or other.has_requests


@dataclass(frozen=True)
class Readings:
    """What was read at the end of an interval; keyed by node or program name, absent when it is down."""

    ue: Mapping[str, Stats]
    traffic: Mapping[str, Stats]
    gnb: Mapping[str, Stats]
    upf: Mapping[str, Stats]
    app: Mapping[str, Stats]


class UserPlaneMeter:
    """KPIs of UEs, slices and applications from the programs' statistics.

    Delays come from time stamps in the packets (one host, one clock). Throughput of a UE is counted at
    the far end of the network: downlink at the UE's TUN, uplink where the UPF hands over to N6.
    """

    def __init__(self, plan: Plan, load: Load) -> None:
        self._plan = plan
        self._flows = {flow.name: flow for flow in load.flows}
        paced = [flow for flow in load.flows if flow.service != "request"]
        self._offers = {
            (entity, flow.direction) for flow in paced for entity in (f"ue:{flow.ue}", f"slice:{flow.slice}")
        }
        self._deltas = Deltas()
        self._blackout: dict[str, float] = defaultdict(float)
        self._owed_slots: dict[str, float] = defaultdict(float)

    def kpis(self, time_s: float, span_s: float, readings: Readings, active: Mapping[str, float]) -> list[Kpi]:
        """All user plane KPIs of an interval of ``span_s`` that ended at ``time_s``."""
        tallies = self._tallies(readings)
        cqis = {
            ue: float(row["cqi"])
            for stats in readings.gnb.values()
            for ue, row in stats["ues"].items()
            if row.get("cqi") is not None and row["attached"]
        }
        rows: list[Kpi] = []
        slices: dict[str, _Tally] = {name: _Tally() for name in self._plan.slice_upfs}
        for ue in self._plan.ues.values():
            tally = tallies[ue.id]
            slices[ue.slice].add(tally)
            rows += self._tally_kpis(time_s, span_s, f"ue:{ue.id}", tally)
            if ue.id in cqis:
                rows.append(Kpi(time_s, f"ue:{ue.id}", "cqi", cqis[ue.id]))
        for name, tally in slices.items():
            entity = f"slice:{name}"
            rows += self._tally_kpis(time_s, span_s, entity, tally)
            rows.append(Kpi(time_s, entity, "active_ues", active.get(name, 0.0)))
            rows += self._gnb_kpis(time_s, span_s, name, readings.gnb)
        return rows + self._app_kpis(time_s, span_s, readings)

    def _tallies(self, readings: Readings) -> dict[str, _Tally]:
        delta = self._deltas
        tallies = {ue: _Tally() for ue in self._plan.ues}
        for group, stats in readings.ue.items():
            for ue, row in stats["ues"].items():
                tallies[ue].ways["dl"].bytes = delta(("ue", group, ue), row["dl_bytes"])
        for upf, stats in readings.upf.items():
            for ue, row in stats["ues"].items():
                if ue in tallies:
                    tallies[ue].ways["ul"].bytes = delta(("upf", upf, ue), row["ul_bytes"])
        sent = self._sent_by_apps(readings.app)
        for stats in readings.traffic.values():
            for name, row in stats["flows"].items():
                flow = self._flows.get(name)
                if flow is None:  # a probe of the bring-up
                    continue
                tally = tallies[flow.ue]
                tally.rtts.append(row["rtt"])
                if flow.service == "stream":
                    self._receive(tally.ways["dl"], name, row, *sent.get(name, (0.0, 0.0)))
                elif flow.service == "telemetry":
                    way = tally.ways["ul"]
                    way.offered_bytes += delta(("tx", name), row["tx_bytes"])
                    self._receive_telemetry(way, name, row, readings.app.get(flow.app))
                else:
                    tally.has_requests = True
                    tally.requests += delta(("requests", name), row["requests"])
                    tally.failures += delta(("failures", name), row["failures"])
                    tally.responses.append(row["response"])
        return tallies

    def _sent_by_apps(self, apps: Mapping[str, Stats]) -> dict[str, tuple[float, float]]:
        """Flow -> (bytes, packets) that a stream server sent in the interval."""
        return {
            name: (self._deltas(("app tx", name), row["tx_bytes"]), self._deltas(("app txp", name), row["tx_packets"]))
            for stats in apps.values()
            for name, row in stats.get("flows", {}).items()
            if "tx_bytes" in row
        }

    def _receive(self, way: _Way, name: str, row: Stats, sent_bytes: float, sent_packets: float) -> None:
        delta = self._deltas
        received, lost = delta(("rx", name), row["rx_packets"]), delta(("lost", name), row["lost_packets"])
        if received == 0 and sent_packets > 0 and row["rx_packets"] > 0:
            # Gaps show only when packets come again; until then all that was sent counts as lost, once.
            lost = sent_packets
            self._blackout[name] += sent_packets
        else:
            counted = min(lost, self._blackout[name])
            self._blackout[name] = 0.0
            lost -= counted
        way.offered_bytes += sent_bytes
        way.packets += received
        way.lost += lost
        way.sent += sent_packets
        way.delays.append(row["delay"])
        way.gap_us = max(way.gap_us, row["gap_us"])
        if received:
            way.jitters_us.append(row["jitter_us"])

    def _receive_telemetry(self, way: _Way, name: str, row: Stats, sink: Stats | None) -> None:
        sent = self._deltas(("txp", name), row["tx_packets"])
        seen = (sink or {}).get("flows", {}).get(name)
        if seen is not None:
            self._receive(way, name, seen, 0.0, sent)

    def _tally_kpis(self, time_s: float, span_s: float, entity: str, tally: _Tally) -> list[Kpi]:
        rows = []

        def put(name: str, value: float) -> None:
            rows.append(Kpi(time_s, entity, name, value))

        for direction, way in tally.ways.items():
            put(f"throughput_{direction}_bps", way.bytes * 8 / span_s)
            if (entity, direction) in self._offers:
                put(f"offered_{direction}_bps", way.offered_bytes * 8 / span_s)
            if way.packets + way.lost > 0:
                put(f"loss_{direction}_ratio", way.lost / (way.packets + way.lost))
            if way.jitters_us:
                put(f"jitter_{direction}_s", sum(way.jitters_us) / len(way.jitters_us) / 1e6)
            rows.extend(_percentiles(time_s, entity, f"delay_{direction}", way.delays))
        if tally.ways["dl"].gap_us:
            put("stream_gap_s", tally.ways["dl"].gap_us / 1e6)
        rows.extend(_percentiles(time_s, entity, "rtt", tally.rtts))
        if tally.has_requests:
            put("requests_per_s", tally.requests / span_s)
            put("request_failures_per_s", tally.failures / span_s)
            rows.extend(_percentiles(time_s, entity, "response", tally.responses))
        return rows

    def _gnb_kpis(self, time_s: float, span_s: float, slice_name: str, gnbs: Mapping[str, Stats]) -> list[Kpi]:
        delta = self._deltas
        total: dict[str, float] = defaultdict(float)
        attached = queue = share = 0.0
        for program, stats in gnbs.items():
            row = stats["slices"].get(slice_name)
            if row is None:
                continue
            for name in (
                "prb_used_dl", "prb_used_ul", "prb_available", "dl_drops", "ul_drops",
                "slots", "missed_slots", "attach_count", "attach_time_us_sum",
            ):  # fmt: skip
                total[name] += delta((program, slice_name, name), row[name])
            attached += row["attached"]
            queue += row["dl_queue_bytes"] + row["ul_queue_bytes"]
            share = row["prb_share"]
        values = {
            "attached_ues": attached,
            "queue_bytes": queue,
            "prb_share": share,
            "queue_drops_per_s": (total["dl_drops"] + total["ul_drops"]) / span_s,
        }
        if total["prb_available"] > 0:
            values["prb_used_dl_ratio"] = total["prb_used_dl"] / total["prb_available"]
            values["prb_used_ul_ratio"] = total["prb_used_ul"] / total["prb_available"]
        if total["slots"] > 0:
            # A starved gNB counts what it missed when it runs again, perhaps an interval later.
            owed = self._owed_slots[slice_name] + total["missed_slots"]
            missed = min(owed, total["slots"])
            self._owed_slots[slice_name] = owed - missed
            values["missed_slots_ratio"] = missed / total["slots"]
        if total["attach_count"] > 0:
            values["attach_time_s"] = total["attach_time_us_sum"] / total["attach_count"] / 1e6
        return [Kpi(time_s, f"slice:{slice_name}", name, value) for name, value in values.items()]

    def _app_kpis(self, time_s: float, span_s: float, readings: Readings) -> list[Kpi]:
        rows = []
        for app, stats in readings.app.items():
            if "replicas" not in stats:
                continue
            entity = f"node:{app}"
            active = sum(1 for replica in stats["replicas"].values() if replica["state"] == "active")
            rows += [
                Kpi(time_s, entity, "replicas", float(active)),
                Kpi(time_s, entity, "requests_per_s", self._deltas(("lb", app), stats["requests"]) / span_s),
                Kpi(time_s, entity, "request_failures_per_s", self._deltas(("lbf", app), stats["failures"]) / span_s),
                *_percentiles(time_s, entity, "response", [stats["response"]]),
            ]
        return rows


def _percentiles(time_s: float, entity: str, name: str, histograms: Sequence[Stats]) -> list[Kpi]:
    merged = histogram.merge(histograms)
    rows = []
    for rank in RANKS:
        value_us = histogram.percentile(merged, rank)
        if value_us is not None:
            rows.append(Kpi(time_s, entity, f"{name}_p{rank}_s", value_us / 1e6))
    return rows
