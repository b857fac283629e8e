"""A stream service that moves to a partition and back while users watch."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from benchmarks.offloading import PACKET_BYTES, counters, network, second, watching
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.types import Action

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host", "guest_image")]
USERS, RATE_BPS = 2, 1.2e6
VIDEO, SLICE = "node:video", "slice:embb"


def move(session: EmulationSession, target: str) -> None:
    (outcome,) = session.apply([Action(VIDEO, "placement", target)])
    assert outcome.applied, outcome.reason
    assert 0 < outcome.lag_s < 2


def refused(session: EmulationSession, entity: str, knob: str, value: str) -> str:
    (outcome,) = session.apply([Action(entity, knob, value)])
    assert not outcome.applied
    return outcome.reason


def servers(session: EmulationSession) -> dict[str, int]:
    """Flows that each stream server has."""
    found = {spec.node: stats for spec, stats in session._network.stats() if spec.module == "app_stream"}
    return {name: len(stats["flows"]) for name, stats in (found | dict(session._network.guest_streams())).items()}


def test_users_lose_nothing_when_their_stream_moves(tmp_path: Path) -> None:
    backend = EmulationBackend(run_id=f"place-{uuid.uuid4().hex[:8]}", folder=tmp_path, probes=False)
    with backend.open(network(USERS), watching(USERS, RATE_BPS), seed=1) as session:
        for _ in range(3):
            plain = second(session)
        assert 0 < plain.value(SLICE, "stream_gap_s") < 1
        assert servers(session) == {"video": USERS, "edge1": 0}
        for target, other in (("edge1", "video"), ("video", "edge1"), ("edge1", "video")):
            move(session, target)
            for _ in range(2):
                seen = second(session)
                assert seen.get(SLICE, "loss_dl_ratio", 1.0) == 0
                assert seen.value(SLICE, "throughput_dl_bps") == pytest.approx(USERS * RATE_BPS, rel=0.4)
                assert seen.value(SLICE, "offered_dl_bps") == pytest.approx(USERS * RATE_BPS, rel=0.4)
                assert seen.value("ue:phones.1", "stream_gap_s") < 1
            assert servers(session) == {target: USERS, other: 0}
        found = counters(session)
        assert found["lost"] == 0
        assert found["received"] <= found["sent"]
        # what users change is heard by who serves now: the container has nothing to send any more
        (outcome,) = session.apply([Action(SLICE, "demand_factor", 0.5)])
        assert outcome.applied
        second(session)
        half = second(session)
        assert half.value(SLICE, "throughput_dl_bps") == pytest.approx(USERS * RATE_BPS / 2, rel=0.4)
        assert half.value(SLICE, "offered_dl_bps") < USERS * RATE_BPS * 0.8
        assert half.value(SLICE, "stream_gap_s") >= PACKET_BYTES * 8 / (RATE_BPS / 2)
        # suspended with the service in it: nothing comes; restored: it goes on
        session.apply([Action("node:edge1", "partition_state", "suspended")])
        second(session)
        assert second(session).value(SLICE, "throughput_dl_bps") == 0
        assert "is SUSPENDED" in refused(session, VIDEO, "placement", "video")
        session.apply([Action("node:edge1", "partition_state", "deployed")])
        gap = second(session)
        assert gap.value(SLICE, "stream_gap_s") > 1
        second(session)
        assert second(session).value(SLICE, "throughput_dl_bps") > 0
        # refusals
        assert "runs the service of video" in refused(session, "node:edge1", "partition_state", "ready")
        assert "runs the service of video" in refused(session, "node:edge1", "node_state", "down")
        assert "(video, edge1), got upf" in refused(session, VIDEO, "placement", "upf")
        assert "only applications with service stream" in refused(session, "node:edge1", "placement", "video")
        # an attack and its end
        for kind in ("network", "cpu", "none"):
            (outcome,) = session.apply([Action("node:edge1", "attack", kind)])
            assert outcome.applied, outcome.reason
        assert "of kind partition" in refused(session, VIDEO, "attack", "cpu")
        # its guest ends: the container takes over, and users are served again
        session._network.guests.set_state("edge1", "ready")  # type: ignore[union-attr]
        second(session)
        second(session)
        assert second(session).value(SLICE, "throughput_dl_bps") > 0
        assert servers(session) == {"video": USERS}
        assert "is not deployed" in refused(session, VIDEO, "placement", "edge1")
