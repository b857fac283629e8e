"""Interfaces made in batches: veth pairs, addresses, routes and offloads over one netlink socket.

One ``ip`` process per interface costs about 3 ms and a network of 100 hosts needs 400 of them; here
every message of a step travels in one ``send`` (rtnetlink(7)) and each is acknowledged, so that a
refused one raises :class:`InterfaceError` naming it. A namespace is a file descriptor
(``/proc/PID/ns/net``), ``None`` is the namespace of the calling thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

_NEWLINK, _DELLINK, _SETLINK, _NEWADDR, _DELADDR, _NEWROUTE = 16, 17, 19, 20, 21, 24
_REQUEST, _ACK, _EXCL, _CREATE, _REPLACE = 0x1, 0x4, 0x200, 0x400, 0x100
_IFF_UP = 0x1
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SIOCETHTOOL, _ETHTOOL_STXCSUM = 0x8946, 0x17
_BATCH = 48  # messages a send: their acknowledgements must fit the default receive buffer

_Result = TypeVar("_Result")


class InterfaceError(OSError):
    """The kernel refused a message; the text names what was asked for."""


@dataclass(frozen=True)
class Message:
    """One rtnetlink request; ``what`` names it in errors. ``missing_ok`` accepts 'no such device'."""

    kind: int
    flags: int
    payload: bytes
    what: str
    missing_ok: bool = False


@dataclass(frozen=True)
class VethEnd:
    """One end of a veth pair: its name, MAC address and namespace (fd, ``None`` = where it is made)."""

    name: str
    mac: str
    netns: int | None = None
    group: int = 0


def libc_call(name: str, *arguments: int) -> None:
    """Call a C library function that returns 0 or sets errno; OSError otherwise."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def in_thread(function: Callable[[], _Result]) -> _Result:
    """Run ``function`` in a thread of its own, so that namespaces it enters end with it."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="twinbed-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_netns(netns: int | None, function: Callable[[], _Result]) -> _Result:
    """Run ``function`` with ``netns`` as the network namespace of its thread."""

    def body() -> _Result:
        if netns is not None:
            libc_call("setns", netns, CLONE_NEWNET)
        return function()

    return in_thread(body)


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
                with Netlink() as link:
                    link.send([set_up("lo")])
        except BaseException:
            for descriptor in made:
                os.close(descriptor)
            raise
        return made

    return in_thread(body)


@contextmanager
def netns_of(pid: int) -> Iterator[int]:
    """A descriptor of the network namespace of a process, closed on exit."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Netlink:
    """An rtnetlink socket in the network namespace of the calling thread."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> None:
        """Send all, wait for every acknowledgement, raise for the first that was refused."""
        failed: InterfaceError | None = None
        for start in range(0, len(messages), _BATCH):
            waiting: dict[int, Message] = {}
            wire = bytearray()
            for message in messages[start : start + _BATCH]:
                self._sequence += 1
                waiting[self._sequence] = message
                header = struct.pack(
                    "=IHHII", 16 + len(message.payload), message.kind, message.flags, self._sequence, 0
                )
                wire += header + message.payload
            self._socket.send(wire)
            while waiting:
                error = self._read_acknowledgements(waiting)
                failed = failed or error
        if failed:
            raise failed

    def _read_acknowledgements(self, waiting: dict[int, Message]) -> InterfaceError | None:
        failed = None
        data = self._socket.recv(65536)
        offset = 0
        while offset < len(data):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            message = waiting.pop(sequence, None) if kind == 2 else None
            if message is not None:
                code = -struct.unpack_from("=i", data, offset + 16)[0]
                if code and not (message.missing_ok and code == 19):
                    failed = failed or InterfaceError(code, f"{message.what}: {os.strerror(code)}")
            offset += (length + 3) & ~3
        return failed


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def _link_header(*, up: bool = False, down: bool = False) -> bytes:
    return struct.pack("=BxHiII", 0, 0, 0, _IFF_UP if up else 0, _IFF_UP if up or down else 0)


def _name(name: str) -> bytes:
    return _attribute(3, name.encode() + b"\0")


def _mac(mac: str) -> bytes:
    return _attribute(1, bytes.fromhex(mac.replace(":", "")))


def _end(end: VethEnd) -> bytes:
    body = _name(end.name) + _mac(end.mac)
    if end.netns is not None:
        body += _attribute(28, struct.pack("=I", end.netns))
    if end.group:
        body += _attribute(27, struct.pack("=I", end.group))
    # one queue: a veth of a testbed never needs the multi-queue default of large hosts
    return body + _attribute(31, struct.pack("=I", 1)) + _attribute(32, struct.pack("=I", 1))


def veth(first: VethEnd, second: VethEnd) -> Message:
    """Make a pair, each end straight in its namespace; the first is up, the kernel refuses that to the second."""
    peer = _attribute(1, _link_header() + _end(second))
    info = _attribute(18, _attribute(1, b"veth") + _attribute(2, peer))
    return Message(
        _NEWLINK,
        _REQUEST | _ACK | _CREATE | _EXCL,
        _link_header(up=True) + _end(first) + info,
        f"veth {first.name}-{second.name}",
    )


def set_up(name: str, up: bool = True) -> Message:
    """Set an interface up or down."""
    body = _link_header(up=up, down=not up) + _name(name)
    return Message(_SETLINK, _REQUEST | _ACK, body, f"interface {name} {'up' if up else 'down'}")


def set_mac(name: str, mac: str) -> Message:
    """Change the MAC address of an interface."""
    return Message(_SETLINK, _REQUEST | _ACK, _link_header() + _name(name) + _mac(mac), f"interface {name} MAC {mac}")


def delete(name: str) -> Message:
    """Delete an interface; one that is gone already is no error."""
    return Message(_DELLINK, _REQUEST | _ACK, _link_header() + _name(name), f"delete interface {name}", True)


def delete_all() -> None:
    """Delete every interface but ``lo`` in the namespace of the calling thread, and so their peers."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    with Netlink() as netlink:
        netlink.send([delete(name) for name in names])


def delete_group(group: int) -> Message:
    """Delete all interfaces of a group at once (one wait in the kernel for all, not one for each)."""
    body = _link_header() + _attribute(27, struct.pack("=I", group))
    return Message(_DELLINK, _REQUEST | _ACK, body, f"delete interfaces of group {group}", True)


def add_address(name: str, address: str, *, remove: bool = False) -> Message:
    """Give an interface an address ``10.0.0.1/8`` (or take it); run in the interface's namespace."""
    interface = ipaddress.ip_interface(address)
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, interface.network.prefixlen, 0, 0, socket.if_nametoindex(name))
    body += _attribute(2, interface.ip.packed) + _attribute(1, interface.ip.packed)
    if interface.version == 4 and interface.network.prefixlen < 31:
        body += _attribute(4, interface.network.broadcast_address.packed)
    if remove:
        return Message(_DELADDR, _REQUEST | _ACK, body, f"interface {name} without address {address}", True)
    return Message(_NEWADDR, _REQUEST | _ACK | _CREATE | _REPLACE, body, f"interface {name} address {address}")


def default_route(name: str | None, gateway: str | None = None) -> Message:
    """The default route through an interface, a gateway, or both."""
    family = socket.AF_INET6 if gateway and ":" in gateway else socket.AF_INET
    scope = 0 if gateway else 253
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 4, scope, 1, 0)
    if gateway:
        body += _attribute(5, ipaddress.ip_address(gateway).packed)
    if name:
        body += _attribute(4, struct.pack("=I", socket.if_nametoindex(name)))
    return Message(_NEWROUTE, _REQUEST | _ACK | _CREATE | _REPLACE, body, f"default route {gateway or name}")


def checksums_off(names: Sequence[str]) -> None:
    """Transmit checksums in software (``ethtool -K IF tx off``).

    Open vSwitch's userspace datapath reads packets from a raw socket, where an offloaded checksum
    was never filled in: without this every TCP segment through it is dropped at the receiver.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in names:
            value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0), 8)
            request = struct.pack("@16sP16x", name.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, request)
            except OSError as error:
                raise InterfaceError(error.errno, f"interface {name}: tx off: {error.strerror}") from None
