"""The traffic of IAB backhaul flows: responsive sources held to their demand, sinks that count.

A source sends TCP paced to the demand: the bulk stream of a node's users. What TCP cannot carry is not sent
later. With one queue per flow at every link, served in turn, sources with a window share the network max-min
fairly (Hahne, "Round-robin scheduling for max-min fairness in data networks", IEEE JSAC 9(7), 1991);
unresponsive ones would not, because packets dropped late in a path have taken room from others before.

A connection that makes no progress for half a second (a broken link) is replaced by a new one, so that a flow
runs again half a second after its path does, whatever TCP's own timers have backed off to.

Beside it, numbered UDP packets in both directions show whether any packet is lost, doubled or overtaken.
All rates and counters are of IP packets, headers included.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import time
from typing import Any

from twin.emulation.dataplane.control import ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.loop import ConfigError, Loop, main, number, value
from twin.emulation.dataplane.net import udp_socket

TICK_NS = 10_000_000
LATE_NS = 200_000_000
# TCP paces to this multiple of the demand.
PACE = 1.25
STALL_NS = 500_000_000
# IPv4 20, TCP 20, timestamps 12; IPv4 20, UDP 8
TCP_HEADER_BYTES, UDP_HEADER_BYTES = 52, 28
MAX_RATE_BPS = 10e9
TCP_NOTSENT_LOWAT, SIOCOUTQ, SO_MAX_PACING_RATE = 25, 0x5411, 47  # tcp(7), socket(7)
# Of SO_RCVBUF for each full segment of the window.
RECEIVE_BYTES = 1600
NUMBER = struct.Struct("!QQ")
READ_BYTES = 1 << 18


def tcp_counters(sock: socket.socket) -> tuple[int, int, int]:
    """(payload bytes acknowledged to us, payload bytes received, data segments received), see tcp_info in tcp(7)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    acked, received = struct.unpack_from("=QQ", info, 120)
    (segments,) = struct.unpack_from("=I", info, 152)
    return acked, received, segments


def _retransmits(sock: socket.socket) -> int:
    """Segments that were sent again."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 100)[0])


class Numbers:
    """Numbered UDP packets of one direction: sent here at a rate, or counted as they arrive."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self.peer: tuple[str, int] | None = None
        self._rate_bps = 0.0
        self._packet_bytes = 200
        self._due_ns = 0
        self._running = False
        self.tx = self.rx = self.doubled = self.overtaken = self.send_errors = 0
        self._highest = -1
        self._missing: set[int] = set()

    def set_rate(self, rate_bps: float, packet_bytes: int) -> None:
        """Send at ``rate_bps``, 0 stops."""
        self._rate_bps, self._packet_bytes = rate_bps, packet_bytes
        self._due_ns = time.monotonic_ns()
        if rate_bps > 0 and not self._running:
            self._running = True
            self._send()

    def _send(self) -> None:
        if self._rate_bps <= 0:
            self._running = False
            return
        now_ns = time.monotonic_ns()
        while self._due_ns <= now_ns:
            if self.peer is not None:
                packet = NUMBER.pack(self.tx, now_ns) + bytes(self._packet_bytes - UDP_HEADER_BYTES - NUMBER.size)
                try:
                    self._sock.sendto(packet, self.peer)
                    self.tx += 1
                except OSError:  # not numbered: it never left
                    self.send_errors += 1
            self._due_ns += int(self._packet_bytes * 8e9 / self._rate_bps)
        self._loop.call_at(self._due_ns, self._send)

    def arrived(self, data: bytes) -> None:
        """Count one packet."""
        if len(data) < NUMBER.size:
            return
        number_, _ = NUMBER.unpack_from(data)
        self.rx += 1
        if number_ > self._highest:
            self._missing.update(range(self._highest + 1, number_))
            self._highest = number_
        elif number_ in self._missing:
            self._missing.discard(number_)
            self.overtaken += 1
        else:
            self.doubled += 1

    def stats(self) -> dict[str, int]:
        """Counters since the start; ``missing``: numbers below the highest that did not arrive (yet)."""
        return {
            "tx_packets": self.tx,
            "rx_packets": self.rx,
            "missing": len(self._missing),
            "doubled": self.doubled,
            "overtaken": self.overtaken,
            "send_errors": self.send_errors,
        }


class Source:
    """The source of one flow."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self._loop = loop
        self.node = value(config, "node", str)
        self._bind = value(config, "bind", str)
        self._sink = (str(config["sink"][0]), int(config["sink"][1]))
        self._segment_bytes = int(number(config, "mtu", 576, 9000, 1500)) - TCP_HEADER_BYTES
        self._congestion = value(config, "congestion", str, "cubic").encode()
        self.started_ns = time.monotonic_ns()
        self._rate_bps = 0.0
        self._steps: list[tuple[int, float]] = []
        self._counted_ns = self.started_ns
        self._offered_bits = 0.0
        self._tokens_bytes = 0.0
        self._tcp: socket.socket | None = None
        self._connected = False
        self._progress_ns = 0
        self._acked = 0
        self.sent_bytes = 0
        self.reconnects = self._retransmits = 0
        self._segment = memoryview(bytes(self._segment_bytes))
        self._left = 0
        self._udp = udp_socket(self._bind, 0)
        self._numbers = Numbers(loop, self._udp)
        self._numbers.peer = self._sink
        loop.add_reader(self._udp.fileno(), self._receive)
        ops = {"rate": self._rate, "schedule": self._schedule, "numbers": self._set_numbers, "stats": self._stats}
        self._control = ControlServer(loop, control, node=self.node, program="backhaul", ops=ops, later_ops={})
        self._tick()

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        self._loop.remove(self._udp.fileno())
        self._udp.close()
        self._drop()

    # --- demand -----------------------------------------------------------------------------------

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        self._count(now_ns)
        while self._steps and self._steps[0][0] <= now_ns:
            _, self._rate_bps = self._steps.pop(0)
            self._pace()
        self._pump(now_ns)
        # A slow source sleeps until its next segment is due.
        gap_ns = TICK_NS
        if self._rate_bps > 0:
            gap_ns = max(gap_ns, int((self._segment_bytes + TCP_HEADER_BYTES) * 8e9 / self._rate_bps))
        next_ns = now_ns + min(gap_ns, 100_000_000)
        if self._steps:
            next_ns = min(next_ns, self._steps[0][0])
        self._loop.call_at(max(next_ns, now_ns + 1_000_000), self._tick)

    def _pace(self) -> None:
        """Keep what a late tick makes up for from arriving as one burst."""
        if self._tcp is not None:
            pace = min(0xFFFFFFFF, max(10_000, int(PACE * self._rate_bps / 8)))
            self._tcp.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, pace)

    def _count(self, now_ns: int) -> None:
        """What the demand of the time since the last count adds to offer and tokens."""
        steps = [step for step in self._steps if step[0] <= now_ns]
        at_ns, rate_bps = self._counted_ns, self._rate_bps
        for until_ns, following in [*steps, (now_ns, 0.0)]:
            bits = rate_bps * max(0, until_ns - at_ns) * 1e-9
            self._offered_bits += bits
            self._tokens_bytes += bits / 8
            at_ns, rate_bps = max(at_ns, until_ns), following
        self._counted_ns = now_ns

    def _pump(self, now_ns: int) -> None:
        """Hand TCP what is due; it refuses what it cannot send soon."""
        packet_bytes = self._segment_bytes + TCP_HEADER_BYTES
        if self._rate_bps <= 0 and not self._left:
            self._tokens_bytes = 0.0
            if self._tcp is not None and not self._pending():
                self._drop()
            self._watch(now_ns)
            return
        if self._tcp is None:
            self._connect(now_ns)
        while self._tcp is not None and self._connected and (self._left or self._tokens_bytes >= packet_bytes):
            if not self._left:
                self._left = self._segment_bytes
                self._tokens_bytes -= packet_bytes
            try:
                sent = self._tcp.send(self._segment[: self._left])
            except BlockingIOError:
                self._loop.add_writer(self._tcp.fileno(), self._writable)
                break
            except OSError:
                self._drop()
                break
            self._left -= sent
            self.sent_bytes += sent
        # A demand that could not be served is gone; what a late timer owes is not.
        most = 2 * packet_bytes + self._rate_bps / 8 * LATE_NS * 1e-9
        self._tokens_bytes = min(self._tokens_bytes, most)
        self._watch(now_ns)

    # --- connection -------------------------------------------------------------------------------

    def _connect(self, now_ns: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.bind((self._bind, 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What waits in the socket is sent after a change of the demand or path: keep it short.
            sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, 2 * self._segment_bytes)
            code = sock.connect_ex(self._sink)
        except OSError:
            sock.close()
            return
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return
        self._tcp, self._connected, self._acked, self._left = sock, False, 0, 0
        self._pace()
        self._progress_ns = now_ns
        self._loop.add_writer(sock.fileno(), self._established)

    def _established(self) -> None:
        assert self._tcp is not None
        self._loop.remove_writer(self._tcp.fileno())
        if self._tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop()
            return
        self._connected = True
        self._progress_ns = time.monotonic_ns()

    def _writable(self) -> None:
        assert self._tcp is not None
        self._loop.remove_writer(self._tcp.fileno())
        now_ns = time.monotonic_ns()
        self._count(now_ns)
        self._pump(now_ns)

    def _pending(self) -> int:
        """Bytes that the sink has not acknowledged."""
        assert self._tcp is not None
        queued = struct.unpack("i", fcntl.ioctl(self._tcp.fileno(), SIOCOUTQ, bytes(4)))[0]
        return int(queued)

    def _watch(self, now_ns: int) -> None:
        """Replace a connection that got nowhere for a while although it has something to send."""
        if self._tcp is None:
            return
        if self._connected:
            try:
                acked, _, _ = tcp_counters(self._tcp)
                waiting = self._pending()
            except OSError:
                self._drop()
                return
            if acked != self._acked or not waiting:
                self._acked, self._progress_ns = acked, now_ns
        if now_ns - self._progress_ns > STALL_NS:
            self._drop()
            self.reconnects += 1
            if self._rate_bps > 0:
                self._connect(now_ns)

    def _drop(self) -> None:
        if self._tcp is not None:
            self._loop.remove(self._tcp.fileno())
            self._retransmits += _retransmits(self._tcp)
            # A reset instead of a farewell that waits for the sink.
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._tcp.close()
            self._tcp, self._connected, self._left = None, False, 0

    def _receive(self) -> None:
        while True:
            try:
                data = self._udp.recv(2048)
            except (BlockingIOError, ConnectionRefusedError):
                return
            self._numbers.arrived(data)

    # --- control ----------------------------------------------------------------------------------

    def _rate(self, request: dict[str, Any]) -> Reply:
        no_more(request, "rate")
        rate_bps = number(request, "rate", 0, MAX_RATE_BPS)
        self._count(time.monotonic_ns())
        self._steps, self._rate_bps = [], rate_bps
        self._pace()
        return {}

    def _schedule(self, request: dict[str, Any]) -> Reply:
        no_more(request, "epoch_ns", "steps")
        epoch_ns = int(number(request, "epoch_ns", 0, 1 << 63))
        steps = []
        for step in value(request, "steps", list):
            if not (isinstance(step, list) and len(step) == 2 and all(isinstance(one, (int, float)) for one in step)):
                raise Refused(f"steps: must be pairs of time_s and rate, got {step!r}")
            time_s, rate_bps = step
            if not 0 <= rate_bps <= MAX_RATE_BPS:
                raise Refused(f"steps: rates must be in [0, {MAX_RATE_BPS:g}] bit/s, got {rate_bps}")
            steps.append((epoch_ns + int(time_s * 1e9), float(rate_bps)))
        self._count(time.monotonic_ns())
        self._steps = sorted(steps)
        return {}

    def _set_numbers(self, request: dict[str, Any]) -> Reply:
        no_more(request, "rate", "packet_bytes")
        self._numbers.set_rate(*_numbers_rate(request))
        return {}

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        now_ns = time.monotonic_ns()
        self._count(now_ns)
        return {
            "time_ns": now_ns,
            "started_ns": self.started_ns,
            "offered_bytes": int(self._offered_bits / 8),
            "sent_bytes": self.sent_bytes,
            "rate": self._rate_bps,
            "connected": self._connected,
            "reconnects": self.reconnects,
            "retransmits": self._retransmits + (_retransmits(self._tcp) if self._tcp is not None else 0),
            "numbers": self._numbers.stats(),
        }


class Sink:
    """The sink of many flows, told apart by the address of their source."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self._loop = loop
        self.node = value(config, "node", str)
        address, port = value(config, "bind", str), int(number(config, "port", 1, 65535))
        self._flows = {str(source): str(name) for name, source in value(config, "flows", dict).items()}
        self.started_ns = time.monotonic_ns()
        self._past = dict.fromkeys(self._flows.values(), 0)
        self._open: dict[socket.socket, tuple[str, int]] = {}
        self._scratch = bytearray(READ_BYTES)
        self._udp = udp_socket(address, port)
        self._numbers = {name: Numbers(loop, self._udp) for name in self._flows.values()}
        loop.add_reader(self._udp.fileno(), self._receive)
        self._listener = socket.create_server((address, port), backlog=256)
        # The window, inherited by what is accepted; the kernel doubles it and keeps half for its own accounting.
        window = int(number(config, "window", 2, 1000, 8))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window * RECEIVE_BYTES)
        self._listener.setblocking(False)
        loop.add_reader(self._listener.fileno(), self._accept)
        ops = {"stats": self._stats, "numbers": self._set_numbers}
        self._control = ControlServer(loop, control, node=self.node, program="backhaul", ops=ops, later_ops={})

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        for sock in list(self._open):
            self._end(sock)
        for one in (self._udp, self._listener):
            self._loop.remove(one.fileno())
            one.close()

    def _accept(self) -> None:
        try:
            sock, (address, _) = self._listener.accept()
        except OSError:
            return
        if address not in self._flows:
            sock.close()
            return
        sock.setblocking(False)
        # A stream that a broken link cut off would stay forever: its source makes a new one.
        for other, (name, _) in list(self._open.items()):
            if name == self._flows[address]:
                self._end(other)
        self._open[sock] = (self._flows[address], 0)
        self._loop.add_reader(sock.fileno(), lambda: self._read(sock))

    def _read(self, sock: socket.socket) -> None:
        try:
            taken = sock.recv_into(self._scratch)
        except BlockingIOError:
            return
        except OSError:
            taken = 0
        if not taken:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        name, _ = self._open[sock]
        self._past[name] += self._carried(sock)
        del self._open[sock]
        self._loop.remove(sock.fileno())
        sock.close()

    def _carried(self, sock: socket.socket) -> int:
        """IP bytes that brought the data of a connection; what TCP sent twice counts once."""
        try:
            _, received, segments = tcp_counters(sock)
        except OSError:
            return self._open[sock][1]
        carried = received + TCP_HEADER_BYTES * segments
        self._open[sock] = (self._open[sock][0], carried)
        return carried

    def _receive(self) -> None:
        while True:
            try:
                data, peer = self._udp.recvfrom(2048)
            except (BlockingIOError, ConnectionRefusedError):
                return
            numbers = self._numbers.get(self._flows.get(peer[0], ""))
            if numbers is not None:
                numbers.peer = peer
                numbers.arrived(data)

    def _set_numbers(self, request: dict[str, Any]) -> Reply:
        no_more(request, "flow", "rate", "packet_bytes")
        name = value(request, "flow", str)
        if name not in self._numbers:
            raise Refused(f"flow: no flow {name!r}; flows: {', '.join(list(self._numbers)[:8])}")
        if self._numbers[name].peer is None:
            raise Refused(f"flow {name}: nothing has arrived from it yet, so its port is not known")
        self._numbers[name].set_rate(*_numbers_rate(request))
        return {}

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        carried = dict(self._past)
        for sock, (name, _) in list(self._open.items()):
            carried[name] += self._carried(sock)
        flows = {
            name: {"rx_bytes": carried[name], "numbers": self._numbers[name].stats()} for name in self._flows.values()
        }
        return {"time_ns": time.monotonic_ns(), "started_ns": self.started_ns, "flows": flows}


def _numbers_rate(request: dict[str, Any]) -> tuple[float, int]:
    least = UDP_HEADER_BYTES + NUMBER.size
    return number(request, "rate", 0, 1e9), int(number(request, "packet_bytes", least, 1472, 200))


def _start(loop: Loop, config: dict[str, Any], control: str) -> Source | Sink:
    role = value(config, "role", str)
    if role not in ("source", "sink"):
        raise ConfigError(f"role: must be source or sink, got {role!r}")
    return Source(loop, config, control) if role == "source" else Sink(loop, config, control)


if __name__ == "__main__":
    main("backhaul", _start)
