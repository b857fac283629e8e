"""Demand by name: what a scenario file may say, and what it is told when it says something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from traces.model import TraceError
from traces.profiles import DATA, PROFILES, ProfileContext, build

FILE = "sms-call-internet-mi-2013-11-04.txt.gz"
PARAMS: dict[str, dict[str, Any]] = {
    "constant": {"value": 3},
    "telecom_italia": {"file": FILE, "cell": 5161, "peak_users": 8},
    "telecom_italia_synthetic": {"mean_users": 2.5},
    "microopt": {"mean": 3, "sigma": 0.5},
    "poisson": {"rate_per_s": 1, "holding_s": 2},
    "on_off": {"on_s": 1, "off_s": 2, "users": 3},
}


def context(seed: int = 1, compression: float = 1440.0) -> ProfileContext:
    return ProfileContext(duration_s=60, rng=np.random.default_rng(seed), directory=DATA, compression=compression)


def test_every_profile_is_tried_here() -> None:
    assert set(PARAMS) == set(PROFILES)


@pytest.mark.parametrize("name", PARAMS)
def test_profiles_make_users_and_describe_themselves(name: str) -> None:
    trace = build(name, PARAMS[name], context())
    assert trace.unit == "users"
    assert trace.times_s[0] == 0
    assert trace.times_s[-1] < 60
    assert build(name, PARAMS[name], context()).values.tobytes() == trace.values.tobytes()
    assert PROFILES[name].summary.endswith(".")
    assert {parameter.name for parameter in PROFILES[name].parameters} >= set(PARAMS[name])


def test_a_day_in_a_minute_has_the_asked_peak() -> None:
    trace = build("telecom_italia", PARAMS["telecom_italia"], context())
    assert trace.values.size == 144
    assert trace.values.max() == pytest.approx(8)
    assert trace.times_s[1] == pytest.approx(600 / 1440)


def test_mean_is_that_of_the_played_part() -> None:
    trace = build("telecom_italia_synthetic", {"mean_users": 2.5, "start_hour": 14}, context(compression=60))
    assert trace.times_s[-1] == pytest.approx(50)  # six slots of ten minutes, 10 s each
    assert trace.values.mean() == pytest.approx(2.5)


def test_several_files_are_a_list() -> None:
    trace = build("telecom_italia", {"file": [FILE], "cell": 5161, "scale": 0.01}, context())
    assert 5 < trace.values.max() < 60


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("telecom_italy", {}, r"no profile named 'telecom_italy'; profiles: .*did you mean telecom_italia\?"),
        ("constant", {"valu": 3}, r"profile constant: no parameter 'valu'; .*did you mean value\?"),
        ("constant", {}, "profile constant: value is missing"),
        ("constant", {"value": "3"}, "profile constant: value must be float, got '3'"),
        ("constant", {"value": True}, "profile constant: value must be float, got True"),
        ("constant", {"value": 3, "unit": "kg"}, "unit must be users | bps"),
        ("telecom_italia", {"file": [1], "cell": 1}, "file must be str"),
        ("telecom_italia", {"file": "none.txt", "cell": 1, "scale": 1}, "none.txt: cannot be read"),
        ("telecom_italia", {"file": FILE, "cell": 5161}, "exactly one of peak_users, mean_users, scale, got none"),
        ("telecom_italia_synthetic", {"scale": 1, "peak_users": 2}, "got peak_users, scale"),
        ("telecom_italia_synthetic", {"scale": -1}, "scale must be positive, got -1"),
        ("telecom_italia_synthetic", {"scale": 1, "start_hour": 24}, r"start_hour must be in \[0, 24\), got 24"),
        ("telecom_italia_synthetic", {"scale": 1, "first_day": "Monday"}, "first_day must look like 2013-11-04"),
        ("poisson", {"rate_per_s": 0, "holding_s": 1}, "rate_per_s must be positive"),
    ],
)
def test_refusals(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        build(name, params, context())
