"""sched_setattr(2) and sched_getattr(2), whose errors say what the kernel holds against a reservation."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twin.emulation.errors import EmulationError

_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}
SCHED_OTHER, SCHED_FIFO, SCHED_DEADLINE = 0, 1, 6
RESET_ON_FORK, RECLAIM = 0x01, 0x02
_CAP_SYS_NICE = 23
# struct sched_attr up to sched_period (SCHED_ATTR_SIZE_VER0); utilisation clamps are left as they are.
_FORMAT = "=IIQiIQQQ"
_SIZE = struct.calcsize(_FORMAT)
_libc = ctypes.CDLL(None, use_errno=True)


class DeadlineError(EmulationError):
    """A reservation or trace that this host, kernel or user cannot have. One line: what, got, allowed, where."""


class HostLacksError(DeadlineError):
    """The host, or this user on it, has no way to do it at all."""


class ThreadEndedError(DeadlineError):
    """The thread is gone."""


class NotAdmittedError(DeadlineError):
    """The kernel has given out its bandwidth (EBUSY): possible again when others release theirs."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """Scheduling of a thread as the kernel keeps it; times in nanoseconds, 0 unless the policy is SCHED_DEADLINE."""

    policy: int
    flags: int
    nice: int
    priority: int
    runtime_ns: int
    deadline_ns: int
    period_ns: int

    def to_json(self) -> dict[str, int]:
        """For a journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Attributes:
        """Of :meth:`to_json`."""
        return cls(**{name: int(fields[name]) for name in cls.__dataclass_fields__})


def get_attributes(tid: int) -> Attributes:
    """Scheduling of a thread; ThreadEndedError when it is gone."""
    buffer = ctypes.create_string_buffer(_SIZE)
    if _libc.syscall(_number(1), tid, buffer, _SIZE, 0):
        raise _explained(tid, ctypes.get_errno(), None)
    _, policy, flags, nice, priority, runtime, deadline, period = struct.unpack(_FORMAT, buffer.raw)
    return Attributes(policy, flags, nice, priority, runtime, deadline, period)


def set_attributes(tid: int, attributes: Attributes) -> None:
    """Set the scheduling of a thread; ThreadEndedError, NotAdmittedError or DeadlineError with the reason."""
    if code := submit(tid, attributes):
        raise _explained(tid, code, attributes)


def submit(tid: int, attributes: Attributes) -> int:
    """sched_setattr(2) of a thread, 0 for the calling one: 0, or the ``errno``; HostLacksError for unknown machines."""
    packed = struct.pack(
        _FORMAT,
        _SIZE,
        attributes.policy,
        attributes.flags,
        attributes.nice,
        attributes.priority,
        attributes.runtime_ns,
        attributes.deadline_ns,
        attributes.period_ns,
    )
    return ctypes.get_errno() if _libc.syscall(_number(0), tid, packed, 0) else 0


def reserve(tid: int, budget_s: float, period_s: float) -> None:
    """Give a thread ``budget_s`` of CPU time in every ``period_s``, with the period as deadline.

    Children do not inherit it (RESET_ON_FORK): a thread with a reservation could not fork otherwise.
    """
    budget_ns, period_ns = round(budget_s * 1e9), round(period_s * 1e9)
    set_attributes(tid, Attributes(SCHED_DEADLINE, RESET_ON_FORK, 0, 0, budget_ns, period_ns, period_ns))


def restore(tid: int, before: Attributes) -> bool:
    """Give a thread its old scheduling back when it has a reservation; False when it has none, or is gone."""
    try:
        if get_attributes(tid).policy != SCHED_DEADLINE:
            return False
        set_attributes(tid, before)
    except ThreadEndedError:
        return False
    return True


def check_permission() -> None:
    """HostLacksError unless this process may give reservations."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        effective = int(status.partition("CapEff:")[2].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return  # the kernel will say it
    if not effective >> _CAP_SYS_NICE & 1:
        raise HostLacksError("SCHED_DEADLINE needs root (CAP_SYS_NICE)")


def run_on_time() -> bool:
    """Let the calling thread run before ordinary ones (SCHED_FIFO 1, not inherited); False when not permitted."""
    try:
        os.sched_setscheduler(0, SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        return False
    return True


def _number(index: int) -> int:
    numbers = _CALLS.get(platform.machine())
    if numbers is None:
        raise HostLacksError(f"SCHED_DEADLINE: allowed on {', '.join(_CALLS)}, got {platform.machine()}")
    return numbers[index]


def _explained(tid: int, code: int, asked: Attributes | None) -> DeadlineError:
    where = f"thread {tid}"
    if code == errno.ESRCH:
        return ThreadEndedError(f"{where}: has ended, or never was")
    if asked is None or asked.policy != SCHED_DEADLINE:
        what = "read" if asked is None else "set"
        hint = "; run as root" if code in (errno.EPERM, errno.EACCES) and os.geteuid() else ""
        return DeadlineError(f"{where}: its scheduling cannot be {what}: {os.strerror(code)}{hint}")
    wanted = f"{asked.runtime_ns / 1e6:g} ms of {asked.period_ns / 1e6:g} ms"
    if code == errno.EBUSY:
        return NotAdmittedError(f"{where}: {wanted} not admitted: {_bandwidth()}")
    if code == errno.EPERM:
        return DeadlineError(f"{where}: {wanted} refused: {_refusal(tid)}")
    if code == errno.EINVAL:
        low, high = (_sysctl(f"sched_deadline_period_{one}_us", usual) for one, usual in _PERIODS)
        return DeadlineError(
            f"{where}: {wanted} refused: a budget is at least 0.001024 ms and at most its period, a period between "
            f"{low / 1e3:g} and {high / 1e3:g} ms"
        )
    if code == errno.ENOSYS:
        return HostLacksError(f"{where}: this kernel has no SCHED_DEADLINE")
    return DeadlineError(f"{where}: {wanted} refused: {os.strerror(code)}")


_PERIODS = (("min", 100), ("max", 1 << 22))


def _sysctl(name: str, usual: int) -> int:
    try:
        return int(Path("/proc/sys/kernel", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return usual


def _bandwidth() -> str:
    runtime, period = _sysctl("sched_rt_runtime_us", 950_000), _sysctl("sched_rt_period_us", 1_000_000)
    if runtime < 0:
        return "the kernel has given out its bandwidth"
    return (
        f"all reservations together may have at most {runtime / period:.0%} of each of the {os.cpu_count()} CPUs, "
        "less what the kernel keeps for ordinary threads"
    )


def _refusal(tid: int) -> str:
    """Why EPERM: a restricted set of CPUs or a missing privilege."""
    try:
        allowed = os.sched_getaffinity(tid)
        online = _cpus(Path("/sys/devices/system/cpu/online").read_text(encoding="ascii"))
    except (OSError, ValueError):
        allowed = online = set()
    if allowed < online:
        return (
            f"it may run on CPUs {_listed(allowed)} of {_listed(online)} only (taskset or cpuset), and "
            "SCHED_DEADLINE wants threads that may run on all CPUs of their scheduling domain"
        )
    if os.geteuid() != 0:
        return "needs root or CAP_SYS_NICE"
    return "CAP_SYS_NICE is missing here, or a cpuset above the thread is exclusive"


def _cpus(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _listed(cpus: set[int]) -> str:
    return ",".join(map(str, sorted(cpus)))
