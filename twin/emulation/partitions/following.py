"""What virsh does to the domains of an edge server, done to its partitions: define, undefine, start, create."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from twin.emulation.cgroups import CgroupError
from twin.emulation.partitions import deployment
from twin.emulation.partitions.cpu_time import CpuTime
from twin.emulation.partitions.libvirt import Domain, Libvirt
from twin.emulation.partitions.machines import Machines
from twin.emulation.partitions.partition import DEPLOYED, SUSPENDED, Partition
from twin.emulation.partitions.protocol import Request, RequestError, validated
from twin.emulation.partitions.registry import Registry


class Follower:
    """Looks at what ``libvirt`` has; ``carry_out`` does what a request asks, without another look."""

    def __init__(
        self,
        libvirt: Libvirt,
        registry: Registry,
        cpu_time: CpuTime,
        machines: Machines,
        carry_out: Callable[[Request], Awaitable[dict[str, Any]]],
    ) -> None:
        self._libvirt = libvirt
        self._registry = registry
        self._cpu_time = cpu_time
        self._machines = machines
        self._carry_out = carry_out
        self._lock = asyncio.Lock()
        self._complained: set[str] = set()

    async def follow(self) -> None:
        """Do here what virsh did there. Raises RequestError, CgroupError, OSError."""
        async with self._lock:
            domains = {one.name: one for one in await asyncio.to_thread(self._libvirt.domains)}
            for partition in list(self._registry.partitions.values()):
                if partition.name not in domains and partition.complete and not partition.lock.locked():
                    async with partition.lock, self._registry.lock:
                        if partition.machine is not None:
                            await partition.machine.kill()
                            self._machines.forget(partition)
                        await self._registry.release(partition)
            names = {one.name: one for one in self._registry.partitions.values()}
            for domain in domains.values():
                known = names.get(domain.name)
                if known is None:
                    await self._take_in(domain)
                elif domain.active and known.machine is None and known.complete and not known.lock.locked():
                    async with known.lock:
                        try:
                            await self._join(known)
                        except (RequestError, CgroupError) as error:
                            self._complain(f"partition {known.id}: {error}")

    async def _take_in(self, domain: Domain) -> None:
        """A domain that virsh defined, or created: READY or DEPLOYED, when the server has room for it."""
        fields = {"cores": domain.cores, "memory_mib": domain.memory_mib, "secure": domain.secure}
        try:
            request = validated("create-partition", {**fields, "name": domain.name})
            if domain.active:
                await asyncio.to_thread(self._libvirt.destroy, domain.name)
            number = (await self._carry_out(request))["id"]
            if domain.active:
                await self._carry_out(validated("deploy", {"id": number, "wait": False}))
        except RequestError as error:
            self._complain(f"libvirt domain {domain.name} is no partition: {error.desc}")

    async def _join(self, partition: Partition) -> None:
        """A partition whose domain virsh has started."""
        try:
            pid = await asyncio.to_thread(self._libvirt.pid, partition.name)
        except RequestError:  # it starts or ends at this moment; there will be another look
            return
        machine = await self._machines.attach(partition, pid)
        partition.machine, partition.pid, partition.ticks = machine, machine.pid, machine.ticks
        await self._cpu_time.isolate(partition, machine)
        partition.state = DEPLOYED if await machine.running() else SUSPENDED
        partition.note, partition.deployment = None, {**deployment.DEFAULT, "runtime": True}
        self._registry.save()

    def _complain(self, text: str) -> None:
        """Say something that nobody asked for, once."""
        if text not in self._complained:
            self._complained.add(text)
            print(f"vmand: {text}", file=sys.stderr, flush=True)
