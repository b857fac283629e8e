"""What this host can do, found by trying and leaving nothing behind: the ground of ``twin doctor``.

Needs nothing of what it looks for; on any host :func:`detect` returns a full list and never raises.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from twin.emulation import gc
from twin.emulation.deadline import sched
from twin.emulation.deadline.sched import DeadlineError, HostLacksError
from twin.emulation.deadline.tracefs import Tracefs
from twin.emulation.impairment import has_qdisc
from twin.emulation.netlink import Netlink, VethEnd, add_veth, open_tap
from twin.emulation.netns import in_new_netns
from twin.emulation.partitions.images import GuestImageError
from twin.emulation.partitions.images import load as load_guest_image

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_GIB = 1 << 30
_PRIVILEGES = ("CAP_NET_ADMIN", "CAP_SYS_ADMIN")
_SUDO = "run with sudo"
ROOT = "root"


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing a host may have. ``unlocks``: what it is good for; ``remedy``: how to get it.

    ``judged`` is False where this user may not look: it may be there, which only root can tell.
    """

    name: str
    present: bool
    detail: str
    unlocks: str
    remedy: str
    judged: bool = True


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    attempt: Callable[[], tuple[bool, str]]
    unlocks: str
    remedy: str
    needed: bool = False
    for_partitions: bool = False


def detect() -> tuple[Capability, ...]:
    """Every known capability, in a fixed order; about half a second."""
    with ThreadPoolExecutor(len(_CHECKS)) as pool:
        return tuple(pool.map(_run, _CHECKS))


def missing_for_emulation(*, partitions: bool = False) -> list[Capability]:
    """What keeps this host from running a scenario, perhaps with partitions, in emulation; empty when nothing does.

    Without privileges, ``root`` comes first, and of the rest only what is known to be absent.
    """
    needed = [check for check in _CHECKS if check.needed or (partitions and check.for_partitions)]
    with ThreadPoolExecutor(len(needed)) as pool:
        missing = [one for one in pool.map(_run, needed) if not one.present]
    privileges = [one for one in missing if one.name in _PRIVILEGES]
    if not privileges:
        return missing
    if os.geteuid() != 0:
        privileges = [Capability(ROOT, False, f"user {os.geteuid()}", "emulation", _SUDO)]
    return privileges + [one for one in missing if one.judged and one.name not in _PRIVILEGES]


def _run(check: _Check) -> Capability:
    try:
        present, detail = check.attempt()
    except Exception as error:  # noqa: BLE001 - whatever an attempt meets, the answer is "not here, because"
        present, detail = False, (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        denied = _denied(error)
    else:
        denied = False
    remedy = _SUDO if denied and os.geteuid() != 0 else check.remedy
    line = detail.splitlines()[0] if detail else ""
    return Capability(check.name, present, line, check.unlocks, remedy, judged=not denied)


def _denied(error: BaseException | None) -> bool:
    """Whether a missing permission is what an attempt met, also behind an error of our own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES):
            return True
        error = error.__context__
    return False


# --- privileges and kernel --------------------------------------------------------------------------


def _capability(number: int) -> tuple[bool, str]:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            held = bool(int(line.split()[1], 16) >> number & 1)
            return held, f"user {os.geteuid()}, " + ("held" if held else "not held")
    return False, "no CapEff in /proc/self/status"


def _net_admin() -> tuple[bool, str]:
    return _capability(_CAP_NET_ADMIN)


def _sys_admin() -> tuple[bool, str]:
    held, detail = _capability(_CAP_SYS_ADMIN)
    if held:
        in_new_netns(lambda: None)
        detail += ", network namespaces work"
    return held, detail


def _netem() -> tuple[bool, str]:
    return _qdisc("netem")


def _htb() -> tuple[bool, str]:
    return _qdisc("htb")


def _qdisc(kind: str) -> tuple[bool, str]:
    present = has_qdisc("netem" if kind == "netem" else "htb")
    return present, "in this kernel" if present else "not in this kernel"


def _veth() -> tuple[bool, str]:
    def attempt() -> None:
        with Netlink() as netlink:
            netlink.send([add_veth(VethEnd("twin0"), VethEnd("twin1"))])

    in_new_netns(attempt)
    return True, "a pair could be made"


def _tun() -> tuple[bool, str]:
    in_new_netns(lambda: os.close(open_tap("twin0")))
    return True, "/dev/net/tun"


def _cgroup() -> tuple[bool, str]:
    """A hierarchy with the cpu controller in which groups can be made."""
    mounts = [line.split()[1:4] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    version_1 = [where for where, kind, options in mounts if kind == "cgroup" and "cpu" in options.split(",")]
    version_2 = [where for where, kind, _ in mounts if kind == "cgroup2"]
    if version_1:
        return _writable(version_1[0]), f"version 1, cpu controller at {version_1[0]}"
    for where in version_2:
        controllers = (Path(where) / "cgroup.controllers").read_text(encoding="ascii").split()
        if "cpu" in controllers:
            return _writable(where), f"version 2 at {where}"
    return False, "no cpu controller is mounted"


def _writable(folder: str) -> bool:
    """Whether groups can be made in ``folder``; PermissionError where only root can tell."""
    if not os.access(folder, os.W_OK):
        if os.geteuid() != 0:
            raise PermissionError(errno.EACCES, f"{folder} is not writable for this user")
        return False
    return True


def _tracefs() -> tuple[bool, str]:
    try:
        with Tracefs.open() as tracefs:
            return (tracefs.root / "instances").is_dir(), "instances can be made"
    except DeadlineError as error:
        if os.geteuid() != 0:
            raise PermissionError(errno.EACCES, str(error)) from None
        return False, str(error)


def _deadline() -> tuple[bool, str]:
    """Ask for 0.1 of 100 ms in this thread, which ends with the check, and give it back at once."""
    try:
        code = sched.submit(0, sched.Attributes(sched.SCHED_DEADLINE, 0, 0, 0, 100_000, 100_000_000, 100_000_000))
    except HostLacksError:
        return False, f"not known for {platform.machine()}"
    if code == 0:
        sched.submit(0, sched.Attributes(sched.SCHED_OTHER, 0, 0, 0, 0, 0, 0))
        return True, "granted"
    if code == errno.EBUSY:
        return True, "there, but its bandwidth is given out at the moment"
    return False, os.strerror(code)


def _kernel() -> tuple[bool, str]:
    release = platform.release()
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    return (major, minor) >= (5, 4), release


def _kvm() -> tuple[bool, str]:
    os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    return True, "/dev/kvm"


# --- daemons ----------------------------------------------------------------------------------------


def _docker() -> tuple[bool, str]:
    status, body = gc.docker_request("GET", "/version", timeout_s=1.0)
    return (True, f"version {body['Version']}") if status == 200 else (False, f"answers {status}")


def _base_image() -> tuple[bool, str]:
    filters = "%7B%22reference%22%3A%5B%22twinbed%2Fbase%22%5D%7D"  # {"reference":["twinbed/base"]}
    status, body = gc.docker_request("GET", f"/images/json?filters={filters}", timeout_s=1.0)
    tags = [tag for image in body if status == 200 for tag in image.get("RepoTags") or []]
    return bool(tags), ", ".join(tags) or "not built yet"


def _guest_image() -> tuple[bool, str]:
    try:
        image = load_guest_image()
    except GuestImageError as error:
        return False, str(error).partition("; build")[0]
    return True, ", ".join(f"{name} {version}" for name, version in image.packages)


def _openvswitch() -> tuple[bool, str]:
    done = subprocess.run(
        ["ovs-vsctl", "--timeout=1", "--no-wait", "get", "Open_vSwitch", ".", "ovs_version", "cur_cfg"],
        capture_output=True,
        text=True,
        timeout=1.3,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ovs-vsctl ended with {done.returncode}"])[-1]
        if "Permission denied" in reason:
            raise PermissionError(errno.EACCES, reason)
        if done.returncode == -signal.SIGALRM:  # what it logs then is about signals
            reason = "its database does not answer within 1 s"
        return False, reason
    version = done.stdout.split()[0].strip('"')
    # The database may answer while the switch itself is dead.
    pid_file = Path("/var/run/openvswitch/ovs-vswitchd.pid")
    if not pid_file.exists() or not Path(f"/proc/{pid_file.read_text(encoding='ascii').strip()}").is_dir():
        return False, f"version {version}: its database answers but ovs-vswitchd does not run"
    return True, f"version {version}, {'kernel' if _has_kernel_datapath() else 'userspace'} datapath"


def _kernel_datapath() -> tuple[bool, str]:
    present = _has_kernel_datapath()
    return present, "in this kernel" if present else "not in this kernel"


def _has_kernel_datapath() -> bool:
    """Whether the generic netlink family of Open vSwitch's datapath can be found."""
    name = b"ovs_datapath\0"
    attribute = struct.pack("=HH", 4 + len(name), 2) + name + bytes(-len(name) % 4)
    body = struct.pack("=BBH", 3, 1, 0) + attribute  # CTRL_CMD_GETFAMILY
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as control:
        control.settimeout(1.0)
        control.send(struct.pack("=IHHII", 16 + len(body), 16, 1, 1, 0) + body)
        answer = control.recv(4096)
    return bool(struct.unpack_from("=H", answer, 4)[0] != 2)  # NLMSG_ERROR


# --- programs and modules -----------------------------------------------------------------------------


def _program(*names: str) -> Callable[[], tuple[bool, str]]:
    def attempt() -> tuple[bool, str]:
        found = next((path for path in map(shutil.which, names) if path), None)
        return found is not None, found or f"no {' or '.join(names)} in PATH"

    return attempt


def _mininet() -> tuple[bool, str]:
    program = shutil.which("mnexec")
    if importlib.util.find_spec("mininet") is None:
        return False, "no Python module mininet for this interpreter"
    return program is not None, program or "no mnexec in PATH"


def _os_ken() -> tuple[bool, str]:
    try:
        return True, f"version {metadata.version('os-ken')}"
    except metadata.PackageNotFoundError:
        return False, "not installed"


def _ns3() -> tuple[bool, str]:
    if importlib.util.find_spec("ns") is not None:
        return True, "Python module ns"
    found = shutil.which("ns3")
    return found is not None, found or "neither the Python module ns nor the program ns3"


def _torch() -> tuple[bool, str]:
    present = importlib.util.find_spec("torch") is not None
    return present, "installed" if present else "not installed"


# --- room ---------------------------------------------------------------------------------------------


def _disk() -> tuple[bool, str]:
    free = shutil.disk_usage(Path.cwd()).free
    return free >= 2 * _GIB, f"{free / _GIB:.1f} GiB free at {Path.cwd()}"


def _memory() -> tuple[bool, str]:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            return free >= _GIB, f"{free / _GIB:.1f} GiB available"
    return False, "no MemAvailable in /proc/meminfo"


def _cores() -> tuple[bool, str]:
    cores = len(os.sched_getaffinity(0))
    return cores >= 2, f"{cores} usable"


_CHECKS = (
    _Check("CAP_NET_ADMIN", _net_admin, "emulation: links, shaping", _SUDO, needed=True),
    _Check("CAP_SYS_ADMIN", _sys_admin, "emulation: namespaces, limits", _SUDO, needed=True),
    _Check("docker", _docker, "emulation: containers", "apt install docker.io; start dockerd", needed=True),
    _Check("base-image", _base_image, "emulation: nodes without an image of their own", "make setup"),
    _Check("openvswitch", _openvswitch, "emulation: switches", "apt install openvswitch-switch; start it", needed=True),
    _Check(
        "openvswitch-kernel-datapath",
        _kernel_datapath,
        "faster switches; without it the userspace datapath is used",
        "a kernel with CONFIG_OPENVSWITCH",
    ),
    _Check("mininet", _mininet, "emulation: nodes and switches", "apt install mininet; make setup", needed=True),
    _Check("os-ken", _os_ken, "emulation: IAB backhaul, SDN applications of your own", "make setup"),
    _Check("cgroup-cpu", _cgroup, "emulation: CPU limits", "mount cgroups with the cpu controller", needed=True),
    _Check("veth", _veth, "emulation: links", "a kernel with CONFIG_VETH", needed=True),
    _Check("tun", _tun, "emulation: UEs, links by relay", "a kernel with CONFIG_TUN and /dev/net/tun", needed=True),
    _Check("htb", _htb, "emulation: bandwidth per link and slice", "a kernel with CONFIG_NET_SCH_HTB", needed=True),
    _Check(
        "netem",
        _netem,
        "delay, jitter and loss in the kernel; without it TwinBed's own relay is used",
        "a kernel with CONFIG_NET_SCH_NETEM (modprobe sch_netem)",
    ),
    _Check("kernel", _kernel, "emulation on a kernel that is tested: 5.4 or newer", "a newer kernel"),
    _Check("tracefs", _tracefs, "twin period, response times", "root, a kernel with CONFIG_FTRACE"),
    _Check("sched-deadline", _deadline, "CPU budgets of partitions", "root, no cpuset, kernel.sched_rt_runtime_us set"),
    _Check("kvm", _kvm, "guests of this host's architecture at full speed", "a host with virtualisation enabled"),
    _Check(
        "qemu-aarch64",
        _program("qemu-system-aarch64"),
        "partitions",
        "apt install qemu-system-arm",
        for_partitions=True,
    ),
    _Check("guest-image", _guest_image, "partitions", "make images", for_partitions=True),
    _Check("tshark", _program("tshark"), "decoding captures of N3", "apt install tshark"),
    _Check(
        "chromium", _program("chromium", "chromium-browser", "google-chrome"), "tests of pages", "apt install chromium"
    ),
    _Check("ns3", _ns3, "packet fidelity", "pip install ns3"),
    _Check("torch", _torch, "learning controllers", "pip install torch"),
    _Check("disk", _disk, "room for images and runs: 2 GiB", "free disk space"),
    _Check("memory", _memory, "room for containers: 1 GiB", "free memory"),
    _Check("cores", _cores, "emulation that keeps up: 2 cores", "a host with more cores"),
)
