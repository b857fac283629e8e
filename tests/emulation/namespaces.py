"""Network namespaces for tests: held by a process each, gone with the test however it ends."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec

import pytest

from twin.emulation.netns import in_netns_of

P = ParamSpec("P")


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self) -> None:
        # cat ends when this process does, because the pipe closes.
        self._holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.pid = self._holder.pid
        own = Path("/proc/self/ns/net").stat().st_ino
        wait_until(lambda: Path(f"/proc/{self.pid}/ns/net").stat().st_ino != own, "the namespace")
        wait_until(lambda: Path(f"/proc/{self.pid}/comm").read_text().strip() == "cat", "the holder")
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str, timeout_s: float = 20.0) -> str:
        """Output of a command in this namespace; AssertionError with its output when it fails."""
        full = ["nsenter", "-n", "-t", str(self.pid), *command]
        done = subprocess.run(full, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command in the background in this namespace."""
        full = ["nsenter", "-n", "-t", str(self.pid), *command]
        return subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def pings(self, address: str, *, timeout_s: float = 1.0) -> bool:
        """Whether one echo request is answered."""
        command = ["nsenter", "-n", "-t", str(self.pid), "ping", "-c1", f"-W{timeout_s:g}", address]
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0

    def close(self) -> None:
        """End the namespace; may be called twice."""
        self._holder.kill()
        self._holder.communicate()


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Several at once."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            one = Namespace()
            stack.callback(one.close)
            made.append(one)
        yield made


def skip_when_busy() -> None:
    """For measurements that other programs on the host can spoil: skips when they do, never in CI."""
    cores = len(os.sched_getaffinity(0))
    if os.getloadavg()[0] > 1.5 * cores and os.environ.get("CI") != "true":
        pytest.skip(f"the host is busy: load {os.getloadavg()[0]:.1f} on {cores} cores")


def measures(test: Callable[P, None]) -> Callable[P, None]:
    """For tests of rates and times: a failure on a busy host is a skip, never in CI."""

    @functools.wraps(test)
    def spared(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            test(*args, **kwargs)
        except AssertionError:
            skip_when_busy()
            raise

    return spared


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Poll until true; AssertionError naming ``what`` when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:g} s"
        time.sleep(0.005)


def udp_rates_bps(
    source: Namespace, sink: Namespace, addresses: Sequence[str], *, offered_bps: float, seconds: float = 0.8
) -> list[float]:
    """What arrives at each of the sink's addresses while ``offered_bps`` is offered to each, first quarter left out.

    In bit/s of Ethernet frames. One thread: the pace is shared and a stall hits all alike.
    """
    payload = bytes(1400)
    frame_bits = (1400 + 42) * 8
    receivers = [in_netns_of(sink.pid, lambda address=address: _bound(address)) for address in addresses]
    # One each: a socket waits for the slowest of the queues that hold its packets.
    senders = [in_netns_of(source.pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in addresses]
    with contextlib.ExitStack() as stack:
        for one in [*receivers, *senders]:
            stack.enter_context(one)
        for one in senders:
            one.setblocking(False)
        targets = [one.getsockname() for one in receivers]
        counts = [0] * len(addresses)
        start = counted_from = time.monotonic()
        counting = False
        sent = 0
        while (now := time.monotonic()) < start + seconds:
            due = int((now - start) * offered_bps / frame_bits)
            while sent < due:
                for sender, target in zip(senders, targets, strict=True):
                    with contextlib.suppress(BlockingIOError, OSError):
                        sender.sendto(payload, target)
                sent += 1
            if not counting and now > start + seconds / 4:
                _drain(receivers)
                counting, counted_from = True, time.monotonic()
            elif counting:
                counts = [one + more for one, more in zip(counts, _drain(receivers), strict=True)]
            time.sleep(0.0005)
        elapsed = time.monotonic() - counted_from
        return [count * frame_bits / elapsed for count in counts]


def _bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    made.bind((address, 0))
    made.setblocking(False)
    return made


def _drain(receivers: Sequence[socket.socket]) -> list[int]:
    counts = []
    for one in receivers:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                one.recv(2048)
                count += 1
        counts.append(count)
    return counts
