"""The controller of a run: decisions, thresholds that change, the margin, and a whole run in flow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from controllers.base import ControllerContext
from controllers.microopt.run_time import MicroOpt
from scenarios.execution import execute
from scenarios.loader import load_scenario
from tests.controllers.microopt.models import saved
from tests.controllers.observations import shown
from topologies.model import Sla, Slice, Topology
from twin.store import KpiReader
from twin.types import Kpi, Observation

TOPOLOGY = Topology(
    name="t",
    nodes=(),
    links=(),
    slices=(
        Slice(name="embb", sst=1, prb_share=0.5, sla=Sla(q_thresh_bps=4e6, beta_thresh=0.2)),
        Slice(name="none", sst=2, prb_share=0.3),
    ),
)
OPEN_LOOP = {"gain": 0, "recovery_s": 0, "fall_back": False}
SCENARIO = """
name: loop
fidelity: flow
duration: 150s
interval: 1s
seed: 1
topology:
  nodes:
    phones: {kind: ue, slice: embb, count: 5, distance_m: 60}
    gnb1: {kind: gnb, prb_total: 106, work_ns_per_bit: 40}
    s1: {kind: switch}
    upf: {kind: upf, slice: embb}
    video: {kind: app, service: stream}
  links:
    - endpoints: ["phones:eth1", "gnb1:eth1"]
    - {endpoints: ["gnb1:eth2", "s1:eth1"], bw: 100Mbps, delay: 2ms}
    - endpoints: ["s1:eth2", "upf:eth1"]
    - endpoints: ["upf:eth2", "video:eth1"]
slices:
  embb:
    sst: 1
    sd: "000001"
    sla: {q_thresh: 4Mbps, beta_thresh: 0.3}
    resources: {ran: {prb_share: 1.0, cpu: 1000m}, transport: {bandwidth: 25Mbps}}
traffic:
  - name: streaming
    ues: phones
    app: video
    rate: 8Mbps
    profile: {kind: microopt, mean: 3, sigma: 0.7, max_users: 5}
controllers:
  - {use: microopt, interval: 5s, scope: ["slice:embb"], time_limit: 20s, params: {model: model.pt}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model"))


def made(model: Path | None, *scope: str, **params: Any) -> MicroOpt:
    context = ControllerContext(topology=TOPOLOGY, scope=scope or ("slice:embb",), interval_s=5.0, seed=1)
    return MicroOpt(context, model=None if model is None else str(model), **params)


def seen(time_s: float, users: float, quality_mbps: float, **more: float) -> Observation:
    values = {"active_ues": users, "qos_bps": quality_mbps * 1e6, "q_thresh_bps": 4e6, "beta_thresh": 0.2} | more
    return Observation(time_s, tuple(Kpi(time_s, "slice:embb", name, value) for name, value in values.items()))


def allocation(actions: list[Any]) -> dict[str, float]:
    assert {action.entity for action in actions} == {"slice:embb"}
    return {action.knob: action.value for action in actions}


def test_more_users_get_more_and_a_decision_is_quick(model: Path) -> None:
    few, many = made(model, **OPEN_LOOP), made(model, **OPEN_LOOP)
    first = allocation(shown(few, *(seen(t, 1, 6) for t in range(1, 35))))
    begin_s = time.process_time()
    second = allocation(shown(many, *(seen(t, 4, 6) for t in range(1, 35))))
    assert time.process_time() - begin_s < 1.0
    assert set(first) == {"cpu_millicores", "bandwidth_mbps"}
    # 4 Mbit/s each for 4 users is 640 millicores and 16 Mbit/s before any spread.
    assert 600 < second["cpu_millicores"] <= 1000 and 15 < second["bandwidth_mbps"] <= 25
    assert first["cpu_millicores"] < second["cpu_millicores"] / 2
    # Nothing new: nothing to do.
    assert shown(many) == []


def test_thresholds_in_force_are_those_of_the_kpis(model: Path) -> None:
    controller = made(model, gain=0)
    strict = allocation(shown(controller, *(seen(t, 3, 6) for t in range(1, 6))))
    loose = allocation(shown(controller, *(seen(t, 3, 6, q_thresh_bps=2e6) for t in range(6, 11))))
    assert loose["cpu_millicores"] < 0.7 * strict["cpu_millicores"]


def test_the_margin_follows_what_was_measured(model: Path) -> None:
    served, degraded = made(model), made(model)
    lean = allocation(shown(served, *(seen(t, 3, 6) for t in range(1, 6))))
    rich = allocation(shown(degraded, *(seen(t, 3, 3) for t in range(1, 6))))
    assert rich["bandwidth_mbps"] > lean["bandwidth_mbps"] * 1.1


def test_it_falls_back_while_beta_is_above_its_threshold(model: Path) -> None:
    controller, open_loop = made(model, gain=0, recovery_s=0), made(model, **OPEN_LOOP)
    for each in (controller, open_loop):
        safe = allocation(shown(each, *(seen(t, 4, 6, qos_degradation_ratio=0.1) for t in range(1, 6))))
        shown(each, *(seen(t, 4, 6, qos_degradation_ratio=0.1) for t in range(6, 11)))
    quiet = [seen(t, 1, 3, qos_degradation_ratio=0.3) for t in range(11, 61)]
    # One user would need 160 millicores; what served four is kept, or given back.
    assert safe["cpu_millicores"] > 600
    assert allocation(shown(controller, *quiet))["cpu_millicores"] == pytest.approx(safe["cpu_millicores"], rel=0.05)
    assert allocation(shown(open_loop, *quiet))["cpu_millicores"] < 400


def test_what_was_degraded_is_paid_back_and_what_was_not_is_spent(model: Path) -> None:
    """The account alone: the margin does not move."""
    paid, spent, open_loop = (made(model, gain=0, fall_back=False, recovery_s=r) for r in (20, 20, 0))
    mixed = [3, 5, 2, 4, 3, 1, 3, 4, 2, 3] * 2
    bad = [seen(t, users, 3, qos_degradation_ratio=0.1) for t, users in enumerate(mixed, 1)]
    good = [seen(t, users, 6, qos_degradation_ratio=0.1) for t, users in enumerate(mixed, 1)]
    more, less, neither = (
        allocation(shown(controller, *observed))["cpu_millicores"]
        for controller, observed in ((paid, bad), (spent, good), (open_loop, good))
    )
    assert less < 0.97 * neither < neither < 0.97 * more


def test_one_observation_says_little_about_the_largest_traffic(model: Path) -> None:
    early, late = made(model, **OPEN_LOOP), made(model, **OPEN_LOOP)
    careful = allocation(shown(early, seen(1, 2, 6)))["cpu_millicores"]
    sure = allocation(shown(late, *(seen(t, 2, 6) for t in range(1, 30))))["cpu_millicores"]
    # 4 Mbit/s for each of 5 users is 800 millicores, for each of 2 it is 320.
    assert careful > 750 and sure < 500


def test_nobody_is_there(model: Path) -> None:
    controller = made(model)
    assert shown(controller, Observation(1.0, (Kpi(1.0, "slice:embb", "active_ues", 0.0),))) == []


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"forecaster": "oracle"}, "forecaster must be one of quantile, recent, got 'oracle'"),
        ({"aim": 0}, "aim must be a number"),
        ({"capacity": {"cpu": 5}}, "capacity: no 'cpu' here; known: cpu_millicores, bandwidth_mbps"),
        ({"capacity": {"bandwidth_mbps": 1}}, "less than the least that the models know"),
        ({"fall_back": "no"}, "fall_back must be true or false"),
        ({"policy": "x.pt"}, "model or policy, not both"),
    ],
)
def test_bad_params(model: Path, params: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        made(model, **params)


def test_bad_scope_and_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no slice in scope has q_thresh and a beta_thresh"):
        made(model, "slice:none")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        made(tmp_path / "absent.pt")


def test_a_run_keeps_its_threshold_without_waste(model: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.twin.yml").write_text(SCENARIO)
    (tmp_path / "model.pt").write_bytes(model.read_bytes())
    ended = execute(load_scenario(tmp_path / "loop.twin.yml"), runs=tmp_path / "runs")
    assert ended.result.status == "VALID"
    with KpiReader(ended.result.path) as reader:
        found = reader.summary()["slice:embb"]
    assert 0.5 <= found["qos_degradation_to_thresh"].last <= 1.0
    limit = found["cpu_limit_millicores"]
    assert limit.max == 1000 and limit.mean < 900
