"""Which reservations one server admits: the kernel's test, applied to a modelled server.

Linux admits SCHED_DEADLINE reservations while the sum of their Q / P stays within ``sched_rt_runtime_us`` of
``sched_rt_period_us`` on every CPU, 0.95 by default, less 0.05 that the fair server of each CPU keeps for ordinary
threads (since Linux 6.12; two CPUs then give out 1.80). It does not look at which CPU a thread runs on.
"""

from __future__ import annotations

from twin.deadline.reservation import Reservation

SHARE_PER_CPU = 0.95 - 0.05
_ROUNDING = 1e-9


class Admission:
    """The bandwidth of ``cpus`` processors, given to holders by name. ValueError for less than one processor."""

    def __init__(self, cpus: int) -> None:
        if cpus < 1:
            raise ValueError(f"admission: cpus must be at least 1, got {cpus}")
        self.cpus = cpus
        self._given: dict[str, float] = {}

    @property
    def capacity(self) -> float:
        """CPUs that all reservations together may have."""
        return SHARE_PER_CPU * self.cpus

    @property
    def given(self) -> float:
        """CPUs that they have."""
        return sum(self._given.values())

    def ask(self, holder: str, reservation: Reservation, threads: int = 1) -> str | None:
        """Give a holder this reservation for each of its threads, instead of what it has; else why not."""
        wanted = reservation.alpha * threads
        others = self.given - self._given.get(holder, 0.0)
        if others + wanted > self.capacity + _ROUNDING:
            what = f"{reservation.budget_s * 1e3:g} ms of {reservation.period_s * 1e3:g} ms"
            what += f" for each of {threads} threads" if threads > 1 else ""
            return (
                f"{what} not admitted: the other reservations "
                f"have {others:.3f} of the {self.capacity:g} CPUs that may be given out ({SHARE_PER_CPU:g} of each of "
                f"the {self.cpus} CPUs)"
            )
        self._given[holder] = wanted
        return None

    def release(self, holder: str) -> None:
        """Take back what a holder has; nothing happens when it has none."""
        self._given.pop(holder, None)
