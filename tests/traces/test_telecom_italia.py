"""The activity reader: both layouts, joins, every refusal, and its memory bound."""

from __future__ import annotations

import gzip
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from traces.model import TraceError
from traces.synthesis import synthesise, write_files
from traces.telecom_italia import read_cell, read_cells

MIDNIGHT = 1383260400000
STEP = 600_000


def row(square: int, slot: int, country: int, *values: str) -> str:
    cells = list(values) + [""] * (5 - len(values))
    return "\t".join([str(square), str(MIDNIGHT + slot * STEP), str(country), *cells])


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def day(tmp_path: Path) -> Path:
    return write(
        tmp_path / "day.txt",
        row(1, 0, 0, "0.08"),
        row(1, 1, 39, "0.1", "0.2", "0.3", "0.4", "11.5"),
        row(5161, 1, 0, "", "", "", "", "1.25"),
        row(5161, 1, 39, "1", "2", "3", "4", "20.5"),
        row(5161, 3, 39, "", "", "", "", "7"),
        row(6000, 4, 39, "", "5"),
    )


def test_countries_are_summed_and_gaps_are_no_activity(day: Path) -> None:
    trace = read_cell(day, 5161)
    assert trace.unit == "cdr"
    assert trace.times_s.tolist() == [0, 600, 1200, 1800, 2400]
    assert trace.values.tolist() == [0, 21.75, 0, 7, 0]
    assert read_cell(day, 5161, column="sms_in").values.tolist() == [0, 1, 0, 0, 0]


def test_cells_share_one_time_axis(day: Path) -> None:
    cells = read_cells(day, (6000, 1), column="sms_out")
    assert cells[1].times_s.tolist() == cells[6000].times_s.tolist()
    assert cells[6000].values.tolist() == [0, 0, 0, 0, 5]


def test_gzip_is_told_by_content(day: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.bin"
    packed.write_bytes(gzip.compress(day.read_bytes()))
    assert read_cell(packed, 5161).values.tolist() == read_cell(day, 5161).values.tolist()


def test_last_line_without_line_feed_and_windows_line_ends(day: Path) -> None:
    expected = read_cell(day, 5161).values.tolist()
    text = day.read_text().rstrip("\n")
    day.write_bytes(text.replace("\n", "\r\n").encode())
    assert read_cell(day, 5161).values.tolist() == expected


def test_several_files_join(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", row(7, 0, 39, "", "", "", "", "1"), row(7, 143, 39, "", "", "", "", "2"))
    second = write(tmp_path / "b.txt", row(7, 144, 39, "", "", "", "", "3"))
    trace = read_cell((first, second), 7)
    assert trace.values.size == 145
    assert trace.values[[0, 143, 144]].tolist() == [1, 2, 3]


def test_hourly_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path / "hourly.csv",
        "datetime,CellID,countrycode,smsin,smsout,callin,callout,internet",
        "2013-11-01 00:00:00,5161,39,1,,,,4.5",
        "2013-11-01 00:00:00,5161,0,1,,,,0.5",
        "2013-11-01 02:00:00,5161,39,,,,,8",
        "2013-11-01 02:00:00,5162,39,,,,,1",
    )
    trace = read_cell(path, 5161)
    assert trace.times_s.tolist() == [0, 3600, 7200]
    assert trace.values.tolist() == [5, 0, 8]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(1, 0, 39), "1\t1383260400000\t39\t0.1"], r"bad.txt:2: needs 8 fields separated by tabs .*, got 4"),
        ([row(1, 0, 39), row(1, 1, 39).replace("\t", ",")], r"bad.txt:2: .* separated by commas"),
        ([row(1, 0, 39).replace("\t", ";")], r"bad.txt:1: .* separated by semicolons"),
        ([row(1, 0, 39), "", row(1, 1, 39)], r"bad.txt:2: needs 8 fields .*, got 1"),
        ([row(1, 0, 39) + "\t", row(1, 1, 39)[:-1]], r"bad.txt:1: needs 8 fields .*, got 9"),
        ([row(1, 0, 39, "many")], r"bad.txt:1: sms_in must be a number or empty, got 'many'"),
        ([row(1, 0, 39, "", "", "", "", "-2")], r"bad.txt:1: internet must be finite and not negative, got '-2'"),
        ([row(1, 0, 39, "nan")], r"bad.txt:1: sms_in must be finite"),
        ([row(1, 0, 39), row(1, 1, 39).replace("1\t", "x\t", 1)], r"bad.txt:2: square_id must be a whole number"),
        ([row(2, 0, 1), "2\tnoon\t39\t\t\t\t\t"], r"bad.txt:2: time must be a whole number"),
        ([row(1, 3, 39), row(1, 1, 39)], r"bad.txt:2: times of square 1 must not go back, got 2013-10-31 23:10 UTC"),
        ([row(1, 3, 39), row(1, 3, 39)], r"bad.txt:2: square 1, 2013-10-31 23:30 UTC, country '39' appears twice"),
        ([row(1, 0, 39), "1\t1383260400001\t39\t\t\t\t\t"], r"bad.txt:2: times must be 600 s apart"),
        ([row(3, 0, 39), row(9, 0, 39)], r"no row of square 1; the 2 squares are in \[3, 9\], nearest 3, 9"),
        ([], "bad.txt: the file is empty"),
        (["datetime,Cell,x"], "bad.txt:1: the header must be datetime,CellID,"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "bad.txt", *lines)
    with pytest.raises(TraceError, match=message) as caught:
        read_cell(path, 1)
    assert "\n" not in str(caught.value)


def test_csv_refusals(tmp_path: Path) -> None:
    head = "datetime,CellID,countrycode,smsin,smsout,callin,callout,internet"
    late = write(tmp_path / "late.csv", head, "2013-11-01 00:00:00,1,39,,,,,1", "2013-13-01 00:00:00,1,39,,,,,1")
    with pytest.raises(TraceError, match=r"late.csv:3: datetime must look like .* got '2013-13-01 00:00:00'"):
        read_cell(late, 1)
    short = write(tmp_path / "short.csv", head, "2013-11-01,1,39,,,,,1")
    with pytest.raises(TraceError, match=r"short.csv:2: datetime must look like"):
        read_cell(short, 1)
    with pytest.raises(TraceError, match=r"head.csv: the file is empty"):
        read_cell(write(tmp_path / "head.csv", head), 1)


def test_bad_arguments(day: Path, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"column must be one of .*, got 'internets'; did you mean internet\?"):
        read_cell(day, 1, column="internets")
    with pytest.raises(TraceError, match=r"square_id must be in \[1, 99999\], got 0"):
        read_cell(day, 0)
    with pytest.raises(TraceError, match=r"none.txt: cannot be read: No such file"):
        read_cell(tmp_path / "none.txt", 1)
    with pytest.raises(TraceError, match="needs at least one file"):
        read_cells([], (1,))


def test_file_order(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", row(1, 0, 39))
    second = write(tmp_path / "b.txt", row(1, 10, 39))
    far = write(tmp_path / "c.txt", row(1, 400, 39))
    with pytest.raises(TraceError, match=r"a.txt:1: times of square 1 must not go back"):
        read_cell((second, first), 1)
    with pytest.raises(TraceError, match=r"c.txt: at least one day is missing"):
        read_cell((first, far), 1)
    other = write(tmp_path / "d.txt", row(2, 0, 39))
    with pytest.raises(TraceError, match=r"d.txt: files must be given in order of time and must not overlap"):
        read_cell((first, other), 1)


def test_truncated_gzip(tmp_path: Path) -> None:
    lines = "".join(row(square, slot, 39, "1.23456") + "\n" for square in range(1, 40) for slot in range(144))
    path = tmp_path / "cut.txt.gz"
    path.write_bytes(gzip.compress(lines.encode())[:-2000])
    with pytest.raises(TraceError, match=r"cut.txt.gz: the gzip is truncated or damaged"):
        read_cell(path, 1)
    damaged = bytearray(gzip.compress(lines.encode()))
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(TraceError, match=r"cut.txt.gz"):
        read_cell(path, 1)


def test_what_the_synthesiser_writes_is_read_back(tmp_path: Path) -> None:
    paths = write_files(tmp_path, (5161, 4259), np.random.default_rng(3), first_day=date(2013, 11, 4), days=2)
    made = synthesise((5161, 4259), np.random.default_rng(3), first_day=date(2013, 11, 4), days=2)
    for square, trace in read_cells(paths, (5161, 4259)).items():
        np.testing.assert_allclose(trace.values, made[square].values, rtol=1e-12)
        assert trace.times_s.tolist() == made[square].times_s.tolist()


_MEASURE = """
import resource, sys
from traces.telecom_italia import read_cell
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_cell(sys.argv[1], 5161)
small = peak()
read_cell(sys.argv[2], 5161)
print(peak() - small)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    one_square = "".join(
        row(5161, slot, country, "0.14186425470242922", "", "0.16093793691701822", "", f"{slot}.028366381681026") + "\n"
        for slot in range(144)
        for country in (0, 33, 39)
    )
    small, big = tmp_path / "small.txt", tmp_path / "big.txt"
    for path, squares in ((small, range(5000, 5400)), (big, range(5000, 8000))):
        with path.open("w") as stream:
            for square in squares:
                stream.write(one_square.replace("5161\t", f"{square}\t"))
    size_mb = big.stat().st_size / 1e6
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(small), str(big)], capture_output=True, text=True, check=True, timeout=120
    )
    assert size_mb > 75
    grown_mib = int(done.stdout) / 1024
    assert grown_mib < 8, f"peak memory grew by {grown_mib:.1f} MiB over a {size_mb:.0f} MB file"
