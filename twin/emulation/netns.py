"""Network namespaces entered by a thread of ours (setns(2)), so that the caller's own never changes.

A namespace is a file descriptor of ``/proc/PID/ns/net``. What a thread opens in a namespace (sockets, TAPs)
stays there; the thread ends with the call.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


def libc_call(name: str, *arguments: int) -> None:
    """Call a C library function that returns 0 or sets errno; OSError otherwise."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def in_thread(function: Callable[[], _Result]) -> _Result:
    """Run ``function`` in a thread of its own, so that namespaces it enters end with it."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="twinbed-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_netns(descriptor: int, function: Callable[[], _Result]) -> _Result:
    """Call ``function`` in the network namespace of a descriptor."""

    def body() -> _Result:
        libc_call("setns", descriptor, CLONE_NEWNET)
        return function()

    return in_thread(body)


def in_netns_of(pid: int | None, function: Callable[[], _Result]) -> _Result:
    """Call ``function`` in the network namespace of process ``pid`` (None: here, without a thread)."""
    if pid is None:
        return function()
    with netns_of(pid) as descriptor:
        return in_netns(descriptor, function)


def in_new_netns(function: Callable[[], _Result]) -> _Result:
    """Call ``function`` in an empty network namespace that disappears when it returns."""

    def body() -> _Result:
        libc_call("unshare", CLONE_NEWNET)
        return function()

    return in_thread(body)


@contextmanager
def netns_of(pid: int) -> Iterator[int]:
    """A descriptor of the network namespace of a process, closed on exit."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
