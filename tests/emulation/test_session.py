"""The emulation backend for real: packets from UEs to applications, knobs and faults on what runs."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.emulation.networks import two_slices
from topologies.model import App, Container, Link, Topology
from twin.backend import BackendError
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.journal import default_folder
from twin.load import Activity, Flow, Load
from twin.types import Action, Observation

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host")]

FOREVER_S = 1e6


def stream(ue: str, rate_bps: float, *, slice_name: str = "embb", start_s: float = 0.0) -> Flow:
    return Flow(
        name=f"video:{ue}", ue=ue, slice=slice_name, app="video", service="stream", direction="dl", packet_bytes=1200,
        activities=(Activity(start_s, FOREVER_S, rate_bps),),
    )  # fmt: skip


def requests(ue: str, rate: float) -> Flow:
    return Flow(
        name=f"control:{ue}", ue=ue, slice="urllc", app="control", service="request", direction="dl", packet_bytes=200,
        activities=(Activity(0.0, FOREVER_S, rate),),
    )  # fmt: skip


def telemetry(ue: str, rate_bps: float) -> Flow:
    return Flow(
        name=f"sensors:{ue}", ue=ue, slice="urllc", app="sensors", service="telemetry", direction="ul",
        packet_bytes=200, activities=(Activity(0.0, FOREVER_S, rate_bps),),
    )  # fmt: skip


class Running:
    """A session with a clock of its own, so that tests say what they wait for and not how long."""

    def __init__(self, session: EmulationSession) -> None:
        self.session = session
        self.time_s = 0.0

    def step(self, interval_s: float = 0.5) -> Observation:
        self.time_s += interval_s
        return self.session.advance(self.time_s)

    def until(self, condition: Callable[[Observation], bool], what: str, *, within_s: float = 6.0) -> Observation:
        for _ in range(int(within_s / 0.5)):
            observation = self.step()
            if condition(observation):
                return observation
        rows = [f"{kpi.entity} {kpi.name} {kpi.value:g}" for kpi in observation.kpis if kpi.entity.startswith("slice")]
        raise AssertionError(f"not within {within_s:g} s: {what}\n" + "\n".join(rows))

    def do(self, entity: str, knob: str, value: float | str) -> None:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert outcome.applied, outcome.reason

    def refused(self, entity: str, knob: str, value: float | str) -> str:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert not outcome.applied
        return outcome.reason


@contextmanager
def running(
    tmp_path: Path, topology: Topology, *flows: Flow, probes: bool = False, captures: tuple[str, ...] = ()
) -> Iterator[Running]:
    run_id = fresh_id()
    backend = EmulationBackend(run_id=run_id, folder=tmp_path, probes=probes, captures=captures)
    with backend.open(topology, Load(flows=flows, duration_s=FOREVER_S), seed=1) as session:
        yield Running(session)
    assert leftovers(run_id) == []


def fresh_id() -> str:
    return f"test-{uuid.uuid4().hex[:10]}"


def leftovers(run_id: str) -> list[str]:
    """What a closed run left on the host: containers, journal, control groups."""
    listed = subprocess.run(
        ["docker", "ps", "-aq", "--filter", f"label=twinbed.run={run_id}"], capture_output=True, text=True, check=True
    )
    found = listed.stdout.split()
    found += [str(path) for path in default_folder().glob(f"{run_id}*")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/twinbed/{run_id}")]
    return found


def throughput(observation: Observation, slice_name: str = "embb") -> float:
    return observation.get(f"slice:{slice_name}", "throughput_dl_bps", 0.0)


def test_user_plane_knobs_and_refusals(tmp_path: Path) -> None:
    """One network, one bring-up: real packets, proof, every slice knob, replicas, refusals."""
    flows = (
        *(stream(f"phones.{index}", 2e6) for index in (1, 2, 3)),
        requests("robots.1", 20),
        telemetry("robots.2", 2e5),
    )
    topology = two_slices(bandwidth_bps=12e6, delay_s=0.004)
    with running(tmp_path, topology, *flows, probes=True) as net:
        assert [probe for probe in net.session.probes if not probe.passed] == []
        assert {probe.item for probe in net.session.probes} >= {"link s1-s2 bandwidth_bps", "link s1-s2 delay_s"}
        first = net.until(lambda o: throughput(o) > 5.5e6, "three phones at 2 Mbit/s")
        assert first.value("slice:embb", "attached_ues") == 3
        settled = net.until(lambda o: o.value("slice:embb", "delay_dl_p50_s") < 0.05, "a drained start-up queue")
        assert settled.value("slice:embb", "delay_dl_p50_s") > 0.004
        assert first.value("slice:urllc", "throughput_ul_bps") > 1.5e5
        net.until(lambda o: o.get("slice:urllc", "requests_per_s", 0) > 10, "answered requests")

        net.do("slice:embb", "bandwidth_mbps", 3.0)
        held = net.until(lambda o: throughput(o) < 3.1e6, "throughput held by the transport rate")
        assert throughput(held) > 2.4e6
        net.until(lambda o: o.value("slice:embb", "transport_queue_bytes") > 10_000, "a queue at the transport limit")
        net.do("slice:embb", "bandwidth_mbps", 10.0)
        net.until(lambda o: throughput(o) > 5.5e6, "recovery of the transport rate")

        net.do("slice:embb", "cpu_millicores", 100)
        net.until(lambda o: throughput(o) < 3.2e6, "throughput held by gNB CPU")
        held = net.step()
        assert held.value("slice:embb", "cpu_used_millicores") < 130
        assert held.value("slice:embb", "cpu_throttled_ratio") > 0.5
        net.do("slice:embb", "cpu_millicores", 600)
        net.until(lambda o: throughput(o) > 5.5e6, "recovery of the CPU")

        net.do("slice:embb", "prb_share", 0.01)
        net.until(lambda o: throughput(o) < 3e6, "throughput held by PRBs")
        assert net.step().value("slice:embb", "prb_used_dl_ratio") > 0.8
        net.do("slice:embb", "prb_share", 0.6)
        net.do("ue:phones.1", "cqi", 0)
        net.until(lambda o: o.get("ue:phones.1", "throughput_dl_bps", 0) == 0, "a UE out of range")
        net.do("ue:phones.1", "cqi", 15)
        net.until(lambda o: throughput(o) > 5.5e6, "recovery of the radio")

        net.do("node:control", "replicas", 2)
        net.until(lambda o: o.value("node:control", "replicas") == 2, "two replicas")
        net.do("node:control", "cpu_millicores", 200)
        assert net.step().value("node:control", "cpu_limit_millicores") == 400
        net.do("node:control", "replicas", 1)
        net.do("node:video", "memory_mib", 64)
        assert net.step().value("node:video", "memory_limit_bytes") == 64 * 2**20

        net.do("slice:embb", "demand_factor", 0.5)
        net.until(lambda o: throughput(o) < 3.3e6, "half the demand")

        assert "no slice named 'embd'" in net.refused("slice:embd", "prb_share", 0.5)
        assert "add up to 1.2, allowed is at most 1" in net.refused("slice:embb", "prb_share", 0.9)
        assert "no knob named" in net.refused("slice:embb", "prbshare", 0.5)
        assert "must be a number in [10" in net.refused("slice:embb", "cpu_millicores", -5)
        assert "no switch named 's9'" in net.refused("slice:embb", "path", "s1>s9>s2")
        assert "a switch has no container" in net.refused("node:s1", "node_state", "down")
        assert "only applications with service request" in net.refused("node:video", "replicas", 2)
        assert "set it on a slice" in net.refused("node:gnb1", "cpu_millicores", 100)


def test_faults_act_on_the_real_thing_and_heal(tmp_path: Path) -> None:
    """Links cut, paths moved, the UPF, gNB and application killed and restarted, UEs barred."""
    flows = (stream("phones.1", 1e6), stream("phones.2", 1e6))
    with running(tmp_path, two_slices(bandwidth_bps=12e6, delay_s=0.004), *flows) as net:
        flowing = lambda o: throughput(o) > 1.7e6  # noqa: E731 - reads as a word below
        net.until(flowing, "traffic")

        net.do("link:s1-s2", "link_state", "down")
        dark = net.until(lambda o: throughput(o) == 0, "silence on a cut link")
        assert dark.value("link:s1-s2", "link_up") == 0
        net.do("slice:embb", "path", "s1>s3>s2")
        net.until(flowing, "traffic on the other path")
        net.do("link:s1-s2", "link_state", "up")
        net.do("slice:embb", "path", "s1>s2")
        net.until(flowing, "traffic back on the short path")

        before = net.step().value("slice:embb", "delay_dl_p50_s")
        net.do("link:gnb1-s1", "delay_s", 0.03)
        after = net.until(
            lambda o: o.get("slice:embb", "delay_dl_p50_s", 0) > before + 0.025, "a delay given to a plain link"
        )
        assert after.value("slice:embb", "delay_dl_p50_s") == pytest.approx(before + 0.03, abs=0.006)
        net.do("link:gnb1-s1", "loss_ratio", 1.0)
        net.until(lambda o: throughput(o) == 0, "everything lost")
        net.do("link:gnb1-s1", "loss_ratio", 0.0)
        net.until(flowing, "no loss any more")

        for node in ("upf-embb", "gnb1", "video", "phones"):
            net.do(f"node:{node}", "node_state", "down")
            net.until(lambda o: throughput(o) == 0, f"silence after {node} was killed")
            net.do(f"node:{node}", "node_state", "up")
            net.until(flowing, f"traffic after {node} came back", within_s=10)

        net.do("ue:phones.1", "ue_state", "detached")
        net.until(lambda o: o.value("slice:embb", "attached_ues") == 1, "one UE left")
        net.do("ue:phones.1", "ue_state", "attached")
        net.until(flowing, "the UE is back")


def test_a_path_change_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path, two_slices(), stream("phones.1", 2e6)) as net:
        net.until(lambda o: throughput(o) > 1.7e6, "traffic")
        for path in ("s1>s3>s2", "s1>s2", "s1>s3>s2", "s1>s2"):
            net.do("slice:embb", "path", path)
            seen = net.step()
            assert seen.value("slice:embb", "loss_dl_ratio") == 0
            assert throughput(seen) > 1.7e6


def test_without_slicing_there_is_one_pool_and_no_slice_knob(tmp_path: Path) -> None:
    with running(
        tmp_path, two_slices(slicing=False), stream("phones.1", 1e6), stream("robots.1", 1e6, slice_name="urllc")
    ) as net:
        net.until(lambda o: throughput(o) > 0.8e6 and throughput(o, "urllc") > 0.8e6, "traffic of both slices")
        assert "slicing is off" in net.refused("slice:embb", "prb_share", 0.1)
        assert net.step().get("node:gnb1", "cpu_used_millicores", 0) > 20


def test_a_captured_n3_packet_is_decoded_by_wireshark(tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    with running(
        tmp_path, two_slices(), stream("phones.1", 5e5), captures=("gnb1:eth3", "s1:eth1", "phones:tun0")
    ) as net:
        net.until(lambda o: throughput(o) > 4e5, "traffic")
    for name in ("gnb1-eth3", "s1-eth1"):
        fields = ("-T", "fields", "-e", "gtp.message", "-e", "ip.dst")
        wanted = "gtp.ext_hdr.pdu_ses_con.qos_flow_id == 9 && udp.port == 5001"
        shown = subprocess.run(
            ["tshark", "-r", str(tmp_path / f"{name}.pcap"), "-Y", wanted, *fields],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = shown.stdout.splitlines()
        assert lines and lines[0].startswith("0xff"), shown.stderr
        assert any("10.64.0." in line for line in lines)
    inner = subprocess.run(
        ["tshark", "-r", str(tmp_path / "phones-tun0.pcap")], capture_output=True, text=True, check=True
    )
    assert "10.64.0.2" in inner.stdout


def test_two_runs_at_once_do_not_touch_each_other(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with running(tmp_path / "one", two_slices(), stream("phones.1", 5e5)) as one:
        one.until(lambda o: throughput(o) > 4e5, "traffic of the first run")
        with running(tmp_path / "two", two_slices(), stream("phones.1", 5e5)) as two:
            two.until(lambda o: throughput(o) > 4e5, "traffic of the second run")
            one.until(lambda o: throughput(o) > 4e5, "traffic of the first run beside the second")
        one.until(lambda o: throughput(o) > 4e5, "traffic of the first run after the second ended")


def test_a_program_that_dies_by_itself_ends_the_run_by_name(tmp_path: Path) -> None:
    run_id = fresh_id()
    backend = EmulationBackend(run_id=run_id, folder=tmp_path, probes=False)
    with backend.open(two_slices(), Load(flows=(), duration_s=10), seed=1) as session:
        process = session._network._fleet._programs["upf-embb"].process
        process.kill()
        with pytest.raises(BackendError, match=r"program upf-embb on node upf-embb ended with exit code -9"):
            session.advance(0.5)
    assert leftovers(run_id) == []


@pytest.mark.parametrize(
    ("image", "command", "message"),
    [
        ("twinbed-test/none:1", None, r"image twinbed-test/none:1.*(not|no )"),
        (None, "false", r"container box .*exit code 1"),
    ],
)
def test_a_container_that_cannot_run_is_named_and_nothing_is_left(
    tmp_path: Path, image: str | None, command: str | None, message: str
) -> None:
    topology = two_slices()
    box = Container(name="box", image=image, command=command)
    topology = replace(topology, nodes=(*topology.nodes, box), links=(*topology.links, Link(a="box", b="s1")))
    run_id = fresh_id()
    with pytest.raises(BackendError, match=message) as error:
        EmulationBackend(run_id=run_id, folder=tmp_path).open(topology, Load(flows=(), duration_s=1), seed=1)
    assert "\n" not in str(error.value)
    assert leftovers(run_id) == []


def test_an_image_without_python_is_named(tmp_path: Path) -> None:
    """A user's image with a shell and no Python cannot run TwinBed's programs."""
    tag = f"twinbed-test/nopython:{tmp_path.name.lower()}"
    build = tmp_path / "image"
    build.mkdir()
    busybox = shutil.which("busybox") or shutil.which("sleep")
    assert busybox
    libraries = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False).stdout
    files = [busybox, *(word for word in libraries.split() if word.startswith("/"))]
    archive = subprocess.run(["tar", "-ch", *files], capture_output=True, check=True).stdout
    subprocess.run(
        ["docker", "import", "--change", f'CMD ["{busybox}", "1000"]', "-", tag],
        input=archive,
        capture_output=True,
        check=True,
    )
    topology = two_slices()
    nodes = tuple(
        replace(node, image=tag) if isinstance(node, App) and node.name == "video" else node for node in topology.nodes
    )
    run_id = fresh_id()
    try:
        with pytest.raises(
            BackendError, match=rf"node video: image {tag} has no python3; TwinBed's programs need Python"
        ):
            EmulationBackend(run_id=run_id, folder=tmp_path).open(
                replace(topology, nodes=nodes), Load(flows=(), duration_s=1), seed=1
            )
        assert leftovers(run_id) == []
    finally:
        subprocess.run(["docker", "rmi", tag], capture_output=True, check=True)


def test_a_declared_capture_of_nothing_is_named(tmp_path: Path) -> None:
    run_id = fresh_id()
    backend = EmulationBackend(run_id=run_id, folder=tmp_path, captures=("gnb1:eth9",), probes=False)
    with pytest.raises(BackendError, match=r"node gnb1: no interface 'eth9'; interfaces: eth1, eth2, eth3"):
        backend.open(two_slices(), Load(flows=(), duration_s=1), seed=1)
    assert leftovers(run_id) == []


def test_the_control_socket_survives_nonsense(tmp_path: Path) -> None:
    with running(tmp_path, two_slices(), stream("phones.1", 5e5)) as net:
        path = net.session._network._fleet._programs["gnb1.embb"].client.path
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(2)
            link.connect(str(path))
            link.sendall(b"not json\n")
            assert json.loads(link.recv(4096))["ok"] is False
        net.until(lambda o: throughput(o) > 4e5, "traffic after nonsense on the control socket")


def test_a_flow_that_starts_runs_at_once(tmp_path: Path) -> None:
    """Attach comes first and takes milliseconds: no half second without a packet at every arrival."""
    with running(tmp_path, two_slices(), stream("phones.1", 1e6, start_s=1.0)) as net:
        before = [net.step(0.2) for _ in range(5)]
        assert all(throughput(seen) == 0 for seen in before)
        first = net.step(0.2)
        assert throughput(first) > 0.5e6
        assert first.value("slice:embb", "active_ues") == pytest.approx(1.0, abs=0.1)
