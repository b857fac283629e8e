import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios import units
from scenarios.units import Quantity, UnitError

QUANTITIES = [value for value in vars(units).values() if isinstance(value, Quantity)]


@pytest.mark.parametrize(
    ("quantity", "given_", "value"),
    [
        (units.BANDWIDTH, 20, 20e6),
        (units.BANDWIDTH, "20Mbps", 20e6),
        (units.BANDWIDTH, "20 Mbit/s", 20e6),
        (units.BANDWIDTH, "1.5Gbps", 1.5e9),
        (units.BANDWIDTH, "500kbps", 5e5),
        (units.DELAY, "10ms", 0.01),
        (units.DELAY, "3ms", 0.003),
        (units.DELAY, "250us", 0.00025),
        (units.DELAY, 0, 0.0),
        (units.DURATION, 60, 60.0),
        (units.DURATION, "2min", 120.0),
        (units.LOSS, 1, 0.01),
        (units.LOSS, "0.5%", 0.005),
        (units.RATIO, 0.25, 0.25),
        (units.RATIO, "25%", 0.25),
        (units.CPU, "500m", 500.0),
        (units.CPU, "0.5cpu", 500.0),
        (units.MEMORY, "1GiB", 1024.0),
        (units.MEMORY, "128Mi", 128.0),
        (units.REQUEST_RATE, "5/s", 5.0),
        (units.REQUEST_RATE, "90/min", 1.5),
    ],
)
def test_what_people_write_becomes_si(quantity: Quantity, given_: object, value: float) -> None:
    assert quantity.parse(given_) == value


@pytest.mark.parametrize(
    ("quantity", "given_"),
    [
        (units.BANDWIDTH, "20MBps"),
        (units.BANDWIDTH, -1),
        (units.BANDWIDTH, True),
        (units.BANDWIDTH, None),
        (units.BANDWIDTH, [20]),
        (units.BANDWIDTH, "twenty"),
        (units.BANDWIDTH, "1e999Mbps"),
        (units.BANDWIDTH, math.nan),
        (units.BANDWIDTH, math.inf),
        (units.BANDWIDTH, 10**400),
        (units.BIT_RATE, 20),
        (units.DELAY, 10),
        (units.DELAY, "10 m s"),
        (units.DELAY, "10M"),
        (units.DELAY, "61s"),
        (units.DELAY, "-1ms"),
        (units.LOSS, 101),
        (units.RATIO, 1.1),
        (units.CPU, 500),
        (units.CPU, "5m"),
        (units.MEMORY, 128),
        (units.MEMORY, "1MiB"),
        (units.POSITIVE_DURATION, 0),
        (units.REQUEST_RATE, "5Mbps"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(quantity: Quantity, given_: object) -> None:
    with pytest.raises(UnitError, match=r"got .*, allowed ") as caught:
        quantity.parse(given_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
@given(share=st.floats(0, 1))
def test_what_is_written_reads_back_exactly(quantity: Quantity, share: float) -> None:
    high = quantity.high if math.isfinite(quantity.high) else 1e9
    value = quantity.low + share * (high - quantity.low)
    if quantity is units.LOSS:
        value = quantity.parse(100 * value)  # a loss comes from a percentage
    assert quantity.parse(quantity.format(value)) == value
