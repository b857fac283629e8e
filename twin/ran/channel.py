"""The radio channel of one UE as a function of time: TR 38.901 path loss, shadowing and correlated fading.

3GPP TR 38.901 §7.4.1 (path loss), §7.4.2 (LOS probability), §7.5 Table 7.5-6 (Rician K-factor). Everything is a
function of (seed, UE id, time): no state, so asking at other times or in another order changes nothing.
Fading is a sum of sinusoids with Jakes' Doppler spectrum (Zheng and Xiao: Simulation Models With Correct
Statistical Properties for Rayleigh Fading Channels, §II), averaged in power over independent sub-bands because a
wideband CQI is reported. The UE keeps its distance: shadowing and the LOS state are drawn once. Not modelled:
interference, antenna patterns (every UE sees the gain of one element), HARQ.
"""

from __future__ import annotations

import math
import random

from twin.ran.nr import sinr_to_cqi

LIGHT_MPS = 299_792_458.0
STEP_S = 0.010
UE_HEIGHT_M = 1.5
NOISE_DBM_PER_HZ = -174.0
NOISE_FIGURE_DB = 9.0
ANTENNA_GAIN_DBI = 8.0  # of the gNB, towards every UE: TR 38.901 Table 7.3-1, one antenna element
SUB_BANDS = 4
SINUSOIDS = 6

_BASE_HEIGHT_M = {"uma": 25.0, "umi": 10.0}
_MIN_DISTANCE_M = 10.0
_MAX_DISTANCE_M = 5000.0
_MOST_UE_HEIGHT_M = 13.0
# Shadowing standard deviation in dB: (LOS, NLOS), Table 7.4.1-1
_SHADOW_DB = {"uma": (4.0, 6.0), "umi": (4.0, 7.82)}
# Mean Rician K-factor in dB with line of sight, Table 7.5-6
_RICIAN_DB = {"uma": 9.0, "umi": 9.0}


def _check(path_loss: str, distance_m: float, carrier_ghz: float) -> None:
    if path_loss not in _BASE_HEIGHT_M:
        raise ValueError(f"path_loss must be one of uma, umi, got {path_loss!r}")
    if not _MIN_DISTANCE_M <= distance_m <= _MAX_DISTANCE_M:
        raise ValueError(f"distance_m must be in [{_MIN_DISTANCE_M:g}, {_MAX_DISTANCE_M:g}], got {distance_m:g}")
    if not 0.5 <= carrier_ghz <= 100:
        raise ValueError(f"carrier_ghz must be in [0.5, 100], got {carrier_ghz:g}")


def path_loss_db(
    path_loss: str, distance_m: float, carrier_ghz: float, *, line_of_sight: bool, ue_height_m: float = UE_HEIGHT_M
) -> float:
    """Path loss in dB at a horizontal distance, TR 38.901 Table 7.4.1-1, without shadowing.

    ``ue_height_m`` is the height of the far end, 1.5 to 13 m: the effective environment height is 1 m
    there (C(d, h_UT) = 0).
    """
    _check(path_loss, distance_m, carrier_ghz)
    if not UE_HEIGHT_M <= ue_height_m < _MOST_UE_HEIGHT_M:
        raise ValueError(f"ue_height_m must be in [{UE_HEIGHT_M:g}, {_MOST_UE_HEIGHT_M:g}), got {ue_height_m:g}")
    base_m = _BASE_HEIGHT_M[path_loss]
    distance_3d_m = math.hypot(distance_m, base_m - ue_height_m)
    break_m = 4 * (base_m - 1) * (ue_height_m - 1) * carrier_ghz * 1e9 / LIGHT_MPS
    frequency_db = 20 * math.log10(carrier_ghz)
    if path_loss == "uma":
        near = 28.0 + 22 * math.log10(distance_3d_m) + frequency_db
        far = 28.0 + 40 * math.log10(distance_3d_m) + frequency_db
        far -= 9 * math.log10(break_m**2 + (base_m - ue_height_m) ** 2)
        blocked = 13.54 + 39.08 * math.log10(distance_3d_m) + frequency_db - 0.6 * (ue_height_m - 1.5)
    else:
        near = 32.4 + 21 * math.log10(distance_3d_m) + frequency_db
        far = 32.4 + 40 * math.log10(distance_3d_m) + frequency_db
        far -= 9.5 * math.log10(break_m**2 + (base_m - ue_height_m) ** 2)
        blocked = 35.3 * math.log10(distance_3d_m) + 22.4 + 21.3 * math.log10(carrier_ghz)
        blocked -= 0.3 * (ue_height_m - 1.5)
    clear = near if distance_m <= break_m else far
    return clear if line_of_sight else max(clear, blocked)


def shadow_fading_db(path_loss: str, *, line_of_sight: bool) -> float:
    """Standard deviation of the shadow fading in dB, TR 38.901 Table 7.4.1-1."""
    return _SHADOW_DB[path_loss][0 if line_of_sight else 1]


def los_probability(path_loss: str, distance_m: float) -> float:
    """Probability of line of sight at a horizontal distance, TR 38.901 Table 7.4.2-1, UE below 13 m."""
    _check(path_loss, distance_m, 3.5)
    if distance_m <= 18:
        return 1.0
    decay_m = 63.0 if path_loss == "uma" else 36.0
    return 18 / distance_m + math.exp(-distance_m / decay_m) * (1 - 18 / distance_m)


class Channel:
    """SINR and CQI of one UE. Powers in dBm over the whole carrier of ``bandwidth_hz``."""

    def __init__(
        self,
        seed: int,
        ue_id: str,
        distance_m: float,
        speed_mps: float,
        carrier_ghz: float,
        tx_power_dbm: float,
        path_loss: str,
        bandwidth_hz: float,
    ) -> None:
        _check(path_loss, distance_m, carrier_ghz)
        if not bandwidth_hz > 0:
            raise ValueError(f"bandwidth_hz must be above 0, got {bandwidth_hz:g}")
        if not 0 <= speed_mps <= 150:
            raise ValueError(f"speed_mps must be in [0, 150], got {speed_mps:g}")
        draw = random.Random(f"{seed}/{ue_id}/channel")
        self.line_of_sight = draw.random() < los_probability(path_loss, distance_m)
        shadow_db = draw.gauss(0.0, shadow_fading_db(path_loss, line_of_sight=self.line_of_sight))
        noise_dbm = NOISE_DBM_PER_HZ + 10 * math.log10(bandwidth_hz) + NOISE_FIGURE_DB
        loss_db = path_loss_db(path_loss, distance_m, carrier_ghz, line_of_sight=self.line_of_sight)
        self.mean_sinr_db = tx_power_dbm + ANTENNA_GAIN_DBI - loss_db - shadow_db - noise_dbm
        doppler_rad = 2 * math.pi * speed_mps * carrier_ghz * 1e9 / LIGHT_MPS
        ratio = 10 ** (_RICIAN_DB[path_loss] / 10) if self.line_of_sight else 0.0
        self.direct = math.sqrt(ratio / (ratio + 1))
        self.scattered = math.sqrt(2 / SINUSOIDS / (ratio + 1) / 2)
        # Per sub-band: angular speed and phase of each sinusoid, in phase and in quadrature.
        self.bands = [
            [self._sinusoid(draw, doppler_rad, index) for index in range(SINUSOIDS)] for _ in range(SUB_BANDS)
        ]
        self._step = -1
        self._cqi = 0

    @staticmethod
    def _sinusoid(draw: random.Random, doppler_rad: float, index: int) -> tuple[float, float, float, float]:
        angle = (2 * math.pi * (index + draw.random())) / (4 * SINUSOIDS)
        return (
            doppler_rad * math.cos(angle),
            draw.uniform(-math.pi, math.pi),
            doppler_rad * math.sin(angle),
            draw.uniform(-math.pi, math.pi),
        )

    def fading_db(self, time_s: float) -> float:
        """Gain of the fading at a time, in dB; its mean power over time is 1."""
        cos = math.cos
        power = 0.0
        for band in self.bands:
            real = imaginary = 0.0
            for speed_real, phase_real, speed_imaginary, phase_imaginary in band:
                real += cos(speed_real * time_s + phase_real)
                imaginary += cos(speed_imaginary * time_s + phase_imaginary)
            power += (self.direct + self.scattered * real) ** 2 + (self.scattered * imaginary) ** 2
        return 10 * math.log10(max(power / SUB_BANDS, 1e-6))

    def sinr_db(self, time_s: float) -> float:
        """SINR at a time since the start of the run."""
        return self.mean_sinr_db + self.fading_db(time_s)

    def cqi(self, time_s: float) -> int:
        """CQI report in force at a time: that of the last 10 ms step."""
        step = int(time_s / STEP_S)
        if step != self._step:
            self._cqi = sinr_to_cqi(self.sinr_db(step * STEP_S))
            self._step = step
        return self._cqi


def scripted_cqi(script: list[list[float]] | tuple[tuple[float, int], ...], time_s: float) -> int:
    """Value of a step function ((time_s, cqi), ...) sorted by time; before its first point the first value."""
    found = script[0][1]
    for start_s, cqi in script:
        if start_s > time_s:
            break
        found = cqi
    return int(found)


def carrier_bandwidth_hz(prbs: int, subcarrier_khz: int) -> float:
    """Occupied bandwidth of a carrier."""
    return prbs * 12 * subcarrier_khz * 1e3
