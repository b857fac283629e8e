"""A stream that moves from one server to another: its client cannot tell."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.dataplane.chain import Program
from twin.emulation.client import ProgramError
from twin.emulation.dataplane import probe

Start = Callable[..., Program]
HOST = "127.0.0.1"
RATE_BPS, PACKET_BYTES = 1.6e6, 500


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs on this host's loopback; they end with the test."""
    with contextlib.ExitStack() as stack:

        def begin(name: str, key: str, **config: Any) -> Program:
            program = Program(name, None, {"node": key, **config}, tmp_path, key)
            stack.callback(program.stop)
            return program.ready()

        yield begin


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def receive(sock: socket.socket, seconds: float) -> list[probe.Stamp]:
    end_s = time.monotonic() + seconds
    found = []
    while time.monotonic() < end_s:
        stamp = probe.parse(sock.recv(2000))
        assert stamp is not None
        found.append(stamp)
    return found


def test_flows_go_on_elsewhere_with_their_numbers(start: Start) -> None:
    ports = [free_port(), free_port()]
    first = start("app_stream", "first", port=ports[0], echo_port=free_port())
    second = start("app_stream", "second", port=ports[1], echo_port=free_port())
    question = {"flow": "video:phones.1", "rate": RATE_BPS, "packet_bytes": PACKET_BYTES}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as user:
        user.bind((HOST, 0))
        user.settimeout(2)
        user.sendto(json.dumps(question).encode(), (HOST, ports[0]))
        seen = receive(user, 0.3)
        # `second` takes over what `first` hands over; the user's next question waits for it
        second.call("release", at_ns=time.monotonic_ns())
        second.call("hold")
        user.sendto(json.dumps(question).encode(), (HOST, ports[1]))
        at_ns = time.monotonic_ns() + 50_000_000
        rows = first.call("release", at_ns=at_ns)["flows"]
        assert first.call("stats")["flows"] == {}  # they are counted by who has them
        second.call("adopt", flows=rows)
        second.call("go")
        seen += receive(user, 0.5)
        assert [stamp.sequence for stamp in seen] == list(range(len(seen)))
        assert {stamp.started_ns for stamp in seen} == {seen[0].started_ns}
        assert rows[0]["sequence"] >= 1
        before = [stamp for stamp in seen if stamp.sequence < rows[0]["sequence"]]
        assert 0 < len(before) < len(seen)
        # a question to the old server is not answered any more, a stop ends the flow at the new one
        user.sendto(json.dumps(question | {"rate": 1e3}).encode(), (HOST, ports[0]))
        user.sendto(json.dumps({"flow": "video:phones.1", "stop": True}).encode(), (HOST, ports[1]))
        seen += receive_until_quiet(user)
        stats = second.call("stats")["flows"]["video:phones.1"]
        assert stats["tx_packets"] == len(seen) == stats["tx_bytes"] / PACKET_BYTES
        assert first.call("stats")["flows"] == {}


def receive_until_quiet(sock: socket.socket) -> list[probe.Stamp]:
    sock.settimeout(0.3)
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            stamp = probe.parse(sock.recv(2000))
            assert stamp is not None
            found.append(stamp)
    return found


def test_a_server_that_serves_cannot_be_told_to_wait(start: Start) -> None:
    video = start("app_stream", "video", port=free_port(), echo_port=free_port())
    with pytest.raises((ProgramError, AssertionError), match="comes after release"):
        video.call("hold")
    video.call("release", at_ns=0)
    with pytest.raises((ProgramError, AssertionError), match="comes after hold"):
        video.call("adopt", flows=[])


def test_the_longest_gap_is_kept_until_it_is_read() -> None:
    receiver = probe.Receiver(0)
    maker = probe.PacketMaker(probe.DATA, "f", 100)
    for at_ms in (0, 5, 60, 70):
        stamp = probe.parse(bytes(maker.next()))
        assert stamp is not None
        receiver.receive(stamp, 100, at_ms * 1_000_000)
    assert receiver.stats()["gap_us"] == 55_000
    assert receiver.stats()["gap_us"] == 0
    receiver.pause()
    stamp = probe.parse(bytes(maker.next()))
    assert stamp is not None
    receiver.receive(stamp, 100, 9_000_000_000)
    assert receiver.stats()["gap_us"] == 0
