"""What a report and the terminal show of periodic tasks and reservations."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from scenarios.engine import run
from scenarios.model import Scenario, TimedAction
from topologies.model import Container, PeriodicTask, Topology
from twin.flow import FlowBackend
from twin.load import Load
from twin.report.page import write_report
from twin.report.tasks import rows_of
from twin.report.text import summary_table
from twin.report.view import read_run
from twin.store import RunStore
from twin.types import Action


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task 1 has half of what it needs from 2 s to 3 s, and all of it from then on; task 2 has no reservation."""
    budgets = [(2.0, 10_000.0), (3.0, 50_000.0)]
    events = [TimedAction(time_s=0.0, action=Action("task:edge.1", "dl_period_us", 100_000.0))]
    events += [TimedAction(time_s=at, action=Action("task:edge.1", "dl_runtime_us", us)) for at, us in budgets]
    tasks = (PeriodicTask(period_s=0.1, work_s=0.02), PeriodicTask(period_s=0.05, work_s=0.005))
    scenario = Scenario(
        name="small",
        topology=Topology(name="small", nodes=(Container(name="edge", tasks=tasks),), links=()),
        load=Load(flows=(), duration_s=10.0),
        events=tuple(events),
        duration_s=10.0,
    )
    store = RunStore.create(tmp_path_factory.mktemp("runs"), "run")
    assert run(scenario, FlowBackend(), (), store).status == "VALID"
    return store.path


def test_rows(folder: Path) -> None:
    first, second = rows_of(read_run(folder))
    assert (first["name"], first["period_ms"], first["work_ms"]) == ("edge.1", 100, 20)
    assert first["budget_ms"] == pytest.approx(50)
    assert first["reserved_ms"] == pytest.approx(100)
    assert first["delta_ms"] == pytest.approx(100)
    assert [first["used_ms"], first["response_ms"]] == pytest.approx([20, 20])
    assert first["longest_ms"] > 500
    assert first["missed_percent"] > 5
    assert math.isnan(second["budget_ms"]) and second["missed_percent"] == 0
    assert second["wakeup_ms"] == pytest.approx(50, rel=0.01)


def test_the_page_has_a_table_and_charts(folder: Path) -> None:
    text = write_report(folder).read_text(encoding="utf-8")
    assert '<section id="tasks">' in text and '<section id="slices">' not in text
    assert "50.00 of 100.0" in text and "container, 2 tasks" in text
    figure = json.loads(re.search(r'id="figure-0">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    titles = " ".join(one["text"] for one in figure["layout"]["annotations"])
    for title in ("Response of the jobs", "Deadlines missed", "budget Q", "Reserved CPU bandwidth", "service delay"):
        assert title in titles
    curves = {(one["name"], one["line"].get("shape")): one["y"] for one in figure["data"] if one.get("line")}
    assert curves["edge.1 budget", "hv"] == [10.0] + [50.0] * 7
    assert curves["edge.1 used", None][0] == pytest.approx(10.0)


def test_the_terminal_has_a_row_for_each_task(folder: Path) -> None:
    console = Console(width=140, record=True)
    console.print(summary_table(folder))
    lines = [line for line in console.export_text().splitlines() if "edge." in line]
    assert len(lines) == 2
    assert "50.00" in lines[0] and "20.00" in lines[0]
