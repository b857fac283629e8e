"""The run folder: ``manifest.json`` and ``kpi.sqlite``, written while the run goes on.

The database is in WAL mode, so that readers in other processes never block the writer. Samples are
appended without an index (a million rows a second); the index is built when the run ends.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import resource
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from twin.journal import boot_id, start_ticks
from twin.types import Kpi, Outcome, Probe

Status = Literal["RUNNING", "VALID", "INVALID", "FAILED"]

DATABASE = "kpi.sqlite"
MANIFEST = "manifest.json"
TABLES = ("kpi", "actions", "events", "probes", "timings")
_NUMBERS = frozenset({"time_s", "value", "lag_s", "declared", "measured"})
_FLAGS = frozenset({"applied", "passed"})
RESERVE_BYTES = 256 * 1024  # kept aside so that a full disk still takes the last manifest

_SCHEMA = """
CREATE TABLE series(id INTEGER PRIMARY KEY, entity TEXT NOT NULL, name TEXT NOT NULL, UNIQUE(entity, name));
CREATE TABLE sample(series_id INTEGER NOT NULL, time_s REAL NOT NULL, value REAL NOT NULL);
CREATE VIEW kpi AS
    SELECT time_s, entity, name, value FROM sample JOIN series ON series.id = sample.series_id;
CREATE TABLE actions(time_s REAL NOT NULL, source TEXT NOT NULL, entity TEXT NOT NULL, knob TEXT NOT NULL, value,
    applied INTEGER NOT NULL, reason TEXT NOT NULL, lag_s REAL NOT NULL);
CREATE TABLE events(time_s REAL NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE probes(item TEXT NOT NULL, unit TEXT NOT NULL, declared REAL, measured REAL,
    passed INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE TABLE timings(time_s REAL NOT NULL, entity TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL);
"""


class StoreError(Exception):
    """The run folder cannot be written or read. One line: what, where, why."""


class StoreFull(StoreError):
    """No space left for the KPIs; what was written before stays readable."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of one KPI over a run; ``count`` samples, ``p95`` by linear interpolation."""

    mean: float
    min: float
    max: float
    last: float
    p95: float
    count: int


@dataclass(frozen=True, slots=True)
class ActionRow:
    """One row of the table ``actions``: who wanted what, and what became of it."""

    time_s: float
    source: str
    entity: str
    knob: str
    value: float | str
    applied: bool
    reason: str
    lag_s: float


@dataclass(frozen=True, slots=True)
class EventRow:
    """One row of the table ``events``: something that happened, in words."""

    time_s: float
    source: str
    kind: str
    text: str


def new_run_id(name: str, now: datetime | None = None) -> str:
    """``20261121-140311-quickstart-3f9a``: sortable, readable, unique within one second."""
    stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-{name}-{secrets.token_hex(2)}"


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class RunStore:
    """The writer of one run folder. One per run, used by one thread; closable.

    Rows are kept in memory until :meth:`commit`, which writes them in one transaction.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        """Make the folder ``path`` (it must not exist); ``max_bytes`` bounds the database file."""
        self.path = path
        self.run_id = path.name
        self._manifest: dict[str, object] = {"run_id": self.run_id}
        self._series: dict[tuple[str, str], int] = {}
        self._new_series: list[tuple[int, str, str]] = []
        self._samples: list[tuple[int, float, float]] = []
        self._actions: list[tuple[object, ...]] = []
        self._events: list[tuple[object, ...]] = []
        self._probes: list[tuple[object, ...]] = []
        self._timings: list[tuple[object, ...]] = []
        self._broken: StoreError | None = None
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"run folder {path}: cannot be made: {_reason(error)}") from error
        try:
            self._reserve = path / ".reserve"
            self._reserve.write_bytes(b"\0" * RESERVE_BYTES)
            self._db: sqlite3.Connection | None = sqlite3.connect(path / DATABASE, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            shutil.rmtree(path, ignore_errors=True)
            raise StoreError(f"run folder {path}: cannot be made: {_reason(error)}") from error
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if max_bytes is not None:
                page = self._db.execute("PRAGMA page_size").fetchone()[0]
                self._db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page)}")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._db.close()
            shutil.rmtree(path, ignore_errors=True)
            raise StoreError(f"run folder {path}: no database: {_reason(error)}") from error

    @classmethod
    def create(cls, runs: Path, name: str) -> Self:
        """A new run folder under ``runs`` with an id of its own."""
        while True:
            try:
                return cls(runs / new_run_id(name))
            except StoreError as error:
                if not isinstance(error.__cause__, FileExistsError):
                    raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def manifest(self) -> Mapping[str, object]:
        """What ``manifest.json`` says."""
        return self._manifest

    def update_manifest(self, **entries: object) -> None:
        """Set entries and write ``manifest.json`` at once; raises :class:`StoreFull` on a full disk."""
        self._manifest.update(entries)
        try:
            write_json(self.path / MANIFEST, self._manifest)
        except OSError as error:
            raise self._failure(error) from error

    def add_kpis(self, kpis: Iterable[Kpi]) -> None:
        """Take KPIs in; values must be finite (ValueError naming the KPI)."""
        series, append = self._series, self._samples.append
        for kpi in kpis:
            value = float(kpi.value)
            if not math.isfinite(value):
                raise ValueError(f"KPI {kpi.name} of {kpi.entity} at {kpi.time_s:g} s must be finite, got {value}")
            key = (kpi.entity, kpi.name)
            number = series.get(key)
            if number is None:
                number = series[key] = len(series) + 1
                self._new_series.append((number, *key))
            append((number, float(kpi.time_s), value))

    def add_action(self, source: str, outcome: Outcome) -> None:
        """Take in what became of one action of ``source`` (a controller, ``event`` or ``agent``)."""
        action = outcome.action
        value = action.value if isinstance(action.value, str) else float(action.value)
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # SQLite would keep NaN as NULL
        self._actions.append(
            (
                outcome.time_s,
                source,
                action.entity,
                action.knob,
                value,
                int(outcome.applied),
                outcome.reason,
                outcome.lag_s,
            )
        )

    def add_event(self, time_s: float, source: str, kind: str, text: str) -> None:
        """Take in something that happened, in words; ``kind`` groups it (``fault``, ``label``)."""
        self._events.append((time_s, source, kind, text))

    def add_probes(self, probes: Iterable[Probe]) -> None:
        """Take in what was found after bring-up."""
        self._probes.extend(
            (probe.item, probe.unit, probe.declared, probe.measured, int(probe.passed), probe.detail)
            for probe in probes
        )

    def add_timing(self, time_s: float, entity: str, name: str, value: float) -> None:
        """Take in a wall-clock figure of a deterministic run, which must not be among its KPIs."""
        self._timings.append((time_s, entity, name, value))

    @property
    def pending(self) -> int:
        """Rows that the next commit will write."""
        return len(self._samples)

    def commit(self) -> None:
        """Write everything taken in since the last commit, all of it or nothing.

        Raises :class:`StoreFull` when there is no space (once: later calls do nothing, the rows that
        did not fit are lost), :class:`StoreError` when the disk fails.
        """
        if self._broken is not None or self._db is None:
            return
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO series VALUES(?, ?, ?)", self._new_series)
            self._db.executemany("INSERT INTO sample VALUES(?, ?, ?)", self._samples)
            self._db.executemany("INSERT INTO actions VALUES(?, ?, ?, ?, ?, ?, ?, ?)", self._actions)
            self._db.executemany("INSERT INTO events VALUES(?, ?, ?, ?)", self._events)
            self._db.executemany("INSERT INTO probes VALUES(?, ?, ?, ?, ?, ?)", self._probes)
            self._db.executemany("INSERT INTO timings VALUES(?, ?, ?, ?)", self._timings)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # a full disk has rolled back already
                self._db.execute("ROLLBACK")
            self._forget()
            self._broken = self._failure(error)
            raise self._broken from error
        except BaseException:
            # A signal handler raised: either nothing was written yet, or all of it.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            else:
                self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        for rows in (
            self._new_series,
            self._samples,
            self._actions,
            self._events,
            self._probes,
            self._timings,
        ):
            rows.clear()

    def finish(self, status: Status, reason: str = "", **entries: object) -> None:
        """Write the rest and the last manifest; never raises for a disk that is full already."""
        full = ""
        try:
            self.commit()
            if self._db is not None and self._broken is None:
                self._db.execute("CREATE INDEX sample_series ON sample(series_id, time_s)")
        except sqlite3.Error:
            # Reads work without the index, only slower.
            pass
        except StoreError as error:
            status, full = "FAILED", str(error)
        self._reserve.unlink(missing_ok=True)
        with suppress(StoreFull):
            self.update_manifest(
                status=status,
                reason=reason or full,
                ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
                **entries,
            )
        self.close()

    def close(self) -> None:
        """Close the database and leave one file that opens from read-only media; may be called twice."""
        if self._db is None:
            return
        if self._broken is None:
            # Refused while somebody reads, and then the WAL files stay beside the database.
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()
        self._db = None
        self._reserve.unlink(missing_ok=True)

    def _failure(self, error: Exception) -> StoreError:
        free = shutil.disk_usage(self.path).free
        code = getattr(error, "sqlite_errorcode", None)
        number = getattr(error, "errno", None)
        full = code == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # SQLite reports a limit on the size of files, and a -shm file that cannot grow, as I/O errors.
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        if full or (code is not None and code & 0xFF == sqlite3.SQLITE_IOERR and (limited or free < 2**20)):
            return StoreFull(f"run folder {self.path}: no space left ({free / 2**20:.1f} MiB free): {_reason(error)}")
        return StoreError(f"run folder {self.path}: {_reason(error)}")


class KpiReader:
    """Reads a run folder, also while the run writes; closable. Every call sees what is committed."""

    def __init__(self, path: Path) -> None:
        """Open the run folder ``path``; :class:`StoreError` when it holds no run."""
        self.path = path
        database = path / DATABASE
        if not database.is_file():
            raise StoreError(f"run folder {path}: no {DATABASE}")
        try:
            self.manifest = read_manifest(path)
            self._db = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise StoreError(f"run folder {path}: {DATABASE}: {_reason(error)}") from error
        try:
            self._db.execute("SELECT count(*) FROM series").fetchone()
        except sqlite3.Error as error:
            self._db.close()
            raise StoreError(f"run folder {path}: {DATABASE}: {_reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the database; may be called twice."""
        self._db.close()

    def names(self) -> list[tuple[str, str]]:
        """All (entity, KPI name) in order of first appearance."""
        return list(self._db.execute("SELECT entity, name FROM series ORDER BY id"))

    def series(self, entity: str, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times and values of one KPI, shape (n,) each, in order of time; n = 0 when there is none."""
        rows = self._db.execute(
            "SELECT time_s, value FROM sample WHERE series_id = (SELECT id FROM series WHERE entity = ? AND name = ?)"
            " ORDER BY time_s, rowid",
            (entity, name),
        ).fetchall()
        table = np.asarray(rows, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def summary(self) -> dict[str, dict[str, Summary]]:
        """``{entity: {name: Summary}}`` over the whole run."""
        values: dict[int, list[float]] = {}
        for number, value in self._db.execute("SELECT series_id, value FROM sample ORDER BY time_s, rowid"):
            values.setdefault(number, []).append(value)
        result: dict[str, dict[str, Summary]] = {}
        for number, entity, name in self._db.execute("SELECT id, entity, name FROM series ORDER BY id"):
            if number in values:
                array = np.asarray(values[number])
                result.setdefault(entity, {})[name] = Summary(
                    float(array.mean()),
                    float(array.min()),
                    float(array.max()),
                    float(array[-1]),
                    float(np.percentile(array, 95)),
                    int(array.size),
                )
        return result

    def rows(self, table: str = "kpi") -> Iterator[tuple[object, ...]]:
        """All rows of one table, in the order they were written; ValueError for an unknown table."""
        if table not in TABLES:
            raise ValueError(f"no table named {table!r}; tables: {', '.join(TABLES)}")
        order = "sample.rowid" if table == "kpi" else "rowid"
        source = "sample JOIN series ON series.id = sample.series_id" if table == "kpi" else table
        columns = "time_s, entity, name, value" if table == "kpi" else "*"
        yield from self._db.execute(f"SELECT {columns} FROM {source} ORDER BY {order}")

    def actions(self) -> list[ActionRow]:
        """Every action of the run with its outcome."""
        return [
            ActionRow(row[0], row[1], row[2], row[3], row[4], bool(row[5]), row[6], row[7])
            for row in self._db.execute("SELECT * FROM actions ORDER BY rowid")
        ]

    def events(self) -> list[EventRow]:
        """What happened, in words."""
        return [EventRow(*row) for row in self._db.execute("SELECT * FROM events ORDER BY rowid")]

    def probes(self) -> list[Probe]:
        """What was declared and what was found after bring-up."""
        return [
            Probe(row[0], row[1], row[2], row[3], bool(row[4]), row[5])
            for row in self._db.execute("SELECT * FROM probes ORDER BY rowid")
        ]

    def export_parquet(self, folder: Path) -> list[Path]:
        """Write one Parquet file per table into ``folder``; what is there under these names is replaced."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for table in TABLES:
            columns = [row[1] for row in self._db.execute(f"PRAGMA table_info({table})")]
            # The value of an action is a number or a word; as text both fit one column.
            numbers = _NUMBERS - {"value"} if table == "actions" else _NUMBERS
            types = {
                column: pa.float64() if column in numbers else pa.bool_() if column in _FLAGS else pa.string()
                for column in columns
            }
            casts = {column: float if column in numbers else bool if column in _FLAGS else str for column in columns}
            schema = pa.schema(list(types.items()))
            path = folder / f"{table}.parquet"
            with closing(pq.ParquetWriter(path, schema)) as writer:
                for batch in _batches(self.rows(table), 100_000):
                    content = {
                        column: [casts[column](item) for item in array]
                        for column, array in zip(columns, zip(*batch, strict=True), strict=True)
                    }
                    writer.write_table(pa.Table.from_pydict(content, schema=schema))
            written.append(path)
        return written


def read_manifest(path: Path) -> dict[str, object]:
    """The manifest of a run folder; :class:`StoreError` when there is none or it is damaged.

    A run whose process is gone without having finished it (kill -9, a power cut) reads as FAILED.
    """
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"run folder {path}: no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"run folder {path}: {MANIFEST} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StoreError(f"run folder {path}: {MANIFEST} must be an object, got {type(content).__name__}")
    if _abandoned(content):
        reason = f"its process (pid {content['pid']}) ended without finishing the run"
        content |= {"status": "FAILED", "reason": reason}
    return content


def _abandoned(manifest: Mapping[str, object]) -> bool:
    """Whether nobody will finish a run that is not finished; False when that cannot be told from this host."""
    pid, boot, host = manifest.get("pid"), manifest.get("boot_id"), manifest.get("host")
    if manifest.get("status") != "RUNNING" or not isinstance(pid, int) or boot is None:
        return False
    if boot != boot_id():
        return isinstance(host, dict) and host.get("name") == platform.node()
    return start_ticks(pid) != manifest.get("start_ticks")


def _reason(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    return f"{error} ({name})" if name else str(error)


def _batches(rows: Iterator[tuple[object, ...]], size: int) -> Iterator[Sequence[tuple[object, ...]]]:
    batch: list[tuple[object, ...]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
