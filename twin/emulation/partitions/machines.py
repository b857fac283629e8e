"""The guests of partitions, from their start to their end: started, taken over, waited for while they boot, ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from twin.emulation.partitions import domains
from twin.emulation.partitions.cpu_time import CpuTime
from twin.emulation.partitions.deployment import hardware
from twin.emulation.partitions.machine import Machine
from twin.emulation.partitions.partition import DEPLOYED, READY, SUSPENDED, Partition
from twin.emulation.partitions.protocol import RequestError
from twin.emulation.partitions.registry import Registry

_BOOT_POLL_S = 0.05


class Machines:
    """Starts and ends them, and notices when one ends by itself."""

    def __init__(self, registry: Registry, cpu_time: CpuTime) -> None:
        self._registry = registry
        self._cpu_time = cpu_time
        self._pending: set[asyncio.Task[Any]] = set()

    async def start(self, partition: Partition, args: Mapping[str, Any]) -> tuple[Machine, bool]:
        """A new machine, and whether our VNF runtime will answer in it."""
        registry = self._registry
        if registry.libvirt is not None:
            runtime = await asyncio.to_thread(domains.define, registry, partition, args)
            pid = await asyncio.to_thread(registry.libvirt.start, partition.name)
            return await self.attach(partition, pid), runtime
        made, runtime = await asyncio.to_thread(hardware, registry, partition, args)
        return await Machine.start(str(partition.id), made, registry.place(partition), self._ended), runtime

    async def attach(self, partition: Partition, pid: int) -> Machine:
        """The machine that libvirt has started."""
        return await domains.attach(self._registry, partition, pid, self._ended)

    async def adopt(self, partition: Partition, greeted: Callable[[Machine], None]) -> bool:
        """Take over what an earlier daemon started, or make the partition READY; whether its guest runs.

        ``greeted`` is for the guest's stream server.
        """
        if partition.pid is not None and partition.ticks is not None:
            label, place = str(partition.id), self._registry.place(partition)
            machine = await Machine.adopt(label, place, partition.pid, partition.ticks, self._ended)
            if machine is not None and partition.state != READY:
                partition.machine = machine
                if self._registry.libvirt is not None:
                    domains.share(self._registry, partition, machine)
                # The daemon may have died between QEMU's answer and its own note of it.
                partition.state = DEPLOYED if await machine.running() else SUSPENDED
                if partition.deployment and partition.deployment.get("stream"):
                    machine.greeted = greeted
                    greeted(machine)
                return True
            if machine is not None:
                await machine.kill()
            partition.befell("ended while no vmand was running")
        if partition.group is not None:
            for pid in partition.group.pids():  # started, and not written down before the daemon died
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
        self.forget(partition)
        return False

    async def booted(self, partition: Partition, machine: Machine, timeout_s: float) -> None:
        """Wait until the guest runs. One that does not is ended; RequestError with the end of its console."""
        loop = asyncio.get_running_loop()
        deadline, resets = loop.time() + timeout_s, machine.guest_resets
        runtime = bool(partition.deployment and partition.deployment["runtime"])
        while True:
            machine.news.clear()
            if machine.killed:
                raise RequestError("EBUSY", f"partition {partition.id} was shut down while it booted")
            if machine.end_reason is not None:
                reason, kind = machine.end_reason, "EIO"
                break
            if machine.guest_resets > resets:
                reason, kind = "its kernel stopped and started again", "EIO"
                break
            if machine.hello is not None:
                return
            # Somebody else's system says nothing on our channel, but hardly starts without sending a frame.
            network = self._registry.network_of(partition)
            if not runtime and await asyncio.to_thread(network.frames_from_guest, partition.tap) > 0:
                return
            if loop.time() > deadline:
                if partition.state == SUSPENDED:
                    return  # it cannot boot now, and is not to blame
                reason, kind = f"not within {timeout_s:g} s", "ETIMEDOUT"
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(machine.news.wait(), _BOOT_POLL_S if not runtime else 0.5)
        console = await self._end(partition, machine, f"did not boot: {reason}")
        lines = [line.strip() for line in console.splitlines() if line.strip()]
        panics = [line for line in lines if "Kernel panic" in line]
        said = f"the console says: {[*panics[:1], *lines[-1:]][0]}" if lines else "nothing on the console"
        raise RequestError(kind, f"partition {partition.id} did not boot: {reason}; {said}", console=console)

    def forget(self, partition: Partition) -> None:
        """READY again, with its cores and memory."""
        partition.machine = partition.pid = partition.ticks = partition.deployment = partition.isolation = None
        partition.state = READY
        partition.clock = partition.stopped_ns = None
        partition.end_flood()
        if partition.pinned:
            partition.pinned = []
            self._cpu_time.repin()

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do this beside what is asked of us; a machine that ends meanwhile is told of elsewhere."""

        async def body() -> None:
            with suppress(RequestError):
                await work

        task = asyncio.create_task(body())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def drop_pending(self) -> None:
        """Do no more of what was for later."""
        for task in list(self._pending):
            task.cancel()

    def _ended(self, machine: Machine, reason: str) -> None:
        """Called by a machine whose guest or QEMU ended by itself."""
        partition = self._registry.partition_of(machine)
        if partition is not None:
            self.later(self._end(partition, machine, reason))

    async def _end(self, partition: Partition, machine: Machine, reason: str) -> str:
        """End this guest, if it still is the partition's; the end of its console."""
        async with partition.lock:
            if partition.machine is machine:
                machine.last_console = await machine.console_tail()
                await machine.kill()
                self.forget(partition)
                partition.befell(reason)
                self._registry.save()
            return machine.last_console
