"""Round-robin shares PRBs, proportional-fair shares time, neither wastes nor invents any."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.ran.scheduler import Demand, ProportionalFair, RoundRobin, make_scheduler

demands = st.lists(st.tuples(st.integers(0, 200), st.floats(1, 2000)), max_size=12).map(
    lambda rows: [Demand(f"ue.{index}", need, bits) for index, (need, bits) in enumerate(rows)]
)


@given(demands=demands, prbs=st.integers(0, 273), name=st.sampled_from(["rr", "pf"]))
def test_work_conserving_and_never_too_much(demands: list[Demand], prbs: int, name: str) -> None:
    granted = make_scheduler(name).allocate(prbs, demands, 0)
    needs = {demand.ue: demand.prbs_needed for demand in demands}
    assert all(0 < share <= needs[ue] for ue, share in granted.items())
    assert sum(granted.values()) == min(prbs, sum(needs.values()))


def test_round_robin_gives_equal_prbs_and_turns_the_rest() -> None:
    scheduler = RoundRobin()
    wants = [Demand(f"ue.{index}", 1000, 100.0) for index in range(3)]
    total: Counter[object] = Counter()
    for slot in range(300):
        total.update(scheduler.allocate(10, wants, slot))
    assert max(total.values()) - min(total.values()) <= 1


def test_round_robin_serves_all_even_when_there_are_fewer_prbs_than_ues() -> None:
    scheduler = RoundRobin()
    wants = [Demand(f"ue.{index}", 5, 100.0) for index in range(8)]
    total: Counter[object] = Counter()
    for slot in range(80):
        total.update(scheduler.allocate(3, wants, slot))
    assert set(total.values()) == {30}


def test_round_robin_is_max_min_under_small_needs() -> None:
    wants = [Demand("small", 2, 1.0), Demand("big", 50, 1.0), Demand("huge", 500, 1.0)]
    assert RoundRobin().allocate(42, wants, 0) == {"small": 2, "big": 20, "huge": 20}


def test_proportional_fair_gives_equal_time_to_unequal_channels() -> None:
    scheduler = ProportionalFair()
    rates = {"near": 800.0, "far": 200.0}
    slots: Counter[str] = Counter()
    bits: Counter[str] = Counter()
    for slot in range(5000):
        granted = scheduler.allocate(50, [Demand(ue, 1000, rate) for ue, rate in rates.items()], slot)
        for ue, rate in rates.items():
            if ue in granted:
                served = int(granted[ue] * rate)
                scheduler.served(ue, served, slot)
                slots[ue] += 1
                bits[ue] += served
    assert slots["near"] / slots["far"] == pytest.approx(1, abs=0.05)
    assert bits["near"] / bits["far"] == pytest.approx(4, rel=0.05)


def test_proportional_fair_rides_the_peaks() -> None:
    """Two UEs whose channels alternate in antiphase get more than with equal turns."""
    scheduler = ProportionalFair()
    got = 0.0
    for slot in range(2000):
        up = (slot // 10) % 2 == 0
        rates = {"a": 800.0 if up else 200.0, "b": 200.0 if up else 800.0}
        for ue, prbs in scheduler.allocate(10, [Demand(ue, 1000, rate) for ue, rate in rates.items()], slot).items():
            scheduler.served(ue, int(prbs * rates[str(ue)]), slot)
            got += prbs * rates[str(ue)]
    assert got / (2000 * 10) > 650  # equal turns: 500


def test_newcomer_is_served_at_once_and_forgotten_when_gone() -> None:
    scheduler = ProportionalFair()
    for slot in range(100):
        scheduler.served("old", 100_000, slot)
    assert scheduler.allocate(10, [Demand("old", 100, 500.0), Demand("new", 100, 100.0)], 100) == {"new": 10}
    scheduler.forget("old")
    assert scheduler.average_bits("old", 100) == 0


def test_unknown_scheduler_is_named() -> None:
    with pytest.raises(ValueError, match="one of pf, rr, got 'edf'"):
        make_scheduler("edf")
