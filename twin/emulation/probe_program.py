"""Measures one link from end to end: one-way delay, rate and loss, both directions at once.

Run as ``python -I -S probe_program.py`` with a plan (JSON) on standard input; prints one JSON object. The
plan names two AF_PACKET sockets, inherited and bound to the ends, so no address, route or privilege is
needed. Frames carry a private ethertype; what arrives is counted by the socket itself (PACKET_STATISTICS),
so that this program need not keep up with the link. Arrival times are the kernel's. Standard library only.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_TIMESTAMPNS = 35
_MAGIC = b"TwinBed probe"
_TICK_S = 0.001
_SETTLE_S = 0.05


class Endpoint:
    """A socket at one end and the frames that it sends."""

    def __init__(self, descriptor: int, header: str) -> None:
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.header = bytes.fromhex(header)

    def send(self, body: bytes) -> None:
        """Send one frame; a full queue on the way is what is being measured, not an error."""
        try:
            self.socket.send(self.header + _MAGIC + body)
        except OSError:
            return

    def arrived(self) -> int:
        """Frames that reached this end since the last call, whether or not this program read them."""
        data = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", data)[0])

    def discard(self) -> None:
        """Throw away what waits to be read."""
        try:
            while True:
                self.socket.recv(1)
        except BlockingIOError:
            return


def measure_delay(ends: Sequence[Endpoint], count: int, spacing_s: float, wait_s: float) -> list[list[float]]:
    """One-way delays in seconds, a to b and b to a, of ``count`` small frames each."""
    found: list[list[float]] = [[], []]
    start = time.monotonic()
    finish = start + count * spacing_s + wait_s
    sent = 0
    while True:
        now = time.monotonic()
        if now >= finish or (sent == count and all(len(one) == count for one in found)):
            return found
        if sent < count and now >= start + sent * spacing_s:
            for end in ends:
                end.send(struct.pack("=Q", time.time_ns()) + bytes(24))
            sent += 1
            continue
        until = start + sent * spacing_s if sent < count else finish
        ready, _, _ = select.select([end.socket for end in ends], [], [], max(0.0, until - now))
        for number, end in enumerate(ends):
            if end.socket in ready:
                found[1 - number] += _delays(end)


def _delays(end: Endpoint) -> list[float]:
    found = []
    try:
        while True:
            frame, extra, _, _ = end.socket.recvmsg(2048, 128)
            if frame[14 : 14 + len(_MAGIC)] != _MAGIC:
                continue
            sent_ns = struct.unpack_from("=Q", frame, 14 + len(_MAGIC))[0]
            seconds, nanoseconds = struct.unpack("=qq", extra[0][2][:16])
            found.append((seconds * 1_000_000_000 + nanoseconds - sent_ns) / 1e9)
    except BlockingIOError:
        return found


def measure_rate(
    ends: Sequence[Endpoint], offered_bps: float, frame_bytes: int, skip_s: float, take_s: float
) -> list[float]:
    """Received bit/s, a to b and b to a, while more than the link's rate is offered for skip + take seconds."""
    body = bytes(frame_bytes - 14 - len(_MAGIC))
    frames_per_s = offered_bps / 8 / frame_bytes
    start = time.monotonic()
    sent = 0
    taken_from = 0.0
    while True:
        now = time.monotonic()
        if not taken_from and now >= start + skip_s:
            for end in ends:
                end.arrived()
            taken_from = time.monotonic()
        elif taken_from and now >= taken_from + take_s:
            counts = [end.arrived() for end in ends]
            elapsed = time.monotonic() - taken_from
            return [counts[1] * frame_bytes * 8 / elapsed, counts[0] * frame_bytes * 8 / elapsed]
        # Never more than 20 ms at once: after a stall the backlog is not made up.
        sent = max(sent, int((now - start - 0.02) * frames_per_s))
        due = int((now - start) * frames_per_s)
        while sent < due:
            for end in ends:
                end.send(body)
            sent += 1
        time.sleep(_TICK_S / 2)


def measure_loss(ends: Sequence[Endpoint], count: int, frames_per_s: float, wait_s: float) -> list[int]:
    """How many of ``count`` small frames did not arrive, a to b and b to a."""
    for end in ends:
        end.arrived()
    body = bytes(32)
    per_tick = frames_per_s * _TICK_S
    sent, credit = 0, 0.0
    while sent < count:
        # A late tick is not made up: a burst would overflow a queue and look like loss.
        credit += per_tick
        while credit >= 1 and sent < count:
            for end in ends:
                end.send(body)
            sent += 1
            credit -= 1
        time.sleep(_TICK_S)
    arrived = [0, 0]
    finish = time.monotonic() + wait_s
    while time.monotonic() < finish and any(one < count for one in arrived):
        time.sleep(0.005)
        arrived = [one + end.arrived() for one, end in zip(arrived, ends, strict=True)]
    return [count - arrived[1], count - arrived[0]]


def main() -> None:
    """Carry out the plan on standard input."""
    plan: dict[str, Any] = json.loads(sys.stdin.read())
    ends = [Endpoint(one["fd"], one["header"]) for one in plan["ends"]]
    result: dict[str, Any] = {}
    if "delay" in plan:
        result["delay_s"] = measure_delay(ends, **plan["delay"])
    if "rate" in plan:
        for end in ends:
            end.discard()
        result["rate_bps"] = measure_rate(ends, **plan["rate"])
    if "loss" in plan:
        # What the blast left in queues must not be counted here.
        time.sleep(plan.get("drain_s", 0.0) + _SETTLE_S)
        result["lost"] = measure_loss(ends, **plan["loss"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
