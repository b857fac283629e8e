"""Plan of IAB backhaul in emulation: source hosts, labels, tunnels of all paths, queues per flow. Pure data.

Every backhaul flow has a host of its own behind its IAB node. The label of a path is its BAP routing id, 10 bits
of address and 10 bits of path identity (TS 38.340 §6.3), one for each direction: towards the donor and back.

Addresses: sources 10.202.0.0/16, sinks 10.203.0.0/16, /32 each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from topologies.backhaul import to_network
from topologies.iab import BapRoutingId, IabError, routing_ids
from topologies.model import BackhaulFlow, BackhaulPath, IabDonor, IabNode, Link, Topology, TopologyError

LABEL_BYTES = 4
# An IP packet, its label and no more than what the links on the way take.
SOURCE_MTU = 1500 - LABEL_BYTES
SINK_PORT = 7000
MAX_FLOWS = 4000
QUEUE_PACKETS = 20
# Open vSwitch's userspace datapath sends everything through one packet socket, which accounts for what waits in
# the queues of all ports: 212,992 bytes by default, 92 full packets. Beyond that it drops, whatever the flow.
QUEUED_PACKETS = 80
MOST_WINDOW_PACKETS = 8


@dataclass(frozen=True, slots=True)
class FlowPlan:
    """One backhaul flow: its source host, the addresses of both ends, and its labels by path."""

    flow: BackhaulFlow
    host: str
    address: str
    mac: str
    sink_address: str
    sink_mac: str
    up_labels: tuple[int, ...]
    down_labels: tuple[int, ...]

    @property
    def link(self) -> Link:
        """The link between the source host and its IAB node, which the topology does not list."""
        return Link(a=self.host, b=self.flow.source)


class BackhaulPlan:
    """The backhaul of a topology; empty when it has none. TopologyError when BAP's fields are too small."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.flows: dict[str, FlowPlan] = {}
        self.by_host: dict[str, FlowPlan] = {}
        if len(topology.backhaul) > MAX_FLOWS:
            raise TopologyError(f"backhaul: at most {MAX_FLOWS} flows on emulation, got {len(topology.backhaul)}")
        self.sinks = tuple(dict.fromkeys(flow.sink for flow in topology.backhaul))
        up, down = _routing_ids(topology)
        for number, flow in enumerate(topology.backhaul, start=1):
            sink = self.sinks.index(flow.sink) + 1
            octets = f"{number >> 8:02x}:{number & 255:02x}"
            plan = FlowPlan(
                flow=flow,
                host=f"{flow.name}-src",
                address=f"10.202.{number >> 8}.{number & 255}",
                mac=f"02:74:63:{octets}:01",
                sink_address=f"10.203.0.{sink}",
                # Of no interface: the donor writes the one of the sink's interface into what it hands over.
                sink_mac=f"02:74:64:00:{sink:02x}:01",
                up_labels=tuple(one.bits for one in up[flow.name]),
                down_labels=tuple(one.bits for one in down[flow.name]),
            )
            if any(node.name == plan.host for node in topology.nodes):
                raise TopologyError(f"backhaul flow {flow.name}: node {plan.host} has the name of its source host")
            self.flows[flow.name] = plan
            self.by_host[plan.host] = plan

    def __bool__(self) -> bool:
        return bool(self.flows)

    @property
    def window_packets(self) -> int:
        """Packets that one flow may have on their way, so that all flows together lose none.

        Two per flow suffice for its share while a round trip takes less than the time to send two.
        """
        return min(MOST_WINDOW_PACKETS, max(2, QUEUED_PACKETS // max(1, len(self.flows))))

    @property
    def links(self) -> list[Link]:
        """The links between sources and their IAB nodes, in the order of the flows."""
        return [plan.link for plan in self.flows.values()]

    @property
    def switches(self) -> list[str]:
        """IAB nodes and donors: the switches that the source routing controls."""
        return [node.name for node in self.topology.nodes if isinstance(node, IabNode | IabDonor)]

    def donor_link(self, flow: BackhaulFlow, index: int) -> Link:
        """The wired link between the donor at the end of a path and the sink."""
        return self.topology.link_named(f"{flow.paths[index].nodes[-1]}-{flow.sink}")

    def flows_of(self, link: Link) -> Iterator[FlowPlan]:
        """The flows that may cross a link with a band."""
        for plan in self.flows.values():
            if any(link.name in path.links for path in plan.flow.paths):
                yield plan

    def network(self, *, dpids: dict[str, str], port_of: Any, mac_of: Any) -> dict[str, Any]:
        """What :mod:`twin.emulation.sdn.routing` needs to know.

        ``dpids``: datapath id of each switch; ``port_of(link)``: OpenFlow port; ``mac_of(node, link)``: the MAC
        address of an interface.
        """
        return {
            "switches": {dpids[name]: name for name in self.switches},
            "flows": {
                name: {
                    "path_index": plan.flow.path_index,
                    "paths": [
                        {
                            "up": self._up(plan, index, port_of, mac_of),
                            "down": self._down(plan, index, port_of),
                        }
                        for index in range(len(plan.flow.paths))
                    ],
                }
                for name, plan in self.flows.items()
            },
        }

    def _hops(self, path: BackhaulPath, port_of: Any, *, up: bool) -> list[list[Any]]:
        nodes = path.nodes if up else path.nodes[::-1]
        return [
            [here, port_of(self.topology.link_named(f"{here}-{there}@{path.band}"))]
            for here, there in itertools.pairwise(nodes)
        ]

    def _up(self, plan: FlowPlan, index: int, port_of: Any, mac_of: Any) -> dict[str, Any]:
        path, wire = plan.flow.paths[index], self.donor_link(plan.flow, index)
        return {
            "label": plan.up_labels[index],
            "ingress": {"switch": plan.flow.source, "match": {"in_port": port_of(plan.link)}},
            "hops": self._hops(path, port_of, up=True),
            "egress": {
                "switch": path.nodes[-1],
                "eth_dst": plan.sink_mac,
                "set_eth_dst": mac_of(plan.flow.sink, wire.name),
                "port": port_of(wire),
            },
        }

    def _down(self, plan: FlowPlan, index: int, port_of: Any) -> dict[str, Any]:
        path, wire = plan.flow.paths[index], self.donor_link(plan.flow, index)
        ingress = {"in_port": port_of(wire), "eth_dst": plan.mac}
        return {
            "label": plan.down_labels[index],
            "ingress": {"switch": path.nodes[-1], "match": ingress},
            "hops": self._hops(path, port_of, up=False),
            "egress": {
                "switch": plan.flow.source,
                "eth_dst": plan.mac,
                "set_eth_dst": None,
                "port": port_of(plan.link),
            },
        }


def _routing_ids(topology: Topology) -> list[dict[str, tuple[BapRoutingId, ...]]]:
    """BAP routing ids by flow, of the way to the donors and of the way back."""
    if not topology.backhaul:
        return [{}, {}]
    try:
        network = to_network(topology)
        return [routing_ids(network, back=back) for back in (False, True)]
    except IabError as error:
        raise TopologyError(f"backhaul: {error}") from None


def source_commands(plan: FlowPlan) -> Iterator[str]:
    """``ip -batch`` lines of a source host."""
    yield f"addr replace {plan.address}/32 dev eth0"
    yield f"route replace {plan.sink_address}/32 dev eth0 src {plan.address}"
    yield f"neigh replace {plan.sink_address} lladdr {plan.sink_mac} dev eth0 nud permanent"


def sink_commands(plan: BackhaulPlan, sink: str, interface_of: Any, chosen: Mapping[str, int]) -> Iterator[str]:
    """``ip -batch`` lines of a sink host. ``interface_of(link)``: its interface; ``chosen``: path by flow."""
    for one in plan.flows.values():
        if one.flow.sink != sink:
            continue
        yield f"addr replace {one.sink_address}/32 dev lo"
        for index in range(len(one.flow.paths)):
            interface = interface_of(plan.donor_link(one.flow, index))
            yield f"neigh replace {one.address} lladdr {one.mac} dev {interface} nud permanent"
        yield sink_route(one, interface_of(plan.donor_link(one.flow, chosen[one.flow.name])))


def sink_route(one: FlowPlan, interface: str) -> str:
    """``ip -batch`` line: the sink answers a flow through this interface."""
    return f"route replace {one.address}/32 dev {interface} src {one.sink_address} mtu {SOURCE_MTU}"
