"""How fast the KPI store takes rows in, and whether a reader in another process holds it up.

    python benchmarks/kpi_store.py [--rows 2000000] [--batch 1000] [--format json]

Writes KPIs as the engine does (one transaction per interval of ``--batch`` rows), once alone and once
while another process keeps a read transaction open and scans the table without pause. Target: at
least 100,000 rows/s in both, no failed commit. Figures are of one run, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twin.store import KpiReader, RunStore
from twin.types import Kpi

NAMES = [f"kpi_{number}" for number in range(20)]
TARGET_ROWS_PER_S = 100_000


def write(store: RunStore, rows: int, batch: int) -> dict[str, float]:
    """Write ``rows`` rows; figures in rows/s and s."""
    entities = [f"ue:phones.{number}" for number in range(max(1, batch // len(NAMES)))]
    commits: list[float] = []
    written = 0
    start = time.perf_counter()
    while written < rows:
        time_s = float(len(commits) + 1)
        store.add_kpis([Kpi(time_s, entity, name, time_s) for entity in entities for name in NAMES])
        before = time.perf_counter()
        store.commit()
        commits.append(time.perf_counter() - before)
        written += len(entities) * len(NAMES)
    elapsed_s = time.perf_counter() - start
    return {
        "rows": written,
        "rows_per_s": written / elapsed_s,
        "commit_median_s": statistics.median(commits),
        "commit_p99_s": statistics.quantiles(commits, n=100)[98],
        "commit_max_s": max(commits),
    }


def read(path: Path) -> None:
    """Scan the table again and again until the run has ended; one long read transaction all along."""
    rows_read = 0
    with KpiReader(path) as holder, KpiReader(path) as reader:
        held = holder.rows("kpi")
        next(held)  # its transaction, and with it the whole write-ahead log, lives until the end
        print("ready", flush=True)
        while json.loads((path / "manifest.json").read_text())["status"] == "RUNNING":
            rows_read += sum(1 for _ in reader.rows("kpi"))
            reader.series("ue:phones.0", NAMES[0])
        list(held)
    print(rows_read, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None:
        read(arguments.read)
        return 0
    if arguments.rows < arguments.batch or arguments.batch < len(NAMES):
        parser.error(f"--rows must be at least --batch, and --batch at least {len(NAMES)}")
    with tempfile.TemporaryDirectory(prefix="twinbed-kpi-store-") as folder:
        with RunStore(Path(folder) / "alone") as store:
            alone = write(store, arguments.rows, arguments.batch)
        with RunStore(Path(folder) / "read") as store:
            store.update_manifest(status="RUNNING")
            write(store, 2 * arguments.batch, arguments.batch)
            reader = subprocess.Popen(
                [sys.executable, __file__, "--read", str(store.path)], stdout=subprocess.PIPE, text=True
            )
            with reader:
                assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
                shared = write(store, arguments.rows, arguments.batch)
                store.update_manifest(status="VALID")
                shared["rows_read"] = float(reader.stdout.read())
    result = {
        "alone": alone,
        "with_reader": shared,
        "target_rows_per_s": TARGET_ROWS_PER_S,
        "reached": min(alone["rows_per_s"], shared["rows_per_s"]) >= TARGET_ROWS_PER_S,
    }
    if arguments.format == "json":
        print(json.dumps(result))
    else:
        for word, figures in (("alone", alone), ("with a reader", shared)):
            commits = ", ".join(f"{key} {figures[f'commit_{key}_s'] * 1e3:.2f}" for key in ("median", "p99", "max"))
            print(f"{word:>14}: {figures['rows_per_s']:>10,.0f} rows/s, commits in ms: {commits}")
        print(f"        reader: {shared['rows_read']:,.0f} rows read meanwhile, no commit failed")
        print(f"        target: {TARGET_ROWS_PER_S:,} rows/s: {'reached' if result['reached'] else 'NOT reached'}")
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
