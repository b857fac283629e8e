"""The period of a thread's wake-ups in the flow model, found as on a host and looked for no more often than pays."""

from __future__ import annotations

from collections.abc import Iterable

from twin.deadline.periodicity import PeriodFinder

# A period once found is looked at again after this many: by then half of 100 wake-ups are new.
_LOOK_AGAIN = 50


class Wakeups:
    """Of one thread. ``period_s`` is None while it is unknown, and when there is none."""

    def __init__(self) -> None:
        self.period_s: float | None = None
        self._finder = PeriodFinder()
        self._unseen = 0

    def add(self, awake_s: Iterable[tuple[float, float]]) -> None:
        """More wake-ups: (woke at, for how long)."""
        for woke_s, busy_s in awake_s:
            self._finder.add(woke_s, busy_s)
            self._unseen += 1
        if self._unseen >= _LOOK_AGAIN or not self._finder.final:
            self.period_s, self._unseen = self._finder.verdict().period_s, 0
