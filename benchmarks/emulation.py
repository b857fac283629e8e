"""Figures of the running emulation, each printed against what is asked. Needs root; about two minutes.

``python benchmarks/emulation.py [quickstart|knobs|many_ues|overhead ...]`` (default: all).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from scenarios.loader import load_scenario
from scenarios.model import Scenario
from scenarios.registry import find_scenario
from topologies.model import App, Gnb, Link, Slice, Switch, Topology, Ue, Upf
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.load import Activity, Flow, Load
from twin.store import KpiReader, read_manifest
from twin.types import Action

TWIN = Path(sys.executable).with_name("twin")
FOREVER_S = 1e6
CHANGES = 200


def percentile(values: Sequence[float], rank: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(rank / 100 * len(ordered)))]


def report(what: str, measured: str, asked: str, reached: bool) -> None:
    """One line of the result."""
    print(f"{what}: {measured} (asked: {asked}) {'reached' if reached else 'NOT REACHED'}", flush=True)


def twin_run(*arguments: str) -> tuple[Path, float]:
    """Run the command line in a temporary folder; the run's folder and the unix time of the start."""
    folder = tempfile.mkdtemp(prefix="twinbed-benchmark-")
    started_s = time.time()
    command = [str(TWIN), "run", *arguments, "--fidelity", "emulation", "--out", folder, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(f"twin run failed: {done.stderr.strip()}")
    return Path(json.loads(done.stdout)["path"]), started_s


def quickstart() -> None:
    """From ``twin run`` to the first packet of a user's traffic at a UE."""
    path, started_s = twin_run("quickstart", "--duration", "5s")
    first_s = read_manifest(path)["backend_details"]["first_user_packet"] - started_s  # type: ignore[index]
    report("quickstart, twin run to first user packet", f"{first_s:.1f} s", "<= 8 s", first_s <= 8)


def one_cell(*, groups: int, ues: int, work_ns_per_bit: float = 5.0) -> Topology:
    """UE containers behind one gNB and one switch, one slice, one stream server."""
    names = [f"ues{index}" for index in range(1, groups + 1)]
    return Topology(
        name="cell",
        nodes=(
            *(Ue(name=name, slice="embb", count=ues, cqi_script=((0, 15),)) for name in names),
            Gnb(name="gnb1", work_ns_per_bit=work_ns_per_bit),
            Switch(name="s1"),
            Upf(name="upf1", slice="embb"),
            App(name="video", service="stream"),
        ),
        links=(
            *(Link(a=name, b="gnb1") for name in names),
            Link(a="gnb1", b="s1"),
            Link(a="s1", b="upf1"),
            Link(a="s1", b="video"),
        ),
        slices=(Slice(name="embb", sst=1, prb_share=1.0, cpu_millicores=900, bandwidth_bps=50e6),),
    )


def streams(ues: Sequence[str], rate_bps: float) -> Load:
    """A downlink stream to each UE for as long as the session lasts."""
    return Load(
        flows=tuple(
            Flow(
                name=f"video:{ue}", ue=ue, slice="embb", app="video", service="stream", direction="dl",
                packet_bytes=1000, activities=(Activity(0.0, FOREVER_S, rate_bps),),
            )
            for ue in ues
        ),
        duration_s=FOREVER_S,
    )  # fmt: skip


def with_session(topology: Topology, load: Load, body: Callable[[EmulationSession], None]) -> None:
    """Bring a network up, run ``body``, take it down."""
    with tempfile.TemporaryDirectory() as folder:
        backend = EmulationBackend(run_id=f"benchmark-{time.time_ns()}", folder=Path(folder), probes=False)
        with backend.open(topology, load, seed=1) as session:
            body(session)


def knobs() -> None:
    """From the call that sets a knob to the end of the first 50 ms sample that shows it."""

    def body(session: EmulationSession) -> None:
        now_s = 0.0

        def sample() -> float:
            nonlocal now_s
            now_s += 0.05
            return session.advance(now_s).get("slice:embb", "throughput_dl_bps", 0.0)

        for _ in range(40):
            sample()
        for knob, low, high, between_bps in (
            ("bandwidth_mbps", 3.0, 12.0, 6e6),
            ("prb_share", 0.03, 0.5, 6e6),
            ("cpu_millicores", 60.0, 900.0, 6e6),
        ):
            delays_s = []
            for number in range(CHANGES):
                value = (low, high)[number % 2]
                started_s = time.monotonic()
                (outcome,) = session.apply([Action("slice:embb", knob, value)])
                assert outcome.applied, outcome.reason
                now_s = session.clock_s()
                while (sample() < between_bps) != (value == low):
                    if time.monotonic() - started_s > 3:
                        break
                delays_s.append(time.monotonic() - started_s)
                for _ in range(4):
                    sample()
            p99_s = percentile(delays_s, 99)
            typical_s = statistics.median(delays_s)
            report(
                f"{knob} set to seen in a 50 ms sample, {len(delays_s)} changes",
                f"p99 {p99_s * 1000:.0f} ms, median {typical_s * 1000:.0f} ms",
                "p99 <= 150 ms",
                p99_s <= 0.15,
            )

    topology = one_cell(groups=1, ues=2, work_ns_per_bit=20.0)
    with_session(topology, streams(["ues1.1", "ues1.2"], 6e6), body)


def many_ues() -> None:
    """100 attached UEs in two containers, 10 of them active."""
    topology = one_cell(groups=2, ues=50)
    group = [node for node in topology.nodes if isinstance(node, Ue)]
    attached = Topology(
        name=topology.name,
        nodes=tuple(
            Ue(name=n.name, slice=n.slice, count=n.count, cqi_script=n.cqi_script, always_attached=True)
            if isinstance(n, Ue)
            else n
            for n in topology.nodes
        ),
        links=topology.links,
        slices=topology.slices,
    )
    active = [ue for node in group for ue in node.ue_ids[:5]]
    idle = [ue for node in group for ue in node.ue_ids[5:]]

    def body(session: EmulationSession) -> None:
        lags_s, complete, attached_ues = [], 0, 0.0
        intervals = 20
        for second in range(1, intervals + 3):
            observation = session.advance(float(second))
            if second <= 2:
                continue
            lags_s.append(observation.value("run", "clock_lag_s"))
            attached_ues = observation.value("slice:embb", "attached_ues")
            names = {(kpi.entity, kpi.name) for kpi in observation.kpis}
            wanted = {(f"ue:{ue}", name) for ue in active for name in ("throughput_dl_bps", "delay_dl_p95_s", "cqi")}
            wanted |= {(f"ue:{ue}", name) for ue in idle for name in ("throughput_dl_bps", "cqi")}
            complete += wanted <= names
        lag_s = percentile(lags_s, 99)
        report("100 UEs, attached", f"{attached_ues:.0f}", "100", attached_ues == 100)
        report("100 UEs, intervals with all KPIs", f"{complete} of {intervals}", "all", complete == intervals)
        report("100 UEs, clock lag", f"p99 {lag_s * 1000:.1f} ms", "p99 <= 100 ms", lag_s <= 0.1)

    with_session(attached, streams(active, 5e5), body)


def overhead() -> None:
    """CPU of the engine process beside the data plane, at 20 UEs with KPIs every second."""
    scenario: Scenario = load_scenario(find_scenario("quickstart"))
    seconds = 30
    path, _ = twin_run(
        "quickstart", "--duration", f"{seconds}s", "--set", "topology.nodes.phones.count=12",
    )  # fmt: skip
    ues = sum(node.count for node in scenario.topology.of_kind(Ue)) + 6
    with KpiReader(path) as reader:
        values = reader.series("run", "engine_cpu_millicores")[1]
    mean = float(values[1:].mean())
    report(f"engine at {ues} UEs", f"{mean / 10:.1f} % of a core", "<= 15 %", mean <= 150)


def main() -> None:
    table = {"quickstart": quickstart, "knobs": knobs, "many_ues": many_ues, "overhead": overhead}
    wanted = sys.argv[1:] or list(table)
    unknown = [name for name in wanted if name not in table]
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]!r}; benchmarks: {', '.join(table)}")
    print(f"emulation benchmarks, {datetime.now():%Y-%m-%d %H:%M}")
    for name in wanted:
        table[name]()


if __name__ == "__main__":
    main()
