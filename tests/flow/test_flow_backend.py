"""The flow fidelity: the conformance suite, determinism, and physics that can be checked by hand."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance import BackendConformance, load, network
from topologies.model import App, Gnb, Link, Slice, Switch, Topology, Ue, Upf
from twin.backend import Backend, BackendError
from twin.flow import FlowBackend, FlowSession
from twin.flow import constants as c
from twin.knobs import KNOBS
from twin.load import Activity, Flow, Load
from twin.ran import nr
from twin.types import Action, Observation


class TestFlowConforms(BackendConformance):
    @classmethod
    def make_backend(cls) -> Backend:
        return FlowBackend()


def played(seed: int, *, steps: int = 8, topology: Topology | None = None) -> list[Observation]:
    with FlowBackend().open(topology or fading(), load(), seed=seed) as session:
        seen = []
        for count in range(1, steps + 1):
            if count == 4:
                session.apply([Action("link:s1-s2", "loss_ratio", 0.05), Action("slice:embb", "cpu_millicores", 120)])
            seen.append(session.advance(count * 0.7))
        return seen


def fading() -> Topology:
    """The conformance network with the channel model instead of a script."""
    plain = network()
    return replace(
        plain, nodes=tuple(replace(n, cqi_script=(), distance_m=300) if isinstance(n, Ue) else n for n in plain.nodes)
    )


def test_same_seed_same_bytes_other_seed_other_values() -> None:
    first, again, other = played(1), played(1), played(2)
    assert repr(first) == repr(again)
    assert repr(first) != repr(other)


def test_time_stands_still_without_advance() -> None:
    with FlowBackend().open(network(), load(), seed=1) as session:
        assert session.apply([Action("slice:embb", "prb_share", 0.5)])[0].time_s == 0
        session.advance(3)
        assert session.apply([Action("slice:embb", "prb_share", 0.6)])[0].time_s == 3
        with pytest.raises(ValueError, match="until_s must be later than 3 s, got 3"):
            session.advance(3)
    with pytest.raises(BackendError, match="closed"):
        session.advance(4)
    assert session.apply([Action("slice:embb", "prb_share", 0.6)])[0].reason == "the session is closed"


# ---- one lane: every limit by hand


def line(
    *,
    ues: int = 1,
    gnb: dict[str, Any] | None = None,
    link: dict[str, Any] | None = None,
    slice_: dict[str, Any] | None = None,
    service: str = "stream",
    app: dict[str, Any] | None = None,
    cqi: int = 15,
    stays: bool = False,
) -> Topology:
    """One slice, one gNB, one switch, nothing limited unless said so."""
    return Topology(
        name="line",
        nodes=(
            Ue(name="ue", slice="x", count=ues, cqi_script=((0.0, cqi),), always_attached=stays),
            Gnb(name="gnb", **({"work_ns_per_bit": 0.0} | (gnb or {}))),
            Switch(name="s1"),
            Upf(name="upf", slice="x"),
            App(name="app", service=service, **(app or {})),  # type: ignore[arg-type]
        ),
        links=(Link(a="gnb", b="s1", **(link or {})), Link(a="s1", b="upf"), Link(a="upf", b="app")),
        slices=(Slice(name="x", **({"sst": 1, "prb_share": 1.0} | (slice_ or {}))),),
    )


def streams(rates: list[float], *, service: str = "stream", packet_bytes: int = 1000, stop_s: float = 100.0) -> Load:
    return Load(
        duration_s=100.0,
        flows=tuple(
            Flow(
                name=f"f.{index}", ue=f"ue.{index}", slice="x", app="app", service=service,  # type: ignore[arg-type]
                direction="ul" if service == "telemetry" else "dl", packet_bytes=packet_bytes,
                activities=(Activity(0.0, stop_s, rate),),
            )
            for index, rate in enumerate(rates, start=1)
        ),
    )  # fmt: skip


def after(topology: Topology, demand: Load, seconds: float = 5.0, *actions: Action) -> tuple[FlowSession, Observation]:
    session = FlowBackend().open(topology, demand, seed=1)
    session.apply(actions)
    session.advance(seconds)
    return session, session.advance(seconds + 1)


def test_cpu_limit_is_work_per_bit() -> None:
    for millicores in (100.0, 300.0, 1000.0):
        topology = line(gnb={"work_ns_per_bit": 40.0}, slice_={"cpu_millicores": millicores})
        _, seen = after(topology, streams([60e6]))
        assert seen.value("slice:x", "throughput_dl_bps") == pytest.approx(millicores / 1000 / 40e-9, rel=1e-6)
        assert seen.value("slice:x", "cpu_used_millicores") == pytest.approx(millicores)
        assert seen.value("slice:x", "cpu_throttled_ratio") == 1
        assert seen.value("slice:x", "missed_slots_ratio") > 0


def test_small_packets_cost_more_than_their_bits() -> None:
    topology = line(gnb={"work_ns_per_bit": 1.0}, slice_={"cpu_millicores": 100.0})
    _, seen = after(topology, streams([60e6], packet_bytes=100))
    assert seen.value("slice:x", "throughput_dl_bps") == pytest.approx(0.1 / (c.GNB_PACKET_NS * 1e-9) * 800, rel=1e-6)


def test_uplink_and_downlink_share_the_cpu_but_not_the_prbs() -> None:
    both = line(ues=2, gnb={"work_ns_per_bit": 40.0}, slice_={"cpu_millicores": 400.0})
    both = replace(
        both, nodes=(*both.nodes, App(name="sink", service="telemetry")), links=(*both.links, Link(a="upf", b="sink"))
    )
    up = streams([20e6, 20e6], service="telemetry").flows[1]
    demand = Load(duration_s=100, flows=(streams([20e6]).flows[0], replace(up, app="sink")))
    _, seen = after(both, demand)
    down_bps, up_bps = (seen.value("slice:x", f"throughput_{way}_bps") for way in ("dl", "ul"))
    assert down_bps + up_bps == pytest.approx(10e6, rel=1e-6)
    assert down_bps == pytest.approx(up_bps, rel=1e-6)


@pytest.mark.parametrize(("share", "cqi"), [(1.0, 15), (0.5, 15), (0.5, 7)])
def test_prbs_limit_as_the_transport_block_size_says(share: float, cqi: int) -> None:
    topology = line(gnb={"prb_total": 20}, slice_={"prb_share": share}, cqi=cqi)
    _, seen = after(topology, streams([200e6]))
    expected = nr.rate_bps(cqi, int(20 * share))
    assert seen.value("slice:x", "throughput_dl_bps") == pytest.approx(expected, rel=0.01)
    assert seen.value("slice:x", "prb_used_dl_ratio") == pytest.approx(1)


def test_ues_get_equal_prbs_not_equal_rates() -> None:
    topology = line(ues=2, gnb={"prb_total": 20})
    session, seen = after(topology, streams([100e6, 100e6]), 5, Action("ue:ue.2", "cqi", 7))
    one, two = (seen.value(f"ue:ue.{index}", "throughput_dl_bps") for index in (1, 2))
    assert one / two == pytest.approx(nr.bits_per_slot(15, 10) / nr.bits_per_slot(7, 10), rel=0.02)
    session.apply([Action("ue:ue.2", "cqi", 0)])
    session.advance(7)
    seen = session.advance(8)
    assert seen.value("ue:ue.2", "throughput_dl_bps") == 0
    assert seen.value("ue:ue.2", "loss_dl_ratio") == 1
    assert seen.value("slice:x", "queue_bytes") >= topology.node("gnb").queue_bytes  # type: ignore[attr-defined]
    assert seen.value("ue:ue.1", "throughput_dl_bps") == pytest.approx(nr.rate_bps(15, 20), rel=0.02)


def test_transport_and_link_count_their_headers() -> None:
    header = (1000 + c.N3_BYTES + c.ETHERNET_BYTES) / 1000
    for topology in (line(slice_={"bandwidth_bps": 5e6}), line(link={"bandwidth_bps": 5e6})):
        _, seen = after(topology, streams([20e6]))
        assert seen.value("slice:x", "throughput_dl_bps") == pytest.approx(5e6 / header, rel=1e-6)
        queue_s = c.QUEUE_PACKETS * 1000 * header * 8 / 5e6
        assert queue_s < seen.value("slice:x", "delay_dl_p50_s") < queue_s + 0.006
        assert seen.value("slice:x", "loss_dl_ratio") == pytest.approx(1 - 5 / header / 20, abs=0.001)


def test_max_min_with_demand_limits() -> None:
    topology = line(ues=3, slice_={"bandwidth_bps": 9e6})
    _, seen = after(topology, streams([1e6, 20e6, 20e6]))
    rates = [seen.value(f"ue:ue.{index}", "throughput_dl_bps") for index in (1, 2, 3)]
    header = (1000 + c.N3_BYTES + c.ETHERNET_BYTES) / 1000
    assert rates[0] == pytest.approx(1e6, rel=1e-6)
    assert rates[1] == pytest.approx((9e6 / header - 1e6) / 2, rel=1e-6)
    assert rates[1] == pytest.approx(rates[2])


def test_delay_is_the_sum_of_the_links() -> None:
    _, seen = after(line(link={"delay_s": 0.02}), streams([1e6]))
    forwarding_s = 5 * c.FORWARD_S
    # half a slot of 1 ms, and little else at this load
    assert seen.value("slice:x", "delay_dl_p50_s") == pytest.approx(0.0205 + forwarding_s, abs=0.0002)
    assert seen.value("slice:x", "rtt_p50_s") == pytest.approx(2 * seen.value("slice:x", "delay_dl_p50_s"), abs=0.001)
    _, shaky = after(line(link={"delay_s": 0.02, "jitter_s": 0.01}), streams([1e6]))
    assert shaky.value("slice:x", "delay_dl_p99_s") > 0.029
    # two independent uniforms in [-j, j] differ by 2j/3 on average
    assert shaky.value("slice:x", "jitter_dl_s") == pytest.approx(0.01 * 2 / 3, rel=0.15)


def test_loss_is_binomial_around_the_declared_ratio() -> None:
    session, _ = after(line(link={"loss_ratio": 0.1}), streams([8e6]))
    losses = [session.advance(6 + count).value("slice:x", "loss_dl_ratio") for count in range(1, 31)]
    assert sum(losses) / len(losses) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 30_000))
    assert len(set(losses)) > 10


def test_a_backlog_builds_in_overload_and_drains_later() -> None:
    topology = line(gnb={"prb_total": 20, "queue_bytes": 20_000_000}, stays=True)
    session = FlowBackend().open(topology, streams([nr.rate_bps(15, 20) * 1.1], stop_s=10.0), seed=1)
    queues = [session.advance(count).value("slice:x", "queue_bytes") for count in range(1, 11)]
    assert all(before < after_ for before, after_ in itertools.pairwise(queues))
    assert queues[-1] == pytest.approx(nr.rate_bps(15, 20) * 0.1 * 10 / 8, rel=0.02)
    drained = session.advance(11)
    assert drained.value("slice:x", "queue_bytes") == 0
    assert drained.value("slice:x", "throughput_dl_bps") == pytest.approx(queues[-1] * 8, rel=1e-6)
    assert drained.get("slice:x", "loss_dl_ratio", -1) == 0


def test_everything_offered_is_delivered_dropped_or_waiting() -> None:
    topology = line(ues=2, gnb={"prb_total": 10}, slice_={"bandwidth_bps": 18e6}, link={"loss_ratio": 0.02})
    session = FlowBackend().open(topology, streams([12e6, 9e6], stop_s=4.3), seed=1)
    offered = delivered = dropped = 0.0
    for count in range(1, 9):
        seen = session.advance(count)
        offered += seen.get("slice:x", "offered_dl_bps", 0.0)
        got = seen.value("slice:x", "throughput_dl_bps")
        delivered += got
        loss = seen.get("slice:x", "loss_dl_ratio", 0.0)
        dropped += got * loss / (1 - loss)
    assert offered == pytest.approx(21e6 * 4.3)
    assert delivered + dropped == pytest.approx(offered, rel=1e-6)


def test_sessions_follow_the_flows() -> None:
    demand = Load(
        duration_s=100,
        flows=(replace(streams([1e6]).flows[0], activities=(Activity(1.0, 2.5, 1e6), Activity(3.0, 4.0, 2e6))),),
    )
    session = FlowBackend().open(line(), demand, seed=1)
    seen = [session.advance(count) for count in range(1, 6)]
    assert [s.value("slice:x", "attached_ues") for s in seen] == pytest.approx([0, 1, 0.5, 1, 0])
    assert [s.value("slice:x", "throughput_dl_bps") for s in seen] == pytest.approx([0, 1e6, 0.5e6, 2e6, 0])
    assert seen[1].value("slice:x", "attach_time_s") >= c.ATTACH_S
    assert [s.get("slice:x", "attach_time_s", 0) > 0 for s in seen] == [False, True, False, True, False]
    assert "cqi" not in {kpi.name for kpi in seen[0].kpis if kpi.entity == "ue:ue.1"}


# ---- requests


def test_requests_are_answered_within_the_cpu_limit() -> None:
    topology = line(service="request", app={"cpu_ms_per_request": 10.0, "cpu_millicores": 200.0})
    capacity = 0.2 / (0.01 + c.REQUEST_CPU_S)
    session, seen = after(topology, streams([5.0], service="request"), 20)
    assert seen.value("node:app", "cpu_used_millicores") == pytest.approx(5 * (10 + 1000 * c.REQUEST_CPU_S), rel=0.01)
    calm_s = seen.value("slice:x", "response_p50_s")
    session.apply([Action("slice:x", "demand_factor", 8.0)])
    for count in range(22, 40):
        seen = session.advance(count)
    answered = [session.advance(40 + count).value("node:app", "requests_per_s") for count in range(20)]
    assert sum(answered) / 20 == pytest.approx(capacity, rel=0.15)
    assert seen.value("node:app", "request_failures_per_s") > 5
    assert seen.value("slice:x", "response_p50_s") > 10 * calm_s
    assert seen.value("node:app", "cpu_throttled_ratio") == 1
    session.apply([Action("node:app", "replicas", 4)])
    session.advance(61)
    seen = session.advance(66)
    assert seen.value("node:app", "request_failures_per_s") < 1
    assert seen.value("slice:x", "response_p95_s") < 0.5


def test_a_dead_server_fails_requests() -> None:
    session, _ = after(line(service="request"), streams([50.0], service="request"))
    session.apply([Action("node:app", "node_state", "down")])
    seen = session.advance(10)
    assert seen.value("slice:x", "requests_per_s") == 0
    assert seen.value("slice:x", "request_failures_per_s") == pytest.approx(50, rel=0.3)
    assert not [kpi for kpi in seen.kpis if kpi.entity == "node:app"]
    assert seen.value("link:upf-app", "link_up") == 0


def test_too_little_memory_kills_a_node() -> None:
    session, _ = after(line(), streams([1e6]))
    session.apply([Action("node:upf", "memory_mib", 8)])
    assert session.advance(10).value("slice:x", "throughput_dl_bps") == 0
    session.apply([Action("node:upf", "memory_mib", 64)])
    assert session.advance(11).value("slice:x", "throughput_dl_bps") == pytest.approx(1e6)


# ---- slices


def crowded(*, slicing: bool) -> Observation:
    """20 Mbit/s of video for a link of 10 Mbit/s, of which 8 belong to the video slice."""
    plain = network(slicing=slicing)
    links = (replace(link, bandwidth_bps=10e6) if link.name == "s1-s2" else link for link in plain.links)
    slices = (replace(slice_, cpu_millicores=1000.0) for slice_ in plain.slices)
    session = FlowBackend().open(replace(plain, links=tuple(links), slices=tuple(slices)), load(), seed=1)
    session.apply([Action("slice:embb", "demand_factor", 5.0)])
    session.advance(5)
    return session.advance(6)


def test_slices_keep_delays_apart_and_one_pool_does_not() -> None:
    apart, together = crowded(slicing=True), crowded(slicing=False)
    assert apart.value("slice:embb", "delay_dl_p50_s") > 3 * apart.value("slice:urllc", "delay_dl_p50_s")
    assert together.value("slice:urllc", "delay_dl_p50_s") > 3 * apart.value("slice:urllc", "delay_dl_p50_s")
    embb_s, urllc_s = (together.value(f"slice:{name}", "delay_dl_p50_s") for name in ("embb", "urllc"))
    assert urllc_s == pytest.approx(embb_s, rel=0.1)


def test_without_slicing_there_is_nothing_of_a_slice_to_set() -> None:
    session = FlowBackend().open(network(slicing=False), load(), seed=1)
    for knob in ("cpu_millicores", "bandwidth_mbps", "prb_share"):
        (outcome,) = session.apply([Action("slice:embb", knob, 10 if knob != "prb_share" else 0.1)])
        assert not outcome.applied
        assert "slicing is off" in outcome.reason
    names = {kpi.name for kpi in session.advance(1).kpis if kpi.entity == "slice:embb"}
    assert not names & {"cpu_used_millicores", "cpu_limit_millicores", "bandwidth_limit_bps", "transport_queue_bytes"}


def test_one_pool_has_the_prbs_and_the_cpu_of_all() -> None:
    def embb_bps(*, slicing: bool, **limit: Any) -> float:
        plain = network(slicing=slicing)
        slices = tuple(
            replace(slice_, **({"bandwidth_bps": None, "cpu_millicores": None} | limit)) for slice_ in plain.slices
        )
        topology = replace(plain, slices=slices)
        session = FlowBackend().open(topology, load(), seed=1)
        session.apply([Action("slice:embb", "demand_factor", 10.0)])
        session.advance(3)
        return session.advance(4).value("slice:embb", "throughput_dl_bps")

    assert embb_bps(slicing=True, cpu_millicores=200.0) == pytest.approx(5e6, rel=1e-6)
    assert 9e6 < embb_bps(slicing=False, cpu_millicores=200.0) < 10e6
    assert embb_bps(slicing=True, prb_share=0.1) == pytest.approx(nr.rate_bps(15, 5) * 5.1 / 5, rel=0.05)
    assert embb_bps(slicing=False, prb_share=0.1) > 1.5 * embb_bps(slicing=True, prb_share=0.1)


def test_a_route_keeps_its_first_and_last_link() -> None:
    plain = network()
    more = replace(plain, links=(*plain.links, Link(a="gnb1", b="s3")))
    session = FlowBackend().open(more, load(), seed=1)
    (outcome,) = session.apply([Action("slice:embb", "path", "s3>s2")])
    assert "must use link gnb1-s1, got gnb1-s3" in outcome.reason


def test_jitter_never_exceeds_delay() -> None:
    with FlowBackend().open(network(), load(), seed=1) as session:
        name = f"link:{network().links[-1].name}"
        steps = [("delay_s", 0.02), ("jitter_s", 0.03), ("jitter_s", 0.01), ("delay_s", 0.005), ("delay_s", 0.01)]
        outcomes = session.apply([Action(name, knob, value) for knob, value in steps])
        assert [outcome.applied for outcome in outcomes] == [True, False, True, False, True]
        assert outcomes[1].reason == f"{name} jitter_s: jitter cannot exceed delay, got jitter 0.03 s of 0.02 s"


# ---- whatever happens


def actions() -> st.SearchStrategy[Action]:
    """Any knob on any entity of the conformance network, with values in and out of range."""
    topology = network()
    entities = [f"slice:{item.name}" for item in topology.slices] + [f"node:{node.name}" for node in topology.nodes]
    entities += [f"link:{item.name}" for item in topology.links] + ["ue:phones.1", "ue:robots.2", "run", "ue:ghost"]
    values = st.one_of(
        st.sampled_from([0, 1, 2, 3, 10, 50, 0.01, 0.5, 1.0, -1, float("nan"), float("inf"), True]),
        st.sampled_from(["up", "down", "attached", "detached", "s1>s2", "s1>s3>s2", "s9", ""]),
    )
    return st.builds(Action, st.sampled_from(entities), st.sampled_from([*KNOBS, "colour"]), values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(actions(), max_size=6), min_size=1, max_size=5), st.booleans())
def test_no_action_breaks_a_run(script: list[list[Action]], slicing: bool) -> None:
    with FlowBackend().open(network(slicing=slicing), load(), seed=3) as session:
        for count, chosen in enumerate(script, start=1):
            assert len(session.apply(chosen)) == len(chosen)
            seen = session.advance(count * 0.5)
            for kpi in seen.kpis:
                assert math.isfinite(kpi.value), kpi
                assert kpi.value >= 0, kpi
                assert kpi.value <= 1 + 1e-6 or not kpi.name.endswith("_ratio"), kpi
            for name in ("embb", "urllc"):
                limit = seen.get(f"slice:{name}", "cpu_limit_millicores", math.inf)
                assert seen.get(f"slice:{name}", "cpu_used_millicores", 0.0) <= limit * (1 + 1e-6)


_PLAYED = """
from tests.flow.test_flow_backend import played
import hashlib
print(hashlib.sha256(repr(played(1)).encode()).hexdigest())
"""


def test_hash_seed_does_not_matter() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _PLAYED], check=True, capture_output=True, text=True, timeout=60,
            cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": "."},
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1


# ---- what cannot be opened


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ue": "ue.7"}, "flow f.1: no UE ue.7; groups: ue"),
        ({"slice": "y"}, "flow f.1: UE ue.1 is in slice x, got slice y"),
        ({"app": "upf"}, "flow f.1: needs an application of service stream, got upf, which is none"),
        ({"service": "request"}, "needs an application of service request, got app of service stream"),
    ],
)
def test_load_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    demand = Load(duration_s=10, flows=(replace(streams([1e6]).flows[0], **change),))
    with pytest.raises(BackendError, match=message):
        FlowBackend().open(line(), demand, seed=1)


def test_unreachable_parts() -> None:
    topology = line()
    with pytest.raises(BackendError, match="no route from gnb to upf over switches"):
        FlowBackend().open(replace(topology, links=topology.links[1:]), streams([1e6]), seed=1)
    with pytest.raises(BackendError, match="no route from upf to app over switches"):
        FlowBackend().open(replace(topology, links=topology.links[:2]), streams([1e6]), seed=1)
    with pytest.raises(BackendError, match="slice x: needs exactly one UPF, got 0"):
        nodes = tuple(node for node in topology.nodes if node.name != "upf")
        FlowBackend().open(replace(topology, nodes=nodes, links=topology.links[:1]), streams([1e6]), seed=1)


def test_an_empty_network_runs() -> None:
    topology = Topology(name="empty", nodes=(Gnb(name="gnb"), Switch(name="s1")), links=(Link(a="gnb", b="s1"),))
    with FlowBackend().open(topology, Load(flows=(), duration_s=1), seed=1) as session:
        assert session.advance(1).value("link:gnb-s1", "link_throughput_bps") == 0


def test_a_hundred_ues_are_quick() -> None:
    started = time.process_time()
    session = FlowBackend().open(line(ues=100, slice_={"bandwidth_bps": 50e6}), streams([1e6] * 100), seed=1)
    for count in range(1, 6):
        session.advance(count)
    assert time.process_time() - started < 10
