"""CPU and memory of control groups over an interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from twin.emulation.cgroups import Cgroup
from twin.emulation.meter import Deltas
from twin.types import Kpi


@dataclass(frozen=True)
class Computing:
    """CPU and memory of one or several control groups in an interval; a limit None is no limit."""

    used_millicores: float
    periods: float
    throttled: float
    limit_millicores: float | None
    memory_bytes: int
    memory_limit_bytes: int | None

    @classmethod
    def read(cls, group: Cgroup, key: str, deltas: Deltas, span_s: float) -> Self:
        """What a group used in the last ``span_s``; ``key`` names it in ``deltas``."""
        stats = group.stats()
        return cls(
            used_millicores=1000 * deltas((key, "cpu"), stats.cpu_used_s) / span_s,
            periods=deltas((key, "periods"), stats.periods),
            throttled=deltas((key, "throttled"), stats.throttled_periods),
            limit_millicores=stats.cpu_limit_millicores,
            memory_bytes=stats.memory_used_bytes,
            memory_limit_bytes=stats.memory_limit_bytes,
        )

    def plus(self, other: Computing) -> Computing:
        """Both together; one without a limit makes the sum unlimited."""
        limits = (self.limit_millicores, other.limit_millicores)
        memories = (self.memory_limit_bytes, other.memory_limit_bytes)
        return Computing(
            self.used_millicores + other.used_millicores,
            self.periods + other.periods,
            self.throttled + other.throttled,
            None if None in limits else sum(limit for limit in limits if limit is not None),
            self.memory_bytes + other.memory_bytes,
            None if None in memories else sum(limit for limit in memories if limit is not None),
        )

    def kpis(self, time_s: float, entity: str) -> list[Kpi]:
        """CPU use, limit and throttling as KPIs of an entity."""
        rows = [Kpi(time_s, entity, "cpu_used_millicores", self.used_millicores)]
        if self.limit_millicores is not None:
            rows.append(Kpi(time_s, entity, "cpu_limit_millicores", self.limit_millicores))
            ratio = self.throttled / self.periods if self.periods else 0.0
            rows.append(Kpi(time_s, entity, "cpu_throttled_ratio", ratio))
        return rows
