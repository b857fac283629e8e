"""The guest image that partitions run unless the user gives a kernel of their own.

Built by ``make images`` (``qemu-images/build.py``); a folder with ``kernel``, ``initramfs`` and ``manifest.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from twin.journal import default_folder

MANIFEST = "manifest.json"
RUNTIME = 2
"""Version of what vmand and the runtime of a guest say to each other; to be raised with ``qemu-images/runtime``."""


class GuestImageError(Exception):
    """A guest image that is missing or not whole. One line."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A built image; ``recipe`` and ``packages`` (name, version) say from what."""

    folder: Path
    recipe: str
    packages: tuple[tuple[str, str], ...]

    @property
    def kernel(self) -> Path:
        """An arm64 ``Image``."""
        return self.folder / "kernel"

    @property
    def initramfs(self) -> Path:
        """The VNF runtime and the kernel's virtio modules."""
        return self.folder / "initramfs"


def image_folder() -> Path:
    """``images/aarch64`` beside the journals: ``/var/lib/twinbed/images/aarch64`` as root."""
    return default_folder().parent / "images" / "aarch64"


def load(folder: Path | None = None) -> GuestImage:
    """The image of a folder; GuestImageError when it is not there or a file of it is not whole."""
    folder = image_folder() if folder is None else folder
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != facts["bytes"]:
                raise GuestImageError(f"guest image {folder}: {name} has {size} bytes, not {facts['bytes']}")
        if (version := manifest.get("runtime", 1)) != RUNTIME:
            raise GuestImageError(
                f"guest image {folder}: its runtime is version {version}, not {RUNTIME}; build it with: make images"
            )
        packages = tuple((one["name"], one["version"]) for one in manifest["packages"])
        return GuestImage(folder, manifest["recipe"], packages)
    except FileNotFoundError:
        raise GuestImageError(f"no guest image in {folder}; build it with: make images") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GuestImageError(f"guest image {folder}: {error}; build it again with: make images") from None
