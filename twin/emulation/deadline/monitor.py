"""The runtime monitor: gives threads reservations and keeps their budgets at what they use.

NANCY D3.4 §4.2. CPU time comes from ``/proc/TID/schedstat``, which needs no kernel patch: exact for a thread
that sleeps or is out of budget, and up to one tick late for one that runs. A thread is watched in cycles of a
whole number of its periods, so that each cycle holds the same number of jobs.

Every thread's scheduling is journalled before it changes (kind ``reservation``) and given back at the end.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from twin.deadline.budget_law import BudgetLaw, LawSettings
from twin.deadline.reservation import Reservation
from twin.emulation.deadline.sched import (
    SCHED_DEADLINE,
    Attributes,
    DeadlineError,
    NotAdmittedError,
    ThreadEndedError,
    get_attributes,
    reserve,
    restore,
)
from twin.emulation.deadline.tracefs import Tracer
from twin.journal import Journal, start_ticks

# Budgets that differ by less are the same: a call saved, and no other effect.
_SAME = 0.005
# Threads whose refusal is told: a program may have hundreds.
_TOLD = 3
# When an increase is not admitted, these parts of it are tried.
_PARTS = (0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Sample:
    """One monitoring cycle of one thread.

    ``time_s`` since the monitor began; ``used_s`` the CPU time used per period in this cycle (C), next to the
    budget and period that hold from now on; ``response_s`` the longest time from a wake-up to the next sleep that
    ended in the cycle, or the age of one that has not ended; None where it is not traced or nothing woke.
    ``budget_s``, ``alpha`` and ``delta_s`` are None for a thread that waits for admission.
    """

    time_s: float
    tid: int
    budget_s: float | None
    period_s: float
    used_s: float
    alpha: float | None
    delta_s: float | None
    response_s: float | None

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Watched:
    tid: int
    law: BudgetLaw
    cycle_s: float
    descriptor: int
    before: Attributes
    entry: int
    due_s: float
    granted_s: float | None = None
    refused: str = ""
    woke_s: float | None = None
    longest_s: float | None = None
    last: Sample | None = None


class Monitor:
    """Reservations of the threads given to :meth:`add`; safe to use from several threads.

    ``cycle_s`` is T, rounded per thread to a whole number of its periods. ``tell`` receives lines for the user:
    what was not admitted, and which threads ended. With ``responses`` wake-ups and sleeps are traced; where
    they cannot be, the reason is told and ``response_s`` stays None.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        cycle_s: float = 0.5,
        settings: LawSettings | None = None,
        responses: bool = True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        if cycle_s <= 0:
            raise DeadlineError(f"monitor: cycle_s must be above 0, got {cycle_s:g}")
        self._journal = journal
        self._cycle_s = cycle_s
        self._settings = LawSettings() if settings is None else settings
        self._tell = tell
        self._watched: dict[int, _Watched] = {}
        self._lock = threading.RLock()
        self._start_s = time.monotonic()
        self._tracer: Tracer | None = None
        self._traced: frozenset[int] = frozenset()
        if responses:
            try:
                self._tracer = Tracer(journal, "monitor")
            except DeadlineError as error:
                tell(f"response times are not measured: {error}")

    @property
    def tids(self) -> frozenset[int]:
        """The threads that are watched."""
        with self._lock:
            return frozenset(self._watched)

    def last(self, tid: int) -> Sample | None:
        """The latest cycle of a thread; KeyError when it is not watched."""
        with self._lock:
            return self._watched[tid].last

    def period_s(self, tid: int) -> float:
        """The reservation period of a thread; KeyError when it is not watched."""
        with self._lock:
            return self._watched[tid].law.period_s

    def add(self, tid: int, *, period_s: float, budget_s: float) -> None:
        """Watch a thread, starting with this budget.

        Raises ThreadEndedError, or DeadlineError when the kernel refuses for good. When its bandwidth is given out the
        thread is watched without a reservation, which is tried again in every cycle.
        """
        with self._lock:
            if tid in self._watched:
                raise DeadlineError(f"thread {tid}: is watched already")
            try:
                law = BudgetLaw(period_s, Reservation(budget_s, period_s).budget_s, self._settings)
            except ValueError as error:
                raise DeadlineError(f"thread {tid}: {error}") from None
            before = get_attributes(tid)
            if before.policy == SCHED_DEADLINE:
                raise DeadlineError(
                    f"thread {tid}: has a reservation of {before.runtime_ns / 1e6:g} ms in "
                    f"{before.period_ns / 1e6:g} ms by somebody else (twin gc removes those of dead monitors)"
                )
            ticks = start_ticks(tid)
            try:
                descriptor = os.open(f"/proc/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise ThreadEndedError(f"thread {tid}: has ended, or never was") from None
            except OSError as error:
                raise DeadlineError(f"thread {tid}: its CPU time cannot be read: {error.strerror}") from None
            cycle_s = max(1, round(self._cycle_s / period_s)) * period_s
            entry = self._journal.record("reservation", tid=tid, start_ticks=ticks, before=before.to_json())
            one = _Watched(tid, law, cycle_s, descriptor, before, entry, _next_s(time.monotonic(), cycle_s))
            try:
                try:
                    reserve(tid, law.budget_s, period_s)
                    one.granted_s = law.budget_s
                except NotAdmittedError as error:
                    self._say_once(one, str(error))
                law.update(time.monotonic(), _executed_s(descriptor))
            except (DeadlineError, OSError) as error:
                os.close(descriptor)
                self._journal.done(entry)
                if isinstance(error, OSError):
                    raise ThreadEndedError(f"thread {tid}: has ended") from None
                raise
            self._watched[tid] = one

    def set_period(self, tid: int, period_s: float) -> None:
        """Give a watched thread another period, with the same share of the CPU; KeyError when it is not watched."""
        with self._lock:
            one = self._watched[tid]
            share = one.law.budget_s / one.law.period_s
            try:
                law = BudgetLaw(period_s, share * period_s, self._settings)
            except ValueError as error:
                raise DeadlineError(f"thread {tid}: {error}") from None
            try:
                reserve(tid, law.budget_s, period_s)
                one.granted_s = law.budget_s
            except NotAdmittedError:
                if one.granted_s is not None:
                    raise
            law.update(time.monotonic(), _executed_s(one.descriptor))
            one.law = law
            one.cycle_s = max(1, round(self._cycle_s / period_s)) * period_s
            one.due_s = _next_s(time.monotonic(), one.cycle_s)

    def remove(self, tid: int) -> None:
        """Give a thread its scheduling back and forget it; KeyError when it is not watched."""
        with self._lock:
            one = self._watched.pop(tid)
            self._release(one)

    def due_s(self, now_s: float) -> float:
        """Seconds until the next cycle of any thread; the cycle length when there is none."""
        with self._lock:
            return max(0.0, min((one.due_s for one in self._watched.values()), default=now_s + self._cycle_s) - now_s)

    def step(self) -> list[Sample]:
        """Do the cycles that are due now and return what they found; threads that have ended are forgotten."""
        with self._lock:
            self._read_trace()
            changes: list[tuple[float, _Watched, float]] = []
            done: list[_Watched] = []
            for one in list(self._watched.values()):
                now_s = time.monotonic()
                if one.due_s > now_s:
                    continue
                try:
                    executed_s = _executed_s(one.descriptor)
                except OSError:
                    self._forget(one)
                    continue
                wanted_s = one.law.update(now_s, executed_s)
                one.due_s = _next_s(now_s, one.cycle_s)
                held_s = one.granted_s or 0.0
                if one.granted_s is None or abs(wanted_s - held_s) > _SAME * held_s:
                    changes.append((wanted_s / one.law.period_s - held_s / one.law.period_s, one, wanted_s))
                done.append(one)
            # Those that give back first: what they had may be what the others need.
            for _, one, wanted_s in sorted(changes, key=lambda change: change[0]):
                try:
                    self._apply(one, wanted_s)
                except ThreadEndedError:
                    self._forget(one)
                except DeadlineError as error:
                    self._say_once(one, str(error))
            return [self._sample(one) for one in done if one.tid in self._watched]

    def close(self) -> None:
        """Give every thread its scheduling back. May be called twice."""
        with self._lock:
            for tid in list(self._watched):
                self.remove(tid)
            if self._tracer is not None:
                self._tracer.close()
                self._tracer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _apply(self, one: _Watched, wanted_s: float) -> None:
        held_s = one.granted_s
        steps = [wanted_s]
        if held_s is not None and wanted_s > held_s:
            steps += [held_s + part * (wanted_s - held_s) for part in _PARTS]
        refusal: NotAdmittedError | None = None
        for budget_s in steps:
            try:
                reserve(one.tid, budget_s, one.law.period_s)
            except NotAdmittedError as error:
                refusal = refusal or error
                continue
            one.granted_s = budget_s
            break
        if refusal is None:
            one.refused = ""
        else:
            self._say_once(one, str(refusal))

    def _say_once(self, one: _Watched, text: str) -> None:
        if not one.refused:
            others = sum(bool(other.refused) for other in self._watched.values())
            if others < _TOLD:
                self._tell(f"{text}; tried again in every cycle")
            elif others == _TOLD:
                self._tell("more threads are refused, for reasons like these; they have no budget, or a smaller one")
        one.refused = text

    def _sample(self, one: _Watched) -> Sample:
        held = None if one.granted_s is None else Reservation(one.granted_s, one.law.period_s)
        longest_s = one.longest_s
        if one.woke_s is not None:
            longest_s = max(longest_s or 0.0, time.monotonic() - one.woke_s)
        one.longest_s = None
        one.last = Sample(
            time.monotonic() - self._start_s,
            one.tid,
            one.granted_s,
            one.law.period_s,
            one.law.used_s,
            None if held is None else held.alpha,
            None if held is None else held.delta_s,
            longest_s,
        )
        return one.last

    def _read_trace(self) -> None:
        if self._tracer is None:
            return
        tids = frozenset(self._watched)
        if tids != self._traced:
            self._tracer.watch(tids)
            self._traced = tids
        for event in self._tracer.read():
            one = self._watched.get(event.tid)
            if one is None:
                continue
            if event.awake:
                if one.woke_s is None:
                    one.woke_s = event.time_s
            elif one.woke_s is not None:
                one.longest_s = max(one.longest_s or 0.0, event.time_s - one.woke_s)
                one.woke_s = None

    def _forget(self, one: _Watched) -> None:
        if one.last is not None:  # those that live for less than a cycle are not worth a line
            self._tell(f"thread {one.tid}: has ended")
        self._release(self._watched.pop(one.tid))

    def _release(self, one: _Watched) -> None:
        os.close(one.descriptor)
        try:
            restore(one.tid, one.before)
        except DeadlineError as error:
            self._tell(f"{error}; twin gc tries again")
            return
        with contextlib.suppress(OSError):
            self._journal.done(one.entry)


def _next_s(now_s: float, cycle_s: float) -> float:
    """The next multiple of the cycle that is at least half a cycle away.

    Threads with equal cycles are looked at together, which wakes the monitor once for all of them. A cycle
    that begins late or after a pause is no worse: the law divides by the time that really passed.
    """
    return math.ceil(now_s / cycle_s + 0.5) * cycle_s


def _executed_s(descriptor: int) -> float:
    """CPU seconds of a thread so far; OSError (ESRCH) when it has ended."""
    return int(os.pread(descriptor, 80, 0).split(None, 1)[0]) / 1e9
