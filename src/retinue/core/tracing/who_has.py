"""What a frame says of itself, and who has an address: what the tracing of frames asks of the network."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from retinue.core.forwarding import Hop
from retinue.core.forwarding.header import read
from retinue.core.model import DEFAULT_VRF, IP, NIC, VM, Mac, PortStatus
from retinue.core.model.network import Network
from retinue.core.pipeline.entry import Field
from retinue.core.tracing.places import plugged_in, servers_at

VLAN_ID = 0x0FFF


@dataclass(frozen=True, slots=True)
class Why:
    """One sentence, and what to do so that such a frame passes; nothing where it rightly ends."""

    text: str
    advice: tuple[str, ...] = ()


# ---- what the frame says ----


def destination(frame: bytes) -> IP | None:
    return _address(frame, Field.IPV4_DST, Field.IPV6_DST) or _address(frame, Field.ARP_TPA, Field.IPV6_DST)


def source(frame: bytes) -> IP | None:
    return _address(frame, Field.IPV4_SRC, Field.IPV6_SRC) or _address(frame, Field.ARP_SPA, Field.IPV6_SRC)


def _address(frame: bytes, four: Field, six: Field) -> IP | None:
    fields = read(frame).fields
    if four in fields:
        return IPv4Address(fields[four])
    return IPv6Address(fields[six]) if six in fields else None


def vrf_of(net: Network, hop: Hop) -> str:
    """The VRF that the frame is in when it comes to this switch: by its tag, at an edge by its port."""
    vm = net.vm_at(hop.switch, hop.in_port)
    if vm is not None:
        return net.vrf_at(hop.switch, hop.in_port, src_mac(hop))
    tag = read(hop.frame).fields.get(Field.VLAN_VID, 0) & VLAN_ID
    at_router = (net.vrf_at_port(s, tag) for s in servers_at(net, hop.switch, hop.in_port) if s.subinterfaces)
    return next((vrf for vrf in at_router if vrf), None) or net.vrf_with_tag(tag) or DEFAULT_VRF


def src_mac(hop: Hop) -> Mac:
    return hop.frame[6:12].hex(":")


def dst_mac(hop: Hop) -> Mac:
    return hop.frame[:6].hex(":")


# ---- who has it ----


def shut(net: Network, vm: VM, nic: NIC, edge: str) -> Why | None:
    """Why a NIC's port lets nothing in or out, if it does not."""
    if not nic.enabled:
        return Why(
            f"the port of NIC {nic.port_id} of {vm.id} is disabled by the operator",
            (f"enable it: `retinue vm nic set {vm.id} {nic.port_id} --enable`",),
        )
    port = net.port_of(nic, edge)
    if port is None:
        return Why(
            f"NIC {nic.port_id} of {vm.id} has no port on {edge}",
            (f"start the VM, or see what it waits for: `retinue vm show {vm.id}`",),
        )
    return None


def where_it_is(net: Network, ip: IP, vrf: str) -> Why:
    """Who has an address in a VRF, and what keeps what is sent to it from coming there."""
    holder = net.holder(ip, vrf)
    if holder is not None:
        vm = net.vms[holder.vm]
        nic = vm.nic_with(holder.mac) or vm.nic
        edge = net.servers[vm.server].edge
        if net.location(vm.server) is None:
            return Why(
                f"{vm.id} has it, on {vm.server}, of which nobody knows where it is",
                (f"see `retinue server show {vm.server}`: is it cabled, does it run?",),
            )
        return shut(net, vm, nic, edge) or Why(f"{vm.id} has it, on {vm.server}, behind {edge}")
    server = net.server_of_address(ip, vrf)
    if server is not None:
        place_of = net.location(server.id)
        return Why(
            f"{server.id} has it, " + (f"at {place_of}" if place_of else "and nobody knows where it is")
        )
    elsewhere = [key for key in net.vrfs if key != vrf and net.holder(ip, key) is not None]
    if elsewhere:
        return Why(
            f"nobody has it in VRF {vrf}; in {', '.join(elsewhere)} somebody has, and nothing passes between",
            ("put both in vnets of one VRF: `retinue vm nic set VM --vnet VNET`",),
        )
    routed = net.routed_to(ip, vrf)
    if routed is not None and not routed[1]:
        return Why(f"it is an anycast address, which {', '.join(sorted(net.serving(ip)))} can be asked at")
    if routed is not None:
        return Why(f"it is of the prefix {routed[0]}, which is routed to {routed[1]}")
    subnet = net.subnet_of(ip, vrf)
    if subnet is not None:
        return Why(
            f"it is of subnet {subnet.id} ({subnet.prefix}), and nobody has it",
            (
                f"give it to a VM: `retinue vm set VM --address {ip}`",
                "`retinue binding list` shows who has what",
            ),
        )
    if vrf != DEFAULT_VRF:
        return Why(
            f"it is in no subnet of VRF {vrf}, and no router of it leads there",
            ("add a subnet there, or a way out: `retinue vrf add-router`",),
        )
    return Why(
        "it is in no subnet, and no router is known that leads to it",
        ("give a router, with its routes, in the controller's configuration",),
    )


def link_down(net: Network, switch: str, port: int) -> str:
    """What is wrong with the port a frame is handed out by: "" where nothing is known to be."""
    found = plugged_in(net, switch, port)
    if found is None:
        return ""
    at = net.port_of(found[1], switch)
    return f", whose link is {at.status}" if at is not None and at.status is not PortStatus.UP else ""
