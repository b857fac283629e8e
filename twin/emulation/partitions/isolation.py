"""How a critical partition keeps its processor time, and what the host permits for it.

NANCY D3.4 §3.2: critical partitions always have priority over the others. On a Linux host, the best of:

``deadline``  each vCPU has a SCHED_DEADLINE reservation (Linux ``Documentation/scheduler/sched-deadline.rst``)
``reserved``  each vCPU has a host CPU that no other partition may use
``weight``    16 times the CPU weight of another partition: priority, no guarantee
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twin.emulation.deadline import sched
from twin.emulation.deadline.sched import Attributes, HostLacksError

MODES = ("deadline", "reserved", "weight")
RESERVED_RUNTIME_US, RESERVED_PERIOD_US = 8_000, 10_000
"""Of every critical vCPU: two of them fit the 0.95 of each CPU that the kernel hands out on two CPUs."""
IO_RUNTIME_US, IO_PERIOD_US = 1_000, 10_000
"""Of QEMU's own thread beside reserved vCPUs: a guest's timers and packets come through it. It gets what it needs
with two such partitions on two CPUs (0.8 + 0.1 each), and is the limit of what a flood of packets can take."""
CRITICAL_WEIGHT, WEIGHT = 1600, 100


@dataclass(frozen=True, slots=True)
class Reservation:
    """CPU time of each vCPU, in every period."""

    runtime_us: int
    period_us: int

    def __str__(self) -> str:
        return f"SCHED_DEADLINE {self.runtime_us}/{self.period_us} us for each vCPU"


class IsolationError(OSError):
    """The host refused; ``errno`` says why."""


def reserve(thread: int, reservation: Reservation, *, reclaim: bool) -> None:
    """Give a thread a SCHED_DEADLINE reservation; IsolationError EBUSY when the host's CPU time is given away.

    With ``reclaim`` it may use more when nobody else does; without, the reservation is also its limit.
    """
    # A thread that a vCPU starts gets no reservation of its own, and a vCPU may use what others leave.
    flags = sched.RESET_ON_FORK | (sched.RECLAIM if reclaim else 0)
    runtime_ns, period_ns = reservation.runtime_us * 1000, reservation.period_us * 1000
    _set(thread, Attributes(sched.SCHED_DEADLINE, flags, 0, 0, runtime_ns, period_ns, period_ns))


def release(thread: int) -> None:
    """Back to the normal scheduler; nothing happens when the thread has ended."""
    try:
        _set(thread, Attributes(sched.SCHED_OTHER, 0, 0, 0, 0, 0, 0))
    except IsolationError as error:
        if error.errno != errno.ESRCH:
            raise


def reserve_all(threads: Sequence[int], reservation: Reservation, *, reclaim: bool) -> None:
    """All threads or none."""
    done: list[int] = []
    try:
        for thread in threads:
            reserve(thread, reservation, reclaim=reclaim)
            done.append(thread)
    except IsolationError:
        for thread in done:
            release(thread)
        raise


def pin(pid: int, cpus: set[int]) -> None:
    """Let all threads of a process run on these host CPUs only; IsolationError when the host forbids it."""
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cpus)
    except ProcessLookupError:
        pass
    except OSError as error:
        raise IsolationError(error.errno, error.strerror) from None


def _set(thread: int, attributes: Attributes) -> None:
    try:
        code = sched.submit(thread, attributes)
    except HostLacksError as error:
        raise IsolationError(errno.ENOSYS, str(error)) from None
    if code:
        raise IsolationError(code, os.strerror(code))
