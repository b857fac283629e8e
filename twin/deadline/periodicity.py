"""Whether a thread is periodic, from the times at which it wakes: NANCY D4.2 §4.1.1, "Estimating the period of tasks".

Of N wake-ups at r_j the spectrum is S(f) = |Σ_j exp(−i·2π·f·r_j)|, normalised A(f) = S(f) / N. (The deliverable
prints √(cos² + sin²) of each term, which is 1 whatever the times; the sum belongs inside.) A has a peak at 1 / T
and its multiples for a task of period T, and at 1 / gcd for tasks whose periods have a greatest common divisor
and whose releases keep to it.

Of random times P(A > a) ≈ exp(−N·a²) (Rayleigh), and less than that near 1, where the N phases must all lie in
a small ball. A peak counts when chance gives it in fewer than ``false_rate`` of the spectra, over M independent
frequencies (bandwidth × observation time).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.deadline.bursts import jobs

Floats = NDArray[np.float64]

_OVERSAMPLING = 6  # points per resolvable frequency, so that a peak loses at most 5 % between two
_CHUNK = 1 << 19  # of the exponentials computed at once: 8 MiB
_MIN_TURNS = 2.0  # shorter observations cannot tell a period from the length of the observation
_HARMONICS = 6
_MAX_PEAKS = 8
_LEAST = 0.6  # of the smallest N must be left when bursts are merged
_NEARLY = 0.75  # of a peak's height: with one of ten points in between, that is what a multiple keeps
_SPARSE = 2.0  # periods per point, above which many points are needed
_CLEARLY = 0.03  # by which one reading of bursts must be better than a simpler one
_OFTEN, _VERY_OFTEN = 1.2, 1.5  # as many jobs with the short ones as without: worth a look, worth waiting for
_APART = 12  # so much shorter a common period of both is too unlikely
_STAYS_PER_JOB = 20  # of a virtual CPU, at most, for which it is remembered


@dataclass(frozen=True, slots=True)
class PeriodSettings:
    """Which periods are looked for, and after how many wake-ups. ValueError says what is out of range.

    ``burst_s``: wake-ups closer than this to the one before belong to it; None finds the gap by itself, which
    is meant for virtual CPUs, whose guest wakes several times per job.
    """

    min_period_s: float = 0.005
    max_period_s: float = 2.0
    samples: tuple[int, ...] = (10, 20, 50, 100)
    false_rate: float = 1e-4
    relative_height: float = 0.8
    burst_s: float | None = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.min_period_s < self.max_period_s:
            raise ValueError(
                f"period: min_period_s must be above 0 and below max_period_s ({self.max_period_s:g}), "
                f"got {self.min_period_s:g}"
            )
        if not self.samples or self.samples[0] < 6 or list(self.samples) != sorted(set(self.samples)):
            raise ValueError(f"period: samples must grow, from 6 on, got {', '.join(map(str, self.samples)) or 'none'}")
        if not 0 < self.false_rate < 1 or not 0 < self.relative_height <= 1:
            raise ValueError(
                f"period: false_rate and relative_height must be in (0, 1), got {self.false_rate:g}, "
                f"{self.relative_height:g}"
            )


@dataclass(frozen=True, slots=True)
class Peak:
    """A local maximum of A(f)."""

    frequency_hz: float
    height: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """``period_s`` is None when no peak counts; ``samples`` is N, ``peaks`` those that count, lowest first."""

    period_s: float | None
    samples: int
    peaks: tuple[Peak, ...]


def spectrum(times_s: Sequence[float] | Floats, frequencies_hz: Floats) -> Floats:
    """A(f) = |Σ_j exp(−i·2π·f·r_j)| / N for times (N,) and frequencies (F,): an array (F,) in [0, 1]."""
    times = np.asarray(times_s, dtype=np.float64)
    if not len(times):
        return np.zeros(len(frequencies_hz))
    turns = times - times[0]  # large times would cost precision, and a shift does not change |Σ|
    parts = []
    rows = max(1, _CHUNK // len(turns))
    for start in range(0, len(frequencies_hz), rows):
        phases = np.outer(frequencies_hz[start : start + rows], turns)
        parts.append(np.abs(np.exp(-2j * np.pi * phases).sum(axis=1)))
    return np.concatenate(parts) / len(turns) if parts else np.zeros(0)


def even_spectrum(times_s: Sequence[float] | Floats, low_hz: float, step_hz: float, count: int) -> Floats:
    """:func:`spectrum` at ``low_hz + k · step_hz``, k below ``count``: an array (count,), tens of times as fast.

    exp(−i·2π·(f + (a·B + b)·s)·r) is the product of a factor of a and one of b: both for √count frequencies only,
    and their sums over the times are one product of matrices.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if not len(times) or count < 1:
        return np.zeros(max(0, count))
    turns = -2j * np.pi * (times - times[0])
    block = math.isqrt(count - 1) + 1
    coarse = np.exp(np.outer(low_hz + np.arange(-(-count // block)) * (block * step_hz), turns))
    fine = np.exp(np.outer(np.arange(block) * step_hz, turns))
    heights: Floats = np.abs(coarse @ fine.T).ravel()[:count] / len(times)
    return heights


def threshold(samples: int, trials: float, false_rate: float) -> float:
    """The height that the highest of ``trials`` random spectra exceeds with probability ``false_rate``.

    The smaller of the Rayleigh tail √(ln(M / p) / N) and the ball that the N − 1 free phases must lie in:
    A = a means Σφ² ≈ 2N(1 − a), a share V_{N−1}(√(2N(1 − a)))·√N / (2π)^{N−1} of all phases.
    """
    chance = math.log(false_rate) - math.log(max(1.0, trials))
    rayleigh = math.sqrt(-chance / samples)
    free = samples - 1
    log_ball = free / 2 * math.log(math.pi) - math.lgamma(free / 2 + 1) + math.log(samples) / 2
    log_radius = (chance - log_ball + free * math.log(2 * math.pi)) / free
    ball = 1 - math.exp(2 * log_radius) / (2 * samples)
    # The ball is an approximation for small angles only: far from 1 it promises too much.
    return min(rayleigh, max(ball, 0.9))


def whole_spectrum(times_s: Floats, settings: PeriodSettings) -> tuple[Floats, Floats]:
    """The frequencies (Hz) to look at for these wake-ups, fine enough that no peak is missed, and A(f) there."""
    length_s = float(times_s[-1] - times_s[0])
    low_hz = max(1 / settings.max_period_s, _MIN_TURNS / length_s)
    high_hz = 1 / settings.min_period_s
    step_hz = 1 / (_OVERSAMPLING * length_s)
    # A margin of two points on each side, so that a period at the limit is a local maximum inside.
    frequencies = np.arange(low_hz - 2 * step_hz, high_hz + 2 * step_hz, step_hz)
    return frequencies, even_spectrum(times_s, float(frequencies[0]), step_hz, len(frequencies))


def merged(times_s: Floats, gap_s: float) -> Floats:
    """The first wake-up of every burst: those within ``gap_s`` of the one before are left out."""
    if gap_s <= 0 or len(times_s) < 2:
        return times_s
    return times_s[np.concatenate(([True], np.diff(times_s) > gap_s))]


def burst_gap_s(times_s: Floats) -> float:
    """The gap below which wake-ups form bursts: the widest step (at least a factor 2.5) between sorted intervals.

    0 when intervals are of one kind, or when what is merged would be less than a fifth of them.
    """
    intervals = np.sort(np.diff(times_s))
    intervals = intervals[intervals > 0]
    if len(intervals) < 4:
        return 0.0
    ratios = intervals[1:] / np.maximum(intervals[:-1], 1e-5)
    # Only where both kinds are frequent: one late wake-up is not a kind.
    few = max(1, len(intervals) // 5)
    inner = slice(few - 1, len(ratios) - few + 1)
    if not len(ratios[inner]):
        return 0.0
    place = int(np.argmax(ratios[inner])) + inner.start
    if ratios[place] < 2.5:
        return 0.0
    return float(math.sqrt(max(intervals[place], 1e-5) * intervals[place + 1]))


def _burst_gaps_s(times_s: Floats) -> list[float]:
    """Gaps to try, from 0 (all wake-ups as they are) to the widest: bursts may consist of bursts."""
    gaps_s = [0.0]
    while (gap_s := burst_gap_s(merged(times_s, gaps_s[-1]))) > gaps_s[-1]:
        gaps_s.append(gap_s)
    return gaps_s


def judge(times_s: Sequence[float] | Floats, settings: PeriodSettings | None = None, *, last: bool = True) -> Verdict:
    """The period of these releases (ascending, seconds), or that they have none.

    The lowest local maximum counts that stands above chance and above ``relative_height`` of the highest and
    whose harmonics are there. If a multiple of it is clearly higher, some releases lie between its own: then
    the multiple is the common divisor. With ``settings.burst_s`` None releases may come in bursts, and where one of
    them alone decides for a shorter period there is none yet, unless these are the ``last`` that will be looked at.
    """
    settings = PeriodSettings() if settings is None else settings
    times = np.asarray(times_s, dtype=np.float64)
    least_s = settings.min_period_s / 4  # no period can separate two that are closer
    gaps_s = [settings.burst_s] if settings.burst_s is not None else _burst_gaps_s(times)
    best: Peak | None = None
    found: tuple[Peak, ...] = ()
    for gap_s in gaps_s:
        points = merged(times, max(gap_s, least_s))
        if len(points) < settings.samples[0] * _LEAST:
            continue
        chosen, peaks = _judge_points(points, settings, last)
        if best is None or (chosen is not None and chosen.height > best.height + _CLEARLY):
            best, found = chosen, peaks
    return Verdict(None if best is None else 1 / best.frequency_hz, len(times), found)


def _judge_points(points: Floats, settings: PeriodSettings, last: bool) -> tuple[Peak | None, tuple[Peak, ...]]:
    length_s = float(points[-1] - points[0])
    if length_s <= _MIN_TURNS * settings.min_period_s:
        return None, ()
    frequencies, heights = whole_spectrum(points, settings)
    step_hz = 1 / (_OVERSAMPLING * length_s)
    trials = (frequencies[-1] - frequencies[0]) * length_s
    limit = max(threshold(len(points), trials, settings.false_rate), settings.relative_height * heights.max())
    inner = heights[1:-1]
    places = np.flatnonzero((inner >= heights[:-2]) & (inner > heights[2:]) & (inner >= limit * 0.95)) + 1
    peaks: list[Peak] = []
    chosen: Peak | None = None
    for place in places:
        peak = _refined(points, float(frequencies[place]), step_hz)
        if peak.height < limit:
            continue
        peaks.append(peak)
        if chosen is None and _holds(points, peak, settings, trials):
            # Inside a burst, a common divisor of the distances within it is none of the thread's releases.
            chosen = peak if settings.burst_s is None else _divided(points, peak, settings)
        if len(peaks) == _MAX_PEAKS and chosen is not None:
            break
    if chosen is not None and settings.burst_s is None and not last and _hangs_on_few(points, chosen, settings):
        chosen = None
    return chosen, tuple(peaks[:_MAX_PEAKS])


def _refined(points: Floats, frequency_hz: float, step_hz: float) -> Peak:
    """The top near a point of the grid, by three narrowing searches."""
    top = frequency_hz
    for _ in range(3):
        near = np.linspace(top - step_hz, top + step_hz, 21)
        heights = spectrum(points, near)
        top = float(near[int(np.argmax(heights))])
        step_hz /= 10
    return Peak(top, float(heights.max()))


def _at(points: Floats, frequency_hz: float) -> float:
    return float(spectrum(points, np.array([frequency_hz]))[0])


def _holds(points: Floats, peak: Peak, settings: PeriodSettings, trials: float) -> bool:
    """Whether a peak is more than clustered arrivals, and has the second harmonic of sharp releases.

    Wake-ups within an eighth of the period count once: a few clusters would align at many frequencies.
    Releases that jitter normally have A(2f) = A(f)⁴; half of that allows for what is not periodic.
    """
    single = merged(points, 1 / (8 * peak.frequency_hz))
    if len(single) < len(points):
        if len(single) < settings.samples[0] * _LEAST:
            return False
        if _at(single, peak.frequency_hz) < threshold(len(single), trials, settings.false_rate):
            return False
    noise = 1 / math.sqrt(len(points))
    return _at(points, 2 * peak.frequency_hz) >= peak.height**4 / 2 - noise / 4


def _hangs_on_few(points: Floats, peak: Peak, settings: PeriodSettings) -> bool:
    """Whether nearly all points have a period that is a multiple of the peak's: the others may be no releases.

    Or whether the period is much shorter than the intervals: of few points that a busy host delayed, some such period
    nearly always fits.
    """
    length_s = float(points[-1] - points[0])
    if len(points) < settings.samples[-2:][0] * _LEAST and length_s * peak.frequency_hz > _SPARSE * (len(points) - 1):
        return True
    for factor in range(2, _HARMONICS + 1):
        frequency_hz = peak.frequency_hz / factor
        if frequency_hz < max(1 / settings.max_period_s, _MIN_TURNS / length_s):
            break
        lower = _refined(points, frequency_hz, 1 / (_OVERSAMPLING * length_s))
        if lower.height >= _NEARLY * peak.height:
            return True
    return False


def _divided(points: Floats, peak: Peak, settings: PeriodSettings) -> Peak:
    """The multiple of a peak that holds releases which the peak itself leaves out, or the peak."""
    step_hz = 1 / (_OVERSAMPLING * float(points[-1] - points[0]))
    best = peak
    for factor in range(2, _HARMONICS + 1):
        if factor * peak.frequency_hz > 1 / settings.min_period_s:
            break
        multiple = _refined(points, factor * peak.frequency_hz, step_hz / factor)
        if multiple.height > best.height + max(0.08, 0.5 / math.sqrt(len(points))):
            best = multiple
    return best


class PeriodFinder:
    """Collects the wake-ups of one thread and looks for its period with a growing N.

    N grows through ``settings.samples`` while nothing is found; a thread without a period at the last is not
    periodic. It stays watched: the latest wake-ups are judged again at every :meth:`verdict`. With
    ``settings.burst_s`` None the thread is a virtual CPU, and N counts the jobs of its guest (:mod:`.bursts`).
    """

    def __init__(self, settings: PeriodSettings | None = None) -> None:
        self.settings = PeriodSettings() if settings is None else settings
        self._stays: list[tuple[float, float, float]] = []
        self._guest = self.settings.burst_s is None
        self._most = self.settings.samples[-1] * (_STAYS_PER_JOB if self._guest else 2)
        self._changed = True
        self._releases = self._small = np.zeros(0)
        self._judged_s = -math.inf
        self._stage = 0
        self._verdict = Verdict(None, 0, ())
        self.final = False

    def add(self, time_s: float, awake_s: float = 0.0, run_s: float | None = None) -> None:
        """One wake-up, how long the thread stayed awake, and how much of that it ran; times do not go back."""
        self._stays.append((time_s, time_s + awake_s, awake_s if run_s is None else run_s))
        self._changed = True
        if len(self._stays) > self._most:
            del self._stays[: -self._most // 2]

    @property
    def times_s(self) -> tuple[float, ...]:
        """The latest wake-ups, or jobs of a guest; at least as many as the largest N, when there were."""
        self._update()
        return tuple(self._releases.tolist())

    def verdict(self) -> Verdict:
        """The answer so far; ``final`` tells whether more wake-ups could only change a thread that changes."""
        self._update()
        stages = self.settings.samples
        if not self.final:
            # A guest that hardly ever does the same twice may never have enough jobs of a kind.
            ample = self._guest and len(self._stays) >= self._most // 2
            while self._stage < len(stages) and (len(self._releases) >= stages[self._stage] or ample):
                self._judge(stages[self._stage])
                if self._verdict.period_s is not None:
                    break
                self._stage += 1
            if self._verdict.period_s is None and self._stage < len(stages):
                return Verdict(None, len(self._releases), self._verdict.peaks)
            self.final = True
        elif int((self._releases > self._judged_s).sum()) >= stages[min(self._stage, len(stages) - 1)]:
            found = self._verdict.period_s
            # With more wake-ups than the first answer needed: rare releases between the others show late.
            self._judge(stages[-1])
            if self._verdict.period_s is None and found is not None:
                # It may have changed: look again from the beginning of the stages.
                self._stage, self.final = 0, False
                self._forget(stages[0])
        return self._verdict

    def _update(self) -> None:
        if not self._changed:
            return
        stays = np.array(self._stays, dtype=np.float64).reshape(-1, 3)
        if self._guest:
            self._releases, self._small = jobs(stays[:, 0], stays[:, 1], stays[:, 2])
        else:
            self._releases = stays[:, 0]
        self._changed = False

    def _judge(self, samples: int) -> None:
        last = samples == self.settings.samples[-1]
        points = self._releases[-samples:]
        self._verdict = judge(points, self.settings, last=last)
        self._judged_s = float(points[-1]) if len(points) else -math.inf
        long_s = self._verdict.period_s
        if not self._guest or long_s is None:
            return
        # Short jobs between the long ones may be what a kernel does now and then, unless a period holds for both.
        small = self._small[self._small >= points[0]]
        if len(small) < (_OFTEN if last else _VERY_OFTEN) * len(points):
            return
        verdict = judge(small, self.settings, last=last) if samples >= self.settings.samples[-2:][0] else None
        if verdict is not None and verdict.period_s is not None and verdict.period_s > long_s / _APART:
            self._verdict = verdict
        elif not last:
            self._verdict = Verdict(None, len(points), self._verdict.peaks)

    def _forget(self, samples: int) -> None:
        self._update()
        if len(self._releases) > samples:
            oldest_s = self._releases[-samples]
            self._stays = [stay for stay in self._stays if stay[0] >= oldest_s]
            self._changed = True
            self._update()
