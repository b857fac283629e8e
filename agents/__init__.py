"""Learning: environments, agents, training. Needs `pip install twinbed[learning]`."""
