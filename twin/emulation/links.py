"""Links of the façade: plain veth pairs made in batches, shaped ones by :mod:`twin.emulation.impairment`.

A link is described when it is added and made on the host with all others that wait, so that 50 links
cost one batch. ``Interface`` keeps Mininet's methods (``setIP``, ``IP``, ``ifconfig`` ...).
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import re
import socket
import struct
from typing import TYPE_CHECKING, Any

from mininet.link import Intf, Link

from twin.emulation.impairment import End, LinkError, LinkHandle, LinkSpec
from twin.emulation.netlink import Request, add_address, default_route, remove_address, set_link

if TYPE_CHECKING:
    from twin.emulation.containernet import Containernet

_LONGEST = 15  # IFNAMSIZ without its zero
_SHAPING = ("bw", "delay", "jitter", "loss", "max_queue_size")
_SI = ("bandwidth_bps", "delay_s", "jitter_s", "loss_ratio")
_SPEC = ("seed", "mtu", "impairable", "reorder", "mechanism")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|)\s*")
_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1e-6}  # tc(8): a bare number is microseconds


def host_name(prefix: str, name: str) -> str:
    """``prefix-name`` as an interface or bridge name: at most 15 characters, always the same for the same input."""
    whole = f"{prefix}-{name}" if prefix else name
    if len(whole) <= _LONGEST:
        return whole
    digest = hashlib.blake2s(whole.encode(), digest_size=3).hexdigest()
    return whole[: _LONGEST - len(digest)] + digest


def seconds(text: str | float, what: str) -> float:
    """A duration in tc's spelling (``10ms``, ``1.5s``, ``200us``); LinkError otherwise."""
    match = _DURATION.fullmatch(str(text))
    if not match:
        raise LinkError(f"{what} must be a duration such as 10ms, got {text!r}")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def shaping(where: str, options: dict[str, Any]) -> dict[str, Any]:
    """The constraints of a link in SI, taken out of ``options``; only what is given.

    Mininet's ``bw`` (Mbit/s), ``delay``, ``jitter``, ``loss`` (percent) and ``max_queue_size``, or
    ``bandwidth_bps``, ``delay_s``, ``jitter_s`` and ``loss_ratio``.
    """
    given = {key: options.pop(key, None) for key in _SHAPING}
    result: dict[str, Any] = {key: options.pop(key) for key in _SI if key in options}
    if given["bw"] is not None:
        rate = _number(f"link {where}: bw", given["bw"])
        if rate <= 0:
            raise LinkError(f"link {where}: bw must be positive (Mbit/s), got {given['bw']}")
        result["bandwidth_bps"] = rate * 1e6
    for key in ("delay", "jitter"):
        if given[key] is not None:
            result[f"{key}_s"] = seconds(given[key], f"link {where}: {key}")
    if given["loss"] is not None:
        loss = _number(f"link {where}: loss", str(given["loss"]).removesuffix("%"))
        if not 0 <= loss <= 100:
            raise LinkError(f"link {where}: loss must be in [0, 100] (percent), got {given['loss']}")
        result["loss_ratio"] = loss / 100
    if given["max_queue_size"] is not None:
        result["queue_packets"] = int(_number(f"link {where}: max_queue_size", given["max_queue_size"]))
    return result


def _number(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LinkError(f"{what} must be a number, got {value!r}")
    return number


class Interface(Intf):  # type: ignore[misc]
    """One end of a link. Addresses are kept here and applied when the link is made, or at once after."""

    def __init__(self, name: str, node: Any, link: VirtualLink, mac: str, port: int, address: str | None) -> None:
        # Intf.__init__ would run ifconfig in a shell of the node
        self.name = name
        self.node = node
        self.link: Any = link
        self.mac = mac
        self.ip: str | None = None
        self.prefixLen: str | int | None = None
        self.params: dict[str, Any] = {}
        self.route: tuple[str | None, str | None] | None = None
        self.is_up = True
        node.addIntf(self, port=port, moveIntfFn=lambda *_: None)
        if address:
            self.setIP(address, link.net.prefixLen)

    @property
    def made(self) -> bool:
        """True once the interface exists on the host."""
        return bool(self.link is not None and self.link.made)

    @property
    def address(self) -> str | None:
        """``ip/prefix``, None without an address."""
        return f"{self.ip}/{self.prefixLen}" if self.ip else None

    def setIP(self, ipstr: str, prefixLen: str | int | None = None) -> str:
        """Replace the IPv4 address."""
        ip, _, prefix = ipstr.partition("/")
        before = self.address
        self.ip, self.prefixLen = ip, prefix or prefixLen or self.link.net.prefixLen
        if self.made and before != self.address:
            self.link.net.in_node(self.node, self._apply_address(before))
        return ""

    def setMAC(self, macstr: str) -> str:
        """Replace the MAC address."""
        self.mac = macstr.lower()
        if self.made:
            self.link.net.in_node(self.node, lambda: [set_link(self.name, mac=self.mac)])
        return ""

    def ifconfig(self, *args: str) -> str:
        """``up`` and ``down`` directly; anything else by ifconfig in the node."""
        if len(args) == 1 and args[0] in ("up", "down"):
            self.is_up = args[0] == "up"
            if self.made:
                self.link.net.in_node(self.node, lambda: [set_link(self.name, up=self.is_up)])
            return ""
        return str(self.cmd("ifconfig", self.name, *args))

    def isUp(self, setUp: bool = False) -> bool:
        """Whether the interface is up; with ``setUp`` set it up first."""
        if setUp:
            self.ifconfig("up")
        if not self.made:
            return self.is_up
        return bool(self.link.net.inside(self.node, lambda: interface_flags(self.name)) & 1)

    def config(
        self, mac: str | None = None, ip: str | None = None, ifconfig: str | None = None, up: bool = True, **more: Any
    ) -> dict[str, Any]:
        """Apply Mininet's interface parameters; ``bw``, ``delay``, ``jitter`` and ``loss`` act on the whole link."""
        if mac:
            self.setMAC(mac)
        if ip:
            self.setIP(ip)
        if not up:
            self.ifconfig("down")
        if ifconfig:
            self.ifconfig(*ifconfig.split())
        if any(more.get(key) is not None for key in _SHAPING):
            changes = shaping(str(self.link), more)
            self.link.set(**changes)
        self.params.update(more)
        return {}

    def delete(self) -> None:
        """Delete the link this is an end of."""
        if self.link is not None:
            self.link.net.unmake([self.link])
        self.node.delIntf(self)
        self.link = None

    def messages(self) -> list[Request]:
        """What gives a new interface its address, state and route; run in its namespace."""
        found = [set_link(self.name, up=self.is_up)]
        if self.address:
            found.append(add_address(self.name, self.address))
        if self.route and self.is_up:
            found.append(default_route(*self.route))
        return found

    def _apply_address(self, before: str | None) -> Any:
        def messages() -> list[Request]:
            found = [remove_address(self.name, before)] if before else []
            return found + ([add_address(self.name, self.address)] if self.address else [])

        return messages


class VirtualLink(Link):  # type: ignore[misc]
    """A link between two nodes. ``handle`` is the impairment's handle when the link has constraints."""

    def __init__(self, net: Containernet, node1: Any, node2: Any, options: dict[str, Any]) -> None:
        self.net = net
        self.made = False
        self.handle: LinkHandle | None = None
        self.journal_entries: list[int] = []
        where = f"{node1.name}-{node2.name}"
        self.constraints = shaping(where, options)
        self.constraints |= {key: options.pop(key) for key in _SPEC if key in options}
        ends: list[Interface] = []
        for node, number in ((node1, "1"), (node2, "2")):
            extra = dict(options.pop(f"params{number}", None) or {})
            if any(extra.get(key) is not None for key in _SHAPING):
                raise LinkError(
                    f"link {where}: bw, delay, jitter and loss act on both directions; give them to addLink"
                )
            port = options.pop(f"port{number}", None)
            port = extra.get("port", node.newPort() if port is None else port)
            logical = options.pop(f"intfName{number}", None) or f"{node.name}-eth{port}"
            name = net.interface_name(node, logical)
            mac = options.pop(f"addr{number}", None) or extra.get("mac") or net.randMac()
            end = Interface(name, node, self, mac.lower(), port, extra.get("ip"))
            if name != logical:
                node.nameToIntf[logical] = end
            ends.append(end)
        self.intf1, self.intf2 = ends

    @property
    def constrained(self) -> bool:
        """True when the link is more than a veth pair."""
        return any(value for key, value in self.constraints.items() if key not in ("seed", "mtu", "reorder"))

    def spec(self) -> LinkSpec:
        """What :func:`twin.emulation.impairment.make_links` makes of it."""
        first, second = (End(self.net.netns_pid(end.node), end.name, end.mac) for end in self.ends)
        return LinkSpec(a=first, b=second, **self.constraints)

    @property
    def ends(self) -> tuple[Interface, Interface]:
        """Both interfaces."""
        return self.intf1, self.intf2

    def touches(self, node: Any) -> bool:
        """True when ``node`` is at one end."""
        return node in (self.intf1.node, self.intf2.node)

    def set(self, **constraints: Any) -> None:
        """Change ``bandwidth_bps``, ``delay_s``, ``jitter_s`` or ``loss_ratio`` while the link runs.

        Raises LinkError on a link that was added without any of them.
        """
        if self.handle is not None:
            self.handle.set(**constraints)
        elif self.made:
            raise LinkError(f"link {self}: added without bw, delay or loss; add it with impairable=True to change it")
        self.constraints |= constraints

    def delete(self) -> None:
        """Remove the link from the host and from both nodes."""
        self.net.unmake([self])
        for end in self.ends:
            end.node.delIntf(end)
            end.link = None

    stop = delete

    def status(self) -> str:
        """``(OK OK)`` while both ends exist, as Mininet prints it."""
        return f"({' '.join('OK' if self.made else 'MISSING' for _ in self.ends)})"


def interface_flags(name: str) -> int:
    """The interface's flags (netdevice(7)); 0 when it does not exist. Run in its namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, 0x8913, struct.pack("=16sH22x", name.encode(), 0))
        except OSError:
            return 0
    return int(struct.unpack_from("=H", answer, 16)[0])
