"""Plays a load on real UEs: attach, start, change of rate, stop, detach, each at its time."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from twin.emulation.client import ProgramDownError, ProgramError
from twin.load import Flow, Load


class UserPlane(Protocol):
    """What the replay needs from the running programs. Calls return quickly; ProgramDownError when one is down."""

    def attach(self, ue: str) -> None: ...

    def detach(self, ue: str) -> None: ...

    def start(self, flow: Flow, rate: float) -> None: ...

    def set_rate(self, flow: Flow, rate: float) -> None: ...

    def stop(self, flow: Flow) -> None: ...


@dataclass(frozen=True, slots=True)
class Step:
    """At ``time_s`` of the run clock the flow runs at ``rate``; 0 stops it."""

    time_s: float
    flow: Flow
    rate: float


def steps(load: Load) -> list[Step]:
    """All changes of rate in time order; activities that touch make one change, not a stop and a start."""
    rows = []
    for flow in load.flows:
        for activity, following in itertools.zip_longest(flow.activities, flow.activities[1:]):
            rows.append(Step(activity.start_s, flow, activity.rate))
            if following is None or following.start_s > activity.stop_s:
                rows.append(Step(activity.stop_s, flow, 0.0))
    return sorted(rows, key=lambda step: step.time_s)


@dataclass
class _Ue:
    always_attached: bool = False
    attached: bool = False
    barred: bool = False
    running: dict[str, tuple[Flow, float]] = field(default_factory=dict)
    """Flows that should be running, with their rate before the demand factor."""

    @property
    def wanted(self) -> bool:
        return not self.barred and (self.always_attached or bool(self.running))


class Replay:
    """Owns the state of every UE and flow; one thread plays the load, any thread may intervene.

    A UE attaches before its first flow starts and detaches after the last one stops, unless it is
    always attached. A failing attach is tried again at every :meth:`reconcile`.
    """

    def __init__(
        self,
        load: Load,
        user_plane: UserPlane,
        *,
        always_attached: Iterable[str],
        ues: Iterable[str],
        clock: Callable[[], float],
    ) -> None:
        self._plane = user_plane
        self._clock = clock
        self._heap = [(step.time_s, number, step) for number, step in enumerate(steps(load))]
        heapq.heapify(self._heap)
        self._ues = {ue: _Ue() for ue in ues}
        for ue in always_attached:
            self._ues[ue].always_attached = True
        self._slices = {flow.slice for flow in load.flows}
        self._factors: dict[str, float] = {}
        self._active = dict.fromkeys(self._slices, 0)
        self._integrals = dict.fromkeys(self._slices, 0.0)
        self._counted_s = self._counted_from_s = clock()
        self._error: ProgramError | None = None
        self._lock = threading.RLock()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)

    def start(self) -> None:
        """Attach the UEs that are always attached and begin to play."""
        self.reconcile({})
        self._thread.start()

    def close(self) -> None:
        """Stop playing; running flows are left as they are."""
        self._halt.set()
        if self._thread.is_alive():
            self._thread.join()

    def active_ues(self) -> dict[str, float]:
        """UEs with at least one running flow, per slice: mean over the time since the last call."""
        with self._lock:
            self._count()
            now_s = self._clock()
            span_s = now_s - self._counted_from_s
            means = {
                name: integral / span_s if span_s > 0 else float(self._active[name])
                for name, integral in self._integrals.items()
            }
            self._integrals = dict.fromkeys(self._slices, 0.0)
            self._counted_from_s = now_s
            return means

    def _count(self) -> None:
        """Add the time since the last change to the integral of active UEs; call before and after changes."""
        now_s = self._clock()
        for name, count in self._active.items():
            self._integrals[name] += count * (now_s - self._counted_s)
        self._counted_s = now_s
        self._active = dict.fromkeys(self._slices, 0)
        for ue in self._ues.values():
            if ue.running and not ue.barred:
                self._active[next(iter(ue.running.values()))[0].slice] += 1

    def bar(self, ue: str, barred: bool) -> None:
        """Detach a UE whatever its flows want, or let it attach again."""
        with self._lock:
            state = self._ues[ue]
            self._count()
            state.barred = barred
            # An arrival by script stays attached, even when no flow asks for it.
            state.always_attached = state.always_attached or not barred
            self._count()
            self._settle(ue)

    def set_factor(self, slice_name: str, factor: float) -> None:
        """Multiply the rate of all flows of a slice, those that start later included."""
        with self._lock:
            self._factors[slice_name] = factor
            for state in self._ues.values():
                for flow, rate in state.running.values():
                    if flow.slice == slice_name:
                        self._try(lambda flow=flow, rate=rate: self._plane.set_rate(flow, rate * factor))  # type: ignore[misc]

    def reconcile(self, attached: Mapping[str, bool]) -> None:
        """Attach again what should be attached and, by ``attached`` (what the UEs say), is not."""
        with self._lock:
            for ue, state in self._ues.items():
                if ue in attached:
                    state.attached = attached[ue]
                if state.wanted != state.attached:
                    self._settle(ue)

    def forget(self, group: str) -> None:
        """The container of these UEs was killed: nothing of it is attached."""
        with self._lock:
            for ue, state in self._ues.items():
                if ue.rpartition(".")[0] == group:
                    state.attached = False

    def revive(self, group: str) -> None:
        """The container runs again with fresh programs: attach and start what should be running."""
        with self._lock:
            for ue, state in self._ues.items():
                if ue.rpartition(".")[0] == group:
                    self._settle(ue)
                    for flow, rate in state.running.values():
                        factor = self._factors.get(flow.slice, 1.0)
                        self._try(lambda flow=flow, rate=rate * factor: self._plane.start(flow, rate))  # type: ignore[misc]

    def check(self) -> None:
        """Raise what ended the replay before its time."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._play_all()
        except ProgramError as error:
            self._error = error

    def _play_all(self) -> None:
        while self._heap:
            wait_s = self._heap[0][0] - self._clock()
            if wait_s > 0:
                if self._halt.wait(wait_s):
                    return
                continue
            if self._halt.is_set():
                return
            with self._lock:
                self._play(heapq.heappop(self._heap)[2])
                self._count()

    def _play(self, step: Step) -> None:
        flow, state = step.flow, self._ues[step.flow.ue]
        rate = step.rate * self._factors.get(flow.slice, 1.0)
        if step.rate <= 0:
            state.running.pop(flow.name, None)
            self._try(lambda: self._plane.stop(flow))
            self._settle(flow.ue)
        elif flow.name in state.running:
            state.running[flow.name] = (flow, step.rate)
            self._try(lambda: self._plane.set_rate(flow, rate))
        else:
            state.running[flow.name] = (flow, step.rate)
            self._settle(flow.ue)
            self._try(lambda: self._plane.start(flow, rate))

    def _settle(self, ue: str) -> None:
        """Attach or detach as wanted. Success is believed until the UE says otherwise."""
        state = self._ues[ue]
        if state.wanted and not state.attached:
            state.attached = self._try(lambda: self._plane.attach(ue))
        elif not state.wanted and state.attached:
            state.attached = not self._try(lambda: self._plane.detach(ue))

    @staticmethod
    def _try(call: Callable[[], None]) -> bool:
        """Whether the program took the request. One that is down gets it again when it is back."""
        try:
            call()
        except ProgramDownError:
            return False
        return True
