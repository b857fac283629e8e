"""What a running guest is told: the load it runs, the streams it serves, and attacks on it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from twin.emulation.partitions import streaming
from twin.emulation.partitions.attack import Flood
from twin.emulation.partitions.deployment import RUNTIME_KEYS
from twin.emulation.partitions.machine import Machine
from twin.emulation.partitions.machines import Machines
from twin.emulation.partitions.partition import DEPLOYED, Partition
from twin.emulation.partitions.registry import Registry


class Services:
    """Carries out ``configure``, ``stream`` and ``attack``, and keeps the clocks of stream servers."""

    def __init__(self, registry: Registry, machines: Machines) -> None:
        self._registry = registry
        self._machines = machines

    def greeted(self, machine: Machine) -> None:
        """The runtime of a partition that streams has started, perhaps anew."""

        async def serve(partition: Partition) -> None:
            await self.set_clock(partition, machine)
            await machine.configure("stream", "go")

        partition = self._registry.partition_of(machine)
        if partition is not None:
            self._machines.later(serve(partition))

    async def set_clock(self, partition: Partition, machine: Machine) -> None:
        """Tell the guest the host's time. Raises RequestError."""
        partition.clock = await streaming.set_clock(machine)

    async def stream(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out ``stream``. Raises RequestError."""
        partition = self._registry.find(args)
        async with partition.lock:
            self._registry.require(partition, "asked to stream", DEPLOYED)
            machine, action = partition.guest(), args["action"]
            found: dict[str, Any] = {"id": partition.id}
            if action == "adopt":
                await streaming.adopt(machine, args["flows"])
            elif action == "release":
                found["flows"] = await streaming.release(machine, args["at_ns"], args["addresses"])
            elif action == "flows":
                found["flows"] = await streaming.flows(machine)
            else:
                if partition.clock is None and action != "off":
                    await self.set_clock(partition, machine)
                addresses = ",".join(args["addresses"] or ())
                await machine.configure("stream", f"{action} {addresses}".strip())
        return found

    async def attack(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out ``attack``. Raises RequestError."""
        partition = self._registry.find(args)
        async with partition.lock:
            self._registry.require(partition, "attacked", DEPLOYED)
            kind, seconds = args["kind"], args["seconds"]
            partition.end_flood()
            inner = f"{kind}:{math.ceil(seconds)}" if kind in ("cpu", "memory") else "none"
            await partition.guest().configure("attack", inner)
            if kind == "network":
                partition.flood = await asyncio.to_thread(
                    Flood.start,
                    f"p{partition.id}",
                    partition.address,
                    self._registry.place(partition).netns,
                    self._registry.journal,
                    rate_pps=args["rate_pps"],
                    payload_bytes=args["payload_bytes"],
                    seconds=seconds,
                )
        return {"id": partition.id}

    async def configure(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out ``configure``. Raises RequestError."""
        partition = self._registry.find(args)
        async with partition.lock:
            self._registry.require(partition, "configured", DEPLOYED)
            for key in RUNTIME_KEYS:
                if args[key] is not None:
                    await partition.guest().configure(key, str(args[key]))
                    assert partition.deployment is not None
                    partition.deployment[key] = args[key]
            self._registry.save()
        return {"id": partition.id}
