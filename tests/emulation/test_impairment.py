"""Links of every mechanism that this kernel has: made, changed, cut, replugged, removed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.namespaces import Namespace, measures, namespaces, udp_rates_bps, wait_until
from twin.emulation import impairment, relay
from twin.emulation.impairment import (
    End,
    LinkError,
    LinkHandle,
    LinkSpec,
    close_links,
    has_qdisc,
    make_link,
    make_links,
)
from twin.emulation.netlink import Netlink
from twin.emulation.probes import LinkDeclaration, probe_links
from twin.journal import Journal
from twin.types import Probe

emulation = pytest.mark.emulation


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create("links", folder=tmp_path) as made:
        yield made
        assert made.entries == (), "something was not struck from the journal"


@pytest.fixture
def pair(emulation_host: None) -> Iterator[list[Namespace]]:  # noqa: ARG001
    with namespaces(2) as made:
        yield made


def wired(pair: list[Namespace], journal: Journal, **values: Any) -> LinkHandle:
    left, right = pair
    link = make_link(End(left.pid, "eth0"), End(right.pid, "eth0"), journal=journal, run_id=journal.run_id, **values)
    address(pair)
    return link


def address(pair: list[Namespace], *ends: str) -> None:
    for number, namespace in enumerate(pair, start=1):
        if not ends or "ab"[number - 1] in ends:
            namespace.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")


def probed(link: LinkHandle, **other: Any) -> dict[str, Probe]:
    spec = replace(link.spec, **other)
    declared = LinkDeclaration(
        name="l",
        a=spec.a,
        b=spec.b,
        bandwidth_bps=spec.bandwidth_bps,
        delay_s=spec.delay_s,
        jitter_s=spec.jitter_s,
        loss_ratio=spec.loss_ratio,
    )
    return {row.item.split()[-1]: row for row in probe_links([declared])}


def mechanisms() -> list[str]:
    if os.geteuid() != 0:
        return ["relay"]
    return ["relay", "netem"] if has_qdisc("netem") else ["relay"]


@emulation
def test_a_plain_link_is_a_veth_pair_and_leaves_nothing(pair: list[Namespace], journal: Journal) -> None:
    with wired(pair, journal) as link:
        assert link.mechanism == "veth" and link.alive and link.relay_pid is None
        assert pair[0].pings("10.0.0.2")
        stats = link.stats()
        assert stats.packets_ab >= 1 and stats.packets_ba >= 1
    assert not link.alive
    for namespace in pair:
        with Netlink(namespace.pid) as netlink:
            assert set(netlink.links()) == {"lo"}
    link.close()


@emulation
@pytest.mark.parametrize("mechanism", mechanisms())
@measures
def test_what_is_declared_is_delivered_and_changes_live(
    pair: list[Namespace], journal: Journal, mechanism: Any
) -> None:
    spec = LinkSpec(
        a=End(pair[0].pid, "eth0"),
        b=End(pair[1].pid, "eth0"),
        bandwidth_bps=20e6,
        delay_s=0.01,
        loss_ratio=0.01,
        seed=7,
        mechanism=mechanism,
    )
    (link,) = make_links([spec], journal=journal, run_id=journal.run_id)
    with link:
        assert link.mechanism == mechanism
        rows = probed(link)
        assert set(rows) == {"bandwidth_bps", "delay_s", "loss_ratio"}
        assert all(row.passed for row in rows.values()), rows
        assert abs(rows["delay_s"].measured - 0.01) < 1e-3
        link.set(bandwidth_bps=5e6, delay_s=0.03, loss_ratio=0.05)
        rows = probed(link)
        assert all(row.passed for row in rows.values()), rows
        # and the old values are not what it delivers any more
        old = probed(link, bandwidth_bps=20e6, delay_s=0.01, loss_ratio=0.01)
        assert not any(row.passed for row in old.values()), old
        link.set(bandwidth_bps=None, delay_s=0, loss_ratio=0)
        address(pair)
        started = time.monotonic()
        assert pair[0].pings("10.0.0.2")
        assert time.monotonic() - started < 0.5
        stats = link.stats()
        assert stats.bytes_ab > 0 and stats.bytes_ba > 0
        assert stats.drops_ab + stats.lost_ab > 20


@emulation
@measures
def test_jitter_spreads_delays_and_keeps_the_order(pair: list[Namespace], journal: Journal) -> None:
    spec = LinkSpec(
        a=End(pair[0].pid, "eth0"), b=End(pair[1].pid, "eth0"), delay_s=0.02, jitter_s=0.008, mechanism="relay"
    )
    with make_links([spec], journal=journal, run_id=journal.run_id)[0] as link:
        rows = probed(link)
        assert set(rows) == {"delay_s", "jitter_s"} and all(row.passed for row in rows.values()), rows
        address(pair)
        output = pair[0].run("ping", "-c", "100", "-i", "0.002", "10.0.0.2")
        order = [int(line.split("icmp_seq=")[1].split()[0]) for line in output.splitlines() if "icmp_seq=" in line]
        assert order == sorted(order) and len(order) == 100


@emulation
@pytest.mark.parametrize("impairable", [False, True])
def test_a_cut_link_is_down_at_both_ends_and_comes_back_with_its_routes(
    pair: list[Namespace], journal: Journal, impairable: bool
) -> None:
    with wired(pair, journal, impairable=impairable) as link:
        pair[0].run("ip", "route", "add", "10.9.0.0/16", "via", "10.0.0.2")
        assert pair[0].pings("10.0.0.2")
        link.set_state(False)
        for namespace in pair:
            with Netlink(namespace.pid) as netlink:
                info = netlink.link("eth0")
                assert not info.up and not info.carrier
        assert not pair[0].pings("10.0.0.2", timeout_s=0.1)
        link.set_state(True)
        assert "10.9.0.0/16 via 10.0.0.2" in pair[0].run("ip", "route")
        assert pair[0].pings("10.0.0.2")


@emulation
@pytest.mark.parametrize("impairable", [False, True])
@measures
def test_a_replugged_end_carries_traffic_with_its_old_mac_and_rate(
    pair: list[Namespace], journal: Journal, impairable: bool
) -> None:
    with wired(pair, journal, impairable=impairable, bandwidth_bps=8e6) as link:
        mac = link.spec.a.mac
        pair[0].close()
        with namespaces(1) as (fresh,):
            renewed = link.replug("a", fresh.pid)
            assert renewed[0] == End(fresh.pid, "eth0", mac)
            address([fresh, pair[1]], *("ab" if len(renewed) == 2 else "a"))
            assert mac in fresh.run("ip", "link", "show", "eth0")
            assert fresh.pings("10.0.0.2") and link.alive
            (measured,) = udp_rates_bps(fresh, pair[1], ["10.0.0.2"], offered_bps=20e6)
            assert measured == pytest.approx(8e6, rel=0.05)
            with pytest.raises(LinkError, match="end must be one of a, b, got 'c'"):
                link.replug("c", fresh.pid)  # type: ignore[arg-type]


@emulation
def test_where_the_kernel_has_netem_it_is_used_at_both_ends(
    pair: list[Namespace], journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel here may have none: what would be asked of it is recorded."""
    asked: list[tuple[float, float, int]] = []

    def record(*_: object, **values: Any) -> None:
        asked.append((values["delay_s"], values["loss_ratio"], values["seed"]))

    monkeypatch.setattr(impairment, "has_qdisc", lambda _: True)
    monkeypatch.setattr(Netlink, "set_netem", record)
    with wired(pair, journal, impairable=True, seed=3) as link:
        assert link.mechanism == "netem" and asked == [] and link.relay_pid is None
        link.set(delay_s=0.01)
        link.set(loss_ratio=0.1)
        assert [one[:2] for one in asked] == [(0.01, 0.0), (0.01, 0.0), (0.01, 0.1), (0.01, 0.1)]
        assert asked[0][2] != asked[1][2], "each direction has its own stream"
        assert pair[0].pings("10.0.0.2")


@emulation
def test_a_dead_relay_is_noticed(pair: list[Namespace], journal: Journal) -> None:
    with wired(pair, journal, delay_s=0.001) as link:
        if link.relay_pid is None:
            pytest.skip("this kernel has netem; links need no relay")
        assert link.alive
        os.kill(link.relay_pid, signal.SIGKILL)
        wait_until(lambda: not link.alive, "the notice of a dead relay")
        with pytest.raises(LinkError, match="link eth0-eth0"):
            link.set(delay_s=0.002)
        with pytest.raises(LinkError):
            link.stats()


@emulation
@measures
def test_a_hundred_pairs_are_made_in_a_fraction_of_a_second(pair: list[Namespace], journal: Journal) -> None:
    specs = [LinkSpec(a=End(pair[0].pid, f"a{n}"), b=End(pair[1].pid, f"b{n}")) for n in range(100)]
    started = time.monotonic()
    links = make_links(specs, journal=journal, run_id=journal.run_id)
    took = time.monotonic() - started
    started = time.monotonic()
    close_links(links)
    gone = time.monotonic() - started
    assert took < 1.0 and gone < 1.0, (took, gone)  # 0.1 s each on a quiet host
    with Netlink(pair[1].pid) as netlink:
        assert set(netlink.links()) == {"lo"}


@emulation
def test_a_failure_in_a_batch_leaves_nothing(pair: list[Namespace], journal: Journal) -> None:
    good = [LinkSpec(a=End(pair[0].pid, f"a{n}"), b=End(pair[1].pid, f"b{n}"), delay_s=n / 1000) for n in range(3)]
    taken = LinkSpec(a=End(pair[0].pid, "a1"), b=End(pair[1].pid, "c1"))
    with pytest.raises(LinkError, match="link a1-c1: cannot create veth a1 - c1: File exists"):
        make_links([*good, taken], journal=journal, run_id=journal.run_id)
    for namespace in pair:
        with Netlink(namespace.pid) as netlink:
            assert set(netlink.links()) == {"lo"}


@emulation
def test_root_ends_are_journalled_and_named(pair: list[Namespace], journal: Journal) -> None:
    name = f"tw{os.getpid() % 100000}"
    with make_link(End(None, name), End(pair[0].pid, "eth0"), journal=journal, run_id="links") as link:
        assert [(entry.kind, entry.ids["name"]) for entry in journal.entries] == [("interface", name)]
        with Netlink() as netlink:
            assert netlink.link(name).alias == "twinbed:links"
        assert link.alive
    with Netlink() as netlink:
        assert name not in netlink.links()


@pytest.fixture
def bridge(emulation_host: None) -> Iterator[str]:  # noqa: ARG001
    name = f"twb{random.SystemRandom().randrange(16**6):06x}"
    vsctl("add-br", name, "--", "set", "Bridge", name, "datapath_type=netdev")
    yield name
    vsctl("del-br", name)


def vsctl(*arguments: str) -> None:
    subprocess.run(["ovs-vsctl", "--timeout=20", *arguments], check=True, capture_output=True)


@emulation
@measures
def test_links_deliver_on_ports_of_open_vswitch_also_after_a_replug(
    pair: list[Namespace], journal: Journal, bridge: str
) -> None:
    values = [{"bandwidth_bps": 10e6}, {"bandwidth_bps": 20e6, "delay_s": 0.01}]
    specs = [
        LinkSpec(a=End(None, f"{bridge}-{number}"), b=End(namespace.pid, "eth0"), **one)  # type: ignore[arg-type]
        for number, (namespace, one) in enumerate(zip(pair, values, strict=True))
    ]
    links = make_links(specs, journal=journal, run_id=journal.run_id)
    try:
        for link in links:
            vsctl("add-port", bridge, link.spec.a.interface)
            link.shaper_a.restore()
        address(pair)
        wait_until(lambda: pair[0].pings("10.0.0.2"), "a path through the switch")
        for link in links:
            rows = probed(link)
            assert all(row.passed for row in rows.values()), rows
        pair[0].close()
        with namespaces(1) as (fresh,):
            port = links[0].spec.a.interface
            assert len(links[0].replug("b", fresh.pid)) == 2
            vsctl("del-port", bridge, port)
            vsctl("add-port", bridge, port)
            links[0].shaper_a.restore()
            address([fresh, pair[1]], "a")
            wait_until(lambda: fresh.pings("10.0.0.2"), "the path after the replug")
            rows = probed(links[0])
            assert all(row.passed for row in rows.values()), rows
    finally:
        close_links(links)


@emulation
def test_a_plain_link_refuses_a_delay(pair: list[Namespace], journal: Journal) -> None:
    with wired(pair, journal) as link:
        with pytest.raises(LinkError, match=r"made as a plain veth pair.*impairable=True"):
            link.set(delay_s=0.01)
        assert link.spec.delay_s == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_ratio": 1.5}, r"link x-y: loss_ratio must be in \[0, 1\], got 1.5"),
        ({"delay_s": -1}, r"delay_s must be in \[0, 60\], got -1"),
        ({"delay_s": 0.001, "jitter_s": 0.002}, r"jitter_s must be in \[0, 0.001\] \(jitter_s cannot exceed delay_s\)"),
        ({"bandwidth_bps": 0}, r"bandwidth_bps must be in \[1e3, 1e11\], got 0"),
        ({"a": End(None, "x" * 16)}, "interface name must have 1 to 15 bytes"),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LinkError, match=message):
        LinkSpec(**({"a": End(None, "x"), "b": End(None, "y")} | values))


# --- the relay's scheduling, without wall-clock or privilege ------------------------------------------


def direction(**values: Any) -> relay.Direction:
    plain = {"rate_bps": None, "delay_s": 0, "jitter_s": 0, "loss_ratio": 0, "seed": 1, "queue_packets": 50}
    return relay.Direction(-1, -1, plain | {"reorder": False} | values)


def test_the_relay_serialises_delays_and_tail_drops() -> None:
    way = direction(rate_bps=8e6, delay_s=0.01, queue_packets=3)
    now = time.monotonic_ns() + 1_000_000_000
    for _ in range(10):
        way.accept(bytes(1000), now)
    # One in transmission, three queued; 1000 bytes at 8 Mbit/s last 1 ms.
    assert [due - now for due, _, _ in way.flight] == [11_000_000, 12_000_000, 13_000_000, 14_000_000]
    assert way.drops == 6


def test_the_relay_loses_the_declared_share_from_its_own_stream() -> None:
    lost = []
    for seed in (1, 1, 2):
        way = direction(loss_ratio=0.1, delay_s=1, seed=seed)
        for _ in range(10_000):
            way.accept(b"x", 0)
        lost.append(way.lost)
    assert lost[0] == lost[1] != lost[2]
    assert all(abs(one - 1000) < 5 * 30 for one in lost)


def test_relay_jitter_keeps_order_unless_asked() -> None:
    ordered = direction(delay_s=0.01, jitter_s=0.01)
    mixed = direction(delay_s=0.01, jitter_s=0.01, reorder=True)
    for number in range(200):
        for way in (ordered, mixed):
            way.accept(str(number).encode(), number * 1000)
    dues = [due for due, _, _ in ordered.flight]
    assert dues == sorted(dues) and len(set(dues)) > 3
    by_time = [int(frame) for _, _, _, frame in sorted(mixed.heap)]
    assert sorted(by_time) == list(range(200)) != by_time


def test_a_new_rate_holds_for_what_already_waits() -> None:
    way = direction(rate_bps=8e3, queue_packets=10)
    now = time.monotonic_ns()
    for _ in range(5):
        way.accept(bytes(1000), now)
    assert way.flight[-1][0] - now == 5_000_000_000
    way.configure(
        {"rate_bps": 8e9, "delay_s": 0, "jitter_s": 0, "loss_ratio": 0, "queue_packets": 10, "reorder": False}
    )
    assert len(way.flight) == 5
    assert way.flight[-1][0] - time.monotonic_ns() < 1_000_000
