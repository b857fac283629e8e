"""Everything in the flow model that is not derived: one place to calibrate against emulation.

"Estimate" means that nobody measured it for this model yet; ``twin compare`` shows what it costs.
"""

# Dynamics
MAX_STEP_S = 0.1  # rates are constant within a step; channel and queues follow it
SAMPLES_PER_INTERVAL = 200  # delay samples per lane and interval, spread over its steps

# Radio: TS 38.211 gives slots of 0.5 ms at 30 kHz; the MAC of the emulation runs in slots of 1 ms
SLOT_S = 1e-3
SLOTS_PER_S = 1000.0

# Transport: tail-drop queue of every shaped interface and class in the emulation
QUEUE_PACKETS = 50
ETHERNET_BYTES = 14  # what HTB counts per packet beside IP
# IPv4 20 + UDP 8 (RFC 768) + GTP-U 8 (TS 29.281 §5.1) + optional fields 4 + PDU session container 4 (TS 38.415)
N3_BYTES = 44
FORWARD_S = 50e-6  # per node on the way; estimate for userspace Open vSwitch and TUN devices

# CPU time per packet of the user plane programs in pure Python. GTP-U encapsulation over TUN: 6.5-7 us
# measured with back-to-back packets; the gNB handles a packet twice (radio and tunnel side): estimate. A
# program that is mostly idle wakes up for every packet; measured in the quickstart on emulation at about
# 500 packets/s: UPF 46 us, application 58 us, UE container (two programs) 98 us per packet in all. The
# gNB's own cost is part of its work per bit and counts only when it is the larger of the two.
UPF_PACKET_NS = 7_000.0
GNB_PACKET_NS = 14_000.0
UE_PACKET_NS = 14_000.0
APP_PACKET_NS = 7_000.0
WAKE_NS = 40_000.0
UE_PROGRAMS = 2
PROCESS_MILLICORES = 1000.0  # every program has one thread: more than one CPU does not help it

# Requests: one TCP connection each (RFC 9293): SYN, ACK, body, ACK, FIN up; SYN-ACK, ACK, body, FIN down,
# 52 bytes of headers a segment, and about 150 and 100 bytes of HTTP header (RFC 9112)
REQUEST_OVERHEAD_BYTES = 5 * 52 + 150
RESPONSE_OVERHEAD_BYTES = 4 * 52 + 100
MTU_BYTES = 1400
ROUND_TRIPS_PER_REQUEST = 2.0  # one to connect, one for request and response
REQUEST_CPU_S = 0.9e-3  # HTTP, TCP and waking up beside the declared work; measured in the quickstart
REQUEST_TIMEOUT_S = 2.0  # the client gives up

# Sessions and memory: measured in the quickstart on emulation
ATTACH_S = 4e-3
PROGRAM_BYTES = 9.5e6
SESSION_BYTES = 4096
IDLE_CONTAINER_BYTES = 0.5e6

# Partitions: emulated aarch64 guests (QEMU's TCG), measured by benchmarks/guest_constants.py and
# benchmarks/partitions.py (boot) on two cores that other programs used too: upper bounds. Work declared for a guest
# is that of its own processor; a request and a packet cost this much of the host's CPU time beside it, a part of
# which the answer waits for.
GUEST_BOOT_S = 1.6
GUEST_IDLE_CPUS = 0.008
GUEST_REQUEST_CPU_S = 4.8e-3
GUEST_ANSWER_S = 0.8e-3
GUEST_PACKET_NS = 400_000.0
GUEST_BYTES = 157e6
GUEST_OVERHEAD_MIB = 256  # what a partition's group may have beside the guest's memory
GUEST_LATENCY_S = 0.006  # in which Linux's CFS lets two threads on one processor run in turn (sched_latency_ns)
CGROUP_PERIOD_S = 0.020  # of the CPU quota of a control group of TwinBed's own
