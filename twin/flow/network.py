"""What the flow model knows about a network: its state, which knobs change, and the lanes of traffic.

A lane is one direction of one flow. Its wired part crosses links, the slice's transport limit and
the CPUs of UPF, application and UE container; its gNB part takes PRBs and the CPU of the slice's
part of the gNB.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topologies.model import App, Gnb, Node, Partition, Slice, Topology, TopologyError, Ue
from topologies.paths import Route, default_path, parse_path, path_links, serving_gnb, slice_upf
from twin.backend import BackendError
from twin.deadline.admission import Admission
from twin.flow import constants as c
from twin.flow.guests import Guests
from twin.flow.tasks import Tasks
from twin.load import Direction, Flow, Load
from twin.ran.channel import Channel, carrier_bandwidth_hz, scripted_cqi

Array = NDArray[np.float64]
NOWHERE = -1
_MIB = 2**20


@dataclass
class SliceState:
    """Resources of a slice now; ``routes`` maps each gNB that serves it to the N3 route."""

    name: str
    upf: str
    prb_share: float
    cpu_millicores: float | None
    bandwidth_bps: float | None
    routes: dict[str, Route]
    demand_factor: float = 1.0


@dataclass
class NodeState:
    """Limits of a node now; None is not limited."""

    name: str
    cpu_millicores: float | None
    memory_mib: float | None
    replicas: int = 1
    up: bool = True


@dataclass
class LinkState:
    """A link now."""

    name: str
    bandwidth_bps: float | None
    delay_s: float
    jitter_s: float
    loss_ratio: float
    up: bool = True


@dataclass
class UeState:
    """One UE: where it belongs, its channel, and what actions fixed."""

    id: str
    group: str
    slice: str
    gnb: str
    channel: Channel
    script: tuple[tuple[float, int], ...]
    always_attached: bool
    forced_cqi: int | None = None
    forced_attached: bool | None = None

    def cqi(self, time_s: float) -> int:
        """Channel quality at a time: forced, scripted or of the channel model, in this order."""
        if self.forced_cqi is not None:
            return self.forced_cqi
        return scripted_cqi(self.script, time_s) if self.script else self.channel.cqi(time_s)


@dataclass(frozen=True)
class Lane:
    """One direction of a flow. ``n6`` is the route UPF to application at first, ``radio`` the declared radio link."""

    flow: Flow
    direction: Direction
    packet_bytes: int
    bytes_per_request: float
    ue: str
    n6: Route
    radio: str | None

    @property
    def packet_bits(self) -> float:
        return self.packet_bytes * 8.0


@dataclass(frozen=True)
class Wired:
    """The wired resources: ``usage`` of shape (resources, lanes) in units of capacity per bit/s of IP.

    Each has one queue, first in, first out, for all lanes that use it. A slice's transport limit has
    a queue of its own; links and CPUs are shared by the slices. ``crossed``: where usage is above 0.
    ``places``: number of each resource, which stays while rows come and go; ``row_at``: row of each
    place, ``NOWHERE`` for one that no lane crosses now, and of ``NOWHERE`` itself.
    """

    names: tuple[tuple[str, ...], ...]
    usage: Array
    capacity: Array
    crossed: NDArray[np.bool_]
    places: NDArray[np.int64]
    row_at: NDArray[np.int64]


@dataclass(frozen=True)
class Way:
    """What does not depend on load, per lane: shape (lanes,) each; ``lossy``: numbers of those that lose."""

    delay_s: Array
    survival: Array
    lossy: NDArray[np.int64]
    blocked: NDArray[np.bool_]
    jitters: tuple[tuple[float, NDArray[np.bool_]], ...]


@dataclass(frozen=True)
class Pool:
    """PRBs and CPU that some slices share at one gNB; one slice each unless slicing is off."""

    gnb: str
    slices: tuple[str, ...]


class Network:
    """State of nodes, links, slices and UEs, and the arrays that follow from it."""

    def __init__(self, topology: Topology, load: Load, seed: int) -> None:
        """Raises BackendError when a flow has no way from its UE to its application."""
        self.topology = topology
        self.load = load
        self.version = 0
        self.place_names: list[tuple[str, ...]] = []
        try:
            self._build(topology, load, seed)
        except TopologyError as error:
            raise BackendError(str(error)) from None
        self.changed()

    def _build(self, topology: Topology, load: Load, seed: int) -> None:
        self.gnbs = {node.name: node for node in topology.of_kind(Gnb)}
        self.apps = topology.services
        self.groups = {node.name: node for node in topology.of_kind(Ue)}
        self.nodes = {
            node.name: NodeState(node.name, node.cpu_millicores, node.memory_mib, _servers(node))
            for node in topology.nodes
        }
        self.links = {
            link.name: LinkState(link.name, link.bandwidth_bps, link.delay_s, link.jitter_s, link.loss_ratio)
            for link in topology.links
        }
        admission = Admission(topology.edge.cpus)
        self.tasks = Tasks(topology, admission)
        self.guests = Guests(topology, admission)
        self.now_s = 0.0
        self.placement: dict[str, str] = {}
        self.path_index = {flow.name: flow.path_index for flow in topology.backhaul}
        self.ues: dict[str, UeState] = {}
        for group in self.groups.values():
            gnb = self.gnbs[serving_gnb(topology, group.name)]
            bandwidth_hz = carrier_bandwidth_hz(gnb.prb_total, gnb.subcarrier_khz)
            for ue_id in group.ue_ids:
                channel = Channel(
                    seed, ue_id, group.distance_m, group.speed_mps,
                    gnb.carrier_ghz, gnb.tx_power_dbm, gnb.path_loss, bandwidth_hz,
                )  # fmt: skip
                self.ues[ue_id] = UeState(
                    ue_id, group.name, group.slice, gnb.name, channel, group.cqi_script, group.always_attached
                )
        self.slices = {slice_.name: self._slice_state(slice_) for slice_ in topology.slices}
        self.lanes = tuple(itertools.chain.from_iterable(self._lanes(flow) for flow in load.flows))
        gnb_slices = dict.fromkeys((ue.gnb, ue.slice) for ue in self.ues.values())
        if topology.slicing:
            self.pools = tuple(Pool(gnb, (name,)) for gnb, name in gnb_slices)
        else:
            everyone = tuple(self.slices)
            self.pools = tuple(Pool(gnb, everyone) for gnb in dict.fromkeys(gnb for gnb, _ in gnb_slices))
        index = {(pool.gnb, name): number for number, pool in enumerate(self.pools) for name in pool.slices}
        self.ue_names = tuple(dict.fromkeys(lane.ue for lane in self.lanes))
        numbers = {name: number for number, name in enumerate(self.ue_names)}
        self.lane_ue = np.array([numbers[lane.ue] for lane in self.lanes], dtype=np.int64)
        self.lane_down = np.array([lane.direction == "dl" for lane in self.lanes], dtype=bool)
        self.lane_bits = np.array([lane.packet_bits for lane in self.lanes])
        self.ue_pool = np.array([index[self.ues[ue].gnb, self.ues[ue].slice] for ue in self.ue_names], dtype=np.int64)
        names = list(self.slices)
        self.lane_slice = np.array([names.index(lane.flow.slice) for lane in self.lanes], dtype=np.int64)

    def _slice_state(self, slice_: Slice) -> SliceState:
        gnbs = list(dict.fromkeys(ue.gnb for ue in self.ues.values() if ue.slice == slice_.name))
        upf = slice_upf(self.topology, slice_.name) if gnbs else ""
        routes = {gnb: default_path(self.topology, gnb, upf) for gnb in gnbs}
        return SliceState(slice_.name, upf, slice_.prb_share, slice_.cpu_millicores, slice_.bandwidth_bps, routes)

    def _lanes(self, flow: Flow) -> tuple[Lane, Lane]:
        """Downlink and uplink of a flow; the one without payload carries probes only."""
        if flow.ue not in self.ues:
            raise BackendError(f"flow {flow.name}: no UE {flow.ue}; groups: {', '.join(self.groups) or 'none'}")
        ue = self.ues[flow.ue]
        if flow.slice != ue.slice:
            raise BackendError(f"flow {flow.name}: UE {ue.id} is in slice {ue.slice}, got slice {flow.slice}")
        app = self.apps.get(flow.app)
        if app is None or app.service != flow.service:
            raise BackendError(
                f"flow {flow.name}: needs an application of service {flow.service}, got {flow.app}"
                + (f" of service {app.service}" if app else ", which is none")
            )
        n6 = default_path(self.topology, self.slices[ue.slice].upf, app.name)
        radio = next((link.name for link in self.topology.links if {link.a, link.b} == {ue.group, ue.gnb}), None)
        sizes: dict[Direction, tuple[int, float]] = {"dl": (flow.packet_bytes, 0.0), "ul": (flow.packet_bytes, 0.0)}
        if flow.service == "request":
            request = flow.packet_bytes + c.REQUEST_OVERHEAD_BYTES
            response = app.response_bytes + c.RESPONSE_OVERHEAD_BYTES
            sizes = {
                "dl": (min(response, c.MTU_BYTES), float(response)),
                "ul": (min(request, c.MTU_BYTES), float(request)),
            }
        return Lane(flow, "dl", *sizes["dl"], ue.id, n6, radio), Lane(flow, "ul", *sizes["ul"], ue.id, n6, radio)

    # ---- what knobs change

    def changed(self) -> None:
        """Recompute everything that depends on state; called after actions."""
        self.version += 1
        self.hops = tuple(self._hops(lane) for lane in self.lanes)
        self.way = self._way()
        self.wired = self._wired()

    def server(self, app: str) -> str:
        """The node that the service of an application runs on now."""
        return self.placement.get(app, app)

    def n6(self, lane: Lane) -> Route:
        """The route from a lane's UPF to its server now."""
        server = self.placement.get(lane.flow.app)
        return lane.n6 if server is None else default_path(self.topology, lane.n6[0], server)

    def node_up(self, name: str) -> bool:
        """Whether a node runs: not killed, and not killed by its own memory limit; of a partition, its guest."""
        if name in self.guests:
            return self.guests.up(name, self.now_s)
        state = self.nodes[name]
        return state.up and (state.memory_mib is None or self.memory_bytes(name, 0) <= state.memory_mib * _MIB)

    def serves(self, name: str) -> bool:
        """Whether a node answers: it runs, and its processors do."""
        return self.node_up(name) and (name not in self.guests or self.guests.cpus(name) > 0)

    def memory_bytes(self, name: str, sessions: int) -> float:
        """Memory of a node: a constant per program and session."""
        node = self.topology.node(name)
        programs = {"ue": 2, "gnb": sum(pool.gnb == name for pool in self.pools), "upf": 1, "app": 1}.get(node.kind, 0)
        return c.IDLE_CONTAINER_BYTES + programs * c.PROGRAM_BYTES + sessions * c.SESSION_BYTES

    def route(self, lane: Lane) -> tuple[str, ...]:
        """All nodes of a lane from UE container to application."""
        ue = self.ues[lane.ue]
        return (ue.group, *self.slices[lane.flow.slice].routes[ue.gnb], *self.n6(lane)[1:])

    def _hops(self, lane: Lane) -> tuple[tuple[str, str, float], ...]:
        """(link, end that sends, header bytes per packet) of every link that a lane crosses."""
        ue = self.ues[lane.ue]
        n3 = self.slices[lane.flow.slice].routes[ue.gnb]
        hops: list[tuple[str, str, float]] = []
        for route, header in ((n3, c.N3_BYTES + c.ETHERNET_BYTES), (self.n6(lane), c.ETHERNET_BYTES)):
            for name, (near, far) in zip(path_links(self.topology, route), itertools.pairwise(route), strict=True):
                hops.append((name, near if lane.direction == "ul" else far, header))
        if lane.radio is not None:
            hops.append((lane.radio, ue.group if lane.direction == "ul" else ue.gnb, c.ETHERNET_BYTES))
        return tuple(hops)

    def _way(self) -> Way:
        delay, survival, blocked = [], [], []
        jitters: dict[str, list[int]] = {}
        up = {name: self.node_up(name) for name in self.nodes}
        for number, lane in enumerate(self.lanes):
            route = self.route(lane)
            names = [name for name, _, _ in self.hops[number]]
            links = [self.links[name] for name in names]
            delay.append(sum(link.delay_s for link in links) + c.FORWARD_S * len(route))
            survival.append(float(np.prod([1 - link.loss_ratio for link in links])))
            blocked.append(not all(link.up for link in links) or not all(up[name] for name in route))
            for link in links:
                if link.jitter_s > 0:
                    jitters.setdefault(link.name, []).append(number)
        masks = []
        for name, numbers in jitters.items():
            mask = np.zeros(len(self.lanes), dtype=bool)
            mask[numbers] = True
            masks.append((self.links[name].jitter_s, mask))
        lossy = np.flatnonzero(np.array(survival) < 1)
        return Way(np.array(delay), np.array(survival), lossy, np.array(blocked, dtype=bool), tuple(masks))

    def _wired(self) -> Wired:
        rows: dict[tuple[str, ...], dict[int, float]] = {}
        capacity: dict[tuple[str, ...], float] = {}

        def use(name: tuple[str, ...], limit: float, lane: int, weight: float) -> None:
            capacity[name] = limit
            rows.setdefault(name, {})[lane] = weight

        for number, lane in enumerate(self.lanes):
            state = self.slices[lane.flow.slice]
            for name, sender, header in self.hops[number]:
                bandwidth = self.links[name].bandwidth_bps
                if bandwidth is not None:
                    use(("link", name, sender), bandwidth, number, 1 + header / lane.packet_bytes)
            limit = self.transport_bps(state)
            if limit is not None:
                weight = 1 + (c.N3_BYTES + c.ETHERNET_BYTES) / lane.packet_bytes
                use(("transport", state.name, lane.direction), limit, number, weight)
            server = self.server(lane.flow.app)
            for node, packet_ns in (
                (state.upf, c.UPF_PACKET_NS),
                (self.ues[lane.ue].group, c.UE_PACKET_NS),
                (server, c.GUEST_PACKET_NS if server in self.guests else c.APP_PACKET_NS),
            ):
                if node != server or lane.flow.service != "request":
                    use(("cpu", node), self.process_cpus(node), number, packet_ns * 1e-9 / lane.packet_bits)
        usage = np.zeros((len(rows), len(self.lanes)))
        for row, cells in enumerate(rows.values()):
            usage[row, list(cells)] = list(cells.values())
        known = {name: place for place, name in enumerate(self.place_names)}
        for resource in rows:
            if resource not in known:
                known[resource] = len(known)
                self.place_names.append(resource)
        places = np.array([known[resource] for resource in rows], dtype=np.int64)
        row_at = np.full(len(known) + 1, NOWHERE, dtype=np.int64)
        row_at[places] = np.arange(len(rows))
        limits = np.array([capacity[resource] for resource in rows])
        return Wired(tuple(rows), usage, limits, usage > 0, places, row_at)

    def process_cpus(self, node: str) -> float:
        """CPUs that the one-threaded program of a node, or one processor of a guest for its service, can have."""
        if node in self.guests:
            return self.guests.cpus(node)
        limit = self.nodes[node].cpu_millicores
        return min(limit if limit is not None else c.PROCESS_MILLICORES, c.PROCESS_MILLICORES) / 1000

    def transport_bps(self, state: SliceState) -> float | None:
        """The transport limit that a slice is under; without slicing only the links limit it."""
        return state.bandwidth_bps if self.topology.slicing else None

    def pool_prbs(self, pool: Pool) -> float:
        """PRBs per slot and direction of a pool."""
        return self.gnbs[pool.gnb].prb_total * sum(self.slices[name].prb_share for name in pool.slices)

    def pool_millicores(self, pool: Pool) -> float | None:
        """The declared CPU limit of a pool's program; None when one of its slices is not limited."""
        limits = [self.slices[name].cpu_millicores for name in pool.slices]
        return None if None in limits else sum(limit for limit in limits if limit is not None)

    def pool_cpus(self, pool: Pool) -> float:
        """CPUs that a pool's program can have: it has one thread."""
        limit = self.pool_millicores(pool)
        return min(limit if limit is not None else c.PROCESS_MILLICORES, c.PROCESS_MILLICORES) / 1000

    def new_routes(self, state: SliceState, text: str) -> dict[str, Route]:
        """The routes of a slice over these switches; TopologyError when a gNB has none such."""
        if not state.routes:
            raise TopologyError(f"slice {state.name}: no UE uses it, so that it has no path")
        routes = {gnb: parse_path(self.topology, gnb, state.upf, text) for gnb in state.routes}
        for gnb, route in routes.items():
            old = state.routes[gnb]
            for end, new_hop, old_hop in ((gnb, route[1], old[1]), (state.upf, route[-2], old[-2])):
                if new_hop != old_hop:  # the address of either end belongs to its interface
                    raise TopologyError(f"path {text}: must use link {end}-{old_hop}, got {end}-{new_hop}")
        return routes


def _servers(node: Node) -> int:
    """How many requests a node serves at once."""
    if isinstance(node, Partition):
        return node.cores
    return node.replicas if isinstance(node, App) else 1
