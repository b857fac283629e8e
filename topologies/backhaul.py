"""IAB networks as parts of a topology, and back: the same nodes, links and paths in both forms.

A network file (:mod:`topologies.iab`) has nodes, directed links and flows with demands. In a topology the
nodes are switches of kind ``iab-node`` and ``iab-donor``, the links have a band, and the flows end at a host
behind the donors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from topologies import iab
from topologies.fragment import Fragment
from topologies.iab import IabNetwork
from topologies.model import (
    BackhaulFlow,
    BackhaulPath,
    Band,
    Host,
    IabDonor,
    IabNode,
    Link,
    Node,
    Topology,
    TopologyError,
)


def scaled(network: IabNetwork, factor: float) -> IabNetwork:
    """The network with all capacities and demands times ``factor``; TopologyError unless it is above 0."""
    if not (math.isfinite(factor) and factor > 0):
        raise TopologyError(f"scale must be above 0, got {factor:g}")
    return IabNetwork(
        network.nodes,
        tuple(replace(link, capacity_bps=link.capacity_bps * factor) for link in network.links),
        tuple(replace(flow, demand_bps=flow.demand_bps * factor) for flow in network.flows),
    )


def from_network(network: IabNetwork, *, sink: str = "cu") -> Fragment:
    """Nodes, links, a host ``sink`` with a wired link from every donor, and the flows to it.

    TopologyError when a name or a rate cannot stand in a topology.
    """
    nodes: list[Node] = [(IabDonor if node.donor else IabNode)(name=node.id) for node in network.nodes]
    links = [
        Link(a=link.a, b=link.b, band=cast(Band, link.band), bandwidth_bps=link.capacity_bps) for link in network.links
    ]
    links += [Link(a=node.id, b=sink) for node in network.nodes if node.donor]
    flows = [
        BackhaulFlow(
            name=flow.id,
            source=flow.source,
            sink=sink,
            paths=tuple(BackhaulPath(cast(Band, path.band), path.nodes) for path in flow.paths),
            demand_bps=flow.demand_bps,
        )
        for flow in network.flows
    ]
    return Fragment((*nodes, Host(name=sink)), tuple(links), tuple(flows))


def wireless(nodes: Iterable[Node], links: Iterable[Link]) -> tuple[tuple[iab.IabNode, ...], tuple[iab.IabLink, ...]]:
    """The IAB nodes and donors among nodes of a topology, and the links with a band among its links."""
    return (
        tuple(
            iab.IabNode(node.name, donor=isinstance(node, IabDonor))
            for node in nodes
            if isinstance(node, IabNode | IabDonor)
        ),
        tuple(
            iab.IabLink(link.a, link.b, link.band, link.bandwidth_bps)
            for link in links
            if link.band is not None and link.bandwidth_bps is not None
        ),
    )


def to_network(topology: Topology, demand_bps: Mapping[str, float] | None = None) -> IabNetwork:
    """The IAB part of a topology; ``demand_bps`` by flow name replaces the demands, 0 where a flow is not named."""
    return IabNetwork(
        *wireless(topology.nodes, topology.links),
        tuple(
            iab.IabFlow(
                flow.name,
                flow.source,
                flow.demand_bps if demand_bps is None else demand_bps.get(flow.name, 0.0),
                tuple(iab.IabPath(path.band, path.nodes) for path in flow.paths),
            )
            for flow in topology.backhaul
        ),
    )
