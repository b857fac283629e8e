"""Methods against each other on one slice model: what the paper's section VI compares, over several seeds.

Constant traffic, every method at every (users, q_thresh, beta_thresh): Table I and Figure 6, with the ablation of
Figure 9. Changing traffic, the ten distributions at the strictest thresholds: Figures 7 and 8. Costs are
normalised (eta . r). Means carry 95 % intervals (Student's t) over the seeds; exhaustive methods draw nothing and
run once. A result that misses its threshold is counted and shown, and its cost is part of the mean: an infeasible
allocation is cheap, so that read costs beside the share that is feasible.

Rows are written to a file as they come, and what is there already is not solved again: a comparison that was cut off
goes on, and one with more methods, seeds or thresholds solves what is new (:class:`RowStore`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from scipy import stats

from controllers.microopt.problem import Problem, ProblemError, SliceDemand, Solution
from controllers.microopt.registry import BATCHED, SOLVERS
from controllers.microopt.slice_model import load
from controllers.microopt.traffic import Traffic, constant, from_slice_traffic, parse_traffic
from controllers.worker import end_with_parent
from traces import synthesis
from traces.microopt import distributions, week_sigmas
from twin.streams import named_stream

PEAK_KNOWING = {"atlas": "atlas_plus", "cadrl": "cadrl_plus"}
"""On constant traffic a method and its variant for distributions are the same: the first stands for both."""
DRAWS_NOTHING = ("grid", "peak_alloc")
ABLATION = ("microopt_0sigma", "microopt_2sigma")
WEEK_SQUARE = 5161
TOGETHER = 20
"""Cases of a batched method that are solved side by side: what is lost when a comparison is cut off."""
ROWS_FORMAT = "twinbed.slice-opt-rows"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared. ``traffic``: telecom-italia for the ten distributions, or one spelling of a traffic."""

    model: Path
    traffic: str = "telecom-italia"
    seeds: int = 10
    methods: tuple[str, ...] = tuple(SOLVERS)
    q_thresh: tuple[float, ...] = (3.0, 4.0, 5.0)
    beta_thresh: tuple[float, ...] = (0.1, 0.2, 0.3)
    users: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    qos: str = "throughput_mbps"
    slice_name: str | None = None
    parts: tuple[str, ...] = ("constant", "changing")

    @property
    def strictest(self) -> tuple[float, float]:
        """The thresholds of Table I and of changing traffic: the QoS that is hardest to reach, the smallest beta."""
        return (min if self.qos == "delay_s" else max)(self.q_thresh), min(self.beta_thresh)


@dataclass(frozen=True)
class Row:
    """One solve. ``part``: constant or changing; ``sigma``: which deviation a distribution has."""

    part: str
    traffic: str
    users: float
    sigma: str
    q_thresh: float
    beta_thresh: float
    method: str
    seed: int
    cost: float
    allocation: dict[str, float]
    expected_beta: float
    feasible: bool
    extrapolated: bool
    time_s: float
    trace: tuple[tuple[float, float | None], ...]

    @property
    def key(self) -> Key:
        """What tells it from the other rows of a model."""
        return self.part, self.traffic, self.q_thresh, self.beta_thresh, self.method, self.seed


_ROW = TypeAdapter(Row)
Key = tuple[str, str, float, float, str, int]


@dataclass(frozen=True)
class Comparison:
    """All rows of a plan, and what the page says about the model and the traffic."""

    plan: Plan
    rows: tuple[Row, ...]
    facts: dict[str, Any]

    def of(self, **wanted: Any) -> list[Row]:
        """Rows whose fields have these values."""
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in wanted.items())]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(name for name in SOLVERS if any(row.method == name for row in self.rows))

    def summary(self) -> list[dict[str, Any]]:
        """One row per method and part: mean cost with its interval, against microopt and grid, feasible share, time."""
        found = []
        for part in ("constant", "changing"):
            for method in self.methods:
                rows = self.of(part=part, method=method)
                if not rows:
                    continue
                costs = by_seed(rows, lambda row: row.cost)
                mean, half = interval(costs)
                ours = by_seed(self.of(part=part, method="microopt"), lambda row: row.cost)
                best = statistics.fmean(row.cost for row in self.of(part=part, method="grid"))
                saved = [100 * (1 - one / other) for one, other in zip(ours, itertools.cycle(costs), strict=False)]
                found.append(
                    {
                        "traffic": part,
                        "method": method,
                        "mean_cost": mean,
                        "interval_95": half,
                        "microopt_saves_percent": 100 * (1 - statistics.fmean(ours) / mean),
                        "saves_interval_95": interval(saved)[1],
                        "above_grid_percent": 100 * (mean / best - 1),
                        "mean_beta": statistics.fmean(row.expected_beta for row in rows),
                        "feasible_percent": 100 * statistics.fmean(row.feasible for row in rows),
                        "mean_time_s": statistics.fmean(row.time_s for row in rows),
                        "seeds": len({row.seed for row in rows}),
                    }
                )
        return found


def by_seed(rows: Iterable[Row], value: Callable[[Row], float]) -> list[float]:
    """The mean over the settings of each seed: settings differ by design, seeds by chance."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row.seed, []).append(value(row))
    return [statistics.fmean(found) for found in seeds.values()]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval (Student's t); half is 0 for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * spread


@dataclass(frozen=True)
class _Case:
    part: str
    traffic: Traffic
    users: float
    sigma: str
    q_thresh: float
    beta_thresh: float
    method: str
    seed: int

    @property
    def key(self) -> Key:
        return self.part, self.traffic.name, self.q_thresh, self.beta_thresh, self.method, self.seed


class RowStore:
    """Rows in a file, a line of JSON each, after a first line that says of which model they are.

    ProblemError when the file is of another model, QoS, slice or version, or no such file. The end of a line that
    was being written when a program was killed is dropped.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.rows: dict[Key, Row] = {}
        self._head = {
            "format": ROWS_FORMAT,
            "twinbed": metadata.version("twinbed"),
            "model_sha256": hashlib.sha256(plan.model.read_bytes()).hexdigest(),
            "qos": plan.qos,
            "slice": plan.slice_name,
        }
        try:
            if path.exists() and path.stat().st_size:
                self._read()
            else:
                path.write_text(json.dumps(self._head) + "\n", encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ProblemError(f"{path}: rows cannot be kept there: {reason}") from None

    def _read(self) -> None:
        text = self.path.read_bytes().decode()
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        try:
            head = json.loads(lines[0]) if lines else None
        except json.JSONDecodeError:
            head = None
        if not isinstance(head, dict) or head.get("format") != ROWS_FORMAT:
            raise ProblemError(f"{self.path}: no rows of a comparison; remove it or name another file")
        for key, value in self._head.items():
            if head.get(key) != value:
                raise ProblemError(
                    f"{self.path}: rows of another comparison ({key} {head.get(key)}, here {value}); "
                    "remove it or name another file"
                )
        for number, line in enumerate(lines[1:], 2):
            try:
                row = _ROW.validate_json(line, strict=True)
                if not math.isfinite(row.cost + row.expected_beta + sum(row.allocation.values())):
                    raise ValueError
            except ValueError:
                raise ProblemError(f"{self.path}:{number}: not a row of a comparison; remove the line") from None
            self.rows[row.key] = row
        if len(whole) < len(text):
            with self.path.open("r+b") as file:
                file.truncate(len(whole.encode()))

    def add(self, rows: Sequence[Row]) -> None:
        self.rows.update((row.key, row) for row in rows)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        except OSError as error:
            raise ProblemError(f"{self.path}: rows cannot be kept there: {error.strerror}") from None


def carry_out(
    plan: Plan, *, jobs: int = 1, store: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Solve every case that ``store`` does not hold; ``progress`` is told how many of how many are done.

    A case depends on its own seed only: the number of ``jobs`` changes times, nothing else.
    """
    model = load(plan.model)
    low, high = model.traffic_range
    cases = list(_constant_cases(plan)) if "constant" in plan.parts else []
    week = synthesis.synthesise(
        [WEEK_SQUARE], named_stream(0, "slice-opt/week"), first_day=synthesis.FIRST_DAY.replace(day=4), days=7
    )[WEEK_SQUARE]
    mean_sigma, max_sigma = week_sigmas(week)
    changing: list[tuple[Traffic, float, str]] = []
    if "changing" not in plan.parts:
        pass
    elif plan.traffic == "telecom-italia":
        for number, found in enumerate(distributions(week)):
            if low <= found.mean <= high:
                sigma = "mean" if number < 5 else "max"
                changing.append((from_slice_traffic(found, low=low, high=high), found.mean, sigma))
    else:
        one = parse_traffic(plan.traffic, low=low, high=high)
        changing.append((one, one.mean, "given"))
    q_thresh, beta = plan.strictest
    for (traffic, users, sigma), method in itertools.product(changing, plan.methods):
        seeds = range(1 if method in DRAWS_NOTHING else plan.seeds)
        cases.extend(_Case("changing", traffic, users, sigma, q_thresh, beta, method, seed) for seed in seeds)
    kept = None if store is None else RowStore(store, plan)
    known: dict[Key, Row] = {} if kept is None else dict(kept.rows)
    for rows in _solved(plan, [case for case in cases if case.key not in known], jobs):
        known.update((row.key, row) for row in rows)
        if kept is not None:
            kept.add(rows)
        if progress is not None:
            progress(sum(case.key in known for case in cases), len(cases))
    facts = {
        "model": plan.model.name,
        "provenance": model.provenance,
        "kind": model.kind,
        "traffic": "one synthetic week of square 5161 in the format of Telecom Italia's Big Data Challenge"
        if plan.traffic == "telecom-italia"
        else plan.traffic,
        "sigma_mean": mean_sigma,
        "sigma_max": max_sigma,
        "traffic_range": [low, high],
        "seeds": plan.seeds,
        "surface": _surface(plan),
    }
    return Comparison(plan, tuple(known[case.key] for case in cases), facts)


def _constant_cases(plan: Plan) -> Iterable[_Case]:
    for users, q_thresh, beta in itertools.product(plan.users, plan.q_thresh, plan.beta_thresh):
        for method in plan.methods:
            if method in PEAK_KNOWING.values() and any(
                plus == method and plain in plan.methods for plain, plus in PEAK_KNOWING.items()
            ):
                continue
            for seed in range(1 if method in DRAWS_NOTHING else plan.seeds):
                yield _Case("constant", constant(users), users, "", q_thresh, beta, method, seed)


def _solved(plan: Plan, cases: list[_Case], jobs: int) -> Iterator[list[Row]]:
    """Rows of all cases, in pieces as they are done."""
    tasks: list[list[_Case]] = []
    for method, group in itertools.groupby(sorted(cases, key=lambda case: _order(case.method)), lambda c: c.method):
        members = list(group)
        size = TOGETHER if method in BATCHED else 1
        tasks.extend(members[place : place + size] for place in range(0, len(members), size))
    if jobs == 1 or len(tasks) == 1:
        _start(plan)
        yield from map(_solve, tasks)
        return
    spawn, ours = get_context("spawn"), os.getpid()
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(plan, ours)) as pool:
        waiting = [pool.submit(_solve, task) for task in tasks]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            # Cut off or failed: what has not begun shall not begin.
            for one in waiting:
                one.cancel()


def _order(method: str) -> tuple[int, str]:
    """Long ones first, so that no process is left alone with them at the end."""
    return {"atlas_plus": 0, "atlas": 1, "cadrl_plus": 2, "cadrl": 3}.get(method, 4), method


_plan: Plan | None = None
_model: Any = None


def _start_worker(plan: Plan, parent_pid: int) -> None:
    end_with_parent(parent_pid)
    _start(plan)


def _start(plan: Plan) -> None:
    global _plan, _model
    torch.set_num_threads(1)
    _plan, _model = plan, load(plan.model)


def _solve(cases: list[_Case]) -> list[Row]:
    """Cases of one method."""
    assert _plan is not None
    problems, streams = [], []
    for case in cases:
        demand = SliceDemand(_model, case.traffic, case.q_thresh, case.beta_thresh, _plan.slice_name, _plan.qos)
        problems.append(Problem((demand,)))
        name = f"slice-opt/{case.method}/{case.traffic.name}/{case.q_thresh:g}/{case.beta_thresh:g}"
        streams.append(named_stream(case.seed, name))
    method = cases[0].method
    if method in BATCHED:
        solutions = BATCHED[method](problems, streams)
    else:
        solutions = [SOLVERS[method](problem, rng) for problem, rng in zip(problems, streams, strict=True)]
    return [_row(case, found) for case, found in zip(cases, solutions, strict=True)]


def _row(case: _Case, found: Solution) -> Row:
    steps = [(float(row["time_s"]), row.get("cost")) for row in found.trace]
    thin = steps[:: max(1, len(steps) // 60)] + steps[-1:]
    return Row(
        part=case.part,
        traffic=case.traffic.name,
        users=case.users,
        sigma=case.sigma,
        q_thresh=case.q_thresh,
        beta_thresh=case.beta_thresh,
        method=case.method,
        seed=case.seed,
        cost=found.cost,
        allocation=found.allocation,
        expected_beta=found.expected_beta,
        feasible=found.feasible,
        extrapolated=found.slices[0].extrapolated,
        time_s=found.time_s,
        trace=tuple(thin),
    )


def _surface(plan: Plan) -> dict[str, Any]:
    """Mean QoS over the allocations, averaged over the users (the paper's Figure 12b, and 4c): first two resources."""
    assert plan is not None
    model = load(plan.model)
    first, second = model.resources[0], model.resources[1]
    x, y = np.linspace(first.low, first.high, 33), np.linspace(second.low, second.high, 33)
    points = torch.tensor([[a, b, *model.high.tolist()[2:]] for b in y for a in x], dtype=torch.float32)
    total = torch.zeros(points.shape[0])
    with torch.no_grad():
        for users in plan.users:
            total += model.distribution(float(users), points, slice_name=plan.slice_name, qos=plan.qos).mean()
    z = (total / len(plan.users)).reshape(33, 33)
    return {"x": x.tolist(), "y": y.tolist(), "z": z.tolist(), "names": [first.name, second.name]}


def only(found: Comparison, **wanted: Any) -> Comparison:
    """A part of a comparison."""
    return replace(found, rows=tuple(found.of(**wanted)))
