"""vmand killed at random moments while two clients take real guests through all states."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.emulation.partitions.conftest import Daemon
from tests.emulation.partitions.test_daemon import groups
from twin.emulation.partitions.client import NoDaemonError, VmanError

pytestmark = pytest.mark.emulation
ROUNDS = int(os.environ.get("TWINBED_KILL_ROUNDS", "4"))


def machines(daemon: Daemon) -> dict[int, int]:
    """Process id of each QEMU of this daemon, by partition."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")  # a zombie has none
            for word in words:
                if words[0].startswith("qemu-system") and word.startswith(f"unix:{daemon.socket.parent}/p"):
                    number = int(Path(word.partition(",")[0]).parent.name[1:])
                    assert number not in found, "two machines for one partition"
                    found[number] = int(process.name)
    return found


def live(daemon: Daemon, rng: random.Random, refusals: list[str]) -> None:
    """One client: a partition through its states, again and again, until the daemon is gone."""
    with contextlib.suppress(NoDaemonError), daemon.client() as client:
        while True:
            try:
                number = client.call("create-partition", {"cores": rng.randint(1, 2), "memory_mib": 96})["id"]
                client.call("deploy", {"id": number, "wait": rng.random() < 0.3})
                for command in ("suspend", "restore") * rng.randint(0, 2):
                    client.call(command, {"id": number})
                client.call("shutdown", {"id": number})
                client.call("destroy-partition", {"id": number})
            except VmanError as error:
                refusals.append(f"{error.kind}: {error}")
                time.sleep(0.02)


def test_killed_with_two_clients_and_guests_in_all_states(
    make_daemon: Callable[..., Daemon], guest_image: Path
) -> None:
    daemon = make_daemon(guest_image, "--cores", "5", "--memory-mib", "1024")
    rng = random.Random(11)
    refusals: list[str] = []
    with daemon.client() as client:
        other = client.call("create-partition", {"cores": 1, "memory_mib": 96, "name": "other"})["id"]
        client.call("deploy", {"id": other})
        before = client.call("info", {"id": other})
    for _ in range(ROUNDS):
        threads = [
            threading.Thread(target=live, args=(daemon, random.Random(rng.random()), refusals)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        threading.Event().wait(rng.uniform(0.05, 1.5))
        daemon.kill()
        for thread in threads:
            thread.join()
        daemon.start()
        with daemon.client() as client:
            partitions = client.call("list")["partitions"]
            numbers = {one["id"] for one in partitions}
            cores = [cpu for one in partitions for cpu in one["cpus"]]
            assert len(cores) == len(set(cores)), partitions
            running = {one["id"] for one in partitions if one["state"] != "READY"}
            assert machines(daemon).keys() == running, partitions
            assert {int(path.name[1:]) for path in groups(daemon)} == numbers
            assert {int(path.name[1:]) for path in daemon.socket.parent.glob("p*")} == numbers
            links = json.loads(daemon.inside("ip", "-json", "link").stdout)
            taps = {one["ifname"] for one in links if one["ifname"].startswith("tap")}
            assert taps == {f"tap{one}" for one in numbers}
            for one in partitions:
                if one["id"] == other:
                    assert (one["state"], one["cpus"]) == ("DEPLOYED", before["cpus"])
                    continue
                if one["state"] == "SUSPENDED":
                    client.call("restore", {"id": one["id"]})
                if one["state"] != "READY":
                    client.call("shutdown", {"id": one["id"]})
                client.call("destroy-partition", {"id": one["id"]})
            assert client.call("info")["free_cores"] == 4
            assert machines(daemon) == {other: before["qemu_pid"]}
    daemon.http(before["address"])
    # Nothing but a server that was full for a moment.
    assert not [one for one in refusals if not one.startswith(("EBUSY: cores", "ENOMEM"))], refusals
