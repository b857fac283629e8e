"""KPIs of partitions: of their control groups and states, and what their guests report.

Reservations and wake-ups of vCPUs are those of host threads: :mod:`twin.emulation.reservations`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from twin.emulation.computing import Computing
from twin.emulation.dataplane import histogram
from twin.emulation.guests import Guests
from twin.emulation.meter import Deltas
from twin.kpis import PARTITION_STATES
from twin.types import Kpi

_Rows = list[Kpi]


@dataclass
class _Task:
    jobs: float = 0.0
    missed: float = 0.0
    longest_us: float = 0.0
    responses: list[Mapping[str, Any]] = field(default_factory=list)


class GuestMeter:
    """Reads :class:`Guests`; rates are over the time since the last reading. Times inside a guest are its own."""

    def __init__(self, guests: Guests) -> None:
        self._guests = guests
        self._deltas = Deltas()
        self._reported_s = dict.fromkeys(guests.partitions, time.monotonic())

    def kpis(self, time_s: float, span_s: float, name: str) -> _Rows:
        """KPIs of one partition, of its tasks and of its service."""
        entity, guests = f"node:{name}", self._guests
        state = guests.managed(name).state.lower()
        rows = [Kpi(time_s, entity, "partition_state", float(PARTITION_STATES.index(state)))]
        computing = Computing.read(guests.group(name), name, self._deltas, span_s)
        reports, reported_s = self._reports(name)
        if state == "ready":
            return rows
        rows += self._computing(time_s, entity, name, computing)
        rows += self._tasks(time_s, reported_s, name, reports)
        if guests.partitions[name].vnf == "request":
            rows += self._requests(time_s, reported_s, entity, reports)
        return rows

    def _reports(self, name: str) -> tuple[list[Mapping[str, Any]], float]:
        """What a guest has reported since the last reading, and the time that it is about.

        Lines come a few times an interval, not at its end: rates are over the time between the last ones of two.
        """
        found = self._guests.reports(name)
        until_s = found[-1][0] if found else time.monotonic()
        since_s, self._reported_s[name] = self._reported_s[name], until_s
        return [report for _, report in found], max(until_s - since_s, 1e-3)

    def _computing(self, time_s: float, entity: str, name: str, computing: Computing) -> Iterable[Kpi]:
        reserved, partition = self._guests.reservation(name), self._guests.partitions[name]
        for kpi in computing.kpis(time_s, entity):
            if kpi.name != "cpu_limit_millicores" or reserved is None:
                yield kpi
        if reserved is not None and not partition.critical:
            # A reservation by ``limit`` is a limit too, and the quota of the group does not act on it.
            millicores = 1000 * partition.cores * reserved.runtime_us / reserved.period_us
            yield Kpi(time_s, entity, "cpu_limit_millicores", millicores)
        yield Kpi(time_s, entity, "memory_used_bytes", float(computing.memory_bytes))
        if computing.memory_limit_bytes is not None:
            yield Kpi(time_s, entity, "memory_limit_bytes", float(computing.memory_limit_bytes))

    def _tasks(self, time_s: float, span_s: float, name: str, reports: list[Mapping[str, Any]]) -> Iterable[Kpi]:
        tasks = [_Task() for _ in self._guests.partitions[name].tasks]
        for report in reports:
            for number, (task, row) in enumerate(zip(tasks, report["load"], strict=False)):
                task.jobs += self._deltas((name, str(number), "jobs"), row["jobs"])
                task.missed += self._deltas((name, str(number), "missed"), row["missed"])
                task.responses.append(row["responses"])
                if row["response_us"]:
                    task.longest_us = max(task.longest_us, row["response_us"]["max"])
        for number, task in enumerate(tasks, start=1):
            entity = f"task:{name}.{number}"
            yield Kpi(time_s, entity, "jobs_per_s", task.jobs / span_s)
            if not task.jobs:
                continue
            yield Kpi(time_s, entity, "deadline_miss_ratio", task.missed / task.jobs)
            yield Kpi(time_s, entity, "task_response_max_s", task.longest_us / 1e6)
            yield from _percentiles(time_s, entity, "task_response", (50, 99), task.responses)

    def _requests(self, time_s: float, span_s: float, entity: str, reports: list[Mapping[str, Any]]) -> Iterable[Kpi]:
        answered = failed = 0.0
        for report in reports:
            answered += self._deltas((entity, "answered"), report["http_requests"])
            failed += self._deltas((entity, "failed"), report["http_failures"])
        yield Kpi(time_s, entity, "requests_per_s", answered / span_s)
        yield Kpi(time_s, entity, "request_failures_per_s", failed / span_s)
        yield from _percentiles(time_s, entity, "response", (50, 95, 99), [one["http_responses"] for one in reports])


def _percentiles(
    time_s: float, entity: str, name: str, ranks: tuple[int, ...], found: list[Mapping[str, Any]]
) -> Iterable[Kpi]:
    merged = histogram.merge(found)
    for rank in ranks:
        value_us = histogram.percentile(merged, rank)
        if value_us is not None:
            yield Kpi(time_s, entity, f"{name}_p{rank}_s", value_us / 1e6)
