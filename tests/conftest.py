"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

# Before anything imports it, so that its asserts explain themselves.
pytest.register_assert_rewrite("tests.conformance")


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def emulation_host() -> None:
    """A host that can emulate: skips with the reason where it cannot, and fails instead in CI."""
    missing = ""
    if os.geteuid() != 0:
        missing = "not root"
    elif not Path("/var/run/docker.sock").exists() or shutil.which("docker") is None:
        missing = "no Docker daemon"
    elif shutil.which("ovs-vsctl") is None:
        missing = "Open vSwitch is not installed"
    else:
        for name, command in (
            ("Docker", ["docker", "version"]),
            ("Open vSwitch", ["ovs-vsctl", "--timeout=3", "show"]),
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            if done.returncode:
                missing = f"{name} does not answer: {done.stderr.strip().splitlines()[-1:]}"
                break
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"this host cannot emulate: {missing}")
    if missing:
        pytest.skip(f"this host cannot emulate: {missing}")
