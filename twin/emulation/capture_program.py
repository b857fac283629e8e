"""Writes what a packet socket sees to a pcap file with nanosecond timestamps.

Run as ``python -I -S capture_program.py FILE DESCRIPTOR`` with the number of an inherited AF_PACKET socket and
a pipe as standard input; prints "ready", ends when the pipe closes, so it never outlives its owner, and then
prints "captured dropped". Format: draft-ietf-opsawg-pcap. Standard library only.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_FLUSH_S = 0.2
_SNAP_BYTES = 65_535
_ARPHRD_NONE = 65_534
_LINKTYPE_ETHERNET, _LINKTYPE_RAW = 1, 101


def main() -> None:
    """Capture until standard input closes."""
    path = sys.argv[1]
    packets = socket.socket(fileno=int(sys.argv[2]))
    packets.setblocking(False)
    owner = sys.stdin.fileno()
    captured = 0
    running = True
    with open(path, "wb") as file:  # noqa: PTH123 - pathlib costs 10 ms at start-up
        # A TUN carries bare IP packets.
        bare = packets.getsockname()[3] == _ARPHRD_NONE
        # Magic of nanosecond pcap, version 2.4.
        link_type = _LINKTYPE_RAW if bare else _LINKTYPE_ETHERNET
        file.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, _SNAP_BYTES, link_type))
        file.flush()
        print("ready", flush=True)
        flushed = time.monotonic()
        while running:
            ready, _, _ = select.select([packets, owner], [], [], _FLUSH_S)
            # One last round after the end was asked for: what arrived before it belongs to the capture.
            running = owner not in ready
            try:
                for _ in range(512 if running else 1 << 20):
                    frame, extra, _, _ = packets.recvmsg(_SNAP_BYTES, 128)
                    seconds, nanoseconds = struct.unpack("=qq", extra[0][2][:16])
                    file.write(struct.pack("=IIII", seconds, nanoseconds, len(frame), len(frame)) + frame)
                    captured += 1
            except BlockingIOError:
                pass
            except OSError:
                running = False  # the interface is gone
            now = time.monotonic()
            if now > flushed + _FLUSH_S:
                file.flush()
                flushed = now
    dropped = struct.unpack("=II", packets.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
    packets.close()
    print(captured, dropped, flush=True)


if __name__ == "__main__":
    main()
