"""Which threads a target stands for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twin.emulation.deadline.sched import DeadlineError
from twin.emulation.deadline.targets import family, target

if TYPE_CHECKING:
    from tests.emulation.deadline.conftest import Start

pytestmark = pytest.mark.emulation


def test_a_process_is_all_its_threads_and_a_thread_is_itself(task: Start) -> None:
    process, pid = task("threads", "--count", "5")
    process_target = target(str(pid))
    while len(process_target.threads()) < 6:
        assert process.poll() is None
    tid = max(process_target.threads())
    assert target(f"tid:{tid}").threads() == {tid}
    process.kill()
    process.wait()
    assert process_target.threads() == set()


def test_a_family_has_the_processes_that_it_started() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        try:
            assert family(shell.pid).threads() == {shell.pid, child}
        finally:
            os.kill(child, 9)
            shell.kill()


@pytest.mark.parametrize("text", ["", "x", "-1", "tid:", "tid:x", "container:", "cpu:1", "99999999999", "٣"])
def test_what_is_no_target_says_what_is(text: str) -> None:
    with pytest.raises(DeadlineError, match="allowed are PID, tid:TID, container:NAME"):
        target(text)


def test_what_does_not_run_is_said() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(DeadlineError, match="no such process, or it has ended"):
        target(str(process.pid))
    with pytest.raises(DeadlineError, match="no such thread, or it has ended"):
        target(f"tid:{process.pid}")
    with pytest.raises(DeadlineError, match="debug-threads=on"):
        target(f"vcpus:{os.getpid()}")


@pytest.fixture
def qmp(tmp_path: Path) -> Iterator[Path]:
    """A monitor that speaks QMP as QEMU does, with one virtual CPU: this thread."""
    path = tmp_path / "qmp"
    answers = [
        {"QMP": {"version": {}, "capabilities": []}},
        {"return": {}},
        {"event": "RESUME"},
        {"return": [{"cpu-index": 0, "thread-id": threading.get_native_id(), "target": "aarch64"}]},
    ]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rwb") as stream:
                for answer in answers:
                    if "return" in answer:
                        stream.readline()
                    stream.write(json.dumps(answer).encode() + b"\n")
                    stream.flush()

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


def test_virtual_cpus_are_asked_from_qemus_monitor(qmp: Path) -> None:
    found = target(f"qmp:{qmp}")
    assert found.virtual_cpus
    assert found.threads() == {threading.get_native_id()}


def test_a_monitor_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match="No such file"):
        target(f"qmp:{tmp_path}/none")


@pytest.mark.usefixtures("emulation_host")
def test_a_container_is_the_threads_of_all_its_processes() -> None:
    image = subprocess.run(
        ["docker", "images", "-q", "twinbed/base"], capture_output=True, text=True, check=True
    ).stdout.split()
    if not image:
        pytest.skip("the base image is not built (make setup)")
    name = f"twinbed-test-deadline-{os.getpid()}"
    command = ["docker", "run", "-d", "--rm", "--network", "none", "--name", name, "--entrypoint", "sh"]
    program = "sleep 60 & sleep 60 & wait"
    identity = subprocess.run(
        [*command, image[0], "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        found = target(f"container:{name}")

        def names() -> list[str]:
            return sorted(Path(f"/proc/{tid}/comm").read_text().strip() for tid in found.threads())

        deadline_s = time.monotonic() + 15
        while names() != ["sh", "sleep", "sleep"]:  # a child has its parent's name until it is another program
            assert time.monotonic() < deadline_s, names()
            time.sleep(0.02)
    finally:
        subprocess.run(["docker", "rm", "-f", identity], capture_output=True, check=True)
    assert found.threads() == set()
    with pytest.raises(DeadlineError, match="no container of this name"):
        target(f"container:{name}")
