"""A stream service that moves between a container and a partition while users watch: gap, loss, duplicates.

    python benchmarks/offloading.py [--users 2] [--mbps 1.5] [--moves 20] [--format json]

Needs root, Docker, Open vSwitch, qemu-system-aarch64 and the images (``make images``). Figures are taken at the users:
the longest time between two packets of a flow in the second of each move, and in a second without a move before it;
packets lost and duplicated over all moves. At 1.5 Mbit/s in packets of 1200 bytes one is due every 6.4 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from topologies.model import App, Gnb, Link, Partition, Slice, Switch, Topology, Ue, Upf
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.load import Activity, Flow, Load
from twin.types import Action, Observation

PACKET_BYTES = 1200
FOREVER_S = 1e6


def network(users: int) -> Topology:
    """Phones, one cell, a video service in a container and a partition beside it."""
    return Topology(
        name="offloading",
        nodes=(
            Ue(name="phones", slice="embb", count=users, cqi_script=((0, 15),)),
            Gnb(name="gnb1", work_ns_per_bit=1.0),
            Switch(name="s1"),
            Upf(name="upf", slice="embb"),
            App(name="video", service="stream"),
            Partition(name="edge1", vnf="stream", critical=True),
        ),
        links=(
            Link(a="phones", b="gnb1"),
            Link(a="gnb1", b="s1"),
            Link(a="s1", b="upf"),
            Link(a="upf", b="video"),
            Link(a="upf", b="edge1"),
        ),
        slices=(Slice(name="embb", sst=1, prb_share=1.0),),
    )


def watching(users: int, rate_bps: float) -> Load:
    """Every phone watches all the time."""
    activities = (Activity(0.0, FOREVER_S, rate_bps),)
    names = [f"phones.{number}" for number in range(1, users + 1)]
    return Load(
        duration_s=FOREVER_S,
        flows=tuple(
            Flow(
                name=f"video:{name}", ue=name, slice="embb", app="video", service="stream", direction="dl",
                packet_bytes=PACKET_BYTES, activities=activities,
            )
            for name in names
        ),
    )  # fmt: skip


def second(session: EmulationSession) -> Observation:
    return session.advance(session.clock_s() + 1.0)


def counters(session: EmulationSession) -> dict[str, int]:
    """Packets received and lost by all users; then those sent, whoever served, so that more received are duplicates."""
    network = session._network
    found = {"received": 0, "lost": 0, "sent": 0}
    for spec, stats in network.stats():
        if spec.module == "traffic":
            found["received"] += sum(row["rx_packets"] for row in stats["flows"].values())
            found["lost"] += sum(row["lost_packets"] for row in stats["flows"].values())
    servers = [stats for spec, stats in network.stats() if spec.module == "app_stream"]
    for stats in (*servers, *(stats for _, stats in network.guest_streams())):
        found["sent"] += sum(row["tx_packets"] for row in stats["flows"].values())
    return found


def measure(users: int, rate_bps: float, moves: int) -> dict[str, Any]:
    """A row for each move, and the packets of all."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="twinbed-bench-") as folder,
        EmulationBackend(run_id=f"offload-{os.getpid()}", folder=Path(folder), probes=False).open(
            network(users), watching(users, rate_bps), seed=1
        ) as session,
    ):
        for _ in range(3):
            second(session)
        before = counters(session)
        for number in range(moves):
            quiet = second(session)
            target = "video" if number % 2 else "edge1"
            (outcome,) = session.apply([Action("node:video", "placement", target)])
            if not outcome.applied:
                raise SystemExit(f"offloading: {outcome.reason}")
            seen = second(session)
            rows.append(
                {
                    "to": target,
                    "lag_s": outcome.lag_s,
                    "gap_s": seen.value("slice:embb", "stream_gap_s"),
                    "quiet_gap_s": quiet.value("slice:embb", "stream_gap_s"),
                    "delay_p99_s": seen.value("slice:embb", "delay_dl_p99_s"),
                    "loss_ratio": seen.value("slice:embb", "loss_dl_ratio"),
                    "load_average": os.getloadavg()[0],
                }
            )
        second(session)
        after = counters(session)
    return {
        **{"users": users, "rate_bps": rate_bps, "moves": rows},
        **{"received": after["received"] - before["received"], "lost": after["lost"] - before["lost"]},
        # Of all the time: the readings at its end are a moment apart.
        "duplicates": max(0, after["received"] - after["sent"]),
    }


def main() -> int:
    """Print a line for each move, or JSON; 1 when a packet was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--mbps", type=float, default=1.5)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("qemu-system-aarch64"):
        print("offloading: needs root and qemu-system-aarch64 (tools/setup guests)")
        return 0
    found = measure(options.users, options.mbps * 1e6, options.moves)
    if options.format == "json":
        print(json.dumps(found))
        return 1 if found["lost"] else 0
    for row in found["moves"]:
        print(
            f"to {row['to']:6} in {row['lag_s'] * 1e3:5.1f} ms: gap {row['gap_s'] * 1e3:6.1f} ms, "
            f"without a move {row['quiet_gap_s'] * 1e3:6.1f} ms; delay p99 {row['delay_p99_s'] * 1e3:6.1f} ms; "
            f"load {row['load_average']:.1f}"
        )
    for name in ("gap_s", "quiet_gap_s"):
        values = [row[name] * 1e3 for row in found["moves"]]
        print(f"{name:12} median {statistics.median(values):6.1f} ms, worst {max(values):6.1f} ms of {len(values)}")
    print(f"{found['received']} packets received, {found['lost']} lost, {found['duplicates']} duplicated")
    return 1 if found["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
