"""From a topology to everything an emulation needs to know before anything is created.

Pure data and pure functions: interfaces, MAC and IPv4 addresses, routes, static neighbours and
OpenFlow rules. The network is wired by explicit rules only (no learning, no ARP), so that a path is
what the plan says and loops in the transport are harmless.

Addresses: radio links 10.200.K.0/24, balancer to replica 10.201.K.0/24, backhaul flows 10.202.0.0/16 and
10.203.0.0/16, interfaces in transport 10.1.0.0/16 (/32 each), UE pools 10.64.0.0/16 upward, one per slice.
They live inside namespaces that the run owns, so two runs may use the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from topologies.model import App, Gnb, Link, Partition, Switch, Topology, TopologyError, Ue, Upf
from topologies.paths import Route, default_path, serving_gnb, slice_upf
from twin.emulation.backhaul import BackhaulPlan

RADIO_PORT = 38412
FIRST_UE_POOL = 64
MAX_SLICES = 64
UES_PER_GROUP = 1000


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a link inside a node; ``address`` is empty on switches."""

    node: str
    name: str
    mac: str
    link: str
    peer: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Hop:
    """One OpenFlow rule of a directed path: at ``switch``, towards ``out_link``."""

    switch: str
    out_link: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes that exchange packets over switches, and the route that the packets take.

    ``slice`` is the slice whose ``path`` knob moves the pair, empty for N6 and plain pairs.
    """

    a: Interface
    b: Interface
    route: Route
    slice: str = ""

    def hops(self) -> Iterator[tuple[Interface, Interface, Hop]]:
        """(source, destination, rule) for both directions, last switch of each direction first."""
        for source, target, route in ((self.a, self.b, self.route), (self.b, self.a, self.route[::-1])):
            for here, there in reversed(list(itertools.pairwise(route))[1:]):
                yield source, target, Hop(here, f"{here}-{there}")


@dataclass(frozen=True, slots=True)
class UePlan:
    """One UE: its index inside the container, its address and its slice."""

    id: str
    index: int
    address: str
    group: str
    slice: str
    gnb: str


@dataclass(frozen=True)
class Plan:
    """Everything derived from a topology. Tables are keyed by logical names."""

    topology: Topology
    interfaces: dict[tuple[str, str], Interface]
    pairs: tuple[Pair, ...]
    ues: dict[str, UePlan]
    ue_pools: dict[str, str]
    slice_upfs: dict[str, str]
    slice_gnbs: dict[str, tuple[str, ...]]
    backhaul: BackhaulPlan
    radio_links: dict[str, str] = field(default_factory=dict)

    def interface(self, node: str, link: str) -> Interface:
        """The interface of ``node`` on ``link``."""
        return self.interfaces[node, link]

    def interfaces_of(self, node: str) -> list[Interface]:
        """The interfaces of a node in link order."""
        return [interface for (owner, _), interface in self.interfaces.items() if owner == node]

    def pair(self, a: str, b: str) -> Pair:
        """The pair of two nodes; KeyError when they exchange nothing."""
        for pair in self.pairs:
            if {pair.a.node, pair.b.node} == {a, b}:
                return pair
        raise KeyError(f"{a}-{b}")

    def slice_pairs(self, slice_name: str) -> list[Pair]:
        """The N3 pairs of a slice, one per gNB that serves it."""
        return [pair for pair in self.pairs if pair.slice == slice_name]

    def group(self, name: str) -> list[UePlan]:
        """The UEs carried by one container."""
        return [ue for ue in self.ues.values() if ue.group == name]

    def host_routes(self, node: str) -> list[tuple[str, str, str]]:
        """(peer address, own interface, peer MAC) of everything ``node`` talks to directly."""
        rows = []
        for pair in self.pairs:
            for own, peer in ((pair.a, pair.b), (pair.b, pair.a)):
                if own.node == node:
                    rows.append((peer.address, own.name, peer.mac))
        return rows

    def pool_routes(self, node: str) -> list[tuple[str, str, str]]:
        """(UE pool, UPF address, own interface) for a node that answers UEs over N6."""
        rows = []
        for slice_name, upf in self.slice_upfs.items():
            for pair in self.pairs:
                for own, peer in ((pair.a, pair.b), (pair.b, pair.a)):
                    if own.node == node and peer.node == upf and not isinstance(self.topology.node(node), Gnb):
                        rows.append((self.ue_pools[slice_name], peer.address, own.name))
        return rows


def make_plan(topology: Topology) -> Plan:
    """Work out addresses, pairs and routes; TopologyError names what cannot be wired."""
    if len(topology.slices) > MAX_SLICES:
        raise TopologyError(f"slices: at most {MAX_SLICES} on emulation, got {len(topology.slices)}")
    for gnb in topology.of_kind(Gnb):
        if gnb.cpu_millicores is not None:
            raise TopologyError(f"gnb {gnb.name}: cpu_millicores is a resource of each slice, not of the whole gNB")
    radio_links = _radio_links(topology)
    interfaces = _interfaces(topology, radio_links)
    slice_upfs = {
        slice_.name: slice_upf(topology, slice_.name) for slice_ in topology.slices if _used(topology, slice_.name)
    }
    ue_pools = {slice_.name: f"10.{FIRST_UE_POOL + index}.0.0/16" for index, slice_ in enumerate(topology.slices)}
    ues = _ues(topology)
    gnbs: dict[str, tuple[str, ...]] = {}
    for name in slice_upfs:
        gnbs[name] = tuple(dict.fromkeys(ue.gnb for ue in ues.values() if ue.slice == name))
    return Plan(
        topology=topology,
        interfaces=interfaces,
        pairs=tuple(_pairs(topology, interfaces, slice_upfs, gnbs)),
        ues=ues,
        ue_pools=ue_pools,
        slice_upfs=slice_upfs,
        slice_gnbs=gnbs,
        backhaul=BackhaulPlan(topology),
        radio_links=radio_links,
    )


def transport_address(node: int, place: int) -> str:
    """Address of the ``place``-th interface (from 1) of the ``node``-th node (from 0) in the transport."""
    return f"10.1.{node // 16}.{node % 16 * 16 + place}"


def reroute(plan: Plan, pair: Pair, route: Route) -> Pair:
    """The pair on another route; the route must use the same interfaces at both ends.

    TopologyError when it leaves a node by another link: addresses belong to interfaces.
    """
    for own, neighbour in ((pair.a, route[1]), (pair.b, route[-2])):
        link = plan.topology.link_named(f"{own.node}-{neighbour}")
        if link.name != own.link:
            raise TopologyError(
                f"path {'>'.join(route[1:-1])}: must use link {own.link} of {own.node}, got link {link.name}"
            )
    return Pair(pair.a, pair.b, route, pair.slice)


def _used(topology: Topology, slice_name: str) -> bool:
    return any(node.slice == slice_name for node in topology.nodes if isinstance(node, Ue | Upf))


def _radio_links(topology: Topology) -> dict[str, str]:
    """UE container -> its link to the gNB."""
    links = {}
    for ue in topology.of_kind(Ue):
        gnb = serving_gnb(topology, ue.name)
        direct = [link for link in topology.links if {link.a, link.b} == {ue.name, gnb}]
        if not direct:
            raise TopologyError(f"ue {ue.name}: needs a direct link to a gNB; linked to {_linked(topology, ue.name)}")
        links[ue.name] = direct[0].name
    return links


def _linked(topology: Topology, name: str) -> str:
    return ", ".join(topology.neighbours(name)) or "nothing"


def _interfaces(topology: Topology, radio_links: dict[str, str]) -> dict[tuple[str, str], Interface]:
    interfaces: dict[tuple[str, str], Interface] = {}
    counters: dict[str, int] = {}
    radio = {link: index for index, link in enumerate(radio_links.values())}
    if len(radio) > 250:
        raise TopologyError(f"ue: at most 250 UE containers on emulation, got {len(radio)}")
    numbers = {node.name: index for index, node in enumerate(topology.nodes)}
    for link_index, link in enumerate(topology.links):
        for end, (own, peer, given) in enumerate(
            ((link.a, link.b, link.a_interface), (link.b, link.a, link.b_interface))
        ):
            counters[own] = counters.get(own, 0) + 1
            node = topology.node(own)
            address = ""
            if link.name in radio:
                address = f"10.200.{radio[link.name]}.{1 if isinstance(node, Gnb) else 2}"
            elif not isinstance(node, Switch):
                number = numbers[own]
                # A partition's guest has one interface: its address is the same over all links.
                place = 1 if isinstance(node, Partition) else counters[own]
                address = transport_address(number, place)
                if counters[own] > 15:
                    raise TopologyError(f"{node.kind} {own}: at most 15 links on emulation")
            name = given or f"eth{counters[own]}"
            if any(interface.name == name for (owner, _), interface in interfaces.items() if owner == own):
                raise TopologyError(f"link {link.name}: interface {name} of {own} is used twice")
            interfaces[own, link.name] = Interface(
                own,
                name,
                f"02:74:62:{link_index >> 8:02x}:{link_index & 255:02x}:{end + 1:02x}",
                link.name,
                peer,
                address,
            )
    return interfaces


def _ues(topology: Topology) -> dict[str, UePlan]:
    order = [slice_.name for slice_ in topology.slices]
    next_host = dict.fromkeys(order, 1)
    ues = {}
    for group in topology.of_kind(Ue):
        gnb = serving_gnb(topology, group.name)
        for index, ue_id in enumerate(group.ue_ids, start=1):
            next_host[group.slice] += 1
            host = next_host[group.slice]
            address = f"10.{FIRST_UE_POOL + order.index(group.slice)}.{host >> 8}.{host & 255}"
            ues[ue_id] = UePlan(ue_id, index, address, group.name, group.slice, gnb)
    return ues


def _pairs(
    topology: Topology,
    interfaces: dict[tuple[str, str], Interface],
    slice_upfs: dict[str, str],
    gnbs: dict[str, tuple[str, ...]],
) -> Iterator[Pair]:
    def pair(a: str, b: str, slice_name: str = "") -> Pair:
        route = default_path(topology, a, b)
        first = topology.link_named(f"{a}-{route[1]}").name
        last = topology.link_named(f"{route[-2]}-{b}").name
        return Pair(interfaces[a, first], interfaces[b, last], route, slice_name)

    for slice_name, upf in slice_upfs.items():
        for gnb in gnbs[slice_name]:
            yield pair(gnb, upf, slice_name)
    ends = [node for node in topology.nodes if not isinstance(node, Switch | Ue | Gnb | Upf)]
    for upf_node in topology.of_kind(Upf):
        for node in ends:
            if _reachable(topology, upf_node.name, node.name):
                yield pair(upf_node.name, node.name)
    for one, other in itertools.combinations(ends, 2):
        # Applications answer UEs and plain nodes; they have no business with each other, nor have partitions.
        alike = any(isinstance(one, kind) and isinstance(other, kind) for kind in (App, Partition))
        if not alike and _reachable(topology, one.name, other.name):
            yield pair(one.name, other.name)


def _reachable(topology: Topology, a: str, b: str) -> bool:
    try:
        default_path(topology, a, b)
    except TopologyError:
        return False
    return True


def declares(link: Link) -> bool:
    """Whether the link declares anything that must be probed."""
    return link.impaired or link.bandwidth_bps is not None
