"""SCHED_DEADLINE reservations of what a run emulates: set by knobs, watched, and given back at the end.

A holder is an entity (``task:edge.1``, ``node:p1``) with one or more threads of this host, each of which gets the
reservation. What a thread had before is journalled (kind ``reservation``), so that ``twin gc`` gives it back when
the run could not. Wake-ups are traced, from which PeriodWiz finds the periods.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twin.deadline.reservation import Reservation, asked_for
from twin.emulation.deadline.periods import PeriodWizard
from twin.emulation.deadline.sched import (
    SCHED_DEADLINE,
    Attributes,
    DeadlineError,
    HostLacksError,
    ThreadEndedError,
    get_attributes,
    reserve,
    restore,
)
from twin.emulation.errors import EmulationError
from twin.journal import Journal, start_ticks
from twin.types import Kpi

# A period once found is looked at again after this many of it: by then half of 100 wake-ups are new.
_LOOK_AGAIN = 50
_WHOLE = 0.005  # periods are found more exactly than that
_TRIES, _MOMENT_S = 4, 1e-3


@dataclass
class _Thread:
    tid: int
    descriptor: int
    before: Attributes | None = None
    entry: int = 0
    seen: tuple[float, float] = (0.0, 0.0)  # monotonic time, CPU seconds


@dataclass
class _Holder:
    threads: list[_Thread] = field(default_factory=list)
    period_us: float | None = None
    wakeup_period_s: float | None = None
    look_at_s: float = 0.0


class Reservations:
    """The holders of one run; ``close`` gives everything back. Not for several threads."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._holders: dict[str, _Holder] = {}
        self._last_s = 0.0
        self.untraced = ""
        """Why wake-ups are not traced; empty when they are."""
        self._wizard: PeriodWizard | None = None
        try:
            self._wizard = PeriodWizard(journal)
        except HostLacksError as error:
            self.untraced = str(error)

    def hold(self, entity: str, tids: Collection[int], *, virtual_cpus: bool = False) -> None:
        """Make these threads what an entity is; ThreadEndedError when one is gone. Other threads of it are let go."""
        self.let_go(entity)
        holder = self._holders[entity] = _Holder()
        try:
            for tid in tids:
                descriptor = os.open(f"/proc/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                holder.threads.append(_Thread(tid, descriptor))
                if self._wizard is not None:
                    self._wizard.add(tid, virtual_cpu=virtual_cpus)
        except (OSError, ThreadEndedError):
            self.let_go(entity)
            raise ThreadEndedError(f"thread {tid} of {entity}: has ended, or never was") from None

    def let_go(self, entity: str) -> None:
        """Forget an entity, with the reservations of its threads given back."""
        holder = self._holders.pop(entity, None)
        if holder is None:
            return
        for thread in holder.threads:
            self._give_back(thread)
            os.close(thread.descriptor)
            if self._wizard is not None and thread.tid in self._wizard.tids:
                self._wizard.remove(thread.tid)

    # ---- what knobs change

    def set_period(self, entity: str, period_us: float) -> None:
        """Period of the next reservation; EmulationError when the entity does not run."""
        self._holder(entity).period_us = period_us

    def set_budget(self, entity: str, budget_us: float) -> None:
        """Reserve for every thread, or with 0 give back; EmulationError with the kernel's reason, nothing changed."""
        holder = self._holder(entity)
        if budget_us == 0:
            for thread in holder.threads:
                self._give_back(thread)
            return
        try:
            wanted = asked_for(budget_us, holder.period_us)
        except ValueError as error:
            raise EmulationError(str(error)) from None
        done: list[tuple[_Thread, Attributes]] = []
        try:
            for thread in holder.threads:
                held = get_attributes(thread.tid)
                if thread.before is None:
                    thread.entry = self._journal.record(
                        "reservation", tid=thread.tid, start_ticks=start_ticks(thread.tid), before=held.to_json()
                    )
                    thread.before = held
                reserve(thread.tid, wanted.budget_s, wanted.period_s)
                done.append((thread, held))
                if held.policy != SCHED_DEADLINE:
                    thread.seen = _read(thread)
        except DeadlineError:
            for thread, held in done:
                with contextlib.suppress(DeadlineError):
                    if held.policy == SCHED_DEADLINE:
                        reserve(thread.tid, held.runtime_ns / 1e9, held.period_ns / 1e9)
                    else:
                        self._give_back(thread)
            raise

    # ---- observation

    def collect(self) -> None:
        """Take in what was traced; a few times a second, or the kernel overwrites it."""
        if self._wizard is not None:
            self._wizard.collect()

    def kpis(self, time_s: float) -> list[Kpi]:
        """Reservations in force, CPU time used under them since the last call, periods found.

        ``time_s`` is when this should be, which is a bit earlier. Jobs come in whole numbers: where the time between
        two calls should be a multiple of the period found, the CPU time is divided by whole periods. It is left out
        where less than half of that time has passed.
        """
        nominal_s, self._last_s = time_s - self._last_s, time_s
        rows: list[Kpi] = []
        for entity, holder in self._holders.items():
            rows.extend(Kpi(time_s, entity, name, value) for name, value in self._values(holder, nominal_s))
        self.collect()
        for entity, holder in self._holders.items():
            period_s = self._wakeup_period_s(holder)
            if period_s is not None:
                rows.append(Kpi(time_s, entity, "wakeup_period_s", period_s))
        return rows

    def _values(self, holder: _Holder, nominal_s: float) -> Iterator[tuple[str, float]]:
        shares: list[float] = []
        held: Attributes | None = None
        for thread in holder.threads:
            try:
                now_s, executed_s = _read(thread)
                attributes = get_attributes(thread.tid)
            except (ThreadEndedError, OSError):
                continue
            then_s, before_s = thread.seen
            # After a late reading comes the next one at once: too short to tell, so the one after it takes both.
            told = now_s - then_s >= nominal_s / 2
            if told:
                thread.seen = now_s, executed_s
            if attributes.policy == SCHED_DEADLINE:
                held = attributes
                if told and then_s:
                    period_s = holder.wakeup_period_s or attributes.period_ns / 1e9
                    elapsed_s = _whole(now_s - then_s, nominal_s, period_s)
                    shares.append((executed_s - before_s) / elapsed_s)
        if held is None or not held.runtime_ns:
            return
        reservation = Reservation(held.runtime_ns / 1e9, held.period_ns / 1e9)
        yield from reservation.kpis()
        if shares:
            yield "dl_used_s", sum(shares) / len(shares) * reservation.period_s

    def _wakeup_period_s(self, holder: _Holder) -> float | None:
        """The period of the first thread that has one."""
        now_s = time.monotonic()
        if self._wizard is None or now_s < holder.look_at_s:
            return holder.wakeup_period_s
        holder.wakeup_period_s = None
        for thread in holder.threads:
            verdict, final = self._wizard.verdict(thread.tid)
            if verdict.period_s is not None:
                holder.wakeup_period_s = verdict.period_s
                if final:
                    holder.look_at_s = now_s + _LOOK_AGAIN * verdict.period_s
                break
        return holder.wakeup_period_s

    def close(self) -> None:
        """Give everything back and stop tracing. May be called twice."""
        for entity in list(self._holders):
            self.let_go(entity)
        if self._wizard is not None:
            self._wizard.close()
            self._wizard = None

    def _holder(self, entity: str) -> _Holder:
        if entity not in self._holders:
            raise EmulationError("does not run")
        return self._holders[entity]

    def _give_back(self, thread: _Thread) -> None:
        if thread.before is None:
            return
        try:
            restore(thread.tid, thread.before)
        except DeadlineError:
            return  # stays in the journal: twin gc tries again
        self._journal.done(thread.entry)
        thread.before, thread.entry = None, 0


def _read(thread: _Thread) -> tuple[float, float]:
    """Monotonic time and CPU seconds so far of the same moment; OSError (ESRCH) when the thread has ended."""
    for _ in range(_TRIES):
        now_s = time.monotonic()
        executed_s = int(os.pread(thread.descriptor, 80, 0).split(None, 1)[0]) / 1e9
        # We may have lost the processor in between.
        if time.monotonic() - now_s < _MOMENT_S:
            break
    return now_s, executed_s


def _whole(elapsed_s: float, nominal_s: float, period_s: float) -> float:
    """The time between two readings, as a whole number of periods if it was meant to be one."""
    meant = nominal_s / period_s
    if round(meant) < 1 or abs(meant - round(meant)) > _WHOLE * meant:
        return elapsed_s
    return max(1, round(elapsed_s / period_s)) * nominal_s / round(meant)


def threads_of(program: int, inner: Sequence[int]) -> list[int]:
    """Host ids of children of a program that are known by their ids in its PID namespace, in that order."""
    known: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{program}/task/{program}/children").read_text(encoding="ascii").split():
            for line in Path(f"/proc/{child}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("NSpid:"):
                    known[int(line.split()[-1])] = int(child)
    missing = [pid for pid in inner if pid not in known]
    if missing:
        raise EmulationError(f"process {missing[0]} among the children of {program}: has ended")
    return [known[pid] for pid in inner]
