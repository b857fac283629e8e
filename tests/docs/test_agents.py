"""The commands of the pages on learned controllers, with a training that is cut short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Shell, blocks

pytest.importorskip("sb3_contrib")


@pytest.mark.parametrize("page", ["phaul", "prior_search"])
def test_the_commands_of_the_page(page: str, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (block,) = (block for block in blocks(ROOT / "docs" / "agents" / f"{page}.md") if block.runnable)
    output = shell.run(replace(block, text=block.text.replace("--steps 20000", "--steps 2048")), timeout_s=120)
    found, _ = json.JSONDecoder().raw_decode(output[output.index("{") :])
    assert 0 < found["efficiency"] <= 1 and found["steps"] >= 300
