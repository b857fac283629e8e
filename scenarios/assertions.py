"""``assert:`` what must hold of a run.

Grammar, one line each::

    [STATISTIC] ENTITY KPI COMPARISON VALUE [over last DURATION | over FROM..TO]

``STATISTIC`` is mean (default), min, max, last or p95, over the samples of the window; ``ENTITY`` and
``KPI`` as in ``twin list kpis``; ``COMPARISON`` is <, <=, > or >=; ``VALUE`` has a unit of the KPI
(20ms, 2Mbps, 5%) or is a plain number in the KPI's own unit. Without a window the whole run counts.

    slice:urllc delay_dl_p95_s <= 20ms over last 20s
    max run clock_lag_s < 100ms
    mean slice:embb throughput_dl_bps >= 5Mbps over 10s..30s
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from scenarios.errors import nearest, unknown
from scenarios.model import Assertion, Comparison, Statistic
from scenarios.units import DURATION, KPI_QUANTITIES, UnitError
from twin.kpis import KPIS
from twin.types import Kpi

Samples = Sequence[tuple[float, float]]
STATISTICS = get_args(Statistic)
COMPARISONS = get_args(Comparison)
_FORM = "[mean|min|max|last|p95] ENTITY KPI <|<=|>|>= VALUE [over last DURATION | over FROM..TO]"
_LINE = re.compile(
    r"\s*(?:(?P<statistic>\w+)\s+)?(?P<entity>run|\w+:\S+)\s+(?P<kpi>\w+)\s*(?P<comparison><=|>=|<|>|==?|!=)\s*"
    r"(?P<value>.+?)\s*(?:\bover\s+(?:last\s+(?P<last>.+?)|(?P<start>.+?)\s*\.\.\s*(?P<stop>.+?))\s*)?"
)


class AssertionFormatError(ValueError):
    """An assertion that cannot be read; one line."""


def parse_assertion(text: str, *, entities: Iterable[str], duration_s: float) -> Assertion:
    """The assertion that ``text`` states; :class:`AssertionFormatError` says what, got, allowed."""
    match = _LINE.fullmatch(text)
    if not match:
        raise AssertionFormatError(f"got {text!r}, allowed {_FORM}")
    statistic = match["statistic"] or "mean"
    if statistic not in STATISTICS:
        raise AssertionFormatError(unknown("statistic", statistic, STATISTICS))
    if match["comparison"] not in COMPARISONS:
        raise AssertionFormatError(f"got comparison {match['comparison']}, allowed {', '.join(COMPARISONS)}")
    entity, name = match["entity"], match["kpi"]
    spec = KPIS.get(name)
    if spec is None:
        raise AssertionFormatError(f"no KPI named {name}{nearest(name, KPIS)}; twin list kpis shows all")
    scope = entity.partition(":")[0]
    if scope not in spec.scopes:
        raise AssertionFormatError(f"KPI {name} belongs to {' or '.join(spec.scopes)}, got {entity}")
    if entity != "run" and entity not in (known := list(entities)):
        raise AssertionFormatError(unknown("entity", entity, [item for item in known if item.startswith(f"{scope}:")]))
    quantity = KPI_QUANTITIES[spec.unit]
    try:
        value = quantity.parse(_number(match["value"]))
    except UnitError as error:
        raise AssertionFormatError(f"value of {name}: {error}") from None
    return Assertion(
        entity=entity,
        kpi=name,
        statistic=cast(Statistic, statistic),
        comparison=cast(Comparison, match["comparison"]),
        value=value,
        window_s=_window(match, duration_s),
        text=" ".join(text.split()),
    )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _window(match: re.Match[str], duration_s: float) -> tuple[float, float] | None:
    try:
        if match["last"]:
            last_s = DURATION.parse(_number(match["last"]))
            if not 0 < last_s <= duration_s:
                raise UnitError(f"over last {match['last']}: allowed more than 0 and at most {duration_s:g} s")
            return duration_s - last_s, duration_s
        if match["start"]:
            start_s, stop_s = (DURATION.parse(_number(match[key])) for key in ("start", "stop"))
            if not 0 <= start_s < stop_s <= duration_s:
                raise UnitError(f"over {match['start']}..{match['stop']}: allowed FROM < TO within 0..{duration_s:g} s")
            return start_s, stop_s
    except UnitError as error:
        raise AssertionFormatError(f"window: {error}") from None
    return None


@dataclass(frozen=True, kw_only=True)
class AssertionResult:
    """``measured`` is NaN when the window holds no sample, which fails the assertion."""

    text: str
    passed: bool
    measured: float
    allowed: str
    samples: int


def evaluate(assertions: Iterable[Assertion], read: Callable[[str, str], Samples]) -> tuple[AssertionResult, ...]:
    """Check assertions; ``read(entity, kpi)`` gives the samples ``(time_s, value)`` of a run.

    A sample taken at ``time_s`` describes the interval before it, so a window (start, stop] takes
    samples with start < time_s <= stop.
    """
    results = []
    for assertion in assertions:
        start_s, stop_s = assertion.window_s or (-math.inf, math.inf)
        values = [
            value for time_s, value in read(assertion.entity, assertion.kpi) if start_s + 1e-9 < time_s <= stop_s + 1e-9
        ]
        values = [value for value in values if not math.isnan(value)]
        measured = statistic_of(values, assertion.statistic) if values else math.nan
        passed = {
            "<": measured < assertion.value,
            "<=": measured <= assertion.value,
            ">": measured > assertion.value,
            ">=": measured >= assertion.value,
        }[assertion.comparison]
        results.append(
            AssertionResult(
                text=assertion.text or _text(assertion),
                passed=passed,
                measured=measured,
                allowed=f"{assertion.comparison} {assertion.value:g} {KPIS[assertion.kpi].unit}".removesuffix(" 1"),
                samples=len(values),
            )
        )
    return tuple(results)


def _text(assertion: Assertion) -> str:
    return (
        f"{assertion.statistic} {assertion.entity} {assertion.kpi} {assertion.comparison} "
        f"{KPI_QUANTITIES[KPIS[assertion.kpi].unit].format(assertion.value)}"
    )


def reader_of(kpis: Iterable[Kpi]) -> Callable[[str, str], Samples]:
    """A ``read`` function for :func:`evaluate` over KPIs in memory."""
    table: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for kpi in kpis:
        table.setdefault((kpi.entity, kpi.name), []).append((kpi.time_s, kpi.value))
    return lambda entity, name: table.get((entity, name), [])


def statistic_of(values: Sequence[float], statistic: Statistic) -> float:
    """mean, min, max, last or p95 (linear between ranks) of at least one value."""
    if statistic == "mean":
        return math.fsum(values) / len(values)
    if statistic == "last":
        return values[-1]
    ordered = sorted(values)
    if statistic == "min":
        return ordered[0]
    if statistic == "max":
        return ordered[-1]
    rank = 0.95 * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
