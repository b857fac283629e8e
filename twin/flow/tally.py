"""The KPIs of an interval, made of its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topologies.model import App, Host, Partition, Switch
from topologies.paths import path_links
from twin.flow import constants as c
from twin.flow.delays import draw_delays
from twin.flow.fluid import Fluid
from twin.flow.gaps import Gaps
from twin.flow.interval import Interval
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.samples import RANKS, Samples
from twin.flow.spans import Numbers, sums
from twin.types import Kpi

_THROTTLED_LOAD = 0.999
_WAYS = ("dl", "ul")
Rows = Iterator[tuple[str, str, float]]


class Groups:
    """UEs, or slices, and whose each lane and flow is. A lane's code is 2 * group, plus 1 for uplink."""

    def __init__(self, network: Network, entities: Sequence[str], group_of_flow: Sequence[int]) -> None:
        self.entities = tuple(entities)
        self.of_flow: Numbers = np.array(group_of_flow, dtype=np.int64)
        self.of_lane: Numbers = np.repeat(self.of_flow, 2)
        self.code = 2 * self.of_lane + ~network.lane_down
        requests = np.array([flow.service == "request" for flow in network.load.flows], dtype=bool)
        ways = np.array([lane.direction == lane.flow.direction for lane in network.lanes], dtype=bool)
        # What requests offer depends on the answers: only paced flows have a demand in bit/s.
        self.paced_lanes = ways & ~np.repeat(requests, 2)
        self.has_paced = (self.by_code(self.paced_lanes.astype(np.float64)) > 0).tolist()
        self.has_requests = (self.by_group(requests.astype(np.float64)) > 0).tolist()

    def by_code(self, lanes: Array) -> Array:
        """Sums over the lanes of each group and direction, shape (2 groups,)."""
        return sums(self.code, lanes, 2 * len(self.entities))

    def by_group(self, flows: Array) -> Array:
        """Sums over the flows of each group."""
        return sums(self.of_flow, flows, len(self.entities))

    def by_lane_group(self, lanes: Array) -> Array:
        """Sums over the lanes of each group, both directions."""
        return sums(self.of_lane, lanes, len(self.entities))


class Tally:
    """Makes KPIs of the intervals of one network."""

    def __init__(self, network: Network) -> None:
        self._network = net = network
        ues, slices = list(net.ues), list(net.slices)
        flows = net.load.flows
        self._by_ue = Groups(net, [f"ue:{ue}" for ue in ues], [ues.index(flow.ue) for flow in flows])
        self._by_slice = Groups(net, [f"slice:{name}" for name in slices], [slices.index(flow.slice) for flow in flows])
        self._ue_of_flow = np.zeros((len(flows), len(ues)))
        self._ue_of_flow[np.arange(len(flows)), self._by_ue.of_flow] = 1.0
        self._slice_of_ue = np.array([slices.index(ue.slice) for ue in net.ues.values()], dtype=np.int64)
        self._members = [np.flatnonzero(self._slice_of_ue == number) for number in range(len(slices))]
        self._apps = {name: number for number, name in enumerate(net.apps)}
        self._app_of_flow = np.array([self._apps[flow.app] for flow in flows], dtype=np.int64)
        self._rows_of_slice = [
            [index for index, ue in enumerate(net.ue_names) if net.ues[ue].slice == name] for name in slices
        ]
        self._pools_of_slice = [
            [index for index, pool in enumerate(net.pools) if name in pool.slices] for name in slices
        ]
        on_way = [{ue.group, ue.gnb, net.slices[ue.slice].upf} for ue in net.ues.values()]
        self._ues_at = {name: [ue for ue, way in enumerate(on_way) if name in way] for name in net.nodes}
        self._gaps = Gaps(net)
        self._version = -1

    def kpis(
        self,
        time_s: float,
        interval: Interval,
        fluid: Fluid,
        rng: np.random.Generator,
        backhaul_bps: Mapping[str, float],
        task_cpu_s: Mapping[str, float],
    ) -> list[Kpi]:
        """All KPIs of the interval that ends at ``time_s``. ``rng`` draws the delays of packets; ``backhaul_bps``: what
        links carry of backhaul flows; ``task_cpu_s``: CPU time that the periodic tasks of a node used."""
        net = self._network
        if self._version != net.version:
            self._version = net.version
            self._rows = {name: row for row, name in enumerate(net.wired.names)}
            self._crossings = _Crossings(net)
        self._now = _Totals(interval)
        delays = draw_delays(net, interval.steps, np.array(interval.working), interval.draws, rng)
        self._samples = Samples(net, interval, delays)
        self._task_cpu_s = task_cpu_s
        self._gap_s = self._gaps.longest_s(interval)
        rows = self._all(interval, fluid, backhaul_bps)
        return [Kpi(time_s, entity, name, float(value)) for entity, name, value in rows]

    def _all(self, interval: Interval, fluid: Fluid, backhaul_bps: Mapping[str, float]) -> Rows:
        net = self._network
        weights = self._now.lengths[:, None] * np.array(interval.attached)
        attached_s = weights.sum(axis=0)
        cqi_s = (weights * np.array(interval.cqis)).sum(axis=0).tolist()
        traffic = self._traffic(self._by_ue)
        for number, length_s in enumerate(attached_s.tolist()):
            yield from next(traffic)
            if length_s > 0:
                yield self._by_ue.entities[number], "cqi", cqi_s[number] / length_s
        slices = self._slices(interval, fluid)
        traffic = self._traffic(self._by_slice)
        for _ in net.slices:
            yield from next(traffic)
            yield from next(slices)
        cpus = self._program_cpus()
        for name in net.nodes:
            yield from self._node(name, interval, cpus)
        carried = self._crossings.carried_bits(self._now.wired_bits)
        for number, name in enumerate(net.links):
            yield from self._link(name, carried[number] / self._now.span_s + backhaul_bps.get(name, 0.0))
        yield "run", "clock_lag_s", 0.0

    # ---- traffic of UEs and slices

    def _traffic(self, groups: Groups) -> Iterator[list[tuple[str, str, float]]]:
        """KPIs of the traffic of each group, group by group."""
        now, samples, span_s = self._now, self._samples, self._now.span_s
        bits = self._network.lane_bits
        delivered, dropped = groups.by_code(now.delivered).tolist(), groups.by_code(now.dropped).tolist()
        offered = groups.by_code(np.where(groups.paced_lanes, now.offered, 0.0)).tolist()
        packets = groups.by_code(now.delivered / bits).tolist()
        missing = groups.by_code(now.dropped / bits).tolist()
        jitter = groups.by_code(samples.jitter_bits).tolist()
        asked, answered, failed = (groups.by_group(flows).tolist() for flows in (now.asked, now.answered, now.failed))
        gaps_s = np.zeros(len(groups.entities))
        np.maximum.at(gaps_s, groups.of_flow, self._gap_s)
        delays = samples.delays(groups.code)
        trips, responses = samples.trips(groups.of_flow), samples.responses(groups.of_flow)
        for number, entity in enumerate(groups.entities):
            rows = []
            for code, way in ((2 * number, "dl"), (2 * number + 1, "ul")):
                rows.append((entity, f"throughput_{way}_bps", delivered[code] / span_s))
                if groups.has_paced[code]:
                    rows.append((entity, f"offered_{way}_bps", offered[code] / span_s))
                if delivered[code] + dropped[code] > 0:
                    rows.append((entity, f"loss_{way}_ratio", missing[code] / (packets[code] + missing[code])))
                if delivered[code] > 0:
                    rows.extend(_percentiles(entity, f"delay_{way}", delays.get(code)))
                    rows.append((entity, f"jitter_{way}_s", jitter[code] / delivered[code]))
            if gaps_s[number] > 0:
                rows.append((entity, "stream_gap_s", gaps_s[number]))
            rows.extend(_percentiles(entity, "rtt", trips.get(number)))
            if groups.has_requests[number] and asked[number] > 0:
                rows.append((entity, "requests_per_s", answered[number] / span_s))
                rows.append((entity, "request_failures_per_s", failed[number] / span_s))
                rows.extend(_percentiles(entity, "response", responses.get(number)))
            yield rows

    # ---- slices

    def _slices(self, interval: Interval, fluid: Fluid) -> Iterator[Rows]:
        net, now = self._network, self._now
        attached = now.mean(np.array(interval.attached))
        active = now.mean(np.array(interval.active) @ self._ue_of_flow > 0)
        groups = self._by_slice
        queues = (groups.by_lane_group(fluid.radio_bits) / 8).tolist()
        drops = groups.by_lane_group(now.queue_drops / net.lane_bits).tolist()
        waiting = (groups.by_lane_group(fluid.wired_bits * fluid.standing_at("transport")) / 8).tolist()
        prbs, missed = now.mean(interval.of_steps("prbs")), now.mean(interval.of_steps("missed"))
        cpus = now.mean(interval.of_steps("slice_cpu")).tolist()
        full = now.mean(interval.of_steps("cpu_load") >= _THROTTLED_LOAD)
        for number, (name, state) in enumerate(net.slices.items()):
            entity = f"slice:{name}"
            members, pools = self._members[number], self._pools_of_slice[number]
            rows = [
                (entity, "attached_ues", attached[members].sum()),
                (entity, "active_ues", active[members].sum()),
            ]
            if name in interval.attaches:
                rows.append((entity, "attach_time_s", np.mean(interval.attaches[name])))
            rows.append((entity, "prb_share", state.prb_share))
            rows.append((entity, "queue_bytes", queues[number]))
            rows.append((entity, "queue_drops_per_s", drops[number] / now.span_s))
            limit_bps = net.transport_bps(state)
            if limit_bps is not None:
                rows.append((entity, "transport_queue_bytes", waiting[number]))
                rows.append((entity, "bandwidth_limit_bps", limit_bps))
            total_prbs = sum(net.pool_prbs(net.pools[index]) for index in pools)
            if total_prbs > 0:
                used = prbs[:, self._rows_of_slice[number]].sum(axis=1)
                rows.extend((entity, f"prb_used_{way}_ratio", used[row] / total_prbs) for row, way in enumerate(_WAYS))
            if pools:
                rows.append((entity, "missed_slots_ratio", missed[pools].mean()))
            if pools and net.topology.slicing:  # otherwise one program does the work of all slices
                rows.append((entity, "cpu_used_millicores", 1000 * cpus[number]))
                limit = net.pool_millicores(net.pools[pools[0]])
                if limit is not None:
                    rows.append((entity, "cpu_limit_millicores", limit))
                    rows.append((entity, "cpu_throttled_ratio", full[pools].mean()))
            yield iter(rows)

    # ---- nodes and links

    def _node(self, name: str, interval: Interval, program_cpus: Sequence[float]) -> Rows:
        net, now = self._network, self._now
        node, state = net.topology.node(name), net.nodes[name]
        entity = f"node:{name}"
        if isinstance(node, Partition):
            yield from self._partition(node, interval, program_cpus)
            return
        if isinstance(node, Switch | Host) or not net.node_up(name):
            return
        row = self._rows.get(("cpu", name))
        serves = isinstance(node, App) and node.service == "request"
        if name in net.gnbs:
            cpus = float(now.mean(self._gnb_cpus(name, interval)))
        elif serves:
            cpus = sum(served.app_cpu_s.get(name, 0.0) for served in interval.served) / now.span_s
        else:
            cpus = 0.0 if row is None else program_cpus[row]
            cpus += self._task_cpu_s.get(name, 0.0) / now.span_s
        yield entity, "cpu_used_millicores", 1000 * cpus
        if state.cpu_millicores is not None:
            yield entity, "cpu_limit_millicores", state.cpu_millicores * state.replicas
            full = self._loads(name, row, state.cpu_millicores / 1000, interval) >= _THROTTLED_LOAD
            yield entity, "cpu_throttled_ratio", float(now.mean(full))
        sessions = int(interval.attached[-1][self._ues_at[name]].sum())
        yield entity, "memory_used_bytes", net.memory_bytes(name, sessions)
        if state.memory_mib is not None:
            yield entity, "memory_limit_bytes", state.memory_mib * 2**20
        if serves:
            yield entity, "replicas", float(state.replicas)
            yield from self._requests(name)

    def _requests(self, name: str) -> Rows:
        entity, now = f"node:{name}", self._now
        mine = self._app_of_flow == self._apps[name]
        if mine.any():
            yield entity, "requests_per_s", now.answered[mine].sum() / now.span_s
            yield entity, "request_failures_per_s", now.failed[mine].sum() / now.span_s
            found = self._samples.server_times(self._app_of_flow).get(self._apps[name])
            yield from _percentiles(entity, "response", found)

    def _partition(self, node: Partition, interval: Interval, program_cpus: Sequence[float]) -> Rows:
        """Service and computing of a guest; its state and its tasks are told by the guests themselves."""
        net, now, name = self._network, self._now, node.name
        if not net.guests.deployed(name):
            return
        entity, row = f"node:{name}", self._rows.get(("cpu", name))
        used_s = self._task_cpu_s[name] + sum(served.app_cpu_s.get(name, 0.0) for served in interval.served)
        used_s += 0.0 if row is None else program_cpus[row] * now.span_s
        yield entity, "cpu_used_millicores", 1000 * used_s / now.span_s
        limit = net.guests.limit_millicores(name)
        if limit is not None:
            yield entity, "cpu_limit_millicores", limit
            full = self._loads(name, row, limit / 1000, interval) >= _THROTTLED_LOAD
            yield entity, "cpu_throttled_ratio", float(now.mean(full))
        reserved_s = net.guests.used_of_reservation(name, used_s, now.span_s)
        if reserved_s is not None:
            yield entity, "dl_used_s", reserved_s
        yield entity, "memory_used_bytes", c.GUEST_BYTES
        if node.isolated and node.memory_mib is not None:
            yield entity, "memory_limit_bytes", (node.memory_mib + c.GUEST_OVERHEAD_MIB) * 2**20
        if node.vnf == "request":
            yield from self._requests(name)

    def _program_cpus(self) -> list[float]:
        """CPUs of packet programs, by wired row: the work, and waking up as far as they have time to sleep."""
        net, now = self._network, self._now
        wired = net.wired
        programs = np.array([c.UE_PROGRAMS if name[-1] in net.groups else 1 for name in wired.names])
        busy = now.wired_rate @ wired.usage.T
        packets = now.wired_rate / net.lane_bits @ wired.crossed.T
        idle = np.maximum(0.0, 1 - now.row_load)
        used = np.minimum(busy + programs * packets * c.WAKE_NS * 1e-9 * idle, wired.capacity)
        found: list[float] = now.mean(used).tolist()
        return found

    def _gnb_cpus(self, name: str, interval: Interval) -> Array:
        """CPUs of one gNB in each step: a slice may have a part at several, so split by the work done here."""
        net = self._network
        here = np.array([pool.gnb == name for pool in net.pools], dtype=bool)
        slices = len(net.slices)
        work = interval.of_steps("gnb_packets") * interval.of_steps("work_s")
        of_slice = np.zeros((len(net.lanes), slices))
        of_slice[np.arange(len(net.lanes)), net.lane_slice] = 1.0
        total = work @ of_slice
        mine = (work * here[net.ue_pool[net.lane_ue]]) @ of_slice if here.size else total
        share = np.divide(mine, total, out=np.zeros_like(total), where=total > 0)
        found: Array = (share * interval.of_steps("slice_cpu")).sum(axis=1)
        return found

    def _loads(self, name: str, row: int | None, limit_cpus: float, interval: Interval) -> Array:
        """Load of a node's CPU limit in each step."""
        net = self._network
        if name in net.gnbs:
            inside = [index for index, pool in enumerate(net.pools) if pool.gnb == name]
            found: Array = interval.of_steps("cpu_used")[:, inside].sum(axis=1) / limit_cpus
            return found
        if row is not None:
            return self._now.row_load[:, row]
        return np.array([served.app_load.get(name, 0.0) for served in interval.served])

    def _link(self, name: str, rate_bps: float) -> Rows:
        net = self._network
        entity, state = f"link:{name}", net.links[name]
        ends = net.topology.link_named(name)
        ends_up = net.node_up(ends.a) and net.node_up(ends.b)
        yield entity, "link_up", float(state.up and ends_up)
        if ends_up:
            yield entity, "link_throughput_bps", rate_bps
        if state.bandwidth_bps is not None:
            yield entity, "bandwidth_limit_bps", state.bandwidth_bps


class _Totals:
    """Sums over the steps of one interval; per lane in bits, per flow in requests."""

    def __init__(self, interval: Interval) -> None:
        self.lengths = interval.of_steps("length_s")
        self.span_s = float(self.lengths.sum())
        self.offered = interval.of_steps("offered_bits").sum(axis=0)
        self.delivered = interval.of_steps("delivered_bits").sum(axis=0)
        self.queue_drops = interval.of_steps("queue_drop_bits").sum(axis=0)
        self.dropped = self.queue_drops + interval.of_steps("lost_bits").sum(axis=0)
        self.wired_rate = interval.of_steps("wired_rate")
        self.wired_bits = self.lengths @ self.wired_rate
        self.row_load = interval.of_steps("row_load")
        self.asked, self.answered, self.failed = (
            interval.of_served(name).sum(axis=0) for name in ("asked", "answered", "failed")
        )

    def mean(self, values: NDArray[Any]) -> Array:
        """Mean over the interval of something that is constant in each step, which is the first axis."""
        found: Array = self.lengths @ values.reshape(self.lengths.size, -1) / self.span_s
        return found.reshape(values.shape[1:])


class _Crossings:
    """Which lanes cross which link in which direction, and with how many bits per bit of IP."""

    def __init__(self, network: Network) -> None:
        links = {name: 2 * number for number, name in enumerate(network.links)}
        ends = {name: network.topology.link_named(name).b for name in links}
        crossings = [
            (number, links[link] + (sender == ends[link]), 1 + header / lane.packet_bytes)
            for number, lane in enumerate(network.lanes)
            for link, sender, header in network.hops[number]
        ]
        self._lane = np.array([lane for lane, _, _ in crossings], dtype=np.int64)
        self._way = np.array([way for _, way, _ in crossings], dtype=np.int64)
        self._share = np.array([share for _, _, share in crossings])
        self._ways = 2 * len(links)

    def carried_bits(self, lane_bits: Array) -> list[float]:
        """Bits on each link, of the direction that carries more."""
        both = sums(self._way, lane_bits[self._lane] * self._share, self._ways)
        found: list[float] = both.reshape(-1, 2).max(axis=1, initial=0.0).tolist()
        return found


def _percentiles(entity: str, name: str, found: Sequence[float] | None) -> Rows:
    if found is not None:
        yield from ((entity, f"{name}_p{rank}_s", value) for rank, value in zip(RANKS, found, strict=True))


def attach_time_s(network: Network, ue: str) -> float:
    """Time of an attach: processing, and a round trip over radio link and N3 for the session."""
    state = network.ues[ue]
    names = path_links(network.topology, network.slices[state.slice].routes[state.gnb])
    delay_s = sum(network.links[name].delay_s for name in names)
    return c.ATTACH_S + 2 * delay_s
