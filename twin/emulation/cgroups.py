"""CPU and memory limits that act within a scheduling period: control groups, version 1 and 2.

A run owns the tree ``twinbed/<run>/<name>``: under the cpu, cpuacct and memory hierarchies of
version 1, or once in the single hierarchy of version 2. A Docker container's own group is wrapped
by the same class (:meth:`Cgroup.of_container`). Files and units: Linux
``Documentation/admin-guide/cgroup-v1/``, ``cgroup-v2.rst`` and ``scheduler/sched-bwc.rst``.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from twin.journal import Journal

TREE = "twinbed"
PERIOD_US = 20_000
"""A quota is spent within each period, so a program limited to 10 % runs 2 ms and waits 18 ms. The
kernel's default of 100 ms would add up to 90 ms to a packet's delay."""
_MIN_QUOTA_US, _MIN_PERIOD_US, _MAX_PERIOD_US = 1_000, 1_000, 1_000_000
_MIB = 1 << 20
_CONTROLLERS = ("cpu", "cpuacct", "memory")


class CgroupError(Exception):
    """A control group could not be made, set or removed. One line."""


class Container(Protocol):
    """What :meth:`Cgroup.of_container` needs to know of a container."""

    name: str

    @property
    def pid(self) -> int:
        """Host pid of the container's first process."""

    def tell_docker(self, **limits: int) -> None:
        """Record limits with the Docker daemon."""


@dataclass(frozen=True)
class CgroupStats:
    """Counters since creation, and what is in force now.

    ``memory_used_bytes`` is without reclaimable file cache. A limit that is not set is ``None``.
    """

    cpu_used_s: float
    periods: int
    throttled_periods: int
    throttled_s: float
    memory_used_bytes: int
    memory_limit_bytes: int | None
    cpu_limit_millicores: float | None


@dataclass(frozen=True)
class Layout:
    """Where the host mounts its control groups: the version and the folder of each controller."""

    version: int
    roots: Mapping[str, Path]

    @classmethod
    def of_host(cls, mounts: Path = Path("/proc/self/mounts")) -> Layout:
        """Read the mount table; version 1 where the cpu controller has a hierarchy of its own."""
        roots: dict[str, Path] = {}
        unified = None
        for line in mounts.read_text().splitlines():
            _, where, kind, options = line.split()[:4]
            folder = Path(where.replace("\\040", " "))
            if kind == "cgroup":
                for controller in options.split(","):
                    roots.setdefault(controller, folder)
            elif kind == "cgroup2":
                unified = folder
        if "cpu" in roots:
            missing = [controller for controller in _CONTROLLERS if controller not in roots]
            if missing:
                raise CgroupError(f"control groups: version 1 without {', '.join(missing)}; mount them")
            return cls(1, {controller: roots[controller] for controller in _CONTROLLERS})
        if unified is None:
            raise CgroupError("control groups: none mounted; mount -t cgroup2 none /sys/fs/cgroup")
        with contextlib.suppress(FileNotFoundError):
            offered = (unified / "cgroup.controllers").read_text().split()
            missing = [controller for controller in ("cpu", "memory") if controller not in offered]
            if missing:
                raise CgroupError(
                    f"control groups: version 2 in {unified} has {', '.join(offered) or 'no controller'}, "
                    f"not {' and '.join(missing)}; version 1 or the kernel's command line (cgroup_disable) holds them"
                )
        return cls(2, dict.fromkeys(_CONTROLLERS, unified))


def quota_and_period(millicores: float, period_us: int | None = None) -> tuple[int, int]:
    """CFS quota and period (µs) for a limit; the period grows where the quota would be under 1 ms.

    Raises CgroupError for a limit the kernel cannot express (below 1 millicore).
    """
    if not math.isfinite(millicores) or millicores < 1:
        raise CgroupError(f"cpu_millicores must be at least 1, got {millicores:g}")
    if period_us is not None and not _MIN_PERIOD_US <= period_us <= _MAX_PERIOD_US:
        raise CgroupError(f"period_us must be in [{_MIN_PERIOD_US}, {_MAX_PERIOD_US}], got {period_us}")
    shortest = math.ceil(_MIN_QUOTA_US * 1000 / millicores)
    if period_us is not None and period_us < shortest:
        raise CgroupError(f"period_us must be at least {shortest} for {millicores:g} millicores, got {period_us}")
    period = period_us if period_us is not None else min(max(PERIOD_US, shortest), _MAX_PERIOD_US)
    return max(_MIN_QUOTA_US, round(period * millicores / 1000)), period


class Cgroup:
    """One control group: limits, counters, members."""

    def __init__(self, label: str, version: int, folders: Mapping[str, Path]) -> None:
        """``folders``: of ``cpu``, ``cpuacct`` and ``memory`` (all the same one in version 2)."""
        self.label = label
        self.version = version
        self.folders = dict(folders)
        self._after: Callable[..., None] | None = None
        self._forget: Callable[[], None] = lambda: None

    @classmethod
    def create(
        cls,
        run_id: str,
        name: str,
        *,
        cpu_millicores: float | None = None,
        memory_mib: float | None = None,
        journal: Journal,
        layout: Layout | None = None,
    ) -> Self:
        """Make ``twinbed/<run_id>/<name>`` with limits (None: no limit), journalled beforehand."""
        for part in (run_id, name):
            if not re.fullmatch(r"[\w.:@-]+", part) or part.strip(".") == "":
                raise CgroupError(f"control group name must match [A-Za-z0-9_.:@-]+, got {part!r}")
        layout = layout or Layout.of_host()
        folders = {controller: root / TREE / run_id / name for controller, root in layout.roots.items()}
        paths = sorted({str(folder) for folder in folders.values()})
        entry = journal.record("cgroup", paths=paths)
        group = cls(f"{run_id}/{name}", layout.version, folders)
        group._forget = lambda: journal.done(entry)
        made: list[Path] = []
        try:
            for folder in map(Path, paths):
                _make(folder, layout.version, min(layout.roots.values(), key=lambda root: len(root.parts)))
                made.append(folder)
            if cpu_millicores is not None:
                group.set_cpu(cpu_millicores)
            if memory_mib is not None:
                group.set_memory(memory_mib)
        except BaseException:
            if len(made) < len(paths):  # what was there before is not ours to remove
                for folder in made:
                    folder.rmdir()
                journal.done(entry)
            else:
                group.remove()
            raise
        return group

    @classmethod
    def adopt(cls, run_id: str, name: str, *, journal: Journal, layout: Layout | None = None) -> Self:
        """The group ``twinbed/<run_id>/<name>`` that an earlier owner of the journal made."""
        layout = layout or Layout.of_host()
        folders = {controller: root / TREE / run_id / name for controller, root in layout.roots.items()}
        paths = sorted({str(folder) for folder in folders.values()})
        entries = [one.number for one in journal.entries if one.kind == "cgroup" and sorted(one.ids["paths"]) == paths]
        if not entries:
            raise CgroupError(f"control group {run_id}/{name}: not in the journal of {run_id}")
        group = cls(f"{run_id}/{name}", layout.version, folders)
        group._forget = lambda: journal.done(*entries)
        return group

    @classmethod
    def of_container(cls, node: Container, layout: Layout | None = None) -> Self:
        """The group of a running Docker container.

        A change acts at once through the group's own files; Docker is told in the background, so
        ``docker inspect`` follows some 20 ms later.
        """
        layout = layout or Layout.of_host()
        paths = memberships(node.pid)
        folders = {
            controller: root / paths["" if layout.version == 2 else controller].lstrip("/")
            for controller, root in layout.roots.items()
        }
        group = cls(node.name, layout.version, folders)
        group._after = node.tell_docker
        return group

    def set_cpu(self, millicores: float | None, *, period_us: int | None = None) -> None:
        """Limit CPU time to ``millicores`` / 1000 cores (None: no limit); in force at once."""
        quota, period = (-1, 100_000) if millicores is None else quota_and_period(millicores, period_us)
        if self.version == 2:
            self._write("cpu", "cpu.max", f"{'max' if quota < 0 else quota} {period}")
        else:
            if millicores is not None and self._read("cpu", "cpu.cfs_period_us").strip() != str(period):
                self._write("cpu", "cpu.cfs_period_us", str(period))
            self._write("cpu", "cpu.cfs_quota_us", str(quota))
        if self._after:
            self._after(cpu_quota=quota, cpu_period=period)

    def set_weight(self, weight: int) -> None:
        """Share of CPU time under contention, in [1, 10000]; what a group has without is 100."""
        if not 1 <= weight <= 10_000:
            raise CgroupError(f"cpu weight must be in [1, 10000], got {weight}")
        if self.version == 2:
            self._write("cpu", "cpu.weight", str(weight))
        else:
            self._write("cpu", "cpu.shares", str(max(2, weight * 1024 // 100)))

    def set_memory(self, mib: float | None) -> None:
        """Limit memory to ``mib`` MiB without swap (None: no limit)."""
        if mib is not None and not (math.isfinite(mib) and mib > 0):
            raise CgroupError(f"memory_mib must be positive, got {mib:g}")
        limit = -1 if mib is None else int(mib * _MIB)
        if self.version == 2:
            self._write("memory", "memory.max", "max" if limit < 0 else str(limit))
            if (self.folders["memory"] / "memory.swap.max").exists():
                self._write("memory", "memory.swap.max", "max" if limit < 0 else "0")
        else:
            # memsw must never be below memory: on the way up it goes first, on the way down last
            names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
            if not (self.folders["memory"] / names[1]).exists():
                names.pop()
            elif limit < 0 or limit > int(self._read("memory", names[1])):
                names.reverse()
            for name in names:
                self._write("memory", name, str(limit))
        if self._after:
            self._after(mem_limit=limit, memswap_limit=limit)

    def stats(self) -> CgroupStats:
        """Counters and limits now."""
        counters = _pairs(self._read("cpu", "cpu.stat"))
        memory = _pairs(self._read("memory", "memory.stat"))
        if self.version == 2:
            quota, _, period = self._read("cpu", "cpu.max").partition(" ")
            used_s = counters["usage_usec"] / 1e6
            throttled_s = counters.get("throttled_usec", 0) / 1e6
            used = int(self._read("memory", "memory.current")) - memory.get("inactive_file", 0)
            limit = self._read("memory", "memory.max").strip()
            limit_bytes = None if limit == "max" else int(limit)
        else:
            quota = self._read("cpu", "cpu.cfs_quota_us").strip()
            period = self._read("cpu", "cpu.cfs_period_us")
            used_s = int(self._read("cpuacct", "cpuacct.usage")) / 1e9
            throttled_s = counters["throttled_time"] / 1e9
            used = int(self._read("memory", "memory.usage_in_bytes")) - memory.get("total_inactive_file", 0)
            limit_bytes = int(self._read("memory", "memory.limit_in_bytes"))
            # version 1 writes "no limit" as the largest page-aligned value
            limit_bytes = None if limit_bytes >= 1 << 62 else limit_bytes
        unlimited = quota in ("max", "-1")
        return CgroupStats(
            cpu_used_s=used_s,
            periods=counters.get("nr_periods", 0),
            throttled_periods=counters.get("nr_throttled", 0),
            throttled_s=throttled_s,
            memory_used_bytes=max(0, used),
            memory_limit_bytes=limit_bytes,
            cpu_limit_millicores=None if unlimited else 1000 * int(quota) / int(period),
        )

    def add(self, pid: int) -> None:
        """Move a process, all its threads and its children into the group."""
        move(self.members(), pid)

    def members(self) -> list[Path]:
        """The ``cgroup.procs`` files: a pid written to each joins the group."""
        return [folder / "cgroup.procs" for folder in dict.fromkeys(self.folders.values())]

    def pids(self) -> list[int]:
        """Processes in the group."""
        try:
            return [int(line) for line in (self.folders["cpu"] / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    def remove(self, timeout_s: float = 2.0) -> None:
        """Kill what is left in the group and remove it; may be called twice."""
        deadline = time.monotonic() + timeout_s
        for folder in dict.fromkeys(self.folders.values()):
            _remove(folder, deadline)
            for parent in (folder.parent, folder.parent.parent):  # the run's folder, then TREE
                with contextlib.suppress(OSError):
                    parent.rmdir()
        self._forget()

    def _read(self, controller: str, name: str) -> str:
        try:
            return (self.folders[controller] / name).read_text()
        except OSError as error:
            raise CgroupError(f"control group {self.label}: {name}: {error.strerror}") from None

    def _write(self, controller: str, name: str, value: str) -> None:
        try:
            (self.folders[controller] / name).write_text(value)
        except OSError as error:
            raise CgroupError(f"control group {self.label}: {name} = {value}: {error.strerror}") from None


def memberships(pid: int) -> dict[str, str]:
    """Path of a process in each hierarchy, by controller name; ``""`` is version 2."""
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller.removeprefix("name=")] = path
    return paths


def procs_files(pid: int, mounts: Path = Path("/proc/self/mounts")) -> list[Path]:
    """``cgroup.procs`` of every hierarchy a process is in: write a pid there to share its limits."""
    paths = memberships(pid)
    files: dict[Path, None] = {}
    for line in mounts.read_text().splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup2":
            names = [""]
        elif kind == "cgroup":
            names = [option.removeprefix("name=") for option in options.split(",")]
        else:
            continue
        for name in names:
            # the root of a hierarchy needs no move: it has no limits
            if paths.get(name, "/") != "/":
                files[Path(where) / paths[name].lstrip("/") / "cgroup.procs"] = None
    return list(files)


def move(files: list[Path], pid: int) -> None:
    """Write ``pid``, and children it had by then, to each ``cgroup.procs``."""
    moved: set[int] = set()
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        moved.add(one)
        for file in files:
            try:
                file.write_text(str(one))
            except OSError as error:
                if error.errno != errno.ESRCH:  # it ended meanwhile
                    raise CgroupError(f"control group {file.parent}: add process {one}: {error.strerror}") from None
        waiting += [child for child in _children(one) if child not in moved]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _make(folder: Path, version: int, root: Path) -> None:
    for _ in range(10):
        try:
            if version == 2:
                for parent in reversed(folder.relative_to(root).parents):
                    (root / parent).mkdir(exist_ok=True)
                    (root / parent / "cgroup.subtree_control").write_text("+cpu +memory")
            folder.mkdir(parents=True)
            _favour(folder.parents[1], version)
            return
        except FileExistsError:
            raise CgroupError(f"control group {folder} exists already; remove it with: twin gc") from None
        except FileNotFoundError:
            continue  # another run, ending, removed the common parent in between
        except OSError as error:
            raise CgroupError(f"control group {folder}: {error.strerror}") from None
    raise CgroupError(f"control group {folder}: its parent keeps vanishing")


def _favour(tree: Path, version: int) -> None:
    """The most weight for all runs together: what the limits grant comes at once, whatever else the host does.

    At equal weight a program of the host runs on for its time slice of some milliseconds while a gNB's slots pass.
    """
    file, weight = (tree / "cpu.weight", 10_000) if version == 2 else (tree / "cpu.shares", 262_144)
    if file.exists():
        file.write_text(str(weight))


def _remove(folder: Path, deadline: float) -> None:
    while True:
        with contextlib.suppress(OSError):
            for line in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise CgroupError(f"control group {folder}: cannot remove: {error.strerror}") from None
        threading.Event().wait(0.005)


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}
