"""Spellings of traffic, distributions as values, errors in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controllers.microopt.traffic import Traffic, TrafficError, constant, normal, parse_traffic, poisson, samples
from traces.microopt import truncated_normal


def test_a_truncated_normal_has_the_mean_of_its_draws() -> None:
    found = normal(4.0, 0.8, low=1, high=5)
    drawn = truncated_normal(4.0, 0.8, 200_000, np.random.default_rng(0), low=1, high=5)
    assert found.mean == pytest.approx(drawn.mean(), abs=0.01)
    assert found.values @ (found.weights * found.values) == pytest.approx((drawn**2).mean(), rel=0.01)
    assert found.values.min() >= 1 and found.peak <= 5


def test_thinning_keeps_the_mean() -> None:
    found = samples([1, 2, 2, 5, 4, 3, 0.5]).thinned(3)
    assert found.values.size == 3
    assert found.mean == pytest.approx(17.5 / 7)
    assert constant(3).thinned(16).values.tolist() == [3.0]


@pytest.mark.parametrize(("text", "mean"), [("constant:3", 3.0), ("normal:3:0.5", 3.0), ("normal:2:0", 2.0)])
def test_spellings(text: str, mean: float) -> None:
    assert parse_traffic(text, low=1, high=5).mean == pytest.approx(mean, abs=1e-3)


def test_poisson_counts_are_cut_off_to_what_the_data_has() -> None:
    found = parse_traffic("poisson:3", low=1, high=4.99996)
    assert found.values.tolist() == [1, 2, 3, 4, 4.99996]
    assert found.weights == pytest.approx(np.array([3, 4.5, 4.5, 3.375, 2.025]) / 17.4)
    with pytest.raises(TrafficError, match="needs a positive mean"):
        poisson(0, low=1, high=5)


def test_telecom_italia_peaks_at_the_most_users() -> None:
    day = parse_traffic("telecom-italia", low=1, high=5)
    hour = parse_traffic("telecom-italia:4", low=1, high=5)
    assert day.peak == pytest.approx(5)
    assert day.values.size == 144 and hour.values.size == 6
    assert hour.mean < day.mean


def test_a_file_of_users(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\n2\n0\n3\n")
    (tmp_path / "b.csv").write_text("time,n_users\n0,4\n1,2\n")
    assert parse_traffic(f"file:{tmp_path}/a.txt", low=1, high=5).mean == 2
    assert parse_traffic(f"file:{tmp_path}/b.csv", low=1, high=5).mean == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constat:3", "traffic must be one of constant:N"),
        ("constant:0", "must be a positive number of users, got 0"),
        ("constant:x", "'x' is no number"),
        ("normal:9:1", r"a mean in \[1, 5\] users"),
        ("telecom-italia:24", r"hour must be in \[0, 23\], got 24"),
        ("file:/no/such", "cannot be read: No such file"),
    ],
)
def test_bad_traffic(text: str, message: str) -> None:
    with pytest.raises(TrafficError, match=message):
        parse_traffic(text, low=1, high=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("1\n-2\n", ":2: users must be"),
        ("a,b\n1,2\n", "no column n_users"),
        ("0\n0\n", "no users at all"),
    ],
)
def test_bad_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(content)
    with pytest.raises(TrafficError, match=message):
        parse_traffic(f"file:{tmp_path}/users", low=1, high=5)


def test_weights_must_add_up() -> None:
    with pytest.raises(TrafficError, match="add up to 1"):
        Traffic(np.array([1.0, 2.0]), np.array([0.5, 0.6]))
