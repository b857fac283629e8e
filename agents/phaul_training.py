"""Training of PHaul: proximal policy optimisation of stable-baselines3 on searches side by side.

The algorithm is ``MaskablePPO`` of sb3-contrib, which is stable-baselines3's PPO but for actions that do
not exist, whose probability it sets to 0; every hyper-parameter has the default of both (learning rate
3e-4, 2048 transitions per update, 10 epochs, batches of 64, discount 0.99, two layers of 64). The 2048
transitions come from ``ENVIRONMENTS`` searches in turn.

After every update a checkpoint holds all that the rest of the training depends on, so that a training
which is killed and resumed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import checkpoint
from agents.checkpoint import CheckpointError
from agents.iab_path import EPISODE_STEPS, PathSearchError, PathSearches, PathSpace, Traffic, most_paths
from agents.phaul import (
    AGENT,
    CHECKPOINT,
    TRAINING_STEPS,
    PhaulPolicy,
    Row,
    fingerprint,
    policy_of,
)
from controllers.iab.problem import SolveError
from topologies.iab import IabNetwork, generate, network_to_json
from twin.streams import named_stream

try:
    import torch
    from gymnasium import spaces
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import VecEnv
except ModuleNotFoundError as error:
    raise SolveError(f"training: no package {error.name}: needs pip install 'twinbed[learning]'") from None

ENVIRONMENTS = 8
UPDATE_STEPS = 2048
CURVE = "curve.csv"
_COLUMNS = ("steps", "episodes", "reward_mean", "objective_best", "efficiency_best", "fairness_best")
# Arrays of the searches that a restart does not set anew.
_SEARCH_STATE = (
    *("demand_bps", "rates_bps", "allocation", "slots", "step_count", "refused", "efficiency", "fairness"),
    *("objective", "best_objective", "best_efficiency", "best_fairness", "best_allocation", "least", "largest"),
)


@dataclass(frozen=True)
class Training:
    """What is trained: on ``network``, or ``across`` random topologies of its size.

    ``gamma`` weighs efficiency against fairness, in [-1, 1]. ``steps`` are rounded up to whole updates
    of ``UPDATE_STEPS``. Without ``masking`` the algorithm is ``PPO`` of stable-baselines3, and an action
    without a path changes nothing.
    """

    network: IabNetwork
    traffic: Traffic
    gamma: float = 1.0
    steps: int = TRAINING_STEPS
    episode_steps: int = EPISODE_STEPS
    seed: int = 0
    across: bool = False
    masking: bool = True

    def __post_init__(self) -> None:
        if not -1 <= self.gamma <= 1:
            raise PathSearchError(f"gamma: must be in -1..1, got {self.gamma}")
        for name, value in (("steps", self.steps), ("episode_steps", self.episode_steps)):
            if value < 1:
                raise PathSearchError(f"{name}: must be at least 1, got {value}")
        if not self.network.flows:
            raise PathSearchError("flows: the network has none, so there is nothing to learn")

    def meta(self) -> dict[str, Any]:
        """The part of a checkpoint's description that must be the same to resume."""
        return {
            "flows": [flow.id for flow in self.network.flows],
            "k_paths": most_paths(self.network),
            "gamma": self.gamma,
            "episode_steps": self.episode_steps,
            "seed": self.seed,
            "traffic": asdict(self.traffic),
            "across": self.across,
            "masking": self.masking,
            "fingerprint": fingerprint(self.network),
            "network": None if self.across else network_to_json(self.network),
        }


class SearchVecEnv(VecEnv):  # type: ignore[misc]
    """Searches as a vectorised environment of stable-baselines3; a new traffic matrix every episode.

    Across topologies every episode also has a new topology of the generator, kept by its number.
    """

    def __init__(self, plan: Training, count: int = ENVIRONMENTS) -> None:
        self.plan = plan
        self.space = PathSpace(plan.network)
        self.rng = named_stream(plan.seed, "phaul/episodes")
        self.topologies = np.zeros(count, dtype=np.int64)
        self.searches = PathSearches(
            [self.space] * count if plan.across else self.space,
            count,
            gamma=plan.gamma,
            episode_steps=plan.episode_steps,
        )
        self.ended: list[tuple[float, float, float]] = []
        self._actions: NDArray[np.int64] = np.zeros(count, dtype=np.int64)
        box = spaces.Box(-np.inf, np.inf, (3 * self.space.flows,), np.float32)
        super().__init__(count, box, spaces.Discrete(self.space.actions))

    def _restart(self, rows: NDArray[np.bool_]) -> None:
        count = int(rows.sum())
        demand = self.plan.traffic.draw(self.rng, (count, self.space.flows))
        drawn: list[PathSpace] | None = None
        if self.plan.across:
            numbers = self.rng.integers(0, 1 << 31, count)
            self.topologies[rows] = numbers
            drawn = [self._space(int(number)) for number in numbers]
            # The plan's network may be a scaled one.
            demand *= np.array([one.scale_bps / self.space.scale_bps for one in drawn])[:, None]
        self.searches.restart(demand, rows, spaces=drawn)

    def _space(self, number: int) -> PathSpace:
        network = generate(len(self.plan.network.nodes), k_paths=self.space.k_paths, seed=number)
        if len(network.flows) != self.space.flows:
            raise PathSearchError(
                f"across: random topologies of {len(network.nodes)} nodes have {len(network.flows)} flows, "
                f"the network has {self.space.flows}"
            )
        return PathSpace(network, k_paths=self.space.k_paths)

    def reset(self) -> NDArray[np.float32]:
        self._restart(np.ones(self.num_envs, dtype=np.bool_))
        return self.searches.observation()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        reward, terminated, truncated = self.searches.step(self._actions)
        observation, done = self.searches.observation(), terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            one = self.searches
            for row in np.flatnonzero(done):
                infos[row] = {"terminal_observation": observation[row], "TimeLimit.truncated": bool(truncated[row])}
                self.ended.append(
                    (float(one.best_objective[row]), float(one.best_efficiency[row]), float(one.best_fairness[row]))
                )
            self._restart(done)
            last, observation = observation, self.searches.observation()
            for row in np.flatnonzero(done):
                infos[row]["terminal_observation"] = last[row]
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is held."""

    def env_method(self, method_name: str, *_args: Any, indices: Any = None, **_options: Any) -> list[Any]:  # noqa: ARG002
        if method_name != "action_masks":
            raise AttributeError(method_name)
        return list(self.searches.masks())

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == "action_masks"

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:  # noqa: ARG002
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:  # noqa: ARG002
        raise AttributeError(attr_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:  # noqa: ARG002
        return [False] * self.num_envs

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that the coming episodes depend on, as arrays."""
        found = {name: getattr(self.searches, name) for name in _SEARCH_STATE}
        return {**found, "topologies": self.topologies, "stream": _stream_state(self.rng)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what :meth:`state` gave."""
        self.topologies[:] = arrays["topologies"]
        drawn = [self._space(int(number)) for number in self.topologies] if self.plan.across else None
        self.searches.restart(arrays["demand_bps"], spaces=drawn)
        for name in _SEARCH_STATE:
            getattr(self.searches, name)[:] = arrays[name]
        _restore_stream(self.rng, arrays["stream"])


def _stream_state(rng: np.random.Generator) -> NDArray[np.uint64]:
    state: Any = rng.bit_generator.state
    word = (1 << 64) - 1
    values = [part for name in ("state", "inc") for part in (state["state"][name] >> 64, state["state"][name] & word)]
    return np.array([*values, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def _restore_stream(rng: np.random.Generator, values: NDArray[np.uint64]) -> None:
    high, low, inc_high, inc_low, has, left = (int(value) for value in values)
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has,
        "uinteger": left,
    }


@dataclass
class _Run:
    """A training between two updates."""

    plan: Training
    environment: SearchVecEnv
    model: PPO
    curve: list[Row] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        arrays = {f"policy/{name}": value.numpy() for name, value in self.model.policy.state_dict().items()}
        for place, state in self.model.policy.optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer/{place}/{name}": value.numpy() for name, value in state.items()}
        arrays |= {f"searches/{name}": value for name, value in self.environment.state().items()}
        arrays["random/torch"] = torch.get_rng_state().numpy()
        # stable-baselines3 shuffles its batches with NumPy's global generator.
        _, keys, position, *_ = np.random.get_state(legacy=True)
        arrays["random/numpy"] = np.append(keys, np.uint32(position))
        if self.model.num_timesteps:
            arrays["learner/observation"] = self.model._last_obs
            arrays["learner/starts"] = self.model._last_episode_starts
        meta = {**self.plan.meta(), "steps_done": self.model.num_timesteps, "updates": self.model._n_updates}
        meta["curve"] = self.curve
        checkpoint.write(folder / CHECKPOINT, AGENT, meta, arrays)
        checkpoint.write_whole(folder / CURVE, _csv(self.curve))

    def restore(self, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], where: str) -> None:
        try:
            policy = self.model.policy
            policy.load_state_dict({name: torch.from_numpy(value) for name, value in _under("policy/", arrays)})
            state: dict[int, dict[str, Any]] = {}
            for name, value in _under("optimizer/", arrays):
                place, _, what = name.partition("/")
                state.setdefault(int(place), {})[what] = torch.from_numpy(value)
            policy.optimizer.load_state_dict({**policy.optimizer.state_dict(), "state": state})
            self.environment.restore(dict(_under("searches/", arrays)))
            torch.set_rng_state(torch.from_numpy(arrays["random/torch"]))
            keys = arrays["random/numpy"]
            np.random.set_state(("MT19937", keys[:-1], int(keys[-1]), 0, 0.0))
            if meta["steps_done"]:
                self.model._last_obs = arrays["learner/observation"]
                self.model._last_episode_starts = arrays["learner/starts"]
            self.model.num_timesteps, self.model._n_updates = int(meta["steps_done"]), int(meta["updates"])
            self.curve = list(meta["curve"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{where}: cannot be resumed: {type(error).__name__}: {error}") from None


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    return [(name.removeprefix(prefix), value.copy()) for name, value in arrays.items() if name.startswith(prefix)]


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def train(
    plan: Training,
    folder: Path | None = None,
    *,
    resume: bool = False,
    progress: Callable[[Row], None] = lambda _row: None,
) -> PhaulPolicy:
    """Train, and return the policy; with ``folder``, also write a checkpoint and ``curve.csv`` there.

    Both are written anew after every update, so that a kill loses at most one. ``resume`` goes on from
    the checkpoint in ``folder``, towards ``plan.steps``; everything else of the plan must be as it was.
    ``progress`` gets every row of the learning curve: steps, episodes, the mean reward of a step and
    means over the update's ended episodes of the best J, efficiency and fairness found. Seeds the
    global generators of NumPy and PyTorch and puts their states back at the end.
    """
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be made: {error.strerror}") from None
    before = np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(plan, folder, resume, progress)
    finally:
        np.random.set_state(before[0])
        torch.set_rng_state(before[1])
        torch.set_num_threads(before[2])


def read_resumable(plan: Training, folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Description and arrays of the checkpoint in ``folder``; CheckpointError where its training was not ``plan``."""
    meta, arrays = checkpoint.read(folder / CHECKPOINT, AGENT)
    for name, value in plan.meta().items():
        if meta.get(name) != value:
            shown = "" if name in ("network", "flows") else f": {meta.get(name)}, not {value}"
            raise CheckpointError(f"{folder / CHECKPOINT}: cannot be resumed, {name} was another{shown}")
    return meta, arrays


def _train(plan: Training, folder: Path | None, resume: bool, progress: Callable[[Row], None]) -> PhaulPolicy:
    environment = SearchVecEnv(plan)
    algorithm = MaskablePPO if plan.masking else PPO
    model = algorithm("MlpPolicy", environment, n_steps=UPDATE_STEPS // ENVIRONMENTS, seed=plan.seed, device="cpu")
    # Without one of our own, every call of learn() makes a logger with a temporary folder that nobody removes.
    model.set_logger(Logger(folder=None, output_formats=[]))
    run = _Run(plan, environment, model)
    where = "policy" if folder is None else str(folder / CHECKPOINT)
    if resume:
        if folder is None:
            raise CheckpointError("resume: needs the folder of a training")
        run.restore(*read_resumable(plan, folder), where)
    elif folder is not None:
        run.save(folder)
    while model.num_timesteps < plan.steps:
        environment.ended.clear()
        model.learn(UPDATE_STEPS, reset_num_timesteps=not model.num_timesteps)
        run.curve.append(_row(model, environment, run.curve))
        progress(run.curve[-1])
        if folder is not None:
            run.save(folder)
    weights = {f"policy/{name}": value.numpy().copy() for name, value in model.policy.state_dict().items()}
    return policy_of(plan.meta(), weights, where)


def _row(model: PPO, environment: SearchVecEnv, before: Sequence[Row]) -> Row:
    ended = np.array(environment.ended).reshape(-1, 3)
    best = ended.mean(axis=0).tolist() if len(ended) else [None] * 3
    return {
        "steps": model.num_timesteps,
        "episodes": int((before[-1]["episodes"] or 0) if before else 0) + len(ended),
        "reward_mean": float(model.rollout_buffer.rewards.mean()),
        "objective_best": best[0],
        "efficiency_best": best[1],
        "fairness_best": best[2],
    }
