"""What a VM says, by ARP or neighbour discovery, about an address that its NIC is allowed: who has it then.

An address that nobody has is taken by whatever speaks for it first. One that another has is taken by an
announcement only, as who has become master of it sends: ARP about the address itself; or a neighbour
advertisement that nobody asked for, and that overrides what its receivers hold ("the Solicited Flag (S)
unset, the Override flag (O) set", RFC 5798, 6.4.1).
"""

from dataclasses import dataclass

from retinue.core.model import IP, NIC, VM, Assignment, BindingKind, Mac, Network, Origin
from retinue.core.model.link_local import UNSPECIFIED
from retinue.core.packets import ARP, ND, NeighbourAdvertisement, NeighbourSolicitation


@dataclass(frozen=True, slots=True)
class Claim:
    """A message says that its sender has an address."""

    ip: IP
    mac: Mac
    """Who has it, by the message."""
    announced: bool
    """It is said to everybody, to be heeded by those who know another holder."""


def claim_of_arp(said: ARP) -> Claim:
    return Claim(said.spa, said.sha, said.spa == said.tpa)


def claim_of_nd(sender: Mac, said: ND) -> Claim | None:
    """What a message says of the address it is about or from; None: nothing. `sender` is the frame's."""
    match said.message:
        case NeighbourAdvertisement(target=target, options=options) as told:
            mac = options.target_mac or sender
            return Claim(target, mac, told.override and not told.solicited)
        case NeighbourSolicitation(target=target) if said.src == UNSPECIFIED:
            # Who has checked that it is free uses it, and need not announce it (RFC 4862, 5.4).
            return Claim(target, sender, announced=False)
        case NeighbourSolicitation(options=options):
            return Claim(said.src, options.source_mac or sender, announced=False)
        case _:
            return None


def taken(net: Network, vm: VM, nic: NIC, sender: Mac, claim: Claim) -> Assignment | None:
    """The assignment that the message makes; None when it makes none."""
    if nic.may_take(claim.ip) is None or not sender == claim.mac == nic.speaks_as(claim.ip):
        return None
    vrf = net.vrf_of(nic)
    holder = net.holder(claim.ip, vrf)
    if holder is not None and ((holder.vm, holder.mac) == (vm.id, nic.mac) or not claim.announced):
        return None
    return Assignment(claim.ip, nic.mac, vm.id, BindingKind.ALLOWED, Origin.CONTROLLER, vrf=vrf)
