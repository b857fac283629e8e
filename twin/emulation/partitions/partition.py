"""One partition as the vManager knows it, and the edge server that all of them share.

The states are those of NANCY D3.4 Figure 19.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twin.emulation import cgroups
from twin.emulation.partitions.attack import Flood
from twin.emulation.partitions.isolation import Reservation
from twin.emulation.partitions.machine import Machine
from twin.emulation.partitions.protocol import RequestError
from twin.emulation.partitions.streaming import Clock

READY, DEPLOYED, SUSPENDED = "READY", "DEPLOYED", "SUSPENDED"
TRANSIENT = {"machine", "group", "lock", "clock", "stopped_ns", "flood", "mishaps"}
"""Fields of a partition that end with the daemon."""
_MOST_MISHAPS = 100  # vmand has nobody that reads them


@dataclass(frozen=True, slots=True)
class EdgeServer:
    """What partitions may use in all, how critical ones are kept apart (``auto`` or a mode), and the network."""

    name: str
    cores: int
    memory_mib: int
    critical: str
    subnet: ipaddress.IPv4Network
    image: Path | None = None
    """Folder of the guest image (None: where ``make images`` puts it)."""
    libvirt: str | None = None
    """Connection URI when partitions are libvirt domains."""


@dataclass
class Partition:
    """One partition. Fields that are not in :data:`TRANSIENT` are in ``state.json``."""

    id: int
    name: str
    cores: int
    cpus: list[int]
    memory_mib: int
    critical: bool
    address: str
    gateway: str | None
    bridge: str | None
    tap: str
    mac: str
    state: str = READY
    complete: bool = False
    """False while it is made or destroyed: a restarted daemon finishes removing it."""
    deployment: dict[str, Any] | None = None
    pid: int | None = None
    ticks: int | None = None
    isolation: str | None = None
    pinned: list[int] = field(default_factory=list)
    cpu_millicores: float | None = None
    dl_runtime_us: int | None = None
    dl_period_us: int | None = None
    note: str | None = None
    netns: str | None = None
    """File of the network namespace of its TAP; None: vmand's own."""
    isolated: bool = True
    machine: Machine | None = None
    group: cgroups.Cgroup | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    clock: Clock | None = None
    """Of the guest, since its stream server needs it."""
    stopped_ns: int | None = None
    flood: Flood | None = None
    mishaps: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_MISHAPS))
    """What befell it that nobody asked for, oldest first; whoever reads takes them out."""

    def befell(self, text: str) -> None:
        """Note something that nobody asked for."""
        self.note = text
        self.mishaps.append(text)

    @property
    def reservation(self) -> Reservation | None:
        """What ``limit`` reserved for each vCPU."""
        if self.dl_runtime_us is None or self.dl_period_us is None:
            return None
        return Reservation(self.dl_runtime_us, self.dl_period_us)

    def guest(self) -> Machine:
        """The machine of a partition that is not READY; RequestError when it has just ended."""
        if self.machine is None:  # its end was not noticed yet
            raise RequestError("EIO", f"partition {self.id}: its guest has just ended")
        return self.machine

    def end_flood(self) -> None:
        """End the attack from outside, if there is one."""
        if self.flood is not None:
            self.flood.stop()
            self.flood = None
