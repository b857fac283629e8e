"""Who gets the PRBs of a slot: round-robin and proportional-fair over the backlogged UEs of a pool.

Wideband CQI only, so proportional fairness works in time: the UE with the highest metric takes what it needs, then the
next (Kushner and Whiting: Convergence of proportional-fair sharing algorithms under general conditions, §II).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

PF_WINDOW_SLOTS = 100


class Demand(NamedTuple):
    """A backlogged UE: PRBs that would empty its queue, and what one PRB carries for it now."""

    ue: Hashable
    prbs_needed: int
    bits_per_prb: float


class Scheduler(Protocol):
    """Divides PRBs; :meth:`served` tells it what came of it."""

    def allocate(self, prbs: int, demands: Sequence[Demand], slot: int) -> dict[Hashable, int]:
        """PRBs per UE, at most ``prbs`` in all and ``prbs_needed`` each; UEs that get none are left out."""

    def served(self, ue: Hashable, bits: int, slot: int) -> None:
        """``bits`` were carried for ``ue`` in ``slot``."""

    def forget(self, ue: Hashable) -> None:
        """The UE left."""


class RoundRobin:
    """Equal PRBs for all (max-min under their needs); PRBs that do not divide go round in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def allocate(self, prbs: int, demands: Sequence[Demand], slot: int) -> dict[Hashable, int]:  # noqa: ARG002
        """See :class:`Scheduler`."""
        granted: dict[Hashable, int] = {}
        left = prbs
        waiting = sorted(
            (demand for demand in demands if demand.prbs_needed > 0), key=lambda demand: demand.prbs_needed
        )
        while waiting and left >= len(waiting):
            share = left // len(waiting)
            modest = [demand for demand in waiting if demand.prbs_needed <= share]
            if not modest:
                for demand in waiting:
                    granted[demand.ue] = share
                left -= share * len(waiting)
                break
            for demand in modest:
                granted[demand.ue] = demand.prbs_needed
                left -= demand.prbs_needed
            waiting = waiting[len(modest) :]
        if waiting and left:
            # One more PRB each, starting behind the UE that was last to get one.
            order = sorted(waiting, key=lambda demand: str(demand.ue))
            for offset in range(min(left, len(order))):
                ue = order[(self._turn + offset) % len(order)].ue
                granted[ue] = granted.get(ue, 0) + 1
            self._turn += min(left, len(order))
        return granted

    def served(self, ue: Hashable, bits: int, slot: int) -> None:
        """Nothing to remember."""

    def forget(self, ue: Hashable) -> None:
        """Nothing to forget."""


class ProportionalFair:
    """Highest ratio of achievable rate to average rate first; averages decay over ``window_slots``."""

    def __init__(self, window_slots: int = PF_WINDOW_SLOTS) -> None:
        self._keep = 1 - 1 / window_slots
        self._gain = 1 / window_slots
        self._averages: dict[Hashable, tuple[float, int]] = {}

    def average_bits(self, ue: Hashable, slot: int) -> float:
        """Exponentially averaged bits per slot of a UE."""
        average, last = self._averages.get(ue, (0.0, slot))
        return average * self._keep ** (slot - last)

    def allocate(self, prbs: int, demands: Sequence[Demand], slot: int) -> dict[Hashable, int]:
        """See :class:`Scheduler`."""
        granted: dict[Hashable, int] = {}
        left = prbs
        if len(demands) > 1:
            demands = sorted(
                demands,
                key=lambda demand: demand.bits_per_prb / (self.average_bits(demand.ue, slot) + 1.0),
                reverse=True,
            )
        for demand in demands:
            share = min(left, demand.prbs_needed)
            if share > 0:
                granted[demand.ue] = share
                left -= share
            if left <= 0:
                break
        return granted

    def served(self, ue: Hashable, bits: int, slot: int) -> None:
        """See :class:`Scheduler`."""
        self._averages[ue] = (self.average_bits(ue, slot) + bits * self._gain, slot)

    def forget(self, ue: Hashable) -> None:
        """See :class:`Scheduler`."""
        self._averages.pop(ue, None)


def make_scheduler(name: str) -> RoundRobin | ProportionalFair:
    """``rr`` or ``pf``; ValueError names them otherwise."""
    if name == "rr":
        return RoundRobin()
    if name == "pf":
        return ProportionalFair()
    raise ValueError(f"scheduler must be one of pf, rr, got {name!r}")
