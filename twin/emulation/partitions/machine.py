"""One guest: a QEMU ``virt`` machine that outlives the daemon which started it.

Everything that a later daemon needs to take it over is a socket in the partition's folder: QMP for orders, the
VNF runtime's channel for metrics. The serial console is a ring in QEMU's memory, so that a guest cannot
fill the host's disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate

from twin.emulation.partitions.protocol import RequestError
from twin.emulation.process import LaunchError, start_in_netns
from twin.journal import start_ticks

PROGRAM = "qemu-system-aarch64"
CHANNEL_NAME = "twinbed.channel"
OVERHEAD_MIB = 256
"""What QEMU needs besides the guest's memory (measured 180 MiB in all for 128 MiB of guest)."""
# What an emulated processor loses most time with, and isolates nothing in a machine of its own.
KERNEL_OPTIONS = (
    "console=ttyAMA0 panic=-1 loglevel=4 nokaslr mitigations=off init_on_alloc=0 rodata=off audit=0 lsm= "
    "cryptomgr.notests rcupdate.rcu_expedited=1 cma=0"
)
_LARGE_MIB = 3000  # beyond, the machine's memory reaches over 4 GiB
_CONSOLE_BYTES = 16384
_TAIL_BYTES = 2000
_LINE_BYTES = 256 * 1024  # of the runtime's channel: all histograms full
_START_TIMEOUT_S = 10.0
_QMP_TIMEOUT_S = 5.0
_POLL_S = 0.003
_MOST_ORDERS = 512  # to the VNF runtime, at once
_ANSWERS = ("set", "refused", "time", "flows", "released")
_EVENTS = ("SHUTDOWN", "RESET", "GUEST_PANICKED", "STOP", "RESUME", "POWERDOWN")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine is made of."""

    cores: int
    memory_mib: int
    tap: str
    mac: str
    kernel: Path
    initramfs: Path | None
    dtb: Path
    disk: Path | None
    cmdline: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine runs: its folder, network namespace and control groups."""

    folder: Path
    netns: Path
    members: Sequence[Path]

    @property
    def qmp(self) -> Path:
        """Socket for orders."""
        return self.folder / "qmp.sock"

    @property
    def channel(self) -> Path:
        """Socket of the VNF runtime's virtio-serial port."""
        return self.folder / "channel.sock"

    @property
    def log(self) -> Path:
        """What QEMU itself says."""
        return self.folder / "qemu.log"


def command(hardware: Hardware, place: Place) -> list[str]:
    """The QEMU command line; the processors do not run yet."""
    highmem = "off" if hardware.memory_mib <= _LARGE_MIB else "on"
    line = [PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    # So that its virtual CPUs can be told from its other threads.
    line += ["-name", f"{place.folder.name},debug-threads=on"]
    line += ["-machine", f"virt,gic-version=2,highmem={highmem}", "-cpu", "cortex-a53"]
    line += ["-accel", "tcg,thread=multi,tb-size=32", "-smp", str(hardware.cores), "-m", f"{hardware.memory_mib}M"]
    line += ["-kernel", str(hardware.kernel), "-dtb", str(hardware.dtb), "-append", hardware.cmdline]
    if hardware.initramfs is not None:
        line += ["-initrd", str(hardware.initramfs)]
    line += ["-qmp", f"unix:{place.qmp},server=on,wait=off"]
    line += ["-chardev", f"ringbuf,id=console,size={_CONSOLE_BYTES}", "-serial", "chardev:console"]
    line += ["-netdev", f"tap,id=net,ifname={hardware.tap},script=no,downscript=no,vnet_hdr=off"]
    line += ["-device", f"virtio-net-device,netdev=net,mac={hardware.mac},bus=virtio-mmio-bus.0"]
    line += ["-device", "virtio-serial-device,bus=virtio-mmio-bus.1"]
    line += ["-chardev", f"socket,id=channel,path={place.channel},server=on,wait=off"]
    line += ["-device", f"virtserialport,chardev=channel,name={CHANNEL_NAME}"]
    if hardware.disk is not None:
        line += ["-drive", f"file={hardware.disk},format=raw,if=none,id=disk,snapshot=on"]
        line += ["-device", "virtio-blk-device,drive=disk,bus=virtio-mmio-bus.2"]
    # A guest that breaks out of its machine finds neither programs to start nor privileges to gain.
    line += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
    # A guest that ends stays, stopped, until the daemon has seen it.
    return [*line, "-action", "shutdown=pause,panic=pause"]


class Machine:
    """A running QEMU. ``ended`` is called once, with the reason, when the guest or QEMU ends by itself."""

    def __init__(self, label: str, place: Place, pid: int, ticks: int, ended: Callable[[Machine, str], None]) -> None:
        self.label = label
        self.place = place
        self.pid = pid
        self.ticks = ticks
        self.hello: Mapping[str, Any] | None = None
        self.metrics: Mapping[str, Any] | None = None
        self.reported: Callable[[Mapping[str, Any]], None] | None = None
        """Called with each metrics line: histograms in it hold what came since the line before."""
        self.guest_resets = 0
        self.killed = False
        self.last_console = ""
        self.stopper: Callable[[], Awaitable[None]] | None = None
        """How somebody else who started the machine ends it (None: it is ours)."""
        self.switched: Callable[[Machine, bool], None] | None = None
        """Called when the processors of such a machine stop (False) or go on (True)."""
        self.news = asyncio.Event()  # hello, reset or end
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: Callable[[Machine, str], None] | None = ended
        self._end_reason: str | None = None
        self._qmp = QMPClient(f"partition {label}")
        self._tasks: list[asyncio.Task[None]] = []
        self._console = bytearray()
        self._writer: asyncio.StreamWriter | None = None
        self.greeted: Callable[[Machine], None] | None = None
        """Called whenever the VNF runtime has started."""
        self._answers: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(_MOST_ORDERS)
        self._asking = asyncio.Lock()
        self._pidfd = os.pidfd_open(pid)
        self._adopted = False  # its hello may have been said to an earlier daemon

    @classmethod
    async def start(
        cls, label: str, hardware: Hardware, place: Place, ended: Callable[[Machine, str], None]
    ) -> Machine:
        """Start QEMU with its processors stopped; RequestError EIO with QEMU's own words when it does not start."""
        for path in (place.qmp, place.channel):
            path.unlink(missing_ok=True)

        def launch() -> subprocess.Popen[bytes]:
            netns = os.open(place.netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with place.log.open("wb") as log:
                    return start_in_netns(
                        netns, command(hardware, place), name=label, output=log, members=place.members
                    )
            finally:
                os.close(netns)

        try:
            process = await asyncio.to_thread(launch)
        except LaunchError as error:
            raise RequestError("EIO", f"partition {label}: {error}") from None
        ticks = start_ticks(process.pid)
        machine = cls(label, place, process.pid, -1 if ticks is None else ticks, ended)
        machine._process = process
        try:
            await machine._attach()
        except BaseException:
            await machine.kill()
            raise
        return machine

    @classmethod
    async def adopt(
        cls, label: str, place: Place, pid: int, ticks: int, ended: Callable[[Machine, str], None]
    ) -> Machine | None:
        """The machine that an earlier daemon started; None when it is gone."""
        try:
            machine = cls(label, place, pid, ticks, ended)
        except ProcessLookupError:
            return None
        if start_ticks(pid) != ticks:  # asked with the descriptor held: the pid cannot change hands now
            machine._close_pidfd()
            return None
        machine._adopted = True
        try:
            await machine._attach()
        except RequestError:
            machine._close_pidfd()
            return None
        return machine

    async def _attach(self) -> None:
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        while True:
            if not self.alive:
                raise RequestError("EIO", f"partition {self.label}: QEMU ended at once: {self.last_words()}")
            try:
                if not self.place.qmp.exists():
                    raise FileNotFoundError
                await asyncio.wait_for(self._qmp.connect(str(self.place.qmp)), _QMP_TIMEOUT_S)
                break
            except (QMPError, OSError, TimeoutError):
                with contextlib.suppress(QMPError):
                    await self._qmp.disconnect()
                if asyncio.get_running_loop().time() > deadline:
                    raise RequestError("EIO", f"partition {self.label}: QEMU does not answer") from None
                await asyncio.sleep(_POLL_S)
        asyncio.get_running_loop().add_reader(self._pidfd, self._process_ended)
        self._tasks = [asyncio.create_task(self._follow_events()), asyncio.create_task(self._follow_channel())]

    # --- orders -------------------------------------------------------------------------------------

    async def execute(self, order: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """One QMP command; RequestError EIO when QEMU refuses or is gone."""
        try:
            pending = self._qmp.execute(order, None if arguments is None else dict(arguments))
            return await asyncio.wait_for(pending, _QMP_TIMEOUT_S)
        except ExecuteError as error:
            raise RequestError("EIO", f"partition {self.label}: QEMU refuses {order}: {error}") from None
        except (QMPError, OSError, TimeoutError) as error:
            raise RequestError("EIO", f"partition {self.label}: QEMU does not answer {order}: {error}") from None

    async def proceed(self) -> None:
        """Let the processors run."""
        await self.execute("cont")

    async def stop(self) -> None:
        """Stop the processors; memory and devices keep their state."""
        await self.execute("stop")

    async def running(self) -> bool:
        """False while the processors are stopped."""
        return bool((await self.execute("query-status"))["running"])

    async def reset(self) -> None:
        """Power the processors off and on: kernel, device tree and initramfs are loaded anew."""
        self.hello = None
        self._adopted = False
        await self.execute("system_reset")

    async def vcpu_threads(self) -> list[int]:
        """Thread ids of the virtual processors on the host."""
        return [int(one["thread-id"]) for one in await self.execute("query-cpus-fast")]

    async def configure(self, key: str, value: str) -> None:
        """One setting of the VNF runtime; RequestError EINVAL with its words when it refuses."""
        await self.configure_all([(key, value)])

    async def configure_all(self, settings: Sequence[tuple[str, str]]) -> None:
        """Settings in their order, without waiting in between; RequestError for the first that is refused."""
        answers = await self._exchange([f"{key} {value}" for key, value in settings])
        for (key, value), answer in zip(settings, answers, strict=True):
            if answer.get("type") == "refused":
                raise RequestError(
                    "EINVAL", f"partition {self.label}: {key} {answer.get('reason', 'refused')}, got {value}"
                )

    async def ask(self, question: str) -> Mapping[str, Any]:
        """What the VNF runtime answers to a question; RequestError when it refuses or does not answer."""
        (answer,) = await self._exchange([question])
        if answer.get("type") == "refused":
            raise RequestError("EIO", f"partition {self.label}: {question}: {answer.get('reason', 'refused')}")
        return answer

    async def _exchange(self, lines: Sequence[str]) -> list[Mapping[str, Any]]:
        async with self._asking:
            if self._writer is None:
                raise RequestError("EIO", f"partition {self.label}: no VNF runtime answers in it")
            while not self._answers.empty():
                self._answers.get_nowait()
            self._writer.write("".join(f"{line}\n" for line in lines).encode())
            try:
                async with asyncio.timeout(_QMP_TIMEOUT_S):
                    return [await self._answers.get() for _ in lines]
            except TimeoutError:
                raise RequestError("ETIMEDOUT", f"partition {self.label}: its VNF runtime does not answer") from None

    async def console_tail(self) -> str:
        """The end of what the guest wrote to its serial console."""
        with contextlib.suppress(RequestError):
            text = await self.execute("ringbuf-read", {"device": "console", "size": _CONSOLE_BYTES, "format": "utf8"})
            self._console += str(text).encode()
            del self._console[:-_CONSOLE_BYTES]
        return self._console[-_TAIL_BYTES:].decode(errors="replace")

    async def kill(self) -> None:
        """End QEMU, whatever it does; nothing of the guest is left."""
        self._ended = None
        self.killed = True
        self.news.set()
        if self.stopper is not None:
            await self.stopper()
            await self._gone(5.0)
        with contextlib.suppress(QMPError, OSError, TimeoutError):
            if self.alive and self._qmp.runstate == Runstate.RUNNING:
                await asyncio.wait_for(self._qmp.execute("quit"), 1.0)
        await self._gone(0.3)
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
            await self._gone(5.0)
        await self.detach()

    async def detach(self) -> None:
        """Let go of the machine, which runs on."""
        self._ended = None
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError, QMPError, OSError):
                await task
        self._tasks = []
        if self._process is not None and (self.alive or self._process.poll() is None):
            # The guest stays when we end: not our child to wait for any more.
            self._process.returncode = 0
        self._close_pidfd()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._qmp.disconnect()

    # --- what happens by itself -----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """True until the last thread of QEMU has ended: before, it may still hold its TAP."""
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    @property
    def end_reason(self) -> str | None:
        """Why the guest or QEMU ended by itself; None while it goes on."""
        return self._end_reason

    def last_words(self) -> str:
        """The last line that QEMU wrote."""
        with contextlib.suppress(OSError):
            lines = self.place.log.read_text(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].removeprefix(f"{PROGRAM}: ")
        return "without a word"

    async def _gone(self, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.alive and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_S)

    def _finish(self, reason: str) -> None:
        self._end_reason = self._end_reason or reason
        self.news.set()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended(self, reason)

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _process_ended(self) -> None:
        status = None if self._process is None else self._process.poll()
        by = f" by {signal.Signals(-status).name}" if status is not None and status < 0 else ""
        self._close_pidfd()
        self._finish(f"QEMU ended{by}: {self.last_words()}")

    async def _follow_events(self) -> None:
        with self._qmp.listener(_EVENTS) as events:
            async for event in events:
                self._heed(event)

    def _heed(self, event: Message) -> None:
        data: Any = event.get("data", {})
        if event["event"] == "RESET":
            if data.get("guest"):
                self.guest_resets += 1
                self.news.set()
        elif event["event"] in ("STOP", "RESUME"):
            if self.switched is not None:
                self.switched(self, event["event"] == "RESUME")
        elif event["event"] == "POWERDOWN":
            # A machine without ACPI has no power button: our runtime is told on its channel.
            if self._writer is not None:
                self._writer.write(b"poweroff\n")
        elif self.stopper is not None:
            pass  # whoever started it decides what a guest's end means: the end of QEMU, or a reset
        elif event["event"] == "GUEST_PANICKED":
            self._finish("the guest's kernel panicked")
        elif data.get("reason") not in ("host-qmp-quit", "host-qmp-system-reset"):
            self._finish(f"the guest ended: {data.get('reason', 'unknown reason')}")

    async def _follow_channel(self) -> None:
        """Take the runtime's lines, from now on and whenever the connection comes back."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self.place.channel, limit=_LINE_BYTES)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            self._writer = writer
            try:
                while line := await reader.readline():
                    self._take(line)
            except (OSError, ValueError):  # a line without end: not our runtime
                pass
            finally:
                self._writer = None
                writer.close()
            await asyncio.sleep(0.05)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            kind = message.get("type")
        except (ValueError, AttributeError, RecursionError):
            return
        if kind == "metrics":
            self.metrics = message
            if self.reported is not None:
                self.reported(message)
        elif kind in _ANSWERS:
            with contextlib.suppress(asyncio.QueueFull):
                self._answers.put_nowait(message)
        if kind == "hello" or (kind == "metrics" and self.hello is None and self._adopted):
            self.hello = message
            self.news.set()
        if kind == "hello" and self.greeted is not None:
            self.greeted(self)
