"""The commands and the program of the page on reservations run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scenarios.runs import list_runs
from tests.docs.blocks import ROOT, Block, Shell, blocks

PAGE = blocks(ROOT / "docs" / "deadline.md")


COMMANDS, SCENARIOS, EMULATED, CROWDED = (block for block in PAGE if block.language == "console")


def only(language: str) -> Block:
    found = [block for block in PAGE if block.language == language]
    assert len(found) == 1
    return found[0]


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINBED_STATE", str(tmp_path / "state"))
    output = Shell(tmp_path).run(COMMANDS, timeout_s=60)
    objects = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert objects
    assert {one["period_s"] for one in objects} == {0.1}
    assert "wake-ups are too few to tell" in output
    assert os.listdir(tmp_path / "state" / "journal") == []  # noqa: PTH208 nothing is left


def test_the_scenarios(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    output = shell.run(SCENARIOS)
    shell.run(only("yaml"))
    output += shell.run(CROWDED)
    assert "assert FAILS" not in output
    runs = list_runs(tmp_path / "runs")
    assert [run["scenario"] for run in runs] == ["edge-deadline", "deadline-start", "crowded"]
    assert {run["status"] for run in runs} == {"VALID"}


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_scenario_in_emulation(tmp_path: Path) -> None:
    Shell(tmp_path).run(EMULATED)
    (run,) = list_runs(tmp_path / "runs")
    assert (run["scenario"], run["fidelity"]) == ("deadline-start", "emulation")


def test_the_program_prints_what_its_comment_says(tmp_path: Path) -> None:
    program = only("python")
    assert Shell(tmp_path).run(program).strip() == program.text.rstrip().rpartition("# ")[2]
