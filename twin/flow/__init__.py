"""The flow fidelity: max-min fair rates, fluid and M/G/1 queues; no wall clock, numpy only."""

from twin.flow.session import FlowBackend, FlowSession

__all__ = ["FlowBackend", "FlowSession"]
