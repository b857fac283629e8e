"""``sched_deadline``: reservations of CPU time that follow what threads use (NANCY D3.4 §4, NANCY D4.2 §4.1).

The period comes from the wake-ups (``wakeup_period_s``, PeriodWiz), the budget from the CPU time used per period
(``dl_used_s``) by the law of the runtime monitor, :class:`twin.deadline.budget_law.BudgetLaw`. Where more is wanted
than may be reserved, because ``max_bandwidth`` or the kernel (a refused action) says so, bandwidth is given by
priority: the others get less budget in the same period, or the same budget in a longer one ("graceful degradation
by reducing the budget and/or increasing the period", NANCY D4.2 §4.1.2), but never nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from controllers.base import ControllerContext
from controllers.params import choice, number, numbers
from topologies.model import Container, Partition
from twin.deadline.budget_law import BudgetLaw, LawSettings
from twin.types import Action, Observation

# Reservations that differ by less are the same: a system call saved, and no other effect.
_SAME = 0.005
# A period found counts as new when it differs by more.
_OTHER_PERIOD = 0.02
# A thread that uses this much of its budget may want more; measured times waver.
_USED_UP = 0.97
# Where bandwidth is short, nobody gets less than this part of an equal share.
_FLOOR = 0.2
# CPUs by which a limit learned from refusals is tested at least.
_LEAST_STEP = 0.01
_LONGEST_PAUSE = 16
_LONGEST_PERIOD_S = 4.194304  # of sched_deadline_period_max_us


@dataclass(slots=True)
class _Thread:
    """A task, or a partition with ``count`` virtual CPUs, and what is known of it."""

    entity: str
    count: int
    priority: float
    law: BudgetLaw | None = None
    clock_s: float = 0.0
    executed_s: float = 0.0
    wakeup_period_s: float | None = None
    budget_s: float = 0.0  # in force; 0 without a reservation
    period_s: float = 0.0
    asked: float = 0.0  # bandwidth of one of ``count``
    wanted: float = 0.0

    @property
    def alpha(self) -> float:
        """Bandwidth in force, of one of ``count``."""
        return self.budget_s / self.period_s if self.period_s else 0.0


class SchedDeadline:
    """SCHED_DEADLINE reservations of the tasks of containers and of the virtual CPUs of partitions in its scope.

    ``period_s``: period of every reservation; left out, that of the thread's wake-ups once it is found.
    ``first_period_s``: period until then; left out, a thread has no reservation before. ``budget_s``: the first budget.
    ``overallocation``, ``samples``, ``max_share``: ovh, N and the largest part of the period of the law.
    ``max_bandwidth``: CPUs that all its reservations together may have; left out, as many as are admitted.
    ``priorities``: ``{edge.1: 2}``, more is more important; 0 for others, 1 for critical partitions.
    ``degrade``: what those of low priority lose where bandwidth is short: ``budget`` (less in the same period)
    or ``period`` (the same budget in a longer period). ``max_delta_s``: bound on the worst-case service delay
    2 (P - Q), for all or ``{edge.1: 0.05}``; kept by a period that is a fraction of the thread's.
    """

    def __init__(
        self,
        context: ControllerContext,
        period_s: float | None = None,
        first_period_s: float | None = None,
        budget_s: float = 0.002,
        overallocation: float = 0.1,
        samples: int = 2,
        max_share: float = 0.8,
        max_bandwidth: float | None = None,
        priorities: Mapping[str, float] | None = None,
        degrade: Literal["budget", "period"] = "budget",
        max_delta_s: float | Mapping[str, float] | None = None,
    ) -> None:
        counts = _counts(context)
        if not counts:
            raise ValueError(
                "scope: has no task of a container and no partition; give a container tasks, or name task:NODE.1"
            )
        names = {entity.partition(":")[2]: entity for entity in counts}
        self._fixed_s = None if period_s is None else number("period_s", period_s, 0.001, _LONGEST_PERIOD_S)
        self._first_s = None
        if first_period_s is not None:
            self._first_s = number("first_period_s", first_period_s, 0.001, _LONGEST_PERIOD_S)
        self._budget_s = number("budget_s", budget_s, 1e-4, _LONGEST_PERIOD_S)
        number("samples", samples, 1, 1000)
        if samples != int(samples):
            raise ValueError(f"samples must be a whole number in [1, 1000], got {samples!r}")
        self._law = LawSettings(
            overallocation=number("overallocation", overallocation, 0.03, 10),
            samples=int(samples),
            max_share=number("max_share", max_share, 0.01, 1),
        )
        for name, known_s in (("period_s", self._fixed_s), ("first_period_s", self._first_s)):
            if known_s is not None and self._budget_s > self._law.max_share * known_s:
                raise ValueError(
                    f"budget_s must be at most {self._law.max_share * known_s:g} (max_share of {name}), "
                    f"got {self._budget_s:g}"
                )
        self._most = math.inf if max_bandwidth is None else number("max_bandwidth", max_bandwidth, 0.001, 1024)
        self._degrade = choice("degrade", degrade, ("budget", "period"))
        given = numbers("priorities", _unscoped("priorities", priorities, names), tuple(names), -1e9, 1e9)
        if max_delta_s is None or isinstance(max_delta_s, Mapping):
            self._bounds = numbers("max_delta_s", _unscoped("max_delta_s", max_delta_s, names), tuple(names), 1e-3, 60)
        else:
            self._bounds = dict.fromkeys(names, number("max_delta_s", max_delta_s, 1e-3, 60))
        critical = {node.name for node in context.topology.of_kind(Partition) if node.critical}
        self._threads = [
            _Thread(entity, counts[entity], given.get(name, float(name in critical))) for name, entity in names.items()
        ]
        self._seen_s = 0.0
        self._limit: float | None = None  # learned from refusals
        self._pause, self._wait = 1, 0  # decisions between two attempts to get more

    def observe(self, observation: Observation) -> None:
        elapsed_s, self._seen_s = observation.time_s - self._seen_s, observation.time_s
        for one in self._threads:
            one.period_s = observation.get(one.entity, "dl_period_s", 0.0)
            one.budget_s = observation.get(one.entity, "dl_budget_s", 0.0)
            wakeup_s = observation.get(one.entity, "wakeup_period_s", 0.0)
            one.wakeup_period_s = wakeup_s or one.wakeup_period_s
            used_s = observation.get(one.entity, "dl_used_s", math.nan)
            if one.period_s and not math.isnan(used_s):
                one.clock_s += elapsed_s
                one.executed_s += used_s / one.period_s * elapsed_s

    def act(self) -> Sequence[Action]:
        self._learn()
        for one in self._threads:
            self._want(one)
        wanted = {one.entity: one.wanted * one.count for one in self._threads if one.law is not None}
        limit = min(self._most, math.inf if self._limit is None else self._limit)
        given = self._given(wanted, limit)
        plans = [
            (one, *self._reservation(one, given[one.entity] / one.count))
            for one in self._threads
            if one.entity in given
        ]
        actions: list[Action] = []
        # Those that give back first: what they had may be what the others need. The important ones then.
        for one, budget_s, period_s in sorted(plans, key=lambda plan: (self._grows(*plan), -plan[0].priority)):
            one.asked = budget_s / period_s
            if not _same(one, budget_s, period_s):
                actions.append(Action(one.entity, "dl_period_us", float(round(period_s * 1e6))))
                actions.append(Action(one.entity, "dl_runtime_us", float(round(budget_s * 1e6))))
        return actions

    @staticmethod
    def _grows(one: _Thread, budget_s: float, period_s: float) -> bool:
        return budget_s / period_s > one.alpha

    def _learn(self) -> None:
        """What the refusals of the last decision say about how much may be reserved."""
        held = sum(one.alpha * one.count for one in self._threads)
        asked = sum(one.asked * one.count for one in self._threads)
        wanted = sum(one.wanted * one.count for one in self._threads)
        if any(one.alpha < one.asked * (1 - 2 * _SAME) for one in self._threads):
            if asked - held <= 1.5 * _LEAST_STEP:
                # As much as there is. Somebody else may give back: looked at again, less and less often.
                self._limit, self._pause = held, min(_LONGEST_PAUSE, 2 * self._pause)
                self._wait = self._pause
            else:
                self._limit = held + (asked - held) / 2
        elif wanted <= held * (1 + _SAME):
            self._limit, self._pause, self._wait = None, 1, 0
        elif self._wait:
            self._wait -= 1
            self._limit = held if self._wait else held + _LEAST_STEP
        elif self._limit is not None:
            self._limit = held + max(_LEAST_STEP, (wanted - held) / 2)

    def _want(self, one: _Thread) -> None:
        """Let the law say which bandwidth a thread needs."""
        period_s = self._fixed_s or one.wakeup_period_s or self._first_s
        if period_s is None:
            return
        if one.law is None or abs(one.law.period_s - period_s) > _OTHER_PERIOD * one.law.period_s:
            share = self._budget_s / period_s if one.law is None else one.wanted
            settings = replace(self._law, min_budget_s=min(self._law.min_budget_s, self._law.max_share * period_s))
            one.law = BudgetLaw(period_s, share * period_s, settings)
            one.law.update(one.clock_s, one.executed_s)
            one.wanted = one.law.budget_s / period_s
            return
        # The same period, told better than at first: what the law knows of the thread still holds.
        one.law.period_s = period_s
        if one.period_s == 0:
            return  # nothing was used under a reservation that was refused
        # The law judges by what the thread could use, not by what was asked for it.
        one.law.budget_s = one.alpha * one.law.period_s
        try:
            wanted = one.law.update(one.clock_s, one.executed_s) / one.law.period_s
        except ValueError:
            return  # no observation since the last decision
        short = one.alpha < one.wanted * (1 - 2 * _SAME) and one.law.used_s >= _USED_UP * one.alpha * one.law.period_s
        one.wanted = max(one.wanted, wanted) if short else wanted

    def _given(self, wanted: Mapping[str, float], limit: float) -> dict[str, float]:
        """Bandwidth of each, at most ``limit`` CPUs in all: by priority, and max-min fair among equals.

        So a thread whose law just accelerates takes nothing from an equal one that wants little.
        """
        if sum(wanted.values()) <= limit:
            return dict(wanted)
        floor = _FLOOR * limit / len(wanted)
        given = {entity: min(want, floor) for entity, want in wanted.items()}
        left = limit - sum(given.values())
        for priority in sorted({one.priority for one in self._threads}, reverse=True):
            level = [one.entity for one in self._threads if one.priority == priority and one.entity in wanted]
            left += sum(given[entity] for entity in level)
            for place, entity in enumerate(sorted(level, key=lambda entity: wanted[entity])):
                given[entity] = min(wanted[entity], left / (len(level) - place))
                left -= given[entity]
        return given

    def _reservation(self, one: _Thread, alpha: float) -> tuple[float, float]:
        """Budget and period in s of this bandwidth, within the bound on the service delay."""
        assert one.law is not None
        period_s = one.law.period_s
        bound_s = self._bounds.get(one.entity.partition(":")[2], math.inf)
        if self._degrade == "period" and alpha < one.wanted * (1 - _SAME):
            # Jobs stay whole, but wait longer for their turn.
            longest_s = min(_LONGEST_PERIOD_S, bound_s / (2 * (1 - alpha)))
            period_s = max(period_s, min(longest_s, one.wanted * period_s / alpha))
        # A whole fraction of the thread's period keeps the budgets where the jobs are.
        parts = max(1, math.ceil(2 * period_s * (1 - alpha) / bound_s * (1 - 1e-9)))
        period_s /= parts
        return max(alpha * period_s, min(1e-4, self._law.max_share * period_s)), period_s


def _same(one: _Thread, budget_s: float, period_s: float) -> bool:
    if not one.period_s:
        return False
    return abs(one.period_s - period_s) <= 1e-3 * period_s and abs(one.budget_s - budget_s) <= _SAME * budget_s


def _counts(context: ControllerContext) -> dict[str, int]:
    """Entity -> number of threads that a reservation of it is for: 1 for a task, the cores of a partition."""
    topology = context.topology
    containers = {node.name for node in topology.of_kind(Container)}
    partitions = {f"node:{node.name}": node.cores for node in topology.of_kind(Partition)}
    tasks = {f"task:{name}": 1 for name in topology.tasks if name.rpartition(".")[0] in containers}
    known = {**tasks, **partitions}
    return {entity: known[entity] for entity in context.scope if entity in known}


def _unscoped(parameter: str, given: object, names: Mapping[str, str]) -> object:
    """A mapping with names instead of whole entities (``task:edge.1``) as keys; anything else as it is."""
    if not isinstance(given, Mapping):
        return given
    by_entity = {entity: name for name, entity in names.items()}
    for entity, name in by_entity.items():
        if entity in given and name in given:
            raise ValueError(f"{parameter}: {name} is given twice, as {name} and {entity}")
    return {by_entity.get(key, key): value for key, value in given.items()}
