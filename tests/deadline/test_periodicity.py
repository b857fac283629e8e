"""Periods from simulated wake-ups: what NANCY D4.2 Figures 5 to 9 show, and what chance must not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.deadline import aperiodic, found, releases, sets
from twin.deadline.bursts import jobs
from twin.deadline.periodicity import (
    PeriodFinder,
    PeriodSettings,
    burst_gap_s,
    even_spectrum,
    judge,
    merged,
    spectrum,
    threshold,
)


def test_the_spectrum_is_the_magnitude_of_the_sum() -> None:
    times_s = np.array([100.0, 100.04, 100.08, 100.15])
    frequencies = np.array([0.0, 12.5, 25.0])
    expected = [abs(sum(np.exp(-2j * np.pi * f * t) for t in times_s)) / 4 for f in frequencies]
    assert spectrum(times_s, frequencies) == pytest.approx(expected)
    # As printed in the deliverable every term is 1 and S(f) the same at all frequencies.
    assert len(set(np.round(expected, 6))) == 3


@pytest.mark.parametrize("count", [0, 1, 2, 17, 1000])
def test_the_spectrum_of_even_frequencies_is_the_same(count: int) -> None:
    times_s = 1e5 + np.cumsum(np.random.default_rng(3).exponential(0.1, 40))
    found = even_spectrum(times_s, 0.3, 0.05, count)
    assert found == pytest.approx(spectrum(times_s, 0.3 + 0.05 * np.arange(count)), abs=1e-9)
    assert even_spectrum([], 0.3, 0.05, count) == pytest.approx(np.zeros(count))


def test_the_energy_of_a_periodic_task_is_at_the_multiples_of_its_frequency() -> None:
    times_s = releases(np.random.default_rng(0), [40], 20, jitter_s=1e-4)
    heights = spectrum(times_s, np.array([12.5, 25.0, 37.5, 50.0]))
    assert heights[[1, 3]] == pytest.approx([1, 1], abs=0.01)
    assert heights[[0, 2]] == pytest.approx([0, 0], abs=0.05)


def test_a_task_of_40_ms_is_found_with_10_wake_ups() -> None:
    verdict = found(releases(np.random.default_rng(1), [40], 20))
    assert verdict.samples == 10
    assert verdict.period_s == pytest.approx(0.040, rel=0.005)
    assert verdict.peaks[0].frequency_hz == pytest.approx(25, rel=0.005)


@pytest.mark.parametrize(("periods_ms", "divisor_s"), [([50, 75], 0.025), ([45, 60, 105], 0.015), ([40, 180], 0.020)])
def test_tasks_in_one_thread_show_their_common_divisor(periods_ms: list[int], divisor_s: float) -> None:
    assert found(releases(np.random.default_rng(2), periods_ms, 60)).period_s == pytest.approx(divisor_s, rel=0.01)


def test_a_player_at_30_frames_has_the_period_of_its_frames_or_a_third() -> None:
    random = np.random.default_rng(3)
    for _ in range(10):
        frames = np.arange(240) / 30 + random.normal(0, 8e-4, 240)
        audio = np.arange(80) / 10 + 1 / 90 + random.normal(0, 5e-4, 80)
        period_s = found(np.sort(np.concatenate([frames, audio, random.uniform(0, 8, 32)]))).period_s
        assert period_s is not None
        assert min(abs(period_s - 1 / 30) * 30, abs(period_s - 1 / 90) * 90) < 0.02


def test_random_task_sets_are_right_and_aperiodic_ones_never_periodic() -> None:
    result = sets(100, seed=7)
    assert result["right"] >= 0.95
    assert result["false_periods"] == 0


def test_an_aperiodic_thread_is_not_periodic_only_at_the_last_n() -> None:
    finder = PeriodFinder()
    for count, time_s in enumerate(aperiodic(np.random.default_rng(5), 0, 120), start=1):
        finder.add(float(time_s))
        verdict = finder.verdict()
        assert verdict.period_s is None
        assert finder.final is (count >= 100)
    assert verdict.samples == 100


def test_a_thread_that_changes_its_period_is_seen_to() -> None:
    finder = PeriodFinder()
    for k in range(30):
        finder.add(k * 0.040)
    assert finder.verdict().period_s == pytest.approx(0.040)
    for k in range(1, 300):
        finder.add(29 * 0.040 + k * 0.025)
        finder.verdict()
    assert finder.verdict().period_s == pytest.approx(0.025, rel=0.01)


def guest(random: np.random.Generator, tasks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Wake-ups of a virtual CPU and how long it stays awake: jobs, and short ones some time after each."""
    events = []
    for period_s, work_s in tasks:
        for release_s in np.arange(0, 60 * max(period for period, _ in tasks), period_s):
            begin_s = release_s + abs(random.normal(0, 3e-4))
            events += [(begin_s, work_s), (begin_s + work_s + random.uniform(3e-3, 5e-3), 2e-4)]
            if random.random() < 0.3:
                events.append((begin_s + work_s + 6e-3, 1e-4))
    return sorted(events)


@pytest.mark.parametrize(
    ("tasks", "divisor_s"),
    [
        ([(0.040, 0.005)], 0.040),
        ([(0.050, 0.005), (0.075, 0.008)], 0.025),
        ([(0.045, 0.003), (0.060, 0.005), (0.105, 0.008)], 0.015),
    ],
)
def test_bursts_of_a_virtual_cpu_are_read_as_its_guests_jobs(
    tasks: list[tuple[float, float]], divisor_s: float
) -> None:
    finder = PeriodFinder(PeriodSettings(burst_s=None))
    for time_s, busy_s in guest(np.random.default_rng(6), tasks):
        finder.add(time_s, busy_s)
        verdict = finder.verdict()
        if finder.final:
            break
    assert verdict.period_s == pytest.approx(divisor_s, rel=0.02)


def recorded() -> list[tuple[str, float | None, np.ndarray]]:
    """Of virtual CPUs on a busy host: what the guest does, its period, and wake-up, awake, run of each stay, in s."""
    lines = (Path(__file__).parent / "data" / "guests.jsonl").read_text(encoding="utf-8").splitlines()
    guests = [json.loads(line) for line in lines]
    return [
        (
            one["guest"],
            one["period_ms"] and one["period_ms"] / 1e3,
            np.array(one["wakeup_awake_run_us"]).reshape(-1, 3) / 1e6,
        )
        for one in guests
    ]


@pytest.mark.parametrize(("name", "period_s", "stays"), recorded(), ids=[one[0] for one in recorded()])
def test_recorded_guests(name: str, period_s: float | None, stays: np.ndarray) -> None:
    """Wherever the trace begins; the wake-ups themselves have other periods, or none."""
    del name
    answers = []
    for start in range(0, 120, 6):
        finder = PeriodFinder(PeriodSettings(burst_s=None))
        for count, (time_s, awake_s, run_s) in enumerate(stays[start:]):
            finder.add(time_s, awake_s, run_s)
            if count % 6 == 0:
                verdict = finder.verdict()
            if finder.final:
                break
        assert finder.final
        answers.append(verdict.period_s)
    if period_s is None:
        assert answers == [None] * 20
    else:
        right = [one for one in answers if one is not None and one == pytest.approx(period_s, rel=0.02)]
        assert len(right) >= 19, answers


def test_jobs_are_told_from_ticks_and_from_pauses_within_them() -> None:
    begins_s = np.arange(20) * 0.040
    stays = []
    for begin_s in begins_s:
        stays += [(begin_s, begin_s + 0.003, 0.003), (begin_s + 0.00305, begin_s + 0.005, 0.002)]  # a lock in between
        stays += [(begin_s + 0.009, begin_s + 0.015, 2e-4)]  # a tick that waited for a CPU of the host
    starts_s, ends_s, runs_s = np.array(stays).T
    long_s, all_s = jobs(starts_s, ends_s, runs_s)
    assert long_s == pytest.approx(begins_s)
    assert all_s == pytest.approx(begins_s)
    runs_s[runs_s < 1e-3] = 8e-4  # now a sixth of a job: a job of its own
    assert [len(one) for one in jobs(starts_s, ends_s, runs_s)] == [20, 40]
    assert not len(jobs(np.zeros(0), np.zeros(0), np.zeros(0))[0])


def test_short_jobs_between_long_ones_count_when_a_period_holds_for_both() -> None:
    finder = PeriodFinder(PeriodSettings(burst_s=None))
    short_s = [(k * 0.075, 0.0012) for k in range(160) if k % 4]  # the others run with a long one
    releases_s = sorted([(k * 0.100, 0.010) for k in range(120)] + short_s)
    for time_s, run_s in releases_s:
        finder.add(time_s, run_s, run_s)
        if finder.verdict() and finder.final:
            break
    assert finder.verdict().period_s == pytest.approx(0.025, rel=0.02)


def test_bursts_are_found_by_the_gap_between_two_kinds_of_intervals() -> None:
    times_s = np.sort(np.concatenate([np.arange(20) * 0.040, np.arange(20) * 0.040 + 0.009]))
    gap_s = burst_gap_s(times_s)
    assert 0.009 < gap_s < 0.031
    assert merged(times_s, gap_s) == pytest.approx(np.arange(20) * 0.040)
    assert burst_gap_s(np.arange(20) * 0.040) == 0


def test_clusters_of_few_arrivals_are_not_periodic() -> None:
    random = np.random.default_rng(8)
    for _ in range(50):
        starts = np.sort(random.uniform(0, 3, 4))
        times_s = np.sort((starts[:, None] + random.uniform(0, 4e-3, (4, 8))).ravel())
        assert judge(times_s).period_s is None


def test_the_threshold_keeps_the_rate_of_false_peaks() -> None:
    """Of 2000 spectra of random phases, at most the expected number reaches the threshold for 5 %."""
    random = np.random.default_rng(9)
    for samples, trials in ((10, 40), (50, 100)):
        height = threshold(samples, trials, 0.05)
        turns = random.uniform(0, 1, (2000, trials, samples))
        highest = np.abs(np.exp(2j * np.pi * turns).mean(axis=2)).max(axis=1)
        assert (highest > height).mean() <= 0.05 * 1.4
        assert threshold(samples, trials, 1e-4) > height


@pytest.mark.parametrize(
    "wrong", [{"min_period_s": 3.0}, {"samples": (20, 10)}, {"samples": ()}, {"false_rate": 0.0}, {"samples": (5, 10)}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="period: "):
        PeriodSettings(**wrong)  # type: ignore[arg-type]
