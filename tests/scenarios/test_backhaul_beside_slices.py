"""IAB backhaul and slices in one scenario: each gets what it would get alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.loader import load_scenario
from tests.scenarios.scenario_text import SMALL
from twin.flow import FlowBackend
from twin.types import Action, Observation

BACKHAUL = """\
  builders:
    - use: iab
      with: {nodes: 6, seed: 1, scale: 0.01}
"""


def observed(folder: Path, text: str, *actions: Action) -> Observation:
    path = folder / "x.twin.yml"
    path.write_text(text)
    scenario = load_scenario(path)
    with FlowBackend().open(scenario.topology, scenario.load, seed=1) as session:
        assert all(outcome.applied for outcome in session.apply(actions))
        return session.advance(1.0)


def test_slices_and_backhaul_do_not_meet(tmp_path: Path) -> None:
    both = SMALL.replace("topology:\n", f"topology:\n{BACKHAUL}")
    alone = observed(tmp_path, SMALL)
    assert alone.value("slice:embb", "throughput_dl_bps") > 0
    beside = observed(tmp_path, both)
    for kpi in alone.kpis:
        assert beside.value(kpi.entity, kpi.name) == kpi.value, kpi
    flows = list(beside.entities("flow"))
    assert flows == ["flow:f-n1", "flow:f-n2", "flow:f-n3"]
    only = "name: only\ntopology:\n" + BACKHAUL
    for kpi in observed(tmp_path, only).kpis:
        if kpi.entity in flows:
            assert beside.value(kpi.entity, kpi.name) == pytest.approx(kpi.value)


def test_a_donor_may_be_a_switch_of_a_slice(tmp_path: Path) -> None:
    """The slice goes s1 - d1 - s2 over wired links, never over a band."""
    text = SMALL.replace("topology:\n", f"topology:\n{BACKHAUL}").replace(
        '    - endpoints: ["s1", "s2"]\n', '    - endpoints: ["s1", "d1"]\n    - endpoints: ["d1", "s2"]\n'
    )
    seen = observed(tmp_path, text)
    assert seen.value("slice:embb", "throughput_dl_bps") > 0
    assert seen.value("link:s1-d1", "link_throughput_bps") > 0
    cut = observed(tmp_path, text, Action("link:d1-s2", "link_state", "down"))
    assert cut.value("slice:embb", "throughput_dl_bps") == 0
    assert sum(cut.value(flow, "throughput_bps") for flow in cut.entities("flow")) > 0
