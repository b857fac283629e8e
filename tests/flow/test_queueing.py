"""Waiting times against simulated queues."""

from __future__ import annotations

import numpy as np
import pytest

from twin.flow.queueing import draw_waits, md1_wait_s, multi_server_wait_s, weighted_percentiles


def simulated_wait_s(load: float, servers: int, count: int = 400_000) -> float:
    """Lindley's recursion: workers with service 1 behind a round-robin balancer."""
    rng = np.random.default_rng(7)
    gaps = rng.exponential(1 / (load * servers), (count, servers)).sum(axis=1)
    wait, total = 0.0, 0.0
    for gap in gaps.tolist():
        wait = max(0.0, wait + 1.0 - gap)
        total += wait
    return total / count


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_one_worker_is_pollaczek_khinchine(load: float) -> None:
    assert md1_wait_s(load, 1.0) == pytest.approx(simulated_wait_s(load, 1), rel=0.06)


def test_many_workers_wait_less_and_heavy_load_is_close() -> None:
    assert multi_server_wait_s(0.9, 1.0, 1) == md1_wait_s(0.9, 1.0)
    assert multi_server_wait_s(0.9, 1.0, 3) == pytest.approx(simulated_wait_s(0.9, 3), rel=0.25)


def test_draws_have_the_mean_and_the_share_that_waits() -> None:
    draws = draw_waits(np.random.default_rng(1), (200_000,), 0.6, 2.0, 1e9)
    assert draws.mean() == pytest.approx(2.0, rel=0.02)
    assert (draws > 0).mean() == pytest.approx(0.6, abs=0.01)
    assert draw_waits(np.random.default_rng(1), (1000,), 0.9, 2.0, 3.0).max() <= 3.0
    assert not draw_waits(np.random.default_rng(1), (10,), 0.0, 0.0, 1.0).any()


def test_overload_has_a_finite_wait() -> None:
    assert md1_wait_s(5.0, 1.0) == md1_wait_s(0.99, 1.0) < 100


def test_weighted_percentiles() -> None:
    samples = np.array([3.0, 1.0, 2.0])
    assert weighted_percentiles(samples, np.ones(3), (50, 95)) == (2.0, 3.0)
    assert weighted_percentiles(samples, np.array([98.0, 1.0, 1.0]), (1, 50)) == (1.0, 3.0)
