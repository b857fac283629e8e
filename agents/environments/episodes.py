"""A scenario that is played again and again: what every environment on a running network shares."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.engine import Episode
from scenarios.loader import load_scenario, resolve
from scenarios.model import Scenario
from scenarios.registry import find_scenario, make_backend
from scenarios.source import Location, Source
from topologies.model import Sla
from twin.backend import BackendError
from twin.store import RunStore, StoreError, new_run_id
from twin.types import Action, Observation, Outcome

# Scenario seeds of episodes after the first are drawn below this.
_SEEDS = 1 << 31


def read_scenario(scenario: str | Path | Scenario, fidelity: str, duration_s: float | None = None) -> Scenario:
    """A library name, a file or a loaded scenario, at ``fidelity``; without its controllers and assertions.

    Events stay: they are part of the world. ValueError (one line per mistake) for an unknown scenario,
    fidelity or a file that cannot be used; :class:`scenarios.registry.MissingPartError` when this host
    cannot run the fidelity.
    """
    make_backend(fidelity)
    if not isinstance(scenario, Scenario | str | Path):
        raise ValueError(f"scenario: must be a name, a file or a Scenario, got {scenario!r}")
    if not isinstance(scenario, Scenario):
        left_out: dict[str, Any] = {"controllers": [], "assert": []}
        scenario = load_scenario(
            find_scenario(str(scenario)), fidelity=fidelity, duration_s=duration_s, settings=left_out
        )
    if scenario.document:
        kept = {**scenario.document, "fidelity": fidelity, "controllers": [], "assert": []}
        return _loaded(replace(scenario, document=kept), seed=scenario.seed, duration_s=duration_s)
    if duration_s is not None:
        raise ValueError(f"duration_s: scenario {scenario.name} was not read from a file, so its load cannot be cut")
    return replace(scenario, fidelity=fidelity, controllers=(), assertions=())  # type: ignore[arg-type]


def reseeded(scenario: Scenario, seed: int) -> Scenario:
    """The same scenario as ``twin run --seed`` plays it: load, channel and backend drawn anew.

    A scenario that was not read from a file keeps its load, which nothing here can draw anew.
    """
    if seed == scenario.seed:
        return scenario
    return _loaded(scenario, seed=seed) if scenario.document else replace(scenario, seed=seed)


def _loaded(scenario: Scenario, *, seed: int, duration_s: float | None = None) -> Scenario:
    duration_s = scenario.duration_s if duration_s is None else duration_s
    # Given as overrides, as on the command line: events after the end of a shortened scenario are left out.
    changes: dict[Location, tuple[str, Any]] = {("seed",): ("seed", seed), ("duration",): ("duration_s", duration_s)}
    return resolve(Source(scenario.source, dict(scenario.document), {}).with_values(changes))


def episode_seed(
    options: Mapping[str, Any] | None, seed: int | None, rng: np.random.Generator
) -> tuple[int, list[str]]:
    """The scenario seed of the episode that ``reset`` begins, and the names of options that mean nothing here.

    ``scenario_seed`` of the options, else ``seed``, else the next of ``rng``.
    """
    given = dict(options or {})
    chosen = given.pop("scenario_seed", None)
    if chosen is not None and (not isinstance(chosen, int) or isinstance(chosen, bool) or chosen < 0):
        raise ValueError(f"options: scenario_seed must be a whole number, at least 0, got {chosen!r}")
    if chosen is None:
        chosen = seed if seed is not None else int(rng.integers(_SEEDS))
    return chosen, sorted(given)


def plain(outcome: Outcome) -> dict[str, Any]:
    """What was wanted, for ``info``; with the reason when it was refused."""
    wanted = {"entity": outcome.action.entity, "knob": outcome.action.knob, "value": outcome.action.value}
    return wanted if outcome.applied else {**wanted, "reason": outcome.reason}


class _Open:
    """What an episode holds; apart from the environment, so that it can be released after it."""

    def __init__(self) -> None:
        self.episode: Episode | None = None
        self.folder: Path | None = None
        self._process = os.getpid()

    def close(self) -> None:
        episode, self.episode = self.episode, None
        folder, self.folder = self.folder, None
        if os.getpid() != self._process:
            # A fork of the process that plays it: the network is not ours to take down.
            return
        try:
            if episode is not None:
                episode.close()
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


class Episodes:
    """Plays ``scenario`` from its start as often as wanted, one episode at a time; closable.

    ``record`` None keeps nothing; a folder gets one run per episode, as ``twin run`` writes them. An
    episode left open when the program ends or the object goes is closed then.
    """

    def __init__(self, scenario: Scenario, *, record: str | Path | None = None, agent: str = "agent") -> None:
        self.scenario = scenario
        self._record = None if record is None else Path(record)
        self._agent = agent
        self._open = _Open()
        self._over = True
        self._ended = ("FAILED", "no episode was begun")
        self._finalizer = weakref.finalize(self, self._open.close)

    def begin(self, seed: int) -> Observation:
        """Close the episode before and play the first interval of a new one; its KPIs.

        A decision is due after the first observation, as for the controllers of a run.
        """
        self._open.close()
        self._over = True
        scenario = reseeded(self.scenario, seed)
        build = make_backend(scenario.fidelity, scenario.topology)
        store = None
        if self._record is not None:
            store = RunStore.create(self._record, scenario.name)
            run_id, folder = store.run_id, store.path
        else:
            run_id, folder = new_run_id(scenario.name), Path()
            if scenario.fidelity != "flow":
                folder = self._open.folder = Path(tempfile.mkdtemp(prefix="twinbed-"))
        try:
            backend = build(run_id=run_id, folder=folder, captures=(), progress=_silent)
            episode = Episode(scenario, backend, store, extra={"agent": self._agent})
        except BaseException:
            self._open.close()
            raise
        self._open.episode = episode
        self._over = False
        try:
            observation = episode.step()
        except BaseException as error:
            self._lose(str(error) or type(error).__name__)
            raise
        self._over = episode.done
        return observation

    def apply(self, actions: Sequence[Action]) -> list[Outcome]:
        """Carry out actions now, in order; one outcome each."""
        return self._running().apply(actions, self._agent)

    def log(self, outcomes: Sequence[Outcome]) -> None:
        """Record what never reached the network, with the reason."""
        self._running().log(self._agent, outcomes)

    def step(self) -> Observation | str:
        """KPIs of one more interval, or why the network was lost; the episode is over then."""
        episode = self._running()
        try:
            observation = episode.step()
        except BackendError as error:
            self._lose(str(error))
            return str(error)
        except StoreError as error:
            self._lose(str(error))
            raise
        if episode.done:
            self._over = True
        return observation

    @property
    def over(self) -> bool:
        """Whether a new episode has to begin before anything else can be done."""
        return self._over

    def sla(self, slice_name: str) -> Sla:
        """The promises in force for a slice."""
        return self._running().sla(slice_name)

    @property
    def status(self) -> tuple[str, str]:
        """VALID, INVALID or FAILED, and why."""
        episode = self._open.episode
        return self._ended if episode is None else (episode.status, episode.reason)

    def _running(self) -> Episode:
        if self._open.episode is None:
            raise RuntimeError("the environment is closed or was not reset; call reset()")
        return self._open.episode

    def _lose(self, reason: str) -> None:
        if self._open.episode is not None:
            self._open.episode.fail(reason)
        self.close()

    def close(self) -> None:
        """Release the network and finish the run folder; may be called twice."""
        self._over = True
        episode = self._open.episode
        try:
            self._open.close()
        finally:
            if episode is not None:
                self._ended = episode.status, episode.reason


def _silent(_text: str) -> None:
    """Nobody watches the bring-up."""
