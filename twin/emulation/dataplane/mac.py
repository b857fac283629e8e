"""The MAC of a gNB process: queues, slots, PRB pools, and the CPU work that a bit costs.

- A MAC slot is 1 ms. With 30 kHz subcarriers it holds two NR slots, so a UE gets two transport blocks in it.
- Downlink and uplink have separate budgets, as in FDD: each direction may use all PRBs of the pool in each slot.
- Uplink packets arrive over the radio link as soon as the UE sends them, wait in a queue here, and go
  on when granted: the queue stands for the UE's own buffer, the arrival for an ideal buffer status report.
- Grants count towards the first packet of the queue until it is complete (RLC segmentation); padding is not kept.
- CQI 0 means that nothing gets through: the queue waits, fills, drops at its tail.
- Every bit costs ``work_ns_per_bit`` of CPU time before its packet goes on. A slot waits for the work of the
  one before. Slots that come late because the host was busy are made up for, at most
  :data:`MAX_CATCH_UP_SLOTS`; when the work of a slot takes longer than the slot, nothing is made up for. The rest
  are missed: their PRBs are lost, which is how too little CPU limits throughput.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twin.emulation.dataplane.loop import Loop, Timer, burn
from twin.ran.channel import STEP_S, Channel, scripted_cqi
from twin.ran.nr import bits_per_slot
from twin.ran.scheduler import Demand, make_scheduler

SLOT_NS = 1_000_000
MAX_CATCH_UP_SLOTS = 5
STALLED_SLOTS = 10  # how often a pool is looked at when no backlogged UE has a usable channel
PIECE_NS = 500_000  # CPU work between two looks at the sockets
MAX_CREDIT_NS = 200_000  # CPU time before the first packet of a busy period that counts as work done
STEP_NS = int(STEP_S * 1e9)
DL, UL = 0, 1


class UeRadio:
    """What the MAC knows about one UE. Lists of two are [downlink, uplink]."""

    __slots__ = (
        "bytes",
        "channel",
        "cqi",
        "cqi_count",
        "cqi_sum",
        "cqi_until_ns",
        "credit_bits",
        "deliver",
        "drops",
        "forced_cqi",
        "id",
        "packets",
        "pool",
        "prb_used",
        "queue",
        "queue_bytes",
        "script",
        "slice",
    )

    def __init__(self, ue_id: str, slice_name: str, pool: Pool, channel: Channel, script: list[list[float]]) -> None:
        self.id = ue_id
        self.slice = slice_name
        self.pool = pool
        self.channel = channel
        self.script = script
        self.forced_cqi: int | None = None
        self.cqi = 0
        self.cqi_until_ns = 0
        self.cqi_sum = self.cqi_count = 0
        self.queue: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.queue_bytes = [0, 0]
        self.credit_bits = [0, 0]
        self.bytes = [0, 0]
        self.packets = [0, 0]
        self.drops = [0, 0]
        self.prb_used = [0, 0]
        self.deliver: list[Callable[[bytes], None]] = []


class Pool:
    """PRBs that some UEs share; ``prbs`` per slot and direction may be a fraction."""

    def __init__(self, names: list[str], scheduler: str, prbs: float, now_ns: int) -> None:
        self.slices = names
        self.schedulers = (make_scheduler(scheduler), make_scheduler(scheduler))
        self.backlog: tuple[dict[str, UeRadio], dict[str, UeRadio]] = ({}, {})
        self.prbs = prbs
        self._carry = [0.0, 0.0]
        self._available = 0.0
        self._counted_slot = now_ns // SLOT_NS
        self.busy_slots = 0
        self.missed_slots = 0

    def set_prbs(self, prbs: float, now_ns: int) -> None:
        """Another size from now on."""
        self.available(now_ns)
        self.prbs = prbs
        self._carry = [0.0, 0.0]

    def available(self, now_ns: int) -> float:
        """PRB·slots per direction since the start, used or not."""
        slot = now_ns // SLOT_NS
        self._available += (slot - self._counted_slot) * self.prbs
        self._counted_slot = slot
        return self._available

    def budget(self, direction: int, slots: int) -> int:
        """Whole PRBs for this many slots; the fraction is kept for the next."""
        exact = self.prbs * slots + self._carry[direction]
        whole = int(exact + 1e-9)
        self._carry[direction] = exact - whole
        return whole


class Mac:
    """Slots, queues and work of all pools of one process."""

    def __init__(
        self,
        loop: Loop,
        pools: list[Pool],
        *,
        subcarrier_khz: int,
        layers: int,
        queue_bytes: int,
        work_ns_per_bit: float,
        epoch_ns: int,
    ) -> None:
        self._loop = loop
        self._pools = pools
        self._subcarrier_khz = subcarrier_khz
        self._layers = layers
        self._queue_limit = queue_bytes
        self.work_ns_per_bit = work_ns_per_bit
        self.epoch_ns = epoch_ns
        self._bits: dict[int, list[int]] = {}
        self._pipeline: deque[tuple[UeRadio, int, bytes]] = deque()
        self._paid_ns = 0  # thread time up to which work has been done
        self._last_slot = 0
        self._timer: Timer | None = None
        self._stalled = False
        self._keeps_up = True
        loop.work = self._work

    def enqueue(self, ue: UeRadio, direction: int, packet: bytes) -> None:
        """A packet for the radio; dropped when the queue is full."""
        size = len(packet)
        if ue.queue_bytes[direction] + size > self._queue_limit:
            ue.drops[direction] += 1
            return
        queue = ue.queue[direction]
        if not queue:
            ue.pool.backlog[direction][ue.id] = ue
            if self._timer is None and not self._pipeline:
                # All CPU time of a busy period is spent on its packets; what was spent before it is not.
                self._paid_ns = max(self._paid_ns, time.thread_time_ns() - MAX_CREDIT_NS)
                self._last_slot = time.monotonic_ns() // SLOT_NS
                self._arm(self._last_slot + 1)
        queue.append(packet)
        ue.queue_bytes[direction] += size

    def set_work(self, work_ns_per_bit: float) -> None:
        """Another cost per bit from now on; what cheaper bits left over is no credit for dearer ones."""
        self.work_ns_per_bit = work_ns_per_bit
        self._paid_ns = time.thread_time_ns()

    def flush(self, ue: UeRadio) -> None:
        """Forget all that waits for a UE that left."""
        for direction in (DL, UL):
            ue.queue[direction].clear()
            ue.queue_bytes[direction] = ue.credit_bits[direction] = 0
            ue.pool.backlog[direction].pop(ue.id, None)
            ue.pool.schedulers[direction].forget(ue.id)

    def current_cqi(self, ue: UeRadio, now_ns: int) -> int:
        """CQI in force, counted for the mean: forced, else scripted, else that of the channel."""
        if now_ns >= ue.cqi_until_ns:
            ue.cqi_until_ns = (now_ns // STEP_NS + 1) * STEP_NS
            time_s = max(0.0, (now_ns - self.epoch_ns) * 1e-9)
            if ue.forced_cqi is not None:
                ue.cqi = ue.forced_cqi
            elif ue.script:
                ue.cqi = scripted_cqi(ue.script, time_s)
            else:
                ue.cqi = ue.channel.cqi(time_s)
            ue.cqi_sum += ue.cqi
            ue.cqi_count += 1
        return ue.cqi

    def _table(self, cqi: int, prbs: int) -> list[int]:
        """Bits per MAC slot of 0 to ``prbs`` PRBs (or more)."""
        table = self._bits.setdefault(cqi, [0])
        while len(table) <= prbs:
            table.append(bits_per_slot(cqi, len(table), subcarrier_khz=self._subcarrier_khz, layers=self._layers))
        return table

    def _arm(self, slot: int) -> None:
        self._timer = self._loop.call_at(slot * SLOT_NS, self._slot)

    def _slot(self) -> None:
        self._timer = None
        now_ns = time.monotonic_ns()
        slot = now_ns // SLOT_NS
        elapsed = 1 if self._stalled else slot - self._last_slot
        granted = min(elapsed, MAX_CATCH_UP_SLOTS if self._keeps_up else 1)
        self._last_slot = slot
        usable = False
        for pool in self._pools:
            if pool.backlog[DL] or pool.backlog[UL]:
                pool.busy_slots += elapsed
                pool.missed_slots += elapsed - granted
                for direction in (DL, UL):
                    if pool.backlog[direction]:
                        usable |= self._serve(pool, direction, granted, slot, now_ns)
        self._stalled = not usable
        work_ns = 8 * self.work_ns_per_bit * sum(len(packet) for _, _, packet in self._pipeline)
        self._keeps_up = work_ns <= granted * SLOT_NS
        if not self._pipeline:
            self._next_slot()

    def _next_slot(self) -> None:
        for pool in self._pools:
            if pool.backlog[DL] or pool.backlog[UL]:
                self._arm(self._last_slot + (STALLED_SLOTS if self._stalled else 1))
                return
        self._stalled = False

    def _serve(self, pool: Pool, direction: int, slots: int, slot: int, now_ns: int) -> bool:
        """Give one direction of a pool its PRBs of ``slots`` slots; False when nobody can use any."""
        budget = pool.budget(direction, slots)
        per_slot = max(1, int(pool.prbs))
        demands = []
        for ue in pool.backlog[direction].values():
            cqi = self.current_cqi(ue, now_ns)
            if cqi:
                full_bits = self._table(cqi, per_slot)[per_slot]
                wanted_bits = 8 * ue.queue_bytes[direction] - ue.credit_bits[direction]
                demands.append(Demand(ue.id, self._prbs_for(wanted_bits, cqi, per_slot), full_bits / per_slot))
        if not demands or not budget:
            return bool(demands) and pool.prbs > 0
        scheduler = pool.schedulers[direction]
        for ue_id, prbs in scheduler.allocate(budget, demands, slot).items():
            ue = pool.backlog[direction][ue_id]  # type: ignore[index]
            table = self._table(ue.cqi, per_slot)
            whole, rest = divmod(prbs, per_slot)
            bits = whole * table[per_slot] + table[rest]
            ue.prb_used[direction] += prbs
            scheduler.served(ue_id, bits, slot)
            self._grant(ue, direction, bits)
        return True

    def _prbs_for(self, bits: int, cqi: int, per_slot: int) -> int:
        """The fewest PRBs (of as many slots as it takes) that carry ``bits``."""
        table = self._table(cqi, per_slot)
        whole, rest_bits = divmod(bits, table[per_slot])
        prbs = min(per_slot, max(1, rest_bits * per_slot // table[per_slot]))
        while table[prbs] < rest_bits:
            prbs += 1
        return whole * per_slot + (prbs if rest_bits else 0)

    def _grant(self, ue: UeRadio, direction: int, bits: int) -> None:
        queue = ue.queue[direction]
        credit = ue.credit_bits[direction] + bits
        while queue and credit >= 8 * len(queue[0]):
            packet = queue.popleft()
            credit -= 8 * len(packet)
            ue.queue_bytes[direction] -= len(packet)
            self._pipeline.append((ue, direction, packet))
        if not queue:
            credit = 0
            del ue.pool.backlog[direction][ue.id]
        ue.credit_bits[direction] = credit

    def _work(self) -> bool:
        pipeline = self._pipeline
        if not pipeline:
            return False
        work_ns = 8 * self.work_ns_per_bit
        piece_end_ns = time.thread_time_ns() + PIECE_NS
        while pipeline:
            ue, direction, packet = pipeline[0]
            size = len(packet)
            if work_ns:
                target_ns = self._paid_ns + int(size * work_ns)
                burn(min(target_ns, piece_end_ns))
                if target_ns > piece_end_ns:
                    return True
                self._paid_ns = target_ns
            pipeline.popleft()
            if ue.deliver:
                ue.bytes[direction] += size
                ue.packets[direction] += 1
                ue.deliver[direction](packet)
            if not len(pipeline) & 15 and time.thread_time_ns() >= piece_end_ns:
                break
        if pipeline:
            return True
        self._next_slot()
        return False


def cqi_mean(ue: UeRadio) -> float:
    """Mean CQI of the steps since the last call."""
    mean = ue.cqi_sum / ue.cqi_count if ue.cqi_count else float(ue.cqi)
    ue.cqi_sum = ue.cqi_count = 0
    return mean


def ue_counters(ue: UeRadio) -> dict[str, Any]:
    """Counters of one UE by their names in ``stats``."""
    found: dict[str, Any] = {}
    for direction, way in ((DL, "dl"), (UL, "ul")):
        found[f"{way}_bytes"] = ue.bytes[direction]
        found[f"{way}_packets"] = ue.packets[direction]
        found[f"{way}_drops"] = ue.drops[direction]
        found[f"{way}_queue_bytes"] = ue.queue_bytes[direction]
        found[f"prb_used_{way}"] = ue.prb_used[direction]
    return found
