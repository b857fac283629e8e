"""From demand to users: traces and rates become the flows of single UEs, the same for every fidelity.

- A trace of ``users`` says how many UEs of the group are active. The number is rounded to the nearest
  whole number (halves up). When it rises, idle UEs are picked at random and stay the same UE until
  they leave; when it falls, those that have been active longest leave first (FIFO). A session that
  is younger than ``min_session_s`` stays until it has that age, so that the number of active UEs may
  exceed the trace for at most that long.
- A trace of ``bps`` or ``requests_per_s`` is the demand of the whole group, shared equally by its UEs.
- Without a trace all UEs of the group are active.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topologies.model import App, Partition, Topology, Ue
from traces.model import Trace, TraceError, Unit
from twin.load import Activity, Direction, Flow, Load, Service
from twin.streams import named_stream

IP_UDP_BYTES = 28
MAX_PACKET_BYTES = 1400
MAX_BODY_BYTES = 10_000_000
DIRECTIONS: dict[Service, Direction] = {"stream": "dl", "request": "dl", "telemetry": "ul"}
RATE_UNITS: dict[Service, Unit] = {"stream": "bps", "telemetry": "bps", "request": "requests_per_s"}
# The most that one UE can be asked for, bit/s or requests/s: beyond it the traffic programs refuse.
MAX_RATES: dict[Service, float] = {"stream": 10e9, "telemetry": 10e9, "request": 100_000}


@dataclass(frozen=True, kw_only=True)
class TrafficSpec:
    """The traffic between a group of UEs and an application.

    ``ues``: name of a Ue node; ``app``: name of an App node, whose service decides the kind of flow.
    ``rate``: of one active UE, bit/s of IP packets (``stream``, ``telemetry``) or requests/s
    (``request``); must be None with a trace of rates. ``packet_bytes``: IP packet, or request body.
    ``trace`` None: all UEs are active. Traffic runs in [``start_s``, ``stop_s``), which is also the
    trace's time 0; ``stop_s`` None is the end of the run.
    """

    name: str
    ues: str
    app: str
    rate: float | None = None
    packet_bytes: int = 1200
    trace: Trace | None = None
    start_s: float = 0.0
    stop_s: float | None = None
    min_session_s: float = 0.0


def realise(specs: Sequence[TrafficSpec], topology: Topology, *, duration_s: float, seed: int) -> Load:
    """The flows of all specs: one per UE that is ever active, named ``SPEC.GROUP.INDEX``.

    The same specs, topology and seed give the same Load. Raises TraceError when a trace needs more
    users than the group has or has the wrong unit, and ValueError for everything else that does not
    fit; both say what, got, allowed, where.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be positive, got {duration_s:g}")
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"traffic {name}: the name is used twice")
    flows: list[Flow] = []
    for spec in specs:
        flows += _flows(spec, topology, duration_s, seed)
    return Load(flows=tuple(flows), duration_s=duration_s)


def _flows(spec: TrafficSpec, topology: Topology, duration_s: float, seed: int) -> list[Flow]:
    where = f"traffic {spec.name}"
    group, app = _ends(spec, topology, where)
    stop_s = duration_s if spec.stop_s is None else spec.stop_s
    if not 0 <= spec.start_s < stop_s <= duration_s:
        raise ValueError(
            f"{where}: needs 0 <= start_s < stop_s <= {duration_s:g} (the run), got {spec.start_s:g} and {stop_s:g}"
        )
    if not (math.isfinite(spec.min_session_s) and spec.min_session_s >= 0):
        raise ValueError(f"{where}: min_session_s must be at least 0, got {spec.min_session_s:g}")
    low, high = (1, MAX_BODY_BYTES) if app.service == "request" else (IP_UDP_BYTES + 20, MAX_PACKET_BYTES)
    if not low <= spec.packet_bytes <= high:
        raise ValueError(f"{where}: packet_bytes must be in [{low}, {high}], got {spec.packet_bytes}")
    span_s = stop_s - spec.start_s
    if spec.trace is not None and spec.trace.unit != "users":
        activities = _from_rates(spec, spec.trace, app, group, span_s)
    else:
        if spec.rate is None:
            wanted = "requests/s" if app.service == "request" else "bit/s"
            raise ValueError(f"{where}: rate is missing: {wanted} of one active UE")
        if spec.rate > MAX_RATES[app.service]:
            raise ValueError(
                f"{where}: rate of one active UE must be at most {MAX_RATES[app.service]:g}, got {spec.rate:g}"
            )
        if not (math.isfinite(spec.rate) and spec.rate > 0):
            raise ValueError(f"{where}: rate of one active UE must be positive, got {spec.rate}")
        if spec.trace is None:
            sessions = {ue: [(0.0, span_s)] for ue in group.ue_ids}
        else:
            rng = named_stream(seed, f"realise/{spec.name}/users")
            sessions = _sessions(_steps(spec.trace, span_s), group, span_s, spec.min_session_s, rng, where)
        activities = {ue: [Activity(start, stop, spec.rate) for start, stop in spans] for ue, spans in sessions.items()}
    return [
        Flow(
            name=f"{spec.name}.{ue}",
            ue=ue,
            slice=group.slice,
            app=app.name,
            service=app.service,
            direction=DIRECTIONS[app.service],
            packet_bytes=spec.packet_bytes,
            activities=tuple(
                Activity(item.start_s + spec.start_s, min(item.stop_s + spec.start_s, stop_s), item.rate)
                for item in activities[ue]
            ),
        )
        for ue in group.ue_ids
        if activities.get(ue)
    ]


def _ends(spec: TrafficSpec, topology: Topology, where: str) -> tuple[Ue, App | Partition]:
    groups = {node.name: node for node in topology.of_kind(Ue)}
    apps = topology.services
    if spec.ues not in groups:
        raise ValueError(f"{where}: no UE group named {spec.ues!r}; groups: {', '.join(groups) or 'none'}")
    if spec.app not in apps:
        raise ValueError(f"{where}: no application named {spec.app!r}; applications: {', '.join(apps) or 'none'}")
    return groups[spec.ues], apps[spec.app]


def _steps(trace: Trace, span_s: float) -> list[tuple[float, float]]:
    """(time_s, value) of a trace within [0, span_s), equal neighbours merged; 0 before its first time."""
    steps: list[tuple[float, float]] = [(0.0, trace.at(0.0))]
    for time_s, value in zip(trace.times_s.tolist(), trace.values.tolist(), strict=True):
        if 0 < time_s < span_s and value != steps[-1][1]:
            steps.append((time_s, value))
    return steps


def _sessions(
    steps: Sequence[tuple[float, float]],
    group: Ue,
    span_s: float,
    min_session_s: float,
    rng: np.random.Generator,
    where: str,
) -> dict[str, list[tuple[float, float]]]:
    """UE -> (start_s, stop_s) of its sessions, so that the number of open ones follows the steps."""
    idle = list(group.ue_ids)
    active: deque[tuple[float, str]] = deque()  # in order of arrival
    leaving: list[tuple[float, str]] = []  # told to leave, but too young: a heap by time
    sessions: dict[str, list[tuple[float, float]]] = {}

    def close(ue: str, start_s: float, stop_s: float) -> None:
        sessions.setdefault(ue, []).append((start_s, min(stop_s, span_s)))

    for time_s, value in steps:
        users = math.floor(value + 0.5)
        if users > group.count:
            raise TraceError(
                f"{where}: the trace asks for {users} users at {time_s:g} s, "
                f"but UE group {group.name} has {group.count}; raise its count or scale the trace"
            )
        while leaving and leaving[0][0] <= time_s:
            idle.append(heapq.heappop(leaving)[1])
        while len(active) > users:
            start_s, ue = active.popleft()
            stop_s = max(time_s, start_s + min_session_s)
            close(ue, start_s, stop_s)
            if stop_s > time_s:
                heapq.heappush(leaving, (stop_s, ue))
            else:
                idle.append(ue)
        while len(active) < users:
            if not idle:
                raise TraceError(
                    f"{where}: at {time_s:g} s all {group.count} UEs of group {group.name} are in sessions that "
                    f"min_session_s {min_session_s:g} keeps open; raise its count or lower min_session_s"
                )
            # sorted, so that the pick does not depend on the order in which UEs became idle
            idle.sort()
            active.append((time_s, idle.pop(int(rng.integers(len(idle))))))
    for start_s, ue in active:
        close(ue, start_s, span_s)
    return sessions


def _from_rates(
    spec: TrafficSpec, trace: Trace, app: App | Partition, group: Ue, span_s: float
) -> dict[str, list[Activity]]:
    """Every UE of the group carries an equal part of the demand."""
    where = f"traffic {spec.name}"
    allowed = ("users", RATE_UNITS[app.service])
    if trace.unit not in allowed:
        raise TraceError(f"{where}: a {app.service} needs a trace of {' or '.join(allowed)}, got {trace.unit}")
    if spec.rate is not None:
        raise ValueError(
            f"{where}: the trace already gives the rate in {trace.unit}; leave rate out, got {spec.rate:g}"
        )
    steps = _steps(trace, span_s)
    most = max(value for _, value in steps) / group.count
    if most > MAX_RATES[app.service]:
        raise TraceError(f"{where}: the trace asks {most:g} of each UE, at most {MAX_RATES[app.service]:g} allowed")
    stops = [time_s for time_s, _ in steps[1:]] + [span_s]
    shared = [
        Activity(start, stop, value / group.count)
        for (start, value), stop in zip(steps, stops, strict=True)
        if value > 0
    ]
    return dict.fromkeys(group.ue_ids, shared)
