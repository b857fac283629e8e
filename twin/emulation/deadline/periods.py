"""PeriodWiz: a table of threads whose wake-ups are traced and whose periods can be asked for.

NANCY D4.2 §4.1.1, "Estimating the period of tasks". Loads numpy.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twin.deadline.periodicity import PeriodFinder, PeriodSettings, Verdict
from twin.emulation.deadline.sched import DeadlineError, ThreadEndedError
from twin.emulation.deadline.tracefs import Tracer
from twin.journal import Journal


class PeriodWizard:
    """Periods of the threads given to :meth:`add`; safe to use from several threads.

    HostLacksError when wake-ups cannot be traced here.
    """

    def __init__(self, journal: Journal, settings: PeriodSettings | None = None) -> None:
        self._settings = PeriodSettings() if settings is None else settings
        self._finders: dict[int, PeriodFinder] = {}
        self._woke_s: dict[int, float] = {}
        self._lock = threading.RLock()
        self._tracer = Tracer(journal, "periods", runs=True)

    @property
    def tids(self) -> frozenset[int]:
        """The threads that are traced."""
        with self._lock:
            return frozenset(self._finders)

    def add(self, tid: int, *, virtual_cpu: bool = False) -> None:
        """Trace a thread from now on; wake-ups of a virtual CPU are taken for bursts of its guest's jobs."""
        with self._lock:
            if tid in self._finders:
                raise DeadlineError(f"thread {tid}: its period is looked for already")
            if not Path(f"/proc/{tid}").is_dir():
                raise ThreadEndedError(f"thread {tid}: has ended, or never was")
            settings = replace(self._settings, burst_s=None) if virtual_cpu else self._settings
            self._finders[tid] = PeriodFinder(settings)
            self._tracer.watch(self.tids)

    def remove(self, tid: int) -> None:
        """Forget a thread; KeyError when it is not traced."""
        with self._lock:
            del self._finders[tid]
            self._woke_s.pop(tid, None)
            self._tracer.watch(self.tids)

    def collect(self) -> None:
        """Take in what was traced since the last call; call at least a few times a second."""
        with self._lock:
            for event in self._tracer.read():
                finder = self._finders.get(event.tid)
                if finder is None:
                    continue
                if event.awake:
                    self._woke_s.setdefault(event.tid, event.time_s)
                elif (woke_s := self._woke_s.pop(event.tid, None)) is not None:
                    finder.add(woke_s, event.time_s - woke_s, event.run_s)

    def verdict(self, tid: int) -> tuple[Verdict, bool]:
        """The answer for a thread and whether it is final; KeyError when it is not traced."""
        with self._lock:
            self.collect()
            finder = self._finders[tid]
            verdict = finder.verdict()
            return verdict, finder.final

    def times_s(self, tid: int) -> tuple[float, ...]:
        """The latest wake-ups of a thread, seconds of the monotonic clock."""
        with self._lock:
            return self._finders[tid].times_s

    def close(self) -> None:
        """Stop tracing. May be called twice."""
        with self._lock:
            self._finders.clear()
            self._tracer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def to_json(tid: int, verdict: Verdict) -> dict[str, Any]:
    """``{"tid", "period_s", "samples", "peaks"}``; a peak is ``{"frequency_hz", "height"}``."""
    return {
        "tid": tid,
        "period_s": verdict.period_s,
        "samples": verdict.samples,
        "peaks": [{"frequency_hz": peak.frequency_hz, "height": peak.height} for peak in verdict.peaks],
    }
