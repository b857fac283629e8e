"""Batched delays, PRB and CPU limits against the scalar flow model, whose queues run until they stand still."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conformance import load, network
from topologies.model import Topology
from twin.flow import FlowBackend, fluid, gnb
from twin.flow import constants as c
from twin.flow import delays as flow_delays
from twin.flow.batched import Array, BatchedFlows
from twin.flow.batched_delay import delays
from twin.flow.fluid import Fluid
from twin.flow.maxmin import max_min
from twin.flow.network import Network
from twin.flow.queueing import draw_waits, md1_wait_s, mean_wait_s
from twin.types import Action

DEVICES = (None, "numpy", "cpu")


def narrow(bandwidth_bps: float, link_bps: float) -> Topology:
    """The conformance network with both streams' slice and the link between two switches made narrow."""
    plain = network()
    links = tuple(
        replace(link, bandwidth_bps=link_bps) if {link.a, link.b} == {"s1", "s2"} else link for link in plain.links
    )
    slices = tuple(replace(one, bandwidth_bps=bandwidth_bps) if one.name == "embb" else one for one in plain.slices)
    return replace(plain, links=links, slices=slices)


@pytest.mark.parametrize(
    ("bandwidth_bps", "link_bps"), [(8e6, 20e6), (8e6, 5e6), (3e6, 20e6)], ids=["free", "link full", "slice full"]
)
def test_delays_of_the_scalar_model(monkeypatch: pytest.MonkeyPatch, bandwidth_bps: float, link_bps: float) -> None:
    def no_gnb(*of: Any) -> flow_delays.Queues:
        found = gnb_queues(*of)
        return replace(found, met=np.zeros_like(found.met))

    gnb_queues = flow_delays.gnb_queues
    monkeypatch.setattr(flow_delays, "gnb_queues", no_gnb)
    net = Network(narrow(bandwidth_bps, link_bps), load(), 1)
    rng = np.random.default_rng(1)
    attached = np.ones(len(net.ue_names), dtype=bool)
    cqi = np.full(len(net.ue_names), 15)
    # Streams down only: they cross the wired part first, with what they offer.
    streams = net.lane_down & (net.lane_slice == 0)
    offered = np.array([np.where(streams, each, 0.0) for each in (1e5, 1.2e6, 2.2e6, 4e6)])
    offered[3, np.flatnonzero(streams)[0]] = 1e6
    allocations = np.zeros((len(offered), len(net.lanes)), dtype=np.int64)
    by_device = [
        delays(
            BatchedFlows.from_matrix(net.wired.usage, net.wired.capacity, np.zeros(len(net.lanes)), device=device),
            allocations,
            packet_bits=net.lane_bits,
            way_delay_s=net.way.delay_s,
            token_bucket=[name[0] == "transport" for name in net.wired.names],
            demand_bps=offered,
        )
        for device in DEVICES
    ]
    for found in by_device[1:]:
        np.testing.assert_allclose(found.delay_s, by_device[0].delay_s, rtol=1e-9)
    found = by_device[0]
    draws = 5_000
    for row, demand in enumerate(offered):
        state = Fluid(net)
        for number in range(150):
            step = state.step(number * 0.1, 0.1, demand, attached, cqi, rng)
        np.testing.assert_allclose(found.load[row], step.row_load, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.queue_s[row], step.wired_delay_s[1], rtol=1e-6, atol=1e-12)
        everyone = np.ones((1, len(net.lanes)), dtype=bool)
        drawn = flow_delays.draw_delays(net, [step], everyone, [draws], rng).delay_s.reshape(-1, draws)
        expected = drawn.mean(axis=1) - step.work_s - c.SLOT_S / 2  # the gNB's part is not wired
        assert (np.abs(found.delay_s[row] - expected) <= 5 * drawn.std(axis=1) / draws**0.5 + 1e-9).all()
    assert found.queue_s.any() == (bandwidth_bps < 8e6 or link_bps < 8e6)


def test_a_full_link_by_hand() -> None:
    # 3 Mbit/s into 1 Mbit/s: 50 packets of 8000 bits stand in the queue, 0.4 s, and one is sent in 8 ms.
    model = BatchedFlows([[[0], [1]]], [1e6, 4e6], [3e6])
    found = delays(model, [[0], [1]], packet_bits=8000.0, way_delay_s=0.001)
    assert found.load.tolist() == [[1.0, 0.0], [0.0, 0.75]]
    assert found.queue_s[:, 0].tolist() == pytest.approx([0.4, 0.0])
    wait_s = md1_wait_s(0.75, 0.002)
    assert found.delay_s[0, 0] == pytest.approx(0.001 + 0.4 + 0.008)
    assert found.delay_s[1, 0] == pytest.approx(0.001 + 0.002 + mean_wait_s(0.75, wait_s, c.QUEUE_PACKETS * 0.002))


def test_what_does_not_get_through_has_no_delay() -> None:
    model = BatchedFlows([[[0]], [[1]], [[]]], [0.0, 1e6], [1e6, 0.0, 1e6])
    found = delays(model, [[0, 0, 0]], packet_bits=8000.0, way_delay_s=[0.1, 0.2, 0.3])
    assert found.delay_s.tolist() == [[np.inf, pytest.approx(0.208), pytest.approx(0.3)]]
    assert found.load.tolist() == [[1.0, 0.0]]


def test_tensors_stay_tensors() -> None:
    import torch

    rng = np.random.default_rng(1)
    paths = [[[0, 1], [2]], [[1, 2], [0]], [[0, 1, 2]]]
    usage = [[rng.uniform(1, 2, len(path)).tolist() for path in choices] for choices in paths]
    plain, tensors = (
        BatchedFlows(paths, [3e6, 2e6, 4e6], [1e6, 2e6, 3e6], usage=usage, device=device) for device in (None, "cpu")
    )
    allocations = rng.integers(0, plain.path_counts, (40, 3))
    expected = delays(plain, allocations, packet_bits=[8e3, 4e3, 1e4])
    found = delays(tensors, torch.from_numpy(allocations), packet_bits=[8e3, 4e3, 1e4])
    for name in ("delay_s", "queue_s", "load"):
        assert torch.is_tensor(getattr(found, name))
        np.testing.assert_allclose(getattr(found, name).numpy(), getattr(expected, name), rtol=1e-9)
    assert expected.queue_s.any()


@pytest.mark.parametrize("load_", [0.0, 0.3, 0.9, 1.0])
def test_the_mean_of_clipped_draws(load_: float) -> None:
    rng = np.random.default_rng(3)
    for most_s in (0.0, 0.5, 3.0, 100.0):
        drawn = draw_waits(rng, (200_000,), load_, 1.0, most_s)
        assert mean_wait_s(load_, 1.0, most_s) == pytest.approx(
            drawn.mean(), abs=5 * drawn.std() / 200_000**0.5 + 1e-12
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"packet_bits": 0.0}, "packet_bits: must be finite and above 0"),
        ({"packet_bits": [8e3], "way_delay_s": [-1.0]}, "way_delay_s: must be finite and not negative"),
        ({"packet_bits": float("nan")}, "packet_bits: must be finite and above 0"),
    ],
)
def test_arguments_that_do_not_fit(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delays(BatchedFlows([[[0]]], [1e6], [1e6]), [[0]], **more)


# ---- PRB and CPU limits: every problem that the scalar model solves on the way

Problem = tuple[Array, Array, Array]


def solved(monkeypatch: pytest.MonkeyPatch, *actions: Action) -> list[tuple[Problem, Array]]:
    """Usages, capacities, demands and rates of a run with these actions."""
    seen: list[tuple[Problem, Array]] = []

    def recorded(usage: Array, capacity: Array, demand: Array) -> Any:
        rates, limit = max_min(usage, capacity, demand)
        seen.append(((usage.copy(), capacity.copy(), demand.copy()), rates))
        return rates, limit

    for module in (fluid, gnb):
        monkeypatch.setattr(module, "max_min", recorded)
    with FlowBackend().open(network(), load(), seed=1) as session:
        session.advance(0.2)
        session.apply(actions)
        session.advance(0.6)
    return seen


def test_prb_cpu_and_bandwidth_limits_of_the_scalar_model(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = False
    for actions in (
        [Action("slice:embb", "prb_share", 0.05)],
        [Action("slice:embb", "prb_share", 0.02), Action("slice:urllc", "prb_share", 0.01)],
        [Action("slice:embb", "cpu_millicores", 15.0)],
        [Action("slice:embb", "cpu_millicores", 40.0), Action("ue:phones.1", "cqi", 4)],
        [Action("slice:embb", "bandwidth_mbps", 1.0), Action("slice:urllc", "cpu_millicores", 5.0)],
    ):
        seen = solved(monkeypatch, *actions)
        assert len(seen) > 12
        for (usage, capacity, demand), rates in seen[-6:]:
            for device in DEVICES:
                model = BatchedFlows.from_matrix(usage, capacity, demand, device=device)
                found = model.rates(np.zeros((1, demand.size), dtype=int))[0]
                np.testing.assert_allclose(found, rates, rtol=1e-9, atol=1e-9)
            limited = limited or bool((rates < demand * 0.99).any())
    assert limited


def test_cpu_limits_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    last: dict[float, tuple[Problem, Array]] = {}
    for millicores in (10.0, 20.0, 50.0, 100.0):
        seen = solved(monkeypatch, Action("slice:embb", "cpu_millicores", millicores))
        # The gNB's problem has a row of PRBs per pool and direction, and a row of CPU per pool.
        last[millicores] = next(one for one in reversed(seen) if one[0][1].size >= 6 and one[0][1][0] < 100)
    (usage, _, _), _ = last[10.0]
    assert all((problem[0] == usage).all() for problem, _ in last.values())
    model = BatchedFlows.from_matrix(usage, last[10.0][0][1], np.zeros(usage.shape[1]))
    found = model.rates(
        np.zeros((len(last), usage.shape[1]), dtype=int),
        demand_bps=np.array([problem[2] for problem, _ in last.values()]),
        capacity_bps=np.array([problem[1] for problem, _ in last.values()]),
    )
    np.testing.assert_allclose(found, np.array([rates for _, rates in last.values()]), rtol=1e-9, atol=1e-12)
    assert found[0].sum() < found[-1].sum()
