"""A partition as a libvirt domain: defined, joined once libvirt has started it, and shared with virsh from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twin.emulation.partitions.deployment import hardware
from twin.emulation.partitions.libvirt import domain_xml
from twin.emulation.partitions.machine import Machine
from twin.emulation.partitions.partition import DEPLOYED, READY, SUSPENDED, Partition
from twin.emulation.partitions.protocol import RequestError
from twin.emulation.partitions.registry import Registry
from twin.journal import start_ticks


def define(registry: Registry, partition: Partition, args: Mapping[str, Any]) -> bool:
    """Define the domain for these arguments of ``deploy``; whether our VNF runtime will answer in it."""
    libvirt, name = registry.libvirt, partition.name
    assert libvirt is not None
    made, runtime = hardware(registry, partition, args)
    uuid = {one.name: one.uuid for one in libvirt.domains()}.get(name)
    place, secure = registry.place(partition), partition.critical
    libvirt.define(domain_xml(name, uuid, registry.server.name, secure=secure, hardware=made, place=place))
    return runtime


async def attach(registry: Registry, partition: Partition, pid: int, ended: Callable[[Machine, str], None]) -> Machine:
    """The machine that libvirt has started, on the partition's bridge and in its control group."""
    label, ticks = str(partition.id), start_ticks(pid)
    place = registry.place(partition)
    machine = await Machine.adopt(label, place, pid, -1 if ticks is None else ticks, ended)
    if machine is None:
        raise RequestError("EIO", f"partition {partition.id}: libvirt's QEMU has ended")
    share(registry, partition, machine)
    assert partition.bridge is not None  # the protocol has no netns for domains
    await asyncio.to_thread(registry.network.take_tap, partition.tap, partition.bridge)
    assert partition.group is not None
    partition.group.add(pid)
    return machine


def share(registry: Registry, partition: Partition, machine: Machine) -> None:
    """From now on virsh may stop, continue and end this machine as well."""
    libvirt = registry.libvirt
    assert libvirt is not None

    async def stop() -> None:
        with suppress(RequestError):  # it has ended
            await asyncio.to_thread(libvirt.destroy, partition.name)

    def switched(machine: Machine, running: bool) -> None:
        if partition.machine is machine and partition.state != READY:
            partition.state = DEPLOYED if running else SUSPENDED
            registry.save()

    machine.stopper = stop
    machine.switched = switched
