"""Packets that are measured: their format, the receiver's bookkeeping, pacing, and the UDP echo.

Payload of a measured packet, network order: ``TB``, kind, length of the flow's name, time the sender
started (8 octets), sequence number (8), time of sending (8), name, zeros up to the packet size. Times are
CLOCK_MONOTONIC in nanoseconds, which all containers of a host share.
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from twin.emulation.dataplane import net
from twin.emulation.dataplane.histogram import Histogram
from twin.emulation.dataplane.loop import ConfigError, Loop, Timer

ECHO_PORT = 5007
IP_UDP_BYTES = 28
DATA, PROBE = 1, 2
BATCH = 64
READ_BYTES = 16_384  # packets are smaller; a stream is read in pieces of this
MAX_RATE_BPS = 10e9
MAX_PAYLOAD = 65507
_FIXED = struct.Struct("!2sBBQQQ")
_COUNTERS = struct.Struct("!QQ")
_STARTED_AT, _COUNTERS_AT = 4, 12
_WAKE_NS = 1_000_000  # at most one wake-up per millisecond, however many packets are due
_AHEAD_NS = 100_000
_LATE_NS = 100_000_000


class Stamp(NamedTuple):
    """The head of a measured packet."""

    kind: int
    started_ns: int
    sequence: int
    sent_ns: int
    name: bytes


def parse(data: bytes) -> Stamp | None:
    """The head of a measured packet; None when it is something else."""
    if len(data) < _FIXED.size or data[:2] != b"TB":
        return None
    _, kind, length, started_ns, sequence, sent_ns = _FIXED.unpack_from(data)
    if len(data) < _FIXED.size + length:
        return None
    return Stamp(kind, started_ns, sequence, sent_ns, data[_FIXED.size : _FIXED.size + length])


def least_packet_bytes(name: str) -> int:
    """The smallest IP packet that can carry the head of a flow of this name."""
    return IP_UDP_BYTES + _FIXED.size + len(name.encode())


class PacketMaker:
    """Makes the measured packets of one flow, numbered from 0."""

    def __init__(self, kind: int, name: str, packet_bytes: int) -> None:
        encoded = name.encode()
        if len(encoded) > 255:
            raise ConfigError(f"flow: a name has at most 255 octets, got {len(encoded)}")
        least = least_packet_bytes(name)
        if packet_bytes < least:
            raise ConfigError(f"packet_bytes: must be at least {least} for flow {name}, got {packet_bytes}")
        self.started_ns = time.monotonic_ns()
        self._data = bytearray(packet_bytes - IP_UDP_BYTES)
        _FIXED.pack_into(self._data, 0, b"TB", kind, len(encoded), self.started_ns, 0, 0)
        self._data[_FIXED.size : _FIXED.size + len(encoded)] = encoded
        self._sequence = 0

    @property
    def sequence(self) -> int:
        """Number of the next packet."""
        return self._sequence

    def resume(self, started_ns: int, sequence: int) -> None:
        """Go on where another sender stopped: the receiver sees one sender."""
        self.started_ns, self._sequence = started_ns, sequence
        struct.pack_into("!Q", self._data, _STARTED_AT, started_ns)

    def next(self) -> bytearray:
        """The next payload, valid until the next call."""
        _COUNTERS.pack_into(self._data, _COUNTERS_AT, self._sequence, time.monotonic_ns())
        self._sequence += 1
        return self._data


class Receiver:
    """Counts, losses, delays and jitter of one measured flow.

    ``lost_packets`` are the numbers missing below the highest seen. A sender that started before this program may have
    sent to an earlier one, so its first packet here is not held against the path; otherwise counting starts at 0.
    """

    def __init__(self, program_started_ns: int) -> None:
        self._program_started_ns = program_started_ns
        self._sender_ns = -1
        self._first = self._received = 0
        self._highest = -1
        self._lost_before = 0
        self._last_delay_us: float | None = None
        self.rx_bytes = self.rx_packets = 0
        self.jitter_us = 0.0
        self.delay = Histogram()
        self._last_rx_ns: int | None = None
        self._gap_ns = 0

    def pause(self) -> None:
        """Nothing is expected from now on: the silence is no gap."""
        self._last_rx_ns = None

    def receive(self, stamp: Stamp, packet_bytes: int, now_ns: int) -> None:
        """One packet of ``packet_bytes`` (IP header included) arrived."""
        if stamp.started_ns != self._sender_ns:
            if stamp.started_ns < self._sender_ns:
                return  # a straggler of an earlier sender
            self._lost_before = self.lost_packets
            self._sender_ns = stamp.started_ns
            self._first = 0 if stamp.started_ns >= self._program_started_ns else stamp.sequence
            self._highest, self._received = self._first - 1, 0
            self._last_delay_us = None
        if self._last_rx_ns is not None:
            self._gap_ns = max(self._gap_ns, now_ns - self._last_rx_ns)
        self._last_rx_ns = now_ns
        self._received += 1
        self._highest = max(self._highest, stamp.sequence)
        self.rx_packets += 1
        self.rx_bytes += packet_bytes
        delay_us = (now_ns - stamp.sent_ns) / 1e3
        self.delay.add(delay_us)
        if self._last_delay_us is not None:
            # RFC 3550 §6.4.1
            self.jitter_us += (abs(delay_us - self._last_delay_us) - self.jitter_us) / 16
        self._last_delay_us = delay_us

    @property
    def lost_packets(self) -> int:
        """Packets that should have come and did not, so far."""
        return self._lost_before + max(0, self._highest - self._first + 1 - self._received)

    def stats(self) -> dict[str, Any]:
        """Counters, and the delays and the longest time between two packets since the last call."""
        gap_ns, self._gap_ns = self._gap_ns, 0
        return {
            "rx_bytes": self.rx_bytes,
            "rx_packets": self.rx_packets,
            "lost_packets": self.lost_packets,
            "jitter_us": round(self.jitter_us, 1),
            "gap_us": gap_ns / 1e3,
            "delay": self.delay.take(),
        }


class Paced:
    """Something that happens at a rate; made by :meth:`Pacer.add`."""

    __slots__ = ("due_ns", "emit", "gap_ns", "version")

    def __init__(self, emit: Callable[[], None]) -> None:
        self.emit = emit
        self.due_ns = 0.0
        self.gap_ns: Callable[[], float] | None = None
        self.version = 0


class Pacer:
    """Calls many emitters, each at its own rate, with at most a thousand wake-ups per second.

    An emitter that is more than 100 ms behind (a stopped process) continues from now: the missed calls do not happen.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._due: list[tuple[float, int, Paced, int]] = []
        self._order = itertools.count()
        self._timer: Timer | None = None
        self._armed_ns = 0.0
        self._woken_ns = 0

    def add(self, emit: Callable[[], None]) -> Paced:
        """A new emitter at rate 0."""
        return Paced(emit)

    def set_gap(self, paced: Paced, gap_ns: Callable[[], float] | None, first_ns: float = 0.0) -> None:
        """Time between calls from now on, drawn before each; None stops. The first call is ``first_ns`` from now."""
        paced.version += 1
        paced.gap_ns = gap_ns
        if gap_ns is not None:
            self._push(paced, time.monotonic_ns() + first_ns)
            self._arm()

    def resume(self, paced: Paced, gap_ns: float, due_ns: float) -> None:
        """Evenly spaced calls, the first at ``due_ns`` of the monotonic clock."""
        paced.version += 1
        paced.gap_ns = lambda: gap_ns
        self._push(paced, due_ns)
        self._arm()

    def _push(self, paced: Paced, due_ns: float) -> None:
        paced.due_ns = due_ns
        heapq.heappush(self._due, (due_ns, next(self._order), paced, paced.version))

    def _arm(self) -> None:
        if not self._due:
            return
        at_ns = max(self._due[0][0], self._woken_ns + _WAKE_NS)
        if self._timer is not None:
            if self._armed_ns <= at_ns:
                return
            self._timer.cancel()
        self._armed_ns = at_ns
        self._timer = self._loop.call_at(int(at_ns), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._woken_ns = now_ns = time.monotonic_ns()
        due = self._due
        while due and due[0][0] <= now_ns + _AHEAD_NS:
            at_ns, _, paced, version = heapq.heappop(due)
            if version != paced.version or paced.gap_ns is None:
                continue
            paced.emit()
            if version == paced.version:
                if now_ns - at_ns > _LATE_NS:
                    at_ns = now_ns
                self._push(paced, at_ns + paced.gap_ns())
        self._arm()


def set_rate(pacer: Pacer, paced: Paced, rate_hz: float, draw: random.Random) -> None:
    """Evenly spaced calls with a random phase; 0 stops."""
    if rate_hz > 0:
        gap_ns = 1e9 / rate_hz
        pacer.set_gap(paced, lambda: gap_ns, draw.random() * gap_ns)
    else:
        pacer.set_gap(paced, None)


class EchoServer:
    """Sends every datagram back where it came from."""

    def __init__(self, loop: Loop, bind: str, port: int) -> None:
        self._sock = net.udp_socket(bind, port)
        loop.add_reader(self._sock.fileno(), self._echo)

    def _echo(self) -> None:
        for _ in range(BATCH):
            try:
                data, peer = self._sock.recvfrom(READ_BYTES)
                self._sock.sendto(data, peer)
            except BlockingIOError:
                return
            except OSError:
                continue  # nobody there to answer to

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def address_pair(text: object, what: str) -> tuple[str, int]:
    """``[ip, port]`` or ``"ip:port"``; ConfigError naming ``what`` otherwise."""
    host, port = ("", "")
    if isinstance(text, str):
        host, _, port = text.rpartition(":")
    elif isinstance(text, (list, tuple)) and len(text) == 2:
        host, port = str(text[0]), str(text[1])
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{what}: must be an IPv4 address and a port, got {text!r}")
    net.ipv4(host, what)
    return host, int(port)


IP_FREEBIND, IP_BIND_ADDRESS_NO_PORT = 15, 24


def client_socket(kind: int, address: str) -> socket.socket:
    """A non-blocking socket that uses a UE's address, also while the UE is not attached."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    try:
        sock.bind((address, 0))
    except OSError as error:
        sock.close()
        raise ConfigError(f"address {address}: {error.strerror}") from None
    return sock
