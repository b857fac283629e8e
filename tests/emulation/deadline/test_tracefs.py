"""Wake-ups from the kernel's ring buffers, and hosts without them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from twin.emulation.deadline import tracefs
from twin.emulation.deadline.sched import HostLacksError
from twin.emulation.deadline.tracefs import Switch, Tracefs, Tracer, instance_exists
from twin.journal import Journal

if TYPE_CHECKING:
    from tests.emulation.deadline.conftest import Start

pytestmark = pytest.mark.emulation


@pytest.mark.usefixtures("deadline_host")
def test_wake_ups_come_at_the_tasks_period_and_of_no_other_thread(tmp_path: Path, task: Start) -> None:
    _, tid = task("periodic", "--period-ms", "40", "--work-ms", "2", "--duration-s", "20")
    _, other = task("periodic", "--period-ms", "10", "--work-ms", "0.1", "--duration-s", "20")
    found: list[Switch] = []
    with Journal.create("run", folder=tmp_path) as journal:
        with Tracer(journal, "test") as tracer:
            assert instance_exists("twinbed-run-test")
            tracer.watch([tid])
            deadline_s = time.monotonic() + 10
            while sum(one.awake for one in found) < 30:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
                found += tracer.read()
            assert {one.tid for one in found} == {tid}
            assert all(0 <= time.monotonic() - one.time_s < 20 for one in found)
            tracer.watch([other])
            tracer.read()
            found_of_other: list[Switch] = []
            while len(found_of_other) < 5:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
                found_of_other += tracer.read()
            assert {one.tid for one in found_of_other} == {other}
        assert not instance_exists("twinbed-run-test")
    pairs = [(wake, sleep) for wake, sleep in itertools.pairwise(found) if wake.awake and not sleep.awake]
    starts = np.array([wake.time_s for wake, _ in pairs])
    # The median: on a busy host a thread of ordinary priority waits now and then.
    assert np.median(np.diff(starts)) == pytest.approx(0.040, abs=0.002)
    assert np.median([sleep.time_s - wake.time_s for wake, sleep in pairs]) >= 0.002 * 0.9


def test_a_host_without_tracefs_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("tmpfs /tmp tmpfs rw 0 0\n")

    class Libc:
        def syscall(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(tracefs, "_libc", Libc())
    for code, text in ((19, "this host has no tracefs"), (1, "needs root"), (12, "cannot be mounted: Cannot allocate")):
        monkeypatch.setattr(tracefs.ctypes, "get_errno", lambda code=code: code)
        with pytest.raises(HostLacksError, match=text):
            Tracefs.open(mounts)
