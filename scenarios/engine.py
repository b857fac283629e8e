"""The loop of a run: due events and decisions in, time forward, KPIs out.

:class:`Episode` is one run seen from outside, step by step; :func:`run` is a loop over it with the
controllers of the scenario. Events take effect at the first interval boundary at or after their
time, since an interval has one set of KPIs.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from controllers.base import ControllerContext
from controllers.isolation import ControllerError, ControllerPool, Decision, Worker
from scenarios.manifest import origin, resolved
from scenarios.model import ControllerSpec, Scenario
from topologies.model import Sla
from twin import backhaul
from twin.backend import Backend, BackendError, Session
from twin.journal import boot_id, start_ticks
from twin.knobs import SLA_KNOBS
from twin.sla import DERIVED, SlaMonitor
from twin.store import RunStore, Status, StoreError
from twin.streams import named_stream
from twin.types import Action, Kpi, Observation, Outcome

# The host counts as overloaded when more than this share of the intervals was late or saturated.
OVERLOAD_INTERVALS_RATIO = 0.05
MAX_HOST_CPU_RATIO = 0.95
_DERIVED = frozenset((*DERIVED, *backhaul.DERIVED))
_COMMIT_ROWS = 20_000
_COMMIT_EVERY_S = 0.5
# Of an interval, at most this part is spent waiting for decisions.
_PATIENCE_RATIO = 0.8


def max_clock_lag_s(interval_s: float) -> float:
    """The lateness above which an interval counts as overloaded: a quarter of it, at least 100 ms."""
    return max(0.1, 0.25 * interval_s)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; ``signal_number`` says which."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class RunResult:
    """How a run ended. ``signal_number`` is set when a signal ended it."""

    run_id: str
    path: Path
    status: Status
    reason: str = ""
    host_overloaded: str = ""
    signal_number: int | None = None


class Episode:
    """One run of a scenario on a backend; a context manager.

    ``store`` None records nothing (training). The status is VALID when every probe passed, INVALID
    with the first failing items otherwise, FAILED when the run did not reach its end.
    """

    def __init__(
        self,
        scenario: Scenario,
        backend: Backend,
        store: RunStore | None = None,
        *,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Bring the network up. ``extra`` entries go to the manifest (argv, host capabilities).

        Raises :class:`twin.backend.BackendError` and :class:`twin.store.StoreError`; the manifest
        then says FAILED and why.
        """
        self.scenario = scenario
        self.time_s = 0.0
        self.status: Status = "VALID"
        self.reason = ""
        self._deterministic = backend.deterministic
        self._store = store
        self._sla = SlaMonitor(scenario.topology, scenario.load)
        self._backhaul = backhaul.BackhaulMonitor(scenario.topology, scenario.load)
        self._events = sorted(scenario.events, key=lambda event: event.time_s)
        self._next_event = 0
        self._intervals = max(1, math.ceil(scenario.duration_s / scenario.interval_s - 1e-9))
        self._done = 0
        self._dropped: set[tuple[str, str]] = set()
        self._late: list[float] = []
        self._saturated: list[float] = []
        self._committed_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._session: Session | None = None
        if store is not None:
            store.update_manifest(
                status="RUNNING",
                pid=os.getpid(),
                start_ticks=start_ticks(os.getpid()),
                boot_id=boot_id(),
                started=datetime.now(UTC).isoformat(timespec="milliseconds"),
                fidelity=scenario.fidelity,
                backend=backend.name,
                deterministic=backend.deterministic,
                seed=scenario.seed,
                scenario=resolved(scenario),
                **origin(),
                **(extra or {}),
            )
        try:
            self._session = backend.open(scenario.topology, scenario.load, seed=scenario.seed)
            self.started_s = time.monotonic()
            self._take_probes(self._session)
        except BaseException as error:
            self.fail(_why(error))
            self.close()
            raise

    def _take_probes(self, session: Session) -> None:
        probes = tuple(session.probes)
        failed = [probe for probe in probes if not probe.passed]
        if failed:
            self.status = "INVALID"
            self.reason = "the host did not deliver " + "; ".join(
                f"{probe.item}: declared {_amount(probe.declared, probe.unit)}, "
                f"measured {_amount(probe.measured, probe.unit)}" + (f" ({probe.detail})" if probe.detail else "")
                for probe in failed
            )
        if self._store is not None:
            self._store.add_probes(probes)
            self._store.commit()

    def _take_details(self, session: Session) -> None:
        # A backend may tell what it was made of and did: image digests, kernel features.
        details = getattr(session, "details", None)
        if self._store is not None and details:
            self._store.update_manifest(backend_details=dict(details))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(_why(error))
        self.close()

    @property
    def done(self) -> bool:
        """Whether the scenario's duration has passed."""
        return self._done >= self._intervals

    @property
    def store(self) -> RunStore | None:
        """Where this episode is recorded."""
        return self._store

    def sla(self, slice_name: str) -> Sla:
        """The promises in force for a slice; events and controllers may change them."""
        return self._sla.sla(slice_name)

    def fail(self, reason: str) -> None:
        """Mark the run FAILED; the first reason stays."""
        if self.status != "FAILED":
            self.status, self.reason = "FAILED", reason

    def apply(self, actions: Sequence[Action], source: str = "agent") -> list[Outcome]:
        """Carry out actions now, in order, and log what became of each."""
        outcomes: list[Outcome] = []
        for action in actions:
            if action.knob in SLA_KNOBS:
                outcomes.append(self._sla.apply(action, self.time_s))
            else:
                outcomes.extend(self._open_session().apply([action]))
        self._backhaul.note(outcomes)
        self.log(source, outcomes)
        return outcomes

    def log(self, source: str, outcomes: Sequence[Outcome]) -> None:
        """Record outcomes that did not come from :meth:`apply` (an action out of scope)."""
        if self._store is not None:
            for outcome in outcomes:
                self._store.add_action(source, outcome)

    def step(self, actions: Sequence[Action] = ()) -> Observation:
        """Carry out ``actions`` and the events that are due, let one interval pass, return its KPIs.

        Raises RuntimeError after the end, :class:`twin.backend.BackendError` when the network is
        lost, :class:`twin.store.StoreError` when nothing can be recorded any more.
        """
        if self.done:
            raise RuntimeError(f"the episode ended at {self.time_s:g} s; make a new one")
        session = self._open_session()
        self._apply_due_events()
        self.apply(actions)
        until_s = min((self._done + 1) * self.scenario.interval_s, self.scenario.duration_s)
        observed = session.advance(until_s)
        length_s, self.time_s = until_s - self.time_s, until_s
        self._done += 1
        for entity, text in observed.faults:
            self.add_event(entity, "fault", text)
        kpis = [kpi for kpi in observed.kpis if kpi.name not in _DERIVED]
        if not all(math.isfinite(kpi.value) for kpi in kpis):
            kpis = self._finite(kpis)
        if not self._deterministic:
            if not any(kpi.name == "engine_cpu_millicores" for kpi in kpis):
                kpis.extend(self._engine_load(length_s))
            self._watch_host(observed)
        measured = Observation(until_s, tuple(kpis))
        kpis.extend(self._sla.derive(measured))
        kpis.extend(self._backhaul.derive(measured))
        observation = Observation(until_s, tuple(kpis))
        if self._store is not None:
            self._store.add_kpis(kpis)
            self._commit()
        return observation

    def add_kpis(self, kpis: Sequence[Kpi], *, wall_clock: bool = False) -> None:
        """Record KPIs of the run itself; wall-clock figures of a deterministic run are kept apart."""
        if self._store is None:
            return
        if wall_clock and self._deterministic:
            for kpi in kpis:
                self._store.add_timing(kpi.time_s, kpi.entity, kpi.name, kpi.value)
        else:
            self._store.add_kpis(kpis)

    def add_event(self, source: str, kind: str, text: str) -> None:
        """Record something that happened now, in words."""
        if self._store is not None:
            self._store.add_event(self.time_s, source, kind, text)

    @property
    def host_overloaded(self) -> str:
        """Why the numbers of this run suffer from the host, or an empty string."""
        if not self._done:
            return ""
        found = []
        allowed = OVERLOAD_INTERVALS_RATIO * self._done
        limit_s = max_clock_lag_s(self.scenario.interval_s)
        if len(self._late) > allowed:
            found.append(
                f"clock lag above {limit_s:g} s in {len(self._late)} of {self._done} intervals, "
                f"at most {max(self._late):.3g} s"
            )
        if len(self._saturated) > allowed:
            found.append(f"host CPU above {MAX_HOST_CPU_RATIO:.0%} in {len(self._saturated)} of {self._done} intervals")
        return "; ".join(found)

    def close(self) -> None:
        """Release the network and finish the run folder; may be called twice."""
        session, self._session = self._session, None
        try:
            if session is not None:
                try:
                    self._take_details(session)
                finally:  # a full disk, too, must leave nothing on the host
                    session.close()
        except Exception as error:
            self.fail(f"closing the network: {_why(error)}")
            raise
        finally:
            store, self._store = self._store, None
            if store is not None:
                if not self.done:
                    self.fail(f"stopped at {self.time_s:g} of {self.scenario.duration_s:g} s")
                for event in self._events[self._next_event :]:
                    store.add_event(self.time_s, "event", "not reached", f"{event.time_s:g} s: {_words(event.action)}")
                store.finish(self.status, self.reason, host_overloaded=self.host_overloaded, simulated_s=self.time_s)
                self.status = store.manifest.get("status", self.status)  # type: ignore[assignment]
                self.reason = str(store.manifest.get("reason", self.reason))

    def _open_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("the episode is closed")
        return self._session

    def _apply_due_events(self) -> None:
        while self._next_event < len(self._events) and self._events[self._next_event].time_s <= self.time_s + 1e-9:
            event = self._events[self._next_event]
            self._next_event += 1
            if event.label:
                self.add_event("event", "label", event.label)
            self.apply([event.action], "event")

    def _finite(self, kpis: Sequence[Kpi]) -> list[Kpi]:
        for kpi in kpis:
            key = (kpi.entity, kpi.name)
            if not math.isfinite(kpi.value) and key not in self._dropped:
                self._dropped.add(key)
                self.add_event("run", "left out", f"KPI {kpi.name} of {kpi.entity} was {kpi.value} and is left out")
        return [kpi for kpi in kpis if math.isfinite(kpi.value)]

    def _engine_load(self, length_s: float) -> list[Kpi]:
        """CPU of this process; controllers are processes of their own and do not count."""
        cpu_s = time.process_time()
        used, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        return [Kpi(self.time_s, "run", "engine_cpu_millicores", 1000 * used / length_s)]

    def _watch_host(self, observed: Observation) -> None:
        lag_s = observed.get("run", "clock_lag_s", 0.0)
        if lag_s > max_clock_lag_s(self.scenario.interval_s):
            self._late.append(lag_s)
        busy = observed.get("run", "host_cpu_ratio", 0.0)
        if busy > MAX_HOST_CPU_RATIO:
            self._saturated.append(busy)

    def _commit(self) -> None:
        # A reader of a real-time run sees every interval; a fast run would spend its time in commits.
        now = time.monotonic()
        if self._store is not None and (
            not self._deterministic or self._store.pending >= _COMMIT_ROWS or now - self._committed_s >= _COMMIT_EVERY_S
        ):
            self._store.commit()
            self._committed_s = now


def run(
    scenario: Scenario,
    backend: Backend,
    controllers: Sequence[ControllerSpec],
    store: RunStore,
    *,
    extra: Mapping[str, object] | None = None,
) -> RunResult:
    """Run a scenario to its end with ``controllers`` and record everything in ``store``.

    What can go wrong in a run (network lost, disk full, controller unusable, SIGINT, SIGTERM) does
    not raise: the network is released, the manifest says FAILED and why, and so does the result.
    """
    scenario = replace(scenario, controllers=tuple(controllers))
    signal_number: int | None = None
    overloaded = ""
    try:
        with _Signals() as signals, ControllerPool(patient=backend.deterministic) as pool:
            log = store.path / "controllers"
            log.mkdir(exist_ok=True)
            for spec in controllers:
                pool.add(_worker(spec, scenario, log))
            with Episode(scenario, backend, store, extra=extra) as episode:
                try:
                    pool.wait_ready()
                    _loop(episode, pool, controllers, backend.deterministic)
                    overloaded = episode.host_overloaded
                finally:
                    # A network that is half taken down would stay behind.
                    signals.ignore()
    except Interrupted as error:
        signal_number = error.signal_number
        _fail(store, str(error))
    except (BackendError, StoreError, ControllerError, OSError) as error:
        _fail(store, _why(error))
    manifest = store.manifest
    return RunResult(
        store.run_id,
        store.path,
        manifest["status"],  # type: ignore[arg-type]
        str(manifest.get("reason", "")),
        overloaded,
        signal_number,
    )


def _fail(store: RunStore, reason: str) -> None:
    """Close a store whose episode never came to be; an episode has done it otherwise."""
    if store.manifest.get("status") in (None, "RUNNING"):
        store.finish("FAILED", reason)


def _loop(episode: Episode, pool: ControllerPool, specs: Sequence[ControllerSpec], patient: bool) -> None:
    interval_s = episode.scenario.interval_s
    scopes = {spec.name: scope_of(spec, episode.scenario) for spec in specs}
    order = {spec.name: number for number, spec in enumerate(specs)}
    refused: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    while not episode.done:
        observation = episode.step()
        if not patient:
            for decision in pool.collect(0.0):
                _carry_out(episode, decision, scopes[decision.name], refused, faults, patient)
        if not episode.done:
            pool.offer(observation)
            until_s = None
            if not patient:
                now = time.monotonic()
                planned_s = episode.started_s + episode.time_s + _PATIENCE_RATIO * interval_s
                until_s = max(planned_s, now + 0.05 * interval_s)
            decisions: Iterable[Decision] = pool.collect(until_s)
            if patient:
                # Which process answers first is chance; the order of the scenario is not.
                decisions = sorted(decisions, key=lambda decision: order[decision.name])
            for decision in decisions:
                _carry_out(episode, decision, scopes[decision.name], refused, faults, patient)
        for spec in specs:
            entity = f"controller:{spec.name}"
            episode.add_kpis(
                [
                    Kpi(episode.time_s, entity, "refused_actions", refused[spec.name]),
                    Kpi(episode.time_s, entity, "faults", faults[spec.name]),
                ]
            )


def _carry_out(
    episode: Episode,
    decision: Decision,
    scope: Sequence[str],
    refused: Counter[str],
    faults: Counter[str],
    patient: bool,
) -> None:
    name, entity = decision.name, f"controller:{decision.name}"
    for text in decision.faults:
        faults[name] += 1
        episode.add_event(entity, "fault", text)
    if decision.decision_time_s is not None:
        kpi = Kpi(episode.time_s, entity, "decision_time_s", decision.decision_time_s)
        episode.add_kpis([kpi], wall_clock=True)
    slowest_s: float | None = None
    for action in decision.actions:
        if action.entity not in scope:
            reason = f"{action.entity} is outside the scope of controller {name}: {', '.join(scope) or 'nothing'}"
            outcome = Outcome(action, applied=False, reason=reason, time_s=episode.time_s)
            episode.log(entity, [outcome])
        else:
            waited_s = 0.0 if patient else max(0.0, time.monotonic() - decision.arrived_s)
            outcome = episode.apply([action], entity)[0]
            if outcome.applied:
                slowest_s = max(slowest_s or 0.0, waited_s + outcome.lag_s)
        if not outcome.applied:
            refused[name] += 1
    if slowest_s is not None:
        episode.add_kpis([Kpi(episode.time_s, entity, "action_to_effect_s", slowest_s)])


def scope_of(spec: ControllerSpec, scenario: Scenario) -> tuple[str, ...]:
    """The entities a controller may act on; an empty scope in the file means all of them."""
    if spec.scope:
        return spec.scope
    topology = scenario.topology
    return (
        *(f"slice:{slice_.name}" for slice_ in topology.slices),
        *(f"node:{node.name}" for node in topology.nodes),
        *(f"link:{link.name}" for link in topology.links),
        *(f"flow:{flow.name}" for flow in topology.backhaul),
        *(f"task:{name}" for name in topology.tasks),
    )


def _worker(spec: ControllerSpec, scenario: Scenario, log: Path) -> Worker:
    seed = int(named_stream(scenario.seed, f"controller/{spec.name}").integers(2**31))
    context = ControllerContext(
        topology=scenario.topology, scope=scope_of(spec, scenario), interval_s=spec.interval_s, seed=seed
    )
    return Worker(spec.name, spec.controller, context, spec.params, limit_s=spec.limit_s, log=log / f"{spec.name}.log")


class _Signals:
    """Turns the first SIGINT, SIGTERM or SIGHUP into :class:`Interrupted`; later ones are ignored."""

    def __init__(self) -> None:
        self._armed = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN:  # nohup
                    self._before[number] = handler
                    signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        """From now on nothing interrupts."""
        self._armed = False

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        if self._armed:
            self._armed = False
            raise Interrupted(number)


def _amount(value: float, unit: str) -> str:
    return f"{value:g}" if unit in ("", "1") else f"{value:g} {unit}"


def _words(action: Action) -> str:
    return f"{action.entity} {action.knob} = {action.value}"


def _why(error: BaseException) -> str:
    if isinstance(error, BackendError | StoreError | ControllerError | Interrupted):
        return str(error)
    return f"{type(error).__name__}: {error}"
