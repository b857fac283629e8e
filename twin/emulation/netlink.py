"""State, counters, queueing disciplines, offloads and TAPs by raw rtnetlink, in any network namespace.

Why not ``tc``: starting a program costs 2-5 ms, a message 0.1 ms, and live rate changes and counters of a
hundred links must not pay for processes. Only what links need is here (batches of veth pairs and addresses:
:mod:`twin.emulation.veth`). No socket is kept open, because one would keep the namespace of a dead
container alive. Message layouts: ``linux/rtnetlink.h``, ``linux/pkt_sched.h``, ``linux/if_link.h``.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from twin.emulation.veth import CLONE_NEWNET, in_thread, libc_call, netns_of

T = TypeVar("T")

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWROUTE, _GETROUTE = 24, 26
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_NEWCLASS, _DELCLASS, _GETCLASS = 40, 41, 42
_NEWFILTER, _DELFILTER = 44, 45
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_IFF_UP, _IFF_LOWER_UP = 1, 0x10000
_NANOSECONDS_PER_TICK = 64  # PSCHED_SHIFT 6 in net/pkt_sched.h
_LINK_HEADER = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
ROOT = 0xFFFFFFFF
HTB = 0x10000


class NetlinkError(OSError):
    """The kernel refused; ``errno`` says why and the text names the operation and the interface."""


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


def in_netns(pid: int | None, function: Callable[[], T]) -> T:
    """Call ``function`` in the network namespace of process ``pid`` (None: here).

    Sockets and TAPs that it opens stay in that namespace; the caller's own namespace never changes.
    """
    if pid is None:
        return function()

    def body() -> T:
        with netns_of(pid) as descriptor:
            libc_call("setns", descriptor, CLONE_NEWNET)
        return function()

    return in_thread(body)


def in_new_netns(function: Callable[[], T]) -> T:
    """Call ``function`` in an empty network namespace that disappears when it returns."""

    def body() -> T:
        libc_call("unshare", CLONE_NEWNET)
        return function()

    return in_thread(body)


class Netlink:
    """A rtnetlink socket in the namespace of ``netns_pid`` (None: the caller's). Use under ``with``."""

    def __init__(self, netns_pid: int | None = None) -> None:
        self._socket = in_netns(
            netns_pid, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        )
        self._socket.bind((0, 0))
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

    # --- interfaces ---------------------------------------------------------------------------

    def add_veth(
        self,
        name: str,
        netns_pid: int | None,
        mac: str | None,
        peer_name: str,
        peer_netns_pid: int | None,
        peer_mac: str | None,
        mtu: int,
    ) -> None:
        """A veth pair, both ends born with their final names in their final namespaces, still down.

        None is the socket's own namespace. (Up at birth is refused: a veth cannot open before it has its peer.)
        """
        # One queue each: the multi-queue default of large hosts costs memory and HTB shapes one queue.
        single = _attribute(31, struct.pack("=I", 1)) + _attribute(32, struct.pack("=I", 1))
        peer = _LINK_HEADER + _end_attributes(peer_name, peer_netns_pid, peer_mac, mtu) + single
        info = _text(1, "veth") + _attribute(2, _attribute(1, peer))
        body = _LINK_HEADER + _end_attributes(name, netns_pid, mac, mtu) + single + _attribute(18, info)
        self._request(_NEWLINK, _CREATE | _EXCL, body, f"create veth {name} - {peer_name}")

    def set_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        alias: str | None = None,
    ) -> None:
        """Change an interface by name; what is None stays."""
        flags, mask = (_IFF_UP if up else 0, 0 if up is None else _IFF_UP)
        body = struct.pack("=BxHiII", 0, 0, 0, flags, mask) + _end_attributes(name, None, mac, mtu)
        if alias is not None:
            body += _attribute(20, alias.encode())
        self._request(_SETLINK, 0, body, f"change interface {name}")

    def delete_link(self, name: str) -> None:
        """Remove an interface by name (a veth goes with its peer)."""
        self._request(_DELLINK, 0, _LINK_HEADER + _text(3, name), f"remove interface {name}")

    def delete_links(self, names: Sequence[str]) -> None:
        """Remove several at once; those that do not exist are left out.

        The kernel waits some 10 ms for its readers at each removal: a group is removed with one wait for all.
        """
        group = struct.pack("=I", int.from_bytes(os.urandom(4)) | 0x40000000)
        marked = 0
        for name in names:
            try:
                self._request(_SETLINK, 0, _LINK_HEADER + _text(3, name) + _attribute(27, group), f"mark {name}")
                marked += 1
            except NetlinkError as error:
                if error.errno != errno.ENODEV:
                    raise
        if marked:
            self._request(_DELLINK, 0, _LINK_HEADER + _attribute(27, group), "remove a group of interfaces")

    def link(self, name: str) -> LinkInfo:
        """State and counters of one interface; NetlinkError ENODEV when there is none."""
        for payload in self._request(_GETLINK, 0, _LINK_HEADER + _text(3, name), f"find interface {name}"):
            return _link_info(payload)
        raise NetlinkError(errno.ENODEV, f"cannot find interface {name}: no answer")

    def links(self) -> dict[str, LinkInfo]:
        """All interfaces of the namespace by name."""
        found = (_link_info(payload) for payload in self._request(_GETLINK, _DUMP, _LINK_HEADER, "list interfaces"))
        return {one.name: one for one in found}

    def routes(self, index: int) -> list[bytes]:
        """The IPv4 routes that somebody added through an interface, as messages for :meth:`add_route`."""
        found = []
        for payload in self._request(_GETROUTE, _DUMP, bytes(12), "list routes"):
            family, table, protocol = payload[0], payload[4], payload[5]
            output = dict(_attributes(payload[12:])).get(4)
            # Table 254 is main; protocol 2 is "kernel": connected routes, which come back by themselves.
            wanted = family == socket.AF_INET and table == 254 and protocol != 2
            if wanted and output is not None and struct.unpack("=i", output)[0] == index:
                found.append(payload)
        return found

    def add_route(self, route: bytes) -> None:
        """Add again a route that :meth:`routes` returned; one that is there already is left alone."""
        # The flags in a dump say what was (dead, link down); they must not be asked for.
        body = route[:8] + bytes(4) + route[12:]
        try:
            self._request(_NEWROUTE, _CREATE | _EXCL, body, "restore a route")
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    # --- queueing disciplines -----------------------------------------------------------------

    def add_htb(self, index: int, default_minor: int) -> None:
        """HTB 1: at the root; unclassified packets go to class 1:``default_minor``."""
        glob = struct.pack("=IIIII", 3, 10, default_minor, 0, 0)
        options = _attribute(2, glob) + _attribute(5, struct.pack("=I", 1000))
        self._queue(_NEWQDISC, _CREATE | _REPLACE, index, HTB, ROOT, "htb", options, "add HTB")

    def set_htb_class(
        self, index: int, parent: int, minor: int, rate_bps: float, ceil_bps: float, prio: int, quantum: int
    ) -> None:
        """Make or change class 1:``minor``; ``rate_bps`` is guaranteed, ``ceil_bps`` the most it may borrow."""
        speeds = [max(1, round(bps / 8)) for bps in (rate_bps, ceil_bps)]
        # One millisecond of burst, and never less than one frame, else HTB cannot send at all.
        buffers = [_ticks(max(1600.0, speed / 1000) / speed) for speed in speeds]
        # Link layer 1 is Ethernet: without it the kernel asks for the rate tables of old tc.
        parameters = b"".join(struct.pack("=BBHhHI", 0, 1, 0, -1, 0, min(speed, ROOT)) for speed in speeds)
        parameters += struct.pack("=IIIII", *buffers, quantum, 0, prio)
        options = _attribute(1, parameters)
        options += _attribute(6, struct.pack("=Q", speeds[0])) + _attribute(7, struct.pack("=Q", speeds[1]))
        self._queue(_NEWCLASS, _CREATE, index, HTB | minor, parent, "htb", options, "set HTB class")

    def delete_htb_class(self, index: int, minor: int) -> None:
        """Remove class 1:``minor`` with its leaf."""
        self._queue(_DELCLASS, 0, index, HTB | minor, 0, "", b"", "remove HTB class")

    def add_pfifo(self, index: int, parent: int, handle: int, packets: int) -> None:
        """A tail-drop queue of ``packets`` as leaf of a class."""
        options = struct.pack("=I", packets)
        self._queue(_NEWQDISC, _CREATE | _REPLACE, index, handle, parent, "pfifo", options, "add pfifo")

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
        loss = round(loss_ratio * 0xFFFFFFFF)
        options = struct.pack("=IIIIII", _ticks(delay_s), limit_packets, loss, 0, 0, _ticks(jitter_s))
        options += _attribute(10, struct.pack("=q", round(delay_s * 1e9)))
        options += _attribute(11, struct.pack("=q", round(jitter_s * 1e9)))
        options += _attribute(14, struct.pack("=Q", seed & (2**64 - 1)))
        self._queue(_NEWQDISC, _CREATE | _REPLACE, index, handle, parent, "netem", options, "set netem")

    def delete_root_qdisc(self, index: int) -> None:
        """Remove the root qdisc with all below it; fine when there is only the kernel's own."""
        try:
            self._queue(_DELQDISC, 0, index, 0, ROOT, "", b"", "remove the root qdisc")
        except NetlinkError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise

    def add_u32(self, index: int, prio: int, minor: int, keys: list[tuple[int, int, int]]) -> None:
        """Send IPv4 packets where every (offset, mask, value) word matches to class 1:``minor``."""
        selector = struct.pack("=BBBxHHhhI", 1, 0, len(keys), 0, 0, 0, 0, 0)
        for offset, mask, value in keys:
            selector += struct.pack("!II", mask, value) + struct.pack("=ii", offset, 0)
        options = _attribute(1, struct.pack("=I", HTB | minor)) + _attribute(5, selector)
        self._queue(_NEWFILTER, _CREATE | _EXCL, index, 0, HTB, "u32", options, "add filter", _filter_info(prio))

    def delete_filters(self, index: int, prio: int) -> None:
        """Remove all filters of one priority."""
        self._queue(_DELFILTER, 0, index, 0, HTB, "", b"", "remove filters", _filter_info(prio))

    def qdiscs(self, index: int) -> list[QueueStats]:
        """Counters of every qdisc of an interface."""
        return self._stats(_GETQDISC, index)

    def classes(self, index: int) -> list[QueueStats]:
        """Counters of every class of an interface."""
        return self._stats(_GETCLASS, index)

    def _stats(self, message: int, index: int) -> list[QueueStats]:
        body = struct.pack("=B3xiIII", 0, index, 0, 0, 0)
        found = []
        for payload in self._request(message, _DUMP, body, "read queue counters"):
            _, owner, handle, parent, _ = struct.unpack_from("=B3xiIII", payload)
            # Older kernels dump the qdiscs of every interface.
            if owner != index:
                continue
            fields = dict(_attributes(payload[20:]))
            stats = dict(_attributes(fields.get(7, b"")))
            sent, packets = struct.unpack_from("=QI", stats.get(1, bytes(12)))
            _, backlog, drops = struct.unpack_from("=III", stats.get(3, bytes(12)))
            kind = fields.get(1, b"").rstrip(b"\0").decode()
            found.append(QueueStats(kind, handle, parent, sent, packets, drops, backlog))
        return found

    def _queue(
        self,
        message: int,
        flags: int,
        index: int,
        handle: int,
        parent: int,
        kind: str,
        options: bytes,
        what: str,
        info: int = 0,
    ) -> None:
        body = struct.pack("=B3xiIII", 0, index, handle, parent, info)
        if kind:
            body += _text(1, kind) + _attribute(2, options)
        self._request(message, flags, body, what)

    # --- transport ----------------------------------------------------------------------------

    def _request(self, message: int, flags: int, body: bytes, what: str) -> list[bytes]:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), message, _REQUEST | _ACK | flags, self._sequence, 0)
        self._socket.send(header + body)
        return list(self._answers(what))

    def _answers(self, what: str) -> Iterator[bytes]:
        while True:
            data = self._socket.recv(1 << 18)
            at = 0
            while at < len(data):
                length, message, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
                payload = data[at + 16 : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if message in (_ERROR, _DONE):
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise NetlinkError(code, f"cannot {what}: {os.strerror(code)}")
                    return
                yield payload


def set_offloads(name: str, *, netns_pid: int | None = None) -> None:
    """Switch transmit checksum and segmentation (TSO, GSO, GRO) offload of an interface off.

    Open vSwitch's userspace datapath forwards the unfinished checksums that offload leaves, and a shaper
    that is handed 64 kB segments cannot shape packets.
    """

    def apply() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            # ETHTOOL_STXCSUM, STSO, SGSO, SGRO of linux/ethtool.h
            for command in (0x17, 0x1F, 0x24, 0x2C):
                value = array.array("B", struct.pack("=II", command, 0))
                request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
                try:
                    fcntl.ioctl(control, 0x8946, request)
                except OSError as error:
                    # A device without that feature has nothing to switch off.
                    if error.errno != errno.EOPNOTSUPP:
                        text = f"cannot set offloads of interface {name}: {error.strerror}"
                        raise NetlinkError(error.errno, text) from None

    in_netns(netns_pid, apply)


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

    return in_netns(netns_pid, create)


def _end_attributes(name: str, netns_pid: int | None, mac: str | None, mtu: int | None) -> bytes:
    data = _text(3, name)
    if mtu is not None:
        data += _attribute(4, struct.pack("=I", mtu))
    if netns_pid is not None:
        data += _attribute(19, struct.pack("=I", netns_pid))
    if mac is not None:
        data += _attribute(1, bytes.fromhex(mac.replace(":", "")))
    return data


def _filter_info(prio: int) -> int:
    return (prio << 16) | socket.htons(0x0800)


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _ticks(seconds: float) -> int:
    return min(ROOT, round(seconds * 1e9 / _NANOSECONDS_PER_TICK))


def _link_info(payload: bytes) -> LinkInfo:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", payload)
    fields = dict(_attributes(payload[16:]))
    counters = struct.unpack_from("=8Q", fields.get(23, bytes(64)))
    return LinkInfo(
        ifindex=index,
        name=fields[3].rstrip(b"\0").decode(),
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        mac=fields.get(1, b"").hex(":"),
        mtu=struct.unpack("=I", fields.get(4, bytes(4)))[0],
        alias=fields.get(20, b"").rstrip(b"\0").decode(errors="replace"),
        rx_packets=counters[0],
        tx_packets=counters[1],
        rx_bytes=counters[2],
        tx_bytes=counters[3],
        rx_dropped=counters[6],
        tx_dropped=counters[7],
    )
