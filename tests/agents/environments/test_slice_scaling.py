"""The single agent: contract, seeds, what actions do to the network, reward, ends, errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import agents  # noqa: F401 registers the environments
from agents.environments.slice_scaling import SliceScalingEnv
from agents.environments.slices import ENTRIES, Slices
from scenarios.execution import execute
from scenarios.loader import load_scenario
from scenarios.model import Scenario
from scenarios.registry import find_scenario
from topologies.model import Sla
from twin.backend import BackendError
from twin.flow.session import FlowSession
from twin.store import KpiReader
from twin.types import Observation

ID = "twinbed/SliceScaling-v0"
SLICED = """\
name: sliced
duration: 12s
seed: 3
topology:
  nodes:
    phones: {kind: ue, slice: embb, count: 6}
    meters: {kind: ue, slice: mmtc, count: 3}
    gnb1: {kind: gnb}
    s1: {kind: switch}
    upf1: {kind: upf, slice: embb}
    upf2: {kind: upf, slice: mmtc}
    video: {kind: app, service: stream}
    sensors: {kind: app, service: telemetry}
  links:
    - endpoints: ["phones", "gnb1"]
    - endpoints: ["meters", "gnb1"]
    - {endpoints: ["gnb1", "s1"], bw: 20Mbps, delay: 2ms}
    - endpoints: ["s1", "upf1"]
    - endpoints: ["s1", "upf2"]
    - endpoints: ["upf1", "video"]
    - endpoints: ["upf2", "sensors"]
slices:
  embb:
    sst: 1
    sla: {q_thresh: 0.9Mbps}
    resources: {ran: {prb_share: 0.6, cpu: 400m}, transport: {bandwidth: 8Mbps}}
  mmtc:
    sst: 3
    resources: {ran: {prb_share: 0.3, cpu: 100m}}
traffic:
  - name: watching
    ues: phones
    app: video
    rate: 1Mbps
    profile: {kind: poisson, rate_per_s: 1, holding_s: 4, max_users: 6}
  - {name: metering, ues: meters, app: sensors, rate: 40kbps}
controllers:
  - {use: rule_based, scope: ["slice:embb"]}
events:
  - {at: 6s, entity: "slice:embb", knob: bandwidth_mbps, value: 4}
assert:
  - controller:rule_based faults <= 0
  - slice:embb throughput_dl_bps >= 1Mbps over 8s..10s
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "sliced.twin.yml"
    path.write_text(SLICED, encoding="utf-8")
    return path


def unwrapped(scenario: object, **settings: Any) -> SliceScalingEnv:
    env = gymnasium.make(ID, scenario=scenario, **settings).unwrapped
    assert isinstance(env, SliceScalingEnv)
    return env


def rollout(env: gymnasium.Env[Any, Any], seed: int | None, action_seed: int = 0) -> list[tuple[Any, ...]]:
    """Everything an episode gives, observations as bytes."""
    observation, info = env.reset(seed=seed)
    env.action_space.seed(action_seed)
    found: list[tuple[Any, ...]] = [(observation.tobytes(), info)]
    over = False
    while not over:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        found.append((observation.tobytes(), reward, terminated, truncated, info))
        over = terminated or truncated
    return found


@pytest.mark.parametrize("action_type", ["multi_discrete", "discrete", "continuous"])
def test_the_checkers_are_content(scenario: Path, action_type: str) -> None:
    env = gymnasium.make(ID, scenario=scenario, action_type=action_type, duration_s=5)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env)
    env.close()


def test_is_registered_by_importing_agents_or_by_the_name_alone(scenario: Path) -> None:
    for program in (
        f"import gymnasium, agents; gymnasium.make({ID!r}, scenario={str(scenario)!r})",
        f"import gymnasium; gymnasium.make('agents:{ID}', scenario={str(scenario)!r})",
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


def test_without_gymnasium_there_is_one_line() -> None:
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'gymnasium' else find(name, *more)\n"
        "sys.modules['gymnasium'] = None\n"
        "import agents\n"
        "try:\n    import agents.environments\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "agents.environments needs pip install 'twinbed[learning]': gymnasium is not installed\n"
    assert done.stderr == ""


def test_every_number_has_a_name_and_bounds(scenario: Path) -> None:
    env = unwrapped(scenario)
    names = env.observation_names
    assert len(names) == len(set(names)) == 2 * (len(ENTRIES) + 3)
    assert env.observation_space.shape == (len(names),)
    assert env.action_names == (
        "slice:embb cpu_millicores",
        "slice:embb bandwidth_mbps",
        "slice:embb prb_share",
        "slice:mmtc cpu_millicores",
        "slice:mmtc prb_share",
    )
    observation, info = env.reset(seed=3)
    seen = dict(zip(names, observation.tolist(), strict=True))
    assert seen["slice:mmtc active_ues_ratio"] == 1.0
    assert seen["slice:mmtc bandwidth_mbps_level"] == 1.0, "unlimited"
    # 400 millicores between 100 and 800.
    assert seen["slice:embb cpu_millicores_level"] == pytest.approx(3 / 7)
    assert info["values"]["slice:embb cpu_millicores"] == 400
    env.close()


def test_same_seed_same_rollout_to_the_last_bit(scenario: Path) -> None:
    one, other = unwrapped(scenario), unwrapped(scenario)
    assert rollout(one, 7) == rollout(other, 7) == rollout(one, 7)
    # Without a seed the next episodes differ from the first and are the same for both.
    then = rollout(one, None), rollout(one, None)
    rollout(other, 7)
    assert then == (rollout(other, None), rollout(other, None))
    assert then[0] != then[1]
    assert then[0][0][1]["scenario_seed"] != then[1][0][1]["scenario_seed"]


def test_another_seed_is_another_load(scenario: Path) -> None:
    env = unwrapped(scenario)
    place = env.observation_names.index("slice:embb active_ues_ratio")

    def users(seed: int) -> list[float]:
        keep = np.ones(5, dtype=np.int64)
        found = [float(env.reset(seed=seed)[0][place])]
        while not env._game.episodes.over:
            found.append(float(env.step(keep)[0][place]))
        return found

    assert len({tuple(users(seed)) for seed in range(5)}) == 5


def test_plays_what_a_run_with_the_same_seed_plays(scenario: Path, tmp_path: Path) -> None:
    env = unwrapped(scenario, record=tmp_path / "episodes")
    env.reset(seed=11)
    keep = np.ones(5, dtype=np.int64)
    while not env.step(keep)[3]:
        pass
    (episode,) = (tmp_path / "episodes").iterdir()
    played = replace(load_scenario(scenario, seed=11, fidelity="flow"), controllers=(), assertions=())
    done = execute(played, runs=tmp_path / "runs")
    tables = []
    for path in (episode, done.result.path):
        with KpiReader(path) as reader:
            tables.append({key: reader.series(*key)[1].tolist() for key in reader.names()})
    assert tables[0] == tables[1] and len(tables[0]) > 40


def test_less_cpu_saves_cost_while_the_promise_is_kept(scenario: Path) -> None:
    env = unwrapped(scenario, knobs=["cpu_millicores"], scope=["embb"], action_type="continuous", cost_weight=0.5)
    env.reset(seed=3)
    rewards, satisfied = {}, {}
    for position in (1.0, 0.0):
        for _ in range(2):
            _, reward, _, _, info = env.step(np.array([position], dtype=np.float32))
        rewards[position], satisfied[position] = reward, info["satisfaction"]["slice:embb"]
        assert info["values"] == {"slice:embb cpu_millicores": pytest.approx(450 + 350 * position)}
        mean = sum(info["satisfaction"].values()) / 2
        assert reward == pytest.approx(mean - 0.5 * info["cost"]["slice:embb"])
    assert satisfied[1.0] == satisfied[0.0] == 1.0
    assert rewards[0.0] == rewards[1.0] + 0.25
    env.close()


def test_starving_a_slice_costs_more_than_it_saves(scenario: Path) -> None:
    env = unwrapped(scenario, minimum={"cpu_millicores": 10}, knobs=["cpu_millicores"], action_type="continuous")
    env.reset(seed=3)
    for _ in range(4):
        _, starved, _, _, info = env.step(np.array([-1.0, -1.0], dtype=np.float32))
    assert info["satisfaction"]["slice:embb"] < 0.5
    env.reset(seed=3)
    for _ in range(4):
        _, fed, _, _, info = env.step(np.array([0.0, 0.0], dtype=np.float32))
    assert info["satisfaction"]["slice:embb"] == 1.0 and fed > starved


def test_refused_actions_change_nothing_and_are_recorded(scenario: Path, tmp_path: Path) -> None:
    env = unwrapped(scenario, knobs=["prb_share"], action_type="continuous", record=tmp_path)
    env.reset(seed=1)
    # 0.6 and 0.3 are declared; 1 and 0.3 are too much for one carrier.
    _, _, _, _, info = env.step(np.array([1.0, 0.0], dtype=np.float32))
    assert [item["entity"] for item in info["refused"]] == ["slice:embb"]
    assert "must be at most" in info["refused"][0]["reason"]
    assert info["values"]["slice:embb prb_share"] == 0.6
    env.close()
    env = unwrapped(scenario, knobs=["cpu_millicores"], record=tmp_path)
    env.reset(seed=1)
    for _ in range(7):
        _, _, _, _, info = env.step(np.array([0, 1]))
    assert info["values"]["slice:embb cpu_millicores"] == 100
    assert info["refused"] == [
        {
            "entity": "slice:embb",
            "knob": "cpu_millicores",
            "value": 50.0,
            "reason": "slice:embb cpu_millicores must be in [100, 800], got 50.0",
        }
    ]
    env.close()
    actions = []
    for path in sorted(tmp_path.iterdir()):
        if (path / "manifest.json").exists():
            with KpiReader(path) as reader:
                actions += [row for row in reader.actions() if row.source == "agent"]
    assert [row.applied for row in actions if row.knob == "cpu_millicores"] == [True] * 6 + [False]
    assert [row.applied for row in actions if row.knob == "prb_share"] == [False, True]


def test_shares_are_released_before_they_are_claimed(scenario: Path) -> None:
    env = unwrapped(
        scenario,
        knobs=["prb_share"],
        minimum={"prb_share": 0.1},
        maximum={"prb_share": 0.9},
        step={"prb_share": 0.2},
    )
    env.reset(seed=1)
    _, _, _, _, info = env.step(np.array([2, 0]))
    assert info["refused"] == [] and info["values"] == {"slice:embb prb_share": 0.8, "slice:mmtc prb_share": 0.1}


def test_what_events_set_is_seen(scenario: Path) -> None:
    env = unwrapped(scenario)
    env.reset(seed=3)
    keep = np.ones(5, dtype=np.int64)
    seen = [env.step(keep)[4]["values"]["slice:embb bandwidth_mbps"] for _ in range(11)]
    assert seen == [8.0] * 5 + [4.0] * 6


def test_truncated_at_the_end_and_not_terminated(scenario: Path) -> None:
    env = unwrapped(scenario)
    found = rollout(env, 1)
    assert len(found) == 12, "one observation to begin with, eleven decisions"
    assert [(item[2], item[3]) for item in found[1:]] == [(False, False)] * 10 + [(False, True)]
    assert found[-1][4]["status"] == "VALID"
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.ones(5, dtype=np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded):
        unwrapped(scenario).step(np.ones(5, dtype=np.int64))


def test_a_lost_network_terminates(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance: Callable[[FlowSession, float], Observation] = FlowSession.advance

    def lost(self: FlowSession, until_s: float) -> Observation:
        if until_s > 4:
            raise BackendError("gnb1: no answer")
        return advance(self, until_s)

    monkeypatch.setattr(FlowSession, "advance", lost)
    env = unwrapped(scenario, record=tmp_path / "runs", cost_weight=0.4)
    found = rollout(env, 1)
    assert len(found) == 5
    assert found[-1][1:4] == (-0.4, True, False)
    assert (found[-1][4]["status"], found[-1][4]["reason"]) == ("FAILED", "gnb1: no answer")
    assert found[-1][0] == found[-2][0], "the last observation there was"
    monkeypatch.undo()
    assert len(rollout(env, 1)) == 12, "and the next episode is a whole one"


def test_close_finishes_the_run_and_may_be_repeated(scenario: Path, tmp_path: Path) -> None:
    env = unwrapped(scenario, record=tmp_path / "runs")
    env.reset(seed=1)
    env.close()
    env.close()
    (run,) = (tmp_path / "runs").iterdir()
    with KpiReader(run) as reader:
        assert reader.manifest["status"] == "FAILED"
        assert reader.manifest["reason"] == "stopped at 1 of 12 s"
        assert reader.manifest["agent"] == "agent"
    env.reset(seed=1)
    del env
    first, second = sorted((tmp_path / "runs").iterdir())
    for path in (first, second):
        with KpiReader(path) as reader:
            assert reader.manifest["status"] == "FAILED", "an environment that is forgotten releases its run"


def test_a_fork_leaves_the_network_alone(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = unwrapped(scenario)
    env.reset(seed=1)
    session = env._game.episodes._open.episode._session  # type: ignore[union-attr]
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: -1)
        env.close()
    assert not session._closed  # type: ignore[union-attr]
    env.reset(seed=1)
    session = env._game.episodes._open.episode._session  # type: ignore[union-attr]
    env.close()
    assert session._closed  # type: ignore[union-attr]


@pytest.mark.parametrize("weights", [(1.0, 0.3), (2.0, 0.0), (0.0, 1.0)])
def test_the_reward_is_bounded(scenario: Path, weights: tuple[float, float]) -> None:
    env = unwrapped(scenario, sla_weight=weights[0], cost_weight=weights[1])
    rewards = [item[1] for item in rollout(env, 2)[1:]]
    assert all(-weights[1] <= reward <= weights[0] for reward in rewards)


def ratings(scenario: Path) -> tuple[Slices, Scenario]:
    loaded = load_scenario(scenario)
    return Slices(loaded), loaded


@pytest.mark.parametrize(
    ("kpis", "sla", "satisfaction"),
    [
        ({"qos_bps": 2e6}, Sla(q_thresh_bps=1e6), 1.0),
        ({"qos_bps": 1e6}, Sla(q_thresh_bps=1e6), 0.5),
        ({"qos_bps": 0.5e6}, Sla(q_thresh_bps=1e6), 0.25),
        ({}, Sla(q_thresh_bps=1e6), 1.0),
        ({"delay_dl_p95_s": 0.01, "delay_ul_p95_s": 0.02}, Sla(latency_bound_s=0.02), 1.0),
        ({"delay_dl_p95_s": 0.01, "delay_ul_p95_s": 0.04}, Sla(latency_bound_s=0.02), 0.25),
        ({"offered_dl_bps": 1e6}, Sla(latency_bound_s=0.02), 0.0),
        ({"qos_bps": 0.8e6, "delay_dl_p95_s": 0.04}, Sla(q_thresh_bps=1e6, latency_bound_s=0.02), 0.25),
        ({"loss_ul_ratio": 0.1}, Sla(), 0.9),
        ({"loss_ul_ratio": 0.1, "qos_bps": 2e6}, Sla(q_thresh_bps=1e6), 1.0),
    ],
)
def test_satisfaction(scenario: Path, kpis: dict[str, float], sla: Sla, satisfaction: float) -> None:
    slices, _ = ratings(scenario)
    rating = slices.rate("slice:embb", kpis, sla)
    assert rating.satisfaction == pytest.approx(satisfaction)
    assert rating.cost == pytest.approx((3 / 7 + 3 / 7 + (0.6 - 0.15) / (1 - 0.15)) / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenario": "quickstrat"}, "no scenario named quickstrat (did you mean quickstart?)"),
        ({"scenario": "nowhere.twin.yml"}, "nowhere.twin.yml"),
        ({"fidelity": "flwo"}, "no fidelity named flwo (did you mean flow?)"),
        ({"knobs": ["replicas"]}, "knobs: no slice knob named replicas"),
        ({"knobs": "prb_share"}, "knobs: must be a list of names, got 'prb_share'"),
        ({"knobs": []}, "knobs: must be one or more of"),
        ({"knobs": ["bandwidth_mbps"], "scope": ["mmtc"]}, "knobs: bandwidth_mbps is not in scope"),
        ({"scope": ["urllc"]}, "scope: no slice named slice:urllc"),
        ({"scope": []}, "scope: must name at least one of slice:embb, slice:mmtc, got none"),
        ({"minimum": {"cpu_millicores": 500}}, "slice:embb cpu_millicores: needs 10 <= minimum <= 400"),
        ({"maximum": {"prb_share": 1.5}}, "slice:embb prb_share: needs 0 <= minimum <= 0.6"),
        ({"step": {"cpu_millicores": float("nan")}}, "slice:embb cpu_millicores: step must be above 0"),
        ({"step": {"memory_mib": 1}}, "step: no scaled knob named memory_mib"),
        ({"action_type": "box"}, "action_type: no action type named box"),
        ({"sla_weight": float("nan")}, "sla_weight: must be in [0, 1000], got nan"),
        ({"cost_weight": -1}, "cost_weight: must be in [0, 1000], got -1"),
        ({"duration_s": 1}, "needs more than one interval of 1 s, got 1 s"),
    ],
)
def test_arguments_that_do_not_fit(scenario: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        gymnasium.make(ID, **{"scenario": scenario, **settings})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_scenario_without_slices(tmp_path: Path) -> None:
    path = tmp_path / "bare.twin.yml"
    path.write_text(
        "name: bare\nduration: 5s\ntopology:\n  nodes:\n    a: {kind: host}\n    b: {kind: host}\n"
        '  links:\n    - endpoints: ["a", "b"]\n',
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=r"^scenario bare: has no slices, so there is nothing to scale$"):
        gymnasium.make(ID, scenario=path)
    with pytest.raises(ValueError, match="slicing is off"):
        gymnasium.make(ID, scenario=load_scenario(find_scenario("quickstart"), slicing=False))


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("continuous", [0, 0, float("nan"), 0, 0], r"action\[2\]: must be in \[-1, 1\], got nan"),
        ("continuous", [0, 0, 0, 0, 1.5], r"action\[4\]: must be in \[-1, 1\], got 1.5"),
        ("continuous", [0, 0], r"action: must be 5 numbers, got shape \(2,\) of int64"),
        ("multi_discrete", [0, 1, 2, 3, 0], r"action\[3\]: must be 0 \(down\), 1 \(keep\) or 2 \(up\), got 3"),
        ("multi_discrete", [0, 1, 0.5, 1, 0], r"action\[2\]: must be 0 \(down\)"),
        ("multi_discrete", "up", r"action: must be 5 numbers, got shape \(\)"),
        ("discrete", 11, r"action: must be a whole number in 0..10, got 11"),
        ("discrete", [1], r"action: must be one whole number, got shape \(1,\)"),
    ],
)
def test_actions_that_are_none(scenario: Path, kind: str, action: Any, message: str) -> None:
    env = unwrapped(scenario, action_type=kind)
    env.reset(seed=1)
    with pytest.raises(ValueError, match=f"^{message}"):
        env.step(action)


def test_options_choose_the_seed_of_the_scenario(scenario: Path) -> None:
    env = unwrapped(scenario)
    _, info = env.reset(seed=1, options={"scenario_seed": 9})
    assert info["scenario_seed"] == 9
    with pytest.raises(ValueError, match=r"^options: no option named sed"):
        env.reset(options={"sed": 1})
    with pytest.raises(ValueError, match=r"^options: scenario_seed must be a whole number, at least 0, got -1$"):
        env.reset(options={"scenario_seed": -1})


def test_one_lever_at_a_time(scenario: Path) -> None:
    env = unwrapped(scenario, action_type="discrete", knobs=["cpu_millicores"])
    env.reset(seed=1)
    seen = []
    for action in (0, 1, 2, 3, 4):
        values = env.step(np.int64(action))[4]["values"]
        seen.append((values["slice:embb cpu_millicores"], values["slice:mmtc cpu_millicores"]))
    assert seen == [(400, 100), (350, 100), (400, 100), (400, 87.5), (400, 100)]


def test_a_scenario_from_python_keeps_its_load(scenario: Path) -> None:
    made = replace(load_scenario(scenario), document={}, controllers=(), assertions=())
    env = unwrapped(made)
    one, other = rollout(env, 1), rollout(env, 2)
    place = env.observation_names.index("slice:embb active_ues_ratio")

    def users(found: list[tuple[Any, ...]]) -> list[float]:
        return [float(np.frombuffer(item[0], dtype=np.float32)[place]) for item in found]

    assert users(one) == users(other) and one != other
    with pytest.raises(ValueError, match=r"^duration_s: scenario sliced was not read from a file"):
        unwrapped(made, duration_s=5)
