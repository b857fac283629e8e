"""Delays, round trips and response times of an interval, and their percentiles by group."""

from __future__ import annotations

import numpy as np

from twin.flow import constants as c
from twin.flow.delays import Draws
from twin.flow.interval import Interval
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.spans import Numbers, percentiles_of_groups, places, starts

RANKS = (50, 95, 99)
Percentiles = dict[int, tuple[float, ...]]


class Samples:
    """All draws of one interval, each weighted by the packets, time or requests that it stands for.

    ``jitter_bits``, shape (lanes,): the jitter of each lane times the bits delivered with it.
    """

    def __init__(self, network: Network, interval: Interval, draws: Draws) -> None:
        self._draws = draws
        delivered = interval.of_steps("delivered_bits")
        self.jitter_bits = (delivered * draws.jitter_s).sum(axis=0)
        packets = (delivered / network.lane_bits)[draws.steps, draws.lanes]
        self._packets = packets / draws.counts

        # A round trip needs both lanes of a flow, downlink first.
        pairs = draws.span_of.reshape(len(interval.steps), draws.span_of.shape[1] // 2, 2)
        step, self._trip_flow = np.nonzero((pairs >= 0).all(axis=2) & np.array(interval.active))
        down, up = pairs[step, self._trip_flow].T
        first = starts(draws.counts)
        self._trip_counts = draws.counts[down]
        self._trips = (
            draws.delay_s[places(first[down], self._trip_counts)] + draws.delay_s[places(first[up], self._trip_counts)]
        )
        self._trip_s = interval.of_steps("length_s")[step] / self._trip_counts

        # Requests are answered on some of these trips, in the same order.
        self._server_flow = np.array([flow for _, flow, _ in interval.server_times], dtype=np.int64)
        self._server_counts = np.array([times.size for _, _, times in interval.server_times], dtype=np.int64)
        self._server_s = np.concatenate([np.zeros(0), *(times for _, _, times in interval.server_times)])
        trip_of = np.full(pairs.shape[:2], -1, dtype=np.int64)
        trip_of[step, self._trip_flow] = np.arange(step.size)
        served_step = np.array([number for number, _, _ in interval.server_times], dtype=np.int64)
        trip = trip_of[served_step, self._server_flow]
        on_way = self._trips[places(starts(self._trip_counts)[trip], self._server_counts)]
        self._response_s = c.ROUND_TRIPS_PER_REQUEST * on_way + self._server_s
        self._answered = interval.of_served("answered")[served_step, self._server_flow] / self._server_counts

    def delays(self, code_of_lane: Numbers) -> Percentiles:
        """One-way delays, by the code of their lane."""
        draws = self._draws
        return percentiles_of_groups(draws.delay_s, draws.counts, self._packets, code_of_lane[draws.lanes], RANKS)

    def trips(self, group_of_flow: Numbers) -> Percentiles:
        """Round trips of probe packets, by group of their flow."""
        return percentiles_of_groups(
            self._trips, self._trip_counts, self._trip_s, group_of_flow[self._trip_flow], RANKS
        )

    def responses(self, group_of_flow: Numbers) -> Percentiles:
        """Response times of requests, by group of their flow."""
        return self._requests(self._response_s, group_of_flow)

    def server_times(self, group_of_flow: Numbers) -> Percentiles:
        """What servers took of them."""
        return self._requests(self._server_s, group_of_flow)

    def _requests(self, times_s: Array, group_of_flow: Numbers) -> Percentiles:
        groups = group_of_flow[self._server_flow]
        return percentiles_of_groups(times_s, self._server_counts, self._answered, groups, RANKS)
