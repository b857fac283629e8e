"""The page on partitions, run as it stands."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenarios.runs import list_runs
from tests.docs.blocks import ROOT, Shell, blocks
from tests.emulation.partitions.conftest import guest_image, partition_host
from twin.emulation.gc import collect
from twin.journal import read

__all__ = ["guest_image", "partition_host"]
PAGE = [block for block in blocks(ROOT / "docs" / "partitions.md") if block.runnable]


@pytest.fixture
def shell(guest_image: Path, tmp_path: Path) -> Iterator[Shell]:
    """A shell with ``vmand`` and ``vmanctl`` of this checkout and a state folder of its own."""
    place = Shell(tmp_path)
    state = Path(tempfile.mkdtemp(prefix="twinbed-doc-", dir="/tmp"))
    (state / "images").mkdir()
    (state / "images" / "aarch64").symlink_to(guest_image)
    place.environment |= {"TWINBED_STATE": str(state), "PYTHONPATH": str(ROOT)}
    for name, module in (("vmand", "daemon"), ("vmanctl", "client")):
        place._program(name, f'exec "{tmp_path}/.venv/bin/python" -m twin.emulation.partitions.{module} "$@"')
    yield place
    journal = state / "journal" / "vmand-default.jsonl"
    if journal.exists():
        if (record := read(journal)).alive:
            os.kill(record.pid, signal.SIGKILL)
        collect(run_id="vmand-default", folder=state / "journal")
    subprocess.run(["rm", "-r", str(state)], check=True)


@pytest.mark.emulation
def test_the_page_runs(shell: Shell, tmp_path: Path) -> None:
    if Path("/run/netns/vmand-default").exists():
        pytest.skip("a vmand of the default name is in use on this host")
    output = "\n".join(shell.run(block) for block in PAGE)
    assert "partition-1 up " in output
    assert "partition-1  DEPLOYED" in output
    assert "EPERM DEPLOYED" in output
    runs = list_runs(tmp_path / "runs")
    assert [(run["scenario"], run["fidelity"], run["status"]) for run in runs] == [
        ("guests", "flow", "VALID"),
        ("guests", "emulation", "VALID"),
    ]
