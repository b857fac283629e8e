"""Video-like application: sends constant-rate UDP to every client that asks, as long as it keeps asking.

A client asks with a JSON datagram ``{"flow", "rate", "packet_bytes"}`` twice a second, and says
``{"flow", "stop": true}`` at the end; three seconds of silence end the flow as well.

The service can move to another server and back, while clients watch: ``release`` says what the flows will be like at a
time that is near, and sends until then; the other server adopts them and sends from then on.
``qemu-images/runtime/stream.c`` is the same server for partitions.
"""

from __future__ import annotations

import json
import math
import random
import time
from typing import Any

from twin.emulation.dataplane import net, probe
from twin.emulation.dataplane.control import ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.loop import ConfigError, Loop, main, number, value

SILENCE_NS = 3_000_000_000
MAX_FLOWS = 10_000
GO, HOLD, GONE = "go", "hold", "gone"
"""Questions are answered; wait in the socket; are somebody else's."""


class StreamFlow:
    """One client."""

    def __init__(self, name: str, packet_bytes: int) -> None:
        self.name = name
        self.packet_bytes = packet_bytes
        self.maker = probe.PacketMaker(probe.DATA, name, packet_bytes)
        self.peer = ("", 0)
        self.rate = 0.0
        self.heard_ns = 0
        self.paced: probe.Paced | None = None
        self.left: int | None = None
        """Packets until another server goes on."""
        self.tx_bytes = self.tx_packets = self.send_errors = 0

    @property
    def packets_per_s(self) -> float:
        return self.rate / 8 / self.packet_bytes

    def at(self, time_ns: int) -> tuple[int, dict[str, Any]]:
        """Packets due before a time of the monotonic clock, and the flow as it will be then."""
        packets, due_ns = 0, 0.0
        if self.paced is not None:
            gap_ns, due_ns = 1e9 / self.packets_per_s, self.paced.due_ns
            packets = max(0, math.ceil((time_ns - due_ns) / gap_ns))
            due_ns += packets * gap_ns
        return packets, {
            "flow": self.name,
            "local": "0.0.0.0",  # the kernel chooses
            "peer": self.peer[0],
            "port": self.peer[1],
            "rate": self.rate if self.paced is not None else 0.0,
            "packet_bytes": self.packet_bytes,
            "started_ns": self.maker.started_ns,
            "sequence": self.maker.sequence + packets,
            "due_ns": int(due_ns),
            "tx_packets": self.tx_packets + packets,
            "tx_bytes": self.tx_bytes + packets * self.packet_bytes,
            "send_errors": self.send_errors,
        }


class StreamApp:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.node = value(config, "node", str)
        bind = value(config, "bind", str, "0.0.0.0")
        self._loop = loop
        self._started_ns = time.monotonic_ns()
        self._pacer = probe.Pacer(loop)
        self._draw = random.Random(self.node)
        self._flows: dict[str, StreamFlow] = {}
        self._malformed = 0
        self._mode = GO
        self._sock = net.udp_socket(bind, int(number(config, "port", 1, 65535, 5001)))
        self._echo = probe.EchoServer(loop, bind, int(number(config, "echo_port", 1, 65535, probe.ECHO_PORT)))
        loop.add_reader(self._sock.fileno(), self._asked)
        loop.every(500_000_000, self._expire)
        ops = {"stats": self._stats, "hold": self._hold, "go": self._go}
        ops |= {"adopt": self._adopt, "release": self._release}
        self._control = ControlServer(loop, control, node=self.node, program="app_stream", ops=ops, later_ops={})

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        self._echo.close()
        self._sock.close()

    def _asked(self) -> None:
        for _ in range(probe.BATCH):
            try:
                data, peer = self._sock.recvfrom(probe.READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # a client is gone; its silence ends the flow
            if self._mode != GO:
                continue
            try:
                self._ask(json.loads(data), peer)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self._malformed += 1

    def _ask(self, request: dict[str, Any], peer: tuple[str, int]) -> None:
        name = value(request, "flow", str)
        flow = self._flows.get(name)
        if request.get("stop"):
            if flow is not None:
                self._set_rate(flow, 0.0)
            return
        rate = number(request, "rate", 0, probe.MAX_RATE_BPS)
        packet_bytes = int(number(request, "packet_bytes", 1, probe.MAX_PAYLOAD))
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                raise ConfigError(f"at most {MAX_FLOWS} flows")
            flow = self._flows[name] = StreamFlow(name, packet_bytes)
        elif flow.packet_bytes != packet_bytes or flow.paced is None:
            flow.packet_bytes = packet_bytes
            flow.maker = probe.PacketMaker(probe.DATA, name, packet_bytes)
        flow.peer = peer
        flow.heard_ns = time.monotonic_ns()
        self._set_rate(flow, rate)

    def _set_rate(self, flow: StreamFlow, rate: float) -> None:
        if rate == flow.rate and flow.paced is not None:
            return
        flow.rate = rate
        if flow.paced is None:
            flow.paced = self._pacer.add(lambda: self._send(flow))
        probe.set_rate(self._pacer, flow.paced, flow.packets_per_s, self._draw)
        if not rate:
            flow.paced = None

    def _send(self, flow: StreamFlow) -> None:
        flow.tx_packets += 1
        flow.tx_bytes += flow.packet_bytes
        try:
            self._sock.sendto(flow.maker.next(), flow.peer)
        except OSError:
            flow.send_errors += 1
        if flow.left is not None:
            flow.left -= 1
            if not flow.left and flow.paced is not None:
                self._pacer.set_gap(flow.paced, None)

    def _expire(self) -> None:
        limit_ns = time.monotonic_ns() - SILENCE_NS
        for flow in self._flows.values():
            if flow.paced is not None and flow.heard_ns < limit_ns:
                self._set_rate(flow, 0.0)

    # a service that moves

    def _hold(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        if self._mode == GO:
            raise Refused("hold: comes after release")
        self._asked()  # what came while somebody else served
        self._flows = {}
        self._mode = HOLD
        self._loop.remove_reader(self._sock.fileno())
        return {}

    def _go(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        self._mode = GO
        self._loop.add_reader(self._sock.fileno(), self._asked)
        return {}

    def _adopt(self, request: dict[str, Any]) -> Reply:
        no_more(request, "flows")
        if self._mode == GONE:
            raise Refused("adopt: comes after hold or go")
        for row in value(request, "flows", list):
            flow = StreamFlow(value(row, "flow", str), int(number(row, "packet_bytes", 1, probe.MAX_PAYLOAD)))
            flow.maker.resume(value(row, "started_ns", int), value(row, "sequence", int))
            flow.peer = (value(row, "peer", str), int(number(row, "port", 1, 65535)))
            flow.rate = number(row, "rate", 0, probe.MAX_RATE_BPS)
            flow.heard_ns = time.monotonic_ns()
            flow.tx_packets, flow.tx_bytes = value(row, "tx_packets", int), value(row, "tx_bytes", int)
            flow.send_errors = value(row, "send_errors", int)
            self._flows[flow.name] = flow
            if flow.rate:
                flow.paced = self._pacer.add(lambda flow=flow: self._send(flow))  # type: ignore[misc]
                self._pacer.resume(flow.paced, 1e9 / flow.packets_per_s, number(row, "due_ns", 0, 2**63))
        return {}

    def _release(self, request: dict[str, Any]) -> Reply:
        no_more(request, "at_ns")
        at_ns = value(request, "at_ns", int)
        rows = []
        for flow in self._flows.values():
            flow.left, row = flow.at(at_ns)
            rows.append(row)
            if not flow.left and flow.paced is not None:
                self._pacer.set_gap(flow.paced, None)
        self._flows = {}
        self._mode = GONE
        return {"flows": rows}

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "malformed": self._malformed,
            "serving": self._mode == GO,
            "flows": {
                flow.name: {
                    "client": flow.peer[0],
                    "rate": flow.rate,
                    "tx_bytes": flow.tx_bytes,
                    "tx_packets": flow.tx_packets,
                    "send_errors": flow.send_errors,
                }
                for flow in self._flows.values()
            },
        }


if __name__ == "__main__":
    main("app_stream", StreamApp)
