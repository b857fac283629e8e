"""Which cores, memory and addresses a new partition gets, or why it gets none."""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Mapping
from typing import Any

from twin.emulation.partitions.network import BRIDGE
from twin.emulation.partitions.partition import Partition
from twin.emulation.partitions.protocol import RequestError
from twin.emulation.partitions.registry import Registry


def unassigned(registry: Registry) -> tuple[list[int], int]:
    """The cores that no partition has, and the MiB of memory."""
    used = {cpu for one in registry.partitions.values() for cpu in one.cpus}
    free_mib = registry.server.memory_mib - sum(one.memory_mib for one in registry.partitions.values())
    return [cpu for cpu in range(registry.server.cores) if cpu not in used], free_mib


def admitted(registry: Registry, args: Mapping[str, Any]) -> Partition:
    """A partition with cores, memory and an address of its own; RequestError when the server has no more."""
    free_cpus, free_mib = unassigned(registry)
    cores, memory_mib = args["cores"], args["memory_mib"]
    for what, wanted, free, total, unit in (
        ("cores", cores, len(free_cpus), registry.server.cores, ""),
        ("memory", memory_mib, free_mib, registry.server.memory_mib, " MiB"),
    ):
        if wanted > total:
            raise RequestError("EINVAL", f"{what}: the edge server has {total}{unit}, got {wanted}{unit}")
        if wanted > free:
            kind = "EBUSY" if what == "cores" else "ENOMEM"
            raise RequestError(kind, f"{what}: {free} of {total}{unit} are free, got {wanted}{unit}")
    others = [one.address for one in registry.partitions.values()]
    address = args["address"] or registry.network.next_address(others)
    if ipaddress.IPv4Interface(address).ip in {ipaddress.IPv4Interface(one).ip for one in others}:
        raise RequestError("EEXIST", f"address {address} belongs to another partition")
    number = registry.next_id
    name = args["name"] or f"partition-{number}"
    if name in {one.name for one in registry.partitions.values()}:
        raise RequestError("EEXIST", f"a partition is called {name} already")
    digest = zlib.crc32(registry.run_id.encode())
    partition = Partition(
        id=number,
        name=name,
        cores=cores,
        cpus=free_cpus[:cores],
        memory_mib=memory_mib,
        critical=args["secure"],
        address=address,
        gateway=args["gateway"] or (None if args["address"] else registry.network.gateway),
        bridge=None if args["netns"] else args["bridge"] or BRIDGE,
        netns=args["netns"],
        isolated=args["isolated"],
        # libvirt makes its TAPs in the host's namespace, where several daemons meet
        tap=f"tap{number}" if registry.libvirt is None else f"tb{digest & 0xFFFF:04x}p{number}",
        mac=f"52:54:{digest & 255:02x}:{digest >> 8 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
    )
    if partition.bridge is not None and partition.bridge not in registry.network.bridges():
        names = ", ".join(registry.network.bridges())
        raise RequestError(
            "ENOENT", f"bridge must be one of {names} in namespace {registry.network.name}, got {partition.bridge}"
        )
    return partition
