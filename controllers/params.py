"""Checks of controller parameters: every failure is a ValueError that names the parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping


def number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """``value`` as float when it is a finite number in [low, high]."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not low <= value <= high:  # type: ignore[operator]
        top = "inf)" if math.isinf(high) else f"{high:g}]"
        raise ValueError(f"{name} must be a number in [{low:g}, {top}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def numbers(name: str, value: object, keys: tuple[str, ...], low: float, high: float = math.inf) -> dict[str, float]:
    """A mapping from some of ``keys`` to numbers in [low, high]; None counts as empty."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping with keys from {', '.join(keys)}, got {value!r}")
    for key in value:
        if key not in keys:
            raise ValueError(f"{name}: no {key!r} here; known: {', '.join(keys)}")
    return {key: number(f"{name}.{key}", item, low, high) for key, item in value.items()}


def choice(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """One word out of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def choices(name: str, value: object, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """A list of different words out of ``allowed``, at least one."""
    listed = isinstance(value, list | tuple) and value and all(item in allowed for item in value)
    if not listed or len(set(value)) != len(value):  # type: ignore[call-overload,arg-type]
        raise ValueError(f"{name} must be a list of different words out of {', '.join(allowed)}, got {value!r}")
    return tuple(value)  # type: ignore[arg-type]
