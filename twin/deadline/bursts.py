"""Which wake-ups of a virtual CPU are releases of its guest's jobs.

NANCY D4.2 §4.1.1, "Running PeriodWiz inside a VP": the host sees the threads of the virtual CPUs only. These wake for
more than jobs: at ticks of the guest's kernel, for fractions of a millisecond, mostly once after each job; and they
sleep for microseconds within a job, when the emulator holds a lock. So the CPU time between a wake-up and the next
sleep tells jobs from the rest, after pauses too short for a guest to sleep in have been left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PAUSE_S = 3e-4
# Of the run length that half of the CPU time belongs to or exceeds. Ticks measured at 0.01 to 0.1 of it, what the
# kernel does once a second at 0.2 to 0.3.
_JOB_SHARE = 0.35
_SMALL_JOB_SHARE = 0.1


def jobs(starts_s: Floats, ends_s: Floats, runs_s: Floats) -> tuple[Floats, Floats]:
    """When jobs began, of stays awake in order of time: the long ones, and those with the next smaller ones.

    ``runs_s`` is the CPU time of each stay.
    """
    if not len(starts_s):
        return starts_s, starts_s
    first = np.concatenate(([True], starts_s[1:] - ends_s[:-1] >= _PAUSE_S))
    starts_s = starts_s[first]
    runs_s = np.add.reduceat(runs_s, np.flatnonzero(first))
    ascending = np.sort(runs_s)
    used_s = np.cumsum(ascending)
    typical_s = ascending[int(np.searchsorted(used_s, used_s[-1] / 2))]
    return starts_s[runs_s >= _JOB_SHARE * typical_s], starts_s[runs_s >= _SMALL_JOB_SHARE * typical_s]
