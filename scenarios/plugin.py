"""``twin new-controller``: writes a project with a controller that works, from ``templates/controller``."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

from scenarios.registry import controller_names

TEMPLATES = Path(__file__).parent / "templates" / "controller"
_FILES = {
    "pyproject.toml.tmpl": "pyproject.toml",
    "module.py.tmpl": "{name}.py",
    "test_module.py.tmpl": "test_{name}.py",
    "README.md.tmpl": "README.md",
}
_RESERVED = ("twin", "scenarios", "controllers", "topologies", "traces", "agents", "dashboard")


class PluginError(ValueError):
    """A plug-in that cannot be written. One line."""


def write_plugin(name: str, folder: Path) -> Path:
    """Write ``folder/name`` and return it; PluginError for a name that cannot be used or is there already."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) or keyword.iskeyword(name):
        raise PluginError(f"controller name must be a Python name in lower case ([a-z][a-z0-9_]*), got {name!r}")
    if name in controller_names():
        raise PluginError(
            f"a controller named {name} is installed already; names in use: {', '.join(controller_names())}"
        )
    if name in _RESERVED or name in sys.stdlib_module_names:
        raise PluginError(f"{name} is the name of a Python package that is needed; take another name")
    project = folder / name
    words = {
        "@NAME@": name,
        "@PROJECT@": name.replace("_", "-"),
        "@CLASS@": "".join(part.capitalize() for part in name.split("_")),
    }
    try:
        project.mkdir(parents=True)
        for template, target in _FILES.items():
            text = (TEMPLATES / template).read_text(encoding="utf-8")
            for word, value in words.items():
                text = text.replace(word, value)
            (project / target.format(name=name)).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise PluginError(f"{project} exists already; take another name or --dir") from None
    except OSError as error:
        raise PluginError(f"{project} cannot be written: {error.strerror}") from None
    return project
