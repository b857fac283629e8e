"""What an agent sees of slices, what it may scale, and how the outcome is rated.

One place for the single agent and the multi-agent environment: levers, observation entries, reward.
Nothing here depends on a learning package or on a running network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scenarios.errors import unknown
from scenarios.model import Scenario
from topologies.model import Gnb, Sla, Slice, Ue
from twin.knobs import KNOBS
from twin.sla import LATENCY_KPIS, latency_s
from twin.types import Action, Observation, Outcome

Vector = NDArray[np.float32]
ActionType = Literal["multi_discrete", "discrete", "continuous"]
ACTION_TYPES: tuple[ActionType, ...] = ("multi_discrete", "discrete", "continuous")
DOWN, KEEP, UP = 0, 1, 2
# KPI that says what is in force, and how much of the knob's unit one of the KPI's is.
SCALED: dict[str, tuple[str, float]] = {
    "cpu_millicores": ("cpu_limit_millicores", 1.0),
    "bandwidth_mbps": ("bandwidth_limit_bps", 1e-6),
    "prb_share": ("prb_share", 1.0),
}
# Range and step of a lever, in multiples of what the scenario declares.
MINIMUM, MAXIMUM, STEP = 0.25, 2.0, 0.125
# What is in force counts as set by somebody else when it is further than this from the last action.
_MOVED_RATIO = 0.02


@dataclass(frozen=True)
class Lever:
    """One knob of one slice, in the unit of the knob. ``start`` is what the scenario declares."""

    entity: str
    knob: str
    start: float
    low: float
    high: float
    step: float

    @property
    def name(self) -> str:
        """``slice:embb cpu_millicores``."""
        return f"{self.entity} {self.knob}"

    def level(self, value: float) -> float:
        """Where a value lies between the least (0) and the largest (1); saturates where an event went beyond."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


@dataclass(frozen=True)
class Entry:
    """One number of the observation of a slice: name, bounds, the KPIs it comes from, what it means."""

    name: str
    low: float
    high: float
    source: str
    meaning: str


ENTRIES: tuple[Entry, ...] = (
    Entry("active_ues_ratio", 0, 1, "active_ues", "UEs with a running flow, divided by the UEs of the slice"),
    Entry(
        "offered_ratio",
        0,
        2,
        "offered_dl_bps + offered_ul_bps",
        "bits sent per second in flows with a rate, divided by the rate of all UEs at once; saturates at 2",
    ),
    Entry(
        "requests_ratio",
        0,
        2,
        "requests_per_s",
        "requests answered per second, divided by what all UEs at once ask for; saturates at 2",
    ),
    Entry("loss_ratio", 0, 1, "loss_dl_ratio, loss_ul_ratio", "packets lost, the worse direction"),
    Entry(
        "qos_ratio",
        0,
        2,
        "qos_bps",
        "throughput per active UE divided by q_thresh; saturates at 2, and 2 where nothing is promised or active",
    ),
    Entry(
        "latency_ratio",
        0,
        2,
        "delay_dl_p95_s, delay_ul_p95_s, rtt_p95_s",
        "latency divided by latency_bound; saturates at 2, and 0 where nothing is promised or active",
    ),
    Entry("qos_degradation_ratio", 0, 1, "qos_degradation_ratio", "beta since the start (MicroOpt equation 1)"),
    Entry("prb_used_ratio", 0, 1, "prb_used_dl_ratio, prb_used_ul_ratio", "use of the slice's PRBs, busier direction"),
    Entry(
        "cpu_used_ratio",
        0,
        1,
        "cpu_used_millicores, cpu_limit_millicores",
        "CPU used by the slice's part of the gNB, divided by its limit; 0 when unlimited",
    ),
    Entry("cpu_throttled_ratio", 0, 1, "cpu_throttled_ratio", "share of periods in which the CPU limit was hit"),
    Entry(
        "bandwidth_used_ratio",
        0,
        1,
        "throughput_dl_bps, throughput_ul_bps, bandwidth_limit_bps",
        "throughput of the busier direction, divided by the transport limit; 0 when unlimited",
    ),
    Entry(
        "queue_ratio",
        0,
        1,
        "queue_bytes, transport_queue_bytes",
        "bytes waiting for radio or transport, divided by the gNB queues of the slice's UEs; saturates at 1",
    ),
)


@dataclass(frozen=True)
class Rating:
    """One slice in one interval: ``satisfaction`` and ``cost``, both in [0, 1]."""

    satisfaction: float
    cost: float


class Slices:
    """Levers, observation and rating of the slices of one scenario.

    ``knobs``: which of ``cpu_millicores``, ``bandwidth_mbps``, ``prb_share`` the agent may scale;
    ``scope``: of which slices, by default of all. A slice has a lever for every knob that the scenario
    declares a value for. ``minimum``, ``maximum``, ``step``: ``{knob: value}`` in the unit of the
    knob, for all slices; by default a quarter of, twice, and an eighth of what the scenario declares.
    ValueError (one line) for anything that does not fit.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        knobs: Sequence[str] | None = None,
        scope: Sequence[str] | None = None,
        minimum: Mapping[str, float] | None = None,
        maximum: Mapping[str, float] | None = None,
        step: Mapping[str, float] | None = None,
    ) -> None:
        topology = scenario.topology
        if not topology.slices:
            raise ValueError(f"scenario {scenario.name}: has no slices, so there is nothing to scale")
        if not topology.slicing:
            raise ValueError(f"scenario {scenario.name}: slicing is off, so its slices have nothing of their own")
        self.entities = tuple(f"slice:{slice_.name}" for slice_ in topology.slices)
        self.knobs = _chosen_knobs(topology.slices, knobs)
        scoped = _chosen_scope(self.entities, scope)
        ranges = {"minimum": minimum or {}, "maximum": maximum or {}, "step": step or {}}
        for what, given in ranges.items():
            for knob in given:
                if knob not in self.knobs:
                    raise ValueError(f"{what}: {unknown('scaled knob', knob, self.knobs)}")
        self._all = [
            _lever(slice_, knob, ranges)
            for slice_ in topology.slices
            for knob in self.knobs
            if _declared(slice_, knob) is not None
        ]
        self.levers = tuple(lever for lever in self._all if lever.entity in scoped)
        for knob in knobs or ():
            if not any(lever.knob == knob for lever in self.levers):
                raise ValueError(
                    f"knobs: {knob} is not in scope: the scenario declares none for {', '.join(sorted(scoped))}"
                )
        if not self.levers:
            raise ValueError(f"scenario {scenario.name}: declares no resource to scale for {', '.join(sorted(scoped))}")
        self._references = {entity: _Reference(scenario, entity.partition(":")[2]) for entity in self.entities}
        self._values = {(lever.entity, lever.knob): lever.start for lever in self._all}

    def entry_names(self) -> tuple[str, ...]:
        """The names of one slice's numbers: :data:`ENTRIES`, then a level per knob."""
        return (*(entry.name for entry in ENTRIES), *(f"{knob}_level" for knob in self.knobs))

    def bounds(self) -> tuple[Vector, Vector]:
        """The least and the largest of one slice's numbers, each of shape (entries,)."""
        levels = [0.0] * len(self.knobs), [1.0] * len(self.knobs)
        low = np.array([*(entry.low for entry in ENTRIES), *levels[0]], dtype=np.float32)
        return low, np.array([*(entry.high for entry in ENTRIES), *levels[1]], dtype=np.float32)

    def begin(self) -> None:
        """An episode begins: every lever is where the scenario puts it."""
        self._values = {(lever.entity, lever.knob): lever.start for lever in self._all}

    @property
    def values(self) -> dict[str, float]:
        """What is in force, by the name of the lever, in the unit of the knob."""
        return {lever.name: self._values[lever.entity, lever.knob] for lever in self.levers}

    def stepped(self, lever: Lever, move: int) -> tuple[Action | None, str]:
        """The action for DOWN, KEEP or UP, None for nothing to do; and why it is refused, if it is."""
        if move == KEEP:
            return None, ""
        value = self._values[lever.entity, lever.knob] + (lever.step if move == UP else -lever.step)
        action = Action(lever.entity, lever.knob, _tidy(value))
        if not lever.low - 1e-9 <= value <= lever.high + 1e-9:
            return action, f"{lever.name} must be in [{lever.low:g}, {lever.high:g}], got {action.value}"
        return action, ""

    def placed(self, lever: Lever, position: float) -> Action | None:
        """The action for a position from -1 (least) to 1 (largest); None when it is there already."""
        value = _tidy(lever.low + (lever.high - lever.low) * (position + 1) / 2)
        here = self._values[lever.entity, lever.knob]
        if math.isclose(value, here, rel_tol=1e-6):
            return None
        return Action(lever.entity, lever.knob, value)

    def in_order(self, actions: Sequence[Action]) -> list[Action]:
        """Releases first: what they free can be claimed at once (the PRB shares add up to at most 1)."""
        return sorted(actions, key=lambda item: float(item.value) > self._values[item.entity, item.knob])

    def took(self, outcomes: Sequence[Outcome]) -> None:
        """Note what was carried out."""
        for outcome in outcomes:
            if outcome.applied:
                self._values[outcome.action.entity, outcome.action.knob] = float(outcome.action.value)

    def observe(self, observation: Observation) -> dict[str, dict[str, float]]:
        """The KPIs of every slice in one interval, ``{entity: {name: value}}``; notes what events have set."""
        found: dict[str, dict[str, float]] = {entity: {} for entity in self.entities}
        for kpi in observation.kpis:
            if kpi.entity in found:
                found[kpi.entity][kpi.name] = kpi.value
        for lever in self._all:
            name, unit = SCALED[lever.knob]
            key = lever.entity, lever.knob
            in_force = found[lever.entity].get(name)
            if in_force is not None and abs(in_force * unit - self._values[key]) > _MOVED_RATIO * self._values[key]:
                self._values[key] = in_force * unit
        return found

    def vector(self, entity: str, kpis: Mapping[str, float], sla: Sla) -> Vector:
        """The numbers of one slice, shape (entries,), within :meth:`bounds`."""
        reference = self._references[entity]

        def get(name: str) -> float:
            return kpis.get(name, 0.0)

        limit_bps, limit_millicores = get("bandwidth_limit_bps"), get("cpu_limit_millicores")
        busier_bps = max(get("throughput_dl_bps"), get("throughput_ul_bps"))
        quality, latency = kpis.get("qos_bps"), _latency(kpis)
        raw = {
            "active_ues_ratio": _ratio(get("active_ues"), reference.ues),
            "offered_ratio": _ratio(get("offered_dl_bps") + get("offered_ul_bps"), reference.rate_bps),
            "requests_ratio": _ratio(get("requests_per_s"), reference.requests_per_s),
            "loss_ratio": max(get("loss_dl_ratio"), get("loss_ul_ratio")),
            "qos_ratio": 2.0 if quality is None or not sla.q_thresh_bps else quality / sla.q_thresh_bps,
            "latency_ratio": 0.0 if latency is None or not sla.latency_bound_s else latency / sla.latency_bound_s,
            "qos_degradation_ratio": get("qos_degradation_ratio"),
            "prb_used_ratio": max(get("prb_used_dl_ratio"), get("prb_used_ul_ratio")),
            "cpu_used_ratio": _ratio(get("cpu_used_millicores"), limit_millicores),
            "cpu_throttled_ratio": get("cpu_throttled_ratio"),
            "bandwidth_used_ratio": _ratio(busier_bps, limit_bps),
            "queue_ratio": _ratio(get("queue_bytes") + get("transport_queue_bytes"), reference.queue_bytes),
        }
        numbers = [min(entry.high, max(entry.low, raw[entry.name])) for entry in ENTRIES]
        levers = {lever.knob: lever for lever in self._all if lever.entity == entity}
        numbers += [levers[knob].level(self._values[entity, knob]) if knob in levers else 1.0 for knob in self.knobs]
        return np.array(numbers, dtype=np.float32)

    def rate(self, entity: str, kpis: Mapping[str, float], sla: Sla) -> Rating:
        """Satisfaction and cost of one slice in one interval.

        ``satisfaction`` is 1 when every promise was kept, for a broken one at most a half::

            qos      0.5 q / q_thresh             when q <= q_thresh (MicroOpt §III: degraded)
            latency  0.5 latency_bound / latency  when latency > latency_bound

        the least of the two where both are promised; 1 - loss for a slice that was promised neither.
        ``cost`` is the mean level of the slice's levers, 0 at the least and 1 at the largest; 0 for a
        slice out of scope.
        """
        judged = []
        quality, latency = kpis.get("qos_bps"), _latency(kpis)
        if sla.q_thresh_bps is not None and quality is not None:
            judged.append(1.0 if quality > sla.q_thresh_bps else 0.5 * _ratio(quality, sla.q_thresh_bps))
        if sla.latency_bound_s is not None and latency is not None:
            judged.append(1.0 if latency <= sla.latency_bound_s else 0.5 * sla.latency_bound_s / latency)
        if sla.q_thresh_bps is None and sla.latency_bound_s is None:
            judged.append(1.0 - max(kpis.get("loss_dl_ratio", 0.0), kpis.get("loss_ul_ratio", 0.0)))
        levels = [lever.level(self._values[entity, lever.knob]) for lever in self.levers if lever.entity == entity]
        cost = sum(levels) / len(levels) if levels else 0.0
        return Rating(min(judged, default=1.0), cost)

    def mean(self, ratings: Mapping[str, Rating]) -> Rating:
        """Satisfaction over all slices; cost over those with levers."""
        scaled = {lever.entity for lever in self.levers}
        costs = [rating.cost for entity, rating in ratings.items() if entity in scaled]
        satisfactions = [rating.satisfaction for rating in ratings.values()]
        return Rating(sum(satisfactions) / len(satisfactions), sum(costs) / len(costs))


class _Reference:
    """What one slice's figures are divided by; the same for every seed."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        topology = scenario.topology
        groups = [ue for ue in topology.of_kind(Ue) if ue.slice == name]
        count = {ue.name: ue.count for ue in groups}
        self.ues = float(sum(count.values()))
        most: dict[tuple[str, str, str], float] = {}
        for flow in scenario.load.flows:
            if flow.slice == name:
                group = flow.ue.rpartition(".")[0]
                key = flow.name.removesuffix(f".{flow.ue}"), group, flow.service
                most[key] = max([most.get(key, 0.0), *(item.rate for item in flow.activities)])
        self.rate_bps = sum(count[group] * rate for (_, group, kind), rate in most.items() if kind != "request")
        self.requests_per_s = sum(count[group] * rate for (_, group, kind), rate in most.items() if kind == "request")
        queues = [gnb.queue_bytes for gnb in topology.of_kind(Gnb)]
        self.queue_bytes = self.ues * max(queues, default=0)


def _chosen_knobs(slices: Sequence[Slice], knobs: Sequence[str] | None) -> tuple[str, ...]:
    if knobs is None:
        return tuple(knob for knob in SCALED if any(_declared(slice_, knob) is not None for slice_ in slices))
    if isinstance(knobs, str):
        raise ValueError(f"knobs: must be a list of names, got {knobs!r}")
    for knob in knobs:
        if knob not in SCALED:
            raise ValueError(f"knobs: {unknown('slice knob', knob, SCALED)}")
    if not knobs or len(set(knobs)) < len(knobs):
        raise ValueError(f"knobs: must be one or more of {', '.join(SCALED)}, each once, got {', '.join(knobs) or '-'}")
    return tuple(knobs)


def _chosen_scope(entities: Sequence[str], scope: Sequence[str] | None) -> set[str]:
    if scope is None:
        return set(entities)
    chosen = [name if ":" in name else f"slice:{name}" for name in scope]
    for name in chosen:
        if name not in entities:
            raise ValueError(f"scope: {unknown('slice', name, entities)}")
    if not chosen:
        raise ValueError(f"scope: must name at least one of {', '.join(entities)}, got none")
    return set(chosen)


def _declared(slice_: Slice, knob: str) -> float | None:
    values = {
        "cpu_millicores": slice_.cpu_millicores,
        "bandwidth_mbps": None if slice_.bandwidth_bps is None else slice_.bandwidth_bps / 1e6,
        "prb_share": slice_.prb_share,
    }
    return values[knob]


def _lever(slice_: Slice, knob: str, ranges: Mapping[str, Mapping[str, float]]) -> Lever:
    spec = KNOBS[knob]
    start = _declared(slice_, knob)
    assert start is not None
    where = f"slice:{slice_.name} {knob}"
    low = ranges["minimum"].get(knob, max(spec.low, MINIMUM * start))
    high = ranges["maximum"].get(knob, min(spec.high, MAXIMUM * start))
    step = ranges["step"].get(knob, STEP * start)
    if not (
        math.isfinite(low) and math.isfinite(high) and spec.low <= low <= start <= high <= spec.high and low < high
    ):
        raise ValueError(
            f"{where}: needs {spec.low:g} <= minimum <= {start:g} (the scenario) <= maximum <= {spec.high:g} "
            f"and minimum < maximum, got minimum {low:g} and maximum {high:g}"
        )
    if not 0 < step <= high - low:
        raise ValueError(f"{where}: step must be above 0 and at most {high - low:g}, got {step:g}")
    return Lever(f"slice:{slice_.name}", knob, start, low, high, step)


def _latency(kpis: Mapping[str, float]) -> float | None:
    return latency_s({name: kpis[name] for name in LATENCY_KPIS if name in kpis})


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else 0.0


def _tidy(value: float) -> float:
    """Away with the last bits: 0.3 and not 0.30000000000000004 goes into logs and files."""
    return round(value, 9)


def checked_action(action: ArrayLike, count: int, kind: ActionType) -> list[float]:
    """What an action means for each of ``count`` levers; ValueError (one line) when it is none.

    DOWN, KEEP or UP, or for ``continuous`` a position in [-1, 1]. ``multi_discrete`` has one of the
    three per lever; ``discrete`` moves at most one lever: 0 keeps all, 2 i + 1 is lever i down and
    2 i + 2 lever i up.
    """
    array = np.asarray(action)
    shape = () if kind == "discrete" else (count,)
    if array.shape != shape or array.dtype.kind not in "iuf":
        wanted = "one whole number" if kind == "discrete" else f"{count} numbers"
        raise ValueError(f"action: must be {wanted}, got shape {array.shape} of {array.dtype}")
    low, high, allowed = {
        "multi_discrete": (0, 2, "0 (down), 1 (keep) or 2 (up)"),
        "discrete": (0, 2 * count, f"a whole number in 0..{2 * count}"),
        "continuous": (-1, 1, "in [-1, 1]"),
    }[kind]
    values = [float(value) for value in array.reshape(-1)]
    for place, value in enumerate(values):
        # NaN is in no range.
        if not low <= value <= high or (kind != "continuous" and value % 1):
            raise ValueError(f"action{'' if kind == 'discrete' else f'[{place}]'}: must be {allowed}, got {value:g}")
    if kind == "discrete":
        lever, up = divmod(int(values[0]) - 1, 2)
        return [KEEP if values[0] == 0 or place != lever else (UP if up else DOWN) for place in range(count)]
    return values
