"""What the host can do is found quickly, on any host, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from scenarios.registry import emulation_missing
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
    assert by_name["os-ken"].present and by_name["os-ken"].detail == f"version {metadata.version('os-ken')}"


def test_nothing_is_left_on_the_host() -> None:
    before = set(Path("/sys/class/net").iterdir())
    detect()
    assert set(Path("/sys/class/net").iterdir()) == before


def test_an_attempt_that_fails_in_any_way_is_an_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> tuple[bool, str]:
        raise ConnectionRefusedError(111, "Connection refused")

    check = capabilities._Check("docker", breaks, "containers", "start it", needed=True)
    monkeypatch.setattr(capabilities, "_CHECKS", (check,))
    (one,) = missing_for_emulation()
    assert (one.name, one.present, one.detail, one.remedy) == ("docker", False, "Connection refused", "start it")


def test_without_root_only_what_is_known_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> tuple[bool, str]:
        raise PermissionError(13, "Permission denied")

    def behind() -> tuple[bool, str]:
        try:
            refuses()
        except PermissionError:
            raise RuntimeError("cannot find out") from None
        return True, ""

    checks = (
        capabilities._Check("CAP_NET_ADMIN", lambda: (False, "not held"), "links", "run with sudo", needed=True),
        capabilities._Check("veth", refuses, "links", "a kernel with CONFIG_VETH", needed=True),
        capabilities._Check("htb", behind, "shaping", "a kernel with CONFIG_NET_SCH_HTB", needed=True),
        capabilities._Check("mininet", lambda: (False, "no mnexec"), "nodes", "apt install mininet", needed=True),
    )
    monkeypatch.setattr(capabilities, "_CHECKS", checks)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert [(one.name, one.present, one.judged) for one in detect()[1:]] == [
        ("veth", False, False),
        ("htb", False, False),
        ("mininet", False, True),
    ]
    assert {one.remedy for one in detect()[1:3]} == {"run with sudo"}
    assert emulation_missing() == ["needs root: run with sudo", "mininet (no mnexec): apt install mininet"]
    # As root in a container without the privilege, sudo would not help, and the kernel is not to blame either.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert [one.name for one in missing_for_emulation()] == ["CAP_NET_ADMIN", "mininet"]


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
        "from scenarios.registry import emulation_missing\n"
        "print('missing', emulation_missing())\n"
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
    *lines, missing = done.stdout.splitlines()
    assert len(lines) == len(capabilities._CHECKS)
    assert "CAP_NET_ADMIN False user 65534, not held" in lines
    assert not any(line.startswith(("veth True", "tun True", "docker True")) for line in lines)
    assert missing.startswith("missing ['needs root: run with sudo'")
    assert not any(word in missing for word in ("CONFIG_", "CAP_", "cgroups"))


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_host_that_can_emulate_misses_nothing() -> None:
    assert missing_for_emulation() == []
