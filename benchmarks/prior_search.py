"""``prior_search`` against ``local_search`` at equal numbers of evaluations, on networks it never saw.

    python benchmarks/prior_search.py [--topologies 10] [--format json]

Random IAB networks of NANCY D4.2 §4.2, K 3, 500 to 750 Mbit/s, every node active, with seeds that the
training of the prior leaves out; with five broken links, which the prior is not told of either. For
every size and gamma: how far J is below the best that any of the searches here found with up to 60,000
evaluations, in percent, mean over topologies with 95 % intervals (Student's t). Then the gap to the LP
bound of the efficiency, and the time of a decision, wall clock and of the processor (targets at 60
nodes: 2 % and 0.1 s; 2 % with broken links, 3 % on unseen topologies).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
from scipy import stats

from agents.path_prior import shipped
from agents.prior_search import prior_search
from controllers.iab import local_search as local
from controllers.iab.problem import Decision, PathProblem
from topologies.iab import generate

SIZES = (20, 40, 60, 100)
GAMMAS = (1.0, 0.0, -1.0)
BUDGETS = (300, 1000, 6000)
LONG = 60_000


def decide(name: str, problem: PathProblem, seed: int, evaluations: int) -> Decision:
    """The decision of one of the two with about so many evaluations."""
    rng = np.random.default_rng(seed)
    if name == "prior_search":
        return prior_search(problem, rng, shipped(), evaluations=evaluations)
    before, local.EVALUATIONS = local.EVALUATIONS, evaluations
    try:
        return local.local_search(problem, rng)
    finally:
        local.EVALUATIONS = before


def one(nodes: int, gamma: float, broken: int, seed: int) -> dict[str, float]:
    """Shortfalls of J in percent by search and budget, and the gap to the bound of the efficiency."""
    problem = PathProblem(generate(nodes, k_paths=3, seed=seed, broken=broken), gamma)
    found: dict[str, float] = {}
    for name in ("local_search", "prior_search"):
        for evaluations in (*BUDGETS, LONG):
            decision = decide(name, problem, seed, evaluations)
            found[f"{name} {evaluations}"] = float(problem.objective(decision.allocation[None])[0])
            if evaluations == BUDGETS[-1] and gamma == 1:
                assert decision.efficiency_bound is not None
                found[f"gap {name}"] = 100 * (1 - found[f"{name} {evaluations}"] / 2 / decision.efficiency_bound)
    best = max(value for key, value in found.items() if not key.startswith("gap"))
    return {key: value if key.startswith("gap") else 100 * (1 - value / best) for key, value in found.items()}


def compare(topologies: int) -> list[dict[str, float]]:
    """One row per size, gamma and number of broken links."""
    rows = []
    for nodes in SIZES:
        for broken in (0, 5):
            for gamma in GAMMAS:
                every = [one(nodes, gamma, broken, seed) for seed in range(topologies)]
                row: dict[str, float] = {"nodes": nodes, "gamma": gamma, "broken": broken}
                for key in every[0]:
                    values = [item[key] for item in every]
                    row[key] = statistics.fmean(values)
                    half = stats.t.ppf(0.975, topologies - 1) * statistics.stdev(values) / topologies**0.5
                    row[f"{key} half interval"] = float(half)
                rows.append(row)
    return rows


def decision_times(topologies: int) -> dict[str, float]:
    """Seconds of a decision at 60 nodes, gamma 0, which seldom reaches its bound and ends early."""
    wall, processor = [], []
    for seed in range(topologies + 1):
        problem = PathProblem(generate(60, k_paths=3, seed=seed), 0.0)
        begin = time.perf_counter(), time.process_time()
        decide("prior_search", problem, seed, BUDGETS[-1])
        wall.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
    # The first one loads the compiled flow model.
    return {"mean": statistics.fmean(wall[1:]), "max": max(wall[1:]), "processor": statistics.fmean(processor[1:])}


def table(rows: list[dict[str, float]]) -> str:
    """Markdown."""
    head = ["nodes", "broken", "gamma"]
    head += [f"{name} {evaluations}" for evaluations in BUDGETS for name in ("local", "prior")]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [str(int(row["nodes"])), str(int(row["broken"])), f"{row['gamma']:g}"]
        for evaluations in BUDGETS:
            for name in ("local_search", "prior_search"):
                key = f"{name} {evaluations}"
                cells.append(f"{row[key]:.2f} ± {row[f'{key} half interval']:.2f}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topologies", type=int, default=10)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.topologies < 2:
        parser.error("--topologies must be at least 2, or there is no interval")
    times = decision_times(arguments.topologies)
    rows = compare(arguments.topologies)
    if arguments.format == "json":
        print(json.dumps({"rows": rows, "decision at 60 nodes, s": times}))
        return 0
    print(table(rows))
    for row in rows:
        if "gap prior_search" in row:
            gaps = ", ".join(f"{name} {row[f'gap {name}']:.2f} %" for name in ("local_search", "prior_search"))
            print(f"gap to the LP bound, {row['nodes']} nodes, {row['broken']} broken: {gaps}")
    print(f"decision at 60 nodes: {', '.join(f'{key} {value:.3f} s' for key, value in times.items())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
