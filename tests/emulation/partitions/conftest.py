"""A vmand of the test's own, with its own state folder and name, and the guest image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twin.emulation.gc import collect
from twin.emulation.partitions.client import Client
from twin.emulation.partitions.images import image_folder

ROOT = Path(__file__).parents[3]


def _absent(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"this host cannot run partitions: {reason}")
    pytest.skip(f"this host cannot run partitions: {reason}")


@pytest.fixture(scope="session")
def partition_host() -> None:
    """A host with root and QEMU; skips with the reason, fails instead in CI."""
    if os.geteuid() != 0:
        _absent("not root")
    if not shutil.which("qemu-system-aarch64"):
        _absent("qemu-system-aarch64 is not installed")


@pytest.fixture(scope="session")
def guest_image(partition_host: None) -> Path:  # noqa: ARG001
    """Folder of the guest image, built when it is not there."""
    folder = image_folder()
    command = [sys.executable, str(ROOT / "qemu-images" / "build.py"), "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        assert done.stderr.startswith("guest image: "), done.stderr
        _absent(done.stderr.strip())
    return folder


class Daemon:
    """A vmand process in a state folder of its own."""

    def __init__(self, image: Path | None, *options: str) -> None:
        self.name = f"t{uuid.uuid4().hex[:6]}"
        self.state = Path(tempfile.mkdtemp(prefix="twinbed-vm-", dir="/tmp"))
        self.environment = {**os.environ, "TWINBED_STATE": str(self.state), "PYTHONPATH": str(ROOT)}
        self.options = ["--name", self.name, *(["--image", str(image)] if image else []), *options]
        self.process: subprocess.Popen[str] | None = None
        self.socket = self.state / "vmand" / self.name / "vmand.sock"
        self.start()

    @property
    def netns(self) -> str:
        return f"vmand-{self.name}"

    def start(self) -> None:
        """Start, or start again; returns when it listens."""
        command = [sys.executable, "-m", "twin.emulation.partitions.daemon", *self.options]
        self.process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.greeting = self.process.stdout.readline()
        if not self.greeting:
            raise AssertionError(self.process.stderr.read())

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.reap()

    def terminate(self) -> None:
        """SIGTERM; waits for the end."""
        assert self.process is not None
        self.process.terminate()
        self.reap()

    def reap(self) -> None:
        """Wait for its end."""
        assert self.process is not None
        _, complaints = self.process.communicate(timeout=20)
        self.process = None
        assert complaints == ""

    def client(self) -> Client:
        return Client(self.socket, timeout_s=60)

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``vmanctl``."""
        command = [sys.executable, "-m", "twin.emulation.partitions.client", "--socket", str(self.socket), *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)

    def inside(self, *command: str, timeout_s: float = 20) -> subprocess.CompletedProcess[str]:
        """Run a program in the partitions' network namespace."""
        line = ["ip", "netns", "exec", self.netns, *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False)

    def http(self, address: str, path: str = "/", timeout_s: float = 10) -> str:
        """Body of an HTTP answer of a guest; waits until it answers."""
        code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode(), end='')"
        deadline = time.monotonic() + timeout_s
        while True:
            done = self.inside(sys.executable, "-S", "-c", code, f"http://{address.split('/')[0]}{path}")
            if done.returncode == 0 or time.monotonic() > deadline:
                assert done.returncode == 0, done.stderr
                return done.stdout

    def close(self) -> None:
        """End the daemon and everything it made."""
        if self.process is not None:
            self.kill()
        collect(run_id=f"vmand-{self.name}", folder=self.state / "journal") if self._journal().exists() else None
        shutil.rmtree(self.state)

    def _journal(self) -> Path:
        return self.state / "journal" / f"vmand-{self.name}.jsonl"


@pytest.fixture
def make_daemon(partition_host: None) -> Iterator[Callable[..., Daemon]]:  # noqa: ARG001
    """A function that starts a daemon of four cores and 1 GiB (or with other options)."""
    made: list[Daemon] = []

    def make(image: Path | None = None, *options: str) -> Daemon:
        made.append(Daemon(image, *(options or ("--cores", "4", "--memory-mib", "1024"))))
        return made[-1]

    yield make
    for one in made:
        one.close()
