"""One-way delays of single packets, drawn from the queues of a step.

delay = propagation + jitter + serialisation + waits at resources + MAC slots + fluid backlog

- propagation: sum of the links' delays, and a constant per node that forwards;
- jitter: uniform in [-j, j] per link;
- waits at a resource with load below 1: M/D/1 (:mod:`twin.flow.queueing`), service = one packet;
- MAC: a packet waits for the next slot, uniform in a slot (longer when the CPU misses slots), and
  M/D/1 for PRBs with service = one slot; what a slot grants arrives with the slot's work done;
- gNB CPU: the work of the packet itself, and an M/D/1 wait behind that of others, both at full speed:
  a limit (CFS quota) slows nothing down until it is spent, and then shows as missed slots and backlog;
- fluid backlog: linear from the step's start to its end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twin.flow import constants as c
from twin.flow.fluid import Mask, Step
from twin.flow.maxmin import Array
from twin.flow.network import Network
from twin.flow.queueing import draw_waits, md1_wait_s

NEGLIGIBLE_LOAD = 0.005
_MOST_MISSED = 0.99
_MOST_SLOTS = 100


def draw_delays(network: Network, step: Step, lanes: Mask, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """(delays, jitters): ``count`` delays of each lane in ``lanes``, shape (lanes, count), and the mean
    change of delay between neighbouring packets, shape (lanes,), in seconds. Zero rows for other lanes.
    """
    chosen = np.flatnonzero(lanes)
    shape = (chosen.size, count)
    delays = np.zeros((len(network.lanes), count))
    jitters = np.zeros(len(network.lanes))
    if not chosen.size:
        return delays, jitters
    drawn = np.repeat(network.way.delay_s[chosen][:, None], count, axis=1)
    for jitter_s, mask in network.way.jitters:
        drawn += np.where(mask[chosen][:, None], rng.uniform(-jitter_s, jitter_s, shape), 0.0)
    drawn = np.maximum(drawn, 0.0)
    drawn += _wired_waits(network, step, chosen, count, rng)
    drawn += _gnb_waits(network, step, chosen, count, rng)
    jitters[chosen] = np.abs(np.diff(drawn, axis=1)).mean(axis=1)
    moment = rng.random(shape)
    for start, end in (step.wired_delay_s, step.radio_delay_s):
        drawn += start[chosen][:, None] * (1 - moment) + end[chosen][:, None] * moment
    delays[chosen] = drawn
    return delays, jitters


def _wired_waits(
    network: Network, step: Step, chosen: NDArray[np.int64], count: int, rng: np.random.Generator
) -> Array:
    wired = network.wired
    waits = np.zeros((chosen.size, count))
    packets = step.wired_rate / network.lane_bits
    fluid_s = step.wired_delay_s.mean(axis=0)[chosen][:, None]
    for row, load in enumerate(step.row_load):
        usage = wired.usage[row]
        crossing = usage[chosen] > 0
        if not crossing.any() or wired.capacity[row] <= 0:
            continue
        service = usage * network.lane_bits / wired.capacity[row]
        if wired.names[row][0] != "transport":  # a token bucket lets a packet pass at once, a transmitter does not
            waits[crossing] += service[chosen][crossing][:, None]
        carried = float(packets[usage > 0].sum())
        if load > NEGLIGIBLE_LOAD and carried > 0:
            mean_s = float((packets * service).sum()) / carried
            # what the fluid backlog already fills of the queue cannot be waited for once more
            room_s = np.maximum(0.0, c.QUEUE_PACKETS * mean_s - fluid_s[crossing])
            shape = (int(crossing.sum()), count)
            waits[crossing] += draw_waits(rng, shape, float(load), md1_wait_s(float(load), mean_s), room_s)
    return waits


def _gnb_waits(network: Network, step: Step, chosen: NDArray[np.int64], count: int, rng: np.random.Generator) -> Array:
    pools = network.ue_pool[network.lane_ue[chosen]]
    ways = np.where(network.lane_down[chosen], 0, 1)
    missed = np.minimum(step.missed[pools], _MOST_MISSED)
    waits: Array = c.SLOT_S * rng.random((chosen.size, count)) / (1 - missed)[:, None]
    # a UE with a backlog waits for that, not for the chance that its pool is busy
    room_s = np.where(step.radio_delay_s.max(axis=0)[chosen] > 0, 0.0, _MOST_SLOTS * c.SLOT_S)[:, None]
    for pool in np.unique(pools):
        for way in range(2):
            inside = (pools == pool) & (ways == way)
            load = float(step.prb_load[way, pool])
            if inside.any() and load > NEGLIGIBLE_LOAD:
                shape = (int(inside.sum()), count)
                waits[inside] += draw_waits(rng, shape, load, md1_wait_s(load, c.SLOT_S), room_s[inside])
        inside = pools == pool
        load = float(step.cpu_used[pool])
        waits[inside] += step.work_s[chosen][inside][:, None]
        if load > NEGLIGIBLE_LOAD:
            mean_work_s = load / max(1.0, float((step.gnb_packets * (network.ue_pool[network.lane_ue] == pool)).sum()))
            shape = (int(inside.sum()), count)
            waits[inside] += draw_waits(rng, shape, load, md1_wait_s(load, mean_work_s), room_s[inside])
    return waits
