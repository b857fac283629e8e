"""``vmand``: the vManager as a daemon on a Unix socket (NANCY D3.4 §3.2).

    vmand [--name NAME] [--cores N] [--memory-mib M] [--critical MODE] [--detach]

Killed at any time, its guests go on; started again, it takes them over. ``twin gc`` removes what a dead
one left, guests included; ``twin destroy vmand-NAME`` ends a living one with all it has.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twin.emulation.cgroups import CgroupError, Layout
from twin.emulation.gc import collect
from twin.emulation.partitions import isolation
from twin.emulation.partitions.client import DEFAULT_NAME, socket_path, state_folder
from twin.emulation.partitions.libvirt import Libvirt
from twin.emulation.partitions.machine import PROGRAM
from twin.emulation.partitions.manager import Manager
from twin.emulation.partitions.partition import EdgeServer
from twin.emulation.partitions.protocol import MAX_LINE_BYTES, RequestError, failure, parse, success
from twin.journal import RUN_ID, SUFFIX, Journal, JournalError, default_folder, read

MAX_CLIENTS = 64
SUBNET = "10.77.0.0/24"
_FOLLOW_S = 0.5
_MOST_SOCKET_PATH = 100  # sun_path has 108 bytes, and partitions add a little


class StartError(Exception):
    """The daemon cannot start. One line."""


async def serve(server: EdgeServer, socket: Path, ready: asyncio.Future[Manager]) -> None:
    """Run until SIGTERM or SIGINT; ``ready`` gets the manager, or the error, once."""
    folder = state_folder(server.name)
    if server.libvirt is not None:
        try:
            Libvirt(server.libvirt, server.name).check()
        except RequestError as error:
            raise StartError(error) from None
    manager = Manager(server, folder, _journal(server.name, folder))
    try:
        await manager.open()
        socket.unlink(missing_ok=True)
        listening = await asyncio.start_unix_server(Connections(manager).serve, socket, backlog=MAX_CLIENTS)
        socket.chmod(0o600)
    except (RequestError, CgroupError, JournalError, OSError) as error:
        # What is there already, guests of an earlier daemon perhaps, stays in the journal for twin gc.
        manager.registry.journal.close()
        raise StartError(error) from None
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    ready.set_result(manager)
    following = asyncio.create_task(_follow(manager))
    await ending.wait()
    following.cancel()
    listening.close()
    await manager.close()


async def _follow(manager: Manager) -> None:
    """Look from time to time at what virsh does, also while nobody asks us."""
    while manager.registry.libvirt is not None:
        await asyncio.sleep(_FOLLOW_S)
        with suppress(RequestError, CgroupError, OSError):  # the next request says it to somebody
            await manager.follow_libvirt()


class Connections:
    """Requests of each client in turn, those of several at once."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it closes the connection."""
        self._open += 1
        try:
            if self._open > MAX_CLIENTS:
                writer.write(failure(RequestError("EBUSY", f"vmand serves at most {MAX_CLIENTS} clients at once")))
                await writer.drain()
                return
            await self._converse(reader, writer)
        except OSError:  # it went away
            pass
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = bytearray()
        too_long = False  # inside a line that was refused already
        while data := await reader.read(MAX_LINE_BYTES):
            waiting += data
            while (end := waiting.find(b"\n")) >= 0:
                line = bytes(waiting[:end])
                del waiting[: end + 1]
                if too_long or len(line) > MAX_LINE_BYTES:
                    await self._refuse_long(writer, said=too_long)
                    too_long = False
                elif line.strip():
                    await self._answer(line, writer)
            if len(waiting) > MAX_LINE_BYTES:
                await self._refuse_long(writer, said=too_long)
                too_long = True
                waiting.clear()
        if waiting.strip() and not too_long:
            await self._answer(bytes(waiting), writer)

    async def _refuse_long(self, writer: asyncio.StreamWriter, *, said: bool) -> None:
        if not said:
            writer.write(failure(RequestError("EMSGSIZE", f"a request has at most {MAX_LINE_BYTES} bytes in one line")))
            await writer.drain()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            answer = success(await self._manager.handle(parse(line)))
        except RequestError as error:
            answer = failure(error)
        writer.write(answer)
        await writer.drain()


def _journal(name: str, folder: Path) -> Journal:
    """The journal of this daemon, new or taken over from one that died."""
    run_id = f"vmand-{name}"
    path = default_folder() / f"{run_id}{SUFFIX}"
    try:
        if path.exists():
            record = read(path)
            if record.alive:
                raise StartError(f"vmand {name} runs already, as process {record.pid}")
            if record.same_boot:
                journal = Journal.adopt(run_id)
                folder.mkdir(parents=True, exist_ok=True)
                return journal
            collect(run_id=run_id)
        journal = Journal.create(run_id)
    except JournalError as error:
        raise StartError(error) from None
    shutil.rmtree(folder, ignore_errors=True)  # of a journal that somebody removed: nothing to take over
    journal.record("folder", path=folder)
    folder.mkdir(parents=True, mode=0o700)
    return journal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmand",
        description="The vManager: partitions of an edge server, each a QEMU aarch64 guest. vmanctl gives the orders.",
        epilog="When it ends, however it does, guests go on, and a vmand of the same name takes them over. "
        "twin destroy vmand-NAME ends it with everything it has; twin gc removes what a dead one left.",
    )
    parser.add_argument(
        "--name", default=DEFAULT_NAME, help="several daemons have several names (default: %(default)s)"
    )
    parser.add_argument("--socket", type=Path, help="where to listen (default: vmand.sock in the state folder)")
    parser.add_argument("--cores", type=int, help="processors of the edge server (default: those of this host)")
    parser.add_argument("--memory-mib", type=int, help="memory of the edge server (default: 3/4 of this host's)")
    parser.add_argument(
        "--critical",
        choices=("auto", *isolation.MODES),
        default="auto",
        help="how critical partitions have priority (default: the best that the host permits)",
    )
    parser.add_argument("--subnet", default=SUBNET, help="addresses of the partitions (default: %(default)s)")
    parser.add_argument("--image", type=Path, help="folder of the guest image (default: what make images built)")
    parser.add_argument(
        "--libvirt",
        nargs="?",
        const="qemu:///system",
        metavar="URI",
        help="partitions are libvirt domains, for virsh to act on (default URI: %(const)s)",
    )
    parser.add_argument("--detach", action="store_true", help="go to the background when ready")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def _server(options: argparse.Namespace) -> EdgeServer:
    if not RUN_ID.fullmatch(f"vmand-{options.name}") or len(options.name) > 32:
        raise StartError(f"name must have at most 32 letters, digits, dots and dashes, got {options.name!r}")
    cores = options.cores if options.cores is not None else os.cpu_count() or 1
    host_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    memory_mib = options.memory_mib if options.memory_mib is not None else host_mib * 3 // 4
    for what, value, most in (("cores", cores, 1024), ("memory-mib", memory_mib, host_mib)):
        if not 1 <= value <= most:
            raise StartError(f"{what} must be in [1, {most}], got {value}")
    try:
        subnet = ipaddress.IPv4Network(options.subnet)
        if subnet.prefixlen > 29:
            raise ValueError
    except ValueError:
        raise StartError(f"subnet must be an IPv4 network of /29 or larger, got {options.subnet}") from None
    if os.geteuid() != 0:
        raise StartError("vmand needs root: namespaces, TAPs and control groups")
    if not shutil.which(PROGRAM):
        raise StartError(f"{PROGRAM} not found; apt-get install qemu-system-arm")
    try:
        Layout.of_host()
    except CgroupError as error:
        raise StartError(error) from None
    if options.image is not None and not options.image.is_dir():
        raise StartError(f"image must be a folder that make images made, got {options.image}: no such folder")
    if len(str(state_folder(options.name))) > _MOST_SOCKET_PATH - len("/p1000000/channel.sock"):
        raise StartError(f"the path of the state folder is too long for sockets: {state_folder(options.name)}")
    return EdgeServer(options.name, cores, memory_mib, options.critical, subnet, options.image, options.libvirt)


async def _run(server: EdgeServer, socket: Path, ready_fd: int | None) -> None:
    ready: asyncio.Future[Manager] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(server, socket, ready))
    both: list[asyncio.Future[Any]] = [serving, ready]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        adopted = ready.result().adopted
        taken = f", {adopted} running partition{'s' * (adopted != 1)} taken over" if adopted else ""
        print(f"vmand {server.name}: {server.cores} cores, {server.memory_mib} MiB{taken}; {socket}", flush=True)
        if ready_fd is not None:
            os.write(ready_fd, b"ready")
            os.close(ready_fd)
    await serving


def _detach(arguments: Sequence[str], name: str) -> int:
    """Start the daemon in a session of its own and wait until it listens or says why not."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "twin.emulation.partitions.daemon", *arguments, "--ready-fd", str(write_end)]
    devnull = subprocess.DEVNULL
    process = subprocess.Popen(
        command, stdin=devnull, stdout=devnull, stderr=devnull, pass_fds=(write_end,), start_new_session=True
    )
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    if said == "ready":
        print(f"vmand {name}: process {process.pid}; {socket_path(name)}")
        process.returncode = 0  # it stays
        return 0
    print(said or f"vmand {name} ended with exit code {process.wait()}", file=sys.stderr)
    process.wait()
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 1 with one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        server = _server(options)
        if options.detach:
            return _detach([one for one in arguments if one != "--detach"], options.name)
        asyncio.run(_run(server, options.socket or socket_path(options.name), options.ready_fd))
    except StartError as error:
        text = f"vmand: {error}"
        if options.ready_fd is not None:
            os.write(options.ready_fd, text.encode())
        print(text, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
