"""The channel model: published path loss values, statistics of the fading, determinism."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from twin.ran.channel import Channel, carrier_bandwidth_hz, los_probability, path_loss_db, scripted_cqi
from twin.ran.channels import Channels


@pytest.mark.parametrize(
    ("scene", "carrier_ghz", "values_db"),
    [
        # LOS at 100 m and 500 m, NLOS at 100 m and 500 m, as ns-3's ThreeGppPropagationLossModel gives them
        ("uma", 3.5, (83.14, 98.27, 103.04, 129.92)),
        ("uma", 30.0, (101.80, 116.93, 121.70, 148.58)),
        ("umi", 3.5, (85.31, 107.11, 104.64, 129.26)),
        ("umi", 30.0, (103.98, 118.62, 124.52, 149.14)),
    ],
)
def test_path_loss_against_ns3(scene: str, carrier_ghz: float, values_db: tuple[float, ...]) -> None:
    found = [
        path_loss_db(scene, distance_m, carrier_ghz, line_of_sight=clear)
        for clear in (True, False)
        for distance_m in (100.0, 500.0)
    ]
    assert found == pytest.approx(values_db, abs=0.01)


def test_los_probability_of_the_table() -> None:
    assert los_probability("uma", 18) == 1
    assert los_probability("uma", 100) == pytest.approx(0.18 + math.exp(-100 / 63) * 0.82)
    assert los_probability("umi", 100) == pytest.approx(0.18 + math.exp(-100 / 36) * 0.82)


def _channel(seed: int = 1, ue: str = "a.1", distance_m: float = 200.0, speed_mps: float = 3.0) -> Channel:
    return Channel(seed, ue, distance_m, speed_mps, 3.5, 43, "uma", carrier_bandwidth_hz(106, 30))


def test_same_seed_and_ue_give_the_same_cqi_in_any_order() -> None:
    times = [index * 0.01 for index in range(300)]
    forward = [_channel().cqi(time_s) for time_s in times]
    channel = _channel()
    backward = [channel.cqi(time_s) for time_s in reversed(times)][::-1]
    assert forward == backward
    assert len(set(forward)) > 1


def test_other_seeds_and_ues_differ() -> None:
    def trace(seed: int, ue: str) -> list[float]:
        return [_channel(seed, ue).sinr_db(index * 0.1) for index in range(20)]

    assert trace(1, "a.1") != trace(2, "a.1")
    assert trace(1, "a.1") != trace(1, "a.2")


def test_fading_has_unit_mean_power_and_follows_the_doppler() -> None:
    channels = [_channel(ue=f"u.{index}") for index in range(200)]
    power = statistics.mean(10 ** (channel.fading_db(index * 0.31) / 10) for channel in channels for index in range(20))
    assert power == pytest.approx(1, abs=0.05)

    def change(speed_mps: float) -> float:
        moving = [_channel(ue=f"u.{index}", speed_mps=speed_mps) for index in range(50)]
        return statistics.mean(abs(channel.fading_db(0.010) - channel.fading_db(0.0)) for channel in moving)

    assert change(0.0) == 0
    assert change(0.5) < 0.3 * change(5.0)


def test_shadowing_has_the_spread_of_the_table() -> None:
    blocked = [channel for channel in (_channel(ue=f"s.{index}") for index in range(2000)) if not channel.line_of_sight]
    assert statistics.stdev(channel.mean_sinr_db for channel in blocked) == pytest.approx(6, abs=0.4)
    share = len(blocked) / 2000
    assert share == pytest.approx(1 - los_probability("uma", 200), abs=0.03)


def test_nearer_is_better() -> None:
    def mean_cqi(distance_m: float) -> float:
        return statistics.mean(_channel(ue=f"n.{index}", distance_m=distance_m).cqi(1.0) for index in range(100))

    assert mean_cqi(50) > mean_cqi(200) > mean_cqi(600) > mean_cqi(2000)


def test_script_is_a_step_function() -> None:
    script = ((0.0, 15), (10.0, 3), (20.0, 0))
    assert [scripted_cqi(script, time_s) for time_s in (0, 9.99, 10, 19, 20, 1000)] == [15, 15, 3, 3, 0, 0]


@pytest.mark.parametrize(
    "change", [{"distance_m": 5}, {"speed_mps": -1}, {"carrier_ghz": 0.1}, {"path_loss": "rural"}, {"bandwidth_hz": 0}]
)
def test_bad_values_are_named(change: dict[str, object]) -> None:
    good: dict[str, object] = {
        **{"seed": 1, "ue_id": "a", "distance_m": 100, "speed_mps": 1, "carrier_ghz": 3.5},
        **{"tx_power_dbm": 43, "path_loss": "uma", "bandwidth_hz": 1e6},
    }
    with pytest.raises(ValueError, match=next(iter(change))):
        Channel(**{**good, **change})  # type: ignore[arg-type]


def test_channels_side_by_side_are_the_same_channels() -> None:
    alone = [_channel(ue=f"a.{n}", distance_m=60.0 + 90 * n, speed_mps=float(n % 4)) for n in range(12)]
    times_s = np.concatenate((np.arange(300) * 0.0371, [0.05, 0.15, 1.0, 2.9999]))
    found = Channels(alone).cqi(times_s)
    assert found.tolist() == [[channel.cqi(time_s) for channel in alone] for time_s in times_s.tolist()]
    assert len(np.unique(found)) > 5
