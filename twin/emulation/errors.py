"""What an emulation says when the host does not do what the plan needs."""


class EmulationError(Exception):
    """One line: what, got, allowed, where."""
