"""Partitions as libvirt domains: what virsh does, vmanctl sees, and the other way round."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.partitions.conftest import ROOT, Daemon
from twin.emulation.gc import collect

pytestmark = pytest.mark.emulation
Make = Callable[..., Daemon]
_DOMAIN = """
<domain type='qemu'>
 <name>{name}</name><memory unit='MiB'>{memory_mib}</memory><vcpu>{cores}</vcpu>
 <metadata><twinbed:partition xmlns:twinbed='https://twinbed/partition/1' daemon='{daemon}' secure='false'/></metadata>
 <os><type arch='aarch64' machine='virt'>hvm</type></os>
</domain>
"""


def virsh(*words: str, text: str | None = None) -> str:
    command = ["virsh", "--quiet", "--connect", "qemu:///system", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 20) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def libvirt() -> Iterator[None]:
    """A libvirtd: the host's, or one started for these tests."""
    if not shutil.which("virsh") or not shutil.which("libvirtd"):
        pytest.skip("libvirt is not installed")
    if os.geteuid() != 0:
        pytest.skip("not root")

    def answers() -> bool:
        command = ["virsh", "--quiet", "--connect", "qemu:///system", "list"]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    if answers():
        yield
        return
    started = []
    for name in ("virtlogd", "libvirtd"):
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen([name], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True))
    try:
        wait_for(answers, "libvirtd answers")
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)


@pytest.fixture
def daemon(libvirt: None, make_daemon: Make, guest_image: Path) -> Daemon:  # noqa: ARG001
    return make_daemon(guest_image, "--cores", "4", "--memory-mib", "512", "--libvirt")


def state(daemon: Daemon, name: str) -> str | None:
    with daemon.client() as client:
        found = {one["name"]: one["state"] for one in client.call("list")["partitions"]}
    return found.get(name)


def requests(daemon: Daemon, address: str) -> int:
    """HTTP requests that the guest has answered since it started."""
    return int(json.loads(daemon.http(address, "/metrics"))["http_requests"])


def test_virsh_acts_on_a_partition(daemon: Daemon) -> None:
    name = f"{daemon.name}-a"
    with daemon.client() as client:
        one = client.call("create-partition", {"cores": 1, "memory_mib": 96, "name": name})["id"]
        assert virsh("domstate", name) == "shut off"
        client.call("deploy", {"id": one})
        assert virsh("domstate", name) == "running"
        address = client.call("info", {"id": one})["address"]
        assert daemon.http(address).startswith(f"{name} up ")

        virsh("suspend", name)
        assert wait_for(lambda: state(daemon, name) == "SUSPENDED", "SUSPENDED")
        client.call("restore", {"id": one})
        assert virsh("domstate", name) == "running"
        client.call("suspend", {"id": one})
        assert virsh("domstate", name) == "paused"
        virsh("resume", name)
        assert wait_for(lambda: state(daemon, name) == "DEPLOYED", "DEPLOYED")

        before = client.call("info", {"id": one})
        for _ in range(3):
            daemon.http(address)
        virsh("reboot", name)
        wait_for(lambda: requests(daemon, address) == 0, "the guest started again")
        assert (state(daemon, name), client.call("info", {"id": one})["qemu_pid"]) == ("DEPLOYED", before["qemu_pid"])

        virsh("shutdown", name)
        wait_for(lambda: state(daemon, name) == "READY", "READY after virsh shutdown")
        virsh("start", name)
        wait_for(lambda: state(daemon, name) == "DEPLOYED", "DEPLOYED after virsh start")
        daemon.http(address)
        virsh("destroy", name)
        wait_for(lambda: state(daemon, name) == "READY", "READY after virsh destroy")
        client.call("destroy-partition", {"id": one})
        assert name not in virsh("list", "--all", "--name").split()


def test_define_and_create_by_virsh(daemon: Daemon, tmp_path: Path) -> None:
    for word, expected in (("define", "READY"), ("create", "DEPLOYED")):
        name = f"{daemon.name}-{word}"
        path = tmp_path / "domain.xml"
        path.write_text(_DOMAIN.format(name=name, daemon=daemon.name, cores=1, memory_mib=96))
        virsh(word, str(path))
        wait_for(lambda expected=expected, name=name: state(daemon, name) == expected, f"{expected} after {word}")
    with daemon.client() as client:
        partitions = {one["name"]: one for one in client.call("list")["partitions"]}
        assert daemon.http(partitions[f"{daemon.name}-create"]["address"]).startswith(f"{daemon.name}-create up ")
    virsh("start", f"{daemon.name}-define")
    wait_for(lambda: state(daemon, f"{daemon.name}-define") == "DEPLOYED", "DEPLOYED after virsh start")
    daemon.http(partitions[f"{daemon.name}-define"]["address"])
    virsh("destroy", f"{daemon.name}-define")
    virsh("undefine", f"{daemon.name}-define")
    wait_for(lambda: state(daemon, f"{daemon.name}-define") is None, "gone after virsh undefine")


def test_restart_and_gc(daemon: Daemon) -> None:
    name = f"{daemon.name}-kept"
    with daemon.client() as client:
        one = client.call("create-partition", {"cores": 1, "memory_mib": 96, "name": name})["id"]
        client.call("deploy", {"id": one})
    daemon.kill()
    virsh("suspend", name)
    daemon.start()
    assert state(daemon, name) == "SUSPENDED"
    virsh("resume", name)
    wait_for(lambda: state(daemon, name) == "DEPLOYED", "DEPLOYED")
    daemon.kill()
    removed = collect(folder=daemon.state / "journal")
    assert ("domain", name) in {(one.kind, one.id) for one in removed}
    assert {one.outcome for one in removed} == {"removed"}
    assert name not in virsh("list", "--all", "--name").split()


def test_without_libvirt_it_says_so(partition_host: None, tmp_path: Path) -> None:  # noqa: ARG001
    command = [sys.executable, "-m", "twin.emulation.partitions.daemon", "--name", f"t{os.getpid()}", "--libvirt"]
    command += ["qemu+unix:///system?socket=/nowhere"]
    environment = {**os.environ, "TWINBED_STATE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("vmand: libvirt: virsh")
    assert not list(tmp_path.iterdir())
