"""The channels of many UEs at many times as arrays: the values of :meth:`twin.ran.channel.Channel.cqi`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twin.ran.channel import STEP_S, SUB_BANDS, Channel
from twin.ran.nr import MAX_CQI, SINR_GAP, cqi_efficiency

_EFFICIENCIES = np.array([cqi_efficiency(cqi) for cqi in range(1, MAX_CQI + 1)])


class Channels:
    """Some UEs' channels side by side."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        # (channels, sub-bands, sinusoids, 4) -> parts of shape (channels, sub-bands, sinusoids, in phase or quadrature)
        sinusoids = np.array([channel.bands for channel in channels], dtype=np.float64)
        self._speed, self._phase = sinusoids[..., 0::2], sinusoids[..., 1::2]
        self._direct = np.array([channel.direct for channel in channels])[:, None]
        self._scattered = np.array([channel.scattered for channel in channels])[:, None]
        self._mean_sinr_db = np.array([channel.mean_sinr_db for channel in channels])

    def cqi(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """CQI reports in force at these times, shape (times, channels)."""
        # as int() of the scalar: the last 10 ms step
        when = np.trunc(times_s / STEP_S) * STEP_S
        waves = np.cos(self._speed * when[:, None, None, None, None] + self._phase).sum(axis=-2)
        real, imaginary = waves[..., 0] * self._scattered, waves[..., 1] * self._scattered
        power = ((self._direct + real) ** 2 + imaginary**2).sum(axis=-1)
        sinr_db = self._mean_sinr_db + 10 * np.log10(np.maximum(power / SUB_BANDS, 1e-6))
        efficiency = np.log2(1 + 10 ** (sinr_db / 10) / SINR_GAP)
        found: NDArray[np.int64] = np.searchsorted(_EFFICIENCIES, efficiency + 1e-12, side="left").astype(np.int64)
        return found
