"""The UEs of one container: one TUN device, one radio link to the gNB, a PDU session per UE.

Packets leave through the TUN; the inner source address says which UE sends. Attaching is in-band: UE →
gNB → UPF session → accept, asked again until the timeout. The address of a UE is on the TUN while
it is attached.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from twin.emulation.dataplane import net, radio
from twin.emulation.dataplane.control import Answer, ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.histogram import Histogram
from twin.emulation.dataplane.loop import ConfigError, Loop, Timer, main, number, value

BATCH = 64
HELLO_NS = 1_000_000_000
GNB_LOST_NS = 3_500_000_000
FIRST_RETRY_NS = 50_000_000
LAST_RETRY_NS = 400_000_000
REATTACH_NS = 500_000_000

Done = Callable[[dict[str, Any]], None]


class UeState:
    """One UE: ``wanted`` is what was asked for, ``state`` what the network said."""

    __slots__ = (
        "address",
        "asked_ns",
        "attach_us",
        "deadline_ns",
        "dl_bytes",
        "dl_packets",
        "header",
        "id",
        "index",
        "state",
        "text",
        "timer",
        "txn",
        "ul_bytes",
        "ul_packets",
        "waiting",
        "wanted",
    )

    def __init__(self, ue_id: str, index: int, address: str) -> None:
        self.id = ue_id
        self.index = index
        self.text = address
        self.address = net.ipv4(address, f"ue {ue_id} address")
        self.header = radio.header(radio.DATA, index)
        self.state = "detached"
        self.wanted = False
        self.attach_us = 0.0
        self.asked_ns = self.deadline_ns = 0
        self.txn = 0
        self.timer: Timer | None = None
        self.waiting: list[Done] = []
        self.ul_bytes = self.ul_packets = self.dl_bytes = self.dl_packets = 0


class UeProgram:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self._loop = loop
        self.node = value(config, "node", str)
        self._tun_name = value(config, "tun", str, "tun0")
        mtu_bytes = int(number(config, "mtu", 576, 9000, 1400))
        self._read_bytes = mtu_bytes + 200
        self._timeout_s = number(config, "attach_timeout_s", 0.01, 600, 1.5)
        self._started_ns = time.monotonic_ns()
        self._ues: dict[str, UeState] = {}
        self._by_index: dict[int, UeState] = {}
        for row in value(config, "ues", list):
            ue = UeState(value(row, "id", str), int(number(row, "index", 0, 65535)), value(row, "address", str))
            if ue.id in self._ues or ue.index in self._by_index:
                raise ConfigError(f"ue {ue.id}: id or index {ue.index} is used twice")
            self._ues[ue.id] = self._by_index[ue.index] = ue
        # The data path looks only at these two; both hold attached UEs only.
        self._sending: dict[bytes, UeState] = {}
        self._receiving: dict[bytes, UeState] = {}
        gnb = value(config, "gnb", dict)
        net.ipv4(gnb["address"], "gnb.address")
        self._gnb_boot = b""
        self._gnb_seen_ns = 0
        self._hellos = False
        self._attach_count = self._attach_failures = 0
        self._attach_histogram = Histogram()
        self._ul_unknown = self._malformed = self._send_errors = 0
        self._tun = net.open_tun(self._tun_name, mtu_bytes)
        self._netlink = net.Netlink()
        self._routes = [net.prefix(route, "routes") for route in value(config, "routes", list, [])]
        self._set_routes()
        self._radio = net.udp_socket("0.0.0.0", 0)
        self._gnb = (gnb["address"], int(number(gnb, "port", 1, 65535)))
        self._connected = False
        self._connect()
        loop.add_reader(self._tun, self._from_tun)
        loop.add_reader(self._radio.fileno(), self._from_radio)
        self._control = ControlServer(
            loop,
            control,
            node=self.node,
            program="ue",
            ops={"stats": self._stats},
            later_ops={"attach": self._op_attach, "detach": self._op_detach},
        )

    def close(self) -> None:
        """Release sockets and the TUN device; the network finds out by itself."""
        self._control.close()
        self._netlink.close()
        self._radio.close()
        os.close(self._tun)

    def _connect(self) -> bool:
        """Connect the radio socket as soon as the link has an address; True when it is connected."""
        if not self._connected:
            try:
                self._radio.connect(self._gnb)
                self._connected = True
            except OSError:
                return False
        return True

    # the data path

    def _from_tun(self) -> None:
        read, send, tun, size = os.read, self._radio.send, self._tun, self._read_bytes
        sending = self._sending
        try:
            for _ in range(BATCH):
                packet = read(tun, size)
                ue = sending.get(packet[12:16])
                if ue is None:
                    if packet[0] >> 4 == 4:
                        self._ul_unknown += 1
                    continue
                ue.ul_packets += 1
                ue.ul_bytes += len(packet)
                try:
                    send(ue.header + packet)
                except OSError:
                    self._send_errors += 1
        except BlockingIOError:
            return
        except OSError:
            self._send_errors += 1

    def _from_radio(self) -> None:
        write, recv, tun, size = os.write, self._radio.recv, self._tun, self._read_bytes
        receiving = self._receiving
        for _ in range(BATCH):
            try:
                data = recv(size)
            except BlockingIOError:
                return
            except OSError:
                continue  # the gNB's port is closed: it will come back or the hellos find out
            ue = receiving.get(data[:4])
            if ue is not None:
                ue.dl_packets += 1
                ue.dl_bytes += len(data) - 4
                try:
                    write(tun, data[4:])
                except OSError:
                    self._send_errors += 1
            else:
                self._signalling(data)

    # signalling

    def _signalling(self, data: bytes) -> None:
        if len(data) < radio.HEADER_BYTES or data[0] == radio.DATA:
            self._malformed += len(data) < radio.HEADER_BYTES
            return
        self._gnb_seen_ns = time.monotonic_ns()
        if data[0] == radio.HELLO_ACK:
            boot = data[radio.HEADER_BYTES :]
            if self._gnb_boot and boot != self._gnb_boot:
                for ue in self._ues.values():
                    if ue.state == "attached":
                        self._attach_again(ue)
            self._gnb_boot = boot
            return
        known = self._by_index.get(int.from_bytes(data[2:4], "big"))
        try:
            fields = radio.fields(data)
        except ValueError:
            known = None
        if known is None:
            self._malformed += 1
        else:
            self._answer(known, data[0], fields)

    def _answer(self, ue: UeState, kind: int, fields: dict[str, Any]) -> None:
        if kind == radio.ACCEPT:
            if ue.state == "attaching" and fields.get("txn") == ue.txn:
                self._attached(ue)
        elif kind == radio.REJECT:
            if ue.state == "attaching" and fields.get("txn") == ue.txn:
                self._give_up(ue, str(fields.get("cause", "rejected")))
        elif kind == radio.RELEASE and ue.state == "attached":
            if fields.get("again"):
                self._attach_again(ue)
            else:
                ue.wanted = False
                self._leave(ue, "detached")

    def _start_attach(self, ue: UeState, timeout_s: float) -> None:
        ue.state = "attaching"
        ue.wanted = True
        ue.asked_ns = time.monotonic_ns()
        ue.deadline_ns = ue.asked_ns + int(timeout_s * 1e9)
        ue.txn = (ue.txn + 1) & 0xFFFFFFFF
        if not self._hellos:
            self._hellos = True
            self._hello()
        self._ask(ue, FIRST_RETRY_NS)

    def _ask(self, ue: UeState, wait_ns: int) -> None:
        now_ns = time.monotonic_ns()
        if now_ns >= ue.deadline_ns:
            self._give_up(ue, "the gNB does not answer")
            return
        self._signal(radio.message(radio.ATTACH, ue.index, ue=ue.id, address=ue.text, txn=ue.txn))
        again_ns = min(now_ns + wait_ns, ue.deadline_ns)
        ue.timer = self._loop.call_at(again_ns, lambda: self._ask(ue, min(2 * wait_ns, LAST_RETRY_NS)))

    def _signal(self, data: bytes) -> None:
        try:
            if self._connect():
                self._radio.send(data)
        except OSError:
            self._send_errors += 1

    def _attached(self, ue: UeState) -> None:
        self._stop_timer(ue)
        try:
            self._netlink.add_address(self._tun_name, ue.address)
            # The kernel forgets a device's routes together with its last address.
            self._set_routes()
        except OSError as error:
            self._give_up(ue, f"address {ue.text}: {error}")
            return
        ue.state = "attached"
        ue.attach_us = (time.monotonic_ns() - ue.asked_ns) / 1e3
        self._sending[ue.address] = self._receiving[ue.header] = ue
        self._attach_count += 1
        self._attach_histogram.add(ue.attach_us)
        self._tell(ue, {"ok": True, "attach_us": round(ue.attach_us, 1)})

    def _set_routes(self) -> None:
        for network, length in self._routes:
            self._netlink.add_route(self._tun_name, network, length)

    def _give_up(self, ue: UeState, cause: str) -> None:
        self._attach_failures += 1
        asked_by_user = bool(ue.waiting)
        self._leave(ue, "detached")
        self._tell(ue, {"ok": False, "error": f"{ue.id}: {cause}"})
        # A session that the network lost is wanted until detach; one that never was is the caller's to retry.
        if ue.wanted and not asked_by_user:
            ue.timer = self._loop.call_after(REATTACH_NS, lambda: self._start_attach(ue, self._timeout_s))
        else:
            ue.wanted = False

    def _attach_again(self, ue: UeState) -> None:
        self._leave(ue, "lost")
        self._start_attach(ue, self._timeout_s)

    def _leave(self, ue: UeState, state: str) -> None:
        self._stop_timer(ue)
        ue.state = state
        self._sending.pop(ue.address, None)
        self._receiving.pop(ue.header, None)
        if state == "detached":
            try:
                self._netlink.remove_address(self._tun_name, ue.address)
            except OSError:
                self._send_errors += 1

    @staticmethod
    def _stop_timer(ue: UeState) -> None:
        if ue.timer is not None:
            ue.timer.cancel()
            ue.timer = None

    @staticmethod
    def _tell(ue: UeState, result: dict[str, Any]) -> None:
        waiting, ue.waiting = ue.waiting, []
        for done in waiting:
            done(result)

    def _hello(self) -> None:
        if any(ue.wanted for ue in self._ues.values()):
            self._signal(radio.header(radio.HELLO, 0))
            self._loop.call_after(HELLO_NS, self._hello)
        else:
            self._hellos = False

    # operations

    def _select(self, request: dict[str, Any]) -> list[UeState]:
        names = [request["ue"]] if "ue" in request else request["ues"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refused("ues: must be a list of UE ids")
        for name in names:
            if name not in self._ues:
                raise Refused(f"no UE {name!r} in {self.node}; UEs: {', '.join(list(self._ues)[:8])}")
        return [self._ues[name] for name in dict.fromkeys(names)]

    def _op_attach(self, request: dict[str, Any], answer: Answer) -> None:
        no_more(request, "ue", "ues", "timeout_s", "wait")
        ues = self._select(request)
        timeout_s = number(request, "timeout_s", 0.01, 600, self._timeout_s)
        wait = value(request, "wait", bool, True)
        results: dict[str, Any] = {}

        def done(ue: UeState, result: dict[str, Any]) -> None:
            results[ue.id] = result
            if len(results) == len(ues) and wait:
                _answer_all(results, answer)

        if not ues or not wait:
            answer({"results": results})
        for ue in ues:
            if ue.state == "attached":
                done(ue, {"ok": True, "attach_us": round(ue.attach_us, 1)})
                continue
            ue.waiting.append(lambda result, ue=ue: done(ue, result))  # type: ignore[misc]
            if ue.state != "attaching":
                self._stop_timer(ue)
                self._start_attach(ue, timeout_s)

    def _op_detach(self, request: dict[str, Any], answer: Answer) -> None:
        no_more(request, "ue", "ues")
        results = {}
        for ue in self._select(request):
            was = ue.state
            ue.wanted = False
            self._leave(ue, "detached")
            self._tell(ue, {"ok": False, "error": f"{ue.id}: detached while attaching"})
            if was != "detached":
                self._signal(radio.message(radio.DETACH, ue.index, ue=ue.id))
            results[ue.id] = {"ok": True}
        answer({"results": results})

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        now_ns = time.monotonic_ns()
        return {
            "time_ns": now_ns,
            "started_ns": self._started_ns,
            "gnb_alive": bool(self._gnb_seen_ns) and now_ns - self._gnb_seen_ns < GNB_LOST_NS,
            "attached": len(self._receiving),
            "attach_count": self._attach_count,
            "attach_failures": self._attach_failures,
            "attach": self._attach_histogram.take(),
            "ul_unknown": self._ul_unknown,
            "malformed": self._malformed,
            "send_errors": self._send_errors,
            "ues": {
                ue.id: {
                    "attached": ue.state == "attached",
                    "state": ue.state,
                    "ul_bytes": ue.ul_bytes,
                    "ul_packets": ue.ul_packets,
                    "dl_bytes": ue.dl_bytes,
                    "dl_packets": ue.dl_packets,
                    "attach_us": round(ue.attach_us, 1),
                }
                for ue in self._ues.values()
            },
        }


def _answer_all(results: dict[str, Any], answer: Answer) -> None:
    errors = [result["error"] for result in results.values() if not result["ok"]]
    reply: Reply = {"results": results}
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        reply.update(ok=False, error=errors[0] + more)
    answer(reply)


if __name__ == "__main__":
    main("ue", UeProgram)
