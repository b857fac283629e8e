"""Learning: environments, agents, training. Needs `pip install twinbed[learning]`.

Importing this registers the Gymnasium environments, where Gymnasium is installed.
"""

import importlib.util

if importlib.util.find_spec("gymnasium") is not None:
    import agents.environments  # noqa: F401
