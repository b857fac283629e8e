"""The wiring plan: addresses, pairs, rules, and what cannot be wired."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from tests.emulation.networks import two_slices
from topologies.model import Gnb, Link, Switch, TopologyError, Ue
from topologies.paths import parse_path
from twin.emulation.plan import make_plan, reroute
from twin.emulation.programs import programs


def test_every_interface_has_its_own_mac_and_address() -> None:
    plan = make_plan(two_slices())
    interfaces = list(plan.interfaces.values())
    assert len({interface.mac for interface in interfaces}) == len(interfaces) == 22
    addresses = [interface.address for interface in interfaces if interface.address]
    assert len(set(addresses)) == len(addresses)
    for interface in interfaces:
        is_switch = isinstance(plan.topology.node(interface.node), Switch)
        assert bool(interface.address) != is_switch


def test_ue_addresses_are_in_the_pool_of_their_slice() -> None:
    plan = make_plan(two_slices())
    for ue in plan.ues.values():
        assert ipaddress.ip_address(ue.address) in ipaddress.ip_network(plan.ue_pools[ue.slice])
    assert len({ue.address for ue in plan.ues.values()}) == 5


def test_rules_lead_from_one_end_to_the_other_in_both_directions() -> None:
    plan = make_plan(two_slices())
    pair = plan.pair("gnb1", "upf-embb")
    assert pair.route == ("gnb1", "s1", "s2", "upf-embb")
    hops = [(source.node, target.node, hop.switch, hop.out_link) for source, target, hop in pair.hops()]
    assert hops == [
        ("gnb1", "upf-embb", "s2", "s2-upf-embb"),
        ("gnb1", "upf-embb", "s1", "s1-s2"),
        ("upf-embb", "gnb1", "s1", "s1-gnb1"),
        ("upf-embb", "gnb1", "s2", "s2-s1"),
    ]


def test_a_slice_moves_to_another_path_but_not_to_another_interface() -> None:
    topology = two_slices()
    plan = make_plan(topology)
    pair = plan.pair("gnb1", "upf-embb")
    moved = reroute(plan, pair, parse_path(topology, "gnb1", "upf-embb", "s1>s3>s2"))
    assert moved.route == ("gnb1", "s1", "s3", "s2", "upf-embb")
    assert (moved.a, moved.b, moved.slice) == (pair.a, pair.b, "embb")
    second = replace(topology, links=(*topology.links, Link(a="gnb1", b="s3")))
    plan = make_plan(second)
    with pytest.raises(TopologyError, match=r"must use link gnb1-s1 of gnb1, got link gnb1-s3"):
        reroute(plan, plan.pair("gnb1", "upf-embb"), parse_path(second, "gnb1", "upf-embb", "s3>s2"))


def test_slicing_on_is_one_gnb_program_per_slice_and_off_is_one_for_all() -> None:
    on = {spec.name: spec for spec in programs(make_plan(two_slices()), seed=1, epoch_ns=0)}
    assert on["gnb1.embb"].cgroup == "gnb1.embb"
    assert on["gnb1.urllc"].config["shared_pool"] is False
    assert on["phones"].config["gnb"]["port"] != on["robots"].config["gnb"]["port"]
    off = {spec.name: spec for spec in programs(make_plan(two_slices(slicing=False)), seed=1, epoch_ns=0)}
    assert [slice_["name"] for slice_ in off["gnb1.shared"].config["slices"]] == ["embb", "urllc"]
    assert off["gnb1.shared"].config["shared_pool"] is True
    assert off["phones"].config["gnb"]["port"] == off["robots"].config["gnb"]["port"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: replace(t, links=tuple(link for link in t.links if link.name != "phones-gnb1")),
            r"ue phones: needs a direct link to a gNB; linked to nothing",
        ),
        (
            lambda t: replace(t, nodes=tuple(n for n in t.nodes if n.name != "upf-embb"), links=t.links[:6]),
            r"slice embb: needs exactly one UPF, got 0",
        ),
        (
            lambda t: replace(t, links=(Link(a="phones", b="gnb1", b_interface="eth9"), *t.links[1:2],
                                        Link(a="gnb1", b="s1", a_interface="eth9"), *t.links[3:])),
            r"link gnb1-s1: interface eth9 of gnb1 is used twice",
        ),
        (
            lambda t: replace(
                t, nodes=tuple(replace(n, cpu_millicores=500) if isinstance(n, Gnb) else n for n in t.nodes)
            ),
            r"gnb gnb1: cpu_millicores is a resource of each slice",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_wired_is_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TopologyError, match=message):
        make_plan(change(two_slices()))


def test_many_ues_get_many_addresses() -> None:
    topology = two_slices()
    many = replace(topology, nodes=tuple(replace(n, count=700) if isinstance(n, Ue) else n for n in topology.nodes))
    assert len({ue.address for ue in make_plan(many).ues.values()}) == 1400
