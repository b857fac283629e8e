"""UDP sink of uplink reports: counts what arrives, what is missing and how long it took, per flow."""

from __future__ import annotations

import time
from typing import Any

from twin.emulation.dataplane import net, probe
from twin.emulation.dataplane.control import ControlServer, Reply, no_more
from twin.emulation.dataplane.loop import Loop, main, number, value

MAX_FLOWS = 10_000


class TelemetryApp:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.node = value(config, "node", str)
        bind = value(config, "bind", str, "0.0.0.0")
        self._started_ns = time.monotonic_ns()
        self._flows: dict[bytes, tuple[str, probe.Receiver]] = {}
        self._malformed = 0
        self._sock = net.udp_socket(bind, int(number(config, "port", 1, 65535, 5002)))
        self._echo = probe.EchoServer(loop, bind, int(number(config, "echo_port", 1, 65535, probe.ECHO_PORT)))
        loop.add_reader(self._sock.fileno(), self._receive)
        self._control = ControlServer(
            loop, control, node=self.node, program="app_telemetry", ops={"stats": self._stats}, later_ops={}
        )

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        self._echo.close()
        self._sock.close()

    def _receive(self) -> None:
        for _ in range(probe.BATCH):
            try:
                data, peer = self._sock.recvfrom(probe.READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error about an echo: not ours
            stamp = probe.parse(data)
            if stamp is None or stamp.kind != probe.DATA:
                self._malformed += 1
                continue
            known = self._flows.get(stamp.name)
            if known is None:
                if len(self._flows) >= MAX_FLOWS:
                    self._malformed += 1
                    continue
                known = self._flows[stamp.name] = (peer[0], probe.Receiver(self._started_ns))
            known[1].receive(stamp, len(data) + probe.IP_UDP_BYTES, time.monotonic_ns())

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "malformed": self._malformed,
            "flows": {
                name.decode(errors="replace"): {"client": client, **receiver.stats()}
                for name, (client, receiver) in self._flows.items()
            },
        }


if __name__ == "__main__":
    main("app_telemetry", TelemetryApp)
