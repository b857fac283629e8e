"""The contract of a network twin, its fidelities, and the store of what was measured."""

__version__ = "0.1.0"
