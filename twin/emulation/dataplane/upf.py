"""UPF of one slice: GTP-U on N3 on one side, a TUN device and the kernel's forwarding (N6) on the other.

Sessions are managed by JSON datagrams on UDP port 8805. That is the place of N4, but it is **not
PFCP**: the gNB program stands in for AMF and SMF. Requests ``{"txn", "op", ...}`` (establish, release, heartbeat)
are answered with the same ``txn``; repeating one is harmless.
"""

from __future__ import annotations

import json
import os
import struct
import time
from typing import Any

from twin.emulation.dataplane import gtpu, net
from twin.emulation.dataplane.control import ControlServer, Reply, no_more
from twin.emulation.dataplane.loop import ConfigError, Loop, main, number, value

N4_PORT = 8805
BATCH = 64
MAX_SESSIONS = 65536


COUNTERS = ("ul_bytes", "ul_packets", "dl_bytes", "dl_packets")


class Session:
    """One PDU session: the UE's address and the two tunnel endpoints; it counts on from the UE's earlier sessions."""

    __slots__ = ("address", "dl", "dl_bytes", "dl_packets", "gnb", "qfi", "teid", "ue", "ul_bytes", "ul_packets")

    def __init__(self, ue: str, address: bytes, teid: int, earlier: Session | None) -> None:
        self.ue = ue
        self.address = address
        self.teid = teid
        self.gnb: tuple[str, int] = ("", 0)
        self.qfi = 0
        self.dl = gtpu.Encapsulation(0, 0, gtpu.PDU_DOWNLINK)
        self.ul_bytes = self.ul_packets = self.dl_bytes = self.dl_packets = 0
        if earlier is not None:
            for name in COUNTERS:
                setattr(self, name, getattr(earlier, name))


class Upf:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.node = value(config, "node", str)
        n3 = value(config, "n3", dict)
        bind = value(n3, "bind", str)
        self._n3_address = net.ipv4(bind, "n3.bind")
        n3_port = int(number(n3, "port", 1, 65535, gtpu.PORT))
        n4_port = int(number(config, "n4_port", 1, 65535, N4_PORT))
        self._pool, self._pool_bits = net.prefix(config["ue_pool"], "ue_pool")
        mtu_bytes = int(number(config, "mtu", 576, 9000, 1400))
        tun_name = value(config, "tun", str, "upf0")
        self._read_bytes = mtu_bytes + 200
        self._started_ns = time.monotonic_ns()
        # Tunnel identifiers of an earlier life must not fit by chance.
        self._next_teid = int.from_bytes(os.urandom(2), "big") << 16 | 1
        self._by_id: dict[str, Session] = {}
        self._by_address: dict[bytes, Session] = {}
        self._by_teid: dict[bytes, Session] = {}
        self._dl_unknown = self._ul_unknown = self._spoofed = self._malformed = self._send_errors = 0
        self._ended: dict[str, Session] = {}
        self._tun = net.open_tun(tun_name, mtu_bytes)
        netlink = net.Netlink()
        netlink.add_route(tun_name, self._pool, self._pool_bits)
        netlink.close()
        self._n3 = net.udp_socket(bind, n3_port)
        self._n4 = net.udp_socket(bind, n4_port)
        loop.add_reader(self._tun, self._from_n6)
        loop.add_reader(self._n3.fileno(), self._from_n3)
        loop.add_reader(self._n4.fileno(), self._from_n4)
        self._control = ControlServer(
            loop, control, node=self.node, program="upf", ops={"stats": self._stats}, later_ops={}
        )

    def close(self) -> None:
        """Release sockets and the TUN device."""
        self._control.close()
        self._n3.close()
        self._n4.close()
        os.close(self._tun)

    def _from_n6(self) -> None:
        read, sendto, tun, size = os.read, self._n3.sendto, self._tun, self._read_bytes
        sessions = self._by_address
        try:
            for _ in range(BATCH):
                packet = read(tun, size)
                session = sessions.get(packet[16:20])
                if session is None:
                    # IPv6 neighbour discovery of the TUN itself is nobody's packet.
                    if packet[0] >> 4 == 4:
                        self._dl_unknown += 1
                    continue
                length = len(packet)
                session.dl_packets += 1
                session.dl_bytes += length
                try:
                    sendto(session.dl.header(length) + packet, session.gnb)
                except OSError:
                    self._send_errors += 1
        except BlockingIOError:
            return
        except OSError:
            self._send_errors += 1

    def _from_n3(self) -> None:
        write, recvfrom, tun, size = os.write, self._n3.recvfrom, self._tun, self._read_bytes
        sessions = self._by_teid
        for _ in range(BATCH):
            try:
                data, peer = recvfrom(size)
            except BlockingIOError:
                return
            except OSError:
                self._send_errors += 1  # an ICMP error about something sent earlier
                continue
            # What our gNB sends has 16 octets of header; everything else takes the long way.
            if data[:2] == b"\x34\xff" and data[11:13] == b"\x85\x01" and data[15:16] == b"\0":
                session = sessions.get(data[4:8])
                if session is not None and int.from_bytes(data[2:4], "big") == len(data) - 8:
                    if data[28:32] != session.address:
                        self._spoofed += 1
                        continue
                    session.ul_packets += 1
                    session.ul_bytes += len(data) - 16
                    try:
                        write(tun, data[16:])
                    except OSError:
                        self._send_errors += 1
                    continue
            self._slow(data, peer)

    def _slow(self, data: bytes, peer: tuple[str, int]) -> None:
        try:
            message = gtpu.decode(data)
            if message.kind == gtpu.G_PDU:
                session = self._by_teid.get(struct.pack("!I", message.teid))
                packet = data[message.payload_at :]
                if session is None:
                    self._ul_unknown += 1
                    self._reply(gtpu.error_indication(message.teid, self._n3_address), peer)
                elif packet[12:16] != session.address:
                    self._spoofed += 1
                else:
                    session.ul_packets += 1
                    session.ul_bytes += len(packet)
                    os.write(self._tun, packet)
            elif message.kind == gtpu.ECHO_REQUEST:
                self._reply(gtpu.echo_response(message.sequence or 0), peer)
            elif message.kind == gtpu.ERROR_INDICATION:
                teid = gtpu.error_indication_teid(data, message.payload_at)
                for session in [s for s in self._by_id.values() if s.gnb == peer and s.dl.teid == teid]:
                    self._release(session)
        except (gtpu.GtpError, OSError):
            self._malformed += 1

    def _reply(self, data: bytes, peer: tuple[str, int]) -> None:
        try:
            self._n3.sendto(data, peer)
        except OSError:
            self._send_errors += 1

    def _from_n4(self) -> None:
        for _ in range(BATCH):
            try:
                data, peer = self._n4.recvfrom(4096)
            except BlockingIOError:
                return
            except OSError:
                continue
            reply: dict[str, Any] = {}
            try:
                request = json.loads(data)
                reply["txn"] = request["txn"]
                reply.update(self._session_request(request))
                reply["ok"] = True
            except (ConfigError, gtpu.GtpError) as error:
                reply.update(ok=False, error=str(error))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self._malformed += 1
                continue
            reply["started"] = self._started_ns
            try:
                self._n4.sendto(json.dumps(reply).encode(), peer)
            except OSError:
                self._send_errors += 1

    def _session_request(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "heartbeat":
            return {}
        if op == "release":
            session = self._by_id.get(request["ue"])
            if session is not None and session.dl.teid == request["teid"]:
                self._release(session)
            return {}
        if op != "establish":
            raise ConfigError(f"op must be one of establish, release, heartbeat, got {op!r}")
        address = net.ipv4(request["address"], "address")
        mask = (0xFFFFFFFF << (32 - self._pool_bits)) & 0xFFFFFFFF
        if int.from_bytes(address, "big") & mask != int.from_bytes(self._pool, "big"):
            raise ConfigError(f"address {request['address']} is outside the UE pool of {self.node}")
        holder = self._by_address.get(address)
        if holder is not None and holder.ue != request["ue"]:
            raise ConfigError(f"address {request['address']} belongs to {holder.ue}")
        session = self._by_id.get(request["ue"])
        if session is not None and session.address != address:
            self._release(session)
            session = None
        if session is None:
            if len(self._by_id) >= MAX_SESSIONS:
                raise ConfigError(f"at most {MAX_SESSIONS} sessions")
            ue = value(request, "ue", str)
            session = Session(ue, address, self._next_teid, self._ended.pop(ue, None))
            self._next_teid = (self._next_teid + 1) & 0xFFFFFFFF or 1
            self._by_id[session.ue] = self._by_address[address] = session
            self._by_teid[struct.pack("!I", session.teid)] = session
        gnb = value(request, "gnb", str)
        net.ipv4(gnb, "gnb")
        peer = (gnb, int(number(request, "port", 1, 65535, gtpu.PORT)))
        if session.gnb[1] and session.gnb != peer:
            self._reply(gtpu.end_marker(session.dl.teid), session.gnb)  # handed over: the old gNB gets no more
        session.gnb = peer
        session.qfi = int(number(request, "qfi", 0, 63))
        session.dl = gtpu.Encapsulation(int(number(request, "teid", 1, 0xFFFFFFFF)), session.qfi, gtpu.PDU_DOWNLINK)
        return {"teid": session.teid}

    def _release(self, session: Session) -> None:
        del self._by_id[session.ue]
        del self._by_address[session.address]
        del self._by_teid[struct.pack("!I", session.teid)]
        self._ended[session.ue] = session

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        sessions = [*self._by_id.values(), *self._ended.values()]
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "sessions": len(self._by_id),
            **{name: sum(getattr(session, name) for session in sessions) for name in COUNTERS},
            "dl_unknown_ue": self._dl_unknown,
            "ul_unknown_teid": self._ul_unknown,
            "ul_spoofed": self._spoofed,
            "malformed": self._malformed,
            "send_errors": self._send_errors,
            "ues": {
                session.ue: {
                    "address": ".".join(str(octet) for octet in session.address),
                    "attached": session.ue in self._by_id,
                    **{name: getattr(session, name) for name in COUNTERS},
                }
                for session in sessions
            },
        }


if __name__ == "__main__":
    main("upf", Upf)
