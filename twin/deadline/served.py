"""A periodic task served by a reservation, job by job, in simulated time: the reservation of the flow fidelity.

The task is alone on its core, so the server gives its budget at the beginning of every period, as a constant
bandwidth server does for the thread with the earliest deadline. Contention is what
:meth:`twin.deadline.reservation.Reservation.response_s` bounds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from twin.deadline.reservation import Reservation

_ROUNDING_S = 1e-12


@dataclass(frozen=True, slots=True)
class Served:
    """What happened in a step: CPU seconds, responses (s) of the jobs that ended, work (s) still waiting.

    ``awake_s``: (woke at, for how long) of every time awake that ended; a task with a backlog does not sleep.
    """

    used_s: float
    responses_s: Sequence[float]
    backlog_s: float
    awake_s: Sequence[tuple[float, float]] = ()


class ReservedTask:
    """A task with jobs every ``task_period_s``; the first is released at time 0."""

    def __init__(self, task_period_s: float) -> None:
        if task_period_s <= 0:
            raise ValueError(f"task: task_period_s must be above 0, got {task_period_s:g}")
        self.task_period_s = task_period_s
        self.now_s = 0.0
        self.executed_s = 0.0
        self._released = 0
        self._jobs: deque[list[float]] = deque()  # release time, work left
        self._left_s = 0.0  # of the budget in this period
        self._renewal_s = 0.0
        self._woke_s = 0.0

    def step(self, duration_s: float, reservation: Reservation | None, execution_s: float) -> Served:
        """Go on by ``duration_s``; jobs released in it take ``execution_s`` (C) each.

        A new budget holds from the next period on, as sched_setattr(2) does for a running server. Without a
        reservation the task has its core for itself; the first period of one that follows begins at once.
        """
        if duration_s <= 0 or execution_s < 0:
            raise ValueError(f"task: duration_s above 0, execution_s 0 or more; got {duration_s:g}, {execution_s:g}")
        end_s = self.now_s + duration_s
        before_s = self.executed_s
        responses_s: list[float] = []
        awake_s: list[tuple[float, float]] = []
        if reservation is None:
            self._left_s = self._renewal_s = math.inf
        elif math.isinf(self._renewal_s):
            self._renewal_s = self.now_s
        while self.now_s < end_s - _ROUNDING_S:
            if reservation is not None and self._renewal_s <= self.now_s + _ROUNDING_S:
                self._left_s = reservation.budget_s
                self._renewal_s += reservation.period_s
            while self._released * self.task_period_s <= self.now_s + _ROUNDING_S:
                if not self._jobs:
                    self._woke_s = self.now_s
                self._jobs.append([self._released * self.task_period_s, execution_s])
                self._released += 1
            moment_s = min(end_s, self._renewal_s, self._released * self.task_period_s)
            while self._jobs and self._left_s > _ROUNDING_S and self.now_s < moment_s - _ROUNDING_S:
                job = self._jobs[0]
                run_s = min(job[1], self._left_s, moment_s - self.now_s)
                self.now_s += run_s
                self.executed_s += run_s
                self._left_s -= run_s
                job[1] -= run_s
                if job[1] <= _ROUNDING_S:
                    responses_s.append(self.now_s - job[0])
                    self._jobs.popleft()
                    if not self._jobs:
                        awake_s.append((self._woke_s, self.now_s - self._woke_s))
            self.now_s = moment_s
        return Served(self.executed_s - before_s, responses_s, sum(left_s for _, left_s in self._jobs), awake_s)
