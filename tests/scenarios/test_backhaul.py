"""Backhaul in scenario files: what loads to what, and mistakes as one line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from scenarios.errors import ScenarioFileError
from scenarios.json_schema import schema_text
from scenarios.loader import dump_scenario, load_data, load_scenario
from scenarios.model import Scenario
from topologies.backhaul import scaled, to_network
from topologies.iab import generate, network_to_json, write_network
from topologies.model import BackhaulPath, IabDonor, IabNode
from twin.load import Load

DRAWN = """\
name: drawn
fidelity: flow
duration: 20s
seed: 3
topology:
  builders:
    - use: iab
      with: {nodes: 12, seed: 5, scale: 0.01}
traffic:
  - name: cells
    kind: backhaul
    flows: [f-n2, f-n3]
    profile: {kind: random, low: 2Mbps, high: 5Mbps, active: 60%, every: 5s}
"""

WRITTEN = """\
name: written
fidelity: flow
duration: 20s
topology:
  nodes:
    d1: {kind: iab-donor}
    n1: {kind: iab-node}
    n2: {kind: iab-node}
    cu: {kind: host}
  links:
    - {endpoints: [n1, d1], band: mmwave, bw: 9Mbps}
    - {endpoints: [n2, n1], band: mmwave, bw: 8Mbps}
    - {endpoints: [n2, d1], band: sub6, bw: 2Mbps}
    - {endpoints: [n1, d1], band: sub6, bw: 3Mbps}
    - {endpoints: [d1, cu]}
  backhaul:
    - source: n2
      sink: cu
      demand: 4Mbps
      path_index: 1
      paths:
        - {band: sub6, nodes: [n2, d1]}
        - {band: mmwave, nodes: [n2, n1, d1]}
    - {source: n1, sink: cu, name: near, paths: {k: 3, heuristic: shortest}}
events:
  - {at: 5s, link: d1-n1@mmwave, do: down, for: 5s, label: a lorry}
  - {at: 6s, entity: "flow:f-n2", knob: path_index, value: 0}
assert:
  - mean flow:f-n2 throughput_bps >= 1Mbps
"""


def read(folder: Path, text: str) -> Scenario:
    path = folder / "x.twin.yml"
    path.write_text(text)
    return load_scenario(path)


def problems_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ScenarioFileError) as caught:
        read(folder, text)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def rates_at(load: Load, time_s: float) -> dict[str, float]:
    return {demand.flow: demand.rate_bps(time_s) for demand in load.backhaul}


def test_nodes_links_and_flows_written_out(tmp_path: Path) -> None:
    scenario = read(tmp_path, WRITTEN)
    topology = scenario.topology
    assert isinstance(topology.node("d1"), IabDonor) and isinstance(topology.node("n1"), IabNode)
    assert topology.link_named("n1-d1@sub6").bandwidth_bps == 3e6
    flow, near = topology.backhaul
    assert (flow.name, flow.path_index, flow.demand_bps) == ("f-n2", 1, 4e6)
    assert flow.paths[1] == BackhaulPath("mmwave", ("n2", "n1", "d1"))
    assert [path.band for path in near.paths] == ["sub6", "mmwave"]
    assert [(item.action.entity, item.action.knob, item.action.value) for item in scenario.events] == [
        ("link:n1-d1@mmwave", "link_state", "down"),
        ("flow:f-n2", "path_index", 0),
        ("link:n1-d1@mmwave", "link_state", "up"),
    ]
    # Without traffic a flow sends what the topology says, and one without a demand nothing.
    assert rates_at(scenario.load, 0.0) == {"f-n2": 4e6}


@pytest.mark.parametrize("text", [DRAWN, WRITTEN])
def test_what_is_written_back_loads_to_the_same(text: str, tmp_path: Path) -> None:
    scenario = read(tmp_path, text)
    again = load_data(yaml.safe_load(dump_scenario(scenario)), file=scenario.source)
    assert (again.topology, again.load, again.events) == (scenario.topology, scenario.load, scenario.events)
    jsonschema.validate(yaml.safe_load(text), json.loads(schema_text()))


def test_the_builder_draws_the_network_of_the_generator(tmp_path: Path) -> None:
    topology = read(tmp_path, DRAWN).topology
    assert to_network(topology) == scaled(generate(12, seed=5), 0.01)
    assert [link.name for link in topology.links if link.band is None] == ["d1-cu", "d2-cu", "d3-cu"]


def test_nodes_that_are_not_active_have_a_flow_that_demands_nothing(tmp_path: Path) -> None:
    text = DRAWN.replace("scale: 0.01", "scale: 0.01, active_probability: 0.5")
    topology = read(tmp_path, text).topology
    active = generate(12, seed=5, active_probability=0.5)
    assert 0 < len(active.flows) < 9
    assert len(topology.backhaul) == 9
    expected = {flow.id: flow.demand_bps * 0.01 for flow in active.flows}
    assert {flow.name: flow.demand_bps for flow in topology.backhaul if flow.demand_bps} == pytest.approx(expected)


def test_a_network_file_beside_the_scenario(tmp_path: Path) -> None:
    network = generate(8, k_paths=2, seed=1)
    write_network(network, tmp_path / "net.json")
    text = DRAWN.replace("nodes: 12, seed: 5, scale: 0.01", "network: net.json, scale: 0.001, sink: core")
    scenario = read(tmp_path, text)
    assert to_network(scenario.topology) == scaled(network, 0.001)
    assert scenario.topology.backhaul[0].sink == "core"


def test_random_matrices_are_drawn_anew_and_seeded(tmp_path: Path) -> None:
    load = read(tmp_path, DRAWN).load
    drawn = [rates_at(load, time_s) for time_s in (0.0, 4.9, 5.0, 10.0, 15.0)]
    assert drawn[0] == drawn[1]
    seen = [tuple(rates.get(name, 0.0) for name in ("f-n2", "f-n3")) for rates in drawn[1:]]
    assert len(set(seen)) >= 3
    assert {rate == 0 or 2e6 <= rate <= 5e6 for rates in seen for rate in rates} == {True}
    assert any(0.0 in rates for rates in seen)
    assert read(tmp_path, DRAWN).load == load
    assert read(tmp_path, DRAWN.replace("seed: 3", "seed: 4")).load != load
    # The others send what the topology says.
    assert drawn[0]["f-n1"] == drawn[-1]["f-n1"] > 0


def test_constant_traffic_has_a_beginning_and_an_end(tmp_path: Path) -> None:
    profile = "    profile: {kind: constant, rate: 3Mbps}\n    start: 5s\n    stop: 10s\n"
    load = read(tmp_path, DRAWN[: DRAWN.index("    profile:")] + profile).load
    assert [rates_at(load, time_s)["f-n2"] for time_s in (0.0, 5.0, 9.9, 10.0)] == [0.0, 3e6, 3e6, 0.0]


def test_squares_of_milan_take_turns_and_are_scaled_per_flow(tmp_path: Path) -> None:
    profile = "    profile: {kind: telecom_italia_synthetic, cells: [5161, 4259], peak_rate: 6Mbps}\n"
    text = DRAWN.replace("flows: [f-n2, f-n3]", "flows: [f-n1, f-n2, f-n3]").replace(
        "seed: 3", "time_compression: 4320"
    )
    load = read(tmp_path, text[: text.index("    profile:")] + profile).load
    demands = {demand.flow: demand.activities for demand in load.backhaul}
    assert demands["f-n1"] == demands["f-n3"] != demands["f-n2"]
    for name in ("f-n1", "f-n2"):
        assert max(item.rate for item in demands[name]) == pytest.approx(6e6)
        assert len({item.rate for item in demands[name]}) > 50


def test_recorded_squares(tmp_path: Path) -> None:
    file = "traces:sms-call-internet-mi-2013-11-04.txt.gz"
    profile = f"    profile: {{kind: telecom_italia, file: '{file}', cells: [4259], mean_rate: 1Mbps, start_hour: 8}}\n"
    text = DRAWN.replace("seed: 3", "time_compression: 720")
    load = read(tmp_path, text[: text.index("    profile:")] + profile).load
    activities = next(demand.activities for demand in load.backhaul if demand.flow == "f-n2")
    mean = sum(item.rate * (item.stop_s - item.start_s) for item in activities) / 20.0
    assert mean == pytest.approx(1e6, rel=0.1)


MISTAKES = {
    "unknown parameter of the builder": (
        DRAWN,
        "nodes: 12,",
        "node: 12,",
        8,
        "topology.builders[0].with.node: unknown key node (did you mean nodes?); allowed: scale, nodes, k_paths, seed, "
        "heuristic, load, active_probability, network, sink",
    ),
    "no scale": (DRAWN, ", scale: 0.01", "", 8, "topology.builders[0].with: scale is missing"),
    "scale of 0": (DRAWN, "scale: 0.01", "scale: 0", 8, "scale must be above 0, got 0"),
    "scale that is text": (
        DRAWN,
        "scale: 0.01",
        "scale: small",
        8,
        "topology.builders[0].with.scale: got 'small', allowed a number",
    ),
    "too few nodes": (
        DRAWN,
        "nodes: 12",
        "nodes: 3",
        8,
        "iab: nodes: must be in 4..1023 (BAP addresses have 10 bits), got 3",
    ),
    "unknown heuristic": (
        DRAWN,
        "seed: 5",
        "heuristic: longest",
        8,
        "iab: heuristic: must be one of shortest, last_hop, least_common, got 'longest'",
    ),
    "nodes and a file": (
        DRAWN,
        "seed: 5",
        "network: net.json",
        8,
        "iab: network is a finished network; leave nodes out",
    ),
    "traffic of an unknown flow": (
        DRAWN,
        "f-n3]",
        "f-n33]",
        12,
        "traffic[0].flows: no backhaul flow named f-n33 (did you mean f-n3?); known: f-n1, f-n2, f-n3, f-n4, f-n5, "
        "f-n6, f-n7, f-n8, f-n9",
    ),
    "rates the wrong way round": (
        DRAWN,
        "low: 2Mbps",
        "low: 8Mbps",
        13,
        "traffic[0].profile: needs 0 <= low <= high <= 1e+12 bit/s, got 8e+06 and 5e+06",
    ),
    "a flow twice": (DRAWN, "f-n3]", "f-n2]", 10, "traffic cells: flow f-n2 has its traffic from cells already"),
    "unknown kind of traffic": (DRAWN, "kind: backhaul", "kind: fronthaul", 11, "traffic[0].kind: got 'fronthaul'"),
    "a rate without a unit": (
        DRAWN,
        "low: 2Mbps",
        "low: 2",
        13,
        "traffic[0].profile.low: got 2, allowed a number with a unit",
    ),
    "a link without capacity": (
        WRITTEN,
        "[n2, n1], band: mmwave, bw: 8Mbps",
        "[n2, n1], band: mmwave",
        12,
        "link n2-n1@mmwave: bandwidth_bps is missing; a link with a band has one",
    ),
    "unknown band": (
        WRITTEN,
        "band: sub6, bw: 2Mbps",
        "band: sub7, bw: 2Mbps",
        13,
        "topology.links[2].band: got 'sub7', allowed mmwave, sub6 (did you mean sub6?)",
    ),
    "a link twice in a band": (
        WRITTEN,
        "[n1, d1], band: sub6",
        "[d1, n1], band: mmwave",
        14,
        "topology.links[3].endpoints: duplicate name: link d1-n1@mmwave joins the same nodes as the link in line 11",
    ),
    "a cycle": (
        WRITTEN,
        "[n1, d1], band: sub6",
        "[d1, n2], band: mmwave",
        4,
        "links of band mmwave: cycle n1 > d1 > n2 > n1; links must point towards a donor",
    ),
    "a link to a host": (
        WRITTEN,
        "[n1, d1], band: sub6",
        "[n1, cu], band: sub6",
        14,
        "link n1-cu@sub6: a link with a band joins nodes of kind iab-node and iab-donor, got cu of kind host",
    ),
    "a path over no link": (
        WRITTEN,
        "{band: sub6, nodes: [n2, d1]}",
        "{band: sub6, nodes: [n2, n1, d1]}",
        22,
        "backhaul flow f-n2: path 0: no link n2-n1@sub6",
    ),
    "a sink that is no host": (
        WRITTEN,
        "      sink: cu\n",
        "      sink: d1\n",
        18,
        "backhaul flow f-n2: sink must be a node of kind host (cu), got d1",
    ),
    "an unknown source": (
        WRITTEN,
        "{source: n1,",
        "{source: n7,",
        24,
        "topology.backhaul[1]: source: no IAB node named n7; known: n1, n2",
    ),
    "a path index that the flow lacks": (
        WRITTEN,
        "path_index: 1",
        "path_index: 2",
        20,
        "topology.backhaul[0]: backhaul flow f-n2: path_index must be a whole number in [0, 1], got 2",
    ),
    "an event for a path that the flow lacks": (
        WRITTEN,
        "value: 0",
        "value: 2",
        27,
        "events[1].value: flow:f-n2 path_index: must be a whole number in [0, 1], got 2",
    ),
    "an event of an unknown flow": (
        WRITTEN,
        '"flow:f-n2"',
        '"flow:f-n9"',
        27,
        "events[1].entity: no flow named f-n9 (did you mean f-n2?); known: f-n2, near",
    ),
    "a container's limit": (
        WRITTEN,
        "n1: {kind: iab-node}",
        "n1: {kind: iab-node, cpu: 100m}",
        7,
        "topology.nodes.n1.cpu: a iab-node has no container that cpu could act on",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_line(case: str, tmp_path: Path) -> None:
    text, old, new, line, message = MISTAKES[case]
    assert text.count(old) == 1
    found = problems_of(tmp_path, text.replace(old, new))
    assert any(problem.startswith(f"x.twin.yml:{line}: {message}") for problem in found), found
    assert len(found) == 1


@pytest.mark.parametrize("content", ["[]", '{"nodes": [], "links": [], "flows": []}', None])
def test_a_network_file_that_cannot_be_used(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "net.json").write_text(content)
    text = DRAWN.replace("nodes: 12, seed: 5, scale: 0.01", "network: net.json, scale: 0.01")
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("x.twin.yml:8: iab: ")
    assert "net.json" in problem


def test_names_that_a_topology_cannot_have(tmp_path: Path) -> None:
    data = json.dumps(network_to_json(generate(5, seed=1)))
    (tmp_path / "net.json").write_text(data.replace('"n1"', '"Node 1"'))
    text = DRAWN.replace("nodes: 12, seed: 5, scale: 0.01", "network: net.json, scale: 0.01")
    (problem,) = problems_of(tmp_path, text)
    assert "node name must match" in problem and "'Node 1'" in problem
