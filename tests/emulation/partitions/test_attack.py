"""What one partition notices when another is attacked (NANCY D3.4 §6.2). Figures: ``benchmarks/attack.py``."""

from __future__ import annotations

import pytest

from benchmarks.attack import measure

pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("partition_host", "guest_image")]


def test_reserved_partitions_do_not_notice_what_plain_machines_suffer_from() -> None:
    kept, suffered = [], []
    for _ in range(2):  # the host is shared: what disturbs one turn need not disturb the next
        for row in measure(2.0, 1, ("cpu",), ("isolated", "plain")):
            ratios = {name: row["during_s"][name] / row["before_s"][name] for name in row["before_s"]}
            if row["victim"] == "isolated":
                kept.append(min(ratios["critical"], ratios["reserved"]))
            else:
                suffered.append(ratios["plain"])
        if min(kept) <= 1.3 and max(suffered) > 1.5:
            return
    pytest.fail(f"p99 during an attack by p99 before it: reserved {kept}, plain {suffered}")
