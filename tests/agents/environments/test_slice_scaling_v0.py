"""One agent per slice: PettingZoo's own tests, and the same game as the single agent plays."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test

from agents.environments import slice_scaling_v0
from twin.backend import BackendError
from twin.flow.session import FlowSession
from twin.types import Observation


@pytest.fixture
def plain_names() -> Iterator[None]:
    """PettingZoo recommends names like ``player_0``; ours are the entities of the scenario."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "We recommend agents to be named")
        yield


SHORT: dict[str, Any] = {"scenario": "quickstart", "duration_s": 5}


@pytest.mark.parametrize("action_type", ["discrete", "continuous"])
@pytest.mark.usefixtures("plain_names")
def test_pettingzoo_is_content(action_type: Any) -> None:
    settings = {**SHORT, "action_type": action_type}
    parallel = slice_scaling_v0.parallel_env(**settings)
    parallel_api_test(parallel, num_cycles=8)
    parallel.close()
    one_by_one = slice_scaling_v0.aec_env(**settings)
    api_test(one_by_one, num_cycles=8)
    one_by_one.close()


def test_seeds_of_pettingzoo() -> None:
    parallel_seed_test(lambda: slice_scaling_v0.parallel_env(**SHORT), num_cycles=8)
    seed_test(lambda: slice_scaling_v0.aec_env(**SHORT), num_cycles=8)


def test_another_seed_is_another_rollout() -> None:
    env = slice_scaling_v0.parallel_env(**SHORT)

    def rollout(seed: int | None) -> list[bytes]:
        observations, infos = env.reset(seed=seed)
        found = [repr(infos).encode()]
        while env.agents:
            observations, *_ = env.step(dict.fromkeys(env.agents, 0))
            found += [vector.tobytes() for vector in observations.values()]
        return found

    first = rollout(1)
    then = rollout(None)
    assert rollout(1) == first != rollout(2)
    assert then != first
    rollout(1)
    assert rollout(None) == then, "episodes after a seeded one are those of the seed too"


def test_plays_the_game_of_the_single_agent() -> None:
    settings: dict[str, Any] = {"scenario": "quickstart", "duration_s": 6, "action_type": "continuous"}
    alone: Any = gymnasium.make("twinbed/SliceScaling-v0", **settings).unwrapped
    together = slice_scaling_v0.parallel_env(**settings, shared_reward=0.25)
    observation, _ = alone.reset(seed=4)
    observations, _ = together.reset(seed=4)
    size = len(together.observation_names) // 2
    rng = np.random.default_rng(0)
    while together.agents:
        everyone = list(together.agents)
        actions = {
            agent: rng.uniform(-1, 1, together.action_space(agent).shape).astype(np.float32) for agent in everyone
        }
        observations, rewards, terminations, truncations, infos = together.step(actions)
        observation, reward, terminated, truncated, info = alone.step(np.concatenate(list(actions.values())))
        assert together.state().tobytes() == observation.tobytes()
        parts = observation.reshape(3, size)
        for number, agent in enumerate(everyone):
            assert (observations[agent][:size] == parts[number]).all()
            assert observations[agent][size:] == pytest.approx(np.delete(parts, number, axis=0).mean(axis=0))
            own = infos[agent]["satisfaction"][agent] - 0.3 * infos[agent]["cost"][agent]
            assert rewards[agent] == pytest.approx(0.75 * own + 0.25 * reward)
            assert list(infos[agent]["satisfaction"]) == [agent]
        assert set(terminations.values()) == {terminated} and set(truncations.values()) == {truncated}
        assert sum(len(infos[agent]["refused"]) for agent in everyone) == len(info["refused"])
    assert truncated and not terminated


def test_agents_are_the_slices_in_scope() -> None:
    env = slice_scaling_v0.parallel_env(scenario="quickstart", scope=["urllc", "slice:embb"], knobs=["cpu_millicores"])
    assert env.possible_agents == ["slice:embb", "slice:urllc"]
    assert env.action_names("slice:urllc") == ("slice:urllc cpu_millicores",)
    assert env.action_space("slice:urllc").n == 3  # type: ignore[attr-defined]
    assert env.state_space.shape == (3 * len(env.observation_names) // 2,), "all slices are in the state"


def test_a_lost_network_terminates_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance: Callable[[FlowSession, float], Observation] = FlowSession.advance

    def lost(self: FlowSession, until_s: float) -> Observation:
        if until_s > 2:
            raise BackendError("gnb1: no answer")
        return advance(self, until_s)

    monkeypatch.setattr(FlowSession, "advance", lost)
    env = slice_scaling_v0.parallel_env(**SHORT, record=tmp_path)
    env.reset(seed=1)
    env.step(dict.fromkeys(env.agents, 0))
    _, rewards, terminations, truncations, infos = env.step(dict.fromkeys(env.agents, 0))
    assert env.agents == [] and set(rewards.values()) == {-0.3}
    assert set(terminations.values()) == {True} and set(truncations.values()) == {False}
    assert {info["reason"] for info in infos.values()} == {"gnb1: no answer"}
    with pytest.raises(RuntimeError, match=r"^the episode is over or was never begun: call reset\(\)$"):
        env.step({})


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"slice:embb": 0, "slice:urllc": 0}, "actions: none for agent slice:mmtc; agents: slice:embb, slice:urllc,"),
        (dict.fromkeys(["slice:embb", "slice:urllc", "slice:mmtc"], float("nan")), "slice:embb: action: must be a"),
        (dict.fromkeys(["slice:embb", "slice:urllc", "slice:mmtc"], 7), "slice:embb: action: must be a whole number"),
    ],
)
def test_actions_that_are_none(actions: dict[str, Any], message: str) -> None:
    env = slice_scaling_v0.parallel_env(**SHORT)
    env.reset(seed=1)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        env.step(actions)
    env.close()


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^shared_reward: must be in \[0, 1\], got 2$"):
        slice_scaling_v0.parallel_env(shared_reward=2)
    with pytest.raises(ValueError, match=r"^no scenario named quickstrat"):
        slice_scaling_v0.aec_env(scenario="quickstrat")
