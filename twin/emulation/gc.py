"""Removes what dead runs left on the host: exactly what their journals list, newest first, and nothing else.

Needs no scenario file and no running Docker: what cannot be removed now is reported as ``kept`` and stays in
the journal for the next call. Two calls at once are safe (a lock in the journal folder).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from twin.emulation.deadline.sched import Attributes, DeadlineError, restore
from twin.emulation.deadline.tracefs import instance_exists, remove_instance
from twin.emulation.netlink import Netlink, NetlinkError
from twin.journal import SUFFIX, Entry, JournalError, Record, default_folder, mark_done, read, start_ticks

LABEL = "twinbed.run"
STOP_TIMEOUT_S = 15.0
# A request that a run had sent when it was killed (to Docker, to Open vSwitch) may be carried out after its death.
_SETTLE_S = 3.0
_SETTLE_STEP_S = 0.3
_DOCKER_SOCKET = "/var/run/docker.sock"


class CollectError(Exception):
    """A run that cannot be destroyed. One line: what, got, allowed, where."""


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing of a run. ``outcome`` kept means it may still be there; ``detail`` says why."""

    kind: str
    id: str
    run_id: str
    outcome: Literal["removed", "would remove", "kept"] = "removed"
    detail: str = ""


class _Kept(Exception):
    """The thing may still be there, for this reason."""


def collect(
    *,
    run_id: str | None = None,
    dry_run: bool = False,
    folder: Path | None = None,
    stop_timeout_s: float = STOP_TIMEOUT_S,
) -> list[Removed]:
    """Remove what dead runs left; with ``run_id``, of that run only, which is stopped first when it is alive.

    Returns what was there and is gone (with ``dry_run``: what would go) and what had to be kept; what the owner of
    a live run removes itself when it is stopped counts too. Things that
    the journals list but that do not exist are struck from them silently. CollectError when ``run_id`` has no
    journal or its owner does not end within ``stop_timeout_s`` of SIGTERM and then SIGKILL.
    """
    folder = default_folder() if folder is None else folder
    if not folder.is_dir():
        if run_id is not None:
            raise CollectError(f"no run {run_id}: there is no journal folder {folder}")
        return []
    stopped = None if run_id is None else _stop(folder, run_id, dry_run, stop_timeout_s)
    found: list[Removed] = []
    with _locked(folder):
        if run_id is None and not dry_run:
            _remove_drafts(folder)
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                record = read(path)
            except JournalError as error:
                if path.exists():
                    found.append(Removed("journal", str(path), path.stem, "kept", str(error)))
                continue
            if run_id is not None and record.run_id != run_id:
                continue
            if run_id is None and record.alive:
                continue
            found += _preview(record) if dry_run else _remove(record)
    if stopped is not None:
        told = {(one.kind, one.id) for one in found}
        gone = [one for one in stopped if (one.kind, one.id) not in told]
        found += [Removed(one.kind, one.id, one.run_id, detail="gone when its owner was stopped") for one in gone]
    return found


def _stop(folder: Path, run_id: str, dry_run: bool, timeout_s: float) -> list[Removed] | None:
    """Ask the owner of a live run to end, outside the lock: it may want to clean up by itself.

    Returns what was there before; None when nobody was stopped.
    """
    path = folder / f"{run_id}{SUFFIX}"
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in folder.glob(f"*{SUFFIX}"))) or "none"
        raise CollectError(f"no run {run_id} left anything on this host; runs that did: {known}")
    try:
        record = read(path)
    except JournalError:
        return None
    # A program that destroys its own run goes on living.
    if dry_run or not record.alive or record.pid == os.getpid():
        return None
    there = _preview(record)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if _signal(record.pid, record.start_ticks, number, timeout_s):
            return there
    raise CollectError(f"run {run_id}: its owner, process {record.pid}, survived SIGTERM and SIGKILL")


def _signal(pid: int, ticks: int, number: signal.Signals, timeout_s: float) -> bool:
    """Send a signal to exactly this process and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # With the descriptor held the pid cannot change hands between this check and the signal.
        if start_ticks(pid) != ticks:
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        deadline = time.monotonic() + timeout_s
        while start_ticks(pid) == ticks:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_drafts(folder: Path) -> None:
    for draft in folder.glob(".*.draft"):
        pid = draft.name.removesuffix(".draft").rpartition(".")[2]
        if pid.isdigit() and start_ticks(int(pid)) is None:
            draft.unlink(missing_ok=True)


def _preview(record: Record) -> list[Removed]:
    seen = []
    for entry in reversed(record.entries):
        with contextlib.suppress(_Kept):
            if not _KINDS[entry.kind].exists(entry, record):
                continue
        seen.append(Removed(entry.kind, _identity(entry), record.run_id, "would remove"))
    return seen


def _remove(record: Record) -> list[Removed]:
    gone: list[Removed] = []
    kept: list[Removed] = []
    finished: set[int] = set()
    absent: list[Entry] = []
    try:
        died = record.path.stat().st_mtime
    except FileNotFoundError:
        return []

    def run(entries: Sequence[Entry]) -> list[Entry]:
        missing = []
        for kind, group in groupby(entries, key=lambda entry: entry.kind):
            for entry, outcome in _attempt_all(kind, list(group), record):
                if isinstance(outcome, str):
                    finished.discard(entry.number)
                    kept.append(Removed(entry.kind, _identity(entry), record.run_id, "kept", outcome))
                    continue
                finished.add(entry.number)
                if outcome:
                    gone.append(Removed(entry.kind, _identity(entry), record.run_id))
                else:
                    missing.append(entry)
        return missing

    absent = run(list(reversed(record.entries)))
    while absent and record.same_boot and 0 <= time.time() - died < _SETTLE_S:
        if not any(entry.kind in ("container", "bridge") for entry in absent):
            break
        time.sleep(_SETTLE_STEP_S)
        absent = run(absent)
    mark_done(record.path, sorted(finished))
    if not kept:
        record.path.unlink(missing_ok=True)
    return gone + kept


def _attempt_all(kind: str, entries: Sequence[Entry], record: Record) -> Iterator[tuple[Entry, bool | str]]:
    """Outcomes of things of one kind, together where that is faster."""
    if kind == "interface":
        try:
            # One wait in the kernel for all of them instead of 10 ms each.
            there = [entry for entry in entries if _interface_exists(entry, record)]
            with Netlink() as netlink:
                netlink.delete_links([entry.ids["name"] for entry in there])
        except OSError as error:
            yield from ((entry, error.strerror or str(error)) for entry in entries)
        else:
            yield from ((entry, entry in there) for entry in entries)
        return
    # Removing a container takes Docker 100 ms and more; more than four at a time gain nothing.
    with ThreadPoolExecutor(4 if kind == "container" else 1) as pool:
        yield from pool.map(lambda entry: (entry, _attempt(entry, record)), entries)


def _attempt(entry: Entry, record: Record) -> bool | str:
    """True: it was there and is gone. False: it was not there. Text: why it may still be there."""
    kind = _KINDS[entry.kind]
    try:
        if not kind.exists(entry, record):
            return False
        kind.remove(entry, record)
        return True
    except _Kept as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


@dataclass(frozen=True, slots=True)
class _Kind:
    exists: Callable[[Entry, Record], bool]
    remove: Callable[[Entry, Record], None] = lambda *_: None


def _identity(entry: Entry) -> str:
    for key in ("name", "path", "pid", "tid"):
        if key in entry.ids:
            return str(entry.ids[key])
    return ", ".join(map(str, entry.ids.get("paths", ())))


# --- container ------------------------------------------------------------------------------------


class DockerUnreachable(Exception):
    """The Docker daemon does not answer; says where it was looked for."""


class _DockerConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("docker", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def docker_request(method: str, path: str, *, timeout_s: float = 60.0) -> tuple[int, Any]:
    """One request to the Docker daemon without its client library, which takes 0.3 s to load; (status, body)."""
    host = os.environ.get("DOCKER_HOST", "")
    where = host.removeprefix("unix://") if host.startswith("unix://") else _DOCKER_SOCKET
    connection = _DockerConnection(where, timeout_s)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DockerUnreachable(f"Docker does not answer at {where} ({error})") from None
    finally:
        connection.close()
    return response.status, json.loads(body) if body else None


def _docker(method: str, path: str) -> tuple[int, Any]:
    try:
        return docker_request(method, path)
    except DockerUnreachable as error:
        raise _Kept(f"{error}; start it and run twin gc again") from None


def _container(entry: Entry, record: Record) -> str | None:
    """The id of the container with this name that carries this run's label."""
    status, body = _docker("GET", f"/containers/{quote(entry.ids['name'])}/json")
    if status != 200:
        if status == 404:
            return None
        raise _Kept(f"Docker answers {status}: {body}")
    if (body["Config"]["Labels"] or {}).get(LABEL) != record.run_id:
        return None
    return str(body["Id"])


def _container_remove(entry: Entry, record: Record) -> None:
    identity = _container(entry, record)
    if identity is None:
        return
    deadline = time.monotonic() + 30
    while True:
        status, body = _docker("DELETE", f"/containers/{identity}?{urlencode({'force': 1, 'v': 1})}")
        if status in (204, 404):
            return
        # 409: somebody (a dying run's own clean-up) is removing it at this moment.
        if status != 409 or time.monotonic() > deadline:
            raise _Kept(f"Docker answers {status}: {(body or {}).get('message', '')}")
        time.sleep(0.1)


# --- bridge ---------------------------------------------------------------------------------------


def _ovs(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["ovs-vsctl", "--timeout=10", *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except FileNotFoundError:
        raise _Kept("ovs-vsctl is not installed") from None
    except subprocess.TimeoutExpired:
        raise _Kept("ovs-vsctl does not answer") from None
    if done.returncode:
        raise _Kept(f"ovs-vsctl: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return done.stdout


def _bridge_exists(entry: Entry, record: Record) -> bool:
    name = entry.ids["name"]
    if name not in _ovs("list-br").split():
        return False
    owner = _ovs("br-get-external-id", name, "twinbed-run").strip()
    return owner in ("", record.run_id)


def _bridge_remove(entry: Entry, _: Record) -> None:
    _ovs("--if-exists", "del-br", entry.ids["name"])


# --- interface, namespace, process ------------------------------------------------------------------


def _interface_exists(entry: Entry, record: Record) -> bool:
    if not record.same_boot:
        return False
    with Netlink() as netlink:
        try:
            found = netlink.link(entry.ids["name"])
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
    # Another run's interface may have the name by now; ours may have died before it got its alias.
    if entry.ids.get("mac", found.mac) != found.mac:
        return False
    return found.alias in ("", f"twinbed:{record.run_id}", entry.ids.get("alias", ""))


def _netns_path(entry: Entry) -> Path:
    return Path("/run/netns") / Path(entry.ids["name"]).name


def _netns_remove(entry: Entry, _: Record) -> None:
    path = _netns_path(entry)
    _unmount(path)
    path.unlink(missing_ok=True)


def _process_exists(entry: Entry, record: Record) -> bool:
    return record.same_boot and start_ticks(entry.ids["pid"]) == entry.ids["start_ticks"]


def _process_remove(entry: Entry, _: Record) -> None:
    if not _signal(entry.ids["pid"], entry.ids["start_ticks"], signal.SIGKILL, 5.0):
        raise _Kept("survived SIGKILL")


# --- cgroup, mount, folder, file ----------------------------------------------------------------------


def _cgroup_exists(entry: Entry, record: Record) -> bool:
    paths = [Path(one) for one in entry.ids["paths"]]
    return record.same_boot and any(one.is_dir() for path in paths for one in (path, *_own_parents(path, record)))


def _own_parents(path: Path, record: Record) -> list[Path]:
    """``twinbed/RUN`` above ``twinbed/RUN/NAME``: made on the way, and gone when empty."""
    return [path.parent] if path.parent.name == record.run_id else []


def _cgroup_remove(entry: Entry, record: Record) -> None:
    for top in map(Path, entry.ids["paths"]):
        if not _below(top, "/sys/fs/cgroup"):
            raise _Kept(f"not below /sys/fs/cgroup: {top}")
        deadline = time.monotonic() + 3
        while top.is_dir():
            # Deepest first; files in a cgroup cannot and need not be removed.
            for group in sorted((one for one in [top, *top.rglob("*")] if one.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    for pid in map(int, (group / "cgroup.procs").read_text(encoding="ascii").split()):
                        ticks = start_ticks(pid)
                        if ticks is not None and pid != os.getpid():
                            _signal(pid, ticks, signal.SIGKILL, 1.0)
                    group.rmdir()
            if top.is_dir() and time.monotonic() > deadline:
                raise _Kept(f"busy: {top}")
            if top.is_dir():
                time.sleep(0.02)
        for parent in _own_parents(top, record):
            with contextlib.suppress(OSError):  # other groups of the run, or other runs, are still below
                parent.rmdir()
                parent.parent.rmdir()


def _mounted(path: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return any(line.split()[4].encode().decode("unicode_escape") == str(path) for line in lines)


def _unmount(path: Path) -> None:
    deadline = time.monotonic() + 2
    while _mounted(path):
        done = subprocess.run(["umount", str(path)], capture_output=True, text=True, timeout=20, check=False)
        if done.returncode and time.monotonic() > deadline:
            raise _Kept(done.stderr.strip() or f"umount failed with {done.returncode}")


def _folder_remove(entry: Entry, _: Record) -> None:
    path = _own_path(entry)
    shutil.rmtree(path)


def _file_remove(entry: Entry, _: Record) -> None:
    _own_path(entry).unlink(missing_ok=True)


def _own_path(entry: Entry) -> Path:
    """The path, refused when it is relative, a link to elsewhere, or too short to belong to a run."""
    path = Path(entry.ids["path"])
    if not path.is_absolute() or ".." in path.parts or len(path.parts) < 3:
        raise _Kept(f"not a path that a run may own: {path}")
    return path


def _below(path: Path, top: str) -> bool:
    return path.is_absolute() and ".." not in path.parts and str(path).startswith(top + "/")


# --- libvirt domain ---------------------------------------------------------------------------------


def _virsh(entry: Entry, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["virsh", "--quiet", "--connect", entry.ids["uri"], *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        raise _Kept("virsh is not installed") from None
    except subprocess.TimeoutExpired:
        raise _Kept("libvirt does not answer") from None


def _domain_exists(entry: Entry, record: Record) -> bool:
    done = _virsh(entry, "dumpxml", entry.ids["name"])
    if done.returncode and "failed to get domain" not in done.stderr:
        raise _Kept(" ".join(done.stderr.split()))
    # Somebody else's domain may have the name by now.
    return f'daemon="{record.run_id.removeprefix("vmand-")}"' in done.stdout.replace("'", '"')


def _domain_remove(entry: Entry, _: Record) -> None:
    _virsh(entry, "destroy", entry.ids["name"])  # fails when it does not run
    done = _virsh(entry, "undefine", entry.ids["name"])
    if done.returncode and "failed to get domain" not in done.stderr:
        raise _Kept(" ".join(done.stderr.split()))


def _path_exists(entry: Entry, _: Record) -> bool:
    return os.path.lexists(entry.ids["path"])


# --- reservation, tracing -----------------------------------------------------------------------------


def _reservation_exists(entry: Entry, record: Record) -> bool:
    return record.same_boot and start_ticks(entry.ids["tid"]) == entry.ids["start_ticks"]


def _reservation_remove(entry: Entry, _: Record) -> None:
    try:
        restore(entry.ids["tid"], Attributes.from_json(entry.ids["before"]))
    except DeadlineError as error:
        raise _Kept(str(error)) from None


def _tracing_remove(entry: Entry, _: Record) -> None:
    try:
        remove_instance(entry.ids["name"])
    except DeadlineError as error:
        raise _Kept(str(error)) from None


_KINDS: dict[str, _Kind] = {
    "container": _Kind(lambda entry, record: _container(entry, record) is not None, _container_remove),
    "bridge": _Kind(_bridge_exists, _bridge_remove),
    "interface": _Kind(_interface_exists),
    "netns": _Kind(lambda entry, _: _netns_path(entry).exists(), _netns_remove),
    "process": _Kind(_process_exists, _process_remove),
    "cgroup": _Kind(_cgroup_exists, _cgroup_remove),
    "mount": _Kind(
        lambda entry, _: _mounted(Path(entry.ids["path"])), lambda entry, _: _unmount(Path(entry.ids["path"]))
    ),
    "folder": _Kind(_path_exists, _folder_remove),
    "file": _Kind(_path_exists, _file_remove),
    "domain": _Kind(_domain_exists, _domain_remove),
    "reservation": _Kind(_reservation_exists, _reservation_remove),
    "tracing": _Kind(lambda entry, record: record.same_boot and instance_exists(entry.ids["name"]), _tracing_remove),
}
