"""PRBs and CPU of the gNBs: what each UE gets of its pool in one step.

UEs of a pool get equal PRBs up to their need (what round robin gives, and proportional fair with
stationary channels), and PRBs are used only as fast as the CPU does the work per bit. A unit is one
direction of one UE: unit u is the downlink of UE u, unit ues + u its uplink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from twin.flow import constants as c
from twin.flow.maxmin import Array, max_min
from twin.flow.network import Network
from twin.flow.spans import sums
from twin.ran import nr

_FULL = 1 - 1e-6
_MOST_PRBS = 275


@cache
def prb_rates_bps(subcarrier_khz: int) -> Array:
    """bit/s of one PRB by CQI and PRBs of the block, shape (16, 276) (TS 38.214 §5.1.3.2 by twin.ran.nr)."""
    rates = np.zeros((nr.MAX_CQI + 1, _MOST_PRBS + 1))
    for cqi in range(nr.MAX_CQI + 1):
        for prbs in range(1, _MOST_PRBS + 1):
            rates[cqi, prbs] = c.SLOTS_PER_S * nr.bits_per_slot(cqi, prbs, subcarrier_khz=subcarrier_khz) / prbs
    return rates


@dataclass(frozen=True)
class GnbShare:
    """``rate`` in bit/s per lane; the rest as in :class:`twin.flow.fluid.Step`."""

    rate: Array
    prbs: Array
    prb_load: Array
    cpu_used: Array
    cpu_load: Array
    missed: Array
    slice_cpu: Array


class GnbPart:
    """All pools of all gNBs."""

    def __init__(self, network: Network) -> None:
        self._network = net = network
        self._ues, self._pools = len(net.ue_names), len(net.pools)
        self.unit_of_lane = net.lane_ue + np.where(net.lane_down, 0, self._ues)
        self._ue_of_unit = np.tile(np.arange(self._ues), 2)
        self._pool_of_unit = np.tile(net.ue_pool, 2)
        self._row_of_unit = np.concatenate((net.ue_pool, net.ue_pool + self._pools))
        self._pool_of_lane = net.ue_pool[net.lane_ue]
        gnbs = [net.gnbs[net.ues[ue].gnb] for ue in net.ue_names]
        work_ns = np.array([net.gnbs[net.ues[lane.ue].gnb].work_ns_per_bit for lane in net.lanes])
        self._lane_cost = np.maximum(work_ns, c.GNB_PACKET_NS / net.lane_bits) * 1e-9
        self.work_s = self._lane_cost * net.lane_bits
        self.queue_bits = np.tile(np.array([gnb.queue_bytes * 8.0 for gnb in gnbs]), 2)
        spacings = sorted({gnb.subcarrier_khz for gnb in gnbs})
        self._tables = np.array([prb_rates_bps(spacing) for spacing in spacings])
        self._table_of_unit = np.tile(np.array([spacings.index(gnb.subcarrier_khz) for gnb in gnbs], dtype=np.int64), 2)
        self._version = -1

    def per_unit(self, lanes: Array) -> Array:
        """Sum over the lanes of each unit, shape (2 ues,)."""
        return sums(self.unit_of_lane, lanes, 2 * self._ues)

    def _take_limits(self) -> None:
        net = self._network
        self._version = net.version
        self._prbs = np.array([net.pool_prbs(pool) for pool in net.pools])
        self._cpus = np.array([net.pool_cpus(pool) for pool in net.pools])
        self._prb_capacity = np.concatenate((self._prbs, self._prbs))
        rows = np.arange(2 * self._pools)[:, None]
        # The CPU rows are those of the pools, then those of gNBs whose own container has a limit for all its slices.
        sharing = [self._pool_of_unit == pool for pool in range(self._pools)]
        limits = []
        for gnb in net.gnbs:
            limit = net.nodes[gnb].cpu_millicores
            if limit is not None:
                inside = np.array([pool.gnb == gnb for pool in net.pools], dtype=bool)
                sharing.append(inside[self._pool_of_unit])
                limits.append(limit / 1000)
        self._limited_gnbs = bool(limits)
        self._sharing = np.array(sharing, dtype=np.float64).reshape(len(sharing), 2 * self._ues)
        self._usage = np.vstack(((self._row_of_unit == rows).astype(np.float64), self._sharing))
        self._capacity = np.concatenate((self._prb_capacity, self._cpus, np.array(limits)))

    def share(self, need: Array, cqi: NDArray[np.int64]) -> GnbShare:
        """Equal PRBs within each pool, up to need, CPU and PRBs; ``need`` in bit/s per lane, ``cqi`` per UE."""
        net = self._network
        if self._version != net.version:
            self._take_limits()
        pools, units = self._pools, 2 * self._ues
        unit_need = self.per_unit(need)
        asks = unit_need > 0
        busy = np.bincount(self._row_of_unit[asks], minlength=2 * pools)
        share = (self._prb_capacity / np.maximum(1, busy))[self._row_of_unit]
        whole = np.minimum(np.maximum(1, np.rint(share)), _MOST_PRBS).astype(np.int64)
        per_prb = np.zeros(units)
        if units:
            per_prb = np.where(asks, self._tables[self._table_of_unit, cqi[self._ue_of_unit], whole], 0.0)
        demand = np.divide(unit_need, per_prb, out=np.zeros(units), where=per_prb > 0)
        cost = np.divide(self.per_unit(need * self._lane_cost), unit_need, out=np.zeros(units), where=asks)
        cpu_per_prb = cost * per_prb
        np.multiply(self._sharing, cpu_per_prb, out=self._usage[2 * pools :])
        taken, _ = max_min(self._usage, self._capacity, demand)
        used = sums(self._pool_of_unit, taken * cpu_per_prb, pools)
        cpu_load = used / self._cpus
        missed = np.zeros(pools)
        if (cpu_load > _FULL).any() or self._limited_gnbs:
            # what the PRBs alone would allow tells how many slots the CPU could not run
            wished, _ = max_min(self._usage[: 2 * pools], self._prb_capacity, demand)
            wanted = sums(self._pool_of_unit, wished * cpu_per_prb, pools)
            some = wanted > 0
            missed[some] = np.maximum(0.0, 1 - used[some] / wanted[some])
        served = np.divide(taken * per_prb, unit_need, out=np.zeros(units), where=asks)
        prb_load = np.zeros(2 * pools)
        filled = sums(self._row_of_unit, taken, 2 * pools)
        np.divide(filled, self._prb_capacity, out=prb_load, where=self._prb_capacity > 0)
        rate = need * np.minimum(1.0, served)[self.unit_of_lane]
        return GnbShare(
            rate, taken.reshape(2, self._ues), prb_load.reshape(2, pools), used, cpu_load, missed,
            self._slice_cpu(rate, cpu_load),
        )  # fmt: skip

    def _slice_cpu(self, rate: Array, cpu_load: Array) -> Array:
        net = self._network
        # An idle program wakes up for every packet, a busy one finds the next waiting.
        waking_s = (c.GNB_PACKET_NS + c.WAKE_NS * (1 - np.minimum(1.0, cpu_load))) * 1e-9
        spent = rate / net.lane_bits * np.maximum(self.work_s, waking_s[self._pool_of_lane])
        # ... as far as its limit lets it
        allowed = np.minimum(1.0, self._cpus / np.maximum(sums(self._pool_of_lane, spent, self._pools), 1e-12))
        return sums(net.lane_slice, spent * allowed[self._pool_of_lane], len(net.slices))
