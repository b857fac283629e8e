"""From the counters of periodic tasks to KPIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twin.emulation.meter import Deltas
from twin.types import Kpi

_NAMES = {"p50_us": "task_response_p50_s", "p99_us": "task_response_p99_s", "max_us": "task_response_max_s"}


class TaskMeter:
    """Responses are those of the jobs that ended since the last reading."""

    def __init__(self) -> None:
        self._deltas = Deltas()

    def kpis(self, time_s: float, span_s: float, readings: Mapping[str, Mapping[str, Any]]) -> list[Kpi]:
        """KPIs of an interval of ``span_s``, from the statistics of the ``tasks`` programs by node."""
        rows: list[Kpi] = []
        for node, stats in readings.items():
            for number, row in enumerate(stats["tasks"], start=1):
                entity = f"task:{node}.{number}"
                rows.append(Kpi(time_s, entity, "jobs_per_s", self._deltas((entity,), row["jobs"]) / span_s))
                rows.extend(Kpi(time_s, entity, name, row[key] / 1e6) for key, name in _NAMES.items() if key in row)
                if row["jobs_now"]:
                    rows.append(Kpi(time_s, entity, "deadline_miss_ratio", row["missed_now"] / row["jobs_now"]))
        return rows
