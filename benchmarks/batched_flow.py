"""How many path allocations the batched flow model evaluates per second.

    python benchmarks/batched_flow.py [--threads 2] [--topologies 10] [--device cuda] [--format json]

Random allocations of random IAB networks (NANCY D4.2 §4.2: K 3, high load, every node active), 20 and
60 nodes. Figures include everything between path indices and rates: checks, lookups, filling. The rate
is all allocations over all time, the best of ``--repeats``; slowest and fastest are single networks.
Some allocations of each network are compared with the scalar path. Targets, on 2 cores: 1,000,000/s at
20 nodes, 150,000/s at 60. The released environment of PHaul makes 435 to 3,300 steps/s.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from topologies.iab import generate
from twin.flow.batched import BatchedFlows
from twin.flow.maxmin import max_min

TARGETS_PER_S = {20: 1_000_000, 60: 150_000}
COMPARED = 20


def deviation(model: BatchedFlows, allocations: np.ndarray, rates: np.ndarray) -> float:
    """Largest relative difference from :func:`twin.flow.maxmin.max_min` over some allocations."""
    worst = 0.0
    for allocation, found in zip(allocations[:COMPARED].tolist(), rates, strict=False):
        usage = np.zeros((model.links, model.flows))
        for flow, path in enumerate(allocation):
            usage[list(model.paths[flow][path]), flow] = 1
        expected, _ = max_min(usage, model.capacity_bps, model.demand_bps)
        worst = max(worst, float((np.abs(found - expected) / expected).max()))
    return worst


def measure(nodes: int, *, topologies: int, threads: int, repeats: int, batch: int, device: str | None) -> dict:
    """Figures for one size."""
    best_s, deviations = [], []
    for seed in range(topologies):
        network = generate(nodes, k_paths=3, load="high", seed=seed)
        model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps(), device=device)
        allocations = np.random.default_rng(seed).integers(0, model.path_counts, (batch, model.flows))
        rates = model.rates(allocations, threads=threads)
        deviations.append(deviation(model, allocations, rates))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            model.rates(allocations, threads=threads)
            times.append(time.perf_counter() - start)
        best_s.append(min(times))
    return {
        "nodes": nodes,
        "allocations_per_s": batch * topologies / sum(best_s),
        "slowest_per_s": batch / max(best_s),
        "fastest_per_s": batch / min(best_s),
        "target_per_s": TARGETS_PER_S[nodes],
        "max_relative_deviation": max(deviations),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--topologies", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", help="a PyTorch device instead of NumPy, e.g. cpu or cuda")
    parser.add_argument("--batch", type=int, help="allocations per call (default: 200,000 and 40,000)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    rows = [
        measure(
            nodes,
            topologies=arguments.topologies,
            threads=arguments.threads,
            repeats=arguments.repeats,
            batch=arguments.batch or batch,
            device=arguments.device,
        )
        for nodes, batch in ((20, 200_000), (60, 40_000))
    ]
    if arguments.format == "json":
        print(json.dumps({"threads": arguments.threads, "device": arguments.device, "sizes": rows}))
    else:
        for row in rows:
            print(
                f"{row['nodes']} nodes: {row['allocations_per_s']:,.0f} allocations/s "
                f"({row['slowest_per_s']:,.0f} to {row['fastest_per_s']:,.0f} by network; "
                f"target {row['target_per_s']:,}), at most {row['max_relative_deviation']:.1e} off the scalar path"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
