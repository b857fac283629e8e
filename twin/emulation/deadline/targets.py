"""Which threads a reservation is for: threads, processes, containers, virtual CPUs of QEMU.

A target is resolved again in every cycle, since processes make threads and containers make processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from twin.emulation.deadline.sched import DeadlineError

FORMS = "PID, tid:TID, container:NAME, partition:[DAEMON/]ID, vcpus:PID, qmp:SOCKET"
# QEMU names them so with -name debug-threads=on.
_VCPU_NAME = re.compile(r"CPU \d+/(KVM|TCG|HVF|WHPX)")
_QMP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """``text`` as given; ``threads()`` lists the thread ids of now, none when all have ended."""

    text: str
    threads: Callable[[], set[int]]
    virtual_cpus: bool = False


def target(text: str) -> Target:
    """One of :data:`FORMS`; DeadlineError when it is none of them or names nothing that runs."""
    kind, colon, rest = text.partition(":")
    if not colon:
        kind, rest = "pid", text
    if kind in ("pid", "tid", "vcpus"):
        if not rest.isascii() or not rest.isdigit() or not 0 < int(rest) < 1 << 22:
            raise DeadlineError(f"{text}: allowed are {FORMS}")
        number = int(rest)
        resolve = {
            "pid": lambda: _threads(number),
            "tid": lambda: {number} if Path(f"/proc/{number}").is_dir() else set(),
            "vcpus": lambda: _named_vcpus(number),
        }[kind]
        found = Target(text, resolve, kind == "vcpus")
        if not found.threads():
            raise DeadlineError(f"{text}: {_nothing(kind, number)}")
        return found
    if kind == "container" and rest:
        return _container(text, rest)
    if kind == "partition" and rest:
        return _partition(text, rest)
    if kind == "qmp" and rest:
        numbers = _qmp_vcpus(rest)
        return Target(text, lambda: {one for one in numbers if Path(f"/proc/{one}").is_dir()}, True)
    raise DeadlineError(f"{text}: allowed are {FORMS}")


def family(pid: int) -> Target:
    """All threads of a process and of the processes that it and they started."""

    def threads() -> set[int]:
        found: set[int] = set()
        waiting = [pid]
        while waiting:
            process = waiting.pop()
            for tid in _threads(process):
                found.add(tid)
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{process}/task/{tid}/children").read_text(encoding="ascii")
                    waiting += map(int, text.split())
        return found

    return Target(str(pid), threads)


def _nothing(kind: str, number: int) -> str:
    if kind == "vcpus" and Path(f"/proc/{number}").is_dir():
        return (
            "no thread of this process has the name of a virtual CPU; start QEMU with -name guest,debug-threads=on "
            "or give its monitor, qmp:SOCKET"
        )
    return f"no such {'thread' if kind == 'tid' else 'process'}, or it has ended"


def _threads(pid: int) -> set[int]:
    """Threads of a process; a zombie has none worth a reservation."""
    try:
        # For a thread that is not the first of its process, /proc/TID/task lists the threads of the process.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        if state in (b"Z", b"X"):
            return set()
        return set(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208 ten times a second
    except OSError:
        return set()


def _named_vcpus(pid: int) -> set[int]:
    found = set()
    for tid in _threads(pid):
        with contextlib.suppress(OSError):
            if _VCPU_NAME.match(Path(f"/proc/{pid}/task/{tid}/comm").read_text(encoding="utf-8", errors="replace")):
                found.add(tid)
    return found


def _container(text: str, name: str) -> Target:
    # 14 MB of modules that the other targets do without.
    from twin.emulation import gc
    from twin.emulation.cgroups import CgroupError, procs_files

    try:
        status, body = gc.docker_request("GET", f"/containers/{quote(name, safe='')}/json", timeout_s=5.0)
    except gc.DockerUnreachable as error:
        raise DeadlineError(f"{text}: {error}") from None
    if status == 404:
        raise DeadlineError(f"{text}: Docker has no container of this name")
    if status != 200:
        raise DeadlineError(f"{text}: Docker answers {status}: {body}")
    pid = int(body["State"]["Pid"])
    if not pid:
        raise DeadlineError(f"{text}: the container does not run, its state is {body['State']['Status']}")
    try:
        files = procs_files(pid)
    except (OSError, CgroupError) as error:
        raise DeadlineError(f"{text}: its control group cannot be found: {error}") from None
    # The deepest path is the container's own; some hierarchies have one group for all of the host.
    members = max(files, key=lambda one: len(one.parts), default=None)
    if members is None:
        raise DeadlineError(f"{text}: its control group cannot be found: process {pid} is in none")

    def threads() -> set[int]:
        found: set[int] = set()
        with contextlib.suppress(OSError):
            for process in members.read_text(encoding="ascii").split():
                found |= _threads(int(process))
        return found

    return Target(text, threads)


def _partition(text: str, rest: str) -> Target:
    """The virtual CPUs of a partition of a vmand."""
    from twin.emulation.partitions.client import DEFAULT_NAME, Client, NoDaemonError, VmanError, socket_path

    daemon, _, number = rest.rpartition("/")
    if not (number.isascii() and number.isdigit() and len(number) < 10) or "/" in daemon:
        raise DeadlineError(f"{text}: allowed are {FORMS}")
    try:
        with Client(socket_path(daemon or DEFAULT_NAME), timeout_s=10) as client:
            found = client.call("info", {"id": int(number)})
    except (VmanError, NoDaemonError) as error:
        raise DeadlineError(f"{text}: {error}") from None
    numbers = set(map(int, found.get("vcpu_threads") or ()))
    if not numbers:
        raise DeadlineError(f"{text}: does not run, its state is {found['state']}; start it with: vmanctl deploy ID")
    return Target(text, lambda: {one for one in numbers if Path(f"/proc/{one}").is_dir()}, True)


def _qmp_vcpus(path: str) -> set[int]:
    """Thread ids of a guest's virtual CPUs, asked from QEMU (query-cpus-fast)."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_QMP_TIMEOUT_S)
            connection.connect(path)
            with connection.makefile("rwb") as stream:
                stream.readline()
                answer: dict[str, object] = {}
                for command in ("qmp_capabilities", "query-cpus-fast"):
                    stream.write(json.dumps({"execute": command}).encode() + b"\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
                    while "event" in answer:
                        answer = json.loads(stream.readline())
        cpus = answer["return"]
        assert isinstance(cpus, list)
        return {int(one["thread-id"]) for one in cpus}
    except TimeoutError:
        raise DeadlineError(
            f"qmp:{path}: no answer within {_QMP_TIMEOUT_S:g} s (QEMU's monitor serves one client at a time)"
        ) from None
    except OSError as error:
        raise DeadlineError(f"qmp:{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DeadlineError(f"qmp:{path}: does not answer like a monitor of QEMU") from None
