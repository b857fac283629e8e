"""How many path allocations the batched flow model evaluates per second.

    python benchmarks/batched_flow.py [--threads 2] [--topologies 10] [--device numpy] [--format json]

Random allocations of random IAB networks (NANCY D4.2 §4.2: K 3, high load, every node active), 20 and
60 nodes. Figures include everything between path indices and rates: checks, lookups, filling. The rate
is all allocations over all time, the best of ``--repeats``; slowest and fastest are single networks.
Some allocations of each network are compared with the scalar path. Then one allocation at a time, in
microseconds, and all networks of a size joined, every row with another network, demands and capacities.
``--device`` is numpy or a PyTorch device; without, Numba's compiled code. On a GPU allocations and rates
stay there. Targets, on 2 cores: 1,000,000/s at 20 nodes, 150,000/s at 60; on one H100 30,000,000/s at 20.
The released environment of PHaul makes 435 to 3,300 steps/s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from topologies.iab import generate
from twin.flow.batched import BatchedFlows, JoinedFlows
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


def best_s(repeats: int, call: Callable[[], Any], device: str | None) -> float:
    """Seconds of the fastest of some calls, to the end of what they started on a GPU."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device and device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(nodes: int, *, topologies: int, threads: int, repeats: int, batch: int, device: str | None) -> dict:
    """Figures for one size."""
    times, single, deviations, models = [], [], [], []
    for seed in range(topologies):
        network = generate(nodes, k_paths=3, load="high", seed=seed)
        model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps(), device=device)
        models.append(model)
        allocations = np.random.default_rng(seed).integers(0, model.path_counts, (batch, model.flows))
        rates = model.rates(allocations, threads=threads)
        deviations.append(deviation(model, allocations, rates))
        given: Any = allocations
        if device and device.startswith("cuda"):
            import torch

            given = torch.from_numpy(allocations).to(device)
        times.append(best_s(repeats, lambda m=model, g=given: m.rates(g, threads=threads), device))
        one = given[:1]
        single.append(best_s(20, lambda m=model, g=one: [m.rates(g) for _ in range(20)], device) / 20)
    joined = JoinedFlows(models, device=device)
    rng = np.random.default_rng(0)
    which = rng.integers(0, topologies, batch)
    allocations = rng.integers(0, joined.path_counts[which])
    demand = joined.demand_bps[which] * rng.uniform(0.5, 1, (batch, 1))
    capacity = joined.capacity_bps[which] * rng.uniform(0.5, 1, (batch, 1))
    side_by_side_s = best_s(
        repeats + 1,
        lambda: joined.rates(which, allocations, demand_bps=demand, capacity_bps=capacity, threads=threads),
        device,
    )
    return {
        "nodes": nodes,
        "allocations_per_s": batch * topologies / sum(times),
        "slowest_per_s": batch / max(times),
        "fastest_per_s": batch / min(times),
        "target_per_s": TARGETS_PER_S[nodes],
        "max_relative_deviation": max(deviations),
        "single_s": statistics.fmean(single),
        "joined_per_s": batch / side_by_side_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--topologies", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", help="numpy, or a PyTorch device, e.g. cpu or cuda, instead of Numba")
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
                f"target {row['target_per_s']:,}), at most {row['max_relative_deviation']:.1e} off the scalar path; "
                f"one alone {row['single_s'] * 1e6:.0f} us; "
                f"different networks, demands and capacities {row['joined_per_s']:,.0f}/s"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
