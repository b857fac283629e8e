"""MicroOpt against the optimum, its rivals and the clock; the forecaster against persistence.

    python benchmarks/microopt.py --model model.pt [--parts gap,rivals,changing,forecast] [--seeds 10] [--jobs 2]
        [--users 1,2,3,4,5] [--q-thresh 3,4,5] [--beta 0.1,0.2,0.3] [--methods NAMES] [--rows rows.jsonl]
        [--page report.html]

gap: cost of microopt above the exhaustive optimum on the model, constant traffic, every threshold; whether the strict
definition holds, by the closed form and by 100,000 draws; solve time; time of peak_alloc's exhaustive search.
rivals: mean costs on constant traffic with 95 % intervals over the seeds. changing: the same on the ten distributions.
forecast: pinball loss, coverage and mean absolute error one step (10 minutes) ahead on squares that were not fitted.
Targets: gap at most 0.5 % on average and always feasible, solve at most 0.5 s, peak_alloc at most 5 s. Rivals at every
threshold take most of an hour of CPU; results go to --rows as they come, and the same command goes on after a cut-off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from controllers.microopt import forecast
from controllers.microopt.comparison import Comparison, Plan, carry_out, interval
from controllers.microopt.page import write_page
from controllers.microopt.problem import Problem, SliceDemand
from controllers.microopt.registry import SOLVERS
from controllers.microopt.slice_model import load
from controllers.microopt.traffic import SQUARE, TRACE, constant
from traces import synthesis
from traces.telecom_italia import read_cell
from twin.streams import named_stream

CHECK_DRAWS = 100_000
SQUARES = (5161, 5059, 5259, 4456, 4259, 6064)


def gap(plan: Plan) -> dict[str, float]:
    """microopt against grid, seed 0 of every setting."""
    model = load(plan.model)
    gaps, times, cpu, betas, drawn = [], [], [], [], []
    infeasible = 0
    # The first solve of a process also sets torch up.
    for warm in (True, False):
        for users, q_thresh, beta in itertools.product(plan.users, plan.q_thresh, plan.beta_thresh):
            problem = Problem((SliceDemand(model, constant(users), q_thresh, beta),))
            begin_s = time.process_time()
            ours = SOLVERS["microopt"](problem, np.random.default_rng(0))
            cpu_s = time.process_time() - begin_s
            if warm:
                break
            best = SOLVERS["grid"](problem, np.random.default_rng(0))
            u = torch.tensor([[list(ours.allocation.values())]]) / problem.scale
            measured = float(problem.sampled_beta(u, CHECK_DRAWS, np.random.default_rng(1))[0, 0])
            gaps.append(100 * (ours.cost / best.cost - 1))
            times.append(ours.time_s)
            cpu.append(cpu_s)
            betas.append(ours.expected_beta / beta)
            drawn.append(measured / beta)
            infeasible += ours.feasible != best.feasible or not ours.feasible
    peak = SOLVERS["peak_alloc"](problem, np.random.default_rng(0))
    return {
        "settings": len(gaps),
        "mean gap, %": statistics.fmean(gaps),
        "worst gap, %": max(gaps),
        "infeasible": infeasible,
        "largest E[beta] / threshold": max(betas),
        "largest drawn beta / threshold": max(drawn),
        "settings above by drawing": sum(value > 1 for value in drawn),
        "mean solve, s": statistics.fmean(times),
        "slowest solve, s": max(times),
        "mean solve, CPU s": statistics.fmean(cpu),
        "peak_alloc, s": peak.time_s,
    }


def forecasts() -> dict[str, dict[str, float]]:
    """Fitted to a week of one synthetic square, tried on others: the day that TwinBed brings, three days of six."""
    first = synthesis.FIRST_DAY.replace(day=4)
    week = synthesis.synthesise([4259], named_stream(0, "benchmark/forecast"), first_day=first, days=7)[4259].values
    # Per mean activity: squares differ in size, not in kind.
    past = week / week.mean()
    learned = forecast.fit(past)
    # Persistence with the quantiles of what it missed by in the week.
    spread = np.quantile(np.diff(past), forecast.LEVELS)
    tried = {f"{SQUARE}, one day": read_cell(TRACE, SQUARE).values}
    for seed, square in enumerate(SQUARES, 1):
        rng = named_stream(seed, "benchmark/forecast")
        tried[str(square)] = synthesis.synthesise([square], rng, first_day=first, days=3)[square].values
    found: dict[str, dict[str, float]] = {}
    for name, values in tried.items():
        day = values / values.mean()
        actual = day[11:]
        raw = np.array([forecast.predict(learned, day[: at + 1]) for at in range(10, day.size - 1)])
        tracker = forecast.Tracker()
        tracked = np.empty_like(raw)
        for place, (quantiles, came) in enumerate(zip(raw, actual, strict=True)):
            tracked[place] = tracker.corrected(quantiles)
            tracker.observe(quantiles, float(came))
        naive = np.maximum(day[10:-1][:, None] + spread, 0)
        found[name] = {"steps": len(actual)}
        for word, each in (("tracked", tracked), ("as fitted", raw), ("persistence", naive)):
            found[name] |= {
                f"pinball loss, {word}": forecast.pinball_loss(each, actual),
                f"within 5 to 95 %, {word}": float(((actual >= each[:, 0]) & (actual <= each[:, -1])).mean()),
                f"mean absolute error, {word}": float(np.abs(np.median(each, axis=1) - actual).mean()),
            }
    found["mean"] = {key: statistics.fmean(one[key] for one in found.values()) for key in found[next(iter(found))]}
    return found


def tables(found: Comparison) -> str:
    """Markdown: every method, and every distribution."""
    lines = []
    for part in ("constant", "changing"):
        rows = [row for row in found.summary() if row["traffic"] == part]
        if not rows:
            continue
        lines += ["", f"| {part} | cost | above the optimum | MicroOpt saves | E[β] | feasible | s |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [
            f"| `{row['method']}` | {row['mean_cost']:.4f} ± {row['interval_95']:.4f} "
            f"| {row['above_grid_percent']:.2f} % "
            f"| {row['microopt_saves_percent']:.2f} ± {row['saves_interval_95']:.2f} % | {row['mean_beta']:.3f} "
            f"| {row['feasible_percent']:.0f} % | {row['mean_time_s']:.2f} |"
            for row in rows
        ]
    changing = found.of(part="changing")
    methods = [name for name in found.methods if found.of(part="changing", method=name)]
    for field in ("cost", "expected_beta") if changing else ():
        lines += ["", "| " + " | ".join([field, *(f"`{name}`" for name in methods)]) + " |"]
        lines.append("|---" * (len(methods) + 1) + "|")
        for name in dict.fromkeys(row.traffic for row in changing):
            cells = []
            for method in methods:
                solved = found.of(part="changing", method=method, traffic=name)
                mean, half = interval([float(getattr(row, field)) for row in solved])
                cells.append(f"{mean:.4f} ± {half:.4f}" if half else f"{mean:.4f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--parts", default="gap,rivals,changing,forecast")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--users", default="1,2,3,4,5")
    parser.add_argument("--q-thresh", default="3,4,5")
    parser.add_argument("--beta", default="0.1,0.2,0.3")
    parser.add_argument("--methods", default=",".join(SOLVERS))
    parser.add_argument("--rows", type=Path, help="results as they come; what is there is not solved again")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = options.parts.split(",")
    wanted = tuple(word for part, word in (("rivals", "constant"), ("changing", "changing")) if part in parts)
    plan = Plan(
        model=options.model,
        seeds=options.seeds,
        methods=tuple(name for name in SOLVERS if name in ("microopt", "grid", *options.methods.split(","))),
        users=tuple(map(float, options.users.split(","))),
        q_thresh=tuple(map(float, options.q_thresh.split(","))),
        beta_thresh=tuple(map(float, options.beta.split(","))),
        parts=wanted,
    )
    if "gap" in parts:
        print(json.dumps({"gap": gap(plan)}, indent=2), flush=True)
    if "forecast" in parts:
        print(json.dumps({"forecast": forecasts()}, indent=2), flush=True)
    if wanted:
        found = carry_out(plan, jobs=options.jobs, store=options.rows, progress=_tell)
        print(json.dumps({"rivals": found.summary()}, indent=2))
        print(tables(found))
        if options.page is not None:
            write_page(found, options.page)


def _tell(done: int, of: int) -> None:
    print(f"{done} of {of} solved", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
