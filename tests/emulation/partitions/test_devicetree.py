"""The generated device tree says of the machine what QEMU itself says."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from twin.emulation.partitions.devicetree import MAX_CORES, blob, partition_tree, trimmed

# Numbers of nodes are each tree's own; rng-seed is random; the clock node has another phandle.
_OWN = {"phandle", "interrupt-parent", "clocks", "rng-seed", "kaslr-seed", "ranges", "cpu-map"}


def parsed(data: bytes) -> dict[str, Any]:
    """A blob as nested mappings of bytes (Devicetree Specification §5)."""
    magic, total, structure, strings, *_ = struct.unpack_from(">10I", data)
    assert magic == 0xD00DFEED
    assert total <= len(data)
    place = structure
    stack: list[dict[str, Any]] = [{}]
    while True:
        (token,) = struct.unpack_from(">I", data, place)
        place += 4
        if token == 1:
            end = data.index(b"\0", place)
            name, place = data[place:end].decode(), (end + 4) & ~3
            stack[-1][name] = child = {}
            stack.append(child)
        elif token == 2:
            stack.pop()
        elif token == 3:
            length, offset = struct.unpack_from(">II", data, place)
            name = data[strings + offset : data.index(b"\0", strings + offset)].decode()
            stack[-1][name] = data[place + 8 : place + 8 + length]
            place = (place + 8 + length + 3) & ~3
        elif token == 9:
            return stack[0][""]


def agree(ours: dict[str, Any], theirs: dict[str, Any], where: str) -> int:
    """Compare every property that we state; how many."""
    count = 0
    for key, value in ours.items():
        if key in _OWN:
            continue
        assert key in theirs, f"QEMU has no {where}/{key}"
        if isinstance(value, dict):
            count += agree(value, theirs[key], f"{where}/{key}")
        else:
            assert value == theirs[key], f"{where}/{key}"
            count += 1
    return count


@pytest.mark.parametrize(("cores", "memory_mib"), [(1, 128), (2, 256), (8, 64)])
def test_agrees_with_the_machine(tmp_path: Path, cores: int, memory_mib: int) -> None:
    if not shutil.which("qemu-system-aarch64"):
        pytest.skip("qemu-system-aarch64 is not installed")
    path = tmp_path / "virt.dtb"
    machine = f"virt,gic-version=2,highmem=off,dumpdtb={path}"
    size = ["-smp", str(cores), "-m", str(memory_mib)]
    command = ["qemu-system-aarch64", "-M", machine, "-cpu", "cortex-a53", "-display", "none", "-nodefaults", *size]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    ours = parsed(blob(partition_tree(cores, memory_mib, 3, rng_seed=bytes(32))))
    assert agree(ours, parsed(path.read_bytes()), "") > 30 + 4 * cores
    assert len(ours["cpus"]) == cores + 2
    assert sum(name.startswith("virtio_mmio") for name in ours) == 3


def test_compiler_accepts_it() -> None:
    if not shutil.which("dtc"):
        pytest.skip("dtc is not installed")
    data = blob(partition_tree(4, 512, 2, rng_seed=b"s" * 32))
    done = subprocess.run(["dtc", "-q", "-I", "dtb", "-O", "dts", "-"], input=data, capture_output=True, check=True)
    assert b'compatible = "arm,cortex-a53"' in done.stdout


@pytest.mark.parametrize(("cores", "slots"), [(0, 1), (MAX_CORES + 1, 1), (1, 0), (1, 33)])
def test_sizes_that_the_machine_does_not_have(cores: int, slots: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        partition_tree(cores, 128, slots, rng_seed=bytes(32))


def test_trimmed() -> None:
    data = blob(partition_tree(1, 128, 2, rng_seed=bytes(32)))
    roomy = data[:4] + struct.pack(">I", 1 << 20) + data[8:] + bytes((1 << 20) - len(data))
    assert trimmed(roomy) == trimmed(data) == data


@pytest.mark.parametrize("data", [b"", bytes(100), b"\xd0\x0d\xfe\xed" + b"\xff" * 36])
def test_not_a_blob(data: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        trimmed(data)
