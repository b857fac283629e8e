"""What a SCHED_DEADLINE reservation guarantees (NANCY D3.4 §4.1): bandwidth, service delay, supply, response.

The supply bound function is that of the periodic resource model: Shin and Lee, "Periodic Resource Model for
Compositional Real-Time Guarantees", RTSS 2003, eq. 1, of which the constant bandwidth server is an instance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

# Of rounding in floating point, never of time on a host.
_RELATIVE = 1e-9
_MAX_JOBS = 100_000
MIN_BUDGET_US = 1.024


@dataclass(frozen=True, slots=True)
class Reservation:
    """``budget_s`` (Q, dl_runtime) in every ``period_s`` (P, dl_period). ValueError unless 0 < Q <= P."""

    budget_s: float
    period_s: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.period_s) and self.period_s > 0):
            raise ValueError(f"reservation: period_s must be above 0, got {self.period_s:g}")
        if not 0 < self.budget_s <= self.period_s:
            raise ValueError(f"reservation: budget_s must be in (0, {self.period_s:g}], got {self.budget_s:g}")

    @property
    def alpha(self) -> float:
        """Bandwidth Q / P, as a share of one core (NANCY D3.4 §4.1)."""
        return self.budget_s / self.period_s

    @property
    def delta_s(self) -> float:
        """Worst-case service delay 2 (P − Q) in seconds (NANCY D3.4 §4.1)."""
        return 2 * (self.period_s - self.budget_s)

    def kpis(self) -> Iterator[tuple[str, float]]:
        """Names and values of the KPIs of a reservation in force."""
        yield "dl_budget_s", self.budget_s
        yield "dl_period_s", self.period_s
        yield "dl_alpha_ratio", self.alpha
        yield "dl_delta_s", self.delta_s

    def supply_s(self, interval_s: float) -> float:
        """CPU seconds supplied in any interval of this length, at least (supply bound function).

        sbf(t) = k·Q + max(0, t − 2(P − Q) − k·P) with k = ⌊(t − (P − Q)) / P⌋, 0 before P − Q.
        """
        idle_s = self.period_s - self.budget_s
        if interval_s < idle_s:
            return 0.0
        whole = math.floor((interval_s - idle_s) / self.period_s * (1 + _RELATIVE))
        return whole * self.budget_s + max(0.0, interval_s - self.delta_s - whole * self.period_s)

    def linear_supply_s(self, interval_s: float) -> float:
        """Largest line below :meth:`supply_s`: max(0, α (t − Δ))."""
        return max(0.0, self.alpha * (interval_s - self.delta_s))

    def time_to_supply_s(self, demand_s: float) -> float:
        """Shortest interval in which ``demand_s`` CPU seconds are guaranteed; 0 for no demand."""
        if demand_s <= 0:
            return 0.0
        periods = max(0, math.ceil(demand_s / self.budget_s * (1 - _RELATIVE)) - 1)
        return self.delta_s + periods * self.period_s + (demand_s - periods * self.budget_s)

    def response_s(self, execution_s: float, task_period_s: float) -> float:
        """Worst-case response of a task of ``execution_s`` every ``task_period_s`` alone in the reservation.

        max over the jobs q of the busy interval of sbf⁻¹(q·C) − (q − 1)·T; ``inf`` when C / T > α (no bound).
        """
        if execution_s <= 0:
            return 0.0
        if execution_s / task_period_s > self.alpha * (1 + _RELATIVE):
            return math.inf
        worst_s = 0.0
        for job in range(1, _MAX_JOBS):
            end_s = self.time_to_supply_s(job * execution_s)
            response_s = end_s - (job - 1) * task_period_s
            if response_s <= worst_s and job > 1:
                # With C / T equal to alpha the busy interval need not end, but its responses repeat.
                break
            worst_s = max(worst_s, response_s)
            if end_s <= job * task_period_s:
                break
        return worst_s


def asked_for(budget_us: float, period_us: float | None) -> Reservation:
    """The reservation of the knobs ``dl_runtime_us`` and ``dl_period_us``; ValueError says why there is none."""
    if period_us is None:
        raise ValueError("has no period yet; set dl_period_us before")
    # Below 1024 ns the kernel refuses.
    if not MIN_BUDGET_US <= budget_us <= period_us:
        raise ValueError(
            f"must be 0 or in [{MIN_BUDGET_US:g}, {period_us:g}] (at most the period, dl_period_us), got {budget_us:g}"
        )
    return Reservation(budget_us * 1e-6, period_us * 1e-6)


def smallest_budget_s(execution_s: float, task_period_s: float, period_s: float, deadline_s: float) -> float | None:
    """Least Q for which a task keeps ``deadline_s`` in a reservation of ``period_s``; None when not even Q = P does.

    By bisection to 1 µs: the response of a task falls when its budget grows.
    """
    if Reservation(period_s, period_s).response_s(execution_s, task_period_s) > deadline_s:
        return None
    low_s, high_s = 0.0, period_s
    while high_s - low_s > 1e-6:
        middle_s = (low_s + high_s) / 2
        if Reservation(middle_s, period_s).response_s(execution_s, task_period_s) <= deadline_s:
            high_s = middle_s
        else:
            low_s = middle_s
    return high_s
