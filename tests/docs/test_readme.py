"""Every command and program of README.md runs as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, Shell, blocks

PAGE = blocks(ROOT / "README.md")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    yield Shell(tmp_path_factory.mktemp("readme"))


def test_the_blocks_are_found() -> None:
    assert sum(block.runnable for block in PAGE) >= 9
    assert sum(block.emulation for block in PAGE) >= 2
    assert {block.language for block in PAGE} <= {"console", "python", "text", "yaml"}


@pytest.mark.parametrize(
    "block", [b for b in PAGE if b.runnable and not b.emulation], ids=lambda block: f"line{block.line}"
)
def test_block(shell: Shell, block: Block) -> None:
    shell.run(block)


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
@pytest.mark.parametrize("block", [b for b in PAGE if b.emulation], ids=lambda block: f"line{block.line}")
def test_emulation_block(shell: Shell, block: Block) -> None:
    output = shell.run(block)
    assert "emulation: measured" in output or "0 % lost" in output or "emulation: possible" in output
    if "--pcap" in block.text:
        (capture,) = (shell.cwd / "runs").glob("*/gnb1-eth4.pcap")
        assert capture.stat().st_size > 10_000


def test_the_pictures_are_there_and_small() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = [ROOT / part.partition(")")[0] for part in text.split("](") if part.partition(")")[0].endswith(".png")]
    assert len(pictures) >= 2
    for picture in pictures:
        assert 5_000 < Path(picture).stat().st_size < 250_000
