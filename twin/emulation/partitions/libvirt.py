"""Partitions as libvirt domains: Table 1 of NANCY D3.4 §3.2.2 the other way round, for ``vmand --libvirt``.

libvirt starts and stops the guests; ``vmand`` keeps what libvirt has not (admission, device tree, network, isolation,
the VNF runtime) and follows what ``virsh`` does. Both talk to the same QEMU, each over a QMP socket of its own: what
``virsh suspend`` stops is SUSPENDED here, and what ``vmanctl suspend`` stops is "paused" there.
A domain belongs to the vmand that its metadata names.
"""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twin.emulation.partitions.machine import CHANNEL_NAME, PROGRAM, Hardware, Place
from twin.emulation.partitions.protocol import RequestError

NAMESPACE = "https://twinbed/partition/1"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_PACKAGES = "libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu"
_PID_FILES = Path("/run/libvirt/qemu")


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain of one vmand as libvirt has it; ``whole``: with everything that vmand adds."""

    name: str
    uuid: str
    active: bool
    cores: int
    memory_mib: int
    secure: bool
    whole: bool


class Libvirt:
    """One libvirt connection, by ``virsh``."""

    def __init__(self, uri: str, daemon: str) -> None:
        self.uri = uri
        self.daemon = daemon

    def check(self) -> None:
        """RequestError EIO when libvirt is not there, saying what is missing."""
        if not shutil.which("virsh"):
            raise RequestError(
                "EIO", f"libvirt: virsh not found; apt-get install {_PACKAGES}, or start vmand without --libvirt"
            )
        self._virsh("list", "--name")

    def domains(self) -> list[Domain]:
        """The domains of this vmand."""
        names = [line for line in self._virsh("list", "--all", "--name").splitlines() if line]
        active = set(self._virsh("list", "--name").splitlines())
        found = []
        for name in names:
            try:
                tree = ET.fromstring(self._virsh("dumpxml", name))
            except RequestError:  # undefined since
                continue
            mark = tree.find(f"metadata/{{{NAMESPACE}}}partition")
            if mark is None or mark.get("daemon") != self.daemon:
                continue
            memory_kib = int(tree.findtext("memory", "0"))
            whole = tree.find(f"{{{_QEMU}}}commandline") is not None
            cores, secure = int(tree.findtext("vcpu", "1")), mark.get("secure") == "true"
            uuid = tree.findtext("uuid", "")
            found.append(Domain(name, uuid, name in active, cores, memory_kib // 1024, secure, whole))
        return found

    def define(self, xml: str) -> None:
        """Make or replace a domain's definition."""
        self._virsh("define", "/dev/stdin", text=xml)

    def start(self, name: str) -> int:
        """Start a defined domain; the pid of its QEMU."""
        self._virsh("start", name)
        return self.pid(name)

    def pid(self, name: str) -> int:
        """The pid of a running domain's QEMU."""
        try:
            return int((_PID_FILES / f"{name}.pid").read_text(encoding="ascii"))
        except (OSError, ValueError):
            raise RequestError("EIO", f"libvirt domain {name}: not running") from None

    def destroy(self, name: str) -> None:
        """End a running domain; one that was only created is gone with it."""
        self._virsh("destroy", name)

    def undefine(self, name: str) -> None:
        """Remove a domain that does not run."""
        self._virsh("undefine", name)

    def _virsh(self, *words: str, text: str | None = None) -> str:
        command = ["virsh", "--quiet", "--connect", self.uri, *words]
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            raise RequestError("EIO", f"libvirt: virsh {words[0]}: no answer from {self.uri}") from None
        if done.returncode:
            raise RequestError("EIO", f"libvirt: virsh {words[0]}: {' '.join(done.stderr.split())}")
        return done.stdout


def domain_xml(name: str, uuid: str | None, daemon: str, *, secure: bool, hardware: Hardware, place: Place) -> str:
    """A partition as a domain. QEMU runs as root, so that libvirt need not take the image's files over."""
    ET.register_namespace("twinbed", NAMESPACE)
    ET.register_namespace("qemu", _QEMU)
    domain = ET.Element("domain", type="qemu")
    _add(domain, "name", name)
    if uuid is not None:
        _add(domain, "uuid", uuid)
    _add(domain, "memory", str(hardware.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(hardware.cores))
    mark = {"daemon": daemon, "secure": "true" if secure else "false"}
    ET.SubElement(_add(domain, "metadata"), f"{{{NAMESPACE}}}partition", mark)
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="aarch64", machine="virt")
    _add(system, "kernel", str(hardware.kernel))
    if hardware.initramfs is not None:
        _add(system, "initrd", str(hardware.initramfs))
    _add(system, "cmdline", hardware.cmdline)
    _add(system, "dtb", str(hardware.dtb))
    _add(_add(domain, "features"), "gic", version="2")
    _add(_add(domain, "cpu", mode="custom", match="exact"), "model", "cortex-a53")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")
    devices = _add(domain, "devices")
    _add(devices, "emulator", shutil.which(PROGRAM) or PROGRAM)
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "memballoon", model="none")
    interface = _add(devices, "interface", type="ethernet")
    _add(interface, "mac", address=hardware.mac)
    _add(interface, "target", dev=hardware.tap)
    _add(interface, "model", type="virtio")
    _add(interface, "address", type="virtio-mmio")
    _add(_add(domain, "seclabel", type="static", model="dac", relabel="no"), "label", "+0:+0")
    extra = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    for word in _additions(hardware, place):
        ET.SubElement(extra, f"{{{_QEMU}}}arg", value=word)
    return ET.tostring(domain, encoding="unicode")


def _additions(hardware: Hardware, place: Place) -> Sequence[str]:
    line = ["-qmp", f"unix:{place.qmp},server=on,wait=off"]
    line += ["-chardev", "ringbuf,id=console,size=16384", "-serial", "chardev:console"]
    line += ["-chardev", f"socket,id=channel,path={place.channel},server=on,wait=off"]
    line += ["-device", "virtio-serial-device,id=partition-serial"]
    line += ["-device", f"virtserialport,bus=partition-serial.0,chardev=channel,name={CHANNEL_NAME}"]
    if hardware.disk is not None:
        line += ["-drive", f"file={hardware.disk},format=raw,if=none,id=disk,snapshot=on"]
        line += ["-device", "virtio-blk-device,drive=disk"]
    return line


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text
    return child
