"""Programs started inside namespaces, quickly: the kernel's own calls instead of ``docker exec``.

A thread of ours enters the namespaces (setns(2)), starts the program and ends; the program keeps
them. Starting one takes a few milliseconds, where ``docker exec`` takes 134.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from twin.emulation import cgroups
from twin.emulation.netns import CLONE_NEWNET, in_thread, libc_call

_CLONE_FS, _CLONE_NEWNS, _CLONE_NEWPID = 0x200, 0x20000, 0x20000000
_CONTAINER_NAMESPACES = _CLONE_NEWNS | 0x02000000 | 0x04000000 | 0x08000000 | _CLONE_NEWPID | CLONE_NEWNET
# Joins control groups before it becomes the program, so that not even a crash of ours in between
# leaves a program that no journalled group lists.
_JOIN = 'n=$1; shift; while [ $n -gt 0 ]; do echo $$ >"$1" || exit 125; shift; n=$((n-1)); done; exec "$@"'


class LaunchError(Exception):
    """A program could not be started. One line: node, program, reason."""


class Process:
    """A running program; ``pid`` is its pid on the host. ``poll`` is the exit code (negative: signal)."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path | None) -> None:
        self.name = name
        self.pid = popen.pid
        self.log = log
        self._popen = popen

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end; LaunchError naming the program after ``timeout_s``."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LaunchError(f"{self.name}: still running after {timeout_s:g} s") from None

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the program has ended."""
        self._popen.send_signal(number)

    def terminate(self, timeout_s: float = 1.0) -> int:
        """SIGTERM, after ``timeout_s`` SIGKILL; the exit code."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL and reap."""
        self._popen.kill()
        return self._popen.wait()

    def __repr__(self) -> str:
        return f"<Process {self.name} pid={self.pid} exit={self.poll()}>"


class Reaper:
    """Collects programs the moment they end.

    A container's PID namespace cannot end while a program in it waits for us, its parent, to take its
    exit code; whoever killed the container would wait with it.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: dict[int, subprocess.Popen[bytes]] = {}
        self._wake, self._waker = os.pipe()
        self._poll.register(self._wake, select.POLLIN)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="twinbed-reaper", daemon=True)
        self._thread.start()

    def watch(self, popen: subprocess.Popen[bytes]) -> None:
        """Collect this program when it ends."""
        try:
            descriptor = os.pidfd_open(popen.pid)
        except ProcessLookupError:  # collected already
            return
        with self._lock:
            self._watched[descriptor] = popen
            self._poll.register(descriptor, select.POLLIN)
        os.write(self._waker, b"w")

    def close(self) -> None:
        """Stop collecting."""
        os.write(self._waker, b"q")
        self._thread.join()
        for descriptor in (self._wake, self._waker, *self._watched):
            os.close(descriptor)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    if b"q" in os.read(self._wake, 4096):
                        return
                    continue
                with self._lock:
                    self._poll.unregister(descriptor)
                    popen = self._watched.pop(descriptor)
                popen.poll()
                os.close(descriptor)


def start_in_container(
    init_pid: int,
    argv: Sequence[str],
    *,
    name: str,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    output: IO[bytes] | int = subprocess.DEVNULL,
    env: Mapping[str, str],
    folder: str = "/",
    members: Sequence[Path] = (),
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in all namespaces of a container's first process and put it into control groups.

    ``members`` are ``cgroup.procs`` files on the host. The program dies with the container, whose
    PID namespace it is in. Raises LaunchError.
    """
    if stdin == subprocess.DEVNULL:
        with Path(os.devnull).open("rb") as null:
            return start_in_container(
                init_pid, argv, name=name, stdin=null, output=output, env=env, folder=folder, members=members
            )

    def body() -> subprocess.Popen[bytes]:
        libc_call("unshare", _CLONE_FS)  # a thread that shares its root folder may not enter a mount namespace
        descriptor = os.pidfd_open(init_pid)
        try:
            libc_call("setns", descriptor, _CONTAINER_NAMESPACES)
        finally:
            os.close(descriptor)
        os.chdir(folder)
        return _popen(argv, stdin, output, env)

    popen = _started(name, argv, body)
    try:
        # The kernel blocks us until the program is loaded; it has not run a line of its own yet
        cgroups.move(list(members), popen.pid)
    except cgroups.CgroupError as error:
        popen.kill()
        popen.wait()
        raise LaunchError(f"{name}: {error}") from None
    return popen


def start_in_netns(
    netns: int | None,
    argv: Sequence[str],
    *,
    name: str,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    output: IO[bytes] | int = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    members: Sequence[Path] = (),
) -> subprocess.Popen[bytes]:
    """Start ``argv`` of the host in a network namespace (None: the host's own), joined to control groups."""
    command = ["/bin/sh", "-c", _JOIN, "join", str(len(members)), *map(str, members), *argv]

    def body() -> subprocess.Popen[bytes]:
        if netns is not None:
            libc_call("setns", netns, CLONE_NEWNET)
        return _popen(command, stdin, output, env)

    return _started(name, argv, body)


def _popen(
    argv: Sequence[str], stdin: IO[bytes] | int, output: IO[bytes] | int, env: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(list(argv), stdin=stdin, stdout=output, stderr=output, env=env, start_new_session=True)


def _started(name: str, argv: Sequence[str], body: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    try:
        return in_thread(body)
    except ProcessLookupError:
        raise LaunchError(f"{name}: not running, cannot start {argv[0]}") from None
    except FileNotFoundError:
        raise LaunchError(f"{name}: no program {argv[0]} in it") from None
    except OSError as error:
        raise LaunchError(f"{name}: cannot start {argv[0]}: {error.strerror}") from None
