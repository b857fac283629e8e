"""Path controllers against each other, against brute force and against the LP bound.

    python benchmarks/iab.py [--topologies 10] [--matrices 5] [--workers 2] [--format json]

Random IAB networks of NANCY D4.2 §4.2, every node active. For every size, load and K: efficiency of
decisions with gamma 1 and fairness of decisions with gamma -1, means over topologies and traffic
matrices; gains of local search in percent with 95 % intervals (Student's t over the means of the
topologies, since matrices of one topology are not independent); the gap to the LP bound. Then brute
force at 20 nodes with K 1, and the decision time at 60 nodes with K 3, alone on the host. Targets: gap
at 60 nodes at most 2 % on average, decision within 0.1 s, 20 nodes within 0.5 % of brute force.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from scipy import stats

from controllers.iab.problem import PathProblem
from controllers.iab.registry import SOLVERS
from topologies.iab import generate

SIZES = (20, 40, 60)
LOADS = ("low", "high")
PATHS = (1, 3)
COMPARED = ("random", "subset_sum", "local_search")
CRITERIA = {"efficiency": 1.0, "fairness": -1.0}


def one_topology(case: tuple[int, str, int, int, int]) -> dict[str, float]:
    """Means over the traffic matrices of one topology."""
    nodes, load, k_paths, seed, matrices = case
    found: dict[str, list[float]] = {}
    for matrix in range(matrices):
        network = generate(nodes, k_paths=k_paths, load=load, seed=seed, matrix=matrix)
        for place, (criterion, gamma) in enumerate(CRITERIA.items()):
            problem = PathProblem(network, gamma)
            for name in COMPARED:
                decision = SOLVERS[name](problem, np.random.default_rng([seed, matrix]))
                value = float(problem.model.evaluate(decision.allocation[None])[place][0])
                found.setdefault(f"{criterion} {name}", []).append(value)
                if name == "local_search" and criterion == "efficiency":
                    assert decision.efficiency_bound is not None
                    found.setdefault("gap", []).append(1 - value / decision.efficiency_bound)
    return {key: statistics.fmean(values) for key, values in found.items()} | {"worst gap": max(found["gap"])}


def gain(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Gain of the mean in percent, and half its 95 % interval, over topologies."""
    gains = [100 * (one / other - 1) for one, other in zip(ours, theirs, strict=True)]
    spread = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
    return statistics.fmean(gains), float(spread)


def compare(topologies: int, matrices: int, workers: int) -> list[dict]:
    """One row per size, load and K."""
    conditions = list(itertools.product(SIZES, LOADS, PATHS))
    cases = [(*condition, seed, matrices) for condition in conditions for seed in range(topologies)]
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(one_topology, cases))
    rows = []
    for number, (nodes, load, k_paths) in enumerate(conditions):
        mine = results[number * topologies : (number + 1) * topologies]
        row: dict = {"nodes": nodes, "load": load, "k_paths": k_paths}
        for criterion in CRITERIA:
            values = {name: [one[f"{criterion} {name}"] for one in mine] for name in COMPARED}
            row[criterion] = statistics.fmean(values["local_search"])
            for name in ("subset_sum", "random"):
                mean, half = gain(values["local_search"], values[name])
                row[f"{criterion} over {name}, %"] = mean
                row[f"{criterion} over {name}, half interval"] = half
        row["gap, %"] = 100 * statistics.fmean(one["gap"] for one in mine)
        row["worst gap, %"] = 100 * max(one["worst gap"] for one in mine)
        rows.append(row)
    return rows


def against_brute_force(topologies: int) -> dict[str, float]:
    """Mean and worst shortfall of J at 20 nodes, K 1, in percent."""
    short = []
    for seed, gamma in itertools.product(range(topologies), (1.0, 0.0, -1.0)):
        problem = PathProblem(generate(20, k_paths=1, seed=seed), gamma)
        best, ours = (
            float(problem.objective(SOLVERS[name](problem, np.random.default_rng(seed)).allocation[None])[0])
            for name in ("brute_force", "local_search")
        )
        short.append(100 * (1 - ours / best))
    return {"mean, %": statistics.fmean(short), "worst, %": max(short)}


def against_optimal(topologies: int) -> list[dict[str, float]]:
    """Mean gaps to the proven bound of the mixed-integer program in percent, by size; K 3, high load."""
    rows = []
    for nodes in SIZES:
        gaps: dict[str, list[float]] = {"optimal": [], "local_search": [], "subset_sum": []}
        for seed in range(topologies):
            problem = PathProblem(generate(nodes, k_paths=3, seed=seed))
            decisions = {name: SOLVERS[name](problem, np.random.default_rng(seed)) for name in gaps}
            bound = decisions["optimal"].efficiency_bound
            for name, decision in decisions.items():
                efficiency = float(problem.model.evaluate(decision.allocation[None])[0][0])
                gaps[name].append(100 * (1 - efficiency / bound))
        rows.append({"nodes": nodes, **{name: statistics.fmean(values) for name, values in gaps.items()}})
    return rows


def decision_times(topologies: int) -> dict[str, dict[str, float]]:
    """Seconds per decision at 60 nodes, K 3, high load."""
    found = {}
    for name in ("subset_sum", "local_search", "optimal"):
        times = []
        for seed in range(topologies):
            problem = PathProblem(generate(60, k_paths=3, seed=seed))
            start = time.perf_counter()
            SOLVERS[name](problem, np.random.default_rng(seed))
            times.append(time.perf_counter() - start)
        found[name] = {"mean_s": statistics.fmean(times), "max_s": max(times)}
    return found


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = ("nodes", "load", "K", "efficiency", "over subset-sum, %", "over random, %")
    head += ("fairness", "over subset-sum, %", "over random, %", "gap to LP bound, %", "worst")
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        cells = [str(row["nodes"]), row["load"], str(row["k_paths"])]
        for criterion in CRITERIA:
            cells.append(f"{row[criterion]:.3f}")
            cells += [
                f"{row[f'{criterion} over {name}, %']:.1f} ± {row[f'{criterion} over {name}, half interval']:.1f}"
                for name in ("subset_sum", "random")
            ]
        cells += [f"{row['gap, %']:.2f}", f"{row['worst gap, %']:.2f}"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topologies", type=int, default=10)
    parser.add_argument("--matrices", type=int, default=5, help="traffic matrices per topology (the paper: 250)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.topologies < 2:
        parser.error("--topologies must be at least 2, or there is no interval")
    times = decision_times(arguments.topologies)
    proven = against_optimal(arguments.topologies)
    brute = against_brute_force(arguments.topologies)
    rows = compare(arguments.topologies, arguments.matrices, arguments.workers)
    if arguments.format == "json":
        print(
            json.dumps(
                {"rows": rows, "short of brute force": brute, "gap to proven bound, %": proven, "decision times": times}
            )
        )
    else:
        print(table(rows))
        print(f"short of brute force, 20 nodes, K 1: mean {brute['mean, %']:.3f} %, worst {brute['worst, %']:.3f} %")
        for row in proven:
            gaps = ", ".join(f"{name} {row[name]:.2f} %" for name in ("optimal", "local_search", "subset_sum"))
            print(f"gap to the mixed-integer bound, {row['nodes']} nodes, K 3, high load: {gaps}")
        for name, figures in times.items():
            print(f"decision at 60 nodes, K 3, {name}: mean {figures['mean_s']:.3f} s, max {figures['max_s']:.3f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
