"""What a manifest says about a run: the resolved scenario, and where the code came from."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scenarios.model import Scenario
from topologies.model import Node

_PACKAGES = ("twinbed", "numpy", "scipy", "pandas", "docker")


def resolved(scenario: Scenario) -> dict[str, object]:
    """The scenario as JSON values, defaults filled in, SI units.

    Flows are given by number and digest: thousands of user sessions follow from the file and the seed.
    """
    content = {field.name: plain(getattr(scenario, field.name)) for field in fields(scenario) if field.name != "load"}
    load = json.dumps(plain(scenario.load), sort_keys=True).encode()
    content["load"] = {
        "duration_s": scenario.load.duration_s,
        "flows": len(scenario.load.flows),
        "activities": sum(len(flow.activities) for flow in scenario.load.flows),
        "backhaul_flows": len(scenario.load.backhaul),
        "sha256": hashlib.sha256(load).hexdigest(),
    }
    return content


def plain(value: object) -> object:
    """Frozen data as JSON values: dataclasses as objects (nodes with their ``kind``), tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {"kind": value.kind, **content} if isinstance(value, Node) else content
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


@cache
def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def origin() -> dict[str, object]:
    """Entries ``commit``, ``versions``, ``host`` and ``argv`` of the manifest."""
    versions = {package: found for package in _PACKAGES if (found := _version(package))}
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **versions},
        "host": {"name": platform.node(), "kernel": platform.release(), "machine": platform.machine()},
        "argv": list(sys.argv),
    }
