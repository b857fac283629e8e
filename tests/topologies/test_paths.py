"""Routes over switches: order, validation, and the helpers that find a UE's gNB and a slice's UPF."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topologies.model import App, Gnb, Link, Node, Slice, Switch, Topology, TopologyError, Ue, Upf
from topologies.paths import (
    candidate_paths,
    default_path,
    parse_path,
    path_links,
    path_text,
    serving_gnb,
    slice_upf,
)


def diamond(*, direct: bool = False) -> Topology:
    nodes: list[Node] = [Ue(name="ue", slice="embb"), Gnb(name="gnb"), Upf(name="upf", slice="embb")]
    nodes += [App(name="video", service="stream")] + [Switch(name=f"s{index}") for index in range(1, 5)]
    pairs = [("ue", "gnb"), ("gnb", "s1"), ("s1", "s2"), ("s1", "s3"), ("s3", "s4"), ("s4", "s2"), ("s2", "upf")]
    pairs += [("upf", "video")] + ([("gnb", "upf")] if direct else [])
    return Topology(
        name="t",
        nodes=tuple(nodes),
        links=tuple(Link(a=a, b=b) for a, b in pairs),
        slices=(Slice(name="embb", sst=1, prb_share=1.0),),
    )


def test_default_path_has_the_fewest_hops() -> None:
    assert default_path(diamond(), "gnb", "upf") == ("gnb", "s1", "s2", "upf")
    assert default_path(diamond(direct=True), "gnb", "upf") == ("gnb", "upf")


def test_only_switches_forward() -> None:
    # upf lies between every switch and video: no route goes through it
    with pytest.raises(TopologyError, match="no route from gnb to video over switches"):
        default_path(diamond(), "gnb", "video")


def test_candidates_come_shortest_first_and_end() -> None:
    assert candidate_paths(diamond(), "gnb", "upf", 5) == (
        ("gnb", "s1", "s2", "upf"),
        ("gnb", "s1", "s3", "s4", "s2", "upf"),
    )
    assert len(candidate_paths(diamond(), "gnb", "upf", 1)) == 1
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        candidate_paths(diamond(), "gnb", "upf", 0)


def test_a_path_survives_text_and_back() -> None:
    route = parse_path(diamond(), "gnb", "upf", "s1>s3>s4>s2")
    assert route == ("gnb", "s1", "s3", "s4", "s2", "upf")
    assert path_text(route) == "s1>s3>s4>s2"
    assert path_links(diamond(), route) == ("gnb-s1", "s1-s3", "s3-s4", "s4-s2", "s2-upf")
    assert path_links(diamond(), route[::-1]) == ("s2-upf", "s4-s2", "s3-s4", "s1-s3", "gnb-s1")
    assert parse_path(diamond(direct=True), "gnb", "upf", "") == ("gnb", "upf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s1>s9>s2", "no switch named 's9'; switches: s1, s2, s3, s4"),
        ("s1>s3>s1>s2", "switch s1 appears twice"),
        ("s1>s4>s2", "no link between s1 and s4; s1 is linked to gnb, s2, s3"),
        ("", "no link between gnb and upf"),
        ("s1>upf>s2", "no switch named 'upf'"),
        ("s1,s2", "no switch named 's1,s2'"),
    ],
)
def test_a_bad_path_is_refused_with_place_and_choice(text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        parse_path(diamond(), "gnb", "upf", text)


def test_unknown_node() -> None:
    with pytest.raises(TopologyError, match="no node named gnb9"):
        default_path(diamond(), "gnb9", "upf")


def test_serving_gnb_is_the_linked_one() -> None:
    assert serving_gnb(diamond(), "ue") == "gnb"
    nodes = (Ue(name="ue", slice="embb"), Gnb(name="g1"), Gnb(name="g2"))
    slices = (Slice(name="embb", sst=1, prb_share=1.0),)
    linked = Topology(name="t", nodes=nodes, links=(Link(a="ue", b="g2"),), slices=slices)
    assert serving_gnb(linked, "ue") == "g2"
    alone = Topology(name="t", nodes=nodes[:2], links=(), slices=slices)
    assert serving_gnb(alone, "ue") == "g1"
    with pytest.raises(TopologyError, match="no gNB within reach; gNBs: g1, g2"):
        serving_gnb(Topology(name="t", nodes=nodes, links=(), slices=slices), "ue")


def test_slice_upf_must_be_unique() -> None:
    assert slice_upf(diamond(), "embb") == "upf"
    with pytest.raises(TopologyError, match=r"slice other: needs exactly one UPF, got 0"):
        slice_upf(diamond(), "other")


@given(edges=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] < pair[1])))
def test_candidates_are_all_simple_paths_in_order_of_length(edges: set[tuple[int, int]]) -> None:
    nodes = (Gnb(name="a"), Upf(name="b", slice="x"), *(Switch(name=f"s{index}") for index in range(6)))
    links = [Link(a="a", b="s0"), Link(a="s5", b="b"), *(Link(a=f"s{i}", b=f"s{j}") for i, j in sorted(edges))]
    topology = Topology(name="t", nodes=nodes, links=tuple(links), slices=(Slice(name="x", sst=1, prb_share=1.0),))
    found = candidate_paths(topology, "a", "b", 1000)
    graph = nx.Graph((link.a, link.b) for link in links)
    expected = sorted(map(tuple, nx.all_simple_paths(graph, "a", "b")))
    assert sorted(found) == expected
    assert [len(route) for route in found] == sorted(len(route) for route in expected)
