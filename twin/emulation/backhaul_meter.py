"""KPIs of backhaul flows, from the counters of their sources and sinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twin.emulation.backhaul import BackhaulPlan
from twin.types import Kpi


class BackhaulMeter:
    """Rates over the time between two readings of each program, on the program's own clock."""

    def __init__(self, plan: BackhaulPlan) -> None:
        self._plan = plan
        self._last: dict[tuple[str, str], tuple[int, int]] = {}

    def kpis(self, time_s: float, stats: Mapping[str, Mapping[str, Any]]) -> list[Kpi]:
        """``stats`` by program; a program that did not answer leaves its KPIs out."""
        rows = []
        for name, one in self._plan.flows.items():
            source, sink = stats.get(one.host), stats.get(one.flow.sink)
            if source is not None:
                offered = self._rate_bps(one.host, name, source["time_ns"], source["offered_bytes"])
                rows.append(Kpi(time_s, f"flow:{name}", "offered_bps", offered))
            if sink is not None:
                carried = self._rate_bps(one.flow.sink, name, sink["time_ns"], sink["flows"][name]["rx_bytes"])
                rows.append(Kpi(time_s, f"flow:{name}", "throughput_bps", carried))
        return rows

    def _rate_bps(self, program: str, flow: str, time_ns: int, count: int) -> float:
        before_ns, before = self._last.get((program, flow), (time_ns - 1, count))
        self._last[program, flow] = (time_ns, count)
        return (count - before) * 8e9 / max(1, time_ns - before_ns)
