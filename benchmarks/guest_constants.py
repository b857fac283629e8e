"""What an emulated guest costs the host beside its declared work: the constants of ``twin/flow/guest_constants``.

    sudo .venv/bin/python benchmarks/guest_constants.py [--duration 20]

Runs a small network with partitions that do nothing, answer requests (without and with work) and stream, and divides
the CPU time of each by what it did. Needs a quiet host.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from scenarios.execution import execute
from scenarios.loader import load_data
from twin.store import KpiReader

REQUESTS_PER_S = 20
WORK_MS = 5
STREAM_MBPS = (1, 4)
PACKET_BYTES = 1200


def scenario(duration_s: float) -> dict[str, object]:
    """Every partition at one switch behind the UPF."""
    nodes: dict[str, object] = {
        "gnb1": {"kind": "gnb"},
        "phones": {"kind": "ue", "slice": "embb"},
        "upf": {"kind": "upf", "slice": "embb"},
        "s1": {"kind": "switch"},
        "idle": {"kind": "partition"},
        "empty": {"kind": "partition", "vnf": "request", "cpu_ms_per_request": 0},
        "work": {"kind": "partition", "vnf": "request", "cpu_ms_per_request": WORK_MS},
        **{f"cam{rate}": {"kind": "partition", "vnf": "stream"} for rate in STREAM_MBPS},
    }
    traffic = [
        {"name": name, "ues": "phones", "app": name, "rate": f"{REQUESTS_PER_S}/s"} for name in ("empty", "work")
    ]
    traffic += [
        {
            "name": f"cam{rate}",
            "ues": "phones",
            "app": f"cam{rate}",
            "rate": f"{rate}Mbps",
            "packet_bytes": PACKET_BYTES,
        }
        for rate in STREAM_MBPS
    ]
    partitions = [name for name, node in nodes.items() if dict(node)["kind"] == "partition"]  # type: ignore[call-overload]
    links = [["phones", "gnb1"], ["gnb1", "upf"], ["upf", "s1"], *(["s1", name] for name in partitions)]
    return {
        "name": "guest-constants",
        "duration": f"{duration_s:g}s",
        "fidelity": "emulation",
        "topology": {
            "edge": {"cores": len(partitions)},
            "nodes": nodes,
            "links": [{"endpoints": ends} for ends in links],
        },
        "slices": {"embb": {"sst": 1}},
        "traffic": traffic,
    }


def main() -> None:
    """Print one line for each constant."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--duration", type=float, default=20.0, help="seconds (default: %(default)s)")
    duration_s = parser.parse_args().duration
    with tempfile.TemporaryDirectory(prefix="twinbed-guests-") as folder:
        ended = execute(load_data(scenario(duration_s), file="guest_constants"), runs=Path(folder))
        with KpiReader(ended.result.path) as reader:

            def mean(entity: str, name: str) -> float:
                _, values = reader.series(entity, name)
                return float(values[2:].mean())

            idle = mean("node:idle", "cpu_used_millicores") / 1000
            print(f"idle: {1000 * idle:.1f} millicores, {mean('node:idle', 'memory_used_bytes') / 1e6:.0f} MB")
            for name, work_s in (("empty", 0.0), ("work", WORK_MS / 1000)):
                rate = mean(f"node:{name}", "requests_per_s")
                cpu_s = (mean(f"node:{name}", "cpu_used_millicores") / 1000 - idle) / rate
                took_s = mean(f"node:{name}", "response_p50_s")
                print(
                    f"request of {1000 * work_s:g} ms: {1000 * cpu_s:.2f} ms of CPU time, "
                    f"{1000 * (cpu_s - work_s):.2f} beside the work; "
                    f"answered in {1000 * took_s:.2f} ms (median, {rate:.1f}/s)"
                )
            for rate_mbps in STREAM_MBPS:
                packets = rate_mbps * 1e6 / 8 / PACKET_BYTES
                cpu_s = (mean(f"node:cam{rate_mbps}", "cpu_used_millicores") / 1000 - idle) / packets
                print(f"stream of {packets:.0f} packets/s: {1e6 * cpu_s:.0f} us of CPU time a packet")


if __name__ == "__main__":
    main()
