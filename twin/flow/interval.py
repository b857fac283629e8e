"""What an interval is made of: its steps, kept until its KPIs are asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from twin.flow.fluid import Mask, Step
from twin.flow.maxmin import Array
from twin.flow.requests import Served
from twin.flow.spans import Numbers


@dataclass
class Interval:
    """Per step: results of network and servers, what was ``active`` (flows), ``attached`` and the CQI (UEs), which
    lanes were ``working`` and how many delays of each are to be drawn. ``server_times``: (step, flow, seconds of
    each request drawn). ``attaches``: seconds of the attaches of each slice."""

    span_s: float
    steps: list[Step] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    active: list[Mask] = field(default_factory=list)
    attached: list[Mask] = field(default_factory=list)
    cqis: list[Numbers] = field(default_factory=list)
    working: list[Mask] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    server_times: list[tuple[int, int, Array]] = field(default_factory=list)
    attaches: dict[str, list[float]] = field(default_factory=dict)

    def add(
        self, step: Step, served: Served, active: Mask, attached: Mask, cqis: Numbers, working: Mask, draws: int
    ) -> None:
        """One more step."""
        self.steps.append(step)
        self.served.append(served)
        self.active.append(active)
        self.attached.append(attached)
        self.cqis.append(cqis)
        self.working.append(working)
        self.draws.append(draws)

    def of_steps(self, name: str) -> Array:
        """One field of all steps, shape (steps, ...)."""
        return np.array([getattr(step, name) for step in self.steps])

    def of_served(self, name: str) -> Array:
        """One field of all that servers did, shape (steps, flows)."""
        return np.array([getattr(served, name) for served in self.served])
