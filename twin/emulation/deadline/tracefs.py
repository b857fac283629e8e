"""Wake-ups and sleeps of threads, from a tracefs instance of our own: no other user of the tracer is disturbed.

A mounted tracefs is used; without one, a detached mount (fsopen(2), fsmount(2)) that no other process sees and
that ends with us. The instance outlives a crash, so it is journalled (kind ``tracing``) and ``twin gc`` removes it.
Events are read from the ring buffers as they are (``trace_pipe_raw``): text would cost ten times as much.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from twin.emulation.deadline.sched import DeadlineError, HostLacksError
from twin.journal import Journal

_MOUNTS = Path("/proc/self/mounts")
# The same numbers on every architecture (since Linux 5.2).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CONFIG_CREATE = 1, 6
_BUFFER_KIB = 256
_PAGE = 1 << 16
_MISSED = 1 << 31
_EVENTS = ("sched_wakeup", "sched_switch")
_WOKE, _CAME, _LEFT, _SLEPT = range(4)
_Event = tuple[float, int, int]  # time in s, thread, one of these
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Switch:
    """A thread that woke (``awake``) or went to sleep, in seconds of the monotonic clock.

    ``run_s``: of a sleep, the CPU time since the wake-up, where the tracer measures it; else 0.
    """

    tid: int
    time_s: float
    awake: bool
    run_s: float = 0.0


class Tracefs:
    """A way into tracefs: ``root`` is its folder, as long as this is open."""

    def __init__(self, root: Path, descriptor: int | None) -> None:
        self.root = root
        self._descriptor = descriptor

    @classmethod
    def open(cls, mounts: Path = _MOUNTS) -> Tracefs:
        """DeadlineError with what to do when there is no tracefs, or not for this user."""
        for line in mounts.read_text(encoding="utf-8").splitlines():
            _, where, kind = line.split()[:3]
            if kind == "tracefs" and os.access(Path(where) / "instances", os.W_OK | os.X_OK):
                return cls(Path(where.encode().decode("unicode_escape")), None)
        context = _libc.syscall(_FSOPEN, b"tracefs", _CLOEXEC)
        if context < 0:
            raise _no_tracefs(ctypes.get_errno())
        try:
            mount = -1
            if _libc.syscall(_FSCONFIG, context, _CONFIG_CREATE, None, None, 0) == 0:
                mount = _libc.syscall(_FSMOUNT, context, _CLOEXEC, 0)
            if mount < 0:
                raise _no_tracefs(ctypes.get_errno())
        finally:
            os.close(context)
        return cls(Path(f"/proc/self/fd/{mount}"), mount)

    def close(self) -> None:
        """May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_tracefs(code: int) -> HostLacksError:
    if code in (errno.EPERM, errno.EACCES):
        return HostLacksError("wake-ups cannot be traced: tracefs needs root (CAP_SYS_ADMIN)")
    if code in (errno.ENODEV, errno.ENOSYS):
        return HostLacksError(
            "wake-ups cannot be traced: this host has no tracefs "
            "(mount -t tracefs nodev /sys/kernel/tracing, on a kernel with CONFIG_FTRACE)"
        )
    return HostLacksError(f"wake-ups cannot be traced: tracefs cannot be mounted: {os.strerror(code)}")


def remove_instance(name: str) -> bool:
    """Remove an instance by name; False when there is none. DeadlineError or OSError when it stays."""
    with Tracefs.open() as tracefs:
        folder = tracefs.root / "instances" / Path(name).name
        if not folder.is_dir():
            return False
        _dismiss(folder)
    return True


def instance_exists(name: str) -> bool:
    """Whether there is such an instance; False where there is no tracefs to have one."""
    try:
        with Tracefs.open() as tracefs:
            return (tracefs.root / "instances" / Path(name).name).is_dir()
    except DeadlineError:
        return False


def _dismiss(folder: Path) -> None:
    # Enabled events keep the instance in use.
    with contextlib.suppress(OSError):
        (folder / "events/enable").write_text("0", encoding="ascii")
    folder.rmdir()


class Tracer:
    """Traces when the threads given to :meth:`watch` wake and sleep; ``purpose`` names the instance.

    With ``runs`` it also says how long they ran in between, which is less than they were awake on a busy host.
    """

    def __init__(self, journal: Journal, purpose: str, *, runs: bool = False) -> None:
        self.lost = 0  # events that the kernel overwrote before they were read
        self._runs: _Runs | None = _Runs() if runs else None
        self._journal = journal
        self._tids: frozenset[int] = frozenset()
        self._readers: list[int] = []
        self._tracefs = Tracefs.open()
        name = f"twinbed-{journal.run_id}-{purpose}"
        self._folder = self._tracefs.root / "instances" / name
        self._entry = journal.record("tracing", name=name)
        try:
            self._folder.mkdir()
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(_BUFFER_KIB))
            self._events = dict(map(self._event, _EVENTS))
            self._write("set_event_pid", "")
            for cpu in sorted((self._folder / "per_cpu").iterdir()):
                self._readers.append(os.open(cpu / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            self.close()
            raise HostLacksError(f"wake-ups cannot be traced: {error.strerror}: {error.filename}") from None

    def watch(self, tids: Collection[int]) -> None:
        """Trace exactly these threads from now on; those that have ended already are left out."""
        if frozenset(tids) == self._tids:
            return
        # No thread at all would mean every thread of the host.
        for name in _EVENTS:
            self._write(f"events/sched/{name}/enable", "0")
        self._write("set_event_pid", "")
        self._tids = frozenset(tids)
        if not tids:
            return
        # Not Path.open: it seeks to the end, which the kernel refuses here.
        descriptor = os.open(self._folder / "set_event_pid", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            for tid in tids:
                with contextlib.suppress(ProcessLookupError):
                    os.write(descriptor, f"{tid}\n".encode())
        finally:
            os.close(descriptor)
        for name in _EVENTS:
            self._write(f"events/sched/{name}/enable", "1")

    def read(self) -> list[Switch]:
        """Everything since the last call, in order of time; never waits."""
        found: list[_Event] = []
        for reader in self._readers:
            while True:
                try:
                    page = os.read(reader, _PAGE)
                except BlockingIOError:
                    break
                if not page:
                    break
                found += self._parsed(page)
        found.sort()
        if self._runs is not None:
            return list(self._runs.measured(found))
        return [Switch(tid, time_s, kind == _WOKE) for time_s, tid, kind in found if kind in (_WOKE, _SLEPT)]

    def close(self) -> None:
        """Remove the instance. May be called twice."""
        for reader in self._readers:
            os.close(reader)
        self._readers.clear()
        if self._entry:
            with contextlib.suppress(OSError):  # what stays is in the journal
                if self._folder.is_dir():
                    _dismiss(self._folder)
                self._journal.done(self._entry)
            self._entry = 0
        self._tracefs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, name: str, value: str) -> None:
        (self._folder / name).write_text(value, encoding="ascii")

    def _event(self, name: str) -> tuple[int, dict[str, int]]:
        """The number of an event and where its fields start."""
        text = (self._folder / f"events/sched/{name}/format").read_text(encoding="ascii")
        number, offsets = -1, {"common_type": 0}
        for line in text.splitlines():
            if line.startswith("ID:"):
                number = int(line.split()[1])
            elif "field:" in line and "offset:" in line:
                declaration, offset = line.split(";")[:2]
                offsets[declaration.split()[-1].split("[")[0]] = int(offset.split(":")[1])
        return number, offsets

    def _parsed(self, data: bytes) -> Iterator[_Event]:
        """Events of sub-buffers as ring_buffer.c of the kernel lays them out."""
        size = os.sysconf("SC_PAGE_SIZE")
        for start in range(0, len(data), size):
            page = data[start : start + size]
            stamp, commit = struct.unpack_from("=QQ", page)
            if commit & _MISSED:
                self.lost += 1
            end = 16 + (commit & 0xFFFFF)
            offset = 16
            while offset < min(end, len(page)):
                (word,) = struct.unpack_from("=I", page, offset)
                kind, delta = word & 31, word >> 5
                if kind == 30:  # time extend
                    stamp += delta + (struct.unpack_from("=I", page, offset + 4)[0] << 27)
                    offset += 8
                    continue
                if kind == 31:  # absolute time, without its five highest bits
                    low = delta + (struct.unpack_from("=I", page, offset + 4)[0] << 27)
                    stamp = (stamp & ~((1 << 59) - 1)) | low
                    offset += 8
                    continue
                if kind == 29:  # padding: of a discarded event, or to the end
                    if delta == 0:
                        break
                    stamp += delta
                    offset += 4 + int(struct.unpack_from("=I", page, offset + 4)[0])
                    continue
                stamp += delta
                if kind == 0:
                    body, length = offset + 8, int(struct.unpack_from("=I", page, offset + 4)[0]) + 4
                else:
                    body, length = offset + 4, 4 * kind + 4
                offset += length
                yield from self._switch(page, body, stamp / 1e9)

    def _switch(self, page: bytes, body: int, time_s: float) -> Iterator[_Event]:
        fields = self._events.get(struct.unpack_from("=H", page, body)[0])
        if fields is None:
            return
        if "prev_state" in fields:
            tid, state = (struct.unpack_from("=i", page, body + fields[one])[0] for one in ("prev_pid", "prev_state"))
            if tid in self._tids:
                # 0: still runnable, taken off the CPU or out of budget; above 0xff: preempted.
                yield time_s, tid, _SLEPT if state & 0xFF else _LEFT
            tid = struct.unpack_from("=i", page, body + fields["next_pid"])[0]
            if tid in self._tids:
                yield time_s, tid, _CAME
            return
        tid = struct.unpack_from("=i", page, body + fields["pid"])[0]
        if tid in self._tids:
            yield time_s, tid, _WOKE


class _Runs:
    """CPU time of threads between wake-up and sleep."""

    def __init__(self) -> None:
        self._run_s: dict[int, float] = {}
        self._since_s: dict[int, float] = {}

    def measured(self, events: Iterable[_Event]) -> Iterator[Switch]:
        for time_s, tid, kind in events:
            if kind == _WOKE:
                yield Switch(tid, time_s, True)
            elif kind == _CAME:
                self._since_s[tid] = time_s
            else:
                ran_s = time_s - self._since_s.pop(tid, time_s)
                run_s = self._run_s.pop(tid, 0.0) + ran_s
                if kind == _SLEPT:
                    yield Switch(tid, time_s, False, run_s)
                else:
                    self._run_s[tid] = run_s
