"""TUN devices, addresses and routes through ioctl and netlink: no forks, no packages."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from twin.emulation.dataplane.loop import ConfigError

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU, SIOCSIFTXQLEN = 0x8913, 0x8914, 0x8922, 0x8943
IFF_UP = 1
NETLINK_ROUTE = 0
RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE = 20, 21, 24
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 1, 4, 0x100, 0x400
NLMSG_ERROR = 2
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF = 1, 4
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 253, 1
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
SO_REUSEPORT = 15
SOCKET_BUFFER_BYTES = 4 << 20
TUN_QUEUE_PACKETS = 1000


def ipv4(text: object, what: str) -> bytes:
    """The four octets of a dotted address; ConfigError naming ``what`` otherwise."""
    if isinstance(text, str):
        try:
            return socket.inet_pton(socket.AF_INET, text)
        except OSError:
            pass
    raise ConfigError(f"{what}: must be an IPv4 address, got {text!r}")


def prefix(text: object, what: str) -> tuple[bytes, int]:
    """Network octets and length of ``a.b.c.d/n``; ConfigError naming ``what`` otherwise."""
    address, slash, length = text.partition("/") if isinstance(text, str) else ("", "", "")
    if not slash or not length.isdigit() or int(length) > 32:
        raise ConfigError(f"{what}: must be an IPv4 prefix such as 10.64.0.0/16, got {text!r}")
    octets = ipv4(address, what)
    if int.from_bytes(octets, "big") & (0xFFFFFFFF >> int(length)):
        raise ConfigError(f"{what}: host bits must be zero, got {text!r}")
    return octets, int(length)


def open_tun(name: str, mtu_bytes: int) -> int:
    """Create a TUN device, set its MTU, bring it up; the non-blocking descriptor. It vanishes with the descriptor."""
    if not 1 <= len(name.encode()) <= 15:
        raise ConfigError(f"tun: a name has 1 to 15 characters, got {name!r}")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"tun {name}: cannot open /dev/net/tun: {error.strerror}") from None
    encoded = name.encode()
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", encoded, IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCSIFMTU, struct.pack("16si20x", encoded, mtu_bytes))
            fcntl.ioctl(sock, SIOCSIFTXQLEN, struct.pack("16si20x", encoded, TUN_QUEUE_PACKETS))
            flags = struct.unpack("16xh22x", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16s24x", encoded)))[0]
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", encoded, flags | IFF_UP))
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"tun {name}: {error.strerror} (needs CAP_NET_ADMIN and a free name)") from None
    return fd


class Netlink:
    """A route netlink socket of this network namespace."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._sock.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def add_address(self, device: str, address: bytes) -> None:
        """Put a /32 address on a device; no error when it is already there."""
        self._address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, device, address)

    def remove_address(self, device: str, address: bytes) -> None:
        """Take a /32 address off a device; no error when it is not there."""
        try:
            self._address(RTM_DELADDR, 0, device, address)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise

    def add_route(self, device: str, network: bytes, length: int) -> None:
        """Route a prefix to a device, replacing an older route to it."""
        body = struct.pack(
            "BBBBBBBBI", socket.AF_INET, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST, 0
        )
        body += _attribute(RTA_DST, network) + _attribute(RTA_OIF, struct.pack("I", socket.if_nametoindex(device)))
        self._request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)

    def _address(self, kind: int, flags: int, device: str, address: bytes) -> None:
        body = struct.pack("BBBBI", socket.AF_INET, 32, 0, 0, socket.if_nametoindex(device))
        self._request(kind, flags, body + _attribute(IFA_LOCAL, address) + _attribute(IFA_ADDRESS, address))

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = struct.pack("IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, self._sequence, 0)
        self._sock.send(header + body)
        while True:
            reply = self._sock.recv(65536)
            _, answer, _, sequence, _ = struct.unpack_from("IHHII", reply)
            if sequence == self._sequence and answer == NLMSG_ERROR:
                code = struct.unpack_from("i", reply, 16)[0]
                if code:
                    raise OSError(-code, os.strerror(-code))
                return


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def udp_socket(address: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A non-blocking bound UDP socket with large buffers; ConfigError says what is wrong with the address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER_BYTES)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, SO_REUSEPORT, 1)
    try:
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"UDP {address}:{port}: {error.strerror or error}") from None
    return sock
