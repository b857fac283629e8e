"""Partitions in the flow model: states, limits, reservations and periodic tasks of emulated guests.

A guest is a server of ``cores`` processors that its CPU limit or reservation supplies; its tasks share it equally
(:class:`GuestServer`), and what they leave, but at least half, is for its service. The work of tasks and requests is
that of the guest's own processor, as in an emulation, so no speed of another processor comes in; what an emulated
guest costs beside it is in :mod:`twin.flow.constants`. While it is suspended its clock stands still.

An attack, of whatever kind, takes half of the guest's processors from its tasks and its service, and all CPU time that
its limits leave. Other guests do not notice, which is right for isolated ones and too kind to plain virtual machines.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from topologies.model import Partition, PeriodicTask, Topology
from twin.deadline.admission import Admission
from twin.deadline.reservation import Reservation, asked_for
from twin.deadline.served import Served
from twin.flow import constants as c
from twin.flow.tasks import response_values
from twin.flow.wakeups import Wakeups
from twin.kpis import PARTITION_STATES
from twin.partitions import DEPLOYED, READY, SUSPENDED, transition
from twin.types import Kpi

CRITICAL = Reservation(0.008, 0.010)
"""Of each vCPU of a critical partition, as the vManager reserves it; it may use what others leave, too."""
_ROUNDING_S = 1e-12


class GuestServer:
    """Periodic tasks on the processors of one guest, each with jobs in turn, all served alike (processor sharing)."""

    def __init__(self, tasks: Sequence[PeriodicTask], cores: int) -> None:
        self._tasks = tasks
        self._cores = cores
        self._now_s = 0.0
        self._released = [0] * len(tasks)
        self._jobs: list[deque[list[float]]] = [deque() for _ in tasks]  # release time, work left
        self._left_s = math.inf  # of all budgets in this period
        self._renewal_s = math.inf
        self._woke_s = 0.0

    def step(
        self, duration_s: float, supply: Reservation | None, works_s: Sequence[float]
    ) -> tuple[list[Served], float]:
        """Go on by ``duration_s``; jobs released in it take ``works_s``, by task. What happened to each task, and the
        CPU seconds in all. ``supply``: budget and period of each processor, None for all of its time.
        """
        end_s = self._now_s + duration_s
        used_s = [0.0] * len(self._tasks)
        responses_s: list[list[float]] = [[] for _ in self._tasks]
        awake_s: list[tuple[float, float]] = []
        if supply is None:
            self._left_s = self._renewal_s = math.inf
        elif math.isinf(self._renewal_s):
            self._renewal_s = self._now_s
        while self._now_s < end_s - _ROUNDING_S:
            if supply is not None and self._renewal_s <= self._now_s + _ROUNDING_S:
                self._left_s = supply.budget_s * self._cores
                self._renewal_s += supply.period_s
            self._release(works_s)
            moment_s = min(end_s, self._renewal_s, *map(self._next_release_s, range(len(self._tasks))))
            active = [number for number, jobs in enumerate(self._jobs) if jobs]
            if not active or self._left_s <= _ROUNDING_S:
                self._now_s = moment_s
                continue
            speed = min(1.0, self._cores / len(active))
            shortest_s = min(self._jobs[number][0][1] for number in active)
            run_s = min(moment_s - self._now_s, shortest_s / speed, self._left_s / (speed * len(active)))
            self._now_s += run_s
            self._left_s -= run_s * speed * len(active)
            for number in active:
                job = self._jobs[number][0]
                job[1] -= run_s * speed
                used_s[number] += run_s * speed
                if job[1] <= _ROUNDING_S:
                    responses_s[number].append(self._now_s - job[0])
                    self._jobs[number].popleft()
            if not any(self._jobs):
                awake_s.append((self._woke_s, self._now_s - self._woke_s))
        rows = [
            Served(used, responses, sum(left_s for _, left_s in jobs), awake_s)
            for used, responses, jobs in zip(used_s, responses_s, self._jobs, strict=True)
        ]
        return rows, sum(used_s)

    def _next_release_s(self, number: int) -> float:
        return self._released[number] * self._tasks[number].period_s

    def _release(self, works_s: Sequence[float]) -> None:
        for number, jobs in enumerate(self._jobs):
            while (release_s := self._next_release_s(number)) <= self._now_s + _ROUNDING_S:
                if not any(self._jobs):
                    self._woke_s = self._now_s
                # The VNF runtime knows no job without work.
                jobs.append([release_s, max(works_s[number], 1e-6)])
                self._released[number] += 1


@dataclass
class _Guest:
    node: Partition
    works_s: list[float]
    server: GuestServer
    state: str = READY
    ready_s: float = 0.0
    """When it has booted."""
    cpu_millicores: float | None = None
    period_us: float | None = None
    reservation: Reservation | None = None
    """What a knob asked for: of every vCPU, also of the next guest."""
    held: Reservation | None = None
    """What is in force."""
    wakeups: Wakeups = field(default_factory=Wakeups)
    """Of a single vCPU; of several, no thread has all of them."""
    attacked: bool = False

    @property
    def entity(self) -> str:
        return f"node:{self.node.name}"


class Guests:
    """The partitions of a topology, all deployed and booted at time 0. ``admission`` is that of the edge server."""

    def __init__(self, topology: Topology, admission: Admission) -> None:
        self._admission = admission
        self._guests = {
            node.name: _Guest(
                node,
                [task.work_s for task in node.tasks],
                GuestServer(node.tasks, node.cores),
                cpu_millicores=node.cpu_millicores,
            )
            for node in topology.of_kind(Partition)
        }
        for guest in self._guests.values():
            self._deploy(guest, 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self._guests

    # ---- what knobs change

    def set_state(self, name: str, wanted: str, now_s: float) -> str | None:
        """By the vManager's transitions; the reason when there is none from the present state."""
        guest = self._guests[name]
        reason = transition(name, guest.state, wanted)
        if reason is not None or wanted == guest.state:
            return reason
        if wanted == READY:
            guest.state, guest.attacked = READY, False
            self._release(guest)
        elif guest.state == READY:
            self._deploy(guest, now_s + c.GUEST_BOOT_S)
        else:
            guest.state = wanted
        return None

    def set_attack(self, name: str, kind: str) -> str | None:
        """Attack a guest or, with ``none``, end it; the reason when there is no guest that runs."""
        guest = self._guests[name]
        if guest.state != DEPLOYED:
            return f"partition {name} is {guest.state.upper()}; only a DEPLOYED one can be attacked"
        guest.attacked = kind != "none"
        return None

    def set_cpu(self, name: str, millicores: float) -> None:
        """CPU limit, in place of a reservation."""
        guest = self._guests[name]
        guest.cpu_millicores, guest.reservation = millicores, None
        self._release(guest)

    def set_period(self, name: str, period_us: float) -> None:
        """Period of the next reservation."""
        self._guests[name].period_us = period_us

    def set_budget(self, name: str, budget_us: float) -> str | None:
        """Reserve for every vCPU, or with 0 give back; the reason when it is refused."""
        guest = self._guests[name]
        if budget_us == 0:
            guest.reservation = None
            self._release(guest)
            return None
        try:
            wanted = asked_for(budget_us, guest.period_us)
        except ValueError as error:
            return str(error)
        if guest.state != READY:
            reason = self._admission.ask(guest.entity, wanted, guest.node.cores)
            if reason is not None:
                return reason
            guest.held = wanted
        guest.reservation = wanted
        return None

    def set_work(self, name: str, number: int, work_s: float) -> str | None:
        """Work of the jobs of one task, counted from 1, that are released from now on; the reason when refused."""
        guest = self._guests[name]
        period_s = guest.node.tasks[number - 1].period_s
        if work_s > period_s:
            return f"must be at most the period in a guest, {period_s * 1e6:g}, got {work_s * 1e6:g}"
        guest.works_s[number - 1] = work_s
        return None

    def _deploy(self, guest: _Guest, ready_s: float) -> None:
        guest.state, guest.ready_s = DEPLOYED, ready_s
        guest.server, guest.wakeups = GuestServer(guest.node.tasks, guest.node.cores), Wakeups()
        wanted = CRITICAL if guest.node.critical else guest.reservation
        if wanted is None:
            return
        others = [one for one in self._guests.values() if one.held is not None and not one.node.critical]
        while self._admission.ask(guest.entity, wanted, guest.node.cores) is not None:
            if not (guest.node.critical and others):
                return  # by weight only, as on a host whose CPU time is given away
            squeezed = others.pop()
            squeezed.reservation = None
            self._release(squeezed)
        guest.held = wanted

    def _release(self, guest: _Guest) -> None:
        self._admission.release(guest.entity)
        guest.held = None

    # ---- what the network asks

    def next_change_s(self, after_s: float) -> float:
        """When the next guest has booted; infinity when none boots."""
        return min(
            (one.ready_s for one in self._guests.values() if one.state == DEPLOYED and one.ready_s > after_s),
            default=math.inf,
        )

    def up(self, name: str, now_s: float) -> bool:
        """Whether packets find a guest, running or suspended."""
        guest = self._guests[name]
        return guest.state != READY and guest.ready_s <= now_s + _ROUNDING_S

    def deployed(self, name: str) -> bool:
        """Whether a guest is there, booted or not."""
        return self._guests[name].state != READY

    def cpus(self, name: str) -> float:
        """Of each processor, what is there for the service of the guest; 0 while it is suspended."""
        guest = self._guests[name]
        if guest.state == SUSPENDED:
            return 0.0
        supply = self._supply(guest)
        whole = 1.0 if supply is None else supply.alpha
        tasks = sum(work / task.period_s for work, task in zip(guest.works_s, guest.node.tasks, strict=True))
        return max(whole - tasks / guest.node.cores, whole / 2)

    def supply_period_s(self, name: str) -> float | None:
        """Period in which the processors get their budgets; None when nothing limits them."""
        supply = self._supply(self._guests[name])
        return None if supply is None else supply.period_s

    @classmethod
    def _supply(cls, guest: _Guest) -> Reservation | None:
        """Budget and period of each processor for what the guest is there for; None for all of its time."""
        whole = cls._whole(guest)
        if not guest.attacked:
            return whole
        if whole is None:
            return Reservation(c.GUEST_LATENCY_S / 2, c.GUEST_LATENCY_S)
        return Reservation(whole.budget_s / 2, whole.period_s)

    @staticmethod
    def _whole(guest: _Guest) -> Reservation | None:
        if guest.node.critical:
            return None  # a reservation that may use what others leave
        if guest.held is not None:
            return guest.held
        share = 1.0 if guest.cpu_millicores is None else guest.cpu_millicores / 1000 / guest.node.cores
        return None if share >= 1 else Reservation(c.CGROUP_PERIOD_S * share, c.CGROUP_PERIOD_S)

    # ---- time

    def advance(self, from_s: float, time_s: float) -> tuple[list[Kpi], dict[str, float]]:
        """KPIs of the interval up to ``time_s``, and the CPU seconds that tasks used, by node."""
        rows: list[Kpi] = []
        used_s: dict[str, float] = {}
        for name, guest in self._guests.items():
            rows.append(Kpi(time_s, guest.entity, "partition_state", float(PARTITION_STATES.index(guest.state))))
            if guest.state == READY:
                continue
            running_s = time_s - max(from_s, guest.ready_s) if guest.state == DEPLOYED else 0.0
            found = [Served(0.0, (), 0.0)] * len(guest.node.tasks)
            used_s[name] = 0.0
            if running_s > _ROUNDING_S:
                found, used_s[name] = guest.server.step(running_s, self._supply(guest), guest.works_s)
                used_s[name] += c.GUEST_IDLE_CPUS * running_s
                if guest.attacked:
                    whole = self._whole(guest)
                    used_s[name] = running_s * guest.node.cores * (1.0 if whole is None else whole.alpha)
                if guest.node.cores == 1 and found:
                    guest.wakeups.add(found[0].awake_s)
            rows += self._kpis(guest, found, time_s, time_s - from_s)
        return rows, used_s

    def _kpis(self, guest: _Guest, found: Iterable[Served], time_s: float, span_s: float) -> Iterator[Kpi]:
        for number, (task, served) in enumerate(zip(guest.node.tasks, found, strict=True), start=1):
            entity = f"task:{guest.node.name}.{number}"
            yield Kpi(time_s, entity, "jobs_per_s", len(served.responses_s) / span_s)
            for name, value in response_values(served.responses_s, task.period_s):
                yield Kpi(time_s, entity, name, value)
        if guest.wakeups.period_s is not None:
            yield Kpi(time_s, guest.entity, "wakeup_period_s", guest.wakeups.period_s)
        if guest.held is not None:
            for name, value in guest.held.kpis():
                yield Kpi(time_s, guest.entity, name, value)

    def used_of_reservation(self, name: str, used_s: float, span_s: float) -> float | None:
        """CPU seconds of each vCPU in a period of its reservation, of ``used_s`` in all; None without."""
        guest = self._guests[name]
        return None if guest.held is None else used_s / guest.node.cores * guest.held.period_s / span_s

    def limit_millicores(self, name: str) -> float | None:
        """What the guest may use at most; None for critical ones and plain virtual machines."""
        guest = self._guests[name]
        if guest.node.critical or not guest.node.isolated:
            return None
        if guest.held is not None:
            return 1000 * guest.node.cores * guest.held.alpha
        return 1000.0 * guest.node.cores if guest.cpu_millicores is None else guest.cpu_millicores
