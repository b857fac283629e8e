"""The seam between a run and the network it acts on. Three fidelities implement it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from topologies.model import Topology
from twin.load import Load
from twin.types import Action, Observation, Outcome, Probe


class BackendError(Exception):
    """The network could not be brought up or was lost. One line: what, got, allowed, where."""


class Session(Protocol):
    """A network that runs. Time 0 is when :meth:`Backend.open` returned."""

    @property
    def probes(self) -> Sequence[Probe]:
        """What was declared and what was found, filled by ``open``."""

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        """Carry out actions now, in order; one outcome each. A refused action never raises."""

    def advance(self, until_s: float) -> Observation:
        """Let the network run until ``until_s`` of the run clock; the KPIs of that interval.

        Raises :class:`BackendError` when the network is lost, ValueError when time would go back.
        """

    def close(self) -> None:
        """Release everything; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """A way to make a topology run. Sees physics only: topology, load, seed."""

    name: str
    deterministic: bool

    def open(self, topology: Topology, load: Load, *, seed: int) -> Session:
        """Bring the network up; raises :class:`BackendError` and leaves nothing behind on failure."""
