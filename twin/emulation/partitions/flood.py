"""A UDP flood for tests of isolation: at a given rate, for a given time, from the network namespace that it runs in.

    python -m twin.emulation.partitions.flood ADDRESS PORT PACKETS_PER_S PAYLOAD_BYTES SECONDS

It ends by itself, whoever started it, and with whoever started it when that ends first and asked for it.
"""

from __future__ import annotations

import socket
import sys
import time

BURST_S = 0.002


def flood(address: str, port: int, rate_pps: float, payload_bytes: int, seconds: float) -> int:
    """Send; the number of packets sent. What the host cannot send in its time is not sent later."""
    data = bytes(payload_bytes)
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        start = due = time.monotonic()
        while (now := time.monotonic()) < start + seconds:
            for _ in range(min(int((now - due) * rate_pps), int(rate_pps * 10 * BURST_S) + 1)):
                try:
                    sock.sendto(data, (address, port))
                    sent += 1
                except OSError:  # an ICMP error about an earlier packet, or a full queue
                    continue
            due = now if (now - due) * rate_pps >= 1 else due
            time.sleep(BURST_S)
    return sent


def main() -> int:
    """0 after the given time; 2 for wrong arguments."""
    words = sys.argv[1:]
    if len(words) != 5:
        print("usage: flood ADDRESS PORT PACKETS_PER_S PAYLOAD_BYTES SECONDS", file=sys.stderr)
        return 2
    print(flood(words[0], int(words[1]), float(words[2]), int(words[3]), float(words[4])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
