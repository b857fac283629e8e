"""Integrated access and backhaul (IAB) networks with a mmWave and a Sub-6 band, as frozen data.

The random networks are those of NANCY D4.2 §4.2 ("PHaul"): three donors, 1 to 3 children per node
layer by layer, a second parent with probability 0.4 (mmWave) or 0.6 (Sub-6), link capacities of 800 to
1000 Mbit/s or 200 to 300 Mbit/s, one backhaul flow per active node. Where the paper leaves a choice:
the second parent is the next node of the parent's layer, in the order of creation, and the donors'
children are the first layer.

A network is stored as JSON; links point from ``a`` to ``b``, towards the donors::

    {"nodes": [{"id", "donor"}],
     "links": [{"a", "b", "band": "mmwave"|"sub6", "capacity_bps"}],
     "flows": [{"id", "source", "demand_bps", "paths": [{"band", "nodes": [...]}]}]}
"""

from __future__ import annotations

import cmath
import heapq
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

MMWAVE, SUB6 = "mmwave", "sub6"
BANDS = (SUB6, MMWAVE)
LOADS_BPS = {"low": (250e6, 500e6), "high": (500e6, 750e6)}
CAPACITY_BPS = {MMWAVE: (800e6, 1000e6), SUB6: (200e6, 300e6)}
EXTRA_PARENT_PROBABILITY = {MMWAVE: 0.4, SUB6: 0.6}
DONORS = 3
MAX_CHILDREN = 3
# TS 38.340 §6.3.2 and §6.3.3: the BAP address and the BAP path identity have 10 bits each.
BAP_FIELD_SIZE = 1 << 10
# Every node has an address, and 0 is none.
MOST_NODES = BAP_FIELD_SIZE - 1
MOST_BPS = 1e18
# Sites of generated networks, where capacities depend on distances: inter-site distance of TR 38.901
# Table 7.2-1 (UMi), and what its path loss is defined for.
SITE_DISTANCE_M = 200.0
PARENT_DISTANCE_M = (50.0, 250.0)
NEAREST_M = 10.0
# Capacity in bit/s of a link, 0 out of reach: of its band, the distance in m, a draw from [0, 1) for line
# of sight and a standard normal one for shadow fading.
CapacityModel = Callable[[str, float, float, float], float]
_SITES, _MOST_SITES = 3, 100
_POOL = 256


class IabError(ValueError):
    """A network or allocation that cannot be used; the message names the element, in one line."""


@dataclass(frozen=True)
class IabNode:
    """An IAB node, or a donor, where the wired network begins."""

    id: str
    donor: bool = False


@dataclass(frozen=True)
class IabLink:
    """A backhaul link of one band, from ``a`` to ``b``, which is nearer to a donor."""

    a: str
    b: str
    band: str
    capacity_bps: float

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the link."""
        return self.band, self.a, self.b

    def __str__(self) -> str:
        return f"{self.a}-{self.b} ({self.band})"


@dataclass(frozen=True)
class IabPath:
    """A route of one band, from the source to a donor, both included."""

    band: str
    nodes: tuple[str, ...]

    @property
    def hops(self) -> tuple[tuple[str, str, str], ...]:
        """Keys of the links along the path."""
        return tuple((self.band, a, b) for a, b in itertools.pairwise(self.nodes))


@dataclass(frozen=True)
class IabFlow:
    """The backhaul flow of one node: its demand and the paths that it may take, one at a time."""

    id: str
    source: str
    demand_bps: float
    paths: tuple[IabPath, ...]


@dataclass(frozen=True)
class IabNetwork:
    """Nodes, links and flows that fit together; IabError otherwise."""

    nodes: tuple[IabNode, ...]
    links: tuple[IabLink, ...]
    flows: tuple[IabFlow, ...] = ()

    def __post_init__(self) -> None:
        _check_nodes(self)
        _check_links(self)
        _check_flows(self)

    def capacity_bps(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Capacities in the order of ``links``, shape (links,)."""
        return np.array([link.capacity_bps for link in self.links])

    def demand_bps(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Demands in the order of ``flows``, shape (flows,)."""
        return np.array([flow.demand_bps for flow in self.flows])

    def path_links(self) -> list[list[list[int]]]:
        """Indices into ``links`` along every path of every flow."""
        index = {link.key: number for number, link in enumerate(self.links)}
        return [[[index[hop] for hop in path.hops] for path in flow.paths] for flow in self.flows]


@dataclass(frozen=True)
class BapRoutingId:
    """Destination and path as they stand in the BAP header of a packet (TS 38.340 §4.2 and §6.2.2)."""

    address: int
    path: int

    @property
    def bits(self) -> int:
        """Both as one number of 20 bits, the address first."""
        return self.address * BAP_FIELD_SIZE + self.path


# --- checks


def _check_nodes(network: IabNetwork) -> None:
    for name, number in Counter(node.id for node in network.nodes).items():
        if number > 1:
            raise IabError(f"node {name}: appears {number} times")
    if not any(node.donor for node in network.nodes):
        raise IabError("nodes: at least one must be a donor, got none")


def _check_links(network: IabNetwork) -> None:
    names = {node.id for node in network.nodes}
    seen = set()
    for link in network.links:
        if link.band not in BANDS:
            raise IabError(f"link {link}: band must be {' or '.join(sorted(BANDS))}, got {link.band!r}")
        for end in (link.a, link.b):
            if end not in names:
                raise IabError(f"link {link}: no node named {end!r}")
        if link.key in seen:
            raise IabError(f"link {link}: appears twice")
        seen.add(link.key)
        if not 0 < link.capacity_bps <= MOST_BPS:
            raise IabError(
                f"link {link}: capacity_bps must be above 0 and at most {MOST_BPS:g}, got {link.capacity_bps}"
            )
    for band in BANDS:
        if cycle := _cycle(link for link in network.links if link.band == band):
            raise IabError(f"links of band {band}: cycle {' > '.join(cycle)}; links must point towards a donor")


def _cycle(links: Iterable[IabLink]) -> list[str]:
    """The nodes of one directed cycle, the first again at the end; empty when there is none."""
    after: dict[str, list[str]] = {}
    for link in links:
        after.setdefault(link.a, []).append(link.b)
    finished: set[str] = set()
    for start in after:
        if start in finished:
            continue
        trail, branches = [start], [iter(after[start])]
        while trail:
            following = next(branches[-1], None)
            if following is None:
                finished.add(trail.pop())
                branches.pop()
            elif following in trail:
                return [*trail[trail.index(following) :], following]
            elif following not in finished:
                trail.append(following)
                branches.append(iter(after.get(following, ())))
    return []


def _check_flows(network: IabNetwork) -> None:
    donor = {node.id: node.donor for node in network.nodes}
    keys = {link.key for link in network.links}
    seen = set()
    for flow in network.flows:
        where = f"flow {flow.id}"
        if flow.id in seen:
            raise IabError(f"{where}: appears twice")
        seen.add(flow.id)
        if flow.source not in donor:
            raise IabError(f"{where}: no node named {flow.source!r}")
        if donor[flow.source]:
            raise IabError(f"{where}: source {flow.source} is a donor; a backhaul flow begins at an IAB node")
        if not 0 <= flow.demand_bps <= MOST_BPS:
            raise IabError(f"{where}: demand_bps must be in 0..{MOST_BPS:g}, got {flow.demand_bps}")
        if not flow.paths:
            raise IabError(f"{where}: has no path")
        for number, path in enumerate(flow.paths):
            _check_path(f"{where}: path {number}", flow, path, donor, keys)
            if path in flow.paths[:number]:
                raise IabError(f"{where}: path {number} is the same as path {flow.paths.index(path)}")


def _check_path(
    where: str, flow: IabFlow, path: IabPath, donor: Mapping[str, bool], keys: set[tuple[str, str, str]]
) -> None:
    if path.band not in BANDS:
        raise IabError(f"{where}: band must be {' or '.join(sorted(BANDS))}, got {path.band!r}")
    for name in path.nodes:
        if name not in donor:
            raise IabError(f"{where}: no node named {name!r}")
    if len(path.nodes) < 2:
        raise IabError(f"{where}: needs at least two nodes, got {len(path.nodes)}")
    if len(set(path.nodes)) < len(path.nodes):
        raise IabError(f"{where}: cycle, a node appears twice in {' > '.join(path.nodes)}")
    if path.nodes[0] != flow.source:
        raise IabError(f"{where}: must begin at {flow.source}, begins at {path.nodes[0]}")
    if not donor[path.nodes[-1]]:
        raise IabError(f"{where}: must end at a donor, ends at {path.nodes[-1]}")
    for hop in path.hops:
        if hop not in keys:
            raise IabError(f"{where}: no {hop[0]} link {hop[1]}-{hop[2]}")


# --- JSON


def read_network(path: Path) -> IabNetwork:
    """Read a network file; IabError with one line that names the file and the element."""
    data = _read_json(path)
    try:
        return network_from_json(data)
    except IabError as error:
        raise IabError(f"{path}: {error}") from None


def read_allocation(path: Path, network: IabNetwork) -> tuple[int, ...]:
    """Read ``{flow id: path index}``; the indices in the order of the flows, IabError otherwise."""
    data = _read_json(path)
    try:
        return allocation_from_json(data, network)
    except IabError as error:
        raise IabError(f"{path}: {error}") from None


def allocation_from_json(data: object, network: IabNetwork) -> tuple[int, ...]:
    """The path index of every flow, in the order of the flows."""
    if not isinstance(data, dict):
        raise IabError(f"an allocation must be an object of flow id and path index, got {_kind(data)}")
    known = {flow.id for flow in network.flows}
    for name in data:
        if name not in known:
            raise IabError(f"flow {name}: the network has no such flow")
    indices = []
    for flow in network.flows:
        if flow.id not in data:
            raise IabError(f"flow {flow.id}: has no path index")
        index = data[flow.id]
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(flow.paths):
            raise IabError(
                f"flow {flow.id}: path index must be a whole number from 0 to {len(flow.paths) - 1}, got {index!r}"
            )
        indices.append(index)
    return tuple(indices)


def network_from_json(data: object) -> IabNetwork:
    """A network from what ``json.load`` returns; unknown and missing keys are errors."""
    top = _object(data, "network", ("nodes", "links", "flows"))
    nodes = [
        IabNode(_text(entry["id"], f"{where}: id"), _flag(entry["donor"], f"{where}: donor"))
        for entry, where in _entries(top["nodes"], "nodes", IabNode)
    ]
    links = [
        IabLink(
            _text(entry["a"], f"{where}: a"),
            _text(entry["b"], f"{where}: b"),
            _text(entry["band"], f"{where}: band"),
            _number(entry["capacity_bps"], f"link {entry['a']}-{entry['b']} ({entry['band']}): capacity_bps"),
        )
        for entry, where in _entries(top["links"], "links", IabLink)
    ]
    flows = []
    for entry, where in _entries(top["flows"], "flows", IabFlow):
        name = _text(entry["id"], f"{where}: id")
        paths = [
            IabPath(
                _text(item["band"], f"{spot}: band"),
                tuple(_text(node, f"{spot}: nodes") for node in _list(item["nodes"], f"{spot}: nodes")),
            )
            for item, spot in _entries(entry["paths"], f"flow {name}: paths", IabPath)
        ]
        source = _text(entry["source"], f"flow {name}: source")
        flows.append(IabFlow(name, source, _number(entry["demand_bps"], f"flow {name}: demand_bps"), tuple(paths)))
    return IabNetwork(tuple(nodes), tuple(links), tuple(flows))


def network_to_json(network: IabNetwork) -> dict[str, Any]:
    """What ``json.dump`` writes; ``network_from_json`` gives the same network back."""
    return {
        "nodes": [{"id": node.id, "donor": node.donor} for node in network.nodes],
        "links": [
            {"a": link.a, "b": link.b, "band": link.band, "capacity_bps": link.capacity_bps} for link in network.links
        ],
        "flows": [
            {
                "id": flow.id,
                "source": flow.source,
                "demand_bps": flow.demand_bps,
                "paths": [{"band": path.band, "nodes": list(path.nodes)} for path in flow.paths],
            }
            for flow in network.flows
        ],
    }


def write_network(network: IabNetwork, path: Path) -> None:
    """Write a network file; OSError when it cannot be written."""
    path.write_text(json.dumps(network_to_json(network), indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
    except OSError as error:
        raise IabError(f"{path}: cannot be read: {error.strerror}") from None
    except IabError as error:
        raise IabError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise IabError(f"{path}: is not JSON: {error}") from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, number in Counter(key for key, _ in pairs).items():
        if number > 1:
            raise IabError(f"key {key!r} appears {number} times in one object")
    return dict(pairs)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _object(value: object, where: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise IabError(f"{where}: must be an object, got {_kind(value)}")
    for key in value:
        if key not in keys:
            raise IabError(f"{where}: unknown key {key!r}; known: {', '.join(keys)}")
    for key in keys:
        if key not in value:
            raise IabError(f"{where}: key {key!r} is missing")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise IabError(f"{where}: must be a list, got {_kind(value)}")
    return value


def _entries(value: object, where: str, model: type) -> Iterator[tuple[dict[str, Any], str]]:
    for number, entry in enumerate(_list(value, where)):
        spot = f"{where}[{number}]"
        yield _object(entry, spot, [item.name for item in fields(model)]), spot


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise IabError(f"{where}: must be text, got {_kind(value) if value != '' else 'nothing'}")
    if not value.isprintable():
        # Line ends and terminal codes would break every line that names it, half characters every file.
        raise IabError(f"{where}: must be printable text, got {value!a}")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise IabError(f"{where}: must be true or false, got {_kind(value)}")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise IabError(f"{where}: must be a number, got {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise IabError(f"{where}: must be at most {MOST_BPS:g}, got one beyond 1e308") from None


# --- random networks


def generate(
    nodes: int,
    *,
    k_paths: int = 3,
    load: str = "high",
    seed: int = 0,
    active_probability: float = 1.0,
    heuristic: str = "least_common",
    broken: int = 0,
    matrix: int = 0,
    capacities: CapacityModel | None = None,
) -> IabNetwork:
    """A random network with traffic, after NANCY D4.2 §4.2.

    ``nodes`` includes the three donors. ``k_paths`` are the most paths per band and flow. ``load`` is
    one of ``LOADS_BPS``, ``heuristic`` one of ``HEURISTICS``. ``broken`` links are taken away, such
    that every node still reaches a donor in some band. ``matrix`` numbers the traffic matrices of one
    topology: topology and paths depend on the other arguments only. ``capacities`` draws capacities
    from distances instead of from the paper's intervals: nodes get sites, see :func:`_on_sites`.
    IabError on a value out of range.
    """
    if not DONORS < nodes <= MOST_NODES:
        raise IabError(f"nodes: must be in {DONORS + 1}..{MOST_NODES} (BAP addresses have 10 bits), got {nodes}")
    _at_least("k_paths", k_paths, 1)
    _at_least("seed", seed, 0)
    _at_least("broken", broken, 0)
    _at_least("matrix", matrix, 0)
    for what, name, known in (("load", load, LOADS_BPS), ("heuristic", heuristic, HEURISTICS)):
        if name not in known:
            raise IabError(f"{what}: must be one of {', '.join(known)}, got {name!r}")
    if not 0 < active_probability <= 1:
        raise IabError(f"active_probability: must be above 0 and at most 1, got {active_probability}")
    found, links = _random_topology(nodes, _stream(seed, 0))
    if capacities is not None:
        links = _on_sites(found, links, capacities, _stream(seed, 3))
    links = break_links(found, links, broken, _stream(seed, 1))
    paths = candidate_paths(found, links, k_paths, heuristic)
    flows = _random_flows(found, paths, LOADS_BPS[load], active_probability, _stream(seed, 2, matrix))
    return IabNetwork(found, links, flows)


def with_matrix(network: IabNetwork, *, load: str, seed: int, matrix: int) -> IabNetwork:
    """``network``, as ``generate`` made it with every node active, with its traffic matrix number ``matrix``.

    Gives what ``generate`` with the same ``load``, ``seed`` and ``matrix`` gives, without choosing topology
    and paths again. IabError where a node has no flow.
    """
    paths = {flow.source: flow.paths for flow in network.flows}
    for node in network.nodes:
        if not node.donor and node.id not in paths:
            raise IabError(f"node {node.id}: has no flow; other traffic matrices need every node active")
    return replace(network, flows=_random_flows(network.nodes, paths, LOADS_BPS[load], 1.0, _stream(seed, 2, matrix)))


def _stream(seed: int, *concern: int) -> np.random.Generator:
    """A stream of its own for topology (0), broken links (1), each traffic matrix (2, number) and sites (3)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=concern))


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise IabError(f"{what}: must be at least {least}, got {value}")


def _random_topology(count: int, rng: np.random.Generator) -> tuple[tuple[IabNode, ...], tuple[IabLink, ...]]:
    nodes = [IabNode(f"d{number + 1}", donor=True) for number in range(DONORS)]
    links = []
    layer = [node.id for node in nodes]
    while len(nodes) < count:
        below: list[str] = []
        for place, parent in enumerate(layer):
            # The next node of the layer; the last one has its neighbour on the other side.
            neighbour = layer[place + 1 if place + 1 < len(layer) else place - 1] if len(layer) > 1 else None
            for _ in range(int(rng.integers(1, MAX_CHILDREN, endpoint=True))):
                if len(nodes) == count:
                    break
                child = IabNode(f"n{len(nodes) - DONORS + 1}")
                nodes.append(child)
                below.append(child.id)
                for band in BANDS:
                    extra = rng.random() < EXTRA_PARENT_PROBABILITY[band]
                    parents = [parent, neighbour] if extra and neighbour is not None else [parent]
                    links += [IabLink(child.id, to, band, float(rng.uniform(*CAPACITY_BPS[band]))) for to in parents]
        layer = below
    return tuple(nodes), tuple(links)


def _on_sites(
    nodes: Sequence[IabNode], links: Sequence[IabLink], capacity: CapacityModel, rng: np.random.Generator
) -> tuple[IabLink, ...]:
    """``links`` with the capacities of random sites, without those that reach nothing.

    The donors are ``SITE_DISTANCE_M`` apart. A node stands 50 to 250 m from its first parent, within 60
    degrees of the way out of the donors' midst, at the best of three sites that reach this parent in
    both bands, by the capacity in mmWave. Both bands of two nodes have line of sight or neither has;
    shadow fading is drawn for each. Second parents that a site does not reach are left out.
    """
    donors = [node.id for node in nodes if node.donor]
    radius_m = SITE_DISTANCE_M / (2 * math.sin(math.pi / len(donors))) if len(donors) > 1 else 0.0
    place = {name: cmath.rect(radius_m, 2 * math.pi * number / len(donors)) for number, name in enumerate(donors)}
    own: dict[str, list[IabLink]] = {node.id: [] for node in nodes if not node.donor}
    for link in links:
        own[link.a].append(link)
    found: dict[tuple[str, str, str], float] = {}
    for name, mine in own.items():
        parent = mine[0].b
        outward = cmath.phase(place[parent]) if place[parent] else rng.uniform(-math.pi, math.pi)
        sites: list[tuple[float, complex, dict[tuple[str, str, str], float]]] = []
        for _ in range(_MOST_SITES):
            angle = outward + rng.uniform(-math.pi / 3, math.pi / 3)
            site = place[parent] + cmath.rect(rng.uniform(*PARENT_DISTANCE_M), angle)
            sight = {link.b: rng.random() for link in mine}
            drawn = {
                link.key: capacity(
                    link.band, max(NEAREST_M, abs(site - place[link.b])), sight[link.b], float(rng.standard_normal())
                )
                for link in mine
            }
            reached = [drawn[band, name, parent] for band in BANDS]
            if min(reached) > 0:
                sites.append((drawn[MMWAVE, name, parent], site, drawn))
            if len(sites) == _SITES:
                break
        if not sites:
            raise IabError(f"node {name}: none of {_MOST_SITES} sites reaches its parent {parent} in both bands")
        _, place[name], drawn = max(sites, key=lambda entry: entry[0])
        found |= drawn
    return tuple(replace(link, capacity_bps=found[link.key]) for link in links if found[link.key] > 0)


def break_links(
    nodes: Sequence[IabNode], links: Sequence[IabLink], count: int, rng: np.random.Generator
) -> tuple[IabLink, ...]:
    """``links`` without ``count`` random ones, such that every node still reaches a donor in some band."""
    left = list(links)
    broken = 0
    for number in rng.permutation(len(links)):
        if broken == count:
            break
        without = [link for link in left if link is not links[number]]
        if _reaching(nodes, without) == {node.id for node in nodes}:
            left, broken = without, broken + 1
    if broken < count:
        raise IabError(f"broken: only {broken} links can break before a node is cut off, got {count}")
    return tuple(left)


def _reaching(nodes: Iterable[IabNode], links: Sequence[IabLink]) -> set[str]:
    """Nodes that reach a donor within one band, donors included."""
    donors = {node.id for node in nodes if node.donor}
    found = set(donors)
    for band in BANDS:
        before: dict[str, list[str]] = {}
        for link in links:
            if link.band == band:
                before.setdefault(link.b, []).append(link.a)
        todo, seen = list(donors), set(donors)
        while todo:
            for name in before.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        found |= seen
    return found


def _random_flows(
    nodes: Sequence[IabNode],
    paths: Mapping[str, tuple[IabPath, ...]],
    demand_bps: tuple[float, float],
    active_probability: float,
    rng: np.random.Generator,
) -> tuple[IabFlow, ...]:
    flows = []
    for node in nodes:
        if not node.donor:
            active, demand = rng.random() < active_probability, float(rng.uniform(*demand_bps))
            if active:
                flows.append(IabFlow(f"f-{node.id}", node.id, demand, paths[node.id]))
    return tuple(flows)


# --- candidate paths


def candidate_paths(
    nodes: Sequence[IabNode], links: Sequence[IabLink], k_paths: int, heuristic: str
) -> dict[str, tuple[IabPath, ...]]:
    """Up to ``k_paths`` paths per band for every node, Sub-6 first, chosen by a heuristic.

    ``shortest`` takes the fewest hops. ``last_hop`` takes the path whose last link, the one into the
    donor, is on the fewest paths chosen so far, ``least_common`` the path with the smallest sum over
    its links of the paths chosen so far; hops, then the order of the links, decide between equals.
    A path is chosen among the 256 shortest (a network of the generator has fewer).
    """
    donors = {node.id for node in nodes if node.donor}
    chosen: dict[str, tuple[IabPath, ...]] = {node.id: () for node in nodes if not node.donor}
    cost = HEURISTICS[heuristic]
    for band in BANDS:
        after: dict[str, list[str]] = {}
        for link in links:
            if link.band == band:
                after.setdefault(link.a, []).append(link.b)
        used: Counter[tuple[str, str, str]] = Counter()
        for source in chosen:
            pool = list(itertools.islice(_by_hops(source, after, donors, band), _POOL))
            for _ in range(min(k_paths, len(pool))):
                best = min(pool, key=lambda path: (cost(path, used), len(path.nodes)))
                pool.remove(best)
                chosen[source] += (best,)
                used.update(best.hops)
    return chosen


def _by_hops(source: str, after: Mapping[str, Sequence[str]], donors: set[str], band: str) -> Iterator[IabPath]:
    order = itertools.count()
    heap: list[tuple[int, int, tuple[str, ...]]] = [(1, next(order), (source,))]
    while heap:
        hops, _, trail = heapq.heappop(heap)
        if trail[-1] in donors:
            yield IabPath(band, trail)
            continue
        for following in after.get(trail[-1], ()):
            if following not in trail:
                heapq.heappush(heap, (hops + 1, next(order), (*trail, following)))


def _no_cost(_path: IabPath, _used: Mapping[tuple[str, str, str], int]) -> int:
    return 0


def _last_hop_cost(path: IabPath, used: Mapping[tuple[str, str, str], int]) -> int:
    return used.get(path.hops[-1], 0)


def _common_links_cost(path: IabPath, used: Mapping[tuple[str, str, str], int]) -> int:
    return sum(used.get(hop, 0) for hop in path.hops)


HEURISTICS = {"shortest": _no_cost, "last_hop": _last_hop_cost, "least_common": _common_links_cost}


def routing_ids(network: IabNetwork, *, back: bool = False) -> dict[str, tuple[BapRoutingId, ...]]:
    """The BAP routing id of every path of every flow: ``{flow id: ids in the order of its paths}``.

    The address is that of the donor in which the path ends, or of the flow's source on the way
    ``back``: its place among the nodes, from 1. The path identity numbers the different paths to that
    node, from 0; flows with the same path share it. IabError when 10 bits are too few.
    """
    address = {node.id: number for number, node in enumerate(network.nodes, start=1)}
    numbers: dict[str, dict[IabPath, int]] = {}
    found = {}
    for flow in network.flows:
        ids = []
        for path in flow.paths:
            end = path.nodes[0 if back else -1]
            known = numbers.setdefault(end, {})
            ids.append(BapRoutingId(address[end], known.setdefault(path, len(known))))
            for what, value in (("addresses", ids[-1].address), ("paths to one node", ids[-1].path)):
                if value >= BAP_FIELD_SIZE:
                    raise IabError(f"node {end}: BAP has room for {BAP_FIELD_SIZE} {what} (TS 38.340), got more")
        found[flow.id] = tuple(ids)
    return found
