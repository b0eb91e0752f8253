"""A VM's network interface: the owner of its MAC address, of its port and of the addresses it uses.

A switch knows the port of a NIC by the `iface-id` in its database; DHCP servers and neighbours know the NIC
by its MAC. `Network.assignments_of` has every address that is assigned to a NIC at the moment.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from ipaddress import ip_network
from zlib import crc32

from retinue.core.model.addresses import IP, Mac, ModelError, Prefix
from retinue.core.text import quoted

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""As libvirt writes it."""
TURNS = 300
"""Among so many turns NICs are spread for what comes to each in its turn (see `turn_of`)."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """An address that a NIC may take when it announces it, and others that are allowed it may take from it.

    So do routers of VRRP and keepalived: one has the address at a time. It is an `Assignment` of that one.
    """

    ip: IP
    mac: Mac = ""
    """As whose the NIC speaks for it: a virtual router's. "": its own."""


@dataclass(frozen=True, slots=True)
class NIC:
    """One network interface of a VM."""

    mac: Mac
    port_id: str
    """`iface-id` of the NIC's port, on whichever edge switch it is plugged in: the VM's id, of its first."""
    addresses: tuple[IP, ...] = ()
    """Static addresses, given by the manager; empty when the VM asks by DHCP."""
    vnet: str = ""
    """The vnet it is in; "": that of the fabric's subnets."""
    enabled: bool = True
    """False: the operator has shut the port, wherever the VM is."""
    slot: int = 1
    """Where the guest finds it in its machine: the same on every server, and as long as the VM has it."""
    rate: int = 0
    """Kilobits a second that the VM may send by it, and as many that it may be sent; 0: any."""
    allowed: tuple[Allowed, ...] = ()
    trusted: bool = False
    """True: the VM is a DHCP server, or a relay before one, and its server messages are believed."""
    trunk: str = ""
    """The port id of the NIC by whose port it goes, with its vnet's VLAN as tag; "": it has one itself."""
    prefixes: tuple[Prefix, ...] = ()
    """Routed to it: what is sent to an address of one comes to this NIC, and it may send from all of them."""
    mac_changes: bool = False
    """True: the guest may give it another MAC; what is seen at its port takes the place of `mac`."""
    initial_mac: Mac = ""
    """The MAC with which its port was made, where it has had another one since; "": `mac`."""
    mirror: str = ""
    """The name of the port, at whichever edge the VM is, that takes a copy of its traffic; "": none."""
    anycast: tuple[IP, ...] = ()
    """Addresses of services that it has together with other NICs: what is sent to one comes to the nearest.
    """
    load: int = 0
    """What has been told of its load: of those that are equally near the least loaded is sent to."""

    @property
    def plugged_as(self) -> str:
        """`iface-id` of the port where its frames come and go."""
        return self.trunk or self.port_id

    def with_mac(self, mac: Mac) -> "NIC":
        """The same NIC under another MAC, as its port stands."""
        initial = self.initial_mac or self.mac
        return replace(self, mac=mac, initial_mac="" if mac == initial else initial)

    def may_take(self, ip: IP) -> Allowed | None:
        """What it is allowed of this address."""
        return next((one for one in self.allowed if one.ip == ip), None)

    def speaks_as(self, ip: IP) -> Mac:
        """The MAC by which it uses an address that it holds."""
        allowed = self.may_take(ip)
        return self.mac if allowed is None or not allowed.mac else allowed.mac


def led_to_nic(nic: NIC) -> tuple[Prefix, ...]:
    """All that the fabric leads to a NIC beside addresses of subnets: prefixes, and anycast addresses."""
    return (*nic.prefixes, *map(ip_network, nic.anycast))


_MIRROR_PORT = re.compile(r"mirror[A-Za-z0-9._-]{0,9}")
"""An interface of Linux has up to 15 characters."""


def is_mirror_port(name: str) -> bool:
    """By such a name a port takes copies, and is no VM's: no copy goes by mistake to an uplink or a VM."""
    return _MIRROR_PORT.fullmatch(name) is not None


def mirror_port(name: str) -> str:
    """A name for NIC.mirror, or "". Raises ModelError."""
    if name and not is_mirror_port(name):
        raise ModelError(
            f"{quoted(name)} takes no copies: such a port is called mirror, with up to 9 letters, digits and "
            ". _ - after that, such as mirror0"
        )
    return name


def turn_of(port_id: str) -> int:
    """When it is a NIC's turn, of TURNS, in what comes to all of them one after the other: spread evenly."""
    return crc32(port_id.encode()) % TURNS


def port_id_of(vm: str, number: int) -> str:
    """The port id of a VM's NIC to which nobody gives one; the first NIC has number 1.

    Where a VM is called by a UUID, so are its ports: libvirt marks ports with nothing else.
    """
    if number == 1:
        return vm
    return _named_uuid(vm, str(number)) if _UUID.fullmatch(vm) else f"{vm}-{number}"


def _named_uuid(namespace: str, name: str) -> str:
    """RFC 4122, 4.3, version 5."""
    digest = hashlib.sha1(bytes.fromhex(namespace.replace("-", "")) + name.encode(), usedforsecurity=False)
    value = bytearray(digest.digest()[:16])
    value[6] = value[6] & 0x0F | 0x50
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
