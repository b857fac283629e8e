"""The data set and the model that come with the package: they load, belong together and say what was measured."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from controllers.microopt.run_time import DEFAULT_MODEL
from controllers.microopt.slice_data import DELAY, THROUGHPUT, QosData, read_qos
from controllers.microopt.slice_fit import fit
from controllers.microopt.slice_model import SliceModel, load
from scenarios.dataset import read_metadata

DATA = DEFAULT_MODEL.with_name("testbed.parquet")


@pytest.fixture(scope="module")
def data() -> QosData:
    return read_qos(DATA)


@pytest.fixture(scope="module")
def model() -> SliceModel:
    return load(DEFAULT_MODEL)


def test_the_data_say_where_they_come_from(data: QosData) -> None:
    known = read_metadata(DATA)
    assert known["fidelity"] == "emulation" and known["scenario"] == "microopt"
    assert known["runs"] == 32 and known["rows"] == data.slices["embb"].traffic.size == 411
    assert known["document"]["topology"]["nodes"]["gnb1"]["work_ns_per_bit"] == 60
    assert DATA.stat().st_size + DEFAULT_MODEL.stat().st_size < 300_000


def test_users_share_the_scarcest_resource(data: QosData) -> None:
    rows = data.slices["embb"]
    cpu, bandwidth = rows.allocation.T
    law = np.minimum(np.minimum(cpu / 60, bandwidth), 2.9 * rows.traffic)
    carried = rows.qos[THROUGHPUT] * rows.traffic / law
    cells = rows.cells()
    means = np.array([carried[cells == cell].mean() for cell in np.unique(cells)])
    assert means.size == 16
    assert ((means > 0.85) & (means < 1.05)).all()


def test_the_model_was_fitted_to_these_data(model: SliceModel) -> None:
    assert model.provenance["data"]["sha256"] == hashlib.sha256(DATA.read_bytes()).hexdigest()
    assert model.qos_names == (THROUGHPUT, DELAY)
    assert {resource.name: resource.high for resource in model.resources} == {
        "cpu_millicores": 420.0,
        "bandwidth_mbps": 9.0,
    }


def test_a_fit_gives_the_same_predictions(data: QosData, model: SliceModel) -> None:
    again = fit(data, kind="gaussian", seed=model.provenance["seed"])
    users = torch.arange(1.0, 6.0)
    cells = torch.tensor([[c, b] for c in (60.0, 150.0, 240.0, 420.0) for b in (1.5, 3.0, 6.0, 9.0)]).unsqueeze(1)
    shipped, made = (one.distribution(users, cells) for one in (model, again))
    mean = shipped.mean()
    # Another processor rounds otherwise, and a thousand steps of training carry that on.
    assert float(((made.mean() - mean).abs() / mean).mean()) < 0.02
    assert float((made.std() / shipped.std()).log().abs().mean()) < 0.25


def test_files_are_in_the_package() -> None:
    root = Path(__file__).parents[3]
    known = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["controllers"]
    for file in (DATA, DEFAULT_MODEL):
        assert any(file.relative_to(root / "controllers").match(pattern) for pattern in known)
