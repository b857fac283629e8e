"""KPIs of computing, transport and links, read from control groups, shapers and interfaces."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from topologies.model import Host, Link, Node, Partition, Switch
from twin.emulation import programs as specs
from twin.emulation.cgroups import Cgroup
from twin.emulation.computing import Computing
from twin.emulation.meter import Deltas
from twin.emulation.network import Network
from twin.emulation.shaping import ShapingError
from twin.types import Kpi

if TYPE_CHECKING:
    from twin.emulation.guest_meter import GuestMeter


class Gauges:
    """Reads a :class:`Network`; rates are over the time since the last reading."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._deltas = Deltas()
        self._guests: GuestMeter | None = None
        if network.guests is not None:
            from twin.emulation.guest_meter import GuestMeter

            self._guests = GuestMeter(network.guests)

    def kpis(self, time_s: float, span_s: float) -> list[Kpi]:
        """Computing, transport and link KPIs of an interval."""
        gnbs: dict[str, list[Computing]] = defaultdict(list)
        parts: dict[str, Computing] = {}
        for program, group in self._network.groups.items():
            gnb, _, part = program.partition(".")
            computing = Computing.read(group, group.label, self._deltas, span_s)
            gnbs[gnb].append(computing)
            parts[part] = parts[part].plus(computing) if part in parts else computing
        rows: list[Kpi] = []
        for part, computing in parts.items():
            if part != specs.SHARED:
                rows += computing.kpis(time_s, f"slice:{part}")
        for node in self._network.plan.topology.nodes:
            rows += self._node_kpis(time_s, span_s, node, gnbs[node.name])
        for slice_name, bandwidth_bps in self._network.bandwidth_bps.items():
            if slice_name in self._network.plan.slice_upfs:
                rows += self._transport_kpis(time_s, slice_name, bandwidth_bps)
        for link in self._network.plan.topology.links:
            rows += self._link_kpis(time_s, span_s, link)
        return rows

    def _node_kpis(self, time_s: float, span_s: float, node: Node, parts: Sequence[Computing]) -> list[Kpi]:
        if isinstance(node, Partition) and self._guests is not None:
            return self._guests.kpis(time_s, span_s, node.name)
        if isinstance(node, Switch | Host) or not self._network.is_up(node.name):
            return []
        total: Computing | None = None
        for member in self._network.members(node.name):
            found = Computing.read(Cgroup.of_container(self._network.container(member)), member, self._deltas, span_s)
            if member not in self._network.limited(node.name):
                found = replace(found, limit_millicores=0.0, memory_limit_bytes=0)
            total = found if total is None else total.plus(found)
        assert total is not None
        total = replace(
            total,
            used_millicores=total.used_millicores + sum(part.used_millicores for part in parts),
            memory_bytes=total.memory_bytes + sum(part.memory_bytes for part in parts),
        )
        rows = total.kpis(time_s, f"node:{node.name}")
        rows.append(Kpi(time_s, f"node:{node.name}", "memory_used_bytes", float(total.memory_bytes)))
        if total.memory_limit_bytes is not None:
            rows.append(Kpi(time_s, f"node:{node.name}", "memory_limit_bytes", float(total.memory_limit_bytes)))
        return rows

    def _transport_kpis(self, time_s: float, slice_name: str, bandwidth_bps: float | None) -> list[Kpi]:
        if bandwidth_bps is None or not self._network.plan.topology.slicing:
            return []
        backlog = 0
        for shaper, _ in self._network.slice_shapers(slice_name):
            with contextlib.suppress(ShapingError):  # the node at this end is down
                backlog += shaper.stats()[slice_name].backlog_bytes
        return [
            Kpi(time_s, f"slice:{slice_name}", "bandwidth_limit_bps", bandwidth_bps),
            Kpi(time_s, f"slice:{slice_name}", "transport_queue_bytes", float(backlog)),
        ]

    def _link_kpis(self, time_s: float, span_s: float, link: Link) -> list[Kpi]:
        entity, handle = f"link:{link.name}", self._network.link(link.name)
        ends_up = self._network.is_up(link.a) and self._network.is_up(link.b)
        rows = [Kpi(time_s, entity, "link_up", float(handle.up and ends_up))]
        if handle.spec.bandwidth_bps is not None:
            rows.append(Kpi(time_s, entity, "bandwidth_limit_bps", handle.spec.bandwidth_bps))
        if ends_up:
            counts = handle.carried_bytes()
            ways = [self._deltas((link.name, way), count) for way, count in zip(("ab", "ba"), counts, strict=True)]
            rows.append(Kpi(time_s, entity, "link_throughput_bps", max(ways) * 8 / span_s))
        return rows
