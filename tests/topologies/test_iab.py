from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from topologies.iab import (
    CAPACITY_BPS,
    LOADS_BPS,
    IabError,
    IabFlow,
    IabNetwork,
    allocation_from_json,
    candidate_paths,
    generate,
    network_from_json,
    network_to_json,
    read_allocation,
    read_network,
    routing_ids,
    with_matrix,
    write_network,
)

SMALL: dict[str, Any] = {
    "nodes": [{"id": "d1", "donor": True}, {"id": "n1", "donor": False}, {"id": "n2", "donor": False}],
    "links": [
        {"a": "n1", "b": "d1", "band": "mmwave", "capacity_bps": 9e8},
        {"a": "n2", "b": "n1", "band": "mmwave", "capacity_bps": 8e8},
        {"a": "n2", "b": "d1", "band": "sub6", "capacity_bps": 2e8},
    ],
    "flows": [
        {
            "id": "f",
            "source": "n2",
            "demand_bps": 5e8,
            "paths": [{"band": "sub6", "nodes": ["n2", "d1"]}, {"band": "mmwave", "nodes": ["n2", "n1", "d1"]}],
        }
    ],
}


@pytest.mark.parametrize("nodes", [4, 20, 40, 60])
@pytest.mark.parametrize("load", ["low", "high"])
def test_networks_have_the_ranges_of_the_paper(nodes: int, load: str) -> None:
    network = generate(nodes, k_paths=3, load=load, seed=nodes)
    assert len(network.nodes) == nodes
    assert sum(node.donor for node in network.nodes) == 3
    assert len(network.flows) == nodes - 3
    for link in network.links:
        low, high = CAPACITY_BPS[link.band]
        assert low <= link.capacity_bps <= high
    for flow in network.flows:
        assert LOADS_BPS[load][0] <= flow.demand_bps <= LOADS_BPS[load][1]
        for band in ("mmwave", "sub6"):
            assert 1 <= sum(path.band == band for path in flow.paths) <= 3


def test_extra_parents_come_with_their_probabilities() -> None:
    extra = {"mmwave": 0, "sub6": 0}
    nodes = 0
    for seed in range(60):
        network = generate(40, seed=seed)
        nodes += 37
        for band in extra:
            extra[band] += sum(link.band == band for link in network.links) - 37
    # 2220 draws: three standard deviations are 0.03. A layer of one node has no neighbour to link to.
    assert extra["mmwave"] / nodes == pytest.approx(0.4, abs=0.035)
    assert extra["sub6"] / nodes == pytest.approx(0.6, abs=0.035)


def test_active_probability() -> None:
    flows = sum(len(generate(40, seed=seed, active_probability=0.4).flows) for seed in range(40))
    assert flows / (40 * 37) == pytest.approx(0.4, abs=0.04)


def test_seeds_and_matrices() -> None:
    assert generate(30, seed=1) == generate(30, seed=1)
    assert generate(30, seed=1).links != generate(30, seed=2).links
    one, other = generate(30, seed=1), generate(30, seed=1, matrix=1)
    assert one.links == other.links
    assert [flow.paths for flow in one.flows] == [flow.paths for flow in other.flows]
    assert [flow.demand_bps for flow in one.flows] != [flow.demand_bps for flow in other.flows]


def test_broken_links_keep_every_node_connected() -> None:
    for seed in range(10):
        whole, broken = generate(30, seed=seed), generate(30, seed=seed, broken=5)
        assert len(broken.links) == len(whole.links) - 5
        assert set(broken.links) < set(whole.links)
        assert all(flow.paths for flow in broken.flows)
    with pytest.raises(IabError, match=r"broken: only \d+ links can break before a node is cut off, got 1000"):
        generate(20, seed=1, broken=1000)


def test_heuristics_choose_what_they_say() -> None:
    network = generate(40, seed=4)

    def chosen(heuristic: str, k: int = 1) -> list[Any]:
        return [
            path for paths in candidate_paths(network.nodes, network.links, k, heuristic).values() for path in paths
        ]

    def most_used(paths: list[Any], last: bool) -> int:
        hops = [hop for path in paths for hop in (path.hops[-1:] if last else path.hops)]
        return max(hops.count(hop) for hop in set(hops))

    assert most_used(chosen("last_hop"), last=True) <= most_used(chosen("shortest"), last=True)
    assert most_used(chosen("least_common"), last=False) < most_used(chosen("shortest"), last=False)
    lengths = {(path.band, path.nodes[0]): len(path.nodes) for path in chosen("shortest")}
    for path in chosen("least_common", 3):
        assert len(path.nodes) >= lengths[path.band, path.nodes[0]]


def test_file_and_back(tmp_path: Path) -> None:
    network = generate(20, seed=1, broken=2)
    write_network(network, tmp_path / "net.json")
    assert read_network(tmp_path / "net.json") == network
    assert network_to_json(network_from_json(SMALL)) == SMALL


def _set(*where: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in where[:-1]:
            data = data[key]
        data[where[-1]] = value

    return change


def _add(where: str, entry: dict[str, Any]) -> Callable[[Any], None]:
    return lambda data: data[where].append(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("flows", 0, "paths", value=[]), "flow f: has no path"),
        (_set("flows", 0, "demand_bps", value=float("nan")), r"flow f: demand_bps must be in 0\.\.1e\+18, got nan"),
        (_set("flows", 0, "demand_bps", value=-1), "flow f: demand_bps must be .* got -1"),
        (_set("flows", 0, "demand_bps", value=10**400), r"flow f: demand_bps: must be at most 1e\+18"),
        (_set("flows", 0, "source", value="n9"), "flow f: no node named 'n9'"),
        (_set("flows", 0, "source", value="d1"), "flow f: source d1 is a donor"),
        (_set("flows", 0, "paths", 0, "nodes", value=["n2", "n9"]), "flow f: path 0: no node named 'n9'"),
        (_set("flows", 0, "paths", 0, "nodes", value=["n2", "n1"]), "flow f: path 0: must end at a donor"),
        (_set("flows", 0, "paths", 0, "nodes", value=["n1", "d1"]), "flow f: path 0: must begin at n2"),
        (_set("flows", 0, "paths", 0, "nodes", value=["n2"]), "flow f: path 0: needs at least two nodes, got 1"),
        (_set("flows", 0, "paths", 1, "nodes", value=["n2", "n1", "n2", "d1"]), "flow f: path 1: cycle"),
        (_set("flows", 0, "paths", 0, "band", value="mmwave"), "flow f: path 0: no mmwave link n2-d1"),
        (_set("flows", 0, "paths", 0, "band", value="6g"), "flow f: path 0: band must be mmwave or sub6, got '6g'"),
        (_set("flows", 0, "paths", 0, value=SMALL["flows"][0]["paths"][1]), "flow f: path 1 is the same as path 0"),
        (_add("flows", SMALL["flows"][0]), "flow f: appears twice"),
        (_set("links", 0, "capacity_bps", value=0), r"link n1-d1 \(mmwave\): capacity_bps must be .* got 0"),
        (_set("links", 0, "capacity_bps", value=-5.0), r"link n1-d1 \(mmwave\): capacity_bps must be .* got -5"),
        (_set("links", 0, "capacity_bps", value=float("inf")), "capacity_bps must be .* got inf"),
        (_set("links", 0, "capacity_bps", value=True), "capacity_bps: must be a number, got true or false"),
        (_set("links", 0, "b", value="d7"), r"link n1-d7 \(mmwave\): no node named 'd7'"),
        (_set("links", 0, "band", value="lte"), "band must be mmwave or sub6, got 'lte'"),
        (_add("links", SMALL["links"][0]), r"link n1-d1 \(mmwave\): appears twice"),
        (
            _add("links", {"a": "n1", "b": "n2", "band": "mmwave", "capacity_bps": 1}),
            "links of band mmwave: cycle n1 > n2 > n1",
        ),
        (_add("nodes", {"id": "n1", "donor": False}), "node n1: appears 2 times"),
        (_set("nodes", 0, "donor", value=False), "nodes: at least one must be a donor"),
        (_set("nodes", 0, "id", value=3), r"nodes\[0\]: id: must be text, got a number"),
        (_set("colour", value=1), "network: unknown key 'colour'; known: nodes, links, flows"),
        (_set("flows", 0, "id", value="f\n2"), r"flows\[0\]: id: must be printable text, got 'f\\n2'"),
        (_set("nodes", 0, "id", value="\x1b[31m"), r"nodes\[0\]: id: must be printable text, got '\\x1b\[31m'"),
        (_set("flows", 0, "id", value="f\ud800"), r"flows\[0\]: id: must be printable text, got 'f\\ud800'"),
        (lambda data: data.pop("links"), "network: key 'links' is missing"),
        (lambda data: data["flows"][0].pop("paths"), r"flows\[0\]: key 'paths' is missing"),
        (_set("links", value={}), "links: must be a list, got an object"),
    ],
)
def test_a_mistake_is_one_line_with_the_element(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    data = copy.deepcopy(SMALL)
    change(data)
    (tmp_path / "net.json").write_text(json.dumps(data))
    with pytest.raises(IabError, match=message) as caught:
        read_network(tmp_path / "net.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "net.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be an object, got a list"),
        ('{"nodes": [], "nodes": []}', "key 'nodes' appears 2 times"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_no_network(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(IabError, match=message):
        read_network(tmp_path / "net.json")
    with pytest.raises(IabError, match="cannot be read"):
        read_network(tmp_path)


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        ({}, "flow f: has no path index"),
        ({"f": 0, "g": 0}, "flow g: the network has no such flow"),
        ({"f": 2}, "flow f: path index must be a whole number from 0 to 1, got 2"),
        ({"f": -1}, "got -1"),
        ({"f": 0.0}, "got 0.0"),
        ({"f": True}, "got True"),
        ([0], "an allocation must be an object"),
    ],
)
def test_allocations_that_do_not_fit(allocation: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "alloc.json").write_text(json.dumps(allocation))
    with pytest.raises(IabError, match=message):
        read_allocation(tmp_path / "alloc.json", network_from_json(SMALL))


def test_allocations_are_in_the_order_of_the_flows() -> None:
    network = generate(10, seed=1)
    data = {flow.id: number % len(flow.paths) for number, flow in enumerate(network.flows)}
    shuffled = dict(sorted(data.items(), reverse=True))
    assert allocation_from_json(shuffled, network) == tuple(data.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nodes": 3}, r"nodes: must be in 4..1023 \(BAP addresses have 10 bits\), got 3"),
        ({"nodes": 1024}, "nodes: must be in 4..1023 .*, got 1024"),
        ({"nodes": 9, "k_paths": 0}, "k_paths: must be at least 1, got 0"),
        ({"nodes": 9, "load": "huge"}, "load: must be one of low, high, got 'huge'"),
        ({"nodes": 9, "heuristic": "x"}, "heuristic: must be one of shortest, last_hop, least_common, got 'x'"),
        ({"nodes": 9, "active_probability": float("nan")}, "active_probability: must be above 0 and at most 1"),
        ({"nodes": 9, "seed": -1}, "seed: must be at least 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(IabError, match=message):
        generate(**arguments)


def test_routing_ids_tell_the_paths_to_a_donor_apart() -> None:
    network = generate(60, seed=3)
    found: dict[tuple[int, int], tuple[str, tuple[str, ...]]] = {}
    donors = [node.id for node in network.nodes]
    for flow, ids in zip(network.flows, routing_ids(network).values(), strict=True):
        for path, routing_id in zip(flow.paths, ids, strict=True):
            assert 0 < routing_id.address < 1024 and 0 <= routing_id.path < 1024
            assert donors[routing_id.address - 1] == path.nodes[-1]
            key = routing_id.address, routing_id.path
            assert found.setdefault(key, (path.band, path.nodes)) == (path.band, path.nodes)
            assert routing_id.bits >> 10 == routing_id.address and routing_id.bits & 1023 == routing_id.path
    for flow, ids in routing_ids(network, back=True).items():
        source = next(one.source for one in network.flows if one.id == flow)
        assert {donors[one.address - 1] for one in ids} == {source}
        assert [one.path for one in ids] == list(range(len(ids)))


def test_more_nodes_than_bap_can_address() -> None:
    base = network_from_json(SMALL)
    flows = base.flows
    filler = tuple(type(base.nodes[0])(f"x{number}") for number in range(1100))
    network = IabNetwork(filler + base.nodes, base.links, flows)
    with pytest.raises(IabError, match="node d1: BAP has room for 1024 addresses"):
        routing_ids(network)


def test_a_long_chain_is_checked_without_recursion() -> None:
    nodes = [{"id": "d", "donor": True}] + [{"id": f"n{number}", "donor": False} for number in range(3000)]
    links = [{"a": f"n{number + 1}", "b": f"n{number}", "band": "sub6", "capacity_bps": 1} for number in range(2999)]
    assert len(network_from_json({"nodes": nodes, "links": links, "flows": []}).links) == 2999
    links.append({"a": "n0", "b": "n2999", "band": "sub6", "capacity_bps": 1})
    with pytest.raises(IabError, match="cycle"):
        network_from_json({"nodes": nodes, "links": links, "flows": []})


def test_capacities_are_uniform() -> None:
    values = np.array([link.capacity_bps for seed in range(30) for link in generate(40, seed=seed).links])
    wide = values[values > 5e8]
    assert wide.mean() == pytest.approx(900e6, rel=0.01)
    assert wide.std() == pytest.approx(200e6 / 12**0.5, rel=0.05)


def test_capacities_from_sites() -> None:
    seen: list[tuple[str, float, float, float]] = []

    def model(band: str, distance_m: float, sight: float, shadow: float) -> float:
        seen.append((band, distance_m, sight, shadow))
        reach_m = {"mmwave": 200.0, "sub6": 400.0}[band]
        return max(0.0, 1e9 * (1 - distance_m / reach_m))

    network, plain = generate(60, seed=4, capacities=model), generate(60, seed=4)
    assert network == generate(60, seed=4, capacities=model)
    kept = {link.key: link.capacity_bps for link in network.links}
    assert kept.keys() < {link.key for link in plain.links}
    # Second parents may be out of reach, first ones never are.
    assert {link.a for link in network.links if link.band == "mmwave"} == {flow.source for flow in plain.flows}
    assert [flow.demand_bps for flow in network.flows] == [flow.demand_bps for flow in plain.flows]
    assert all(0 < value < 1e9 for value in kept.values())
    distances = np.array([distance_m for _, distance_m, _, _ in seen])
    assert distances.min() >= 10 and distances.max() > 250
    assert {sight for band, _, sight, _ in seen if band == "mmwave"} & {
        sight for band, _, sight, _ in seen if band == "sub6"
    }
    shadows = np.array([shadow for _, _, _, shadow in seen])
    assert abs(shadows.mean()) < 0.1 and shadows.std() == pytest.approx(1, abs=0.1)
    with pytest.raises(IabError, match="node n1: none of 100 sites reaches its parent d1 in both bands"):
        generate(60, seed=4, capacities=lambda *_: 0.0)


def test_other_traffic_matrices_of_a_network() -> None:
    network = generate(20, seed=4, broken=2)
    assert with_matrix(network, load="low", seed=4, matrix=7) == generate(20, seed=4, load="low", broken=2, matrix=7)
    idle = generate(20, seed=4, active_probability=0.5)
    with pytest.raises(IabError, match=r"node n\d+: has no flow"):
        with_matrix(idle, load="low", seed=4, matrix=7)


def test_flows_are_frozen() -> None:
    flow = network_from_json(SMALL).flows[0]
    assert isinstance(flow, IabFlow)
    with pytest.raises(AttributeError):
        flow.demand_bps = 1.0  # type: ignore[misc]
