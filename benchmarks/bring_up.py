"""Time to bring networks up and down: containers and namespace hosts with links on one switch.

``sudo .venv/bin/python benchmarks/bring_up.py`` prints each figure next to the plain way measured in the
same run: containers made one by one (create, start, link and port, one after the other, as Containernet
does) and stock Mininet hosts. Targets are for a quiet host.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mininet.log import setLogLevel
from mininet.net import Mininet
from mininet.node import Host, OVSSwitch
from mininet.topo import Topo

from twin.emulation.containernet import Containernet
from twin.emulation.images import ensure_base_image

TARGETS = {"containers": (7.0, 2.5), "hosts": (1.0, 0.7)}
Measure = Callable[[int], tuple[float, float]]
settled: list[tuple[int, float]] = []


def timed(step: Callable[[], Any]) -> float:
    """Seconds a step takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def prefix() -> str:
    """A prefix of this measurement's own."""
    return f"bb{random.SystemRandom().randrange(16**4):04x}"


def containers(count: int) -> tuple[float, float]:
    """Up and down in s, as the façade does it."""
    net = Containernet(controller=None, prefix=prefix())

    def up() -> None:
        switch = net.addSwitch("s1")
        for number in range(1, count + 1):
            net.addLink(net.addDocker(f"d{number}"), switch)
        net.start()

    try:
        up_s = timed(up)
        check(net, count)
    finally:
        down_s = timed(net.stop)
    return up_s, down_s


def one_by_one(count: int) -> tuple[float, float]:
    """Up and down in s, each container with its link finished before the next is begun."""
    net = Containernet(controller=None, prefix=prefix())

    def up() -> None:
        switch = net.addSwitch("s1")
        net.start()
        for number in range(1, count + 1):
            net.addLink(net.addDocker(f"d{number}").wait_ready(), switch)

    def down() -> None:
        for node in list(net.hosts):
            net.removeDocker(node)
        net.stop()

    try:
        up_s = timed(up)
        check(net, count)
    finally:
        down_s = timed(down)
    return up_s, down_s


def hosts(count: int) -> tuple[float, float]:
    """Up and down in s of namespace hosts."""
    net = Containernet(controller=None, prefix=prefix())

    def up() -> None:
        switch = net.addSwitch("s1")
        for number in range(1, count + 1):
            net.addLink(net.addHost(f"h{number}"), switch)
        net.start()

    try:
        up_s = timed(up)
        check(net, count)
    finally:
        down_s = timed(net.stop)
    return up_s, down_s


def stock_mininet(count: int) -> tuple[float, float]:
    """Up and down in s of Mininet's own hosts on its own switch class."""
    name = prefix()
    # From a Topo, so that Mininet starts the switch in one batch, its fastest way
    topo = Topo()
    datapath = "kernel" if Path("/sys/module/openvswitch").exists() else "user"
    switch = topo.addSwitch(name, dpid="1", failMode="standalone", datapath=datapath)
    for number in range(1, count + 1):
        topo.addLink(topo.addHost(f"{name}h{number}"), switch)
    net = Mininet(topo=topo, controller=None, host=Host, switch=OVSSwitch, build=False)

    def up() -> None:
        net.start()

    try:
        up_s = timed(up)
        check(net, count)
    finally:
        down_s = timed(net.stop)
    return up_s, down_s


def check(net: Any, count: int) -> None:
    """The network carries packets between its first and its last node, or the figures mean nothing."""
    nodes = net.hosts
    if len(nodes) != count or net.ping([nodes[0], nodes[-1]], timeout="2") > 0:
        sys.exit(f"bring_up: {len(nodes)} of {count} nodes, and the first and the last do not reach each other")


def settle() -> float:
    """Seconds until Open vSwitch is idle: it closes the ports of a removed bridge after we have gone on."""
    return timed(lambda: subprocess.run(["ovs-appctl", "version"], check=True, capture_output=True, timeout=60))


def medians(measures: Sequence[Measure], count: int, repeats: int) -> list[tuple[float, float]]:
    """Median up and down time in s of each way, measured in turns and each beginning with an idle Open vSwitch."""
    runs: list[list[tuple[float, float]]] = [[] for _ in measures]
    for _ in range(repeats):
        for one, measure in zip(runs, measures, strict=True):
            one.append(measure(count))
            settled.append((count, settle()))
    return [(statistics.median(up for up, _ in one), statistics.median(down for _, down in one)) for one in runs]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--containers", type=int, default=50)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    setLogLevel("critical")
    ensure_base_image()
    load = os.getloadavg()[0]
    rows = []
    for what, count, ours, plain in (
        ("containers", options.containers, containers, one_by_one),
        ("hosts", options.hosts, hosts, stock_mininet),
    ):
        mine, other = medians((ours, plain), count, options.repeats)
        for index, direction in enumerate(("up", "down")):
            rows.append(
                {
                    "what": f"{count} {what} {direction}",
                    "seconds": round(mine[index], 3),
                    "target_s": TARGETS[what][index],
                    "plain_s": round(other[index], 3),
                    "ratio": round(mine[index] / other[index], 3),
                    "plain_way": "one by one" if what == "containers" else "stock Mininet",
                }
            )
    if options.format == "json":
        print(json.dumps({"load_before": load, "repeats": options.repeats, "rows": rows, "settle_s": settled}))
        return
    print(f"load before: {load:.2f} on {os.cpu_count()} cores; medians of {options.repeats} in turns")
    for row in rows:
        print(
            f"{row['what']:<20} {row['seconds']:7.3f} s (target {row['target_s']:g})   "
            f"{row['plain_way']} {row['plain_s']:7.3f} s   ratio {row['ratio']:.2f}"
        )
    longest = max(settled, key=lambda one: one[1])
    print(f"after a removal Open vSwitch was busy closing ports for up to {longest[1]:.2f} s more ({longest[0]} ports)")


if __name__ == "__main__":
    main()
