"""Supply, delay and response of a reservation: against their definitions and against simulation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.deadline.reservation import Reservation, smallest_budget_s
from twin.deadline.served import ReservedTask

periods_s = st.floats(0.005, 1.0)
shares = st.floats(0.02, 1.0)


def worst_supply_s(reservation: Reservation, interval_s: float) -> float:
    """The least over all starts of a schedule with one budget at its earliest and all later ones at their latest."""
    budget_s, period_s = reservation.budget_s, reservation.period_s
    chunks = [(0.0, budget_s)] + [(k * period_s + period_s - budget_s, (k + 1) * period_s) for k in range(1, 60)]

    def supplied(start_s: float) -> float:
        end_s = start_s + interval_s
        return sum(max(0.0, min(end, end_s) - max(begin, start_s)) for begin, end in chunks)

    return min(supplied(start_s) for start_s in [budget_s] + [begin for begin, _ in chunks[:3]] + [0.0])


@given(periods_s, shares, st.floats(0.0, 20.0))
def test_supply_is_that_of_the_worst_schedule(period_s: float, share: float, intervals: float) -> None:
    reservation = Reservation(share * period_s, period_s)
    interval_s = intervals * period_s
    assert reservation.supply_s(interval_s) == pytest.approx(worst_supply_s(reservation, interval_s), abs=1e-7)


@given(periods_s, shares, st.floats(0.0, 20.0))
def test_the_line_stays_below_the_supply_and_touches_it(period_s: float, share: float, intervals: float) -> None:
    reservation = Reservation(share * period_s, period_s)
    assert reservation.linear_supply_s(intervals * period_s) <= reservation.supply_s(intervals * period_s) + 1e-7
    touch_s = reservation.delta_s + 3 * period_s
    assert reservation.linear_supply_s(touch_s) == pytest.approx(3 * reservation.budget_s)
    assert reservation.supply_s(touch_s) == pytest.approx(3 * reservation.budget_s, abs=1e-7)


@given(periods_s, shares, st.floats(0.01, 10.0))
def test_time_to_supply_is_the_inverse(period_s: float, share: float, budgets: float) -> None:
    reservation = Reservation(share * period_s, period_s)
    demand_s = budgets * reservation.budget_s
    time_s = reservation.time_to_supply_s(demand_s)
    assert reservation.supply_s(time_s + 1e-9) >= demand_s - 1e-7
    assert reservation.supply_s(time_s - 1e-6) < demand_s


def test_bandwidth_and_delay_of_the_paper() -> None:
    reservation = Reservation(0.022, 0.1)
    assert reservation.alpha == pytest.approx(0.22)
    assert reservation.delta_s == pytest.approx(0.156)


@given(st.floats(0.3, 1.0), st.floats(0.05, 1.0), st.sampled_from([1.0, 1.5, 2.0, 3.7]))
def test_no_simulated_response_is_above_the_bound(share: float, load: float, ratio: float) -> None:
    reservation = Reservation(share * 0.05, 0.05)
    task_period_s = 0.05 * ratio
    execution_s = load * share * task_period_s
    bound_s = reservation.response_s(execution_s, task_period_s)
    responses_s = ReservedTask(task_period_s).step(3.0, reservation, execution_s).responses_s
    assert responses_s
    assert max(responses_s) <= bound_s + 1e-9


def test_a_task_above_the_bandwidth_has_no_bound() -> None:
    assert Reservation(0.01, 0.1).response_s(0.011, 0.1) == math.inf
    assert Reservation(0.01, 0.1).response_s(0.01, 0.1) == pytest.approx(0.19)


def test_the_smallest_budget_keeps_the_deadline_and_less_does_not() -> None:
    budget_s = smallest_budget_s(0.01, 0.1, 0.02, 0.05)
    assert budget_s is not None
    assert Reservation(budget_s, 0.02).response_s(0.01, 0.1) <= 0.05
    assert Reservation(budget_s - 1e-5, 0.02).response_s(0.01, 0.1) > 0.05
    assert smallest_budget_s(0.06, 0.1, 0.02, 0.05) is None


@pytest.mark.parametrize(("budget_s", "period_s"), [(0, 0.1), (0.2, 0.1), (0.1, 0), (0.1, math.inf), (math.nan, 1)])
def test_impossible_reservations_are_refused(budget_s: float, period_s: float) -> None:
    with pytest.raises(ValueError, match="reservation"):
        Reservation(budget_s, period_s)
