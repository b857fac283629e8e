import math

import pytest

from scenarios.assertions import AssertionFormatError, evaluate, parse_assertion, reader_of, statistic_of
from scenarios.model import Assertion
from twin.types import Kpi

ENTITIES = ["slice:embb", "slice:urllc", "ue:phones.1", "node:video", "link:s1-s2", "controller:rule_based"]


def parse(text: str) -> Assertion:
    return parse_assertion(text, entities=ENTITIES, duration_s=60.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "slice:urllc delay_dl_p95_s <= 20ms over last 20s",
            ("slice:urllc", "delay_dl_p95_s", "mean", "<=", 0.02, (40.0, 60.0)),
        ),
        ("max run clock_lag_s < 100ms", ("run", "clock_lag_s", "max", "<", 0.1, None)),
        (
            "mean slice:embb throughput_dl_bps >= 5Mbps over 10s..30s",
            ("slice:embb", "throughput_dl_bps", "mean", ">=", 5e6, (10.0, 30.0)),
        ),
        ("last slice:embb loss_dl_ratio<5%", ("slice:embb", "loss_dl_ratio", "last", "<", 0.05, None)),
        ("p95 node:video cpu_used_millicores > 0.5cpu", ("node:video", "cpu_used_millicores", "p95", ">", 500.0, None)),
        ("min ue:phones.1 cqi >= 7", ("ue:phones.1", "cqi", "min", ">=", 7.0, None)),
        ("controller:rule_based faults <= 0", ("controller:rule_based", "faults", "mean", "<=", 0.0, None)),
        ("max node:video memory_used_bytes < 64MiB", ("node:video", "memory_used_bytes", "max", "<", 2.0**26, None)),
    ],
)
def test_the_grammar(text: str, expected: tuple[object, ...]) -> None:
    found = parse(text)
    assert (found.entity, found.kpi, found.statistic, found.comparison, found.value, found.window_s) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got '', allowed [mean|min|max|last|p95] ENTITY KPI"),
        ("slice:embb", "got 'slice:embb', allowed "),
        ("median slice:embb qos_bps > 1Mbps", "no statistic named median"),
        ("slice:embb qos_bps == 1Mbps", "got comparison ==, allowed <, <=, >, >="),
        ("slice:embb qos > 1Mbps", "no KPI named qos"),
        ("slice:mtc qos_bps > 1Mbps", "no entity named slice:mtc"),
        ("node:video qos_bps > 1Mbps", "KPI qos_bps belongs to slice, got node:video"),
        ("slice:embb qos_bps > 1ms", "value of qos_bps: got '1ms', allowed a number (bit/s)"),
        ("slice:embb qos_bps > 1Mbps over last 90s", "window: over last 90s: allowed more than 0 and at most 60 s"),
        ("slice:embb qos_bps > 1Mbps over 30s..10s", "window: over 30s..10s: allowed FROM < TO within 0..60 s"),
        ("slice:embb qos_bps > 1Mbps over last 5Mbps", "window: got '5Mbps', allowed a number (seconds)"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(AssertionFormatError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_and_windows_are_evaluated_on_the_right_samples() -> None:
    kpis = [Kpi(float(second), "slice:embb", "qos_bps", second * 1e6) for second in range(1, 61)]
    texts = [
        ("mean slice:embb qos_bps >= 30.5Mbps", True, 30.5e6),
        ("mean slice:embb qos_bps > 30.5Mbps", False, 30.5e6),
        ("min slice:embb qos_bps >= 41Mbps over last 20s", True, 41e6),
        ("max slice:embb qos_bps <= 30Mbps over 10s..30s", True, 30e6),
        ("min slice:embb qos_bps <= 11Mbps over 10s..30s", True, 11e6),
        ("last slice:embb qos_bps < 60Mbps", False, 60e6),
        ("p95 slice:embb qos_bps < 57.06Mbps", True, 57.05e6),
    ]
    results = evaluate([parse(text) for text, _, _ in texts], reader_of(kpis))
    assert [(result.text, result.passed, result.measured) for result in results] == texts


def test_no_samples_and_samples_that_are_no_numbers_fail() -> None:
    kpis = [Kpi(1.0, "slice:embb", "qos_bps", math.nan)]
    for result in evaluate([parse("slice:embb qos_bps >= 0"), parse("slice:urllc qos_bps < 1")], reader_of(kpis)):
        assert not result.passed
        assert result.samples == 0


def test_p95_is_linear_between_ranks() -> None:
    assert statistic_of([3.0, 1.0, 2.0], "p95") == pytest.approx(2.9)
    assert statistic_of([5.0], "p95") == 5.0
