"""The page on environments: its programs run, and its tables are those of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from agents.environments.iab_path import IabPathEnv
from agents.environments.slice_scaling import SliceScalingEnv
from agents.environments.slices import ENTRIES
from tests.docs.blocks import ROOT, Shell, blocks

PAGE = ROOT / "docs" / "environments.md"


def test_the_programs_run(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    output = "".join(shell.run(block, timeout_s=150) for block in blocks(PAGE) if block.runnable)
    assert re.search(r"^doing nothing \d\.\d{3}, trained \d\.\d{3} reward per interval$", output, re.MULTILINE)
    assert "(1024, 51)" in output


def test_the_table_of_observations_is_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for entry in ENTRIES:
        sources = ", ".join(f"`{name}`" for name in re.findall(r"\w+", entry.source))
        assert f"| `{entry.name}` | {entry.low:g} to {entry.high:g} | {sources} | {entry.meaning} |" in text


@pytest.mark.parametrize(("kind", "heading"), [(SliceScalingEnv, "SliceScaling-v0"), (IabPathEnv, "IabPath-v0")])
def test_every_argument_is_explained(kind: type, heading: str) -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"## `twinbed/{heading}`\n")[1].split("\n## ")[0]
    for name in list(inspect.signature(kind).parameters):
        assert f"`{name}`" in section, name
