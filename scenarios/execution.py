"""From a scenario to a finished run folder: backend, engine, assertions, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scenarios.assertions import AssertionResult, Samples, evaluate
from scenarios.engine import RunResult, run
from scenarios.exit_codes import ExitCode
from scenarios.model import Scenario
from scenarios.registry import make_backend
from scenarios.runs import REPORT
from topologies.model import Topology
from twin.backend import Backend, Session
from twin.load import Load
from twin.store import MANIFEST, KpiReader, RunStore, StoreError, read_manifest, write_json
from twin.types import Action, Observation, Outcome, Probe


@dataclass(frozen=True)
class Finished:
    """A run that ended. ``warnings`` are for the user: what went wrong beside the run itself."""

    result: RunResult
    assertions: tuple[AssertionResult, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What ``twin run`` exits with."""
        if self.result.signal_number is not None:
            return 128 + self.result.signal_number
        if self.result.status == "FAILED":
            return ExitCode.FAILED
        if self.result.status == "INVALID":
            return ExitCode.INVALID
        return ExitCode.OK if all(item.passed for item in self.assertions) else ExitCode.FAILED


def worst_exit_code(ended: Sequence[Finished]) -> int:
    """The exit code for several runs: a signal, else FAILED, INVALID, an assertion that does not hold, OK."""

    def rank(one: Finished) -> int:
        if one.result.signal_number is not None:
            return 4
        if one.result.status == "FAILED":
            return 3
        if one.result.status == "INVALID":
            return 2
        return int(one.exit_code != ExitCode.OK)

    return max(ended, key=rank).exit_code


class Progress:
    """Told how far a run is; this one says nothing."""

    def phase(self, text: str) -> None:
        """A step of the bring-up begins."""

    def at(self, time_s: float) -> None:
        """The run clock."""


def execute(
    scenario: Scenario,
    *,
    runs: Path,
    captures: Sequence[str] = (),
    progress: Progress | None = None,
    extra: Mapping[str, object] | None = None,
) -> Finished:
    """Run a scenario at its fidelity, check its assertions, and write the report.

    Raises :class:`scenarios.registry.MissingPartError` when the backend cannot be had here, and
    :class:`twin.store.StoreError` when the run folder cannot be made.
    """
    progress = progress or Progress()
    # The backend needs the folder and the id of the run, so its parts are looked for first.
    build = make_backend(scenario.fidelity, scenario.topology)
    with RunStore.create(runs, scenario.name) as store:
        backend = build(
            run_id=store.run_id,
            folder=store.path,
            captures=captures,
            progress=progress.phase,
            sdn_app=scenario.sdn_app,
        )
        result = run(scenario, _Watched(backend, progress.at), scenario.controllers, store, extra=extra)
    warnings: list[str] = []
    if scenario.sdn_app is not None and scenario.fidelity != "emulation":
        warnings.append(f"the SDN application {scenario.sdn_app} runs in emulation only; paths are the scenario's own")
    assertions = _check(scenario, result, warnings)
    _report(result.path, warnings)
    return Finished(result, assertions, tuple(warnings))


def _check(scenario: Scenario, result: RunResult, warnings: list[str]) -> tuple[AssertionResult, ...]:
    """Evaluate the assertions of a run that reached its end and note them in the manifest."""
    if result.status == "FAILED" or not scenario.assertions:
        return ()
    with KpiReader(result.path) as reader:

        def read(entity: str, name: str) -> Samples:
            times, values = reader.series(entity, name)
            return list(zip(times.tolist(), values.tolist(), strict=True))

        found = evaluate(scenario.assertions, read)
    rows = [asdict(item) | {"measured": item.measured if item.samples else None} for item in found]
    try:
        write_json(result.path / MANIFEST, {**read_manifest(result.path), "assertions": rows})
    except (OSError, StoreError) as error:
        warnings.append(f"the results of the assertions are not in the manifest: {error}")
    return found


def _report(path: Path, warnings: list[str], against: Path | None = None) -> None:
    from twin.report.page import write_report

    try:
        write_report(path, against, to=path / REPORT)
    except (OSError, StoreError) as error:
        warnings.append(f"no report: {error}")


def write_comparison(path: Path, against: Path) -> list[str]:
    """Write the report of a run anew, side by side with another; warnings for the user."""
    warnings: list[str] = []
    _report(path, warnings, against)
    return warnings


class _Watched:
    """A backend whose sessions tell the run clock after every interval."""

    def __init__(self, backend: Backend, tell: Callable[[float], None]) -> None:
        self._backend = backend
        self._tell = tell
        self.name = backend.name
        self.deterministic = backend.deterministic

    def open(self, topology: Topology, load: Load, *, seed: int) -> Session:
        session = self._backend.open(topology, load, seed=seed)
        self._tell(0.0)
        return _WatchedSession(session, self._tell)


class _WatchedSession:
    def __init__(self, session: Session, tell: Callable[[float], None]) -> None:
        self._session = session
        self._tell = tell

    @property
    def probes(self) -> Sequence[Probe]:
        return self._session.probes

    @property
    def details(self) -> Mapping[str, Any]:
        """What the backend says about itself for the manifest, if anything."""
        found: Mapping[str, Any] = getattr(self._session, "details", {})
        return found

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        return self._session.apply(actions)

    def advance(self, until_s: float) -> Observation:
        observation = self._session.advance(until_s)
        self._tell(until_s)
        return observation

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BarProgress(Progress):
    """A progress bar on stderr, shown from the third second on; on a pipe, one line per phase then."""

    QUIET_S = 2.0

    def __init__(self, duration_s: float) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._duration_s = duration_s
        self._begun_s = time.monotonic()
        self._text = "starting"
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, text: str) -> None:
        self._text = text
        if self._late():
            if self._console.is_terminal:
                self._show(0.0)
            else:
                self._console.print(f"{text} ...", markup=False, highlight=False)

    def at(self, time_s: float) -> None:
        self._text = "running"
        if self._late() and self._console.is_terminal:
            self._show(time_s)

    def _late(self) -> bool:
        return time.monotonic() - self._begun_s > self.QUIET_S

    def _show(self, time_s: float) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:g} s"),
                TimeRemainingColumn(),
            )
            # No refresh thread: the emulation needs its CPU more than the bar does.
            self._bar = RichProgress(*columns, console=self._console, transient=True, auto_refresh=False)
            self._bar.start()
            self._task = self._bar.add_task(self._text, total=self._duration_s)
        self._bar.update(self._task, completed=time_s, description=self._text, refresh=True)
