"""A run of the flow model: activities in, steps of the fluid network, KPIs out."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from topologies.model import Topology
from twin.backend import BackendError
from twin.flow import constants as c
from twin.flow import knobs
from twin.flow.backhaul import Backhaul
from twin.flow.delays import draw_delays
from twin.flow.fluid import Fluid, Mask, Step
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.requests import Servers
from twin.flow.tally import Sample, Tally, attach_time_s
from twin.load import Load
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
        self._was_attached: dict[str, bool] = {ue: state.always_attached for ue, state in network.ues.items()}
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
        if not self._closed:
            self._network.changed()
        return outcomes

    def advance(self, until_s: float) -> Observation:
        """KPIs of [now, ``until_s``); ValueError unless time moves forward, BackendError after close."""
        if self._closed:
            raise BackendError("flow: the session is closed")
        if not until_s > self._now_s:
            raise ValueError(f"until_s must be later than {self._now_s:g} s, got {until_s:g}")
        tally = Tally(self._network)
        edges = self._edges(until_s)
        for start_s, stop_s in itertools.pairwise(edges):
            share = (stop_s - start_s) / (until_s - self._now_s)
            self._step(tally, start_s, stop_s - start_s, max(2, round(c.SAMPLES_PER_INTERVAL * share)))
        carried = self._backhaul.carried(self._now_s, until_s, self._network.path_index, self._network.links)
        self._now_s = until_s
        kpis = list(tally.kpis(until_s, self._fluid, carried.link_bps))
        for name, offered, delivered in zip(
            self._backhaul.names, carried.offered_bps.tolist(), carried.throughput_bps.tolist(), strict=True
        ):
            kpis.append(Kpi(until_s, f"flow:{name}", "offered_bps", offered))
            kpis.append(Kpi(until_s, f"flow:{name}", "throughput_bps", delivered))
        return Observation(until_s, tuple(kpis))

    def close(self) -> None:
        """Nothing is held; later calls of ``advance`` fail."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _edges(self, until_s: float) -> list[float]:
        """Step boundaries: every change of demand, and no step longer than ``MAX_STEP_S``."""
        inside = self._changes_s[(self._changes_s > self._now_s) & (self._changes_s < until_s)]
        marks = np.concatenate(([self._now_s], inside, [until_s]))
        edges: list[float] = []
        for start_s, stop_s in itertools.pairwise(marks.tolist()):
            parts = max(1, int(np.ceil((stop_s - start_s) / c.MAX_STEP_S - 1e-9)))
            edges.extend(start_s + (stop_s - start_s) * part / parts for part in range(parts))
        return [*edges, until_s]

    def _step(self, tally: Tally, start_s: float, length_s: float, draws: int) -> None:
        net = self._network
        middle_s = start_s + length_s / 2
        rates = self._rates(middle_s)
        attached = self._attached(rates > 0)
        cqis = {ue: state.cqi(middle_s) if attached[ue] else 0 for ue, state in net.ues.items()}
        # A detached UE runs no traffic; one that lost its network does, and gets nothing through.
        sent_away = [net.ues[flow.ue].forced_attached is False for flow in self._load.flows]
        rates = np.where(sent_away, 0.0, rates)
        step = self._fluid.step(
            start_s,
            length_s,
            self._offered(rates),
            np.array([attached[ue] for ue in net.ue_names], dtype=bool),
            np.array([cqis[ue] for ue in net.ue_names], dtype=np.int64),
            self._loss_rng,
        )
        served = self._servers.step(step, self._request_rates(rates), self._request_rng)
        for ue, now in attached.items():
            if now and not self._was_attached[ue]:
                tally.attaches.setdefault(net.ues[ue].slice, []).append(attach_time_s(net, ue))
        self._was_attached = attached
        tally.steps.append(step)
        tally.served.append(served)
        tally.active.append(rates > 0)
        tally.attached.append(attached)
        tally.cqis.append(cqis)
        self._draw(tally, step, rates > 0, draws, cqis)

    def _rates(self, time_s: float) -> Array:
        """Rate of each flow at a time, in its own unit, demand factor included."""
        rates = np.zeros(len(self._load.flows))
        for number, flow in enumerate(self._load.flows):
            last = bisect_right(self._starts_s[number], time_s) - 1
            if last >= 0 and time_s < flow.activities[last].stop_s:
                rates[number] = flow.activities[last].rate * self._network.slices[flow.slice].demand_factor
        return rates

    def _attached(self, active: Mask) -> dict[str, bool]:
        """UEs with a session: always, while a flow is active, or as an action says; none while gNB or UE is down."""
        net = self._network
        busy = {flow.ue for flow, now in zip(self._load.flows, active, strict=True) if now}
        found = {}
        for ue, state in net.ues.items():
            wanted = state.always_attached or ue in busy
            if state.forced_attached is not None:
                wanted = state.forced_attached
            found[ue] = wanted and net.node_up(state.group) and net.node_up(state.gnb)
        return found

    def _offered(self, rates: Array) -> Array:
        """bit/s that each lane's source sends. A stream needs its server to run."""
        net = self._network
        offered = np.zeros(len(net.lanes))
        for number, lane in enumerate(net.lanes):
            rate = rates[number // 2]
            if lane.flow.service == "request":
                offered[number] = rate * lane.bytes_per_request * 8
            elif lane.direction == lane.flow.direction and (lane.direction == "ul" or net.node_up(lane.flow.app)):
                offered[number] = rate
        return offered

    def _request_rates(self, rates: Array) -> Array:
        return np.where([flow.service == "request" for flow in self._load.flows], rates, 0.0)

    def _draw(self, tally: Tally, step: Step, active: Mask, draws: int, cqis: dict[str, int]) -> None:
        """Delays of packets, probes and requests of one step."""
        net = self._network
        heard: NDArray[np.bool_] = np.array([cqis[lane.ue] > 0 for lane in net.lanes], dtype=bool)
        working = step.open & heard & (np.repeat(active, 2) | (step.delivered_bits > 0))
        delays, jitters = draw_delays(net, step, working, draws, self._delay_rng)
        packets = np.where(working, step.delivered_bits / net.lane_bits, 0.0)
        tally.delays.append(Sample(delays, packets / draws))
        tally.jitter.append(jitters)
        both = working.reshape(-1, 2).all(axis=1) & active
        trips = delays[0::2] + delays[1::2]
        tally.rtts.append(Sample(trips, np.where(both, step.length_s / draws, 0.0)))
        responses, server_times = np.zeros_like(trips), np.zeros_like(trips)
        weights = np.zeros(active.size)
        for number, flow in enumerate(self._load.flows):
            if flow.service == "request" and both[number] and tally.served[-1].answered[number] > 0:
                server = self._servers.server_time_s(
                    flow.app, tally.served[-1].app_load[flow.app], draws, self._request_rng
                )
                server_times[number] = server
                responses[number] = c.ROUND_TRIPS_PER_REQUEST * trips[number] + server
                weights[number] = tally.served[-1].answered[number] / draws
        tally.responses.append(Sample(responses, weights))
        tally.server_times.append(Sample(server_times, weights))
