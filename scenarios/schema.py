"""The scenario file as pydantic models: keys, types and units. What fits together is the loader's job.

Strict: an unknown key, a wrong type or a wrong unit is an error. Settings that a file leaves out take
the defaults of :mod:`topologies.model`, so each default has one home. The published JSON Schema
(``twin schema``) is generated from these models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from scenarios import units
from scenarios.units import Quantity
from topologies.model import NAME_PATTERN
from twin.knobs import KNOBS


@dataclass(frozen=True)
class In:
    """Marks a float in SI units that is read from a number or text with a unit, and written as text."""

    quantity: Quantity

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.quantity.parse,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self.quantity.format),
        )

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        number: dict[str, Any] = {"const": 0} if self.quantity.plain is None else {"type": "number"}
        return {
            "anyOf": [number, {"type": "string", "pattern": self.quantity.pattern}],
            "description": f"{self.quantity.name}: {self.quantity.allowed}",
        }


Bandwidth = Annotated[float, In(units.BANDWIDTH)]
BitRate = Annotated[float, In(units.BIT_RATE)]
Delay = Annotated[float, In(units.DELAY)]
TaskPeriod = Annotated[float, In(units.TASK_PERIOD)]
TaskWork = Annotated[float, In(units.TASK_WORK)]
Duration = Annotated[float, In(units.DURATION)]
PositiveDuration = Annotated[float, In(units.POSITIVE_DURATION)]
RunDuration = Annotated[float, In(units.RUN_DURATION)]
Interval = Annotated[float, In(units.INTERVAL)]
Loss = Annotated[float, In(units.LOSS)]
Ratio = Annotated[float, In(units.RATIO)]
Cpu = Annotated[float, In(units.CPU)]
Memory = Annotated[float, In(units.MEMORY)]
PartitionMemory = Annotated[float, In(units.PARTITION_MEMORY)]
EdgeMemory = Annotated[float, In(units.EDGE_MEMORY)]

_NAME_SCHEMA = {"type": "string", "pattern": f"^{NAME_PATTERN.pattern}$"}


def _read_name(given: object) -> object:
    if isinstance(given, str) and not NAME_PATTERN.fullmatch(given):
        raise ValueError(f"got {given!r}, allowed {NAME_PATTERN.pattern} (lower case, digits, hyphens)")
    return given


Name = Annotated[str, BeforeValidator(_read_name), WithJsonSchema(_NAME_SCHEMA)]


def _read_sd(given: object) -> object:
    # Without quotes 000001 is read as text but 100000 as a number; both mean the six digits.
    if isinstance(given, float):
        raise ValueError(f"got the number {given:g}; write the six digits in quotes")
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


Sd = Annotated[str, BeforeValidator(_read_sd)]


def _read_list(given: object) -> object:
    return tuple(given) if isinstance(given, list) else given


class Strict(BaseModel):
    """Frozen, no unknown keys, no conversions (a list is read as a tuple, an integer as a float)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False)


# --- topology -----------------------------------------------------------------------------------


class NodeSettings(Strict):
    """Keys of every node. CPU and memory may be written with a unit or as a number with the unit in the key."""

    image: str | None = Field(default=None, description="container image; TwinBed's own base image when left out")
    cpu: Cpu | None = Field(default=None, description="CPU limit, e.g. 500m or 0.5cpu; unlimited when left out")
    cpu_millicores: float | None = Field(default=None, description="the same as a number of millicores")
    memory: Memory | None = Field(default=None, description="memory limit, e.g. 128MiB; unlimited when left out")
    memory_mib: float | None = Field(default=None, description="the same as a number of MiB")


CqiStep = Annotated[tuple[float, int], BeforeValidator(_read_list)]


class UeNode(NodeSettings):
    """A container that carries ``count`` UEs of one slice."""

    kind: Literal["ue"]
    slice: str = Field(description="the slice of these UEs")
    count: int | None = Field(default=None, description="number of UEs, 1 to 1000 (default 1)")
    distance_m: float | None = Field(default=None, description="distance to the gNB in m, 10 to 5000 (default 100)")
    speed_mps: float | None = Field(default=None, description="speed in m/s, for fading (default 0.8)")
    cqi_script: Annotated[tuple[CqiStep, ...], BeforeValidator(_read_list)] | None = Field(
        default=None, description="[[time_s, cqi], ...]: replaces the channel model"
    )
    always_attached: bool | None = Field(default=None, description="attach at time 0 instead of with the first flow")


class GnbNode(NodeSettings):
    """A gNB with one carrier."""

    kind: Literal["gnb"]
    prb_total: int | None = Field(default=None, description="PRBs of the carrier, 1 to 275 (default 106: 40 MHz)")
    subcarrier_khz: int | None = Field(default=None, description="15, 30 or 60 (default 30)")
    carrier_ghz: float | None = Field(default=None, description="carrier frequency in GHz (default 3.5)")
    tx_power_dbm: float | None = Field(default=None, description="transmit power in dBm (default 43)")
    path_loss: Literal["uma", "umi"] | None = Field(default=None, description="TR 38.901 model (default uma)")
    scheduler: Literal["pf", "rr"] | None = Field(
        default=None, description="proportional fair or round robin (default pf)"
    )
    work_ns_per_bit: float | None = Field(default=None, description="CPU time per user-plane bit in ns (default 40)")
    queue_bytes: int | None = Field(default=None, description="size of each queue in bytes (default 300000)")


class UpfNode(NodeSettings):
    """The UPF of one slice."""

    kind: Literal["upf"]
    slice: str = Field(description="the slice that it serves")


class AppNode(NodeSettings):
    """An application behind N6."""

    kind: Literal["app"]
    service: Literal["stream", "request", "telemetry"] = Field(
        description="stream: constant-rate downlink; request: HTTP with CPU cost; telemetry: uplink sink"
    )
    cpu_ms_per_request: float | None = Field(default=None, description="CPU time of one request in ms (default 2)")
    response_bytes: int | None = Field(default=None, description="size of a response (default 2000)")
    replicas: int | None = Field(default=None, description="containers behind the load balancer, 1 to 16 (default 1)")


class SwitchNode(NodeSettings):
    """An OpenFlow switch."""

    kind: Literal["switch"]


class IabNodeSettings(NodeSettings):
    """An IAB node: a cell without fibre, with wireless backhaul."""

    kind: Literal["iab-node"]


class IabDonorSettings(NodeSettings):
    """An IAB donor, where the wired network begins."""

    kind: Literal["iab-donor"]


class TaskEntry(Strict):
    """A periodic task: a thread that releases a job in every period."""

    period: TaskPeriod = Field(description="time between two jobs, 1ms to 10s")
    work: TaskWork = Field(description="CPU time that a job takes on an undisturbed processor, e.g. 10ms")


Tasks = Annotated[tuple[TaskEntry, ...], BeforeValidator(_read_list)]


class ContainerNode(NodeSettings):
    """Any container."""

    kind: Literal["container"]
    command: str | None = Field(default=None, description="what runs in it")
    tasks: Tasks | None = Field(
        default=None,
        description="periodic tasks that run beside it, a thread each: [{period: 100ms, work: 10ms}]; the entities "
        "task:NAME.1, task:NAME.2 ...",
    )


class GuestFiles(Strict):
    """Files of the user's own for a partition, each in place of what TwinBed would take."""

    kernel: str | None = Field(default=None, description="arm64 kernel (Image, gzip of one, or ELF)")
    rootfs: str | None = Field(default=None, description="initramfs (cpio) or ext4 disk image")
    dtb: str | None = Field(default=None, description="device tree blob")


class PartitionNode(Strict):
    """A partition of the edge server: an emulated aarch64 machine under the vManager."""

    kind: Literal["partition"]
    cores: int | None = Field(default=None, description="processors, 1 to 8 (default 1)")
    memory: PartitionMemory | None = Field(default=None, description="memory, 64MiB to 64GiB (default 128MiB)")
    memory_mib: float | None = Field(default=None, description="the same as a number of MiB")
    cpu: Cpu | None = Field(default=None, description="CPU limit, e.g. 500m; its cores when left out")
    cpu_millicores: float | None = Field(default=None, description="the same as a number of millicores")
    critical: bool | None = Field(default=None, description="has priority over the others (default false)")
    isolated: bool | None = Field(
        default=None, description="false: a plain virtual machine without limits, for comparison (default true)"
    )
    vnf: Literal["none", "stream", "request"] | None = Field(
        default=None, description="what its guest offers to UEs, as an app of that service does (default none)"
    )
    cpu_ms_per_request: float | None = Field(
        default=None, description="CPU time of one request in ms of an undisturbed processor (default 2)"
    )
    tasks: Tasks | None = Field(
        default=None,
        description="periodic tasks in the guest: [{period: 40ms, work: 5ms}]; the entities task:NAME.1 ...",
    )
    image: GuestFiles | None = Field(
        default=None, description="files of your own, beside the scenario file, in place of TwinBed's guest image"
    )


class HostNode(NodeSettings):
    """A bare network namespace."""

    kind: Literal["host"]


AnyNode = Annotated[
    UeNode
    | GnbNode
    | UpfNode
    | AppNode
    | PartitionNode
    | SwitchNode
    | IabNodeSettings
    | IabDonorSettings
    | ContainerNode
    | HostNode,
    Field(discriminator="kind"),
]


class LinkEntry(Strict):
    """A link between two nodes; bandwidth, delay, jitter and loss hold in each direction."""

    endpoints: Annotated[tuple[str, str], BeforeValidator(_read_list)] = Field(
        description='the two ends, each "node" or "node:interface"'
    )
    bw: Bandwidth | None = Field(
        default=None, description="bandwidth; a plain number is Mbit/s; unlimited when left out"
    )
    band: Literal["mmwave", "sub6"] | None = Field(
        default=None,
        description="makes it a wireless backhaul link of an IAB network, from the first end to the second, which is "
        "nearer to a donor; its name is then a-b@band",
    )
    delay: Delay | None = Field(default=None, description="one-way delay, e.g. 10ms")
    jitter: Delay | None = Field(default=None, description="jitter, e.g. 1ms")
    loss: Loss | None = Field(default=None, description="loss; a plain number is percent")


class BuilderEntry(Strict):
    """A part of the topology made by a named builder (``twin list topologies``)."""

    use: str = Field(description="name of the builder")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="its settings")


class BackhaulPathEntry(Strict):
    """A route of one band from the flow's source to a donor."""

    band: Literal["mmwave", "sub6"] = Field(description="band of all its links")
    nodes: Annotated[tuple[str, ...], BeforeValidator(_read_list)] = Field(
        description="from the source to a donor, both included"
    )


class BackhaulPathChoice(Strict):
    """Up to k paths per band, Sub-6 first, chosen by a heuristic for all IAB nodes together."""

    k: int = Field(ge=1, le=64, description="most paths per band")
    heuristic: Literal["shortest", "last_hop", "least_common"] = Field(
        default="least_common", description="how they are chosen among all (default least_common)"
    )


def _paths_form(given: object) -> str:
    return "choice" if isinstance(given, dict | BackhaulPathChoice) else "list"


AnyPaths = Annotated[
    Annotated[BackhaulPathChoice, Tag("choice")]
    | Annotated[tuple[BackhaulPathEntry, ...], BeforeValidator(_read_list), Tag("list")],
    Discriminator(_paths_form),
]


class BackhaulEntry(Strict):
    """The backhaul flow of one IAB node."""

    source: str = Field(description="the IAB node")
    sink: str = Field(description="a host with a wired link from every donor in which a path ends")
    name: Name | None = Field(default=None, description="name of the flow (default f-SOURCE)")
    paths: AnyPaths = Field(description="the paths it may take, or how to choose them")
    path_index: int | None = Field(default=None, ge=0, description="the path at time 0, counted from 0 (default 0)")
    demand: BitRate | None = Field(
        default=None, description="what it sends all the time, unless traffic of kind backhaul says otherwise"
    )


class EdgeEntry(Strict):
    """The edge server: what all partitions together may have, and its processors."""

    cores: int | None = Field(default=None, description="processors in all (default 4)")
    memory: EdgeMemory | None = Field(default=None, description="memory in all (default 2GiB)")
    cpus: int | None = Field(
        default=None,
        description="processors of the server, against which the flow fidelity admits reservations of CPU time "
        "(default 2); an emulation has those of its host",
    )


class TopologyEntry(Strict):
    """Nodes and links, written out or made by builders."""

    builders: Annotated[tuple[BuilderEntry, ...], BeforeValidator(_read_list)] = Field(
        default=(), description="parts made by named builders"
    )
    nodes: dict[Name, AnyNode] = Field(default_factory=dict, description="name -> node")
    links: Annotated[tuple[LinkEntry, ...], BeforeValidator(_read_list)] = Field(default=(), description="the links")
    backhaul: Annotated[tuple[BackhaulEntry, ...], BeforeValidator(_read_list)] = Field(
        default=(), description="the flows of IAB nodes"
    )
    edge: EdgeEntry = Field(default=EdgeEntry(), description="the edge server")


# --- slices -------------------------------------------------------------------------------------


class SlaEntry(Strict):
    """What the slice was promised."""

    q_thresh: BitRate | None = Field(default=None, description="throughput per active user, e.g. 2Mbps")
    beta_thresh: Ratio | None = Field(default=None, description="highest accepted QoS degradation, 0 to 1")
    latency_bound: Delay | None = Field(
        default=None, description="bound on the 95th percentile of one-way delay, e.g. 20ms"
    )


class RanResources(Strict):
    """The slice's part of each gNB."""

    prb_share: Ratio | None = Field(
        default=None, description="share of the PRBs, 0 to 1; slices without one share what is left equally"
    )
    cpu: Cpu | None = Field(default=None, description="CPU of the slice's part of each gNB")


class TransportResources(Strict):
    """The slice's part of the transport network."""

    bandwidth: Bandwidth | None = Field(default=None, description="rate in each direction; a plain number is Mbit/s")


class ComputeResources(Strict):
    """CPU and memory limits."""

    cpu: Cpu | None = Field(default=None, description="CPU limit, e.g. 200m")
    memory: Memory | None = Field(default=None, description="memory limit, e.g. 64MiB")


class ResourcesEntry(Strict):
    """Resources at time 0, per segment."""

    ran: RanResources = Field(default=RanResources(), description="radio access network")
    transport: TransportResources = Field(default=TransportResources(), description="transport network")
    core: ComputeResources = Field(default=ComputeResources(), description="limits of the slice's UPF")
    edge: ComputeResources = Field(
        default=ComputeResources(), description="limits of the applications that the slice's traffic uses"
    )


class SliceEntry(Strict):
    """A network slice."""

    sst: int = Field(description="slice/service type: 1 eMBB, 2 URLLC, 3 MIoT (TS 23.501 5.15.2)")
    sd: Sd | None = Field(default=None, description="slice differentiator, six hexadecimal digits (default 000001)")
    sla: SlaEntry = Field(default=SlaEntry(), description="what the slice was promised")
    resources: ResourcesEntry = Field(default=ResourcesEntry(), description="what it has at time 0")


# --- traffic ------------------------------------------------------------------------------------


class ConstantProfile(Strict):
    """The same demand all the time."""

    kind: Literal["constant"]
    value: float = Field(ge=0, description="active UEs, or bit/s or requests/s of the whole group by unit")
    unit: Literal["users", "bps", "requests_per_s"] | None = Field(
        default=None, description="what value counts (default users)"
    )


class _ActivityProfile(Strict):
    """Keys of profiles that scale an activity to users: exactly one of the three scales must be given."""

    peak_users: float | None = Field(
        default=None, gt=0, description="active UEs at the highest value of the played part"
    )
    mean_users: float | None = Field(default=None, gt=0, description="mean of the active UEs over the played part")
    scale: float | None = Field(default=None, gt=0, description="active UEs per unit of activity")
    start_hour: float | None = Field(
        default=None, ge=0, description="where in the trace the run starts, in hours (default 0)"
    )


class TelecomItaliaProfile(_ActivityProfile):
    """Activity of one square in files of Telecom Italia's format; sped up by time_compression."""

    kind: Literal["telecom_italia"]
    file: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="path beside the scenario file, or traces:NAME for a file that TwinBed brings; or a list of these"
    )
    cell: int = Field(ge=1, le=10_000, description="square id of the Milan grid")
    column: str | None = Field(default=None, description="column of the file (default internet)")


class TelecomItaliaSyntheticProfile(_ActivityProfile):
    """Made-up activity with the published statistics of Telecom Italia's data; seeded, sped up likewise."""

    kind: Literal["telecom_italia_synthetic"]
    cell: int | None = Field(default=None, ge=1, le=10_000, description="square id of the Milan grid (default 5161)")
    first_day: str | None = Field(default=None, description="first day, for the weekend factor (default 2013-11-04)")
    days: int | None = Field(default=None, ge=1, le=366, description="length in days (default 1)")


class MicrooptProfile(Strict):
    """Slice traffic of MicroOpt section VI-A3: a truncated normal number of users, drawn anew every slot."""

    kind: Literal["microopt"]
    mean: float = Field(ge=0, le=1000, description="centre, active UEs")
    sigma: float = Field(ge=0, le=1000, description="standard deviation before truncation")
    slot_s: float | None = Field(default=None, ge=0.01, description="time between two draws in s (default 1)")
    max_users: float | None = Field(default=None, ge=1, description="upper cut")


class PoissonProfile(Strict):
    """Users arrive at random and stay for an exponential time."""

    kind: Literal["poisson"]
    rate_per_s: float = Field(gt=0, le=10_000, description="mean arrivals per second")
    holding_s: float = Field(gt=0, description="mean time that a user stays, in s")
    max_users: int | None = Field(default=None, ge=1, description="arrivals beyond this number leave at once")


class OnOffProfile(Strict):
    """Users that are on and off for exponential times."""

    kind: Literal["on_off"]
    on_s: float = Field(ge=0.01, description="mean time on, in s")
    off_s: float = Field(ge=0.01, description="mean time off, in s")
    users: int | None = Field(default=None, ge=1, le=1000, description="number of such users (default 1)")


AnyProfile = Annotated[
    ConstantProfile
    | TelecomItaliaProfile
    | TelecomItaliaSyntheticProfile
    | MicrooptProfile
    | PoissonProfile
    | OnOffProfile,
    Field(discriminator="kind"),
]

RateText = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "pattern": f"({units.BIT_RATE.pattern})|({units.REQUEST_RATE.pattern})",
            "description": "bit rate per UE (2Mbps), or requests per second and UE (5/s)",
        }
    ),
]


class TrafficEntry(Strict):
    """What the UEs of one group do with one application."""

    name: Name = Field(description="name of the flows in the KPIs")
    ues: str = Field(description="the UE group (a node of kind ue)")
    app: str = Field(
        description="the application (a node of kind app, or a partition with a vnf); its service gives direction and "
        "unit of rate"
    )
    rate: RateText | None = Field(
        default=None,
        description="per active UE: bit rate (2Mbps), or requests (5/s) for service request; left out with a profile "
        "whose unit is a rate",
    )
    packet_bytes: int | None = Field(
        default=None,
        ge=1,
        description="IP packet size, 48 to 1400 (default 1200 for stream, 200 for telemetry), or request body for "
        "request (default 200)",
    )
    profile: AnyProfile | None = Field(
        default=None, description="how many UEs of the group are active, over time; all of them when left out"
    )
    start: Duration = Field(default=0.0, description="when the traffic begins")
    stop: PositiveDuration | None = Field(default=None, description="when it ends (default the end of the run)")
    min_session: Duration = Field(default=0.0, description="shortest time that a UE stays active")


class BackhaulConstant(Strict):
    """The same rate all the time."""

    kind: Literal["constant"]
    rate: BitRate = Field(description="of each flow, e.g. 5Mbps")


class BackhaulRandom(Strict):
    """A random traffic matrix, drawn anew every so often: active with a probability, rate uniform."""

    kind: Literal["random"]
    low: BitRate = Field(description="lowest rate of an active flow")
    high: BitRate = Field(description="highest rate of an active flow")
    active: Ratio = Field(default=1.0, description="probability that a flow is active (default 1)")
    every: PositiveDuration | None = Field(
        default=None, description="time between two matrices (default the whole run)"
    )


class _BackhaulActivity(Strict):
    """Keys of profiles that play an activity per node: exactly one of the two rates must be given."""

    cells: Annotated[tuple[int, ...], BeforeValidator(_read_list)] = Field(
        min_length=1, description="square ids of the Milan grid, 1 to 10000; the flows take them in turns"
    )
    peak_rate: BitRate | None = Field(
        default=None, description="rate of each flow at the highest value of the played part"
    )
    mean_rate: BitRate | None = Field(default=None, description="mean rate of each flow over the played part")
    start_hour: float | None = Field(
        default=None, ge=0, description="where in the trace the run starts, in hours (default 0)"
    )


class BackhaulTelecomItalia(_BackhaulActivity):
    """Activity of squares in files of Telecom Italia's format; sped up by time_compression."""

    kind: Literal["telecom_italia"]
    file: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="path beside the scenario file, or traces:NAME for a file that TwinBed brings; or a list of these"
    )
    column: str | None = Field(default=None, description="column of the file (default internet)")


class BackhaulTelecomItaliaSynthetic(_BackhaulActivity):
    """Made-up activity with the published statistics of Telecom Italia's data; seeded, sped up likewise."""

    kind: Literal["telecom_italia_synthetic"]
    first_day: str | None = Field(default=None, description="first day, for the weekend factor (default 2013-11-04)")
    days: int | None = Field(default=None, ge=1, le=366, description="length in days (default 1)")


AnyBackhaulProfile = Annotated[
    BackhaulConstant | BackhaulRandom | BackhaulTelecomItalia | BackhaulTelecomItaliaSynthetic,
    Field(discriminator="kind"),
]


class BackhaulTraffic(Strict):
    """What the sources of backhaul flows send, in place of the demand that the topology gives them."""

    kind: Literal["backhaul"] = Field(description="tells it from the traffic of UEs")
    name: Name = Field(description="name of this entry, and of its random stream")
    flows: Annotated[tuple[str, ...], BeforeValidator(_read_list)] | None = Field(
        default=None, description="names of backhaul flows; all of them when left out"
    )
    profile: AnyBackhaulProfile = Field(description="their rates over time")
    start: Duration = Field(default=0.0, description="when the traffic begins")
    stop: PositiveDuration | None = Field(default=None, description="when it ends (default the end of the run)")


def _traffic_form(given: object) -> str:
    if isinstance(given, dict):
        return "backhaul" if "kind" in given else "users"
    return "backhaul" if isinstance(given, BackhaulTraffic) else "users"


AnyTraffic = Annotated[
    Annotated[TrafficEntry, Tag("users")] | Annotated[BackhaulTraffic, Tag("backhaul")],
    Discriminator(_traffic_form),
]

# --- controllers, events, assertions ------------------------------------------------------------


class ControllerEntry(Strict):
    """A controller that runs beside the network."""

    use: str = Field(description="registered name (twin list controllers)")
    name: Name | None = Field(default=None, description="name of this one in the KPIs (default: the registered name)")
    interval: PositiveDuration = Field(default=5.0, description="time between two decisions")
    scope: Annotated[tuple[str, ...], BeforeValidator(_read_list)] | None = Field(
        default=None,
        description="entities that it may act on, e.g. [slice:embb, node:control]; default everything",
    )
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of the controller")
    time_limit: PositiveDuration | None = Field(
        default=None, description="longest time of one decision (default the interval, at least 1s)"
    )


class TimedEntry(Strict):
    """Keys of every event."""

    at: Duration = Field(description="time since the start")
    label: str | None = Field(default=None, description="text for the report")


class LinkEvent(TimedEntry):
    """Cut or mend a link."""

    link: str = Field(description="a-b, the two ends")
    do: Literal["down", "up"] = Field(description="cut or mend the link")
    for_: PositiveDuration | None = Field(default=None, alias="for", description="undo it after this time")


class NodeEvent(TimedEntry):
    """Kill or restart a node."""

    node: str = Field(description="name of the node")
    do: Literal["kill", "restart"] = Field(description="kill its container or start it again")
    for_: PositiveDuration | None = Field(default=None, alias="for", description="undo it after this time")


class UeEvent(TimedEntry):
    """Attach or detach one UE (group.1) or all of a group (group)."""

    ue: str = Field(description="one UE (phones.1) or all of a group (phones)")
    do: Literal["attach", "detach"] = Field(description="attach or detach")
    for_: PositiveDuration | None = Field(default=None, alias="for", description="undo it after this time")


class DemandEvent(TimedEntry):
    """Multiply the demand of a slice: a spike when ``for`` is given."""

    slice: str = Field(description="name of the slice")
    demand_factor: float = Field(description="1 is the demand of the traffic entries")
    for_: PositiveDuration | None = Field(default=None, alias="for", description="back to 1 after this time")


class SlaEvent(TimedEntry):
    """Change promises of a slice."""

    slice: str = Field(description="name of the slice")
    sla: SlaEntry = Field(description="the promises that change")


class KnobEvent(TimedEntry):
    """Set any knob (``twin list knobs``)."""

    entity: str = Field(description="e.g. slice:embb, node:control, link:s1-s2, ue:phones.1, task:edge.1")
    knob: str = Field(description="name of the knob")
    value: float | int | str = Field(description="its new value, in the unit of the knob")

    @field_validator("value", mode="before")
    @classmethod
    def _plain(cls, given: object, info: ValidationInfo) -> object:
        """A list or a truth value is none of what this knob allows; numbers and text are compared with it later."""
        knob = KNOBS.get(info.data.get("knob", ""))
        if knob is not None and (isinstance(given, bool) or not isinstance(given, int | float | str)):
            raise PydanticCustomError("knob_value", "{allowed}", {"allowed": knob.allowed})
        return given


def _event_form(given: object) -> str | None:
    keys = given if isinstance(given, dict) else vars(given) if isinstance(given, TimedEntry) else {}
    for key in ("entity", "link", "node", "ue"):
        if key in keys:
            return key
    if "slice" in keys:
        return "sla" if "sla" in keys else "demand"
    return None


AnyEvent = Annotated[
    Annotated[LinkEvent, Tag("link")]
    | Annotated[NodeEvent, Tag("node")]
    | Annotated[UeEvent, Tag("ue")]
    | Annotated[DemandEvent, Tag("demand")]
    | Annotated[SlaEvent, Tag("sla")]
    | Annotated[KnobEvent, Tag("entity")],
    Discriminator(
        _event_form,
        custom_error_type="event_form",
        custom_error_message="an event needs one of: link, node, ue, slice, entity",
    ),
]

Fidelity = Literal["flow", "packet", "emulation"]


class SdnEntry(Strict):
    """Who controls the switches."""

    app: str = Field(
        min_length=1,
        description="an OpenFlow application for os-ken or Ryu that controls all switches in emulation, instead of "
        "TwinBed's own rules: a Python file, relative to the scenario, or package.module",
    )


class ScenarioFile(Strict):
    """A scenario: one 5G network, what happens in it, and what is expected of it."""

    name: Name = Field(description="short name, also of the topology")
    description: str = Field(default="", description="one or two sentences")
    topology: TopologyEntry = Field(description="nodes and links")
    slicing: bool = Field(
        default=True, description="false: the slices are only labels and share one pool of everything"
    )
    slices: dict[Name, SliceEntry] = Field(default_factory=dict, description="name -> slice")
    traffic: Annotated[tuple[AnyTraffic, ...], BeforeValidator(_read_list)] = Field(
        default=(), description="who sends what to whom"
    )
    sdn: SdnEntry | None = Field(default=None, description="who controls the switches; left out: TwinBed")
    controllers: Annotated[tuple[ControllerEntry, ...], BeforeValidator(_read_list)] = Field(
        default=(), description="what scales and steers while the network runs; several may run at once"
    )
    events: Annotated[tuple[AnyEvent, ...], BeforeValidator(_read_list)] = Field(default=(), description="the timeline")
    assert_: Annotated[tuple[str, ...], BeforeValidator(_read_list)] = Field(
        default=(), alias="assert", description="what must hold, e.g. slice:urllc delay_dl_p95_s <= 20ms over last 20s"
    )
    seed: int = Field(default=1, ge=0, le=2**32 - 1, description="seed of everything random")
    duration: RunDuration = Field(default=60.0, description="length of the run")
    interval: Interval = Field(default=1.0, description="time between two KPI samples")
    time_compression: float = Field(
        default=1.0, gt=0, le=1e6, description="traces play this much faster; 1440: a day a minute"
    )
    fidelity: Fidelity = Field(default="emulation", description="default fidelity; --fidelity overrides it")
