"""The edge server of a run: a vManager inside the run's own process, gone with the run.

Its guests, namespaces and groups are in the journal of the run. ``vmanctl --daemon RUN COMMAND`` talks to it as to
any vmand.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from twin.emulation.partitions.client import state_folder
from twin.emulation.partitions.daemon import MAX_CLIENTS, Connections
from twin.emulation.partitions.manager import Manager
from twin.emulation.partitions.partition import EdgeServer
from twin.emulation.partitions.protocol import validated
from twin.journal import Journal

_Result = TypeVar("_Result")


class Edge:
    """Runs a :class:`Manager` in a thread. ``folder`` is short, for the paths of its sockets, and not there yet."""

    def __init__(self, server: EdgeServer, folder: Path, journal: Journal) -> None:
        self.manager = Manager(server, folder, journal)
        self._folder = folder
        self._journal = journal
        self._name = state_folder(server.name)
        self._entries = journal.record_many([("folder", {"path": folder}), ("file", {"path": self._name})])
        self._ready: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="edge-server", daemon=True)

    def open(self) -> None:
        """Start serving. Raises RequestError, OSError."""
        self._folder.mkdir(parents=True, mode=0o700)
        self._name.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._name.symlink_to(self._folder)
        self._thread.start()
        self._ready.result()

    def submit(self, command: str, **args: Any) -> Future[dict[str, Any]]:
        """Begin to carry out a command of the vManager; the future has its answer or RequestError."""
        return self.begin(lambda: self.manager.handle(validated(command, args)))

    def call(self, command: str, **args: Any) -> dict[str, Any]:
        """Carry out a command of the vManager; RequestError when it is refused."""
        return self.submit(command, **args).result()

    def begin(self, work: Callable[[], Awaitable[_Result]]) -> Future[_Result]:
        """Begin some work beside the manager, in its thread."""
        assert self._loop is not None

        async def body() -> _Result:
            return await work()

        return asyncio.run_coroutine_threadsafe(body(), self._loop)

    def close(self) -> None:
        """End all guests and remove everything; may be called twice."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
        if self._thread.ident is not None:
            self._thread.join()
        self._name.unlink(missing_ok=True)
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()
        self._journal.done(*self._entries)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        socket = self._folder / "vmand.sock"
        try:
            await self.manager.open()
            listening = await asyncio.start_unix_server(Connections(self.manager).serve, socket, backlog=MAX_CLIENTS)
            socket.chmod(0o600)
        except BaseException as error:  # noqa: BLE001 - told to who waits for us
            await self.manager.end()
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        await self._ending.wait()
        listening.close()
        await self.manager.end()
