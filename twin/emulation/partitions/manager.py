"""The vManager: partitions, their states, and what they may use of the edge server.

States and transitions are those of NANCY D3.4 Figure 19: ``create-partition`` makes READY, ``deploy`` DEPLOYED,
``shutdown`` READY again, ``suspend`` SUSPENDED, ``restore`` DEPLOYED again; only a READY partition can be destroyed.

The guests outlive the daemon. What the next one must know is in ``state.json``, replaced as a whole before and
after everything that is made on the host; what is on the host is in the journal too, for ``twin gc``.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import json
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twin.emulation import cgroups
from twin.emulation.cgroups import CgroupError
from twin.emulation.partitions import devicetree, isolation, streaming
from twin.emulation.partitions.attack import Flood
from twin.emulation.partitions.images import GuestImageError, load
from twin.emulation.partitions.isolation import IsolationError, Reservation
from twin.emulation.partitions.libvirt import Domain, Libvirt, domain_xml
from twin.emulation.partitions.machine import KERNEL_OPTIONS, OVERHEAD_MIB, PROGRAM, Hardware, Machine, Place
from twin.emulation.partitions.network import BRIDGE, PartitionNetwork
from twin.emulation.partitions.protocol import COMMANDS, Request, RequestError, validated
from twin.emulation.partitions.streaming import Clock
from twin.journal import Journal, JournalError, start_ticks

READY, DEPLOYED, SUSPENDED = "READY", "DEPLOYED", "SUSPENDED"
_STATE_VERSION = 1
_BLOCK, _SPARE_BYTES, _SPARE_BYTES_EACH = 4096, 2048, 1024  # of the state file: room for notes of what ends
_BOOT_POLL_S = 0.05
_RUNTIME_KEYS = ("relay", "load", "metrics_ms")
_DEFAULT_DEPLOYMENT = {one.name: one.default for one in COMMANDS["deploy"].fields if one.name != "id"}


@dataclass(frozen=True, slots=True)
class EdgeServer:
    """What partitions may use in all, how critical ones are kept apart (``auto`` or a mode), and the network."""

    name: str
    cores: int
    memory_mib: int
    critical: str
    subnet: ipaddress.IPv4Network
    image: Path | None = None
    """Folder of the guest image (None: where ``make images`` puts it)."""
    libvirt: str | None = None
    """Connection URI when partitions are libvirt domains."""


@dataclass
class Partition:
    """One partition. Fields that are not in :data:`_TRANSIENT` are in ``state.json``."""

    id: int
    name: str
    cores: int
    cpus: list[int]
    memory_mib: int
    critical: bool
    address: str
    gateway: str | None
    bridge: str | None
    tap: str
    mac: str
    state: str = READY
    complete: bool = False
    """False while it is made or destroyed: a restarted daemon finishes removing it."""
    deployment: dict[str, Any] | None = None
    pid: int | None = None
    ticks: int | None = None
    isolation: str | None = None
    pinned: list[int] = field(default_factory=list)
    cpu_millicores: float | None = None
    dl_runtime_us: int | None = None
    dl_period_us: int | None = None
    note: str | None = None
    netns: str | None = None
    """File of the network namespace of its TAP; None: vmand's own."""
    isolated: bool = True
    machine: Machine | None = None
    group: cgroups.Cgroup | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    clock: Clock | None = None
    """Of the guest, since its stream server needs it."""
    stopped_ns: int | None = None
    flood: Flood | None = None

    @property
    def reservation(self) -> Reservation | None:
        """What ``limit`` reserved for each vCPU."""
        if self.dl_runtime_us is None or self.dl_period_us is None:
            return None
        return Reservation(self.dl_runtime_us, self.dl_period_us)


_TRANSIENT = {"machine", "group", "lock", "clock", "stopped_ns", "flood"}


class Manager:
    """Carries out requests. Several may run at once; those for the same partition wait for each other."""

    def __init__(self, server: EdgeServer, folder: Path, journal: Journal) -> None:
        self.server = server
        self.folder = folder
        self.journal = journal
        self.run_id = journal.run_id
        self.network = PartitionNetwork(self.run_id, server.subnet)
        self.partitions: dict[int, Partition] = {}
        self.adopted = 0
        self.reported: Callable[[str, Mapping[str, Any]], None] | None = None
        """Called with the name of a partition and each metrics line of its VNF runtime."""
        self.libvirt = None if server.libvirt is None else Libvirt(server.libvirt, server.name)
        self._next_id = 1
        self._table = asyncio.Lock()  # who owns which cores, memory and addresses
        self._host_cpus = sorted(os.sched_getaffinity(0))
        self._following = asyncio.Lock()
        self._complained: set[str] = set()
        self._pending: set[asyncio.Task[Any]] = set()
        self._commands: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "create-partition": self._create,
            "deploy": self._deploy,
            "destroy-partition": self._destroy,
            "reboot": self._reboot,
            "shutdown": self._shutdown,
            "suspend": self._suspend,
            "restore": self._restore,
            "list": self._list,
            "info": self._info,
            "configure": self._configure,
            "limit": self._limit,
            "stream": self._stream,
            "attack": self._attack,
        }

    # --- life of the daemon ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the network, or take over what an earlier daemon left. Raises RequestError."""
        if (self.folder / "state.json").exists():
            await self._adopt()
            return
        self.journal.record("netns", name=self.network.name)
        self.network.remove()
        self.network.create()
        self._save()

    async def close(self) -> None:
        """End the daemon: guests go on; without any partition nothing is left on the host."""
        for task in list(self._pending):
            task.cancel()
        for partition in self.partitions.values():
            if partition.flood is not None:
                partition.flood.leave()
            if partition.machine is not None:
                await partition.machine.detach()
        if not self.partitions:
            self.network.remove()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.journal.done(*(entry.number for entry in self.journal.entries))
        self.journal.close()

    async def end(self) -> None:
        """End the server of a run with all its guests; journal and folder belong to the run."""
        for task in list(self._pending):
            task.cancel()
        for partition in list(self.partitions.values()):
            async with partition.lock:
                if partition.machine is not None:
                    await partition.machine.kill()
                    self._forget_guest(partition)
                await self._release(partition)
        self.network.remove()
        entries = [one for one in self.journal.entries if one.kind == "netns"]
        self.journal.done(*(one.number for one in entries if one.ids["name"] == self.network.name))

    async def handle(self, request: Request) -> dict[str, Any]:
        """Carry out one request; RequestError when it is refused or fails."""
        try:
            await self.follow_libvirt()
            return await self._commands[request.command](request.args)
        except (CgroupError, GuestImageError, JournalError) as error:
            raise RequestError("EIO", f"{request.command}: {error}") from None
        except OSError as error:
            # An error of writing names no file; those that a command writes are in the folder.
            where = f"{error.filename or self.folder}: " if error.filename or error.errno == errno.ENOSPC else ""
            raise RequestError("EIO", f"{request.command}: {where}{error.strerror or error}") from None

    async def _adopt(self) -> None:
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if state["version"] != _STATE_VERSION:
                raise ValueError(f"version {state['version']}")
            partitions = [Partition(**one) for one in state["partitions"]]
            self._next_id = int(state["next_id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"cannot take over the partitions of {self.run_id}: {self.folder / 'state.json'}: {error}"
            raise RequestError("EIO", f"{text}; remove them with: twin destroy {self.run_id}") from None
        if not self.network.exists():
            raise RequestError("EIO", f"network namespace {self.network.name} is gone; twin destroy {self.run_id}")
        self.partitions = {one.id: one for one in partitions}
        for partition in partitions:
            with suppress(CgroupError):
                partition.group = cgroups.Cgroup.adopt(self.run_id, f"p{partition.id}", journal=self.journal)
            with suppress(CgroupError):  # an attack does not outlive who started it for long
                cgroups.Cgroup.adopt(self.run_id, f"attack-p{partition.id}", journal=self.journal).remove()
            if not partition.complete:
                await self._release(partition)
                continue
            await self._adopt_guest(partition)
        self._save()

    async def _adopt_guest(self, partition: Partition) -> None:
        if partition.pid is not None and partition.ticks is not None:
            label, place = str(partition.id), self._place(partition)
            machine = await Machine.adopt(label, place, partition.pid, partition.ticks, self._guest_ended)
            if machine is not None and partition.state != READY:
                partition.machine = machine
                if self.libvirt is not None:
                    self._share(partition, machine)
                # The daemon may have died between QEMU's answer and its own note of it.
                partition.state = DEPLOYED if await machine.running() else SUSPENDED
                self.adopted += 1
                if partition.deployment and partition.deployment.get("stream"):
                    machine.greeted = self._greeted
                    self._greeted(machine)
                return
            if machine is not None:
                await machine.kill()
            partition.note = "ended while no vmand was running"
        if partition.group is not None:
            for pid in partition.group.pids():  # started, and not written down before the daemon died
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
        self._forget_guest(partition)

    def _save(self) -> None:
        partitions = [
            {key: value for key, value in vars(one).items() if key not in _TRANSIENT}
            for one in self.partitions.values()
        ]
        server = {**asdict(self.server), "subnet": str(self.server.subnet), "image": None}
        state = {"version": _STATE_VERSION, "server": server, "next_id": self._next_id, "partitions": partitions}
        try:
            self._write_state(json.dumps(state, indent=1).encode())
        except OSError as error:
            raise RequestError("EIO", f"state folder {self.folder} cannot be written: {error.strerror}") from None

    def _write_state(self, data: bytes) -> None:
        """Replace ``state.json`` at once, without new blocks on disk unless it grows a lot.

        On a full disk what is given back must still be written down. So the old file becomes the next draft, and both
        have room to spare. Not flushed to disk: it has to outlive the daemon, and nothing it describes outlives the
        host.
        """
        state, draft, old = (self.folder / name for name in ("state.json", ".state.json", ".old.json"))
        room = -(-(len(data) + _SPARE_BYTES + _SPARE_BYTES_EACH * len(self.partitions)) // _BLOCK) * _BLOCK
        with open(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as file:  # noqa: PTH123
            file.write(data.ljust(max(room, os.fstat(file.fileno()).st_size)))
        old.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            os.link(state, old)
        draft.rename(state)
        with suppress(FileNotFoundError):
            old.rename(draft)

    # --- create and destroy ---------------------------------------------------------------------------

    async def _create(self, args: Mapping[str, Any]) -> dict[str, Any]:
        async with self._table:
            partition = self._admitted(args)
            if partition.bridge is not None and partition.bridge not in self.network.bridges():
                names = ", ".join(self.network.bridges())
                raise RequestError(
                    "ENOENT", f"bridge must be one of {names} in namespace {self.network.name}, got {partition.bridge}"
                )
            self.partitions[partition.id] = partition
            self._next_id += 1
            try:
                self._save()
                await asyncio.to_thread(self._equip, partition)
                if self.libvirt is not None:
                    self.journal.record("domain", name=partition.name, uri=self.libvirt.uri)
                    await asyncio.to_thread(self._define, partition, _DEFAULT_DEPLOYMENT, None)
                partition.complete = True
                self._save()
            except BaseException:
                partition.complete = False
                await self._release(partition)
                raise
        return {"id": partition.id}

    def _admitted(self, args: Mapping[str, Any]) -> Partition:
        """A partition with cores and memory of its own; RequestError when the server has no more."""
        free_cpus, free_mib = self._free()
        cores, memory_mib = args["cores"], args["memory_mib"]
        for what, wanted, free, total, unit in (
            ("cores", cores, len(free_cpus), self.server.cores, ""),
            ("memory", memory_mib, free_mib, self.server.memory_mib, " MiB"),
        ):
            if wanted > total:
                raise RequestError("EINVAL", f"{what}: the edge server has {total}{unit}, got {wanted}{unit}")
            if wanted > free:
                kind = "EBUSY" if what == "cores" else "ENOMEM"
                raise RequestError(kind, f"{what}: {free} of {total}{unit} are free, got {wanted}{unit}")
        others = [one.address for one in self.partitions.values()]
        address = args["address"] or self.network.next_address(others)
        if ipaddress.IPv4Interface(address).ip in {ipaddress.IPv4Interface(one).ip for one in others}:
            raise RequestError("EEXIST", f"address {address} belongs to another partition")
        number = self._next_id
        name = args["name"] or f"partition-{number}"
        if name in {one.name for one in self.partitions.values()}:
            raise RequestError("EEXIST", f"a partition is called {name} already")
        digest = zlib.crc32(self.run_id.encode())
        return Partition(
            id=number,
            name=name,
            cores=cores,
            cpus=free_cpus[:cores],
            memory_mib=memory_mib,
            critical=args["secure"],
            address=address,
            gateway=args["gateway"] or (None if args["address"] else self.network.gateway),
            bridge=None if args["netns"] else args["bridge"] or BRIDGE,
            netns=args["netns"],
            isolated=args["isolated"],
            # libvirt makes its TAPs in the host's namespace, where several daemons meet
            tap=f"tap{number}" if self.libvirt is None else f"tb{digest & 0xFFFF:04x}p{number}",
            mac=f"52:54:{digest & 255:02x}:{digest >> 8 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
        )

    def _free(self) -> tuple[list[int], int]:
        used = {cpu for one in self.partitions.values() for cpu in one.cpus}
        free_mib = self.server.memory_mib - sum(one.memory_mib for one in self.partitions.values())
        return [cpu for cpu in range(self.server.cores) if cpu not in used], free_mib

    def _equip(self, partition: Partition) -> None:
        self._place(partition).folder.mkdir(exist_ok=True)
        if self.libvirt is None:
            self._network_of(partition).add_tap(partition.tap, partition.bridge)
        partition.group = cgroups.Cgroup.create(
            self.run_id,
            f"p{partition.id}",
            # A critical partition has no ceiling: its share is kept for it by other means.
            cpu_millicores=1000 * partition.cores if partition.isolated and not partition.critical else None,
            memory_mib=partition.memory_mib + OVERHEAD_MIB if partition.isolated else None,
            journal=self.journal,
        )
        if not partition.isolated:
            return
        weight = isolation.CRITICAL_WEIGHT if partition.critical else isolation.WEIGHT
        partition.group.set_weight(min(10_000, weight * partition.cores))

    async def _release(self, partition: Partition) -> None:
        """Remove what a partition has on the host, as far as it got."""
        if self.libvirt is not None:
            with suppress(RequestError):  # virsh undefine was first
                await asyncio.to_thread(self.libvirt.undefine, partition.name)
            entries = [one for one in self.journal.entries if one.kind == "domain"]
            self.journal.done(*(one.number for one in entries if one.ids["name"] == partition.name))
        if partition.group is not None:
            await asyncio.to_thread(partition.group.remove)
        await asyncio.to_thread(self._network_of(partition).remove_tap, partition.tap)
        shutil.rmtree(self._place(partition).folder, ignore_errors=True)
        self.partitions.pop(partition.id, None)
        self._save()

    async def _destroy(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock, self._table:
            self._require(partition, "destroyed", READY)
            partition.complete = False
            self._save()
            await self._release(partition)
        return {"id": partition.id}

    # --- run ------------------------------------------------------------------------------------------

    async def _deploy(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "deployed", READY)
            machine, runtime = await self._start(partition, args)
            partition.machine, partition.pid, partition.ticks = machine, machine.pid, machine.ticks
            if self.reported is not None:
                machine.reported = functools.partial(self.reported, partition.name)
            try:
                self._save()
                await self._isolate(partition, machine)
                machine.greeted = self._greeted if args["stream"] else None
                await machine.proceed()
                partition.state, partition.note = DEPLOYED, None
                partition.deployment = {
                    key: value for key, value in args.items() if key not in ("id", "wait", "timeout_s")
                }
                partition.deployment["runtime"] = runtime
                self._save()
            except BaseException:
                await machine.kill()
                self._forget_guest(partition)
                self._save()
                raise
        if args["wait"]:
            await self._booted(partition, machine, args["timeout_s"])
        return {"id": partition.id}

    async def _start(self, partition: Partition, args: Mapping[str, Any]) -> tuple[Machine, bool]:
        """A new machine, and whether our VNF runtime will answer in it."""
        if self.libvirt is not None:
            runtime = await asyncio.to_thread(self._define, partition, args, None)
            pid = await asyncio.to_thread(self.libvirt.start, partition.name)
            return await self._attach(partition, pid), runtime
        hardware, runtime = await asyncio.to_thread(self._hardware, partition, args)
        return await Machine.start(str(partition.id), hardware, self._place(partition), self._guest_ended), runtime

    # --- libvirt --------------------------------------------------------------------------------------

    def _define(self, partition: Partition, args: Mapping[str, Any], uuid: str | None) -> bool:
        assert self.libvirt is not None
        hardware, runtime = self._hardware(partition, args)
        known = {one.name: one.uuid for one in self.libvirt.domains()}
        uuid = uuid or known.get(partition.name)
        place, secure = self._place(partition), partition.critical
        name = partition.name
        self.libvirt.define(domain_xml(name, uuid, self.server.name, secure=secure, hardware=hardware, place=place))
        return runtime

    async def _attach(self, partition: Partition, pid: int) -> Machine:
        """The machine that libvirt has started, on the partition's bridge and in its control group."""
        label, ticks = str(partition.id), start_ticks(pid)
        place = self._place(partition)
        machine = await Machine.adopt(label, place, pid, -1 if ticks is None else ticks, self._guest_ended)
        if machine is None:
            raise RequestError("EIO", f"partition {partition.id}: libvirt's QEMU has ended")
        self._share(partition, machine)
        assert partition.bridge is not None  # the protocol has no netns for domains
        await asyncio.to_thread(self.network.take_tap, partition.tap, partition.bridge)
        assert partition.group is not None
        partition.group.add(pid)
        return machine

    def _share(self, partition: Partition, machine: Machine) -> None:
        """From now on virsh may stop, continue and end this machine as well."""
        libvirt = self.libvirt
        assert libvirt is not None

        async def stop() -> None:
            with suppress(RequestError):  # it has ended
                await asyncio.to_thread(libvirt.destroy, partition.name)

        machine.stopper = stop
        machine.switched = self._switched

    def _switched(self, machine: Machine, running: bool) -> None:
        for partition in self.partitions.values():
            if partition.machine is machine and partition.state != READY:
                partition.state = DEPLOYED if running else SUSPENDED
                self._save()

    async def follow_libvirt(self) -> None:
        """Do here what virsh did there: define, undefine, start, create."""
        if self.libvirt is None:
            return
        async with self._following:
            domains = {one.name: one for one in await asyncio.to_thread(self.libvirt.domains)}
            for partition in list(self.partitions.values()):
                if partition.name not in domains and partition.complete and not partition.lock.locked():
                    async with partition.lock, self._table:
                        if partition.machine is not None:
                            await partition.machine.kill()
                            self._forget_guest(partition)
                        await self._release(partition)
            names = {one.name: one for one in self.partitions.values()}
            for domain in domains.values():
                known = names.get(domain.name)
                if known is None:
                    await self._take_in(domain)
                elif domain.active and known.machine is None and known.complete and not known.lock.locked():
                    async with known.lock:
                        try:
                            await self._join(known)
                        except (RequestError, CgroupError) as error:
                            self._complain(f"partition {known.id}: {error}")

    async def _take_in(self, domain: Domain) -> None:
        """A domain that virsh defined, or created: READY or DEPLOYED, when the server has room for it."""
        assert self.libvirt is not None
        fields = {"cores": domain.cores, "memory_mib": domain.memory_mib, "secure": domain.secure}
        try:
            request = validated("create-partition", {**fields, "name": domain.name})
            if domain.active:
                await asyncio.to_thread(self.libvirt.destroy, domain.name)
            number = (await self._create(request.args))["id"]
            if domain.active:
                await self._deploy(validated("deploy", {"id": number, "wait": False}).args)
        except RequestError as error:
            self._complain(f"libvirt domain {domain.name} is no partition: {error.desc}")

    def _complain(self, text: str) -> None:
        """Say something that nobody asked for, once."""
        if text not in self._complained:
            self._complained.add(text)
            print(f"vmand: {text}", file=sys.stderr, flush=True)

    async def _join(self, partition: Partition) -> None:
        """A partition whose domain virsh has started."""
        assert self.libvirt is not None
        try:
            pid = await asyncio.to_thread(self.libvirt.pid, partition.name)
        except RequestError:  # it starts or ends at this moment; there will be another look
            return
        machine = await self._attach(partition, pid)
        partition.machine, partition.pid, partition.ticks = machine, machine.pid, machine.ticks
        await self._isolate(partition, machine)
        partition.state = DEPLOYED if await machine.running() else SUSPENDED
        partition.note, partition.deployment = None, {**_DEFAULT_DEPLOYMENT, "runtime": True}
        self._save()

    # --- the machine ----------------------------------------------------------------------------------

    def _hardware(self, partition: Partition, args: Mapping[str, Any]) -> tuple[Hardware, bool]:
        """The machine to start, and whether our VNF runtime will answer in it."""
        rootfs = _file(args["rootfs"], "rootfs")
        kind = None if rootfs is None else _root_kind(rootfs)
        kernel = _file(args["kernel"], "kernel")
        image = None if kernel and kind == "initramfs" else load(self.server.image)
        if kernel is not None:
            _check_kernel(kernel)
        elif image is not None:
            kernel = image.kernel
        initramfs = rootfs if kind == "initramfs" else image.initramfs if image else None
        dtb = _file(args["dtb"], "dtb")
        # libvirt has its own way of filling slots
        slots = devicetree.VIRTIO_SLOTS if self.libvirt is not None else 3 if kind == "disk" else 2
        try:
            if dtb is not None:
                tree = devicetree.trimmed(dtb.read_bytes())
            else:
                cores, memory_mib = partition.cores, partition.memory_mib
                tree = devicetree.blob(devicetree.partition_tree(cores, memory_mib, slots, rng_seed=os.urandom(32)))
        except ValueError as error:
            raise RequestError(
                "EINVAL", f"dtb must be a device tree blob (dtc -O dtb makes one), got {dtb}: {error}"
            ) from None
        dtb = self._place(partition).folder / "partition.dtb"
        dtb.write_bytes(tree)
        settings = {
            "name": partition.name,
            "ip": partition.address,
            "gateway": partition.gateway,
            "root": "/dev/vda" if kind == "disk" else None,
            "http": args["http_port"],
            "echo": args["echo_port"] or None,
            **{key: args[key] for key in _RUNTIME_KEYS},
        }
        ours = [f"twinbed.{key}={value}" for key, value in settings.items() if value is not None]
        cmdline = " ".join([KERNEL_OPTIONS, *ours, *([args["cmdline"]] if args["cmdline"] else [])])
        if len(cmdline) > 2047:  # COMMAND_LINE_SIZE of arm64
            raise RequestError("EINVAL", f"kernel command line: at most 2047 characters, got {len(cmdline)}")
        assert kernel is not None
        disk = rootfs if kind == "disk" else None
        hardware = Hardware(
            partition.cores,
            partition.memory_mib,
            partition.tap,
            partition.mac,
            kernel.resolve(),
            initramfs,
            dtb,
            disk,
            cmdline,
        )
        return hardware, rootfs is None

    async def _booted(self, partition: Partition, machine: Machine, timeout_s: float) -> None:
        """Wait until the guest runs. One that does not is ended; RequestError with the end of its console."""
        loop = asyncio.get_running_loop()
        deadline, resets = loop.time() + timeout_s, machine.guest_resets
        runtime = bool(partition.deployment and partition.deployment["runtime"])
        while True:
            machine.news.clear()
            if machine.killed:
                raise RequestError("EBUSY", f"partition {partition.id} was shut down while it booted")
            if machine.end_reason is not None:
                reason, kind = machine.end_reason, "EIO"
                break
            if machine.guest_resets > resets:
                reason, kind = "its kernel stopped and started again", "EIO"
                break
            if machine.hello is not None:
                return
            # Somebody else's system says nothing on our channel, but hardly starts without sending a frame.
            network = self._network_of(partition)
            if not runtime and await asyncio.to_thread(network.frames_from_guest, partition.tap) > 0:
                return
            if loop.time() > deadline:
                if partition.state == SUSPENDED:
                    return  # it cannot boot now, and is not to blame
                reason, kind = f"not within {timeout_s:g} s", "ETIMEDOUT"
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(machine.news.wait(), _BOOT_POLL_S if not runtime else 0.5)
        console = await self._end(partition, machine, f"did not boot: {reason}")
        lines = [line.strip() for line in console.splitlines() if line.strip()]
        panics = [line for line in lines if "Kernel panic" in line]
        said = f"the console says: {[*panics[:1], *lines[-1:]][0]}" if lines else "nothing on the console"
        raise RequestError(kind, f"partition {partition.id} did not boot: {reason}; {said}", console=console)

    async def _reboot(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "rebooted", DEPLOYED)
            machine = _machine(partition)
            await machine.reset()
        if args["wait"] and partition.deployment and partition.deployment["runtime"]:
            await self._booted(partition, machine, args["timeout_s"])
        return {"id": partition.id}

    async def _shutdown(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "shut down", DEPLOYED)
            await _machine(partition).kill()
            self._forget_guest(partition)
            self._save()
        return {"id": partition.id}

    async def _suspend(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "suspended", DEPLOYED)
            await _machine(partition).stop()
            partition.state, partition.stopped_ns = SUSPENDED, time.monotonic_ns()
            self._save()
        return {"id": partition.id}

    async def _restore(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "restored", SUSPENDED)
            machine = _machine(partition)
            if partition.clock is not None and partition.stopped_ns is not None:
                # Waits in the machine until it runs: packets of the first moment have the right time too.
                stood_ns = time.monotonic_ns() - partition.stopped_ns
                self._later(machine.configure("clock", str(partition.clock.offset_ns + stood_ns)))
                await asyncio.sleep(0)
            await machine.proceed()
            partition.state, partition.stopped_ns = DEPLOYED, None
            if partition.clock is not None:
                self._later(self._set_clock(partition, machine))
            self._save()
        return {"id": partition.id}

    def _guest_ended(self, machine: Machine, reason: str) -> None:
        """Called by a machine whose guest or QEMU ended by itself."""
        for partition in self.partitions.values():
            if partition.machine is machine:
                self._later(self._end(partition, machine, reason))

    def _later(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do this beside what is asked of us; a machine that ends meanwhile is told of elsewhere."""

        async def body() -> None:
            with suppress(RequestError):
                await work

        task = asyncio.create_task(body())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _end(self, partition: Partition, machine: Machine, reason: str) -> str:
        """End this guest, if it still is the partition's; the end of its console."""
        async with partition.lock:
            if partition.machine is machine:
                machine.last_console = await machine.console_tail()
                await machine.kill()
                self._forget_guest(partition)
                partition.note = reason
                self._save()
            return machine.last_console

    def _forget_guest(self, partition: Partition) -> None:
        """READY again, with its cores and memory."""
        partition.machine = partition.pid = partition.ticks = partition.deployment = partition.isolation = None
        partition.state = READY
        partition.clock = partition.stopped_ns = None
        self._end_flood(partition)
        if partition.pinned:
            partition.pinned = []
            self._repin()

    # --- isolation and limits ---------------------------------------------------------------------------

    async def _isolate(self, partition: Partition, machine: Machine) -> None:
        threads = await machine.vcpu_threads()
        if not partition.critical:
            # When the host runs out of memory, it is one of these that goes.
            Path(f"/proc/{machine.pid}/oom_score_adj").write_text("500", encoding="ascii")
            if not partition.isolated:
                partition.isolation = "none: a plain virtual machine"
                self._repin()
            elif partition.reservation is not None:
                self._reserve(partition, threads, partition.reservation, reclaim=False)
                self._reserve_io(machine)
                partition.isolation = str(partition.reservation)
            else:
                partition.isolation = f"at most {partition.cpu_millicores or 1000 * partition.cores:g} millicores"
                self._repin()
            return
        modes = isolation.MODES if self.server.critical == "auto" else (self.server.critical,)
        reasons = []
        for mode in modes:
            try:
                if mode == "deadline":
                    wanted = Reservation(isolation.RESERVED_RUNTIME_US, isolation.RESERVED_PERIOD_US)
                    self._reserve(partition, threads, wanted, reclaim=True)
                    self._reserve_io(machine)
                    partition.isolation = str(wanted)
                elif mode == "reserved":
                    self._take_cpus(partition, machine)
                    partition.isolation = f"host CPUs {', '.join(map(str, partition.pinned))} reserved"
                else:
                    partition.isolation = "CPU weight 16 to 1"
                break
            except RequestError as error:
                reasons.append(f"{mode}: {error.desc}")
        else:
            raise RequestError("EPERM", f"partition {partition.id} cannot be kept apart as asked: {'; '.join(reasons)}")
        if reasons:
            partition.isolation = f"{partition.isolation} ({'; '.join(reasons)})"

    def _reserve(self, partition: Partition, threads: list[int], wanted: Reservation, *, reclaim: bool) -> None:
        """Reserve CPU time; for a critical partition others give up theirs when the host has no more."""
        squeezable = [one for one in self.partitions.values() if not one.critical and one.reservation and one.machine]
        while True:
            try:
                isolation.reserve_all(threads, wanted, reclaim=reclaim)
                return
            except IsolationError as error:
                if error.errno == errno.EBUSY and partition.critical and squeezable:
                    self._squeeze(squeezable.pop(), partition)
                    continue
                reason = {
                    errno.EBUSY: "the host's CPU time is given away",
                    errno.EPERM: "not permitted: root and all CPUs are needed",
                }.get(error.errno or 0, error.strerror)
                kind = "EBUSY" if error.errno == errno.EBUSY else "EPERM"
                raise RequestError(kind, f"{wanted}: {reason}") from None

    def _reserve_io(self, machine: Machine) -> None:
        """Some time for QEMU's own thread as well, when the host has it; without, the guest's timers may come late."""
        with suppress(IsolationError):
            isolation.reserve(machine.pid, Reservation(isolation.IO_RUNTIME_US, isolation.IO_PERIOD_US), reclaim=True)

    def _squeeze(self, other: Partition, partition: Partition) -> None:
        assert other.machine is not None
        for task in Path(f"/proc/{other.machine.pid}/task").iterdir():
            isolation.release(int(task.name))
        other.dl_runtime_us = other.dl_period_us = None
        other.isolation = f"at most {1000 * other.cores} millicores"
        other.note = f"its reservation went to critical partition {partition.id}"

    def _take_cpus(self, partition: Partition, machine: Machine) -> None:
        taken = {cpu for one in self.partitions.values() for cpu in one.pinned}
        free = [cpu for cpu in self._host_cpus if cpu not in taken]
        if len(free) <= partition.cores:
            raise RequestError("EBUSY", f"{len(free)} host CPUs are free, one of them for the others")
        partition.pinned = free[-partition.cores :]
        try:
            isolation.pin(machine.pid, set(partition.pinned))
        except IsolationError as error:
            partition.pinned = []
            raise RequestError("EPERM", f"cannot choose host CPUs: {error.strerror}") from None
        self._repin()

    def _repin(self) -> None:
        """Keep partitions without CPUs of their own off those of the others."""
        taken = {cpu for one in self.partitions.values() for cpu in one.pinned}
        for one in self.partitions.values():
            if one.pid is not None and not one.pinned and one.reservation is None:
                with suppress(IsolationError):  # a thread with a reservation stays where it is
                    isolation.pin(one.pid, set(self._host_cpus) - taken)

    async def _limit(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            millicores, runtime_us, period_us = args["cpu_millicores"], args["dl_runtime_us"], args["dl_period_us"]
            if partition.critical:
                raise RequestError("EPERM", f"partition {partition.id} is critical: its CPU time is never limited")
            if not partition.isolated:
                raise RequestError("EPERM", f"partition {partition.id} is a plain virtual machine: nothing limits it")
            threads = [] if partition.machine is None else await partition.machine.vcpu_threads()
            assert partition.group is not None
            if runtime_us:
                wanted = Reservation(runtime_us, period_us)
                if threads:
                    self._reserve(partition, threads, wanted, reclaim=False)
                    self._reserve_io(_machine(partition))
                    partition.isolation = str(wanted)
                partition.dl_runtime_us, partition.dl_period_us = runtime_us, period_us
            else:
                if partition.reservation is not None:
                    for thread in (*threads, *([partition.machine.pid] if partition.machine else [])):
                        isolation.release(thread)
                partition.dl_runtime_us = partition.dl_period_us = None
                if millicores is not None:
                    partition.group.set_cpu(millicores)
                    partition.cpu_millicores = millicores
                if threads:
                    partition.isolation = f"at most {partition.cpu_millicores or 1000 * partition.cores:g} millicores"
            self._save()
        return {"id": partition.id}

    # --- services and attacks -----------------------------------------------------------------------------

    def _greeted(self, machine: Machine) -> None:
        """The runtime of a partition that streams has started, perhaps anew."""

        async def serve(partition: Partition) -> None:
            await self._set_clock(partition, machine)
            await machine.configure("stream", "go")

        for partition in self.partitions.values():
            if partition.machine is machine:
                self._later(serve(partition))

    async def _set_clock(self, partition: Partition, machine: Machine) -> None:
        partition.clock = await streaming.set_clock(machine)

    async def _stream(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "asked to stream", DEPLOYED)
            machine, action = _machine(partition), args["action"]
            found: dict[str, Any] = {"id": partition.id}
            if action == "adopt":
                await streaming.adopt(machine, args["flows"])
            elif action == "release":
                found["flows"] = await streaming.release(machine, args["at_ns"], args["addresses"])
            elif action == "flows":
                found["flows"] = await streaming.flows(machine)
            else:
                if partition.clock is None and action != "off":
                    await self._set_clock(partition, machine)
                addresses = ",".join(args["addresses"] or ())
                await machine.configure("stream", f"{action} {addresses}".strip())
        return found

    async def _attack(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "attacked", DEPLOYED)
            kind, seconds = args["kind"], args["seconds"]
            self._end_flood(partition)
            inner = f"{kind}:{math.ceil(seconds)}" if kind in ("cpu", "memory") else "none"
            await _machine(partition).configure("attack", inner)
            if kind == "network":
                partition.flood = await asyncio.to_thread(
                    Flood.start,
                    f"p{partition.id}",
                    partition.address,
                    self._place(partition).netns,
                    self.journal,
                    rate_pps=args["rate_pps"],
                    payload_bytes=args["payload_bytes"],
                    seconds=seconds,
                )
        return {"id": partition.id}

    def _end_flood(self, partition: Partition) -> None:
        if partition.flood is not None:
            partition.flood.stop()
            partition.flood = None

    async def _configure(self, args: Mapping[str, Any]) -> dict[str, Any]:
        partition = self._partition(args)
        async with partition.lock:
            self._require(partition, "configured", DEPLOYED)
            for key in _RUNTIME_KEYS:
                if args[key] is not None:
                    await _machine(partition).configure(key, str(args[key]))
                    assert partition.deployment is not None
                    partition.deployment[key] = args[key]
            self._save()
        return {"id": partition.id}

    # --- questions ------------------------------------------------------------------------------------

    async def _list(self, args: Mapping[str, Any]) -> dict[str, Any]:
        del args
        return {"partitions": [_brief(one) for one in self.partitions.values() if one.complete]}

    async def _info(self, args: Mapping[str, Any]) -> dict[str, Any]:
        if args["id"] is None:
            free_cpus, free_mib = self._free()
            return {
                "name": self.server.name,
                "pid": os.getpid(),
                "cores": self.server.cores,
                "free_cores": len(free_cpus),
                "memory_mib": self.server.memory_mib,
                "free_memory_mib": free_mib,
                "critical": self.server.critical,
                "netns": self.network.name,
                "bridge": BRIDGE,
                "address": f"{self.network.gateway}/{self.server.subnet.prefixlen}",
                "folder": str(self.folder),
                "adopted": self.adopted,
                "qemu": shutil.which(PROGRAM),
            }
        partition = self._partition(args)
        found = _brief(partition) | {
            "gateway": partition.gateway,
            "netns": partition.netns or self.network.name,
            "bridge": partition.bridge,
            "isolated": partition.isolated,
            "tap": partition.tap,
            "mac": partition.mac,
            "cpu_millicores": partition.cpu_millicores,
            "dl_runtime_us": partition.dl_runtime_us,
            "dl_period_us": partition.dl_period_us,
            "deployment": partition.deployment,
            "qemu_pid": partition.pid,
        }
        if partition.group is not None:
            stats = partition.group.stats()
            found |= {"cpu_used_s": stats.cpu_used_s, "memory_used_mib": stats.memory_used_bytes / (1 << 20)}
        machine = partition.machine
        if machine is not None:
            found["booted"] = machine.hello is not None
            found["guest_resets"] = machine.guest_resets
            found["metrics"] = machine.metrics
            found["flood"] = partition.flood is not None and partition.flood.running
            found["clock"] = None if partition.clock is None else asdict(partition.clock)
            found["vcpu_threads"] = []
            found["console"] = await machine.console_tail()
            with suppress(RequestError):  # it is ending at this moment
                found["vcpu_threads"] = await machine.vcpu_threads()
        return found

    def named(self, name: str) -> Partition:
        """The partition of this name; KeyError when there is none."""
        return {one.name: one for one in self.partitions.values()}[name]

    def _partition(self, args: Mapping[str, Any]) -> Partition:
        partition = self.partitions.get(args["id"])
        if partition is None or not partition.complete:
            known = ", ".join(str(one.id) for one in self.partitions.values() if one.complete) or "none"
            raise RequestError("ENOENT", f"no partition {args['id']}; there are {known}")
        return partition

    def _require(self, partition: Partition, what: str, *states: str) -> None:
        if partition.id not in self.partitions:  # destroyed while this request waited
            raise RequestError("ENOENT", f"no partition {partition.id}")
        if partition.state not in states:
            text = f"partition {partition.id} is {partition.state}; only a {' or '.join(states)} one can be {what}"
            raise RequestError("EPERM", text, state=partition.state, required=list(states))

    def _place(self, partition: Partition) -> Place:
        members = [] if partition.group is None else partition.group.members()
        return Place(self.folder / f"p{partition.id}", self._network_of(partition).path, members)

    def _network_of(self, partition: Partition) -> PartitionNetwork:
        if partition.netns is None:
            return self.network
        return PartitionNetwork(partition.netns, self.server.subnet, Path(partition.netns))


def _brief(partition: Partition) -> dict[str, Any]:
    names = ("id", "name", "state", "cores", "cpus", "memory_mib", "address", "isolation", "note")
    return {name: getattr(partition, name) for name in names} | {"secure": partition.critical}


def _machine(partition: Partition) -> Machine:
    if partition.machine is None:  # its end was not noticed yet
        raise RequestError("EIO", f"partition {partition.id}: its guest has just ended")
    return partition.machine


def _file(name: str | None, what: str) -> Path | None:
    if name is None:
        return None
    path = Path(name).absolute()
    if not path.is_file():
        raise RequestError("ENOENT", f"{what} {path}: no such file")
    return path


def _check_kernel(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64)
    arm64 = head[56:60] == b"ARM\x64" or head.startswith(b"\x1f\x8b") or head[:20][18:20] == b"\xb7\x00"
    if not arm64:
        raise RequestError("EINVAL", f"kernel must be an arm64 Image, gzip of one, or aarch64 ELF file, got {path}")


def _root_kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(0x43A)
    if head.startswith((b"07070", b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh", b"\x02\x21\x4c\x18")):
        return "initramfs"
    if head[0x438:0x43A] == b"\x53\xef":
        return "disk"
    raise RequestError("EINVAL", f"rootfs must be a cpio archive (compressed or not) or an ext4 disk image, got {path}")
