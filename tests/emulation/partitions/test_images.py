"""The guest image: built twice, the same bytes; found, or missed with one line."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from twin.emulation.partitions.images import GuestImageError, load

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """``qemu-images/build.py``, which is a program and no package."""
    spec = importlib.util.spec_from_file_location("guest_image_build", ROOT / "qemu-images" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.emulation
def test_two_builds_are_the_same_bytes(guest_image: Path, tmp_path: Path) -> None:
    # As a user without root would: another folder, another time, another cache.
    command = [sys.executable, ROOT / "qemu-images" / "build.py", "--out", tmp_path / "again"]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin:/usr/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "apt" in done.stderr:
        pytest.skip(f"no package source: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    ours, built = load(guest_image), load(tmp_path / "again")
    if ours.packages != built.packages:  # Debian has a newer kernel since that image was made
        pytest.skip(f"{built.packages} since {ours.packages}")
    assert hashes(tmp_path / "again") == hashes(guest_image)
    foreign = subprocess.run(["dpkg", "--print-foreign-architectures"], capture_output=True, text=True, check=True)
    assert "arm64" not in foreign.stdout


def package(folder: Path, files: dict[str, bytes]) -> Path:
    """A Debian package with these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w:gz") as tar:
        text = b"Package: k\nVersion: 1\nArchitecture: arm64\nMaintainer: t\nDescription: t\n"
        info = tarfile.TarInfo("./control")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    archive = bytearray(b"!<arch>\n")
    members = {"debian-binary": b"2.0\n", "control.tar.gz": control.getvalue(), "data.tar.gz": data.getvalue()}
    for name, content in members.items():
        archive += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    path = folder / "k.deb"
    path.write_bytes(archive)
    return path


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb is not installed")
def test_modules_in_loading_order(build: ModuleType, tmp_path: Path) -> None:
    needs = {
        "virtio_net": "net_failover,virtio",
        "net_failover": "failover",
        "failover": "",
        "virtio": "",
        "virtio_mmio": "virtio",
    }
    files = {f"./lib/{name.replace('_', '-')}.ko": f"x\0depends={one}\0".encode() for name, one in needs.items()}
    kernel, modules = build.unpacked(package(tmp_path, {"./boot/vmlinuz-6": b"kernel", **files}))
    assert kernel == b"kernel"
    assert [name for name, _ in modules] == [
        "virtio.ko", "virtio_mmio.ko", "failover.ko", "net_failover.ko", "virtio_net.ko"
    ]  # fmt: skip
    with pytest.raises(build.BuildError, match="no kernel in it"):
        build.unpacked(package(tmp_path, {"./a": b""}))


def test_initramfs_is_a_cpio_archive(build: ModuleType) -> None:
    data = build.initramfs(b"program", [("a.ko", b"module")])
    names, place = [], 0
    while True:
        assert data[place : place + 6] == b"070701"
        fields = [int(data[place + 6 + 8 * one : place + 14 + 8 * one], 16) for one in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[place + 110 : place + 110 + name_size - 1].decode()
        names.append(name)
        place = (place + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            break
        if name == "init":
            assert data[place : place + size] == b"program"
        place = (place + size + 3) & ~3
    assert names == ["dev", "dev/console", "init", "modules", "modules/order", "modules/a.ko", "TRAILER!!!"]


def test_missing_or_damaged_image(tmp_path: Path) -> None:
    with pytest.raises(GuestImageError, match="build it with: make images"):
        load(tmp_path)
    (tmp_path / "kernel").write_bytes(b"kern")
    manifest = {"recipe": "r", "packages": [], "files": {"kernel": {"bytes": 6}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GuestImageError, match="kernel has 4 bytes, not 6"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(GuestImageError, match=r"its runtime is version 1, not \d; build it with: make images"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(GuestImageError, match="again"):
        load(tmp_path)
