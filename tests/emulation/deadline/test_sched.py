"""Reservations of real threads, and what is said when the kernel refuses one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from twin.emulation.deadline import sched
from twin.emulation.deadline.sched import DeadlineError, NotAdmittedError, ThreadEndedError

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("deadline_host")]


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that sleeps."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_a_reservation_is_what_was_asked_and_goes_back_to_what_was_before(sleeper: int) -> None:
    os.setpriority(os.PRIO_PROCESS, sleeper, 7)
    before = sched.get_attributes(sleeper)
    sched.reserve(sleeper, 0.003, 0.1)
    held = sched.get_attributes(sleeper)
    assert (held.policy, held.runtime_ns, held.deadline_ns, held.period_ns) == (6, 3_000_000, 100_000_000, 100_000_000)
    assert held.flags & sched.RESET_ON_FORK
    assert sched.restore(sleeper, before)
    after = sched.get_attributes(sleeper)
    assert (after.policy, after.nice, after.flags) == (0, 7, 0)
    assert sched.restore(sleeper, before) is False


def test_children_of_a_thread_with_a_reservation_have_none() -> None:
    program = (
        "import os, subprocess, sys\n"
        "sys.stdin.readline()\n"
        "print(os.sched_getscheduler(0), flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import os; print(os.sched_getscheduler(0))'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        sched.reserve(process.pid, 0.05, 0.1)
        output, _ = process.communicate("go\n")
    assert [int(line) & 0xFF for line in output.split()] == [6, 0]


def test_a_restricted_affinity_is_explained(sleeper: int) -> None:
    if os.cpu_count() == 1:
        pytest.skip("one CPU only: nothing to restrict")
    os.sched_setaffinity(sleeper, {0})
    with pytest.raises(DeadlineError, match=r"CPUs 0 of 0.* only \(taskset or cpuset\)"):
        sched.reserve(sleeper, 0.003, 0.1)


def test_what_the_kernel_has_given_out_is_not_admitted(sleeper: int) -> None:
    # More than 95 % of one CPU is never admitted, whatever others hold.
    with pytest.raises(NotAdmittedError, match="99 ms of 100 ms not admitted: all reservations together"):
        for _ in range(os.cpu_count() or 1):
            sched.reserve(sleeper, 0.099, 0.1)
            sleeper = threading.get_native_id()  # never reached: the first is refused


def test_a_budget_that_no_kernel_takes_says_what_is_allowed(sleeper: int) -> None:
    with pytest.raises(DeadlineError, match=r"at least 0\.001024 ms"):
        sched.reserve(sleeper, 1e-9, 0.1)
    with pytest.raises(DeadlineError, match="a period between"):
        sched.reserve(sleeper, 1.0, 100.0)


def test_a_thread_that_has_ended_is_named() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ThreadEndedError, match=f"thread {process.pid}: has ended"):
        sched.reserve(process.pid, 0.003, 0.1)
    with pytest.raises(ThreadEndedError):
        sched.get_attributes(process.pid)


def test_without_privileges_root_is_asked_for(sleeper: int) -> None:
    program = (
        "import os, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "from twin.emulation.deadline import sched\n"
        "try:\n"
        f"    sched.reserve({sleeper}, 0.003, 0.1)\n"
        "except sched.DeadlineError as error:\n"
        "    print(error)\n"
    )
    root = Path(__file__).parents[3]
    # From the file system's own folder: the checkout may not be readable for others.
    done = subprocess.run([sys.executable, "-c", "import twin.emulation.deadline.sched\n" + program],
                          capture_output=True, text=True, cwd=root, check=True)  # fmt: skip
    assert done.stdout.strip().endswith("refused: needs root or CAP_SYS_NICE")
