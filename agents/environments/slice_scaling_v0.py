"""Slice scaling with one agent per slice, in PettingZoo's two interfaces.

::

    from agents.environments import slice_scaling_v0

    env = slice_scaling_v0.parallel_env(scenario="quickstart")  # all agents at once
    env = slice_scaling_v0.aec_env(scenario="quickstart")  # one after the other, then an interval passes

Agents are the slices that have something to scale, named like the entity (``slice:embb``). Observation,
actions and rating are those of ``twinbed/SliceScaling-v0``; see docs/environments.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray

from agents.environments.episodes import episode_seed
from agents.environments.slice_scaling import SliceScaling, action_space
from agents.environments.slices import ActionType, Lever, Vector, checked_action
from scenarios.model import Scenario

try:
    from pettingzoo import ParallelEnv
    from pettingzoo.utils.conversions import parallel_to_aec
except ModuleNotFoundError as error:
    if error.name != "pettingzoo":
        raise
    raise ModuleNotFoundError(
        "agents.environments.slice_scaling_v0 needs pip install 'twinbed[learning]': pettingzoo is not installed",
        name="pettingzoo",
    ) from None

if TYPE_CHECKING:
    _Parallel = Any
else:
    _Parallel = ParallelEnv


class SliceScalingParallelEnv(_Parallel):  # type: ignore[misc]
    """All slices decide at the same time, then one interval passes.

    ``scope`` names the slices that are agents, by default all that have a lever. An agent sees its own
    slice, then the mean over the other slices of the scenario, entry by entry. Its reward mixes its own
    outcome with that of all: ``(1 - shared_reward) * own + shared_reward * mean``. The other arguments
    are those of :class:`agents.environments.slice_scaling.SliceScalingEnv`.
    """

    metadata: dict[str, Any] = {"name": "twinbed_slice_scaling_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012 as in PettingZoo

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
        action_type: ActionType = "discrete",
        sla_weight: float = 1.0,
        cost_weight: float = 0.3,
        shared_reward: float = 0.5,
        record: str | Path | None = None,
    ) -> None:
        if not 0 <= shared_reward <= 1:
            raise ValueError(f"shared_reward: must be in [0, 1], got {shared_reward}")
        self._shared = float(shared_reward)
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
        self._levers = {
            entity: [lever for lever in slices.levers if lever.entity == entity]
            for entity in slices.entities
            if any(lever.entity == entity for lever in slices.levers)
        }
        self.possible_agents = list(self._levers)
        self.agents: list[str] = []
        self.render_mode = None
        low, high = slices.bounds()
        count = len(slices.entities)
        self.observation_spaces = {
            agent: spaces.Box(np.tile(low, 2), np.tile(high, 2), dtype=np.float32) for agent in self.possible_agents
        }
        self.action_spaces = {agent: action_space(len(levers), action_type) for agent, levers in self._levers.items()}
        self.state_space = spaces.Box(np.tile(low, count), np.tile(high, count), dtype=np.float32)
        self._random = seeding.np_random()[0]

    def observation_space(self, agent: str) -> spaces.Box:
        """The bounds of one agent's observation; the same object every time."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """The actions of one agent; the same object every time."""
        return self.action_spaces[agent]

    @property
    def observation_names(self) -> tuple[str, ...]:
        """What every number of an agent's observation is: its own slice, then ``others``."""
        names = self._game.slices.entry_names()
        return (*names, *(f"others {name}" for name in names))

    def action_names(self, agent: str) -> tuple[str, ...]:
        """What every number of an agent's action scales."""
        return tuple(lever.name for lever in self._levers[agent])

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Vector], dict[str, dict[str, Any]]]:
        """Begin an episode and play its first interval; seeds as in ``twinbed/SliceScaling-v0``.

        PettingZoo's tests pass options of their own: what is not known is named in
        ``infos[agent]["ignored_options"]``.
        """
        if seed is not None:
            self._random = seeding.np_random(seed)[0]
        chosen, unused = episode_seed(options, seed, self._random)
        self._game.begin(chosen)
        self.agents = list(self.possible_agents)
        infos = self._infos()
        if unused:
            for info in infos.values():
                info["ignored_options"] = unused
        return self._observations(), infos

    def step(
        self, actions: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, Vector], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """One decision of every agent, then one interval.

        All agents end together: truncated at the end of the scenario, terminated when the network was
        lost, with the least reward and the last observations.
        """
        game = self._game
        if not self.agents:
            raise RuntimeError("the episode is over or was never begun: call reset()")
        decisions: dict[Lever, float] = {}
        for agent in self.agents:
            if agent not in actions:
                raise ValueError(f"actions: none for agent {agent}; agents: {', '.join(self.agents)}")
            levers = self._levers[agent]
            try:
                values = checked_action(actions[agent], len(levers), game.action_type)
            except ValueError as error:
                raise ValueError(f"{agent}: {error}") from None
            decisions.update(zip(levers, values, strict=True))
        alive = game.step(decisions)
        everyone = self.agents
        rewards = dict.fromkeys(everyone, -game.cost_weight)
        if alive:
            shared = game.reward(game.slices.mean(game.ratings))
            rewards = {
                agent: (1 - self._shared) * game.reward(game.ratings[agent]) + self._shared * shared
                for agent in everyone
            }
        over = not alive or game.episodes.over
        found = (
            self._observations(),
            rewards,
            dict.fromkeys(everyone, not alive),
            dict.fromkeys(everyone, alive and over),
            self._infos(),
        )
        if over:
            self.agents = []
        return found

    def state(self) -> Vector:
        """The observations of all slices of the scenario, as ``twinbed/SliceScaling-v0`` sees them."""
        return np.concatenate([self._game.vectors[entity] for entity in self._game.slices.entities])

    def render(self) -> None:
        """Nothing is drawn here; ``record`` an episode and open its report."""

    def close(self) -> None:
        """Release the network and finish the run folder; may be called twice."""
        self._game.episodes.close()

    def _observations(self) -> dict[str, Vector]:
        vectors = self._game.vectors
        found = {}
        for agent in self.agents:
            others = [vector for entity, vector in vectors.items() if entity != agent]
            mean = np.mean(others, axis=0, dtype=np.float32) if others else np.zeros_like(vectors[agent])
            found[agent] = np.concatenate([vectors[agent], mean])
        return found

    def _infos(self) -> dict[str, dict[str, Any]]:
        return {agent: self._game.info([agent]) for agent in self.agents}


def parallel_env(scenario: str | Path | Scenario = "quickstart", **settings: Any) -> SliceScalingParallelEnv:
    """All agents act at once; arguments as of :class:`SliceScalingParallelEnv`."""
    return SliceScalingParallelEnv(scenario, **settings)


def aec_env(scenario: str | Path | Scenario = "quickstart", **settings: Any) -> Any:
    """Agents act one after the other; an interval passes after the last one."""
    return parallel_to_aec(parallel_env(scenario, **settings))


env = aec_env
