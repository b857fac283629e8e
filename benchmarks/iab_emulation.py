"""IAB in emulation: bring-up, per-flow error against the flow model, loss and latency of path changes.

Runs the network of a library scenario with its own traffic at time 0, twice on its first paths and twice on
random ones, then moves one flow that sends numbered packets in both directions::

    sudo python benchmarks/iab_emulation.py [--scenario iab20] [--changes 60] [--seconds 8] [--out results.json]

Exit code 1 when a packet is lost or the median error of a phase is above 5 percent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from scenarios.loader import load_scenario
from scenarios.registry import find_scenario
from topologies.backhaul import to_network
from twin.backhaul import BackhaulMonitor
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.load import Activity, BackhaulDemand, Load
from twin.types import Action, Outcome

SETTLE_S = 3.0
NUMBERED_BPS = 100e3


class Bench:
    """A running session and what the flow model expects of it."""

    def __init__(self, session: EmulationSession, topology, load: Load) -> None:
        self.session = session
        self.flows = topology.backhaul
        self.monitor = BackhaulMonitor(topology, load)

    def move(self, flow: str, index: int) -> Outcome:
        """Choose a path; SystemExit when it is refused."""
        (outcome,) = self.session.apply([Action(f"flow:{flow}", "path_index", index)])
        if not outcome.applied:
            raise SystemExit(f"path change refused: {outcome.reason}")
        self.monitor.note([outcome])
        return outcome

    def errors(self, seconds: float) -> np.ndarray:
        """Relative errors of all flows over ``seconds`` after settling, shape (flows,)."""
        self.monitor.derive(self.session.advance(self.session.clock_s() + SETTLE_S))
        observed = self.session.advance(self.session.clock_s() + seconds)
        expected = {k.entity: k.value for k in self.monitor.derive(observed) if k.name == "predicted_throughput_bps"}
        pairs = [
            (observed.get(f"flow:{flow.name}", "throughput_bps", 0.0), expected[f"flow:{flow.name}"])
            for flow in self.flows
        ]
        return np.array([abs(one - other) / other for one, other in pairs if other > 0])


def lossless(bench: Bench, changes: int) -> dict[str, float]:
    """Numbered packets of the flow with the most paths, both ways, while its path changes."""
    network = bench.session._network
    flow = max(bench.flows, key=lambda one: len(one.paths))
    source, sink = network.client(f"{flow.name}-src"), network.client(flow.sink)
    source.call("rate", rate=0)
    source.call("numbers", rate=NUMBERED_BPS, packet_bytes=200)
    time.sleep(0.5)
    sink.call("numbers", flow=flow.name, rate=NUMBERED_BPS, packet_bytes=200)
    lags = []
    for change in range(changes):
        lags.append(bench.move(flow.name, (change + 1) % len(flow.paths)).lag_s)
        time.sleep(0.05)
    source.call("numbers", rate=0)
    sink.call("numbers", flow=flow.name, rate=0)
    time.sleep(2.0)
    at_source = source.call("stats")["numbers"]
    at_sink = sink.call("stats")["flows"][flow.name]["numbers"]
    return {
        "changes": changes,
        "sent": at_source["tx_packets"] + at_sink["tx_packets"],
        "lost": at_source["tx_packets"] - at_sink["rx_packets"] + at_sink["tx_packets"] - at_source["rx_packets"],
        "doubled": at_source["doubled"] + at_sink["doubled"],
        "overtaken": at_source["overtaken"] + at_sink["overtaken"],
        "latency_p50_s": float(np.percentile(lags, 50)),
        "latency_p95_s": float(np.percentile(lags, 95)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="iab20")
    parser.add_argument("--changes", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    scenario = load_scenario(find_scenario(arguments.scenario), fidelity="emulation")
    demands = tuple(
        BackhaulDemand(flow=one.flow, activities=(Activity(0.0, 1e6, one.rate_bps(0.0)),))
        for one in scenario.load.backhaul
        if one.rate_bps(0.0) > 0
    )
    load = Load(flows=(), duration_s=1e6, backhaul=demands)
    topology = scenario.topology
    found: dict[str, object] = {
        "scenario": arguments.scenario,
        "nodes": len(to_network(topology).nodes),
        "flows": len(topology.backhaul),
        "load_average_before": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        run_id = f"bench-{uuid.uuid4().hex[:8]}"
        backend = EmulationBackend(run_id=run_id, folder=Path(folder), probes=False)
        with backend.open(topology, load, seed=1) as session:
            found["bring_up_s"] = time.monotonic() - begun
            bench = Bench(session, topology, load)
            phases = {"first paths": bench.errors(arguments.seconds), "again": bench.errors(arguments.seconds)}
            draw = np.random.default_rng(0)
            lags = [bench.move(flow.name, int(draw.integers(len(flow.paths)))).lag_s for flow in bench.flows]
            phases |= {"random paths": bench.errors(arguments.seconds), "again ": bench.errors(arguments.seconds)}
            found["phases"] = {
                name: {"median": float(np.median(errors)), "p95": float(np.percentile(errors, 95))}
                for name, errors in phases.items()
            }
            found["all_flows_moved_s"] = float(np.sum(lags))
            found["path_change"] = lossless(bench, arguments.changes)
            begun = time.monotonic()
        found["down_s"] = time.monotonic() - begun
    found["load_average_after"] = os.getloadavg()[0]
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    lost = found["path_change"]["lost"]  # type: ignore[index]
    worst = max(float(np.median(errors)) for errors in phases.values())
    if lost or worst > 0.05:
        sys.exit(1)


if __name__ == "__main__":
    main()
