"""Periodic tasks in containers: served by their reservations, job by job, or by what the container's limit leaves.

A task with a reservation is served by :class:`twin.deadline.served.ReservedTask`, whose supply is never below the
supply bound function of the reservation. Without one it has a core for itself, or in a container with a CPU limit
an equal part of it in every ``CFS_PERIOD_S``, as a quota gives it. Reservations are admitted against the
``edge.cpus`` of the topology, a number of the scenario and not of this host, so that a run is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from topologies.model import Container, PeriodicTask, Topology
from twin.deadline.admission import Admission
from twin.deadline.reservation import Reservation, asked_for
from twin.deadline.served import ReservedTask, Served
from twin.flow.wakeups import Wakeups
from twin.types import Kpi

CFS_PERIOD_S = 0.1


@dataclass
class _Task:
    entity: str
    node: str
    task: PeriodicTask
    work_s: float
    served: ReservedTask
    wakeups: Wakeups = field(default_factory=Wakeups)
    period_us: float | None = None
    reservation: Reservation | None = None


class Tasks:
    """The tasks of all containers of a topology; ``admission`` may be shared with what else is reserved there."""

    def __init__(self, topology: Topology, admission: Admission) -> None:
        self._admission = admission
        containers = {node.name for node in topology.of_kind(Container)}
        self._tasks = {
            name: _Task(f"task:{name}", node, task, task.work_s, ReservedTask(task.period_s))
            for name, task in topology.tasks.items()
            if (node := name.rpartition(".")[0]) in containers
        }

    # ---- what knobs change

    def set_work(self, name: str, work_us: float) -> None:
        """CPU time of the jobs released from now on."""
        self._tasks[name].work_s = work_us * 1e-6

    def set_period(self, name: str, period_us: float) -> None:
        """Period of the next reservation."""
        self._tasks[name].period_us = period_us

    def set_budget(self, name: str, budget_us: float) -> str | None:
        """Reserve, or with 0 give back; the reason when it is refused."""
        task = self._tasks[name]
        if budget_us == 0:
            self._admission.release(task.entity)
            task.reservation = None
            return None
        try:
            wanted = asked_for(budget_us, task.period_us)
        except ValueError as error:
            return str(error)
        reason = self._admission.ask(task.entity, wanted)
        if reason is None:
            task.reservation = wanted
        return reason

    def restart(self, node: str) -> None:
        """The threads of a node that went down are gone: those that come have no backlog and no reservation."""
        for task in self._tasks.values():
            if task.node == node:
                self._admission.release(task.entity)
                task.period_us = task.reservation = None
                task.served, task.wakeups = ReservedTask(task.task.period_s), Wakeups()

    # ---- time

    def advance(
        self, time_s: float, span_s: float, up: Mapping[str, bool], millicores: Mapping[str, float | None]
    ) -> tuple[list[Kpi], dict[str, float]]:
        """KPIs of the interval of ``span_s`` that ends at ``time_s``, and the CPU seconds used by node.

        ``up``, ``millicores``: which nodes run, and their CPU limits (None: no limit).
        """
        rows: list[Kpi] = []
        used_s: dict[str, float] = {}
        ordinary: dict[str, int] = {}
        for task in self._tasks.values():
            if task.reservation is None and task.work_s > 0:
                ordinary[task.node] = ordinary.get(task.node, 0) + 1
        for task in self._tasks.values():
            if not up[task.node]:
                continue
            server = task.reservation or _quota(millicores[task.node], ordinary.get(task.node, 1))
            found = task.served.step(span_s, server, task.work_s)
            used_s[task.node] = used_s.get(task.node, 0.0) + found.used_s
            task.wakeups.add(found.awake_s)
            rows.extend(Kpi(time_s, task.entity, name, value) for name, value in _values(task, found, span_s))
        return rows, used_s


def _quota(millicores: float | None, tasks: int) -> Reservation | None:
    """What a CPU limit is for one of the threads that share it; None for a core of its own."""
    if millicores is None or millicores >= 1000 * tasks:
        return None
    return Reservation(CFS_PERIOD_S * millicores / 1000 / tasks, CFS_PERIOD_S)


def _values(task: _Task, found: Served, span_s: float) -> Iterator[tuple[str, float]]:
    yield "jobs_per_s", len(found.responses_s) / span_s
    yield from response_values(found.responses_s, task.task.period_s)
    if task.wakeups.period_s is not None:
        yield "wakeup_period_s", task.wakeups.period_s
    held = task.reservation
    if held is not None:
        yield from held.kpis()
        yield "dl_used_s", found.used_s * held.period_s / span_s


def response_values(responses_s: Sequence[float], task_period_s: float) -> Iterator[tuple[str, float]]:
    """The KPIs of the jobs that ended; none when none did."""
    if not len(responses_s):
        return
    ordered = np.sort(np.asarray(responses_s, dtype=np.float64))
    for name, rank in (("p50", 50), ("p99", 99)):
        yield f"task_response_{name}_s", float(np.percentile(ordered, rank, method="inverted_cdf"))
    yield "task_response_max_s", float(ordered[-1])
    # Work may fill the period to the last; rounding is no miss.
    yield "deadline_miss_ratio", float(np.mean(ordered > task_period_s * (1 + 1e-9)))
