"""What a scenario may name: controllers, backends (fidelities) and the scenarios that TwinBed brings.

Everything is looked up by name and imported only when it is used; an unknown name lists the known
ones and the nearest.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.errors import unknown

if TYPE_CHECKING:
    from controllers.base import Controller
    from topologies.model import Topology
    from twin.backend import Backend

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


def is_builtin(name: str) -> bool:
    """Whether a registered controller is one of TwinBed's own light ones."""
    point = _entry_points().get(name)
    return point is not None and point.module.startswith("controllers.")


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


BackendFactory = Callable[..., "Backend"]


def make_backend(fidelity: str, topology: Topology | None = None) -> BackendFactory:
    """A function ``(run_id=, folder=, captures=, progress=, sdn_app=) -> Backend`` for a fidelity, and a topology.

    MissingPartError when this host or installation cannot run it, naming every missing part.
    """
    if fidelity == "flow":
        return _flow
    if fidelity == "emulation":
        missing = emulation_missing(topology)
        if missing:
            raise MissingPartError("emulation is not possible here: " + "; ".join(missing))
        return _emulation
    if fidelity == "packet":
        raise MissingPartError("fidelity packet (ns-3) is not part of this version; use flow or emulation")
    raise UnknownNameError(unknown("fidelity", fidelity, FIDELITIES))


def emulation_missing(topology: Topology | None = None) -> list[str]:
    """What this host lacks for emulation, or for that of a topology, in words; empty when everything is there."""
    from topologies.model import Partition
    from twin.emulation.capabilities import ROOT, missing_for_emulation

    has_partitions = topology is not None and any(True for _ in topology.of_kind(Partition))
    return [
        f"needs root: {item.remedy}" if item.name == ROOT else f"{item.name} ({item.detail}): {item.remedy}"
        for item in missing_for_emulation(partitions=has_partitions)
    ]


def _flow(**_: object) -> Backend:
    from twin.flow import FlowBackend

    return FlowBackend()


def _emulation(
    *,
    run_id: str,
    folder: Path,
    captures: Sequence[str],
    progress: Callable[[str], None],
    sdn_app: str | None = None,
) -> Backend:
    try:
        from twin.emulation.session import EmulationBackend
    except ImportError as error:
        raise MissingPartError(f"emulation is not possible here: {error}") from error
    return EmulationBackend(run_id=run_id, folder=folder, captures=captures, progress=progress, sdn_app=sdn_app)
