"""The users' side of all flows of one UE container.

``stream`` asks the application for packets and measures them; ``telemetry`` sends; ``request`` makes HTTP
requests at Poisson times without waiting for earlier ones (open loop). Every flow also sends small probes to
the application's echo port. Sockets are bound to the UE's address, also before the UE attaches and after it left.
"""

from __future__ import annotations

import errno
import json
import random
import socket
import time
from typing import Any

from twin.emulation.dataplane import net, probe
from twin.emulation.dataplane.app_request import content_length
from twin.emulation.dataplane.control import ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.histogram import Histogram, merge
from twin.emulation.dataplane.loop import ConfigError, Loop, Timer, main, number, value

SERVICES = ("stream", "telemetry", "request")
COUNTERS = (
    *("tx_bytes", "tx_packets", "send_errors", "rx_bytes", "rx_packets", "lost_packets", "probes_tx", "probes_rx"),
    *("issued", "requests", "failures"),
)
HISTOGRAMS = ("delay", "rtt", "response")
LONGEST = "gap_us"
ASK_HZ = 2.0
FIRST_ASK_AGAIN_NS = 10e6
MAX_IN_FLIGHT = 2000
MAX_HEAD_BYTES = 16_384
STOP_AGAIN_NS = (100_000_000, 300_000_000)


class Flow:
    """What all services share: probes, counters."""

    def __init__(self, program: Traffic, request: dict[str, Any]) -> None:
        self.program = program
        self.name = value(request, "flow", str)
        self.ue = value(request, "ue", str)
        self.service = request["service"]
        self.address = value(request, "address", str)
        net.ipv4(self.address, "address")
        self.app = probe.address_pair(request["app"], "app")
        self.rate = 0.0
        self.packet_bytes = int(number(request, "packet_bytes", 0, 10_000_000))
        self.draw = random.Random(f"{request.get('seed', 0)}/{self.name}")
        self.tx_bytes = self.tx_packets = self.send_errors = 0
        self.probes_tx = self.probes_rx = 0
        self.first_rx_ns: int | None = None
        self.rtt = Histogram()
        self.receiver = probe.Receiver(program.started_ns)
        self._echo = (self.app[0], int(number(request, "echo_port", 1, 65535, probe.ECHO_PORT)))
        probe_hz = number(request, "probe_hz", 0, 1000, 10)
        self._prober = probe.PacketMaker(probe.PROBE, self.name, probe.least_packet_bytes(self.name))
        self.sock = probe.client_socket(socket.SOCK_DGRAM, self.address)
        program.loop.add_reader(self.sock.fileno(), self._receive)
        self._probing = program.pacer.add(self._probe)
        probe.set_rate(program.pacer, self._probing, probe_hz, self.draw)

    def set_rate(self, rate: float) -> None:
        """Another rate from now on."""
        self.rate = rate

    def stop(self) -> None:
        """End the flow; its counters stay."""
        self.program.pacer.set_gap(self._probing, None)
        self.close()

    def close(self) -> None:
        """Close the socket; harmless when it is closed."""
        if self.sock.fileno() >= 0:
            self.program.loop.remove(self.sock.fileno())
            self.sock.close()

    def send(self, data: bytes | bytearray, peer: tuple[str, int]) -> bool:
        """One datagram; False when the host refuses it (the UE is detached)."""
        try:
            self.sock.sendto(data, peer)
        except OSError:
            return False
        return True

    def _probe(self) -> None:
        self.probes_tx += 1
        self.send(self._prober.next(), self._echo)

    def _receive(self) -> None:
        for _ in range(probe.BATCH):
            try:
                data = self.sock.recv(probe.READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about something sent earlier
            now_ns = time.monotonic_ns()
            stamp = probe.parse(data)
            if stamp is None:
                continue
            if stamp.kind == probe.PROBE:
                self.probes_rx += 1
                self.rtt.add((now_ns - stamp.sent_ns) / 1e3)
            elif stamp.kind == probe.DATA:
                self.first_rx_ns = self.first_rx_ns or now_ns
                self.receiver.receive(stamp, len(data) + probe.IP_UDP_BYTES, now_ns)

    def stats(self) -> dict[str, Any]:
        """Counters, and the histograms since the last call."""
        return {
            "ue": self.ue,
            "service": self.service,
            "rate": self.rate,
            "tx_bytes": self.tx_bytes,
            "tx_packets": self.tx_packets,
            "send_errors": self.send_errors,
            **self.receiver.stats(),
            "first_rx_ns": self.first_rx_ns,
            "probes_tx": self.probes_tx,
            "probes_rx": self.probes_rx,
            "rtt": self.rtt.take(),
        }


def _packet_bytes(flow: Flow, mtu_bytes: int) -> None:
    least = probe.least_packet_bytes(flow.name)
    if not least <= flow.packet_bytes <= mtu_bytes:
        raise ConfigError(f"packet_bytes: must be in [{least}, {mtu_bytes}] for {flow.name}, got {flow.packet_bytes}")


class StreamFlow(Flow):
    """Asks the application twice a second; the application sends."""

    def __init__(self, program: Traffic, request: dict[str, Any]) -> None:
        super().__init__(program, request)
        self._asking = program.pacer.add(self._ask)

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        if not rate:
            self.receiver.pause()
        self._gap_ns = FIRST_ASK_AGAIN_NS
        self.program.pacer.set_gap(self._asking, self._next_gap_ns)

    def _next_gap_ns(self) -> float:
        # The first question is lost when the UE is still attaching: ask sooner until something was answered.
        usual_ns = 1e9 / ASK_HZ
        gap_ns, self._gap_ns = self._gap_ns, min(2 * self._gap_ns, usual_ns)
        return usual_ns if self.first_rx_ns is not None else gap_ns

    def _ask(self) -> None:
        question = {"flow": self.name, "rate": self.rate, "packet_bytes": self.packet_bytes}
        if not self.send(json.dumps(question).encode(), self.app):
            self.send_errors += 1

    def stop(self) -> None:
        self.program.pacer.set_gap(self._asking, None)
        self.program.pacer.set_gap(self._probing, None)
        stop = json.dumps({"flow": self.name, "stop": True}).encode()
        self.send(stop, self.app)
        # The word may get lost; the socket closes after the last repetition.
        for wait_ns in STOP_AGAIN_NS:
            self.program.loop.call_after(wait_ns, lambda: self._stop_again(stop))
        self.program.loop.call_after(STOP_AGAIN_NS[-1] + 1, self.close)

    def _stop_again(self, stop: bytes) -> None:
        # The same flow may have been started anew in the meantime.
        if self.program.flows.get(self.name) is None and self.sock.fileno() >= 0:
            self.send(stop, self.app)


class TelemetryFlow(Flow):
    """Sends at a constant rate."""

    def __init__(self, program: Traffic, request: dict[str, Any]) -> None:
        super().__init__(program, request)
        self._maker = probe.PacketMaker(probe.DATA, self.name, self.packet_bytes)
        self._sending = program.pacer.add(self._report)

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        probe.set_rate(self.program.pacer, self._sending, rate / 8 / self.packet_bytes, self.draw)

    def _report(self) -> None:
        self.tx_packets += 1
        self.tx_bytes += self.packet_bytes
        if not self.send(self._maker.next(), self.app):
            self.send_errors += 1

    def stop(self) -> None:
        self.program.pacer.set_gap(self._sending, None)
        super().stop()


class Exchange:
    """One HTTP request and its response, on a connection of its own."""

    __slots__ = ("_flow", "_incoming", "_outgoing", "_started_ns", "_timer", "sock")

    def __init__(self, flow: RequestFlow, timeout_ns: int) -> None:
        self._flow = flow
        self._started_ns = time.monotonic_ns()
        self._outgoing = memoryview(flow.message)
        self._incoming = bytearray()
        self._timer: Timer | None = None
        loop = flow.program.loop
        self.sock = probe.client_socket(socket.SOCK_STREAM, flow.address)
        flow.exchanges.add(self)
        code = self.sock.connect_ex(flow.app)
        if code not in (0, errno.EINPROGRESS):
            self._end(answered=False)
            return
        self._timer = loop.call_after(timeout_ns, lambda: self._end(answered=False))
        loop.add_writer(self.sock.fileno(), self._write)
        loop.add_reader(self.sock.fileno(), self._read)

    def _write(self) -> None:
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.sock.send(self._outgoing) :]
        except BlockingIOError:
            return
        except OSError:
            self._end(answered=False)
            return
        self._flow.program.loop.remove_writer(self.sock.fileno())

    def _read(self) -> None:
        try:
            chunk = self.sock.recv(probe.READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self._incoming += chunk
        head, complete, body = self._incoming.partition(b"\r\n\r\n")
        length = content_length(bytes(head)) if complete else None
        if length is not None and len(body) >= length:
            self._end(answered=head.startswith(b"HTTP/1.1 200 "))
        elif not chunk or (complete and length is None) or len(head) > MAX_HEAD_BYTES:
            self._end(answered=False)

    def _end(self, *, answered: bool) -> None:
        flow = self._flow
        if answered:
            now_ns = time.monotonic_ns()
            flow.requests += 1
            flow.first_rx_ns = flow.first_rx_ns or now_ns
            flow.response.add((now_ns - self._started_ns) / 1e3)
        else:
            flow.failures += 1
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._flow.program.loop.remove(self.sock.fileno())
        self.sock.close()
        self._flow.exchanges.discard(self)


class RequestFlow(Flow):
    """Poisson requests."""

    def __init__(self, program: Traffic, request: dict[str, Any]) -> None:
        super().__init__(program, request)
        self._timeout_ns = int(number(request, "timeout_s", 0.01, 600, 2.0) * 1e9)
        host = f"{self.app[0]}:{self.app[1]}"
        path = request.get("path", "/predict")
        if not isinstance(path, str) or not path.startswith("/") or not path.isprintable() or " " in path:
            raise ConfigError(f"path must be the path of a URL, got {path!r}")
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {self.packet_bytes}\r\n"
        self.message = f"{head}Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n".encode()
        self.message += bytes(self.packet_bytes)
        self.exchanges: set[Exchange] = set()
        self.issued = self.requests = self.failures = 0
        self.response = Histogram()
        self._issuing = program.pacer.add(self._issue)

    def set_rate(self, rate: float) -> None:
        super().set_rate(rate)
        gap_ns = (lambda: self.draw.expovariate(rate) * 1e9) if rate > 0 else None
        self.program.pacer.set_gap(self._issuing, gap_ns, gap_ns() if gap_ns else 0.0)

    def _issue(self) -> None:
        self.issued += 1
        if len(self.exchanges) >= MAX_IN_FLIGHT:
            self.failures += 1
            return
        try:
            Exchange(self, self._timeout_ns)
        except (OSError, ConfigError):
            self.failures += 1  # no descriptors or ports left

    def stop(self) -> None:
        self.program.pacer.set_gap(self._issuing, None)
        for exchange in list(self.exchanges):
            exchange.close()
        super().stop()

    def stats(self) -> dict[str, Any]:
        return {
            **super().stats(),
            "issued": self.issued,
            "requests": self.requests,
            "failures": self.failures,
            "in_flight": len(self.exchanges),
            "response": self.response.take(),
        }


class Traffic:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.loop = loop
        self.node = value(config, "node", str)
        self._mtu_bytes = int(number(config, "mtu", 576, 9000, 1400))
        self.started_ns = time.monotonic_ns()
        self.pacer = probe.Pacer(loop)
        self.flows: dict[str, Flow] = {}
        # Counters of a flow name never go down: what earlier flows of that name counted is added.
        self._past: dict[str, dict[str, Any]] = {}
        self._unread: dict[str, dict[str, Any]] = {}
        ops = {"start": self._start, "rate": self._rate, "stop": self._stop, "stats": self._stats}
        self._control = ControlServer(loop, control, node=self.node, program="traffic", ops=ops, later_ops={})

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        for flow in self.flows.values():
            flow.stop()
            flow.close()

    def _start(self, request: dict[str, Any]) -> Reply:
        no_more(
            request,
            *("flow", "ue", "address", "service", "app", "rate", "packet_bytes", "seed"),
            *("echo_port", "probe_hz", "timeout_s", "path"),
        )
        name = value(request, "flow", str)
        if name in self.flows:
            raise Refused(f"flow {name}: runs already")
        service = value(request, "service", str)
        if service not in SERVICES:
            raise Refused(f"service: must be one of {', '.join(SERVICES)}, got {service!r}")
        rate = _rate_of(service, request)
        flow: Flow
        if service == "stream":
            flow = StreamFlow(self, request)
        elif service == "telemetry":
            if number(request, "packet_bytes", 1, 65535) < probe.least_packet_bytes(name):
                raise ConfigError(f"packet_bytes: must be at least {probe.least_packet_bytes(name)} for {name}")
            flow = TelemetryFlow(self, request)
        else:
            flow = RequestFlow(self, request)
        if service != "request":
            try:
                _packet_bytes(flow, self._mtu_bytes)
            except ConfigError:
                flow.stop()
                raise
        self.flows[name] = flow
        flow.set_rate(rate)
        return {}

    def _flow(self, request: dict[str, Any]) -> Flow:
        name = value(request, "flow", str)
        if name not in self.flows:
            raise Refused(f"flow: no flow {name!r} in {self.node}; flows: {', '.join(list(self.flows)[:8]) or 'none'}")
        return self.flows[name]

    def _rate(self, request: dict[str, Any]) -> Reply:
        no_more(request, "flow", "rate")
        flow = self._flow(request)
        flow.set_rate(_rate_of(flow.service, request))
        return {}

    def _stop(self, request: dict[str, Any]) -> Reply:
        no_more(request, "flow")
        flow = self._flow(request)
        del self.flows[flow.name]
        flow.stop()
        last = {**self._row(flow), "stopped": True}
        self._past[flow.name] = {key: last[key] for key in COUNTERS if key in last}
        self._unread[flow.name] = last
        return dict(last)

    def _row(self, flow: Flow) -> dict[str, Any]:
        row = flow.stats()
        for key, number_before in self._past.get(flow.name, {}).items():
            row[key] = row.get(key, 0) + number_before
        unread = self._unread.pop(flow.name, None)
        for key in HISTOGRAMS:
            if unread is not None and key in unread and key in row:
                row[key] = merge([unread[key], row[key]])
        if unread is not None and LONGEST in unread:
            row[LONGEST] = max(row[LONGEST], unread[LONGEST])
        return row

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        rows = {name: self._row(flow) for name, flow in self.flows.items()}
        rows.update(self._unread)
        self._unread = {}
        return {"time_ns": time.monotonic_ns(), "started_ns": self.started_ns, "flows": rows}


def _rate_of(service: str, request: dict[str, Any]) -> float:
    return number(request, "rate", 0, 100_000 if service == "request" else probe.MAX_RATE_BPS)


if __name__ == "__main__":
    main("traffic", Traffic)
