"""Numbers that the documentation quotes from public data sets. ``TWIN_DATA`` says where those are."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

NS_PER_BIT = 120  # docs/decisions/0004-how-cpu-is-made-to-matter.md


@pytest.fixture
def microopt() -> pd.DataFrame:
    folder = os.environ.get("TWIN_DATA")
    if not folder:
        pytest.skip("TWIN_DATA is not set: the public data set of MicroOpt is not at hand")
    return pd.read_csv(Path(folder) / "microopt_train_dataset.csv")


@pytest.mark.parametrize("millicores", [500, 1000, 2000])
def test_a_gnb_of_microopt_spends_about_120_ns_per_bit(microopt: pd.DataFrame, millicores: int) -> None:
    """Where CPU is the bottleneck (wide transport, many users), throughput is CPU over work per bit."""
    limited = microopt[(microopt.bw >= 25) & (microopt.n_users >= 4) & (microopt.cpu == millicores)]
    throughput_bps = limited.total_bandwidth_usage.mean() * 1e6
    assert millicores / 1000 / throughput_bps * 1e9 == pytest.approx(NS_PER_BIT, rel=0.1)
