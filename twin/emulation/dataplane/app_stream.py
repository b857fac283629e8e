"""Video-like application: sends constant-rate UDP to every client that asks, as long as it keeps asking.

A client asks with a JSON datagram ``{"flow", "rate", "packet_bytes"}`` twice a second, and says
``{"flow", "stop": true}`` at the end; three seconds of silence end the flow as well.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

from twin.emulation.dataplane import net, probe
from twin.emulation.dataplane.control import ControlServer, Reply, no_more
from twin.emulation.dataplane.loop import ConfigError, Loop, main, number, value

SILENCE_NS = 3_000_000_000
MAX_FLOWS = 10_000


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
        self.tx_bytes = self.tx_packets = self.send_errors = 0


class StreamApp:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.node = value(config, "node", str)
        bind = value(config, "bind", str, "0.0.0.0")
        self._started_ns = time.monotonic_ns()
        self._pacer = probe.Pacer(loop)
        self._draw = random.Random(self.node)
        self._flows: dict[str, StreamFlow] = {}
        self._malformed = 0
        self._sock = net.udp_socket(bind, int(number(config, "port", 1, 65535, 5001)))
        self._echo = probe.EchoServer(loop, bind, int(number(config, "echo_port", 1, 65535, probe.ECHO_PORT)))
        loop.add_reader(self._sock.fileno(), self._asked)
        loop.every(500_000_000, self._expire)
        self._control = ControlServer(
            loop, control, node=self.node, program="app_stream", ops={"stats": self._stats}, later_ops={}
        )

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
        probe.set_rate(self._pacer, flow.paced, rate / 8 / flow.packet_bytes, self._draw)
        if not rate:
            flow.paced = None

    def _send(self, flow: StreamFlow) -> None:
        flow.tx_packets += 1
        flow.tx_bytes += flow.packet_bytes
        try:
            self._sock.sendto(flow.maker.next(), flow.peer)
        except OSError:
            flow.send_errors += 1

    def _expire(self) -> None:
        limit_ns = time.monotonic_ns() - SILENCE_NS
        for flow in self._flows.values():
            if flow.paced is not None and flow.heard_ns < limit_ns:
                self._set_rate(flow, 0.0)

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "malformed": self._malformed,
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
