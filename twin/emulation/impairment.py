"""Links between two interfaces with bandwidth, delay, jitter and loss that are really applied.

- ``veth``: a veth pair. Bandwidth by HTB at both ends (:mod:`twin.emulation.shaping`).
- ``netem``: the same with netem under HTB, where the kernel has netem.
- ``relay``: two TAPs joined by :mod:`twin.emulation.relay`, where it has not. Bandwidth by HTB on the TAPs,
  then delay, jitter and loss in the relay, which is the order of a real link.

A link that will be impaired later must be made with ``impairable=True`` (or with an impairment), because a
veth pair cannot become two TAPs under the programs that use it. What the kernel can do is found by trying.
Every failure is a :class:`LinkError`; a declared impairment is never left out.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from twin.emulation.netlink import (
    HTB,
    ROOT,
    LinkInfo,
    Netlink,
    NetlinkError,
    Request,
    VethEnd,
    add_veth,
    delete_link,
    offloads_off,
    open_tap,
    set_link,
)
from twin.emulation.netns import in_new_netns
from twin.emulation.shaping import DEFAULT_QUEUE_PACKETS, Impairment, Shaper, ShapingError
from twin.journal import Journal, start_ticks

Mechanism = Literal["veth", "netem", "relay"]
LINKS_PER_RELAY = 8
_ANSWER_TIMEOUT_S = 5.0


class LinkError(Exception):
    """A link that cannot be made or changed as asked. One line: what, got, allowed, where."""


@dataclass(frozen=True, slots=True)
class End:
    """One end: ``interface`` in the network namespace of process ``netns_pid`` (None: the root namespace).

    ``mac`` None means one derived from the run and the names, so that it survives a replug.
    """

    netns_pid: int | None
    interface: str
    mac: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """A link to be made; values hold in each direction. ``queue_packets``: the tail-drop queue before HTB.

    ``reorder``: let jitter reorder (netem always does). ``mechanism`` None chooses by what the kernel has.
    """

    a: End
    b: End
    bandwidth_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    seed: int = 0
    mtu: int = 1500
    impairable: bool = False
    reorder: bool = False
    queue_packets: int = DEFAULT_QUEUE_PACKETS
    mechanism: Mechanism | None = None

    def __post_init__(self) -> None:
        for quantity, value, high in (
            ("delay_s", self.delay_s, 60.0),
            ("jitter_s", self.jitter_s, self.delay_s),
            ("loss_ratio", self.loss_ratio, 1.0),
        ):
            if not (math.isfinite(value) and 0 <= value <= high):
                why = " (jitter_s cannot exceed delay_s)" if quantity == "jitter_s" else ""
                raise LinkError(f"link {self.name}: {quantity} must be in [0, {high:g}]{why}, got {value:g}")
        rate = self.bandwidth_bps
        if rate is not None and not (math.isfinite(rate) and 1000 <= rate <= 100e9):
            raise LinkError(f"link {self.name}: bandwidth_bps must be in [1e3, 1e11], got {rate:g}")
        for end in (self.a, self.b):
            if not 1 <= len(end.interface.encode()) <= 15:
                raise LinkError(f"link {self.name}: interface name must have 1 to 15 bytes, got {end.interface!r}")

    @property
    def name(self) -> str:
        """``a-b`` by interface."""
        return f"{self.a.interface}-{self.b.interface}"

    @property
    def impaired(self) -> bool:
        """Whether it asks for delay, jitter or loss."""
        return self.delay_s > 0 or self.jitter_s > 0 or self.loss_ratio > 0


class LinkStats(NamedTuple):
    """Counters since the link was made (bytes with Ethernet headers) and what waits now.

    ``drops``: full queue or interface down. ``lost``: by the declared loss; netem counts it as drops.
    """

    bytes_ab: int
    bytes_ba: int
    packets_ab: int
    packets_ba: int
    drops_ab: int
    drops_ba: int
    lost_ab: int
    lost_ba: int
    backlog_ab_bytes: int
    backlog_ba_bytes: int


@functools.cache
def has_qdisc(kind: Literal["netem", "htb"]) -> bool:
    """Whether the kernel can do it, tried in an empty namespace that leaves nothing behind; cached."""

    def attempt() -> bool:
        with Netlink() as netlink:
            loopback = netlink.index("lo")
            try:
                if kind == "htb":
                    netlink.add_htb(loopback, 1)
                else:
                    netlink.set_netem(
                        loopback, ROOT, HTB, delay_s=0.01, jitter_s=0.0, loss_ratio=0.0, limit_packets=1, seed=1
                    )
            except NetlinkError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                    return False
                raise
        return True

    try:
        return in_new_netns(attempt)
    except OSError as error:
        raise LinkError(f"cannot find out whether the kernel has {kind}: {error.strerror}") from None


class _RelayProcess:
    """One relay program and the requests to it; it ends by itself when this process does."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._buffer = b""
        self._users = 0
        self._next = 0
        ours, theirs = socket.socketpair()
        self._socket = ours
        ours.settimeout(_ANSWER_TIMEOUT_S)
        program = Path(__file__).with_name("relay.py")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at the terminal is for the run, which then closes its links
            )
        # Before the journal knows it, a crash of this process closes the socket and ends the relay.
        self._entry = journal.record("process", pid=self._process.pid, start_ticks=start_ticks(self._process.pid) or 0)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def add(self, a: int, b: int, parameters: dict[str, Any]) -> int:
        """Join two TAP descriptors; the number of the link."""
        number = self._next
        self._next += 1
        self.request({"op": "add", "link": number, **parameters}, [a, b])
        self._users += 1
        return number

    def remove(self, number: int) -> None:
        """Take a link out; the process ends with its last one."""
        self._users -= 1
        if self._users > 0 and self.alive:
            self.request({"op": "remove", "link": number})
        elif self._users <= 0:
            self.close()

    def request(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Ask and wait for the answer; LinkError when the relay died or refuses."""
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(message).encode() + b"\n"], list(descriptors))
                while b"\n" not in self._buffer:
                    data = self._socket.recv(65536)
                    if not data:
                        raise ConnectionResetError
                    self._buffer += data
            except OSError as error:
                state = "does not answer" if self.alive else f"died (status {self._process.returncode})"
                raise LinkError(f"relay process {self.pid} {state}: {type(error).__name__}") from None
            line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LinkError(f"relay process {self.pid} refused {message['op']}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process; may be called twice."""
        self._socket.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._journal.done(self._entry)


class LinkHandle:
    """A link that runs. ``shaper_a`` shapes what leaves at a towards b, ``shaper_b`` the other way.

    Use the shapers for slice classes only; the rate of the whole link is set here.
    """

    def __init__(self, spec: LinkSpec, mechanism: Mechanism, journal: Journal, run_id: str) -> None:
        macs = [(end.mac or _mac(run_id, end, side)).lower() for end, side in ((spec.a, "a"), (spec.b, "b"))]
        self.spec = replace(spec, a=replace(spec.a, mac=macs[0]), b=replace(spec.b, mac=macs[1]))
        self.mechanism: Mechanism = mechanism
        self.up = True
        self.shaper_a = Shaper(spec.a.netns_pid, spec.a.interface, queue_packets=spec.queue_packets)
        self.shaper_b = Shaper(spec.b.netns_pid, spec.b.interface, queue_packets=spec.queue_packets)
        self._journal = journal
        self._alias = f"twinbed:{run_id}"
        self._entries: list[int] = []
        self._relay: _RelayProcess | None = None
        self._number = -1
        self._routes: list[tuple[End, Request]] = []
        # A pid may be given to another process later: its namespace is not ours.
        self._started = {end.netns_pid: start_ticks(end.netns_pid) for end in (spec.a, spec.b) if end.netns_pid}
        self._lock = threading.RLock()
        self._closed = False

    @property
    def name(self) -> str:
        """``a-b`` by interface."""
        return self.spec.name

    @property
    def relay_pid(self) -> int | None:
        """The process that carries the frames, for CPU accounting; None without a relay."""
        return self._relay.pid if self._relay else None

    @property
    def alive(self) -> bool:
        """Whether both interfaces exist and the relay, if any, runs."""
        if self._closed or (self._relay is not None and not self._relay.alive):
            return False
        try:
            return all(self._info(end) is not None for end in (self.spec.a, self.spec.b))
        except OSError:
            return False

    def set(
        self,
        *,
        bandwidth_bps: float | Literal["keep"] | None = "keep",
        delay_s: float | None = None,
        jitter_s: float | None = None,
        loss_ratio: float | None = None,
    ) -> None:
        """Change live, both directions; what is not given stays. ``bandwidth_bps=None`` takes the limit away.

        LinkError when a value is out of range or the link was made without ``impairable=True``.
        """
        with self._lock:
            before = self.spec
            spec = replace(
                before,
                bandwidth_bps=before.bandwidth_bps if bandwidth_bps == "keep" else bandwidth_bps,
                delay_s=before.delay_s if delay_s is None else delay_s,
                jitter_s=before.jitter_s if jitter_s is None else jitter_s,
                loss_ratio=before.loss_ratio if loss_ratio is None else loss_ratio,
            )
            if spec.impaired and self.mechanism == "veth":
                raise LinkError(
                    f"link {self.name}: it was made as a plain veth pair and cannot be given delay, jitter or loss "
                    "while running; make it with impairable=True"
                )
            self.spec = spec
            try:
                if spec.bandwidth_bps != before.bandwidth_bps:
                    self._apply_rate()
                if _impairment(spec) != _impairment(before):
                    self._apply_impairment()
            except (ShapingError, LinkError) as error:
                self.spec = before
                raise LinkError(f"link {self.name}: {error}") from None

    def set_state(self, up: bool) -> None:
        """Cut the link or join it again: both interfaces go down, so both ends lose their carrier.

        Routes through the interfaces, which the kernel forgets then, are put back when the link comes up.
        """
        with self._lock:
            if up == self.up:
                return
            try:
                if not up:
                    self._routes = [(end, route) for end in self._ends() for route in self._routes_of(end)]
                if self._relay is not None:
                    self._relay.request({"op": "state", "link": self._number, "up": up})
                for end in self._ends():
                    with self._netlink(end) as netlink:
                        netlink.send([set_link(end.interface, up=up)])
                self.up = up
                if up:
                    for end, route in self._routes:
                        with self._netlink(end) as netlink:
                            netlink.send([route])
                    self._routes = []
            except OSError as error:
                raise LinkError(f"link {self.name}: cannot go {'up' if up else 'down'}: {error.strerror}") from None

    def carried_bytes(self) -> tuple[int, int]:
        """Bytes carried from a to b and from b to a, as in :meth:`stats`, without asking the queues."""
        if self._relay is not None:
            stats = self.stats()
            return stats.bytes_ab, stats.bytes_ba
        try:
            return self._info(self.spec.b).rx_bytes, self._info(self.spec.a).rx_bytes
        except OSError as error:
            raise LinkError(f"link {self.name}: no counters: {error}") from None

    def stats(self) -> LinkStats:
        """Counters now; LinkError when an interface or the relay is gone."""
        with self._lock:
            try:
                infos = [self._info(end) for end in self._ends()]
                shaped = [
                    shaper.stats().get("link") if shaper.installed else None
                    for shaper in (self.shaper_a, self.shaper_b)
                ]
            except (OSError, ShapingError) as error:
                raise LinkError(f"link {self.name}: no counters: {error}") from None
            # The interface counts what it could not send, HTB what found a full queue.
            drops = [info.tx_dropped + (one.drops if one else 0) for info, one in zip(infos, shaped, strict=True)]
            backlog = [one.backlog_bytes if one else 0 for one in shaped]
            lost = [0, 0]
            if self._relay is not None:
                answer = self._relay.request({"op": "stats", "link": self._number})
                ways = [answer["a2b"], answer["b2a"]]
                drops = [one + way["drops"] for one, way in zip(drops, ways, strict=True)]
                backlog = [one + way["backlog_bytes"] for one, way in zip(backlog, ways, strict=True)]
                lost = [way["lost"] for way in ways]
                carried = [(way["bytes"], way["packets"]) for way in ways]
            else:
                # The receiving end counts what arrived.
                carried = [(info.rx_bytes, info.rx_packets) for info in reversed(infos)]
            return LinkStats(*(carried[0][0], carried[1][0], carried[0][1], carried[1][1]), *drops, *lost, *backlog)

    def replug(self, which_end: Literal["a", "b"], new_netns_pid: int) -> tuple[End, ...]:
        """Put one end into the namespace of a restarted container, with its old name, MAC and shaping.

        Returns the ends that are new interfaces and so need their addresses and routes again: with a relay
        that one, else both, because a veth pair dies as a whole. Open vSwitch does not notice that a port's
        interface is a new one: remove the port, add it in a second transaction, then restore its shaper.
        """
        if which_end not in ("a", "b"):
            raise LinkError(f"link {self.name}: end must be one of a, b, got {which_end!r}")
        with self._lock:
            old = self.spec.a if which_end == "a" else self.spec.b
            new = replace(old, netns_pid=new_netns_pid)
            other = self.spec.b if which_end == "a" else self.spec.a
            self.spec = replace(self.spec, a=new) if which_end == "a" else replace(self.spec, b=new)
            shaper = self.shaper_a if which_end == "a" else self.shaper_b
            shaper.netns_pid = new_netns_pid
            self._started[new_netns_pid] = start_ticks(new_netns_pid)
            try:
                if self._relay is not None:
                    descriptor = open_tap(new.interface, netns_pid=new_netns_pid)
                    try:
                        self._relay.request({"op": "replug", "link": self._number, "end": which_end}, [descriptor])
                    finally:
                        os.close(descriptor)
                    self._configure(new)
                    shaper.restore()
                    return (new,)
                self._delete(other)
                self._make_veth()
                for end in self._ends():
                    self._configure(end)
                self.shaper_a.restore()
                self.shaper_b.restore()
                return (self.spec.a, self.spec.b)
            except (OSError, ShapingError, LinkError) as error:
                raise LinkError(f"link {self.name}: cannot replug end {which_end}: {error}") from None

    def close(self) -> None:
        """Remove the link; may be called twice, and after its containers died."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._relay is not None:
                with contextlib.suppress(LinkError):  # a dead relay has no TAPs left
                    self._relay.remove(self._number)
            else:
                for end in self._ends():
                    self._delete(end)
            self._journal.done(*self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- bring-up, by make_links ----------------------------------------------------------------

    def _things(self) -> list[tuple[str, dict[str, Any]]]:
        """What the journal must know: interfaces elsewhere go with their namespace."""
        here = [end for end in self._ends() if end.netns_pid is None]
        # The MAC tells the interface from another of the same name, also before it has its alias.
        return [("interface", {"name": end.interface, "alias": self._alias, "mac": end.mac}) for end in here]

    def _create(self, relay: _RelayProcess | None) -> None:
        if relay is None:
            self._make_veth()
        else:
            a, b = self._ends()
            first = open_tap(a.interface, netns_pid=a.netns_pid)
            try:
                second = open_tap(b.interface, netns_pid=b.netns_pid)
                try:
                    self._number = relay.add(first, second, self._relay_parameters())
                finally:
                    os.close(second)
            finally:
                os.close(first)
            self._relay = relay
        for end in self._ends():
            self._configure(end)
        if self.spec.bandwidth_bps is not None:
            self._apply_rate()
        if self.mechanism == "netem":
            self._apply_impairment()

    def _make_veth(self) -> None:
        first, second = (VethEnd(end.interface, end.mac, netns_pid=end.netns_pid) for end in self._ends())
        with Netlink() as netlink:
            netlink.send([add_veth(first, second, mtu=self.spec.mtu)])

    def _configure(self, end: End) -> None:
        offloads_off([end.interface], netns_pid=end.netns_pid)
        tap = self._relay is not None
        mtu, mac = (self.spec.mtu, end.mac) if tap else (None, None)
        with Netlink(end.netns_pid) as netlink:
            netlink.send([set_link(end.interface, up=self.up, mtu=mtu, mac=mac, alias=self._alias)])

    def _apply_rate(self) -> None:
        # Without HTB the relay serialises; has_qdisc was asked when the mechanism was chosen.
        if has_qdisc("htb"):
            self.shaper_a.set_rate(self.spec.bandwidth_bps)
            self.shaper_b.set_rate(self.spec.bandwidth_bps)
        elif self._relay is not None:
            self._relay.request({"op": "set", "link": self._number, **self._relay_parameters()})

    def _apply_impairment(self) -> None:
        if self._relay is not None:
            self._relay.request({"op": "set", "link": self._number, **self._relay_parameters()})
        elif self.mechanism == "netem":
            spec = self.spec
            for shaper, side in ((self.shaper_a, "a2b"), (self.shaper_b, "b2a")):
                wanted = Impairment(*_impairment(spec), _stream(spec.seed, side))
                shaper.set_impairment(wanted if spec.impaired else None)

    def _relay_parameters(self) -> dict[str, Any]:
        spec = self.spec
        common = {
            "rate_bps": None if has_qdisc("htb") else spec.bandwidth_bps,
            "delay_s": spec.delay_s,
            "jitter_s": spec.jitter_s,
            "loss_ratio": spec.loss_ratio,
            "queue_packets": spec.queue_packets,
            "reorder": spec.reorder,
        }
        return {side: common | {"seed": _stream(spec.seed, side)} for side in ("a2b", "b2a")}

    def _ends(self) -> tuple[End, End]:
        return self.spec.a, self.spec.b

    def _netlink(self, end: End) -> Netlink:
        if end.netns_pid is not None and start_ticks(end.netns_pid) != self._started[end.netns_pid]:
            raise ProcessLookupError(errno.ESRCH, f"process {end.netns_pid}, which held {end.interface}, is gone")
        return Netlink(end.netns_pid)

    def _delete(self, end: End) -> None:
        """Remove an interface if it is there and still ours."""
        with contextlib.suppress(OSError), self._netlink(end) as netlink:
            if netlink.link(end.interface).alias in (self._alias, ""):
                netlink.send([delete_link(end.interface)])

    def _info(self, end: End) -> LinkInfo:
        with self._netlink(end) as netlink:
            return netlink.link(end.interface)

    def _routes_of(self, end: End) -> list[Request]:
        if end.netns_pid is None:
            return []
        with self._netlink(end) as netlink:
            return netlink.routes(netlink.index(end.interface))


def make_link(
    a: End,
    b: End,
    *,
    journal: Journal,
    run_id: str,
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    jitter_s: float = 0.0,
    loss_ratio: float = 0.0,
    seed: int = 0,
    mtu: int = 1500,
    impairable: bool = False,
) -> LinkHandle:
    """One link, both ends up; see :class:`LinkSpec` for the values and :func:`make_links` for many."""
    spec = LinkSpec(
        a=a,
        b=b,
        bandwidth_bps=bandwidth_bps,
        delay_s=delay_s,
        jitter_s=jitter_s,
        loss_ratio=loss_ratio,
        seed=seed,
        mtu=mtu,
        impairable=impairable,
    )
    return make_links([spec], journal=journal, run_id=run_id)[0]


def make_links(specs: Sequence[LinkSpec], *, journal: Journal, run_id: str) -> list[LinkHandle]:
    """Links in the order given, journalled first with one disk flush; on failure none is left."""
    handles = [LinkHandle(spec, _mechanism(spec), journal, run_id) for spec in specs]
    things = [handle._things() for handle in handles]
    numbers = iter(journal.record_many([thing for some in things for thing in some]))
    for handle, some in zip(handles, things, strict=True):
        handle._entries = [next(numbers) for _ in some]
    relayed = sum(handle.mechanism == "relay" for handle in handles)
    relays: list[_RelayProcess] = []
    try:
        relays.extend(_RelayProcess(journal) for _ in range(math.ceil(relayed / LINKS_PER_RELAY)))
        turn = _round_robin(relays)
        for handle in handles:
            try:
                handle._create(next(turn) if handle.mechanism == "relay" else None)
            except (OSError, ShapingError, LinkError) as error:
                raise LinkError(f"link {handle.name}: {_reason(error)}") from None
    except BaseException:
        close_links(handles)
        for relay in relays:
            relay.close()
        raise
    return handles


def close_links(handles: Sequence[LinkHandle]) -> None:
    """Remove many links, ten times as fast as one by one; those closed already are left alone."""
    pairs: dict[int | None, list[str]] = {}
    for handle in handles:
        for end in () if handle._closed else handle._ends():
            with contextlib.suppress(OSError):
                if handle._info(end).alias in (handle._alias, ""):
                    pairs.setdefault(end.netns_pid, []).append(end.interface)
                    if handle.mechanism != "relay":  # a veth goes with its peer, a TAP does not
                        break
    for netns_pid, names in pairs.items():
        with contextlib.suppress(OSError), Netlink(netns_pid) as netlink:
            netlink.delete_links(names)
    for handle in handles:
        handle.close()


def _mechanism(spec: LinkSpec) -> Mechanism:
    chosen = spec.mechanism
    if chosen is None:
        needed = spec.impaired or spec.impairable or (spec.bandwidth_bps is not None and not has_qdisc("htb"))
        if not needed:
            return "veth"
        return "netem" if has_qdisc("netem") and has_qdisc("htb") else "relay"
    if chosen == "netem" and not has_qdisc("netem"):
        raise LinkError(f"link {spec.name}: this kernel has no netem; leave mechanism out or use relay")
    if chosen == "veth" and (spec.impaired or spec.impairable):
        raise LinkError(f"link {spec.name}: a plain veth pair has no delay, jitter or loss; use netem or relay")
    return chosen


def _round_robin(relays: Sequence[_RelayProcess]) -> Iterator[_RelayProcess]:
    while True:
        yield from relays


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _impairment(spec: LinkSpec) -> tuple[float, float, float]:
    return spec.delay_s, spec.jitter_s, spec.loss_ratio


def _stream(seed: int, side: str) -> int:
    """A seed of its own for each direction of a link."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{side}".encode(), digest_size=6).digest())


def _mac(run_id: str, end: End, side: str) -> str:
    digest = hashlib.blake2b(f"{run_id}/{side}/{end.netns_pid}/{end.interface}".encode(), digest_size=5).digest()
    return "02:" + digest.hex(":")
