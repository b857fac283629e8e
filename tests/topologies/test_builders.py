import pytest

from topologies import containers, core, edge, ran, transport
from topologies.fragment import Fragment
from topologies.model import Container, Gnb, Slice, Switch, TopologyError, Ue, Upf
from topologies.paths import candidate_paths, default_path
from topologies.registry import BUILDERS


def names(fragment: Fragment) -> list[str]:
    return [node.name for node in fragment.nodes]


def test_the_parts_of_a_network_add_up() -> None:
    network = (
        ran.cell(groups={"phones": {"slice": "embb", "count": 6}, "robots": {"slice": "urllc"}}, delay_s=0.001)
        + transport.redundant(paths=3, bandwidth_bps=12e6, delay_s=0.004, backup_delay_s=0.02)
        + core.core(slices=["embb", "urllc"], cpu_millicores=300)
        + edge.edge(apps={"video": {"service": "stream", "upf": ["upf-embb", "upf-urllc"]}})
    )
    slices = [Slice(name="embb", sst=1, prb_share=0.5), Slice(name="urllc", sst=2, prb_share=0.5)]
    topology = network.topology("built", slices=slices, slicing=False)
    assert not topology.slicing
    assert [ue.count for ue in topology.of_kind(Ue)] == [6, 1]
    assert next(topology.of_kind(Gnb)).name == "gnb1"
    assert [upf.cpu_millicores for upf in topology.of_kind(Upf)] == [300, 300]
    assert default_path(topology, "gnb1", "upf-embb") == ("gnb1", "s1", "s2", "upf-embb")
    assert len(candidate_paths(topology, "gnb1", "upf-urllc", 5)) == 3
    assert topology.link_named("s1-s2").delay_s == 0.004
    assert topology.link_named("s1-s4").delay_s == topology.link_named("s4-s2").delay_s == 0.01
    assert topology.link_named("s1-s4").bandwidth_bps == 12e6
    assert topology.link_named("gnb1-s1").delay_s == 0.001
    assert topology.neighbours("video") == ("upf-embb", "upf-urllc")


def test_chain_and_ring() -> None:
    chain = transport.chain(length=4, delay_s=0.001)
    assert [link.name for link in chain.links] == ["s1-s2", "s2-s3", "s3-s4"]
    ring = transport.ring(size=5, prefix="r", bandwidth_bps=1e6, loss_ratio=0.1)
    assert [link.name for link in ring.links] == ["r1-r2", "r2-r3", "r3-r4", "r4-r5", "r5-r1"]
    assert {(link.bandwidth_bps, link.loss_ratio) for link in ring.links} == {(1e6, 0.1)}
    topology = (ring + Fragment()).topology("ring")
    assert all(len(topology.neighbours(node.name)) == 2 for node in topology.nodes)


@pytest.mark.parametrize(("depth", "fanout"), [(1, 1), (1, 4), (2, 3), (3, 2)])
def test_a_tree_has_fanout_to_the_depth_leaves_and_no_loop(depth: int, fanout: int) -> None:
    topology = containers.tree(depth=depth, fanout=fanout).topology("tree")
    leaves = [node.name for node in topology.of_kind(Container)]
    assert len(leaves) == fanout**depth
    assert all(len(topology.neighbours(name)) == 1 for name in leaves)
    assert len(topology.links) == len(topology.nodes) - 1
    for leaf in leaves[1:]:
        assert default_path(topology, leaves[0], leaf)


def test_a_line_of_containers() -> None:
    fragment = containers.linear(switches=3, per_switch=2, image="x:1")
    assert names(fragment) == ["s1", "c1", "c2", "s2", "c3", "c4", "s3", "c5", "c6"]
    assert {node.image for node in fragment.nodes if not isinstance(node, Switch)} == {"x:1"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: transport.ring(size=2), "transport_ring: size must be a whole number in [3, 64], got 2"),
        (lambda: transport.chain(length=True), "length must be a whole number in [1, 64], got True"),
        (lambda: transport.redundant(paths=0), "paths must be a whole number in [1, 32], got 0"),
        (lambda: containers.tree(depth=6, fanout=9), "fanout ** depth must be a whole number in [1, 1000], got 531441"),
        (lambda: ran.cell(groups={"a": {"slice": "x", "cont": 1}}), "ue a: unknown key cont (did you mean count?)"),
        (lambda: ran.cell(groups={"a": {"slice": "x", "count": "1"}}), "ue a: count must be a int, got '1'"),
        (lambda: ran.cell(groups={"a": {}}), "ue a: slice is missing"),
        (lambda: ran.cell(groups={"a": 3}), "ue a: settings must be a mapping, got 3"),
        (lambda: edge.edge(apps={"v": {"service": "stream"}}), "app v: upf is missing"),
        (lambda: edge.edge(apps={"v": {"service": "strm", "upf": "u"}}), "service must be one of"),
        (lambda: core.core(slices="embb"), "core: slices must be a list of slice names, got 'embb'"),
    ],
)
def test_bad_settings(build, message: str) -> None:
    with pytest.raises(TopologyError) as caught:
        build()
    assert message in str(caught.value)


def test_every_builder_has_keyword_arguments_only_and_a_summary() -> None:
    for builder in BUILDERS.values():
        assert builder.summary.endswith(".")
        assert all(item.kind is item.KEYWORD_ONLY for item in builder.parameters.values())
