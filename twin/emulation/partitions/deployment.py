"""What ``deploy`` asks for, as the hardware of a machine: kernel, root file system, device tree and command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twin.emulation.partitions import devicetree
from twin.emulation.partitions.images import load
from twin.emulation.partitions.machine import KERNEL_OPTIONS, Hardware
from twin.emulation.partitions.partition import Partition
from twin.emulation.partitions.protocol import COMMANDS, RequestError
from twin.emulation.partitions.registry import Registry

RUNTIME_KEYS = ("relay", "load", "metrics_ms")
"""Settings of the VNF runtime that ``configure`` changes too."""
DEFAULT = {one.name: one.default for one in COMMANDS["deploy"].fields if one.name != "id"}
"""The arguments of ``deploy`` when nothing is said."""


def hardware(registry: Registry, partition: Partition, args: Mapping[str, Any]) -> tuple[Hardware, bool]:
    """The machine to start, and whether our VNF runtime will answer in it."""
    rootfs = _file(args["rootfs"], "rootfs")
    kind = None if rootfs is None else _root_kind(rootfs)
    kernel = _file(args["kernel"], "kernel")
    image = None if kernel and kind == "initramfs" else load(registry.server.image)
    if kernel is not None:
        _check_kernel(kernel)
    elif image is not None:
        kernel = image.kernel
    initramfs = rootfs if kind == "initramfs" else image.initramfs if image else None
    dtb = _file(args["dtb"], "dtb")
    # libvirt has its own way of filling slots
    slots = devicetree.VIRTIO_SLOTS if registry.libvirt is not None else 3 if kind == "disk" else 2
    try:
        if dtb is not None:
            tree = devicetree.trimmed(dtb.read_bytes())
        else:
            cores, memory_mib = partition.cores, partition.memory_mib
            tree = devicetree.blob(devicetree.partition_tree(cores, memory_mib, slots, rng_seed=os.urandom(32)))
    except ValueError as error:
        raise RequestError(
            "EINVAL", f"dtb must be a device tree blob (dtc -O dtb makes one), got {dtb}: {error}"
        ) from None
    dtb = registry.place(partition).folder / "partition.dtb"
    dtb.write_bytes(tree)
    settings = {
        "name": partition.name,
        "ip": partition.address,
        "gateway": partition.gateway,
        "root": "/dev/vda" if kind == "disk" else None,
        "http": args["http_port"],
        "echo": args["echo_port"] or None,
        **{key: args[key] for key in RUNTIME_KEYS},
    }
    ours = [f"twinbed.{key}={value}" for key, value in settings.items() if value is not None]
    cmdline = " ".join([KERNEL_OPTIONS, *ours, *([args["cmdline"]] if args["cmdline"] else [])])
    if len(cmdline) > 2047:  # COMMAND_LINE_SIZE of arm64
        raise RequestError("EINVAL", f"kernel command line: at most 2047 characters, got {len(cmdline)}")
    assert kernel is not None
    disk = rootfs if kind == "disk" else None
    machine = Hardware(
        partition.cores,
        partition.memory_mib,
        partition.tap,
        partition.mac,
        kernel.resolve(),
        initramfs,
        dtb,
        disk,
        cmdline,
    )
    return machine, rootfs is None


def _file(name: str | None, what: str) -> Path | None:
    if name is None:
        return None
    path = Path(name).absolute()
    if not path.exists():
        raise RequestError("ENOENT", f"{what} {path}: no such file")
    if not path.is_file():
        raise RequestError(
            "EINVAL", f"{what} must be a file, got {path}, {'a folder' if path.is_dir() else 'a device'}"
        )
    if not os.access(path, os.R_OK):
        raise RequestError("EACCES", f"{what} {path}: cannot be read: permission denied")
    return path


def _check_kernel(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64)
    arm64 = head[56:60] == b"ARM\x64" or head.startswith(b"\x1f\x8b") or head[:20][18:20] == b"\xb7\x00"
    if not arm64:
        raise RequestError("EINVAL", f"kernel must be an arm64 Image, gzip of one, or aarch64 ELF file, got {path}")


def _root_kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(0x43A)
    if head.startswith((b"07070", b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh", b"\x02\x21\x4c\x18")):
        return "initramfs"
    if head[0x438:0x43A] == b"\x53\xef":
        return "disk"
    raise RequestError("EINVAL", f"rootfs must be a cpio archive (compressed or not) or an ext4 disk image, got {path}")
