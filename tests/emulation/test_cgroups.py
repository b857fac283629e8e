"""Control groups: version 1 and 2 on trees of plain files, and the real thing of this host."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twin.emulation import cgroups
from twin.emulation.cgroups import Cgroup, CgroupError, Layout, quota_and_period
from twin.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.create(f"cg-{secrets.token_hex(4)}", folder=tmp_path / "journal") as opened:
        yield opened


def fake_version_1(root: Path) -> Cgroup:
    files = {
        "cpu": {
            "cpu.cfs_quota_us": "-1\n",
            "cpu.cfs_period_us": "100000\n",
            "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\n",
        },
        "cpuacct": {"cpuacct.usage": "1500000000\n"},
        "memory": {
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.memsw.limit_in_bytes": "9223372036854771712\n",
            "memory.usage_in_bytes": "3000\n",
            "memory.stat": "total_inactive_file 1000\n",
        },
    }
    return _fake(root, 1, {controller: root / controller for controller in files}, files)


def fake_version_2(root: Path) -> Cgroup:
    files = {
        "cpu": {
            "cpu.max": "max 100000\n",
            "cpu.stat": "usage_usec 1500000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n",
            "memory.max": "max\n",
            "memory.swap.max": "max\n",
            "memory.current": "3000\n",
            "memory.stat": "inactive_file 1000\n",
        }
    }
    return _fake(root, 2, dict.fromkeys(("cpu", "cpuacct", "memory"), root / "cpu"), files)


def _fake(root: Path, version: int, folders: dict[str, Path], files: dict[str, dict[str, str]]) -> Cgroup:
    for controller, contents in files.items():
        (root / controller).mkdir()
        for name, text in contents.items():
            (root / controller / name).write_text(text)
        (root / controller / "cgroup.procs").write_text("")
    return Cgroup("fake", version, folders)


@pytest.mark.parametrize("make", [fake_version_1, fake_version_2])
def test_counters_and_limits_read_the_same_in_both_versions(make: type, tmp_path: Path) -> None:
    group: Cgroup = make(tmp_path)
    stats = group.stats()
    assert (stats.cpu_used_s, stats.periods, stats.throttled_periods, stats.throttled_s) == (1.5, 10, 4, 2.5)
    assert (stats.memory_used_bytes, stats.memory_limit_bytes, stats.cpu_limit_millicores) == (2000, None, None)
    group.set_cpu(250)
    group.set_memory(64)
    stats = group.stats()
    assert (stats.memory_limit_bytes, stats.cpu_limit_millicores) == (64 << 20, 250)
    group.set_cpu(None)
    assert group.stats().cpu_limit_millicores is None


def test_files_of_version_1(tmp_path: Path) -> None:
    group = fake_version_1(tmp_path)
    group.set_cpu(250)
    assert (tmp_path / "cpu/cpu.cfs_quota_us").read_text() == "5000"
    assert (tmp_path / "cpu/cpu.cfs_period_us").read_text() == "20000"
    group.set_memory(64)
    assert (tmp_path / "memory/memory.memsw.limit_in_bytes").read_text() == str(64 << 20)
    group.set_memory(None)
    assert (tmp_path / "memory/memory.limit_in_bytes").read_text() == "-1"
    assert [path.parent.name for path in group.members()] == ["cpu", "cpuacct", "memory"]


def test_files_of_version_2(tmp_path: Path) -> None:
    group = fake_version_2(tmp_path)
    group.set_cpu(250)
    group.set_memory(64)
    assert (tmp_path / "cpu/cpu.max").read_text() == "5000 20000"
    assert (tmp_path / "cpu/memory.max").read_text() == str(64 << 20)
    assert (tmp_path / "cpu/memory.swap.max").read_text() == "0"
    group.set_cpu(None)
    assert (tmp_path / "cpu/cpu.max").read_text() == "max 100000"
    assert len(group.members()) == 1


@pytest.mark.parametrize(
    ("millicores", "expected"),
    [
        (1000, (20_000, 20_000)),
        (2500, (50_000, 20_000)),
        (50, (1000, 20_000)),
        (20, (1000, 50_000)),
        (1, (1000, 10**6)),
    ],
)
def test_a_small_quota_gets_a_longer_period(millicores: float, expected: tuple[int, int]) -> None:
    assert quota_and_period(millicores) == expected


@pytest.mark.parametrize(
    ("millicores", "period_us", "text"),
    [
        (0, None, "cpu_millicores must be at least 1, got 0"),
        (-5, None, "cpu_millicores must be at least 1, got -5"),
        (float("nan"), None, "cpu_millicores must be at least 1, got nan"),
        (100, 10, r"period_us must be in \[1000, 1000000\], got 10"),
        (10, 20_000, "period_us must be at least 100000 for 10 millicores, got 20000"),
    ],
)
def test_limits_that_cannot_be(millicores: float, period_us: int | None, text: str) -> None:
    with pytest.raises(CgroupError, match=text):
        quota_and_period(millicores, period_us)


def test_memory_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match="memory_mib must be positive, got 0"):
        fake_version_2(tmp_path).set_memory(0)


def test_layout_of_mount_tables(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    table.write_text("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
    layout = Layout.of_host(table)
    assert (layout.version, layout.roots["memory"]) == (2, Path("/sys/fs/cgroup"))
    table.write_text(
        "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    layout = Layout.of_host(table)
    assert layout.version == 1
    assert layout.roots["cpu"] == layout.roots["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    table.write_text("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n")
    with pytest.raises(CgroupError, match="version 1 without cpuacct, memory"):
        Layout.of_host(table)
    unified = tmp_path / "unified"
    unified.mkdir()
    table.write_text(f"cgroup2 {unified} cgroup2 rw 0 0\n")
    (unified / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert Layout.of_host(table).version == 2
    for offered, said in (
        ("hugetlb cpu", "has hugetlb, cpu, not memory"),
        ("", "has no controller, not cpu and memory"),
    ):
        (unified / "cgroup.controllers").write_text(offered + "\n")
        with pytest.raises(CgroupError, match=said):
            Layout.of_host(table)
    table.write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(CgroupError, match="none mounted"):
        Layout.of_host(table)


def test_tree_of_version_2_enables_controllers_for_children(tmp_path: Path, journal: Journal) -> None:
    root = tmp_path / "unified"
    root.mkdir()
    (root / "cgroup.subtree_control").write_text("")
    (root / "twinbed").mkdir()
    (root / "twinbed/cpu.weight").write_text("100")
    layout = Layout(2, dict.fromkeys(("cpu", "cpuacct", "memory"), root))
    Cgroup.create("r1", "slice", journal=journal, layout=layout)
    assert (root / "twinbed/r1/slice").is_dir()
    for parent in (root, root / "twinbed", root / "twinbed/r1"):
        assert (parent / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert [dict(entry.ids) for entry in journal.entries] == [{"paths": [str(root / "twinbed/r1/slice")]}]
    # All runs together come before the other programs of the host.
    assert (root / "twinbed/cpu.weight").read_text() == "10000"


def test_an_adopted_group_is_the_same_group(tmp_path: Path, journal: Journal) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    layout = Layout(2, dict.fromkeys(("cpu", "cpuacct", "memory"), root))
    made = Cgroup.create("r1", "p1", journal=journal, layout=layout)
    adopted = Cgroup.adopt("r1", "p1", journal=journal, layout=layout)
    assert (adopted.label, adopted.version, adopted.folders) == (made.label, made.version, made.folders)
    adopted.set_weight(1600)
    assert (root / "twinbed/r1/p1/cpu.weight").read_text() == "1600"
    with pytest.raises(CgroupError, match="weight must be in"):
        adopted.set_weight(0)
    with pytest.raises(CgroupError, match="not in the journal"):
        Cgroup.adopt("r1", "p2", journal=journal, layout=layout)
    for file in (root / "twinbed/r1/p1").iterdir():
        file.unlink()
    adopted.remove()
    assert journal.entries == ()


def test_names_stay_inside_the_tree(journal: Journal) -> None:
    with pytest.raises(CgroupError, match="control group name must match"):
        Cgroup.create("run", "../other", journal=journal)
    with pytest.raises(CgroupError, match="control group name must match"):
        Cgroup.create("run", "..", journal=journal)
    assert journal.entries == ()


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
class TestThisHost:
    def test_limit_change_stats_remove(self, journal: Journal) -> None:
        group = Cgroup.create(journal.run_id, "a", cpu_millicores=200, memory_mib=64, journal=journal)
        process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            assert len(journal.entries) == 1
            with pytest.raises(CgroupError, match="exists already"):
                Cgroup.create(journal.run_id, "a", journal=journal)
            assert len(journal.entries) == 1
            group.add(process.pid)
            assert group.pids() == [process.pid]
            tree = group.folders["cpu"].parents[1]
            weight = tree / ("cpu.weight" if group.version == 2 else "cpu.shares")
            assert int(weight.read_text()) == (10_000 if group.version == 2 else 262_144)
            time.sleep(0.5)
            stats = group.stats()
            assert stats.cpu_limit_millicores == 200
            assert stats.memory_limit_bytes == 64 << 20
            assert 0 < stats.cpu_used_s < 0.2
            assert stats.throttled_periods > 0
            started = time.perf_counter()
            for millicores in range(100, 120):
                group.set_cpu(millicores)
            assert (time.perf_counter() - started) / 20 < 0.005
            assert group.stats().cpu_limit_millicores == pytest.approx(119)
            group.set_memory(32)
            group.set_memory(128)
            assert group.stats().memory_limit_bytes == 128 << 20
        finally:
            group.remove()
            assert process.wait(5) != 0  # what is left in a group ends with it
        group.remove()
        assert journal.entries == ()
        assert not any(folder.parent.exists() for folder in group.folders.values())

    def test_children_follow(self, journal: Journal) -> None:
        group = Cgroup.create(journal.run_id, "b", journal=journal)
        command = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
        with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True) as parent:
            try:
                assert parent.stdout is not None
                child = int(parent.stdout.readline())
                group.add(parent.pid)
                assert sorted(group.pids()) == sorted([parent.pid, child])
                files = cgroups.procs_files(parent.pid)
                assert set(group.members()) <= set(files)
            finally:
                group.remove()
