"""Every file of the scenario guide is valid and runs, and so do its commands."""

from __future__ import annotations

from pathlib import Path

from scenarios.runs import list_runs
from tests.docs.blocks import ROOT, Shell, blocks

PAGE = [block for block in blocks(ROOT / "docs" / "scenario-guide.md") if block.runnable]


def test_the_guide(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    output = [shell.run(block) for block in PAGE]
    assert "".join(output).count(": valid") == sum(block.file.endswith(".twin.yml") for block in PAGE) == 5
    runs = list_runs(tmp_path / "runs")
    assert [run["scenario"] for run in runs] == ["small", "sliced", "sliced", "ring", "backhaul", "backhaul", "edge"]
    assert {run["status"] for run in runs} == {"VALID"}
