"""Monitoring the threads of targets until something ends: the loop of ``twin deadline run`` and ``attach``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from twin.deadline.budget_law import LawSettings
from twin.emulation.deadline.monitor import Monitor, Sample
from twin.emulation.deadline.sched import DeadlineError, HostLacksError, ThreadEndedError, check_permission
from twin.emulation.deadline.targets import Target
from twin.journal import Journal

if TYPE_CHECKING:
    from twin.emulation.deadline.periods import PeriodWizard

_STEP_S = 0.1  # how soon new threads, ends and signals are seen
# A period found counts as new when it differs by more.
_OTHER = 0.02


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """``period_s`` None: PeriodWiz finds it, ``first_period_s`` holds until then and where there is none."""

    period_s: float | None = None
    first_period_s: float = 0.1
    budget_s: float = 0.002
    cycle_s: float = 0.5
    responses: bool = True
    law: LawSettings = field(default_factory=LawSettings)


def journal_name(purpose: str) -> str:
    """An id for the journal of one monitor."""
    return f"{purpose}-{os.getpid()}-{os.urandom(3).hex()}"


def watch(
    targets: Sequence[Target],
    settings: SessionSettings,
    *,
    emit: Callable[[Sequence[Sample]], None],
    tell: Callable[[str], None],
    ended: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
) -> int:
    """Give the threads of the targets reservations until ``ended()`` or until none is left; how many there were.

    ``emit`` gets the cycles that ended at one moment. Everything is given back on return and on any exception.
    A thread that the kernel refuses for good is told once and left alone; DeadlineError when it was the only one.
    """
    check_permission()
    with Journal.create(journal_name("deadline"), folder=folder) as journal:
        monitor = Monitor(
            journal, cycle_s=settings.cycle_s, settings=settings.law, responses=settings.responses, tell=tell
        )
        with monitor:
            wizard = _wizard(journal, settings, tell)
            try:
                return _loop(targets, settings, monitor, wizard, emit, tell, ended)
            finally:
                if wizard is not None:
                    wizard.close()


def _wizard(journal: Journal, settings: SessionSettings, tell: Callable[[str], None]) -> PeriodWizard | None:
    if settings.period_s is not None:
        return None
    from twin.emulation.deadline.periods import PeriodWizard

    try:
        return PeriodWizard(journal)
    except HostLacksError as error:
        tell(f"periods stay at {settings.first_period_s * 1e3:g} ms: {error}")
        return None


def _loop(
    targets: Sequence[Target],
    settings: SessionSettings,
    monitor: Monitor,
    wizard: PeriodWizard | None,
    emit: Callable[[Sequence[Sample]], None],
    tell: Callable[[str], None],
    ended: Callable[[], bool],
) -> int:
    refused: dict[int, str] = {}
    seen = 0
    period_s = settings.first_period_s if settings.period_s is None else settings.period_s
    # The monitor's own, not a member of the targets even where they are our family.
    own = os.getpid()
    next_scan_s = 0.0
    while True:
        now_s = time.monotonic()
        if now_s >= next_scan_s:
            next_scan_s = now_s + _STEP_S
            present: dict[int, bool] = {}
            for target in targets:
                present.update(dict.fromkeys(target.threads(), target.virtual_cpus))
            present.pop(own, None)
            for tid in sorted(set(present) - monitor.tids - set(refused)):
                try:
                    monitor.add(tid, period_s=period_s, budget_s=settings.budget_s)
                    seen += 1
                    if wizard is not None:
                        wizard.add(tid, virtual_cpu=present[tid])
                except ThreadEndedError:
                    continue
                except HostLacksError:
                    raise
                except DeadlineError as error:
                    refused[tid] = str(error)
                    if not monitor.tids and len(refused) == len(present):
                        raise
                    tell(str(error))
            for tid in set(refused) - set(present):
                del refused[tid]
            if not present or ended():
                return seen
            if wizard is not None:
                _find_periods(monitor, wizard, tell)
        time.sleep(min(_STEP_S, monitor.due_s(time.monotonic())))
        if samples := monitor.step():
            emit(samples)


def _find_periods(monitor: Monitor, wizard: PeriodWizard, tell: Callable[[str], None]) -> None:
    wizard.collect()
    for tid in wizard.tids:
        if tid not in monitor.tids:
            wizard.remove(tid)
            continue
        verdict, final = wizard.verdict(tid)
        if not final or verdict.period_s is None:
            continue
        if abs(verdict.period_s - monitor.period_s(tid)) > _OTHER * monitor.period_s(tid):
            try:
                monitor.set_period(tid, verdict.period_s)
            except (DeadlineError, OSError) as error:
                tell(f"thread {tid}: its period of {verdict.period_s * 1e3:.1f} ms is not used: {error}")
                continue
            tell(f"thread {tid}: has a period of {verdict.period_s * 1e3:.1f} ms")
