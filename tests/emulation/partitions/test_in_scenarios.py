"""Partitions as nodes of an emulation: real guests behind links of a topology."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.partition_network import load, network, walk
from topologies.model import Partition
from twin.backend import BackendError
from twin.emulation.guests import Guests
from twin.emulation.partitions.client import Client, socket_path
from twin.emulation.partitions.partition import Partition as Managed
from twin.emulation.session import EmulationBackend
from twin.journal import default_folder

TWIN = Path(sys.executable).with_name("twin")
FILE = """\
name: guests
duration: 60s
fidelity: emulation
topology:
  nodes:
    phones: {kind: ue, slice: embb}
    gnb1: {kind: gnb}
    upf: {kind: upf, slice: embb}
    edge1: {kind: partition, vnf: request}
  links:
    - endpoints: [phones, gnb1]
    - endpoints: [gnb1, upf]
    - endpoints: [upf, edge1]
slices:
  embb: {sst: 1}
traffic:
  - {name: asking, ues: phones, app: edge1, rate: 5/s}
"""


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host", "guest_image")
def test_the_walk_of_every_backend(tmp_path: Path) -> None:
    run_id = f"guests-{uuid.uuid4().hex[:8]}"
    with EmulationBackend(run_id=run_id, folder=tmp_path).open(network(), load(), seed=1) as session:
        assert [probe for probe in session.probes if not probe.passed] == []
        assert any("robots-gnb1-upf-control" in probe.item for probe in session.probes)
        on = walk(session, patience=40)
        with Client(socket_path(run_id)) as client:
            listed = client.call("list")["partitions"]
        assert [(one["name"], one["state"], one["secure"]) for one in listed] == [
            ("control", "DEPLOYED", True),
            ("vision", "DEPLOYED", False),
            ("plain", "DEPLOYED", False),
        ]
        details = session.details
        assert set(details["partitions"]) == {"control", "vision", "plain"}  # type: ignore[call-overload]
        on.do("node:vision", "partition_state", "suspended")
        assert "at most the period" in on.refused("task:vision.1", "task_work_us", 50_000)
        on.do("task:vision.1", "task_work_us", 20_000)
        on.do("node:vision", "partition_state", "deployed")
        on.until("its jobs are longer", lambda seen: seen.get("task:vision.1", "task_response_p50_s", 0) > 0.015)
        after = on.step()
        with Client(socket_path(run_id)) as client:
            os.kill(client.call("info", {"id": 3})["qemu_pid"], signal.SIGKILL)
        ended = on.until("the guest is missed", lambda seen: seen.value("node:plain", "partition_state") == 0)
        assert ended.faults == (("node:plain", "partition plain: QEMU ended by SIGKILL: without a word"),)
        assert (after.faults, on.step().faults) == ((), ())
    assert not socket_path(run_id).exists()
    assert guests_of(run_id) == []


def guests_of(run_id: str) -> list[str]:
    """Processes in the control groups of a run's partitions."""
    return [
        pid
        for group in Path("/sys/fs/cgroup").glob(f"**/twinbed/{run_id}/p*/cgroup.procs")
        for pid in group.read_text().split()
    ]


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host", "guest_image")
def test_gc_after_a_kill_removes_the_guests_of_the_run(tmp_path: Path) -> None:
    file = tmp_path / "guests.twin.yml"
    file.write_text(FILE)
    engine = subprocess.Popen(
        [TWIN, "run", file, "--out", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        run_id = _wait(lambda: next((path.name for path in tmp_path.glob("*-guests-*")), None))
        _wait(lambda: guests_of(run_id) or None)
    finally:
        engine.kill()
        engine.wait()
    assert guests_of(run_id)  # a guest is nobody's child
    swept = subprocess.run([TWIN, "destroy", run_id, "--format", "json"], capture_output=True, text=True, check=False)
    assert swept.returncode == 0, swept.stderr
    removed = json.loads(swept.stdout)["removed"]
    assert {row["run_id"] for row in removed} == {run_id}
    assert {"cgroup", "netns", "folder", "file"} <= {row["kind"] for row in removed}
    assert guests_of(run_id) == []
    assert not (Path("/run/netns") / run_id).exists()


def _wait(found: Callable[[], object], within_s: float = 20) -> str:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        value = found()
        if value is not None:
            return str(value)
        time.sleep(0.02)
    raise AssertionError(f"not within {within_s} s")


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_host_without_the_guest_image_is_told_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINBED_STATE", str(tmp_path / "state"))
    file = tmp_path / "guests.twin.yml"
    file.write_text(FILE)
    done = subprocess.run([TWIN, "run", file, "--out", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert "guest-image" in line
    assert "make images" in line
    assert not list(tmp_path.glob("*-guests-*"))


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host", "guest_image")
def test_a_guest_that_does_not_boot_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "Image"
    kernel.write_bytes(bytes(56) + b"ARM\x64" + bytes(4096))
    monkeypatch.setattr("twin.emulation.guests._BOOT_LIMIT_S", 6.0)  # the others boot
    topology = network()
    broken = tuple(
        replace(node, kernel=str(kernel)) if isinstance(node, Partition) and node.name == "vision" else node
        for node in topology.nodes
    )
    run_id = f"guests-{uuid.uuid4().hex[:8]}"
    backend = EmulationBackend(run_id=run_id, folder=tmp_path)
    with pytest.raises(BackendError, match=r"^partition vision: partition \d did not boot: not within 6 s; .*console"):
        backend.open(replace(topology, nodes=broken), load(), seed=1)
    assert guests_of(run_id) == []
    assert not (Path("/run/netns") / run_id).exists()
    assert not (default_folder() / f"{run_id}.jsonl").exists()


def test_the_same_mishap_twice_is_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    managed = Managed(
        id=3, name="plain", cores=1, cpus=[0], memory_mib=64, critical=False, address="10.0.0.2/24", gateway=None,
        bridge=None, tap="t", mac="02:00:00:00:00:01",
    )  # fmt: skip
    guests = Guests.__new__(Guests)
    guests.partitions = {"plain": Partition(name="plain")}
    monkeypatch.setattr(guests, "managed", {"plain": managed}.__getitem__)
    managed.befell("QEMU ended")
    managed.note = None  # deployed again, and ended again, before anybody looked
    managed.befell("QEMU ended")
    assert list(guests.faults()) == [("plain", "partition plain: QEMU ended")] * 2
    managed.note = "said, and nothing that befell it"
    assert list(guests.faults()) == []
