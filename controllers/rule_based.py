"""``rule_based``: more when utilisation is high, less when it is low.

The reactive baseline of NANCY D4.2 §4.3.6, with the numbers of MARLISE (arXiv 2507.07671): every 5 s
a service whose CPU utilisation is above 60 % gets 25 millicores more if the shared budget has them,
one below 30 % gives 25 back, none goes below 50. Here the same rule also moves transport bandwidth
and PRB shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controllers.base import ControllerContext
from controllers.params import choices, number, numbers
from twin.knobs import KNOBS
from twin.types import Action, Observation


@dataclass(frozen=True)
class _Rule:
    """Step and smallest value of one knob, in the unit of the knob."""

    step: float
    minimum: float


RULES = {
    "cpu_millicores": _Rule(25.0, 50.0),
    "bandwidth_mbps": _Rule(1.0, 1.0),
    "prb_share": _Rule(0.05, 0.05),
}


class RuleBased:
    """Thresholds on utilisation, averaged over the observations since the last decision.

    ``low``, ``high``: the band in which nothing changes (0 to 1). ``step``, ``minimum``, ``budget``:
    ``{knob: value}`` in the unit of the knob; the budget is shared by all entities of the scope and
    is by default what they had together at first (PRB shares: what the slices out of scope leave).
    An entity without a limit is left alone.
    """

    def __init__(
        self,
        context: ControllerContext,
        knobs: Sequence[str] = ("cpu_millicores",),
        high: float = 0.6,
        low: float = 0.3,
        step: Mapping[str, float] | None = None,
        minimum: Mapping[str, float] | None = None,
        budget: Mapping[str, float] | None = None,
    ) -> None:
        known = tuple(RULES)
        self._knobs = choices("knobs", knobs, known)
        self._high = number("high", high, 0, 1)
        self._low = number("low", low, 0, 1)
        if not self._low < self._high:
            raise ValueError(f"low must be less than high ({high:g}), got {low:g}")
        steps = numbers("step", step, known, 1e-9)
        minima = numbers("minimum", minimum, known, 0)
        for knob, value in minima.items():
            number(f"minimum.{knob}", value, KNOBS[knob].low, KNOBS[knob].high)
        self._rules = {
            knob: _Rule(steps.get(knob, rule.step), minima.get(knob, rule.minimum)) for knob, rule in RULES.items()
        }
        self._budget = numbers("budget", budget, known, 0)
        if "prb_share" not in self._budget:
            others = sum(s.prb_share for s in context.topology.slices if f"slice:{s.name}" not in context.scope)
            self._budget["prb_share"] = 1.0 - others
        self._scope = {
            knob: tuple(entity for entity in context.scope if entity.partition(":")[0] in KNOBS[knob].scopes)
            for knob in self._knobs
        }
        if not any(self._scope.values()):
            raise ValueError(f"knobs: none of {', '.join(self._knobs)} acts on the scope {', '.join(context.scope)}")
        self._limit: dict[tuple[str, str], float] = {}
        self._used: dict[tuple[str, str], list[float]] = {}

    def observe(self, observation: Observation) -> None:
        for knob, entities in self._scope.items():
            for entity in entities:
                measured = _measure(observation, entity, knob)
                if measured is not None:
                    used, self._limit[entity, knob] = measured
                    self._used.setdefault((entity, knob), []).append(used)

    def act(self) -> Sequence[Action]:
        actions: list[Action] = []
        for knob in self._knobs:
            actions.extend(self._decide(knob))
        self._used.clear()
        return actions

    def _decide(self, knob: str) -> list[Action]:
        rule = self._rules[knob]
        limits = {entity: self._limit[entity, knob] for entity in self._scope[knob] if (entity, knob) in self._limit}
        loads = {
            entity: sum(used) / len(used) for entity in limits if (used := self._used.get((entity, knob))) is not None
        }
        available = self._budget.setdefault(knob, sum(limits.values())) - sum(limits.values())
        actions: list[Action] = []
        # Releases first: what they free can be claimed at once, by the most loaded first.
        for entity, load in loads.items():
            value = _tidy(limits[entity] - rule.step)
            if load < self._low and value >= rule.minimum:
                actions.append(Action(entity, knob, value))
                available += rule.step
        for entity, load in sorted(loads.items(), key=lambda item: -item[1]):
            if load > self._high and available >= rule.step - 1e-9:
                actions.append(Action(entity, knob, min(KNOBS[knob].high, _tidy(limits[entity] + rule.step))))
                available -= rule.step
        return actions


def _measure(observation: Observation, entity: str, knob: str) -> tuple[float, float] | None:
    """Utilisation (0 to 1 and above) and limit in the unit of the knob; None when there is no limit."""

    def get(name: str) -> float:
        return observation.get(entity, name, math.nan)

    if knob == "cpu_millicores":
        limit = get("cpu_limit_millicores")
        load = get("cpu_used_millicores") / limit if limit > 0 else math.nan
    elif knob == "prb_share":
        limit = get("prb_share")
        load = max(observation.get(entity, f"prb_used_{way}_ratio", -1.0) for way in ("dl", "ul"))
        load = load if load >= 0 else math.nan
    else:
        limit = get("bandwidth_limit_bps") / 1e6
        names = ("link_throughput_bps",) if entity.startswith("link:") else ("throughput_dl_bps", "throughput_ul_bps")
        carried = [value for name in names if not math.isnan(value := get(name))]
        load = max(carried) / 1e6 / limit if carried and limit > 0 else math.nan
    return None if math.isnan(load) or math.isnan(limit) else (load, limit)


def _tidy(value: float) -> float:
    """Away with the last bits: 0.3 and not 0.30000000000000004 goes into logs and files."""
    return round(value, 9)
