"""A program whose threads run as real-time tasks do, for measuring reservations and periods.

    python benchmarks/deadline_task.py periodic [--period-ms 100[,75...]] [--work-ms 10[:UNTIL_S],...] ...
    python benchmarks/deadline_task.py player | aperiodic | threads

``periodic``: one thread with jobs at the multiples of one or more periods; ``--work-ms 5:10,15:20,10`` is the CPU
time per job, 5 ms until 10 s, 15 ms until 20 s, then 10 ms. ``player``: a thread that shows 30 frames a second,
fills an audio buffer every third frame, and reads a file now and then. ``aperiodic``: reads and writes a file after
random pauses. ``threads``: ``--count`` threads with a short job every 100 ms.

Prints the thread's id; ``--log`` gets a line ``release_s work_s response_s`` per job of
``periodic``, the release on the monotonic clock.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import sys
import tempfile
import threading
import time


def _work(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def _until(moment_s: float) -> None:
    pause = moment_s - time.monotonic()
    if pause > 0:
        time.sleep(pause)


def _plan(text: str) -> list[tuple[float, float]]:
    """``(until_s, work_s)`` in order; the last holds for ever."""
    steps = []
    for part in text.split(","):
        work, _, until = part.partition(":")
        steps.append((float(until or "inf"), float(work) / 1e3))
    return steps


def periodic(periods_s: list[float], plan: list[tuple[float, float]], duration_s: float, log: str | None) -> None:
    """Jobs at every multiple of every period, one after the other in this thread."""
    lines = []
    start = time.monotonic() + 0.05
    releases = [(0.0, period) for period in periods_s]
    heapq.heapify(releases)
    while True:
        release, period = releases[0]
        if release > duration_s:
            break
        heapq.heapreplace(releases, (release + period, period))
        _until(start + release)
        work = next(work for until, work in plan if release < until)
        _work(work)
        lines.append(f"{start + release:.6f} {work:.6f} {time.monotonic() - start - release:.6f}\n")
    if log:
        with open(log, "w", encoding="ascii") as file:  # noqa: PTH123 starts faster without pathlib
            file.writelines(lines)


def player(duration_s: float) -> None:
    """30 frames a second; audio every third frame, 11.1 ms after it; reads at random."""
    chance = random.Random(1)
    start, frame = time.monotonic() + 0.05, 1 / 30
    events = [(k * frame, 0.004) for k in range(int(duration_s / frame))]
    events += [(k * 3 * frame + frame / 3, 0.001) for k in range(int(duration_s / frame / 3))]
    moment = 0.0
    while (moment := moment + chance.expovariate(4)) < duration_s:
        events.append((moment, 0.0005))
    for moment, work in sorted(events):
        _until(start + moment)
        _work(work)


def aperiodic(duration_s: float) -> None:
    """Reads and writes of random size after random pauses."""
    chance = random.Random()
    end = time.monotonic() + duration_s
    with tempfile.TemporaryFile() as file:
        while time.monotonic() < end:
            file.seek(chance.randrange(1 << 20))
            file.write(os.urandom(chance.randrange(1 << 16)))
            file.flush()
            time.sleep(chance.expovariate(40))


def threads(count: int, duration_s: float) -> None:
    """Threads with a job of some 0.1 ms every 100 ms, spread over the period."""

    def body(offset: float) -> None:
        start = time.monotonic() + offset
        for k in range(int(duration_s / 0.1)):
            _until(start + k * 0.1)

    every = [threading.Thread(target=body, args=(0.1 * one / count,)) for one in range(count)]
    for one in every:
        one.start()
    for one in every:
        one.join()


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("periodic", "player", "aperiodic", "threads"))
    parser.add_argument("--period-ms", default="100")
    parser.add_argument("--work-ms", default="10")
    parser.add_argument("--duration-s", type=float, default=10)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--log")
    given = parser.parse_args()
    print(os.getpid(), flush=True)
    if given.kind == "periodic":
        periods = [float(one) / 1e3 for one in given.period_ms.split(",")]
        periodic(periods, _plan(given.work_ms), given.duration_s, given.log)
    elif given.kind == "player":
        player(given.duration_s)
    elif given.kind == "aperiodic":
        aperiodic(given.duration_s)
    else:
        threads(given.count, given.duration_s)


if __name__ == "__main__":
    sys.exit(main())
