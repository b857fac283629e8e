"""Backhaul in scenario files: the flows of IAB nodes, and what they send."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

from scenarios.errors import unknown
from scenarios.schema import (
    BackhaulConstant,
    BackhaulEntry,
    BackhaulPathChoice,
    BackhaulRandom,
    BackhaulTelecomItalia,
    BackhaulTraffic,
    ScenarioFile,
)
from topologies import iab
from topologies.backhaul import wireless
from topologies.model import BackhaulFlow, BackhaulPath, Band, Link, Node, Topology, TopologyError

if TYPE_CHECKING:
    from traces.model import Trace
    from twin.realise_backhaul import BackhaulSpec

Report = Callable[[str, str], None]
"""Told the key, relative to the entry, and what is wrong there."""


def backhaul_flow(entry: BackhaulEntry, nodes: Sequence[Node], links: Sequence[Link]) -> BackhaulFlow:
    """The flow of an entry; TopologyError when it cannot be."""
    if isinstance(entry.paths, BackhaulPathChoice):
        paths = _chosen(entry.source, entry.paths, nodes, links)
    else:
        paths = tuple(BackhaulPath(path.band, path.nodes) for path in entry.paths)
    return BackhaulFlow(
        name=entry.name or f"f-{entry.source}",
        source=entry.source,
        sink=entry.sink,
        paths=paths,
        path_index=entry.path_index or 0,
        demand_bps=entry.demand or 0.0,
    )


def _chosen(
    source: str, choice: BackhaulPathChoice, nodes: Sequence[Node], links: Sequence[Link]
) -> tuple[BackhaulPath, ...]:
    """Candidate paths of one node; the heuristics look at those of all nodes."""
    found = iab.candidate_paths(*wireless(nodes, links), choice.k, choice.heuristic)
    if source not in found:
        raise TopologyError(f"source: {unknown('IAB node', source, found)}")
    if not found[source]:
        raise TopologyError(f"source: no path from {source} to a donor in one band")
    return tuple(BackhaulPath(cast(Band, path.band), path.nodes) for path in found[source])


def backhaul_spec(
    entry: BackhaulTraffic,
    document: ScenarioFile,
    topology: Topology,
    files: Callable[[Sequence[str]], list[str] | None],
    report: Report,
) -> BackhaulSpec | None:
    """What the entry says; None when something was reported. ``files`` finds trace files or reports."""
    from twin.realise_backhaul import BackhaulSpec, Matrices

    known = [flow.name for flow in topology.backhaul]
    if not known:
        report("kind", "the topology has no backhaul flows (topology.backhaul, or the builder iab)")
        return None
    wrong = [name for name in entry.flows or () if name not in known]
    for name in wrong:
        report("flows", unknown("backhaul flow", name, known))
    if wrong:
        return None
    names = tuple(known) if entry.flows is None else entry.flows
    profile = entry.profile
    rates: float | Matrices | dict[str, Trace]
    if isinstance(profile, BackhaulConstant):
        rates = profile.rate
    elif isinstance(profile, BackhaulRandom):
        try:
            rates = Matrices(low_bps=profile.low, high_bps=profile.high, active=profile.active, every_s=profile.every)
        except ValueError as error:
            report("profile", str(error))
            return None
    else:
        traces = _activities(entry, names, document, files, report)
        if traces is None:
            return None
        rates = traces
    return BackhaulSpec(name=entry.name, flows=names, rates=rates, start_s=entry.start, stop_s=entry.stop)


def _activities(
    entry: BackhaulTraffic,
    names: Iterable[str],
    document: ScenarioFile,
    files: Callable[[Sequence[str]], list[str] | None],
    report: Report,
) -> dict[str, Trace] | None:
    """A trace of bit/s per flow: the squares in turns, each scaled to the rate asked for."""
    from traces.model import TraceError
    from traces.profiles import ProfileContext, build
    from twin.streams import named_stream

    profile = entry.profile
    given = profile.model_dump(
        exclude_unset=True, exclude_none=True, exclude={"kind", "cells", "file", "peak_rate", "mean_rate"}
    )
    assert not isinstance(profile, BackhaulConstant | BackhaulRandom)
    if (profile.peak_rate is None) == (profile.mean_rate is None):
        report("profile", "give exactly one of peak_rate, mean_rate")
        return None
    # The profiles scale an activity to a number of users; here a user is one bit/s.
    given |= {"mean_users": profile.mean_rate} if profile.peak_rate is None else {"peak_users": profile.peak_rate}
    for cell in profile.cells:
        if not 1 <= cell <= 10_000:
            report("profile.cells", f"got {cell}, allowed square ids from 1 to 10000")
            return None
    if isinstance(profile, BackhaulTelecomItalia):
        found = files([profile.file] if isinstance(profile.file, str) else profile.file)
        if found is None:
            return None
        given["file"] = found
    traces: dict[str, Trace] = {}
    played: dict[int, Trace] = {}
    for number, name in enumerate(names):
        cell = profile.cells[number % len(profile.cells)]
        if cell not in played:
            context = ProfileContext(
                duration_s=document.duration,
                rng=named_stream(document.seed, f"profile/{entry.name}/{cell}"),
                compression=document.time_compression,
            )
            try:
                played[cell] = build(profile.kind, {**given, "cell": cell}, context)
            except TraceError as error:
                report("profile", str(error))
                return None
            except OSError as error:
                report("profile.file", f"cannot be read: {error.strerror}")
                return None
        traces[name] = played[cell].scaled(1.0, "bps")
    return traces
