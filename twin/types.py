"""The values that cross every boundary: KPIs, observations, actions. Frozen, SI units.

Entities are ``run``, ``slice:NAME``, ``ue:GROUP.INDEX``, ``node:NAME``, ``link:A-B`` (``link:A-B@BAND``),
``flow:NAME`` (backhaul), ``task:NODE.N`` (periodic tasks, from 1) and ``controller:NAME``. KPI names are
registered in :mod:`twin.kpis`, knobs in :mod:`twin.knobs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, slots=True)
class Kpi:
    """One value: ``name`` of ``entity`` at ``time_s`` since the start of the run."""

    time_s: float
    entity: str
    name: str
    value: float


@dataclass(frozen=True)
class Observation:
    """All KPIs of one interval that ended at ``time_s``.

    ``faults``: what befell the network by itself in it (a guest ended): entity, and in words.
    """

    time_s: float
    kpis: tuple[Kpi, ...]
    faults: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _index(self) -> dict[tuple[str, str], float]:
        return {(kpi.entity, kpi.name): kpi.value for kpi in self.kpis}

    def value(self, entity: str, name: str) -> float:
        """The value; KeyError naming entity and KPI when this interval has none."""
        try:
            return self._index[entity, name]
        except KeyError:
            raise KeyError(f"no KPI {name} of {entity} at {self.time_s:g} s") from None

    def get(self, entity: str, name: str, default: float) -> float:
        """The value, or ``default`` when this interval has none."""
        return self._index.get((entity, name), default)

    def entities(self, scope: str) -> Iterator[str]:
        """Entities of one scope (``slice``, ``ue``, ``node``, ``link``) in order of appearance."""
        seen = dict.fromkeys(kpi.entity for kpi in self.kpis)
        return (entity for entity in seen if entity.partition(":")[0] == scope)


@dataclass(frozen=True, slots=True)
class Action:
    """Set ``knob`` of ``entity`` to ``value``. Scripted events are actions too."""

    entity: str
    knob: str
    value: float | str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action: applied, or refused with a reason.

    ``time_s`` is when the change was in force (run clock), ``lag_s`` how long it took from the call.
    """

    action: Action
    applied: bool
    reason: str = ""
    time_s: float = 0.0
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One declared constraint against what the host delivered, found after bring-up.

    ``item`` names it (``link s1-s2 delay_s``); ``declared`` and ``measured`` are in ``unit``.
    """

    item: str
    unit: str
    declared: float
    measured: float
    passed: bool
    detail: str = ""


Provenance = Literal["measured", "modelled", "derived"]
