"""The event loop of every program: readiness by epoll, timers with microsecond precision, deferred work.

epoll's own timeout has a resolution of 1 ms, too coarse for 1 ms slots and for paced packets, so the
loop waits with ``select`` on the epoll descriptor, whose timeout is exact.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

Callback = Callable[[], None]


class ConfigError(ValueError):
    """A configuration that cannot be run; one line that says what, got and allowed."""


class Timer:
    """A pending call; :meth:`cancel` makes it do nothing."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback | None) -> None:
        self.callback = callback

    def cancel(self) -> None:
        """Forget the call; harmless when it already happened."""
        self.callback = None


class Loop:
    """Single-threaded event loop.

    ``work``, when set, is called again and again between polls as long as it returns True: a program
    splits long CPU work into short pieces there and stays responsive.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False
        self.work: Callable[[], bool] | None = None

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call back whenever ``fd`` is readable or broken."""
        self._change(fd, reader=callback)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call back whenever ``fd`` is writable or broken."""
        self._change(fd, writer=callback)

    def remove_reader(self, fd: int) -> None:
        """Stop watching ``fd`` for reading; harmless when it was not watched."""
        if self._readers.pop(fd, None) is not None:
            if fd in self._writers:
                self._epoll.modify(fd, select.EPOLLOUT)
            else:
                self._epoll.unregister(fd)

    def remove_writer(self, fd: int) -> None:
        """Stop watching ``fd`` for writing; harmless when it was not watched."""
        if self._writers.pop(fd, None) is not None:
            if fd in self._readers:
                self._epoll.modify(fd, select.EPOLLIN)
            else:
                self._epoll.unregister(fd)

    def remove(self, fd: int) -> None:
        """Stop watching ``fd`` altogether; call it before the descriptor is closed."""
        watched = self._readers.pop(fd, None) is not None
        watched |= self._writers.pop(fd, None) is not None
        if watched:
            self._epoll.unregister(fd)

    def _change(self, fd: int, reader: Callback | None = None, writer: Callback | None = None) -> None:
        known = fd in self._readers or fd in self._writers
        if reader is not None:
            self._readers[fd] = reader
        if writer is not None:
            self._writers[fd] = writer
        mask = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        if known:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)

    def call_at(self, time_ns: int, callback: Callback) -> Timer:
        """Call back at a monotonic time."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time_ns, next(self._order), timer))
        return timer

    def call_after(self, delay_ns: int, callback: Callback) -> Timer:
        """Call back ``delay_ns`` from now."""
        return self.call_at(time.monotonic_ns() + delay_ns, callback)

    def every(self, period_ns: int, callback: Callback) -> None:
        """Call back every ``period_ns`` from now on, for as long as the loop runs."""

        def again() -> None:
            self.call_after(period_ns, again)
            callback()

        self.call_after(period_ns, again)

    def stop(self) -> None:
        """End :meth:`run` after the current callback."""
        self._stopped = True

    def run(self) -> None:
        """Run until :meth:`stop`."""
        epoll = self._epoll
        timers = self._timers
        readers, writers = self._readers, self._writers
        watch = [epoll.fileno()]
        more_work = False
        while not self._stopped:
            while timers and timers[0][2].callback is None:
                heapq.heappop(timers)
            if more_work:
                timeout_s: float | None = 0.0
            elif timers:
                timeout_s = max(0.0, (timers[0][0] - time.monotonic_ns()) * 1e-9)
            else:
                timeout_s = None
            if timeout_s == 0.0 or select.select(watch, (), (), timeout_s)[0]:
                for fd, events in epoll.poll(0):
                    # A callback may have removed a descriptor that is still in this batch.
                    if events & ~select.EPOLLOUT and fd in readers:
                        readers[fd]()
                    if events & ~select.EPOLLIN and fd in writers:
                        writers[fd]()
            if timers:
                now_ns = time.monotonic_ns()
                while timers and timers[0][0] <= now_ns:
                    callback = heapq.heappop(timers)[2].callback
                    if callback is not None:
                        callback()
            more_work = self.work() if self.work is not None else False

    def close(self) -> None:
        """Release the epoll descriptor."""
        self._epoll.close()


def burn(until_thread_ns: int) -> None:
    """Spend CPU time of this thread until ``time.thread_time_ns()`` reaches the value.

    It sums octets, as ciphering and integrity protection do; its unit of about 4 µs bounds the error.
    Waiting for the processor does not count, so a CPU quota stretches it.
    """
    thread_time_ns = time.thread_time_ns
    while thread_time_ns() < until_thread_ns:
        sum(_BURN_BLOCK)


_BURN_BLOCK = bytes(range(256)) * 2


def fail(program: str, error: object) -> NoReturn:
    """End the program with one line on stderr and code 2."""
    sys.stderr.write(f"{program}: {error}\n")
    raise SystemExit(2)


def main(program: str, start: Callable[[Loop, dict[str, Any], str], Any], arguments: list[str] | None = None) -> None:
    """Read ``--config`` and ``--control``, call ``start(loop, config, control_path)``, run until a signal.

    ``start`` returns an object with ``close()``.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 4 or {words[0], words[2]} != {"--config", "--control"}:
        fail(program, "usage: --config FILE --control SOCKET")
    options = {words[0]: words[1], words[2]: words[3]}
    try:
        with open(options["--config"], encoding="utf-8") as file:  # noqa: PTH123  pathlib costs start-up time
            config = json.load(file)
        if not isinstance(config, dict):
            raise ConfigError(f"{options['--config']}: must hold one JSON object, got {type(config).__name__}")
    except (OSError, ValueError) as error:
        fail(program, error)
    loop = Loop()
    # Python handles signals between bytecodes; the wake-up descriptor ends a waiting select.
    read_fd, write_fd = os.pipe()
    for fd in (read_fd, write_fd):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write_fd)
    loop.add_reader(read_fd, lambda: _drain(read_fd))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    try:
        running = start(loop, config, options["--control"])
    except KeyError as error:
        fail(program, f"{options['--config']}: key {error} is missing")
    except (ConfigError, OSError) as error:
        fail(program, error)
    try:
        loop.run()
    finally:
        running.close()
        signal.set_wakeup_fd(-1)
        os.close(read_fd)
        os.close(write_fd)
        loop.close()


def _drain(fd: int) -> None:
    try:
        os.read(fd, 512)
    except BlockingIOError:
        return


def value(config: dict[str, Any], key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """``config[key]`` checked to be of ``kind`` (bool never counts as a number); ConfigError otherwise.

    A key that is absent gives ``default``, or KeyError when that is None.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"an object with {key} expected, got {config!r}")
    found = config[key] if default is None else config.get(key, default)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise ConfigError(f"{key}: must be {' or '.join(k.__name__ for k in kinds)}, got {found!r}")
    return found


def number(config: dict[str, Any], key: str, low: float, high: float, default: float | None = None) -> float:
    """``config[key]`` checked to be a number in [low, high]; ConfigError otherwise."""
    found = value(config, key, (int, float), default)
    if not low <= found <= high:
        raise ConfigError(f"{key}: must be in [{low:g}, {high:g}], got {found!r}")
    return float(found)
