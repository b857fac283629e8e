"""The budget that a thread needs, from the CPU time it used: NANCY D3.4 §4.2, Figure 23.

Every monitoring cycle: C, the CPU time used per reservation period, enters a ring of N samples whose largest
is c_max. A growing c_max doubles the acceleration l, any other resets it to 1, and

    Q = min(share·P, c_max·(1 + ovh·l)).

Added to the figure, whose end is missing: the law stops at ``max_share`` of the period (the paper's 80 %) and
at ``min_budget_s``, and a c_max that grows by less than ``tolerance`` does not accelerate, since measured times
waver by a few parts in a thousand. A budget that was used up in a whole cycle makes l at least ``exhausted``:
l = 2 would need four cycles for three times the time when the change comes late in a cycle; ``exhausted=1`` is the
figure's law. N is 2 by default: a larger ring would keep an old maximum for longer than
the three cycles in which a budget should follow a thread that needs less.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# A settled thread uses 1 / (1 + ovh) of its budget, one that wants more all of it; measured times waver.
_USED_UP = 0.97


@dataclass(frozen=True, slots=True)
class LawSettings:
    """``overallocation``: ovh. ``samples``: N. ValueError says which is out of range.

    ``tolerance`` must stay below ``overallocation``, or a thread that uses up its budget would not be noticed.
    """

    overallocation: float = 0.1
    samples: int = 2
    max_share: float = 0.8
    tolerance: float = 0.02
    min_budget_s: float = 1e-4
    exhausted: int = 6

    def __post_init__(self) -> None:
        for name, allowed, right in (
            ("overallocation", "(0, 10]", 0 < self.overallocation <= 10),
            ("samples", "1 to 1000", 1 <= self.samples <= 1000),
            ("max_share", "(0, 1]", 0 < self.max_share <= 1),
            ("tolerance", f"[0, {self.overallocation:g})", 0 <= self.tolerance < self.overallocation),
            # Less than 1024 ns the kernel refuses.
            ("min_budget_s", "1.024e-06 or more", self.min_budget_s >= 1.024e-6),
            ("exhausted", "1 to 1000", 1 <= self.exhausted <= 1000),
        ):
            if not right:
                raise ValueError(f"budget law: {name} must be in {allowed}, got {getattr(self, name):g}")


class BudgetLaw:
    """State of the law for one thread; ``budget_s`` is what it asks for, ``used_s`` the last C."""

    def __init__(self, period_s: float, budget_s: float, settings: LawSettings | None = None) -> None:
        self.settings = LawSettings() if settings is None else settings
        if self.settings.min_budget_s > self.settings.max_share * period_s:
            raise ValueError(
                f"budget law: period_s must be at least {self.settings.min_budget_s / self.settings.max_share:g}, "
                f"got {period_s:g}"
            )
        self.period_s = period_s
        self.budget_s = self._within(budget_s)
        self.used_s = 0.0
        self._acceleration = 1
        self._ring: deque[float] = deque(maxlen=self.settings.samples)
        self._largest_s = -1.0
        self._last: tuple[float, float] | None = None

    def update(self, time_s: float, executed_s: float) -> float:
        """Take the thread's CPU time so far at a moment; returns the new budget in seconds.

        The first call only remembers. ValueError when time does not advance.
        """
        if self._last is None:
            self._last = time_s, executed_s
            return self.budget_s
        elapsed_s = time_s - self._last[0]
        if elapsed_s <= 0:
            raise ValueError(f"budget law: time_s must advance, got {time_s:g} after {self._last[0]:g}")
        self.used_s = (executed_s - self._last[1]) * self.period_s / elapsed_s
        self._last = time_s, executed_s
        self._ring.append(self.used_s)
        largest_s = max(self._ring)
        if self._largest_s >= 0:
            grew = largest_s > self._largest_s * (1 + self.settings.tolerance)
            self._acceleration = min(2 * self._acceleration, 1 << 30) if grew else 1
            if self.used_s >= _USED_UP * self.budget_s and self.settings.exhausted > 1:
                self._acceleration = max(self._acceleration, self.settings.exhausted)
        self._largest_s = largest_s
        self.budget_s = self._within(largest_s * (1 + self.settings.overallocation * self._acceleration))
        return self.budget_s

    def _within(self, budget_s: float) -> float:
        return max(self.settings.min_budget_s, min(self.settings.max_share * self.period_s, budget_s))
