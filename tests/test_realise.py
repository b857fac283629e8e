"""Demand becomes sessions of single UEs: as many as the trace says, never silently fewer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topologies.model import App, Gnb, Link, Slice, Topology, Ue, Upf
from traces.model import Trace, TraceError, Unit
from twin.load import Activity, Load
from twin.realise import TrafficSpec, realise
from twin.streams import named_stream


def network(count: int = 10) -> Topology:
    return Topology(
        name="t",
        nodes=(
            Ue(name="phones", slice="embb", count=count),
            Gnb(name="gnb"),
            Upf(name="upf", slice="embb"),
            App(name="video", service="stream"),
            App(name="api", service="request"),
            App(name="sink", service="telemetry"),
        ),
        links=(Link(a="gnb", b="upf"), Link(a="upf", b="video")),
        slices=(Slice(name="embb", sst=1, prb_share=1),),
    )


def trace(values: list[float], step_s: float = 1.0, unit: Unit = "users") -> Trace:
    return Trace(np.arange(len(values), dtype=float) * step_s, np.array(values, dtype=float), unit)


def video(demand: Trace | None, **changes: object) -> TrafficSpec:
    fields: dict[str, object] = {"name": "v", "ues": "phones", "app": "video", "rate": 1e6, "trace": demand}
    return TrafficSpec(**{**fields, **changes})  # type: ignore[arg-type]


def active(load: Load, time_s: float) -> int:
    return sum(item.start_s <= time_s < item.stop_s for flow in load.flows for item in flow.activities)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 10), min_size=1, max_size=40),
    seed=st.integers(0, 2**32),
    min_session_s=st.sampled_from([0.0, 0.5, 2.5]),
)
def test_active_ues_follow_the_trace(values: list[float], seed: int, min_session_s: float) -> None:
    demand = trace(values)
    topology = network(40)
    load = realise([video(demand, min_session_s=min_session_s)], topology, duration_s=len(values), seed=seed)
    for index, value in enumerate(values):
        users = math.floor(value + 0.5)
        if min_session_s == 0:
            assert active(load, index) == active(load, index + 0.99) == users
        else:
            assert active(load, index) >= users
    for flow in load.flows:
        spans = [(item.start_s, item.stop_s) for item in flow.activities]
        assert spans
        assert all(0 <= start < stop <= len(values) for start, stop in spans)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        assert all(stop - start >= min(min_session_s, len(values) - start) - 1e-9 for start, stop in spans)


def test_first_come_first_leave_and_a_session_keeps_its_ue() -> None:
    load = realise([video(trace([1, 3, 2, 2]))], network(), duration_s=4, seed=1)
    spans = sorted((item.start_s, item.stop_s) for flow in load.flows for item in flow.activities)
    assert spans == [(0, 2), (1, 4), (1, 4)]
    assert all(item.rate == 1e6 for flow in load.flows for item in flow.activities)


def test_young_sessions_stay_until_they_are_old_enough() -> None:
    load = realise([video(trace([0, 1, 0, 0]), min_session_s=1.5)], network(), duration_s=4, seed=1)
    assert [flow.activities for flow in load.flows] == [(Activity(1, 2.5, 1e6),)]


def test_trace_shorter_than_the_run_holds_its_last_value() -> None:
    load = realise([video(trace([1, 2]))], network(), duration_s=10, seed=1)
    assert active(load, 9.9) == 2


def test_window() -> None:
    load = realise([video(trace([1, 2]), start_s=3, stop_s=5)], network(), duration_s=10, seed=1)
    assert [active(load, moment) for moment in (2.9, 3, 4, 4.9, 5)] == [0, 1, 2, 2, 0]


def test_no_trace_means_everybody() -> None:
    load = realise([video(None)], network(3), duration_s=10, seed=1)
    assert [flow.name for flow in load.flows] == ["v.phones.1", "v.phones.2", "v.phones.3"]
    assert {flow.activities for flow in load.flows} == {(Activity(0, 10, 1e6),)}
    assert {(flow.service, flow.direction, flow.slice) for flow in load.flows} == {("stream", "dl", "embb")}


def test_rate_traces_are_shared_by_the_group() -> None:
    load = realise([video(trace([4e6, 0, 2e6, 2e6], unit="bps"), rate=None)], network(4), duration_s=4, seed=1)
    assert {flow.activities for flow in load.flows} == {(Activity(0, 1, 1e6), Activity(2, 4, 0.5e6))}
    requests = video(trace([8], unit="requests_per_s"), rate=None, app="api")
    assert realise([requests], network(4), duration_s=4, seed=1).flows[0].activities == (Activity(0, 4, 2),)


def test_seed_decides_who_and_nothing_else_does() -> None:
    demand = trace([1, 3, 2, 5, 0, 4])
    other = video(trace([2]), name="other")
    first = realise([video(demand)], network(), duration_s=6, seed=1)
    assert realise([video(demand)], network(), duration_s=6, seed=1) == first
    beside = realise([other, video(demand)], network(), duration_s=6, seed=1)
    assert [flow for flow in beside.flows if flow.name.startswith("v.")] == list(first.flows)
    assert realise([video(demand)], network(), duration_s=6, seed=2) != first


def test_streams_differ_by_name_and_seed() -> None:
    draws = {(seed, name): named_stream(seed, name).random() for seed in (0, 1) for name in ("a", "b")}
    assert len(set(draws.values())) == 4
    assert named_stream(0, "a").random() == draws[0, "a"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (video(trace([3, 10.5])), r"traffic v: the trace asks for 11 users at 1 s, but UE group phones has 10"),
        (video(trace([10, 0, 10]), min_session_s=5), r"at 2 s all 10 UEs of group phones are in sessions"),
        (video(trace([1], unit="cdr")), "a stream needs a trace of users or bps, got cdr"),
        (video(trace([1], unit="bps"), app="api"), "a request needs a trace of users or requests_per_s, got bps"),
        (video(trace([1], unit="bps")), "the trace already gives the rate in bps; leave rate out, got 1e"),
        (video(trace([1]), rate=None), "traffic v: rate is missing: bit/s of one active UE"),
        (video(None, rate=2e10), "rate of one active UE must be at most 1e\\+10, got 2e\\+10"),
        (video(trace([5e11], unit="bps"), rate=None), "the trace asks 5e\\+10 of each UE, at most 1e\\+10 allowed"),
        (video(None, rate=-5.0), "rate of one active UE must be positive, got -5"),
        (video(None, ues="cars"), "no UE group named 'cars'; groups: phones"),
        (video(None, app="gnb"), "no application named 'gnb'; applications: video, api, sink"),
        (video(None, packet_bytes=9000), r"packet_bytes must be in \[48, 1400\], got 9000"),
        (video(None, start_s=5, stop_s=4), "start_s < stop_s <= 10"),
        (video(None, stop_s=11), r"got 0 and 11"),
        (video(None, min_session_s=-1), "min_session_s must be at least 0, got -1"),
    ],
)
def test_refusals(spec: TrafficSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        realise([spec], network(), duration_s=10, seed=0)


def test_too_many_users_is_a_trace_error() -> None:
    with pytest.raises(TraceError):
        realise([video(trace([11]))], network(), duration_s=10, seed=0)


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="traffic v: the name is used twice"):
        realise([video(None), video(None)], network(), duration_s=10, seed=0)
