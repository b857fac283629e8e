"""The partitions of an edge server: which there are, and what each has on the host besides its guest.

Whatever is made on the host is written down before and after, in ``state.json`` for the next daemon and in the
journal for ``twin gc``.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twin.emulation import cgroups
from twin.emulation.partitions import isolation, state
from twin.emulation.partitions.libvirt import Libvirt
from twin.emulation.partitions.machine import OVERHEAD_MIB, Machine, Place
from twin.emulation.partitions.network import PartitionNetwork
from twin.emulation.partitions.partition import EdgeServer, Partition
from twin.emulation.partitions.protocol import RequestError
from twin.journal import Journal


class Registry:
    """All partitions by number. ``lock`` is held by whoever changes who has which cores, memory and addresses."""

    def __init__(self, server: EdgeServer, folder: Path, journal: Journal) -> None:
        self.server = server
        self.folder = folder
        self.journal = journal
        self.run_id = journal.run_id
        self.network = PartitionNetwork(self.run_id, server.subnet)
        self.libvirt = None if server.libvirt is None else Libvirt(server.libvirt, server.name)
        self.partitions: dict[int, Partition] = {}
        self.next_id = 1
        self.lock = asyncio.Lock()

    # --- which there are ------------------------------------------------------------------------------

    def find(self, args: Mapping[str, Any]) -> Partition:
        """The partition that a request names; RequestError when there is none."""
        partition = self.partitions.get(args["id"])
        if partition is None or not partition.complete:
            known = ", ".join(str(one.id) for one in self.partitions.values() if one.complete) or "none"
            raise RequestError("ENOENT", f"no partition {args['id']}; there are {known}")
        return partition

    def named(self, name: str) -> Partition:
        """The partition of this name; KeyError when there is none."""
        return {one.name: one for one in self.partitions.values()}[name]

    def partition_of(self, machine: Machine) -> Partition | None:
        """The partition that has this machine; None when it has let go of it."""
        return next((one for one in self.partitions.values() if one.machine is machine), None)

    def require(self, partition: Partition, what: str, *states: str) -> None:
        """RequestError unless the partition is there and in one of these states."""
        if partition.id not in self.partitions:  # destroyed while this request waited
            raise RequestError("ENOENT", f"no partition {partition.id}")
        if partition.state not in states:
            text = f"partition {partition.id} is {partition.state}; only a {' or '.join(states)} one can be {what}"
            raise RequestError("EPERM", text, state=partition.state, required=list(states))

    # --- written down ---------------------------------------------------------------------------------

    @property
    def is_left(self) -> bool:
        """Whether an earlier daemon left its partitions."""
        return (self.folder / state.NAME).exists()

    def load(self) -> None:
        """Know again what an earlier daemon wrote down. Raises RequestError."""
        try:
            self.next_id, partitions = state.read(self.folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"cannot take over the partitions of {self.run_id}: {self.folder / state.NAME}: {error}"
            raise RequestError("EIO", f"{text}; remove them with: twin destroy {self.run_id}") from None
        if not self.network.exists():
            raise RequestError("EIO", f"network namespace {self.network.name} is gone; twin destroy {self.run_id}")
        self.partitions.update({one.id: one for one in partitions})

    def save(self) -> None:
        """Write down all partitions as they are. Raises RequestError."""
        try:
            state.write(self.folder, self.server, self.next_id, self.partitions.values())
        except OSError as error:
            raise RequestError("EIO", f"state folder {self.folder} cannot be written: {error.strerror}") from None

    # --- what they have on the host -------------------------------------------------------------------

    def place(self, partition: Partition) -> Place:
        """Where the machine of a partition runs."""
        members = [] if partition.group is None else partition.group.members()
        return Place(self.folder / f"p{partition.id}", self.network_of(partition).path, members)

    def network_of(self, partition: Partition) -> PartitionNetwork:
        """The network namespace that has its TAP."""
        if partition.netns is None:
            return self.network
        return PartitionNetwork(partition.netns, self.server.subnet, Path(partition.netns))

    def equip(self, partition: Partition) -> None:
        """Make its folder, TAP and control group."""
        self.place(partition).folder.mkdir(exist_ok=True)
        if self.libvirt is None:
            self.network_of(partition).add_tap(partition.tap, partition.bridge)
        partition.group = cgroups.Cgroup.create(
            self.run_id,
            f"p{partition.id}",
            # A critical partition has no ceiling: its share is kept for it by other means.
            cpu_millicores=1000 * partition.cores if partition.isolated and not partition.critical else None,
            memory_mib=partition.memory_mib + OVERHEAD_MIB if partition.isolated else None,
            journal=self.journal,
        )
        if not partition.isolated:
            return
        weight = isolation.CRITICAL_WEIGHT if partition.critical else isolation.WEIGHT
        partition.group.set_weight(min(10_000, weight * partition.cores))

    async def release(self, partition: Partition) -> None:
        """Remove what a partition has on the host, as far as it got."""
        if self.libvirt is not None:
            with suppress(RequestError):  # virsh undefine was first
                await asyncio.to_thread(self.libvirt.undefine, partition.name)
            entries = [one for one in self.journal.entries if one.kind == "domain"]
            self.journal.done(*(one.number for one in entries if one.ids["name"] == partition.name))
        if partition.group is not None:
            await asyncio.to_thread(partition.group.remove)
        await asyncio.to_thread(self.network_of(partition).remove_tap, partition.tap)
        shutil.rmtree(self.place(partition).folder, ignore_errors=True)
        self.partitions.pop(partition.id, None)
        self.save()
