"""Gymnasium knows the environments after `import agents`, which does not import Gymnasium."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWN = "assert {'twinbed/IabPath-v0', 'twinbed/SliceScaling-v0'} <= set(gymnasium.registry)\n"


@pytest.mark.parametrize(
    "code",
    [
        "import agents, sys\nassert 'gymnasium' not in sys.modules\nimport gymnasium\n" + KNOWN,
        "import gymnasium\nimport agents\n" + KNOWN,
        "import importlib.util\nimport agents\nassert importlib.util.find_spec('gymnasium')\nimport gymnasium\n"
        + KNOWN,
        "import agents\nimport agents.environments\nimport gymnasium\n" + KNOWN,
        "import agents\nimport gymnasium.spaces\nimport gymnasium\n" + KNOWN,
        "import agents.train_cli, sys\nassert 'gymnasium' not in sys.modules\n",
    ],
    ids=["before", "after", "looked for", "environments", "submodule", "command"],
)
def test_registered(code: str) -> None:
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
