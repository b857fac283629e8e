"""Build the guest image: kernel and initramfs for aarch64, from Debian's own packages.

    python qemu-images/build.py [--out FOLDER] [--cache FOLDER] [--again]

The kernel is Debian's ``linux-image-cloud-arm64``, fetched by apt through the host's own sources with
a private state: the host's package lists and architectures stay as they are, and apt checks the archive's signature
and the package's checksum. The initramfs holds the kernel's virtio modules and the VNF runtime
(``runtime/*.c``) as its only program. The same packages give the same bytes; ``manifest.json`` says
which they were.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from twin.emulation.images import ImageError, apt_sources
from twin.emulation.partitions.images import MANIFEST, RUNTIME, GuestImageError, image_folder, load

HERE = Path(__file__).resolve().parent
ARCHITECTURE = "arm64"
KERNEL_PACKAGE = "linux-image-cloud-arm64"
MODULES = ("virtio_mmio", "virtio_net", "virtio_console", "virtio_blk")
COMPILER = "aarch64-linux-gnu-gcc"
FLAGS = ("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-ffunction-sections", "-s")
LINKER_FLAGS = ("-Wl,--gc-sections", "-Wl,--build-id=none")


class BuildError(Exception):
    """The image cannot be built. One line."""


def main() -> int:
    """Build what is not there yet; 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=image_folder(), help="where the image goes (default: %(default)s)")
    parser.add_argument("--cache", type=Path, help="keep apt's lists and the packages here for the next build")
    parser.add_argument("--again", action="store_true", help="build even when this recipe was built before")
    parser.add_argument("--kernel-package", default=KERNEL_PACKAGE, help="default: %(default)s")
    parser.add_argument("--source", action="append", help="a 'deb ...' line instead of the host's sources; repeatable")
    options = parser.parse_args()
    try:
        recipe = recipe_hash(options.kernel_package)
        if not options.again and built(options.out, recipe):
            print(f"guest image: built already in {options.out} (--again for a newer kernel)")
            return 0
        with tempfile.TemporaryDirectory(prefix="twinbed-guest-") as folder:
            work = Path(folder)
            apt = Apt(options.cache or work / "apt", options.source or host_sources())
            print(f"guest image: fetching {options.kernel_package} for {ARCHITECTURE}", flush=True)
            name, version, archive = apt.fetch_kernel(options.kernel_package)
            build(archive, work / "image", {"recipe": recipe, "packages": [described(name, version, archive)]})
            install(work / "image", options.out)
        image = load(options.out)
        print(f"guest image: {image.folder}: {name} {version}, initramfs {image.initramfs.stat().st_size // 1024} KiB")
    except (BuildError, GuestImageError, ImageError, OSError, subprocess.SubprocessError) as error:
        print(f"guest image: {error}", file=sys.stderr)
        return 1
    return 0


def built(folder: Path, recipe: str) -> bool:
    """True when a whole image of this recipe is there."""
    try:
        return load(folder).recipe == recipe
    except GuestImageError:
        return False


def recipe_hash(kernel_package: str) -> str:
    """Changes with this program, the runtime and the compiler."""
    parts = [kernel_package.encode(), output([COMPILER, "--version"]).splitlines()[0].encode()]
    parts += [path.read_bytes() for path in (Path(__file__), *sorted((HERE / "runtime").iterdir()))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def host_sources() -> list[str]:
    """The host's sources of its own release, asked for arm64 packages."""
    release = Path("/etc/os-release").read_text(encoding="utf-8")
    found = re.search(r'^VERSION_CODENAME="?([\w-]+)', release, re.MULTILINE)
    suite = found.group(1) if found else "stable"
    wanted = []
    for entry in apt_sources():
        parts = re.fullmatch(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s*(.*)", entry)
        if parts and re.split(r"[-/]", parts.group(3))[0] == suite:
            options = [one for one in (parts.group(1) or "").split() if not one.startswith("arch=")]
            wanted.append(f"deb [{' '.join([*options, f'arch={ARCHITECTURE}'])}] {' '.join(parts.groups()[1:])}")
    if not wanted:
        raise BuildError(f"no apt source of {suite} under /etc/apt; give one with --source 'deb URL SUITE main'")
    return wanted


class Apt:
    """apt with lists, cache and architecture of its own."""

    def __init__(self, folder: Path, sources: Sequence[str]) -> None:
        self.folder = folder.resolve()
        for name in ("state/lists/partial", "cache/archives/partial", "archives"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        (self.folder / "sources.list").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
        hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
        settings = {
            "APT::Architecture": ARCHITECTURE,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
        }
        # What the host's own configuration runs after an update would look at the host's cache.
        lines = [f"#clear {name};" for name in (*hooks, "APT::Architectures")]
        lines += [f'{key} "{value}";' for key, value in settings.items()]
        lines.append(f'APT::Architectures {{ "{ARCHITECTURE}"; }};')
        self._configuration = self.folder / "apt.conf"
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def fetch_kernel(self, package: str) -> tuple[str, str, Path]:
        """Name, version and file of the kernel that a meta package stands for."""
        self._run("apt-get", "-q", "update")
        fields = self._fields(package)
        needed = re.search(r"(linux-image-[\w.+-]*\d[\w.+-]*) \(= ([^)]+)\)", fields.get("Depends", ""))
        name, version = needed.groups() if needed else (package, fields["Version"])
        fields = self._fields(f"{name}={version}")
        self._run("apt-get", "-q", "download", f"{name}={version}", folder=self.folder / "archives")
        archive = self.folder / "archives" / f"{name}_{version.replace(':', '%3a')}_{ARCHITECTURE}.deb"
        if hashlib.sha256(archive.read_bytes()).hexdigest() != fields["SHA256"]:
            raise BuildError(f"{archive}: not the file that the signed package list names")
        return name, version, archive

    def _fields(self, package: str) -> Mapping[str, str]:
        try:
            text = self._run("apt-cache", "show", "--no-all-versions", package)
        except BuildError:
            raise BuildError(
                f"no package {package} for {ARCHITECTURE} in the host's apt sources; "
                "name others with --source and --kernel-package"
            ) from None
        return dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))

    def _run(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        return output([program, f"-c={self._configuration}", *arguments], folder)


def build(archive: Path, out: Path, facts: Mapping[str, object]) -> None:
    """Write kernel, initramfs and manifest of one kernel package into a new folder."""
    out.mkdir()
    kernel, modules = unpacked(archive)
    (out / "kernel").write_bytes(kernel)
    (out / "initramfs").write_bytes(initramfs(compiled(), modules))
    files = {
        name: {"sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(), "bytes": (out / name).stat().st_size}
        for name in ("kernel", "initramfs")
    }
    modules_loaded = [name for name, _ in modules]
    manifest = {
        **facts, "architecture": ARCHITECTURE, "runtime": RUNTIME, "modules": modules_loaded, "files": files,
    }  # fmt: skip
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def install(made: Path, out: Path) -> None:
    """Put a new image where an older one may be in use: a guest that boots now keeps the files it opened."""
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    draft.chmod(0o755)
    for path in made.iterdir():
        shutil.copyfile(path, draft / path.name)
    old = draft.with_name(draft.name + ".old")
    if out.exists():
        out.rename(old)
    draft.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def unpacked(archive: Path) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The kernel of a package, and the modules of :data:`MODULES` with those they need, in loading order."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True).stdout
    kernel = b""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            name = Path(member.name).name
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            if name.startswith("vmlinuz-"):
                kernel = content.read()
            elif match := re.fullmatch(r"(.+)\.ko(\.xz)?", name):
                # Only what may be wanted: unpacking all would take a second.
                stem = match.group(1).replace("-", "_")
                if stem in MODULES or re.search("virtio|failover", stem):
                    files[stem] = lzma.decompress(content.read()) if match.group(2) else content.read()
    if not kernel:
        raise BuildError(f"{archive.name}: no kernel in it")
    if kernel.startswith(b"\x1f\x8b"):
        kernel = gzip.decompress(kernel)
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name not in files:  # not a module: built in
            return
        needs = re.search(rb"depends=([^\0]*)\0", files[name])
        for one in needs.group(1).decode().split(",") if needs else ():
            add(one)
        order[name] = files[name]

    for name in MODULES:
        add(name)
    return kernel, [(f"{name}.ko", content) for name, content in order.items()]


def compiled() -> bytes:
    """The VNF runtime as a static aarch64 program."""
    sources = sorted(path.name for path in (HERE / "runtime").glob("*.c"))
    with tempfile.TemporaryDirectory(prefix="twinbed-runtime-") as folder:
        program = Path(folder) / "init"
        output([COMPILER, *FLAGS, *LINKER_FLAGS, *sources, "-o", str(program)], HERE / "runtime")
        return program.read_bytes()


def initramfs(program: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """A cpio archive ("newc", Linux Documentation/driver-api/early-userspace/buffer-format.rst).

    Not compressed: unpacking takes an emulated processor longer than QEMU takes to load a megabyte.
    """
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = [
        ("dev", 0o040755, b"", (0, 0)),
        ("dev/console", 0o020600, b"", (5, 1)),  # the kernel opens it before anything is mounted
        ("init", 0o100755, program, (0, 0)),
        ("modules", 0o040755, b"", (0, 0)),
        ("modules/order", 0o100644, order, (0, 0)),
        *((f"modules/{name}", 0o100644, content, (0, 0)) for name, content in modules),
    ]
    return b"".join(_entries(entries))


def _entries(entries: Sequence[tuple[str, int, bytes, tuple[int, int]]]) -> Iterator[bytes]:
    for inode, (name, mode, data, device) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], start=1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def described(name: str, version: str, archive: Path) -> Mapping[str, str]:
    """A package as the manifest names it."""
    return {"name": name, "version": version, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}


def output(command: Sequence[str], folder: Path | None = None) -> str:
    """Standard output of a program; BuildError with its first error line."""
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} not found; tools/setup installs it") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:") or "error" in line]
        reason = (lines or done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
        raise BuildError(f"{command[0]} {command[-1]}: {reason}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
