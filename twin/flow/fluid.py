"""Rates and queues of one step: max-min fair sharing, and what does not fit waits or is dropped.

Traffic is open loop: what a source sends enters the network whether or not it gets through. A lane
passes two stages, wired then gNB downlink, gNB then wired uplink:

- wired: rates are max-min fair over links, transport limits and CPUs (:mod:`twin.flow.maxmin`);
- gNB: UEs of a pool get equal PRBs up to their need, and what the CPU can do (:mod:`twin.flow.gnb`).

At each stage the backlog follows the fluid equation  db/dt = arrivals - rate, so that within a step

    b' = min(buffer, max(0, b + (arrivals - rate) dt)),    rate <= arrivals + b/dt

and what exceeds the buffer is dropped. Backlog stands where the lane's rate is limited.

Known differences from a network of real queues: a full queue shared by lanes drops what exceeds the
fair share, while tail drop takes from all in proportion, small lanes included; probe packets and
requests for streams take no capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.flow import constants as c
from twin.flow.gnb import GnbPart
from twin.flow.maxmin import UNLIMITED, Array, max_min
from twin.flow.network import NOWHERE, Network

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """What happened in one step of ``length_s``. Per lane, shape (lanes,): bits or seconds.

    ``wired_delay_s`` and ``radio_delay_s``: fluid queueing delay at the start and at the end of the
    step, shape (2, lanes). ``row_load``: of the wired resources. ``prbs``: mean PRBs per slot of each
    UE, shape (2, ues), downlink first. Per pool: ``prb_load`` (2, pools), ``cpu_used`` in CPUs,
    ``cpu_load`` and ``missed`` (share of slots without CPU). ``slice_cpu``: CPUs that the slice's part
    of the gNB used, wake-ups included, shape (slices,). ``work_s``: CPU time of one packet at the gNB;
    ``gnb_packets``: packets/s through it, both per lane.
    """

    start_s: float
    length_s: float
    open: Mask
    offered_bits: Array
    delivered_bits: Array
    queue_drop_bits: Array
    lost_bits: Array
    wired_rate: Array
    wired_delay_s: Array
    radio_delay_s: Array
    row_load: Array
    prbs: Array
    prb_load: Array
    cpu_used: Array
    cpu_load: Array
    missed: Array
    slice_cpu: Array
    work_s: Array
    gnb_packets: Array


class Fluid:
    """Backlogs of all lanes, and the step that changes them."""

    def __init__(self, network: Network) -> None:
        lanes = len(network.lanes)
        self._network = network
        self._gnb = GnbPart(network)
        self.wired_bits = np.zeros(lanes)
        self.radio_bits = np.zeros(lanes)
        # The place (Wired.places) where a lane's wired backlog stands.
        self._stands_at = np.full(lanes, NOWHERE, dtype=np.int64)

    def standing_at(self, kind: str) -> Mask:
        """Lanes whose wired backlog stands at a resource of this kind."""
        kinds = [name[0] == kind for name in self._network.place_names]
        return np.array([*kinds, False], dtype=bool)[self._stands_at]

    def step(
        self, start_s: float, length_s: float, offered: Array, attached: Mask, cqi: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Step:  # fmt: skip
        """Let ``length_s`` pass. ``offered``: bit/s per lane; ``attached`` and ``cqi``: per UE."""
        net = self._network
        down = net.lane_down
        is_open = attached[net.lane_ue] & ~net.way.blocked
        arrivals, shut_bits = offered, np.zeros(offered.size)
        if not is_open.all():
            shut_bits = np.where(is_open, 0.0, offered * length_s + self.wired_bits + self.radio_bits)
            self.wired_bits[~is_open] = 0.0
            self.radio_bits[~is_open] = 0.0
            arrivals = np.where(is_open, offered, 0.0)
        wired = net.wired

        # Downlink crosses the wired part first. Uplink takes part with what it offers, since it may share CPUs.
        waiting = self.wired_bits / length_s
        first, first_limit = max_min(wired.usage, wired.capacity, arrivals + np.where(down, waiting, 0.0))
        at_gnb = np.where(down, first, arrivals)
        gnb = self._gnb.share(at_gnb + self.radio_bits / length_s, cqi)
        second, second_limit = max_min(wired.usage, wired.capacity, np.where(down, first, gnb.rate + waiting))
        wired_rate = np.where(down, first, second)
        wired_in = np.where(down, arrivals, gnb.rate)
        delivered = np.where(down, gnb.rate, second)

        before = (self.wired_bits, self.radio_bits)
        self.wired_bits = np.maximum(0.0, self.wired_bits + (wired_in - wired_rate) * length_s)
        self.radio_bits = np.maximum(0.0, self.radio_bits + (at_gnb - gnb.rate) * length_s)
        self._note_places(np.where(down, first_limit, second_limit))
        wired_drops = self._overflow_wired()
        radio_drops = self._overflow_radio()

        bits = delivered * length_s
        lost = self._lost(bits, rng)
        row_load = np.ones(wired.capacity.size)
        np.divide(wired.usage @ wired_rate, wired.capacity, out=row_load, where=wired.capacity > 0)
        return Step(
            start_s=start_s,
            length_s=length_s,
            open=is_open,
            offered_bits=offered * length_s,
            delivered_bits=bits - lost,
            queue_drop_bits=radio_drops,
            lost_bits=lost + wired_drops + shut_bits,
            wired_rate=wired_rate,
            wired_delay_s=np.array([self._wired_delay_s(b, wired_rate) for b in (before[0], self.wired_bits)]),
            radio_delay_s=np.array([self._radio_delay_s(b, gnb.rate) for b in (before[1], self.radio_bits)]),
            row_load=row_load,
            prbs=gnb.prbs,
            prb_load=gnb.prb_load,
            cpu_used=gnb.cpu_used,
            cpu_load=gnb.cpu_load,
            missed=gnb.missed,
            slice_cpu=gnb.slice_cpu,
            work_s=self._gnb.work_s,
            gnb_packets=gnb.rate / net.lane_bits,
        )

    def _lost(self, bits: Array, rng: np.random.Generator) -> Array:
        """What lossy links drop: binomial in packets, so that short intervals scatter as real ones do."""
        lost = np.zeros(bits.size)
        lossy, survival = self._network.way.lossy, self._network.way.survival
        if lossy.size:
            packets = np.rint(bits[lossy] / self._network.lane_bits[lossy]).astype(np.int64)
            ratio = 1 - survival[lossy]
            drawn = rng.binomial(packets, ratio)
            lost[lossy] = bits[lossy] * np.divide(drawn, packets, out=ratio, where=packets > 0)
        return lost

    # ---- wired part

    def _note_places(self, limit: NDArray[np.int64]) -> None:
        waits = self.wired_bits > 0
        if not waits.any():
            self._stands_at.fill(NOWHERE)
            return
        limited = waits & (limit != UNLIMITED)
        self._stands_at[limited] = self._network.wired.places[limit[limited]]
        self._stands_at[~waits] = NOWHERE

    def _queues(self, bits: Array) -> list[tuple[int, NDArray[np.int64]]]:
        """(row, lanes that wait there) of every wired queue with a backlog."""
        if not bits.any():
            return []
        wired = self._network.wired
        lanes = np.flatnonzero(bits > 0)
        rows = wired.row_at[self._stands_at[lanes]]
        queues: dict[int, list[int]] = {}
        for lane, row in zip(lanes.tolist(), rows.tolist(), strict=True):
            if row != NOWHERE and wired.crossed[row, lane]:
                queues.setdefault(row, []).append(lane)
        return [(row, np.array(found)) for row, found in queues.items()]

    def _overflow_wired(self) -> Array:
        dropped = np.zeros(self.wired_bits.size)
        for _, lanes in self._queues(self.wired_bits):
            packets = float((self.wired_bits[lanes] / self._network.lane_bits[lanes]).sum())
            if packets > c.QUEUE_PACKETS:
                excess = self.wired_bits[lanes] * (1 - c.QUEUE_PACKETS / packets)
                dropped[lanes] += excess
                self.wired_bits[lanes] -= excess
        return dropped

    def _wired_delay_s(self, bits: Array, rate: Array) -> Array:
        """First in, first out: every lane of a queue waits for all that stands in it.

        Uplink and downlink meet only at CPUs; links and transport limits have a queue for each.
        """
        wired = self._network.wired
        delay = np.zeros(bits.size)
        for row, lanes in self._queues(bits):
            service = float(wired.usage[row] @ rate)
            if service > 0:
                delay[wired.crossed[row]] += float(wired.usage[row, lanes] @ bits[lanes]) / service
        return delay

    # ---- gNB part

    def _overflow_radio(self) -> Array:
        """The gNB holds at most ``queue_bytes`` per UE and direction."""
        if not self.radio_bits.any():
            return np.zeros(self.radio_bits.size)
        held, allowed = self._gnb.per_unit(self.radio_bits), self._gnb.queue_bits
        keep = np.divide(allowed, held, out=np.ones(held.size), where=held > allowed)
        dropped: Array = self.radio_bits * (1 - keep[self._gnb.unit_of_lane])
        self.radio_bits = self.radio_bits - dropped
        return dropped

    def _radio_delay_s(self, bits: Array, rate: Array) -> Array:
        if not bits.any():
            return np.zeros(bits.size)
        waiting, served = self._gnb.per_unit(bits), self._gnb.per_unit(rate)
        delay = np.divide(waiting, served, out=np.zeros(served.size), where=served > 0)
        found: Array = delay[self._gnb.unit_of_lane]
        return found
