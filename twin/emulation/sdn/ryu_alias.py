"""Lets applications written for Ryu run unchanged: ``import ryu.x`` gives the module ``os_ken.x``.

os-ken is the continuation of Ryu by OpenStack, with the same modules. Names that carry Ryu's own name
(``RyuApp``, ``RyuException``) are there as well. What os-ken has dropped (``ryu.app.wsgi`` and Ryu's
sample applications) raises ModuleNotFoundError as for any module that is not installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Loader(importlib.abc.Loader):
    def __init__(self, alias: str, real: str) -> None:
        self._alias = alias
        self._real = real

    def create_module(self, spec: ModuleSpec) -> None:  # noqa: ARG002 - the import system's name
        return None

    def exec_module(self, module: ModuleType) -> None:  # noqa: ARG002 - replaced by the real one
        real = importlib.import_module(self._real)
        _add_ryu_names()
        # The import system returns what is in sys.modules: both names mean one module, so classes are the same.
        sys.modules[self._alias] = real


def _add_ryu_names() -> None:
    """Give every module of os-ken that is loaded Ryu's names; ``from ryu.base import app_manager`` finds one there."""
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "os_ken"]:
        for name in [name for name in vars(module) if name.startswith("OSKen")]:
            setattr(module, "Ryu" + name.removeprefix("OSKen"), getattr(module, name))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system's names
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != "ryu" and not fullname.startswith("ryu."):
            return None
        real = "os_ken" + fullname.removeprefix("ryu")
        if importlib.util.find_spec(real) is None:
            return None
        return ModuleSpec(fullname, _Loader(fullname, real), is_package=True)


def install() -> None:
    """From now on, in this process, ``ryu`` means os-ken."""
    if not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in ("base.app_manager", "exception"):
        importlib.import_module(f"os_ken.{name}")
    _add_ryu_names()
