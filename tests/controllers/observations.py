"""A topology, observations made by hand, and a decision with its form checked."""

from __future__ import annotations

from typing import Any

from controllers.base import ControllerContext
from topologies.model import App, Gnb, Sla, Slice, Topology, Upf
from twin.knobs import refusal
from twin.types import Action, Kpi, Observation

TOPOLOGY = Topology(
    name="t",
    nodes=(Gnb(name="gnb1", work_ns_per_bit=120.0), Upf(name="upf1", slice="a"), App(name="app", service="request")),
    links=(),
    slices=(
        Slice(name="a", sst=1, prb_share=0.5, cpu_millicores=500, sla=Sla(q_thresh_bps=5e6)),
        Slice(name="b", sst=2, prb_share=0.3, cpu_millicores=500),
    ),
)


def context(*scope: str) -> ControllerContext:
    return ControllerContext(topology=TOPOLOGY, scope=scope or ("slice:a", "slice:b"), interval_s=5.0, seed=1)


def cpu(time_s: float, **slices: tuple[float, float]) -> Observation:
    kpis = []
    for name, (used, limit) in slices.items():
        kpis.append(Kpi(time_s, f"slice:{name}", "cpu_used_millicores", used))
        kpis.append(Kpi(time_s, f"slice:{name}", "cpu_limit_millicores", limit))
    return Observation(time_s, tuple(kpis))


def shown(controller: Any, *observations: Observation) -> list[Action]:
    for observation in observations:
        controller.observe(observation)
    actions = list(controller.act())
    assert all(refusal(action) is None for action in actions)
    return actions
