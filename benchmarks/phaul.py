"""Training and decision time of PHaul, and what its policies are worth where they were not trained.

    python benchmarks/phaul.py [--topologies 3] [--matrices 250] [--steps 20000] [--format json]

Random IAB networks of NANCY D4.2 §4.2. First the times: training at 40 nodes (target: within
30 s for 20,000 steps) and a decision at 60 nodes, K 3, N_steps 300 (target: within 0.2 s; the paper
reports up to 10 s). Then efficiency with gamma 1 at 40 nodes, K 3, 500 to 750 Mbit/s, node active
probability 0.4, means over topologies and traffic matrices: trained per topology, trained on another
topology, trained across topologies, and with 1, 3 and 5 links broken against trained again (targets: at
most 2 % lost with broken links; the paper reports about 5 %, and 9 % on unseen topologies). The
controllers that do not train on a topology, subset_sum and prior_search, decide the same matrices.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from agents.iab_path import PathSpace, Traffic
from agents.phaul import PhaulPolicy, search
from agents.phaul_training import Training, train
from controllers.iab.problem import PathProblem
from controllers.iab.registry import make_solver
from topologies.iab import IabNetwork, generate

NODES, K_PATHS, ACTIVE = 40, 3, 0.4
BROKEN = (1, 3, 5)
RIVALS = ("subset_sum", "local_search", "prior_search")


def times(steps: int) -> dict[str, float]:
    """Seconds of a training at 40 nodes and of decisions at 60."""
    network = generate(NODES, k_paths=K_PATHS, seed=0)
    begin = time.perf_counter(), time.process_time()
    train(Training(network, Traffic.of_load("high"), steps=steps))
    training_s, processor_s = time.perf_counter() - begin[0], time.process_time() - begin[1]
    large = generate(60, k_paths=K_PATHS, seed=0)
    policy = train(Training(large, Traffic.of_load("high"), steps=1))
    space = policy.space_of(large)
    spent = []
    start_s = time.process_time()
    for number in range(21):
        begin_s = time.perf_counter()
        ended = search(policy, space, space.demand_bps[None], np.random.default_rng(number))
        spent.append(time.perf_counter() - begin_s)
        assert ended.step_count[0] == 300
    return {
        f"training, {steps} steps, 40 nodes, s": training_s,
        f"training, {steps} steps, 40 nodes, s of processor": processor_s,
        "decision, 60 nodes, mean, s": statistics.fmean(spent[1:]),
        "decision, 60 nodes, max, s": max(spent[1:]),
        "decision, 60 nodes, mean, s of processor": (time.process_time() - start_s) / 21,
    }


def worth(policy: PhaulPolicy, network: IabNetwork, demand_bps: np.ndarray) -> float:
    """Mean efficiency over traffic matrices, shape (M, F) in the order of the policy's flows."""
    space = policy.space_of(network, anywhere=True)
    return float(search(policy, space, demand_bps, np.random.default_rng(0)).best_efficiency.mean())


def one_topology(seed: int, matrices: int, steps: int, elsewhere: PhaulPolicy, across: PhaulPolicy) -> dict[str, float]:
    """Mean efficiencies on one topology, whole and with broken links."""
    traffic = Traffic.of_load("high", ACTIVE)
    network = generate(NODES, k_paths=K_PATHS, seed=seed)
    names = [flow.id for flow in network.flows]
    demand = traffic.draw(np.random.default_rng(seed), (matrices, len(names)))
    own = train(Training(network, traffic, steps=steps, seed=seed))
    found = {
        "trained on it": worth(own, network, demand),
        "trained on another": worth(elsewhere, network, demand),
        "trained across topologies": worth(across, network, demand),
    }
    few = demand[: max(1, matrices // 10)]
    for name in RIVALS:
        found[name] = decided(name, network, few)
    found["trained on it, the rivals' matrices"] = worth(own, network, few)
    for count in BROKEN:
        broken = generate(NODES, k_paths=K_PATHS, seed=seed, broken=count)
        space = PathSpace(broken, flows=own.flows, k_paths=own.k_paths, like=PathSpace(network))
        kept = search(own, space, demand, np.random.default_rng(0)).best_efficiency.mean()
        again = train(Training(broken, traffic, steps=steps, seed=seed))
        found[f"{count} broken, kept"] = float(kept)
        found[f"{count} broken, trained again"] = worth(again, broken, demand)
        found[f"{count} broken, prior_search"] = decided("prior_search", broken, few)
    return found


def decided(name: str, network: IabNetwork, demand_bps: np.ndarray) -> float:
    """Mean efficiency of a controller that learns nothing of the topology."""
    problem = PathProblem(network)
    carried = []
    for number, demand in enumerate(demand_bps):
        one = problem.with_demand(demand)
        allocation = make_solver(name, one)(one, np.random.default_rng(number)).allocation
        carried.append(float(one.model.evaluate(allocation[None])[0][0]))
    return statistics.fmean(carried)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topologies", type=int, default=3)
    parser.add_argument("--matrices", type=int, default=250, help="traffic matrices per topology; rivals a tenth")
    parser.add_argument("--steps", type=int, default=20_000, help="training steps")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    found: dict[str, float] = times(arguments.steps)
    traffic = Traffic.of_load("high", ACTIVE)
    first = generate(NODES, k_paths=K_PATHS, seed=1000)
    elsewhere = train(Training(first, traffic, steps=arguments.steps))
    across = train(Training(first, traffic, steps=arguments.steps, across=True))
    rows = [
        one_topology(seed, arguments.matrices, arguments.steps, elsewhere, across)
        for seed in range(arguments.topologies)
    ]
    found |= {f"efficiency, {name}": statistics.fmean(row[name] for row in rows) for name in rows[0]}
    if arguments.format == "json":
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<55} {value:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
