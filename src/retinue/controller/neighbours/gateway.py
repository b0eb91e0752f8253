"""What a gateway tells the sender of a packet that it does not pass on: that its time to live ended here
(`traceroute`), or that it is larger than where it goes takes (path MTU)."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.core.model import IP, Network
from retinue.core.model.packet_sizes import mtu_to
from retinue.core.packets import Ethernet, EtherType, FrameError, parse
from retinue.core.packets.icmp import fragmentation_needed, time_exceeded
from retinue.core.packets.icmpv6 import packet_too_big
from retinue.core.packets.icmpv6 import time_exceeded as time_exceeded6
from retinue.core.packets.ipv4 import fragments, may_be_fragmented
from retinue.core.pipeline.entry import PortNo
from retinue.core.pipeline.responders.router import speaker


@dataclass(frozen=True, slots=True)
class Routed:
    """A packet that a leaf would have routed."""

    ethernet: Ethernet
    sender: IP
    destination: IP
    vrf: str

    @property
    def packet(self) -> bytes:
        return self.ethernet.payload


def read_routed(net: Network, frame: bytes) -> Routed | None:
    """None for what is too short to be a packet, or is of no VRF. Raises FrameError."""
    ethernet = parse(frame)
    packet = ethernet.payload
    vrf = net.vrf_with_tag(ethernet.vlan or 0)
    if vrf is None:
        return None
    if ethernet.ethertype == EtherType.IPV6 and len(packet) >= 40:
        return Routed(ethernet, IPv6Address(packet[8:24]), IPv6Address(packet[24:40]), vrf)
    if ethernet.ethertype == EtherType.IPV4 and len(packet) >= 20:
        return Routed(ethernet, IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), vrf)
    return None


def send_on(context: Context, switch: str, about: Ethernet, packets: Iterable[bytes]) -> None:
    """Through the leaf's tables, as any packet of the gateway's, in the VRF of what it is about."""
    mac = context.net.gateway_mac
    for packet in packets:
        frame = Ethernet(mac, mac, about.ethertype, packet, about.vlan)
        context.send_frame(switch, PortNo.TABLE, frame.build())


class Gateway:
    """Speaks for the subnets' gateways, which all leaves are.

    What it says goes through the leaf's tables like any packet of the gateway's, to where it has to go.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def expired(self, switch: str, port: int, frame: bytes) -> None:
        """A packet whose time to live ends at this leaf: its sender hears so from its own gateway."""
        try:
            routed = read_routed(self._context.net, frame)
            answer = None if routed is None else self._time_exceeded(routed)
        except FrameError as error:
            self._context.reject_frame("IP", f"{switch} port {port}", error)
            return
        if routed is None or answer is None:
            self._context.counters[Count.EXPIRED_UNANSWERED] += 1
            return
        self._context.counters[Count.EXPIRED_ANSWERED] += 1
        send_on(self._context, switch, routed.ethernet, [answer])

    def too_big(self, switch: str, port: int, frame: bytes) -> None:
        """A packet that is larger than where it goes takes: its sender hears which size does; or, of IPv4
        where the sender allows it, it goes on in parts (RFC 1812, 4.2.2.7)."""
        counters = self._context.counters
        try:
            routed = read_routed(self._context.net, frame)
            if routed is not None and routed.sender.version == 4 and may_be_fragmented(routed.packet):
                mtu = mtu_to(self._context.net, routed.destination, routed.vrf)
                parts = fragments(routed.packet, mtu)
                counters[Count.TOO_BIG_FRAGMENTED] += 1
                send_on(self._context, switch, routed.ethernet, parts)
                return
            answer = None if routed is None else self._takes_less(routed)
        except FrameError as error:
            self._context.reject_frame("IP", f"{switch} port {port}", error)
            return
        if routed is None or answer is None:
            counters[Count.TOO_BIG_UNANSWERED] += 1
            return
        counters[Count.TOO_BIG_ANSWERED] += 1
        send_on(self._context, switch, routed.ethernet, [answer])

    def _time_exceeded(self, routed: Routed) -> bytes | None:
        """The answer; None where there is none. Raises FrameError."""
        match speaker(self._context.net, routed.sender, routed.destination, routed.vrf):
            case IPv4Address() as gateway:
                return time_exceeded(routed.packet, gateway)
            case IPv6Address() as gateway:
                return time_exceeded6(routed.packet, gateway)
            case _:
                return None

    def _takes_less(self, routed: Routed) -> bytes | None:
        """The answer; None where there is none. Raises FrameError."""
        net = self._context.net
        mtu = mtu_to(net, routed.destination, routed.vrf)
        match speaker(net, routed.sender, routed.destination, routed.vrf):
            case IPv4Address() as gateway:
                return fragmentation_needed(routed.packet, gateway, mtu)
            case IPv6Address() as gateway:
                return packet_too_big(routed.packet, gateway, mtu)
            case _:
                return None
