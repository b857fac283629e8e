"""The run folder: what is written is read back, by other processes too, and a full disk loses nothing."""

from __future__ import annotations

import os
import platform
import resource
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from twin.journal import boot_id, start_ticks
from twin.store import KpiReader, RunStore, StoreError, StoreFull, new_run_id, read_manifest
from twin.types import Action, Kpi, Outcome, Probe


def fill(store: RunStore, steps: int = 5, entities: int = 3) -> None:
    for step in range(1, steps + 1):
        store.add_kpis(
            Kpi(float(step), f"slice:s{n}", name, step * 10.0 + n)
            for n in range(entities)
            for name in ("throughput_dl_bps", "active_ues")
        )
        store.commit()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.update_manifest(status="RUNNING", pid=os.getpid())
    fill(store)
    store.add_action("event", Outcome(Action("link:a-b", "link_state", "down"), True, "", 2.0, 0.01))
    store.add_action("controller:c", Outcome(Action("slice:s0", "prb_share", float("nan")), False, "why", 3.0, 0.0))
    store.add_event(2.0, "event", "label", "a link is cut")
    store.add_probes([Probe("link a-b loss_ratio", "1", 0.01, 0.02, False, "netem")])
    store.add_timing(1.0, "controller:c", "decision_time_s", 0.002)
    store.finish("VALID", simulated_s=5.0)
    with KpiReader(store.path) as reader:
        times, values = reader.series("slice:s1", "active_ues")
        assert times.tolist() == [1, 2, 3, 4, 5] and values.tolist() == [11, 21, 31, 41, 51]
        assert reader.series("slice:s1", "nothing")[0].shape == (0,)
        found = reader.summary()["slice:s2"]["throughput_dl_bps"]
        assert (found.mean, found.min, found.max, found.last, found.count) == (32.0, 12.0, 52.0, 52.0, 5)
        assert found.p95 == pytest.approx(np.percentile([12, 22, 32, 42, 52], 95))
        first, second = reader.actions()
        assert (first.value, first.applied, first.lag_s) == ("down", True, 0.01)
        assert (second.value, second.applied, second.reason) == ("nan", False, "why")
        assert reader.events()[0].text == "a link is cut"
        assert reader.probes() == [Probe("link a-b loss_ratio", "1", 0.01, 0.02, False, "netem")]
        assert len(list(reader.rows("kpi"))) == 30
        assert reader.manifest["status"] == "VALID" and reader.manifest["simulated_s"] == 5.0
        with pytest.raises(ValueError, match="no table named 'x'; tables: kpi"):
            list(reader.rows("x"))
    assert sorted(path.name for path in store.path.iterdir()) == ["kpi.sqlite", "manifest.json"]


def test_run_ids_sort_by_time_and_differ_within_a_second(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 21, 14, 3, 11)
    assert new_run_id("quickstart", moment).startswith("20261121-140311-quickstart-")
    stores = [RunStore.create(tmp_path / "runs", "q") for _ in range(20)]
    assert len({store.run_id for store in stores}) == 20
    for store in stores:
        store.close()


def test_a_folder_is_never_used_twice(tmp_path: Path) -> None:
    RunStore(tmp_path / "run").close()
    with pytest.raises(StoreError, match="cannot be made"):
        RunStore(tmp_path / "run")


def test_nan_is_refused_with_the_name_of_the_kpi(tmp_path: Path) -> None:
    with (
        RunStore(tmp_path / "run") as store,
        pytest.raises(ValueError, match=r"KPI cqi of ue:a\.1 at 1 s must be finite"),
    ):
        store.add_kpis([Kpi(1.0, "ue:a.1", "cqi", float("nan"))])


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "no manifest.json"), ("{", "manifest.json cannot be read"), ("[]", "must be an object, got list")],
)
def test_a_folder_that_is_no_run_is_said_so(tmp_path: Path, content: str | None, text: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=text):
        read_manifest(tmp_path)
    with pytest.raises(StoreError, match=r"no kpi\.sqlite"):
        KpiReader(tmp_path)


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "kpi.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match=r"kpi\.sqlite: file is not a database"):
        KpiReader(tmp_path)


def test_a_reader_sees_a_running_run_and_never_blocks_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.update_manifest(status="RUNNING")
    fill(store, 2)
    with KpiReader(store.path) as reader:
        rows = reader.rows("kpi")
        next(rows)  # a read transaction stays open
        slowest_s = 0.0
        for step in range(200):
            store.add_kpis(Kpi(3.0 + step, f"slice:s{n}", "active_ues", 1.0) for n in range(500))
            start = time.perf_counter()
            store.commit()
            slowest_s = max(slowest_s, time.perf_counter() - start)
        assert len(list(rows)) == 11  # its own snapshot
        assert reader.series("slice:s0", "active_ues")[0].size == 202
        assert slowest_s < 1.0
        store.finish("VALID")
    with KpiReader(store.path) as reader:
        assert reader.series("slice:s0", "active_ues")[0].size == 202


def test_a_writer_killed_in_mid_run_leaves_what_it_committed(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from twin.store import RunStore
from twin.types import Kpi
store = RunStore(Path(sys.argv[1]))
store.update_manifest(status="RUNNING", pid=os.getpid())
for step in range(50):
    store.add_kpis(Kpi(float(step), f"ue:{n}", "cqi", 7.0) for n in range(100))
    store.commit()
store.add_kpis([Kpi(50.0, "ue:0", "cqi", 7.0)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=False, timeout=60)
    with KpiReader(tmp_path / "run") as reader:
        assert reader.manifest["status"] == "RUNNING"
        assert reader.series("ue:99", "cqi")[0].size == 50


def test_a_run_whose_process_is_gone_reads_as_failed(tmp_path: Path) -> None:
    def status(**entries: object) -> str:
        with RunStore.create(tmp_path, "x") as store:
            store.update_manifest(**{"status": "RUNNING", "host": {"name": platform.node()}, **entries})
            return str(read_manifest(store.path)["status"])

    mine: dict[str, object] = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "boot_id": boot_id()}
    assert status(**mine) == "RUNNING"
    assert status(**{**mine, "start_ticks": 1}) == "FAILED"  # its pid was given to another process
    assert status(**{**mine, "boot_id": "an earlier one"}) == "FAILED"
    assert status(**{**mine, "boot_id": "another host's", "host": {"name": "elsewhere"}}) == "RUNNING"
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert status(**{**mine, "pid": ended.pid}) == "FAILED"


def test_a_folder_that_cannot_be_filled_is_not_left_behind(tiny_disk: Path) -> None:
    (tiny_disk / "fill").write_bytes(b"x" * (900 * 1024))
    with pytest.raises(StoreError, match=r"cannot be made|no database"):
        RunStore.create(tiny_disk, "x")
    assert [path.name for path in tiny_disk.iterdir()] == ["fill"]


@pytest.fixture
def tiny_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def write_until_full(path: Path) -> int:
    """Steps that were committed before the disk was full; the run ends FAILED."""
    store = RunStore(path)
    store.update_manifest(status="RUNNING")
    steps = 0
    with pytest.raises(StoreFull, match="no space left"):
        for step in range(10_000):
            store.add_kpis(Kpi(float(step), f"ue:{n}", "cqi", float(n)) for n in range(500))
            store.commit()
            steps = step + 1
    store.add_kpis([Kpi(0.0, "ue:0", "cqi", 0.0)])
    store.commit()
    store.finish("FAILED", "no space left")
    return steps


def test_a_full_disk_keeps_what_was_written(tiny_disk: Path) -> None:
    steps = write_until_full(tiny_disk / "run")
    assert steps > 3
    with KpiReader(tiny_disk / "run") as reader:
        assert (reader.manifest["status"], reader.manifest["reason"]) == ("FAILED", "no space left")
        assert reader.series("ue:499", "cqi")[0].tolist() == [float(step) for step in range(steps)]
        assert reader.summary()["ue:499"]["cqi"].mean == 499.0


def test_a_file_size_limit_counts_as_a_full_disk(tmp_path: Path) -> None:
    script = f"""
import resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from pathlib import Path
from test_store import write_until_full
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
print(write_until_full(Path(sys.argv[1])))
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    with KpiReader(tmp_path / "run") as reader:
        assert reader.manifest["status"] == "FAILED"
        assert reader.series("ue:0", "cqi")[0].size == int(done.stdout)


def test_parquet_holds_every_table_with_types(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    fill(store, 4)
    store.add_action("event", Outcome(Action("link:a-b", "link_state", "down"), True, "", 2.0, 0.01))
    store.add_action("event", Outcome(Action("slice:s0", "prb_share", 0.25), True, "", 2.0, 0.01))
    store.update_manifest(status="RUNNING")
    store.finish("VALID")
    with KpiReader(store.path) as reader:
        written = reader.export_parquet(tmp_path / "out")
        rows = list(reader.rows("kpi"))
    assert [path.name for path in written] == [
        "kpi.parquet",
        "actions.parquet",
        "events.parquet",
        "probes.parquet",
        "timings.parquet",
    ]
    table = pq.read_table(written[0])
    assert table.column_names == ["time_s", "entity", "name", "value"]
    assert [tuple(row.values()) for row in table.to_pylist()] == rows
    assert str(table.schema.field("value").type) == "double"
    actions = pq.read_table(written[1]).to_pylist()
    assert [row["value"] for row in actions] == ["down", "0.25"] and actions[0]["applied"] is True
    assert pq.read_table(written[2]).num_rows == 0


def test_a_finished_run_opens_from_a_read_only_place(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.update_manifest(status="RUNNING")
    fill(store)
    store.finish("VALID")
    with sqlite3.connect(f"file:{store.path}/kpi.sqlite?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    database.close()
