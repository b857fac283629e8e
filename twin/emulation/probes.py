"""Proof of constraints: what links and CPU limits deliver, measured after bring-up against what was declared.

Links are measured between their two interfaces by raw frames, so no address is needed and links in both
kinds of namespace look alike. Probe a link before it carries traffic, and before its switch port forwards:
the frames use a link-local multicast address, which bridges do not forward by themselves.

What passes:

- ``delay_s``: median of 20 frames each way (mean where jitter is declared) within max(1 ms, 10 %), plus half
  the declared jitter, because jitter without reordering can only push frames back.
- ``jitter_s``: interquartile range of 20 frames (uniform jitter: as wide as ``jitter_s``) between 0.4 and 1.6 times
  the declared, plus 1 ms.
- ``bandwidth_bps``: bytes received over 0.4 s while 1.3 times the rate is offered, first 0.15 s left out,
  within 5 % of rate x (1 - loss).
- ``loss_ratio``: n frames with n x loss = 40 where 1.2 s allow it; the number lost must lie in the exact binomial
  interval that a true link leaves with probability 2e-5. No loss at all, and three times the loss, are then
  missed with probability below 1e-4; where fewer frames had to do, ``detail`` says what could be told apart.
- ``cpu_millicores``: the kernel has the limit (within 2 %), and a program that wants all the CPU it can get,
  0.3 s inside the group, gets at most 10 % more (5 millicores at least). Less than that on a busy host passes, and
  ``detail`` says so: a limit is not a reservation, and a busy host is recorded as such while the run goes on.

What fails is measured again, twice at most: a host that stalls for a moment is forgiven, one that does not
deliver fails every time. ``detail`` names the attempt.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from twin.emulation.impairment import End
from twin.emulation.netlink import Netlink
from twin.emulation.netns import in_netns_of
from twin.types import Probe

_ETHERTYPE = 0x88B5  # IEEE 802 local experimental
_MULTICAST = "0180c200000e"  # IEEE 802.1Q: never forwarded by a bridge
_DELAY_FRAMES = 20
_TAKE_S = 0.4
_SKIP_S = 0.15
_OFFERED = 1.3
_LOSS_EVENTS = 40
_LOSS_TIME_S = 1.2
_LOSS_FRAMES_PER_S = 20_000.0
_TAIL = 1e-5
_SMALL_BYTES = 59
# What the probe programs of one wave may send together: two small cores keep up with it.
_WAVE_FRAMES_PER_S = 120_000.0
_CPU_TIME_S = 0.3
_ATTEMPTS = 3


class Group(Protocol):
    """A control group as :class:`twin.emulation.cgroups.Cgroup`: joins processes, counts CPU time."""

    def add(self, pid: int) -> None:
        """Move a process into the group."""

    def stats(self) -> Any:
        """With ``cpu_used_s`` and ``cpu_limit_millicores`` (None: no limit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDeclaration:
    """What a link promised; ``name`` is how the probe rows call it (``s1-s2``)."""

    name: str
    a: End
    b: End
    bandwidth_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuDeclaration:
    """What a node or slice was limited to; ``name`` is how the probe row calls it (``node gnb1``)."""

    name: str
    group: Group
    cpu_millicores: float


def probe_links(links: Iterable[LinkDeclaration]) -> list[Probe]:
    """Measure links in parallel; one row per declared quantity, in order. Never raises for a link that
    cannot be measured: its rows fail and say why."""
    declared = [link for link in links if _plan(link)]
    rows: dict[int, list[Probe]] = {}
    failed = list(range(len(declared)))
    for attempt in range(1, _ATTEMPTS + 1):
        for wave in _waves([declared[number] for number in failed]):
            numbers = [failed[position] for position in wave]
            with ThreadPoolExecutor(len(numbers)) as pool:
                for number, found in zip(
                    numbers, pool.map(lambda one: _probe_link(declared[one]), numbers), strict=True
                ):
                    rows[number] = _better(rows.get(number), found, attempt)
        failed = [number for number in failed if not all(row.passed for row in rows[number])]
    return [row for number in range(len(declared)) for row in rows[number]]


def _better(before: list[Probe] | None, found: list[Probe], attempt: int) -> list[Probe]:
    """What passed stays; what failed is replaced by what was found now."""
    if before is None:
        return found
    return [
        old if old.passed else replace(new, detail=f"{new.detail} (attempt {attempt})")
        for old, new in zip(before, found, strict=True)
    ]


def probe_cpu_limits(limits: Iterable[CpuDeclaration]) -> list[Probe]:
    """Burn CPU inside each group, as many at once as the host has cores for."""
    waiting = list(limits)
    cores = float(len(os.sched_getaffinity(0)))
    rows: dict[int, Probe] = {}
    failed = list(range(len(waiting)))
    for attempt in range(1, _ATTEMPTS + 1):
        for wave in _cpu_waves(waiting, failed, cores):
            with ThreadPoolExecutor(len(wave)) as pool:
                for number, found in zip(
                    wave, pool.map(lambda one: _probe_cpu(waiting[one], cores), wave), strict=True
                ):
                    rows[number] = _better([rows[number]] if number in rows else None, [found], attempt)[0]
        failed = [number for number in failed if not rows[number].passed]
    return [
        replace(row, passed=True) if _BUSY in row.detail else row for row in (rows[one] for one in range(len(waiting)))
    ]


def _cpu_waves(limits: Sequence[CpuDeclaration], numbers: Sequence[int], cores: float) -> list[list[int]]:
    """Numbers of limits that are used up together: the sum of each wave leaves the host a tenth."""
    waves: list[list[int]] = []
    sums: list[float] = []
    for number in numbers:
        share = min(limits[number].cpu_millicores / 1000, cores)
        for position, used in enumerate(sums):
            if used + share <= 0.9 * cores:
                waves[position].append(number)
                sums[position] += share
                break
        else:
            waves.append([number])
            sums.append(share)
    return waves


# --- links ----------------------------------------------------------------------------------------


def _plan(link: LinkDeclaration) -> dict[str, Any]:
    """What to send; empty when nothing is declared."""
    plan: dict[str, Any] = {}
    flight_s = link.delay_s + link.jitter_s
    rate_bps = link.bandwidth_bps
    if flight_s > 0:
        # Frames further apart than the jitter cannot push each other back.
        spacing_s = min(max(0.004, 2 * link.jitter_s), 0.03)
        plan["delay"] = {"count": _DELAY_FRAMES, "spacing_s": spacing_s, "wait_s": flight_s + 0.1}
    if rate_bps is not None:
        # At least 400 frames in the window where the rate allows, so that one frame is 0.25 %.
        frame_bytes = int(min(1514, max(64, rate_bps * _TAKE_S / 8 / 400)))
        plan["rate"] = {
            "offered_bps": _OFFERED * rate_bps,
            "frame_bytes": frame_bytes,
            "skip_s": _SKIP_S + flight_s,
            "take_s": max(_TAKE_S, 200 * 8 * frame_bytes / rate_bps),
        }
        plan["drain_s"] = min(2.0, 64 * 8 * frame_bytes / rate_bps) + flight_s
    if link.loss_ratio > 0:
        frames_per_s = min(_LOSS_FRAMES_PER_S, 0.5 * (rate_bps or math.inf) / 8 / _SMALL_BYTES)
        count = min(math.ceil(_LOSS_EVENTS / link.loss_ratio), int(_LOSS_TIME_S * frames_per_s))
        plan["loss"] = {"count": max(20, count), "frames_per_s": frames_per_s, "wait_s": flight_s + 0.1}
    return plan


def _waves(links: Sequence[LinkDeclaration]) -> list[list[int]]:
    """Numbers of links that are measured together: those that this host can load at once."""
    waves: list[list[int]] = []
    loads: list[float] = []
    for number, link in enumerate(links):
        plan = _plan(link)
        load = 2 * plan["rate"]["offered_bps"] / 8 / plan["rate"]["frame_bytes"] if "rate" in plan else 0.0
        load = max(load, 2 * plan["loss"]["frames_per_s"] if "loss" in plan else 1000.0)
        for position, sum_so_far in enumerate(loads):
            if sum_so_far + load <= _WAVE_FRAMES_PER_S:
                waves[position].append(number)
                loads[position] += load
                break
        else:
            waves.append([number])
            loads.append(load)
    return waves


def _probe_link(link: LinkDeclaration) -> list[Probe]:
    try:
        found = _measure(link)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return [
            Probe(f"link {link.name} {quantity}", unit, declared, math.nan, False, f"cannot be measured: {reason}")
            for quantity, unit, declared in _quantities(link)
        ]
    rows = []
    for quantity, unit, declared in _quantities(link):
        judged = [_judge(link, quantity, found, way) for way in (0, 1)]
        # The row shows the direction that is further off.
        measured, passed, detail = min(judged, key=lambda one: (one[1], -abs(one[0] - declared)))
        both = " / ".join(f"{one[0]:.6g}" for one in judged)
        rows.append(Probe(f"link {link.name} {quantity}", unit, declared, measured, passed, f"{both} {unit}; {detail}"))
    return rows


def _quantities(link: LinkDeclaration) -> list[tuple[str, str, float]]:
    named: list[tuple[str, str, float]] = []
    if link.bandwidth_bps is not None:
        named.append(("bandwidth_bps", "bit/s", link.bandwidth_bps))
    if link.delay_s > 0 or link.jitter_s > 0:
        named.append(("delay_s", "s", link.delay_s))
    if link.jitter_s > 0:
        named.append(("jitter_s", "s", link.jitter_s))
    if link.loss_ratio > 0:
        named.append(("loss_ratio", "1", link.loss_ratio))
    return named


def _judge(link: LinkDeclaration, quantity: str, found: dict[str, Any], way: int) -> tuple[float, bool, str]:
    """(measured, passed, what was asked of it) of one direction."""
    if quantity == "bandwidth_bps":
        rate_bps = link.bandwidth_bps or 0.0
        if link.loss_ratio >= 1:
            return math.nan, True, "everything is lost by declaration"
        # The share that the link loses by declaration is not the shaper's.
        measured = found["rate_bps"][way] / (1 - link.loss_ratio)
        return measured, abs(measured - rate_bps) <= 0.05 * rate_bps, "5 % allowed"
    if quantity == "loss_ratio":
        sent, lost = found["sent"], found["lost"][way]
        low, high = loss_bounds(sent, link.loss_ratio)
        detail = f"{lost} of {sent} lost, {low} to {high} allowed"
        if low == 0:
            detail += "; too few frames to tell it from no loss"
        return lost / sent, low <= lost <= high, detail
    delays = found["delay_s"][way]
    if len(delays) < _DELAY_FRAMES * 0.25 * (1 - link.loss_ratio):
        return math.nan, False, f"{len(delays)} of {_DELAY_FRAMES} frames arrived"
    if quantity == "jitter_s":
        # Jitter is uniform in ± jitter_s, so half of the frames lie in a band as wide as jitter_s. A stall of
        # the host moves the extremes, but hardly the quartiles.
        quartiles = statistics.quantiles(delays, n=4)
        measured = quartiles[2] - quartiles[0]
        least, most = 0.4 * link.jitter_s, 1.6 * link.jitter_s + 1e-3
        detail = f"interquartile range of {len(delays)} frames, {least:g} to {most:g} s allowed"
        return measured, least <= measured <= most, detail
    measured = statistics.fmean(delays) if link.jitter_s else statistics.median(delays)
    tolerance = max(1e-3, 0.1 * link.delay_s) + 0.5 * link.jitter_s
    return measured, abs(measured - link.delay_s) <= tolerance, f"{tolerance:g} s allowed"


def loss_bounds(count: int, ratio: float) -> tuple[int, int]:
    """Fewest and most frames lost of ``count`` that a link losing ``ratio`` leaves with probability 1e-5 each side."""
    if ratio >= 1:
        return count, count
    below = above = 0.0
    low = 0
    while low < count and below + _binomial(count, low, ratio) <= _TAIL:
        below += _binomial(count, low, ratio)
        low += 1
    high = count
    while high > low and above + _binomial(count, high, ratio) <= _TAIL:
        above += _binomial(count, high, ratio)
        high -= 1
    return low, high


def _binomial(count: int, events: int, ratio: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(events + 1) - math.lgamma(count - events + 1)
    return math.exp(ways + events * math.log(ratio) + (count - events) * math.log1p(-ratio))


def _measure(link: LinkDeclaration) -> dict[str, Any]:
    plan = _plan(link)
    with contextlib.ExitStack() as stack:
        plan["ends"] = []
        for end in (link.a, link.b):
            packets, mac = _packet_socket(end)
            stack.enter_context(packets)
            header = _MULTICAST + mac.replace(":", "") + f"{_ETHERTYPE:04x}"
            plan["ends"].append({"fd": packets.fileno(), "header": header})
        program = Path(__file__).with_name("probe_program.py")
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(program)],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            pass_fds=[one["fd"] for one in plan["ends"]],
            timeout=30,
            check=False,
        )
    if done.returncode:
        last = done.stderr.strip().splitlines()
        raise ValueError(last[-1] if last else f"probe program ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    if "loss" in plan:
        found["sent"] = plan["loss"]["count"]
    return found


def _packet_socket(end: End) -> tuple[socket.socket, str]:
    with Netlink(end.netns_pid) as netlink:
        info = netlink.link(end.interface)
    if not (info.up and info.carrier):
        raise OSError(errno.ENETDOWN, f"interface {end.interface} is down")

    def create() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        made.bind((end.interface, _ETHERTYPE))
        # Room for what a long link holds; without it the sender, not the link, would be measured.
        made.setsockopt(socket.SOL_SOCKET, 32, 1 << 23)  # SO_SNDBUFFORCE
        return made

    return in_netns_of(end.netns_pid, create), info.mac


# --- CPU ------------------------------------------------------------------------------------------

_BUSY = "the limit is in force, but other programs took the host's CPU"
_BURN = "import sys\nprint(flush=True)\nsys.stdin.readline()\nwhile True: pass"


def _probe_cpu(limit: CpuDeclaration, cores: float) -> Probe:
    item = f"{limit.name} cpu_millicores"
    burners: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(math.ceil(min(limit.cpu_millicores / 1000, cores))):
            burner = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            burners.append(burner)
            assert burner.stdout is not None
            burner.stdout.readline()
            limit.group.add(burner.pid)
        for burner in burners:
            assert burner.stdin is not None
            burner.stdin.write(b"\n")
            burner.stdin.flush()
        # The first period may hold a quota that was not used yet.
        time.sleep(0.04)
        before, start = limit.group.stats().cpu_used_s, time.monotonic()
        time.sleep(_CPU_TIME_S)
        after = limit.group.stats()
        measured = (after.cpu_used_s - before) / (time.monotonic() - start) * 1000
        in_force = after.cpu_limit_millicores
    except Exception as error:  # noqa: BLE001 - whatever kept it from being measured fails the row
        return Probe(item, "millicores", limit.cpu_millicores, math.nan, False, f"cannot be measured: {error}")
    finally:
        for burner in burners:
            burner.kill()
            burner.communicate()
    if cores * 1000 < limit.cpu_millicores:
        detail = f"the host has only {cores:g} cores"
        return Probe(item, "millicores", limit.cpu_millicores, measured, False, detail)
    # On a busy host a group without a limit may by chance get what was declared.
    if in_force is None or abs(in_force - limit.cpu_millicores) > 0.02 * limit.cpu_millicores:
        detail = f"the limit in force is {'none' if in_force is None else format(in_force, 'g')}"
        return Probe(item, "millicores", limit.cpu_millicores, measured, False, detail)
    tolerance = max(5.0, 0.1 * limit.cpu_millicores)
    passed = abs(measured - limit.cpu_millicores) <= tolerance
    detail = f"{tolerance:g} millicores allowed"
    if not passed and measured < limit.cpu_millicores:
        detail += f"; {_BUSY}"
    return Probe(item, "millicores", limit.cpu_millicores, measured, passed, detail)
