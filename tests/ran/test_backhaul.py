"""Capacities of backhaul links: hand-made link budgets, statistics of the draws, limits."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from twin.ran.backhaul import BACKHAUL_BANDS, backhaul_capacity_bps, backhaul_snr_db
from twin.ran.channel import los_probability, path_loss_db


def test_link_budgets_by_hand() -> None:
    # mmWave, 100 m, line of sight: 32.4 + 21 log10(100) + 20 log10(30) = 103.94 dB between equal heights.
    noise_dbm = -174 + 10 * math.log10(760.32e6) + 9
    assert backhaul_snr_db("mmwave", 100, 0.0, 0.0) == pytest.approx(30 + 40 - 103.942 - noise_dbm, abs=0.01)
    # Without: 35.3 log10(100) + 22.4 + 21.3 log10(30) - 0.3 (10 - 1.5) = 121.91 dB, and one sigma of 7.82 dB.
    assert backhaul_snr_db("mmwave", 100, 0.999, 1.0) == pytest.approx(30 + 40 - 121.913 - 7.82 - noise_dbm, abs=0.01)
    noise_dbm = -174 + 10 * math.log10(78.12e6) + 9
    assert backhaul_snr_db("sub6", 100, 0.0, -1.0) == pytest.approx(33 + 16 - 85.281 + 4 - noise_dbm, abs=0.01)


def test_capacities_of_the_best_and_the_worst_links() -> None:
    # CQI 15 has 948/1024 * 6 bits per resource element (TS 38.214 Table 5.2.2.1-2).
    most = 948 / 1024 * 6
    assert backhaul_capacity_bps("mmwave", 50, 0.0, 0.0) == pytest.approx(0.25 * 0.82 * most * 760.32e6)
    assert backhaul_capacity_bps("sub6", 50, 0.0, 0.0) == pytest.approx(0.75 * 0.86 * most * 78.12e6)
    assert backhaul_capacity_bps("mmwave", 2000, 0.999, 0.0) == 0


@pytest.mark.parametrize("band", sorted(BACKHAUL_BANDS))
def test_capacity_falls_with_distance_shadowing_and_without_line_of_sight(band: str) -> None:
    by_distance = [backhaul_capacity_bps(band, distance_m, 0.9999, 0.5) for distance_m in range(20, 1000, 20)]
    assert by_distance == sorted(by_distance, reverse=True) and by_distance[0] > by_distance[-1]
    by_shadow = [backhaul_capacity_bps(band, 200, 0.9999, normal / 4) for normal in range(-16, 17)]
    assert by_shadow == sorted(by_shadow, reverse=True) and by_shadow[0] > by_shadow[-1]
    assert backhaul_snr_db(band, 200, 0.0, 0.0) > backhaul_snr_db(band, 200, 0.9999, 0.0)


def test_line_of_sight_is_as_frequent_as_the_table_says() -> None:
    draw = random.Random(1)
    clear = 33 + 16 - path_loss_db("umi", 80, 3.5, line_of_sight=True, ue_height_m=10)
    snr_db = [backhaul_snr_db("sub6", 80, draw.random(), 0.0) for _ in range(4000)]
    share = statistics.fmean(value == max(snr_db) for value in snr_db)
    assert share == pytest.approx(los_probability("umi", 80), abs=0.025)
    assert max(snr_db) == pytest.approx(clear + 174 - 9 - 10 * math.log10(78.12e6))


@pytest.mark.parametrize(
    ("band", "distance_m", "message"),
    [
        ("lte", 100, "band must be one of mmwave, sub6, got 'lte'"),
        ("sub6", 5, r"distance_m must be in \[10, 5000\], got 5"),
        ("sub6", float("nan"), "distance_m must be in .* got nan"),
    ],
)
def test_arguments_out_of_range(band: str, distance_m: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backhaul_capacity_bps(band, distance_m, 0.5, 0.0)


def test_height_of_the_far_end() -> None:
    with pytest.raises(ValueError, match=r"ue_height_m must be in \[1\.5, 13\), got 15"):
        path_loss_db("umi", 100, 3.5, line_of_sight=True, ue_height_m=15)
