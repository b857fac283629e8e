"""What TwinBed's engine costs beside the data plane, in per cent of one core.

    python benchmarks/engine_overhead.py [--ues 20] [--intervals 60] [--format json]
    python benchmarks/engine_overhead.py --scenario FILE      # a whole emulation run, root

Without a scenario: the loop, the store and one controller process, fed by a network in memory that
reports every KPI of every UE, as an emulation would, paced by the wall clock (interval 1 s by
default, so CPU seconds per interval are the share of a core). With a scenario: the mean of the KPI
``engine_cpu_millicores`` of that run, which also has what the emulation needs to collect its KPIs.
Target: at most 15 % of one core at 20 UEs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from scenarios.engine import run
from scenarios.model import ControllerSpec, Scenario
from topologies.model import Gnb, Slice, Topology, Ue
from twin.kpis import KPIS
from twin.load import Load
from twin.store import KpiReader, RunStore
from twin.types import Action, Kpi, Observation, Outcome, Probe

TARGET_RATIO = 0.15


class MemoryNetwork:
    """Reports all registered KPIs of its UEs, slices and nodes, on the wall clock."""

    probes: Sequence[Probe] = ()

    def __init__(self, topology: Topology) -> None:
        entities = {
            "ue": [f"ue:{ue}" for group in topology.of_kind(Ue) for ue in group.ue_ids],
            "slice": [f"slice:{slice_.name}" for slice_ in topology.slices],
            "node": [f"node:{node.name}" for node in topology.nodes],
            "run": ["run"],
        }
        self.pairs = [
            (entity, spec.name)
            for spec in KPIS.values()
            if spec.provenance != "derived"
            for scope in spec.scopes
            for entity in entities.get(scope, [])
            if spec.name != "engine_cpu_millicores"
        ]
        self.start_s = time.monotonic()

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        return [Outcome(action, applied=True) for action in actions]

    def advance(self, until_s: float) -> Observation:
        time.sleep(max(0.0, self.start_s + until_s - time.monotonic()))
        return Observation(until_s, tuple(Kpi(until_s, entity, name, 0.5) for entity, name in self.pairs))

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryBackend:
    name = "memory"
    deterministic = False

    def open(self, topology: Topology, load: Load, *, seed: int) -> MemoryNetwork:  # noqa: ARG002 the contract
        self.network = MemoryNetwork(topology)
        return self.network


def in_memory(ues: int, intervals: int, interval_s: float) -> dict[str, float]:
    """Figures of the loop alone."""
    slices = ("embb", "urllc", "mmtc")
    topology = Topology(
        name="bench",
        nodes=(
            *(Ue(name=f"ues-{name}", slice=name, count=ues // 3 + (n < ues % 3)) for n, name in enumerate(slices)),
            *(Gnb(name=f"gnb{n}") for n in range(1, 9)),
        ),
        links=(),
        slices=tuple(Slice(name=name, sst=n + 1, prb_share=0.3) for n, name in enumerate(slices)),
    )
    scenario = Scenario(
        name="bench",
        topology=topology,
        load=Load(flows=(), duration_s=intervals * interval_s),
        duration_s=intervals * interval_s,
        interval_s=interval_s,
    )
    backend = MemoryBackend()
    controller = ControllerSpec(name="rules", controller="rule_based", interval_s=5 * interval_s)
    with tempfile.TemporaryDirectory(prefix="twinbed-engine-overhead-") as folder:
        store = RunStore.create(Path(folder), "bench")
        before = os.times()
        start_s = time.monotonic()
        result = run(scenario, backend, (controller,), store)
        after = os.times()
        wall_s = time.monotonic() - start_s
    if result.status != "VALID":
        raise SystemExit(f"the run is {result.status}: {result.reason}")
    engine_s = after.user + after.system - before.user - before.system
    workers_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "ues": ues,
        "kpis_per_interval": len(backend.network.pairs),
        "wall_s": wall_s,
        "engine_core_ratio": engine_s / wall_s,
        "controllers_core_ratio": workers_s / wall_s,
        "core_ratio": (engine_s + workers_s) / wall_s,
    }


def in_run(scenario: str, runs: Path) -> dict[str, float]:
    """Figures of a real run of a scenario file."""
    from scenarios.execution import execute
    from scenarios.loader import load_scenario

    loaded = load_scenario(Path(scenario))
    finished = execute(loaded, runs=runs)
    with KpiReader(finished.result.path) as reader:
        summary = reader.summary().get("run", {}).get("engine_cpu_millicores")
    if summary is None:
        raise SystemExit(f"{finished.result.status}: the run has no engine_cpu_millicores ({finished.result.reason})")
    ues = sum(group.count for group in loaded.topology.of_kind(Ue))
    return {"ues": ues, "core_ratio": summary.mean / 1000, "core_ratio_p95": summary.p95 / 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ues", type=int, default=20)
    parser.add_argument("--intervals", type=int, default=60)
    parser.add_argument("--interval-s", type=float, default=1.0)
    parser.add_argument("--scenario", help="run this file instead and read its KPI")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.ues < 3 or arguments.intervals < 1 or arguments.interval_s <= 0:
        parser.error("--ues must be at least 3, --intervals at least 1, --interval-s more than 0")
    if arguments.scenario:
        figures = in_run(arguments.scenario, arguments.out)
    else:
        figures = in_memory(arguments.ues, arguments.intervals, arguments.interval_s)
    figures["target_core_ratio"] = TARGET_RATIO
    reached = figures["core_ratio"] <= TARGET_RATIO
    if arguments.format == "json":
        print(json.dumps({**figures, "reached": reached}))
    else:
        print("\n".join(f"{name:>24}: {value:.4g}" for name, value in figures.items()))
        print(f"{'':>24}  {'reached' if reached else 'NOT reached'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
