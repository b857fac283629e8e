"""Nodes, links and slices as frozen data.

A :class:`Topology` describes a network; it is not a running one. Everything is in SI units with
the unit in the name; parsing of "10ms" or "20Mbps" happens in the scenario loader only.
Constructors check their own values; :class:`Topology` checks that the parts fit together.
Every failure is a :class:`TopologyError` that says what, got, allowed, where.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,30}")
DEFAULT_WORK_NS_PER_BIT = 40.0
MAX_TASKS = 64
MAX_GUEST_TASKS = 16

Band = Literal["mmwave", "sub6"]
BANDS: tuple[Band, ...] = ("sub6", "mmwave")


class TopologyError(ValueError):
    """A topology that cannot exist; the message names the element, the value and what is allowed."""


def _check_name(what: str, name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise TopologyError(
            f"{what} name must match {NAME_PATTERN.pattern} (lower case, digits, hyphens), got {name!r}"
        )


def _check_range(where: str, quantity: str, value: float | None, low: float, high: float = math.inf) -> None:
    if value is None:
        return
    if not (math.isfinite(value) and low <= value <= high):
        top = "inf)" if math.isinf(high) else f"{high:g}]"
        raise TopologyError(f"{where}: {quantity} must be in [{low:g}, {top}, got {value:g}")


def _check_whole_mib(where: str, memory_mib: float | None) -> None:
    """The vManager assigns whole MiB: 1 GB would lose two thirds of one."""
    if memory_mib is not None and memory_mib % 1:
        raise TopologyError(f"{where}: memory_mib must be a whole number of MiB, got {memory_mib:g}")


@dataclass(frozen=True, kw_only=True)
class Node:
    """What every node has. ``image`` None means TwinBed's own base image; limits None mean unlimited."""

    kind: ClassVar[str] = ""
    name: str
    image: str | None = None
    cpu_millicores: float | None = None
    memory_mib: float | None = None

    def __post_init__(self) -> None:
        _check_name("node", self.name)
        _check_range(f"node {self.name}", "cpu_millicores", self.cpu_millicores, 10)
        _check_range(f"node {self.name}", "memory_mib", self.memory_mib, 8)


@dataclass(frozen=True, kw_only=True)
class Ue(Node):
    """A container that carries ``count`` UEs of one slice, each with its own PDU session and address.

    ``cqi_script`` is ((time_s, cqi), ...), a step function that replaces the channel model.
    ``always_attached`` UEs attach at time 0; the others attach when their first flow starts and
    detach when their last one ends.
    """

    kind: ClassVar[str] = "ue"
    slice: str
    count: int = 1
    distance_m: float = 100.0
    speed_mps: float = 0.8
    cqi_script: tuple[tuple[float, int], ...] = ()
    always_attached: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"ue {self.name}"
        _check_range(where, "count", self.count, 1, 1000)
        _check_range(where, "distance_m", self.distance_m, 10, 5000)
        _check_range(where, "speed_mps", self.speed_mps, 0, 150)
        for time_s, cqi in self.cqi_script:
            _check_range(where, "cqi_script time_s", time_s, 0)
            _check_range(where, "cqi", cqi, 0, 15)

    @property
    def ue_ids(self) -> tuple[str, ...]:
        """Identifiers of the single UEs: ``name.1`` ... ``name.count``."""
        return tuple(f"{self.name}.{index}" for index in range(1, self.count + 1))


@dataclass(frozen=True, kw_only=True)
class Gnb(Node):
    """A gNB: one carrier of ``prb_total`` PRBs, a MAC scheduler, and work per processed bit.

    ``work_ns_per_bit`` is CPU time spent per user-plane bit, which makes CPU millicores limit
    throughput (MicroOpt's testbed: about 120 ns per bit; the default is scaled to small hosts).
    """

    kind: ClassVar[str] = "gnb"
    prb_total: int = 106
    subcarrier_khz: int = 30
    carrier_ghz: float = 3.5
    tx_power_dbm: float = 43.0
    path_loss: Literal["uma", "umi"] = "uma"
    scheduler: Literal["pf", "rr"] = "pf"
    work_ns_per_bit: float = DEFAULT_WORK_NS_PER_BIT
    queue_bytes: int = 300_000

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"gnb {self.name}"
        _check_range(where, "prb_total", self.prb_total, 1, 275)
        if self.subcarrier_khz not in (15, 30, 60):
            raise TopologyError(f"{where}: subcarrier_khz must be one of 15, 30, 60, got {self.subcarrier_khz}")
        _check_range(where, "carrier_ghz", self.carrier_ghz, 0.5, 100)
        _check_range(where, "tx_power_dbm", self.tx_power_dbm, -30, 80)
        if self.path_loss not in ("uma", "umi"):
            raise TopologyError(f"{where}: path_loss must be one of uma, umi, got {self.path_loss}")
        if self.scheduler not in ("pf", "rr"):
            raise TopologyError(f"{where}: scheduler must be one of pf, rr, got {self.scheduler}")
        _check_range(where, "work_ns_per_bit", self.work_ns_per_bit, 0, 10_000)
        _check_range(where, "queue_bytes", self.queue_bytes, 1500)


@dataclass(frozen=True, kw_only=True)
class Upf(Node):
    """The UPF of one slice: terminates N3 (GTP-U), forwards to N6."""

    kind: ClassVar[str] = "upf"
    slice: str


@dataclass(frozen=True, kw_only=True)
class PeriodicTask:
    """A job every ``period_s`` that takes ``work_s`` of CPU time on an undisturbed processor of its node."""

    period_s: float
    work_s: float

    def __post_init__(self) -> None:
        _check_range("task", "period_s", self.period_s, 0.001, 10)
        _check_range("task", "work_s", self.work_s, 0, 10)


def _check_tasks(where: str, tasks: tuple[PeriodicTask, ...]) -> None:
    if len(tasks) > MAX_TASKS:
        raise TopologyError(f"{where}: at most {MAX_TASKS} tasks are allowed, got {len(tasks)}")


@dataclass(frozen=True, kw_only=True)
class App(Node):
    """An application behind N6.

    ``stream``: sends constant-rate UDP to the UEs that ask for it (video-like).
    ``request``: HTTP request/response, ``cpu_ms_per_request`` of CPU time each, behind a load
    balancer over ``replicas`` containers.
    ``telemetry``: UDP sink for uplink reports.
    """

    kind: ClassVar[str] = "app"
    service: Literal["stream", "request", "telemetry"]
    cpu_ms_per_request: float = 2.0
    response_bytes: int = 2000
    replicas: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"app {self.name}"
        if self.service not in ("stream", "request", "telemetry"):
            raise TopologyError(f"{where}: service must be one of stream, request, telemetry, got {self.service}")
        _check_range(where, "cpu_ms_per_request", self.cpu_ms_per_request, 0, 10_000)
        _check_range(where, "response_bytes", self.response_bytes, 1, 10_000_000)
        _check_range(where, "replicas", self.replicas, 1, 16)
        if self.replicas > 1 and self.service != "request":
            raise TopologyError(f"{where}: replicas > 1 needs service request, got service {self.service}")


@dataclass(frozen=True, kw_only=True)
class EdgeServer:
    """What the partitions of a topology may have in all, under one vManager.

    ``cpus``: processors of the server, against which reservations of CPU time are admitted where nothing runs; an
    emulation has those of its host.
    """

    cores: int = 4
    memory_mib: int = 2048
    cpus: int = 2

    def __post_init__(self) -> None:
        _check_range("edge", "cores", self.cores, 1, 256)
        _check_range("edge", "memory_mib", self.memory_mib, 64, 1_048_576)
        _check_whole_mib("edge", self.memory_mib)
        _check_range("edge", "cpus", self.cpus, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class Partition(Node):
    """A partition of the edge server: an aarch64 guest under the vManager (NANCY D3.4 §3), ``memory_mib`` large.

    ``critical`` ones have priority over the others. ``isolated`` False makes it a plain virtual machine: no
    limits, no reserved processor, for comparison. ``vnf``: what it offers behind N6, as an :class:`App` of that
    service does. ``tasks`` run beside it, measured inside the guest: ``task:NAME.1`` ... ``kernel``, ``rootfs`` and
    ``dtb`` are files of the user's own in place of the guest image; what runs in another ``rootfs`` is the user's.
    """

    kind: ClassVar[str] = "partition"
    response_bytes: ClassVar[int] = 8
    """Of the VNF runtime's answer to a request, about."""
    memory_mib: float | None = 128
    cores: int = 1
    critical: bool = False
    isolated: bool = True
    vnf: Literal["none", "stream", "request"] = "none"
    cpu_ms_per_request: float = 2.0
    tasks: tuple[PeriodicTask, ...] = ()
    kernel: str | None = None
    rootfs: str | None = None
    dtb: str | None = None

    @property
    def service(self) -> Literal["stream", "request"]:
        """What UEs get from it, as from an application; TopologyError when it offers nothing."""
        if self.vnf == "none":
            raise TopologyError(f"partition {self.name}: vnf is none, so that nobody can use it")
        return self.vnf

    def __post_init__(self) -> None:
        where = f"partition {self.name}"
        _check_range(where, "memory_mib", self.memory_mib, 64, 65536)  # first: other nodes may have less
        super().__post_init__()
        _check_whole_mib(where, self.memory_mib)
        _check_range(where, "cores", self.cores, 1, 8)
        _check_range(where, "cpu_ms_per_request", self.cpu_ms_per_request, 0, 10_000)
        if self.vnf not in ("none", "stream", "request"):
            raise TopologyError(f"{where}: vnf must be one of none, stream, request, got {self.vnf}")
        if self.critical and not self.isolated:
            raise TopologyError(f"{where}: a critical partition is isolated")
        if self.cpu_millicores is not None and (self.critical or not self.isolated):
            why = "critical: its CPU time is never limited" if self.critical else "not isolated: nothing limits it"
            raise TopologyError(f"{where}: cpu_millicores cannot be given, the partition is {why}")
        if self.rootfs is not None and (self.tasks or self.vnf != "none"):
            raise TopologyError(f"{where}: rootfs: tasks and vnf are the VNF runtime's, which is not in it")
        if len(self.tasks) > MAX_GUEST_TASKS:
            raise TopologyError(
                f"{where}: at most {MAX_GUEST_TASKS} tasks are allowed in a guest, got {len(self.tasks)}"
            )
        for number, task in enumerate(self.tasks, start=1):
            if task.work_s > task.period_s:
                raise TopologyError(
                    f"{where}: tasks: work of task {number} must be at most its period in a guest, "
                    f"{task.period_s:g} s, got {task.work_s:g} s"
                )
        _check_tasks(where, self.tasks)


@dataclass(frozen=True, kw_only=True)
class Switch(Node):
    """An OpenFlow switch (Open vSwitch)."""

    kind: ClassVar[str] = "switch"


@dataclass(frozen=True, kw_only=True)
class IabNode(Switch):
    """An IAB node: a cell without fibre that reaches the donors over links with a band."""

    kind: ClassVar[str] = "iab-node"


@dataclass(frozen=True, kw_only=True)
class IabDonor(Switch):
    """An IAB donor: where the wired network begins."""

    kind: ClassVar[str] = "iab-donor"


@dataclass(frozen=True, kw_only=True)
class Container(Node):
    """Any container; ``command`` runs in it, and a thread for each of ``tasks``: ``task:NAME.1`` ..."""

    kind: ClassVar[str] = "container"
    command: str | None = None
    tasks: tuple[PeriodicTask, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tasks(f"container {self.name}", self.tasks)


@dataclass(frozen=True, kw_only=True)
class Host(Node):
    """A bare network namespace."""

    kind: ClassVar[str] = "host"


@dataclass(frozen=True, kw_only=True)
class Link:
    """A bidirectional link; bandwidth, delay, jitter and loss hold in each direction.

    ``bandwidth_bps`` None means not limited. A link with a ``band`` is a wireless backhaul link between
    IAB nodes and donors: it points from ``a`` to ``b``, towards the donors, has a bandwidth, and carries
    backhaul flows only. Each band may join the same two nodes once.
    """

    a: str
    b: str
    band: Band | None = None
    a_interface: str | None = None
    b_interface: str | None = None
    bandwidth_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss_ratio: float = 0.0

    def __post_init__(self) -> None:
        where = f"link {self.name}"
        if self.a == self.b:
            raise TopologyError(f"{where}: the two ends must differ")
        _check_range(where, "bandwidth_bps", self.bandwidth_bps, 10_000)
        _check_range(where, "delay_s", self.delay_s, 0, 60)
        _check_range(where, "jitter_s", self.jitter_s, 0, 60)
        if self.jitter_s > self.delay_s:
            # Uniform in delay ± jitter: no packet arrives before it was sent.
            raise TopologyError(
                f"{where}: jitter_s must be in [0, {self.delay_s:g}] (its delay), got {self.jitter_s:g}"
            )
        _check_range(where, "loss_ratio", self.loss_ratio, 0, 1)
        if self.band is not None and self.band not in BANDS:
            raise TopologyError(f"{where}: band must be one of {', '.join(BANDS)}, got {self.band}")
        if self.band is not None and self.bandwidth_bps is None:
            raise TopologyError(f"{where}: bandwidth_bps is missing; a link with a band has one")
        for interface in (self.a_interface, self.b_interface):
            if interface is not None and not re.fullmatch(r"[a-z][a-z0-9-]{0,14}", interface):
                raise TopologyError(f"{where}: interface must be 1 to 15 of a-z, 0-9, '-', got {interface!r}")

    @property
    def name(self) -> str:
        """``a-b``, the two ends in the order of the file, or ``a-b@band``."""
        return f"{self.a}-{self.b}" if self.band is None else f"{self.a}-{self.b}@{self.band}"

    @property
    def impaired(self) -> bool:
        """Whether the link declares delay, jitter or loss."""
        return self.delay_s > 0 or self.jitter_s > 0 or self.loss_ratio > 0


@dataclass(frozen=True, kw_only=True)
class Sla:
    """What a slice was promised. None means not promised.

    ``q_thresh_bps``: QoS threshold, throughput per active user (MicroOpt §III, equation 1).
    ``beta_thresh``: highest accepted QoS degradation, 0 to 1.
    ``latency_bound_s``: bound on the 95th percentile of the one-way delay.
    """

    q_thresh_bps: float | None = None
    beta_thresh: float | None = None
    latency_bound_s: float | None = None

    def __post_init__(self) -> None:
        _check_range("sla", "q_thresh_bps", self.q_thresh_bps, 0)
        _check_range("sla", "beta_thresh", self.beta_thresh, 0, 1)
        _check_range("sla", "latency_bound_s", self.latency_bound_s, 0)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A network slice: S-NSSAI, SLA, and its resources at time 0 in each segment.

    ``prb_share``: share of each gNB's PRBs (0 to 1). ``cpu_millicores``: CPU of the slice's part of
    each gNB. ``bandwidth_bps``: the slice's transport rate in each direction. None = not limited.
    """

    name: str
    sst: int
    sd: str = "000001"
    sla: Sla = field(default_factory=Sla)
    prb_share: float
    cpu_millicores: float | None = None
    bandwidth_bps: float | None = None

    def __post_init__(self) -> None:
        _check_name("slice", self.name)
        where = f"slice {self.name}"
        _check_range(where, "sst", self.sst, 0, 255)
        if not re.fullmatch(r"[0-9a-fA-F]{6}", self.sd):
            raise TopologyError(f"{where}: sd must be six hexadecimal digits, got {self.sd!r}")
        _check_range(where, "prb_share", self.prb_share, 0, 1)
        _check_range(where, "cpu_millicores", self.cpu_millicores, 10)
        _check_range(where, "bandwidth_bps", self.bandwidth_bps, 10_000)


@dataclass(frozen=True)
class BackhaulPath:
    """A route of one band from an IAB node to a donor, both included, against no link's direction."""

    band: Band
    nodes: tuple[str, ...]

    @property
    def links(self) -> tuple[str, ...]:
        """Names of the links along the path."""
        return tuple(f"{a}-{b}@{self.band}" for a, b in itertools.pairwise(self.nodes))


@dataclass(frozen=True, kw_only=True)
class BackhaulFlow:
    """The traffic of one IAB node to ``sink``, a host that every donor at the end of a path has a wired link to.

    It takes one of ``paths`` at a time, at first ``paths[path_index]``; the knob ``path_index`` changes it.
    ``demand_bps`` is what its source sends unless traffic is declared for it.
    """

    name: str
    source: str
    sink: str
    paths: tuple[BackhaulPath, ...]
    path_index: int = 0
    demand_bps: float = 0.0

    def __post_init__(self) -> None:
        _check_name("backhaul flow", self.name)
        where = f"backhaul flow {self.name}"
        _check_range(where, "demand_bps", self.demand_bps, 0)
        if not self.paths:
            raise TopologyError(f"{where}: has no path")
        for number, path in enumerate(self.paths):
            if path in self.paths[:number]:
                raise TopologyError(f"{where}: path {number} is the same as path {self.paths.index(path)}")
        last = len(self.paths) - 1
        index: object = self.path_index
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= last:
            raise TopologyError(f"{where}: path_index must be a whole number in [0, {last}], got {index!r}")

    def links(self, path_index: int) -> tuple[str, ...]:
        """Names of the links that the flow crosses on one of its paths: those of the band."""
        return self.paths[path_index].links


_N = TypeVar("_N", bound=Node)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Nodes, links and slices that fit together.

    ``slicing`` False means that the slices are only labels: one PRB pool, one gNB CPU budget and one
    transport queue for all of them (what a network without a slicer does). ``backhaul``: the flows of the
    IAB nodes; links with a band of one band never form a cycle.
    """

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    slices: tuple[Slice, ...] = ()
    slicing: bool = True
    backhaul: tuple[BackhaulFlow, ...] = ()
    edge: EdgeServer = EdgeServer()

    def __post_init__(self) -> None:
        _check_name("topology", self.name)
        self._check_unique("node", [node.name for node in self.nodes])
        self._check_unique("slice", [slice_.name for slice_ in self.slices])
        self._check_unique("link", [link.name for link in self.links])
        names = {node.name for node in self.nodes}
        for link in self.links:
            for end in (link.a, link.b):
                if end not in names:
                    raise TopologyError(f"link {link.name}: no node named {end}; nodes: {', '.join(sorted(names))}")
        slice_names = {slice_.name for slice_ in self.slices}
        for node in self.nodes:
            if isinstance(node, Ue | Upf) and node.slice not in slice_names:
                known = ", ".join(sorted(slice_names)) or "none"
                raise TopologyError(f"{node.kind} {node.name}: no slice named {node.slice}; slices: {known}")
        total = sum(slice_.prb_share for slice_ in self.slices)
        if total > 1 + 1e-9:
            raise TopologyError(f"slices: the prb_share of all slices must add up to at most 1, got {total:g}")
        self._check_partitions()
        self._check_bands()
        self._check_unique("backhaul flow", [flow.name for flow in self.backhaul])
        for flow in self.backhaul:
            self._check_backhaul(flow)

    def _check_partitions(self) -> None:
        """All partitions fit into the edge server, at once."""
        used = {"cores": 0.0, "memory_mib": 0.0}
        for node in self.of_kind(Partition):
            for what, unit in (("cores", ""), ("memory_mib", " MiB")):
                wanted, total = getattr(node, what), getattr(self.edge, what)
                used[what] += wanted
                where = f"partition {node.name}: {what}: the edge server has {total:g}{unit}"
                if wanted > total:
                    raise TopologyError(f"{where}, got {wanted:g}{unit}")
                if used[what] > total:
                    raise TopologyError(f"{where}, and with this one partitions have {used[what]:g}{unit}")

    def _check_bands(self) -> None:
        """Links with a band join IAB nodes and donors and lead nowhere in circles."""
        iab = {node.name for node in self.nodes if isinstance(node, IabNode | IabDonor)}
        for band in BANDS:
            after: dict[str, list[str]] = {}
            for link in self.links:
                if link.band == band:
                    for end in (link.a, link.b):
                        if end not in iab:
                            raise TopologyError(
                                f"link {link.name}: a link with a band joins nodes of kind iab-node and iab-donor, "
                                f"got {end} of kind {self.node(end).kind}"
                            )
                    after.setdefault(link.a, []).append(link.b)
            waits = {name: len(following) for name, following in after.items()}
            before: dict[str, list[str]] = {}
            for name, following in after.items():
                for other in following:
                    before.setdefault(other, []).append(name)
            free = [name for name in before if name not in waits]
            while free:
                for name in before.get(free.pop(), ()):
                    waits[name] -= 1
                    if not waits[name]:
                        free.append(name)
            if stuck := [name for name, count in waits.items() if count]:
                # Everything stuck leads to a cycle: follow links until a node repeats.
                trail = [stuck[0]]
                while len(set(trail)) == len(trail):
                    trail.append(next(name for name in after[trail[-1]] if waits.get(name)))
                cycle = " > ".join(trail[trail.index(trail[-1]) :])
                raise TopologyError(f"links of band {band}: cycle {cycle}; links must point towards a donor")

    def _check_backhaul(self, flow: BackhaulFlow) -> None:
        where = f"backhaul flow {flow.name}"
        nodes = {node.name: node for node in self.nodes}
        links = {link.name for link in self.links}
        for what, name, kind in (("source", flow.source, IabNode), ("sink", flow.sink, Host)):
            if name not in nodes or not isinstance(nodes[name], kind):
                known = ", ".join(node.name for node in self.of_kind(kind)) or "none"
                raise TopologyError(f"{where}: {what} must be a node of kind {kind.kind} ({known}), got {name}")
        for number, path in enumerate(flow.paths):
            at = f"{where}: path {number}"
            if path.band not in BANDS:
                raise TopologyError(f"{at}: band must be one of {', '.join(BANDS)}, got {path.band}")
            if len(path.nodes) < 2 or path.nodes[0] != flow.source:
                got = " > ".join(path.nodes) or "nothing"
                raise TopologyError(f"{at}: must lead from {flow.source} to a donor, got {got}")
            for link in path.links:
                if link not in links:
                    raise TopologyError(f"{at}: no link {link}")
            donor = path.nodes[-1]
            if not isinstance(nodes[donor], IabDonor):
                raise TopologyError(f"{at}: must end at a node of kind iab-donor, ends at {donor}")
            if not links & {f"{donor}-{flow.sink}", f"{flow.sink}-{donor}"}:
                raise TopologyError(f"{at}: donor {donor} has no wired link to the sink {flow.sink}")

    @staticmethod
    def _check_unique(what: str, names: list[str]) -> None:
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise TopologyError(f"{what} {name}: the name is used twice")
            seen.add(name)

    def node(self, name: str) -> Node:
        """The node of this name; KeyError when there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def services(self) -> dict[str, App | Partition]:
        """What UEs can use: applications, and partitions whose VNF serves them."""
        return {
            node.name: node
            for node in self.nodes
            if isinstance(node, App) or (isinstance(node, Partition) and node.vnf != "none")
        }

    @property
    def tasks(self) -> dict[str, PeriodicTask]:
        """The periodic tasks of containers and partitions: ``NODE.1``, ``NODE.2`` ... in file order."""
        return {
            f"{node.name}.{number}": task
            for node in self.nodes
            if isinstance(node, Container | Partition)
            for number, task in enumerate(node.tasks, start=1)
        }

    def slice_named(self, name: str) -> Slice:
        """The slice of this name; KeyError when there is none."""
        for slice_ in self.slices:
            if slice_.name == name:
                return slice_
        raise KeyError(name)

    def link_named(self, name: str) -> Link:
        """The link of this name, in either order of its ends; KeyError when there is none."""
        for link in self.links:
            suffix = "" if link.band is None else f"@{link.band}"
            if name in (link.name, f"{link.b}-{link.a}{suffix}"):
                return link
        raise KeyError(name)

    def of_kind(self, kind: type[_N]) -> Iterator[_N]:
        """All nodes of one class, in file order."""
        for node in self.nodes:
            if isinstance(node, kind):
                yield node

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Names of the nodes that share a link with ``name``, in file order; links with a band do not count."""
        return tuple(
            link.b if link.a == name else link.a
            for link in self.links
            if link.band is None and name in (link.a, link.b)
        )

    def backhaul_named(self, name: str) -> BackhaulFlow:
        """The backhaul flow of this name; KeyError when there is none."""
        for flow in self.backhaul:
            if flow.name == name:
                return flow
        raise KeyError(name)
