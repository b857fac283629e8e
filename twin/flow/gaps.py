"""The longest time between two downlink packets of a stream, as far as a fluid has packets.

While a flow delivers, its packets are evenly spaced at the rate of each step. A gap is that spacing, and before it
the time in which the flow was active and nothing arrived. Moving a service costs nothing: emulation measures that
none of its packets is lost or late by more than a few milliseconds.
"""

from __future__ import annotations

import numpy as np

from twin.flow.interval import Interval
from twin.flow.maxmin import Array
from twin.flow.network import Network


class Gaps:
    """Remembers silence from interval to interval."""

    def __init__(self, network: Network) -> None:
        self._bits = network.lane_bits[0::2]  # the downlink lane of each flow
        self._streams = np.array([flow.service == "stream" for flow in network.load.flows], dtype=bool)
        self._silence_s = np.zeros(self._bits.size)

    def longest_s(self, interval: Interval) -> Array:
        """By flow, of the gaps that ended in an interval; 0 where none did."""
        longest_s = np.zeros(self._bits.size)
        for step, active in zip(interval.steps, interval.active, strict=True):
            bits = step.delivered_bits[0::2]
            arrives = self._streams & (bits > 0)
            spacing_s = np.divide(self._bits * step.length_s, bits, out=np.zeros_like(longest_s), where=arrives)
            gap_s = np.where(arrives, self._silence_s + spacing_s, 0.0)
            longest_s = np.maximum(longest_s, gap_s)
            self._silence_s = np.where(active & self._streams & ~arrives, self._silence_s + step.length_s, 0.0)
        return longest_s
