"""After kill -9, collect() removes everything that the run made and nothing that stands beside it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.namespaces import wait_until
from twin import journal
from twin.emulation import gc
from twin.emulation.cgroups import Cgroup, Layout
from twin.emulation.gc import CollectError, Removed, collect
from twin.emulation.images import ensure_base_image
from twin.emulation.netlink import Netlink, NetlinkError, VethEnd, add_veth, delete_link, set_link
from twin.journal import Journal, start_ticks

ROOT = Path(__file__).parents[2]
EVERYTHING = "netns,mount,bridge,container"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "journal"
    made.mkdir()
    return made


def unique() -> str:
    return f"g{random.SystemRandom().randrange(16**6):06x}"


def start(run: str, folder: Path, kinds: str, image: str = "-") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.emulation.gc_owner", run, str(folder), image, kinds],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TWINBED_TEST_RUN": run},
    )


def told(owner: subprocess.Popen[str]) -> dict[str, Any]:
    assert owner.stdout is not None and owner.stderr is not None
    line = owner.stdout.readline()
    assert line, owner.stderr.read()
    return dict(json.loads(line))


def kill(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()
    # Not communicate(): its children hold the pipes until they are collected.
    for pipe in (owner.stdout, owner.stderr):
        if pipe is not None:
            pipe.close()


def leftovers(run: str, folder: Path) -> list[str]:
    """Everything on the host that bears the run's name."""
    found = [f"interface {path.name}" for path in Path("/sys/class/net").glob(f"{run}*")]
    found += [f"bridge {one}" for one in output("ovs-vsctl", "list-br") if one == f"b{run}"]
    found += [f"container {one}" for one in output("docker", "ps", "-aq", "--filter", f"label=twinbed.run={run}")]
    found += [f"netns {path.name}" for path in Path("/run/netns").glob(f"*{run}*")]
    for top in set(Layout.of_host().roots.values()):
        found += [f"cgroup {path}" for path in (top / "twinbed").glob(f"*{run}*")]
    found += [str(path) for path in folder.parent.rglob(f"*{run}*")]
    marker = f"TWINBED_TEST_RUN={run}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (path / "environ").read_bytes().split(b"\0") and start_ticks(int(path.name)) is not None:
                found.append(f"process {path.name}: {(path / 'cmdline').read_text()}")
        except OSError:
            continue
    return found


def output(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()


@pytest.fixture
def foreign(emulation_host: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """The same kinds of things, made by somebody else."""
    name = unique()
    image = ensure_base_image()
    journal_folder = tmp_path_factory.mktemp("foreign")
    ours = Journal.create(f"foreign-{name}", folder=journal_folder)
    group = Cgroup.create(f"foreign-{name}", "group", journal=ours)
    process = subprocess.Popen(["sleep", "300"])
    group.add(process.pid)
    try:
        with Netlink() as netlink:
            netlink.send([add_veth(VethEnd(f"f{name}"), VethEnd(f"p{name}"))])
        subprocess.run(["ip", "netns", "add", f"f-{name}"], check=True)
        subprocess.run(
            ["ovs-vsctl", "add-br", f"f{name[:6]}b", "--", "set", "bridge", f"f{name[:6]}b", "datapath_type=netdev"],
            check=True,
        )
        command = ["docker", "run", "-d", "--name", f"f-{name}", "--label", "twinbed.run=other", "--net", "none"]
        subprocess.run([*command, image, "sleep", "infinity"], check=True, stdout=subprocess.DEVNULL)

        def present() -> dict[str, bool]:
            with Netlink() as netlink:
                interface = f"f{name}" in netlink.links()
            return {
                "interface": interface,
                "netns": Path(f"/run/netns/f-{name}").exists(),
                "bridge": f"f{name[:6]}b" in output("ovs-vsctl", "list-br"),
                "container": output("docker", "inspect", "-f", "{{.State.Running}}", f"f-{name}") == ["true"],
                "process": process.poll() is None,
                "cgroup": group.pids() == [process.pid],
            }

        yield {
            "present": present,
            "image": image,
            "container": f"f-{name}",
            "interface": f"f{name}",
            "pid": process.pid,
        }
    finally:
        subprocess.run(["docker", "rm", "-f", f"f-{name}"], check=False, capture_output=True)
        subprocess.run(["ovs-vsctl", "--if-exists", "del-br", f"f{name[:6]}b"], check=False)
        subprocess.run(["ip", "netns", "del", f"f-{name}"], check=False)
        with Netlink() as netlink:
            netlink.delete_links([f"f{name}"])
        group.remove()
        process.wait()
        ours.close()


@pytest.mark.emulation
def test_kill_9_leaves_nothing_and_touches_nothing_else(folder: Path, foreign: dict[str, Any]) -> None:
    run = unique()
    owner = start(run, folder, EVERYTHING, foreign["image"])
    try:
        made = told(owner)
        assert collect(folder=folder) == [], "the run is alive"
        assert len(leftovers(run, folder)) > 10
    except BaseException:
        kill(owner)
        collect(folder=folder)
        raise
    kill(owner)
    preview = collect(folder=folder, dry_run=True)
    assert {one.outcome for one in preview} == {"would remove"}
    assert leftovers(run, folder), "a dry run removes nothing"

    removed = collect(folder=folder)
    assert leftovers(run, folder) == []
    assert {one.outcome for one in removed} == {"removed"}
    kinds = {one.kind for one in removed}
    assert kinds >= {"container", "bridge", "interface", "netns", "process", "cgroup", "mount", "folder", "file"}
    assert Removed("container", f"tw-{run}", run) in removed
    assert Removed("process", str(made["free"]), run) in removed
    assert start_ticks(made["sleeper"]) is None and start_ticks(made["holder"]) is None
    assert all(start_ticks(pid) is None for pid in made["relays"])
    assert all(foreign["present"]().values()), foreign["present"]()
    assert list(folder.glob("*.jsonl")) == []
    assert collect(folder=folder) == []


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_kill_9_at_random_moments_leaves_nothing(folder: Path) -> None:
    moments = random.Random(5)
    for number in range(8):
        run = unique()
        owner = start(run, folder, "netns,mount,bridge" if number % 2 else "")
        journal_path = folder / f"{run}.jsonl"
        # Aim at the creation itself: a random number of journal lines, then a random instant.
        lines = moments.randrange(1, 14)
        try:
            wait_until(
                lambda path=journal_path, lines=lines: path.exists() and len(path.read_bytes().splitlines()) > lines,
                "the journal",
                20,
            )
            time.sleep(moments.random() * 0.004)
        finally:
            kill(owner)
        removed = collect(folder=folder)
        assert not [one for one in removed if one.outcome == "kept"], removed
        wait_until(lambda run=run: leftovers(run, folder) == [], f"the end of {leftovers(run, folder)}", 2)


@pytest.mark.emulation
def test_a_container_request_that_outlives_its_run_is_collected(folder: Path, foreign: dict[str, Any]) -> None:
    run = unique()
    owner = start(run, folder, "container", foreign["image"])
    path = folder / f"{run}.jsonl"
    try:
        wait_until(lambda: path.exists() and b"container" in path.read_bytes(), "the journal", 20)
    finally:
        kill(owner)  # docker run, a process of its own, goes on
    collect(folder=folder)
    wait_until(lambda: leftovers(run, folder) == [], f"the end of {leftovers(run, folder)}", 2)


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_live_run_goes_only_when_it_is_named(folder: Path) -> None:
    runs = {kinds: unique() for kinds in ("polite", "deaf")}
    owners = {kinds: start(run, folder, kinds) for kinds, run in runs.items()}
    try:
        for owner in owners.values():
            told(owner)
        assert collect(folder=folder) == []
        collect(folder=folder, run_id=runs["polite"])
        assert owners["polite"].wait(5) == 0, "it ended by itself at SIGTERM"
        assert leftovers(runs["polite"], folder) == []
        assert owners["deaf"].poll() is None and leftovers(runs["deaf"], folder)

        removed = collect(folder=folder, run_id=runs["deaf"], stop_timeout_s=0.3)
        assert owners["deaf"].wait(5) == -signal.SIGKILL
        assert removed and leftovers(runs["deaf"], folder) == []
        with pytest.raises(CollectError, match=f"no run {runs['deaf']} left anything on this host"):
            collect(folder=folder, run_id=runs["deaf"])
    finally:
        for owner in owners.values():
            kill(owner)
        collect(folder=folder)


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_two_collections_at_once_are_one(folder: Path) -> None:
    run = unique()
    owner = start(run, folder, "netns")
    told(owner)
    kill(owner)
    results: list[list[Removed]] = []
    threads = [threading.Thread(target=lambda: results.append(collect(folder=folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(one) > 0 for one in results) == [False, False, True]
    assert leftovers(run, folder) == []


def dead(folder: Path, run: str, *things: tuple[str, dict[str, Any]]) -> None:
    """The journal of a run that is over and left these things."""
    with Journal.create(run, folder=folder) as made:
        made.record_many(things)


@pytest.mark.emulation
def test_what_only_looks_like_ours_stays(folder: Path, foreign: dict[str, Any]) -> None:
    """Names given to others since the run died: the container's label, the process's start and the alias tell."""
    with Netlink() as netlink:
        netlink.send([set_link(foreign["interface"], alias="somebody else's")])
    dead(
        folder,
        "impostor",
        ("container", {"name": foreign["container"]}),
        ("process", {"pid": foreign["pid"], "start_ticks": 1}),
        ("interface", {"name": foreign["interface"]}),
    )
    assert collect(folder=folder) == []
    assert all(foreign["present"]().values()), foreign["present"]()
    assert list(folder.glob("*.jsonl")) == []


def test_without_docker_the_container_stays_in_the_journal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    monkeypatch.setattr(gc, "_SETTLE_S", 0.0)
    left = tmp_path / "left"
    left.mkdir()
    dead(folder, "run", ("folder", {"path": str(left)}), ("container", {"name": "tw-none"}))
    for expected in ([("container", "kept"), ("folder", "removed")], [("container", "kept")]):
        found = collect(folder=folder)
        assert sorted((one.kind, one.outcome) for one in found) == expected
        (kept,) = (one for one in found if one.outcome == "kept")
        assert "Docker does not answer" in kept.detail and "twin gc again" in kept.detail
        assert [entry.kind for entry in journal.read(folder / "run.jsonl").entries] == ["container"]
    assert not left.exists()


def test_a_journal_of_an_earlier_boot_lists_no_live_things(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.write_text("x")
    dead(
        folder,
        "run",
        ("process", {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}),
        ("file", {"path": str(left)}),
    )
    path = folder / "run.jsonl"
    header, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps(json.loads(header) | {"boot_id": "earlier"}) + "\n" + rest)
    assert [(one.kind, one.outcome) for one in collect(folder=folder)] == [("file", "removed")]


@pytest.mark.parametrize("path", ["/", "/home", "relative/x", "/tmp/../etc/x"])
def test_a_path_no_run_may_own_is_kept(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "_path_exists", lambda *_: True)
    monkeypatch.setitem(gc._KINDS, "folder", gc._Kind(lambda *_: True, gc._folder_remove))
    monkeypatch.setattr(gc.shutil, "rmtree", lambda *_: pytest.fail("it was removed"))
    dead(folder, "run", ("folder", {"path": path}))
    (one,) = collect(folder=folder)
    assert one.outcome == "kept" and one.detail == f"not a path that a run may own: {path}"


def test_an_unreadable_journal_is_reported_and_kept(folder: Path) -> None:
    (folder / "broken.jsonl").write_text("no json\n")
    (one,) = collect(folder=folder)
    assert (one.kind, one.run_id, one.outcome) == ("journal", "broken", "kept")
    assert (folder / "broken.jsonl").exists()


def test_no_journals_is_nothing_to_do(tmp_path: Path) -> None:
    assert collect(folder=tmp_path / "none") == []
    with pytest.raises(CollectError, match="no run x"):
        collect(folder=tmp_path / "none", run_id="x")


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_removing_an_interface_that_vanished_is_no_error() -> None:
    with Netlink() as netlink:
        netlink.delete_links(["nosuch0"])
        with pytest.raises(NetlinkError, match="cannot remove interface nosuch0: No such device"):
            netlink.send([delete_link("nosuch0")])
