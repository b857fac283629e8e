from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin import journal
from twin.journal import Journal, JournalError

NAMES = st.text(min_size=1, max_size=40)
THINGS = st.one_of(
    st.tuples(st.sampled_from(["container", "bridge", "interface", "netns"]), st.fixed_dictionaries({"name": NAMES})),
    st.tuples(st.sampled_from(["folder", "file", "mount"]), st.fixed_dictionaries({"path": NAMES})),
    st.tuples(st.just("process"), st.fixed_dictionaries({"pid": st.integers(1), "start_ticks": st.integers(0)})),
    st.tuples(st.just("cgroup"), st.fixed_dictionaries({"paths": st.lists(NAMES, max_size=3)})),
)
# A step writes some things down, or ends one of those that are open (by its place among them).
STEPS = st.lists(st.one_of(st.lists(THINGS, min_size=1, max_size=3), st.integers(0, 50)), max_size=20)


def carry_out(open_journal: Journal, steps: list[Any]) -> list[tuple[int, str, Any]]:
    expected: dict[int, tuple[int, str, Any]] = {}
    for step in steps:
        if isinstance(step, int):
            if expected:
                number = list(expected)[step % len(expected)]
                open_journal.done(number)
                del expected[number]
            continue
        for number, (kind, ids) in zip(open_journal.record_many(step), step, strict=True):
            expected[number] = (number, kind, ids)
    return list(expected.values())


def as_tuples(entries: tuple[journal.Entry, ...]) -> list[tuple[int, str, Any]]:
    return [(entry.number, entry.kind, dict(entry.ids)) for entry in entries]


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_what_is_read_is_what_was_recorded_and_not_done(steps: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal.create("run", folder=Path(folder)) as ours:
        expected = carry_out(ours, steps)
        found = journal.read(ours.path)
        assert as_tuples(found.entries) == expected == as_tuples(ours.entries)
        assert found.damaged == 0
        assert found.alive


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, data=st.data())
def test_a_journal_cut_anywhere_still_names_everything_that_was_flushed(steps: list[Any], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal.create("run", folder=Path(folder)) as ours:
        carry_out(ours, steps)
        whole = ours.path.read_bytes()
        header = whole.index(b"\n") + 1
        cut = data.draw(st.integers(header, len(whole)))
        ours.path.write_bytes(whole[:cut])
        complete = whole[header:cut].rpartition(b"\n")[0].splitlines()
        expected: dict[int, Any] = {}
        for line in map(json.loads, complete):
            if "done" in line:
                for number in line["done"]:
                    expected.pop(number, None)
            else:
                expected[line["id"]] = line
        found = journal.read(ours.path)
        # A line whose newline alone is missing is whole, and may be believed or not.
        torn = [entry for entry in found.entries if entry.number not in expected]
        assert len(torn) <= 1
        assert found.damaged == 0
        assert {entry.number for entry in found.entries} >= set(expected) - set(_done_in(whole[header:cut]))
        # What gc appends after a torn line is read again.
        journal.mark_done(ours.path, [entry.number for entry in found.entries])
        assert journal.read(ours.path).entries == ()


def _done_in(text: bytes) -> list[int]:
    last = text.rpartition(b"\n")[2]
    try:
        return list(json.loads(last).get("done", []))
    except ValueError:
        return []


def test_close_removes_the_file_when_nothing_is_left_and_keeps_it_otherwise(tmp_path: Path) -> None:
    with Journal.create("clean", folder=tmp_path) as clean:
        clean.done(clean.record("interface", name="x"))
    assert not clean.path.exists()
    with Journal.create("dirty", folder=tmp_path) as dirty:
        dirty.record("interface", name="x")
    found = journal.read(dirty.path)
    assert [entry.ids for entry in found.entries] == [{"name": "x"}]
    assert not found.alive
    dirty.close()
    with pytest.raises(JournalError, match="closed"):
        dirty.record("interface", name="y")


def test_the_owner_is_recognised_dead_also_when_its_pid_lives_on(tmp_path: Path) -> None:
    with Journal.create("run", folder=tmp_path) as ours:
        assert journal.owner_alive(ours.path)
        header, _, rest = ours.path.read_text().partition("\n")
        for key, value in (("start_ticks", 1), ("boot_id", "another"), ("pid", 2**22 + 1)):
            ours.path.write_text(json.dumps(json.loads(header) | {key: value}) + "\n" + rest)
            assert not journal.owner_alive(ours.path)


def test_a_record_is_on_disk_before_the_call_returns_and_survives_kill_9(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\n"
        "from twin.journal import Journal\n"
        "ours = Journal.create('killed', folder=pathlib.Path(sys.argv[1]))\n"
        "ours.record('file', path=sys.argv[1] + '/made')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    found = journal.read(tmp_path / "killed.jsonl")
    assert [entry.kind for entry in found.entries] == ["file"]
    assert not found.alive


def test_threads_share_one_journal(tmp_path: Path) -> None:
    with Journal.create("run", folder=tmp_path) as ours:

        def work(worker: int) -> None:
            for number in range(20):
                entry = ours.record("interface", name=f"{worker}-{number}")
                if number % 2:
                    ours.done(entry)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = journal.read(ours.path)
        assert {entry.ids["name"] for entry in found.entries} == {f"{w}-{n}" for w in range(8) for n in range(0, 20, 2)}
        ours.done(*(entry.number for entry in found.entries))


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_malformed_run_id_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(JournalError, match="run id must match"):
        Journal.create(run_id, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with Journal.create("run", folder=tmp_path) as ours:
        with pytest.raises(JournalError, match="already has a journal"):
            Journal.create("run", folder=tmp_path)
        with pytest.raises(JournalError, match="kind must be one of container, bridge"):
            ours.record("thing", name="x")
        with pytest.raises(JournalError, match="process needs pid, start_ticks, missing start_ticks"):
            ours.record("process", pid=1)
        assert journal.read(ours.path).entries == ()
    (tmp_path / "foreign.jsonl").write_text("{}\n")
    with pytest.raises(JournalError, match="not a journal of this version"):
        journal.read(tmp_path / "foreign.jsonl")
    with pytest.raises(JournalError, match="cannot write the journal"):
        Journal.create("run", folder=Path("/proc/nowhere"))
    assert list(journal.records(tmp_path)) == []


def test_a_full_disk_is_an_error_and_loses_no_line(tmp_path: Path) -> None:
    with Journal.create("run", folder=tmp_path) as ours:
        ours.record("interface", name="before")
        kept = ours._descriptor
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            ours._descriptor = full.fileno()
            with pytest.raises(JournalError, match="No space left"):
                ours.record("interface", name="refused")
            ours._descriptor = kept
        ours.record("interface", name="after")
        assert [entry.ids["name"] for entry in journal.read(ours.path).entries] == ["before", "after"]
        ours.done(*(entry.number for entry in ours.entries))


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TWINBED_STATE", str(tmp_path))
    assert journal.default_folder() == tmp_path / "journal"
    monkeypatch.delenv("TWINBED_STATE")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert journal.default_folder() == Path("/var/lib/twinbed/journal")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert journal.default_folder() == tmp_path / "state" / "twinbed" / "journal"


_OWNER = """
import sys
from pathlib import Path
from twin.journal import Journal
journal = Journal.create("guests", folder=Path(sys.argv[1]))
first = journal.record("netns", name="a")
journal.record("cgroup", paths=["/sys/fs/cgroup/x"])
journal.done(first)
if sys.argv[2] == "stay":
    print("up", flush=True)
    sys.stdin.read()
"""


def test_adopt_takes_over_what_a_dead_owner_listed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _OWNER, str(tmp_path), "end"], check=True)
    before = journal.read(tmp_path / "guests.jsonl")
    with Journal.adopt("guests", folder=tmp_path) as adopted:
        assert adopted.entries == before.entries
        now = journal.read(adopted.path)
        assert (now.alive, now.pid, now.entries) == (True, os.getpid(), before.entries)
        number = adopted.record("netns", name="b")
        assert number > max(entry.number for entry in before.entries)
        adopted.done(*(entry.number for entry in adopted.entries))
    assert sorted(one.name for one in tmp_path.iterdir()) == [".lock"]


def test_adopt_refuses_a_living_owner(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OWNER, str(tmp_path), "stay"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(JournalError, match=f"belongs to process {owner.pid}, which is alive"):
            Journal.adopt("guests", folder=tmp_path)
        owner.communicate()


def test_adopt_refuses_another_boot_and_none(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot read the journal"):
        Journal.adopt("guests", folder=tmp_path)
    subprocess.run([sys.executable, "-c", _OWNER, str(tmp_path), "end"], check=True)
    path = tmp_path / "guests.jsonl"
    path.write_text(path.read_text().replace(journal.boot_id(), "another"))
    content = path.read_text()
    with pytest.raises(JournalError, match="before the host restarted"):
        Journal.adopt("guests", folder=tmp_path)
    assert path.read_text() == content
