"""DHCPv6 as honest VMs and an honest server speak it, for tests without real ones."""

from dataclasses import replace
from ipaddress import IPv6Address

from retinue.core.model import Network
from retinue.core.model.link_local import group_mac, link_local
from retinue.core.packets.dhcp6 import (
    ALL_AGENTS_AND_SERVERS,
    DHCP6,
    MessageType6,
    Relayed6,
    dhcp6_frame,
    parse_dhcp6,
    parse_relayed6,
    parse_udp6_frame,
)
from retinue.core.packets.dhcp6_options import IA, IAAddress, Option6, Options6
from support.fabric.ipv6 import vm_local
from support.fabric.networks import GATEWAY_MAC, add_ipv6, vm_mac

SERVER_DUID = b"\0\2server"
IAID = 7
VALID, PREFERRED = 600, 400


def add_dhcp6(net: Network) -> None:
    """The VMs' subnet of IPv6 has addresses by DHCPv6."""
    add_ipv6(net)
    net.add_subnet(replace(net.subnets["blue6"], dhcp6=True))


def duid(vm: int) -> bytes:
    """Made of the VM's MAC (DUID-LL)."""
    return b"\0\3\0\1" + bytes.fromhex(vm_mac(vm).replace(":", ""))


def leased(vm: int) -> IPv6Address:
    """What the server gives to a VM."""
    return IPv6Address(f"fd00:1::1:{vm:x}")


def ia(*ips: IPv6Address, valid: int = 0, preferred: int = 0, iaid: int = IAID) -> IA:
    return IA(iaid, tuple(IAAddress(ip, preferred, valid) for ip in ips))


def asks(
    kind: MessageType6,
    vm: int = 1,
    *ips: IPv6Address,
    xid: int = 1,
    server: bytes | None = None,
    iaid: int = IAID,
    options: Options6 = (),
) -> DHCP6:
    """What a client says; to the server that it has chosen where its message names one."""
    names = (MessageType6.REQUEST, MessageType6.RENEW, MessageType6.RELEASE, MessageType6.DECLINE)
    named = (SERVER_DUID if kind in names else b"") if server is None else server
    return DHCP6(kind, xid, duid(vm), named, (ia(*ips, iaid=iaid),), options=options)


def answers(
    asked: DHCP6, *ips: IPv6Address, valid: int = VALID, preferred: int = PREFERRED, **other: object
) -> DHCP6:
    """What the server says, with these addresses."""
    kind = MessageType6.ADVERTISE if asked.type is MessageType6.SOLICIT else MessageType6.REPLY
    ias = tuple(replace(ia(*ips, valid=valid, preferred=preferred), iaid=one.iaid) for one in asked.ias)
    answer = DHCP6(kind, asked.xid, asked.client_id, SERVER_DUID, ias)
    return replace(answer, **other)  # type: ignore[arg-type]


def from_vm(
    dhcp: DHCP6, vm: int = 1, src: IPv6Address | None = None, dst: IPv6Address = ALL_AGENTS_AND_SERVERS
) -> bytes:
    """The frame a VM sends."""
    return dhcp6_frame(dhcp.build(), vm_mac(vm), group_mac(dst), src or vm_local(vm), dst, 546, 547)


def read_relayed(frame: bytes) -> tuple[Relayed6, DHCP6]:
    """What a server gets."""
    _, datagram = parse_udp6_frame(frame)
    envelope = parse_relayed6(datagram.payload)
    return envelope, parse_dhcp6(envelope.message)


def to_relay(asked: Relayed6, answer: DHCP6, server_mac: str) -> bytes:
    """The frame by which a server answers."""
    envelope = replace(asked, type=MessageType6.RELAY_REPL, message=answer.build(), options=())
    relay, own = link_local(GATEWAY_MAC), link_local(server_mac)
    return dhcp6_frame(envelope.build(), server_mac, GATEWAY_MAC, own, relay, 547, 547)


RAPID = ((int(Option6.RAPID_COMMIT), b""),)
