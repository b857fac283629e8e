"""Small topologies that several tests use."""

from __future__ import annotations

from topologies.model import App, Gnb, Link, Slice, Switch, Topology, Ue, Upf


def two_slices(
    *, slicing: bool = True, phones: int = 3, work_ns_per_bit: float = 40.0, **bottleneck: float
) -> Topology:
    """eMBB phones and URLLC robots behind one gNB, a transport with two paths, three applications."""
    return Topology(
        name="two-slices",
        nodes=(
            Ue(name="phones", slice="embb", count=phones, cqi_script=((0, 15),)),
            Ue(name="robots", slice="urllc", count=2, cqi_script=((0, 15),)),
            Gnb(name="gnb1", work_ns_per_bit=work_ns_per_bit),
            Switch(name="s1"),
            Switch(name="s2"),
            Switch(name="s3"),
            Upf(name="upf-embb", slice="embb"),
            Upf(name="upf-urllc", slice="urllc"),
            App(name="video", service="stream"),
            App(name="control", service="request"),
            App(name="sensors", service="telemetry"),
        ),
        links=(
            Link(a="phones", b="gnb1"),
            Link(a="robots", b="gnb1"),
            Link(a="gnb1", b="s1"),
            Link(a="s1", b="s2", **bottleneck),
            Link(a="s1", b="s3"),
            Link(a="s3", b="s2"),
            Link(a="s2", b="upf-embb"),
            Link(a="s2", b="upf-urllc"),
            Link(a="s2", b="video"),
            Link(a="s2", b="control"),
            Link(a="s2", b="sensors"),
        ),
        slices=(
            Slice(name="embb", sst=1, prb_share=0.6, cpu_millicores=600, bandwidth_bps=10e6),
            Slice(name="urllc", sst=2, prb_share=0.3, cpu_millicores=300, bandwidth_bps=4e6),
        ),
        slicing=slicing,
    )
