"""Rows that a switch has made by itself, judged as what a DHCP server grants is: which become assignments.

    of a MAC that no NIC has                        rejected
    of a NIC at another port, or at another switch  rejected: a row never moves a VM
    where its VM is delivered, at its port          the NIC has the address, from the switch (`Origin.SWITCH`)
    the same, already so                            renewed, if it ends at another time
    what the NIC was given, by DHCP or a manager    left as it is: that is known better
    an address of another, a gateway, a server      rejected, by the network's own rules (`constraints`)
    in the report before, and gone from this one    ended, if its VM is there still

A row that goes from the switch which a VM has left ends nothing: the VM has the address where it is.
"""

from collections.abc import Collection
from dataclasses import dataclass

from retinue.core.model import IP, Assignment, BindingKind, Mac, Network, Origin

SAME_END = 1.0
"""Seconds: two reports of one row round its end otherwise."""


@dataclass(frozen=True, slots=True)
class SwitchRow:
    """`end`: seconds since the epoch; None: no end is known."""

    mac: Mac
    ip: IP
    port: str
    end: float | None


Holding = tuple[Mac, IP]


def judged(net: Network, switch: str, row: SwitchRow) -> Assignment | str | None:
    """The assignment that a row makes; or why it makes none; None: it says nothing new.

    Whether somebody else has the address is found when the assignment is made.
    """
    vm = net.vm_of_mac(row.mac)
    nic = None if vm is None else vm.nic_with(row.mac)
    if vm is None or nic is None:
        return f"no VM has MAC {row.mac}"
    if net.servers[vm.server].edge != switch:
        return f"VM {vm.id} is at switch {net.servers[vm.server].edge}, not at {switch}"
    port = net.port_of(nic, switch)
    if port is None or row.port not in (port.name, str(port.number)):
        has = "no port" if port is None else f"port {port.name or port.number}"
        return f"NIC {nic.port_id} has {has} there, not {row.port}"
    vrf = net.vrf_of(nic)
    if net.subnet_of(row.ip, vrf) is None:
        return f"{row.ip} is in no subnet"
    made = Assignment(row.ip, row.mac, vm.id, BindingKind.DYNAMIC, Origin.SWITCH, row.end, vrf=vrf)
    held = net.holder(row.ip, vrf)
    if held is None or (held.vm, held.mac) != (vm.id, row.mac):
        return made
    return made if held.origin is Origin.SWITCH and _differ(held.lease_end, row.end) else None


def _differ(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > SAME_END


def ended(net: Network, switch: str, gone: Collection[Holding]) -> list[Assignment]:
    """What a switch had made, and has no more."""
    found = []
    for mac, ip in sorted(gone, key=str):
        vm = net.vm_of_mac(mac)
        held = None if vm is None else net.holder(ip, net.vrf_of_mac(mac))
        if vm is None or held is None or (held.mac, held.origin) != (mac, Origin.SWITCH):
            continue
        if net.servers[vm.server].edge == switch and not vm.also:
            found.append(held)
    return found
