"""The XML of a libvirt domain: written for a VM of ours, read for anybody's.

What ties a VM to the network is the `interfaceid` of its interface: libvirt writes it on the port, as
`iface-id`, on whichever server it plugs the VM in. It is a UUID, and so is the id of every VM that libvirt
runs.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from retinue.core.limits import MOST_NICS
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import NICSpec, VMSpec

SPARE_PLACES = 3
"""NICs that can be put in while the VM runs: each needs a port of its own, which is there from the start."""
HOST_OFFLOADS = ("csum", "gso", "tso4", "tso6", "ecn", "ufo")
GUEST_OFFLOADS = ("csum", "tso4", "tso6", "ecn", "ufo")
"""Through a switch in user space a packet whose checksum was left to the network card is dropped."""


@dataclass(frozen=True, slots=True)
class Consoles:
    """Where libvirt keeps the two serial ports of a VM; on each server the same paths."""

    log: Path
    """What the guest writes to its console."""
    shell: Path
    """Socket of the second serial port."""


def interface_id(vm: str) -> str:
    """A VM's id as libvirt takes it for an interface. Raises HypervisorError when it is no UUID."""
    try:
        canonical = str(uuid.UUID(vm))
    except ValueError:
        canonical = ""
    if not vm or canonical != vm:
        raise HypervisorError(
            f"VM {vm}: libvirt marks a port with a UUID, so a VM it runs needs one as its id "
            f"(lower case, with hyphens, such as {uuid.uuid5(uuid.NAMESPACE_OID, vm)})"
        )
    return canonical


def domain_xml(
    spec: VMSpec,
    consoles: Consoles,
    *,
    bridge: str = "br0",
    kind: str = "qemu",
    emulator: str = "/usr/bin/qemu-system-x86_64",
) -> str:
    """A domain with its interfaces and two serial ports, booted from its kernel. `kind`: "qemu", or "kvm".

    libvirt makes each tap, named as its NIC says, and its port in the bridge. Raises HypervisorError.
    """
    id = interface_id(spec.id)
    domain = ElementTree.Element("domain", type=kind)
    _add(domain, "name", id)
    _add(domain, "uuid", id)
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", "1")
    os = _add(domain, "os")
    _add(os, "type", "hvm", arch="x86_64", machine="q35")
    _add(os, "kernel", str(spec.kernel))
    _add(os, "initrd", str(spec.initrd))
    _add(os, "cmdline", spec.append)
    _add(_add(domain, "features"), "acpi")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "restart" if spec.restart_on_crash else "destroy")
    devices = _add(domain, "devices")
    _add(devices, "emulator", emulator)
    # By number: one without would be taken for the first, which is the machine's own (pcie-root).
    for number in range(1, 1 + min(MOST_NICS, len(spec.nics) + SPARE_PLACES)):
        _add(devices, "controller", type="pci", model="pcie-root-port", index=str(number))
    for nic in spec.nics:
        devices.append(interface_element(nic, bridge))
    log = _add(devices, "serial", type="file")
    _add(log, "source", path=str(consoles.log), append="on")
    _add(log, "target", port="0")
    shell = _add(devices, "serial", type="unix")
    _add(shell, "source", mode="bind", path=str(consoles.shell))
    _add(shell, "target", port="1")
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "memballoon", model="none")
    return ElementTree.tostring(domain, encoding="unicode")


def interface_element(nic: NICSpec, bridge: str) -> ElementTree.Element:
    """One interface of a domain. Raises HypervisorError."""
    interface = ElementTree.Element("interface", type="bridge")
    _add(interface, "mac", address=nic.mac)
    _add(interface, "source", bridge=bridge)
    id = interface_id(nic.id)
    _add(_add(interface, "virtualport", type="openvswitch"), "parameters", interfaceid=id)
    _add(interface, "target", dev=nic.port)
    _add(interface, "mtu", size=str(nic.mtu))
    _add(interface, "model", type="virtio")
    _add(interface, "rom", enabled="no")
    driver = _add(interface, "driver")
    _add(driver, "host", **dict.fromkeys(HOST_OFFLOADS, "off"))
    _add(driver, "guest", **dict.fromkeys(GUEST_OFFLOADS, "off"))
    return interface


def _add(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag, attributes)
    child.text = text or None
    return child


def interface_ids(xml: str) -> tuple[str, ...]:
    """The ids of a domain's interfaces on Open vSwitch; none when the XML is not libvirt's."""
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    found = domain.iterfind("devices/interface/virtualport[@type='openvswitch']/parameters")
    return tuple(id for parameters in found if (id := parameters.get("interfaceid")))


def vm_ids(xml: str) -> tuple[str, ...]:
    """The ids of the VMs that a domain is: of a domain that is called by the id of an interface, as ours are,
    that one, whose other interfaces are further NICs of it; of any other all of its interfaces'."""
    ids = interface_ids(xml)
    if len(ids) < 2:
        return ids
    uuid = ElementTree.fromstring(xml).findtext("uuid", "")
    return (uuid,) if uuid in ids else ids


def interfaces_with_link(xml: str, state: str) -> tuple[str, ...]:
    """A running domain's interfaces, each as libvirt takes it to set its link "up" or "down"."""
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    found = domain.findall("devices/interface")
    for interface in found:
        for link in interface.findall("link"):
            interface.remove(link)
        _add(interface, "link", state=state)
    return tuple(ElementTree.tostring(interface, encoding="unicode") for interface in found)


def taps(xml: str) -> tuple[str, ...]:
    """Names of the taps of a running domain."""
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    return tuple(dev for target in domain.iterfind("devices/interface/target") if (dev := target.get("dev")))
