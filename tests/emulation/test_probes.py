"""Probes must pass what is delivered and fail, by name, what is not."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.namespaces import Namespace, measures, namespaces, skip_when_busy
from twin.emulation import probes
from twin.emulation.cgroups import Cgroup, CgroupStats
from twin.emulation.impairment import End, LinkHandle, LinkSpec, close_links, make_links
from twin.emulation.probes import CpuDeclaration, LinkDeclaration, loss_bounds, probe_cpu_limits, probe_links
from twin.journal import Journal

needs_host = pytest.mark.usefixtures("emulation_host")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(f"probes-{os.getpid()}", folder=tmp_path) as made:
        yield made


@pytest.fixture
def pair(emulation_host: None) -> Iterator[list[Namespace]]:  # noqa: ARG001
    with namespaces(2) as made:
        yield made


def made(pair: list[Namespace], journal: Journal, *wanted: dict[str, Any]) -> list[LinkHandle]:
    specs = [
        LinkSpec(a=End(pair[0].pid, f"a{number}"), b=End(pair[1].pid, f"b{number}"), seed=number, **values)
        for number, values in enumerate(wanted)
    ]
    return make_links(specs, journal=journal, run_id=journal.run_id)


def declared(link: LinkHandle, **values: Any) -> LinkDeclaration:
    return LinkDeclaration(name=link.name, a=link.spec.a, b=link.spec.b, **values)


@pytest.mark.emulation
@measures
def test_links_that_deliver_pass_in_parallel_and_quickly(pair: list[Namespace], journal: Journal) -> None:
    wanted: list[dict[str, Any]] = [
        {"bandwidth_bps": 20e6, "delay_s": 0.01, "loss_ratio": 0.01},
        {"bandwidth_bps": 10e6, "delay_s": 0.005},
        {"bandwidth_bps": 2e6},
        {"delay_s": 0.02, "jitter_s": 0.004},
        {"bandwidth_bps": 100e6},
        {},
    ]
    links = made(pair, journal, *wanted)
    try:
        started = time.monotonic()
        rows = probe_links([declared(link, **values) for link, values in zip(links, wanted, strict=True)])
        took = time.monotonic() - started
    finally:
        close_links(links)
    assert [row.item for row in rows] == [
        "link a0-b0 bandwidth_bps",
        "link a0-b0 delay_s",
        "link a0-b0 loss_ratio",
        "link a1-b1 bandwidth_bps",
        "link a1-b1 delay_s",
        "link a2-b2 bandwidth_bps",
        "link a3-b3 delay_s",
        "link a3-b3 jitter_s",
        "link a4-b4 bandwidth_bps",
    ]
    if took > 6 or not all(row.passed for row in rows):
        skip_when_busy()
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert took < 6, "2 s on a quiet host"


@pytest.mark.emulation
@pytest.mark.parametrize(
    ("real", "promised", "broken"),
    [
        ({}, {"delay_s": 0.01}, "delay_s"),
        ({"delay_s": 0.013}, {"delay_s": 0.01}, "delay_s"),
        ({}, {"bandwidth_bps": 20e6}, "bandwidth_bps"),
        ({"bandwidth_bps": 22e6}, {"bandwidth_bps": 20e6}, "bandwidth_bps"),
        ({"bandwidth_bps": 18e6}, {"bandwidth_bps": 20e6}, "bandwidth_bps"),
        ({}, {"loss_ratio": 0.01}, "loss_ratio"),
        ({"loss_ratio": 0.03}, {"loss_ratio": 0.01}, "loss_ratio"),
        ({"delay_s": 0.02}, {"delay_s": 0.02, "jitter_s": 0.015}, "jitter_s"),
    ],
)
@measures
def test_a_link_that_does_not_deliver_fails_by_name(
    pair: list[Namespace], journal: Journal, real: dict[str, Any], promised: dict[str, float], broken: str
) -> None:
    links = made(pair, journal, real)
    try:
        rows = probe_links([declared(links[0], **promised)])
    finally:
        close_links(links)
    failed = [row for row in rows if not row.passed]
    if len(failed) != 1:
        skip_when_busy()
    assert [row.item for row in failed] == [f"link a0-b0 {broken}"]
    assert failed[0].declared == promised[broken]
    assert "allowed" in failed[0].detail


@pytest.mark.emulation
@measures
def test_a_link_that_is_cut_or_gone_fails_with_the_reason(pair: list[Namespace], journal: Journal) -> None:
    (link,) = made(pair, journal, {})
    try:
        link.set_state(False)
        (row,) = probe_links([declared(link, delay_s=0.01)])
        assert not row.passed and math.isnan(row.measured)
        assert row.detail == "cannot be measured: interface a0 is down (attempt 3)"
        gone = replace(declared(link, loss_ratio=0.1), b=End(pair[1].pid, "nosuch"))
        link.set_state(True)
        (row,) = probe_links([gone])
        assert not row.passed and "cannot find interface nosuch" in row.detail
    finally:
        link.close()


@pytest.mark.emulation
@needs_host
def test_cpu_limits_are_measured_and_a_missing_one_is_found(journal: Journal) -> None:
    groups = [
        Cgroup.create(journal.run_id, "limited", cpu_millicores=300, journal=journal),
        Cgroup.create(journal.run_id, "free", journal=journal),
    ]
    try:
        good, bad = probe_cpu_limits(
            [
                CpuDeclaration(name="node limited", group=groups[0], cpu_millicores=300),
                CpuDeclaration(name="node free", group=groups[1], cpu_millicores=200),
            ]
        )
        assert bad.item == "node free cpu_millicores" and not bad.passed
        assert "the limit in force is none" in bad.detail
        assert good.item == "node limited cpu_millicores" and good.passed, good
        assert good.measured < 330
        assert groups[0].pids() == groups[1].pids() == []
    finally:
        for group in groups:
            group.remove()


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1, 0.5])
def test_the_loss_test_tells_no_loss_and_triple_loss_from_the_declared(ratio: float) -> None:
    count = math.ceil(40 / ratio)
    low, high = loss_bounds(count, ratio)
    assert 0 < low < count * ratio < high
    triple = min(3 * ratio, 0.99)
    # The probability that three times the loss stays at or below the bound (Chernoff).
    share = high / count
    if share < triple:
        divergence = share * math.log(share / triple) + (1 - share) * math.log((1 - share) / (1 - triple))
        assert math.exp(-count * divergence) < 1e-3
    else:
        pytest.fail("the bound lies above three times the loss")


def test_loss_bounds_are_exact_binomial_tails() -> None:
    low, high = loss_bounds(10, 0.5)
    assert (low, high) == (0, 10)  # 2 ** -10 is above 1e-5: nothing can be excluded
    assert loss_bounds(40, 1.0) == (40, 40)
    low, high = loss_bounds(1000, 0.01)
    tail = [math.comb(1000, k) * 0.01**k * 0.99 ** (1000 - k) for k in range(1001)]
    assert sum(tail[:low]) <= 1e-5 < sum(tail[: low + 1])
    assert sum(tail[high + 1 :]) <= 1e-5 < sum(tail[high:])


def test_a_moment_of_stall_is_forgiven_and_a_lasting_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"brief": iter([19e6, 20e6]), "lasting": iter([19e6, 18e6, 17e6])}

    def measure(link: LinkDeclaration) -> dict[str, list[float]]:
        return {"rate_bps": [20e6, next(rates[link.name]) * 0.99]}

    monkeypatch.setattr(probes, "_measure", measure)
    links = [
        LinkDeclaration(name=name, a=End(None, "x"), b=End(None, "y"), bandwidth_bps=20e6)
        for name in ("brief", "lasting")
    ]
    brief, lasting = probe_links(links)
    assert brief.passed and brief.detail.endswith("(attempt 2)")
    assert not lasting.passed and lasting.detail.endswith("(attempt 3)") and lasting.measured == 17e6 * 0.99


class Starved:
    """A group whose limit is in force on a host that has no time for it."""

    def __init__(self, in_force: float | None) -> None:
        self.in_force = in_force

    def add(self, pid: int) -> None:
        pass

    def stats(self) -> CgroupStats:
        return CgroupStats(
            cpu_used_s=0.0,
            periods=0,
            throttled_periods=0,
            throttled_s=0.0,
            memory_used_bytes=0,
            memory_limit_bytes=None,
            cpu_limit_millicores=self.in_force,
        )


def test_a_busy_host_is_not_a_missing_limit() -> None:
    rows = probe_cpu_limits(
        CpuDeclaration(name=name, group=Starved(in_force), cpu_millicores=300)
        for name, in_force in (("busy", 300.0), ("wrong", 200.0))
    )
    assert [row.passed for row in rows] == [True, False]
    assert "other programs took the host's CPU" in rows[0].detail
