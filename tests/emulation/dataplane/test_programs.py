"""Applications, traffic and the control protocol as running programs on the loopback interface."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.dataplane.chain import ROOT, Program, wait_until
from twin.emulation.dataplane.histogram import mean, merge, percentile

Start = Callable[..., Program]
HOST = "127.0.0.1"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs on this host's loopback; they end with the test."""
    with contextlib.ExitStack() as stack:

        def begin(name: str, key: str = "", **config: Any) -> Program:
            program = Program(name, None, {"node": key or name, **config}, tmp_path, key)
            stack.callback(program.stop)
            return program.ready()

        yield begin


def free_port(kind: int = socket.SOCK_DGRAM) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def flow(service: str, port: int, echo: int, rate: float, **changes: Any) -> dict[str, Any]:
    return {
        **{"flow": f"{service}-1", "ue": "phones.1", "address": HOST, "service": service, "app": [HOST, port]},
        **{"rate": rate, "packet_bytes": 500, "seed": 1, "echo_port": echo, **changes},
    }


# traffic and applications


def test_stream_keeps_its_rate_and_stops_when_asked(start: Start) -> None:
    port, echo = free_port(), free_port()
    video, traffic = start("app_stream", port=port, echo_port=echo), start("traffic")
    traffic.call("start", **flow("stream", port, echo, 4e6))
    first = wait_until(lambda: (found := video.call("stats"))["flows"] and found)
    last = wait_until(lambda: (now := video.call("stats"))["time_ns"] - first["time_ns"] > 1e9 and now)
    sent = last["flows"]["stream-1"]["tx_bytes"] - first["flows"]["stream-1"]["tx_bytes"]
    assert sent * 8e9 / (last["time_ns"] - first["time_ns"]) == pytest.approx(4e6, rel=0.03)
    traffic.call("rate", flow="stream-1", rate=1e6)
    wait_until(lambda: video.call("stats")["flows"]["stream-1"]["rate"] == 1e6)
    row = traffic.call("stats")["flows"]["stream-1"]
    assert row["lost_packets"] == 0 and row["rx_packets"] > 900
    assert 0 < percentile(row["delay"], 50) < 20_000
    assert row["rtt"]["count"] == row["probes_rx"] > 5
    done = traffic.call("stop", flow="stream-1")
    assert done["stopped"] and done["rx_bytes"] == done["rx_packets"] * 500
    wait_until(lambda: video.call("stats")["flows"]["stream-1"]["rate"] == 0)
    offered = video.call("stats")["flows"]["stream-1"]["tx_packets"]
    assert offered - done["rx_packets"] < 20


def test_stream_ends_when_the_client_vanishes(start: Start) -> None:
    port, echo = free_port(), free_port()
    video, traffic = start("app_stream", port=port, echo_port=echo), start("traffic")
    traffic.call("start", **flow("stream", port, echo, 1e5))
    wait_until(lambda: video.call("stats")["flows"])
    traffic.stop(signal.SIGKILL)
    wait_until(lambda: video.call("stats")["flows"]["stream-1"]["rate"] == 0, 6)


def test_telemetry_is_measured_at_the_sink_and_counters_survive_a_restarted_flow(start: Start) -> None:
    port, echo = free_port(), free_port()
    sink, traffic = start("app_telemetry", port=port, echo_port=echo), start("traffic")
    traffic.call("start", **flow("telemetry", port, echo, 2e6))
    wait_until(lambda: sink.call("stats")["flows"].get("telemetry-1", {}).get("rx_packets", 0) > 200)
    sent = traffic.call("stop", flow="telemetry-1")["tx_packets"]
    received = wait_until(lambda: (row := sink.call("stats")["flows"]["telemetry-1"])["rx_packets"] == sent and row)
    assert received["lost_packets"] == 0 and received["client"] == HOST
    traffic.call("start", **flow("telemetry", port, echo, 2e6))
    wait_until(lambda: traffic.call("stats")["flows"]["telemetry-1"]["tx_packets"] > sent + 100)
    again = sink.call("stats")["flows"]["telemetry-1"]
    assert again["rx_packets"] > received["rx_packets"] and again["lost_packets"] == 0


def test_lost_packets_are_gaps_in_the_numbers() -> None:
    from twin.emulation.dataplane import probe

    maker = probe.PacketMaker(probe.DATA, "f", 100)
    receiver = probe.Receiver(0)
    for index in range(100):
        data = bytes(maker.next())
        stamp = probe.parse(data)
        assert stamp is not None
        if index % 10:  # 0, 10, ... 90 are lost
            receiver.receive(stamp, 100, stamp.sent_ns + 1000)
    assert (receiver.rx_packets, receiver.lost_packets) == (90, 10)
    # a receiver that started later does not hold earlier packets against the path
    late = probe.Receiver(maker.started_ns + 1)
    stamp = probe.parse(bytes(maker.next()))
    assert stamp is not None
    late.receive(stamp, 100, stamp.sent_ns)
    assert late.lost_packets == 0


def test_requests_are_poisson_and_wait_for_the_single_worker(start: Start) -> None:
    ports = [free_port(socket.SOCK_STREAM), free_port()]
    app = start("app_request", port=ports[0], echo_port=ports[1], cpu_ms_per_request=5, response_bytes=3000)
    traffic = start("traffic")
    traffic.call("start", **flow("request", *ports, 40, timeout_s=20))

    def answered(count: int) -> dict[str, Any]:
        return wait_until(lambda: (row := app.call("stats"))["requests"] >= count and row)

    answered(60)
    light = traffic.call("stats")["flows"]["request-1"]["response"]
    traffic.call("rate", flow="request-1", rate=150)
    answered(120)
    traffic.call("stats")
    answered(320)
    row = traffic.call("stats")["flows"]["request-1"]
    # M/D/1: mean wait of half a service time times rho / (1 - rho), rho 0.2 and 0.75
    assert 5000 < mean(light) < 0.75 * mean(row["response"])
    assert row["failures"] == 0
    assert row["issued"] == row["requests"] + row["failures"] + row["in_flight"]
    traffic.call("stop", flow="request-1")
    final = app.call("stats")
    assert final["busy_ns"] == pytest.approx(final["requests"] * 5e6, rel=0.1)


def test_refused_and_silent_servers_count_as_failures(start: Start) -> None:
    traffic = start("traffic")
    with socket.create_server((HOST, 0)) as silent:
        traffic.call("start", **flow("request", free_port(socket.SOCK_STREAM), 9, 50, flow="refused"))
        port = silent.getsockname()[1]
        traffic.call("start", **flow("request", port, 9, 50, flow="silent", timeout_s=0.2))
        for name in ("refused", "silent"):
            row = wait_until(lambda name=name: (r := traffic.call("stats")["flows"][name])["failures"] > 5 and r)
            assert row["requests"] == 0


@pytest.mark.parametrize("policy", ["round_robin", "least_connections"])
def test_balancer_spreads_drains_and_goes_around_dead_replicas(start: Start, policy: str) -> None:
    apps = {}
    for index in (1, 2, 3):
        ports = free_port(socket.SOCK_STREAM), free_port()
        address = f"{HOST}:{ports[0]}"
        apps[address] = start("app_request", key=f"r{index}", port=ports[0], echo_port=ports[1], cpu_ms_per_request=0.5)
    first, second, third = apps
    ports = free_port(socket.SOCK_STREAM), free_port()
    balancer = start("balancer", port=ports[0], echo_port=ports[1], policy=policy, replicas=[first, second])
    traffic = start("traffic")
    traffic.call("start", **flow("request", *ports, 200))
    wait_until(lambda: balancer.call("stats")["requests"] > 60)
    totals = [row["total"] for row in balancer.call("stats")["replicas"].values()]
    assert max(totals) < 1.5 * min(totals)
    balancer.call("add", address=third)
    wait_until(lambda: balancer.call("stats")["replicas"][third]["total"] > 20)
    balancer.call("remove", address=first)
    wait_until(lambda: first not in balancer.call("stats")["replicas"])
    served = apps[first].call("stats")["requests"]
    apps[second].stop(signal.SIGKILL)
    before = balancer.call("stats")["requests"]
    wait_until(lambda: balancer.call("stats")["requests"] > before + 60)
    assert apps[first].call("stats")["requests"] == served
    stats = balancer.call("stats")
    assert stats["replicas"][second]["failures"] >= 1
    # only what the killed replica had in hand is lost
    assert traffic.call("stats")["flows"]["request-1"]["failures"] <= 3
    assert "is there already" in balancer.ask("add", address=third)["error"]
    assert "not there" in balancer.ask("remove", address=first)["error"]


def test_request_application_refuses_what_it_does_not_serve(start: Start) -> None:
    ports = free_port(socket.SOCK_STREAM), free_port()
    app = start("app_request", port=ports[0], echo_port=ports[1], cpu_ms_per_request=0)
    for request, status in (
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /predict HTTP/1.1\r\n\r\n", b"411"),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", b"200"),
    ):
        with socket.create_connection((HOST, ports[0]), 5) as link:
            link.sendall(request)
            assert link.recv(100).split()[1] == status
    stats = wait_until(lambda: (found := app.call("stats"))["requests"] and found)
    assert (stats["requests"], stats["failures"]) == (1, 3)


def test_flows_that_cannot_be_are_refused(start: Start) -> None:
    traffic = start("traffic", mtu=1400)
    good = flow("telemetry", free_port(), free_port(), 1e6)
    for change, words in (
        ({"service": "video"}, "service: must be one of stream, telemetry, request"),
        ({"packet_bytes": 1401}, "must be in"),
        ({"packet_bytes": 20}, "at least"),
        ({"rate": -1}, "rate: must be in [0,"),
        ({"rate": "fast"}, "rate: must be int or float, got 'fast'"),
        ({"address": "10.64.0"}, "address: must be an IPv4 address"),
        ({"app": [HOST, 70000]}, "app: must be an IPv4 address and a port"),
        ({"speed": 1}, "'speed' is unknown"),
    ):
        reply = traffic.ask("start", **{**good, **change})
        assert not reply["ok"] and words in reply["error"], reply
    assert traffic.call("stats")["flows"] == {}
    traffic.call("start", **good)
    assert "runs already" in traffic.ask("start", **good)["error"]
    assert "no flow 'x'" in traffic.ask("stop", flow="x")["error"]


# the control protocol


def converse(program: Program, data: bytes) -> list[dict[str, Any]]:
    """Everything answered to these octets until the program closes or 0.3 s of silence."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(5)
        link.connect(str(program.path))
        sender = threading.Thread(target=_send, args=(link, data))
        sender.start()
        answer = b""
        while chunk := _receive(link):
            answer += chunk
        sender.join()
    return [json.loads(line) for line in answer.splitlines()]


def _send(link: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        link.sendall(data)


def _receive(link: socket.socket) -> bytes:
    link.settimeout(0.3)
    try:
        return link.recv(65536)
    except OSError:
        return b""


def test_malformed_and_unknown_requests_get_one_line_errors(start: Start) -> None:
    program = start("app_telemetry", port=free_port(), echo_port=free_port())
    replies = converse(
        program,
        b'nonsense\n[1]\n{"op": "fly"}\n{"op": 7}\n{}\n\n{"op": "stats", "more": 1}\n{"op": "ping", "id": "a"}\n'
        + b'{"op":"ping"}\n' * 3,
    )
    assert [reply["ok"] for reply in replies] == [False] * 6 + [True] * 4
    assert "operations: ping, stats" in replies[2]["error"]
    assert "'more' is unknown" in replies[5]["error"]
    assert replies[6]["id"] == "a" and replies[6]["program"] == "app_telemetry"
    assert all("\n" not in reply.get("error", "") for reply in replies)


def test_oversized_requests_are_answered_and_disconnected(start: Start) -> None:
    program = start("app_telemetry", port=free_port(), echo_port=free_port())
    replies = converse(program, b"x" * (3 << 20))
    assert len(replies) == 1 and "at most" in replies[0]["error"]
    program.call("ping")


def test_several_clients_and_one_that_never_reads(start: Start) -> None:
    program = start("app_telemetry", port=free_port(), echo_port=free_port())
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(8)]
        for link in links:
            link.settimeout(5)
            link.connect(str(program.path))
        links[0].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                links[0].send(b'{"op":"stats"}\n' * 100)
        for link in links[1:]:
            link.sendall(b'{"op":"ping"}\n')
            assert json.loads(link.makefile("rb").readline())["ok"]


def test_programs_end_quietly_and_take_over_a_stale_socket(start: Start) -> None:
    port, echo = free_port(), free_port()
    program = start("app_telemetry", port=port, echo_port=echo)
    path = program.path
    program.stop(signal.SIGKILL)
    assert path.exists()
    again = start("app_telemetry", port=port, echo_port=echo)
    assert again.path == path and again.call("ping")["ok"]
    start_s = time.monotonic()
    assert again.stop() == 0
    assert time.monotonic() - start_s < 1
    assert not path.exists()


def test_backhaul_sends_what_is_asked_and_counts_what_arrives(start: Start) -> None:
    """On loopback nothing limits: a schedule, a change of rate, numbered packets both ways, refusals."""
    port = free_port(socket.SOCK_STREAM)
    sink = start("backhaul", key="sink", role="sink", bind=HOST, port=port, flows={"f": HOST})
    source = start("backhaul", key="source", role="source", bind=HOST, sink=[HOST, port], mtu=1496)
    source.call("schedule", epoch_ns=time.monotonic_ns(), steps=[[0.0, 4e6], [0.6, 0.0]])
    wait_until(lambda: source.call("stats")["rate"] == 4e6)
    wait_until(lambda: source.call("stats")["rate"] == 0)
    wait_until(lambda: sink.call("stats")["flows"]["f"]["rx_bytes"] > 0.95 * 300_000)
    assert source.call("stats")["offered_bytes"] == pytest.approx(300_000, rel=0.01)
    assert sink.call("stats")["flows"]["f"]["rx_bytes"] <= 1.01 * 300_000
    assert "nothing has arrived from it yet" in sink.ask("numbers", flow="f", rate=1e5)["error"]
    source.call("numbers", rate=4e5, packet_bytes=200)
    wait_until(lambda: sink.call("stats")["flows"]["f"]["numbers"]["rx_packets"] > 20)
    sink.call("numbers", flow="f", rate=4e5, packet_bytes=200)
    wait_until(lambda: source.call("stats")["numbers"]["rx_packets"] > 20)
    source.call("numbers", rate=0)
    wait_until(
        lambda: (
            sink.call("stats")["flows"]["f"]["numbers"]["rx_packets"] == source.call("stats")["numbers"]["tx_packets"]
        )
    )
    assert sink.call("stats")["flows"]["f"]["numbers"]["missing"] == 0
    for program, op, arguments, words in (
        (source, "rate", {"rate": -1}, "rate: must be in"),
        (source, "schedule", {"epoch_ns": 0, "steps": [[0, -5]]}, "steps: rates must be in"),
        (source, "schedule", {"epoch_ns": 0, "steps": [7]}, "steps: must be pairs of time_s and rate, got 7"),
        (sink, "numbers", {"flow": "g", "rate": 1}, "no flow 'g'; flows: f"),
    ):
        assert words in program.ask(op, **arguments)["error"]


@pytest.mark.parametrize(
    ("program", "config", "words"),
    [
        ("upf", {}, "key 'node' is missing"),
        ("upf", {"node": "u", "n3": {"bind": "x"}}, "n3.bind: must be an IPv4 address, got 'x'"),
        ("upf", {"node": "u", "n3": HOST}, "n3: must be dict, got '127.0.0.1'"),
        ("gnb", {"node": "g", "n3": {"bind": HOST}, "slices": ["embb"]}, "an object with name expected, got 'embb'"),
        ("upf", {"node": "u", "n3": {"bind": HOST}, "ue_pool": "10.0.0.1/8"}, "ue_pool: host bits must be zero"),
        ("gnb", {"node": "g", "n3": {"bind": HOST}, "prb_total": 300}, "prb_total: must be in [1, 275], got 300"),
        ("gnb", {"node": "g", "n3": {"bind": HOST}, "slices": 1}, "slices: must be list, got 1"),
        ("ue", {"node": "p", "ues": [{"id": "a", "index": 1, "address": "1.2.3"}]}, "ue a address"),
        ("balancer", {"node": "b", "policy": "best"}, "policy: must be one of"),
        ("balancer", {"node": "b", "replicas": ["1.2.3.4"]}, "replica: must be an IPv4 address and a port"),
        ("app_request", {"node": "a", "cpu_ms_per_request": -1}, "cpu_ms_per_request: must be in"),
        ("app_stream", {"node": "a", "port": 99999}, "port: must be in [1, 65535], got 99999"),
        ("traffic", {"node": 5}, "node: must be str, got 5"),
        ("backhaul", {"role": "both"}, "role: must be source or sink, got 'both'"),
        (
            "backhaul",
            {"role": "source", "node": "s", "bind": HOST, "sink": [HOST, 7], "mtu": 5},
            "mtu: must be in [576",
        ),
        (
            "backhaul",
            {"role": "sink", "node": "k", "bind": HOST, "port": 0, "flows": {}},
            "port: must be in [1, 65535]",
        ),
        (
            "backhaul",
            {"role": "sink", "node": "k", "bind": HOST, "port": 9, "flows": []},
            "flows: must be dict, got []",
        ),
        ("traffic", [1], "must hold one JSON object, got list"),
        ("traffic", None, "Expecting value"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_code_2(tmp_path: Path, program: str, config: Any, words: str) -> None:
    file = tmp_path / "c.json"
    file.write_text("" if config is None else json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", f"twin.emulation.dataplane.{program}", "--config", str(file), "--control", "/x/y"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_histograms_of_several_programs_merge(start: Start) -> None:
    port, echo = free_port(), free_port()
    start("app_stream", port=port, echo_port=echo)
    traffics = [start("traffic", key=f"t{index}") for index in range(2)]
    for index, traffic in enumerate(traffics):
        traffic.call("start", **flow("stream", port, echo, 1e6, flow=f"s{index}"))
    rows = [
        wait_until(lambda t=traffic, i=index: (r := t.call("stats")["flows"][f"s{i}"])["delay"]["count"] > 0 and r)
        for index, traffic in enumerate(traffics)
    ]
    merged = merge(row["delay"] for row in rows)
    assert merged["count"] == sum(row["delay"]["count"] for row in rows)
