"""Rates and queues of one step: max-min fair sharing, and what does not fit waits or is dropped.

Traffic is open loop: what a source sends enters the network whether or not it gets through. A lane
passes two stages, wired then gNB downlink, gNB then wired uplink:

- wired: rates are max-min fair over links, transport limits and CPUs (:mod:`twin.flow.maxmin`);
- gNB: UEs of a pool get equal PRBs up to their need (what round robin gives, and proportional fair
  with stationary channels), and PRBs are used only as fast as the CPU does the work per bit.

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
from twin.flow.maxmin import UNLIMITED, Array, max_min
from twin.flow.network import Network

Mask = NDArray[np.bool_]
_FULL = 1 - 1e-6


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
        self.wired_bits = np.zeros(lanes)
        self.radio_bits = np.zeros(lanes)
        self._stands_at: list[tuple[str, ...] | None] = [None] * lanes

    def standing_at(self, kind: str) -> Mask:
        """Lanes whose wired backlog stands at a resource of this kind."""
        return np.array([name is not None and name[0] == kind for name in self._stands_at], dtype=bool)

    def step(
        self, start_s: float, length_s: float, offered: Array, attached: Mask, cqi: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> Step:  # fmt: skip
        """Let ``length_s`` pass. ``offered``: bit/s per lane; ``attached`` and ``cqi``: per UE."""
        net = self._network
        down = net.lane_down
        is_open = attached[net.lane_ue] & ~net.way.blocked
        shut_bits = np.where(is_open, 0.0, offered * length_s + self.wired_bits + self.radio_bits)
        self.wired_bits[~is_open] = 0.0
        self.radio_bits[~is_open] = 0.0
        arrivals = np.where(is_open, offered, 0.0)
        wired = net.wired

        # Downlink crosses the wired part first. Uplink takes part with what it offers, since it may share CPUs.
        first, first_limit = max_min(
            wired.usage, wired.capacity, arrivals + np.where(down, self.wired_bits / length_s, 0.0)
        )
        at_gnb = np.where(down, first, arrivals)
        gnb = self._gnb(at_gnb + self.radio_bits / length_s, cqi)
        second, second_limit = max_min(
            wired.usage, wired.capacity, np.where(down, first, gnb.rate + self.wired_bits / length_s)
        )
        wired_rate = np.where(down, first, second)
        wired_in = np.where(down, arrivals, gnb.rate)
        delivered = np.where(down, gnb.rate, second)

        before = (self.wired_bits.copy(), self.radio_bits.copy())
        self.wired_bits = np.maximum(0.0, self.wired_bits + (wired_in - wired_rate) * length_s)
        self.radio_bits = np.maximum(0.0, self.radio_bits + (at_gnb - gnb.rate) * length_s)
        self._note_places(np.where(down, first_limit, second_limit))
        wired_drops = self._overflow_wired()
        radio_drops = self._overflow_radio()

        bits = delivered * length_s
        lost = bits * self._loss_ratio(bits, rng)
        with np.errstate(divide="ignore", invalid="ignore"):
            row_load = np.where(wired.capacity > 0, wired.usage @ wired_rate / wired.capacity, 1.0)
        return Step(
            start_s=start_s,
            length_s=length_s,
            open=is_open,
            offered_bits=offered * length_s,
            delivered_bits=bits - lost,
            queue_drop_bits=radio_drops,
            lost_bits=lost + wired_drops + shut_bits,
            wired_rate=wired_rate,
            wired_delay_s=np.stack([self._wired_delay_s(b, wired_rate) for b in (before[0], self.wired_bits)]),
            radio_delay_s=np.stack([self._radio_delay_s(b, gnb.rate) for b in (before[1], self.radio_bits)]),
            row_load=row_load,
            prbs=gnb.prbs,
            prb_load=gnb.prb_load,
            cpu_used=gnb.cpu_used,
            cpu_load=gnb.cpu_load,
            missed=gnb.missed,
            slice_cpu=gnb.slice_cpu,
            work_s=gnb.work_s,
            gnb_packets=gnb.rate / net.lane_bits,
        )

    def _loss_ratio(self, bits: Array, rng: np.random.Generator) -> Array:
        """Share of packets that lossy links drop: binomial, so that short intervals scatter as real ones do."""
        survival = self._network.way.survival
        packets = np.rint(bits / self._network.lane_bits).astype(np.int64)
        lost = rng.binomial(packets, 1 - survival)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.where(packets > 0, lost / packets, 1 - survival)
        return np.where(survival < 1, drawn, 0.0)

    # ---- wired part

    def _note_places(self, limit: NDArray[np.int64]) -> None:
        names = self._network.wired.names
        for lane in np.flatnonzero(self.wired_bits > 0):
            if limit[lane] != UNLIMITED:
                self._stands_at[lane] = names[limit[lane]]
        for lane in np.flatnonzero(self.wired_bits <= 0):
            self._stands_at[lane] = None

    def _queues(self, bits: Array) -> list[tuple[int, NDArray[np.int64]]]:
        """(row, lanes that wait there) of every wired queue with a backlog."""
        wired = self._network.wired
        rows = {name: row for row, name in enumerate(wired.names)}
        queues: dict[int, list[int]] = {}
        for lane in np.flatnonzero(bits > 0):
            name = self._stands_at[lane]
            row = rows.get(name, UNLIMITED) if name is not None else UNLIMITED
            if row != UNLIMITED and wired.usage[row, lane] > 0:
                queues.setdefault(row, []).append(int(lane))
        return [(row, np.array(lanes)) for row, lanes in queues.items()]

    def _overflow_wired(self) -> Array:
        dropped = np.zeros_like(self.wired_bits)
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
        delay = np.zeros_like(bits)
        for row, lanes in self._queues(bits):
            service = float(wired.usage[row] @ rate)
            if service > 0:
                delay[wired.usage[row] > 0] += float(wired.usage[row, lanes] @ bits[lanes]) / service
        return delay

    # ---- gNB part

    def _per_ue(self, lanes: Array) -> Array:
        """Sum over the lanes of each UE and direction, shape (2, ues), downlink first."""
        net = self._network
        count = len(net.ue_names)
        return np.stack(
            [np.bincount(net.lane_ue, weights=np.where(mask, lanes, 0.0), minlength=count)
             for mask in (net.lane_down, ~net.lane_down)]
        )  # fmt: skip

    def _of_lane(self, per_ue: Array) -> Array:
        net = self._network
        found: Array = per_ue[np.where(net.lane_down, 0, 1), net.lane_ue]
        return found

    def _overflow_radio(self) -> Array:
        """The gNB holds at most ``queue_bytes`` per UE and direction."""
        net = self._network
        held = self._per_ue(self.radio_bits)
        allowed = np.array([net.gnbs[net.ues[ue].gnb].queue_bytes * 8.0 for ue in net.ue_names])
        with np.errstate(divide="ignore", invalid="ignore"):
            keep = np.where(held > allowed, allowed / held, 1.0)
        dropped = self.radio_bits * (1 - self._of_lane(keep))
        self.radio_bits = self.radio_bits - dropped
        return dropped

    def _radio_delay_s(self, bits: Array, rate: Array) -> Array:
        waiting, served = self._per_ue(bits), self._per_ue(rate)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._of_lane(np.where(served > 0, waiting / served, 0.0))

    def _gnb(self, need: Array, cqi: NDArray[np.int64]) -> _GnbShare:
        """Equal PRBs within each pool, up to need, CPU and PRBs; ``need`` in bit/s per lane."""
        net = self._network
        unit_need = self._per_ue(need)
        ues = len(net.ue_names)
        pool_of = net.ue_pool
        per_prb = np.zeros((2, ues))
        prbs = np.array([net.pool_prbs(pool) for pool in net.pools])
        for way in range(2):
            busy = np.bincount(pool_of[unit_need[way] > 0], minlength=len(net.pools))
            for ue in np.flatnonzero(unit_need[way] > 0):
                pool = net.pools[pool_of[ue]]
                share = prbs[pool_of[ue]] / max(1, busy[pool_of[ue]])
                per_prb[way, ue] = net.bits_per_prb_s(pool.gnb, int(cqi[ue]), share)
        lane_cost = np.maximum(self._work_ns(), c.GNB_PACKET_NS / net.lane_bits) * 1e-9
        with np.errstate(divide="ignore", invalid="ignore"):
            demand = np.where(per_prb > 0, unit_need / per_prb, 0.0).ravel()
            cost = np.where(unit_need > 0, self._per_ue(need * lane_cost) / unit_need, 0.0)
        cpu_per_prb = (cost * per_prb).ravel()
        pools = len(net.pools)
        of_unit = np.tile(pool_of, 2)
        usage = np.zeros((2 * pools, 2 * ues))
        for pool_number in range(pools):
            usage[pool_number, :ues] = pool_of == pool_number
            usage[pools + pool_number, ues:] = pool_of == pool_number
        capacity = np.concatenate((prbs, prbs))
        cpu_rows = np.array([np.where(of_unit == number, cpu_per_prb, 0.0) for number in range(pools)])
        cpus = np.array([net.pool_cpus(pool) for pool in net.pools])
        extra_rows, extra_cpus = self._gnb_node_rows(of_unit, cpu_per_prb)
        taken, _ = max_min(
            np.vstack((usage, cpu_rows.reshape(pools, 2 * ues), extra_rows)),
            np.concatenate((capacity, cpus, extra_cpus)),
            demand,
        )
        used: Array = np.bincount(of_unit, weights=taken * cpu_per_prb, minlength=pools).astype(np.float64)
        cpu_load = used / cpus
        missed = np.zeros(pools)
        if (cpu_load > _FULL).any() or extra_cpus.size:
            # what the PRBs alone would allow tells how many slots the CPU could not run
            wished, _ = max_min(usage, capacity, demand)
            wanted = np.bincount(of_unit, weights=wished * cpu_per_prb, minlength=pools)
            with np.errstate(divide="ignore", invalid="ignore"):
                missed = np.where(wanted > 0, np.maximum(0.0, 1 - used / wanted), 0.0)
        taken = taken.reshape(2, ues)
        with np.errstate(divide="ignore", invalid="ignore"):
            served = np.where(unit_need > 0, taken * per_prb / unit_need, 0.0)
            prb_load = np.where(prbs > 0, np.stack([np.bincount(pool_of, row, pools) for row in taken]) / prbs, 0.0)
        rate = need * np.minimum(1.0, self._of_lane(served))
        work_s = lane_cost * net.lane_bits
        # An idle program wakes up for every packet, a busy one finds the next waiting.
        waking_s = (c.GNB_PACKET_NS + c.WAKE_NS * (1 - np.minimum(1.0, cpu_load))) * 1e-9
        spent = rate / net.lane_bits * np.maximum(work_s, waking_s[pool_of[net.lane_ue]])
        # ... as far as its limit lets it
        allowed = np.minimum(1.0, cpus / np.maximum(np.bincount(pool_of[net.lane_ue], spent, pools), 1e-12))
        slice_cpu = np.bincount(net.lane_slice, spent * allowed[pool_of[net.lane_ue]], len(net.slices))
        return _GnbShare(rate, taken, prb_load, used, cpu_load, missed, slice_cpu.astype(np.float64), work_s)

    def _work_ns(self) -> Array:
        net = self._network
        return np.array([net.gnbs[net.ues[lane.ue].gnb].work_ns_per_bit for lane in net.lanes])

    def _gnb_node_rows(self, of_unit: NDArray[np.int64], cpu_per_prb: Array) -> tuple[Array, Array]:
        """A CPU limit on a gNB's own container holds for all its slices together."""
        net = self._network
        rows, limits = [], []
        for gnb in net.gnbs:
            limit = net.nodes[gnb].cpu_millicores
            if limit is not None:
                inside = np.array([pool.gnb == gnb for pool in net.pools], dtype=bool)
                rows.append(np.where(inside[of_unit], cpu_per_prb, 0.0))
                limits.append(limit / 1000)
        return np.array(rows).reshape(len(rows), of_unit.size), np.array(limits)


@dataclass(frozen=True)
class _GnbShare:
    rate: Array
    prbs: Array
    prb_load: Array
    cpu_used: Array
    cpu_load: Array
    missed: Array
    slice_cpu: Array
    work_s: Array
