"""A small correct scenario; tests change one line of it and look at what the loader says."""

from pathlib import Path

import pytest

from scenarios.errors import ScenarioFileError
from scenarios.loader import load_scenario
from scenarios.model import Scenario

SMALL = """\
name: small
duration: 20s
seed: 3
topology:
  nodes:
    phones: {kind: ue, slice: embb, count: 4}
    gnb1: {kind: gnb}
    s1: {kind: switch}
    s2: {kind: switch}
    upf1: {kind: upf, slice: embb}
    video: {kind: app, service: stream}
    control: {kind: app, service: request}
  links:
    - endpoints: ["phones", "gnb1"]
    - endpoints: ["gnb1", "s1"]
    - endpoints: ["s1", "s2"]
      bw: 20
      delay: 5ms
    - endpoints: ["s2", "upf1"]
    - endpoints: ["upf1", "video"]
    - endpoints: ["upf1", "control"]
slices:
  embb:
    sst: 1
    sla: {q_thresh: 1Mbps}
    resources:
      ran: {cpu: 200m}
traffic:
  - name: watching
    ues: phones
    app: video
    rate: 1Mbps
    profile: {kind: constant, value: 2}
controllers:
  - use: rule_based
    scope: ["slice:embb"]
events:
  - {at: 5s, slice: embb, demand_factor: 2, for: 5s}
assert:
  - slice:embb throughput_dl_bps >= 1Mbps
"""


def line_of(fragment: str, text: str = SMALL) -> int:
    """Number of the only line that contains ``fragment``."""
    found = [number for number, line in enumerate(text.splitlines(), 1) if fragment in line]
    assert len(found) == 1, f"{fragment!r} is in lines {found}"
    return found[0]


def load_text(folder: Path, text: str | bytes, **overrides: object) -> Scenario:
    """Load ``text`` as a file ``x.twin.yml``."""
    path = folder / "x.twin.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_scenario(path, **overrides)  # type: ignore[arg-type]


def problems_of(folder: Path, text: str | bytes, **overrides: object) -> list[str]:
    """The lines that the loader reports, with the folder left out."""
    with pytest.raises(ScenarioFileError) as caught:
        load_text(folder, text, **overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems), "a problem takes more than one line"
    return [line.replace(f"{folder}/", "") for line in lines]
