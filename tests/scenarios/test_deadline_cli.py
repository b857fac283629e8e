"""``twin deadline`` and ``twin period`` as programs: output, exit codes, and what they leave behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from twin.emulation.deadline.tracefs import Tracefs

pytestmark = pytest.mark.emulation

ROOT = Path(__file__).parents[2]
TWIN = [sys.executable, "-m", "scenarios.cli"]
TASK = [sys.executable, str(ROOT / "benchmarks" / "deadline_task.py")]
KEYS = ["time_s", "tid", "budget_s", "period_s", "used_s", "alpha", "delta_s", "response_s"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Journals of this test alone."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    monkeypatch.setenv("TWINBED_STATE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "journal"


def twin(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TWIN, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def poll(condition: Callable[[], bool], within_s: float = 15) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def policy(tid: int) -> int:
    return os.sched_getscheduler(tid) & 0xFF


def instances() -> set[str]:
    with Tracefs.open() as tracefs:
        return {one.name for one in (tracefs.root / "instances").iterdir()}


def test_run_streams_one_object_per_cycle_and_ends_as_the_program(state: Path) -> None:
    program = "import time\nfor _ in range(12): time.sleep(0.1)\nprint('said')\nraise SystemExit(7)"
    done = twin("deadline", "run", "--period", "100ms", "--cycle", "200ms", "--format", "json",
                "--", sys.executable, "-c", program)  # fmt: skip
    assert done.returncode == 7, done.stderr
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(objects) >= 3
    assert all(list(one) == KEYS for one in objects)
    assert objects[-1]["period_s"] == 0.1
    assert "said" in done.stderr
    assert list(state.iterdir()) == [] or [one.name for one in state.iterdir()] == [".lock"]


@pytest.mark.usefixtures("state")
def test_attach_finds_the_period_by_itself_and_gives_everything_back() -> None:
    with subprocess.Popen(
        [*TASK, "periodic", "--period-ms", "40", "--work-ms", "3", "--duration-s", "30"], stdout=subprocess.PIPE
    ) as process:
        done = twin("deadline", "attach", str(process.pid), "--budget", "6ms", "--duration", "6s", "--format", "json")
        assert policy(process.pid) == 0
        process.kill()
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["period_s"] == pytest.approx(0.040, rel=0.01)
    assert last["used_s"] == pytest.approx(0.003, rel=0.3)
    assert "has a period of 40." in done.stderr or "has a period of 39.9" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_gives_everything_back(state: Path, number: signal.Signals, code: int) -> None:
    before = instances()
    with subprocess.Popen(["sleep", "20"]) as sleeper:
        command = [*TWIN, "deadline", "attach", str(sleeper.pid)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as monitor:
            poll(lambda: policy(sleeper.pid) == 6)
            monitor.send_signal(number)
            _, errors = monitor.communicate(timeout=15)
        assert monitor.returncode == code
        assert b"Traceback" not in errors
        assert policy(sleeper.pid) == 0
        sleeper.kill()
    assert instances() <= before | instances() and not any(str(monitor.pid) in name for name in instances())
    assert not list(state.glob("*.jsonl"))


def test_gc_gives_back_what_a_killed_monitor_held(state: Path) -> None:
    with subprocess.Popen(["sleep", "20"]) as sleeper:
        os.setpriority(os.PRIO_PROCESS, sleeper.pid, 5)
        with subprocess.Popen(
            [*TWIN, "deadline", "attach", str(sleeper.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as monitor:
            poll(lambda: policy(sleeper.pid) == 6)
            monitor.kill()
        assert policy(sleeper.pid) == 6
        assert any(f"deadline-{monitor.pid}-" in name for name in instances())
        swept = twin("gc", "--format", "json")
        assert swept.returncode == 0, swept.stderr
        kinds = sorted(row["kind"] for row in json.loads(swept.stdout)["removed"])
        assert kinds == ["reservation", "tracing", "tracing"]
        assert policy(sleeper.pid) == 0
        assert os.getpriority(os.PRIO_PROCESS, sleeper.pid) == 5
        assert not any(f"deadline-{monitor.pid}-" in name for name in instances())
        sleeper.kill()
    assert not list(state.glob("*.jsonl"))


@pytest.mark.usefixtures("state")
def test_period_prints_the_period_or_that_there_is_none() -> None:
    for kind, expected in (("periodic", 0.04), ("aperiodic", None)):
        arguments = ["--period-ms", "40", "--work-ms", "1"] if kind == "periodic" else []
        with subprocess.Popen([*TASK, kind, *arguments, "--duration-s", "30"], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            done = twin("period", str(process.pid), "--format", "json", "--plot")
            process.kill()
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert list(answer) == ["tid", "period_s", "samples", "peaks"]
        assert answer["tid"] == process.pid
        assert f"S(f)/N of thread {process.pid}, N = " in done.stderr
        assert "█" in done.stderr
        if expected is None:
            assert answer["period_s"] is None
            assert answer["samples"] == 100
        else:
            assert answer["period_s"] == pytest.approx(expected, rel=0.01)
            assert answer["peaks"][0]["frequency_hz"] == pytest.approx(25, rel=0.01)


@pytest.mark.usefixtures("state")
def test_a_thread_that_does_not_wake_has_no_answer() -> None:
    with subprocess.Popen(["sleep", "20"]) as sleeper:
        done = twin("period", str(sleeper.pid), "--timeout", "500ms", "--format", "json")
        sleeper.kill()
    assert json.loads(done.stdout) == {"tid": sleeper.pid, "period_s": None, "samples": 0, "peaks": []}
    assert "0 wake-ups are too few to tell; 10 to 100 are needed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["deadline", "attach", "x"], "x: allowed are PID, tid:TID"),
        (["deadline", "attach", "1", "--period", "fast"], "--period: got 'fast'"),
        (["deadline", "attach", "1", "--period", "10ms", "--budget", "20ms"], "budget_s must be in (0, 0.01]"),
        (["deadline", "attach", "1", "--samples", "0"], "samples must be in 1 to 1000, got 0"),
        (["deadline", "attach", "1", "--cycle", "0"], "--cycle: allowed is a time above 0"),
        (["deadline", "run", "--", "/no/such/program"], "no program /no/such/program"),
        (["deadline", "serve", "--listen", "0.0.0.0:1"], "a loopback address like 127.0.0.1:7670, got 0.0.0.0:1"),
        (["period", "1", "--min-period", "3s"], "min_period_s must be above 0 and below max_period_s"),
    ],
)
@pytest.mark.usefixtures("state")
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    done = twin(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class _Local(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("local", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, object]:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data)
    answer = connection.getresponse()
    text = answer.read()
    return answer.status, json.loads(text) if text else None


@pytest.mark.parametrize(
    "arguments", [["attach", str(os.getpid())], ["run", "--", "touch", "never"], ["serve", "--listen", "socket"]]
)
def test_a_user_without_permission_gets_one_line(state: Path, tmp_path: Path, arguments: list[str]) -> None:
    del state
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *TWIN, "deadline", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/tmp")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "twin: SCHED_DEADLINE needs root (CAP_SYS_NICE)\n"
    assert not list(tmp_path.iterdir())


def test_a_host_without_tracefs_has_reservations_without_response_times(state: Path) -> None:
    """In a mount namespace without tracefs, and without the privilege to mount one."""
    script = 'umount -a -t tracefs; exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin "$@"'
    hidden = ["unshare", "-m", "sh", "-c", script, "sh", *TWIN]
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        try:
            period = subprocess.run(
                [*hidden, "period", str(sleeper.pid)], capture_output=True, text=True, timeout=30, check=False
            )
            assert (period.returncode, period.stderr.count("\n")) == (4, 1)
            assert period.stderr.startswith("twin: wake-ups cannot be traced: tracefs needs root")
            words = ["deadline", "attach", str(sleeper.pid), "--cycle", "200ms", "--duration", "1s", "--format", "json"]
            attached = subprocess.run([*hidden, *words], capture_output=True, text=True, timeout=30, check=False)
        finally:
            sleeper.kill()
    assert attached.returncode == 0
    assert "response times are not measured" in attached.stderr and "periods stay at 100 ms" in attached.stderr
    cycles = [json.loads(line) for line in attached.stdout.splitlines()]
    assert cycles and all(one["response_s"] is None and one["budget_s"] > 0 for one in cycles)
    assert not list(state.glob("*.jsonl"))


def test_the_daemon_watches_threads_and_tells_periods(state: Path, tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    command = [*TWIN, "deadline", "serve", "--listen", str(path), "--cycle", "200ms"]
    with (
        subprocess.Popen(
            [*TASK, "periodic", "--period-ms", "40", "--work-ms", "1", "--duration-s", "60"], stdout=subprocess.PIPE
        ) as process,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(daemon.kill)
        ending.callback(process.kill)
        assert daemon.stderr is not None
        assert daemon.stderr.readline() == f"listening on {path}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        connection, tid = ending.enter_context(contextlib.closing(_Local(path))), process.pid
        assert ask(connection, "GET", "/threads") == (200, [])
        assert ask(connection, "POST", "/threads", {"tid": tid, "period_s": 0.04, "budget_s": 0.004})[0] == 201
        assert ask(connection, "POST", "/periods", {"tid": tid})[0] == 201
        assert policy(tid) == 6
        poll(lambda: bool(ask(connection, "GET", "/threads")[1]))
        sample = ask(connection, "GET", f"/threads/{tid}")[1]
        assert isinstance(sample, dict)
        assert list(sample) == KEYS
        poll(lambda: ask(connection, "GET", f"/periods/{tid}")[1]["final"])  # type: ignore[index]
        answer = ask(connection, "GET", f"/periods/{tid}")[1]
        assert isinstance(answer, dict)
        assert answer["period_s"] == pytest.approx(0.04, rel=0.01)
        for method, where, body, status, said in (
            ("POST", "/threads", {"tid": tid}, 409, "watched already"),
            ("POST", "/threads", {"tid": 4_000_000}, 404, "has ended, or never was"),
            (
                "POST",
                "/threads",
                {"tid": tid, "period": 1},
                400,
                "no key 'period'; allowed are tid, period_s, budget_s",
            ),
            ("POST", "/threads", {"tid": tid, "period_s": -1}, 400, "period_s must be a number of seconds above 0"),
            ("POST", "/threads", {"tid": "1"}, 400, "tid must be a number"),
            ("POST", "/threads", b"[" * 50_000, 400, "not JSON"),
            ("POST", "/threads", b"[]", 400, "must be an object, got list"),
            ("POST", "/periods", {"tid": tid, "virtual_cpu": 1}, 400, "virtual_cpu must be true or false"),
            ("POST", "/threads", b"x" * 70_000, 413, "at most 65536 B"),
            ("GET", "/threads/1", None, 404, "not watched"),
            ("GET", "/nothing", None, 404, "no /nothing"),
            ("PUT", "/threads", None, 405, "PUT is not possible"),
        ):
            with contextlib.closing(_Local(path)) as fresh:
                got, text = ask(fresh, method, where, body)
            assert got == status
            assert isinstance(text, dict)
            assert said in text["error"]
        assert ask(connection, "DELETE", f"/periods/{tid}") == (204, None)
        assert ask(connection, "DELETE", f"/threads/{tid}") == (204, None)
        assert policy(tid) == 0
        second = twin("deadline", "serve", "--listen", str(path))
        assert (second.returncode, second.stderr) == (2, f"twin: cannot listen on {path}: a daemon does\n")
        ask(connection, "POST", "/threads", {"tid": tid})
        connection.close()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(15) == 143
        assert policy(tid) == 0
        process.kill()
    assert not path.exists()
    assert not list(state.glob("*.jsonl"))


@pytest.mark.usefixtures("state")
def test_web_pages_cannot_talk_to_the_daemon() -> None:
    command = [*TWIN, "deadline", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        port = int(daemon.stderr.readline().rpartition(":")[2])
        for headers, status in (({}, 200), ({"Origin": "http://evil"}, 403), ({"Host": "evil.example"}, 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/", headers=headers)
            assert connection.getresponse().status == status
            connection.close()
        daemon.terminate()
        daemon.wait(15)
