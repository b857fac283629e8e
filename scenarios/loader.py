"""From a ``*.twin.yml`` file to a :class:`~scenarios.model.Scenario`: strict, complete, in SI units.

Every mistake is one line ``FILE:LINE: what, got, allowed``; all mistakes that can be found at once are
reported together (first those of keys, types and units, then those of how things fit together).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controllers.base import ControllerContext
from scenarios import units
from scenarios.assertions import AssertionFormatError, parse_assertion
from scenarios.backhaul import backhaul_spec
from scenarios.document import check_document, document_data, dump_document
from scenarios.errors import Problem, ScenarioFileError, nearest, unknown
from scenarios.events import EventReader, canonical, entities_of
from scenarios.model import Assertion, ControllerSpec, Scenario
from scenarios.network import NetworkReader
from scenarios.registry import UnknownNameError, check_controller, controller_class, is_builtin
from scenarios.schema import BackhaulTraffic, ScenarioFile, TelecomItaliaProfile, TrafficEntry
from scenarios.source import Location, Source, dotted, read_source
from scenarios.units import UnitError
from topologies.model import App, Partition, Topology, TopologyError, Ue
from topologies.paths import default_path, slice_upf
from twin.load import BackhaulDemand, Flow, Load

if TYPE_CHECKING:
    from traces.model import Trace
    from twin.realise_backhaul import BackhaulSpec

TRACE_PREFIX = "traces:"
POLICY = "policy"
FILE_PARAMETERS = (POLICY, "model")
DEFAULT_PACKET_BYTES = {"stream": 1200, "telemetry": 200, "request": 200}


def load_scenario(
    path: str | Path,
    *,
    seed: int | None = None,
    duration_s: float | None = None,
    fidelity: str | None = None,
    slicing: bool | None = None,
    controllers: Sequence[str] | None = None,
    policy: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Scenario:
    """Read, check and resolve a scenario file.

    The keyword arguments override what the file says; ``controllers`` replaces all its controllers by
    ones of these names, with the interval, scope and time limit of the file's first one and default
    parameters, but for ``policy``: the file of what they learned; ``settings`` maps dotted paths to new
    values (``slices.embb.resources.ran.prb_share`` -> 0.5). Raises :class:`ScenarioFileError`.
    """
    overrides: dict[Location, tuple[str, Any]] = {}
    for key, value in (settings or {}).items():
        location = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        overrides[location] = (f"--set {key}", value)
    for option, value in (("seed", seed), ("duration", duration_s), ("fidelity", fidelity), ("slicing", slicing)):
        if value is not None:
            overrides[option,] = (f"--{option}", value)
    source = read_source(Path(path))
    if controllers is not None:
        entries = _replaced(source.data.get("controllers"), controllers, policy)
        overrides["controllers",] = ("--controller", entries)
    return resolve(source.with_values(overrides) if overrides else source)


def _replaced(given: object, names: Sequence[str], policy: str | Path | None) -> list[dict[str, Any]]:
    """Entries for other controllers that act as often, and on the same things, as the file's first one."""
    first = given[0] if isinstance(given, list) and given and isinstance(given[0], dict) else {}
    kept = {key: first[key] for key in ("interval", "scope", "time_limit") if key in first}
    if policy is not None:
        # Seen from here, not from the scenario file.
        kept["params"] = {POLICY: str(Path(policy).absolute())}
    return [{"use": name, **kept} for name in names]


def load_data(data: dict[str, Any], *, file: str) -> Scenario:
    """The scenario of plain data, e.g. ``Scenario.document``; relative paths start beside ``file``."""
    return resolve(Source(file, data, {}))


def dump_scenario(scenario: Scenario) -> str:
    """YAML text that loads to the same scenario (paths of traces stay relative to ``scenario.source``)."""
    return dump_document(dict(scenario.document))


def resolve(source: Source) -> Scenario:
    """The scenario that checked data describe; :class:`ScenarioFileError` with every mistake."""
    document = check_document(source)
    network = NetworkReader(source, document)
    topology = network.read()
    problems = list(network.problems)
    if document.interval > document.duration:
        text = f"interval: got {document.interval:g} s, allowed at most the duration, {document.duration:g} s"
        problems.append(source.problem(("interval",), text))
    names, controller_problems = _controller_names(source, document)
    problems += controller_problems
    if topology is None:
        raise ScenarioFileError(problems)
    controllers = _controllers(source, document, topology, names, problems)
    sdn_app = _sdn_app(source, document, problems)
    events = EventReader(source, document, topology)
    actions = events.read()
    problems += events.problems
    assertions = _assertions(source, document, topology, names, problems)
    load = _load(source, document, topology, problems)
    if problems:
        raise ScenarioFileError(problems)
    return Scenario(
        name=document.name,
        description=document.description,
        topology=topology,
        load=load,
        controllers=controllers,
        events=actions,
        assertions=assertions,
        seed=document.seed,
        duration_s=document.duration,
        interval_s=document.interval,
        time_compression=document.time_compression,
        sdn_app=sdn_app,
        fidelity=document.fidelity,
        source=source.file,
        document=document_data(document),
    )


def _sdn_app(source: Source, document: ScenarioFile, problems: list[Problem]) -> str | None:
    """The application's file, absolute, or its module; a file that is not there is a problem."""
    if document.sdn is None:
        return None
    app = document.sdn.app
    if not app.endswith(".py") and "/" not in app:
        if not all(part.isidentifier() for part in app.split(".")):
            text = f"sdn app: must be a file that ends with .py or package.module, got {app!r}"
            problems.append(source.problem(("sdn", "app"), text))
        return app
    path = (Path(source.file).parent / app).absolute()
    if not (path.is_file() and app.endswith(".py")):
        text = f"sdn app: must be a Python file that exists or package.module, got {app} (looked for at {path})"
        problems.append(source.problem(("sdn", "app"), text))
    return str(path)


# --- controllers


def _controller_names(source: Source, document: ScenarioFile) -> tuple[list[str], list[Problem]]:
    names: list[str] = []
    problems: list[Problem] = []
    for index, entry in enumerate(document.controllers):
        location: Location = ("controllers", index)
        try:
            check_controller(entry.use)
        except UnknownNameError as error:
            problems.append(source.problem((*location, "use"), f"{dotted((*location, 'use'))}: {error}"))
        name = entry.name or entry.use.rpartition(":")[2]
        if name in names:
            at = (*location, "name" if entry.name else "use")
            text = f"{dotted(at)}: duplicate name {name!r}; give each controller a name of its own"
            problems.append(source.problem(at, text))
        names.append(name)
    return names, problems


def _controllers(
    source: Source, document: ScenarioFile, topology: Topology, names: list[str], problems: list[Problem]
) -> tuple[ControllerSpec, ...]:
    known = entities_of(topology)
    specs = []
    for index, (name, entry) in enumerate(zip(names, document.controllers, strict=True)):
        location: Location = ("controllers", index, "scope")
        if entry.scope is None:
            scope = []  # the engine reads an empty scope as everything
        else:
            scope = [canonical(topology, item) for item in entry.scope]
            for place, item in enumerate(scope):
                if item not in known:
                    near = [other for other in known if other.partition(":")[0] == item.partition(":")[0]] or known
                    at = (*location, place)
                    problems.append(source.problem(at, f"{dotted(at)}: {unknown('entity', item, near)}"))
        spec = ControllerSpec(
            name=name,
            controller=entry.use,
            interval_s=entry.interval,
            scope=tuple(scope),
            params=_found_policy(entry.params, source.file),
            time_limit_s=entry.time_limit,
        )
        refused = _refused_params(spec, topology)
        if refused:
            at = ("controllers", index, "params")
            problems.append(source.problem(at, f"{dotted(at)}: {refused}"))
        specs.append(spec)
    return tuple(specs)


def _found_policy(params: Mapping[str, Any], scenario_file: str) -> Mapping[str, Any]:
    """The parameters with the paths of :data:`FILE_PARAMETERS` starting where the scenario file is."""
    folder = Path(scenario_file).parent
    found = {name: params[name] for name in FILE_PARAMETERS if isinstance(params.get(name), str)}
    return {**params, **{name: str((folder / value).absolute()) for name, value in found.items()}}


def _refused_params(spec: ControllerSpec, topology: Topology) -> str | None:
    """Why one of TwinBed's own controllers refuses its parameters.

    Other people's code may hang or exit: it is first imported in the process that a run makes for it.
    """
    if not is_builtin(spec.controller):
        return None
    scope = spec.scope or tuple(item for item in entities_of(topology) if not item.startswith("ue:"))
    context = ControllerContext(topology=topology, scope=scope, interval_s=spec.interval_s, seed=0)
    make: Any = controller_class(spec.controller)
    known = [name for name in inspect.signature(make).parameters if name != "context"]
    for name in spec.params:
        if name not in known:
            return f"unknown parameter {name}{nearest(name, known)}; {spec.controller} has: {', '.join(known)}"
    try:
        make(context, **spec.params)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


# --- assertions


def _assertions(
    source: Source, document: ScenarioFile, topology: Topology, names: list[str], problems: list[Problem]
) -> tuple[Assertion, ...]:
    entities = [*entities_of(topology), *(f"controller:{name}" for name in names)]
    found = []
    for index, text in enumerate(document.assert_):
        try:
            found.append(parse_assertion(text, entities=entities, duration_s=document.duration))
        except AssertionFormatError as error:
            problems.append(source.problem(("assert", index), f"assert[{index}]: {error}"))
    return tuple(found)


# --- traffic


def _load(source: Source, document: ScenarioFile, topology: Topology, problems: list[Problem]) -> Load:
    from twin.realise_backhaul import realise_backhaul

    flows: list[Flow] = []
    specs: list[BackhaulSpec] = []
    backhaul: tuple[BackhaulDemand, ...] = ()
    seen: dict[str, int] = {}
    for index, entry in enumerate(document.traffic):
        reader = _TrafficReader(source, document, topology, index)
        if entry.name in seen:
            reader.report("name", f"duplicate name {entry.name!r}, first used by traffic[{seen[entry.name]}]")
        seen.setdefault(entry.name, index)
        if isinstance(entry, BackhaulTraffic):
            spec = backhaul_spec(entry, document, topology, reader.trace_files, reader.report)
            specs += [] if spec is None else [spec]
            try:
                backhaul = realise_backhaul(specs, topology, duration_s=document.duration, seed=document.seed)
            except ValueError as error:
                problems.append(source.problem(("traffic", index), str(error)))
                specs.pop()
        else:
            flows += reader.flows(entry)
        problems += reader.problems
    if not specs and topology.backhaul:
        backhaul = realise_backhaul((), topology, duration_s=document.duration, seed=document.seed)
    return Load(flows=tuple(flows), duration_s=document.duration, backhaul=backhaul)


class _TrafficReader:
    """One traffic entry; every mistake is added to ``problems`` at its line."""

    def __init__(self, source: Source, document: ScenarioFile, topology: Topology, index: int) -> None:
        self.source = source
        self.document = document
        self.topology = topology
        self.index = index
        self.problems: list[Problem] = []

    def report(self, key: str, text: str) -> None:
        location: Location = ("traffic", self.index, *key.split("."))
        self.problems.append(self.source.problem(location, f"{dotted(location)}: {text}"))

    def flows(self, entry: TrafficEntry) -> Sequence[Flow]:
        """The flows of this entry; empty when there are problems."""
        from twin.realise import TrafficSpec, realise

        app = self._app(entry)
        if app is None:
            return ()
        rate = self._rate(entry, app)
        trace = self._trace(entry)
        if self.problems:
            return ()
        spec = TrafficSpec(
            name=entry.name,
            ues=entry.ues,
            app=entry.app,
            rate=rate,
            packet_bytes=entry.packet_bytes or DEFAULT_PACKET_BYTES[app.service],
            trace=trace,
            start_s=entry.start,
            stop_s=entry.stop,
            min_session_s=entry.min_session,
        )
        try:
            return realise([spec], self.topology, duration_s=self.document.duration, seed=self.document.seed).flows
        except ValueError as error:
            location: Location = ("traffic", self.index)
            self.problems.append(self.source.problem(location, str(error)))
            return ()

    def _app(self, entry: TrafficEntry) -> App | Partition | None:
        """The application, when it exists, the UE group does, and there is a path between them."""
        topology = self.topology
        groups = {ue.name: ue for ue in topology.of_kind(Ue)}
        apps = topology.services
        if entry.ues not in groups:
            self.report("ues", unknown("UE group", entry.ues, groups))
        if entry.app not in apps:
            self.report("app", unknown("application", entry.app, apps))
        if self.problems:
            return None
        name = groups[entry.ues].slice
        upf = slice_upf(topology, name)
        try:
            default_path(topology, upf, entry.app)
        except TopologyError:
            self.report("app", f"unreachable slice {name}: no path from UPF {upf} to application {entry.app}")
        return apps[entry.app]

    def _rate(self, entry: TrafficEntry, app: App | Partition) -> float | None:
        if entry.rate is None:
            return None
        quantity = units.REQUEST_RATE if app.service == "request" else units.BIT_RATE
        try:
            return quantity.parse(entry.rate)
        except UnitError as error:
            self.report("rate", f"{error} (the service of {app.name} is {app.service})")
            return None

    def _trace(self, entry: TrafficEntry) -> Trace | None:
        from traces.model import TraceError
        from traces.profiles import ProfileContext, build
        from twin.streams import named_stream

        profile = entry.profile
        if profile is None:
            return None
        params = profile.model_dump(exclude_unset=True, exclude_none=True, exclude={"kind"})
        if isinstance(profile, TelecomItaliaProfile):
            files = self.trace_files([profile.file] if isinstance(profile.file, str) else profile.file)
            if files is None:
                return None
            params["file"] = files
        context = ProfileContext(
            duration_s=self.document.duration,
            rng=named_stream(self.document.seed, f"profile/{entry.name}"),
            compression=self.document.time_compression,
        )
        try:
            return build(profile.kind, params, context)
        except TraceError as error:
            self.report("profile", str(error))
        except OSError as error:
            self.report("profile.file", f"cannot be read: {error.strerror}")
        return None

    def trace_files(self, names: Sequence[str]) -> list[str] | None:
        """Where these trace files are; None when one is missing, which is reported."""
        files = []
        for name in names:
            found = trace_file(self.source.file, name)
            if found is None:
                brings = ", ".join(f"{TRACE_PREFIX}{shipped}" for shipped in trace_names())
                self.report("profile.file", f"missing trace file {name}; TwinBed brings {brings}")
                return None
            files.append(str(found))
        return files


def trace_file(scenario_file: str, name: str) -> Path | None:
    """The file that ``traces:NAME`` or a path beside the scenario file means; None when it is missing."""
    if name.startswith(TRACE_PREFIX):
        wanted = name.removeprefix(TRACE_PREFIX)
        return _trace_folder() / wanted if wanted in trace_names() else None
    path = Path(scenario_file).parent / name
    return path if path.is_file() else None


def trace_names() -> list[str]:
    """Names of the trace files that TwinBed brings."""
    return sorted(path.name for path in _trace_folder().iterdir() if path.suffix != ".md")


def _trace_folder() -> Path:
    from traces.profiles import DATA

    return DATA
