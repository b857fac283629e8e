"""What counts as latency, and when a promise is broken."""

from __future__ import annotations

import math

import pytest

from topologies.model import Sla, Slice, Topology
from twin.load import Activity, Flow, Load
from twin.sla import SlaMonitor, latency_s
from twin.types import Action, Kpi, Observation


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"delay_dl_p95_s": 0.01, "delay_ul_p95_s": 0.02, "rtt_p95_s": 9.0}, 0.02),
        ({"rtt_p95_s": 0.05}, 0.025),
        ({"offered_dl_bps": 1e6, "rtt_p95_s": 0.05}, math.inf),
        ({"offered_dl_bps": 1e6, "delay_dl_p95_s": 0.01}, 0.01),
        ({"requests_per_s": 0.0, "request_failures_per_s": 3.0}, math.inf),
        ({"requests_per_s": 2.0, "request_failures_per_s": 3.0}, None),
        ({"active_ues": 0.0, "delay_dl_p95_s": 0.01}, None),
        ({}, None),
    ],
)
def test_latency(values: dict[str, float], expected: float | None) -> None:
    assert latency_s(values) == expected


def monitor(sla: Sla, *directions: str) -> SlaMonitor:
    topology = Topology(name="t", nodes=(), links=(), slices=(Slice(name="a", sst=1, prb_share=1.0, sla=sla),))
    flows = tuple(
        Flow(
            name=way,
            ue="u.1",
            slice="a",
            app="x",
            service="stream" if way == "dl" else "telemetry",
            direction=way,  # type: ignore[arg-type]
            packet_bytes=1000,
            activities=(Activity(0, 9, 1e6),),
        )
        for way in directions
    )
    return SlaMonitor(topology, Load(flows=flows, duration_s=9.0))


def derive(found: SlaMonitor, time_s: float, **values: float) -> dict[str, float]:
    kpis = tuple(Kpi(time_s, "slice:a", name, value) for name, value in values.items())
    return {kpi.name: kpi.value for kpi in found.derive(Observation(time_s, kpis))}


def test_qos_counts_the_directions_of_the_flows() -> None:
    values = {"active_ues": 2.0, "throughput_dl_bps": 8e6, "throughput_ul_bps": 2e6}
    assert derive(monitor(Sla(), "dl"), 1.0, **values) == {"qos_bps": 4e6}
    assert derive(monitor(Sla(), "ul"), 1.0, **values) == {"qos_bps": 1e6}
    assert derive(monitor(Sla(), "dl", "ul"), 1.0, **values) == {"qos_bps": 5e6}
    assert derive(monitor(Sla()), 1.0, **values) == {}


def test_beta_weighs_intervals_by_their_users() -> None:
    found = monitor(Sla(q_thresh_bps=1e6), "dl")
    assert derive(found, 1.0, active_ues=0.0) == {"q_thresh_bps": 1e6, "sla_violation_s": 0.0}
    assert derive(found, 2.0, active_ues=1.0, throughput_dl_bps=2e6)["qos_degradation_ratio"] == 0.0
    # Three users with exactly the threshold: degraded. 3 / (1 + 3)
    last = derive(found, 3.5, active_ues=3.0, throughput_dl_bps=3e6)
    assert last == {"qos_bps": 1e6, "q_thresh_bps": 1e6, "qos_degradation_ratio": 0.75, "sla_violation_s": 1.5}


def test_beta_against_its_threshold() -> None:
    found = monitor(Sla(q_thresh_bps=1e6, beta_thresh=0.5), "dl")
    derive(found, 1.0, active_ues=1.0, throughput_dl_bps=2e6)
    last = derive(found, 2.0, active_ues=1.0, throughput_dl_bps=1e6)
    assert (last["beta_thresh"], last["qos_degradation_to_thresh"]) == (0.5, 1.0)
    assert found.apply(Action("slice:a", "beta_thresh", 0.25), 2.0).applied
    later = derive(found, 3.0, active_ues=2.0, throughput_dl_bps=4e6)
    assert (later["beta_thresh"], later["qos_degradation_to_thresh"]) == (0.25, 1.0)


def test_a_new_threshold_counts_from_the_next_interval_on() -> None:
    found = monitor(Sla(latency_bound_s=0.05))
    assert derive(found, 1.0, delay_dl_p95_s=0.04)["sla_violation_s"] == 0.0
    assert found.apply(Action("slice:a", "latency_bound_s", 0.01), 1.0).applied
    assert derive(found, 2.0, delay_dl_p95_s=0.04)["sla_violation_s"] == 1.0
    assert derive(found, 3.0, delay_dl_p95_s=0.01)["sla_violation_s"] == 1.0
    assert found.sla("a").latency_bound_s == 0.01
