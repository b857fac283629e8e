"""vmand without guests: admission, clients, bad input, and what is left on the host."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.partitions.conftest import Daemon
from twin.emulation.gc import collect
from twin.emulation.partitions.client import Client, NoDaemonError, VmanError
from twin.emulation.partitions.protocol import COMMANDS, MAX_LINE_BYTES

pytestmark = pytest.mark.emulation
Make = Callable[..., Daemon]


def refused(client: Client, command: str, **args: Any) -> VmanError:
    with pytest.raises(VmanError) as caught:
        client.call(command, args)
    assert "\n" not in str(caught.value)
    return caught.value


def exchange(daemon: Daemon, data: bytes) -> list[Any]:
    """Send bytes as they are; all answers."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(20)
        raw.connect(str(daemon.socket))
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in raw.makefile("rb")]


def test_admission(make_daemon: Make) -> None:
    daemon = make_daemon()
    with daemon.client() as client:
        assert client.call("create-partition", {"cores": 3, "memsize": 0.5}) == {"id": 1}
        too_large = refused(client, "create-partition", cores=5, memory_mib=128)
        assert (too_large.kind, str(too_large)) == ("EINVAL", "cores: the edge server has 4, got 5")
        assert refused(client, "create-partition", cores=1, memsize=2).kind == "EINVAL"
        assert refused(client, "create-partition", cores=2, memory_mib=128).kind == "EBUSY"
        assert refused(client, "create-partition", cores=1, memory_mib=513).kind == "ENOMEM"
        assert client.call("create-partition", {"cores": 1, "memory_mib": 512, "critical": True}) == {"id": 2}
        one, two = client.call("list")["partitions"]
        assert (one["state"], one["cpus"], two["cpus"], two["secure"]) == ("READY", [0, 1, 2], [3], True)
        server = client.call("info")
        assert (server["free_cores"], server["free_memory_mib"]) == (0, 0)
        client.call("destroy-partition", {"id": 1})
        assert refused(client, "destroy-partition", id=1).kind == "ENOENT"
        # Cores come back; ids do not.
        assert client.call("create-partition", {"cores": 2, "memory_mib": 64}) == {"id": 3}
        assert client.call("info", {"id": 3})["cpus"] == [0, 1]
        assert refused(client, "create-partition", cores=1, memory_mib=64, address="10.77.0.2/24").kind == "EEXIST"
        assert refused(client, "create-partition", cores=1, memory_mib=64, bridge="none").kind == "ENOENT"


@pytest.mark.parametrize("command", ["reboot", "shutdown", "suspend", "restore", "configure"])
def test_refused_when_ready(make_daemon: Make, command: str) -> None:
    with make_daemon().client() as client:
        client.call("create-partition", {"cores": 1, "memory_mib": 64})
        error = refused(client, command, id=1, **({"load": ""} if command == "configure" else {}))
        required = "SUSPENDED" if command == "restore" else "DEPLOYED"
        assert error.kind == "EPERM"
        assert error.facts == {"state": "READY", "required": [required]}
        assert f"is READY; only a {required} one" in str(error)


def test_two_clients_at_once(make_daemon: Make) -> None:
    daemon = make_daemon(None, "--cores", "12", "--memory-mib", "2048")
    won: list[int] = []
    refusals: list[str] = []

    def race() -> None:
        with daemon.client() as client:
            for _ in range(10):
                try:
                    won.append(client.call("create-partition", {"cores": 1, "memory_mib": 64})["id"])
                except VmanError as error:
                    refusals.append(error.kind)

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with daemon.client() as client:
        partitions = client.call("list")["partitions"]
    assert sorted(won) == [one["id"] for one in partitions] == list(range(1, 13))
    assert refusals == ["EBUSY"] * 8
    assert sorted(cpu for one in partitions for cpu in one["cpus"]) == list(range(12))
    assert len({one["address"] for one in partitions}) == 12


def test_long_lines_are_refused_and_skipped(make_daemon: Make) -> None:
    daemon = make_daemon()
    good = b'{"command": "list"}\n'
    answers = exchange(daemon, b"x" * (3 * MAX_LINE_BYTES) + b"\n" + good + b"\n\n" + good.strip())
    assert [one.get("error", {}).get("class") for one in answers] == ["EMSGSIZE", None, None]


def malformed(rng: random.Random) -> bytes:
    """A message that no client sends: damaged JSON, wrong types, random bytes."""
    kind = rng.randrange(6)
    values: list[Any] = [None, True, -1, 0, 2**70, 1e308, "", "x" * 300, [], {}, [[1]], "../../etc", "\u0000", 0.5]
    if kind == 0:
        return bytes(rng.choices(range(256), k=rng.randrange(200)))
    args = {name: rng.choice(values) for name in rng.sample(["id", "cores", "memsize", "kernel", "load", "zz"], 3)}
    # Nothing that could succeed: a run of this test must end as it began.
    text = json.dumps({"command": rng.choice([*COMMANDS, "", "DEPLOY", 7]), "args": {**args, "unknown": 1}}).encode()
    if kind == 1:
        return text[: rng.randrange(1, len(text))]
    if kind == 2:
        place = rng.randrange(len(text))
        return text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
    if kind == 3:
        return json.dumps(rng.choice(values)).encode()
    if kind == 4:
        return b"[" * rng.randrange(1, 5000) + b'{"a":' * rng.randrange(1, 50)
    return text


def test_ten_thousand_malformed_messages(make_daemon: Make) -> None:
    daemon = make_daemon()
    rng = random.Random(20)
    refusals = 0
    for _ in range(20):
        messages = [malformed(rng).replace(b"\n", b" ") for _ in range(500)]
        answers = exchange(daemon, b"\n".join(messages) + b"\n")
        assert len(answers) == sum(bool(one.strip()) for one in messages)
        refusals += sum("error" in one for one in answers)
        assert all(("error" in one) != ("return" in one) for one in answers)
    assert refusals > 9900
    assert daemon.process is not None and daemon.process.poll() is None
    with daemon.client() as client:
        assert client.call("list") == {"partitions": []}
        assert client.call("create-partition", {"cores": 1, "memory_mib": 64}) == {
            "id": client.call("list")["partitions"][0]["id"]
        }


def test_clients_that_go_away(make_daemon: Make) -> None:
    daemon = make_daemon()
    for data in (b"", b'{"command": "li', b'{"command": "create-partition", "args": {"cores": 1, "memory_mib": 64}}\n'):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(daemon.socket))
            raw.sendall(data)
    with daemon.client() as client:
        client.call("info")


def test_second_daemon_of_a_name(make_daemon: Make) -> None:
    daemon = make_daemon()
    command = [sys.executable, "-m", "twin.emulation.partitions.daemon", *daemon.options]
    done = subprocess.run(command, env=daemon.environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"vmand: vmand {daemon.name} runs already, as process")
    assert len(done.stderr.splitlines()) == 1
    with daemon.client() as client:
        client.call("list")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cores", "0"], "cores must be in [1, 1024], got 0"),
        (["--memory-mib", "99999999"], "memory-mib must be in"),
        (["--subnet", "10.0.0.1/24"], "subnet must be"),
        (["--name", "../x"], "name must have"),
        (["--image", "/none"], "image must be a folder that make images made, got /none: no such folder"),
    ],
)
def test_bad_options(partition_host: None, tmp_path: Path, options: list[str], says: str) -> None:  # noqa: ARG001
    command = [sys.executable, "-m", "twin.emulation.partitions.daemon", *options]
    environment = {"TWINBED_STATE": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=False, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"], "vmand needs root"),
        (["env", "PATH=/nonexistent"], "qemu-system-aarch64 not found; apt-get install"),
        (["unshare", "-m", "sh", "-c", 'umount -l -R /sys/fs/cgroup; exec "$@"', "sh"], "control groups: none mounted"),
    ],
)
def test_hosts_and_users_that_cannot(
    partition_host: None,  # noqa: ARG001
    tmp_path: Path,
    before: list[str],
    says: str,
) -> None:
    command = [*before, sys.executable, "-m", "twin.emulation.partitions.daemon", "--name", "t0"]
    environment = {**os.environ, "TWINBED_STATE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False, cwd="/")
    assert done.returncode == 1
    assert done.stderr.startswith("vmand: ") and says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_full_disk_takes_nothing_and_gives_everything_back(make_daemon: Make) -> None:
    """A state folder of 256 KiB: nothing new is begun, and what there is can still be given back."""
    daemon = make_daemon(None, "--cores", "40", "--memory-mib", "4096")
    with daemon.client() as client:
        for _ in range(2):
            client.call("create-partition", {"cores": 1, "memory_mib": 64})
    daemon.kill()
    before = {path.name: path.read_bytes() for path in (daemon.state / "journal").iterdir() if path.is_file()}
    state = (daemon.socket.parent / "state.json").read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", daemon.state], check=True, timeout=10)
    try:
        (daemon.state / "journal").mkdir()
        for name, content in before.items():
            (daemon.state / "journal" / name).write_bytes(content)
        for number in (1, 2):
            (daemon.socket.parent / f"p{number}").mkdir(parents=True)
        (daemon.socket.parent / "state.json").write_bytes(state)
        daemon.start()
        with daemon.client() as client:
            with contextlib.suppress(OSError), (daemon.state / "fill").open("wb", buffering=0) as fill:
                for size in (4096, 1):
                    with contextlib.suppress(OSError):
                        while fill.write(b"x" * size):
                            pass
            made = {1, 2}
            with pytest.raises(VmanError, match="No space left on device") as caught:
                while True:  # until the room that the files have is used up
                    made.add(client.call("create-partition", {"cores": 1, "memory_mib": 64})["id"])
            assert caught.value.kind == "EIO" and "\n" not in str(caught.value)
            assert {one["id"] for one in client.call("list")["partitions"]} == made
            assert client.call("info")["free_cores"] == 40 - len(made)
            assert {int(path.name[1:]) for path in groups(daemon)} == made
            client.call("destroy-partition", {"id": 1})
        daemon.kill()
        (daemon.state / "fill").unlink()
        daemon.start()
        with daemon.client() as client:
            assert {one["id"] for one in client.call("list")["partitions"]} == made - {1}
            assert client.call("create-partition", {"cores": 3, "memory_mib": 64})["id"] > max(made)
            for one in client.call("list")["partitions"]:
                client.call("destroy-partition", {"id": one["id"]})
        daemon.terminate()
    finally:
        if daemon.process is not None:
            daemon.kill()
        subprocess.run(["umount", daemon.state], check=True, timeout=10)


def groups(daemon: Daemon) -> list[Path]:
    tree = Path("/sys/fs/cgroup")
    return [one for top in (tree / "cpu/twinbed", tree / "twinbed") for one in top.glob(f"vmand-{daemon.name}/p*")]


def test_restart_keeps_partitions_and_gc_removes_them(make_daemon: Make) -> None:
    daemon = make_daemon()
    with daemon.client() as client:
        client.call("create-partition", {"cores": 1, "memory_mib": 128, "name": "first"})
        before = client.call("list")
    daemon.kill()
    daemon.start()
    with daemon.client() as client:
        assert client.call("list") == before
        assert client.call("create-partition", {"cores": 1, "memory_mib": 64}) == {"id": 2}
    # A living daemon's things are not garbage.
    assert collect(folder=daemon.state / "journal") == []
    assert len(groups(daemon)) == 2
    daemon.kill()
    removed = collect(folder=daemon.state / "journal")
    assert {one.kind for one in removed} == {"netns", "cgroup", "folder"}
    assert {one.outcome for one in removed} == {"removed"}
    assert not groups(daemon)
    assert not Path("/run/netns", daemon.netns).exists()
    assert not list((daemon.state / "journal").glob("*.jsonl"))
    daemon.start()  # anew
    with daemon.client() as client:
        assert client.call("list") == {"partitions": []}


def test_what_a_living_daemon_removes_itself_is_told(make_daemon: Make) -> None:
    daemon = make_daemon()
    run_id, journal = f"vmand-{daemon.name}", daemon.state / "journal"
    command = [str(Path(sys.executable).with_name("twin")), "destroy", run_id, "--format", "json"]
    (would,) = [one for one in collect(run_id=run_id, folder=journal, dry_run=True) if one.kind == "netns"]
    assert (would.id, would.outcome) == (daemon.netns, "would remove")
    done = subprocess.run(command, env=daemon.environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    daemon.reap()
    rows = {(one["kind"], one["id"]): one for one in json.loads(done.stdout)["removed"]}
    row = rows["netns", daemon.netns]
    assert (row["outcome"], row["detail"]) == ("removed", "gone when its owner was stopped")
    assert not Path("/run/netns", daemon.netns).exists()
    assert not list(journal.glob("*.jsonl"))


@pytest.mark.parametrize("content", ["", "[]", '{"version": 9}', '{"version": 1, "next_id": 1, "partitions": [{}]}'])
def test_damaged_state_is_not_taken_for_nothing(make_daemon: Make, content: str) -> None:
    daemon = make_daemon()
    with daemon.client() as client:
        client.call("create-partition", {"cores": 1, "memory_mib": 64})
    daemon.kill()
    state = daemon.socket.parent / "state.json"
    good = state.read_text()
    state.write_text(content)
    command = [sys.executable, "-m", "twin.emulation.partitions.daemon", *daemon.options]
    done = subprocess.run(command, env=daemon.environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"cannot take over the partitions of vmand-{daemon.name}" in done.stderr
    assert len(groups(daemon)) == 1
    state.write_text(good)
    daemon.start()
    with daemon.client() as client:
        client.call("destroy-partition", {"id": 1})


def test_killed_at_any_moment(make_daemon: Make) -> None:
    daemon = make_daemon()
    rng = random.Random(3)

    def churn() -> None:
        with contextlib.suppress(NoDaemonError), daemon.client() as client:
            while True:
                number = client.call("create-partition", {"cores": 1, "memory_mib": 64})["id"]
                client.call("create-partition", {"cores": 1, "memory_mib": 64})
                client.call("destroy-partition", {"id": number})
                client.call("destroy-partition", {"id": number + 1})

    for _ in range(8):
        thread = threading.Thread(target=churn)
        thread.start()
        threading.Event().wait(rng.uniform(0.02, 0.2))
        daemon.kill()
        thread.join()
        daemon.start()
        with daemon.client() as client:
            partitions = client.call("list")["partitions"]
            numbers = {one["id"] for one in partitions}
            assert {int(path.name[1:]) for path in groups(daemon)} == numbers
            links = json.loads(daemon.inside("ip", "-json", "link").stdout)
            assert {one["ifname"] for one in links if one["ifname"].startswith("tap")} == {
                f"tap{one}" for one in numbers
            }
            assert {int(path.name[1:]) for path in daemon.socket.parent.glob("p*")} == numbers
            for one in numbers:
                client.call("destroy-partition", {"id": one})
            assert client.call("info")["free_cores"] == 4


def test_nothing_is_left_of_an_empty_daemon(make_daemon: Make) -> None:
    daemon = make_daemon()
    with daemon.client() as client:
        client.call("create-partition", {"cores": 1, "memory_mib": 64})
        client.call("destroy-partition", {"id": 1})
    daemon.terminate()
    assert not list((daemon.state / "journal").glob("*.jsonl"))
    assert not groups(daemon)
    assert not Path("/run/netns", daemon.netns).exists()
    assert not (daemon.state / "vmand" / daemon.name).exists()


def test_vmanctl(make_daemon: Make) -> None:
    daemon = make_daemon()
    created = daemon.ctl("create-partition", "-cores", "1", "-memsize", "0.125", "-secure", "false")
    assert (created.returncode, created.stdout) == (0, "partition 1\n")
    assert daemon.ctl("create-partition", "--cores", "1", "--memory-mib", "64", "--critical", "true").returncode == 0
    listed = daemon.ctl("list").stdout.splitlines()
    assert listed[0].split()[:3] == ["id", "name", "state"]
    assert listed[1].split()[:6] == ["1", "partition-1", "READY", "1", "128", "false"]
    info = json.loads(daemon.ctl("info", "2", "--format", "json").stdout)
    assert (info["secure"], info["memory_mib"]) == (True, 64)
    refusal = daemon.ctl("restore", "1")
    assert refusal.returncode == 1
    assert refusal.stderr == "vmanctl: EPERM: partition 1 is READY; only a SUSPENDED one can be restored\n"
    assert json.loads(daemon.ctl("--format", "json", "suspend", "9").stdout)["error"]["class"] == "ENOENT"
    deploy = " ".join(daemon.ctl("deploy", "--help").stdout.split())
    assert "-dtb FILE" in deploy and "-timeout-s NUMBER" in deploy and "-wait true|false" in deploy
    assert "processors (an integer in [1, 8]; required)" in " ".join(
        daemon.ctl("create-partition", "--help").stdout.split()
    )
    assert daemon.ctl("destroy-partition", "1").returncode == 0
    daemon.terminate()
    absent = daemon.ctl("list")
    assert (absent.returncode, absent.stderr.count("\n")) == (3, 1)
    assert "start one with: vmand" in absent.stderr
