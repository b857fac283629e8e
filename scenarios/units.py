"""Quantities with units as people write them ("10ms", "20Mbps"), parsed in this one place.

A plain number is accepted only where the unit cannot be mistaken: Mbit/s for ``bw`` and percent for
``loss`` as in Mininet, seconds for ``duration``, ``at``, ``interval`` and ``for``, a ratio for shares.
Everywhere else a unit is needed; 0 needs none. All results are SI with the unit in the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*(?: \S+)*)\s*")

_TIME = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_BITS = {"bps": 1.0, "kbps": 1e3, "Mbps": 1e6, "Gbps": 1e9}
_BITS_ALIASES = {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3}


class UnitError(ValueError):
    """A quantity that cannot be read; the message says what was given and what is allowed."""


@dataclass(frozen=True, eq=False)
class Quantity:
    """How one quantity is written.

    ``units`` maps spellings to their factor to the SI value, ``aliases`` are further spellings;
    ``plain`` is the factor of a number without unit, None when a unit is needed. The value must lie
    in [``low``, ``high``] (SI).
    """

    name: str
    units: Mapping[str, float]
    plain: float | None = None
    plain_unit: str = ""
    aliases: Mapping[str, float] | None = None
    low: float = 0.0
    high: float = math.inf

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        units = ", ".join(self.units)
        if self.plain is None:
            return f"a number with a unit: {units}"
        if not self.units:
            return f"a number ({self.plain_unit})"
        return f"a number ({self.plain_unit}) or one with a unit: {units}"

    def parse(self, given: object) -> float:
        """The SI value of ``given`` (a number or text); :class:`UnitError` otherwise."""
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise UnitError(f"got {given!r}, allowed {self.allowed}")
        if isinstance(given, str):
            match = _NUMBER.fullmatch(given)
            if not match:
                raise UnitError(f"got {given!r}, allowed {self.allowed}")
            number, unit = float(match[1]), match[2]
        else:
            number, unit = float(given) if abs(given) < 1e300 else math.inf, ""
        factor = self._factor(unit, number)
        if factor is None:
            raise UnitError(f"got {given!r}, allowed {self.allowed}")
        # Dividing by 1000 is exact where multiplying by 0.001 is not (3ms must be 0.003).
        value = number / round(1 / factor) if 0 < factor < 1 else number * factor
        if not math.isfinite(value) or not self.low <= value <= self.high:
            top = "" if math.isinf(self.high) else f" and at most {self.format(self.high)}"
            raise UnitError(f"got {given!r}, allowed at least {self.format(self.low)}{top}")
        return value

    def _factor(self, unit: str, number: float) -> float | None:
        if unit:
            return self.units.get(unit, (self.aliases or {}).get(unit))
        return 1.0 if number == 0 and self.plain is None else self.plain

    def format(self, value: float) -> str:
        """``value`` (SI) as text that :meth:`parse` reads back exactly, in the largest unit that suits."""
        base = next((unit for unit, factor in self.units.items() if factor == 1), "" if self.plain == 1 else "%")
        if value == 0:
            return f"0{base}"
        fallback = ""
        for unit, factor in sorted(self.units.items(), key=lambda item: -item[1]):
            if 0 < abs(value) < factor and factor > min(self.units.values()):
                continue
            exact = value / factor
            # Division rounds: the number that reads back as ``value`` may be a neighbour.
            near = (exact, math.nextafter(exact, math.inf), math.nextafter(exact, -math.inf))
            for number in (f"{exact:.12g}", *map(repr, near)):
                if self._reads(f"{number}{unit}", value):
                    if len(number) <= 8:
                        return f"{number}{unit}"
                    fallback = fallback or f"{number}{unit}"
                    break
        return fallback or f"{value!r}{base}"

    def _reads(self, text: str, value: float) -> bool:
        match = _NUMBER.fullmatch(text)
        assert match is not None
        factor = self.units[match[2]]
        number = float(match[1])
        return (number / round(1 / factor) if 0 < factor < 1 else number * factor) == value

    @property
    def pattern(self) -> str:
        """Regular expression of the spellings with a unit, for the JSON Schema."""
        units = "|".join(re.escape(unit) for unit in (*self.units, *(self.aliases or {})))
        zero = "" if self.plain is not None else "?"
        return rf"^\s*[+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*({units}){zero}\s*$"


BANDWIDTH = Quantity("bandwidth", _BITS, 1e6, "Mbit/s", _BITS_ALIASES, low=10_000)
BIT_RATE = Quantity("bit rate", _BITS, None, "", _BITS_ALIASES)
DELAY = Quantity("delay", _TIME, high=60)
TASK_PERIOD = Quantity("period", _TIME, low=1e-3, high=10)
TASK_WORK = Quantity("work", _TIME, high=10)
DURATION = Quantity("duration", _TIME, 1.0, "seconds")
POSITIVE_DURATION = Quantity("duration", _TIME, 1.0, "seconds", low=1e-3)
# A run longer than a month, or a sample more often than every 10 ms, is a slip of the pen.
RUN_DURATION = Quantity("duration", _TIME, 1.0, "seconds", low=1e-2, high=31 * 86_400.0)
INTERVAL = Quantity("interval", _TIME, 1.0, "seconds", low=1e-2, high=3600.0)
LOSS = Quantity("loss", {"%": 0.01}, 0.01, "percent", high=1)
RATIO = Quantity("ratio", {"%": 0.01}, 1.0, "between 0 and 1", high=1)
CPU = Quantity("cpu", {"m": 1.0, "cpu": 1000.0}, low=10)
MEMORY = Quantity(
    "memory",
    {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0},
    aliases={"Ki": 1 / 1024, "Mi": 1.0, "Gi": 1024.0, "MB": 1e6 / 2**20, "GB": 1e9 / 2**20},
    low=8,
)
PARTITION_MEMORY = replace(MEMORY, low=64, high=65536)
EDGE_MEMORY = replace(MEMORY, low=64, high=1_048_576)
REQUEST_RATE = Quantity("request rate", {"/min": 1 / 60, "/s": 1.0})
# What a KPI value may be written in, by the unit that the KPI registry gives.
KPI_QUANTITIES: dict[str, Quantity] = {
    "s": Quantity("time", _TIME, 1.0, "seconds", low=-math.inf),
    "bit/s": Quantity("bit rate", _BITS, 1.0, "bit/s", _BITS_ALIASES, low=-math.inf),
    "1": Quantity("ratio", {"%": 0.01}, 1.0, "plain", low=-math.inf),
    "byte": Quantity("size", _BYTES, 1.0, "bytes", low=-math.inf),
    "1/s": Quantity("rate", {"/min": 1 / 60, "/s": 1.0}, 1.0, "per second", low=-math.inf),
    "1e-3 CPU": Quantity("cpu", {"m": 1.0, "cpu": 1000.0}, 1.0, "millicores", low=-math.inf),
}
