"""What the user plane carries and costs, against its references, in one run of about forty seconds.

    sudo .venv/bin/python benchmarks/user_plane.py [--json]

Real programs in network namespaces of this host, without containers: UE, gNB, UPF, applications, iperf3. CPU figures
are the scheduler's account of each process: system calls included, interrupts perhaps not. Other load on the host
lowers throughput and raises attach times; the load average is printed for that reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.emulation.dataplane.chain import Chain, Program, wait_until  # noqa: E402
from twin.emulation.cgroups import Cgroup  # noqa: E402
from twin.emulation.dataplane.histogram import percentile  # noqa: E402
from twin.journal import Journal  # noqa: E402

TCP_S = 4
SHARES_MILLICORES = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
DEFAULT_WORK_NS_PER_BIT = 40


def cpu_s(program: Program) -> float:
    """CPU time of a process in seconds, to 1 ns, from the scheduler's own account."""
    return int(Path(f"/proc/{program.process.pid}/schedstat").read_text().split()[0]) / 1e9


def tcp_bps(chain: Chain, *extra: str) -> float:
    """TCP between UE and application through the whole chain, as the receiver counts."""
    server = subprocess.Popen(
        chain.exec("app", "iperf3", "-s", "-1", "--forceflush"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        while "listening" not in server.stdout.readline():
            pass
        words = ["iperf3", "-c", chain.APP, "-B", "10.64.0.2", "-t", str(TCP_S), "-J", *extra]
        done = subprocess.run(chain.exec("ue", *words), capture_output=True, text=True, check=False)
        report = json.loads(done.stdout)
        if "error" in report:
            raise SystemExit(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"])
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def throughput(folder: Path) -> list[dict[str, Any]]:
    """TCP up and down with no work per bit, and what the UPF spent on it."""
    rows = []
    with contextlib.closing(Chain(folder)) as chain:
        # 100 MHz and four layers, 1.7 Gbit/s: the programs are the limit and not the carrier
        upf, gnb, ue = chain.upf(), chain.gnb(prb_total=275, layers=4, queue_bytes=3_000_000), chain.ue()
        for program in (upf, gnb, ue):
            program.ready()
        ue.call("attach", ue="phones.1")
        for way, extra in (("uplink", ()), ("downlink", ("-R",))):
            before = [cpu_s(program) for program in (ue, gnb, upf)]
            rate_bps = tcp_bps(chain, *extra)
            ue_s, gnb_s, upf_s = (cpu_s(p) - b for p, b in zip((ue, gnb, upf), before, strict=True))
            detail = f"cores: UE {ue_s / TCP_S:.2f}, gNB {gnb_s / TCP_S:.2f}, UPF {upf_s / TCP_S:.2f}"
            rows.append(figure(f"chain TCP {way}, Mbit/s", rate_bps / 1e6, ">=", 250, detail))
            rows.append(
                figure(f"UPF TCP {way} per core of its CPU, Mbit/s", rate_bps / 1e6 / (upf_s / TCP_S), ">=", 500)
            )
    return rows


def sessions(folder: Path) -> list[dict[str, Any]]:
    """Attach and detach times, and the CPU of a gNB with 100 attached and silent UEs."""
    with contextlib.closing(Chain(folder)) as chain:
        upf, gnb, ue = chain.upf(), chain.gnb(100), chain.ue(100)
        for program in (upf, gnb, ue):
            program.ready()
        names = list(chain.ues(100))
        one_us, detach_us = [], []
        for _ in range(100):
            one_us.append(ue.call("attach", ue=names[0])["results"][names[0]]["attach_us"])
            start_ns = time.monotonic_ns()
            ue.call("detach", ue=names[0])
            detach_us.append((time.monotonic_ns() - start_ns) / 1e3)
        start_ns = time.monotonic_ns()
        ue.call("attach", ues=names)
        all_ms = (time.monotonic_ns() - start_ns) / 1e6
        before_s, start_s = cpu_s(gnb), time.monotonic()
        wait_until(lambda: time.monotonic() - start_s >= 3)
        idle = (cpu_s(gnb) - before_s) / (time.monotonic() - start_s)
    return [
        figure("attach, median ms", statistics.median(one_us) / 1e3, "<=", 10, f"p99 {sorted(one_us)[98] / 1e3:.1f}"),
        figure("detach, median ms", statistics.median(detach_us) / 1e3, "<=", 10),
        figure("100 UEs attach together, ms", all_ms, "<=", 1000),
        figure("idle gNB with 100 attached UEs, % of a core", idle * 100, "<=", 2),
    ]


def cpu_share(folder: Path) -> list[dict[str, Any]]:
    """Downlink throughput against the CPU share of the gNB, default work per bit."""
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(contextlib.closing(Chain(folder)))
        gnb = chain.gnb(work_ns_per_bit=DEFAULT_WORK_NS_PER_BIT)
        programs = (chain.upf(), gnb, chain.ue(), chain.video(), chain.traffic())
        for program in programs:
            program.ready()
        programs[2].call("attach", ue="phones.1")
        chain.stream_to(programs[4], "phones.1", 30e6, packet_bytes=1400)
        run_id = f"bench-{os.getpid()}"
        journal = stack.enter_context(Journal.create(run_id, folder=folder / "journal"))
        group = Cgroup.create(run_id, "gnb", journal=journal)
        stack.callback(group.remove)
        stack.callback(gnb.stop)
        group.add(gnb.process.pid)
        rates_bps, bits, cpu_ns, short = [], 0, 0, 0
        for millicores in SHARES_MILLICORES:
            group.set_cpu(millicores)
            settle = gnb.call("stats")["slots"]
            first = wait_until(lambda settle=settle: (now := gnb.call("stats"))["slots"] > settle + 300 and now)
            last = wait_until(lambda first=first: (now := gnb.call("stats"))["slots"] > first["slots"] + 1000 and now)
            carried = 8 * (last["slices"]["embb"]["dl_bytes"] - first["slices"]["embb"]["dl_bytes"])
            rates_bps.append(carried * 1e9 / (last["time_ns"] - first["time_ns"]))
            bits += carried
            used_ns = last["cpu_ns"] - first["cpu_ns"]
            cpu_ns += used_ns
            short += used_ns < 0.95e-3 * millicores * (last["time_ns"] - first["time_ns"])
    correlation = statistics.correlation(SHARES_MILLICORES, rates_bps)
    note = f"; the host gave less CPU than the limit at {short} points" if short else ""
    points = " ".join(f"{m}:{rate / 1e6:.2f}" for m, rate in zip(SHARES_MILLICORES, rates_bps, strict=True))
    return [
        figure("CPU share to throughput, R squared", correlation**2, ">=", 0.98, f"millicores:Mbit/s {points}{note}"),
        figure("CPU time per bit / declared work per bit", cpu_ns / bits / DEFAULT_WORK_NS_PER_BIT, "<=", 1.05),
    ]


def _two_slices(folder: Path, *, shared: bool) -> dict[str, float]:
    """95th percentile in ms of each slice's downlink delay while eMBB asks for twice what its CPU can do."""
    with contextlib.ExitStack() as stack:
        chain = stack.enter_context(contextlib.closing(Chain(folder)))
        run_id = f"bench-{os.getpid()}-{'shared' if shared else 'apart'}"
        journal = stack.enter_context(Journal.create(run_id, folder=folder / "journal"))
        ip("-n", chain.ns["upf"], "addr", "add", "10.1.0.3/24", "dev", "upf-gnb")
        ip("-n", chain.ns["app"], "route", "add", "10.65.0.0/16", "via", chain.UPF_N6)
        ends = {
            "embb": (chain.UPF, "10.64.0.2", 38412, 300.0),
            "urllc": ("10.1.0.3", "10.65.0.2", 38412 if shared else 38413, 150.0),
        }
        slices, ues = {}, {}
        for name, (upf, address, _, _) in ends.items():
            pool = address.rsplit(".", 2)[0] + ".0.0/16"
            config = {**chain.upf_config(), "n3": {"bind": upf}, "ue_pool": pool, "tun": f"upf-{name}"}
            chain.start("upf", "upf", config, key=f"upf-{name}").ready()
            slices[name] = {"name": name, "prb_share": 0.5, "upf": upf, "qfi": 9, "sst": 1, "sd": "000001"}
            ues[name] = {f"{name}.1": {"slice": name, "address": address, "cqi_script": [[0, 15]]}}
        for names in [list(ends)] if shared else [[name] for name in ends]:
            config = {
                **{**chain.gnb_config(), "work_ns_per_bit": DEFAULT_WORK_NS_PER_BIT, "shared_pool": shared},
                **{"slices": [slices[name] for name in names], "radio": {"port": ends[names[0]][2]}},
                "ues": {ue: row for name in names for ue, row in ues[name].items()},
            }
            gnb = chain.start("gnb", "gnb", config, key="gnb-" + "-".join(names)).ready()
            millicores = sum(ends[name][3] for name in names)
            group = Cgroup.create(run_id, names[0], cpu_millicores=millicores, journal=journal)
            stack.callback(group.remove)
            stack.callback(gnb.stop)
            group.add(gnb.process.pid)
        for name, (_, address, port, _) in ends.items():
            config = {
                **{**chain.ue_config(), "tun": f"tun-{name}", "routes": ["10.1.0.0/16"] if name == "embb" else []},
                "gnb": {"address": chain.GNB_RADIO, "port": port},
                "ues": [{"id": f"{name}.1", "index": 1, "address": address}],
            }
            chain.start("ue", "ue", config, key=f"ue-{name}").ready().call("attach", ue=f"{name}.1")
        ip("-n", chain.ns["ue"], "rule", "add", "from", "10.65.0.2", "table", "65")
        ip("-n", chain.ns["ue"], "route", "add", "10.1.0.0/16", "dev", "tun-urllc", "table", "65")
        chain.video().ready()
        traffic = chain.traffic()
        for name, rate_bps, packet_bytes in (("embb", 20e6, 1200), ("urllc", 2e5, 200)):
            traffic.call(
                "start",
                **{"flow": name, "ue": f"{name}.1", "address": ends[name][1], "service": "stream", "seed": 1},
                **{"app": [chain.APP, 5001], "rate": rate_bps, "packet_bytes": packet_bytes},
            )
        for seconds in (1.0, 3.0):  # the first second fills the queues
            start_s = time.monotonic()
            wait_until(lambda until_s=start_s + seconds: time.monotonic() >= until_s)
            flows = traffic.call("stats")["flows"]
        return {name: (percentile(flows[name]["delay"], 95) or 0.0) / 1e3 for name in ends}


def slicing(folder: Path) -> list[dict[str, Any]]:
    """URLLC delay beside a congested eMBB slice: own process and CPU limit each, or one for both."""
    delays = {}
    for shared in (False, True):
        part = folder / str(shared)
        part.mkdir()
        delays[shared] = _two_slices(part, shared=shared)
    detail = " ".join(
        f"{'shared' if shared else 'apart'}: eMBB {row['embb']:.0f} URLLC {row['urllc']:.1f}"
        for shared, row in delays.items()
    )
    ratio = delays[True]["urllc"] / delays[False]["urllc"]
    return [figure("URLLC delay p95, slices shared / apart", ratio, ">=", 2, f"ms {detail}")]


def ip(*words: str) -> None:
    """An ip command that must succeed."""
    subprocess.run(["ip", *words], check=True)


def traffic_cost(folder: Path) -> list[dict[str, Any]]:
    """CPU of the traffic program for 20 UEs at 1 Mbit/s each."""
    with contextlib.closing(Chain(folder)) as chain:
        traffic = chain.traffic()
        programs = (chain.upf(), chain.gnb(20), chain.ue(20), chain.video(), traffic)
        for program in programs:
            program.ready()
        programs[2].call("attach", ues=list(chain.ues(20)))
        for ue in chain.ues(20):
            chain.stream_to(traffic, ue, 1e6, packet_bytes=1400)
        before_s, start_s = cpu_s(traffic), time.monotonic()
        wait_until(lambda: time.monotonic() - start_s >= 3)
        used = (cpu_s(traffic) - before_s) / (time.monotonic() - start_s)
    return [figure("traffic program, 20 UEs at 1 Mbit/s, % of a core", used * 100, "<=", 10)]


def start_up(folder: Path) -> list[dict[str, Any]]:
    """From exec to the control socket, without `ip netns exec` and other programs."""
    took_s = []
    for attempt in range(5):
        start_s = time.monotonic()
        program = Program("traffic", None, {"node": "t"}, folder, key=f"t{attempt}")
        while not program.path.exists():
            time.sleep(0.0005)
        took_s.append(time.monotonic() - start_s)
        program.stop()
    return [figure("program start-up, best of 5, ms", min(took_s) * 1e3, "<=", 100, f"worst {max(took_s) * 1e3:.0f}")]


def figure(name: str, measured: float, relation: str, reference: float, detail: str = "") -> dict[str, Any]:
    """One row of the table."""
    met = measured >= reference if relation == ">=" else measured <= reference
    return {
        **{"figure": name, "measured": round(measured, 4), "reference": f"{relation} {reference:g}"},
        **{"met": met, "detail": detail},
    }


def main() -> None:
    """Run everything and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    as_json = parser.parse_args().json
    if os.geteuid() != 0:
        raise SystemExit("user_plane: needs root for network namespaces")
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for part in (throughput, sessions, cpu_share, slicing, traffic_cost, start_up):
        with tempfile.TemporaryDirectory() as folder:
            rows += part(Path(folder))
    result = {"cpus": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0], "figures": rows}
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{os.cpu_count()} CPUs, load average {load:.2f} before and {os.getloadavg()[0]:.2f} after")
        for row in rows:
            verdict = "met" if row["met"] else "MISSED"
            print(f"{row['figure']:<52}{row['measured']:>12.3f}  {row['reference']:<9}{verdict:<8}{row['detail']}")
    raise SystemExit(0 if all(row["met"] for row in rows) else 1)


if __name__ == "__main__":
    main()
