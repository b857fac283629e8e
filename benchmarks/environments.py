"""How many steps per second the Gymnasium environments make, Python API included.

    python benchmarks/environments.py [--envs 1024] [--topologies 5] [--threads 1] [--format json]

``twinbed/IabPath-v0`` on random IAB networks (NANCY D4.2 §4.2: K 3, high load, every node active), 20
and 60 nodes: the vector environment from ``gymnasium.make_vec``, in NEXT_STEP and SAME_STEP mode, and in
the same run the single one from ``gymnasium.make``. Actions are random and drawn beforehand; observations,
rewards, infos and the resets after every 300 steps are in the figures. Then ``twinbed/SliceScaling-v0`` at
fidelity ``flow``, whose step is an interval of the whole quickstart network, and the bare episodes of two
library scenarios, in steps per second of CPU time, which other load on the host changes less. The rate is
all steps over all time, the best of ``--repeats`` per network. Target, on 2 cores: 300,000 steps/s with 1024
environments of 20 nodes. mobile-env makes 45 to 768 steps/s, the released environment of PHaul 435 to 3,300.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnasium
import numpy as np

import agents  # noqa: F401 registers the environments
from scenarios.engine import Episode
from scenarios.loader import load_scenario
from scenarios.registry import find_scenario
from topologies.iab import IabNetwork, generate
from twin.flow import FlowBackend

TARGET_PER_S = 300_000
MOBILE_ENV_PER_S = (45, 768)
EPISODE_STEPS = 300
EPISODES = ("quickstart", "two_cells")


def vector_s(network: IabNetwork, envs: int, mode: str, threads: int, repeats: int) -> float:
    """Seconds per step of the whole batch: one episode and what follows it."""
    env = gymnasium.make_vec(
        "twinbed/IabPath-v0",
        num_envs=envs,
        scenario=network,
        autoreset_mode=mode,
        threads=threads,
        episode_steps=EPISODE_STEPS,
    )
    actions = np.random.default_rng(0).integers(0, env.single_action_space.n, (EPISODE_STEPS + 1, envs))
    env.reset(seed=0)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for action in actions:
            env.step(action)
        times.append(time.perf_counter() - start)
    env.close()
    return min(times) / len(actions)


def single_s(network: IabNetwork, repeats: int) -> float:
    """Seconds per step of one environment."""
    env = gymnasium.make("twinbed/IabPath-v0", scenario=network, episode_steps=EPISODE_STEPS)
    actions = np.random.default_rng(0).integers(0, env.action_space.n, EPISODE_STEPS)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        times.append(time.perf_counter() - start)
    env.close()
    return min(times) / len(actions)


def slices_s(repeats: int) -> float:
    """Seconds per step of the slice scaling environment, resets included."""
    env = gymnasium.make("twinbed/SliceScaling-v0", scenario="quickstart")
    times, steps = [], 0
    for _ in range(repeats):
        start, steps, over = time.perf_counter(), 0, False
        env.reset(seed=0)
        while not over:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over, steps = terminated or truncated, steps + 1
        times.append(time.perf_counter() - start)
    env.close()
    return min(times) / steps


def episode_cpu_s(name: str, repeats: int) -> float:
    """CPU seconds per interval of a library scenario on the flow model, without a store."""
    scenario = load_scenario(find_scenario(name))
    times = []
    for _ in range(repeats):
        with Episode(scenario, FlowBackend()) as episode:
            start, steps = time.process_time(), 0
            while not episode.done:
                episode.step()
                steps += 1
            times.append((time.process_time() - start) / steps)
    return min(times)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, in steps per second."""
    found: dict[str, Any] = {"envs": arguments.envs, "threads": arguments.threads, "sizes": []}
    for nodes in (20, 60):
        networks = [generate(nodes, k_paths=3, load="high", seed=seed) for seed in range(arguments.topologies)]
        row: dict[str, Any] = {"nodes": nodes}
        for mode in ("NextStep", "SameStep"):
            seconds = [
                vector_s(network, arguments.envs, mode, arguments.threads, arguments.repeats) for network in networks
            ]
            row[mode] = {
                "steps_per_s": arguments.envs / float(np.mean(seconds)),
                "slowest_per_s": arguments.envs / max(seconds),
                "fastest_per_s": arguments.envs / min(seconds),
            }
        row["single_per_s"] = 1 / float(np.mean([single_s(network, arguments.repeats) for network in networks]))
        found["sizes"].append(row)
    found["slice_scaling_per_s"] = 1 / slices_s(arguments.repeats)
    found["episode_per_cpu_s"] = {name: 1 / episode_cpu_s(name, arguments.repeats) for name in EPISODES}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument("--topologies", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    found = measure(arguments)
    if arguments.format == "json":
        print(json.dumps(found))
        return 0
    for row in found["sizes"]:
        for mode in ("NextStep", "SameStep"):
            figures = row[mode]
            rate = figures["steps_per_s"]
            target = f"; target {TARGET_PER_S:,}" if row["nodes"] == 20 else ""
            print(
                f"{row['nodes']} nodes, {found['envs']} environments, {mode}: {rate:,.0f} steps/s "
                f"({figures['slowest_per_s']:,.0f} to {figures['fastest_per_s']:,.0f} by network{target}), "
                f"{rate / row['single_per_s']:.0f} times the single environment, "
                f"{rate / MOBILE_ENV_PER_S[1]:,.0f} to {rate / MOBILE_ENV_PER_S[0]:,.0f} times mobile-env's"
            )
        print(f"{row['nodes']} nodes, single environment: {row['single_per_s']:,.0f} steps/s")
    print(f"slice scaling, quickstart, flow: {found['slice_scaling_per_s']:,.1f} steps/s")
    for name, rate in found["episode_per_cpu_s"].items():
        low, high = MOBILE_ENV_PER_S
        print(f"episode of {name}, flow: {rate:,.0f} steps per CPU second (mobile-env: {low} to {high} steps/s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
