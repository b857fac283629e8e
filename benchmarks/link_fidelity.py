"""Declared against measured on one link, with IP traffic through the interfaces that a run uses.

    sudo .venv/bin/python benchmarks/link_fidelity.py [--mechanism relay|netem] [--format json]

Declares 20 Mbit/s, 10 ms and 1 % loss, and measures at the receiver: rate over 3 s of UDP at 1.3 times the
rate, delay of 200 small datagrams one way (kernel time stamps), loss of 50,000 small datagrams each way at
half the rate (one standard error: 0.04 percentage points). Targets: rate within 3 %, delay within 1 ms, loss
within 0.2 points. Then what it costs: CPU of the relay at 50 Mbit/s with 1 % loss (target below 10 % of a
core), its greatest rate (target 300 Mbit/s), a live rate change next to ``tc``, and 100 links in one batch.
Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twin.emulation.impairment import End, LinkHandle, LinkSpec, close_links, make_links
from twin.emulation.netns import in_netns_of
from twin.journal import Journal

HEADERS_BYTES = 42  # Ethernet, IPv4, UDP
RATE_BPS, DELAY_S, LOSS_RATIO = 20e6, 0.01, 0.01


@dataclass(frozen=True)
class Figure:
    """One line of the result. ``low`` and ``high`` bound what is accepted."""

    name: str
    unit: str
    asked: float | None
    measured: float
    low: float
    high: float

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self.low <= self.measured <= self.high


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    """A process that holds a network namespace and ends with this one."""
    holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE)
    try:
        own = Path("/proc/self/ns/net").stat().st_ino
        while Path(f"/proc/{holder.pid}/ns/net").stat().st_ino == own:
            time.sleep(0.002)
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()


@contextlib.contextmanager
def link(pids: tuple[int, int], journal: Journal, **values: Any) -> Iterator[LinkHandle]:
    """A link between two namespaces with addresses 10.0.0.1 and 10.0.0.2."""
    spec = LinkSpec(a=End(pids[0], "eth0"), b=End(pids[1], "eth0"), **values)
    with make_links([spec], journal=journal, run_id=journal.run_id)[0] as handle:
        for number, pid in enumerate(pids, start=1):
            command = ["nsenter", "-n", "-t", str(pid), "ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0"]
            subprocess.run(command, check=True)
        yield handle


class Flow:
    """UDP from one namespace to another."""

    def __init__(self, source: int, sink: int, address: str) -> None:
        def receiver() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
            made.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
            made.bind((address, 0))
            made.setblocking(False)
            return made

        def sender() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, 32, 1 << 23)  # SO_SNDBUFFORCE
            made.connect(self.receiver.getsockname())
            made.setblocking(False)
            return made

        self.receiver = in_netns_of(sink, receiver)
        self.sender = in_netns_of(source, sender)
        # Address resolution over a lossy link may take more than one try.
        deadline = time.monotonic() + 10
        while not self.take():
            if time.monotonic() > deadline:
                raise TimeoutError("no path between the ends of the link")
            self.send(b"x")
            time.sleep(0.05)
        time.sleep(0.2)
        self.take()

    def send(self, payload: bytes) -> None:
        """One datagram; a full queue is part of the measurement."""
        with contextlib.suppress(OSError):
            self.sender.send(payload)

    def take(self) -> list[tuple[bytes, int]]:
        """(payload, arrival in ns) of what waits."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, extra, _, _ = self.receiver.recvmsg(2048, 128)
                seconds, nanoseconds = struct.unpack("=qq", extra[0][2][:16])
                found.append((data, seconds * 1_000_000_000 + nanoseconds))
        return found

    def blast(self, offered_bps: float, payload_bytes: int, seconds: float) -> Iterator[None]:
        """Send at a constant pace, yielding about every half millisecond."""
        payload = bytes(payload_bytes)
        per_s = offered_bps / 8 / (payload_bytes + HEADERS_BYTES)
        start = time.monotonic()
        sent = 0
        while (now := time.monotonic()) < start + seconds:
            sent = max(sent, int((now - start - 0.02) * per_s))
            while sent < (now - start) * per_s:
                self.send(payload)
                sent += 1
            yield
            time.sleep(0.0005)

    def close(self) -> None:
        """Close both sockets."""
        self.sender.close()
        self.receiver.close()


def received_bps(flow: Flow, offered_bps: float, seconds: float) -> float:
    """Rate at the receiver by its own time stamps, first fifth left out."""
    arrivals: list[int] = []
    for _ in flow.blast(offered_bps, 1400, seconds):
        arrivals += [at for _, at in flow.take()]
    arrivals = arrivals[len(arrivals) // 5 :]
    return (len(arrivals) - 1) * (1400 + HEADERS_BYTES) * 8 / ((arrivals[-1] - arrivals[0]) / 1e9)


def one_way_delay_s(flow: Flow, count: int) -> float:
    """Median of small datagrams 5 ms apart."""
    delays = []
    for _ in range(count):
        flow.send(struct.pack("=Q", time.time_ns()))
        time.sleep(0.005)
        delays += [(at - struct.unpack("=Q", data)[0]) / 1e9 for data, at in flow.take() if len(data) == 8]
    return statistics.median(delays)


def lost_ratio(flow: Flow, count: int, frames_per_s: float) -> float:
    """Share of numbered datagrams that never arrived."""
    seen: set[int] = set()
    start = time.monotonic()
    sent = 0
    while sent < count:
        # At most 16 at once: after a stall a burst would fill the queue.
        for _ in range(min(16, int((time.monotonic() - start) * frames_per_s) - sent)):
            flow.send(struct.pack("=Q", sent) + bytes(14))
            sent += 1
        if (time.monotonic() - start) * frames_per_s - sent > 16:
            start = time.monotonic() - sent / frames_per_s
        seen.update(struct.unpack_from("=Q", data)[0] for data, _ in flow.take())
        time.sleep(0.0003)
    time.sleep(0.3)
    seen.update(struct.unpack_from("=Q", data)[0] for data, _ in flow.take())
    return 1 - len(seen) / count


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fidelity(pids: tuple[int, int], journal: Journal, mechanism: Any) -> Iterator[Figure]:
    """What was asked of the link against what it does."""
    values = {"bandwidth_bps": RATE_BPS, "delay_s": DELAY_S, "loss_ratio": LOSS_RATIO}
    with link(pids, journal, seed=1, mechanism=mechanism, **values):
        for way, ends, address in (("a>b", pids, "10.0.0.2"), ("b>a", pids[::-1], "10.0.0.1")):
            flow = Flow(ends[0], ends[1], address)
            try:
                # What is lost after the transmitter does not count as the transmitter's rate.
                rate = received_bps(flow, 1.3 * RATE_BPS, 3.0) / (1 - LOSS_RATIO)
                yield Figure(f"rate {way}", "Mbit/s", RATE_BPS / 1e6, rate / 1e6, 19.4, 20.6)
                time.sleep(0.2)
                flow.take()
                yield Figure(f"delay {way}", "ms", DELAY_S * 1e3, one_way_delay_s(flow, 200) * 1e3, 9.0, 11.0)
                per_s = 0.5 * RATE_BPS / 8 / (22 + HEADERS_BYTES)
                yield Figure(f"loss {way}", "%", LOSS_RATIO * 100, 100 * lost_ratio(flow, 50_000, per_s), 0.8, 1.2)
            finally:
                flow.close()


def relay_cost(pids: tuple[int, int], journal: Journal) -> Iterator[Figure]:
    """CPU at 50 Mbit/s with 1 % loss, and the greatest rate."""
    with link(pids, journal, seed=1, mechanism="relay", loss_ratio=0.01, delay_s=0.01) as handle:
        assert handle.relay_pid is not None
        flow = Flow(*pids, "10.0.0.2")
        try:
            before, start = cpu_s(handle.relay_pid), time.monotonic()
            rate = received_bps(flow, 50e6, 3.0)
            share = (cpu_s(handle.relay_pid) - before) / (time.monotonic() - start)
            yield Figure("relay at 50 Mbit/s, received", "Mbit/s", 50.0, rate / 1e6, 45.0, 52.0)
            yield Figure("relay at 50 Mbit/s, CPU", "% of a core", None, 100 * share, 0.0, 10.0)
        finally:
            flow.close()
        handle.set(loss_ratio=0.0)
        flow = Flow(*pids, "10.0.0.2")
        try:
            best = max(received_bps(flow, offered, 1.0) for offered in (400e6, 800e6))
            yield Figure("relay, greatest UDP rate", "Mbit/s", None, best / 1e6, 300.0, float("inf"))
        finally:
            flow.close()


def costs(pids: tuple[int, int], journal: Journal) -> Iterator[Figure]:
    """Time of changes and of bring-up."""
    with link(pids, journal, bandwidth_bps=10e6) as handle:
        times = []
        for number in range(100):
            start = time.perf_counter()
            handle.shaper_a.set_rate(10e6 + number * 1e5)
            times.append(time.perf_counter() - start)
        yield Figure("rate change, one end, median", "ms", None, statistics.median(times) * 1e3, 0.0, 10.0)
        command = ["nsenter", "-n", "-t", str(pids[0]), "tc", "class", "change", "dev", "eth0", "parent", "1:"]
        command += ["classid", "1:1", "htb", "rate", "10mbit", "quantum", "1514"]
        start = time.perf_counter()
        for _ in range(20):
            subprocess.run(command, check=True, capture_output=True)
        took = (time.perf_counter() - start) / 20
        yield Figure("the same by tc, mean", "ms", None, took * 1e3, 0.0, float("inf"))
    specs = [LinkSpec(a=End(pids[0], f"a{number}"), b=End(pids[1], f"b{number}")) for number in range(100)]
    start = time.perf_counter()
    handles = make_links(specs, journal=journal, run_id=journal.run_id)
    yield Figure("100 plain links, up", "s", None, time.perf_counter() - start, 0.0, 0.5)
    start = time.perf_counter()
    close_links(handles)
    yield Figure("100 plain links, down", "s", None, time.perf_counter() - start, 0.0, 0.5)


def main() -> int:
    """Print the figures; 1 when a target is missed, 2 when they cannot be measured here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mechanism", choices=["relay", "netem"], help="default: what this kernel would use")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("link_fidelity needs root: sudo .venv/bin/python benchmarks/link_fidelity.py", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal.create(f"link-fidelity-{os.getpid()}", folder=Path(folder)) as journal,
        namespace() as left,
        namespace() as right,
    ):
        pids = (left, right)
        for part in (fidelity(pids, journal, options.mechanism), relay_cost(pids, journal), costs(pids, journal)):
            for figure in part:
                figures.append(figure)
                if options.format == "table":
                    asked = "" if figure.asked is None else f"asked {figure.asked:g}"
                    bounds = f"[{figure.low:g}, {figure.high:g}]"
                    mark = "ok" if figure.reached else "MISSED"
                    print(f"{figure.name:32} {figure.measured:9.3f} {figure.unit:12} {asked:10} {bounds:12} {mark}")
    if options.format == "json":
        rows = [vars(figure) | {"reached": figure.reached} for figure in figures]
        print(json.dumps([{k: None if v == float("inf") else v for k, v in row.items()} for row in rows]))
    return 0 if all(figure.reached for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
