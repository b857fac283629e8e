"""Path controllers against each other, against brute force and against bounds.

    python benchmarks/iab.py [--solver NAME[:LABEL[:FOLDER]]]... [--variant plain]... [--sizes 20 30 40 50 60]
        [--topologies 10] [--matrices 5] [--bounded 5] [--results FILE] [--report-only] [--workers 2] [--format json]

Random IAB networks of NANCY D4.2 §4.2, every node active, both loads, K 1 and 3. Efficiency is that of
decisions with gamma 1, fairness that of decisions with gamma -1; means over topologies and traffic
matrices, gains in percent with 95 % intervals (Student's t over the means of the topologies, since
matrices of one topology are not independent). Gaps are to the bound of the linear program, over all
matrices, and to that of the mixed-integer program, over the first ``--bounded`` of each topology.

Variants: ``plain``; ``broken`` takes 1, 2, 3, 4 and 5 links away; ``unseen`` are other topologies;
``no_sub6`` has mmWave only. Controllers that learn take a checkpoint from FOLDER, named
``VARIANT-nNODES-LOAD-kK-sSEED-gGAMMA`` (e.g. ``broken3-n60-high-k3-s0-g1``, a file of any ending or a
folder), or else the same without the variant, trained on the plain topology, or else ``any-gGAMMA``; on
``unseen`` topologies only the last. So one controller under two labels is compared with and without
retraining.

With ``--results`` every finished part is appended to a file, and what stands there is not done again.
Then brute force at 20 nodes with K 1, the gap to the mixed-integer bound, and the decision time at 60
nodes with K 3. Targets: gap at 60 nodes at most 2 % on average, decision within 0.1 s, 20 nodes within
0.5 % of brute force.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from controllers.iab.problem import PathProblem, SolveError
from controllers.iab.registry import make_solver
from controllers.iab.relaxation import lp_relaxation, mixed_integer
from controllers.iab.side_by_side import decide_all
from topologies.iab import MMWAVE, IabNetwork, generate, with_matrix
from twin.flow.batched import efficiency, fairness

SIZES = (20, 30, 40, 50, 60)
LOADS = ("low", "high")
PATHS = (1, 3)
BASELINES = ("subset_sum", "random")
BROKEN = (1, 2, 3, 4, 5)
UNSEEN_SEED = 1000
BOUNDS = "bounds"
CRITERIA = {"efficiency": 1, "fairness": -1}


@dataclass(frozen=True)
class Case:
    """One topology: ``seed`` counts them."""

    variant: str
    nodes: int
    load: str
    k_paths: int
    seed: int
    matrices: int

    def network(self) -> IabNetwork:
        """With the first traffic matrix."""
        seed = self.seed + (UNSEEN_SEED if self.variant == "unseen" else 0)
        broken = int(self.variant.removeprefix("broken")) if self.variant.startswith("broken") else 0
        network = generate(self.nodes, k_paths=self.k_paths, load=self.load, seed=seed, broken=broken)
        if self.variant != "no_sub6":
            return network
        flows = tuple(
            replace(flow, paths=tuple(path for path in flow.paths if path.band == MMWAVE)) for flow in network.flows
        )
        return replace(network, links=tuple(link for link in network.links if link.band == MMWAVE), flows=flows)

    def demand_bps(self, network: IabNetwork) -> np.ndarray:
        """Demands of all matrices, shape (M, F)."""
        seed = self.seed + (UNSEEN_SEED if self.variant == "unseen" else 0)
        found = [with_matrix(network, load=self.load, seed=seed, matrix=number) for number in range(self.matrices)]
        return np.array([one.demand_bps() for one in found])


@dataclass(frozen=True)
class Rival:
    """A controller under a name of its own, with a folder of what it learned."""

    solver: str
    label: str
    folder: str | None = None

    @classmethod
    def parse(cls, text: str) -> Rival:
        solver, _, rest = text.partition(":")
        label, _, folder = rest.partition(":")
        return cls(solver, label or solver, folder or None)

    def policy(self, case: Case, gamma: int) -> Path | None:
        """The checkpoint for a case; SolveError when the folder has none."""
        if self.folder is None:
            return None
        plain = f"n{case.nodes}-{case.load}-k{case.k_paths}-s{case.seed}-g{gamma}"
        names = [f"any-g{gamma}"] if case.variant == "unseen" else [f"{case.variant}-{plain}", plain, f"any-g{gamma}"]
        for name in names:
            for path in sorted(Path(self.folder).glob(f"{name}*")):
                if path.name == name or path.stem == name:
                    return path
        raise SolveError(f"{self.label}: {self.folder} has none of {', '.join(names)}")


def decided(case: Case, rival: Rival) -> dict:
    """Efficiency and fairness of every traffic matrix, and the time of a decision, matrices side by side."""
    network = case.network()
    demand = case.demand_bps(network)
    found: dict = {}
    for criterion, gamma in CRITERIA.items():
        problem = PathProblem(network, gamma)
        rngs = [np.random.default_rng([case.seed, number]) for number in range(case.matrices)]
        start = time.perf_counter()
        try:
            decisions = decide_all(rival.solver, problem, demand, rngs, rival.policy(case, gamma))
        except ValueError as error:  # what a controller says that it cannot do
            found[criterion], found[f"{criterion} refused"] = None, str(error)
            continue
        found[f"{criterion} decision_s"] = (time.perf_counter() - start) / case.matrices
        rates = problem.model.rates(np.array([one.allocation for one in decisions]), demand_bps=demand)
        values = efficiency(rates, demand) if criterion == "efficiency" else fairness(rates)
        found[criterion] = np.round(values, 7).tolist()
    return found


def bounds(case: Case, bounded: int) -> dict:
    """Bounds on the efficiency: of the linear program for every matrix, of the mixed-integer one for some."""
    network = case.network()
    demand = case.demand_bps(network)
    problem = PathProblem(network)
    proven = [
        mixed_integer(problem.with_demand(one), time_limit_s=20, gap=1e-4).efficiency_bound for one in demand[:bounded]
    ]
    return {"lp": [lp_relaxation(problem, one).efficiency_bound for one in demand], "milp": proven}


def work(task: tuple[Case, Rival | None, int]) -> dict:
    """One line of the results."""
    case, rival, bounded = task
    found = bounds(case, bounded) if rival is None else decided(case, rival)
    return {**asdict(case), "label": BOUNDS if rival is None else rival.label, **found}


def cases(arguments: argparse.Namespace) -> list[Case]:
    """All topologies, those of one condition together."""
    variants = itertools.chain.from_iterable(
        [f"broken{count}" for count in BROKEN] if name == "broken" else [name] for name in arguments.variant
    )
    conditions = itertools.product(variants, arguments.sizes, LOADS, PATHS, range(arguments.topologies))
    return [Case(*condition, arguments.matrices) for condition in conditions]


def key(line: dict) -> tuple:
    """What a line of the results is about."""
    return (*(line[name] for name in Case.__dataclass_fields__), line["label"])


def collect(arguments: argparse.Namespace) -> dict[tuple, dict]:
    """Results by :func:`key`: read, completed unless only a report is wanted, appended."""
    done: dict[tuple, dict] = {}
    if arguments.results and arguments.results.exists():
        for text in arguments.results.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # a line that was being written when the run was killed
            done[key(line)] = line
    if arguments.report_only:
        return done
    rivals = [Rival.parse(text) for text in arguments.solver]
    tasks = [(case, rival, arguments.bounded) for case in cases(arguments) for rival in [*rivals, None]]
    missing = [
        task for task in tasks if (*asdict(task[0]).values(), BOUNDS if task[1] is None else task[1].label) not in done
    ]
    with ProcessPoolExecutor(arguments.workers) as pool:
        for line in pool.map(work, missing):
            done[key(line)] = line
            if arguments.results:
                # A line break first ends a line that a killed run left unfinished; empty ones are skipped.
                with arguments.results.open("a") as file:
                    file.write("\n" + json.dumps(line))
    return done


def mean(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval; not a number for the half of fewer than two."""
    if len(values) < 2:
        return statistics.fmean(values), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


def summary(done: dict[tuple, dict], reference: str) -> list[dict]:
    """One row per variant, size, load, K and controller."""
    groups: dict[tuple, dict[str, dict[int, dict]]] = {}
    for line in done.values():
        condition = line["variant"], line["nodes"], line["load"], line["k_paths"], line["matrices"]
        groups.setdefault(condition, {}).setdefault(line["label"], {})[line["seed"]] = line
    rows = []
    for condition, labels in groups.items():
        for label, mine in labels.items():
            if label == BOUNDS:
                continue
            row: dict = dict(zip(("variant", "nodes", "load", "k_paths", "matrices"), condition, strict=True))
            row |= {"label": label, "topologies": len(mine)}
            for criterion in CRITERIA:
                ours = {seed: line[criterion] for seed, line in mine.items() if line[criterion] is not None}
                if not ours:
                    continue
                row[criterion] = mean([statistics.fmean(values) for values in ours.values()])
                for other in (*BASELINES, reference):
                    theirs = {seed: line[criterion] for seed, line in labels.get(other, {}).items()}
                    both = [seed for seed in ours if theirs.get(seed) is not None]
                    if other != label and both:
                        gains = [100 * (statistics.fmean(ours[s]) / statistics.fmean(theirs[s]) - 1) for s in both]
                        row[f"{criterion} over {other}, %"] = mean(gains)
                if criterion == "efficiency":
                    for name in ("lp", "milp"):
                        bound = {seed: line[name] for seed, line in labels.get(BOUNDS, {}).items()}
                        gaps = [
                            [100 * (1 - one / most) for one, most in zip(ours[seed], bound[seed], strict=False)]
                            for seed in ours
                            if bound.get(seed)
                        ]
                        if gaps:
                            row[f"gap to {name}, %"] = mean([statistics.fmean(one) for one in gaps])
                            row[f"worst gap to {name}, %"] = max(map(max, gaps))
            rows.append(row)
    return rows


def against_brute_force(topologies: int, solvers: list[str]) -> dict[str, dict[str, float]]:
    """Mean and worst shortfall of J at 20 nodes, K 1, in percent; gamma 1, 0 and -1."""
    short: dict[str, list[float]] = {name: [] for name in solvers}
    for seed, gamma in itertools.product(range(topologies), (1.0, 0.0, -1.0)):
        problem = PathProblem(generate(20, k_paths=1, seed=seed), gamma)
        best = make_solver("brute_force", problem)(problem, np.random.default_rng(seed)).objective_bound
        for name in solvers:
            decision = make_solver(name, problem)(problem, np.random.default_rng(seed))
            short[name].append(100 * (1 - float(problem.objective(decision.allocation[None])[0]) / best))
    return {name: {"mean, %": statistics.fmean(values), "worst, %": max(values)} for name, values in short.items()}


def against_optimal(topologies: int, sizes: list[int]) -> list[dict]:
    """Mean gaps of ``optimal`` to its proven bound in percent, by size and gamma; K 3, high load."""
    rows = []
    for nodes, gamma in itertools.product(sizes, (1.0, 0.0, -1.0)):
        gaps = []
        for seed in range(topologies):
            problem = PathProblem(generate(nodes, k_paths=3, seed=seed), gamma)
            decision = make_solver("optimal", problem)(problem, np.random.default_rng(seed))
            reached = float(problem.objective(decision.allocation[None])[0])
            gaps.append(100 * (1 - reached / decision.objective_bound))
        rows.append({"nodes": nodes, "gamma": gamma, "mean, %": statistics.fmean(gaps), "worst, %": max(gaps)})
    return rows


def decision_times(topologies: int, solvers: list[str]) -> dict[str, dict[str, float]]:
    """Seconds per decision at 60 nodes, K 3, high load, one by one; networks are read and tables made before."""
    found = {}
    for name in solvers:
        times = []
        for seed in range(topologies):
            problem = PathProblem(generate(60, k_paths=3, seed=seed))
            solver = make_solver(name, problem)
            problem.model.rates(problem.random(1, np.random.default_rng(seed)))
            start = time.perf_counter()
            solver(problem, np.random.default_rng(seed))
            times.append(time.perf_counter() - start)
        found[name] = {"mean_s": statistics.fmean(times), "max_s": max(times)}
    return found


def cell(row: dict, name: str, form: str) -> str:
    """A figure with half its interval."""
    if name not in row:
        return ""
    # What is not above rounding is no negative gap.
    middle, half = (round(value, 6) + 0.0 for value in row[name])
    return f"{middle:{form}}" if np.isnan(half) else f"{middle:{form}} ± {half:{form}}"


def table(rows: list[dict], reference: str) -> str:
    """Markdown: a table per variant and controller that is not a baseline."""
    lines = []
    pairs = dict.fromkeys((row["variant"], row["label"]) for row in rows if row["label"] not in BASELINES)
    for variant, label in pairs:
        mine = [row for row in rows if (row["variant"], row["label"]) == (variant, label)]
        others = BASELINES if reference == label else (*BASELINES, reference)
        head = ["nodes", "load", "K", "topologies"]
        for criterion in CRITERIA:
            head += [criterion, *(f"over {other}, %" for other in others)]
        head += ["gap to LP bound, %", "worst", "gap to MILP bound, %"]
        lines += ["", f"{label}, {variant}, {mine[0]['matrices']} traffic matrices per topology", ""]
        lines += [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
        for row in mine:
            cells = [str(row["nodes"]), row["load"], str(row["k_paths"]), str(row["topologies"])]
            for criterion in CRITERIA:
                cells += [f"{row[criterion][0]:.3f}" if criterion in row else "refused"]
                cells += [cell(row, f"{criterion} over {other}, %", ".1f") for other in others]
            cells += [cell(row, "gap to lp, %", ".2f"), f"{row.get('worst gap to lp, %', float('nan')):.2f}"]
            cells += [cell(row, "gap to milp, %", ".2f")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--solver", action="append", metavar="NAME[:LABEL[:FOLDER]]")
    parser.add_argument("--variant", action="append", choices=("plain", "broken", "unseen", "no_sub6"))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--topologies", type=int, default=10)
    parser.add_argument("--matrices", type=int, default=5, help="traffic matrices per topology (the paper: 250)")
    parser.add_argument("--bounded", type=int, default=5, help="of these, how many with a mixed-integer bound")
    parser.add_argument("--reference", default="local_search", help="what learned controllers are compared with")
    parser.add_argument("--results", type=Path, help="file to append to and go on from")
    parser.add_argument("--report-only", action="store_true", help="print what stands in --results")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.topologies < 2:
        parser.error("--topologies must be at least 2, or there is no interval")
    if arguments.matrices < 1:
        parser.error("--matrices must be at least 1")
    arguments.solver = arguments.solver or [*BASELINES, "local_search"]
    arguments.variant = arguments.variant or ["plain"]
    rows = summary(collect(arguments), arguments.reference)
    found: dict = {"rows": rows}
    if not arguments.report_only:
        # Those with a folder would have to learn these networks first.
        rivals = [Rival.parse(text) for text in arguments.solver]
        few = list(dict.fromkeys(rival.solver for rival in rivals if rival.folder is None))
        found["short of brute force"] = against_brute_force(arguments.topologies, few)
        found["gap of optimal"] = against_optimal(
            arguments.topologies, arguments.sizes[:: len(arguments.sizes) - 1 or 1]
        )
        found["decision times"] = decision_times(arguments.topologies, [*few, "optimal"])
    if arguments.format == "json":
        json.dump(found, sys.stdout)
        return 0
    print(table(rows, arguments.reference))
    for name, short in found.get("short of brute force", {}).items():
        print(f"{name}: short of brute force, 20 nodes, K 1: {short['mean, %']:.3f} %, worst {short['worst, %']:.3f} %")
    for row in found.get("gap of optimal", []):
        print(
            f"optimal: gap to its proven bound, {row['nodes']} nodes, K 3, high load, gamma {row['gamma']:g}: "
            f"{row['mean, %']:.2f} %, worst {row['worst, %']:.2f} %"
        )
    for name, figures in found.get("decision times", {}).items():
        print(f"decision at 60 nodes, K 3, {name}: mean {figures['mean_s']:.3f} s, max {figures['max_s']:.3f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
