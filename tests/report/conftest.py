"""Runs to report on: three slices on a small network whose queueing is calculated right here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from scenarios.engine import run
from scenarios.model import ControllerSpec, Scenario, TimedAction
from topologies.model import App, Gnb, Link, Sla, Slice, Switch, Topology, Ue, Upf
from twin.load import Activity, Flow, Load
from twin.store import RunStore
from twin.types import Action, Kpi, Observation, Outcome, Probe

DURATION_S = 60.0
SLICES = (
    Slice(
        name="embb",
        sst=1,
        prb_share=0.6,
        cpu_millicores=400,
        bandwidth_bps=9e6,
        sla=Sla(q_thresh_bps=1.2e6, beta_thresh=0.2),
    ),
    Slice(name="urllc", sst=2, prb_share=0.2, cpu_millicores=100, bandwidth_bps=2e6, sla=Sla(latency_bound_s=0.03)),
    Slice(name="mmtc", sst=3, prb_share=0.1, cpu_millicores=50, bandwidth_bps=5e5),
)
TOPOLOGY = Topology(
    name="small",
    nodes=(
        Ue(name="phones", slice="embb", count=6),
        Ue(name="robots", slice="urllc", count=4),
        Ue(name="meters", slice="mmtc", count=4),
        Gnb(name="gnb1"),
        Switch(name="s1"),
        Switch(name="s2"),
        Switch(name="s3"),
        Upf(name="upf-embb", slice="embb"),
        Upf(name="upf-urllc", slice="urllc"),
        Upf(name="upf-mmtc", slice="mmtc"),
        App(name="video", service="stream"),
        App(name="control", service="request", cpu_millicores=200),
        App(name="sensors", service="telemetry"),
    ),
    links=(
        *(Link(a=name, b="gnb1") for name in ("phones", "robots", "meters")),
        Link(a="gnb1", b="s1"),
        Link(a="s1", b="s2", bandwidth_bps=12e6, delay_s=0.004),
        Link(a="s1", b="s3", bandwidth_bps=12e6, delay_s=0.005, loss_ratio=0.01),
        Link(a="s3", b="s2", bandwidth_bps=12e6, delay_s=0.005),
        *(Link(a="s2", b=f"upf-{name}") for name in ("embb", "urllc", "mmtc")),
        Link(a="upf-embb", b="video"),
        Link(a="upf-urllc", b="control"),
        Link(a="upf-mmtc", b="sensors"),
    ),
    slices=SLICES,
)
WAYS = {"embb": ("phones", "video", "stream", "dl"), "urllc": ("robots", "control", "request", "dl")}
LOAD = Load(
    flows=tuple(
        Flow(
            name=name,
            ue=f"{ue}.1",
            slice=name,
            app=app,
            service=service,  # type: ignore[arg-type]
            direction=way,  # type: ignore[arg-type]
            packet_bytes=1200,
            activities=(Activity(0, DURATION_S, 1e6),),
        )
        for name, (ue, app, service, way) in (WAYS | {"mmtc": ("meters", "sensors", "telemetry", "ul")}).items()
    ),
    duration_s=DURATION_S,
)


class QueueNetwork:
    """Every slice is an M/M/1 queue at its rate; without slicing all share one of 12 Mbit/s."""

    def __init__(self, topology: Topology, seed: int, probes: Sequence[Probe], measured: bool) -> None:
        self.topology, self.probes, self.measured = topology, probes, measured
        self.random = np.random.default_rng(seed)
        self.cpu = {slice_.name: float(slice_.cpu_millicores or 0) for slice_ in topology.slices}
        self.factor = dict.fromkeys(self.cpu, 1.0)
        self.time_s = 0.0

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        outcomes = []
        for action in actions:
            name = action.entity.partition(":")[2]
            if action.knob == "cpu_millicores" and name in self.cpu:
                self.cpu[name] = float(action.value)
            elif action.knob == "demand_factor" and name in self.cpu:
                self.factor[name] = float(action.value)
            elif action.knob != "link_state":
                reason = f"{action.knob} is not modelled here"
                outcomes.append(Outcome(action, False, reason, self.time_s))
                continue
            outcomes.append(Outcome(action, True, "", self.time_s, 0.004))
        return outcomes

    def advance(self, until_s: float) -> Observation:
        self.time_s = until_s
        day = 0.5 + 0.45 * np.sin(2 * np.pi * (until_s / DURATION_S - 0.3))
        rates = {"embb": 9.5e6 * day, "urllc": 0.8e6, "mmtc": 0.2e6}
        kpis: list[Kpi] = []
        total = sum(rates[name] * self.factor[name] for name in rates)
        for slice_ in self.topology.slices:
            name, entity = slice_.name, f"slice:{slice_.name}"
            offered = rates[name] * self.factor[name] * (1 + 0.04 * self.random.standard_normal())
            cpu_rate = self.cpu[name] / 1000 / 40e-9
            own = min(slice_.bandwidth_bps or 12e6, cpu_rate)
            load = min(0.99, offered / own) if self.topology.slicing else min(0.99, total / 12e6)
            served = min(offered, 0.99 * own) if self.topology.slicing else offered * min(1.0, 12e6 / total)
            delay_s = 0.006 + 12000 / (own if self.topology.slicing else 12e6) / (1 - load)
            way = "ul" if name == "mmtc" else "dl"
            active = {"embb": 1 + round(5 * float(day)), "urllc": 4, "mmtc": 4}[name]
            values = {
                f"throughput_{way}_bps": served,
                f"offered_{way}_bps": offered,
                f"delay_{way}_p95_s": delay_s * (1 + 0.05 * abs(self.random.standard_normal())),
                f"loss_{way}_ratio": max(0.0, 1 - served / offered),
                "rtt_p95_s": 2 * delay_s,
                "active_ues": float(active),
                "cpu_used_millicores": served * 40e-9 * 1000,
                "cpu_limit_millicores": self.cpu[name],
                "bandwidth_limit_bps": slice_.bandwidth_bps or 12e6,
                "prb_share": slice_.prb_share,
                "prb_used_dl_ratio": min(1.0, served / (slice_.prb_share * 30e6)),
            }
            if name == "urllc":
                values["response_p95_s"] = 2 * delay_s + 0.004
            kpis.extend(Kpi(until_s, entity, key, float(value)) for key, value in values.items())
        kpis.extend(Kpi(until_s, f"ue:phones.{n}", "cqi", 9.0) for n in range(1, 7))
        if self.measured:
            kpis.append(Kpi(until_s, "run", "host_cpu_ratio", 0.4 + 0.2 * float(self.random.random())))
            kpis.append(Kpi(until_s, "run", "clock_lag_s", 0.003))
        return Observation(until_s, tuple(kpis))

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class QueueBackend:
    """Opens a :class:`QueueNetwork`; ``measured`` plays the part of an emulation."""

    name = "queues"

    def __init__(self, probes: Sequence[Probe] = (), *, measured: bool = False) -> None:
        self.probes = tuple(probes)
        self.deterministic = not measured

    def open(self, topology: Topology, load: Load, *, seed: int) -> QueueNetwork:
        assert load.flows
        return QueueNetwork(topology, seed, self.probes, not self.deterministic)


PROBES = (
    Probe("link s1-s2 bandwidth_bps", "bit/s", 12e6, 11.93e6, True, "TCP, 1 s"),
    Probe("link s1-s2 delay_s", "s", 0.004, 0.00407, True, "median of 50 pings"),
    Probe("link s1-s3 loss_ratio", "1", 0.01, 0.0, False, "no netem; 1000 packets"),
)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder; ``slicing``, ``measured`` and ``seed`` choose its kind."""

    def make(*, slicing: bool = True, measured: bool = False, seed: int = 1, name: str = "small") -> Path:
        scenario = Scenario(
            name=name,
            description="Video phones, robots and sensors on one small network </script>.",
            topology=replace(TOPOLOGY, slicing=slicing),
            load=LOAD,
            duration_s=DURATION_S,
            seed=seed,
            fidelity="emulation" if measured else "flow",
            events=(
                TimedAction(time_s=30, action=Action("slice:embb", "demand_factor", 1.3), label="demand spike"),
                TimedAction(time_s=45, action=Action("link:s1-s2", "link_state", "down"), label="short path cut"),
                TimedAction(time_s=50, action=Action("slice:embb", "q_thresh_mbps", 1.0), label="SLA relaxed"),
            ),
        )
        scaler = ControllerSpec(
            name="scaler", controller="rule_based", params={"budget": {"cpu_millicores": 700}}, time_limit_s=10
        )
        fixed = ControllerSpec(
            name="fixed",
            controller="static",
            params={"values": {"slice:mmtc": {"bandwidth_mbps": 1}}},
            scope=("slice:mmtc",),
            time_limit_s=10,
        )
        store = RunStore.create(tmp_path / "runs", name)
        backend = QueueBackend(PROBES if measured else (), measured=measured)
        return run(scenario, backend, (scaler, fixed), store).path

    return make
