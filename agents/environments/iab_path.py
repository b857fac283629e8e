"""``twinbed/IabPath-v0``: which path does every IAB backhaul flow take, one flow per action.

The game of PHaul (NANCY D4.2 §4.2, Figure 16) on the arrays of :mod:`agents.iab_path`: a search on the
flow model while demands stand still, one at a time or thousands side by side; or on a network that
runs, at fidelity ``flow`` or ``emulation``, where every action is carried out and an interval passes.
See docs/environments.md for observation, actions and reward with units and sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from agents.environments.episodes import Episodes, episode_seed, plain, read_scenario
from agents.iab_path import EPISODE_STEPS, Flags, PathSearches, PathSpace, Traffic
from scenarios.errors import unknown
from scenarios.loader import load_scenario
from scenarios.model import Scenario
from scenarios.registry import find_scenario
from topologies.backhaul import to_network
from topologies.iab import LOADS_BPS, IabNetwork, read_network
from topologies.model import Topology
from twin.flow.batched import Array
from twin.types import Action, Observation, Outcome

Vector = NDArray[np.float32]
Source = str | Path | IabNetwork | Scenario
DEMANDS = ("drawn", "fixed", *LOADS_BPS)
RUNNING = ("flow", "emulation")
# On a running network, demands and rates above this many times the largest link capacity saturate.
_MOST_SEEN = 10.0


def read_iab(scenario: Source) -> IabNetwork:
    """The network of a network file (``*.json``), a scenario, or as it is given.

    ValueError (one line per mistake) when there is none, or nothing to decide in it.
    """
    if isinstance(scenario, IabNetwork):
        return scenario
    if not isinstance(scenario, Scenario | str | Path):
        raise ValueError(f"scenario: must be a name, a file, a Scenario or an IabNetwork, got {scenario!r}")
    if not isinstance(scenario, Scenario):
        if _is_network_file(scenario):
            return read_network(Path(scenario))
        scenario = load_scenario(find_scenario(str(scenario)))
    return _backhaul(scenario.topology, scenario.name)


def _is_network_file(name: str | Path) -> bool:
    return Path(name).suffix == ".json"


def _backhaul(topology: Topology, name: str) -> IabNetwork:
    if not topology.backhaul:
        raise ValueError(f"scenario {name}: has no backhaul flows, so there is no path to choose")
    return to_network(topology)


def read_traffic(network: IabNetwork, demand: str, active_probability: float) -> Traffic | None:
    """How demands are drawn; None for those of the network."""
    if demand not in DEMANDS:
        raise ValueError(f"demand: {unknown('demand', demand, DEMANDS)}")
    if demand == "fixed":
        if active_probability != 1:
            raise ValueError(f"active_probability: must be 1 with fixed demands, got {active_probability}")
        return None
    if demand == "drawn":
        like = Traffic.like(network)
        return Traffic(like.low_bps, like.high_bps, active_probability)
    return Traffic.of_load(demand, active_probability)


def observed_space(space: PathSpace, most_bps: float) -> spaces.Box:
    """Bounds of the state {lambda, phi, Gamma}, shape (3 F,); ``most_bps`` is the largest demand."""
    # float32 may round a demand up.
    most = np.nextafter(np.float32(most_bps / space.scale_bps), np.float32(np.inf))
    high = np.concatenate((np.full(2 * space.flows, most), np.ones(space.flows))).astype(np.float32)
    return spaces.Box(np.zeros_like(high), high, dtype=np.float32)


class _Search:
    """On the flow model, while demands stand still: NetDTwin of Figure 16."""

    def __init__(self, space: PathSpace, traffic: Traffic | None, gamma: float, episode_steps: int) -> None:
        self.searches = PathSearches(space, 1, gamma=gamma, episode_steps=episode_steps)
        self.traffic = traffic
        self.over = True

    @property
    def most_bps(self) -> float:
        own = float(self.searches.spaces[0].demand_bps.max())
        return own if self.traffic is None else max(own, self.traffic.high_bps)

    def begin(self, env: IabPathEnv, seed: int | None, options: dict[str, Any]) -> None:  # noqa: ARG002 seed is in env.np_random
        given = options.pop("demand_bps", None)
        if options:
            raise ValueError(f"options: {unknown('option', min(options), ['demand_bps'])}")
        space = self.searches.spaces[0]
        if given is None:
            demand = space.demand_bps if self.traffic is None else self.traffic.draw(env.np_random, (1, space.flows))[0]
        else:
            demand = self._checked(given, space)
        self.searches.restart(demand[None])
        self.over = False

    def _checked(self, given: Any, space: PathSpace) -> Array:
        try:
            demand = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            demand = np.empty(0)
        if demand.shape != (space.flows,):
            raise ValueError(f"options: demand_bps must be {space.flows} numbers, got shape {demand.shape}")
        for name, value in zip(space.names, demand.tolist(), strict=True):
            if not 0 <= value <= self.most_bps:
                raise ValueError(f"options: demand_bps of flow {name} must be in 0..{self.most_bps:g}, got {value:g}")
        return demand

    def act(self, action: int) -> tuple[float, bool, bool]:
        reward, terminated, truncated = self.searches.step(np.array([action]))
        self.over = bool(terminated[0] or truncated[0])
        return float(reward[0]), bool(terminated[0]), bool(truncated[0])

    def info(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.over = True


class _Running:
    """On a network that runs: an action sets ``path_index`` of a flow, then an interval passes.

    The observation and the reward are those of the search, with what the run reports in place of the
    model: ``offered_bps``, ``throughput_bps`` and ``path_index`` of every flow.
    """

    most_bps = float("inf")

    def __init__(self, scenario: Scenario, space: PathSpace, gamma: float, record: str | Path | None) -> None:
        self.searches = PathSearches(space, 1, gamma=gamma, episode_steps=1 << 31)
        self.episodes = Episodes(scenario, record=record)
        self.space = space
        self.seed = scenario.seed
        self.time_s = 0.0
        self._outcomes: list[Outcome] = []

    @property
    def over(self) -> bool:
        return self.episodes.over

    def begin(self, env: IabPathEnv, seed: int | None, options: dict[str, Any]) -> None:
        chosen, unused = episode_seed(options, seed, env.np_random)
        if unused:
            raise ValueError(f"options: {unknown('option', unused[0], ['scenario_seed'])}")
        self.seed, self._outcomes = chosen, []
        self._take(self.episodes.begin(chosen), begin=True)

    def act(self, action: int) -> tuple[float, bool, bool]:
        slot, flow = divmod(action, self.space.flows)
        index = int(self.space.index_of[flow, slot])
        self._outcomes = []
        # A slot without a path has no index to set: counted as refused, as in the search.
        if index < 0:
            self.searches.refused += 1
        elif index != self.searches.allocation[0, flow]:
            entity = f"flow:{self.space.names[flow]}"
            self._outcomes = self.episodes.apply([Action(entity, "path_index", index)])
            self.searches.refused += not self._outcomes[0].applied
        observed = self.episodes.step()
        if isinstance(observed, str):
            return -2.0, True, False
        self._take(observed)
        reward, _, _ = self.searches.score()
        return float(reward[0]), False, self.episodes.over

    def _take(self, observation: Observation, *, begin: bool = False) -> None:
        self.time_s = observation.time_s
        found: dict[str, dict[str, float]] = {f"flow:{name}": {} for name in self.space.names}
        for kpi in observation.kpis:
            if kpi.entity in found:
                found[kpi.entity][kpi.name] = kpi.value
        rows = list(found.values())
        demand, rates = (np.array([[row.get(name, 0.0) for row in rows]]) for name in ("offered_bps", "throughput_bps"))
        paths = np.array([[round(row.get("path_index", 0.0)) for row in rows]])
        self.searches.measure(demand, rates, paths, begin=begin)
        if self.episodes.over:
            self.episodes.close()

    def info(self) -> dict[str, Any]:
        status, reason = self.episodes.status
        return {
            "time_s": self.time_s,
            "scenario_seed": self.seed,
            "refusals": [plain(item) for item in self._outcomes if not item.applied],
            "status": status,
            "reason": reason,
        }

    def close(self) -> None:
        self.episodes.close()


class IabPathEnv(gymnasium.Env[Vector, np.int64]):
    """Choose the paths of IAB backhaul flows, one flow per action (NANCY D4.2 §4.2, Figure 16).

    ``scenario``: a network file (``*.json``), a library name, a scenario file or a loaded one with
    backhaul flows, or a network. ``fidelity``: None searches on the flow model with demands that stand
    still; ``flow`` and ``emulation`` run the scenario, whose end is then the end of the episode.
    ``gamma``: -1 (fairness only) to 1 (efficiency only).

    A search takes ``episode_steps`` (N_steps) and new demands every episode: ``drawn`` between the
    network's least and largest, ``low`` or ``high`` of the paper, or ``fixed``, those of the network;
    a flow is active with ``active_probability``. A run may be recorded in the folder ``record``.

    ValueError (one line per mistake) for arguments and actions that do not fit,
    :class:`scenarios.registry.MissingPartError` when the fidelity cannot be had here.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 as in Gymnasium

    def __init__(
        self,
        scenario: Source,
        *,
        fidelity: str | None = None,
        gamma: float = 1.0,
        episode_steps: int = EPISODE_STEPS,
        demand: str = "drawn",
        active_probability: float = 1.0,
        duration_s: float | None = None,
        record: str | Path | None = None,
    ) -> None:
        # Where the paths are changed: its ``searches`` hold the one row that is seen and rated.
        self._world: _Search | _Running
        if fidelity is None:
            for name, value in (("duration_s", duration_s), ("record", record)):
                if value is not None:
                    raise ValueError(f"{name}: needs a fidelity ({' or '.join(RUNNING)}): a search does not run")
            network = read_iab(scenario)
            self.space = PathSpace(network)
            traffic = read_traffic(network, demand, active_probability)
            self._world = _Search(self.space, traffic, gamma, episode_steps)
            most_bps = self._world.most_bps
        else:
            if isinstance(scenario, IabNetwork) or (isinstance(scenario, str | Path) and _is_network_file(scenario)):
                raise ValueError(f"fidelity {fidelity}: needs a scenario to run, got a network; leave fidelity out")
            if episode_steps != EPISODE_STEPS:
                raise ValueError("episode_steps: a scenario that runs ends with its duration; give duration_s")
            if (demand, active_probability) != ("drawn", 1.0):
                raise ValueError("demand, active_probability: a scenario that runs brings its own demands")
            played = read_scenario(scenario, fidelity, duration_s)
            if played.duration_s <= played.interval_s:
                raise ValueError(f"scenario {played.name}: needs more than one interval, got {played.duration_s:g} s")
            self.space = PathSpace(_backhaul(played.topology, played.name))
            self._world = _Running(played, self.space, gamma, record)
            most_bps = _MOST_SEEN * self.space.scale_bps
        bounds = observed_space(self.space, most_bps)
        self._most_seen = bounds.high.astype(np.float32)
        self.observation_space = cast("spaces.Space[Vector]", bounds)
        self.action_space = spaces.Discrete(self.space.actions)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """What every number of the observation is: ``flow:f1 offered_bps / capacity`` and so on."""
        return observation_names(self.space)

    @property
    def action_names(self) -> tuple[str, ...]:
        """What every action does: ``flow:f1 slot 0``."""
        return tuple(f"flow:{name} slot {slot}" for slot in range(self.space.slots) for name in self.space.names)

    def action_masks(self) -> Flags:
        """Which actions give a flow with demand another path, shape (actions,); for maskable agents."""
        masks: Flags = self._world.searches.masks()[0]
        return masks

    @property
    def best_allocation(self) -> dict[str, int]:
        """Path index by flow of the best allocation of this episode."""
        best = self._world.searches.best_allocation[0]
        return {name: int(index) for name, index in zip(self.space.names, best, strict=True)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """Begin an episode with every flow on its first path; on a run, play its first interval.

        ``options``: ``demand_bps`` sets the demands of a search, in the order of the flows;
        ``scenario_seed`` the seed of a run, which is otherwise ``seed`` or, without one, the next of
        the environment's random stream.
        """
        super().reset(seed=seed)
        self._world.begin(self, seed, dict(options or {}))
        return self._observation(), self._info()

    def step(self, action: np.int64) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Put flow ``action mod F`` on slot ``action div F``.

        A search is ``terminated`` when no allocation can be better and ``truncated`` after
        ``episode_steps``; a run is ``truncated`` at the end of the scenario and ``terminated``, with
        the least reward of -2, when the network was lost.
        """
        if self._world.over:
            raise gymnasium.error.ResetNeeded("the episode is over or was never begun: call reset()")
        reward, terminated, truncated = self._world.act(checked_path_action(action, self.space.actions))
        return self._observation(), reward, terminated, truncated, self._info()

    def close(self) -> None:
        """Release the network and finish the run folder; may be called twice."""
        self._world.close()

    def _observation(self) -> Vector:
        found: Vector = np.minimum(self._world.searches.observation()[0], self._most_seen)
        return found

    def _info(self) -> dict[str, Any]:
        searches = self._world.searches
        figures = {name: float(getattr(searches, name)[0]) for name in FIGURES}
        return {**figures, "refused": int(searches.refused[0]), **self._world.info()}


FIGURES = ("efficiency", "fairness", "objective", "best_objective", "best_efficiency", "best_fairness")


def observation_names(space: PathSpace) -> tuple[str, ...]:
    """What every number of an observation is."""
    what = ("offered_bps / capacity", "throughput_bps / capacity", "slot / last slot")
    return tuple(f"flow:{name} {part}" for part in what for name in space.names)


def checked_path_action(action: Any, actions: int) -> int:
    """A whole number in range; ValueError (one line) otherwise."""
    array = np.asarray(action)
    if array.shape != () or array.dtype.kind not in "iu":
        raise ValueError(f"action: must be one whole number, got {action!r}")
    if not 0 <= array < actions:
        raise ValueError(f"action: must be in 0..{actions - 1}, got {int(array)}")
    return int(array)


class IabPathVectorEnv(VectorEnv[Vector, NDArray[np.int64], NDArray[Any]]):
    """``num_envs`` searches side by side, evaluated together; each is :class:`IabPathEnv` without fidelity.

    ``reset(seed=S)`` seeds search i with S + i, as Gymnasium's other vector environments do, so that
    search i is step by step what a single environment seeded with S + i is. ``autoreset_mode``:
    ``NextStep`` (the action after the end is ignored, the reward is 0, and the first observation of
    the new episode comes back), ``SameStep`` (it comes back with the last reward; the last observation
    and figures are ``info["final_obs"]`` and ``info["final_info"]``) or ``Disabled`` (``reset`` with
    ``options={"reset_mask": ...}``). ``threads`` share the batch.
    """

    def __init__(
        self,
        scenario: Source,
        num_envs: int = 1,
        *,
        gamma: float = 1.0,
        episode_steps: int = EPISODE_STEPS,
        demand: str = "drawn",
        active_probability: float = 1.0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        threads: int = 1,
        fidelity: str | None = None,
    ) -> None:
        if fidelity is not None:
            raise ValueError(
                f"fidelity {fidelity}: many at once search on arrays; use make_vec(..., vectorization_mode='async')"
            )
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs: must be a whole number, at least 1, got {num_envs!r}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            known = [mode.value for mode in AutoresetMode]
            raise ValueError(f"autoreset_mode: {unknown('mode', autoreset_mode, known)}") from None
        network = read_iab(scenario)
        self.num_envs = num_envs
        self.space = PathSpace(network)
        self.traffic = read_traffic(network, demand, active_probability)
        self.searches = PathSearches(self.space, num_envs, gamma=gamma, episode_steps=episode_steps, threads=threads)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        most_bps = max(float(self.space.demand_bps.max()), self.traffic.high_bps if self.traffic else 0.0)
        self.single_observation_space = observed_space(self.space, most_bps)
        self.single_action_space = spaces.Discrete(self.space.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._randoms: list[np.random.Generator] = []
        self._over: Flags = np.ones(num_envs, dtype=bool)
        self._everyone: Flags = np.ones(num_envs, dtype=bool)
        self._everyone.setflags(write=False)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """What every number of a row of the observation is."""
        return observation_names(self.space)

    def action_masks(self) -> Flags:
        """Which actions give a flow with demand another path, shape (num_envs, actions)."""
        return self.searches.masks()

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Vector, dict[str, Any]]:
        """Begin episodes: all, or those of ``options["reset_mask"]``, shape (num_envs,).

        ``seed``: search i gets ``seed + i``, or entry i of a list.
        """
        given = dict(options or {})
        rows = np.asarray(given.pop("reset_mask", self._everyone))
        if given:
            raise ValueError(f"options: {unknown('option', min(given), ['reset_mask'])}")
        if rows.shape != (self.num_envs,) or rows.dtype != bool or not rows.any():
            raise ValueError(f"options: reset_mask must be {self.num_envs} booleans, at least one true")
        if isinstance(seed, Sequence):
            seeds = list(seed)
        else:
            seeds = [None if seed is None else seed + row for row in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: must be one number or {self.num_envs}, got {len(seeds)}")
        fresh = not self._randoms
        if fresh:
            if not rows.all():
                raise gymnasium.error.ResetNeeded("reset_mask: the first reset must be of all searches")
            self._randoms = [np.random.default_rng()] * self.num_envs
        for row in np.flatnonzero(rows):
            if fresh or seeds[row] is not None:
                self._randoms[row] = gymnasium.utils.seeding.np_random(seeds[row])[0]
        self._restart(rows)
        return self.searches.observation(), self._info()

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Vector, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One action per search, shape (num_envs,); arrays of shape (num_envs, ...) come back."""
        if not self._randoms:
            raise gymnasium.error.ResetNeeded("call reset() first")
        searches, waiting = self.searches, self._over
        resting = bool(waiting.any())
        if resting:
            if self.autoreset_mode is AutoresetMode.DISABLED:
                raise gymnasium.error.ResetNeeded(f"search {int(np.argmax(waiting))} is over: reset it")
            # The search that waits stays where it is: the slot that its first flow has already.
            actions = np.where(waiting, searches.slots[:, 0] * searches.flows, actions)
        rewards, terminated, truncated = searches.step(actions)
        if resting:
            self._restart(waiting)
            rewards[waiting], terminated[waiting], truncated[waiting] = 0.0, False, False
        over = terminated | truncated
        info = self._info()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and over.any():
            last = {"final_obs": searches.observation(), "_final_obs": over, "final_info": info, "_final_info": over}
            self._restart(over)
            info = {**self._info(), **last}
            return searches.observation(), rewards, terminated, truncated, info
        self._over = over
        return searches.observation(), rewards, terminated, truncated, info

    def _restart(self, rows: Flags) -> None:
        where = np.flatnonzero(rows)
        if self.traffic is None:
            demand = np.repeat(self.space.demand_bps[None], len(where), axis=0)
        else:
            shape = (1, self.space.flows)
            demand = np.concatenate([self.traffic.draw(self._randoms[row], shape) for row in where])
        self.searches.restart(demand, None if rows.all() else rows)
        self._over = self._over & ~rows

    def _info(self) -> dict[str, Any]:
        # Copies: the arrays of the searches change with the next step.
        found: dict[str, Any] = {name: getattr(self.searches, name).copy() for name in (*FIGURES, "refused")}
        return {**found, **{f"_{name}": self._everyone for name in found}}
