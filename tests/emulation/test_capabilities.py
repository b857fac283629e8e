"""What the host can do is found quickly, on any host, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twin.emulation import capabilities
from twin.emulation.capabilities import detect, missing_for_emulation


def test_every_capability_has_a_remedy_and_the_list_is_quick() -> None:
    started = time.monotonic()
    found = detect()
    assert time.monotonic() - started < 1.5
    names = [one.name for one in found]
    assert len(set(names)) == len(names)
    assert {"docker", "netem", "htb", "cgroup-cpu", "openvswitch", "tun", "veth", "sched-deadline"} <= set(names)
    for one in found:
        assert one.unlocks and one.remedy and one.detail and "\n" not in one.detail, one
    by_name = {one.name: one for one in found}
    assert by_name["cores"].detail == f"{len(os.sched_getaffinity(0))} usable"
    assert by_name["kernel"].detail == os.uname().release


def test_nothing_is_left_on_the_host() -> None:
    before = set(Path("/sys/class/net").iterdir())
    detect()
    assert set(Path("/sys/class/net").iterdir()) == before


def test_an_attempt_that_fails_in_any_way_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> tuple[bool, str]:
        raise PermissionError(13, "Permission denied")

    check = capabilities._Check("docker", breaks, "containers", "start it", needed=True)
    monkeypatch.setattr(capabilities, "_CHECKS", (check,))
    (one,) = missing_for_emulation()
    assert (one.name, one.present, one.detail, one.remedy) == ("docker", False, "Permission denied", "start it")


def test_a_daemon_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = {one.name: one.detail for one in missing_for_emulation()}
    assert f"{tmp_path}/nowhere.sock" in missing["docker"]
    assert missing["openvswitch"] == "No such file or directory"
    assert missing["mininet"] in ("no mnexec in PATH", "no Python module mininet for this interpreter")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
def test_without_privilege_the_list_is_whole_and_says_so() -> None:
    program = (
        "from twin.emulation.capabilities import detect\n"
        "for one in detect(): print(one.name, one.present, one.detail)\n"
    )
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-B", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(capabilities._CHECKS)
    assert "CAP_NET_ADMIN False user 65534, not held" in lines
    assert not any(line.startswith(("veth True", "tun True", "docker True")) for line in lines)


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_host_that_can_emulate_misses_nothing() -> None:
    assert missing_for_emulation() == []
