"""Path choice: single and vector searches are the same, a running network gives the same rewards."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import agents  # noqa: F401 registers the environments
from agents.environments.iab_path import IabPathEnv, IabPathVectorEnv
from scenarios.model import Scenario, TimedAction
from topologies.backhaul import from_network
from topologies.iab import IabNetwork, generate, write_network
from topologies.model import Topology
from twin.backend import BackendError
from twin.flow.session import FlowSession
from twin.load import Activity, BackhaulDemand, Load
from twin.store import KpiReader
from twin.types import Action, Observation

ID = "twinbed/IabPath-v0"
NETWORK = generate(12, k_paths=2, seed=5, load="high")


def running(network: IabNetwork = NETWORK, **changes: Any) -> Scenario:
    """A scenario in which the flows of a network send what the network says, all the time."""
    fragment = from_network(network)
    duration_s = changes.pop("duration_s", 20.0)
    return Scenario(
        name="iab",
        topology=Topology(name="iab", nodes=fragment.nodes, links=fragment.links, backhaul=fragment.backhaul),
        load=Load(
            flows=(),
            duration_s=duration_s,
            backhaul=tuple(
                BackhaulDemand(flow=flow.id, activities=(Activity(0.0, duration_s, flow.demand_bps),))
                for flow in network.flows
            ),
        ),
        duration_s=duration_s,
        **changes,
    )


def single(scenario: Any = NETWORK, **settings: Any) -> IabPathEnv:
    env = gymnasium.make(ID, scenario=scenario, **settings).unwrapped
    assert isinstance(env, IabPathEnv)
    return env


def many(count: int, scenario: Any = NETWORK, **settings: Any) -> IabPathVectorEnv:
    env = gymnasium.make_vec(ID, num_envs=count, scenario=scenario, **settings)
    assert isinstance(env, IabPathVectorEnv)
    return env


def rollout(env: IabPathEnv, seed: int | None, steps: int = 40) -> list[tuple[Any, ...]]:
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(3)
    found: list[tuple[Any, ...]] = [(observation.tobytes(), info)]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(rng.integers(env.space.actions))
        found.append((observation.tobytes(), reward, terminated, truncated, info))
        if terminated or truncated:
            break
    return found


@pytest.mark.parametrize("settings", [{}, {"gamma": -0.5, "demand": "fixed"}, {"demand": "low"}])
def test_the_checkers_are_content(settings: dict[str, Any]) -> None:
    env = gymnasium.make(ID, scenario=NETWORK, **settings)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env)


def test_the_checkers_are_content_with_a_running_network() -> None:
    env = gymnasium.make(ID, scenario=running(), fidelity="flow")
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env)
    env.close()


def test_same_seed_same_rollout_to_the_last_bit() -> None:
    env = single(active_probability=0.7)
    first, then = rollout(env, 1), rollout(env, None)
    assert rollout(single(active_probability=0.7), 1) == first != rollout(env, 2)
    rollout(env, 1)
    assert rollout(env, None) == then != first


def compare(vector: IabPathVectorEnv, singles: list[IabPathEnv], mode: AutoresetMode, steps: int) -> int:
    """Step by step the same, to the last bit; how many episodes ended."""
    seed = 100
    observations, infos = vector.reset(seed=seed)
    expected = [env.reset(seed=seed + row) for row, env in enumerate(singles)]
    assert [row.tobytes() for row in observations] == [one[0].tobytes() for one in expected]
    rng = np.random.default_rng(1)
    over = np.zeros(len(singles), dtype=bool)
    ended = 0
    for _ in range(steps):
        actions = rng.integers(0, vector.space.actions, len(singles))
        if mode is AutoresetMode.DISABLED and over.any():
            observations, infos = vector.reset(options={"reset_mask": over})
            for row in np.flatnonzero(over):
                assert observations[row].tobytes() == singles[row].reset()[0].tobytes()
            over[:] = False
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        for row, env in enumerate(singles):
            if mode is AutoresetMode.NEXT_STEP and over[row]:
                first, info = env.reset()
                assert observations[row].tobytes() == first.tobytes()
                assert (rewards[row], terminated[row], truncated[row]) == (0.0, False, False)
            else:
                seen, reward, end, cut, info = env.step(actions[row])
                assert (rewards[row], terminated[row], truncated[row]) == (reward, end, cut)
                ended += end or cut
                if mode is AutoresetMode.SAME_STEP and (end or cut):
                    assert infos["_final_obs"][row] and infos["final_obs"][row].tobytes() == seen.tobytes()
                    assert infos["final_info"]["best_objective"][row] == info["best_objective"]
                    seen, info = env.reset()
                assert observations[row].tobytes() == seen.tobytes()
            for name, value in info.items():
                assert infos[name][row] == value, name
        if mode is not AutoresetMode.SAME_STEP:
            over = terminated | truncated
    return ended


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("settings", [{"gamma": 0.3, "active_probability": 0.6}, {"demand": "low", "threads": 2}])
def test_the_vector_is_the_single_environment(mode: AutoresetMode, settings: dict[str, Any]) -> None:
    mine = {name: value for name, value in settings.items() if name != "threads"}
    vector = many(5, episode_steps=13, autoreset_mode=mode, **settings)
    assert vector.metadata["autoreset_mode"] is mode
    singles = [single(episode_steps=13, **mine) for _ in range(5)]
    assert compare(vector, singles, mode, 60) >= 15


def test_searches_end_apart_where_one_is_perfect() -> None:
    # At a tenth of the load most demands fit, so that some allocations carry everything: J = 2.
    small = generate(6, k_paths=2, seed=1, load="low")
    vector = many(8, small, active_probability=0.3, episode_steps=25)
    assert (
        compare(
            vector,
            [single(small, active_probability=0.3, episode_steps=25) for _ in range(8)],
            AutoresetMode.NEXT_STEP,
            80,
        )
        > 8 * 80 // 26
    )
    env = single(small, active_probability=0.3)
    ends = set()
    for seed in range(20):
        _, *_, (_, _, terminated, truncated, info) = rollout(env, seed, 300)
        ends.add((terminated, truncated))
        assert terminated == (info["objective"] >= 2 - 1e-9)
    assert (True, False) in ends


def test_a_vector_batch_is_in_its_space_and_results_are_not_overwritten() -> None:
    vector = many(64)
    observations, infos = vector.reset(seed=1)
    kept = observations.copy(), infos["efficiency"].copy()
    assert vector.observation_space.contains(observations)
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = vector.step(rng.integers(0, vector.space.actions, 64))
        assert vector.observation_space.contains(found[0])
    assert (observations == kept[0]).all() and (infos["efficiency"] == kept[1]).all()


def test_a_running_network_gives_the_rewards_of_the_search() -> None:
    for gamma in (1.0, 0.2, -1.0):
        search = single(demand="fixed", gamma=gamma)
        run = single(running(), fidelity="flow", gamma=gamma)
        one, other = rollout(search, 1, 18), rollout(run, 1, 18)
        assert len(one) == len(other) == 19
        for mine, theirs in zip(one, other, strict=True):
            seen, expected = (np.frombuffer(item[0], dtype=np.float32) for item in (theirs, mine))
            assert seen == pytest.approx(expected, rel=1e-6)
            assert theirs[-1]["objective"] == pytest.approx(mine[-1]["objective"], rel=1e-9)
            assert theirs[-1]["refused"] == mine[-1]["refused"]
        assert [item[1] for item in other[1:]] == pytest.approx([item[1] for item in one[1:]], abs=1e-6)
        assert run.best_allocation == search.best_allocation
        run.close()
    assert one[-1][-1]["refused"] > 0, "some actions name no path"


def test_a_run_is_recorded_with_its_paths(tmp_path: Path) -> None:
    env = single(running(duration_s=5.0), fidelity="flow", record=tmp_path)
    env.reset(seed=1)
    flow = int(np.flatnonzero((env.space.index_of >= 1).any(axis=1))[0])
    slot = int(np.flatnonzero(env.space.index_of[flow] == 1)[0])
    while not env.step(np.int64(slot * env.space.flows + flow))[3]:
        pass
    (folder,) = tmp_path.iterdir()
    with KpiReader(folder) as reader:
        assert reader.manifest["status"] == "VALID"
        name = env.space.names[flow]
        assert [(row.entity, row.knob, row.value) for row in reader.actions()] == [(f"flow:{name}", "path_index", 1)]
        assert reader.series(f"flow:{name}", "path_index")[1].tolist() == [0, 1, 1, 1, 1]


def test_runs_side_by_side_in_processes_of_their_own() -> None:
    env = gymnasium.make_vec(
        ID, num_envs=2, vectorization_mode="async", scenario=running(duration_s=4.0), fidelity="flow"
    )
    try:
        observations, _ = env.reset(seed=1)
        alone = [single(running(duration_s=4.0), fidelity="flow") for _ in range(2)]
        for row, one in enumerate(alone):
            assert observations[row].tobytes() == one.reset(seed=1 + row)[0].tobytes()
        for action in (3, 5):
            observations, rewards, *_ = env.step(np.array([action, action]))
            expected = [one.step(np.int64(action)) for one in alone]
            assert [row.tobytes() for row in observations] == [one[0].tobytes() for one in expected]
            assert rewards.tolist() == [one[1] for one in expected]
    finally:
        env.close()


def test_broken_links_are_seen_in_the_rates() -> None:
    path = NETWORK.flows[0].paths[0]
    band, a, b = path.hops[-1]
    cut = TimedAction(time_s=3.0, action=Action(f"link:{a}-{b}@{band}", "link_state", "down"))
    env = single(running(events=(cut,)), fidelity="flow")
    env.reset(seed=1)
    place = env.observation_names.index(f"flow:{env.space.names[0]} throughput_bps / capacity")
    refused = int(np.flatnonzero(env.space.index_of.T.reshape(-1) < 0)[0])
    rates = [env.step(np.int64(refused))[0][place] for _ in range(5)]
    assert (np.array(rates) > 0).tolist() == [True, True, False, False, False]
    env.close()


def test_a_lost_network_terminates(monkeypatch: pytest.MonkeyPatch) -> None:
    advance: Callable[[FlowSession, float], Observation] = FlowSession.advance

    def lost(self: FlowSession, until_s: float) -> Observation:
        if until_s > 3:
            raise BackendError("n4: no answer")
        return advance(self, until_s)

    monkeypatch.setattr(FlowSession, "advance", lost)
    found = rollout(single(running(), fidelity="flow"), 1)
    assert len(found) == 4 and found[-1][1:4] == (-2.0, True, False)
    assert found[-1][4]["reason"] == "n4: no answer"


def test_masks_name_the_actions_that_do_something() -> None:
    env = single(active_probability=0.5)
    env.reset(seed=1)
    mask = env.action_masks()
    slot, flow = np.divmod(np.arange(env.space.actions), env.space.flows)
    active = np.array(env._observation()[: env.space.flows]) > 0
    other = env._world.searches.slots[0][flow] != slot
    assert (mask == ((env.space.index_of[flow, slot] >= 0) & active[flow] & other)).all()
    assert 0 < mask.sum() < mask.size
    vector = many(3, active_probability=0.5)
    vector.reset(seed=1)
    assert (vector.action_masks()[0] == mask).all()
    assert len(env.action_names) == env.space.actions and env.action_names[env.space.flows] == (
        f"flow:{env.space.names[0]} slot 1"
    )


def test_networks_come_from_files_too(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    write_network(NETWORK, path)
    assert rollout(single(str(path)), 5) == rollout(single(NETWORK), 5)
    assert rollout(single(running()), 5) == rollout(single(NETWORK), 5)


def test_demands_may_be_set() -> None:
    env = single()
    demand = np.full(env.space.flows, 6e8)
    observation, _ = env.reset(seed=1, options={"demand_bps": demand})
    assert observation[: env.space.flows] == pytest.approx(demand / env.space.scale_bps)
    for wrong, message in (
        (demand[:-1], f"demand_bps must be {env.space.flows} numbers, got shape ({env.space.flows - 1},)"),
        ("many", f"demand_bps must be {env.space.flows} numbers"),
        (demand * np.nan, f"demand_bps of flow {env.space.names[0]} must be in 0.."),
        (demand * 100, f"demand_bps of flow {env.space.names[0]} must be in 0.."),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(f"options: {message}")):
            env.reset(options={"demand_bps": wrong})
    with pytest.raises(ValueError, match=r"^options: no option named demand"):
        env.reset(options={"demand": 1})


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (single, {"gamma": 2}, "gamma: must be in -1..1, got 2"),
        (single, {"gamma": float("nan")}, "gamma: must be in -1..1, got nan"),
        (single, {"episode_steps": 0}, "episode_steps: must be a whole number, at least 1, got 0"),
        (single, {"episode_steps": 2.5}, "episode_steps: must be a whole number, at least 1, got 2.5"),
        (single, {"demand": "hihg"}, "demand: no demand named hihg (did you mean high?)"),
        (single, {"active_probability": 0}, "active_probability: must be in (0, 1], got 0"),
        (single, {"demand": "fixed", "active_probability": 0.5}, "active_probability: must be 1 with fixed demands"),
        (single, {"record": "runs"}, "record: needs a fidelity (flow or emulation)"),
        (single, {"fidelity": "flow"}, "fidelity flow: needs a scenario to run, got a network; leave fidelity out"),
        (single, {"scenario": "nowhere.json"}, "nowhere.json: cannot be read"),
        (single, {"scenario": "nowhere"}, "no scenario named nowhere"),
        (single, {"scenario": 5}, "scenario: must be a name, a file, a Scenario or an IabNetwork, got 5"),
        (single, {"scenario": "iab20", "fidelity": "flow", "episode_steps": 9}, "episode_steps: a scenario that runs"),
        (many, {"threads": 0}, "threads: must be a whole number, at least 1, got 0"),
        (single, {"scenario": "quickstart"}, "scenario quickstart: has no backhaul flows"),
        (single, {"scenario": "quickstart", "fidelity": "flow"}, "scenario quickstart: has no backhaul flows"),
        (single, {"scenario": "quickstart", "fidelity": "flwo"}, "no fidelity named flwo"),
        (single, {"scenario": running(duration_s=1.0), "fidelity": "flow"}, "scenario iab: needs more than one"),
        (many, {"fidelity": "flow"}, "fidelity flow: many at once search on arrays; use make_vec"),
        (many, {"count": 0}, "num_envs: must be a whole number, at least 1, got 0"),
        (many, {"autoreset_mode": "Never"}, "autoreset_mode: no mode named Never"),
    ],
)
def test_arguments_that_do_not_fit(make: Any, settings: dict[str, Any], message: str) -> None:
    given = {"scenario": NETWORK, **({"count": 2} if make is many else {}), **settings}
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        make(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", [-1, 10**6, float("nan"), [1], "up"])
def test_actions_that_are_none(action: Any) -> None:
    env = single()
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"^action: must be "):
        env.step(action)
    vector = many(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        vector.step(np.zeros(2, dtype=np.int64))
    vector.reset(seed=1)
    with pytest.raises(ValueError, match=r"^actions?: must be "):
        vector.step(np.array([0, action], dtype=object) if isinstance(action, str | list) else np.array([0, action]))
    with pytest.raises(ValueError, match=r"^options: reset_mask must be 2 booleans"):
        vector.reset(options={"reset_mask": [1, 0]})


def test_over_is_over() -> None:
    env = single(episode_steps=2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    rollout(env, 1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))
    vector = many(2, episode_steps=1, autoreset_mode="Disabled")
    vector.reset(seed=1)
    vector.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded, match="search 0 is over"):
        vector.step(np.zeros(2, dtype=np.int64))
