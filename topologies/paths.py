"""Routes over a topology's switches: pure functions, shared by every fidelity.

A route is a tuple of node names, both ends included; everything between the ends is a switch, since
only switches forward. Fewer hops come first, and equal hop counts keep the order of the links in
the file, so that every fidelity picks the same route. Links with a band are no part of these routes: they
carry backhaul flows, which bring their paths.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator

from topologies.model import Gnb, Switch, Topology, TopologyError, Upf

Route = tuple[str, ...]
SEPARATOR = ">"


def default_path(topology: Topology, a: str, b: str) -> Route:
    """The route with the fewest hops from ``a`` to ``b``; TopologyError when there is none."""
    for route in _routes(topology, a, b):
        return route
    raise TopologyError(f"topology {topology.name}: no route from {a} to {b} over switches")


def candidate_paths(topology: Topology, a: str, b: str, k: int) -> tuple[Route, ...]:
    """The ``k`` shortest loop-free routes (fewer when there are fewer), shortest first.

    Best-first search on hops done plus hops still needed: every partial route taken from the heap
    is a prefix of a shortest remaining one unless the loop-free rule cuts it off.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    routes = _routes(topology, a, b)
    found: list[Route] = []
    for route in routes:
        found.append(route)
        if len(found) == k:
            break
    return tuple(found)


def parse_path(topology: Topology, a: str, b: str, text: str) -> Route:
    """The route named by the switches between ``a`` and ``b``: ``"s1>s3>s2"``; ``""`` is a direct link.

    TopologyError names the switch that does not exist, the one visited twice or the missing link.
    """
    where = f"path {text!r} from {a} to {b}"
    names = [name.strip() for name in text.split(SEPARATOR)] if text.strip() else []
    switches = [node.name for node in topology.of_kind(Switch)]
    for name in names:
        if name not in switches:
            raise TopologyError(f"{where}: no switch named {name!r}; switches: {', '.join(switches) or 'none'}")
        if names.count(name) > 1:
            raise TopologyError(f"{where}: switch {name} appears twice")
    route = (a, *names, b)
    for here, there in itertools.pairwise(route):
        if there not in topology.neighbours(here):
            raise TopologyError(
                f"{where}: no link between {here} and {there}; "
                f"{here} is linked to {', '.join(topology.neighbours(here)) or 'nothing'}"
            )
    return route


def path_text(route: Route) -> str:
    """The text that :func:`parse_path` reads: the switches of a route joined by ``>``."""
    return SEPARATOR.join(route[1:-1])


def path_links(topology: Topology, route: Route) -> tuple[str, ...]:
    """Names of the links along a route, in order; KeyError when two neighbours share no link."""
    return tuple(topology.link_named(f"{here}-{there}").name for here, there in itertools.pairwise(route))


def serving_gnb(topology: Topology, ue: str) -> str:
    """The gNB of a UE container: the nearest one by links, or the only one when the UE has no link.

    TopologyError when the topology has no gNB, or several and none within reach of the UE.
    """
    gnbs = [node.name for node in topology.of_kind(Gnb)]
    routes = [route for gnb in gnbs for route in candidate_paths(topology, ue, gnb, 1)]
    if routes:
        return min(routes, key=len)[-1]
    if len(gnbs) == 1:
        return gnbs[0]
    raise TopologyError(f"ue {ue}: no gNB within reach; gNBs: {', '.join(gnbs) or 'none'}")


def slice_upf(topology: Topology, slice_name: str) -> str:
    """The UPF of a slice; TopologyError unless there is exactly one."""
    upfs = [node.name for node in topology.of_kind(Upf) if node.slice == slice_name]
    if len(upfs) != 1:
        raise TopologyError(f"slice {slice_name}: needs exactly one UPF, got {len(upfs)} ({', '.join(upfs) or 'none'})")
    return upfs[0]


def _adjacency(topology: Topology) -> dict[str, list[str]]:
    adjacency: dict[str, list[str]] = {node.name: [] for node in topology.nodes}
    for link in topology.links:
        if link.band is not None:
            continue
        for here, there in ((link.a, link.b), (link.b, link.a)):
            if there not in adjacency[here]:
                adjacency[here].append(there)
    return adjacency


def _routes(topology: Topology, a: str, b: str) -> Iterator[Route]:
    """All loop-free routes from ``a`` to ``b``, shortest first."""
    adjacency = _adjacency(topology)
    for end in (a, b):
        if end not in adjacency:
            raise TopologyError(f"topology {topology.name}: no node named {end}")
    forwarding = {node.name for node in topology.of_kind(Switch)}
    left = _hops_to(adjacency, forwarding, b)
    if a not in left:
        return
    heap: list[tuple[int, tuple[int, ...], Route]] = [(left[a], (), (a,))]
    while heap:
        _, order, route = heapq.heappop(heap)
        if route[-1] == b:
            yield route
            continue
        for index, name in enumerate(adjacency[route[-1]]):
            if name in left and name not in route and (name == b or name in forwarding):
                heapq.heappush(heap, (len(route) + left[name], (*order, index), (*route, name)))


def _hops_to(adjacency: dict[str, list[str]], forwarding: set[str], target: str) -> dict[str, int]:
    hops = {target: 0}
    queue = deque([target])
    while queue:
        here = queue.popleft()
        if here != target and here not in forwarding:
            continue  # an end point may start a route but forwards nothing
        for name in adjacency[here]:
            if name not in hops:
                hops[name] = hops[here] + 1
                queue.append(name)
    return hops
