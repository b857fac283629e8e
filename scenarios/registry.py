"""What a scenario may name: controllers, backends (fidelities) and the scenarios that TwinBed brings.

Everything is looked up by name and imported only when it is used; an unknown name lists the known
ones and the nearest.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.errors import unknown

if TYPE_CHECKING:
    from controllers.base import Controller

CONTROLLER_GROUP = "twinbed.controllers"
LIBRARY = Path(__file__).parent / "library"
SUFFIX = ".twin.yml"
FIDELITIES = ("flow", "packet", "emulation")
_CLASS_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class UnknownNameError(ValueError):
    """No part of this name; the message lists the known ones and the nearest."""


class MissingPartError(RuntimeError):
    """A part that this installation or host lacks; the message says what it would need."""


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=CONTROLLER_GROUP)}


def controller_names() -> tuple[str, ...]:
    """Names under the entry point group ``twinbed.controllers``, sorted."""
    return tuple(sorted(_entry_points()))


def check_controller(name: str) -> None:
    """UnknownNameError unless ``name`` is registered or of the form ``module:Class`` with a known module."""
    if name in _entry_points():
        return
    if _CLASS_PATH.fullmatch(name):
        module = name.partition(":")[0]
        try:
            if importlib.util.find_spec(module) is not None:
                return
        except (ImportError, ValueError):
            pass
        raise UnknownNameError(f"no module named {module} for controller {name}")
    raise UnknownNameError(unknown("controller", name, controller_names()))


def controller_class(name: str) -> type[Controller]:
    """The class of a registered controller or of ``module:Class``; imports it."""
    check_controller(name)
    try:
        if name in _entry_points():
            found: Any = _entry_points()[name].load()
        else:
            module, _, attribute = name.partition(":")
            found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MissingPartError(f"controller {name} cannot be imported: {error}") from error
    return found  # type: ignore[no-any-return]


def library_names() -> tuple[str, ...]:
    """Short names of the scenarios that TwinBed brings, sorted."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in LIBRARY.glob(f"*{SUFFIX}")))


def find_scenario(name: str) -> Path:
    """The file that ``name`` means: a path, or the short name of a library scenario."""
    path = Path(name)
    if path.suffix in (".yml", ".yaml") or path.is_file() or "/" in name:
        return path
    if name in library_names():
        return LIBRARY / f"{name}{SUFFIX}"
    raise UnknownNameError(unknown("scenario", name, library_names()) + "; or give the path of a file")
