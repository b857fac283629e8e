"""Demand by name, for scenario files: ``PROFILES[name]`` makes a Trace out of plain parameters.

A profile is a function with keyword-only parameters; their names, types and defaults are what a
scenario file may say, so that this module is the one place that lists them.
"""

from __future__ import annotations

import difflib
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces import arrivals, microopt, synthesis, telecom_italia
from traces.model import Trace, TraceError, Unit

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, kw_only=True)
class ProfileContext:
    """What a profile gets besides its parameters.

    ``duration_s``: length of the run. ``rng``: its own random stream. ``directory``: where relative
    file names start (the folder of the scenario file). ``compression``: how many seconds of a
    recorded or synthetic day pass in one second of the run (1440 = a day in a minute); profiles
    that are given in run time (constant, microopt, poisson, on_off) are not compressed.
    """

    duration_s: float
    rng: np.random.Generator
    directory: Path = Path()
    compression: float = 1.0


@dataclass(frozen=True)
class Parameter:
    """One parameter of a profile; ``default`` is None when it must be given or may be left out."""

    name: str
    type: str
    required: bool
    default: object


@dataclass(frozen=True)
class Profile:
    """A named way to make a trace."""

    name: str
    make: Callable[..., Trace]

    @property
    def summary(self) -> str:
        return inspect.getdoc(self.make).partition("\n")[0]  # type: ignore[union-attr]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        hints = typing.get_type_hints(self.make)
        return tuple(
            Parameter(
                name,
                _words(hints[name]),
                parameter.default is parameter.empty,
                None if parameter.default is parameter.empty else parameter.default,
            )
            for name, parameter in inspect.signature(self.make).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        )

    def __call__(self, params: Mapping[str, object], context: ProfileContext) -> Trace:
        """The trace; TraceError names an unknown, missing or wrongly typed parameter."""
        hints = typing.get_type_hints(self.make)
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in params.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise TraceError(f"profile {self.name}: no parameter {name!r}; parameters: {', '.join(known)}{hint}")
            if not _fits(value, hints[name]):
                raise TraceError(f"profile {self.name}: {name} must be {known[name].type}, got {value!r}")
        for parameter in known.values():
            if parameter.required and parameter.name not in params:
                raise TraceError(f"profile {self.name}: {parameter.name} is missing ({parameter.type})")
        return self.make(context, **params)


def _words(hint: object) -> str:
    """A type as a scenario's author would write it: ``float``, ``str | list[str]``, ``users | bps``."""
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _fits(value: object, hint: object) -> bool:
    """Whether a value read from a file may stand for a parameter of this type; 1 is a float, True is not."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if inner:
        return any(_fits(value, option) for option in inner)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, typing.cast(type, hint))


def _constant(context: ProfileContext, *, value: float, unit: Unit = "users") -> Trace:  # noqa: ARG001
    """The same demand all the time."""
    return arrivals.constant(value, unit)


def _telecom_italia(
    context: ProfileContext,
    *,
    file: str | list[str],
    cell: int,
    column: str = "internet",
    peak_users: float | None = None,
    mean_users: float | None = None,
    scale: float | None = None,
    start_hour: float = 0.0,
) -> Trace:
    """A square of Telecom Italia's activity files, scaled to users."""
    files = [context.directory / name for name in ([file] if isinstance(file, str) else file)]
    recorded = telecom_italia.read_cell(files, cell, column=column)
    return _as_users(recorded, context, peak_users, mean_users, scale, start_hour)


def _telecom_italia_synthetic(
    context: ProfileContext,
    *,
    cell: int = 5161,
    first_day: str = "2013-11-04",
    days: int = 1,
    peak_users: float | None = None,
    mean_users: float | None = None,
    scale: float | None = None,
    start_hour: float = 0.0,
) -> Trace:
    """A synthetic square with the published statistics, scaled to users."""
    try:
        day = synthesis.FIRST_DAY.fromisoformat(first_day)
    except ValueError:
        raise TraceError(f"first_day must look like 2013-11-04, got {first_day!r}") from None
    made = synthesis.synthesise([cell], context.rng, first_day=day, days=days)[cell]
    return _as_users(made, context, peak_users, mean_users, scale, start_hour)


def _microopt(
    context: ProfileContext, *, mean: float, sigma: float, slot_s: float = 1.0, max_users: float | None = None
) -> Trace:
    """MicroOpt's slice traffic: a truncated normal number of users, drawn anew every slot."""
    high = math.inf if max_users is None else max_users
    traffic = microopt.SliceTraffic(mean, sigma)
    return microopt.slice_traffic(traffic, context.duration_s, context.rng, slot_s=slot_s, high=high)


def _poisson(context: ProfileContext, *, rate_per_s: float, holding_s: float, max_users: int | None = None) -> Trace:
    """Users that arrive at random and stay for an exponential time."""
    return arrivals.poisson(rate_per_s, holding_s, context.duration_s, context.rng, limit=max_users)


def _on_off(context: ProfileContext, *, on_s: float, off_s: float, users: int = 1) -> Trace:
    """Users that are on and off for exponential times."""
    return arrivals.on_off(on_s, off_s, context.duration_s, context.rng, sources=users)


def _as_users(
    trace: Trace,
    context: ProfileContext,
    peak_users: float | None,
    mean_users: float | None,
    scale: float | None,
    start_hour: float,
) -> Trace:
    """Activity scaled to users by exactly one of the three, cut at ``start_hour`` and compressed.

    Peak and mean are those of the part that the run plays.
    """
    given = {"peak_users": peak_users, "mean_users": mean_users, "scale": scale}
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        names = ", ".join(name for name, _ in chosen) or "none"
        raise TraceError(f"telecom_italia: give exactly one of peak_users, mean_users, scale, got {names}")
    name, value = chosen[0]
    if not (math.isfinite(value) and value > 0):
        raise TraceError(f"telecom_italia: {name} must be positive, got {value:g}")
    if not (math.isfinite(context.compression) and context.compression > 0):
        raise TraceError(f"time compression must be positive, got {context.compression:g}")
    played = _window(trace, start_hour * 3600.0, context.duration_s * context.compression)
    reference = {"peak_users": float(played.values.max()), "mean_users": _mean(played), "scale": 1.0}[name]
    if reference <= 0:
        raise TraceError(f"telecom_italia: the played part has no activity, {name} cannot be reached")
    return played.scaled(value / reference, "users").compressed(context.compression)


def _window(trace: Trace, start_s: float, length_s: float) -> Trace:
    """[start_s, start_s + length_s) of a trace, moved to time 0."""
    step = float(trace.times_s[1] - trace.times_s[0]) if trace.times_s.size > 1 else math.inf
    if not 0 <= start_s < trace.times_s[-1] + step:
        raise TraceError(
            f"telecom_italia: start_hour must be in [0, {(trace.times_s[-1] + step) / 3600:g}), got {start_s / 3600:g}"
        )
    first = int(np.searchsorted(trace.times_s, start_s, side="right")) - 1
    last = max(first + 1, int(np.searchsorted(trace.times_s, start_s + length_s, side="left")))
    times = np.maximum(trace.times_s[first:last] - start_s, 0.0)
    return Trace(times, trace.values[first:last], trace.unit)


def _mean(trace: Trace) -> float:
    return float(trace.values.mean())


PROFILES: dict[str, Profile] = {
    name: Profile(name, make)
    for name, make in (
        ("constant", _constant),
        ("telecom_italia", _telecom_italia),
        ("telecom_italia_synthetic", _telecom_italia_synthetic),
        ("microopt", _microopt),
        ("poisson", _poisson),
        ("on_off", _on_off),
    )
}


def build(name: str, params: Mapping[str, object], context: ProfileContext) -> Trace:
    """The trace of a named profile; TraceError for an unknown name lists the known ones."""
    profile = PROFILES.get(name)
    if profile is None:
        near = difflib.get_close_matches(name, PROFILES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise TraceError(f"no profile named {name!r}; profiles: {', '.join(PROFILES)}{hint}")
    return profile(params, context)
