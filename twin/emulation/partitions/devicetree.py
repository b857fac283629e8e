"""The device tree of a partition: what its guest may use of QEMU's ``virt`` machine, and nothing else.

QEMU's own tree describes 32 virtio slots, PCIe, flash, GPIO and more; a guest probes each, which costs
it boot time under emulation. Ours has the processors, the interrupt controller, the timer, the serial
console and the virtio slots in use, at the addresses of ``hw/arm/virt.c``. QEMU itself adds the
command line, the initramfs and PSCI. Format: Devicetree Specification v0.4 §5, version 17.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

MEMORY_START = 0x4000_0000
VIRTIO_SLOTS = 32
MAX_CORES = 8
"""Processors of a GICv2 machine."""
MAX_BLOB_BYTES = 1_000_000
_UART, _VIRTIO, _GIC_DISTRIBUTOR, _GIC_CPU = 0x0900_0000, 0x0A00_0000, 0x0800_0000, 0x0801_0000
_GIC, _CLOCK, _FIRST_CPU = 1, 2, 16  # phandles
_SHARED, _PRIVATE, _EDGE_RISING, _LEVEL_HIGH = 0, 1, 1, 4
_MAGIC = 0xD00DFEED

Node = Mapping[str, Any]


def partition_tree(cores: int, memory_mib: int, slots: int, *, rng_seed: bytes, cpu: str = "cortex-a53") -> Node:
    """Nodes (mappings) and properties (bytes, text, lists of 32-bit cells; None: empty) of a partition.

    ``slots`` virtio-mmio transports are described from the first on; ``rng_seed`` saves the guest the wait
    for entropy. Raises ValueError for sizes that the machine does not have.
    """
    for name, value, most in (("cores", cores, MAX_CORES), ("slots", slots, VIRTIO_SLOTS)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be in [1, {most}], got {value}")
    level = ((1 << cores) - 1) << 8 | _LEVEL_HIGH  # a GICv2 names the processors that get a private interrupt
    timer = [cell for number in (13, 14, 11, 10) for cell in (_PRIVATE, number, level)]
    root: dict[str, Any] = {
        "interrupt-parent": [_GIC],
        "model": "linux,dummy-virt",
        "#size-cells": [2],
        "#address-cells": [2],
        "compatible": "linux,dummy-virt",
        "chosen": {"stdout-path": f"/pl011@{_UART:x}", "rng-seed": rng_seed},
        f"memory@{MEMORY_START:x}": {"device_type": "memory", "reg": _region(MEMORY_START, memory_mib << 20)},
        "cpus": {"#size-cells": [0], "#address-cells": [1]}
        | {
            f"cpu@{number:x}": {
                "phandle": [_FIRST_CPU + number],
                "reg": [number],
                "compatible": f"arm,{cpu}",
                "device_type": "cpu",
                **({"enable-method": "psci"} if cores > 1 else {}),
            }
            for number in range(cores)
        },
        f"intc@{_GIC_DISTRIBUTOR:x}": {
            "phandle": [_GIC],
            "reg": _region(_GIC_DISTRIBUTOR, 0x10000) + _region(_GIC_CPU, 0x10000),
            "compatible": "arm,cortex-a15-gic",
            "#size-cells": [2],
            "#address-cells": [2],
            "interrupt-controller": None,
            "#interrupt-cells": [3],
        },
        "timer": {"interrupts": timer, "always-on": None, "compatible": ["arm,armv8-timer", "arm,armv7-timer"]},
        "apb-pclk": {
            "phandle": [_CLOCK],
            "clock-output-names": "clk24mhz",
            "clock-frequency": [24_000_000],
            "#clock-cells": [0],
            "compatible": "fixed-clock",
        },
        f"pl011@{_UART:x}": {
            "clock-names": ["uartclk", "apb_pclk"],
            "clocks": [_CLOCK, _CLOCK],
            "interrupts": [_SHARED, 1, _LEVEL_HIGH],
            "reg": _region(_UART, 0x1000),
            "compatible": ["arm,pl011", "arm,primecell"],
        },
    }
    for slot in range(slots):
        place = _VIRTIO + 0x200 * slot
        root[f"virtio_mmio@{place:x}"] = {
            "dma-coherent": None,
            "interrupts": [_SHARED, 16 + slot, _EDGE_RISING],
            "reg": _region(place, 0x200),
            "compatible": "virtio,mmio",
        }
    return root


def blob(root: Node) -> bytes:
    """A tree as a flattened device tree."""
    strings: dict[str, int] = {}
    names = bytearray()
    structure = bytearray()

    def add(name: str, node: Node) -> None:
        structure.extend(struct.pack(">I", 1) + _padded(name.encode() + b"\0"))
        for key, value in node.items():
            if isinstance(value, Mapping):
                continue
            if key not in strings:
                strings[key] = len(names)
                names.extend(key.encode() + b"\0")
            data = _encoded(value)
            structure.extend(struct.pack(">III", 3, len(data), strings[key]) + _padded(data))
        for key, value in node.items():  # properties precede subnodes
            if isinstance(value, Mapping):
                add(key, value)
        structure.extend(struct.pack(">I", 2))

    add("", root)
    structure.extend(struct.pack(">I", 9))
    start = 40 + 16  # header, then an empty list of reserved regions
    total = start + len(structure) + len(names)
    header = (_MAGIC, total, start, start + len(structure), 40, 17, 16, 0, len(names), len(structure))
    return struct.pack(">10I", *header) + bytes(16) + bytes(structure) + bytes(names)


def trimmed(data: bytes) -> bytes:
    """A blob without the room it may have after its last block. Raises ValueError when it is not a blob.

    QEMU writes blobs of 1 MiB and doubles what it loads; a kernel silently ends on more than 2 MiB.
    """
    if len(data) < 40:
        raise ValueError("shorter than its header")
    header = list(struct.unpack_from(">10I", data))
    magic, total, structure, strings, *_, strings_size, structure_size = header
    end = max(structure + structure_size, strings + strings_size)
    if magic != _MAGIC or not 40 <= end <= min(total, len(data)):
        raise ValueError("no header of version 17")
    if end > MAX_BLOB_BYTES:
        raise ValueError(f"more than {MAX_BLOB_BYTES} bytes")
    header[1] = end
    return struct.pack(">10I", *header) + data[40:end]


def _encoded(value: bytes | str | Sequence[int] | Sequence[str] | None) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode() + b"\0"
    return b"".join(one.encode() + b"\0" if isinstance(one, str) else struct.pack(">I", one) for one in value)


def _region(start: int, size: int) -> list[int]:
    return [start >> 32, start & 0xFFFF_FFFF, size >> 32, size & 0xFFFF_FFFF]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
