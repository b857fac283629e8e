"""Delay, queue and load of thousands of path allocations at once: the wired part of the flow model in steady state.

What :mod:`twin.flow.fluid` and :mod:`twin.flow.delays` compute for one network step by step is computed here
for constant demands, after the queues have settled, as array functions on NumPy or PyTorch. With x_f the
rate of flow f, d_f its demand, p_f the bits of a packet, w_lf the usage and c_l the capacity of link l::

    load_l    = sum_f w_lf x_f / c_l
    service   = w_lf p_f / c_l                        one packet of f at l
    mean_l    = load_l / sum_f (x_f / p_f)            mean service of the packets at l
    m_l       = M/D/1 wait at load_l and mean_l       (twin.flow.queueing.md1_wait_s)

A flow with d_f > x_f waits at the link that limits it, whose queue is full with Q packets. They are those
of the waiting flows in proportion to what they send too much, e_f = d_f - x_f, and all that cross the link
wait for them (first in, first out)::

    queue_l = Q / sum_g (e_g / p_g) * sum_g w_lg e_g / sum_f w_lf x_f      g: flows that wait at l

    delay_f = way_f + sum over l in P_f of (service + queue_l + E[min(W_l, room_lf)])

W_l is 0 with probability 1 - load_l, else exponential, with mean m_l; room_lf = Q mean_l - sum of queue over
P_f is what the buffer leaves, so that E[min(W, room)] = m (1 - exp(-room load / m)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twin.flow.batched import BatchedFlows, whole_numbers
from twin.flow.batched_arrays import Ops
from twin.flow.batched_tables import HopTables
from twin.flow.constants import QUEUE_PACKETS
from twin.flow.delays import NEGLIGIBLE_LOAD
from twin.flow.queueing import MAX_LOAD

# Relative differences below this are rounding of the rates.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Delays:
    """Per flow, shape (B, F), in seconds; ``load`` per link, shape (B, L).

    ``queue_s`` is the part of ``delay_s`` that full queues make. ``delay_s`` is infinite where nothing
    of a demand gets through.
    """

    delay_s: Any
    queue_s: Any
    load: Any


def delays(
    model: BatchedFlows,
    allocations: Any,
    *,
    packet_bits: ArrayLike,
    way_delay_s: ArrayLike = 0.0,
    token_bucket: ArrayLike | None = None,
    demand_bps: Any = None,
    capacity_bps: Any = None,
) -> Delays:
    """Mean one-way delays of ``allocations``, shape (B, F), with the demands and capacities of the model.

    ``packet_bits`` and ``way_delay_s`` (propagation and forwarding) have shape (F,) or are numbers;
    ``token_bucket`` marks links, shape (L,), that let a packet pass at once instead of sending it for
    its service time. ``demand_bps`` (B, F) and ``capacity_bps`` (B, L) as in
    :meth:`twin.flow.batched.BatchedFlows.rates`. Tensors on the model's device where ``allocations`` is one.
    ValueError names what does not fit.
    """
    rates = model.rates(allocations, demand_bps=demand_bps, capacity_bps=capacity_bps)
    bits = np.broadcast_to(np.asarray(packet_bits, dtype=np.float64), (model.flows,))
    way = np.broadcast_to(np.asarray(way_delay_s, dtype=np.float64), (model.flows,))
    for what, values in (("packet_bits", bits), ("way_delay_s", way)):
        if not (np.isfinite(values).all() and (values >= 0).all() and (what != "packet_bits" or (values > 0).all())):
            raise ValueError(f"{what}: must be finite and {'above 0' if what == 'packet_bits' else 'not negative'}")
    sends = np.ones(model.links)
    if token_bucket is not None:
        sends = np.where(np.broadcast_to(np.asarray(token_bucket, dtype=bool), (model.links,)), 0.0, 1.0)

    ops, tables = model.whole
    crossed = _Crossed(ops, tables, allocations, rates.shape)
    demand = np.broadcast_to(model.demand_bps, rates.shape) if demand_bps is None else demand_bps
    capacity = np.broadcast_to(model.capacity_bps, (len(rates), model.links)) if capacity_bps is None else capacity_bps
    x, demand = crossed.flows(rates), crossed.flows(demand)
    p, way = crossed.flows(bits[None].copy()), crossed.flows(way[None].copy())
    limit = crossed.links(capacity, np.inf)
    sent = crossed.links(np.broadcast_to(sends, (len(rates), model.links)), 0.0)

    none = crossed.links(np.zeros((len(rates), model.links)), 0.0)
    taken = crossed.total(x, weighted=True)
    packets = crossed.total(x / p, weighted=False)
    down = limit <= 0
    limit = ops.where(down, none + 1.0, limit)
    load = ops.where(down, none + 1.0, taken / limit)
    carries = packets > 0
    mean_s = ops.where(carries, load / ops.where(carries, packets, none + 1.0), none)

    queue_s = _standing_s(crossed, x, demand, p, load, taken)
    busy = ops.minimum(load, none + MAX_LOAD)
    wait_s = ops.where((load > NEGLIGIBLE_LOAD) & carries & ~down, busy * mean_s / (2 * (1 - busy)), none)
    queue = x * 0.0
    for hop in crossed.hops:
        queue[crossed.part(hop)] += crossed.at(queue_s, hop)
    delay = queue + way
    for hop in crossed.hops:
        part = crossed.part(hop)
        delay[part] += crossed.usage(hop) * p[part] * crossed.at(ops.where(down, none, sent / limit), hop)
        mean, rho = crossed.at(wait_s, hop), crossed.at(busy, hop)
        room = ops.clip_below(QUEUE_PACKETS * crossed.at(mean_s, hop) - queue[part], 0.0)
        delay[part] += mean * (1 - ops.exp(-room * rho / ops.where(mean > 0, mean, mean + 1.0)))
    delay = ops.where((x <= 0) & (demand > 0), x * 0.0 + np.inf, delay)
    found = (crossed.back(delay), crossed.back(queue), load[:-1].T)
    return Delays(*(map(ops.numpy, found) if isinstance(rates, np.ndarray) else found))


def _standing_s(crossed: _Crossed, x: Any, demand: Any, p: Any, load: Any, taken: Any) -> Any:
    """Seconds of the standing queue of every link, shape (L + 1, B); 0 where none waits."""
    ops = crossed.ops
    excess = ops.where(demand - x > _EQUAL * demand, demand - x, x * 0.0)
    fastest = crossed.most(x)
    # A flow waits at the first full link on which no flow is faster; positions in a column grow with the link.
    stands = x * 0.0 + np.inf
    for hop in crossed.hops:
        part = crossed.part(hop)
        limits = (crossed.at(load, hop) >= 1 - _EQUAL) & (x[part] >= crossed.at(fastest, hop) * (1 - _EQUAL))
        here = ops.where(limits, crossed.index[hop] * 1.0, stands[part])
        stands[part] = ops.minimum(stands[part], here)

    def waiting(hop: int) -> Any:
        part = crossed.part(hop)
        return ops.where(stands[part] == crossed.index[hop], excess[part], 0.0 * excess[part])

    packets = crossed.summed(lambda hop: waiting(hop) / crossed.of(p, hop))
    held = crossed.summed(lambda hop: crossed.usage(hop) * waiting(hop))
    full = (packets > 0) & (taken > 0)
    return ops.where(full, QUEUE_PACKETS * held / ops.where(full, packets * taken, held * 0.0 + 1.0), held * 0.0)


class _Crossed:
    """Which links the flows of every allocation cross: flows by the order of the tables, allocations last.

    ``index[h]``: where the link of hop h is in a flattened array of shape (L + 1, B), for the flows that
    have so many hops, which are the first. Row L is the absent hop of shorter paths, without limit.
    """

    def __init__(self, ops: Ops, tables: HopTables, allocations: Any, shape: tuple[int, int]) -> None:
        self.ops, self._tables = ops, tables
        self._batch, flows = shape
        self._rows = tables.rows + 1
        self._order = ops.table(tables, "order")[0]
        steps = ops.array(tables.most * np.arange(flows)[:, None])
        places = self.flows(whole_numbers("allocations", allocations)) + steps
        self.index = ops.links(tables, places)
        self._usages = ops.usages(tables, places)
        self.hops = range(len(self.index))

    def flows(self, values: Any) -> Any:
        """(B, F) to (F, B), in the order of the tables."""
        return self.ops.rows(self.ops.array(values).T, self._order)

    def links(self, values: Any, absent: float) -> Any:
        """(B, L) to (L + 1, B)."""
        found = self.ops.zeros((self._rows, self._batch)) + absent
        found[:-1] = self.ops.array(values).T
        return found

    def back(self, values: Any) -> Any:
        """(F, B), in the order of the tables, to (B, F)."""
        return self.ops.rows(values, self.ops.table(self._tables, "place_of")[0]).T

    def part(self, hop: int) -> slice:
        """The flows with so many hops."""
        return slice(0, self._tables.with_hop[hop])

    def of(self, values: Any, hop: int) -> Any:
        return values[self.part(hop)]

    def at(self, values: Any, hop: int) -> Any:
        """Values of the links, shape (L + 1, B), at a hop of every flow."""
        return self.ops.take(values, self.index[hop])

    def usage(self, hop: int) -> Any:
        return 1.0 if self._usages is None else self._usages[hop]

    def summed(self, values: Callable[[int], Any]) -> Any:
        """Sums over the flows of every link, shape (L + 1, B), of what each hop's flows have."""
        total = self.ops.zeros((self._rows, self._batch)).reshape(-1)
        for hop in self.hops:
            self.ops.add_at(total, self.index[hop], values(hop))
        return total.reshape(self._rows, self._batch)

    def total(self, values: Any, *, weighted: bool) -> Any:
        """Sums of ``values``, shape (F, B), times usages or not."""
        return self.summed(lambda hop: (self.usage(hop) if weighted else 1.0) * values[self.part(hop)])

    def most(self, values: Any) -> Any:
        """The largest of ``values``, shape (F, B), on every link."""
        found = self.ops.zeros((self._rows, self._batch)).reshape(-1)
        for hop in self.hops:
            self.ops.max_at(found, self.index[hop], values[self.part(hop)])
        return found.reshape(self._rows, self._batch)
