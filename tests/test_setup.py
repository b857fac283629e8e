"""What tools/setup installs against what the code needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed(name: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "tools" / name).read_text().splitlines())
    return {line for line in lines if line}


def normal(name: str) -> str:
    """A project name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_packages_of_the_base_image_are_installed_by_setup() -> None:
    from twin.emulation.images import BASE_PACKAGES

    assert set(BASE_PACKAGES) <= listed("packages.txt")


def test_every_python_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    pins = {normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {normal(requirement.split(">")[0].split("[")[0]) for requirement in wanted} - {"twinbed"}
    assert names <= pins
