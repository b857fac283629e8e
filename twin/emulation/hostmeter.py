"""How busy the host is."""

from __future__ import annotations

import time

import psutil

from twin.types import Kpi


class HostMeter:
    """Rates between two calls of :meth:`kpis`; the first interval starts at construction."""

    def __init__(self) -> None:
        self._cores = psutil.cpu_count() or 1
        self._busy_s, self._at_s = self._read()

    def kpis(self, time_s: float) -> list[Kpi]:
        """``host_cpu_ratio`` since the last call, ``host_memory_ratio`` now."""
        busy_s, at_s = self._read()
        span_s = max(at_s - self._at_s, 1e-6)
        rows = [
            Kpi(time_s, "run", "host_cpu_ratio", min(1.0, (busy_s - self._busy_s) / (span_s * self._cores))),
            Kpi(time_s, "run", "host_memory_ratio", psutil.virtual_memory().percent / 100),
        ]
        self._busy_s, self._at_s = busy_s, at_s
        return rows

    @staticmethod
    def _read() -> tuple[float, float]:
        times = psutil.cpu_times()
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        # guest time is already part of user time on Linux
        total_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total_s - idle_s, time.monotonic()
