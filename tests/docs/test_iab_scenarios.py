"""The commands of the page on IAB scenarios run, and its files load."""

from __future__ import annotations

from pathlib import Path

import yaml

from scenarios.loader import load_data
from scenarios.runs import list_runs
from tests.docs.blocks import ROOT, Shell, blocks
from topologies.iab import generate, write_network

PAGE = blocks(ROOT / "docs" / "iab-scenarios.md")


def test_the_page(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    for block in PAGE:
        if block.runnable:
            shell.run(block)
    runs = list_runs(tmp_path / "runs")
    assert [run["scenario"] for run in runs] == ["iab20", "iab20", "iab40"]
    assert {run["status"] for run in runs} == {"VALID"}


def test_its_topologies(tmp_path: Path) -> None:
    write_network(generate(8, seed=1), tmp_path / "net.json")
    shown = [yaml.safe_load(block.text) for block in PAGE if block.language == "yaml"]
    sizes = [
        len(load_data({"name": "shown", **data}, file=str(tmp_path / "x.twin.yml")).topology.backhaul) for data in shown
    ]
    assert sizes == [17, 5]
