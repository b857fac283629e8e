"""A run that makes one of everything and then waits to be killed: ``python gc_owner.py RUN FOLDER IMAGE KINDS``.

Prints a line of JSON with what it made. Stops cleanly at SIGTERM when KINDS has ``polite``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.emulation.namespaces import Namespace
from twin.emulation.cgroups import Cgroup
from twin.emulation.impairment import End, LinkSpec, close_links, make_links
from twin.journal import Journal, start_ticks


def start_journalled(journal: Journal) -> subprocess.Popen[bytes]:
    """A process that outlives this one, but not before the journal knows it."""
    waiting = subprocess.Popen(
        ["sh", "-c", "read go && exec sleep 300"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    journal.record("process", pid=waiting.pid, start_ticks=start_ticks(waiting.pid))
    assert waiting.stdin is not None
    waiting.stdin.write(b"go\n")
    waiting.stdin.flush()
    return waiting


def main() -> None:
    """Make, tell, wait."""
    run, folder, image, kinds = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4].split(",")
    work = folder.parent / f"work-{run}"
    journal = Journal.create(run, folder=folder)
    journal.record("folder", path=work)
    work.mkdir()
    (work / "inside").write_text("x")
    journal.record("file", path=folder.parent / f"file-{run}")
    (folder.parent / f"file-{run}").write_text("x")

    sleeper = start_journalled(journal)

    if "netns" in kinds:
        journal.record("netns", name=f"tw-{run}")
        subprocess.run(["ip", "netns", "add", f"tw-{run}"], check=True)
    if "mount" in kinds:
        journal.record("mount", path=work)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(work)], check=True)
    if "bridge" in kinds:
        journal.record("bridge", name=f"b{run}")
        bridge = f"b{run}"
        settings = ["datapath_type=netdev", f"external_ids:twinbed-run={run}"]
        subprocess.run(["ovs-vsctl", "add-br", bridge, "--", "set", "Bridge", bridge, *settings], check=True)
    if "container" in kinds:
        journal.record("container", name=f"tw-{run}")
        command = ["docker", "run", "-d", "--name", f"tw-{run}", "--label", f"twinbed.run={run}", "--net", "none"]
        subprocess.run([*command, image, "sleep", "infinity"], check=True, stdout=subprocess.DEVNULL)

    group = Cgroup.create(run, "limited", cpu_millicores=200, journal=journal)
    group.add(sleeper.pid)
    free = start_journalled(journal)
    namespace = Namespace()
    specs = [
        LinkSpec(a=End(None, f"{run}{number}"), b=End(namespace.pid, f"eth{number}"), delay_s=0.001 * (number % 2))
        for number in range(6)
    ]
    # One that does not go with a namespace.
    specs.append(LinkSpec(a=End(None, f"{run}a"), b=End(None, f"{run}b")))
    links = make_links(specs, journal=journal, run_id=run)
    relays = [link.relay_pid for link in links if link.relay_pid]
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    print(json.dumps({"sleeper": sleeper.pid, "free": free.pid, "relays": relays, "holder": namespace.pid}), flush=True)
    while not (stopped and "polite" in kinds):
        time.sleep(0.02)
    close_links(links)


if __name__ == "__main__":
    main()
