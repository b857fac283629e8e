"""What a report and the terminal show of backhaul."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from scenarios.engine import run
from scenarios.model import Scenario, TimedAction
from topologies.model import BackhaulFlow, BackhaulPath, Host, IabDonor, IabNode, Link, Topology
from twin.flow import FlowBackend
from twin.load import Activity, BackhaulDemand, Load
from twin.report.backhaul import link_usage, overview
from twin.report.page import write_report
from twin.report.text import summary_table
from twin.report.view import read_run
from twin.store import RunStore
from twin.types import Action

UP = BackhaulPath("mmwave", ("n2", "n1", "d1"))
DIRECT = BackhaulPath("sub6", ("n2", "d1"))
TOPOLOGY = Topology(
    name="small",
    nodes=(IabDonor(name="d1"), IabNode(name="n1"), IabNode(name="n2"), Host(name="cu")),
    links=(
        Link(a="n1", b="d1", band="mmwave", bandwidth_bps=6e6),
        Link(a="n2", b="n1", band="mmwave", bandwidth_bps=6e6),
        Link(a="n2", b="d1", band="sub6", bandwidth_bps=1e6),
        Link(a="d1", b="cu"),
    ),
    backhaul=(
        BackhaulFlow(name="f1", source="n1", sink="cu", paths=(BackhaulPath("mmwave", ("n1", "d1")),)),
        BackhaulFlow(name="f2", source="n2", sink="cu", paths=(UP, DIRECT)),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f2 shares 6 Mbit/s for 4 s, is cut off for 2 s, and has 1 Mbit/s for 4 s; f1 sends nothing."""
    scenario = Scenario(
        name="small",
        topology=TOPOLOGY,
        load=Load(
            flows=(),
            duration_s=10.0,
            backhaul=(BackhaulDemand(flow="f2", activities=(Activity(0.0, 10.0, 4e6),)),),
        ),
        events=(
            TimedAction(time_s=4.0, action=Action("link:n2-n1@mmwave", "link_state", "down"), label="broken"),
            TimedAction(time_s=6.0, action=Action("flow:f2", "path_index", 1)),
        ),
        duration_s=10.0,
    )
    store = RunStore.create(tmp_path_factory.mktemp("runs"), "run")
    assert run(scenario, FlowBackend(), (), store).status == "VALID"
    return store.path


def test_flows_are_added_up_and_their_paths_counted(folder: Path) -> None:
    found = overview(read_run(folder))
    assert found is not None
    assert (found["active"], found["moves"]) == (1, 1)
    assert found["offered_mbps"] == pytest.approx(4.0)
    assert found["throughput_mbps"] == pytest.approx((4 * 4 + 2 * 0 + 4 * 1) / 10)
    assert found["efficiency"] == pytest.approx((4 * 1 + 4 * 0.25) / 10)
    silent, row = found["rows"]
    assert silent["offered_mbps"] == 0 and silent["share_percent"] != silent["share_percent"]
    assert row["share_percent"] == pytest.approx(50)
    assert [(path["route"], path["band"], path["percent"]) for path in row["paths"]] == [
        ("n2 > n1 > d1", "mmwave", 60.0),
        ("n2 > d1", "sub6", 40.0),
    ]
    assert link_usage(read_run(folder))["n2-d1@sub6"] == pytest.approx(0.4)


def test_the_page_shows_backhaul_in_place_of_slices(folder: Path) -> None:
    text = write_report(folder).read_text(encoding="utf-8")
    assert '<section id="backhaul">' in text and '<section id="slices">' not in text
    assert "n2 &gt; n1 &gt; d1" in text
    assert (
        text.count('class="link" style="stroke:#0072B2') == 2 and text.count('class="link" style="stroke:#D55E00') == 1
    )
    assert "n2-d1@sub6: 1 Mbit/s, 40% used on average" in text
    figure = json.loads(re.search(r'id="figure-0">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    (heat,) = [trace for trace in figure["data"] if trace["type"] == "heatmap"]
    assert heat["y"] == ["f1", "f2"]
    assert heat["z"] == [[None] * 10, [100.0] * 4 + [0.0] * 2 + [25.0] * 4]
    assert heat["x"][:2] == [0.5, 1.5]


def test_the_terminal_has_one_row_for_the_backhaul(folder: Path) -> None:
    console = Console(width=140, record=True)
    console.print(summary_table(folder))
    text = console.export_text()
    assert "1 of 2" in text and "50.0" in text and "flow: modelled, 10 s" in text
