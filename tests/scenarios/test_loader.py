from pathlib import Path

import pytest

from scenarios.errors import ScenarioFileError
from scenarios.loader import dump_scenario, load_scenario
from scenarios.registry import LIBRARY, controller_names, library_names
from tests.scenarios.scenario_text import SMALL, line_of, load_text, problems_of
from topologies.model import App, EdgeServer, Link, Partition, PeriodicTask, Ue, Upf
from twin.types import Action

# (old text, new text, fragment that marks the line, message)
MISTAKES = {
    "unknown key at the top": (
        "duration: 20s",
        "duratoin: 20s",
        "duratoin",
        "duratoin: unknown key duratoin (did you mean duration?); allowed: name, description, topology, slicing, "
        "slices, traffic, sdn, controllers, events, assert, seed, duration, interval, time_compression, fidelity",
    ),
    "unknown key of a node": (
        "{kind: gnb}",
        "{kind: gnb, prb_totl: 51}",
        "prb_totl",
        "topology.nodes.gnb1.prb_totl: unknown key prb_totl (did you mean prb_total?); allowed: image, cpu, "
        "cpu_millicores, memory, memory_mib, kind, prb_total, subcarrier_khz, carrier_ghz, tx_power_dbm, path_loss, "
        "scheduler, work_ns_per_bit, queue_bytes",
    ),
    "unknown key of a link": (
        "      bw: 20\n",
        "      bandwith: 20\n",
        "bandwith",
        "topology.links[2].bandwith: unknown key bandwith (did you mean bw?); "
        "allowed: endpoints, bw, band, delay, jitter, loss",
    ),
    "unknown key of an event": (
        "demand_factor: 2, for",
        "demand_facto: 2, for",
        "demand_facto:",
        "events[0].demand_facto: unknown key demand_facto (did you mean demand_factor?); "
        "allowed: at, label, slice, demand_factor, for",
    ),
    "unknown kind": (
        "s1: {kind: switch}",
        "s1: {kind: swich}",
        "swich",
        "topology.nodes.s1.kind: no kind named swich (did you mean switch?); "
        "known: ue, gnb, upf, app, partition, switch, iab-node, iab-donor, container, host",
    ),
    "missing key": (
        "phones: {kind: ue, slice: embb, count: 4}",
        "phones: {kind: ue, count: 4}",
        "phones: {",
        "topology.nodes.phones.slice: missing",
    ),
    "unknown choice": (
        "video: {kind: app, service: stream}",
        "video: {kind: app, service: streem}",
        "streem",
        "topology.nodes.video.service: got 'streem', allowed stream, request, telemetry (did you mean stream?)",
    ),
    "unit missing": (
        "delay: 5ms",
        "delay: 5",
        "delay: 5",
        "topology.links[2].delay: got 5, allowed a number with a unit: ns, us, ms, s, min, h",
    ),
    "wrong unit": (
        "delay: 5ms",
        "delay: 5Mbps",
        "delay: 5",
        "topology.links[2].delay: got '5Mbps', allowed a number with a unit: ns, us, ms, s, min, h",
    ),
    "wrong unit of bandwidth": (
        "bw: 20\n",
        "bw: 20MB\n",
        "bw: 20MB",
        "topology.links[2].bw: got '20MB', allowed a number (Mbit/s) or one with a unit: bps, kbps, Mbps, Gbps",
    ),
    "negative bandwidth": ("bw: 20\n", "bw: -3\n", "bw: -3", "topology.links[2].bw: got -3, allowed at least 10kbps"),
    "loss above 100 %": (
        "bw: 20\n",
        "loss: 120\n",
        "loss: 120",
        "topology.links[2].loss: got 120, allowed at least 0% and at most 100%",
    ),
    "wrong type": ("seed: 3", "seed: three", "seed:", "seed: got 'three', allowed a whole number"),
    "not a mapping": (
        "    sla: {q_thresh: 1Mbps}",
        "    sla: [1]",
        "sla: [1]",
        "slices.embb.sla: got a list, allowed a mapping of keys",
    ),
    "dangling endpoint": (
        '["gnb1", "s1"]',
        '["gnb1", "s11"]',
        '"s11"',
        "topology.links[1].endpoints: link gnb1-s11: no node named s11 (did you mean s1?); "
        "known: phones, gnb1, s1, s2, upf1, video, control",
    ),
    "duplicate node": (
        "    s2: {kind: switch}",
        "    s1: {kind: switch}",
        "",
        "topology.nodes: duplicate name 's1', first used in line 8",
    ),
    "bad node name": (
        "    s1: {kind: switch}",
        "    S_1: {kind: switch}",
        "S_1",
        "topology.nodes.S_1: got 'S_1', allowed [a-z][a-z0-9-]{0,30} (lower case, digits, hyphens)",
    ),
    "duplicate traffic": (
        "controllers:",
        "  - {name: watching, ues: phones, app: video, rate: 1Mbps}\ncontrollers:",
        "{name: watching",
        "traffic[1].name: duplicate name 'watching', first used by traffic[0]",
    ),
    "link twice": (
        '    - endpoints: ["s2", "upf1"]',
        '    - endpoints: ["s2", "upf1"]\n    - endpoints: ["upf1", "s2"]',
        '["upf1", "s2"]',
        "topology.links[4].endpoints: duplicate name: link upf1-s2 joins the same nodes as the link in line 19",
    ),
    "value out of the model's range": (
        "{kind: gnb}",
        "{kind: gnb, subcarrier_khz: 20}",
        "subcarrier_khz",
        "gnb gnb1: subcarrier_khz must be one of 15, 30, 60, got 20",
    ),
    "unknown slice of a node": (
        "phones: {kind: ue, slice: embb,",
        "phones: {kind: ue, slice: emb,",
        "phones: {",
        "topology.nodes.phones.slice: ue phones: no slice named emb (did you mean embb?); known: embb",
    ),
    "slice without UPF": (
        "upf1: {kind: upf, slice: embb}",
        "upf1: {kind: switch}",
        "  embb:",
        "slices.embb: unreachable slice embb: slice embb: needs exactly one UPF, got 0 (none)",
    ),
    "no path from gNB to UPF": (
        '    - endpoints: ["s2", "upf1"]\n',
        "",
        "  embb:",
        "slices.embb: unreachable slice embb: no path from gNB gnb1 to UPF upf1 over switches",
    ),
    "UE without gNB": (
        '    - endpoints: ["phones", "gnb1"]\n',
        "",
        "  embb:",
        "slices.embb: unreachable slice embb: ue phones needs a link to exactly one gNB, got none",
    ),
    "application out of reach": (
        '    - endpoints: ["upf1", "video"]\n',
        "",
        "app: video",
        "traffic[0].app: unreachable slice embb: no path from UPF upf1 to application video",
    ),
    "unknown application": (
        "app: video",
        "app: vidoe",
        "app: vidoe",
        "traffic[0].app: no application named vidoe (did you mean video?); known: video, control",
    ),
    "unknown UE group": ("ues: phones", "ues: s1", "ues: s1", "traffic[0].ues: no UE group named s1; known: phones"),
    "rate of the wrong kind": (
        "rate: 1Mbps",
        "rate: 5/s",
        "rate: 5/s",
        "traffic[0].rate: got '5/s', allowed a number with a unit: bps, kbps, Mbps, Gbps "
        "(the service of video is stream)",
    ),
    "more users than UEs": (
        "value: 2",
        "value: 9",
        "name: watching",
        "traffic watching: the trace asks for 9 users at 0 s, but UE group phones has 4; "
        "raise its count or scale the trace",
    ),
    "unknown profile": (
        "kind: constant",
        "kind: konstant",
        "konstant",
        "traffic[0].profile.kind: no kind named konstant (did you mean constant?); known: constant, telecom_italia, "
        "telecom_italia_synthetic, microopt, poisson, on_off",
    ),
    "missing trace": (
        "{kind: constant, value: 2}",
        "{kind: telecom_italia, file: milan.txt, cell: 1, peak_users: 2}",
        "milan.txt",
        "traffic[0].profile.file: missing trace file milan.txt; TwinBed brings "
        "traces:sms-call-internet-mi-2013-11-04.txt.gz",
    ),
    "scale missing": (
        "{kind: constant, value: 2}",
        "{kind: telecom_italia_synthetic}",
        "telecom_italia",
        "traffic[0].profile: telecom_italia: give exactly one of peak_users, mean_users, scale, got none",
    ),
    "unknown controller": (
        "use: rule_based",
        "use: rulebased",
        "rulebased",
        "controllers[0].use: no controller named rulebased (did you mean rule_based?); "
        f"known: {', '.join(controller_names())}",
    ),
    "unknown parameter of a controller": (
        '    scope: ["slice:embb"]',
        "    params: {knob: [prb_share]}",
        "params:",
        "controllers[0].params: unknown parameter knob (did you mean knobs?); "
        "rule_based has: knobs, high, low, step, minimum, budget",
    ),
    "bad parameter of a controller": (
        '    scope: ["slice:embb"]',
        "    params: {low: 2}",
        "params:",
        "controllers[0].params: low must be a number in [0, 1], got 2",
    ),
    "unknown scope": (
        '["slice:embb"]',
        '["slice:urllc"]',
        "slice:urllc",
        "controllers[0].scope[0]: no entity named slice:urllc; known: slice:embb",
    ),
    "event on an unknown slice": (
        "{at: 5s, slice: embb",
        "{at: 5s, slice: embbb",
        "embbb",
        "events[0].slice: no slice named embbb (did you mean embb?); known: embb",
    ),
    "event on an unknown link": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, link: s1-s3, do: down}",
        "s1-s3",
        "events[0].link: no link named s1-s3 (did you mean s1-s2?); "
        "known: phones-gnb1, gnb1-s1, s1-s2, s2-upf1, upf1-video, upf1-control",
    ),
    "event on an unknown UE": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, ue: phones.5, do: detach}",
        "phones.5",
        "events[0].ue: no ue named phones.5 (did you mean phones.4?); known: phones.1, phones.2, phones.3, phones.4",
    ),
    "event of no known form": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, lnk: s1-s2, do: down}",
        "lnk",
        "events[0]: an event needs one of: link, node, ue, slice, entity; got lnk (did you mean link?)",
    ),
    "event after the end": (
        "{at: 5s, slice",
        "{at: 50s, slice",
        "{at: 50s",
        "events[0].at: got 50 s, allowed less than the duration, 20 s",
    ),
    "knob out of range": (
        "demand_factor: 2, for: 5s",
        "demand_factor: -2, for: 5s",
        "demand_factor: -2",
        "events[0].demand_factor: slice:embb demand_factor must be a number in [0, 1000], got -2.0",
    ),
    "unknown knob": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, entity: 'slice:embb', knob: prb_shar, value: 0.5}",
        "prb_shar,",
        "events[0].knob: no knob named prb_shar (did you mean prb_share?); known: cpu_millicores, memory_mib, "
        "bandwidth_mbps, prb_share, path, path_index, replicas, link_state, delay_s, jitter_s, "
        "loss_ratio, node_state, ue_state, cqi, demand_factor, partition_state, dl_runtime_us, dl_period_us, "
        "task_work_us, placement, attack, q_thresh_mbps, beta_thresh, latency_bound_s",
    ),
    "time of an event": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: -5s, link: s1-s2, do: down}",
        "at: -5s",
        "events[0].at: got '-5s', allowed at least 0s",
    ),
    "verb of an event": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, node: gnb1, do: explode}",
        "explode",
        "events[0].do: got 'explode', allowed kill, restart",
    ),
    "kill a switch": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, node: s1, do: kill}",
        "do: kill",
        "events[0].node: node:s1 node_state: a switch has no container",
    ),
    "interface twice": (
        '    - endpoints: ["gnb1", "s1"]\n    - endpoints: ["s1", "s2"]',
        '    - endpoints: ["gnb1", "s1:eth1"]\n    - endpoints: ["s1:eth1", "s2"]',
        '["s1:eth1", "s2"]',
        "topology.links[2].endpoints: duplicate name: interface s1:eth1 already ends the link in line 15",
    ),
    "jitter above delay": (
        "delay: 5ms\n",
        "delay: 5ms\n      jitter: 6ms\n",
        "jitter: 6ms",
        "link s1-s2: jitter_s must be in [0, 0.005] (its delay), got 0.006",
    ),
    "limit on a switch": (
        "s1: {kind: switch}",
        "s1: {kind: switch, cpu: 100m}",
        "cpu: 100m",
        "topology.nodes.s1.cpu: a switch has no container that cpu could act on",
    ),
    "CPU of a whole gNB": (
        "{kind: gnb}",
        "{kind: gnb, cpu: 100m}",
        "cpu: 100m",
        "topology.nodes.gnb1.cpu: each slice's part of the gNB has its own limit; set resources.ran.cpu of the slices",
    ),
    "slice differentiator that is a number": (
        "    sst: 1",
        "    sst: 1\n    sd: 1000e0",
        "sd: 1000e0",
        "slices.embb.sd: got the number 1000; write the six digits in quotes",
    ),
    "degradation without threshold": (
        "    sla: {q_thresh: 1Mbps}",
        "    sla: {beta_thresh: 0.2}",
        "beta_thresh",
        "slices.embb.sla.beta_thresh: needs q_thresh, the throughput below which a UE counts as degraded",
    ),
    "interval above the duration": (
        "duration: 20s",
        "duration: 20s\ninterval: 30s",
        "interval: 30s",
        "interval: got 30 s, allowed at most the duration, 20 s",
    ),
    "rate missing": (
        "    rate: 1Mbps\n",
        "",
        "name: watching",
        "traffic watching: rate is missing: bit/s of one active UE",
    ),
    "impossible path": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, entity: 'slice:embb', knob: path, value: s2>s1}",
        "s2>s1",
        "events[0].value: path 's2>s1' from gnb1 to upf1: no link between gnb1 and s2; gnb1 is linked to phones, s1",
    ),
    "replicas of a stream": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, entity: 'node:video', knob: replicas, value: 2}",
        "replicas",
        "events[0].value: replicas acts on applications with service request, got node:video",
    ),
    "placement where no stream can run": (
        "{at: 5s, slice: embb, demand_factor: 2, for: 5s}",
        "{at: 5s, entity: 'node:video', knob: placement, value: upf1}",
        "placement",
        "events[0].value: node:video placement: must be its own name or a partition with vnf stream (video), got upf1",
    ),
    "assertion on an unknown KPI": (
        "slice:embb throughput_dl_bps",
        "slice:embb throughput_dl",
        "throughput_dl",
        "assert[0]: no KPI named throughput_dl (did you mean throughput_dl_bps?); twin list kpis shows all",
    ),
    "assertion on an unknown entity": (
        "slice:embb throughput_dl_bps",
        "slice:mmtc throughput_dl_bps",
        "slice:mmtc",
        "assert[0]: no entity named slice:mmtc (did you mean slice:embb?); known: slice:embb",
    ),
    "assertion with a wrong unit": (
        ">= 1Mbps",
        ">= 1ms",
        ">= 1ms",
        "assert[0]: value of throughput_dl_bps: got '1ms', allowed a number (bit/s) or one with a unit: "
        "bps, kbps, Mbps, Gbps",
    ),
    "shares above 1": (
        "ran: {cpu: 200m}",
        "ran: {prb_share: 1.2}",
        "prb_share",
        "slices.embb.resources.ran.prb_share: got 1.2, allowed at least 0 and at most 100%",
    ),
    "cpu without unit": (
        "ran: {cpu: 200m}",
        "ran: {cpu: 200}",
        "cpu: 200}",
        "slices.embb.resources.ran.cpu: got 200, allowed a number with a unit: m, cpu",
    ),
    "unknown builder": (
        "  nodes:\n",
        "  builders: [{use: transport_rign}]\n  nodes:\n",
        "builders",
        "topology.builders[0].use: no topology builder named transport_rign (did you mean transport_ring?); "
        "known: ran_cell, transport_chain, transport_ring, transport_redundant, core, edge, iab, "
        "containers_linear, containers_tree",
    ),
    "builder and node of one name": (
        "  nodes:\n",
        "  builders: [{use: transport_chain}]\n  nodes:\n",
        "    s1: {kind",
        "topology.nodes.s1: duplicate name 's1': also the name of the node in line 5",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_with_file_and_line(case: str, tmp_path: Path) -> None:
    old, new, mark, message = MISTAKES[case]
    assert SMALL.count(old) == 1
    text = SMALL.replace(old, new)
    line = 9 if case == "duplicate node" else line_of(mark, text)
    found = problems_of(tmp_path, text)
    assert f"x.twin.yml:{line}: {message}" in found
    # The chain of this builder has s1, s2 and their link, like the file.
    assert len(found) == (3 if case == "builder and node of one name" else 1), found


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = SMALL.replace("delay: 5ms", "delay: 5").replace("seed: 3", "sed: 3").replace("rate: 1Mbps", "rat: 1Mbps")
    found = problems_of(tmp_path, text)
    assert [line.split(":")[1] for line in found] == ["3", "18", "32"]


def test_mistakes_of_how_things_fit_are_reported_together(tmp_path: Path) -> None:
    text = SMALL.replace("app: video", "app: vidoe").replace("use: rule_based", "use: nothing")
    text = text.replace("slice:embb throughput_dl_bps", "slice:embb nonsense").replace("{at: 5s", "{at: 25s")
    assert [line.split(":")[1] for line in problems_of(tmp_path, text)] == ["31", "35", "38", "40"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "x.twin.yml: the file is empty; a scenario needs at least name and topology"),
        (b"# nothing\n", "x.twin.yml: the file is empty; a scenario needs at least name and topology"),
        (b"- a\n", "x.twin.yml:1: a scenario is a mapping of keys, got a list"),
        (b"name: x\nname: \xff\n", "x.twin.yml:2: not UTF-8 text: byte 0xff"),
        (b"name: x\n  bad: [\n", "x.twin.yml:2: not valid YAML: mapping values are not allowed in this context"),
        (b"name: x\nlist: [1, 2\n", "x.twin.yml:3: not valid YAML: "),
        (b"name: x\nseed: 1\nseed: 2\n", "x.twin.yml:3: the scenario: duplicate name 'seed', first used in line 2"),
        (b"name: &a [*a]\n", "x.twin.yml:1: an alias refers to the value that contains it"),
        (b"name: !!python/object:os.system x\n", "x.twin.yml:1: YAML tag tag:yaml.org,2002:python/object:os.system"),
        (b"name: " + b"[" * 5000, "x.twin.yml:1: nested deeper than 40 levels"),
        (b"name: x\x00\n", "x.twin.yml:1: not valid YAML: "),
        (b"#" * 1_000_001, "x.twin.yml: the file is larger than 1000000 bytes, which a scenario never is"),
        (b"hello\n", "x.twin.yml:1: a scenario is a mapping of keys, got only 'hello'"),
        (b"~\n", "x.twin.yml:1: a scenario is a mapping of keys, got nothing"),
        (
            b"name: x\na: &a {b: 1}\nc: {<<: *a}\n",
            "x.twin.yml:3: merge keys (<<) are not part of YAML 1.2 and not supported; write the keys out",
        ),
        (b"? [a]\n: b\n", "x.twin.yml:1: a key must be text, got a list or mapping"),
        (b"name: small\n", "x.twin.yml:1: topology: missing"),
        (b"name: small\ntopology: {}\n", "x.twin.yml:2: topology: no nodes: a topology needs nodes or builders"),
    ],
)
def test_a_file_that_is_no_scenario(content: bytes, expected: str, tmp_path: Path) -> None:
    assert problems_of(tmp_path, content)[0].startswith(expected)


def test_an_alias_bomb_is_refused_quickly(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        bomb += f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 9) + "]\n"
    assert "more than 50000 values after resolving aliases" in problems_of(tmp_path, bomb)[0]


def test_aliases_may_be_used(tmp_path: Path) -> None:
    text = SMALL.replace("s1: {kind: switch}", "s1: &switch {kind: switch}").replace(
        "s2: {kind: switch}", "s2: *switch"
    )
    assert load_text(tmp_path, text).topology.node("s2").kind == "switch"


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ScenarioFileError, match=r"absent\.twin\.yml: no such file"):
        load_scenario(tmp_path / "absent.twin.yml")
    with pytest.raises(ScenarioFileError, match="cannot be read: Is a directory"):
        load_scenario(tmp_path)


def test_a_broken_trace_names_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "milan.txt").write_text("1\t1383260400000\t39\t\t\t\t\t5.0\n1\t1383261000000\t39\n")
    profile = "{kind: telecom_italia, file: milan.txt, cell: 1, peak_users: 2}"
    text = SMALL.replace("{kind: constant, value: 2}", profile)
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith(f"x.twin.yml:{line_of('milan.txt', text)}: traffic[0].profile: ")
    assert "milan.txt:2:" in problem


def test_an_s_nssai_belongs_to_one_slice(tmp_path: Path) -> None:
    text = SMALL.replace("slices:\n", 'slices:\n  other: {sst: 1, sd: "000001"}\n')
    assert problems_of(tmp_path, text) == [
        f"x.twin.yml:{line_of('  embb:', text)}: slices.embb: S-NSSAI SST 1, SD 000001 is that of slice other; "
        "give it another sst or sd"
    ]


def test_values_arrive_in_si_units(tmp_path: Path) -> None:
    text = SMALL.replace("bw: 20\n", "bw: 20Mbps\n      jitter: 500us\n      loss: 1\n")
    text = text.replace("{kind: upf, slice: embb}", "{kind: upf, slice: embb, cpu: 0.5cpu, memory: 1GiB}").replace(
        "sst: 1", "sst: 1\n    sd: 000007"
    )
    scenario = load_text(tmp_path, text)
    link = scenario.topology.link_named("s1-s2")
    assert link == Link(a="s1", b="s2", bandwidth_bps=20e6, delay_s=0.005, jitter_s=0.0005, loss_ratio=0.01)
    upf = scenario.topology.node("upf1")
    assert (upf.cpu_millicores, upf.memory_mib) == (500, 1024)
    slice_ = scenario.topology.slice_named("embb")
    assert (slice_.sd, slice_.sla.q_thresh_bps, slice_.cpu_millicores, slice_.prb_share) == ("000007", 1e6, 200, 1.0)


def test_resources_of_core_and_edge_limit_the_nodes(tmp_path: Path) -> None:
    resources = "ran: {cpu: 200m}\n      core: {cpu: 300m, memory: 64MiB}\n      edge: {cpu: 150m}"
    scenario = load_text(tmp_path, SMALL.replace("ran: {cpu: 200m}", resources))
    (upf,) = scenario.topology.of_kind(Upf)
    assert (upf.cpu_millicores, upf.memory_mib) == (300, 64)
    limits = {app.name: app.cpu_millicores for app in scenario.topology.of_kind(App)}
    assert limits == {"video": 150, "control": None}  # no traffic of the slice goes to control


def test_a_limit_that_is_set_twice_is_a_mistake(tmp_path: Path) -> None:
    text = SMALL.replace("ran: {cpu: 200m}", "ran: {cpu: 200m}\n      core: {cpu: 300m}")
    text = text.replace("{kind: upf, slice: embb}", "{kind: upf, slice: embb, cpu: 100m}")
    assert problems_of(tmp_path, text) == [
        f"x.twin.yml:{line_of('core:', text)}: slices.embb.resources.core.cpu: "
        "the cpu limit of upf1 is already set by node upf1 itself"
    ]


def test_slices_without_a_share_divide_what_is_left() -> None:
    scenario = load_scenario(LIBRARY / "quickstart.twin.yml", settings={"slices.mmtc.resources.ran": {}})
    assert scenario.topology.slice_named("mmtc").prb_share == pytest.approx(0.2)


def test_events_become_actions_in_order_of_time(tmp_path: Path) -> None:
    events = """
  - {at: 12s, slice: embb, sla: {q_thresh: 2Mbps, latency_bound: 20ms}}
  - {at: 1s, link: s2-s1, do: down, for: 2s, label: cut}
  - {at: 1s, node: video, do: kill}
  - {at: 2s, ue: phones, do: detach}
  - {at: 4s, entity: "link:s1-s2", knob: loss_ratio, value: 0.5}
"""
    text = SMALL.replace("\n  - {at: 5s, slice: embb, demand_factor: 2, for: 5s}\n", events)
    found = [(event.time_s, event.action, event.label) for event in load_text(tmp_path, text).events]
    assert found == [
        (1.0, Action("link:s1-s2", "link_state", "down"), "cut"),
        (1.0, Action("node:video", "node_state", "down"), ""),
        *((2.0, Action(f"ue:phones.{number}", "ue_state", "detached"), "") for number in (1, 2, 3, 4)),
        (3.0, Action("link:s1-s2", "link_state", "up"), "cut"),
        (4.0, Action("link:s1-s2", "loss_ratio", 0.5), ""),
        (12.0, Action("slice:embb", "q_thresh_mbps", 2.0), ""),
        (12.0, Action("slice:embb", "latency_bound_s", 0.02), ""),
    ]


def test_the_same_seed_gives_the_same_load_and_another_does_not(tmp_path: Path) -> None:
    text = SMALL.replace("{kind: constant, value: 2}", "{kind: on_off, on_s: 2, off_s: 2, users: 4}")
    assert load_text(tmp_path, text, seed=5).load == load_text(tmp_path, text, seed=5).load
    assert load_text(tmp_path, text, seed=5).load != load_text(tmp_path, text, seed=6).load


def test_overrides_and_their_mistakes(tmp_path: Path) -> None:
    scenario = load_text(
        tmp_path,
        SMALL,
        seed=9,
        duration_s=30.0,
        fidelity="flow",
        slicing=False,
        controllers=["static", "peak_alloc"],
        settings={"topology.links.2.bw": "7Mbps", "slices.embb.sla.latency_bound": "9ms"},
    )
    assert (scenario.seed, scenario.duration_s, scenario.fidelity, scenario.topology.slicing) == (
        9,
        30.0,
        "flow",
        False,
    )
    assert [(spec.name, spec.scope) for spec in scenario.controllers] == [
        ("static", ("slice:embb",)),
        ("peak_alloc", ("slice:embb",)),
    ]
    assert scenario.topology.link_named("s1-s2").bandwidth_bps == 7e6
    assert scenario.topology.slice_named("embb").sla.latency_bound_s == 0.009
    assert problems_of(tmp_path, SMALL, seed=-1) == ["--seed: seed: got -1, input should be greater than or equal to 0"]
    assert problems_of(tmp_path, SMALL, settings={"topology.links.9.bw": 1}) == [
        "--set topology.links.9.bw: no entry 9, allowed 0 to 5"
    ]
    assert problems_of(tmp_path, SMALL, settings={"slices.embb.slaa": {}})[0].startswith(
        "--set slices.embb.slaa: slices.embb.slaa: unknown key slaa (did you mean sla?)"
    )


def test_builders_in_a_file_make_the_network(tmp_path: Path) -> None:
    text = """\
name: built
duration: 10s
topology:
  builders:
    - use: ran_cell
      with:
        groups:
          phones: {slice: embb, count: 3, distance_m: 150}
    - use: transport_redundant
      with: {paths: 3, bw: 10Mbps, delay: 2ms, backup_delay: 8ms}
    - use: core
      with: {slices: [embb], cpu: 250m}
    - use: edge
      with: {apps: {video: {service: stream, upf: upf-embb, memory: 64MiB}}}
slices: {embb: {sst: 1}}
traffic:
  - {name: watching, ues: phones, app: video, rate: 1Mbps}
"""
    topology = load_text(tmp_path, text).topology
    assert [node.name for node in topology.nodes] == ["phones", "gnb1", "s1", "s2", "s3", "s4", "upf-embb", "video"]
    assert topology.link_named("s3-s2").delay_s == 0.004
    assert topology.node("upf-embb").cpu_millicores == 250
    assert topology.node("video").memory_mib == 64
    assert next(topology.of_kind(Ue)).distance_m == 150
    wrong = text.replace("delay: 2ms,", "dely: 2ms,").replace("count: 3", "cuont: 3").replace("[embb]", "embb")
    assert problems_of(tmp_path, wrong) == [
        "x.twin.yml:8: ue phones: unknown key cuont (did you mean count?); allowed: image, cpu_millicores, memory_mib, "
        "slice, count, distance_m, speed_mps, cqi_script, always_attached",
        "x.twin.yml:10: topology.builders[1].with.dely: unknown key dely (did you mean delay?); "
        "allowed: paths, prefix, bw, delay, jitter, loss, backup_bw, backup_delay",
        "x.twin.yml:12: topology.builders[2].with.slices: got 'embb', allowed a list",
    ]


@pytest.mark.parametrize("name", library_names())
def test_every_library_scenario_loads(name: str) -> None:
    scenario = load_scenario(LIBRARY / f"{name}.twin.yml")
    assert scenario.name == name.replace("_", "-")
    assert scenario.load.flows or scenario.load.backhaul or scenario.topology.tasks


TASKS = """\
name: tasks
duration: 5s
topology:
  nodes:
    edge:
      kind: container
      tasks: [{period: 100ms, work: 10ms}, {period: 50ms, work: 2ms}]
controllers: []
events:
  - {at: 1s, entity: "task:edge.1", knob: dl_runtime_us, value: 11000}
  - {at: 2s, entity: "task:edge.2", knob: task_work_us, value: 3000}
assert:
  - max task:edge.1 task_response_max_s <= 20ms
"""


def test_tasks_of_a_container_are_entities(tmp_path: Path) -> None:
    scenario = load_text(tmp_path, TASKS)
    assert scenario.topology.tasks == {
        "edge.1": PeriodicTask(period_s=0.1, work_s=0.01),
        "edge.2": PeriodicTask(period_s=0.05, work_s=0.002),
    }
    assert [timed.action for timed in scenario.events] == [
        Action("task:edge.1", "dl_runtime_us", 11000),
        Action("task:edge.2", "task_work_us", 3000),
    ]
    assert scenario.assertions[0].entity == "task:edge.1"
    again = load_text(tmp_path, dump_scenario(scenario))
    assert again.topology == scenario.topology


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "task:edge.2",
            "task:edge.9",
            11,
            "events[1].entity: no task named edge.9 (did you mean edge.2?); known: edge.1, edge.2",
        ),
        (
            "task:edge.1 task_",
            "task:egde.1 task_",
            13,
            "assert[0]: no entity named task:egde.1 (did you mean task:edge.1?); known: task:edge.1, task:edge.2",
        ),
        (
            "controllers: []",
            'controllers: [{use: static, scope: ["task:edge"]}]',
            8,
            "controllers[0].scope[0]: no entity named task:edge (did you mean task:edge.2?); "
            "known: task:edge.1, task:edge.2",
        ),
        (
            "{period: 50ms, work: 2ms}",
            "{period: 50us, work: 2ms}",
            7,
            "topology.nodes.edge.tasks[1].period: got '50us', allowed at least 1ms and at most 10s",
        ),
        (
            "{period: 50ms, work: 2ms}",
            "{period: 50ms, work: 11s}",
            7,
            "topology.nodes.edge.tasks[1].work: got '11s', allowed at least 0s and at most 10s",
        ),
        (
            "{period: 50ms, work: 2ms}",
            "{period: 50, work: 2ms}",
            7,
            "topology.nodes.edge.tasks[1].period: got 50, allowed a number with a unit: ns, us, ms, s, min, h",
        ),
        (
            'entity: "task:edge.1", knob: dl_runtime_us',
            'entity: "node:edge", knob: dl_runtime_us',
            10,
            "events[0].value: dl_runtime_us acts on tasks of containers and on partitions as a whole, "
            "got node:edge of a container",
        ),
    ],
)
def test_a_mistake_in_tasks_is_one_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert TASKS.count(old) == 1
    found = problems_of(tmp_path, TASKS.replace(old, new))
    assert found == [f"x.twin.yml:{line}: {message}"]


PARTITIONS = SMALL.replace(
    "    control: {kind: app, service: request}\n",
    "    control: {kind: partition, critical: true, vnf: request}\n"
    "    edge2: {kind: partition, cores: 2, memory: 256MiB, cpu: 1500m, tasks: [{period: 40ms, work: 5ms}]}\n",
).replace(
    '    - endpoints: ["upf1", "control"]\n',
    '    - endpoints: ["upf1", "control"]\n    - endpoints: ["upf1", "edge2"]\n  edge: {cores: 4, memory: 1GiB}\n',
).replace(
    "controllers:",
    "  - {name: asking, ues: phones, app: control, rate: 2/s}\ncontrollers:",
).replace(
    "assert:",
    '  - {at: 6s, entity: "node:edge2", knob: partition_state, value: suspended}\nassert:',
)  # fmt: skip


def test_partitions_of_the_edge_server(tmp_path: Path) -> None:
    scenario = load_text(tmp_path, PARTITIONS)
    control, edge2 = scenario.topology.of_kind(Partition)
    assert (control.critical, control.vnf, control.cores, control.memory_mib) == (True, "request", 1, 128)
    assert (edge2.cores, edge2.memory_mib, edge2.cpu_millicores) == (2, 256, 1500)
    assert edge2.tasks == (PeriodicTask(period_s=0.04, work_s=0.005),)
    assert scenario.topology.edge == EdgeServer(cores=4, memory_mib=1024)
    assert [flow.service for flow in scenario.load.flows if flow.app == "control"] == ["request"] * 4
    assert list(scenario.topology.tasks) == ["edge2.1"]
    assert load_text(tmp_path, dump_scenario(scenario)).topology == scenario.topology


def test_an_own_system_of_a_partition_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "Image").touch()
    text = PARTITIONS.replace("cores: 2,", "cores: 2, image: {kernel: Image},")
    (_, edge2) = load_text(tmp_path, text).topology.of_kind(Partition)
    assert (edge2.kernel, edge2.rootfs, edge2.dtb) == (str(tmp_path / "Image"), None, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores: 2, ", "cores: 9, ", "partition edge2: cores must be in [1, 8], got 9"),
        ("cores: 2, ", "cores: 5, ", "partition edge2: cores: the edge server has 4, got 5"),
        (
            "memory: 256MiB",
            "memory: 1GiB",
            "partition edge2: memory_mib: the edge server has 1024 MiB, and with this one partitions have 1152 MiB",
        ),
        (
            "memory: 256MiB",
            "memory: 1MiB",
            "topology.nodes.edge2.memory: got '1MiB', allowed at least 64MiB and at most 64GiB",
        ),
        ("memory: 256MiB", "memory_mib: 1", "partition edge2: memory_mib must be in [64, 65536], got 1"),
        (
            "memory: 1GiB",
            "memory: 8MiB",
            "topology.edge.memory: got '8MiB', allowed at least 64MiB and at most 1024GiB",
        ),
        (
            "knob: partition_state, value: suspended",
            "knob: attack, value: true",
            "events[1].value: got True, allowed one of none, cpu, memory, network",
        ),
        (
            "knob: partition_state, value: suspended",
            "knob: attack, value: [cpu]",
            "events[1].value: got a list, allowed one of none, cpu, memory, network",
        ),
        (
            "knob: partition_state, value: suspended",
            "knob: cpu_millicores, value: true",
            "events[1].value: got True, allowed number in [10, 1e+06]",
        ),
        (
            "critical: true, ",
            "critical: true, isolated: false, ",
            "partition control: a critical partition is isolated",
        ),
        (
            "critical: true, ",
            "critical: true, cpu: 500m, ",
            "partition control: cpu_millicores cannot be given, the partition is critical: "
            "its CPU time is never limited",
        ),
        (
            "work: 5ms",
            "work: 50ms",
            "partition edge2: tasks: work of task 1 must be at most its period in a guest, 0.04 s, got 0.05 s",
        ),
        (
            "cores: 2, ",
            "cores: 2, image: {kernel: vmlinux}, ",
            "topology.nodes.edge2.image.kernel: no such file: vmlinux",
        ),
        (
            "cores: 2, ",
            "cores: 2, image: {kernel: /}, ",
            "topology.nodes.edge2.image.kernel: not a file: /",
        ),
        (
            "memory: 256MiB",
            "memory: 256.5MiB",
            "partition edge2: memory_mib must be a whole number of MiB, got 256.5",
        ),
        ("memory: 1GiB", "memory: 1GB", "edge: memory_mib must be a whole number of MiB, got 953.674"),
        (
            "cores: 2, ",
            "cores: 2, cpu_ms_per_request: 3, ",
            "topology.nodes.edge2.cpu_ms_per_request: needs vnf: request, got none",
        ),
        (
            "vnf: request",
            "vnf: [request]",
            "topology.nodes.control.vnf: got a list, allowed none, stream, request",
        ),
        (
            "vnf: request",
            "vnf: stream",
            "traffic[1].rate: got '2/s', allowed a number with a unit: bps, kbps, Mbps, Gbps "
            "(the service of control is stream)",
        ),
        (
            ", vnf: request",
            "",
            "traffic[1].app: no application named control; known: video",
        ),
        (
            '"node:edge2", knob: partition_state',
            '"node:video", knob: partition_state',
            "events[1].value: node:video partition_state: acts on nodes of kind partition, video is of kind app",
        ),
        (
            '"node:edge2", knob: partition_state, value: suspended',
            '"node:edge2", knob: memory_mib, value: 300',
            "events[1].value: node:edge2 memory_mib: the memory of a partition is assigned when it is created, "
            "and stays as it is",
        ),
        (
            '"node:edge2", knob: partition_state, value: suspended',
            '"node:control", knob: cpu_millicores, value: 300',
            "events[1].value: node:control cpu_millicores: partition control is critical: "
            "its CPU time is never limited",
        ),
        ("edge: {cores: 4", "edge: {cores: 0", "edge: cores must be in [1, 256], got 0"),
    ],
)  # fmt: skip
def test_a_mistake_in_partitions_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert PARTITIONS.count(old) == 1
    (found,) = problems_of(tmp_path, PARTITIONS.replace(old, new))
    assert found.partition(": ")[2] == message
