"""Learning: environments, agents, training.

Environments and training need ``pip install 'twinbed[learning]'``, decisions of what was learned do not. Importing this
registers the Gymnasium environments, where Gymnasium is installed.
"""

import importlib.util

if importlib.util.find_spec("gymnasium") is not None:
    import agents.environments  # noqa: F401
