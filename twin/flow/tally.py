"""What an interval adds up to, and the KPIs that are made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from topologies.model import App, Host, Switch
from topologies.paths import path_links
from twin.flow import constants as c
from twin.flow.fluid import Fluid, Step
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.queueing import weighted_percentiles
from twin.flow.requests import Served
from twin.load import Flow
from twin.types import Kpi

RANKS = (50, 95, 99)
_THROTTLED_LOAD = 0.999


@dataclass
class Sample:
    """Draws of one step: ``values`` of shape (rows, count), ``weights`` of shape (rows,) for each draw."""

    values: Array
    weights: Array


@dataclass
class Tally:
    """Sums over the steps of one interval."""

    network: Network
    steps: list[Step] = field(default_factory=list)
    delays: list[Sample] = field(default_factory=list)
    rtts: list[Sample] = field(default_factory=list)
    responses: list[Sample] = field(default_factory=list)
    server_times: list[Sample] = field(default_factory=list)
    jitter: list[Array] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    active: list[NDArray[np.bool_]] = field(default_factory=list)
    attached: list[dict[str, bool]] = field(default_factory=list)
    cqis: list[dict[str, int]] = field(default_factory=list)
    attaches: dict[str, list[float]] = field(default_factory=dict)

    def kpis(self, time_s: float, fluid: Fluid, backhaul_bps: Mapping[str, float]) -> tuple[Kpi, ...]:
        """All KPIs of the interval that ends at ``time_s``; ``backhaul_bps``: what links carry of backhaul flows."""
        rows = self._rows(fluid, backhaul_bps)
        return tuple(Kpi(time_s, entity, name, float(value)) for entity, name, value in rows)

    def _rows(self, fluid: Fluid, backhaul_bps: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
        net = self.network
        self._lengths = np.array([step.length_s for step in self.steps])
        self._span_s = float(self._lengths.sum())
        lanes_of_ue: dict[str, list[int]] = {ue: [] for ue in net.ues}
        for number, lane in enumerate(net.lanes):
            lanes_of_ue[lane.ue].append(number)
        self._offered = sum((step.offered_bits for step in self.steps), np.zeros(len(net.lanes)))
        self._delivered = sum((step.delivered_bits for step in self.steps), np.zeros(len(net.lanes)))
        self._dropped = sum((step.queue_drop_bits + step.lost_bits for step in self.steps), np.zeros(len(net.lanes)))
        for ue, lanes in lanes_of_ue.items():
            yield from self._traffic(f"ue:{ue}", lanes)
            weights = self._lengths * [attached[ue] for attached in self.attached]
            if weights.sum() > 0:
                yield f"ue:{ue}", "cqi", float(weights @ [cqi[ue] for cqi in self.cqis] / weights.sum())
        for number, name in enumerate(net.slices):
            lanes = [lane for ue, found in lanes_of_ue.items() if net.ues[ue].slice == name for lane in found]
            yield from self._traffic(f"slice:{name}", lanes)
            yield from self._slice(number, name, lanes, fluid)
        for name in net.nodes:
            yield from self._node(name)
        for name in net.links:
            yield from self._link(name, backhaul_bps.get(name, 0.0))
        yield "run", "clock_lag_s", 0.0

    # ---- traffic of UEs and slices

    def _traffic(self, entity: str, lanes: Sequence[int]) -> Iterator[tuple[str, str, float]]:
        net = self.network
        for way, down in (("dl", True), ("ul", False)):
            chosen = [lane for lane in lanes if net.lane_down[lane] == down]
            delivered = float(self._delivered[chosen].sum())
            dropped = float(self._dropped[chosen].sum())
            yield entity, f"throughput_{way}_bps", delivered / self._span_s
            # What requests offer depends on the answers: only paced flows have a demand in bit/s.
            paced = [lane for lane in chosen if self._paced(net.load.flows[lane // 2], way)]
            if paced:
                yield entity, f"offered_{way}_bps", float(self._offered[paced].sum()) / self._span_s
            if delivered + dropped > 0:
                packets = float((self._delivered[chosen] / net.lane_bits[chosen]).sum())
                missing = float((self._dropped[chosen] / net.lane_bits[chosen]).sum())
                yield entity, f"loss_{way}_ratio", missing / (packets + missing)
            if delivered > 0:
                yield from self._percentiles(entity, f"delay_{way}", self.delays, chosen)
                yield entity, f"jitter_{way}_s", self._jitter(chosen)
        flows = sorted({lane // 2 for lane in lanes})
        yield from self._percentiles(entity, "rtt", self.rtts, flows)
        requests = [flow for flow in flows if net.load.flows[flow].service == "request"]
        if requests and any(served.asked[requests].sum() > 0 for served in self.served):
            yield from self._requests(entity, requests, self.responses)

    @staticmethod
    def _paced(flow: Flow, way: str) -> bool:
        return flow.service != "request" and flow.direction == way

    def _jitter(self, lanes: Sequence[int]) -> float:
        weights = np.array([step.delivered_bits[lanes] for step in self.steps])
        values = np.array([jitter[lanes] for jitter in self.jitter])
        return float((weights * values).sum() / weights.sum())

    def _requests(self, entity: str, flows: Sequence[int], times: Iterable[Sample]) -> Iterator[tuple[str, str, float]]:
        answered = sum(float(served.answered[flows].sum()) for served in self.served)
        yield entity, "requests_per_s", answered / self._span_s
        failed = sum(float(served.failed[flows].sum()) for served in self.served)
        yield entity, "request_failures_per_s", failed / self._span_s
        yield from self._percentiles(entity, "response", times, flows)

    @staticmethod
    def _percentiles(
        entity: str, name: str, samples: Iterable[Sample], rows: Sequence[int]
    ) -> Iterator[tuple[str, str, float]]:
        """Over the draws of these rows in all steps, each weighted by the packets that it stands for."""
        values, weights = [np.zeros(0)], [np.zeros(0)]
        for sample in samples:
            used = [row for row in rows if sample.weights[row] > 0]
            values.append(sample.values[used].ravel())
            weights.append(np.repeat(sample.weights[used], sample.values.shape[1]))
        merged = np.concatenate(weights)
        if merged.size:
            found = weighted_percentiles(np.concatenate(values), merged, RANKS)
            yield from ((entity, f"{name}_p{rank}_s", value) for rank, value in zip(RANKS, found, strict=True))

    # ---- slices

    def _mean(self, values: Iterable[float]) -> float:
        """Mean over the interval of something that is constant in each step."""
        return float(self._lengths @ np.fromiter(values, dtype=np.float64) / self._span_s)

    def _slice(self, number: int, name: str, lanes: Sequence[int], fluid: Fluid) -> Iterator[tuple[str, str, float]]:
        net = self.network
        entity, state = f"slice:{name}", net.slices[name]
        members = [ue for ue, found in net.ues.items() if found.slice == name]
        yield entity, "attached_ues", self._mean(sum(attached[ue] for ue in members) for attached in self.attached)
        yield entity, "active_ues", self._mean(self._active_ues(lanes))
        if name in self.attaches:
            yield entity, "attach_time_s", float(np.mean(self.attaches[name]))
        yield entity, "prb_share", state.prb_share
        yield entity, "queue_bytes", float(fluid.radio_bits[lanes].sum()) / 8
        drops = sum(float((step.queue_drop_bits[lanes] / net.lane_bits[lanes]).sum()) for step in self.steps)
        yield entity, "queue_drops_per_s", drops / self._span_s
        limit_bps = net.transport_bps(state)
        if limit_bps is not None:
            waiting = fluid.wired_bits * fluid.standing_at("transport")
            yield entity, "transport_queue_bytes", float(waiting[lanes].sum()) / 8
            yield entity, "bandwidth_limit_bps", limit_bps
        pools = [index for index, pool in enumerate(net.pools) if name in pool.slices]
        prbs = sum(net.pool_prbs(net.pools[index]) for index in pools)
        rows = [index for index, ue in enumerate(net.ue_names) if net.ues[ue].slice == name]
        for way, row in (("dl", 0), ("ul", 1)):
            if prbs > 0:
                used = self._mean(float(step.prbs[row, rows].sum()) for step in self.steps)
                yield entity, f"prb_used_{way}_ratio", used / prbs
        if pools:
            yield entity, "missed_slots_ratio", self._mean(float(step.missed[pools].mean()) for step in self.steps)
        if pools and net.topology.slicing:  # otherwise one program does the work of all slices
            yield entity, "cpu_used_millicores", 1000 * self._mean(float(step.slice_cpu[number]) for step in self.steps)
            limit = net.pool_millicores(net.pools[pools[0]])
            if limit is not None:
                yield entity, "cpu_limit_millicores", limit
                full = (float((step.cpu_load[pools] >= _THROTTLED_LOAD).mean()) for step in self.steps)
                yield entity, "cpu_throttled_ratio", self._mean(full)

    def _active_ues(self, lanes: Sequence[int]) -> Iterator[int]:
        net = self.network
        flows = {lane // 2 for lane in lanes}
        for active in self.active:
            yield len({net.load.flows[flow].ue for flow in flows if active[flow]})

    # ---- nodes and links

    def _node(self, name: str) -> Iterator[tuple[str, str, float]]:
        net = self.network
        node, state = net.topology.node(name), net.nodes[name]
        entity = f"node:{name}"
        if isinstance(node, Switch | Host) or not net.node_up(name):
            return
        sessions = self._sessions(name)
        yield entity, "cpu_used_millicores", 1000 * self._cpus(name)
        if state.cpu_millicores is not None:
            yield entity, "cpu_limit_millicores", state.cpu_millicores * state.replicas
            yield entity, "cpu_throttled_ratio", self._mean(self._full(name))
        yield entity, "memory_used_bytes", net.memory_bytes(name, sessions)
        if state.memory_mib is not None:
            yield entity, "memory_limit_bytes", state.memory_mib * 2**20
        if isinstance(node, App) and node.service == "request":
            yield entity, "replicas", float(state.replicas)
            flows = [number for number, flow in enumerate(net.load.flows) if flow.app == name]
            if flows:
                yield from self._requests(entity, flows, self.server_times)

    def _sessions(self, name: str) -> int:
        net = self.network
        ways = {ue: {found.group, found.gnb, net.slices[found.slice].upf} for ue, found in net.ues.items()}
        return sum(attached and name in ways[ue] for ue, attached in self.attached[-1].items())

    def _cpus(self, name: str) -> float:
        """CPUs that a node used."""
        net = self.network
        if name in net.gnbs:
            return self._mean(self._gnb_cpus(name))
        if name in net.apps and net.apps[name].service == "request":
            return sum(float(served.app_cpu_s.get(name, 0.0)) for served in self.served) / self._span_s
        row = {key: index for index, key in enumerate(net.wired.names)}.get(("cpu", name))
        if row is None:
            return 0.0
        return self._mean(self._program_cpus(name, row))

    def _program_cpus(self, name: str, row: int) -> Iterator[float]:
        """CPUs of a node's packet programs: the work, and waking up as far as they have time to sleep."""
        net = self.network
        programs = c.UE_PROGRAMS if name in net.groups else 1
        crossing = net.wired.usage[row] > 0
        for step in self.steps:
            busy = float(net.wired.usage[row] @ step.wired_rate)
            packets = float((step.wired_rate / net.lane_bits)[crossing].sum())
            idle = max(0.0, 1 - float(step.row_load[row]))
            yield min(busy + programs * packets * c.WAKE_NS * 1e-9 * idle, float(net.wired.capacity[row]))

    def _gnb_cpus(self, name: str) -> Iterator[float]:
        net = self.network
        pools = net.ue_pool[net.lane_ue]
        here = np.array([pool.gnb == name for pool in net.pools], dtype=bool)
        slices = len(net.slices)
        # a slice may have a part at several gNBs: split what it used by the work done here
        for step in self.steps:
            work = step.gnb_packets * step.work_s
            total = np.bincount(net.lane_slice, work, slices)
            mine = np.bincount(net.lane_slice, work * here[pools] if here.size else work, slices)
            share = np.divide(mine, total, out=np.zeros(slices), where=total > 0)
            yield float(share @ step.slice_cpu)

    def _full(self, name: str) -> Iterator[float]:
        """Whether the CPU limit of a node was reached, per step."""
        net = self.network
        row = {key: index for index, key in enumerate(net.wired.names)}.get(("cpu", name))
        limit = (net.nodes[name].cpu_millicores or 0.0) / 1000
        inside = [index for index, pool in enumerate(net.pools) if pool.gnb == name]
        for step, served in zip(self.steps, self.served, strict=True):
            if name in net.gnbs:
                load = float(step.cpu_used[inside].sum()) / limit
            elif row is not None:
                load = float(step.row_load[row])
            else:
                load = served.app_load.get(name, 0.0)
            yield float(load >= _THROTTLED_LOAD)

    def _link(self, name: str, backhaul_bps: float) -> Iterator[tuple[str, str, float]]:
        net = self.network
        entity, state = f"link:{name}", net.links[name]
        carried: dict[str, float] = {}
        for number, lane in enumerate(net.lanes):
            for link, sender, header in net.hops[number]:
                if link == name:
                    share = 1 + header / lane.packet_bytes
                    bits = sum(float(step.wired_rate[number]) * step.length_s for step in self.steps) * share
                    carried[sender] = carried.get(sender, 0.0) + bits
        ends = net.topology.link_named(name)
        ends_up = net.node_up(ends.a) and net.node_up(ends.b)
        yield entity, "link_up", float(state.up and ends_up)
        if ends_up:
            yield entity, "link_throughput_bps", max(carried.values(), default=0.0) / self._span_s + backhaul_bps
        if state.bandwidth_bps is not None:
            yield entity, "bandwidth_limit_bps", state.bandwidth_bps


def attach_time_s(network: Network, ue: str) -> float:
    """Time of an attach: processing, and a round trip over radio link and N3 for the session."""
    state = network.ues[ue]
    names = path_links(network.topology, network.slices[state.slice].routes[state.gnb])
    delay_s = sum(network.links[name].delay_s for name in names)
    return c.ATTACH_S + 2 * delay_s
