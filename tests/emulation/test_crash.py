"""Engines that are stopped or killed: what they leave, and what `twin gc` makes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host")]

TWIN = Path(sys.executable).with_name("twin")


def containers(run_id: str) -> list[str]:
    command = ["docker", "ps", "-aq", "--filter", f"label=twinbed.run={run_id}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def started(runs: Path, *, within_s: float = 20) -> tuple[subprocess.Popen[bytes], str]:
    """A quickstart that has at least one container, and its run id."""
    command = [str(TWIN), "run", "quickstart", "--fidelity", "emulation", "--duration", "60s", "--out", str(runs)]
    engine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        for folder in runs.glob("*-quickstart-*"):
            if containers(folder.name):
                return engine, folder.name
        assert engine.poll() is None
        time.sleep(0.05)
    engine.kill()
    raise AssertionError("no container within the time")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_on_the_host(tmp_path: Path, number: signal.Signals, code: int) -> None:
    engine, run_id = started(tmp_path)
    engine.send_signal(number)
    engine.communicate(timeout=30)
    assert engine.returncode == code
    assert containers(run_id) == []
    manifest = json.loads((tmp_path / run_id / "manifest.json").read_text())
    assert manifest["status"] == "FAILED"
    swept = subprocess.run([TWIN, "gc", "--dry-run", "--format", "json"], capture_output=True, check=True)
    assert [row for row in json.loads(swept.stdout)["removed"] if row["run_id"] == run_id] == []


def test_destroy_ends_a_live_run_by_its_id_alone(tmp_path: Path) -> None:
    engine, run_id = started(tmp_path)
    subprocess.run([TWIN, "destroy", run_id], check=True, capture_output=True, cwd="/")
    engine.communicate(timeout=30)
    assert containers(run_id) == []


def test_gc_after_kill_9_at_random_moments_leaves_nothing_and_touches_nothing_foreign() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "crash_recovery.py"
    done = subprocess.run([sys.executable, str(script), "--moments", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
