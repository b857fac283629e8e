"""What ``ip`` must be told in each node. Pure functions of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from topologies.model import Partition
from twin.emulation import programs as specs
from twin.emulation.backhaul import sink_commands, source_commands
from twin.emulation.plan import Plan


def ip_commands(plan: Plan, name: str, replicas: Mapping[str, int], path_index: Mapping[str, int]) -> Iterator[str]:
    """Lines for ``ip -batch`` that give a node its addresses, routes and static neighbours; may be repeated.

    ``replicas``: how many each application behind a balancer has; ``name`` may be one of them.
    ``path_index``: the path that each backhaul flow takes.
    """
    topology = plan.topology
    if name in plan.backhaul.by_host:
        yield from source_commands(plan.backhaul.by_host[name])
        return
    app = name.rpartition("-r")[0]
    if app in replicas:
        index = int(name.rpartition("-r")[2])
        address = specs.replica_address(specs.app_number(topology, app), index, balancer=False)
        yield f"addr replace {address}/30 dev lb0"
        return
    own = {interface.name: interface for interface in plan.interfaces_of(name)}
    forwards = any(node.name == name for node in topology.of_kind(Partition))  # its guest has the address
    for interface in () if forwards else own.values():
        radio = interface.link in plan.radio_links.values()
        yield f"addr replace {interface.address}/{24 if radio else 32} dev {interface.name}"
        if radio:
            peer = plan.interface(interface.peer, interface.link)
            yield f"neigh replace {peer.address} lladdr {peer.mac} dev {interface.name} nud permanent"
    for address, device, mac in plan.host_routes(name):
        source = "" if forwards else f" src {own[device].address}"
        yield f"route replace {address}/32 dev {device}{source}"
        yield f"neigh replace {address} lladdr {mac} dev {device} nud permanent"
    for pool, gateway, device in plan.pool_routes(name):
        source = "" if forwards else f" src {own[device].address}"
        yield f"route replace {pool} via {gateway} dev {device}{source} onlink"
    for index in range(1, replicas.get(name, 0) + 1):
        address = specs.replica_address(specs.app_number(topology, name), index, balancer=True)
        yield f"addr replace {address}/30 dev r{index}"
    if name in plan.backhaul.sinks:
        yield from sink_commands(plan.backhaul, name, lambda link: plan.interface(name, link.name).name, path_index)
