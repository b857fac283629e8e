"""Stream services that move, and attacks, in the flow model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.offloading import PACKET_BYTES, network, watching
from topologies.model import Partition, PeriodicTask, Topology
from twin.backend import Session
from twin.flow import FlowBackend
from twin.flow.session import FlowSession
from twin.partitions import move_refusal
from twin.types import Action

RATE_BPS = 1.2e6
SPACING_S = PACKET_BYTES * 8 / RATE_BPS
TASK = PeriodicTask(period_s=0.04, work_s=0.005)


def opened() -> FlowSession:
    """Two phones that watch; the partition has a task, and its link a delay of its own."""
    base = network(2)
    nodes = tuple(
        replace(node, critical=False, tasks=(TASK,)) if isinstance(node, Partition) else node for node in base.nodes
    )
    links = tuple(replace(link, delay_s=0.02) if link.b == "edge1" else link for link in base.links)
    topology: Topology = replace(base, nodes=nodes, links=links)
    return FlowBackend().open(topology, watching(2, RATE_BPS), seed=1)


def reason(session: Session, entity: str, knob: str, value: str) -> str:
    (outcome,) = session.apply([Action(entity, knob, value)])
    return "" if outcome.applied else outcome.reason


def test_the_server_brings_its_delay_and_processor() -> None:
    with opened() as session:
        there = session.advance(2.0)
        assert reason(session, "node:video", "placement", "edge1") == ""
        away = session.advance(4.0)
        assert reason(session, "node:video", "placement", "video") == ""
        back = session.advance(6.0)
    delay = ("slice:embb", "delay_dl_p50_s")
    assert away.value(*delay) - there.value(*delay) == pytest.approx(0.02, abs=0.004)
    assert back.value(*delay) == pytest.approx(there.value(*delay), abs=0.002)
    for seen in (there, away, back):
        assert seen.value("slice:embb", "throughput_dl_bps") == pytest.approx(2 * RATE_BPS, rel=0.01)
    used = ("node:edge1", "cpu_used_millicores")
    assert away.value(*used) > there.value(*used) + 10
    assert away.value("node:video", "cpu_used_millicores") < there.value("node:video", "cpu_used_millicores")


def test_gaps_are_spacing_and_silence() -> None:
    with opened() as session:
        session.advance(1.0)
        plain = session.advance(2.0)
        assert plain.value("ue:phones.1", "stream_gap_s") == pytest.approx(SPACING_S, rel=0.05)
        session.apply([Action("link:gnb1-s1", "link_state", "down")])
        silent = session.advance(3.5)
        assert ("slice:embb", "stream_gap_s") not in {(kpi.entity, kpi.name) for kpi in silent.kpis}
        session.apply([Action("link:gnb1-s1", "link_state", "up")])
        assert session.advance(5.0).value("slice:embb", "stream_gap_s") == pytest.approx(1.5 + SPACING_S, abs=0.3)
        assert session.advance(6.0).value("slice:embb", "stream_gap_s") == pytest.approx(SPACING_S, rel=0.05)


def test_what_is_refused_changes_nothing() -> None:
    with opened() as session:
        session.advance(1.0)
        assert "(video, edge1), got upf" in reason(session, "node:video", "placement", "upf")
        assert "of kind partition" in reason(session, "node:video", "attack", "cpu")
        assert reason(session, "node:video", "placement", "edge1") == ""
        assert "runs the service of video" in reason(session, "node:edge1", "partition_state", "ready")
        assert "runs the service of video" in reason(session, "node:edge1", "node_state", "down")
        assert reason(session, "node:video", "placement", "video") == ""
        assert reason(session, "node:edge1", "partition_state", "ready") == ""
        assert "is not deployed" in reason(session, "node:video", "placement", "edge1")
        assert session.advance(2.0).value("slice:embb", "throughput_dl_bps") > 0
        assert "is READY; only a DEPLOYED one" in reason(session, "node:edge1", "attack", "cpu")


def test_a_partition_that_the_users_cannot_reach_is_refused() -> None:
    base = network(2)
    apart = replace(base, nodes=(*base.nodes, Partition(name="edge2", vnf="stream")))
    assert move_refusal(apart, "video", "edge1", deployed=True) is None
    with FlowBackend().open(apart, watching(2, RATE_BPS), seed=1) as session:
        said = reason(session, "node:video", "placement", "edge2")
        assert said == "node:video placement: no path from upf, the UPF of its users, to partition edge2"
        session.advance(1.0)
        assert session.advance(2.0).value("slice:embb", "throughput_dl_bps") == pytest.approx(2 * RATE_BPS, rel=0.01)


def test_an_attack_takes_half_of_its_guest_and_ends() -> None:
    with opened() as session:
        plain = session.advance(2.0)
        assert reason(session, "node:edge1", "attack", "cpu") == ""
        hit = session.advance(4.0)
        assert reason(session, "node:edge1", "attack", "none") == ""
        over = session.advance(6.0)
    response = ("task:edge1.1", "task_response_max_s")
    assert hit.value(*response) >= 1.5 * plain.value(*response)
    assert over.value(*response) == pytest.approx(plain.value(*response), rel=0.05)
    used = ("node:edge1", "cpu_used_millicores")
    assert plain.value(*used) < 300 and hit.value(*used) == pytest.approx(1000, rel=0.05)
