"""The registry of KPIs: one place for names, units, provenance and 3GPP names.

``provenance`` is what an emulation run does; the flow fidelity reports the same names as modelled,
unless they are derived in both. A 3GPP name is given where TS 28.552 measures the same quantity; delay and
loss have none, because 3GPP measures them per segment (DRB.AirIfDelayDl, DRB.F1UpacketLossRateDl ...) and
TwinBed from application to UE.
"""

from __future__ import annotations

from dataclasses import dataclass

from twin.types import Provenance


@dataclass(frozen=True, slots=True)
class KpiSpec:
    """Name, unit (SI), scopes that carry it, provenance, 3GPP name, and what it means.

    ``cumulative``: each sample is of the time since the start, so that the last one, not the mean, is the result.
    """

    name: str
    unit: str
    scopes: tuple[str, ...]
    provenance: Provenance
    gpp_name: str
    meaning: str
    cumulative: bool = False


def _spec(
    name: str,
    unit: str,
    scopes: str,
    provenance: Provenance,
    gpp_name: str,
    meaning: str,
    *,
    cumulative: bool = False,
) -> KpiSpec:
    return KpiSpec(name, unit, tuple(scopes.split()), provenance, gpp_name, meaning, cumulative)


PARTITION_STATES = ("ready", "suspended", "deployed")
"""States of a partition as the KPI ``partition_state`` counts them."""

KPIS: dict[str, KpiSpec] = {
    spec.name: spec
    for spec in (
        # user plane, measured at the receiving end
        _spec(
            "throughput_dl_bps",
            "bit/s",
            "ue slice",
            "measured",
            "DRB.UEThpDl",
            "downlink IP bits received by UEs, per second of the interval",
        ),
        _spec(
            "throughput_ul_bps",
            "bit/s",
            "ue slice",
            "measured",
            "DRB.UEThpUl",
            "uplink IP bits that the UPF handed over to N6, per second of the interval",
        ),
        _spec(
            "offered_dl_bps",
            "bit/s",
            "ue slice",
            "measured",
            "",
            "downlink IP bits sent by applications to flows with a rate (not responses)",
        ),
        _spec(
            "offered_ul_bps",
            "bit/s",
            "ue slice",
            "measured",
            "",
            "uplink IP bits sent by UEs in flows with a rate (not requests)",
        ),
        *(
            _spec(
                f"delay_{way}_p{rank}_s",
                "s",
                "ue slice",
                "measured",
                "",
                f"one-way delay, {word}, percentile {rank} of the packets received in the interval",
            )
            for way, word in (("dl", "application to UE"), ("ul", "UE to application"))
            for rank in (50, 95, 99)
        ),
        *(
            _spec(
                f"rtt_p{rank}_s",
                "s",
                "ue slice",
                "measured",
                "",
                f"round trip of small probe packets UE - application - UE, percentile {rank}",
            )
            for rank in (50, 95, 99)
        ),
        _spec(
            "loss_dl_ratio",
            "1",
            "ue slice",
            "measured",
            "",
            "share of downlink packets that did not arrive (gaps in sequence numbers)",
        ),
        _spec(
            "loss_ul_ratio",
            "1",
            "ue slice",
            "measured",
            "",
            "share of uplink packets that did not arrive",
        ),
        _spec("jitter_dl_s", "s", "ue slice", "measured", "", "mean change of delay between packets, RFC 3550 6.4.1"),
        _spec("jitter_ul_s", "s", "ue slice", "measured", "", "the same, uplink"),
        *(
            _spec(
                f"response_p{rank}_s",
                "s",
                "ue slice node",
                "measured",
                "",
                f"time from request to complete response, percentile {rank}",
            )
            for rank in (50, 95, 99)
        ),
        _spec("requests_per_s", "1/s", "ue slice node", "measured", "", "requests answered per second"),
        _spec(
            "request_failures_per_s", "1/s", "ue slice node", "measured", "", "requests refused or timed out per second"
        ),
        # radio
        _spec(
            "cqi", "1", "ue", "modelled", "CARR.WBCQIDist", "channel quality indicator, 0 to 15, mean of the interval"
        ),
        _spec("prb_share", "1", "slice", "measured", "", "share of each gNB's PRBs that the slice may use"),
        _spec(
            "prb_used_dl_ratio",
            "1",
            "slice",
            "measured",
            "RRU.PrbTotDl",
            "downlink PRBs used, divided by the slice's PRBs",
        ),
        _spec(
            "prb_used_ul_ratio",
            "1",
            "slice",
            "measured",
            "RRU.PrbTotUl",
            "uplink PRBs used, divided by the slice's PRBs",
        ),
        _spec(
            "queue_bytes",
            "byte",
            "slice",
            "measured",
            "",
            "bytes waiting in the gNB's queues at the end of the interval",
        ),
        _spec(
            "queue_drops_per_s",
            "1/s",
            "slice",
            "measured",
            "",
            "packets dropped at full gNB queues",
        ),
        _spec("missed_slots_ratio", "1", "slice", "measured", "", "slots that the gNB could not run for lack of CPU"),
        # sessions
        _spec("attached_ues", "1", "slice", "measured", "SM.SessionNbrMean", "UEs with a PDU session"),
        _spec(
            "active_ues", "1", "slice", "measured", "DRB.MeanActiveUeDl", "UEs with a running flow: the slice traffic x"
        ),
        _spec("attach_time_s", "s", "slice", "measured", "", "mean time of the attach procedures of the interval"),
        # computing
        _spec(
            "cpu_used_millicores",
            "1e-3 CPU",
            "slice node",
            "measured",
            "VR.VCpuUsageMean",
            "CPU used; of a slice: by its part of the gNB",
        ),
        _spec(
            "cpu_limit_millicores",
            "1e-3 CPU",
            "slice node",
            "measured",
            "",
            "CPU limit in force; absent when unlimited",
        ),
        _spec(
            "cpu_throttled_ratio",
            "1",
            "slice node",
            "measured",
            "",
            "share of scheduling periods in which the limit was hit",
        ),
        _spec("memory_used_bytes", "byte", "node", "measured", "VR.VMemoryUsageMean", "memory in use"),
        _spec("partition_state", "1", "node", "measured", "", "state of a partition: 0 ready, 1 suspended, 2 deployed"),
        _spec("memory_limit_bytes", "byte", "node", "measured", "", "memory limit in force; absent when unlimited"),
        _spec("replicas", "1", "node", "measured", "", "replicas of an application that take requests"),
        # periodic tasks and reservations of CPU time
        *(
            _spec(
                f"task_response_{rank}_s",
                "s",
                "task",
                "measured",
                "",
                f"time from the release of a job to its end, {word} of the jobs that ended in the interval",
            )
            for rank, word in (("p50", "median"), ("p99", "percentile 99"), ("max", "longest"))
        ),
        _spec("jobs_per_s", "1/s", "task", "measured", "", "jobs of a periodic task that ended per second"),
        _spec(
            "deadline_miss_ratio", "1", "task", "measured", "", "share of jobs that ended after the next one's release"
        ),
        _spec(
            "wakeup_period_s",
            "s",
            "task node",
            "measured",
            "",
            "period of the wake-ups (NANCY D4.2 4.1); absent while unknown and when there is none",
        ),
        _spec("dl_budget_s", "s", "task node", "measured", "", "budget Q of the reservation in force; absent without"),
        _spec("dl_period_s", "s", "task node", "measured", "", "period P of the reservation in force; absent without"),
        _spec("dl_used_s", "s", "task node", "measured", "", "CPU time used per period of the reservation"),
        _spec("dl_alpha_ratio", "1", "task node", "derived", "", "bandwidth Q / P of the reservation"),
        _spec("dl_delta_s", "s", "task node", "derived", "", "worst-case service delay 2 (P - Q) of the reservation"),
        _spec("stream_gap_s", "s", "ue slice", "measured", "", "longest time between two downlink packets of a flow"),
        # transport
        _spec(
            "bandwidth_limit_bps", "bit/s", "slice link", "derived", "", "rate limit as last set; absent when unlimited"
        ),
        _spec("transport_queue_bytes", "byte", "slice", "measured", "", "bytes waiting at the slice's transport limit"),
        _spec("link_throughput_bps", "bit/s", "link", "measured", "", "bits carried, busier direction"),
        _spec("link_up", "1", "link", "measured", "", "1 when the link carries packets"),
        # IAB backhaul
        _spec(
            "link_utilisation_ratio",
            "1",
            "link",
            "derived",
            "",
            "bits carried by a link with a band, divided by its capacity",
        ),
        _spec(
            "offered_bps",
            "bit/s",
            "flow",
            "measured",
            "",
            "demand of the source of a backhaul flow, in IP bits; what cannot be carried is not sent later",
        ),
        _spec("throughput_bps", "bit/s", "flow", "measured", "", "IP bits of a backhaul flow that reached its sink"),
        _spec("path_index", "1", "flow", "derived", "", "path that the backhaul flow takes, counted from 0"),
        _spec(
            "predicted_throughput_bps",
            "bit/s",
            "flow",
            "derived",
            "",
            "throughput that the flow model predicts for the same demands, paths and links (max-min fair)",
        ),
        _spec(
            "backhaul_efficiency",
            "1",
            "run",
            "derived",
            "",
            "throughput of all backhaul flows, divided by what they offer (NANCY D4.2 4.2, equation 1)",
        ),
        _spec(
            "backhaul_fairness",
            "1",
            "run",
            "derived",
            "",
            "Jain's index of the throughputs of the active backhaul flows (NANCY D4.2 4.2, equation 2)",
        ),
        # service level
        _spec("qos_bps", "bit/s", "slice", "derived", "", "throughput per active UE: the QoS q of MicroOpt"),
        _spec(
            "qos_degradation_ratio",
            "1",
            "slice",
            "derived",
            "",
            "beta since the start: active UEs in intervals with q <= q_thresh, divided by all (MicroOpt equation 1)",
            cumulative=True,
        ),
        _spec("q_thresh_bps", "bit/s", "slice", "derived", "", "QoS threshold of the SLA in force"),
        _spec("beta_thresh", "1", "slice", "derived", "", "highest accepted QoS degradation of the SLA in force"),
        _spec(
            "qos_degradation_to_thresh",
            "1",
            "slice",
            "derived",
            "",
            "beta since the start divided by beta_thresh: at most 1 where the promise is kept",
            cumulative=True,
        ),
        _spec(
            "sla_violation_s",
            "s",
            "slice",
            "derived",
            "",
            "time since the start in which a promise of the SLA was broken",
            cumulative=True,
        ),
        # the run itself
        _spec("decision_time_s", "s", "controller", "measured", "", "time that the last decision took"),
        _spec(
            "action_to_effect_s",
            "s",
            "controller",
            "measured",
            "",
            "from the controller's decision to the change being in force",
        ),
        _spec("refused_actions", "1", "controller", "measured", "", "actions refused since the start", cumulative=True),
        _spec(
            "faults",
            "1",
            "controller",
            "measured",
            "",
            "decisions that raised, hung or returned nonsense since the start",
            cumulative=True,
        ),
        _spec("clock_lag_s", "s", "run", "measured", "", "how late the interval ended, against the run clock"),
        _spec("host_cpu_ratio", "1", "run", "measured", "", "share of all host CPUs that was busy"),
        _spec("host_memory_ratio", "1", "run", "measured", "", "share of host memory in use"),
        _spec(
            "engine_cpu_millicores",
            "1e-3 CPU",
            "run",
            "measured",
            "",
            "CPU that TwinBed itself used beside the data plane",
        ),
    )
}
