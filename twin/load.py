"""What the users of the network do, worked out in advance and the same for every fidelity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["dl", "ul"]
Service = Literal["stream", "request", "telemetry"]


@dataclass(frozen=True, slots=True)
class Activity:
    """A flow is active in [start_s, stop_s) at ``rate``: bit/s, or requests/s for ``request`` flows."""

    start_s: float
    stop_s: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The traffic between one UE and one application.

    ``stream`` runs downlink at ``rate`` bit/s of IP packets of ``packet_bytes`` (IP header included),
    ``telemetry`` likewise uplink. ``request`` flows send Poisson HTTP requests of ``packet_bytes``
    of body and wait for the response (open loop, mean ``rate`` per second).
    ``activities`` are sorted and do not overlap.
    """

    name: str
    ue: str
    slice: str
    app: str
    service: Service
    direction: Direction
    packet_bytes: int
    activities: tuple[Activity, ...]


@dataclass(frozen=True, kw_only=True)
class BackhaulDemand:
    """What the source of a backhaul flow of the topology sends: activities in bit/s, sorted, without overlap."""

    flow: str
    activities: tuple[Activity, ...]

    def rate_bps(self, time_s: float) -> float:
        """The demand at a time; 0 where none is declared."""
        for item in self.activities:
            if item.start_s <= time_s < item.stop_s:
                return item.rate
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """All flows of a run of ``duration_s``; at most one demand per backhaul flow."""

    flows: tuple[Flow, ...]
    duration_s: float
    backhaul: tuple[BackhaulDemand, ...] = ()
