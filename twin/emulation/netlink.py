"""Interfaces, addresses, routes, queueing disciplines and counters over rtnetlink, in any network namespace.

pyroute2 writes and reads the messages; the exchange with the kernel is ours: many requests travel in one
``send``, each is acknowledged, and a refused one raises :class:`NetlinkError` naming it (why not pyroute2's
own sockets: ``docs/decisions/0007-netlink.md``). Why not ``ip`` and ``tc``: starting a program costs 2-5 ms,
a message 0.1 ms. No socket is kept open, because one would keep the namespace of a dead container alive.
Offloads and TAPs are ioctls, which rtnetlink does not have.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, nla, rtnl
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOWER_UP, IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import sched_htb, sched_netem, tcmsg

from twin.emulation.netns import CLONE_NEWNET, in_netns_of, in_thread, libc_call

ROOT = rtnl.TC_H_ROOT
HTB = 0x10000
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _CAP_ACK = 270, 10
_ONLINK = 4  # RTNH_F_ONLINK
_BATCH = 48  # requests a send: their acknowledgements must fit the default receive buffer
_MOST = 0xFFFFFFFF
_NANOSECONDS_PER_TICK = 64  # PSCHED_SHIFT 6 in net/pkt_sched.h


class NetlinkError(OSError):
    """The kernel refused; ``errno`` says why and the text names the operation and the interface."""


class _HtbOptions(nla):  # type: ignore[misc]
    """HTB's options without pyroute2's rate tables: 512 values a change that kernels since 3.8 do not read."""

    nla_map = (
        (1, "TCA_HTB_PARMS", "htb_parms"),
        (2, "TCA_HTB_INIT", "htb_glob"),
        (5, "TCA_HTB_DIRECT_QLEN", "uint32"),
        (6, "TCA_HTB_RATE64", "uint64"),
        (7, "TCA_HTB_CEIL64", "uint64"),
    )
    htb_glob = sched_htb.options.htb_glob

    class htb_parms(nla):  # type: ignore[misc]
        fields = sched_htb.options.htb_parms.fields


class _NetemOptions(nla):  # type: ignore[misc]
    """netem's options with the ones pyroute2 does not know: times in nanoseconds and the seed."""

    fields = sched_netem.options.fields
    nla_map = (
        (10, "TCA_NETEM_LATENCY64", "int64"),
        (11, "TCA_NETEM_JITTER64", "int64"),
        (14, "TCA_NETEM_PRNG_SEED", "uint64"),
    )


class _TcMessage(tcmsg):  # type: ignore[misc]
    """A traffic control message that uses the options above."""

    def get_plugin(self, plug: str, *arguments: Any, **options: Any) -> Any:
        own = {"htb": _HtbOptions, "netem": _NetemOptions}.get(self.get_attr("TCA_KIND"))
        return own if own and plug == "options" else super().get_plugin(plug, *arguments, **options)


class LinkInfo(NamedTuple):
    """One interface as the kernel reports it."""

    ifindex: int
    name: str
    up: bool
    carrier: bool
    mac: str
    mtu: int
    alias: str
    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_dropped: int
    tx_dropped: int


class QueueStats(NamedTuple):
    """Counters of one qdisc or class."""

    kind: str
    handle: int
    parent: int
    bytes_sent: int
    packets_sent: int
    drops: int
    backlog_bytes: int


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``what`` names it in errors, an errno of ``accept`` is none."""

    kind: int
    flags: int
    message: Any
    what: str
    accept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a veth pair. Its namespace is a descriptor or that of a process (both None: where it is made)."""

    name: str
    mac: str | None = None
    netns: int | None = None
    netns_pid: int | None = None
    group: int = 0


class Netlink:
    """A rtnetlink socket in the namespace of ``netns_pid`` (None: the calling thread's). Use under ``with``."""

    def __init__(self, netns_pid: int | None = None) -> None:
        self._socket = in_netns_of(
            netns_pid, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._socket.close()

    def send(self, requests: Sequence[Request]) -> list[Any]:
        """Send all, wait for every acknowledgement, raise for the first that was refused.

        Returns the kernel's answers, not decoded yet: that is what costs, and not everybody needs all of it.
        """
        answers: list[Any] = []
        failed: NetlinkError | None = None
        for start in range(0, len(requests), _BATCH):
            waiting: dict[int, Request] = {}
            wire = bytearray()
            for request in requests[start : start + _BATCH]:
                self._sequence += 1
                waiting[self._sequence] = request
                wire += _encode(request, self._sequence)
            self._socket.send(wire)
            while waiting:
                error = self._read(waiting, answers)
                failed = failed or error
        if failed:
            raise failed
        return answers

    def _read(self, waiting: dict[int, Request], answers: list[Any]) -> NetlinkError | None:
        failed = None
        data = self._socket.recv(1 << 16)
        at = 0
        while at < len(data):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
            request = waiting.get(sequence)
            if request is not None and kind in (_ERROR, _DONE):
                del waiting[sequence]
                code = -struct.unpack_from("=i", data, at + 16)[0]
                if code and code not in request.accept:
                    failed = failed or NetlinkError(code, f"cannot {request.what}: {os.strerror(code)}")
            elif request is not None:
                answers.append(type(request.message)(data, offset=at))
            at += (length + 3) & ~3
        return failed

    # --- interfaces ---------------------------------------------------------------------------

    def link(self, name: str) -> LinkInfo:
        """State and counters of one interface; NetlinkError ENODEV when there is none."""
        return _link_info(self._find(name))

    def index(self, name: str) -> int:
        """The index of an interface; NetlinkError ENODEV when there is none."""
        answer = self._find(name)
        (index,) = struct.unpack_from("=i", answer.data, answer.offset + 20)  # struct ifinfomsg, behind the header
        return int(index)

    def _find(self, name: str) -> ifinfmsg:
        (answer,) = self.send([Request(rtnl.RTM_GETLINK, 0, _link(IFLA_IFNAME=name), f"find interface {name}")])
        return answer

    def links(self) -> dict[str, LinkInfo]:
        """All interfaces of the namespace by name."""
        answers = self.send([Request(rtnl.RTM_GETLINK, NLM_F_DUMP, ifinfmsg(), "list interfaces")])
        return {one.name: one for one in map(_link_info, answers)}

    def delete_links(self, names: Sequence[str]) -> None:
        """Remove several at once; those that do not exist are left out.

        The kernel waits some 10 ms for its readers at each removal: a group is removed with one wait for all.
        """
        group = int.from_bytes(os.urandom(4)) & 0x3FFFFFFF | 0x40000000
        marks = [
            Request(
                rtnl.RTM_SETLINK, 0, _link(IFLA_IFNAME=name, IFLA_GROUP=group), f"mark interface {name}", _MISSING_OK
            )
            for name in names
        ]
        if marks:
            self.send([*marks, delete_group(group)])

    def routes(self, index: int) -> list[Request]:
        """What puts back the IPv4 routes that somebody added through an interface; those there are left alone."""
        found = []
        for route in self.send([Request(rtnl.RTM_GETROUTE, NLM_F_DUMP, rtmsg(), "list routes")]):
            route.decode()
            # Routes of the kernel itself are the connected ones, which come back by themselves.
            wanted = route["family"] == socket.AF_INET and route["table"] == 254 and route["proto"] != 2
            if wanted and route.get_attr("RTA_OIF") == index:
                # The other flags in a dump say what was (dead, link down); they must not be asked for.
                route["flags"] &= _ONLINK
                flags = NLM_F_CREATE | NLM_F_EXCL
                found.append(Request(rtnl.RTM_NEWROUTE, flags, route, "restore a route", (errno.EEXIST,)))
        return found

    # --- queueing disciplines -----------------------------------------------------------------

    def add_htb(self, index: int, default_minor: int) -> None:
        """HTB 1: at the root; unclassified packets go to class 1:``default_minor``."""
        glob = {"version": 3, "rate2quantum": 10, "defcls": default_minor}
        options = _attributes(TCA_HTB_INIT=glob, TCA_HTB_DIRECT_QLEN=1000)
        self._queue(rtnl.RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, "add HTB", index, HTB, ROOT, "htb", options)

    def set_htb_class(
        self, index: int, parent: int, minor: int, rate_bps: float, ceil_bps: float, prio: int, quantum: int
    ) -> None:
        """Make or change class 1:``minor``; ``rate_bps`` is guaranteed, ``ceil_bps`` the most it may borrow."""
        rate, ceil = (max(1, round(bps / 8)) for bps in (rate_bps, ceil_bps))
        # One millisecond of burst, and never less than one frame, else HTB cannot send at all.
        buffer, cbuffer = (_ticks(max(1600.0, speed / 1000) / speed) for speed in (rate, ceil))
        parameters = {"quantum": quantum, "prio": prio, "buffer": buffer, "cbuffer": cbuffer}
        for name, speed in (("rate", rate), ("ceil", ceil)):
            # Link layer 1 is Ethernet: without it the kernel asks for the rate tables of old tc.
            parameters |= {name: min(speed, _MOST), f"{name}___reserved": 1, f"{name}_cell_align": -1}
        options = _attributes(TCA_HTB_PARMS=parameters, TCA_HTB_RATE64=rate, TCA_HTB_CEIL64=ceil)
        self._queue(rtnl.RTM_NEWTCLASS, NLM_F_CREATE, "set HTB class", index, HTB | minor, parent, "htb", options)

    def delete_htb_class(self, index: int, minor: int) -> None:
        """Remove class 1:``minor`` with its leaf."""
        self._queue(rtnl.RTM_DELTCLASS, 0, "remove HTB class", index, HTB | minor, 0)

    def add_pfifo(self, index: int, parent: int, handle: int, packets: int) -> None:
        """A tail-drop queue of ``packets`` as leaf of a class."""
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._queue(rtnl.RTM_NEWQDISC, flags, "add pfifo", index, handle, parent, "pfifo", {"limit": packets})

    def set_netem(
        self,
        index: int,
        parent: int,
        handle: int,
        *,
        delay_s: float,
        jitter_s: float,
        loss_ratio: float,
        limit_packets: int,
        seed: int,
    ) -> None:
        """Make or change a netem; NetlinkError ENOENT when the kernel has none."""
        options = _attributes(
            TCA_NETEM_LATENCY64=round(delay_s * 1e9),
            TCA_NETEM_JITTER64=round(jitter_s * 1e9),
            TCA_NETEM_PRNG_SEED=seed & (2**64 - 1),
        )
        options |= {"delay": _ticks(delay_s), "jitter": _ticks(jitter_s), "limit": limit_packets}
        options["loss"] = round(loss_ratio * _MOST)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._queue(rtnl.RTM_NEWQDISC, flags, "set netem", index, handle, parent, "netem", options)

    def delete_root_qdisc(self, index: int) -> None:
        """Remove the root qdisc with all below it; fine when there is only the kernel's own."""
        accept = (errno.ENOENT, errno.EINVAL)
        self._queue(rtnl.RTM_DELQDISC, 0, "remove the root qdisc", index, 0, ROOT, accept=accept)

    def add_u32(
        self, index: int, prio: int, minor: int, keys: list[tuple[int, int, int]], *, protocol: int = 0x0800
    ) -> None:
        """Send packets of an Ethernet ``protocol`` where every (offset, mask, value) word matches to class 1:``minor``.

        A mask is that of a prefix: pyroute2 loses the place of bytes behind a zero one.
        """
        words = [f"{value & mask:#x}/{mask:#x}+{offset}" for offset, mask, value in keys]
        options = _attributes(TCA_U32_CLASSID=HTB | minor, TCA_U32_SEL={"keys": words})
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._queue(
            rtnl.RTM_NEWTFILTER, flags, "add filter", index, 0, HTB, "u32", options, info=_filter_info(prio, protocol)
        )

    def delete_filters(self, index: int, prio: int, *, protocol: int = 0x0800) -> None:
        """Remove all filters of one priority, which is that of one Ethernet protocol."""
        self._queue(rtnl.RTM_DELTFILTER, 0, "remove filters", index, 0, HTB, info=_filter_info(prio, protocol))

    def qdiscs(self, index: int) -> list[QueueStats]:
        """Counters of every qdisc of an interface."""
        return self._stats(rtnl.RTM_GETQDISC, index)

    def classes(self, index: int) -> list[QueueStats]:
        """Counters of every class of an interface."""
        return self._stats(rtnl.RTM_GETTCLASS, index)

    def _stats(self, kind: int, index: int) -> list[QueueStats]:
        found = []
        for answer in self.send([Request(kind, NLM_F_DUMP, _queue(index), "read queue counters")]):
            answer.decode()
            # Older kernels dump the qdiscs of every interface.
            if answer["index"] != index:
                continue
            fields = _fields(answer)
            stats = _fields(fields["TCA_STATS2"].value)
            sent, queue = stats["TCA_STATS_BASIC"].value, stats["TCA_STATS_QUEUE"].value
            found.append(
                QueueStats(
                    fields["TCA_KIND"].value,
                    answer["handle"],
                    answer["parent"],
                    sent["bytes"],
                    sent["packets"],
                    queue["drops"],
                    queue["backlog"],
                )
            )
        return found

    def _queue(
        self,
        kind: int,
        flags: int,
        what: str,
        index: int,
        handle: int,
        parent: int,
        discipline: str = "",
        options: Any = None,
        *,
        info: int = 0,
        accept: tuple[int, ...] = (),
    ) -> None:
        message = _queue(index, handle=handle, parent=parent, info=info)
        if discipline:
            message["attrs"] = [("TCA_KIND", discipline), ("TCA_OPTIONS", options)]
        self.send([Request(kind, flags, message, what, accept)])


def new_namespaces(count: int) -> list[int]:
    """Descriptors of ``count`` new network namespaces with ``lo`` up.

    A namespace lives as long as something holds it; held by a descriptor only, it cannot outlive
    this process, however that ends.
    """

    def body() -> list[int]:
        made: list[int] = []
        try:
            for _ in range(count):
                libc_call("unshare", CLONE_NEWNET)
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
                with Netlink() as netlink:
                    netlink.send([set_link("lo", up=True)])
        except BaseException:
            for descriptor in made:
                os.close(descriptor)
            raise
        return made

    return in_thread(body)


# --- requests -------------------------------------------------------------------------------------

_MISSING_OK = (errno.ENODEV,)


def add_veth(first: VethEnd, second: VethEnd, *, mtu: int | None = None, up: bool = False) -> Request:
    """A veth pair, both ends born with their final names in their final namespaces.

    ``up`` is for the first: a veth cannot open before it has its peer, and the kernel makes the second before.
    """
    data = _attributes(VETH_INFO_PEER=_attributes(**_end(second, mtu)))
    message = _link(**_end(first, mtu), IFLA_LINKINFO=_attributes(IFLA_INFO_KIND="veth", IFLA_INFO_DATA=data))
    if up:
        message["flags"] = message["change"] = IFF_UP
    what = f"create veth {first.name} - {second.name}"
    return Request(rtnl.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message, what)


def set_link(
    name: str, *, up: bool | None = None, mtu: int | None = None, mac: str | None = None, alias: str | None = None
) -> Request:
    """Change an interface by name; what is None stays."""
    message = _link(IFLA_IFNAME=name, IFLA_MTU=mtu, IFLA_ADDRESS=mac, IFLA_IFALIAS=alias)
    if up is not None:
        message["flags"], message["change"] = IFF_UP if up else 0, IFF_UP
    return Request(rtnl.RTM_SETLINK, 0, message, f"change interface {name}")


def delete_link(name: str, *, missing_ok: bool = False) -> Request:
    """Remove an interface by name (a veth goes with its peer)."""
    accept = _MISSING_OK if missing_ok else ()
    return Request(rtnl.RTM_DELLINK, 0, _link(IFLA_IFNAME=name), f"remove interface {name}", accept)


def delete_group(group: int) -> Request:
    """Remove all interfaces of a group at once (one wait in the kernel for all, not one for each)."""
    return Request(rtnl.RTM_DELLINK, 0, _link(IFLA_GROUP=group), f"remove the interfaces of group {group}", _MISSING_OK)


def delete_all() -> None:
    """Remove every interface but ``lo`` in the namespace of the calling thread, and so their peers."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    with Netlink() as netlink:
        netlink.send([delete_link(name, missing_ok=True) for name in names])


def add_address(name: str, address: str) -> Request:
    """Give an interface an address ``10.0.0.1/8``; make it in the interface's namespace."""
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request(rtnl.RTM_NEWADDR, flags, _address(name, address), f"give interface {name} address {address}")


def remove_address(name: str, address: str) -> Request:
    """Take an address from an interface; make it in the interface's namespace."""
    what = f"take address {address} from interface {name}"
    return Request(rtnl.RTM_DELADDR, 0, _address(name, address), what, _MISSING_OK)


def default_route(name: str | None, gateway: str | None = None) -> Request:
    """The default route through an interface, a gateway, or both; make it in the interface's namespace."""
    message = rtmsg()
    message["family"] = socket.AF_INET6 if gateway and ":" in gateway else socket.AF_INET
    # Of protocol "static", to a unicast address in the main table, to the link when there is no gateway
    message.update(table=254, proto=4, type=1, scope=0 if gateway else 253)
    index = socket.if_nametoindex(name) if name else None
    message.update(_attributes(RTA_GATEWAY=gateway, RTA_OIF=index))
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request(rtnl.RTM_NEWROUTE, flags, message, f"set the default route {gateway or name}")


def _encode(request: Request, sequence: int) -> bytearray:
    message = request.message
    flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
    message["header"] = {"type": request.kind, "flags": flags, "sequence_number": sequence, "pid": 0}
    message.reset()
    message.encode()
    data: bytearray = message.data
    return data


def _attributes(**values: Any) -> dict[str, Any]:
    return {"attrs": [(name, value) for name, value in values.items() if value is not None]}


def _link(**values: Any) -> ifinfmsg:
    message = ifinfmsg()
    message.update(_attributes(**values))
    return message


def _end(end: VethEnd, mtu: int | None) -> dict[str, Any]:
    return {
        "IFLA_IFNAME": end.name,
        "IFLA_MTU": mtu,
        "IFLA_ADDRESS": end.mac,
        "IFLA_NET_NS_FD": end.netns,
        "IFLA_NET_NS_PID": end.netns_pid,
        "IFLA_GROUP": end.group or None,
        # One queue each: the multi-queue default of large hosts costs memory and HTB shapes one queue.
        "IFLA_NUM_TX_QUEUES": 1,
        "IFLA_NUM_RX_QUEUES": 1,
    }


def _address(name: str, address: str) -> ifaddrmsg:
    interface = ipaddress.ip_interface(address)
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    message["prefixlen"] = interface.network.prefixlen
    message["index"] = socket.if_nametoindex(name)
    broadcast = interface.version == 4 and interface.network.prefixlen < 31
    message.update(
        _attributes(
            IFA_LOCAL=str(interface.ip),
            IFA_ADDRESS=str(interface.ip),
            IFA_BROADCAST=str(interface.network.broadcast_address) if broadcast else None,
        )
    )
    return message


def _queue(index: int, **fields: int) -> _TcMessage:
    message = _TcMessage()
    message.update(index=index, **fields)
    return message


def _filter_info(prio: int, protocol: int) -> int:
    return (prio << 16) | socket.htons(protocol)


def _ticks(seconds: float) -> int:
    return min(_MOST, round(seconds * 1e9 / _NANOSECONDS_PER_TICK))


def _fields(message: Any) -> dict[str, Any]:
    """Attributes by name, each decoded when its ``value`` is asked for (``get_attr`` searches all every time)."""
    return {slot.name: slot for slot in message["attrs"]}


def _link_info(message: ifinfmsg) -> LinkInfo:
    message.decode()
    fields = _fields(message)
    counters = fields["IFLA_STATS64"].value
    return LinkInfo(
        ifindex=message["index"],
        name=fields["IFLA_IFNAME"].value,
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message["flags"] & IFF_LOWER_UP),
        mac=fields["IFLA_ADDRESS"].value if "IFLA_ADDRESS" in fields else "",
        mtu=fields["IFLA_MTU"].value,
        alias=fields["IFLA_IFALIAS"].value if "IFLA_IFALIAS" in fields else "",
        **{name: counters[name] for name in LinkInfo._fields[7:]},
    )


# --- ioctls ---------------------------------------------------------------------------------------


def offloads_off(names: Sequence[str], *, netns_pid: int | None = None, segmentation: bool = True) -> None:
    """Switch transmit checksum offload of interfaces off, with ``segmentation`` TSO, GSO and GRO too.

    Open vSwitch's userspace datapath forwards the unfinished checksums that offload leaves, and a shaper
    that is handed 64 kB segments cannot shape packets.
    """

    def apply() -> None:
        # ETHTOOL_STXCSUM, then STSO, SGSO, SGRO of linux/ethtool.h
        commands = (0x17, 0x1F, 0x24, 0x2C) if segmentation else (0x17,)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for name in names:
                for command in commands:
                    value = array.array("B", struct.pack("=II", command, 0))
                    request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
                    try:
                        fcntl.ioctl(control, 0x8946, request)
                    except OSError as error:
                        # A device without that feature has nothing to switch off.
                        if error.errno != errno.EOPNOTSUPP:
                            text = f"cannot set offloads of interface {name}: {error.strerror}"
                            raise NetlinkError(error.errno, text) from None

    in_netns_of(netns_pid, apply)


def open_tap(name: str, *, netns_pid: int | None = None) -> int:
    """A new TAP in a namespace; the descriptor, non-blocking. The interface lives as long as the descriptor."""

    def create() -> int:
        try:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetlinkError(error.errno, f"cannot create TAP {name}: /dev/net/tun: {error.strerror}") from None
        try:
            # IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL: never adopt an interface that exists. Without IFF_VNET_HDR
            # the kernel finishes checksums and segments before a frame gets here.
            fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000 | 0x8000))
        except OSError as error:
            os.close(descriptor)
            raise NetlinkError(error.errno, f"cannot create TAP {name}: {error.strerror}") from None
        return descriptor

    return in_netns_of(netns_pid, create)
