"""Periodic tasks: a process with one thread each, so that the host can reserve CPU time for it.

A job is released in every period and burns its work in CPU time of its thread; a job that is late does not delay
the releases of the next ones. Python's threads of one process would wait for each other's interpreter lock, hence
processes. Each shares a page of memory with the program, which reads responses and sets work there without waking it.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from twin.emulation.dataplane.control import ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.loop import ConfigError, Loop, burn, main, number, value

MAX_TASKS = 64
RESPONSES = 8192  # kept until they are read; of more jobs the latest
START_TIMEOUT_S = 1.0
# Offsets: work (ns), jobs that ended, whether it waits for its first release, responses (ns).
_WORK, _DONE, _STARTED, _TABLE = 0, 8, 16, 64


class Task:
    """A child process and the memory shared with it."""

    def __init__(self, period_ns: int, work_ns: int, others: Sequence[Task]) -> None:
        self.period_ns = period_ns
        self._read = 0
        self._memory = mmap.mmap(-1, _TABLE + 8 * RESPONSES)
        self.set_work(work_ns)
        self._start, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for other in others:
                    other._start.close()
                self._start.close()
                _run(self._memory, period_ns, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def set_work(self, work_ns: int) -> None:
        """CPU time of the jobs released from now on."""
        struct.pack_into("=q", self._memory, _WORK, work_ns)

    def start(self, first_ns: int) -> None:
        """Release the first job at this monotonic time."""
        self._start.send(struct.pack("=q", first_ns))

    @property
    def started(self) -> bool:
        """Whether it has taken in when to begin, and next wakes for its first job."""
        return bool(struct.unpack_from("=q", self._memory, _STARTED)[0])

    def stats(self) -> Reply:
        """Counters, and the responses of the jobs that ended since the last call."""
        work_ns, done = struct.unpack_from("=qq", self._memory, _WORK)
        new = range(max(self._read, done - RESPONSES), done)
        found = sorted(struct.unpack_from("=q", self._memory, _TABLE + 8 * (job % RESPONSES))[0] / 1e3 for job in new)
        missed = sum(one > self.period_ns / 1e3 for one in found)
        row: Reply = {"pid": self.pid, "work_ns": work_ns, "jobs": done, "jobs_now": len(found), "missed_now": missed}
        if found:
            row["p50_us"], row["p99_us"] = (found[math.ceil(rank * len(found)) - 1] for rank in (0.5, 0.99))
            row["max_us"] = found[-1]
        self._read = done
        return row

    def close(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._start.close()
        self._memory.close()


def _run(memory: mmap.mmap, period_ns: int, start: socket.socket) -> None:
    """The life of a child: it ends when the program's end of the socket is closed."""
    signal.set_wakeup_fd(-1)
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    gc.disable()
    told = start.recv(8)
    if len(told) < 8:
        return
    (release_ns,) = struct.unpack("=q", told)
    struct.pack_into("=q", memory, _STARTED, 1)
    job = 0
    while True:
        # Watching the socket instead of sleeping costs nothing, and tells when nobody is left to work for.
        left_s = max(0, release_ns - time.monotonic_ns()) / 1e9
        if left_s and select.select((start,), (), (), left_s)[0]:
            return
        (work_ns,) = struct.unpack_from("=q", memory, _WORK)
        burn(time.thread_time_ns() + work_ns)
        struct.pack_into("=q", memory, _TABLE + 8 * (job % RESPONSES), time.monotonic_ns() - release_ns)
        job += 1
        struct.pack_into("=q", memory, _DONE, job)
        if job % 64 == 0 and select.select((start,), (), (), 0)[0]:
            return
        release_ns += period_ns


class Tasks:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.node = value(config, "node", str)
        self._started_ns = time.monotonic_ns()
        rows = value(config, "tasks", list)
        if not 1 <= len(rows) <= MAX_TASKS:
            raise ConfigError(f"tasks: must be 1 to {MAX_TASKS}, got {len(rows)}")
        sizes = [(int(number(row, "period_ns", 1e6, 1e10)), int(number(row, "work_ns", 0, 1e10))) for row in rows]
        self._tasks: list[Task] = []
        for period_ns, work_ns in sizes:
            self._tasks.append(Task(period_ns, work_ns, self._tasks))
        self._running = False
        ops = {"stats": self._stats, "epoch": self._epoch, "set_work": self._set_work}
        self._control = ControlServer(loop, control, node=self.node, program="tasks", ops=ops, later_ops={})

    def close(self) -> None:
        """End all tasks."""
        self._control.close()
        for task in self._tasks:
            task.close()

    def _epoch(self, request: dict[str, Any]) -> Reply:
        no_more(request, "time_ns")
        if self._running:
            raise Refused("epoch: the tasks run already")
        epoch_ns = int(number(request, "time_ns", 0, 2**62))
        self._running = True
        for task in self._tasks:
            # Half a period after the epoch: what is read at round times then meets no job that runs.
            passed = max(0, time.monotonic_ns() + 1_000_000 - epoch_ns - task.period_ns // 2)
            task.start(epoch_ns + task.period_ns // 2 - (-passed // task.period_ns) * task.period_ns)
        # Who traces wake-ups after this sees none that is no release.
        limit_s = time.monotonic() + START_TIMEOUT_S
        while not all(task.started for task in self._tasks):
            if time.monotonic() > limit_s:
                raise Refused(f"epoch: a task did not start within {START_TIMEOUT_S:g} s")
            time.sleep(0.001)
        return {}

    def _set_work(self, request: dict[str, Any]) -> Reply:
        no_more(request, "task", "work_ns")
        which = int(number(request, "task", 1, len(self._tasks)))
        self._tasks[which - 1].set_work(int(number(request, "work_ns", 0, 1e10)))
        return {}

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "tasks": [task.stats() for task in self._tasks],
        }


if __name__ == "__main__":
    main("tasks", Tasks)
