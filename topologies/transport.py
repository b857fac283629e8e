"""Transport networks of switches: a chain, a ring, and parallel paths between two ends."""

from __future__ import annotations

import itertools

from topologies.fragment import Fragment, check_count
from topologies.model import Link, Switch


def chain(
    *,
    length: int = 2,
    prefix: str = "s",
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    jitter_s: float = 0.0,
    loss_ratio: float = 0.0,
) -> Fragment:
    """Switches ``s1`` - ``s2`` - ... in a row; every link has the given properties."""
    check_count("transport_chain", "length", length, 1, 64)
    names = [f"{prefix}{index}" for index in range(1, length + 1)]
    links = tuple(
        Link(a=a, b=b, bandwidth_bps=bandwidth_bps, delay_s=delay_s, jitter_s=jitter_s, loss_ratio=loss_ratio)
        for a, b in itertools.pairwise(names)
    )
    return Fragment(tuple(Switch(name=name) for name in names), links)


def ring(
    *,
    size: int = 4,
    prefix: str = "s",
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    jitter_s: float = 0.0,
    loss_ratio: float = 0.0,
) -> Fragment:
    """Switches ``s1`` ... ``sN`` in a ring: two paths between any two of them."""
    check_count("transport_ring", "size", size, 3, 64)
    row = chain(
        length=size,
        prefix=prefix,
        bandwidth_bps=bandwidth_bps,
        delay_s=delay_s,
        jitter_s=jitter_s,
        loss_ratio=loss_ratio,
    )
    closing = Link(
        a=f"{prefix}{size}",
        b=f"{prefix}1",
        bandwidth_bps=bandwidth_bps,
        delay_s=delay_s,
        jitter_s=jitter_s,
        loss_ratio=loss_ratio,
    )
    return row + Fragment(links=(closing,))


def redundant(
    *,
    paths: int = 2,
    prefix: str = "s",
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    jitter_s: float = 0.0,
    loss_ratio: float = 0.0,
    backup_bandwidth_bps: float | None = None,
    backup_delay_s: float | None = None,
) -> Fragment:
    """A direct link ``s1`` - ``s2`` and ``paths - 1`` detours over one switch each (``s3``, ``s4``, ...).

    The direct link is the default path since it has the fewest hops. ``backup_bandwidth_bps`` and
    ``backup_delay_s`` hold for a detour as a whole: each of its two links has the bandwidth and half
    of the delay; left out, a detour is like the direct link.
    """
    check_count("transport_redundant", "paths", paths, 1, 32)
    ingress, egress = f"{prefix}1", f"{prefix}2"
    detours = [f"{prefix}{index}" for index in range(3, paths + 2)]
    links = [
        Link(
            a=ingress, b=egress, bandwidth_bps=bandwidth_bps, delay_s=delay_s, jitter_s=jitter_s, loss_ratio=loss_ratio
        )
    ]
    half_s = (delay_s if backup_delay_s is None else backup_delay_s) / 2
    rate_bps = bandwidth_bps if backup_bandwidth_bps is None else backup_bandwidth_bps
    for name in detours:
        links += [
            Link(a=ingress, b=name, bandwidth_bps=rate_bps, delay_s=half_s),
            Link(a=name, b=egress, bandwidth_bps=rate_bps, delay_s=half_s),
        ]
    return Fragment(tuple(Switch(name=name) for name in (ingress, egress, *detours)), tuple(links))
