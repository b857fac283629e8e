"""The controller ``microopt`` on containers, with the model that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from controllers.microopt.run_time import DEFAULT_MODEL
from controllers.microopt.slice_model import load
from scenarios.execution import execute
from scenarios.loader import load_scenario
from scenarios.registry import find_scenario
from twin.store import KpiReader


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
@pytest.mark.timeout(120)
def test_it_acts_within_limits_and_the_promise_is_recorded(tmp_path: Path) -> None:
    scenario = load_scenario(find_scenario("microopt"), fidelity="emulation", duration_s=18.0, controllers=["microopt"])
    ended = execute(scenario, runs=tmp_path)
    # Three decisions of a second each may be late on a busy host; what they did must be right all the same.
    assert ended.result.status == "VALID" or ended.result.host_overloaded, ended.result.reason
    with KpiReader(ended.result.path) as reader:
        cpu = reader.series("slice:embb", "cpu_limit_millicores")[1]
        bandwidth = reader.series("slice:embb", "bandwidth_limit_bps")[1] / 1e6
        to_thresh = reader.series("slice:embb", "qos_degradation_to_thresh")[1]
        thresh = reader.series("slice:embb", "beta_thresh")[1]
        beta = reader.series("slice:embb", "qos_degradation_ratio")[1]
        refused = reader.series("controller:microopt", "refused_actions")[1]
        decisions = reader.series("controller:microopt", "decision_time_s")[1]
    highest = {resource.name: resource.high for resource in load(DEFAULT_MODEL).resources}
    # The file's allocation until the first decision, the model's range after it.
    assert cpu[0] == 500 and bandwidth[0] == pytest.approx(10)
    assert 60 <= cpu[-1] <= highest["cpu_millicores"] + 0.1
    assert 1.5 <= bandwidth[-1] <= highest["bandwidth_mbps"] + 0.001
    assert refused[-1] == 0 and decisions.max() < 5
    assert to_thresh.size >= 15 and to_thresh == pytest.approx(beta / thresh[0])
