"""Captures hold what crossed the interface, with times, and end with their owner."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulation.namespaces import Namespace, namespaces, wait_until
from twin.emulation.capture import Capture, CaptureError
from twin.emulation.impairment import End, make_link
from twin.journal import Journal, start_ticks

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host")]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[list[Namespace], Journal]]:
    with Journal.create("capture", folder=tmp_path) as journal, namespaces(2) as made:
        ends = [End(one.pid, "eth0") for one in made]
        with make_link(*ends, journal=journal, run_id="capture"):
            for number, one in enumerate(made, start=1):
                one.run("ip", "addr", "add", f"10.0.0.{number}/24", "dev", "eth0")
            yield made, journal


def frames(path: Path) -> list[tuple[float, bytes]]:
    data = path.read_bytes()
    magic, major, minor, _, _, _, link_type = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, link_type) == (0xA1B23C4D, 2, 4, 1)
    found = []
    at = 24
    while at < len(data):
        seconds, nanoseconds, kept, length = struct.unpack_from("=IIII", data, at)
        assert kept == length
        found.append((seconds + nanoseconds / 1e9, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return found


def test_both_directions_are_captured_with_their_times(pair: tuple[list[Namespace], Journal], tmp_path: Path) -> None:
    (left, _), journal = pair
    path = tmp_path / "left.pcap"
    started = time.time()
    with Capture(left.pid, "eth0", path, journal=journal) as capture:
        assert capture.alive
        left.run("ping", "-c", "20", "-i", "0.002", "10.0.0.2")
    assert [entry.kind for entry in journal.entries] == []
    found = frames(path)
    # ICMP type at the start of the IPv4 payload: 8 request, 0 reply
    types = [frame[34] for _, frame in found if frame[12:14] == b"\x08\x00" and frame[23] == 1]
    assert types.count(8) == types.count(0) == 20
    times = [at for at, _ in found]
    assert times == sorted(times) and started <= times[0] and times[-1] <= time.time()
    assert capture.captured == len(found) and capture.dropped == 0
    capture.stop()


def test_tshark_reads_it(pair: tuple[list[Namespace], Journal], tmp_path: Path) -> None:
    (left, right), _ = pair
    path = tmp_path / "right.pcap"
    with Capture(right.pid, "eth0", path):
        left.run("ping", "-c", "3", "-i", "0.01", "10.0.0.2")
    try:
        done = subprocess.run(["tshark", "-r", str(path), "-Y", "icmp"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("tshark is not installed")
    assert done.stdout.count("Echo (ping) request") == 3, done.stderr


def test_it_ends_with_its_owner_and_what_was_captured_is_whole(
    pair: tuple[list[Namespace], Journal], tmp_path: Path
) -> None:
    (left, _), _ = pair
    path = tmp_path / "killed.pcap"
    program = (
        "import os, signal, subprocess, sys\n"
        "from pathlib import Path\n"
        "from twin.emulation.capture import Capture\n"
        "capture = Capture(int(sys.argv[1]), 'eth0', Path(sys.argv[2]))\n"
        "print(capture._process.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(left.pid), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    left.run("ping", "-c", "5", "-i", "0.002", "10.0.0.2")
    owner.communicate("\n")
    wait_until(lambda: start_ticks(pid) is None, "the end of the capture")
    assert len(frames(path)) >= 10


def test_bad_input_is_one_line(pair: tuple[list[Namespace], Journal], tmp_path: Path) -> None:
    (left, _), journal = pair
    with pytest.raises(CaptureError, match="cannot capture interface nosuch: cannot find interface nosuch"):
        Capture(left.pid, "nosuch", tmp_path / "x.pcap")
    with pytest.raises(CaptureError, match=r"cannot capture interface eth0 to .*No such file or directory"):
        Capture(left.pid, "eth0", tmp_path / "missing" / "x.pcap", journal=journal)
    with pytest.raises(CaptureError, match=r"No such file or directory|No such process"):
        Capture(2**22 + 1, "eth0", tmp_path / "x.pcap")
    assert journal.entries == ()
    assert [one.name for one in tmp_path.iterdir()] == ["capture.jsonl"]
