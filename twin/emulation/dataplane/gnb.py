"""gNB: the radio side of some slices (see :mod:`twin.emulation.dataplane.mac`) and GTP-U towards their UPFs.

One process per slice, so that each slice's part has its own CPU limit, or one for all when slicing is
off. All processes of a gNB bind the same N3 address and port: each socket has SO_REUSEPORT and is connected to its
own UPF, so the kernel delivers by the whole 4-tuple. A socket that is bound but not yet connected would get a
share of the other's packets, hence ``connect`` follows ``bind`` at once.

The gNB stands in for AMF and SMF: it asks the UPF for sessions (UDP/JSON, not PFCP). It finds a dead UPF
by GTP-U echo (§7.2 of TS 29.281) and by ICMP, a restarted one by the start time in its heartbeat answers, a lost
session by Error Indication, and establishes sessions again. A UE container that says nothing for five seconds has lost
its radio link: its UEs are released, and told so when it speaks again.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twin.emulation.dataplane import gtpu, net, radio
from twin.emulation.dataplane.control import ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.loop import ConfigError, Loop, Timer, main, number, value
from twin.emulation.dataplane.mac import DL, SLOT_NS, UL, Mac, Pool, UeRadio, cqi_mean, ue_counters
from twin.ran.channel import Channel, carrier_bandwidth_hz

N4_PORT = 8805
BATCH = 64
READ_BYTES = 9300  # the largest MTU and all headers
PATH_CHECK_NS = 500_000_000
PATH_LOST_NS = 1_600_000_000
N4_FIRST_RETRY_NS = 30_000_000
N4_TIMEOUT_NS = 1_000_000_000
RELEASE_HINT_NS = 100_000_000
RADIO_CHECK_NS = 1_000_000_000
RADIO_LOST_NS = 5_000_000_000

Peer = tuple[str, int]


class UeContext:
    """A UE that may attach, and its session while it has one."""

    __slots__ = ("address", "asked_ns", "attached", "encapsulation", "index", "path", "peer", "radio", "teid", "txn")

    def __init__(self, address: str, mac: UeRadio, path: UpfPath) -> None:
        self.address = address
        self.radio = mac
        self.path = path
        self.attached = False
        self.index = 0
        self.peer: Peer = ("", 0)
        self.teid = 0
        self.txn: Any = None
        self.asked_ns = 0
        self.encapsulation: gtpu.Encapsulation | None = None


class UpfPath:
    """N3 and session signalling towards the UPF of one slice."""

    def __init__(self, gnb: Gnb, name: str, upf: str, qfi: int, bind: str, n3_port: int, n4_port: int) -> None:
        self._gnb = gnb
        self.name = name
        self.qfi = qfi
        self._address = net.ipv4(bind, "n3.bind")
        net.ipv4(upf, f"slice {name} upf")
        self._n3_peer, self._n4_peer = (upf, n3_port), (upf, n4_port)
        self.n3 = net.udp_socket(bind, n3_port, reuse_port=True)
        self.n3.connect(self._n3_peer)
        self.n4 = net.udp_socket(bind, 0)
        self.n4.connect(self._n4_peer)
        self._pending: dict[int, tuple[Callable[[dict[str, Any] | None], None], Timer]] = {}
        self._txn = 0
        self._checking = False
        self._echo = 0
        self._heard_ns = 0
        self._upf_started = 0
        self.up = False
        self.failures = self.reestablished = self.down_drops = self.send_errors = self.unknown_teid = 0
        self.attach_count = self.attach_failures = 0
        self.attach_time_ns = 0
        gnb.loop.add_reader(self.n3.fileno(), self._from_n3)
        gnb.loop.add_reader(self.n4.fileno(), self._from_n4)

    def close(self) -> None:
        """Close both sockets."""
        self.n3.close()
        self.n4.close()

    def send(self, data: bytes) -> None:
        """One GTP-U message to the UPF."""
        try:
            self.n3.send(data)
        except ConnectionRefusedError:
            self.lost()  # an earlier packet found no UPF process; this one was not sent either
            self.down_drops += 1
        except OSError:
            self.send_errors += 1

    # session signalling

    def request(self, done: Callable[[dict[str, Any] | None], None], **fields: Any) -> None:
        """Ask the UPF, again until it answers; ``done`` gets the reply, or None after one second."""
        self._txn += 1
        txn = self._txn
        data = json.dumps({"txn": txn, "gnb": self._gnb.n3_bind, "port": self._n3_peer[1], **fields}).encode()
        deadline_ns = time.monotonic_ns() + N4_TIMEOUT_NS

        def attempt(wait_ns: int) -> None:
            now_ns = time.monotonic_ns()
            if now_ns >= deadline_ns:
                del self._pending[txn]
                done(None)
                return
            with suppress(OSError):  # ICMP error of an earlier attempt: the next one may get through
                self.n4.send(data)
            timer = self._gnb.loop.call_at(min(now_ns + wait_ns, deadline_ns), lambda: attempt(2 * wait_ns))
            self._pending[txn] = (done, timer)

        attempt(N4_FIRST_RETRY_NS)

    def _from_n4(self) -> None:
        for _ in range(BATCH):
            try:
                data = self.n4.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue
            try:
                reply = json.loads(data)
                waiting = self._pending.pop(reply["txn"], None)
                started = int(reply["started"])
            except (ValueError, KeyError, TypeError, RecursionError):
                self._gnb.malformed += 1
                continue
            restarted = self._upf_started not in (0, started)
            self._upf_started = started
            if waiting is not None:
                waiting[1].cancel()
                waiting[0](reply)
            if restarted:
                self._reestablish_all()

    # is the UPF there

    def watch(self) -> None:
        """Check the path from now on, as long as a UE is attached."""
        if not self._checking:
            self._checking = True
            self._heard_ns = time.monotonic_ns()
            self._check()

    def _check(self) -> None:
        if not any(ue.attached for ue in self._gnb.ues_of(self)):
            self._checking = False
            return
        if self.up and time.monotonic_ns() - self._heard_ns > PATH_LOST_NS:
            self.lost()
        self._echo = (self._echo + 1) & 0xFFFF
        with suppress(OSError):  # ICMP error of an earlier packet; silence is noticed anyway
            self.n3.send(gtpu.echo_request(self._echo))
        self.request(lambda _reply: None, op="heartbeat")
        self._gnb.loop.call_after(PATH_CHECK_NS, self._check)

    def heard(self) -> None:
        """The UPF is there."""
        self._heard_ns = time.monotonic_ns()
        if not self.up:
            self.up = True
            if self._checking:
                self._reestablish_all()

    def lost(self) -> None:
        """The UPF is not there."""
        if self.up:
            self.up = False
            self.failures += 1

    def _reestablish_all(self) -> None:
        for ue in self._gnb.ues_of(self):
            if ue.attached:
                self._gnb.establish(ue, again=True)

    # N3

    def _from_n3(self) -> None:
        recv, size = self.n3.recv, READ_BYTES
        ues, enqueue = self._gnb.by_teid, self._gnb.mac.enqueue
        for _ in range(BATCH):
            try:
                data = recv(size)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self.lost()
                continue
            except OSError:
                self.send_errors += 1
                continue
            if data[:2] == b"\x34\xff" and data[11:13] == b"\x85\x01" and data[15:16] == b"\0":
                ue = ues.get(data[4:8])
                if ue is not None and int.from_bytes(data[2:4], "big") == len(data) - 8 and len(data) >= 36:
                    enqueue(ue.radio, DL, data[16:])
                    continue
            self._slow(data)

    def _slow(self, data: bytes) -> None:
        try:
            message = gtpu.decode(data)
            if message.kind == gtpu.G_PDU:
                ue = self._gnb.by_teid.get(struct.pack("!I", message.teid))
                if ue is None:
                    self.unknown_teid += 1
                    self.send(gtpu.error_indication(message.teid, self._address))
                elif len(data) - message.payload_at >= 20:
                    self._gnb.mac.enqueue(ue.radio, DL, data[message.payload_at :])
                else:
                    self._gnb.malformed += 1
            elif message.kind == gtpu.ECHO_REQUEST:
                self.send(gtpu.echo_response(message.sequence or 0))
            elif message.kind == gtpu.ECHO_RESPONSE:
                self.heard()
            elif message.kind == gtpu.ERROR_INDICATION:
                teid = gtpu.error_indication_teid(data, message.payload_at)
                for ue in self._gnb.ues_of(self):
                    if ue.attached and ue.encapsulation is not None and ue.encapsulation.teid == teid:
                        self._gnb.establish(ue, again=True)
        except gtpu.GtpError:
            self._gnb.malformed += 1


class Gnb:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.loop = loop
        self.node = value(config, "node", str)
        n3 = value(config, "n3", dict)
        self.n3_bind = value(n3, "bind", str)
        self._started_ns = time.monotonic_ns()
        self._boot = os.urandom(8)
        self._prb_total = int(number(config, "prb_total", 1, 275, 106))
        self._shared = value(config, "shared_pool", bool, False)
        self.malformed = 0
        self._radio_unknown = 0
        self._hinted_ns: dict[tuple[Peer, int], int] = {}
        self._next_teid = int.from_bytes(os.urandom(2), "big") << 16 | 1
        self.by_teid: dict[bytes, UeContext] = {}
        self._by_radio: dict[Peer, dict[bytes, UeContext]] = {}
        self._heard_ns: dict[Peer, int] = {}
        self._radio_lost: dict[Peer, int] = {}
        rows = value(config, "slices", list)
        self._shares: dict[str, float] = {}
        for row in rows:
            name = value(row, "name", str)
            if name in self._shares:
                raise ConfigError(f"slice {name}: the name is used twice")
            self._shares[name] = number(row, "prb_share", 0, 1)
        if len({row["upf"] for row in rows}) < len(rows):
            raise ConfigError("slices: each slice needs a UPF of its own")
        self._check_shares(self._shares)
        self._pools = self._make_pools(value(config, "scheduler", str, "pf"))
        subcarrier_khz = int(number(config, "subcarrier_khz", 15, 60, 30))
        if subcarrier_khz not in (15, 30, 60):
            raise ConfigError(f"subcarrier_khz: must be one of 15, 30, 60, got {subcarrier_khz}")
        self.mac = Mac(
            loop,
            list(dict.fromkeys(self._pools.values())),
            subcarrier_khz=subcarrier_khz,
            layers=int(number(config, "layers", 1, 4, 1)),
            queue_bytes=int(number(config, "queue_bytes", 1500, 1e9, 300_000)),
            work_ns_per_bit=number(config, "work_ns_per_bit", 0, 10_000, 40.0),
            epoch_ns=int(number(config, "epoch_ns", 0, 2**63, self._started_ns)),
        )
        n3_port = int(number(n3, "port", 1, 65535, gtpu.PORT))
        n4_port = int(number(config, "n4_port", 1, 65535, N4_PORT))
        self._paths = {
            row["name"]: UpfPath(
                self,
                row["name"],
                value(row, "upf", str),
                int(number(row, "qfi", 0, 63, 9)),
                self.n3_bind,
                n3_port,
                n4_port,
            )
            for row in rows
        }
        self._ues = {ue_id: self._make_ue(ue_id, row, config) for ue_id, row in value(config, "ues", dict).items()}
        radio_row = value(config, "radio", dict)
        port = int(number(radio_row, "port", 1, 65535))
        self._radio = net.udp_socket(value(radio_row, "bind", str, "0.0.0.0"), port)
        loop.add_reader(self._radio.fileno(), self._from_radio)
        loop.every(RADIO_CHECK_NS, self._check_radio)
        self._control = ControlServer(
            loop,
            control,
            node=self.node,
            program="gnb",
            ops={
                "stats": self._op_stats,
                "set_prb_share": self._op_share,
                "set_cqi": self._op_cqi,
                "set_work": self._op_work,
                "epoch": self._op_epoch,
                "detach": self._op_detach,
            },
            later_ops={},
        )

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        self._radio.close()
        for path in self._paths.values():
            path.close()

    def ues_of(self, path: UpfPath) -> list[UeContext]:
        """UEs whose sessions are at this UPF."""
        return [ue for ue in self._ues.values() if ue.path is path]

    def _make_pools(self, scheduler: str) -> dict[str, Pool]:
        try:
            if self._shared:
                prbs = sum(self._shares.values()) * self._prb_total
                return dict.fromkeys(self._shares, Pool(list(self._shares), scheduler, prbs, self._started_ns))
            return {
                name: Pool([name], scheduler, share * self._prb_total, self._started_ns)
                for name, share in self._shares.items()
            }
        except ValueError as error:
            raise ConfigError(f"scheduler: {error}") from None

    def _make_ue(self, ue_id: str, row: dict[str, Any], config: dict[str, Any]) -> UeContext:
        slice_name = value(row, "slice", str)
        if slice_name not in self._paths:
            raise ConfigError(f"ue {ue_id}: no slice {slice_name!r}; slices: {', '.join(self._paths)}")
        address = value(row, "address", str)
        net.ipv4(address, f"ue {ue_id} address")
        script = value(row, "cqi_script", list, [])
        for point in script:
            if not (isinstance(point, list) and len(point) == 2 and 0 <= point[1] <= 15):
                raise ConfigError(f"ue {ue_id}: cqi_script must be a list of [time_s, cqi 0 to 15], got {point!r}")
        try:
            channel = Channel(
                int(number(config, "seed", 0, 2**63, 0.0)),
                ue_id,
                number(row, "distance_m", 0, 1e6, 100.0),
                number(row, "speed_mps", 0, 1e6, 0.8),
                number(config, "carrier_ghz", 0, 1e6, 3.5),
                number(config, "tx_power_dbm", -1000, 1000, 43.0),
                value(config, "path_loss", str, "uma"),
                carrier_bandwidth_hz(self._prb_total, int(number(config, "subcarrier_khz", 15, 60, 30))),
            )
        except ValueError as error:
            raise ConfigError(f"ue {ue_id}: {error}") from None
        mac = UeRadio(ue_id, slice_name, self._pools[slice_name], channel, sorted(script))
        return UeContext(address, mac, self._paths[slice_name])

    @staticmethod
    def _check_shares(shares: dict[str, float]) -> None:
        total = sum(shares.values())
        if total > 1 + 1e-9:
            raise ConfigError(f"prb_share: the shares of all slices must add up to at most 1, got {total:g}")

    # radio

    def _from_radio(self) -> None:
        recvfrom, size = self._radio.recvfrom, READ_BYTES
        peers, enqueue = self._by_radio, self.mac.enqueue
        for _ in range(BATCH):
            try:
                data, peer = recvfrom(size)
            except BlockingIOError:
                return
            except OSError:
                continue  # ICMP error: a UE container is gone
            known = peers.get(peer)
            if known is not None:
                ue = known.get(data[:4])
                if ue is not None and len(data) >= 24:
                    enqueue(ue.radio, UL, data[4:])
                    continue
            self._signalling(data, peer)

    def _signalling(self, data: bytes, peer: Peer) -> None:
        if len(data) < radio.HEADER_BYTES:
            self.malformed += 1
            return
        kind, index = data[0], int.from_bytes(data[2:4], "big")
        if kind == radio.DATA:
            self._unknown(peer, index)
        elif kind == radio.HELLO:
            self._heard_ns[peer] = time.monotonic_ns()
            lost = self._radio_lost.get(peer, 0).to_bytes(4, "big")
            self._to_radio(radio.header(radio.HELLO_ACK, 0) + self._boot + lost, peer)
        elif kind in (radio.ATTACH, radio.DETACH):
            try:
                fields = radio.fields(data)
                ue = self._ues.get(fields["ue"])
                if kind == radio.ATTACH:
                    self._attach(ue, fields, peer, index)
                elif ue is not None and ue.attached and ue.peer == peer:
                    self.detach(ue)
            except (ValueError, KeyError, TypeError):
                self.malformed += 1
        else:
            self.malformed += 1

    def _check_radio(self) -> None:
        limit_ns = time.monotonic_ns() - RADIO_LOST_NS
        for peer in [peer for peer in self._by_radio if self._heard_ns.get(peer, 0) < limit_ns]:
            self._radio_lost[peer] = self._radio_lost.get(peer, 0) + 1
            for ue in list(self._by_radio[peer].values()):
                self.detach(ue)
        for peer in [peer for peer, heard_ns in self._heard_ns.items() if heard_ns < limit_ns]:
            del self._heard_ns[peer]

    def _unknown(self, peer: Peer, index: int) -> None:
        self._radio_unknown += 1
        now_ns = time.monotonic_ns()
        if now_ns - self._hinted_ns.get((peer, index), 0) > RELEASE_HINT_NS:
            if len(self._hinted_ns) > 10_000:
                self._hinted_ns.clear()
            self._hinted_ns[peer, index] = now_ns
            self._to_radio(radio.message(radio.RELEASE, index, again=True), peer)

    def _to_radio(self, data: bytes, peer: Peer) -> None:
        try:
            self._radio.sendto(data, peer)
        except OSError:
            return  # a UE container that is gone gets nothing

    # sessions

    def _attach(self, ue: UeContext | None, fields: dict[str, Any], peer: Peer, index: int) -> None:
        if ue is None or ue.address != fields["address"]:
            cause = "this gNB does not know the UE" if ue is None else f"the address should be {ue.address}"
            self._to_radio(radio.message(radio.REJECT, index, txn=fields["txn"], cause=cause), peer)
            return
        if ue.asked_ns and ue.txn == fields["txn"] and ue.peer == peer:
            return  # asked again while the UPF is being asked
        ue.txn = fields["txn"]
        if ue.peer != peer or ue.index != index:
            self._forget_radio(ue)
            ue.peer, ue.index = peer, index
        ue.asked_ns = time.monotonic_ns()
        self.establish(ue, again=False)

    def establish(self, ue: UeContext, *, again: bool) -> None:
        """Ask the UPF for the session of a UE; ``again`` when the UE has one that the UPF lost."""
        if not ue.teid:
            ue.teid = self._next_teid
            self._next_teid = (self._next_teid + 1) & 0xFFFFFFFF or 1
        teid = ue.teid
        ue.path.request(
            lambda reply: self._established(ue, teid, reply, again),
            op="establish",
            ue=ue.radio.id,
            address=ue.address,
            qfi=ue.path.qfi,
            teid=teid,
        )

    def _established(self, ue: UeContext, teid: int, reply: dict[str, Any] | None, again: bool) -> None:
        if teid != ue.teid or (again and not ue.attached):
            return  # detached in the meantime
        path = ue.path
        try:
            cause = "the UPF does not answer" if reply is None else str(reply.get("error"))
            accepted = reply is not None and bool(reply.get("ok"))
            upf_teid = int(number(reply or {}, "teid", 1, 0xFFFFFFFF)) if accepted else 0
        except (ConfigError, KeyError) as error:
            upf_teid, cause = 0, f"the UPF answers {error}"
        if not upf_teid:
            if again:
                return  # the path check tries again when the UPF is back
            ue.asked_ns = 0
            path.attach_failures += 1
            if reply is None:
                path.lost()
            self._to_radio(radio.message(radio.REJECT, ue.index, txn=ue.txn, cause=cause), ue.peer)
            return
        ue.encapsulation = gtpu.Encapsulation(upf_teid, path.qfi, gtpu.PDU_UPLINK)
        if again:
            path.reestablished += 1
            return
        path.heard()
        ue.attached = True
        self.by_teid[struct.pack("!I", ue.teid)] = ue
        self._by_radio.setdefault(ue.peer, {})[radio.header(radio.DATA, ue.index)] = ue
        ue.radio.deliver = self._deliveries(ue)
        self._heard_ns[ue.peer] = time.monotonic_ns()
        path.attach_count += 1
        path.attach_time_ns += time.monotonic_ns() - ue.asked_ns
        ue.asked_ns = 0
        self._to_radio(radio.message(radio.ACCEPT, ue.index, txn=ue.txn, address=ue.address), ue.peer)
        path.watch()

    def _deliveries(self, ue: UeContext) -> list[Callable[[bytes], None]]:
        sendto, send, path, peer = self._radio.sendto, ue.path.n3.send, ue.path, ue.peer
        head = radio.header(radio.DATA, ue.index)

        def down(packet: bytes) -> None:
            try:
                sendto(head + packet, peer)
            except OSError:
                path.send_errors += 1

        def up(packet: bytes) -> None:
            encapsulation = ue.encapsulation
            if not path.up or encapsulation is None:
                path.down_drops += 1
                return
            try:
                send(encapsulation.header(len(packet)) + packet)
            except OSError:
                path.send(b"".join((encapsulation.header(len(packet)), packet)))

        return [down, up]

    def _forget_radio(self, ue: UeContext) -> None:
        known = self._by_radio.get(ue.peer)
        if known is not None:
            known.pop(radio.header(radio.DATA, ue.index), None)
            if not known:
                del self._by_radio[ue.peer]

    def detach(self, ue: UeContext) -> None:
        """End the session of a UE here and at the UPF."""
        self._forget_radio(ue)
        self.by_teid.pop(struct.pack("!I", ue.teid), None)
        ue.path.request(lambda _reply: None, op="release", ue=ue.radio.id, teid=ue.teid)
        ue.attached = False
        ue.teid = ue.asked_ns = 0
        ue.encapsulation = None
        ue.radio.deliver = []
        self.mac.flush(ue.radio)

    # operations

    def _slice(self, request: dict[str, Any]) -> str:
        name = value(request, "slice", str)
        if name not in self._shares:
            raise Refused(f"slice: no slice {name!r} in {self.node}; slices: {', '.join(self._shares)}")
        return str(name)

    def _ue(self, request: dict[str, Any]) -> UeContext:
        name = value(request, "ue", str)
        if name not in self._ues:
            raise Refused(f"ue: no UE {name!r} in {self.node}; UEs: {', '.join(list(self._ues)[:8])}")
        return self._ues[name]

    def _op_share(self, request: dict[str, Any]) -> Reply:
        no_more(request, "slice", "value")
        name = self._slice(request)
        shares = {**self._shares, name: number(request, "value", 0, 1)}
        self._check_shares(shares)
        self._shares = shares
        share = sum(shares.values()) if self._shared else shares[name]
        self._pools[name].set_prbs(share * self._prb_total, time.monotonic_ns())
        return {"prbs": share * self._prb_total}

    def _op_cqi(self, request: dict[str, Any]) -> Reply:
        no_more(request, "ue", "value")
        ue = self._ue(request)
        wanted = request["value"]
        ue.radio.forced_cqi = None if wanted is None else int(number(request, "value", 0, 15))
        ue.radio.cqi_until_ns = 0
        return {}

    def _op_work(self, request: dict[str, Any]) -> Reply:
        no_more(request, "work_ns_per_bit")
        self.mac.set_work(number(request, "work_ns_per_bit", 0, 10_000))
        return {}

    def _op_epoch(self, request: dict[str, Any]) -> Reply:
        no_more(request, "time_ns")
        self.mac.epoch_ns = int(number(request, "time_ns", 0, 2**63))
        for ue in self._ues.values():
            ue.radio.cqi_until_ns = 0
        return {}

    def _op_detach(self, request: dict[str, Any]) -> Reply:
        no_more(request, "ue")
        ue = self._ue(request)
        if not ue.attached:
            raise Refused(f"ue {ue.radio.id}: is not attached")
        self._to_radio(radio.message(radio.RELEASE, ue.index, again=False), ue.peer)
        self.detach(ue)
        return {}

    def _op_stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        now_ns = time.monotonic_ns()
        slots = now_ns // SLOT_NS - self._started_ns // SLOT_NS
        pools = list(dict.fromkeys(self._pools.values()))
        ues: dict[str, dict[str, Any]] = {}
        for ue_id, ue in self._ues.items():
            if not ue.radio.cqi_count:
                self.mac.current_cqi(ue.radio, now_ns)
            ues[ue_id] = {
                "slice": ue.radio.slice,
                **ue_counters(ue.radio),
                "cqi": round(cqi_mean(ue.radio), 3),
                "attached": ue.attached,
                "teid": ue.teid,
            }
        return {
            "time_ns": now_ns,
            "started_ns": self._started_ns,
            "node": self.node,
            "slots": slots,
            "busy_slots": max((pool.busy_slots for pool in pools), default=0),
            "missed_slots": max((pool.missed_slots for pool in pools), default=0),
            "work_ns_per_bit": self.mac.work_ns_per_bit,
            "cpu_ns": time.process_time_ns(),
            "radio_unknown": self._radio_unknown,
            "radio_lost": sum(self._radio_lost.values()),
            "malformed": self.malformed,
            "n3_unknown_teid": sum(path.unknown_teid for path in self._paths.values()),
            "slices": {name: self._slice_stats(name, slots, now_ns, ues) for name in self._shares},
            "ues": ues,
        }

    def _slice_stats(self, name: str, slots: int, now_ns: int, ues: dict[str, dict[str, Any]]) -> dict[str, Any]:
        pool, path = self._pools[name], self._paths[name]
        members = [row for row in ues.values() if row["slice"] == name]
        summed = [f"{way}_{what}" for way in ("dl", "ul") for what in ("bytes", "packets", "drops", "queue_bytes")]
        return {
            **{key: sum(row[key] for row in members) for key in (*summed, "prb_used_dl", "prb_used_ul")},
            "prb_available": pool.available(now_ns),
            "prb_share": self._shares[name],
            "slots": slots,
            "busy_slots": pool.busy_slots,
            "missed_slots": pool.missed_slots,
            "attached": sum(row["attached"] for row in members),
            "attach_count": path.attach_count,
            "attach_failures": path.attach_failures,
            "attach_time_us_sum": path.attach_time_ns / 1e3,
            "path_up": path.up,
            "path_failures": path.failures,
            "reestablished": path.reestablished,
            "path_down_drops": path.down_drops,
            "send_errors": path.send_errors,
        }


if __name__ == "__main__":
    main("gnb", Gnb)
