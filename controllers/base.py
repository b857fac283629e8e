"""What a controller is: it is shown observations and returns actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from topologies.model import Topology
from twin.types import Action, Observation


@dataclass(frozen=True, kw_only=True)
class ControllerContext:
    """What a controller may know before the run starts.

    ``scope`` lists the entities it may act on (``slice:embb``, ``node:video``); ``seed`` is its own
    random stream; ``interval_s`` is the time between two decisions.
    """

    topology: Topology
    scope: tuple[str, ...]
    interval_s: float
    seed: int


class Controller(Protocol):
    """A class registered under ``twinbed.controllers``, made as ``cls(context, **params)``.

    ``observe`` sees every interval; ``act`` is asked every ``interval_s``. One instance per run.
    Raise ``ValueError`` from ``__init__`` for bad ``params``: the run does not start. A method
    ``prepare()``, where there is one, is called once before the run's clock starts, in the process that
    will decide: the place for what makes a first decision slow.
    """

    def observe(self, observation: Observation) -> None: ...

    def act(self) -> Sequence[Action]: ...
