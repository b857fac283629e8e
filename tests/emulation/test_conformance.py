"""The conformance suite of backends, on the emulation."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

import pytest

from tests.conformance import BackendConformance
from twin.backend import Backend
from twin.emulation.session import EmulationBackend


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
class TestEmulationConformance(BackendConformance):
    interval_s = 0.5
    patience = 12

    @classmethod
    def make_backend(cls) -> Backend:
        folder = Path(tempfile.gettempdir()) / "twinbed-conformance"
        return EmulationBackend(run_id=f"conf-{uuid.uuid4().hex[:10]}", folder=folder, probes=False)
