"""Learning: environments, agents, training. Needs `pip install twinbed[learning]`.

After this is imported, Gymnasium knows the environments: at once where it is imported already, else as soon as it
is. Commands that need no Gymnasium do not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Registering(Loader):
    """Loads Gymnasium, then registers the environments."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader  # which also finds the files of the package
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _WhenImported)]
        import agents.environments  # noqa: F401


class _WhenImported(MetaPathFinder):
    """Finds Gymnasium as the other finders do; whoever only looks for it changes nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Registering(spec.loader)
                return spec
        return None


if sys.modules.get("gymnasium") is not None:
    import agents.environments  # noqa: F401
else:
    sys.meta_path.insert(0, _WhenImported())
