"""HTB with live changes, measured with traffic in namespaces."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulation.namespaces import Namespace, measures, namespaces, udp_rates_bps, wait_until
from twin.emulation.impairment import End, LinkHandle, make_link
from twin.emulation.netlink import HTB, ROOT, Netlink, Request
from twin.emulation.shaping import Impairment, Shaper, ShapingError
from twin.journal import Journal

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host")]
Wire = tuple[Namespace, Namespace, LinkHandle]


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with (
        Journal.create("shaping", folder=tmp_path) as journal,
        namespaces(2) as (left, right),
        make_link(End(left.pid, "eth0"), End(right.pid, "eth0"), journal=journal, run_id="shaping") as link,
    ):
        left.run("ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
        for address in ("10.0.0.2/24", "10.0.0.3/24", "10.0.0.4/24"):
            right.run("ip", "addr", "add", address, "dev", "eth0")
        assert left.pings("10.0.0.2")
        yield left, right, link


@measures
def test_the_rate_changes_while_traffic_flows(wire: Wire) -> None:
    left, right, _ = wire
    shaper = Shaper(left.pid, "eth0")
    for rate_bps in (10e6, 40e6, 5e6):
        shaper.set_rate(rate_bps)
        (measured,) = udp_rates_bps(left, right, ["10.0.0.2"], offered_bps=60e6)
        assert measured == pytest.approx(rate_bps, rel=0.05)
    shaper.set_rate(None)
    assert not shaper.installed and shaper.stats() == {}
    (measured,) = udp_rates_bps(left, right, ["10.0.0.2"], offered_bps=60e6, seconds=0.4)
    assert measured > 50e6


@measures
def test_each_slice_gets_its_class_and_the_rest_passes(wire: Wire) -> None:
    left, right, _ = wire
    shaper = Shaper(left.pid, "eth0")
    shaper.set_rate(30e6)
    shaper.add_class("embb", bandwidth_bps=12e6, match_dst_ip="10.0.0.2")
    shaper.add_class("urllc", bandwidth_bps=4e6, match_dst_ip=["10.0.0.3/32"])
    addresses = ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    embb, urllc, rest = udp_rates_bps(left, right, addresses, offered_bps=30e6)
    assert embb == pytest.approx(12e6, rel=0.06)
    assert urllc == pytest.approx(4e6, rel=0.06)
    assert rest == pytest.approx(14e6, rel=0.06)
    stats = shaper.stats()
    assert set(stats) == {"link", "default", "embb", "urllc"}
    assert all(stats[name].drops > 0 and stats[name].bytes_sent > 0 for name in stats)
    assert stats["link"].bytes_sent >= stats["embb"].bytes_sent + stats["urllc"].bytes_sent

    shaper.set_class_rate("urllc", 10e6)
    _, urllc, _ = udp_rates_bps(left, right, addresses, offered_bps=30e6)
    assert urllc == pytest.approx(10e6, rel=0.06)
    shaper.remove_class("urllc")
    assert set(shaper.stats()) == {"link", "default", "embb"}
    assert left.pings("10.0.0.3")


@measures
def test_classes_that_ask_for_too_much_share_the_link(wire: Wire) -> None:
    left, right, _ = wire
    shaper = Shaper(left.pid, "eth0")
    shaper.set_rate(10e6)
    shaper.add_class("a", bandwidth_bps=20e6, match_dst_ip="10.0.0.2")
    shaper.add_class("b", bandwidth_bps=10e6, match_dst_ip="10.0.0.3")
    a, b = udp_rates_bps(left, right, ["10.0.0.2", "10.0.0.3"], offered_bps=20e6)
    assert a + b == pytest.approx(10e6, rel=0.06)
    assert a / b == pytest.approx(2.0, rel=0.15)
    (alone,) = udp_rates_bps(left, right, ["10.0.0.3"], offered_bps=20e6)
    assert alone == pytest.approx(10e6, rel=0.06)


@measures
def test_a_full_queue_shows_as_backlog_and_drains(wire: Wire) -> None:
    left, right, _ = wire
    shaper = Shaper(left.pid, "eth0", queue_packets=20)
    shaper.set_rate(1e6)
    udp_rates_bps(left, right, ["10.0.0.2"], offered_bps=20e6, seconds=0.2)
    assert 10 * 1442 < shaper.stats()["link"].backlog_bytes <= 20 * 1442
    wait_until(lambda: shaper.stats()["link"].backlog_bytes == 0, "an empty queue")


@measures
def test_a_change_takes_milliseconds_at_most(wire: Wire) -> None:
    left, _, _ = wire
    shaper = Shaper(left.pid, "eth0")
    shaper.set_rate(10e6)
    shaper.add_class("a", bandwidth_bps=1e6, match_dst_ip="10.0.0.2")
    times = []
    for number in range(50):
        start = time.perf_counter()
        shaper.set_class_rate("a", 1e6 + number * 1e5)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.01


@measures
def test_the_tree_comes_back_on_a_new_interface_of_the_same_name(wire: Wire) -> None:
    left, right, link = wire
    link.shaper_a.add_class("slice", bandwidth_bps=3e6, match_dst_ip="10.0.0.2")
    link.replug("a", left.pid)
    left.run("ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
    right.run("ip", "addr", "add", "10.0.0.2/24", "dev", "eth0")
    (measured,) = udp_rates_bps(left, right, ["10.0.0.2"], offered_bps=10e6)
    assert measured == pytest.approx(3e6, rel=0.06)


def test_bad_input_names_the_interface_and_what_is_allowed(wire: Wire) -> None:
    left, _, _ = wire
    shaper = Shaper(left.pid, "eth0")
    with pytest.raises(ShapingError, match=r"interface eth0: bandwidth_bps must be in \[1e3, 1e\+11\] bit/s, got -5"):
        shaper.set_rate(-5)
    with pytest.raises(ShapingError, match="must match IPv4 addresses or prefixes, got 'fe80::1'"):
        shaper.add_class("a", bandwidth_bps=1e6, match_dst_ip="fe80::1")
    with pytest.raises(ShapingError, match="needs a bandwidth_bps and an address"):
        shaper.add_class("a", bandwidth_bps=1e6)
    shaper.add_class("a", bandwidth_bps=1e6, match_dst_ip="10.0.0.2")
    with pytest.raises(ShapingError, match="class a exists already"):
        shaper.add_class("a", bandwidth_bps=1e6, match_dst_ip="10.0.0.3")
    with pytest.raises(ShapingError, match="no class b, there are: a"):
        shaper.set_class_rate("b", 1e6)
    with pytest.raises(ShapingError, match="interface nosuch: cannot find interface nosuch: No such device"):
        Shaper(left.pid, "nosuch").set_rate(1e6)
    with pytest.raises(ShapingError, match="namespace of process 4194305 is gone"):
        Shaper(2**22 + 1, "eth0").set_rate(1e6)
    with Netlink(left.pid) as netlink:
        assert netlink.link("eth0").up


def test_the_netem_message_is_what_tc_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """``tc qdisc add ... handle 1: netem limit 1000 delay 10ms 2ms loss 1%`` of iproute2 6.1, under strace."""
    sent: list[Request] = []
    monkeypatch.setattr(Netlink, "send", lambda _, requests: sent.extend(requests))
    with Netlink() as netlink:
        netlink.set_netem(1, ROOT, HTB, delay_s=0.01, jitter_s=0.002, loss_ratio=0.01, limit_packets=1000, seed=0x1234)
    (request,) = sent
    request.message.encode()
    body = bytes(request.message.data[16:])
    assert body[20:30] == b"\x0a\x00\x01\x00netem\0"
    assert body[36:60].hex() == "5a620200" + "e8030000" + "295c8f02" + "00000000" + "00000000" + "127a0000"
    # TCA_NETEM_LATENCY64, JITTER64 (ns) and PRNG_SEED
    assert body[60:].hex() == "0c000a00" + "8096980000000000" + "0c000b00" + "80841e0000000000" + "0c000e00" + (
        "3412000000000000"
    )


def test_netem_becomes_the_leaf_of_every_class(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel here may have no netem: what would be asked of it is recorded, the rest is real."""
    left, right, _ = wire
    asked: list[tuple[int, int, float]] = []

    def record(_: Netlink, __: int, parent: int, handle: int, **values: float) -> None:
        asked.append((parent, handle, values["delay_s"]))

    monkeypatch.setattr(Netlink, "set_netem", record)
    shaper = Shaper(left.pid, "eth0")
    shaper.set_impairment(Impairment(0.01, 0.0, 0.0, 1))
    assert asked == [(0x10002, 0x80020000, 0.01)]
    shaper.add_class("slice", bandwidth_bps=5e6, match_dst_ip="10.0.0.2")
    assert asked[1:] == [(0x10010, 0x80100000, 0.01)]
    shaper.set_impairment(Impairment(0.02, 0.0, 0.0, 1))
    assert asked[2:] == [(0x10002, 0x80020000, 0.02), (0x10010, 0x80100000, 0.02)]
    shaper.set_impairment(None)
    assert len(asked) == 4
    with Netlink(left.pid) as netlink:
        leaves = {one.parent: one.kind for one in netlink.qdiscs(netlink.link("eth0").ifindex)}
    assert leaves[0x10002] == leaves[0x10010] == "pfifo"
    (measured,) = udp_rates_bps(left, right, ["10.0.0.2"], offered_bps=20e6)
    assert measured == pytest.approx(5e6, rel=0.06)
