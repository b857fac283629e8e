"""HTB on one interface: a live rate for the whole link, and live rates per slice by IPv4 address.

The tree is ``1:1`` (the link) over ``1:2`` (everything unclassified: ARP, control) and one leaf per slice.
A rate counts Ethernet frames with their 14-byte header. Below the kernel's tick HTB sends by burst, so the
burst is one millisecond of the rate and the quantum one frame, which keeps 5-40 Mbit/s exact.
Changes are netlink messages: 0.4 ms a rate against 2-10 ms for a ``tc`` process.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from twin.emulation.netlink import Netlink, NetlinkError, offloads_off

UNLIMITED_BPS = 100e9
IPV4, MPLS = 0x0800, 0x8847
DEFAULT_QUEUE_PACKETS = 50
_QUANTUM = 1514
_ROOT_CLASS = 0x10001
_DEFAULT_MINOR = 2
_FIRST_MINOR = 0x10
# Share of the link that slices cannot take from ARP and control when they ask for more than there is.
_CONTROL_SHARE = 0.02
_LABEL_BYTES = 4


class ShapingError(Exception):
    """A rate or class that cannot be applied. One line: what, got, allowed, where."""


class ClassStats(NamedTuple):
    """Counters of one class since it was made; ``backlog_bytes`` is what waits now."""

    bytes_sent: int
    drops: int
    backlog_bytes: int


class Impairment(NamedTuple):
    """What netem does to every packet that leaves the interface, slices included."""

    delay_s: float
    jitter_s: float
    loss_ratio: float
    seed: int


@dataclass(slots=True)
class _SliceClass:
    """``filters``: the keys of each, at least one of which a packet of ``protocol`` must match."""

    minor: int
    bandwidth_bps: float
    filters: list[list[tuple[int, int, int]]] = field(default_factory=list)
    protocol: int = IPV4
    queue_packets: int | None = None


class Shaper:
    """Owns the root qdisc of ``interface`` in the namespace of ``netns_pid`` (None: the root namespace).

    With neither a rate nor classes there is no qdisc at all. Safe to use from several threads.
    ``queue_packets`` is the tail-drop queue of the link and of every class.
    """

    def __init__(
        self,
        netns_pid: int | None,
        interface: str,
        *,
        queue_packets: int = DEFAULT_QUEUE_PACKETS,
    ) -> None:
        if queue_packets < 1:
            raise ShapingError(f"interface {interface}: queue_packets must be at least 1, got {queue_packets}")
        self.netns_pid = netns_pid
        self.interface = interface
        self._queue_packets = queue_packets
        self._impairment: Impairment | None = None
        self._rate_bps: float | None = None
        self._classes: dict[str, _SliceClass] = {}
        self._next_minor = _FIRST_MINOR
        self._installed = False
        self._lock = threading.Lock()

    @property
    def rate_bps(self) -> float | None:
        """The rate of the whole link now; None when it is not limited."""
        return self._rate_bps

    @property
    def installed(self) -> bool:
        """Whether there is a tree on the interface now."""
        return self._installed

    def set_rate(self, bandwidth_bps: float | None) -> None:
        """Limit the whole interface to ``bandwidth_bps`` (None: no limit), live."""
        rate = self._checked_rate(bandwidth_bps, "bandwidth_bps")
        with self._lock, self._netlink() as netlink:
            index = self._index(netlink)
            before, self._rate_bps = self._rate_bps, rate
            try:
                self._apply(netlink, index)
                if self._impairment is not None:  # netem's queue must hold what is in flight at the new rate
                    self._leaves(netlink, index, replace=False)
            except NetlinkError as error:
                self._rate_bps = before
                raise self._error(error) from None

    def add_class(
        self,
        name: str,
        *,
        bandwidth_bps: float,
        match_dst_ip: str | Iterable[str] = (),
        match_src_ip: str | Iterable[str] = (),
    ) -> None:
        """Give IPv4 packets to any of the destinations or from any of the sources (addresses or CIDR
        prefixes) a class of at most ``bandwidth_bps``.

        When classes ask for more than the link has, each gets its proportional share and may borrow.
        """
        rate = self._checked_rate(bandwidth_bps, f"bandwidth_bps of class {name}")
        keys = [self._key(name, 16, address) for address in _listed(match_dst_ip)]
        keys += [self._key(name, 12, address) for address in _listed(match_src_ip)]
        if rate is None or not keys:
            raise ShapingError(
                f"interface {self.interface}: class {name} needs a bandwidth_bps and an address to match"
            )
        with self._lock, self._netlink() as netlink:
            if name in self._classes:
                raise ShapingError(f"interface {self.interface}: class {name} exists already")
            index = self._index(netlink)
            one = _SliceClass(self._next_minor, rate, [[key] for key in keys])
            self._classes[name] = one
            try:
                self._apply(netlink, index)
                self._plant(netlink, index, one)
            except NetlinkError as error:
                del self._classes[name]
                raise self._error(error) from None
            self._next_minor += 1

    def add_labelled_flows(
        self, addresses: Mapping[str, str], *, by: Literal["src", "dst"], queue_packets: int
    ) -> None:
        """One queue each for flows of IPv4 packets behind one MPLS label, told by source or destination address.

        Each may use the whole link; while several have packets they are served in turn, frame by frame, so that
        they share it equally (HTB is a deficit round robin among classes that borrow). Needs a rate.
        """
        if self._rate_bps is None:
            raise ShapingError(f"interface {self.interface}: queues per flow need a rate of the link")
        offset = _LABEL_BYTES + (12 if by == "src" else 16)
        with self._lock, self._netlink() as netlink:
            index = self._index(netlink)
            added = []
            for name, address in addresses.items():
                if name in self._classes:
                    raise ShapingError(f"interface {self.interface}: class {name} exists already")
                keys = [[self._key(name, offset, address)]]
                # Whatever the link's rate is or becomes, each gets an equal part of it.
                one = _SliceClass(self._next_minor, UNLIMITED_BPS, keys, MPLS, queue_packets)
                self._next_minor += 1
                self._classes[name] = one
                added.append(one)
            try:
                self._apply(netlink, index)
                for one in added:
                    self._plant(netlink, index, one)
            except NetlinkError as error:
                raise self._error(error) from None

    def has_class(self, name: str) -> bool:
        """Whether :meth:`add_class` made this class."""
        return name in self._classes

    def set_class_rate(self, name: str, bandwidth_bps: float) -> None:
        """Change the rate of a class, live."""
        rate = self._checked_rate(bandwidth_bps, f"bandwidth_bps of class {name}")
        with self._lock, self._netlink() as netlink:
            one = self._class(name)
            if rate is None:
                raise ShapingError(f"interface {self.interface}: class {name} needs a bandwidth_bps, got None")
            before, one.bandwidth_bps = one.bandwidth_bps, rate
            try:
                self._apply(netlink, self._index(netlink))
            except NetlinkError as error:
                one.bandwidth_bps = before
                raise self._error(error) from None

    def remove_class(self, name: str) -> None:
        """Remove a class; its traffic becomes unclassified."""
        with self._lock, self._netlink() as netlink:
            one = self._class(name)
            index = self._index(netlink)
            try:
                netlink.delete_filters(index, one.minor, protocol=one.protocol)
                netlink.delete_htb_class(index, one.minor)
                del self._classes[name]
                self._apply(netlink, index)
            except NetlinkError as error:
                raise self._error(error) from None

    def set_impairment(self, impairment: Impairment | None) -> None:
        """Delay, jitter and loss by netem, live; ShapingError when the kernel has no netem.

        netem draws every packet's delay by itself, so jitter reorders, and drops before the shaper.
        """
        with self._lock, self._netlink() as netlink:
            before, self._impairment = self._impairment, impairment
            index = self._index(netlink)
            try:
                fresh = not self._installed
                self._apply(netlink, index)
                if self._installed and not fresh:
                    self._leaves(netlink, index, replace=(before is None) != (impairment is None))
            except NetlinkError as error:
                self._impairment = before
                raise self._error(error) from None

    def stats(self) -> dict[str, ClassStats]:
        """Counters per class name, ``link`` for the whole and ``default`` for unclassified packets.

        Empty while nothing is shaped.
        """
        with self._lock, self._netlink() as netlink:
            if not self._installed:
                return {}
            index = self._index(netlink)
            try:
                found = {one.handle: one for one in netlink.classes(index)}
                qdiscs = {one.parent: one for one in netlink.qdiscs(index)}
            except NetlinkError as error:
                raise self._error(error) from None
            names = {"link": 1, "default": _DEFAULT_MINOR} | {name: one.minor for name, one in self._classes.items()}
            stats = {}
            for name, minor in names.items():
                handle = 0x10000 | minor
                if handle in found:
                    # The leaf counts what it refused; the class does not on every kernel.
                    leaf = qdiscs.get(handle)
                    drops = max(found[handle].drops, leaf.drops if leaf else 0)
                    backlog = leaf.backlog_bytes if leaf else found[handle].backlog_bytes
                    stats[name] = ClassStats(found[handle].bytes_sent, drops, backlog)
            leaves = [one for name, one in stats.items() if name != "link"]
            if "link" in stats:
                stats["link"] = ClassStats(
                    stats["link"].bytes_sent, sum(one.drops for one in leaves), sum(one.backlog_bytes for one in leaves)
                )
            return stats

    def restore(self) -> None:
        """Put the tree back: on an interface of the same name that was created again, or where another
        program removed it (Open vSwitch does, when the interface becomes a port)."""
        with self._lock, self._netlink() as netlink:
            try:
                index = self._index(netlink)
                if self._installed:
                    netlink.delete_root_qdisc(index)
                    self._installed = False
                self._apply(netlink, index)
                for one in self._classes.values():
                    self._plant(netlink, index, one)
            except NetlinkError as error:
                raise self._error(error) from None

    def _apply(self, netlink: Netlink, index: int) -> None:
        if self._rate_bps is None and not self._classes and self._impairment is None:
            if self._installed:
                netlink.delete_root_qdisc(index)
                self._installed = False
            return
        if not self._installed:
            offloads_off([self.interface], netns_pid=self.netns_pid)
            netlink.add_htb(index, _DEFAULT_MINOR)
        link_bps = self._rate_bps or UNLIMITED_BPS
        wanted = sum(one.bandwidth_bps for one in self._classes.values())
        scale = min(1.0, (1 - _CONTROL_SHARE) * link_bps / wanted) if wanted else 1.0
        netlink.set_htb_class(index, 0x10000, 1, link_bps, link_bps, 0, _QUANTUM)
        spare = max(_CONTROL_SHARE * link_bps, link_bps - wanted)
        netlink.set_htb_class(index, _ROOT_CLASS, _DEFAULT_MINOR, spare, link_bps, 0, _QUANTUM)
        for one in self._classes.values():
            ceil = min(one.bandwidth_bps, link_bps)
            netlink.set_htb_class(index, _ROOT_CLASS, one.minor, one.bandwidth_bps * scale, ceil, 1, _QUANTUM)
        if not self._installed:
            self._leaf(netlink, index, _DEFAULT_MINOR, replace=True)
            self._installed = True

    def _plant(self, netlink: Netlink, index: int, one: _SliceClass) -> None:
        self._leaf(netlink, index, one.minor, replace=True)
        for keys in one.filters:
            netlink.add_u32(index, one.minor, one.minor, keys, protocol=one.protocol)

    def _leaves(self, netlink: Netlink, index: int, *, replace: bool) -> None:
        for minor in (_DEFAULT_MINOR, *(one.minor for one in self._classes.values())):
            self._leaf(netlink, index, minor, replace=replace)

    def _queue_of(self, minor: int) -> int:
        for one in self._classes.values():
            if one.minor == minor and one.queue_packets is not None:
                return one.queue_packets
        return self._queue_packets

    def _leaf(self, netlink: Netlink, index: int, minor: int, *, replace: bool) -> None:
        parent = 0x10000 | minor
        # A qdisc of another kind cannot take over a handle in use: pfifo and netem number theirs apart.
        if self._impairment is None:
            if replace:
                netlink.add_pfifo(index, parent, minor << 16, self._queue_of(minor))
            return
        delay_s, jitter_s, loss_ratio, seed = self._impairment
        # netem's limit counts what is in flight too: allow for the bandwidth-delay product in small frames.
        in_flight = (self._rate_bps or 10e9) * (delay_s + jitter_s) / 8 / 300
        netlink.set_netem(
            index,
            parent,
            (0x8000 + minor) << 16,
            delay_s=delay_s,
            jitter_s=jitter_s,
            loss_ratio=loss_ratio,
            limit_packets=self._queue_of(minor) + int(in_flight),
            seed=seed + minor,
        )

    def _netlink(self) -> Netlink:
        try:
            return Netlink(self.netns_pid)
        except OSError as error:
            raise ShapingError(
                f"interface {self.interface}: namespace of process {self.netns_pid} is gone ({error.strerror})"
            ) from None

    def _index(self, netlink: Netlink) -> int:
        try:
            return netlink.index(self.interface)
        except NetlinkError as error:
            raise self._error(error) from None

    def _class(self, name: str) -> _SliceClass:
        if name not in self._classes:
            known = ", ".join(self._classes) or "none"
            raise ShapingError(f"interface {self.interface}: no class {name}, there are: {known}")
        return self._classes[name]

    def _checked_rate(self, bandwidth_bps: float | None, what: str) -> float | None:
        if bandwidth_bps is None:
            return None
        if not (math.isfinite(bandwidth_bps) and 1000 <= bandwidth_bps <= UNLIMITED_BPS):
            raise ShapingError(
                f"interface {self.interface}: {what} must be in [1e3, {UNLIMITED_BPS:g}] bit/s, got {bandwidth_bps}"
            )
        return float(bandwidth_bps)

    def _key(self, name: str, offset: int, address: str) -> tuple[int, int, int]:
        try:
            network = ipaddress.IPv4Network(address, strict=False)
        except ValueError:
            raise ShapingError(
                f"interface {self.interface}: class {name} must match IPv4 addresses or prefixes, got {address!r}"
            ) from None
        return offset, int(network.netmask), int(network.network_address)

    def _error(self, error: NetlinkError) -> ShapingError:
        hint = " (this kernel has no HTB; see twin doctor)" if error.errno == errno.ENOENT else ""
        return ShapingError(f"interface {self.interface}: {error.strerror}{hint}")


def _listed(addresses: str | Iterable[str]) -> list[str]:
    return [addresses] if isinstance(addresses, str) else list(addresses)
