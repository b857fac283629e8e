"""The vManager: carries out the commands on partitions, and takes them through their states.

States and transitions are those of NANCY D3.4 Figure 19: ``create-partition`` makes READY, ``deploy`` DEPLOYED,
``shutdown`` READY again, ``suspend`` SUSPENDED, ``restore`` DEPLOYED again; only a READY partition can be destroyed.

The guests outlive the daemon, and the next one takes them over.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twin.emulation import cgroups
from twin.emulation.cgroups import CgroupError
from twin.emulation.partitions import deployment, domains, info
from twin.emulation.partitions.admission import admitted
from twin.emulation.partitions.cpu_time import CpuTime
from twin.emulation.partitions.following import Follower
from twin.emulation.partitions.images import GuestImageError
from twin.emulation.partitions.machines import Machines
from twin.emulation.partitions.partition import DEPLOYED, READY, SUSPENDED, EdgeServer
from twin.emulation.partitions.protocol import Request, RequestError
from twin.emulation.partitions.registry import Registry
from twin.emulation.partitions.services import Services
from twin.journal import Journal, JournalError


class Manager:
    """Carries out requests. Several may run at once; those for the same partition wait for each other."""

    def __init__(self, server: EdgeServer, folder: Path, journal: Journal) -> None:
        self.registry = Registry(server, folder, journal)
        self.adopted = 0
        self.reported: Callable[[str, Mapping[str, Any]], None] | None = None
        """Called with the name of a partition and each metrics line of its VNF runtime."""
        self._cpu_time = CpuTime(server.critical, self.registry.partitions)
        self._machines = Machines(self.registry, self._cpu_time)
        self._services = Services(self.registry, self._machines)
        self._follower: Follower | None = None
        if self.registry.libvirt is not None:
            self._follower = Follower(
                self.registry.libvirt, self.registry, self._cpu_time, self._machines, self._carry_out
            )
        self._commands: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "create-partition": self._create,
            "deploy": self._deploy,
            "destroy-partition": self._destroy,
            "reboot": self._reboot,
            "shutdown": self._shutdown,
            "suspend": self._suspend,
            "restore": self._restore,
            "list": self._list,
            "info": self._info,
            "configure": self._services.configure,
            "limit": self._limit,
            "stream": self._services.stream,
            "attack": self._services.attack,
        }

    # --- life of the daemon ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the network, or take over what an earlier daemon left. Raises RequestError."""
        if self.registry.is_left:
            await self._take_over()
            return
        self.registry.journal.record("netns", name=self.registry.network.name)
        self.registry.network.remove()
        self.registry.network.create()
        self.registry.save()

    async def close(self) -> None:
        """End the daemon: guests go on; without any partition nothing is left on the host."""
        self._machines.drop_pending()
        registry = self.registry
        for partition in registry.partitions.values():
            if partition.flood is not None:
                partition.flood.leave()
            if partition.machine is not None:
                await partition.machine.detach()
        if not registry.partitions:
            registry.network.remove()
            shutil.rmtree(registry.folder, ignore_errors=True)
            registry.journal.done(*(entry.number for entry in registry.journal.entries))
        registry.journal.close()

    async def end(self) -> None:
        """End the server of a run with all its guests; journal and folder belong to the run."""
        self._machines.drop_pending()
        registry = self.registry
        for partition in list(registry.partitions.values()):
            async with partition.lock:
                if partition.machine is not None:
                    await partition.machine.kill()
                    self._machines.forget(partition)
                await registry.release(partition)
        registry.network.remove()
        entries = [one for one in registry.journal.entries if one.kind == "netns"]
        registry.journal.done(*(one.number for one in entries if one.ids["name"] == registry.network.name))

    async def handle(self, request: Request) -> dict[str, Any]:
        """Carry out one request; RequestError when it is refused or fails."""
        try:
            await self.follow_libvirt()
            return await self._carry_out(request)
        except (CgroupError, GuestImageError, JournalError) as error:
            raise RequestError("EIO", f"{request.command}: {error}") from None
        except OSError as error:
            # An error of writing names no file; those that a command writes are in the folder.
            name = error.filename or (self.registry.folder if error.errno == errno.ENOSPC else None)
            where = f"{name}: " if name else ""
            raise RequestError("EIO", f"{request.command}: {where}{error.strerror or error}") from None

    async def follow_libvirt(self) -> None:
        """Do here what virsh did there, when partitions are libvirt domains."""
        if self._follower is not None:
            await self._follower.follow()

    async def _carry_out(self, request: Request) -> dict[str, Any]:
        return await self._commands[request.command](request.args)

    async def _take_over(self) -> None:
        """What an earlier daemon left: guests that still run, and what it was just making or removing."""
        registry = self.registry
        registry.load()
        for partition in list(registry.partitions.values()):
            with suppress(CgroupError):
                partition.group = cgroups.Cgroup.adopt(registry.run_id, f"p{partition.id}", journal=registry.journal)
            with suppress(CgroupError):  # an attack does not outlive who started it for long
                cgroups.Cgroup.adopt(registry.run_id, f"attack-p{partition.id}", journal=registry.journal).remove()
            if not partition.complete:
                await registry.release(partition)
                continue
            if await self._machines.adopt(partition, self._services.greeted):
                self.adopted += 1
        registry.save()

    # --- from state to state --------------------------------------------------------------------------

    async def _create(self, args: Mapping[str, Any]) -> dict[str, Any]:
        registry = self.registry
        async with registry.lock:
            partition = admitted(registry, args)
            registry.partitions[partition.id] = partition
            registry.next_id += 1
            try:
                registry.save()
                await asyncio.to_thread(registry.equip, partition)
                if registry.libvirt is not None:
                    registry.journal.record("domain", name=partition.name, uri=registry.libvirt.uri)
                    await asyncio.to_thread(domains.define, registry, partition, deployment.DEFAULT)
                partition.complete = True
                registry.save()
            except BaseException:
                partition.complete = False
                await registry.release(partition)
                raise
        return {"id": partition.id}

    async def _destroy(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock, self.registry.lock:
            self.registry.require(partition, "destroyed", READY)
            partition.complete = False
            self.registry.save()
            await self.registry.release(partition)
        return {"id": partition.id}

    async def _deploy(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock:
            self.registry.require(partition, "deployed", READY)
            machine, runtime = await self._machines.start(partition, args)
            partition.machine, partition.pid, partition.ticks = machine, machine.pid, machine.ticks
            if self.reported is not None:
                machine.reported = functools.partial(self.reported, partition.name)
            try:
                self.registry.save()
                await self._cpu_time.isolate(partition, machine)
                machine.greeted = self._services.greeted if args["stream"] else None
                await machine.proceed()
                partition.state, partition.note = DEPLOYED, None
                partition.deployment = {
                    key: value for key, value in args.items() if key not in ("id", "wait", "timeout_s")
                }
                partition.deployment["runtime"] = runtime
                self.registry.save()
            except BaseException:
                await machine.kill()
                self._machines.forget(partition)
                self.registry.save()
                raise
        if args["wait"]:
            await self._machines.booted(partition, machine, args["timeout_s"])
        return {"id": partition.id}

    async def _reboot(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock:
            self.registry.require(partition, "rebooted", DEPLOYED)
            machine = partition.guest()
            await machine.reset()
        if args["wait"] and partition.deployment and partition.deployment["runtime"]:
            await self._machines.booted(partition, machine, args["timeout_s"])
        return {"id": partition.id}

    async def _shutdown(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock:
            self.registry.require(partition, "shut down", DEPLOYED)
            await partition.guest().kill()
            self._machines.forget(partition)
            self.registry.save()
        return {"id": partition.id}

    async def _suspend(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock:
            self.registry.require(partition, "suspended", DEPLOYED)
            await partition.guest().stop()
            partition.state, partition.stopped_ns = SUSPENDED, time.monotonic_ns()
            self.registry.save()
        return {"id": partition.id}

    async def _restore(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock:
            self.registry.require(partition, "restored", SUSPENDED)
            machine = partition.guest()
            if partition.clock is not None and partition.stopped_ns is not None:
                # Waits in the machine until it runs: packets of the first moment have the right time too.
                stood_ns = time.monotonic_ns() - partition.stopped_ns
                self._machines.later(machine.configure("clock", str(partition.clock.offset_ns + stood_ns)))
                await asyncio.sleep(0)
            await machine.proceed()
            partition.state, partition.stopped_ns = DEPLOYED, None
            if partition.clock is not None:
                self._machines.later(self._services.set_clock(partition, machine))
            self.registry.save()
        return {"id": partition.id}

    # --- limits and questions -------------------------------------------------------------------------

    async def _limit(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self.registry.find(args)
        async with partition.lock:
            await self._cpu_time.limit(partition, args)
            self.registry.save()
        return {"id": partition.id}

    async def _list(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        return {"partitions": [info.in_brief(one) for one in self.registry.partitions.values() if one.complete]}

    async def _info(self, args: Mapping[str, Any]) -> dict[str, Any]:
        if args["id"] is None:
            return info.about_server(self.registry, self.adopted)
        return await info.about(self.registry.find(args), self.registry)
