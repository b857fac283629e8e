"""Requests to applications: who is answered, who gives up, and how long the server takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from twin.flow import constants as c
from twin.flow.fluid import Step
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.queueing import MAX_LOAD, multi_server_wait_s, waits_of

_CFS_PERIOD_S = 0.1


@dataclass(frozen=True)
class Served:
    """Requests of one step; per flow, shape (flows,): asked (mean), answered and failed (counts)."""

    asked: Array
    answered: Array
    failed: Array
    app_cpu_s: Mapping[str, float]
    app_load: Mapping[str, float]


class Servers:
    """The queues of all request applications.

    An application of n replicas answers at most mu = n * speed / work requests/s, speed being its CPU
    limit (at most one CPU: one thread) and work the CPU time of a request. Its backlog follows
    db/dt = arrivals - answers; what would wait longer than the client's patience fails.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._backlog = {name: 0.0 for name, app in network.apps.items() if app.service == "request"}
        self._flows = {
            name: np.array([flow.app == name for flow in network.load.flows], dtype=bool) for name in self._backlog
        }

    def step(self, step: Step, rate: Array, rng: np.random.Generator) -> Served:
        """``rate``: mean requests/s of each flow in the step."""
        net = self._network
        length_s = step.length_s
        arrived = rate * length_s
        if not self._backlog:
            return Served(arrived, np.zeros(rate.size), np.zeros(rate.size), {}, {})
        through = self._through(step)
        answered = np.zeros(rate.size)
        app_cpu_s: dict[str, float] = {}
        app_load: dict[str, float] = {}
        for name, mine in self._flows.items():
            reaching = np.where(mine, arrived * through, 0.0)
            total = float(reaching.sum())
            if not net.node_up(name):
                self._backlog[name] = 0.0
                continue
            capacity = self.capacity_per_s(name) * length_s
            done = min(total + self._backlog[name], capacity)
            waiting = total + self._backlog[name] - done
            patience = self._full_per_s(name) * c.REQUEST_TIMEOUT_S
            self._backlog[name] = min(waiting, patience)
            if total > 0:
                answered += reaching * min(1.0, done / total)
            app_cpu_s[name] = done * self.work_s(name)
            app_load[name] = done / capacity if capacity > 0 else 0.0
        # Poisson arrivals, thinned: answered and failed are independent Poisson counts.
        return Served(
            asked=arrived,
            answered=rng.poisson(answered).astype(np.float64),
            failed=rng.poisson(np.maximum(0.0, arrived - answered)).astype(np.float64),
            app_cpu_s=app_cpu_s,
            app_load=app_load,
        )

    def work_s(self, app: str) -> float:
        """CPU time of one request."""
        beside_s = c.GUEST_REQUEST_CPU_S if app in self._network.guests else c.REQUEST_CPU_S
        return self._network.apps[app].cpu_ms_per_request / 1000 + beside_s

    def service_s(self, app: str) -> float:
        """What a request takes on a processor for itself; a guest does the rest of its work beside the answer."""
        beside_s = c.GUEST_ANSWER_S if app in self._network.guests else c.REQUEST_CPU_S
        return self._network.apps[app].cpu_ms_per_request / 1000 + beside_s

    def capacity_per_s(self, app: str) -> float:
        """Requests/s that all replicas can answer."""
        return self._network.nodes[app].replicas * self._network.process_cpus(app) / self.work_s(app)

    def _full_per_s(self, app: str) -> float:
        """The same while a guest runs; one that is suspended answers when it goes on."""
        if self._network.serves(app):
            return self.capacity_per_s(app)
        return self._network.nodes[app].replicas / self.work_s(app)

    def server_times_s(self, app: str, load: float, flows: int, count: int, rng: np.random.Generator) -> Array:
        """Wait and service of requests, ``count`` of each of some flows; ``load`` of what the CPU limit allows.

        A worker runs at full speed until the quota of a CFS period is spent, enough for a burst of k
        requests, and at the limit's rate on average. So a request waits M/D/1 at full speed, and, when
        the queue at the limit's rate would be longer than k, for that excess. For the latter the
        diffusion approximation of M/D/1 says P(Q > k) = load * exp(-2 k (1 - load) / load) and an
        exponential excess with the mean of the wait of those who wait (Kleinrock vol. 2, section 2.7).
        """
        servers = self._network.nodes[app].replicas
        speed = self._network.process_cpus(app)
        work_s, alone_s = self.work_s(app), self.service_s(app)
        burst = speed * self._period_s(app) / work_s
        full_load = load * speed
        limited = speed < 1 and load > 0
        uniform = rng.random((flows, 2 if limited else 1, count))
        mean_s = multi_server_wait_s(full_load, alone_s, servers)
        waits = waits_of(uniform[:, 0], full_load, mean_s, c.REQUEST_TIMEOUT_S)
        if limited:
            excess = min(load, MAX_LOAD)
            likely = excess * math.exp(-2 * servers * burst * (1 - excess) / excess)
            mean_s = multi_server_wait_s(excess, work_s / speed, servers) / excess
            waits += waits_of(uniform[:, 1], likely, likely * mean_s, c.REQUEST_TIMEOUT_S)
        service_s = alone_s if burst >= 1 else work_s / speed
        backlog_s = self._backlog[app] / self.capacity_per_s(app)
        times: Array = waits + service_s + backlog_s
        return times

    def _period_s(self, app: str) -> float:
        """In which a limit's CPU time is given out."""
        found = self._network.guests.supply_period_s(app) if app in self._network.guests else None
        return _CFS_PERIOD_S if found is None else found

    def _through(self, step: Step) -> Array:
        """Share of each flow's requests and responses that the network carried, shape (flows,)."""
        share = np.zeros(step.offered_bits.size)
        np.divide(step.delivered_bits, step.offered_bits, out=share, where=step.offered_bits > 0)
        # TCP repairs single losses; a lane that is shut or starved is what stops requests.
        pairs = np.minimum(share.reshape(-1, 2), 1.0)
        survival = self._network.way.survival.reshape(-1, 2)
        repaired = np.divide(pairs, survival, out=np.zeros_like(pairs), where=survival > 0)
        through: Array = np.minimum(1.0, repaired.min(axis=1, initial=1.0))
        return through
