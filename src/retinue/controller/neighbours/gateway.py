"""What a gateway tells the sender of a packet by itself: that its time to live ended here (`traceroute`)."""

from ipaddress import IPv4Address, IPv6Address

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.core.model import IP
from retinue.core.packets import Ethernet, EtherType, FrameError, parse
from retinue.core.packets.icmp import time_exceeded
from retinue.core.packets.icmpv6 import time_exceeded as time_exceeded6
from retinue.core.pipeline.entry import PortNo


class Gateway:
    """Speaks for the subnets' gateways, which all leaves are."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def expired(self, switch: str, port: int, frame: bytes) -> None:
        """A packet whose time to live ends at this leaf: its sender hears so from its own gateway.

        The answer goes through the leaf's tables like any packet of the gateway's, to where the sender is.
        """
        context = self._context
        try:
            ethernet = parse(frame)
            answer = self._time_exceeded(ethernet)
        except FrameError as error:
            context.reject_frame("IP", f"{switch} port {port}", error)
            return
        if answer is None:
            context.counters[Count.EXPIRED_UNANSWERED] += 1
            return
        context.counters[Count.EXPIRED_ANSWERED] += 1
        mac = context.net.gateway_mac
        told = Ethernet(mac, mac, ethernet.ethertype, answer, ethernet.vlan)
        context.send_frame(switch, PortNo.TABLE, told.build())

    def _time_exceeded(self, expired: Ethernet) -> bytes | None:
        """The answer of the gateway in the sender's subnet; None where it gives none. Raises FrameError."""
        packet = expired.payload
        asker: IP
        if expired.ethertype == EtherType.IPV6:
            if len(packet) < 40:
                return None
            asker = IPv6Address(packet[8:24])
        else:
            if len(packet) < 20:
                return None
            asker = IPv4Address(packet[12:16])
        net = self._context.net
        vrf = net.vrf_with_tag(expired.vlan or 0)
        subnet = None if vrf is None else net.subnet_of(asker, vrf)
        match None if subnet is None else subnet.gateway:
            case IPv4Address() as gateway:
                return time_exceeded(packet, gateway)
            case IPv6Address() as gateway:
                return time_exceeded6(packet, gateway)
            case _:
                return None
