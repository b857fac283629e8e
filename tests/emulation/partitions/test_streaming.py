"""The stream server in a guest: the same packets as the container's, by the host's clock, handed over both ways."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.partitions.conftest import Daemon
from tests.emulation.partitions.test_guests import refused, wait_for
from twin.emulation.dataplane import probe
from twin.emulation.netns import in_netns

pytestmark = pytest.mark.emulation
Make = Callable[..., Daemon]
RATE_BPS, PACKET_BYTES = 1.5e6, 1200
SERVICE = "10.77.9.9"
NAME = "video:ü x.1"


@pytest.fixture
def daemon(make_daemon: Make, guest_image: Path) -> Iterator[Daemon]:
    yield make_daemon(guest_image)


def user_of(daemon: Daemon) -> socket.socket:
    """A user's socket in the network of the partitions."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("10.77.0.1", 0))
        sock.settimeout(3)
        return sock

    descriptor = os.open(f"/run/netns/{daemon.netns}", os.O_RDONLY)
    try:
        return in_netns(descriptor, make)
    finally:
        os.close(descriptor)


def ask(sock: socket.socket, address: str, **changes: Any) -> None:
    question = {"flow": NAME, "rate": RATE_BPS, "packet_bytes": PACKET_BYTES, **changes}
    sock.sendto(json.dumps(question).encode(), (address, 5001))


def packets(sock: socket.socket, count: int) -> list[tuple[probe.Stamp, int, int]]:
    """(head, size, time of arrival) of the next packets."""
    found = []
    for _ in range(count):
        data = sock.recv(2000)
        stamp = probe.parse(data)
        assert stamp is not None
        assert not any(data[28 + len(NAME.encode()) :])  # zeros up to the packet's size
        found.append((stamp, len(data), time.monotonic_ns()))
    return found


def test_a_guest_streams_as_a_container_does(daemon: Daemon) -> None:
    with daemon.client() as client, user_of(daemon) as user:
        number = client.call("create-partition", {"cores": 1, "memory_mib": 128})["id"]
        client.call("deploy", {"id": number, "stream": True, "metrics_ms": 100})
        address = client.call("info", {"id": number})["address"].split("/")[0]
        idle = {"stream": {"serving": False}}
        wait_for(lambda: (client.call("info", {"id": number})["metrics"] or idle)["stream"]["serving"], "it serves")
        clock = client.call("info", {"id": number})["clock"]
        assert 0 < clock["uncertainty_ns"] < 5_000_000
        for malformed in (b"", b"{", b"[]", b'{"flow": 1}', b'{"flow": "x", "rate": -1, "packet_bytes": 100}', b"\xff"):
            user.sendto(malformed, (address, 5001))
        asked_ns = time.monotonic_ns()
        ask(user, address)
        seen = packets(user, 100)
        assert [stamp.sequence for stamp, _, _ in seen] == list(range(100))
        first = seen[0][0]
        assert {(one.kind, one.started_ns, one.name) for one, _, _ in seen} == {(1, first.started_ns, NAME.encode())}
        assert {size for _, size, _ in seen} == {PACKET_BYTES - probe.IP_UDP_BYTES}
        # The clock is the host's: no packet is older than the question or arrives before it was sent.
        slack_ns = clock["uncertainty_ns"]
        assert asked_ns - slack_ns <= first.started_ns <= first.sent_ns <= seen[0][2] + slack_ns
        assert all(-slack_ns <= arrived - one.sent_ns for one, _, arrived in seen)
        rate = 99 * PACKET_BYTES * 8e9 / (seen[-1][0].sent_ns - first.sent_ns)
        assert rate == pytest.approx(RATE_BPS, rel=0.1)
        # a stop ends it; another size is another life
        user.sendto(json.dumps({"flow": NAME, "stop": True}).encode(), (address, 5001))
        wait_for(lambda: client.call("stream", {"id": number, "action": "flows"})["flows"][0]["rate"] == 0, "it stops")
        while True:
            user.settimeout(0.2)
            try:
                user.recv(2000)
            except TimeoutError:
                break
        user.settimeout(3)
        ask(user, address, packet_bytes=600)
        (again, size, _), *_ = packets(user, 1)
        assert (again.sequence, size) == (0, 600 - probe.IP_UDP_BYTES)
        assert again.started_ns > seen[-1][0].sent_ns
        # suspended and restored: it goes on by itself, and by the host's clock
        client.call("suspend", {"id": number})
        time.sleep(0.3)
        drain(user)
        client.call("restore", {"id": number})
        late = packets(user, 30)
        assert min(arrived - one.sent_ns for one, _, arrived in late) < 100_000_000
        assert late[-1][2] - late[-1][0].sent_ns < 100_000_000
        # the echo
        prober = probe.PacketMaker(probe.PROBE, "probe", 100)
        user.sendto(json.dumps({"flow": NAME, "stop": True}).encode(), (address, 5001))
        user.sendto(prober.next(), (address, 5007))
        wait_for(lambda: (stamp := probe.parse(user.recv(2000))) and stamp.kind == probe.PROBE, "the echo")


def drain(sock: socket.socket) -> None:
    sock.setblocking(False)
    try:
        while True:
            sock.recv(2000)
    except BlockingIOError:
        sock.settimeout(3)


def flow_row(**changes: Any) -> dict[str, Any]:
    return {
        **{"flow": NAME, "local": SERVICE, "peer": "10.77.0.1", "port": 4000, "rate": RATE_BPS},
        **{"packet_bytes": PACKET_BYTES, "started_ns": 12345, "sequence": 777, "due_ns": 0},
        **{"tx_packets": 777, "tx_bytes": 777 * PACKET_BYTES, "send_errors": 3, **changes},
    }


def test_a_guest_takes_over_and_hands_over(daemon: Daemon) -> None:
    with daemon.client() as client, user_of(daemon) as user:
        number = client.call("create-partition", {"cores": 1, "memory_mib": 128})["id"]
        client.call("deploy", {"id": number})
        address = client.call("info", {"id": number})["address"].split("/")[0]
        daemon.inside("ip", "route", "add", f"{SERVICE}/32", "via", address)

        def stream(action: str, **args: Any) -> Any:
            return client.call("stream", {"id": number, "action": action, **args})

        stream("hold", addresses=[SERVICE])
        ask(user, SERVICE)  # waits
        at_ns = time.monotonic_ns() + 100_000_000
        stream("adopt", flows=[flow_row(port=user.getsockname()[1], due_ns=at_ns)])
        stream("go", addresses=[SERVICE])
        seen = packets(user, 20)
        assert [stamp.sequence for stamp, _, _ in seen] == list(range(777, 797))
        assert {stamp.started_ns for stamp, _, _ in seen} == {12345}
        assert seen[0][0].sent_ns >= at_ns - 1_000_000  # not before it was due
        # and away again: sent until the given moment, and no more
        at_ns = time.monotonic_ns() + 60_000_000
        (row,) = stream("release", at_ns=at_ns, addresses=[SERVICE])["flows"]
        assert row["flow"] == NAME and row["local"] == SERVICE and row["due_ns"] >= at_ns
        assert row["tx_packets"] == row["sequence"] and row["send_errors"] == 3
        last = packets(user, row["sequence"] - 797)[-1]
        assert last[0].sequence == row["sequence"] - 1
        ask(user, SERVICE)  # somebody else's now
        user.settimeout(0.3)
        with pytest.raises(TimeoutError):
            user.recv(2000)
        assert stream("flows")["flows"] == []
        stream("drop", addresses=[SERVICE])
        # what is refused
        for args, reason in (
            ({"action": "hold"}, "hold needs addresses"),
            ({"action": "adopt"}, "adopt needs flows"),
            ({"action": "release", "addresses": [SERVICE]}, "release needs at_ns"),
            ({"action": "go", "flows": []}, "flows goes with adopt"),
            ({"action": "adopt", "flows": [flow_row(rate=-1)]}, "must be a number in [0, 1e+10]"),
            ({"action": "adopt", "flows": [{"flow": NAME}]}, "must be objects with flow, local"),
            ({"action": "adopt", "flows": [flow_row(packet_bytes=20)]}, "adopt must be NAME"),
            ({"action": "stop"}, "must be one of go, hold"),
        ):
            assert reason in str(refused(client, "stream", id=number, **args))


def test_attacks_are_bounded(daemon: Daemon) -> None:
    with daemon.client() as client:
        number = client.call("create-partition", {"cores": 2, "memory_mib": 128})["id"]
        assert refused(client, "attack", id=number, kind="cpu").facts["state"] == "READY"
        client.call("deploy", {"id": number, "metrics_ms": 100})

        def info() -> dict[str, Any]:
            return client.call("info", {"id": number})

        def kind_inside() -> Any:
            attack = (info()["metrics"] or {}).get("attack")
            return attack and attack["kind"]

        for kind in ("cpu", "memory"):
            client.call("attack", {"id": number, "kind": kind, "seconds": 2})
            used_s, begin_s = info()["cpu_used_s"], time.monotonic()
            wait_for(lambda kind=kind: kind_inside() == kind, f"{kind} attack runs")
            wait_for(lambda: kind_inside() is None, f"{kind} attack ends by itself", 20)
            assert info()["cpu_used_s"] > used_s + 0.2, begin_s
        assert info()["memory_used_mib"] < 128 + 256
        client.call("attack", {"id": number, "kind": "network", "seconds": 30, "rate_pps": 5000})
        assert info()["flood"] is True
        client.call("attack", {"id": number, "kind": "none"})
        assert info()["flood"] is False
        client.call("attack", {"id": number, "kind": "network", "seconds": 1, "rate_pps": 5000})
        wait_for(lambda: not info()["flood"], "the flood ends by itself", 20)
        for args, reason in (
            ({"kind": "disk"}, "must be one of none, cpu, memory, network"),
            ({"kind": "cpu", "seconds": 601}, "must be a number in [1, 600]"),
            ({"kind": "network", "rate_pps": 1e6}, "must be a number in [1, 50000]"),
        ):
            assert reason in str(refused(client, "attack", id=number, **args))
        client.call("shutdown", {"id": number})
