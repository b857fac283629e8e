"""The container images: TwinBed's own base image, built from Debian packages without a registry.

The base image holds the files of the host's installed packages :data:`BASE_PACKAGES` and of all they
depend on (``dpkg``'s own lists, so every file in it belongs to a named package and version), or, with
``method="mmdebstrap"``, the same packages fetched through the host's own apt sources. Why the first is
the default: docs/decisions/0002-base-image.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import docker
import docker.errors
import docker.utils

Method = Literal["host", "mmdebstrap"]
Progress = Callable[[str], None]

BASE_PACKAGES = (
    *("bash", "coreutils", "grep", "sed", "mawk", "findutils", "hostname", "util-linux", "procps", "psmisc"),
    *("python3", "iproute2", "iputils-ping", "net-tools", "ethtool", "iperf", "iperf3", "ca-certificates"),
)
BASE_REPOSITORY = "twinbed/base"
BASE_COMMAND = ("sleep", "infinity")
_OPTIONAL = {"ca-certificates"}
# Package managers and their configuration run at installation, never inside the image.
_NOT_NEEDED = {"debconf", "debconf-2.0", "dpkg", "perl-base", "perl", "adduser", "init-system-helpers", "tzdata"}
_SKIPPED = re.compile(
    r"^/usr/share/(doc|doc-base|man|locale|info|lintian|bash-completion|bug|menu|pixmaps|applications|icons|perl5)(/|$)"
    r"|^/(boot|var/cache|var/lib/dpkg|etc/(cron|init|systemd|apt|logrotate)[^/]*)(/|$)"
    r"|/(lib/systemd|gconv|__pycache__)(/|$)"
)
_RECIPE_VERSION = "1"  # part of the tag: raise it when the code below makes a different image
_LOCK = Path("/run/lock/twinbed-base-image.lock")
_STATUS = Path("/var/lib/dpkg/status")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON_MODULES = "json, socket, asyncio, hashlib, http.server, fcntl, ctypes, selectors, struct, heapq"
# What installation scripts would write.
_ETC = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
}


class ImageError(Exception):
    """An image that is missing, cannot be built or cannot run here. One line."""


@dataclass(frozen=True)
class Package:
    """An installed Debian package: ``needs`` are groups of alternatives."""

    name: str
    version: str
    architecture: str
    needs: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]


def ensure_base_image(progress: Progress | None = None, *, method: Method = "host") -> str:
    """Name of the base image ``twinbed/base:HASH``, built first if this recipe was not built yet.

    Idempotent; a second process waits for the one that builds. ``progress`` gets one-line messages.
    Raises ImageError naming a missing package or tool, or when Docker does not answer.
    """
    tell = progress or (lambda _: None)
    packages = installed_closure(BASE_PACKAGES) if method == "host" else ()
    name = f"{BASE_REPOSITORY}:{recipe_hash(method, packages)}"
    with _docker() as client:
        if _image_id(client, name):
            return name
        tell(f"waiting to build {name}")
        with _locked(_LOCK):
            if _image_id(client, name):
                return name
            if method == "host":
                tell(f"building {name} from {len(packages)} installed packages")
                with tempfile.TemporaryFile() as archive:
                    write_host_archive(packages, archive)
                    archive.seek(0)
                    _import(client, archive, name)
            else:
                tell(f"building {name} with mmdebstrap (downloads about 60 MB)")
                with tempfile.TemporaryDirectory(prefix="twinbed-image-") as folder:
                    archive_path = Path(folder) / "base.tar"
                    _mmdebstrap(archive_path)
                    with archive_path.open("rb") as archive:
                        _import(client, archive, name)
            tell(f"built {name}")
            return name


def check_image(name: str, *, python: bool = False) -> str:
    """Id of a local image; with ``python``, that it runs Python 3.9 or later with the usual modules.

    Raises ImageError when the image is not on this host or has no such Python. Nothing is pulled.
    """
    with _docker() as client:
        identifier = _image_id(client, name)
    if identifier is None:
        raise ImageError(f"image {name}: not on this host; build it, or get it with: docker pull {name}")
    if python:
        _check_python(name, identifier)
    return identifier


@lru_cache(maxsize=64)
def _check_python(name: str, identifier: str) -> None:
    script = f"import sys, {_PYTHON_MODULES}; sys.exit(0 if sys.version_info >= (3, 9) else 9)"
    with _docker() as client:
        try:
            made = client.create_container(
                identifier,
                command=["-c", script],
                entrypoint=["python3"],
                host_config=client.create_host_config(network_mode="none"),
                labels={"twinbed.run": "image-check"},
            )
            try:
                client.start(made["Id"])
                code = client.wait(made["Id"], timeout=30)["StatusCode"]
                output = client.logs(made["Id"]).decode(errors="replace").strip().splitlines()
            finally:
                client.remove_container(made["Id"], force=True)
        except docker.errors.APIError as error:
            if "executable file not found" in str(error.explanation) or "no such file" in str(error.explanation):
                raise ImageError(
                    f"image {name}: no python3 in it; the programs of a 5G node need Python 3.9 or later"
                ) from None
            raise ImageError(f"image {name}: cannot run python3: {_one_line(error.explanation)}") from None
    if code == 9:
        raise ImageError(f"image {name}: its python3 is older than 3.9")
    if code != 0:
        raise ImageError(f"image {name}: python3 exits with {code}: {output[-1] if output else 'no output'}")


def recipe_hash(method: Method, packages: Sequence[Package]) -> str:
    """Twelve hex digits that change with the recipe, the package versions and the architecture."""
    parts = [_RECIPE_VERSION, method, os.uname().machine, *BASE_PACKAGES, *BASE_COMMAND]
    if method == "host":
        parts += [f"{package.name}={package.version}" for package in packages]
    else:
        parts += [_suite(), *(str(source) for source in apt_sources())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def installed_closure(names: Sequence[str], status: Path = _STATUS) -> tuple[Package, ...]:
    """The packages and all they depend on, as installed, by name. ImageError names what is missing."""
    installed, providers = _installed(status)
    missing = [name for name in names if name not in installed and name not in _OPTIONAL]
    if missing:
        raise ImageError(f"base image: not installed on this host: apt-get install {' '.join(missing)}")
    found: dict[str, Package] = {}
    waiting = [name for name in names if name in installed]
    while waiting:
        name = waiting.pop()
        if name in found or name in _NOT_NEEDED:
            continue
        found[name] = package = installed[name]
        for alternatives in package.needs:
            candidates = [one for one in alternatives if one in installed]
            candidates += [one for name in alternatives for one in providers.get(name, ())]
            waiting += candidates[:1]
    return tuple(found[name] for name in sorted(found))


def _installed(status: Path) -> tuple[Mapping[str, Package], Mapping[str, list[str]]]:
    try:
        text = status.read_text(errors="replace")
    except OSError:
        raise ImageError(f"base image: {status} not readable; it is built on Debian or Ubuntu hosts") from None
    installed: dict[str, Package] = {}
    providers: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", block, re.MULTILINE))
        if fields.get("Status") != "install ok installed":
            continue
        needs = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
        package = Package(
            name=fields["Package"],
            version=fields["Version"],
            architecture=fields["Architecture"],
            needs=tuple(
                tuple(re.split(r"[\s:(]", one.strip())[0] for one in group.split("|"))
                for group in needs.split(",")
                if group.strip()
            ),
            provides=tuple(re.split(r"[\s(]", one.strip())[0] for one in fields.get("Provides", "").split(",") if one),
        )
        # a foreign-architecture twin of a package must not displace the native one
        if package.name not in installed or package.architecture in ("all", _architecture()):
            installed[package.name] = package
        for virtual in package.provides:
            providers.setdefault(virtual, []).append(package.name)
    return installed, providers


@lru_cache(maxsize=1)
def _architecture() -> str:
    return _output(["dpkg", "--print-architecture"]).strip()


def write_host_archive(packages: Sequence[Package], archive: Any) -> None:
    """Write a root file system with the files of installed packages as a tar archive."""
    names = [one.name if one.architecture == "all" else f"{one.name}:{one.architecture}" for one in packages]
    listing = _output(["dpkg", "-L", *names])
    paths = {line for line in listing.splitlines() if line.startswith("/") and line != "/."}
    written: set[str] = set()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():  # merged /usr, as on the host
                _add(tar, written, f"/{name}")
        for path in sorted(paths):
            # the one true place of a file listed as /bin/ls where /bin is a link to usr/bin
            real = Path(path).parent.resolve() / Path(path).name
            if not _SKIPPED.search(str(real)) and not _SKIPPED.search(path):
                _add(tar, written, str(real))
        _add_link(tar, written, "/usr/bin/sh", "bash")
        _add_link(tar, written, "/usr/bin/awk", "mawk")
        for folder, mode in (("/tmp", 0o1777), ("/run", 0o755), ("/var/tmp", 0o1777), ("/root", 0o700)):
            _add_folder(tar, written, folder, mode)
        for path, text in _ETC.items():
            _add_file(tar, path, text)
        _add_file(tar, "/etc/twinbed-packages", "".join(f"{one.name} {one.version}\n" for one in packages))


def _add(tar: tarfile.TarFile, written: set[str], path: str) -> None:
    if path in written or not os.path.lexists(path):
        return
    written.add(path)
    parent = str(Path(path).parent)
    if parent != "/":
        _add(tar, written, parent)
    info = tar.gettarinfo(path, arcname=path.lstrip("/"))
    if info is None:  # a socket
        return
    info.mtime = 0
    if info.isreg():
        with Path(path).open("rb") as content:
            tar.addfile(info, content)
    else:
        tar.addfile(info)


def _add_link(tar: tarfile.TarFile, written: set[str], path: str, target: str) -> None:
    if path not in written:
        written.add(path)
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        tar.addfile(info)


def _add_folder(tar: tarfile.TarFile, written: set[str], path: str, mode: int) -> None:
    if path not in written:
        written.add(path)
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.mode = tarfile.DIRTYPE, mode
        tar.addfile(info)


def _add_file(tar: tarfile.TarFile, path: str, text: str) -> None:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.size, info.mode = len(text.encode()), 0o644
    tar.addfile(info, io.BytesIO(text.encode()))


def apt_sources(folder: Path = Path("/etc/apt")) -> list[str]:
    """The host's own apt sources as one-line entries, from ``sources.list`` and ``*.list`` and ``*.sources``."""
    entries: list[str] = []
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]
    for file in (one for one in files if one.is_file()):
        entries += [line.strip() for line in file.read_text().splitlines() if line.strip().startswith("deb ")]
    for file in sorted((folder / "sources.list.d").glob("*.sources")):
        for block in re.split(r"\n\s*\n", file.read_text()):
            entries += _deb822(block)
    return entries


def _deb822(block: str) -> Iterator[str]:
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    fields = {
        key.lower(): " ".join(value.split())
        for key, value in re.findall(r"^([\w-]+):((?:.*(?:\n[ \t].*)*))", "\n".join(lines), re.MULTILINE)
    }
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
        return
    options = []
    signed_by = fields.get("signed-by", "")
    if signed_by.startswith("/"):
        options.append(f"signed-by={signed_by}")
    if "architectures" in fields:
        options.append(f"arch={fields['architectures'].replace(' ', ',')}")
    prefix = f"deb [{' '.join(options)}] " if options else "deb "
    for uri in fields["uris"].split():
        for suite in fields["suites"].split():
            yield f"{prefix}{uri} {suite} {fields.get('components', '')}".rstrip()


def _suite() -> str:
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    suite: str | None = release.get("VERSION_CODENAME")
    if not suite:
        raise ImageError("base image: /etc/os-release names no VERSION_CODENAME; it is built on Debian or Ubuntu hosts")
    return suite


def _mmdebstrap(archive: Path) -> None:
    if not shutil.which("mmdebstrap"):
        raise ImageError("base image: mmdebstrap not found; apt-get install mmdebstrap")
    sources = [one for one in apt_sources() if _suite() in one]
    if not sources:
        raise ImageError(f"base image: no apt source of {_suite()} under /etc/apt")
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"]
    command += ["--aptopt=APT::Install-Recommends false", _suite(), str(archive), "-"]
    done = subprocess.run(command, input="\n".join(sources) + "\n", text=True, capture_output=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "error"))] or [done.stderr]
        raise ImageError(f"base image: mmdebstrap exits with {done.returncode}: {_one_line(errors[0])}")


def _import(client: docker.APIClient, archive: Any, name: str) -> None:
    repository, _, tag = name.partition(":")
    changes = [f"CMD {list(BASE_COMMAND)}".replace("'", '"'), f"ENV {_PATH}", "LABEL org.twinbed.image=base"]
    try:
        # a generator: with a file, requests would announce a length next to the chunked encoding
        chunks = iter(lambda: archive.read(1 << 20), b"")
        answer = client.import_image_from_stream(chunks, repository=repository, tag=tag, changes=changes)
    except docker.errors.APIError as error:
        raise ImageError(f"base image: docker import: {_one_line(error.explanation)}") from None
    if _image_id(client, name) is None:
        raise ImageError(f"base image: docker import: {_one_line(answer)}")


def _image_id(client: docker.APIClient, name: str) -> str | None:
    try:
        return str(client.inspect_image(name)["Id"])
    except docker.errors.NotFound:
        return None
    except docker.errors.APIError as error:
        raise ImageError(f"image {name}: {_one_line(error.explanation)}") from None


def docker_client(threads: int = 1) -> docker.APIClient:
    """A low-level Docker client (``DOCKER_HOST`` and its fellows hold); ImageError when Docker does not answer."""
    try:
        return docker.APIClient(
            **docker.utils.kwargs_from_env(), version="auto", timeout=120, num_pools=threads, max_pool_size=threads
        )
    except docker.errors.DockerException as error:
        raise ImageError(f"Docker does not answer: {_one_line(error)}; start it with: service docker start") from None


@contextmanager
def _docker() -> Iterator[docker.APIClient]:
    client = docker_client()
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise ImageError(f"base image: {command[0]} not found; it is built on Debian or Ubuntu hosts") from None
    except subprocess.CalledProcessError as error:
        raise ImageError(f"base image: {' '.join(command[:2])}: {_one_line(error.stderr)}") from None


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]
