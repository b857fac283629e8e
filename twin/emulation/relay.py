"""The link impairment program for kernels without netem: TAP pairs joined in user space.

A frame that arrives at one TAP is put on the other at ``start of transmission + length / rate + delay
± jitter``; it is lost with probability ``loss`` drawn from the direction's own seeded stream, after it
has used the transmitter, as on a real link. The transmit queue is bounded in packets (tail drop). Jitter is
uniform and never reorders unless asked.

Run as ``python -I -S relay.py`` with a Unix stream socket as standard input, which carries requests
(one JSON object a line; TAP descriptors ride along as SCM_RIGHTS) and answers. When the socket closes,
the owner is gone and the program ends, and with it its TAPs. Standard library only, no privilege needed.

Requests: ``{"op": "add", "link": ID, "a2b": P, "b2a": P}`` with two descriptors, ``{"op": "set", "link": ID,
"a2b": {...}, "b2a": {...}}``, ``{"op": "state", "link": ID, "up": bool}``, ``{"op": "stats", "link": ID}``,
``{"op": "replug", "link": ID, "end": "a"|"b"}`` with one descriptor, ``{"op": "remove", "link": ID}``.
P: ``rate_bps`` (null: unlimited), ``delay_s``, ``jitter_s``, ``loss_ratio``, ``seed``, ``queue_packets``, ``reorder``.
"""

from __future__ import annotations

import gc
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from collections import deque
from typing import Any

_FRAME_BYTES = 65_600
# Frames due within this time leave together: fewer wake-ups for an error far below the ±1 ms that links promise.
_COALESCE_NS = 100_000
# What may be in flight without a rate limit (a rate limit bounds it by itself).
_MAX_IN_FLIGHT = 100_000
_READS_PER_TURN = 64


class Direction:
    """One way through a link: reads ``source``, writes ``sink``. All times are monotonic nanoseconds."""

    def __init__(self, source: int, sink: int, parameters: dict[str, Any]) -> None:
        self.source = source
        self.sink = sink
        self.up = True
        self.random = random.Random(parameters["seed"]).random
        # (due, finish of transmission, frame); a heap only when reordering is asked for.
        self.flight: deque[tuple[int, int, bytes]] = deque()
        self.heap: list[tuple[int, int, int, bytes]] = []
        self.serial = 0
        self.free_ns = 0
        self.last_due_ns = 0
        self.finishes: deque[int] = deque()
        self.bytes = self.packets = self.drops = self.lost = 0
        self.reorder = False
        self.configure(parameters)

    def configure(self, parameters: dict[str, Any]) -> None:
        """Take new parameters; frames still waiting for the transmitter are scheduled again at the new rate."""
        rate_bps = parameters["rate_bps"]
        self.ns_per_byte = 8e9 / rate_bps if rate_bps else 0.0
        self.delay_ns = round(parameters["delay_s"] * 1e9)
        self.jitter_ns = round(parameters["jitter_s"] * 1e9)
        self.loss_ratio = float(parameters["loss_ratio"])
        self.queue_packets = int(parameters["queue_packets"])
        now = time.monotonic_ns()
        waiting = [frame for _, finish, frame in self.flight if finish > now]
        waiting += [frame for _, finish, _, frame in sorted(self.heap) if finish > now]
        self.flight = deque(one for one in self.flight if one[1] <= now)
        self.heap = [one for one in self.heap if one[1] <= now]
        heapq.heapify(self.heap)
        self.reorder = bool(parameters["reorder"])
        self.finishes.clear()
        self.free_ns = now
        # Without reordering nothing may overtake what has left the transmitter already.
        self.last_due_ns = self.flight[-1][0] if self.flight else 0
        for frame in waiting:
            self._schedule(frame, now)

    def accept(self, frame: bytes, now: int) -> None:
        """A frame arrived from the source."""
        if not self.up:
            self.drops += 1
            return
        if self.ns_per_byte:
            finishes = self.finishes
            while finishes and finishes[0] <= now:
                finishes.popleft()
            # The frame being transmitted is not in the queue.
            if len(finishes) > self.queue_packets:
                self.drops += 1
                return
        elif len(self.flight) + len(self.heap) >= _MAX_IN_FLIGHT:
            self.drops += 1
            return
        if self.loss_ratio and self.random() < self.loss_ratio:
            self.lost += 1
            if self.ns_per_byte:
                self.free_ns = max(now, self.free_ns) + int(len(frame) * self.ns_per_byte)
                self.finishes.append(self.free_ns)
            return
        self._schedule(frame, now)

    def _schedule(self, frame: bytes, now: int) -> None:
        finish = now
        if self.ns_per_byte:
            finish = (self.free_ns if self.free_ns > now else now) + int(len(frame) * self.ns_per_byte)
            self.free_ns = finish
            self.finishes.append(finish)
        due = finish + self.delay_ns
        if self.jitter_ns:
            due += int((2 * self.random() - 1) * self.jitter_ns)
            due = max(due, finish)
        if self.reorder:
            self.serial += 1
            heapq.heappush(self.heap, (due, finish, self.serial, frame))
            return
        due = max(due, self.last_due_ns)
        self.last_due_ns = due
        self.flight.append((due, finish, frame))

    def release(self, now: int) -> None:
        """Send every frame whose time has come."""
        until = now + _COALESCE_NS
        flight = self.flight
        while flight and flight[0][0] <= until:
            self._send(flight.popleft()[2])
        heap = self.heap
        while heap and heap[0][0] <= until:
            self._send(heapq.heappop(heap)[3])

    def _send(self, frame: bytes) -> None:
        try:
            os.write(self.sink, frame)
        except OSError:
            # The interface is down or full: a drop, as at any receiver that is not there.
            self.drops += 1
        else:
            self.packets += 1
            self.bytes += len(frame)

    def next_due(self) -> int | None:
        """When the earliest frame is due."""
        if self.flight:
            return self.flight[0][0]
        return self.heap[0][0] if self.heap else None

    def cut(self, up: bool) -> None:
        """Take the direction up or down; what is in flight on a cut link is lost."""
        self.up = up
        if not up:
            self.drops += len(self.flight) + len(self.heap)
            self.flight.clear()
            self.heap.clear()
            self.finishes.clear()
            self.free_ns = self.last_due_ns = 0

    def stats(self) -> dict[str, int]:
        """Counters since the link was made, and the bytes that wait for the transmitter now."""
        now = time.monotonic_ns()
        backlog = int(max(0, self.free_ns - now) / self.ns_per_byte) if self.ns_per_byte else 0
        return {
            "bytes": self.bytes,
            "packets": self.packets,
            "drops": self.drops,
            "lost": self.lost,
            "backlog_bytes": backlog,
        }


class Relay:
    """All links of this process and the control socket."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.links: dict[int, tuple[Direction, Direction]] = {}
        self.by_source: dict[int, Direction] = {}
        self.buffer = b""

    def run(self) -> None:
        """Until the control socket closes."""
        control = self.control.fileno()
        watched = [control]
        ready: list[int] = [control]
        while True:
            now = time.monotonic_ns()
            for source in ready:
                if source == control:
                    if not self._control():
                        return
                    watched = [control, *self.by_source]
                elif source in self.by_source:
                    self._drain(source, now, watched)
            now = time.monotonic_ns()
            earliest = None
            for direction in self.by_source.values():
                due = direction.next_due()
                if due is None:
                    continue
                if due <= now + _COALESCE_NS:
                    direction.release(now)
                    due = direction.next_due()
                    if due is None:
                        continue
                if earliest is None or due < earliest:
                    earliest = due
            timeout = None if earliest is None else max(0, earliest - time.monotonic_ns()) / 1e9
            ready = select.select(watched, [], [], timeout)[0]

    def _drain(self, source: int, now: int, watched: list[int]) -> None:
        direction = self.by_source[source]
        accept = direction.accept
        try:
            for _ in range(_READS_PER_TURN):
                accept(os.read(source, _FRAME_BYTES), now)
        except BlockingIOError:
            pass
        except OSError:
            # The interface was removed (its container died): wait for a replug.
            watched.remove(source)

    def _control(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self.control, 65536, 4)
        if not data:
            return False
        self.buffer += data
        while b"\n" in self.buffer:
            line, self.buffer = self.buffer.split(b"\n", 1)
            try:
                answer = self._handle(json.loads(line), descriptors)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.control.sendall(json.dumps(answer).encode() + b"\n")
        return True

    def _handle(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        operation, number = request["op"], request["link"]
        if operation == "add":
            a, b = descriptors
            self.links[number] = (Direction(a, b, request["a2b"]), Direction(b, a, request["b2a"]))
            self._index()
            return {}
        forward, backward = self.links[number]
        if operation == "set":
            forward.configure(request["a2b"])
            backward.configure(request["b2a"])
        elif operation == "state":
            forward.cut(request["up"])
            backward.cut(request["up"])
        elif operation == "stats":
            return {"a2b": forward.stats(), "b2a": backward.stats()}
        elif operation == "replug":
            old = forward.source if request["end"] == "a" else backward.source
            if request["end"] == "a":
                forward.source = backward.sink = descriptors[0]
            else:
                backward.source = forward.sink = descriptors[0]
            os.close(old)
            self._index()
        elif operation == "remove":
            del self.links[number]
            self._index()
            os.close(forward.source)
            os.close(backward.source)
        else:
            raise ValueError(f"unknown operation {operation}")
        return {}

    def _index(self) -> None:
        self.by_source = {one.source: one for pair in self.links.values() for one in pair}


def main() -> None:
    """Serve the control socket on standard input."""
    gc.disable()  # no cycles are made; a collection would delay frames
    with socket.socket(fileno=sys.stdin.fileno()) as control:
        Relay(control).run()


if __name__ == "__main__":
    main()
