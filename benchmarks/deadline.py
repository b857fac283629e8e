"""Reservations and periods on this host: NANCY D3.4 Figures 24-27, NANCY D4.2 Figures 5-9 and 11-13.

    python benchmarks/deadline.py [--format json]
        [--part sets|periods|guests|guest-budget|budget|steps|cost|scenarios]...

``sets``: 100 random task sets and 100 aperiodic wake-up sequences, simulated (1 to 3 periods of 20 to 200 ms, with a
common divisor of 5 to 25 ms; exponential, lognormal, gamma, uniform, clustered, heavy-tailed and tick-bound pauses).
``periods``: real tasks under ``twin period``. ``guests``: the same of the virtual CPU of a partition whose guest runs
tasks of 5 ms, 20 tries each, on the host as it is and with two busy programs beside. ``guest-budget``: ``twin deadline
attach`` to such a virtual CPU, and the response that the guest then measures. ``budget``: tasks of 10 and 20 ms in
100 ms, from 2 and from 8 ms. ``steps``: 5, 15, 10 and 10, 30, 20 ms. ``cost``: CPU and memory of the monitor with
100 threads, T = 100 ms.
``scenarios``: the same budgets and steps by the controller ``sched_deadline`` on the library's scenarios, in emulation
and on the flow model.

Needs root, SCHED_DEADLINE and tracefs, apart from ``sets``; those with guests need QEMU and the guest image (``make
images``), ``scenarios`` Docker and Open vSwitch. Eight minutes in all, five of them for ``guests``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twin.deadline.periodicity import PeriodFinder, PeriodSettings, Verdict
from twin.store import KpiReader

TWIN = [sys.executable, "-m", "scenarios.cli"]
TASK = [sys.executable, str(Path(__file__).with_name("deadline_task.py"))]
ATTACH = [*TWIN, "deadline", "attach", "--period", "100ms", "--format", "json"]
OVH = 0.1
GUEST_LOADS = (
    ("40 ms", 40, "5000/40000"),
    ("50 + 75 ms", 25, "5000/50000,5000/75000"),
    ("45 + 60 + 105 ms", 15, "5000/45000,5000/60000,5000/105000"),
)
PARTS = ("sets", "periods", "guests", "guest-budget", "budget", "steps", "cost", "scenarios")
T_S = 0.5


# --- simulated ----------------------------------------------------------------------------------------


def releases(random: np.random.Generator, periods_ms: list[int], jobs: int, jitter_s: float = 3e-4) -> np.ndarray:
    """Wake-ups of tasks that start together, each a little late."""
    end_s = jobs * max(periods_ms) / 1e3
    times = np.concatenate([np.arange(0, end_s, period / 1e3) for period in periods_ms])
    return np.sort(times + np.abs(random.normal(0, jitter_s, len(times))))


def random_set(random: np.random.Generator) -> list[int]:
    """1 to 3 periods in ms."""
    step = int(random.choice([5, 10, 15, 20, 25]))
    count = int(random.integers(1, 4))
    return sorted(set((step * random.integers(max(1, 20 // step), 1 + max(2, 200 // step), count)).tolist()))


def aperiodic(random: np.random.Generator, kind: int, count: int = 220) -> np.ndarray:
    """Wake-ups after pauses of one of seven kinds."""
    pauses = (
        lambda: random.exponential(0.02, count),
        lambda: random.lognormal(-4, 1.2, count),
        lambda: random.gamma(3, 0.01, count),
        lambda: random.uniform(0.005, 0.06, count),
        lambda: np.where(
            random.random(count) < 0.25, random.exponential(0.08, count), random.uniform(5e-4, 3e-3, count)
        ),
        lambda: 0.002 + random.pareto(1.5, count) * 0.006,
        lambda: np.ceil(random.exponential(0.02, count) / 0.004) * 0.004,
    )
    return np.cumsum(pauses[kind % len(pauses)]())


def found(times_s: np.ndarray, settings: PeriodSettings | None = None) -> Verdict:
    """What PeriodWiz says, wake-up by wake-up, when it first says something for good."""
    finder = PeriodFinder(settings)
    for time_s in times_s:
        finder.add(float(time_s))
        verdict = finder.verdict()
        if finder.final:
            break
    return verdict


def sets(count: int = 100, seed: int = 0) -> dict[str, Any]:
    """Right answers (within 2 % of the greatest common divisor) and false periods."""
    random = np.random.default_rng(seed)
    wrong = []
    for _ in range(count):
        periods = random_set(random)
        divisor = functools.reduce(math.gcd, periods)
        period_s = found(releases(random, periods, 120)).period_s
        if period_s is None or abs(period_s * 1e3 - divisor) > 0.02 * divisor:
            wrong.append({"periods_ms": periods, "found_ms": period_s and round(period_s * 1e3, 2)})
    false = sum(found(aperiodic(random, kind)).period_s is not None for kind in range(count))
    return {"right": 1 - len(wrong) / count, "false_periods": false, "of": count, "wrong": wrong}


# --- on this host -------------------------------------------------------------------------------------


def started(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A task, and its thread id."""
    process = subprocess.Popen([*TASK, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def stopped(process: subprocess.Popen[str]) -> None:
    """End a task that is no longer needed."""
    process.kill()
    process.communicate()


def periods() -> list[dict[str, Any]]:
    """``twin period`` on real tasks."""
    rows = []
    for name, expected_ms, arguments in (
        ("40 ms", (40.0,), ("periodic", "--period-ms", "40", "--work-ms", "2")),
        ("50 + 75 ms", (25.0,), ("periodic", "--period-ms", "50,75", "--work-ms", "2")),
        ("45 + 60 + 105 ms", (15.0,), ("periodic", "--period-ms", "45,60,105", "--work-ms", "2")),
        ("player, 30 frames/s", (33.33, 11.11), ("player",)),
        ("aperiodic I/O", (None,), ("aperiodic",)),
    ):
        process, tid = started(*arguments, "--duration-s", "20")
        try:
            done = subprocess.run(
                [*TWIN, "period", str(tid), "--format", "json"], capture_output=True, text=True, check=True
            )
        finally:
            stopped(process)
        answer = json.loads(done.stdout)
        period_ms = answer["period_s"] and answer["period_s"] * 1e3
        right = any((one is None) is (period_ms is None) and (one is None or abs(period_ms - one) < 0.02 * one)
                    for one in expected_ms)  # fmt: skip
        rows.append({"task": name, "period_ms": period_ms, "samples": answer["samples"], "right": right})
    return rows


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Programs that never sleep."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in programs:
            one.kill()
            one.wait()


@contextlib.contextmanager
def guest(server: Any, load: str) -> Iterator[int]:
    """A partition with one processor that runs these tasks; its number."""
    number = server.call("create-partition", cores=1, memory_mib=128)["id"]
    try:
        server.call("deploy", id=number, load=load)
        yield number
        server.call("shutdown", id=number)
    finally:
        server.call("destroy-partition", id=number)


def guests(tries: int = 20, per_guest: int = 5) -> list[dict[str, Any]]:
    """``twin period`` on the virtual CPU of guests."""
    from benchmarks.partitions import Server

    rows = []
    server = Server()
    try:
        for beside in (0, 2):
            for name, expected_ms, load in GUEST_LOADS:
                found_ms, samples = [], []
                for _ in range(tries // per_guest):
                    with guest(server, load) as number, busy(beside):
                        pid = server.call("info", id=number)["qemu_pid"]
                        command = [*TWIN, "period", f"vcpus:{pid}", "--format", "json"]
                        for _ in range(per_guest):
                            done = subprocess.run(command, capture_output=True, text=True, check=True)
                            answer = json.loads(done.stdout)
                            found_ms.append(answer["period_s"] and round(answer["period_s"] * 1e3, 2))
                            samples.append(answer["samples"])
                wrong = [one for one in found_ms if one is None or abs(one - expected_ms) > 0.02 * expected_ms]
                rows.append(
                    {
                        "tasks": name,
                        "busy_beside": beside,
                        "right": len(found_ms) - len(wrong),
                        "of": len(found_ms),
                        "samples_median": float(np.median(samples)),
                        "samples_most": max(samples),
                        "wrong_ms": wrong,
                    }
                )
    finally:
        server.close()
    return rows


def guest_budget(seconds: float = 20.0) -> list[dict[str, Any]]:
    """The budget of a virtual CPU under ``twin deadline attach``, and what its guest measures meanwhile."""
    from benchmarks.partitions import Server

    rows = []
    server = Server()
    try:
        for work_ms, period_ms in ((10, 100), (5, 40)):
            for beside in (0, 2):
                with guest(server, f"{work_ms * 1000}/{period_ms * 1000}") as number, busy(beside):
                    server.call("configure", id=number, metrics_ms=1000)
                    time.sleep(3)
                    row: dict[str, Any] = {"task_ms": f"{work_ms} of {period_ms}", "busy_beside": beside}
                    row["response_before_ms"] = response_us(server, number)["mean"] / 1e3
                    target = f"partition:{server.name}/{number}"
                    monitor = subprocess.Popen(
                        [*TWIN, "deadline", "attach", target, "--duration", f"{seconds:g}s", "--format", "json"],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                        env={**os.environ, "TWINBED_STATE": str(server.state)},
                    )
                    assert monitor.stdout is not None
                    cycles, responses = [], []
                    for line in monitor.stdout:
                        cycles.append(json.loads(line))
                        if cycles[-1]["time_s"] > seconds / 2:
                            responses.append(response_us(server, number))
                    monitor.wait()
                    late = [one for one in cycles if one["time_s"] > seconds / 2]
                    end = float(np.median([one["budget_s"] / one["period_s"] for one in late]))
                    near = [abs((one["budget_s"] or 0) / one["period_s"] - end) < end / 4 for one in cycles]
                    row["period_ms"] = late[-1]["period_s"] * 1e3
                    # The first of four in which the share is less than a quarter away from where it ends.
                    settled = [n for n in range(len(near) - 3) if all(near[n : n + 4])]
                    row["settled_after_cycles"] = settled[0] + 1 if settled else None
                    row["near_share"] = float(np.mean(near[settled[0] :])) if settled else 0.0
                    row["budget_ms"] = float(np.median([one["budget_s"] for one in late])) * 1e3
                    row["used_ms"] = float(np.median([one["used_s"] for one in late])) * 1e3
                    row["response_ms"] = float(np.median([one["mean"] for one in responses])) / 1e3
                    row["longest_response_ms"] = max(one["max"] for one in responses) / 1e3
                    rows.append(row)
    finally:
        server.close()
    return rows


def response_us(server: Any, number: int) -> dict[str, Any]:
    """Of the guest's task in its last metrics: ``mean`` and ``max``, in microseconds."""
    found: dict[str, Any] = server.call("info", id=number)["metrics"]["load"][0]["response_us"]
    return found


def monitored(plans: list[str], duration_s: float, budget_ms: float) -> list[tuple[list[dict[str, Any]], np.ndarray]]:
    """Tasks with a period of 100 ms under the monitor: cycles, and jobs (release, work, response in s).

    Cycles carry ``task_s``, the time since the task's first release; so do the jobs.
    """
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for number, plan in enumerate(plans):
            log = f"{folder}/{number}"
            process, tid = started("periodic", "--work-ms", plan, "--duration-s", str(duration_s), "--log", log)
            tasks.append((process, tid, log))
        monitor = subprocess.Popen(
            [*ATTACH, *(str(tid) for _, tid, _ in tasks), "--budget", f"{budget_ms:g}ms"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert monitor.stdout is not None
        cycles: dict[int, list[dict[str, Any]]] = {tid: [] for _, tid, _ in tasks}
        for line in monitor.stdout:
            one = json.loads(line)
            one["task_s"] = time.monotonic()
            one["budget_s"] = one["budget_s"] or 0.0  # waits for admission
            cycles[one["tid"]].append(one)
        monitor.wait()
        results = []
        for process, tid, log in tasks:
            process.communicate()
            jobs = np.loadtxt(log)
            start_s = jobs[0, 0]
            jobs[:, 0] -= start_s
            for one in cycles[tid]:
                one["task_s"] -= start_s
            # A cycle in which the task ended saw less of it.
            results.append(([one for one in cycles[tid] if one["task_s"] <= jobs[-1, 0]], jobs))
        return results


def budget() -> list[dict[str, Any]]:
    """Cycles until the budget stays within 5 % of C (1 + ovh), and the response after that."""
    rows = []
    for first_ms in (2.0, 8.0):
        for work_ms, (cycles, jobs) in zip((10, 20), monitored(["10", "20"], 14, first_ms), strict=True):
            high_s = work_ms / 1e3 * (1 + OVH) * 1.05
            outside = [n for n, one in enumerate(cycles) if not work_ms / 1e3 <= one["budget_s"] <= high_s]
            settled = outside[-1] + 2 if outside else 1
            after = cycles[settled:]
            late = jobs[jobs[:, 0] > cycles[min(settled, len(cycles) - 1)]["task_s"]]
            rows.append(
                {
                    "work_ms": work_ms,
                    "first_budget_ms": first_ms,
                    "settled_after_cycles": settled,
                    "budget_ms": float(np.median([one["budget_s"] for one in after]) * 1e3) if after else None,
                    "response_ms": float(np.median(late[:, 2]) * 1e3) if len(late) else None,
                    "longest_response_ms": float(late[:, 2].max() * 1e3) if len(late) else None,
                    "peak_response_ms": float(jobs[:, 2].max() * 1e3),
                }
            )
    return rows


def steps() -> list[dict[str, Any]]:
    """After every change: cycles until the budget follows, until it settles, and deadlines missed after that."""
    changes_s = (8.0, 16.0)
    rows = []
    plans = (("5:8,15:16,10", (5, 15, 10)), ("10:8,30:16,20", (10, 30, 20)))
    for (_, works), (cycles, jobs) in zip(plans, monitored([plan for plan, _ in plans], 23, 2), strict=True):
        ends_s = (*changes_s[1:], 23.0)
        for change_s, end_s, before_ms, work_ms in zip(changes_s, ends_s, works[:-1], works[1:], strict=True):
            part = [one for one in cycles if change_s < one["task_s"] <= end_s - 0.5]
            high_s = work_ms / 1e3 * (1 + OVH) * 1.05
            covers = work_ms > before_ms
            follows = [one["budget_s"] >= work_ms / 1e3 if covers else one["budget_s"] <= high_s for one in part]
            outside = [n for n, one in enumerate(part) if not work_ms / 1e3 <= one["budget_s"] <= high_s]
            settled = outside[-1] + 2 if outside else 1
            settled_s = part[min(settled, len(part)) - 1]["task_s"]
            late = jobs[(jobs[:, 0] > settled_s) & (jobs[:, 0] < end_s - 0.1)]
            rows.append(
                {
                    "step_ms": f"{before_ms} -> {work_ms}",
                    "follows_after_s": part[follows.index(True)]["task_s"] - change_s if True in follows else None,
                    "follows_after_cycles": (part[follows.index(True)]["task_s"] - change_s) / 0.5
                    if True in follows
                    else None,
                    "settled_after_cycles": settled,
                    "jobs_after": len(late),
                    "missed_after": int((late[:, 2] > 0.1).sum()),
                }
            )
    return rows


def cost(count: int = 100, seconds: float = 10.0) -> list[dict[str, Any]]:
    """CPU and memory of ``twin deadline attach`` for many threads, T = 100 ms."""
    rows = []
    for option in ("--no-response", "--response"):
        process, tid = started("threads", "--count", str(count), "--duration-s", str(seconds + 15))
        monitor = subprocess.Popen(
            [*ATTACH, str(tid), "--cycle", "100ms", "--budget", "0.5ms", option],
            stdout=subprocess.DEVNULL,
        )
        try:
            time.sleep(4)
            before, start = _cpu_s(monitor.pid), time.monotonic()
            time.sleep(seconds)
            used = (_cpu_s(monitor.pid) - before) / (time.monotonic() - start)
            status = Path(f"/proc/{monitor.pid}/status").read_text(encoding="ascii")
            peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        finally:
            monitor.terminate()
            monitor.wait()
            stopped(process)
        rows.append({"threads": count, "option": option, "share_of_core": used, "peak_rss_mib": peak / 1024})
    return rows


class Run:
    """A run of a library scenario, with what its controller did to each task."""

    def __init__(self, name: str, fidelity: str, *options: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [*TWIN, "run", name, "--fidelity", fidelity, "--out", folder, "--format", "json", *options]
            subprocess.run([*command, "--set", "assert=[]"], capture_output=True, check=True)
            (path,) = (one for one in Path(folder).iterdir() if one.is_dir())
            with KpiReader(path) as reader:
                tried = [row for row in reader.actions() if row.knob == "dl_runtime_us"]
                rows = [row for row in tried if row.applied]
                self.refused = len(tried) - len(rows)
                self.budgets = {
                    number: [
                        (row.time_s, float(row.value) / 1e6) for row in rows if row.entity == f"task:edge.{number}"
                    ]
                    for number in (1, 2)
                }
                self.series = {
                    (number, kpi): np.column_stack(reader.series(f"task:edge.{number}", kpi))
                    for number in (1, 2)
                    for kpi in ("task_response_p50_s", "task_response_max_s", "deadline_miss_ratio")
                }

    def settled_s(self, number: int, work_s: float, start_s: float, end_s: float) -> float:
        """From when on the budget stays between C and 1.05 C (1 + ovh), until ``end_s``."""
        steps = [one for one in self.budgets[number] if one[0] < end_s]
        moments = [time_s for time_s, _ in steps[1:]] + [end_s]
        high_s = work_s * (1 + OVH) * 1.05
        outside = [
            until_s for until_s, (_, budget_s) in zip(moments, steps, strict=True) if not work_s <= budget_s <= high_s
        ]
        return max([start_s, *outside])

    def follows_s(self, number: int, work_s: float, start_s: float, *, covers: bool) -> float:
        """When the budget first covers a larger need, or has come down to a smaller one."""
        high_s = work_s * (1 + OVH) * 1.05
        good = (
            time_s
            for time_s, budget_s in self.budgets[number]
            if time_s > start_s and (budget_s >= work_s if covers else budget_s <= high_s)
        )
        return next(good, math.inf)

    def after(self, number: int, kpi: str, start_s: float, end_s: float) -> np.ndarray:
        """Samples of the intervals that begin at ``start_s`` or later."""
        found = self.series[number, kpi]
        part: np.ndarray = found[(found[:, 0] >= start_s + T_S - 1e-6) & (found[:, 0] <= end_s), 1]
        return part if len(part) else np.array([math.nan])


def scenarios() -> list[dict[str, Any]]:
    """Cycles until budgets settle and follow, responses and deadlines missed after that."""
    rows = []
    for fidelity in ("emulation", "flow"):
        for first_s in (0.002, 0.008):
            run = Run("deadline_start", fidelity, "--set", f"controllers.0.params.budget_s={first_s}")
            for number, work_s in ((1, 0.01), (2, 0.02)):
                start_s = run.budgets[number][0][0]
                settled_s = run.settled_s(number, work_s, start_s, 20)
                rows.append(
                    {
                        "fidelity": fidelity,
                        "work_ms": f"{work_s * 1e3:g} from {first_s * 1e3:g}",
                        "settled_after_cycles": (settled_s - start_s) / T_S,
                        "budget_ms": run.budgets[number][-1][1] * 1e3,
                        "peak_response_ms": float(run.after(number, "task_response_max_s", 0, 20).max()) * 1e3,
                        **_responses(run, number, settled_s + 2 * T_S, 20),
                    }
                )
        run = Run("edge_deadline", fidelity)
        for number, works in ((1, (0.005, 0.015, 0.01)), (2, (0.01, 0.03, 0.02))):
            for change_s, end_s, before_s, work_s in zip((12, 24), (24, 36), works[:-1], works[1:], strict=True):
                settled_s = run.settled_s(number, work_s, change_s, end_s)
                follows_s = run.follows_s(number, work_s, change_s, covers=work_s > before_s)
                rows.append(
                    {
                        "fidelity": fidelity,
                        "work_ms": f"{before_s * 1e3:g} -> {work_s * 1e3:g}",
                        "follows_after_cycles": (follows_s - change_s) / T_S,
                        "settled_after_cycles": (settled_s - change_s) / T_S,
                        **_responses(run, number, settled_s + 2 * T_S, end_s),
                    }
                )
    return rows


def _responses(run: Run, number: int, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "response_ms": float(np.median(run.after(number, "task_response_p50_s", start_s, end_s))) * 1e3,
        "longest_response_ms": float(run.after(number, "task_response_max_s", start_s, end_s).max()) * 1e3,
        "refused": run.refused,  # something else on this host has reserved CPU time
        "missed_percent": float(run.after(number, "deadline_miss_ratio", start_s, end_s).mean()) * 100,
    }


def _cpu_s(pid: int) -> float:
    """Exact CPU time of all threads of a process, dead ones left out."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((one / "schedstat").read_text(encoding="ascii").split()[0]) for one in tasks) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    given = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "sets": sets,
        "periods": periods,
        "guests": guests,
        "guest-budget": guest_budget,
        "budget": budget,
        "steps": steps,
        "cost": cost,
        "scenarios": scenarios,
    }
    results = {name: parts[name]() for name in given.part or PARTS}
    if given.format == "json":
        print(json.dumps(results, indent=1))
        return
    for name, result in results.items():
        print(name)
        for row in result if isinstance(result, list) else [result]:
            print("  " + ", ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
                                   for key, value in row.items()))  # fmt: skip


if __name__ == "__main__":
    main()
