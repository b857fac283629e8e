"""The stream server in a guest: its clock, and the flows that it hands over and takes over.

A guest's clock is QEMU's virtual clock: it runs at the speed of the host's CLOCK_MONOTONIC, from another zero, and
stands still while the partition is suspended. Packets carry the host's time, so the guest is told the difference. It is
found as NTP does (RFC 5905 §8): the guest's time is asked for several times over its channel; the quickest answer
counts, and is wrong by at most half the time that it took.
"""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twin.emulation.partitions.machine import Machine
from twin.emulation.partitions.protocol import FLOW_FIELDS

ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Clock:
    """Nanoseconds from the guest's clock to the host's, and how far off that may be."""

    offset_ns: int
    uncertainty_ns: int


async def set_clock(machine: Machine) -> Clock:
    """Find the difference of the clocks and tell the guest. Raises RequestError."""
    best: Clock | None = None
    for _ in range(ROUNDS):
        before_ns = time.monotonic_ns()
        answer = await machine.ask("time")
        after_ns = time.monotonic_ns()
        half_ns = (after_ns - before_ns) // 2
        if best is None or half_ns < best.uncertainty_ns:
            best = Clock(before_ns + half_ns - int(answer["ns"]), half_ns)
    assert best is not None
    await machine.configure("clock", str(best.offset_ns))
    return best


async def adopt(machine: Machine, rows: Sequence[Mapping[str, Any]]) -> None:
    """Let the guest go on with flows of another server. Raises RequestError."""
    await machine.configure_all([("stream", _line(row)) for row in rows])


async def release(machine: Machine, at_ns: int, addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Let the guest send what is due before a time of CLOCK_MONOTONIC, and no more; the flows of
    these addresses as they are then."""
    return _rows(await machine.ask(f"release {at_ns} {','.join(addresses)}"))


async def flows(machine: Machine) -> list[dict[str, Any]]:
    """The flows that the guest serves. Raises RequestError."""
    return _rows(await machine.ask("flows"))


def _line(row: Mapping[str, Any]) -> str:
    words = [urllib.parse.quote(str(row["flow"]), safe="/:.,-_"), *(f"{row[name]}" for name in FLOW_FIELDS[1:])]
    return f"adopt {' '.join(words)}"


def _rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [dict(zip(FLOW_FIELDS, row, strict=True)) for row in answer["flows"]]
    return [row | {"flow": urllib.parse.unquote(row["flow"])} for row in rows]
