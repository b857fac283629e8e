"""The same environments on real packets: containers, switches, a few seconds each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import agents  # noqa: F401 registers the environments
from agents.environments import slice_scaling_v0
from agents.environments.iab_path import IabPathEnv
from twin.journal import records
from twin.store import KpiReader

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host"), pytest.mark.timeout(180)]

IAB = """\
name: iab-few
duration: 8s
topology:
  builders:
    - {use: iab, with: {nodes: 7, k_paths: 2, seed: 2, load: high, scale: 0.01}}
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINBED_STATE", str(tmp_path / "state"))


def test_slices_are_scaled_on_containers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "scenario": "quickstart",
        "fidelity": "emulation",
        "duration_s": 5,
        "knobs": ["cpu_millicores"],
        "scope": ["embb"],
        "action_type": "continuous",
        "record": tmp_path / "runs",
    }
    env = gymnasium.make("twinbed/SliceScaling-v0", **settings)
    try:
        names = env.unwrapped.observation_names  # type: ignore[attr-defined]
        observation, info = env.reset(seed=1)
        assert env.observation_space.contains(observation)
        played = [dict(zip(names, observation.tolist(), strict=True))]
        truncated = False
        while not truncated:
            observation, reward, terminated, truncated, info = env.step(np.array([-1.0], dtype=np.float32))
            assert env.observation_space.contains(observation) and not terminated
            assert info["refused"] == [] and -0.3 <= reward <= 1
            played.append(dict(zip(names, observation.tolist(), strict=True)))
        assert info["values"] == {"slice:embb cpu_millicores": 100.0}
        # A busy host may read the last interval after its traffic has ended.
        assert max(seen["slice:urllc active_ues_ratio"] for seen in played) > 0
        assert [seen["slice:embb cpu_millicores_level"] for seen in played[1:]] == [0.0] * (len(played) - 1)
    finally:
        env.close()
    (run,) = (tmp_path / "runs").iterdir()
    with KpiReader(run) as reader:
        assert reader.manifest["status"] in ("VALID", "INVALID")
        assert reader.manifest["fidelity"] == "emulation"
        assert reader.series("slice:embb", "cpu_limit_millicores")[1][-1] == pytest.approx(100, rel=0.02)
    assert not [record for record in records() if record.entries], "nothing is left on the host"


def test_agents_play_on_containers_without_a_record() -> None:
    env = slice_scaling_v0.parallel_env("quickstart", fidelity="emulation", duration_s=3, knobs=["bandwidth_mbps"])
    try:
        env.reset(seed=1)
        _, rewards, terminations, _, infos = env.step(dict.fromkeys(env.agents, 2))
        assert not any(terminations.values()) and len(rewards) == 3
        assert all(len(info["applied"]) == 1 for info in infos.values())
    finally:
        env.close()
    assert not [record for record in records() if record.entries], "nothing is left on the host"


def test_paths_are_changed_on_switches(tmp_path: Path) -> None:
    path = tmp_path / "iab-few.twin.yml"
    path.write_text(IAB, encoding="utf-8")
    env = gymnasium.make("twinbed/IabPath-v0", scenario=path, fidelity="emulation").unwrapped
    assert isinstance(env, IabPathEnv)
    try:
        observation, _ = env.reset(seed=1)
        rng = np.random.default_rng(0)
        truncated, rewards, played = False, [], []
        while not truncated:
            action = rng.choice(np.flatnonzero(env.action_masks()))
            observation, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            played.append((observation, info))
            assert env.observation_space.contains(observation) and not terminated
            assert info["refusals"] == [] and info["refused"] == 0
            slot, flow = divmod(int(action), env.space.flows)
            assert env._world.searches.slots[0, flow] == slot, "the switches send the flow where it was put"
        # A busy host may read the last interval after its traffic has ended.
        observation, info = played[-2]
        offered, carried = observation[: env.space.flows], observation[env.space.flows : 2 * env.space.flows]
        assert (offered > 0).all() and (carried > 0).all()
        assert 0.2 < info["efficiency"] <= 1.05 and -2 <= min(rewards) <= max(rewards) <= 2
    finally:
        env.close()
    assert not [record for record in records() if record.entries], "nothing is left on the host"
