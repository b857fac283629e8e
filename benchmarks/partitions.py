"""Partitions against bare QEMU: time to the first HTTP answer, suspend and restore, the stream's gap, restarts.

    python benchmarks/partitions.py [--repeat 5] [--format json]

Needs root, qemu-system-aarch64 and the guest image (``make images``). Starts a ``vmand`` of its own with four cores
and removes it. Targets (create + deploy to first HTTP answer): one partition 2.5 s, four at once 10 s, where bare
QEMU guests of the same kernel with a shell script as init answer pings after 2.0 and 9.4 s; suspend and restore
10 ms each; a relayed stream goes on within 50 ms of a restore.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from twin.emulation.gc import collect
from twin.emulation.netns import in_netns
from twin.emulation.partitions.client import Client
from twin.emulation.partitions.images import image_folder

STREAM_INTERVAL_S = 0.005
_GATEWAY = "10.77.0.1"


class Server:
    """A vmand in a folder of its own."""

    def __init__(self, *options: str) -> None:
        """``options`` of vmand instead of four cores and 1 GiB."""
        self._options = options or ("--cores", "4", "--memory-mib", "1024")
        self.name = f"bench{os.getpid()}"
        self.state = Path(tempfile.mkdtemp(prefix="twinbed-bench-", dir="/tmp"))
        self.socket = self.state / "vmand" / self.name / "vmand.sock"
        self.start()

    def start(self) -> float:
        """Start it; seconds until it listens."""
        begin = time.perf_counter()
        command = [sys.executable, "-m", "twin.emulation.partitions.daemon", "--name", self.name, *self._options]
        command += ["--image", str(image_folder()), "--detach"]
        subprocess.run(command, env={**os.environ, "TWINBED_STATE": str(self.state)}, check=True, capture_output=True)
        return time.perf_counter() - begin

    def call(self, command: str, **args: Any) -> dict[str, Any]:
        with Client(self.socket) as client:
            return client.call(command, args)

    def inside(self, function: Callable[[], Any]) -> Any:
        """Call a function in the network namespace of the partitions; its sockets stay there."""
        descriptor = os.open(f"/run/netns/vmand-{self.name}", os.O_RDONLY)
        try:
            return in_netns(descriptor, function)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        os.kill(self.call("info")["pid"], signal.SIGKILL)
        collect(run_id=f"vmand-{self.name}", folder=self.state / "journal")
        shutil.rmtree(self.state)


def first_answer(server: Server) -> tuple[int, float]:
    """A new partition and the seconds from its creation to its first HTTP answer."""
    begin = time.perf_counter()
    number = server.call("create-partition", cores=1, memory_mib=128)["id"]
    server.call("deploy", id=number)
    address = server.call("info", id=number)["address"].split("/")[0]

    def ask() -> None:
        while True:
            try:
                with socket.create_connection((address, 80), 0.2) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: partition\r\nConnection: close\r\n\r\n")
                    if connection.recv(100).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                time.sleep(0.005)

    server.inside(ask)
    return number, time.perf_counter() - begin


def remove(server: Server, number: int) -> None:
    server.call("shutdown", id=number)
    server.call("destroy-partition", id=number)


def timed(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def stream_gap(server: Server, number: int) -> float:
    """Seconds from the call of ``restore`` to the next packet of a stream through the partition's UDP relay."""
    server.call("configure", id=number, relay=f"udp:5004:{_GATEWAY}:6000")
    address = server.call("info", id=number)["address"].split("/")[0]
    source, sink = server.inside(lambda: [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)])
    ending = threading.Event()

    def send() -> None:
        while not ending.wait(STREAM_INTERVAL_S):
            source.sendto(b"v" * 1200, (address, 5004))

    sender = threading.Thread(target=send)
    with source, sink:
        sink.bind((_GATEWAY, 6000))
        sink.settimeout(5)
        sender.start()
        try:
            sink.recv(2000)
            server.call("suspend", id=number)
            time.sleep(0.3)
            sink.setblocking(False)
            try:
                while True:
                    sink.recv(2000)
            except BlockingIOError:
                sink.settimeout(5)
            begin = time.perf_counter()
            server.call("restore", id=number)
            sink.recv(2000)
            return time.perf_counter() - begin
        finally:
            ending.set()
            sender.join()


def measure(repeat: int) -> dict[str, list[float]]:
    """Seconds of everything, each several times."""
    found: dict[str, list[float]] = {}
    server = Server()
    try:
        for _ in range(repeat):
            number, seconds = first_answer(server)
            found.setdefault("first answer, 1 partition", []).append(seconds)
            found.setdefault("CPU time of that", []).append(server.call("info", id=number)["cpu_used_s"])
            remove(server, number)
        for _ in range(max(1, repeat // 2)):
            begin = time.perf_counter()
            with ThreadPoolExecutor(4) as pool:
                numbers = [number for number, _ in pool.map(lambda _: first_answer(server), range(4))]
            found.setdefault("first answer, 4 partitions at once", []).append(time.perf_counter() - begin)
            for number in numbers:
                remove(server, number)
        number, _ = first_answer(server)
        for _ in range(4 * repeat):
            with Client(server.socket) as client:
                for command in ("suspend", "restore"):
                    args = {"id": number}
                    found.setdefault(command, []).append(timed(lambda: client.call(command, args)))  # noqa: B023
        for _ in range(repeat):
            found.setdefault("restore to next packet of a stream", []).append(stream_gap(server, number))
        found["reboot to hello"] = [timed(lambda: server.call("reboot", id=number)) for _ in range(repeat)]
        os.kill(server.call("info")["pid"], signal.SIGKILL)
        found["restart of vmand with a guest"] = [server.start()]
        remove(server, number)
    finally:
        server.close()
    return found


TARGETS_S = {
    "first answer, 1 partition": 2.5,
    "first answer, 4 partitions at once": 10.0,
    "suspend": 0.010,
    "restore": 0.010,
    "restore to next packet of a stream": 0.050,
}


def main() -> int:
    """Print a line for each figure, or JSON; 1 when a median misses its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("qemu-system-aarch64"):
        print("partitions: needs root and qemu-system-aarch64 (tools/setup guests)")
        return 0
    found = measure(options.repeat)
    medians = {name: statistics.median(values) for name, values in found.items()}
    missed = [name for name, target_s in TARGETS_S.items() if medians[name] > target_s]
    if options.format == "json":
        print(json.dumps({"load_average": os.getloadavg()[0], "seconds": found, "missed": missed}))
    else:
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
        for name, values in found.items():
            target = f"  (target {TARGETS_S[name]:g})" if name in TARGETS_S else ""
            print(f"{name:40} {medians[name]:8.4f} s median of {len(values)}, worst {max(values):.4f}{target}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
