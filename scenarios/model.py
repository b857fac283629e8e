"""What a scenario is once its file has been read: frozen data, SI units, everything resolved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from topologies.model import Topology
from twin.load import Load
from twin.types import Action

Fidelity = Literal["flow", "packet", "emulation"]
Statistic = Literal["mean", "min", "max", "last", "p95"]
Comparison = Literal["<", "<=", ">", ">="]


@dataclass(frozen=True, kw_only=True)
class ControllerSpec:
    """One controller of a run.

    ``controller`` is an entry point of ``twinbed.controllers`` or ``module:Class``; ``name`` is what
    the run calls it. It sees every observation, is asked for actions after the first one and then
    every ``interval_s``, and may act on the entities of ``scope`` only. A decision may take
    ``time_limit_s`` of wall time; None means ``interval_s``, and at least 1 s.
    """

    name: str
    controller: str
    interval_s: float = 5.0
    scope: tuple[str, ...] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for quantity, value in (("interval_s", self.interval_s), ("time_limit_s", self.time_limit_s)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"controller {self.name}: {quantity} must be more than 0, got {value:g}")

    @property
    def limit_s(self) -> float:
        """Wall time a decision may take."""
        return self.time_limit_s if self.time_limit_s is not None else max(1.0, self.interval_s)


@dataclass(frozen=True, kw_only=True)
class TimedAction:
    """A scripted event: an action carried out at the first interval boundary at or after ``time_s``."""

    time_s: float
    action: Action
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Assertion:
    """``statistic`` of one KPI over ``window_s`` (None: the whole run) compared with ``value`` (SI).

    ``text`` is how the file says it.
    """

    entity: str
    kpi: str
    statistic: Statistic
    comparison: Comparison
    value: float
    window_s: tuple[float, float] | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything a run needs. ``interval_s`` is the time between two observations.

    ``time_compression``: traces were played this much faster. ``document`` is the scenario file as
    plain data with the overrides applied; loading it again gives the same scenario. ``source`` is the
    path of the file. ``sdn_app``: file or module of the OpenFlow application that controls the switches in
    emulation; None: TwinBed's own rules.
    """

    name: str
    topology: Topology
    load: Load
    controllers: tuple[ControllerSpec, ...] = ()
    events: tuple[TimedAction, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    seed: int = 0
    duration_s: float = 60.0
    interval_s: float = 1.0
    fidelity: Fidelity = "flow"
    description: str = ""
    source: str = ""
    time_compression: float = 1.0
    sdn_app: str | None = None
    document: Mapping[str, object] = field(default_factory=dict)
