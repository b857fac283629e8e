"""MicroOpt on containers: measured QoS degradation against its threshold at nine settings.

    sudo python benchmarks/microopt_emulation.py [--out results.json] [--q-thresh 0.75,1,1.25] [--beta 0.1,0.2,0.3]
        [--duration 140] [--warm-up 20] [--seed 1] [--fidelity emulation] [--only-print]

Every setting is one `twin run microopt --fidelity emulation --controller microopt` with its thresholds set. The paper's
q_thresh 3, 4, 5 Mbit/s are divided by 4, as all rates of the scenario are; beta_thresh are the paper's. A finished
run is written to --out at once; the same command goes on with those that are missing, and repeats what was not VALID.

ratio: degraded users / users after the warm-up, divided by the threshold; whole: the same from the first interval on,
the KPI qos_degradation_to_thresh. cost: mean of CPU / 500 m + bandwidth / 10 Mbit/s, in parts of what the file
allocates (2). Exit code 1 when a ratio is above 1 (broken) or below 0.5 (wasteful).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.manifest import origin
from twin.store import KpiReader

ENTITY = "slice:embb"
CPU_MILLICORES, BANDWIDTH_BPS = 500.0, 10e6
WASTEFUL, BROKEN = 0.5, 1.0


def measure(q_mbps: float, beta: float, options: argparse.Namespace) -> dict[str, Any]:
    """One run, and what its KPIs say."""
    command = [sys.executable, "-m", "scenarios.cli", "run", "microopt", "--controller", "microopt", "--format", "json"]
    command += ["--fidelity", options.fidelity, "--duration", f"{options.duration:g}s", "--seed", str(options.seed)]
    command += ["--out", str(options.runs)]
    command += ["--set", f"slices.embb.sla.q_thresh={q_mbps:g}Mbps", "--set", f"slices.embb.sla.beta_thresh={beta:g}"]
    load_before = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        run = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise SystemExit(f"twin run: exit code {done.returncode}: {done.stderr.strip()}") from None
    found = {"load_average": [load_before, os.getloadavg()[0]]}
    found |= {name: run[name] for name in ("run_id", "status", "reason", "host_overloaded", "seed")}
    with KpiReader(Path(run["path"])) as reader:
        return found | judged(reader, options.warm_up, beta)


def judged(reader: KpiReader, warm_up_s: float, beta: float) -> dict[str, float]:
    """Equation 1 of the paper over the intervals that end after ``warm_up_s``, and what was allocated in them."""

    def after(entity: str, name: str) -> dict[float, float]:
        times, values = reader.series(entity, name)
        return {t: v for t, v in zip(times.round(3).tolist(), values.tolist(), strict=True) if t > warm_up_s + 1e-6}

    users, quality, least = (after(ENTITY, name) for name in ("active_ues", "qos_bps", "q_thresh_bps"))
    seen = [t for t in quality if users.get(t, 0.0) > 0]
    degraded = sum(users[t] for t in seen if quality[t] <= least[t])
    measured = degraded / sum(users[t] for t in seen)
    cpu = float(np.mean(list(after(ENTITY, "cpu_limit_millicores").values())))
    bandwidth = float(np.mean(list(after(ENTITY, "bandwidth_limit_bps").values())))
    missed, throttled = (after(ENTITY, name) for name in ("missed_slots_ratio", "cpu_throttled_ratio"))
    starved = [t for t in missed if missed[t] > throttled.get(t, 0.0) + 0.05]
    decisions = reader.series("controller:microopt", "decision_time_s")[1]
    # The wall clock is recorded where things really run only.
    timed = {
        f"decision_{name}_s": float(f(decisions)) for name, f in (("p50", np.median), ("max", np.max)) if decisions.size
    }
    return {
        "intervals": len(seen),
        "beta": measured,
        "ratio": measured / beta,
        "whole": float(reader.series(ENTITY, "qos_degradation_to_thresh")[1][-1]),
        "cpu_millicores": cpu,
        "bandwidth_mbps": bandwidth / 1e6,
        "cost": cpu / CPU_MILLICORES + bandwidth / BANDWIDTH_BPS,
        "intervals_without_host_cpu": len(starved),
    } | timed


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| q_thresh, Mbit/s (paper) | β threshold | β | / threshold | whole run | CPU, m | Mbit/s | cost of 2 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, one in results.items():
        q, beta = map(float, key.split(","))
        lines.append(
            f"| {q:g} ({4 * q:g}) | {beta:g} | {one['beta']:.3f} | {one['ratio']:.2f} | {one['whole']:.2f} "
            f"| {one['cpu_millicores']:.0f} | {one['bandwidth_mbps']:.2f} | {one['cost']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("microopt-emulation.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--q-thresh", default="0.75,1,1.25")
    parser.add_argument("--beta", default="0.1,0.2,0.3")
    parser.add_argument("--duration", type=float, default=140.0)
    parser.add_argument("--warm-up", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fidelity", default="emulation", choices=["emulation", "flow"])
    parser.add_argument("--only-print", action="store_true", help="what --out holds, no runs")
    options = parser.parse_args()
    asked = {name: getattr(options, name) for name in ("duration", "warm_up", "seed", "fidelity")}
    stored = json.loads(options.out.read_text()) if options.out.exists() else {"asked": asked, "results": {}}
    if stored["asked"] != asked:
        raise SystemExit(f"--out {options.out}: of other runs: {stored['asked']}")
    results: dict[str, dict[str, Any]] = stored["results"]
    wanted = itertools.product(map(float, options.q_thresh.split(",")), map(float, options.beta.split(",")))
    for q, beta in () if options.only_print else wanted:
        key = f"{q:g},{beta:g}"
        if results.get(key, {}).get("status") == "VALID":
            continue
        results[key] = measure(q, beta, options) | {"commit": origin()["commit"]}
        draft = options.out.with_name(f".{options.out.name}.{os.getpid()}")
        draft.write_text(json.dumps(stored, indent=2) + "\n")
        draft.replace(options.out)
        print(key, json.dumps(results[key]), file=sys.stderr, flush=True)
    print(table(results))
    unkept = [key for key, one in results.items() if not WASTEFUL <= one["ratio"] <= BROKEN]
    unusable = [key for key, one in results.items() if one["status"] != "VALID"]
    if unkept or unusable:
        print(f"outside [{WASTEFUL:g}, {BROKEN:g}]: {unkept or 'none'}; not VALID: {unusable or 'none'}")
        sys.exit(1)


if __name__ == "__main__":
    main()
