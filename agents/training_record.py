"""What a training leaves beside its checkpoint: a manifest, and the learning curve as a page."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agents.checkpoint import write_whole
from agents.phaul import CHECKPOINT
from scenarios.manifest import origin

if TYPE_CHECKING:
    from agents.phaul_training import Training

MANIFEST, CURVE, PAGE = "manifest.json", "curve.csv", "curve.html"
_PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numba")
_UNITS = {
    "reward_mean": "mean reward of a step (-2..2)",
    "efficiency_best": "best efficiency of an episode, mean",
    "fairness_best": "best fairness of an episode, mean",
}


class Record:
    """The manifest of a training: ``status`` is RUNNING, then DONE; INTERRUPTED or FAILED where it ended early.

    ``folder`` exists. A manifest that says RUNNING without its process is of a training that was killed.
    """

    def __init__(self, folder: Path, source: str, agent: str, plan: Training) -> None:
        self._folder, file = folder, Path(source)
        content = asdict(plan)
        del content["network"]
        self._content: dict[str, Any] = {
            "agent": agent,
            "scenario": source,
            "scenario_sha256": hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None,
            "plan": {**content, "nodes": len(plan.network.nodes), "flows": len(plan.network.flows)},
            "topology": plan.meta()["fingerprint"],
            **origin(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "RUNNING",
        }
        self._content["versions"] = {**self._content["versions"], **_versions()}

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._content["status"] = "INTERRUPTED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
            self._write()

    def finish(self, elapsed_s: float) -> None:
        """The training is done: write what it took and the page."""
        digest = hashlib.sha256((self._folder / CHECKPOINT).read_bytes()).hexdigest()
        self._content |= {"status": "DONE", "training_time_s": elapsed_s, "checkpoint_sha256": digest}
        self._write()
        with (self._folder / CURVE).open(encoding="utf-8", newline="") as file:
            write_whole(self._folder / PAGE, _page(list(csv.DictReader(file))))

    def _write(self) -> None:
        text = json.dumps(self._content, indent=1) + "\n"
        write_whole(self._folder / MANIFEST, text.encode())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _page(rows: list[dict[str, str]]) -> bytes:
    """The curve as one page that needs no network."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=len(_UNITS), cols=1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=list(_UNITS.values())
    )
    for place, (name, title) in enumerate(_UNITS.items(), start=1):
        known = [row for row in rows if row[name]]
        trace = go.Scatter(x=[int(row["steps"]) for row in known], y=[float(row[name]) for row in known], name=title)
        figure.add_trace(trace, row=place, col=1)
    figure.update_xaxes(title_text="training steps", row=len(_UNITS), col=1)
    figure.update_layout(template="plotly_white", showlegend=False, height=780)
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page.encode()
