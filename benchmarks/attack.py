"""One partition under attack: what the others notice of it, and what plain virtual machines do (NANCY D3.4 §6.2).

    python -m benchmarks.attack [--seconds 10] [--repeat 3] [--format json]

Needs root, qemu-system-aarch64 and the guest image (``make images``). In the same run, on one edge server: four
bystanders that run a periodic task (a critical partition, one with a reservation, one with limits only, a plain
virtual machine) and three victims: an isolated partition that leaves the host one of its CPUs, one with as many
processors as the host has, and a plain virtual machine with as many. The victims are attacked in turn: all processors
busy, all memory walked, a UDP flood. Before each attack there is a quiet phase of the same length. The figure is the
99th percentile of the task's response times, measured inside the bystanders. Target: during attacks on the isolated
victim it grows by at most 10 % in the partitions with reservations (median of the repetitions).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.partitions import Server
from twin.emulation.dataplane import histogram
from twin.emulation.partitions.client import VmanError

KINDS = ("cpu", "memory", "network")
BYSTANDERS: Mapping[str, Mapping[str, Any]] = {
    "critical": {"secure": True},
    "reserved": {},
    "limited": {},
    "plain": {"isolated": False},
}
RESERVATION = {"dl_runtime_us": 6_000, "dl_period_us": 12_500}
CPUS = max(2, min(8, os.cpu_count() or 2))
VICTIMS: Mapping[str, Mapping[str, Any]] = {
    "isolated": {"cores": CPUS - 1},
    "overcommitted": {"cores": CPUS},
    "plain": {"cores": CPUS, "isolated": False},
}
LOAD = "4000/25000"
SETTLE_S = 1.5
PATIENCE_S = 30.0
TARGET = 1.10


class Bystander:
    """A partition whose task is measured."""

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self.number = number
        self._seen_s = 0.0
        self.lines: list[Mapping[str, Any]] = []

    def look(self) -> None:
        """Take the last metrics line, when it is a new one."""
        line = self._server.call("info", id=self.number)["metrics"]
        if line is not None and line["uptime_s"] > self._seen_s:
            self._seen_s = line["uptime_s"]
            self.lines.append(line["load"][0]["responses"])


def watch(bystanders: Mapping[str, Bystander], seconds: float) -> dict[str, float]:
    """The 99th percentile (s) of each bystander's responses in the next seconds."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end + seconds or not all(one.lines for one in bystanders.values()):
        if time.monotonic() > end + seconds + PATIENCE_S:
            silent = ", ".join(name for name, one in bystanders.items() if not one.lines)
            raise SystemExit(f"attack: no metrics from {silent} within {seconds + PATIENCE_S:g} s")
        for one in bystanders.values():
            one.look()
            if time.monotonic() < end:
                one.lines.clear()
        time.sleep(0.2)
    found = {}
    for name, one in bystanders.items():
        value_us = histogram.percentile(histogram.merge(one.lines), 99)
        found[name] = float("nan") if value_us is None else value_us / 1e6
        one.lines.clear()
    return found


def create(server: Server, load: str | None, **args: Any) -> int:
    number = int(server.call("create-partition", memory_mib=128, **args)["id"])
    server.call("deploy", id=number, metrics_ms=1000, **({"load": load} if load else {}))
    return number


def reserve(server: Server, number: int, patience_s: float = 60.0) -> None:
    """Wait for the host's reservable CPU time, of which other programs may have some."""
    end = time.monotonic() + patience_s
    while True:
        try:
            server.call("limit", id=number, **RESERVATION)
            return
        except VmanError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def measure(
    seconds: float, repeat: int, kinds: Sequence[str] = KINDS, chosen: Sequence[str] = tuple(VICTIMS)
) -> list[dict[str, Any]]:
    """A row for each attack: p99 of the bystanders before and during it."""
    server = Server("--cores", str(3 * CPUS + 4), "--memory-mib", "2048")
    rows = []
    try:
        victims = {name: create(server, None, **VICTIMS[name]) for name in chosen}
        bystanders = {
            name: Bystander(server, create(server, LOAD, cores=1, **args)) for name, args in BYSTANDERS.items()
        }
        reserve(server, bystanders["reserved"].number)
        isolation = server.call("info", id=bystanders["critical"].number)["isolation"]
        if not isolation.startswith("SCHED_DEADLINE"):
            raise SystemExit(f"attack: the critical partition has no reservation: {isolation}")
        for turn in range(repeat):
            for kind in kinds:
                for name, victim in victims.items():
                    before = watch(bystanders, seconds)
                    load_before = os.getloadavg()[0]
                    server.call("attack", id=victim, kind=kind, seconds=seconds + SETTLE_S + 1)
                    during = watch(bystanders, seconds)
                    server.call("attack", id=victim, kind="none")
                    rows.append(
                        {
                            "turn": turn,
                            "kind": kind,
                            "victim": name,
                            "before_s": before,
                            "during_s": during,
                            "load_average": load_before,
                        }
                    )
    finally:
        server.close()
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Victim, attack, bystander -> median over the turns of p99 during by p99 before."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name in BYSTANDERS:
            key = f"{row['victim']} victim, {row['kind']}, {name} bystander"
            found.setdefault(key, []).append(row["during_s"][name] / row["before_s"][name])
    return {key: statistics.median(values) for key, values in found.items()}


def main() -> int:
    """Print a line for each attack, or JSON; 1 when reserved bystanders notice an attack on an isolated victim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("qemu-system-aarch64"):
        print("attack: needs root and qemu-system-aarch64 (tools/setup guests)")
        return 0
    rows = measure(options.seconds, options.repeat)
    ratios = summary(rows)
    missed = [
        key
        for key, ratio in ratios.items()
        if key.startswith("isolated") and key.endswith(("critical bystander", "reserved bystander")) and ratio > TARGET
    ]
    if options.format == "json":
        print(json.dumps({"rows": rows, "ratios": ratios, "missed": missed}))
        return 1 if missed else 0
    print(f"{os.cpu_count()} CPUs; p99 response in ms before -> during; task of {LOAD} us")
    for row in rows:
        parts = [
            f"{name} {row['before_s'][name] * 1e3:6.2f} -> {row['during_s'][name] * 1e3:6.2f}" for name in BYSTANDERS
        ]
        print(f"{row['kind']:8} on {row['victim']:13} load {row['load_average']:5.1f}  {'   '.join(parts)}")
    for key, ratio in ratios.items():
        print(f"{key:48} x {ratio:.2f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
