"""From declared rates to the demands of backhaul flows, the same for every fidelity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from topologies.model import Topology
from traces.model import Trace
from twin.load import Activity, BackhaulDemand
from twin.streams import named_stream

MAX_BPS = 1e12
MAX_MATRICES = 100_000


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Random traffic matrices: a flow is active with probability ``active``, at a uniform rate, until the next draw.

    ``every_s`` None: one matrix for the whole time.
    """

    low_bps: float
    high_bps: float
    active: float = 1.0
    every_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low_bps <= self.high_bps <= MAX_BPS:
            raise ValueError(f"needs 0 <= low <= high <= {MAX_BPS:g} bit/s, got {self.low_bps:g} and {self.high_bps:g}")
        if not 0 <= self.active <= 1:
            raise ValueError(f"active must be in [0, 1], got {self.active:g}")
        if self.every_s is not None and not self.every_s > 0:
            raise ValueError(f"every must be more than 0 s, got {self.every_s:g}")


@dataclass(frozen=True, kw_only=True)
class BackhaulSpec:
    """The rates of some backhaul flows of the topology in [``start_s``, ``stop_s``).

    ``rates``: bit/s of each flow all the time, random matrices, or a trace of bit/s by flow whose time 0
    is ``start_s``. ``stop_s`` None is the end of the run. Names the random stream.
    """

    name: str
    flows: tuple[str, ...]
    rates: float | Matrices | Mapping[str, Trace]
    start_s: float = 0.0
    stop_s: float | None = None


def realise_backhaul(
    specs: Sequence[BackhaulSpec], topology: Topology, *, duration_s: float, seed: int
) -> tuple[BackhaulDemand, ...]:
    """The demands of all backhaul flows that ever send, in the order of the topology.

    A flow that no spec names sends what the topology says (``demand_bps``), all the time. The same specs,
    topology and seed give the same demands. ValueError says what, got, allowed, where.
    """
    known = {flow.name: flow for flow in topology.backhaul}
    by_flow: dict[str, tuple[Activity, ...]] = {
        name: (Activity(0.0, duration_s, flow.demand_bps),) if flow.demand_bps > 0 else ()
        for name, flow in known.items()
    }
    claimed: dict[str, str] = {}
    for spec in specs:
        where = f"traffic {spec.name}"
        for name in spec.flows:
            if name not in known:
                raise ValueError(f"{where}: no backhaul flow named {name!r}; flows: {', '.join(known) or 'none'}")
            if name in claimed:
                raise ValueError(f"{where}: flow {name} has its traffic from {claimed[name]} already")
            claimed[name] = spec.name
        stop_s = duration_s if spec.stop_s is None else spec.stop_s
        if not 0 <= spec.start_s < stop_s <= duration_s:
            raise ValueError(
                f"{where}: needs 0 <= start_s < stop_s <= {duration_s:g} (the run), got {spec.start_s:g} and {stop_s:g}"
            )
        try:
            steps = _steps(spec, stop_s - spec.start_s, seed)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for name, rates in steps.items():
            by_flow[name] = _activities(rates, spec.start_s, stop_s)
    return tuple(BackhaulDemand(flow=name, activities=found) for name, found in by_flow.items() if found)


def _steps(spec: BackhaulSpec, span_s: float, seed: int) -> dict[str, list[tuple[float, float]]]:
    """(time, bit/s) by flow, times from 0, first at 0."""
    if isinstance(spec.rates, Matrices):
        return _drawn(spec, spec.rates, span_s, seed)
    if isinstance(spec.rates, Mapping):
        steps: dict[str, list[tuple[float, float]]] = {}
        for name in spec.flows:
            trace = spec.rates[name]
            if trace.unit != "bps":
                raise ValueError(f"flow {name}: needs a trace of bps, got {trace.unit}")
            if trace.values.max() > MAX_BPS:
                raise ValueError(f"flow {name}: at most {MAX_BPS:g} bit/s, the trace asks {trace.values.max():g}")
            later = zip(trace.times_s.tolist(), trace.values.tolist(), strict=True)
            steps[name] = [(0.0, trace.at(0.0)), *(item for item in later if 0 < item[0] < span_s)]
        return steps
    if not (math.isfinite(spec.rates) and 0 <= spec.rates <= MAX_BPS):
        raise ValueError(f"rate must be in 0..{MAX_BPS:g} bit/s, got {spec.rates:g}")
    return {name: [(0.0, float(spec.rates))] for name in spec.flows}


def _drawn(spec: BackhaulSpec, matrices: Matrices, span_s: float, seed: int) -> dict[str, list[tuple[float, float]]]:
    rng = named_stream(seed, f"realise/{spec.name}/matrices")
    every_s = span_s if matrices.every_s is None else matrices.every_s
    count = math.ceil(span_s / every_s - 1e-9)
    if count > MAX_MATRICES:
        raise ValueError(f"at most {MAX_MATRICES} matrices, got {count}; draw less often than every {every_s:g} s")
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in spec.flows}
    for number in range(count):
        # Two draws per flow whether active or not, so that one flow's fate changes no other's rate.
        active = rng.random(len(spec.flows)) < matrices.active
        rates = rng.uniform(matrices.low_bps, matrices.high_bps, len(spec.flows))
        for name, runs, rate in zip(spec.flows, active.tolist(), rates.tolist(), strict=True):
            steps[name].append((number * every_s, rate if runs else 0.0))
    return steps


def _activities(steps: Sequence[tuple[float, float]], start_s: float, stop_s: float) -> tuple[Activity, ...]:
    """Pieces of constant rate; silence makes none."""
    times = [*(start_s + time_s for time_s, _ in steps), stop_s]
    return tuple(
        Activity(begin_s, end_s, rate)
        for (begin_s, end_s), (_, rate) in zip(itertools.pairwise(times), steps, strict=True)
        if rate > 0 and end_s > begin_s
    )
