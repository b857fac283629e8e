"""``twinbed/SliceScaling-v0``: one agent scales the resources of network slices while they run.

See docs/environments.md for observation, actions and reward with units and sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agents.environments.episodes import Episodes, episode_seed, plain, read_scenario
from agents.environments.slices import ACTION_TYPES, ActionType, Lever, Rating, Slices, Vector, checked_action
from scenarios.errors import unknown
from scenarios.model import Scenario
from twin.types import Action, Observation, Outcome


class SliceScaling:
    """The game that both environments play: joint decisions in, vectors and ratings of all slices out."""

    def __init__(
        self,
        scenario: str | Path | Scenario,
        fidelity: str,
        *,
        duration_s: float | None,
        action_type: ActionType,
        sla_weight: float,
        cost_weight: float,
        record: str | Path | None,
        **scaled: Any,
    ) -> None:
        if action_type not in ACTION_TYPES:
            raise ValueError(f"action_type: {unknown('action type', action_type, ACTION_TYPES)}")
        for name, weight in (("sla_weight", sla_weight), ("cost_weight", cost_weight)):
            if not 0 <= weight <= 1000:
                raise ValueError(f"{name}: must be in [0, 1000], got {weight}")
        self.scenario = read_scenario(scenario, fidelity, duration_s)
        if self.scenario.duration_s <= self.scenario.interval_s:
            raise ValueError(
                f"scenario {self.scenario.name}: needs more than one interval of {self.scenario.interval_s:g} s, "
                f"got {self.scenario.duration_s:g} s"
            )
        self.slices = Slices(self.scenario, **scaled)
        self.action_type = action_type
        self.sla_weight, self.cost_weight = float(sla_weight), float(cost_weight)
        self.episodes = Episodes(self.scenario, record=record)
        self.vectors: dict[str, Vector] = {}
        self.ratings: dict[str, Rating] = {}
        self.seed = self.scenario.seed
        self.time_s = 0.0
        self._outcomes: list[Outcome] = []

    def begin(self, seed: int) -> None:
        """Start an episode on the scenario with this seed."""
        self.seed = seed
        self.slices.begin()
        self._outcomes = []
        self._take(self.episodes.begin(seed))

    def step(self, decisions: Mapping[Lever, float]) -> bool:
        """Scale and let one interval pass; False when the network was lost."""
        self._outcomes = []
        wanted: list[Action] = []
        for lever, value in decisions.items():
            if self.action_type == "continuous":
                action, reason = self.slices.placed(lever, value), ""
            else:
                action, reason = self.slices.stepped(lever, int(value))
            if action is None:
                continue
            if reason:
                self._outcomes.append(Outcome(action, applied=False, reason=reason, time_s=self.time_s))
            else:
                wanted.append(action)
        if self._outcomes:
            self.episodes.log(self._outcomes)
        outcomes = self.episodes.apply(self.slices.in_order(wanted))
        self.slices.took(outcomes)
        self._outcomes += outcomes
        observed = self.episodes.step()
        if isinstance(observed, str):
            return False
        self._take(observed)
        return True

    def _take(self, observation: Observation) -> None:
        self.time_s = observation.time_s
        kpis = self.slices.observe(observation)
        for entity, values in kpis.items():
            sla = self.episodes.sla(entity.partition(":")[2])
            self.vectors[entity] = self.slices.vector(entity, values, sla)
            self.ratings[entity] = self.slices.rate(entity, values, sla)
        if self.episodes.over:
            # Nothing of the network is needed any more, and a recorded run is finished at once.
            self.episodes.close()

    def reward(self, rating: Rating) -> float:
        """``sla_weight * satisfaction - cost_weight * cost``, in [-cost_weight, sla_weight]."""
        return self.sla_weight * rating.satisfaction - self.cost_weight * rating.cost

    def info(self, entities: Sequence[str]) -> dict[str, Any]:
        """What happened, as plain data, of the slices ``entities``."""
        outcomes = [outcome for outcome in self._outcomes if outcome.action.entity in entities]
        status, reason = self.episodes.status
        return {
            "time_s": self.time_s,
            "scenario_seed": self.seed,
            "satisfaction": {entity: self.ratings[entity].satisfaction for entity in entities},
            "cost": {entity: self.ratings[entity].cost for entity in entities},
            "values": {name: value for name, value in self.slices.values.items() if name.partition(" ")[0] in entities},
            "applied": [plain(outcome) for outcome in outcomes if outcome.applied],
            "refused": [plain(outcome) for outcome in outcomes if not outcome.applied],
            "status": status,
            "reason": reason,
        }


def action_space(levers: int, kind: ActionType) -> spaces.Space[Any]:
    """The space of :func:`agents.environments.slices.checked_action`."""
    if kind == "multi_discrete":
        return spaces.MultiDiscrete([3] * levers)
    if kind == "discrete":
        return spaces.Discrete(2 * levers + 1)
    return spaces.Box(-1.0, 1.0, (levers,), dtype=np.float32)


class SliceScalingEnv(gymnasium.Env[Vector, NDArray[Any]]):
    """One agent that scales the slices of a scenario, once per interval.

    ``scenario``: a library name, a file, or a loaded scenario; ``fidelity``: ``flow`` or
    ``emulation``; ``duration_s`` replaces the scenario's. ``knobs``, ``scope``, ``minimum``,
    ``maximum``, ``step``: see :class:`agents.environments.slices.Slices`. ``action_type``:
    ``multi_discrete`` (down, keep, up for every lever), ``discrete`` (one lever at a time) or
    ``continuous`` (position in the range of every lever). ``sla_weight``,
    ``cost_weight``: of the reward. ``record``: a folder that gets one run per episode.

    ValueError (one line per mistake) for arguments and actions that do not fit,
    :class:`scenarios.registry.MissingPartError` when the fidelity cannot be had here.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 as in Gymnasium

    def __init__(
        self,
        scenario: str | Path | Scenario = "quickstart",
        *,
        fidelity: str = "flow",
        duration_s: float | None = None,
        knobs: Sequence[str] | None = None,
        scope: Sequence[str] | None = None,
        minimum: Mapping[str, float] | None = None,
        maximum: Mapping[str, float] | None = None,
        step: Mapping[str, float] | None = None,
        action_type: ActionType = "multi_discrete",
        sla_weight: float = 1.0,
        cost_weight: float = 0.3,
        record: str | Path | None = None,
    ) -> None:
        self._game = SliceScaling(
            scenario,
            fidelity,
            duration_s=duration_s,
            action_type=action_type,
            sla_weight=sla_weight,
            cost_weight=cost_weight,
            record=record,
            knobs=knobs,
            scope=scope,
            minimum=minimum,
            maximum=maximum,
            step=step,
        )
        slices = self._game.slices
        low, high = slices.bounds()
        count = len(slices.entities)
        self.observation_space = spaces.Box(np.tile(low, count), np.tile(high, count), dtype=np.float32)
        levers = len(slices.levers)
        self.action_space = action_space(levers, action_type)

    @property
    def scenario(self) -> Scenario:
        """The scenario as it is played, with the seed of its file."""
        return self._game.scenario

    @property
    def observation_names(self) -> tuple[str, ...]:
        """What every number of the observation is: ``slice:embb active_ues_ratio``."""
        slices = self._game.slices
        return tuple(f"{entity} {name}" for entity in slices.entities for name in slices.entry_names())

    @property
    def action_names(self) -> tuple[str, ...]:
        """What every number of the action scales: ``slice:embb cpu_millicores``."""
        return tuple(lever.name for lever in self._game.slices.levers)

    @property
    def levers(self) -> tuple[Lever, ...]:
        """Range, start and step of every number of the action, in the unit of its knob."""
        return self._game.slices.levers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Begin an episode and play its first interval.

        ``seed`` S plays what ``twin run --seed S`` plays; without one, the scenario's seed is the next
        of the environment's random stream. ``options``: ``scenario_seed`` chooses it without touching
        that stream.
        """
        super().reset(seed=seed)
        chosen, unused = episode_seed(options, seed, self.np_random)
        if unused:
            raise ValueError(f"options: {unknown('option', unused[0], ['scenario_seed'])}")
        self._game.begin(chosen)
        return self._observation(), self._game.info(self._game.slices.entities)

    def step(self, action: NDArray[Any]) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Scale, let one interval pass.

        ``truncated`` at the end of the scenario, ``terminated`` when the network was lost: the reward
        is then the least one, ``info["reason"]`` says why, and the observation is the last there was.
        """
        game = self._game
        if game.episodes.over:
            raise gymnasium.error.ResetNeeded("the episode is over or was never begun: call reset()")
        levers = game.slices.levers
        values = checked_action(action, len(levers), game.action_type)
        alive = game.step(dict(zip(levers, values, strict=True)))
        reward = game.reward(game.slices.mean(game.ratings)) if alive else -game.cost_weight
        truncated = alive and game.episodes.over
        return self._observation(), reward, not alive, truncated, game.info(game.slices.entities)

    def close(self) -> None:
        """Release the network and finish the run folder; may be called twice."""
        self._game.episodes.close()

    def _observation(self) -> Vector:
        return np.concatenate([self._game.vectors[entity] for entity in self._game.slices.entities])
