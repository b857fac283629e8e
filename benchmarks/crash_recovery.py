"""kill -9 of the engine at random moments, then `twin gc`: what is left, and was anything foreign touched?

Run as root on a host that nothing else changes meanwhile: ``python benchmarks/crash_recovery.py [--moments 20]``.
Asked: 0 leftovers of any kind, nothing foreign touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twin.emulation.images import ensure_base_image
from twin.journal import default_folder

TWIN = Path(sys.executable).with_name("twin")
LATEST_S = 12.0


def lines(*command: str) -> set[str]:
    """What a command lists."""
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")) - {""}


def snapshot() -> dict[str, set[str]]:
    """Everything on the host that a run can create, by kind."""
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
    processes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "twin" in words and "crash_recovery" not in words:
            processes.add(f"{folder.name} {words.strip()}")
    return {
        "containers": lines("docker", "ps", "-aq", "--no-trunc"),
        "bridges": lines("ovs-vsctl", "list-br"),
        "ovs rows": lines("ovs-vsctl", "--bare", "--columns=_uuid", "list", "QoS"),
        "interfaces": {link["ifname"] for link in links},
        "qdiscs": lines("tc", "qdisc", "show"),
        "namespaces": namespaces(),
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("**/twinbed/*") if path.is_dir()},
        "folders": {str(path) for path in Path("/run/twinbed").glob("*")},
        "journals": {str(path) for path in default_folder().glob("*")} - {str(default_folder() / ".lock")},
        "processes": processes,
    }


def namespaces() -> set[str]:
    """Network namespaces that some process is in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):  # the process has ended
            found.add(str(path.readlink()))
    return found


@contextmanager
def foreign_things() -> Iterator[None]:
    """A container, a bridge, a veth pair and a control group that no run made."""
    number = os.getpid()
    root = Path("/sys/fs/cgroup/cpu" if Path("/sys/fs/cgroup/cpu").exists() else "/sys/fs/cgroup")
    group = root / f"foreign{number}"
    with contextlib.ExitStack() as stack:

        def make(make_it: list[str], take_it_away: list[str]) -> None:
            subprocess.run(make_it, check=True, capture_output=True)
            stack.callback(subprocess.run, take_it_away, check=True, capture_output=True)

        name = f"foreign{number}"
        make(
            ["docker", "run", "-d", "--network", "none", "--name", name, ensure_base_image(), "sleep", "3600"],
            ["docker", "rm", "-f", name],
        )
        bridge = f"fb{number}"
        make(
            ["ovs-vsctl", "add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=netdev"],
            ["ovs-vsctl", "del-br", bridge],
        )
        make(
            ["ip", "link", "add", f"fl{number}a", "type", "veth", "peer", "name", f"fl{number}b"],
            ["ip", "link", "del", f"fl{number}a"],
        )
        group.mkdir()
        stack.callback(group.rmdir)
        yield


def crash(moment_s: float, runs: Path) -> None:
    """Start the quickstart and kill its engine after ``moment_s``."""
    command = [str(TWIN), "run", "quickstart", "--fidelity", "emulation", "--duration", "30s", "--out", str(runs)]
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment_s)
    engine.send_signal(signal.SIGKILL)
    engine.wait()


def settled(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there that was not before, once the kernel has finished taking things down (at most 5 s)."""
    deadline_s = time.monotonic() + 5
    while True:
        after = snapshot()
        left = {kind: after[kind] - before[kind] for kind in after if after[kind] - before[kind]}
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.1)


def shown(things: dict[str, set[str]]) -> str:
    """At most two of each kind."""
    kinds = (f"{len(names)} {kind} ({', '.join(sorted(names)[:2])})" for kind, names in things.items())
    return "; ".join(kinds) or "0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    subprocess.run([TWIN, "gc"], check=True, capture_output=True)
    failures = removed = 0
    with tempfile.TemporaryDirectory() as folder, foreign_things():
        before = snapshot()
        for number in range(1, options.moments + 1):
            moment_s = draw.uniform(0.1, LATEST_S)
            crash(moment_s, Path(folder))
            swept = json.loads(subprocess.run([TWIN, "gc", "--format", "json"], capture_output=True, check=True).stdout)
            count = len(swept["removed"])
            removed += count
            left = settled(before)
            gone = {kind: before[kind] - rows for kind, rows in snapshot().items() if before[kind] - rows}
            failures += bool(left or gone)
            found = f"left {shown(left)}  foreign gone {shown(gone)}"
            print(f"{number:3d}  killed at {moment_s:5.2f} s  gc removed {count:3d}  {found}", flush=True)
    print(f"kill -9 at {options.moments} random moments: {failures} with leftovers or foreign damage (asked: 0), "
          f"{removed} things removed by twin gc")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
