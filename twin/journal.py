"""What a run created on the host, written down before it exists, so that a crash leaves nothing unknown.

One append-only file of JSON lines per run. The first line names the owner by pid, start time and boot,
so a dead owner is recognised even when its pid was given to another process. Every later line is either
a thing (``{"id": 3, "kind": "interface", "ids": {"name": "s1-eth1"}}``) or the end of one
(``{"done": [3]}``). :mod:`twin.emulation.gc` removes what the files of dead runs still list.

Kinds and their ids: ``container(name)``, ``bridge(name)``, ``interface(name)``, ``netns(name)``,
``process(pid, start_ticks)``, ``cgroup(paths)``, ``mount(path)``, ``folder(path)``, ``file(path)``,
``domain(name, uri)`` of libvirt,
``reservation(tid, start_ticks, before)``, whose removal gives the thread its scheduling before back, and
``tracing(name)``, an instance of tracefs.
A qdisc goes with its interface. A ``folder`` or ``file`` is recorded only by whoever creates it. A process
has no id before it exists: start it so that it ends with a pipe of its owner, at least until it is recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

KINDS: Mapping[str, tuple[str, ...]] = {
    "container": ("name",),
    "bridge": ("name",),
    "interface": ("name",),
    "netns": ("name",),
    "process": ("pid", "start_ticks"),
    "cgroup": ("paths",),
    "mount": ("path",),
    "folder": ("path",),
    "file": ("path",),
    "domain": ("name", "uri"),
    "reservation": ("tid", "start_ticks", "before"),
    "tracing": ("name",),
}
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SUFFIX = ".jsonl"
_VERSION = 1


class JournalError(Exception):
    """A journal that cannot be written or read. One line: what, got, allowed, where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that may exist on the host; ``number`` is its place in the journal."""

    number: int
    kind: str
    ids: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """A journal as read: its owner, what is still open (oldest first), and how many lines were unreadable.

    A torn last line is normal after a crash (its thing was never created) and is not counted.
    """

    path: Path
    run_id: str
    pid: int
    start_ticks: int
    boot_id: str
    closed: bool
    entries: tuple[Entry, ...]
    damaged: int

    @property
    def same_boot(self) -> bool:
        """False when the host restarted since: interfaces, processes and cgroups are gone by themselves."""
        return self.boot_id == boot_id()

    @property
    def alive(self) -> bool:
        """True while the process that opened the journal runs and has not closed it."""
        return not self.closed and self.same_boot and start_ticks(self.pid) == self.start_ticks


def default_folder() -> Path:
    """``$TWINBED_STATE/journal``, else ``/var/lib/twinbed/journal`` as root, else under ``$XDG_STATE_HOME``."""
    state = os.environ.get("TWINBED_STATE")
    if state:
        return Path(state) / "journal"
    if os.geteuid() == 0:
        return Path("/var/lib/twinbed/journal")
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "twinbed" / "journal"


def boot_id() -> str:
    """The kernel's identifier of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command name may hold blanks and brackets; the fields start after the last bracket.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Journal:
    """The writer's side, owned by one process; safe to use from several of its threads."""

    def __init__(self, path: Path, run_id: str, descriptor: int) -> None:
        self.path = path
        self.run_id = run_id
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._open: dict[int, Entry] = {}
        self._next = 1

    @classmethod
    def create(cls, run_id: str, *, folder: Path | None = None) -> Journal:
        """Open the journal of a new run; JournalError when the id is malformed, taken, or the folder unwritable."""
        if not RUN_ID.fullmatch(run_id):
            raise JournalError(f"run id must match {RUN_ID.pattern}, got {run_id!r}")
        folder = default_folder() if folder is None else folder
        path = folder / f"{run_id}{SUFFIX}"
        draft = folder / f".{run_id}.{os.getpid()}.draft"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _write(descriptor, json.dumps(_header(run_id)).encode() + b"\n")
                # A hard link appears whole or not at all, and fails when the run id is taken.
                os.link(draft, path)
                _sync_folder(folder)
            except BaseException:
                os.close(descriptor)
                raise
            finally:
                draft.unlink(missing_ok=True)
        except FileExistsError:
            raise JournalError(f"run {run_id} already has a journal: {path} (twin gc removes dead ones)") from None
        except OSError as error:
            raise JournalError(f"cannot write the journal of run {run_id} in {folder}: {error.strerror}") from None
        return cls(path, run_id, descriptor)

    @classmethod
    def adopt(cls, run_id: str, *, folder: Path | None = None) -> Journal:
        """Take over the journal of a dead owner: what it lists stays listed, under this process.

        For daemons whose things outlive them. JournalError when there is none, when its owner is alive, or when
        the host restarted since (then its things are gone). Safe against a ``twin gc`` at the same time.
        """
        folder = default_folder() if folder is None else folder
        path = folder / f"{run_id}{SUFFIX}"
        try:
            lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JournalError(f"cannot lock the journals in {folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = read(path)
            if found.alive:
                raise JournalError(f"run {run_id} belongs to process {found.pid}, which is alive")
            if not found.same_boot:
                raise JournalError(f"run {run_id} is from before the host restarted: remove it with twin gc")
            lines = [_header(run_id)]
            lines += [{"id": one.number, "kind": one.kind, "ids": dict(one.ids)} for one in found.entries]
            draft = folder / f".{run_id}.{os.getpid()}.draft"
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                _write(descriptor, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
                draft.replace(path)
                _sync_folder(folder)
            except BaseException:
                os.close(descriptor)
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise JournalError(f"cannot take over the journal of run {run_id} in {folder}: {error.strerror}") from None
        finally:
            os.close(lock)
        journal = cls(path, run_id, descriptor)
        journal._next = 1 + max((entry.number for entry in found.entries), default=0)
        journal._open = {entry.number: entry for entry in found.entries}
        return journal

    def record(self, kind: str, **ids: Any) -> int:
        """Write down one thing, durably, before it is created; returns the number to pass to :meth:`done`."""
        return self.record_many([(kind, ids)])[0]

    def record_many(self, things: Iterable[tuple[str, Mapping[str, Any]]]) -> list[int]:
        """Write down several things with one disk flush; returns their numbers in order."""
        checked = [(kind, _checked(kind, ids)) for kind, ids in things]
        with self._lock:
            if self._descriptor < 0:
                raise JournalError(f"journal of run {self.run_id} is closed: nothing more can be created")
            entries = [Entry(self._next + offset, kind, ids) for offset, (kind, ids) in enumerate(checked)]
            lines = [json.dumps({"id": one.number, "kind": one.kind, "ids": dict(one.ids)}) + "\n" for one in entries]
            try:
                _write(self._descriptor, "".join(lines).encode())
            except OSError as error:
                # The next line must not be glued to half of this one.
                with contextlib.suppress(OSError):
                    os.write(self._descriptor, b"\n")
                self._next += len(entries)
                raise JournalError(f"cannot write the journal {self.path}: {error.strerror}") from None
            self._next += len(entries)
            self._open.update((one.number, one) for one in entries)
            return [one.number for one in entries]

    def done(self, *entries: int) -> None:
        """The things were removed. Not flushed to disk: removing what is gone is harmless."""
        with self._lock:
            known = [entry for entry in entries if self._open.pop(entry, None) is not None]
            if known and self._descriptor >= 0:
                with contextlib.suppress(OSError):  # a full disk: gc finds the thing gone
                    os.write(self._descriptor, json.dumps({"done": known}).encode() + b"\n")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is recorded and not done, oldest first."""
        with self._lock:
            return tuple(self._open.values())

    def close(self) -> None:
        """End of the run: the file goes when nothing is left, else it stays for ``twin gc``. May be called twice."""
        with self._lock:
            if self._descriptor < 0:
                return
            if self._open:
                with contextlib.suppress(OSError):
                    _write(self._descriptor, b'{"closed": true}\n')
            else:
                self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Record:
    """A journal as it stands, tolerating a torn last line; JournalError when the header is missing or foreign."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from None
    header = _parsed(lines[0])
    try:
        if header is None or header["twinbed_journal"] != _VERSION:
            raise KeyError
        run_id, pid, ticks, boot = header["run_id"], header["pid"], header["start_ticks"], header["boot_id"]
    except KeyError:
        raise JournalError(f"not a journal of this version (first line): {path}") from None
    entries: dict[int, Entry] = {}
    closed = False
    damaged = 0
    for position, line in enumerate(lines[1:], start=1):
        if not line:
            continue
        item = _parsed(line)
        if item is not None and isinstance(item.get("done"), list):
            for number in item["done"]:
                entries.pop(number, None)
        elif item is not None and item.get("closed") is True:
            closed = True
        elif item is not None and isinstance(item.get("ids"), dict) and item.get("kind") in KINDS and "id" in item:
            entries[item["id"]] = Entry(item["id"], item["kind"], item["ids"])
        elif position < len(lines) - 1:
            damaged += 1
    return Record(path, run_id, pid, ticks, boot, closed, tuple(entries.values()), damaged)


def records(folder: Path | None = None) -> Iterator[Record]:
    """All readable journals of a folder, by name. Unreadable ones are skipped: they list nothing usable."""
    folder = default_folder() if folder is None else folder
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with contextlib.suppress(JournalError):
            yield read(path)


def owner_alive(path: Path) -> bool:
    """True while the process that opened this journal runs and has not closed it."""
    return read(path).alive


def mark_done(path: Path, entries: Iterable[int]) -> None:
    """Write down, from outside, that things of a dead run are gone."""
    numbers = list(entries)
    if numbers:
        with path.open("ab") as file:
            # The dead owner may have left half a line.
            file.write(b"\n" + json.dumps({"done": numbers}).encode() + b"\n")


def _header(run_id: str) -> dict[str, Any]:
    pid = os.getpid()
    owner = {"run_id": run_id, "pid": pid, "start_ticks": start_ticks(pid), "boot_id": boot_id()}
    return {"twinbed_journal": _VERSION, **owner}


def _checked(kind: str, ids: Mapping[str, Any]) -> Mapping[str, Any]:
    if kind not in KINDS:
        raise JournalError(f"journal kind must be one of {', '.join(KINDS)}, got {kind!r}")
    missing = [name for name in KINDS[kind] if name not in ids]
    if missing:
        raise JournalError(f"journal entry {kind} needs {', '.join(KINDS[kind])}, missing {', '.join(missing)}")
    return {name: _plain(value) for name, value in ids.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) else None


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fdatasync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
