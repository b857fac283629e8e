"""What ``list`` and ``info`` answer."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from twin.emulation.partitions.admission import unassigned
from twin.emulation.partitions.machine import PROGRAM
from twin.emulation.partitions.network import BRIDGE
from twin.emulation.partitions.partition import Partition
from twin.emulation.partitions.protocol import RequestError
from twin.emulation.partitions.registry import Registry


def in_brief(partition: Partition) -> dict[str, Any]:
    """A partition's row of the list."""
    names = ("id", "name", "state", "cores", "cpus", "memory_mib", "address", "isolation", "note")
    return {name: getattr(partition, name) for name in names} | {"secure": partition.critical}


def about_server(registry: Registry, adopted: int) -> dict[str, Any]:
    """The edge server; ``adopted``: guests that this daemon took over."""
    server, network = registry.server, registry.network
    free_cpus, free_mib = unassigned(registry)
    return {
        "name": server.name,
        "pid": os.getpid(),
        "cores": server.cores,
        "free_cores": len(free_cpus),
        "memory_mib": server.memory_mib,
        "free_memory_mib": free_mib,
        "critical": server.critical,
        "netns": network.name,
        "bridge": BRIDGE,
        "address": f"{network.gateway}/{server.subnet.prefixlen}",
        "folder": str(registry.folder),
        "adopted": adopted,
        "qemu": shutil.which(PROGRAM),
    }


async def about(partition: Partition, registry: Registry) -> dict[str, Any]:
    """All of a partition, with what its guest uses and says now."""
    found = in_brief(partition) | {
        "gateway": partition.gateway,
        "netns": partition.netns or registry.network.name,
        "bridge": partition.bridge,
        "isolated": partition.isolated,
        "tap": partition.tap,
        "mac": partition.mac,
        "cpu_millicores": partition.cpu_millicores,
        "dl_runtime_us": partition.dl_runtime_us,
        "dl_period_us": partition.dl_period_us,
        "deployment": partition.deployment,
        "qemu_pid": partition.pid,
    }
    if partition.group is not None:
        stats = partition.group.stats()
        found |= {"cpu_used_s": stats.cpu_used_s, "memory_used_mib": stats.memory_used_bytes / (1 << 20)}
    machine = partition.machine
    if machine is not None:
        found["booted"] = machine.hello is not None
        found["guest_resets"] = machine.guest_resets
        found["metrics"] = machine.metrics
        found["flood"] = partition.flood is not None and partition.flood.running
        found["clock"] = None if partition.clock is None else asdict(partition.clock)
        found["vcpu_threads"] = []
        found["console"] = await machine.console_tail()
        with suppress(RequestError):  # it is ending at this moment
            found["vcpu_threads"] = await machine.vcpu_threads()
    return found
