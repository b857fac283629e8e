"""The commands of the page on slice models run, in its order where one needs what another made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, Shell, blocks

PAGE = [block for block in blocks(ROOT / "docs" / "microopt.md") if block.runnable]
SHORTER = {
    "--duration 20s": "--duration 8s",
    # What --validate adds has tests of its own.
    "gaussian --seed 0 --out model.pt": "gaussian --seed 0 --out model.pt --no-validate",
    "--policy model.pt": "--policy model.pt --duration 20s",
}
"""The same commands on less: each starts Python and torch anew, which is most of what they take."""
TOGETHER = 2


def shorter(block: Block) -> Block:
    text = block.text
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return replace(block, text=text)


def test_the_page(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    page = [block for block in PAGE if not block.emulation]
    assert all(any(long in block.text for block in page) for long in SHORTER)
    made = next(place for place, block in enumerate(page) if "--out model.pt" in block.text) + 1
    output = "".join(shell.run(shorter(block), timeout_s=240) for block in page[:made])

    def run(place: int) -> str:
        own = copy(shell)
        own._where = tmp_path / f".cwd-{place}"  # two blocks at once must not read each other's
        return own.run(shorter(page[place]), timeout_s=240)

    # Everything after the first model needs that, and nothing of each other.
    with ThreadPoolExecutor(TOGETHER) as pool:
        output += "".join(pool.map(run, range(made, len(page))))
    assert '"coverage"' in output
    assert {"qos.parquet", "model.pt", "mixture.pt", "surface.html", "report.html", "report.html.rows"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_what_runs_on_containers(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (block,) = (block for block in PAGE if block.emulation)
    assert "emulation: measured" in shell.run(block, timeout_s=60)
