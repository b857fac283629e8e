"""One-way delays of single packets, drawn from the queues of all steps of an interval.

delay = propagation + jitter + serialisation + waits at resources + MAC slots + fluid backlog

- propagation: sum of the links' delays, and a constant per node that forwards;
- jitter: uniform in [-j, j] per link;
- waits at a resource with load below 1: M/D/1 (:mod:`twin.flow.queueing`), service = one packet;
- MAC: a packet waits for the next slot, uniform in a slot (longer when the CPU misses slots), and
  M/D/1 for PRBs with service = one slot; what a slot grants arrives with the slot's work done;
- gNB CPU: the work of the packet itself, and an M/D/1 wait behind that of others, both at full speed:
  a limit (CFS quota) slows nothing down until it is spent, and then shows as missed slots and backlog;
- fluid backlog: linear from the step's start to its end.

Every packet needs a random number per cause. They are taken from the stream in the order step, cause,
lane, packet, all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twin.flow import constants as c
from twin.flow.fluid import Mask, Step
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.queueing import MAX_LOAD
from twin.flow.spans import Numbers, places, starts

NEGLIGIBLE_LOAD = 0.005
_MOST_MISSED = 0.99
_MOST_SLOTS = 100


@dataclass(frozen=True)
class Draws:
    """Delays of the working lanes: spans of ``counts`` values in ``delay_s``, by step, then lane.

    ``steps`` and ``lanes`` say whose each span is; ``span_of``, shape (steps, lanes), the reverse, -1 for
    none. ``jitter_s``, shape (steps, lanes): mean change of delay between neighbouring packets.
    """

    steps: Numbers
    lanes: Numbers
    counts: Numbers
    delay_s: Array
    span_of: Numbers
    jitter_s: Array


@dataclass(frozen=True)
class Queues:
    """Queues to wait in: ``met`` and ``room_s`` (longest wait) of shape (steps, queues, lanes), ``load`` and
    ``mean_s`` (mean wait) of shape (steps, queues)."""

    met: Mask
    load: Array
    mean_s: Array
    room_s: Array


def draw_delays(
    network: Network, steps: Sequence[Step], working: Mask, counts: Sequence[int], rng: np.random.Generator
) -> Draws:
    """``counts[k]`` delays of each lane that is ``working``, shape (steps, lanes), in step k."""
    item_step, item_lane = np.nonzero(working)
    per_step = np.array(counts, dtype=np.int64)
    item_count = per_step[item_step]
    item_start = starts(item_count)
    span_of = np.full(working.shape, -1, dtype=np.int64)
    span_of[item_step, item_lane] = np.arange(item_step.size)
    if not item_step.size:
        return Draws(item_step, item_lane, item_count, np.zeros(0), span_of, np.zeros(working.shape))

    # Causes in the order of their random numbers: jitter of links, queues, slot; a moment of the step at the end.
    wired, gnb = _wired_queues(network, steps, working), gnb_queues(network, steps, working)
    jitters, rows = len(network.way.jitters), wired.load.shape[1]
    slot = jitters + rows
    last = slot + 1 + gnb.load.shape[1]
    everyone = np.broadcast_to(working[:, None], (len(steps), 1, working.shape[1]))
    causes = np.concatenate((np.repeat(everyone, jitters, axis=1), wired.met, everyone, gnb.met, everyone), axis=1)
    of_step, cause, of_lane = np.nonzero(causes)
    entry_count = per_step[of_step]
    entry_start = starts(entry_count)
    uniform = rng.random(int(entry_count.sum()))

    def drawn(which: int) -> Array:
        """The random numbers of a cause that every working lane meets."""
        return uniform[places(entry_start[cause == which], item_count)]

    delay = np.repeat(network.way.delay_s[item_lane], item_count)
    for number, (jitter_s, mask) in enumerate(network.way.jitters):
        delay += np.where(np.repeat(mask[item_lane], item_count), 2 * jitter_s * drawn(number) - jitter_s, 0.0)
    delay = np.maximum(delay, 0.0)
    pool = network.ue_pool[network.lane_ue]
    missed = np.minimum(np.array([step.missed for step in steps])[:, pool], _MOST_MISSED)
    work_s = np.array([step.work_s for step in steps])
    delay += np.repeat((_serialisation_s(network) + work_s)[item_step, item_lane], item_count)
    delay += np.repeat((c.SLOT_S / (1 - missed))[item_step, item_lane], item_count) * drawn(slot)

    queues = [np.concatenate(pair, axis=1) for pair in (
        (wired.load, gnb.load), (wired.mean_s, gnb.mean_s), (wired.room_s, gnb.room_s)
    )]  # fmt: skip
    queueing = (cause >= jitters) & (cause < last) & (cause != slot)
    queue = np.where(queueing, cause - jitters - (cause > slot), 0)
    load, mean_s, room_s = queues
    busy = np.where(queueing & (mean_s[of_step, queue] > 0), np.clip(load[of_step, queue], 0.0, MAX_LOAD), 0.0)
    # Zero with probability 1 - load, else exponential: twin.flow.queueing.draw_waits, for those that wait.
    waiting = np.flatnonzero(uniform < np.repeat(busy, entry_count))
    entry = np.repeat(np.arange(of_step.size), entry_count)[waiting]
    scale = np.divide(mean_s[of_step, queue], busy, out=np.zeros_like(busy), where=busy > 0)
    with np.errstate(divide="ignore"):
        waits = -np.log(uniform[waiting] / busy[entry]) * scale[entry]
    waits = np.minimum(waits, room_s[of_step, queue, of_lane][entry])
    packet = waiting + (item_start[span_of[of_step, of_lane]] - entry_start)[entry]
    delay += np.bincount(packet, waits, delay.size)

    item = np.repeat(np.arange(item_step.size), item_count)
    change = np.where(item[1:] == item[:-1], np.abs(np.diff(delay)), 0.0)
    jitter = np.zeros(working.shape)
    jitter[item_step, item_lane] = np.bincount(item[1:], change, item_step.size) / np.maximum(item_count - 1, 1)

    standing = np.array([step.wired_delay_s + step.radio_delay_s for step in steps])[item_step, :, item_lane]
    if standing.any():
        moment = drawn(last)
        delay += np.repeat(standing[:, 0], item_count) * (1 - moment) + np.repeat(standing[:, 1], item_count) * moment
    return Draws(item_step, item_lane, item_count, delay, span_of, jitter)


def _serialisation_s(network: Network) -> Array:
    """Time to send one packet at every resource of a lane, shape (lanes,)."""
    wired = network.wired
    # a token bucket lets a packet pass at once, a transmitter does not
    sends = np.array([name[0] != "transport" for name in wired.names], dtype=bool) & (wired.capacity > 0)
    found: Array = (1 / wired.capacity[sends]) @ wired.usage[sends] * network.lane_bits
    return found


def _wired_queues(network: Network, steps: Sequence[Step], working: Mask) -> Queues:
    wired = network.wired
    load = np.array([step.row_load for step in steps])
    carried = np.array([step.wired_rate for step in steps]) / network.lane_bits @ wired.crossed.T
    in_use = (wired.capacity > 0) & (load > NEGLIGIBLE_LOAD) & (carried > 0)
    service_s = np.divide(load, carried, out=np.zeros_like(load), where=in_use)
    # what the fluid backlog already fills of the queue cannot be waited for once more
    fluid_s = np.array([step.wired_delay_s for step in steps]).mean(axis=1)
    room_s = np.maximum(0.0, c.QUEUE_PACKETS * service_s[:, :, None] - fluid_s[:, None])
    met = in_use[:, :, None] & wired.crossed & working[:, None]
    return Queues(met, load, _md1_wait_s(load, service_s), room_s)


def gnb_queues(network: Network, steps: Sequence[Step], working: Mask) -> Queues:
    """Three queues of each pool: its PRBs downlink and uplink, and its CPU."""
    pool_of_lane = network.ue_pool[network.lane_ue]
    pools = len(network.pools)
    mine = pool_of_lane == np.arange(pools)[:, None]
    inside = np.stack((mine & network.lane_down, mine & ~network.lane_down, mine), axis=1).reshape(
        3 * pools, len(network.lanes)
    )
    prb_load = np.array([step.prb_load for step in steps])
    cpu_used = np.array([step.cpu_used for step in steps])
    load = np.stack((prb_load[:, 0], prb_load[:, 1], cpu_used), axis=2).reshape(len(steps), 3 * pools)
    packets = np.array([step.gnb_packets for step in steps]) @ mine.T
    slot_s = np.full_like(cpu_used, c.SLOT_S)
    service_s = np.stack((slot_s, slot_s, cpu_used / np.maximum(1.0, packets)), axis=2).reshape(load.shape)
    # a UE with a backlog waits for that, not for the chance that its pool is busy
    backlog_s = np.array([step.radio_delay_s for step in steps]).max(axis=1)
    room_s = np.where(backlog_s > 0, 0.0, _MOST_SLOTS * c.SLOT_S)
    met = (load > NEGLIGIBLE_LOAD)[:, :, None] & inside & working[:, None]
    return Queues(met, load, _md1_wait_s(load, service_s), np.repeat(room_s[:, None], 3 * pools, axis=1))


def _md1_wait_s(load: Array, service_s: Array) -> Array:
    """:func:`twin.flow.queueing.md1_wait_s` of arrays."""
    load = np.minimum(load, MAX_LOAD)
    waits: Array = load * service_s / (2 * (1 - load))
    return waits
