"""The XML of a libvirt domain: written for a VM of ours, read for anybody's.

What ties a VM to the network is the `interfaceid` of its interface: libvirt writes it on the port, as
`iface-id`, on whichever server it plugs the VM in. It is a UUID, and so is the id of every VM that libvirt
runs.
"""

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from retinue.core.limits import MOST_ADDRESSES, MOST_NICS
from retinue.hypervisor.errors import HypervisorError
from retinue.hypervisor.interface import NICSpec, VMSpec
from retinue.hypervisor.libvirt.disks_xml import disk_element

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
"""Of what libvirt hands to QEMU as it is (its drvqemu page)."""
ElementTree.register_namespace("qemu", QEMU_NAMESPACE)
UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
"""Of a size. libvirt says KiB, whatever it was told."""
UNEVEN_KIB = 8
"""An emulated VM gets so much more memory than it was promised, so that it can be copied in several passes:
see `may_look_again`. libvirt's own sizes are whole MiB."""
MONITOR = "retinue-monitor"
"""What QEMU calls the one that is ours."""
EMULATED = "qemu"
"""The type of a domain without hardware support; else it is "kvm"."""
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
    monitor: Path = Path()
    """And that of a monitor of ours (`own_monitor`), where it has one."""


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
    monitor: bool = False,
    emulator: str = "/usr/bin/qemu-system-x86_64",
) -> str:
    """A domain with its disks, interfaces and two serial ports, booted from its kernel.

    `kind`: "qemu", or "kvm". `monitor`: with one of ours beside libvirt's.
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
    places = min(MOST_NICS, len(spec.nics) + SPARE_PLACES) + len(spec.disks)
    for number in range(1, 1 + places):
        _add(devices, "controller", type="pci", model="pcie-root-port", index=str(number))
    devices.extend(disk_element(disk) for disk in spec.disks)
    for nic in spec.nics:
        interface = interface_element(nic, bridge)
        _add(interface, "alias", name=_alias(nic))
        devices.append(interface)
    log = _add(devices, "serial", type="file")
    _add(log, "source", path=str(consoles.log), append="on")
    _add(log, "target", port="0")
    shell = _add(devices, "serial", type="unix")
    _add(shell, "source", mode="bind", path=str(consoles.shell))
    _add(shell, "target", port="1")
    _add(devices, "controller", type="usb", model="none")
    _add(devices, "memballoon", model="none")
    _add_no_vlan_filter(domain, spec.nics)
    words: tuple[str, ...] = ()
    if kind == EMULATED:
        words += _uneven_memory(spec.memory_mib * 1024 + UNEVEN_KIB)
    if monitor:
        words += _monitor(consoles.monitor)
    if words:
        line = _add(domain, f"{{{QEMU_NAMESPACE}}}commandline")
        for word in words:
            _add(line, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    return ElementTree.tostring(domain, encoding="unicode")


def _alias(nic: NICSpec) -> str:
    """By which libvirt and QEMU call the device of a NIC that a domain is made with, and of no other: what is
    said of it would not hold for one that is put in later, and a target has to be built like its source."""
    return f"ua-{interface_id(nic.id)}"


def _add_no_vlan_filter(domain: ElementTree.Element, nics: Sequence[NICSpec]) -> None:
    """As QEMUs of our own have it: QEMU 7.2 forgets as it migrates which VLANs a guest has asked for."""
    override = _add(domain, f"{{{QEMU_NAMESPACE}}}override")
    for nic in nics:
        device = _add(override, f"{{{QEMU_NAMESPACE}}}device", alias=_alias(nic))
        frontend = _add(device, f"{{{QEMU_NAMESPACE}}}frontend")
        _add(frontend, f"{{{QEMU_NAMESPACE}}}property", name="ctrl_vlan", type="bool", value="false")


def _uneven_memory(kib: int) -> tuple[str, ...]:
    """QEMU takes the last it is told for the machine's memory."""
    memory = f"memory-backend-ram,id=uneven.ram,size={kib}K"
    return ("-object", memory, "-machine", "memory-backend=uneven.ram", "-m", f"{kib}K")


def _monitor(path: Path) -> tuple[str, ...]:
    file = str(path).replace(",", ",,")
    where = f"socket,id={MONITOR},path={file},server=on,wait=off"
    return ("-chardev", where, "-mon", f"chardev={MONITOR},mode=control")


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


@dataclass(frozen=True, slots=True)
class Interface:
    """What a domain's XML says of an interface on Open vSwitch."""

    id: str
    """Of its port, and so of the VM that a port by itself registers."""
    mac: str
    addresses: tuple[str, ...] = ()
    """Static ones: of <ip>, and of its filter, which lets the guest use no other (nwfilter: IP, IPV6)."""


def interfaces(xml: str) -> tuple[Interface, ...]:
    """Those on Open vSwitch; of a domain that is called by the id of one, further NICs go by that VM's id."""
    ids, vms = interface_ids(xml), vm_ids(xml)
    if not ids:
        return ()
    found = []
    for interface in ElementTree.fromstring(xml).iterfind("devices/interface"):
        parameters = interface.find("virtualport[@type='openvswitch']/parameters")
        id = "" if parameters is None else parameters.get("interfaceid", "")
        mac = interface.find("mac")
        if not id or mac is None:
            continue
        given = [one.get("address", "") for one in interface.iterfind("ip")]
        given += [
            one.get("value", "")
            for one in interface.iterfind("filterref/parameter")
            if one.get("name") in ("IP", "IPV6")
        ]
        addresses = tuple(dict.fromkeys(filter(None, given)))[:MOST_ADDRESSES]
        found.append(Interface(id if id in vms else vms[0], mac.get("address", ""), addresses))
    return tuple(found)


def vm_ids(xml: str) -> tuple[str, ...]:
    """The ids of the VMs that a domain is: of a domain that is called by the id of an interface, as ours are,
    that one, whose other interfaces are further NICs of it; of any other all of its interfaces'."""
    ids = interface_ids(xml)
    if len(ids) < 2:
        return ids
    uuid = ElementTree.fromstring(xml).findtext("uuid", "")
    return (uuid,) if uuid in ids else ids


def uuids(xml: str) -> tuple[str, ...]:
    """A domain's own id, whatever its interfaces are plugged into."""
    try:
        found = ElementTree.fromstring(xml).findtext("uuid", "")
    except ElementTree.ParseError:
        return ()
    return (found,) if found else ()


def macs_at_taps(xml: str) -> tuple[tuple[str, str], ...]:
    """The MAC and the tap of each interface of a running domain, whatever it is plugged into."""
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    found = []
    for interface in domain.iterfind("devices/interface"):
        mac, target = interface.find("mac"), interface.find("target")
        if mac is not None and target is not None:
            found.append((mac.get("address", ""), target.get("dev", "")))
    return tuple(one for one in found[:MOST_NICS] if all(one))


def vlan_filters(xml: str) -> tuple[str, ...]:
    """The ids of those of a domain's interfaces whose cards filter the VLANs that the guest asks for.

    A card of virtio does where QEMU itself moves its frames, and nobody has said otherwise; with vhost, which
    libvirt takes where there is KVM, it does not.
    """
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    off = {
        device.get("alias")
        for device in domain.iterfind(f"{{{QEMU_NAMESPACE}}}override/{{{QEMU_NAMESPACE}}}device")
        for its in device.iter(f"{{{QEMU_NAMESPACE}}}property")
        if (its.get("name"), its.get("value")) == ("ctrl_vlan", "false")
    }
    found = []
    for interface in domain.iterfind("devices/interface"):
        id, model, driver, alias = (
            "" if part is None else part.get(name, "")
            for part, name in (
                (interface.find("virtualport[@type='openvswitch']/parameters"), "interfaceid"),
                (interface.find("model"), "type"),
                (interface.find("driver"), "name"),
                (interface.find("alias"), "name"),
            )
        )
        by_qemu = driver == "qemu" or (domain.get("type") == EMULATED and driver != "vhost")
        if id and model.startswith("virtio") and by_qemu and alias not in off:
            found.append(id)
    return tuple(found[:MOST_NICS])


def without_checksums(xml: str) -> tuple[str, ...]:
    """The ids of those of a domain's interfaces whose guests leave checksums to the network card: of virtio
    all do, where nobody has said otherwise."""
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    found = []
    for interface in domain.iterfind("devices/interface"):
        parameters = interface.find("virtualport[@type='openvswitch']/parameters")
        model, host = interface.find("model"), interface.find("driver/host")
        id = "" if parameters is None else parameters.get("interfaceid", "")
        virtio = model is not None and model.get("type", "").startswith("virtio")
        if id and virtio and (host is None or host.get("csum") != "off"):
            found.append(id)
    return tuple(found[:MOST_NICS])


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


def hardware(xml: str) -> tuple[str, int]:
    """A running domain's accelerator, as QEMU calls it, and its bytes of memory. Raises HypervisorError."""
    try:
        domain = ElementTree.fromstring(xml)
        words = [arg.get("value", "") for arg in domain.iterfind(f"{{{QEMU_NAMESPACE}}}commandline/*")]
        told = dict(itertools.pairwise(words)).get("-m", "")
        memory = domain.find("memory")
        if told.endswith("K") and told[:-1].isdecimal():
            size = int(told[:-1]) * 1024
        elif memory is not None:
            size = int(memory.text or "") * UNITS[memory.get("unit", "KiB")]
        else:
            raise ValueError("it has no memory")
    except (ElementTree.ParseError, ValueError, KeyError) as error:
        raise HypervisorError(f"libvirt describes a VM as we do not know it: {error}") from error
    return ("tcg" if domain.get("type") == EMULATED else "kvm"), size


def memory_of(xml: str) -> int:
    """MiB of memory of a running domain, as libvirt describes it; 0: it says nothing that we know."""
    try:
        return hardware(xml)[1] >> 20
    except HypervisorError:
        return 0


def taps_of(xml: str, vm: str) -> tuple[str, ...]:
    """Names of the taps of a running domain that are a VM's, which the domain is, or is among others."""
    ids, vms = interface_ids(xml), vm_ids(xml)
    found = []
    for interface in ElementTree.fromstring(xml).iterfind("devices/interface") if ids else ():
        parameters, target = interface.find("virtualport/parameters"), interface.find("target")
        id = "" if parameters is None else parameters.get("interfaceid", "")
        dev = None if target is None else target.get("dev")
        if id and dev and vm == (id if id in vms else vms[0]):
            found.append(dev)
    return tuple(found)


def taps(xml: str) -> tuple[str, ...]:
    """Names of the taps of a running domain."""
    try:
        domain = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return ()
    return tuple(dev for target in domain.iterfind("devices/interface/target") if (dev := target.get("dev")))
