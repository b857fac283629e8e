"""Captures one interface of one node to a pcap file, in a process of its own beside the data plane."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from twin.emulation.netlink import Netlink
from twin.emulation.netns import in_netns_of
from twin.journal import Journal, start_ticks

_ETH_P_ALL = 0x0003
_BUFFER_BYTES = 16 << 20
_TIMEOUT_S = 5.0


class CaptureError(Exception):
    """A capture that cannot start or that ended early. One line: what, got, where."""


class Capture:
    """Both directions of ``interface`` in the namespace of process ``netns_pid`` (None: the root namespace).

    Runs from construction to :meth:`stop`. The file stays, also when the run crashes: it is a result. The
    process is journalled and ends by itself when this one does.
    """

    def __init__(self, netns_pid: int | None, interface: str, path: Path, *, journal: Journal | None = None) -> None:
        self.path = path
        self.interface = interface
        self.captured = 0
        self.dropped = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._journal = journal
        try:
            packets = in_netns_of(netns_pid, lambda: _socket(interface))
        except OSError as error:
            raise CaptureError(f"cannot capture interface {interface}: {error.strerror}") from None
        program = Path(__file__).with_name("capture_program.py")
        with packets:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program), str(path), str(packets.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[packets.fileno()],
                start_new_session=True,  # a Ctrl-C at the terminal is for the run, which then stops its captures
            )
        self._entry = None
        if journal is not None:
            pid = self._process.pid
            self._entry = journal.record("process", pid=pid, start_ticks=start_ticks(pid) or 0)
        output = _open(self._process.stdout)
        if not select.select([output], [], [], _TIMEOUT_S)[0] or output.readline().strip() != "ready":
            reason = self._end()
            raise CaptureError(f"cannot capture interface {interface} to {path}: {reason or 'it did not start'}")

    @property
    def alive(self) -> bool:
        """Whether it still captures."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Write what is buffered and end; may be called twice. CaptureError when it had ended before."""
        with self._lock:
            if self._stopped:
                return
            reason = self._end()
            if reason:
                raise CaptureError(f"capture of interface {self.interface} to {self.path} ended early: {reason}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self) -> str:
        """Close the pipe, take the counts; what went wrong, if anything."""
        self._stopped = True
        try:
            output, errors = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, errors = self._process.communicate()
        if self._journal is not None and self._entry is not None:
            self._journal.done(self._entry)
        counts = output.split()[-2:]
        if len(counts) == 2 and all(one.isdigit() for one in counts):
            self.captured, self.dropped = map(int, counts)
        lines = errors.strip().splitlines()
        if lines:
            return lines[-1]
        return f"status {self._process.returncode}" if self._process.returncode else ""


def _socket(interface: str) -> socket.socket:
    with Netlink() as netlink:
        netlink.link(interface)  # names the interface when there is none
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        packets.setsockopt(socket.SOL_SOCKET, 33, _BUFFER_BYTES)  # SO_RCVBUFFORCE
        packets.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        packets.bind((interface, _ETH_P_ALL))
    except OSError:
        packets.close()
        raise
    return packets


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
