"""IAB backhaul for real: labels, fair shares, paths that change under load, a user's own SDN application."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from topologies.model import BackhaulFlow, BackhaulPath, Host, IabDonor, IabNode, Link, Switch, Topology
from twin.backend import BackendError
from twin.emulation.backhaul import BackhaulPlan
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.journal import default_folder, start_ticks
from twin.load import Activity, BackhaulDemand, Load
from twin.types import Action, Observation

APPS = Path(__file__).with_name("sdn_apps")
TWIN = Path(sys.executable).with_name("twin")
MMWAVE_BPS, SUB6_BPS = 4e6, 2e6

emulation = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host")]


def network() -> Topology:
    """n3 reaches both donors over n1 or n2; n1 and n2 have a flow of their own; three flows, three kinds of paths."""
    pairs = (("n1", "d1"), ("n2", "d2"), ("n3", "n1"), ("n3", "n2"))
    links = [Link(a=a, b=b, band="mmwave", bandwidth_bps=MMWAVE_BPS) for a, b in pairs]
    links += [Link(a=a, b=b, band="sub6", bandwidth_bps=SUB6_BPS) for a, b in pairs]
    paths = {
        "f1": (BackhaulPath("mmwave", ("n1", "d1")), BackhaulPath("sub6", ("n1", "d1"))),
        "f2": (BackhaulPath("mmwave", ("n2", "d2")), BackhaulPath("sub6", ("n2", "d2"))),
        "f3": (
            BackhaulPath("mmwave", ("n3", "n1", "d1")),
            BackhaulPath("mmwave", ("n3", "n2", "d2")),
            BackhaulPath("sub6", ("n3", "n1", "d1")),
        ),
    }
    return Topology(
        name="small-iab",
        nodes=(
            *(IabDonor(name=name) for name in ("d1", "d2")),
            *(IabNode(name=name) for name in ("n1", "n2", "n3")),
            Host(name="cu"),
        ),
        links=(*links, Link(a="d1", b="cu"), Link(a="d2", b="cu")),
        backhaul=tuple(
            BackhaulFlow(name=name, source=f"n{name[1]}", sink="cu", paths=some) for name, some in paths.items()
        ),
    )


def load(**rates_bps: tuple[float, ...]) -> Load:
    """Demands by flow; several values are one after the other, 6 s each."""
    demands = []
    for name, rates in rates_bps.items():
        last = len(rates) - 1
        steps = [Activity(6.0 * i, 1e6 if i == last else 6.0 * (i + 1), rate) for i, rate in enumerate(rates)]
        demands.append(BackhaulDemand(flow=name, activities=tuple(steps)))
    return Load(flows=(), duration_s=60, backhaul=tuple(demands))


class Running:
    def __init__(self, session: EmulationSession) -> None:
        self.session = session

    def step(self, interval_s: float = 1.0) -> Observation:
        return self.session.advance(self.session.clock_s() + interval_s)

    def until(self, condition: Callable[[Observation], bool], what: str, *, within_s: float = 10.0) -> Observation:
        deadline_s = self.session.clock_s() + within_s
        while self.session.clock_s() < deadline_s:
            seen = self.step()
            if condition(seen):
                return seen
        raise AssertionError(
            f"not within {within_s:g} s: {what}; "
            + ", ".join(f"{k.entity} {k.name} {k.value:g}" for k in seen.kpis if k.entity.startswith("flow"))
        )

    def do(self, entity: str, knob: str, value: float | str) -> float:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert outcome.applied, outcome.reason
        return outcome.lag_s

    def refused(self, entity: str, knob: str, value: float | str) -> str:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert not outcome.applied
        return outcome.reason

    def numbers(self, flow: str, rate_bps: float) -> None:
        """Send numbered packets in both directions."""
        network_ = self.session._network
        network_.client(f"{flow}-src").call("numbers", rate=rate_bps, packet_bytes=500)
        deadline_s = time.monotonic() + 2
        while rate_bps and not self.counters(flow)[1]["rx_packets"] and time.monotonic() < deadline_s:
            time.sleep(0.01)
        network_.client("cu").call("numbers", flow=flow, rate=rate_bps, packet_bytes=500)

    def counters(self, flow: str) -> tuple[dict[str, int], dict[str, int]]:
        """Numbered packets at the source and at the sink."""
        network_ = self.session._network
        source = network_.client(f"{flow}-src").call("stats")["numbers"]
        return source, network_.client("cu").call("stats")["flows"][flow]["numbers"]


def near(share_bps: float, flow: str, tolerance: float = 0.1) -> Callable[[Observation], bool]:
    return lambda seen: seen.get(f"flow:{flow}", "throughput_bps", 0.0) == pytest.approx(share_bps, rel=tolerance)


@contextmanager
def running(folder: Path, topology: Topology, demands: Load, **options: object) -> Iterator[Running]:
    run_id = f"test-{uuid.uuid4().hex[:10]}"
    backend = EmulationBackend(run_id=run_id, folder=folder, **{"probes": False, **options})
    with backend.open(topology, demands, seed=1) as session:
        yield Running(session)
    assert left_of(run_id) == []


def left_of(run_id: str) -> list[str]:
    """Journal, bridges and control groups of a run."""
    found = [str(path) for path in default_folder().glob(f"{run_id}*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/twinbed/{run_id}")]
    bridges = subprocess.run(
        ["ovs-vsctl", "--bare", "--columns=name", "find", "Bridge", f"external_ids:twinbed-run={run_id}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found + bridges.stdout.split()


# --- plan -------------------------------------------------------------------------------------------


def test_labels_are_bap_routing_ids() -> None:
    plan = BackhaulPlan(network())
    # Addresses: the place among IAB nodes and donors; path identities count the paths to one destination.
    assert plan.flows["f1"].up_labels == (1 << 10, 1 << 10 | 1)
    assert plan.flows["f3"].up_labels == (1 << 10 | 2, 2 << 10 | 2, 1 << 10 | 3)
    assert plan.flows["f3"].down_labels == (5 << 10, 5 << 10 | 1, 5 << 10 | 2)
    assert len({label for one in plan.flows.values() for label in (*one.up_labels, *one.down_labels)}) == 14


def test_windows_of_all_flows_fit_into_what_open_vswitch_holds() -> None:
    plan = BackhaulPlan(network())
    assert plan.window_packets == 8
    many = {f"x{i}": plan.flows["f1"] for i in range(17)}
    plan.flows = many
    assert plan.window_packets * 17 <= 80
    plan.flows = {f"x{i}": many["x0"] for i in range(200)}
    assert plan.window_packets == 2


def test_a_node_with_the_name_of_a_source_host_is_refused() -> None:
    topology = network()
    with pytest.raises(ValueError, match="backhaul flow f1: node f1-src has the name of its source host"):
        BackhaulPlan(replace(topology, nodes=(*topology.nodes, Host(name="f1-src"))))


# --- emulation ----------------------------------------------------------------------------------------


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_shares_paths_faults_and_demands(tmp_path: Path) -> None:
    """One bring-up: proof of the bands, max-min shares, refusals, a broken link, a change of demand."""
    demands = load(f1=(6e6,), f2=(1e6, 1e6, 1e6), f3=(6e6,))
    with running(tmp_path, network(), demands, probes=True) as net:
        assert [probe for probe in net.session.probes if not probe.passed] == []
        assert sum("@mmwave" in probe.item or "@sub6" in probe.item for probe in net.session.probes) == 8
        # f1 and f3 share n1-d1 of mmWave; f2 has one of its own and asks for less.
        seen = net.until(lambda o: near(2e6, "f1")(o) and near(2e6, "f3")(o) and near(1e6, "f2")(o), "equal shares")
        assert seen.value("flow:f3", "offered_bps") == pytest.approx(6e6, rel=0.02)
        net.do("flow:f3", "path_index", 1)
        net.until(lambda o: near(4e6, "f1")(o) and near(3e6, "f3")(o) and near(1e6, "f2")(o), "f2 keeps what it asks")
        assert "must be a whole number in [0, 2], got 3" in net.refused("flow:f3", "path_index", 3)
        assert "no flow named 'f9'" in net.refused("flow:f9", "path_index", 0)
        net.do("link:n2-d2@mmwave", "link_state", "down")
        net.until(lambda o: o.value("flow:f3", "throughput_bps") == 0, "silence over a broken link")
        net.do("flow:f3", "path_index", 2)
        net.do("flow:f2", "path_index", 1)
        net.until(lambda o: near(2e6, "f3")(o) and near(1e6, "f2")(o), "both run again over Sub-6")
        net.do("link:n2-d2@mmwave", "link_state", "up")
        net.do("flow:f2", "path_index", 0)
        net.until(near(1e6, "f2"), "the mended link carries again")
        net.do("link:n1-d1@mmwave", "bandwidth_mbps", 2.0)
        net.until(near(2e6, "f1"), "the new rate of a link")


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_path_change_loses_nothing_under_load(tmp_path: Path) -> None:
    """Numbered packets up and down, through a congested and an idle path, while other flows load the links."""
    with running(tmp_path, network(), load(f1=(6e6,), f2=(6e6,), f3=(0.2e6,))) as net:
        net.until(near(0.2e6, "f3", 0.3), "the flow runs")
        net.numbers("f3", 0.4e6)
        net.step()
        lags = [net.do("flow:f3", "path_index", index) for _ in range(4) for index in (1, 2, 0)]
        net.step()
        net.numbers("f3", 0)
        deadline_s = time.monotonic() + 3
        while True:
            source, sink = net.counters("f3")
            done = source["tx_packets"] == sink["rx_packets"] and sink["tx_packets"] == source["rx_packets"]
            if done or time.monotonic() > deadline_s:
                break
            time.sleep(0.05)
        assert source["tx_packets"] > 100 and sink["tx_packets"] > 100
        assert (sink["rx_packets"], sink["missing"]) == (source["tx_packets"], 0)
        assert (source["rx_packets"], source["missing"]) == (sink["tx_packets"], 0)
        assert sink["doubled"] == source["doubled"] == 0
        assert max(lags) < 2


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_dead_controller_ends_the_run_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, network(), load(f1=(1e6,))) as net:
        controller = net.session._network.routing.controller
        assert controller is not None
        controller._process.send_signal(signal.SIGKILL)
        controller._process.wait(5)
        with pytest.raises(
            BackendError, match=r"SDN application source routing ended with exit code -9; its last words"
        ):
            net.step()
        assert "ended with exit code -9" in net.refused("flow:f1", "path_index", 1)


def two_switches() -> Topology:
    return Topology(
        name="line",
        nodes=(Host(name="h1"), Host(name="h2"), Switch(name="s1"), Switch(name="s2")),
        links=(Link(a="h1", b="s1"), Link(a="s1", b="s2"), Link(a="s2", b="h2")),
    )


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_an_unchanged_ryu_application_controls_the_switches(tmp_path: Path) -> None:
    app = str(APPS / "learning_switch.py")
    with running(tmp_path, two_switches(), Load(flows=(), duration_s=10), sdn_app=app) as net:
        network_ = net.session._network
        address = network_.plan.interface("h2", "s2-h2").address
        command = [
            "nsenter",
            "-t",
            str(network_.container("h1").netns_pid),
            "-n",
            "ping",
            "-c5",
            "-i0.1",
            "-W1",
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "5 received" in done.stdout, done.stdout + done.stderr
        rules = network_._net.get("s1").dpctl("dump-flows")
        assert "dl_dst=" in rules and "CONTROLLER" in rules
        net.step(0.2)
    assert "learned" in (tmp_path / "logs" / "sdn.log").read_text()


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_paths_are_the_applications_own_decision(tmp_path: Path) -> None:
    app = str(APPS / "learning_switch.py")
    topology = network()
    # Without loops, so that flooding ends.
    tree = replace(
        topology,
        links=(*(link for link in topology.links if link.name in ("n1-d1@mmwave", "d1-cu")),),
        backhaul=(replace(topology.backhaul[0], paths=topology.backhaul[0].paths[:1]),),
    )
    with running(tmp_path, tree, load(f1=(1e6,)), sdn_app=app) as net:
        reason = net.refused("flow:f1", "path_index", 0)
        assert "learning_switch.py is in charge of the switches" in reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import ryu.nothing_like_this",
            r"exit code 1; .*ModuleNotFoundError: No module named 'ryu.nothing_like_this'",
        ),
        ("x = 1", r"exit code 1; .*has no application"),
        ("raise RuntimeError('boom')", r"exit code 1; .*RuntimeError: boom"),
        ("import os\nos._exit(7)", r"exit code 7"),
    ],
)
@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_a_broken_application_is_one_line_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    app = tmp_path / "broken.py"
    app.write_text(text)
    run_id = f"test-{uuid.uuid4().hex[:10]}"
    backend = EmulationBackend(run_id=run_id, folder=tmp_path, probes=False, sdn_app=str(app))
    with pytest.raises(BackendError, match=message) as error:
        backend.open(two_switches(), Load(flows=(), duration_s=1), seed=1)
    assert "\n" not in str(error.value)
    assert left_of(run_id) == []


SCENARIO = """
name: crash
duration: 60s
fidelity: emulation
topology:
  builders:
    - use: iab
      with: {nodes: 8, k_paths: 2, seed: 4, load: high, scale: 0.002}
traffic:
  - {name: cells, kind: backhaul, profile: {kind: random, low: 0.5Mbps, high: 1Mbps}}
"""


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_gc_after_kill_9_of_an_iab_run_leaves_nothing(tmp_path: Path) -> None:
    scenario = tmp_path / "crash.twin.yml"
    scenario.write_text(SCENARIO)
    command = [str(TWIN), "run", str(scenario), "--out", str(tmp_path / "runs")]
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + 60
        controller, journal = 0, None
        while time.monotonic() < deadline_s and engine.poll() is None:
            journal = next(default_folder().glob("*-crash-*.jsonl"), None)
            rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal else []
            pids = [row["ids"] for row in rows if row.get("kind") == "process"]
            if pids and list(tmp_path.glob("runs/*/logs/f-*-src.log")):
                controller = pids[0]["pid"]
                break
            time.sleep(0.05)
        assert controller and journal
    finally:
        os.kill(engine.pid, signal.SIGKILL)
        engine.wait()
    # The controller ends by itself when the run is no more.
    deadline_s = time.monotonic() + 5
    while start_ticks(controller) is not None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert start_ticks(controller) is None
    run_id = journal.stem
    assert left_of(run_id)
    subprocess.run([str(TWIN), "gc"], check=True, capture_output=True, cwd="/")
    assert left_of(run_id) == []
