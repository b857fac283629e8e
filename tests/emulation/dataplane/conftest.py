"""The ``chain`` fixture of the user plane tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulation.dataplane.chain import Chain


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """Namespaces in a row; skips without root, fails without it in CI."""
    missing = None
    if os.geteuid() != 0:
        missing = "needs root for network namespaces"
    elif shutil.which("ip") is None:
        missing = "needs iproute2"
    elif not Path("/dev/net/tun").exists():
        missing = "needs /dev/net/tun"
    if missing:
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    made = Chain(tmp_path)
    try:
        yield made
    finally:
        made.close()
