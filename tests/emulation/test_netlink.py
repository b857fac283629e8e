"""The layer that all links use, against the kernel and against what ``ip`` and ``tc`` say."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from twin.emulation.netlink import (
    HTB,
    Netlink,
    NetlinkError,
    VethEnd,
    add_address,
    add_veth,
    default_route,
    delete_all,
    delete_group,
    delete_link,
    new_namespaces,
    remove_address,
    set_link,
)
from twin.emulation.netns import in_netns, in_new_netns

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host")]


def asked(*command: str) -> list[dict[str, Any]]:
    """What iproute2 reports in the namespace of this thread."""
    done = subprocess.run(
        [command[0], "-j", "-d", *command[1:]], capture_output=True, text=True, check=True, timeout=10
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_batch_is_made_as_asked_whatever_its_length() -> None:
    def body() -> None:
        (other,) = new_namespaces(1)
        try:
            with Netlink() as netlink:
                pairs = []
                for number in range(120):
                    first = VethEnd(f"a{number}", f"02:00:00:00:00:{number:02x}", group=7)
                    second = VethEnd(f"b{number}", f"02:00:00:00:01:{number:02x}", netns=other)
                    pairs.append(add_veth(first, second, mtu=1400, up=True))
                netlink.send(pairs)
                infos = netlink.links()
                assert len(infos) == 121
                one = infos["a119"]
                assert (one.mac, one.mtu, one.up, one.alias) == ("02:00:00:00:00:77", 1400, True, "")
                assert asked("ip", "link", "show", "a119")[0]["group"] == "7"
                assert in_netns(other, lambda: asked("ip", "link", "show", "b119"))[0]["num_tx_queues"] == 1
                netlink.delete_links(["a0", "nosuch", "a1"])
                assert len(netlink.links()) == 119
                netlink.send([delete_group(7), delete_group(7)])
                assert set(netlink.links()) == {"lo"}
        finally:
            os.close(other)

    in_new_netns(body)


def test_a_refused_request_is_named_and_the_others_of_the_batch_are_done() -> None:
    def body() -> None:
        with Netlink() as netlink:
            pairs = [add_veth(VethEnd(name), VethEnd(f"{name}p")) for name in ("a", "b", "a", "c")]
            with pytest.raises(NetlinkError, match="cannot create veth a - ap: File exists") as raised:
                netlink.send(pairs)
            assert raised.value.errno == errno.EEXIST
            assert {"a", "b", "c"} < set(netlink.links())
            with pytest.raises(NetlinkError, match="cannot find interface nosuch: No such device"):
                netlink.index("nosuch")
            with pytest.raises(NetlinkError, match="cannot remove interface nosuch: No such device"):
                netlink.send([delete_link("nosuch")])
            netlink.send([delete_link("nosuch", missing_ok=True), set_link("a", alias="mine")])
            assert netlink.link("a").alias == "mine"
            assert netlink.index("a") == netlink.link("a").ifindex
        delete_all()
        assert [one["ifname"] for one in asked("ip", "link")] == ["lo"]

    in_new_netns(body)


def test_addresses_and_routes_are_those_of_ip() -> None:
    def body() -> None:
        with Netlink() as netlink:
            netlink.send([add_veth(VethEnd("a"), VethEnd("b"), up=True), set_link("b", up=True)])
            netlink.send(
                [add_address("a", "10.0.0.1/24"), add_address("a", "10.0.0.1/24"), add_address("a", "fd00::1/64")]
            )
            netlink.send([add_address("a", "10.1.0.1/31"), default_route("a", "10.0.0.9")])
            found = {one["local"]: one for one in asked("ip", "address", "show", "a")[0]["addr_info"]}
            assert found["10.0.0.1"]["broadcast"] == "10.0.0.255" and found["10.0.0.1"]["prefixlen"] == 24
            assert "broadcast" not in found["10.1.0.1"] and found["fd00::1"]["prefixlen"] == 64
            (default,) = asked("ip", "route", "show", "default")
            assert (default["gateway"], default["dev"]) == ("10.0.0.9", "a")
            netlink.send([remove_address("a", "10.1.0.1/31")])
            assert "10.1.0.1" not in {one.get("local") for one in asked("ip", "address", "show", "a")[0]["addr_info"]}

    in_new_netns(body)


def test_routes_come_back_as_they_were() -> None:
    def body() -> None:
        with Netlink() as netlink:
            netlink.send([add_veth(VethEnd("a"), VethEnd("b"), up=True), set_link("b", up=True)])
            netlink.send([add_address("a", "10.0.0.1/24")])
            for route in (
                "default via 10.0.0.9",
                "10.5.0.0/16 via 10.0.0.9 metric 7 mtu 1300 src 10.0.0.1",
                "10.6.0.0/16 scope link",
                "10.7.0.0/16 via 192.168.7.7 onlink",
            ):
                subprocess.run(["ip", "route", "add", *route.split(), "dev", "a"], check=True, timeout=10)
            before = asked("ip", "route")
            routes = netlink.routes(netlink.index("a"))
            assert len(routes) == 4
            netlink.send([set_link("a", up=False), set_link("a", up=True)])
            assert len(asked("ip", "route")) == 1
            netlink.send(routes)
            netlink.send(routes)  # those that are there already are left alone
            assert asked("ip", "route") == before

    in_new_netns(body)


def test_a_filter_matches_prefixes_of_every_length() -> None:
    def body() -> None:
        with Netlink() as netlink:
            index = netlink.index("lo")
            netlink.add_htb(index, 2)
            netlink.set_htb_class(index, HTB, 2, 40e9, 100e9, 0, 1514)
            words = []
            for length in range(33):
                mask = (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
                netlink.add_u32(index, 5, 2, [(16, mask, 0x0AC8A1B3 & mask)])
                words.append({"value": f"{0x0AC8A1B3 & mask:x}", "mask": f"{mask:x}", "offmask": "", "off": 16})
            shown = [
                one["options"]["match"] for one in asked("tc", "filter", "show", "dev", "lo") if "match" in str(one)
            ]
            assert shown == words
            command = ["tc", "class", "show", "dev", "lo"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
            assert " rate 40Gbit ceil 100Gbit " in done.stdout
            netlink.delete_filters(index, 5)
            assert asked("tc", "filter", "show", "dev", "lo") == []

    in_new_netns(body)


def test_threads_work_in_their_own_namespaces_at_once() -> None:
    together = threading.Barrier(8)

    def inside(number: int) -> Callable[[], None]:
        def body() -> None:
            together.wait(10)
            for turn in range(20):
                with Netlink() as netlink:
                    name = f"t{number}x{turn}"
                    netlink.send([set_link("lo", up=True), add_veth(VethEnd(name), VethEnd(f"{name}p"))])
                    index = netlink.index(name)
                    netlink.add_htb(index, 2)
                    netlink.set_htb_class(index, HTB, 2, 1e6 * (number + 1), 1e9, 0, 1514)
                    assert [one.handle for one in netlink.classes(index)] == [HTB | 2]
            with Netlink() as netlink:
                assert set(netlink.links()) == {"lo"} | {
                    f"t{number}x{turn}{end}" for turn in range(20) for end in ("", "p")
                }

        return body

    before = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(in_new_netns, inside(number)) for number in range(8)]:
            done.result(30)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
