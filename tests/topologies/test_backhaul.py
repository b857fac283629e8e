from __future__ import annotations

from dataclasses import replace

import pytest

from topologies.backhaul import from_network, scaled, to_network
from topologies.iab import generate
from topologies.model import (
    BackhaulFlow,
    BackhaulPath,
    Host,
    IabDonor,
    IabNode,
    Link,
    Switch,
    Topology,
    TopologyError,
)
from topologies.paths import candidate_paths

UP = BackhaulPath("mmwave", ("n2", "n1", "d1"))
DIRECT = BackhaulPath("sub6", ("n2", "d1"))


def small(**changes: object) -> Topology:
    """n2 reaches donor d1 over n1 in mmWave and directly in Sub-6."""
    parts: dict[str, object] = {
        "name": "small",
        "nodes": (IabDonor(name="d1"), IabNode(name="n1"), IabNode(name="n2"), Host(name="cu")),
        "links": (
            Link(a="n1", b="d1", band="mmwave", bandwidth_bps=9e6),
            Link(a="n2", b="n1", band="mmwave", bandwidth_bps=8e6),
            Link(a="n2", b="d1", band="sub6", bandwidth_bps=2e6),
            Link(a="n1", b="d1", band="sub6", bandwidth_bps=3e6),
            Link(a="d1", b="cu"),
        ),
        "backhaul": (BackhaulFlow(name="f2", source="n2", sink="cu", paths=(UP, DIRECT)),),
    }
    return Topology(**(parts | changes))  # type: ignore[arg-type]


def test_bands_join_the_same_nodes_under_names_of_their_own() -> None:
    topology = small()
    assert [link.name for link in topology.links] == [
        "n1-d1@mmwave", "n2-n1@mmwave", "n2-d1@sub6", "n1-d1@sub6", "d1-cu",
    ]  # fmt: skip
    assert topology.link_named("d1-n1@sub6").bandwidth_bps == 3e6
    assert topology.backhaul_named("f2").links(0) == ("n2-n1@mmwave", "n1-d1@mmwave")
    with pytest.raises(KeyError):
        topology.link_named("n1-d1")


def test_iab_nodes_are_switches_but_their_bands_carry_no_other_traffic() -> None:
    topology = small()
    assert isinstance(topology.node("n1"), Switch) and isinstance(topology.node("d1"), Switch)
    assert topology.neighbours("d1") == ("cu",)
    assert candidate_paths(topology, "n1", "cu", 3) == ()


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"source": "d1"}, "source must be a node of kind iab-node (n1, n2), got d1"),
        ({"source": "n9"}, "source must be a node of kind iab-node (n1, n2), got n9"),
        ({"sink": "n1"}, "sink must be a node of kind host (cu), got n1"),
        ({"paths": ()}, "has no path"),
        ({"paths": (UP, UP)}, "path 1 is the same as path 0"),
        ({"paths": (BackhaulPath("mmwave", ("n1", "d1")),)}, "path 0: must lead from n2 to a donor, got n1 > d1"),
        (
            {"paths": (BackhaulPath("mmwave", ("n2", "n1")),)},
            "path 0: must end at a node of kind iab-donor, ends at n1",
        ),
        ({"paths": (BackhaulPath("sub6", ("n2", "n1", "d1")),)}, "path 0: no link n2-n1@sub6"),
        ({"paths": (UP, DIRECT), "path_index": 2}, "path_index must be a whole number in [0, 1], got 2"),
        ({"name": "F 2"}, "backhaul flow name must match"),
    ],
)
def test_flows_that_cannot_run_are_refused(flow: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"name": "f2", "source": "n2", "sink": "cu", "paths": (UP, DIRECT)}
    with pytest.raises(TopologyError) as caught:
        small(backhaul=(BackhaulFlow(**(settings | flow)),))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_donor_without_a_wired_link_to_the_sink_is_refused() -> None:
    with pytest.raises(TopologyError, match="path 0: donor d1 has no wired link to the sink cu"):
        small(links=small().links[:-1])


def test_a_cycle_of_one_band_is_refused_and_named() -> None:
    back = Link(a="d1", b="n2", band="mmwave", bandwidth_bps=1e6)
    with pytest.raises(TopologyError, match="links of band mmwave: cycle n1 > d1 > n2 > n1; links must point towards"):
        small(links=(*small().links, back))
    other_band = Link(a="d1", b="n2", band="mmwave", bandwidth_bps=1e6)
    only_back = tuple(link for link in small().links if link.band != "mmwave")
    assert small(links=(*only_back, other_band), backhaul=())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"band": "mmwave"}, "link n1-d1@mmwave: bandwidth_bps is missing"),
        ({"band": "6ghz", "bandwidth_bps": 1e6}, "band must be one of sub6, mmwave, got 6ghz"),
    ],
)
def test_links_with_a_band_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        Link(a="n1", b="d1", **settings)  # type: ignore[arg-type]


def test_a_band_joins_iab_nodes_only() -> None:
    odd = Link(a="n1", b="cu", band="mmwave", bandwidth_bps=1e6)
    with pytest.raises(TopologyError, match="got cu of kind host"):
        small(links=(*small().links, odd))


def test_flow_names_are_used_once() -> None:
    flow = small().backhaul[0]
    with pytest.raises(TopologyError, match="backhaul flow f2: the name is used twice"):
        small(backhaul=(flow, replace(flow, path_index=1)))


def test_a_generated_network_becomes_a_topology_and_comes_back() -> None:
    network = generate(20, k_paths=3, seed=5, active_probability=0.7)
    fragment = from_network(scaled(network, 0.01))
    topology = fragment.topology("generated")
    assert len(topology.backhaul) == len(network.flows)
    assert to_network(topology) == scaled(network, 0.01)
    demand = {network.flows[0].id: 1e6}
    assert to_network(topology, demand).demand_bps().tolist() == [1e6, *[0.0] * (len(network.flows) - 1)]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_scale_is_above_0(factor: float) -> None:
    with pytest.raises(TopologyError, match="scale must be above 0"):
        scaled(generate(5), factor)


def test_a_scale_that_leaves_the_range_of_rates() -> None:
    from topologies.backhaul_builder import network

    with pytest.raises(TopologyError, match=r"^iab: link n1-d1 \(sub6\): capacity_bps must be above 0 and at most"):
        network(nodes=5, scale=1e30)
