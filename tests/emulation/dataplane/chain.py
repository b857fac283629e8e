"""A chain UE - gNB - UPF - application of plain network namespaces, made and removed by the test."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
_serial = itertools.count()


def run(*words: str) -> str:
    """A command that must succeed; its output."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Poll until the condition is truthy; fails after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline_s, "the condition did not become true in time"
        time.sleep(0.01)


class Program:
    """One data plane program in a namespace, and a control connection to it."""

    def __init__(self, name: str, namespace: str | None, config: dict[str, Any], folder: Path, key: str = "") -> None:
        self.name = key or name
        self.path = folder / f"{self.name}.sock"
        file = folder / f"{self.name}.json"
        file.write_text(json.dumps(config))
        enter = ["ip", "netns", "exec", namespace] if namespace else []
        module = f"twin.emulation.dataplane.{name}"
        self.process = subprocess.Popen(
            [*enter, sys.executable, "-m", module, "--config", str(file), "--control", str(self.path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._link: socket.socket | None = None
        self._lines: Any = None

    def ready(self) -> Program:
        """Wait for the control socket."""

        def connect() -> bool:
            assert self.process.poll() is None, f"{self.name} ended: {self.process.stderr.read()}"  # type: ignore[union-attr]
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(10)
            try:
                link.connect(str(self.path))
            except OSError:
                link.close()
                return False
            self._link, self._lines = link, link.makefile("rb")
            return True

        if self._link is None:
            wait_until(connect)
        return self

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """The reply to one request, whatever it says."""
        self.ready()
        assert self._link is not None
        self._link.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
        reply: dict[str, Any] = json.loads(self._lines.readline())
        return reply

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """The reply to one request that must succeed."""
        reply = self.ask(op, **arguments)
        assert reply["ok"], f"{self.name} {op}: {reply}"
        return reply

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the program; its exit code."""
        if self._link is not None:
            self._lines.close()
            self._link.close()
            self._link = None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=10)
        self.process.stderr.close()  # type: ignore[union-attr]
        return code


class Chain:
    """Namespaces ue, gnb, upf, app in a row; addresses 10.200.0.x, 10.1.0.x, 10.1.1.x; pool 10.64.0.0/16."""

    UE, GNB_RADIO, GNB, UPF, UPF_N6, APP = "10.200.0.2", "10.200.0.1", "10.1.0.1", "10.1.0.2", "10.1.1.1", "10.1.1.2"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        tag = f"tb{os.getpid()}x{next(_serial)}"
        self.ns = {role: f"{tag}{role}" for role in ("ue", "gnb", "upf", "app")}
        for name in self.ns.values():
            run("ip", "netns", "add", name)
            self._stack.callback(run, "ip", "netns", "del", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self._link("ue", self.UE, "gnb", self.GNB_RADIO)
        self._link("gnb", self.GNB, "upf", self.UPF)
        self._link("upf", self.UPF_N6, "app", self.APP)
        for role in self.ns:
            self.sysctl(role, "net.ipv4.conf.all.rp_filter", "0")
            self.sysctl(role, "net.ipv4.conf.default.rp_filter", "0")
        self.sysctl("upf", "net.ipv4.ip_forward", "1")
        run("ip", "-n", self.ns["app"], "route", "add", "10.64.0.0/16", "via", self.UPF_N6)

    def sysctl(self, role: str, key: str, value: str) -> None:
        """Set a sysctl of one namespace."""
        run("ip", "netns", "exec", self.ns[role], "sysctl", "-qw", f"{key}={value}")

    def _link(self, a: str, a_address: str, b: str, b_address: str) -> None:
        one, two = f"{a}-{b}", f"{b}-{a}"
        run("ip", "link", "add", one, "netns", self.ns[a], "type", "veth", "peer", "name", two, "netns", self.ns[b])
        for role, device, address in ((a, one, a_address), (b, two, b_address)):
            run("ip", "-n", self.ns[role], "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", self.ns[role], "link", "set", device, "up")

    def start(self, name: str, role: str | None, config: dict[str, Any], key: str = "") -> Program:
        """Start a program in a namespace; it is stopped with the chain."""
        program = Program(name, self.ns[role] if role else None, config, self.folder, key)
        self._stack.callback(program.stop)
        return program

    def exec(self, role: str, *words: str) -> list[str]:
        """The command line that runs in a namespace."""
        return ["ip", "netns", "exec", self.ns[role], *words]

    def ues(self, count: int) -> dict[str, str]:
        """Ids and addresses."""
        return {f"phones.{i}": f"10.64.{(i + 1) >> 8}.{(i + 1) & 255}" for i in range(1, count + 1)}

    def upf_config(self) -> dict[str, Any]:
        return {"node": "upf", "slice": "embb", "n3": {"bind": self.UPF}, "ue_pool": "10.64.0.0/16", "tun": "upf0"}

    def gnb_config(self, count: int = 1, cqi: int = 15) -> dict[str, Any]:
        return {
            "node": "gnb1",
            "slices": [{"name": "embb", "prb_share": 1.0, "upf": self.UPF, "qfi": 9, "sst": 1, "sd": "000001"}],
            "radio": {"bind": "0.0.0.0", "port": 38412},
            "n3": {"bind": self.GNB},
            "work_ns_per_bit": 0,
            "seed": 1,
            "ues": {
                ue: {"slice": "embb", "address": address, "cqi_script": [[0, cqi]]}
                for ue, address in self.ues(count).items()
            },
        }

    def ue_config(self, count: int = 1) -> dict[str, Any]:
        return {
            "node": "phones",
            "tun": "tun0",
            "gnb": {"address": self.GNB_RADIO, "port": 38412},
            "routes": ["10.1.0.0/16"],
            "ues": [
                {"id": ue, "index": index, "address": address, "slice": "embb"}
                for index, (ue, address) in enumerate(self.ues(count).items(), start=1)
            ],
        }

    def upf(self, **changes: Any) -> Program:
        return self.start("upf", "upf", {**self.upf_config(), **changes})

    def gnb(self, count: int = 1, cqi: int = 15, **changes: Any) -> Program:
        config = {**self.gnb_config(count, cqi), **changes}
        return self.start("gnb", "gnb", config, key=config["node"])

    def ue(self, count: int = 1, **changes: Any) -> Program:
        return self.start("ue", "ue", {**self.ue_config(count), **changes})

    def stream_to(self, traffic: Program, ue: str, rate_bps: float, flow: str = "", packet_bytes: int = 1200) -> str:
        """Start a stream flow from the application node to a UE; the flow's name."""
        name = flow or f"video-{ue}"
        traffic.call(
            "start",
            **{"flow": name, "ue": ue, "address": self.ues(1000)[ue], "service": "stream", "seed": 1},
            **{"app": [self.APP, 5001], "rate": rate_bps, "packet_bytes": packet_bytes},
        )
        return name

    def traffic(self) -> Program:
        return self.start("traffic", "ue", {"node": "phones"})

    def video(self) -> Program:
        return self.start("app_stream", "app", {"node": "video"})

    def close(self) -> None:
        self._stack.close()
