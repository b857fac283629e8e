"""A run of the flow model: activities in, steps of the fluid network, KPIs out."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from topologies.model import Topology
from twin.backend import BackendError
from twin.flow import constants as c
from twin.flow import knobs
from twin.flow.backhaul import Backhaul
from twin.flow.fluid import Fluid, Mask
from twin.flow.interval import Interval
from twin.flow.maxmin import Array
from twin.flow.network import Network, UeState
from twin.flow.requests import Served, Servers
from twin.flow.tally import Tally, attach_time_s
from twin.load import Load
from twin.ran.channels import Channels
from twin.streams import named_stream
from twin.types import Action, Kpi, Observation, Outcome, Probe


class FlowBackend:
    """The network as a fluid: rates, queues and delays are calculated, nothing runs.

    Deterministic: the same topology, load, seed, actions and times give the same KPIs.
    """

    name = "flow"
    deterministic = True

    def open(self, topology: Topology, load: Load, *, seed: int) -> FlowSession:
        """Raises BackendError when a flow cannot reach its application, or a demand has no flow."""
        try:
            backhaul = Backhaul(topology, load)
        except ValueError as error:
            raise BackendError(str(error)) from None
        return FlowSession(Network(topology, load, seed), load, seed, backhaul)


class FlowSession:
    """See :class:`twin.backend.Session`. Time passes only in :meth:`advance`."""

    def __init__(self, network: Network, load: Load, seed: int, backhaul: Backhaul) -> None:
        self._network = network
        self._backhaul = backhaul
        self._load = load
        self._fluid = Fluid(network)
        self._servers = Servers(network)
        self._now_s = 0.0
        self._closed = False
        self._changed = False
        self._ues = tuple(network.ues.values())
        self._flows = _Flows(network, load)
        self._radio = _Radio(self._ues)
        self._tally = Tally(network)
        self._was_attached = np.array([state.always_attached for state in self._ues], dtype=bool)
        self._loss_rng, self._delay_rng, self._request_rng = (
            named_stream(seed, f"flow/{concern}") for concern in ("loss", "delay", "requests")
        )
        self._starts_s = [[item.start_s for item in flow.activities] for flow in load.flows]
        starts = [item.start_s for flow in load.flows for item in flow.activities]
        stops = [item.stop_s for flow in load.flows for item in flow.activities]
        self._changes_s = np.unique(np.array(starts + stops, dtype=np.float64))

    @property
    def probes(self) -> Sequence[Probe]:
        """Empty: a model has nothing to deliver."""
        return ()

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        """Carry out actions now, without lag; a refused one changes nothing."""
        outcomes = []
        for action in actions:
            reason = "the session is closed" if self._closed else knobs.apply(self._network, action)
            outcomes.append(Outcome(action, applied=reason is None, reason=reason or "", time_s=self._now_s, lag_s=0.0))
        self._changed = True
        return outcomes

    def advance(self, until_s: float) -> Observation:
        """KPIs of [now, ``until_s``); ValueError unless time moves forward, BackendError after close."""
        if self._closed:
            raise BackendError("flow: the session is closed")
        if not until_s > self._now_s:
            raise ValueError(f"until_s must be later than {self._now_s:g} s, got {until_s:g}")
        interval = Interval(until_s - self._now_s)
        self._pass(interval, until_s)
        carried = self._backhaul.carried(self._now_s, until_s, self._network.path_index, self._network.links)
        nodes = self._network.nodes
        task_kpis, task_cpu_s = self._network.tasks.advance(
            until_s,
            until_s - self._now_s,
            {name: self._network.node_up(name) for name in nodes},
            {name: state.cpu_millicores for name, state in nodes.items()},
        )
        guest_kpis, guest_cpu_s = self._network.guests.advance(self._now_s, until_s)
        self._now_s = until_s
        kpis = self._tally.kpis(
            until_s, interval, self._fluid, self._delay_rng, carried.link_bps, task_cpu_s | guest_cpu_s
        )
        kpis += [*task_kpis, *guest_kpis]
        for name, offered, delivered in zip(
            self._backhaul.names, carried.offered_bps.tolist(), carried.throughput_bps.tolist(), strict=True
        ):
            kpis.append(Kpi(until_s, f"flow:{name}", "offered_bps", offered))
            kpis.append(Kpi(until_s, f"flow:{name}", "throughput_bps", delivered))
        return Observation(until_s, tuple(kpis))

    def _pass(self, interval: Interval, until_s: float) -> None:
        """All steps of an interval, from one change of the network by itself (a guest has booted) to the next."""
        net, now_s = self._network, self._now_s
        while now_s < until_s:
            if self._changed:
                net.changed()
                self._changed = False
            change_s = net.guests.next_change_s(now_s)
            next_s = min(until_s, change_s)
            for edges in self._segments(now_s, next_s):
                self._segment(interval, edges)
            now_s = net.now_s = next_s
            self._changed = change_s <= until_s

    def close(self) -> None:
        """Nothing is held; later calls of ``advance`` fail."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segments(self, from_s: float, until_s: float) -> Iterator[list[float]]:
        """Step boundaries from one change of demand to the next; no step is longer than ``MAX_STEP_S``."""
        inside = self._changes_s[(self._changes_s > from_s) & (self._changes_s < until_s)]
        for start_s, stop_s in itertools.pairwise([from_s, *inside.tolist(), until_s]):
            parts = max(1, int(np.ceil((stop_s - start_s) / c.MAX_STEP_S - 1e-9)))
            yield [*(start_s + (stop_s - start_s) * part / parts for part in range(parts)), stop_s]

    def _segment(self, interval: Interval, edges: list[float]) -> None:
        """The steps between two changes of demand."""
        net, flows = self._network, self._flows
        middles_s = np.array([start_s + (stop_s - start_s) / 2 for start_s, stop_s in itertools.pairwise(edges)])
        rates = self._rates(float(middles_s[0]))
        attached = self._attached(rates > 0)
        for ue in np.flatnonzero(attached & ~self._was_attached).tolist():
            state = self._ues[ue]
            interval.attaches.setdefault(state.slice, []).append(attach_time_s(net, state.id))
        self._was_attached = attached
        cqis = np.where(attached, self._radio.cqi(middles_s), 0)
        # A detached UE runs no traffic; one that lost its network does, and gets nothing through.
        sent_away = np.array([state.forced_attached is False for state in self._ues], dtype=bool)
        rates = np.where(sent_away[flows.ue], 0.0, rates)
        offered = self._offered(rates)
        requests = np.where(flows.requests, rates, 0.0)
        active = np.repeat(rates > 0, 2)
        for number, (start_s, stop_s) in enumerate(itertools.pairwise(edges)):
            length_s = stop_s - start_s
            cqi = cqis[number, flows.ue_of_network]
            step = self._fluid.step(start_s, length_s, offered, attached[flows.ue_of_network], cqi, self._loss_rng)
            draws = max(2, round(c.SAMPLES_PER_INTERVAL * length_s / interval.span_s))
            served = self._servers.step(step, requests, self._request_rng)
            working = step.open & (cqi[net.lane_ue] > 0) & (active | (step.delivered_bits > 0))
            interval.add(step, served, rates > 0, attached, cqis[number], working, draws)
            self._serve(interval, served, working.reshape(-1, 2).all(axis=1) & (served.answered > 0), draws)

    def _serve(self, interval: Interval, served: Served, both: Mask, draws: int) -> None:
        """What servers take for the requests of one step, of flows whose packets came through both ways."""
        asking = np.flatnonzero(both & interval.active[-1]).tolist()
        for app, found in itertools.groupby(asking, lambda flow: self._load.flows[flow].app):
            flows = list(found)
            times_s = self._servers.server_times_s(app, served.app_load[app], len(flows), draws, self._request_rng)
            step = len(interval.steps) - 1
            interval.server_times.extend((step, flow, each) for flow, each in zip(flows, times_s, strict=True))

    def _rates(self, time_s: float) -> Array:
        """Rate of each flow at a time, in its own unit, demand factor included."""
        rates = np.zeros(len(self._load.flows))
        for number, flow in enumerate(self._load.flows):
            last = bisect_right(self._starts_s[number], time_s) - 1
            if last >= 0 and time_s < flow.activities[last].stop_s:
                rates[number] = flow.activities[last].rate * self._network.slices[flow.slice].demand_factor
        return rates

    def _attached(self, active: Mask) -> Mask:
        """UEs with a session: always, while a flow is active, or as an action says; none while gNB or UE is down."""
        net = self._network
        busy = np.zeros(len(self._ues), dtype=bool)
        busy[self._flows.ue[active]] = True
        up = {name: net.node_up(name) for name in (*net.groups, *net.gnbs)}
        wanted = [
            (now or ue.always_attached) if ue.forced_attached is None else ue.forced_attached
            for ue, now in zip(self._ues, busy.tolist(), strict=True)
        ]
        reached = [up[ue.group] and up[ue.gnb] for ue in self._ues]
        found: Mask = np.array(wanted, dtype=bool) & np.array(reached, dtype=bool)
        return found

    def _offered(self, rates: Array) -> Array:
        """bit/s that each lane's source sends. A stream needs its server to run."""
        runs = np.array([self._network.serves(self._network.server(flow.app)) for flow in self._load.flows], dtype=bool)
        sends = self._flows.paced & (np.repeat(runs, 2) | ~self._network.lane_down)
        per_lane = np.repeat(rates, 2)
        return np.where(sends, per_lane, per_lane * self._flows.bytes_per_request * 8)


class _Flows:
    """What stays the same of flows and lanes, as arrays: ``ue`` of each flow in the order of ``Network.ues``."""

    def __init__(self, network: Network, load: Load) -> None:
        numbers = {ue: number for number, ue in enumerate(network.ues)}
        self.ue = np.array([numbers[flow.ue] for flow in load.flows], dtype=np.int64)
        self.ue_of_network = np.array([numbers[ue] for ue in network.ue_names], dtype=np.int64)
        self.requests = np.array([flow.service == "request" for flow in load.flows], dtype=bool)
        ways = np.array([lane.direction == lane.flow.direction for lane in network.lanes], dtype=bool)
        self.paced = ways & ~np.repeat(self.requests, 2)
        self.bytes_per_request = np.array([lane.bytes_per_request for lane in network.lanes])


class _Radio:
    """CQI of all UEs: forced, scripted or of the channel model, in this order."""

    def __init__(self, ues: Sequence[UeState]) -> None:
        self._ues = ues
        self._modelled = np.array([not ue.script for ue in ues], dtype=bool)
        self._channels = Channels([ue.channel for ue in ues if not ue.script]) if self._modelled.any() else None

    def cqi(self, times_s: Array) -> NDArray[np.int64]:
        """Shape (times, ues)."""
        found = np.zeros((times_s.size, len(self._ues)), dtype=np.int64)
        if self._channels is not None:
            found[:, self._modelled] = self._channels.cqi(times_s)
        for number, ue in enumerate(self._ues):
            if ue.forced_cqi is not None or ue.script:
                found[:, number] = [ue.cqi(time_s) for time_s in times_s.tolist()]
        return found
