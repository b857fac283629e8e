"""Packets through UE, gNB and UPF in network namespaces."""

from __future__ import annotations

import subprocess

import pytest

from tests.emulation.dataplane.chain import wait_until

pytestmark = pytest.mark.emulation


def ping(chain, address="10.64.0.2", count=3, wait_s=1):
    done = subprocess.run(
        chain.exec("ue", "ping", "-n", "-c", str(count), "-i", "0.05", "-W", str(wait_s), "-I", address, chain.APP),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0


def test_attach_ping_detach(chain):
    upf, gnb, ue = chain.upf().ready(), chain.gnb(2).ready(), chain.ue(2).ready()
    reply = ue.call("attach", ues=["phones.1", "phones.2"])
    assert all(row["attach_us"] < 500_000 for row in reply["results"].values())
    assert ping(chain) and ping(chain, "10.64.0.3")
    assert upf.call("stats")["sessions"] == 2
    stats = gnb.call("stats")
    assert stats["slices"]["embb"]["attached"] == 2
    assert stats["ues"]["phones.1"]["dl_packets"] >= 3
    assert stats["ues"]["phones.1"]["ul_bytes"] == stats["ues"]["phones.1"]["dl_bytes"]
    ue.call("detach", ue="phones.1")
    wait_until(lambda: upf.call("stats")["sessions"] == 1)
    assert not ping(chain, count=1)
    assert ping(chain, "10.64.0.3")
