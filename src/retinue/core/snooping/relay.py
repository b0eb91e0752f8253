"""The relay between a VM and a DHCP server that its subnet names (RFC 1542 section 4, RFC 3046).

To which servers a VM's message goes, straight or relayed, and what a relay changes in a message. The relay
is the subnet's gateway: `giaddr` is the gateway's address, by which the server picks the subnet, and to which
it answers.

All of a VM's messages are relayed, its renewals too, although those are unicast ("no relay agents will be
involved in [their] transmission", RFC 2131, 4.3.2): they pass the controller anyway, and the server learns by
option 82 from where each request came.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from retinue.core.model import DEFAULT_VRF, Server, Subnet
from retinue.core.model.families import is_leased
from retinue.core.model.network import Network
from retinue.core.packets import DHCP, Option

MAX_HOPS = 16
"""RFC 1542, 4.1.1: a relay must discard a request whose hops exceed 16, and may be set lower."""

CIRCUIT_ID, REMOTE_ID = 1, 2
"""Suboptions of option 82 (RFC 3046, 2.0)."""
VIRTUAL_SUBNET, VIRTUAL_SUBNET_CONTROL = 151, 152
"""Suboptions of option 82 that say in which VRF giaddr is meant, by its name; the second, which is empty, is
taken away by a server that has understood the first (RFC 6607)."""
_NAMED = b"\0"
"""The name that follows is text."""
_NOBODY = IPv4Address(0)


RELAYED_RATE = 20
"""Messages a second that what one VM asks may become on its way to servers, and the size of a burst: as many
as its port's meter lets by."""
HOME_RATE, HOME_BURST = 2, 10
"""Messages a second that a guest of another domain may send home, and the size of a burst: its home lets by
20 a second."""
VMS_REMEMBERED = 1000


class Shares:
    """How much each VM's messages have been multiplied lately, so that none uses up the servers' for all.

    A message that goes several ways costs one for each; it goes when the VM's share is whole, or covers it.
    """

    def __init__(self, rate: float = RELAYED_RATE, burst: float = RELAYED_RATE) -> None:
        """`rate`: what a share grows by in a second, up to `burst`."""
        self._rate, self._burst = rate, burst
        self._left: dict[str, tuple[float, float]] = {}
        """By VM: what was left of its share, and when."""

    def take(self, vm: str, ways: int, now: float) -> bool:
        """True if the VM's message may go that many ways now. One that goes one way is the meter's matter."""
        return ways <= 1 or self.spend(vm, ways, now)

    def spend(self, vm: str, ways: int, now: float) -> bool:
        """The same, where one way costs, too."""
        left, at = self._left.pop(vm, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._rate)
        goes = left >= min(ways, self._burst)
        self._left[vm] = (left - ways if goes else left, now)
        if len(self._left) > VMS_REMEMBERED:
            del self._left[next(iter(self._left))]
        return goes


@dataclass(frozen=True, slots=True)
class Way:
    """How a VM's message gets to one DHCP server: straight, or relayed from this address."""

    server: Server
    giaddr: IPv4Address | None = None
    vrf: str = DEFAULT_VRF
    """In which `giaddr` is meant."""


def ways(
    net: Network, vm: str, dhcp: DHCP, to: IPv4Address | None, known: Mapping[IPv4Address, str]
) -> list[Way]:
    """The ways of a VM's message. `to` is the server a unicast one is for, None when it is broadcast.

    `known` is the DHCP server at whose port a server identifier was last seen: where another relay is in
    between, it is the relay's port, and what is addressed to a server behind the relay goes there.
    """
    vrf = net.vrf_of_mac(dhcp.chaddr)
    servers = [server for server in net.dhcp_servers() if _serves(net, server, vm, dhcp)]
    if to is not None:
        # A server that has not been seen yet may be behind any of them: after a restart nothing is known.
        named = [s for s in servers if s.address == to] or [s for s in servers if s.id == known.get(to)]
        servers = named or servers
    home = _home(net, vm, dhcp)
    asker = net.vms.get(vm)
    nic = None if asker is None else asker.nic_with(dhcp.chaddr)
    vnet = "" if nic is None else nic.vnet
    return [way for server in servers for way in _ways_to(net, server, home, vnet, vrf)]


def _serves(net: Network, server: Server, vm: str, dhcp: DHCP) -> bool:
    """A VM that is a DHCP server is one for other VMs of its VRF; for a NIC that says of which vnet it is, in
    that."""
    if server.id in net.servers:
        return True
    asker, vrf = net.vms.get(vm), net.vrf_of_server(server)
    nic = None if asker is None else asker.nic_with(dhcp.chaddr)
    if net.vrf_of(nic) != vrf:
        return False
    subnet = None if server.address is None else net.subnet_of(server.address, vrf)
    if nic is None or server.mac in {own.mac for own in (asker.nics if asker is not None else ())}:
        return False
    return not nic.vnet or (subnet is not None and subnet.vnet == nic.vnet)


def _ways_to(net: Network, server: Server, home: Subnet | None, vnet: str, vrf: str) -> list[Way]:
    """The ways from the VRF. From another than its own a server is reached by the relay alone; one of the
    VMs' own subnet, too, where that names it: so it hears of which VM a message is, and needs to hear no
    broadcast."""
    address = server.address
    is_elsewhere = vrf != net.vrf_of_server(server)
    relayed = [
        s for s in net.subnets_in(vrf) if is_leased(s.gateway) and address is not None and address in s.dhcp
    ]
    beside = home is not None and address in home.prefix and home not in relayed
    if not is_elsewhere and (not relayed or beside):
        return [Way(server)]
    # A VM without an address may be given one of any subnet that is relayed (of its NIC's vnet, where the NIC
    # has one): the server decides.
    subnets = relayed if home is None else [s for s in relayed if s.id == home.id]
    of_vnet = (s for s in subnets if not vnet or s.vnet == vnet)
    return [Way(server, s.gateway, vrf) for s in of_vnet if is_leased(s.gateway)]


def _home(net: Network, vm: str, dhcp: DHCP) -> Subnet | None:
    """The subnet a message is about: of the address in it, else of one that its NIC has."""
    named = dhcp.ciaddr if dhcp.ciaddr != _NOBODY else dhcp.requested_address
    held = (a.ip for a in net.held_by(vm) if is_leased(a.ip) and a.mac == dhcp.chaddr)
    address = named if named is not None else next(held, None)
    return None if address is None else net.subnet_of(address, net.vrf_of_mac(dhcp.chaddr))


def is_relay(net: Network, giaddr: IPv4Address) -> bool:
    """True for an address from which we relay."""
    return any(s.gateway == giaddr and s.dhcp for s in net.subnets.values())


def toward_server(
    dhcp: DHCP, giaddr: IPv4Address, circuit: str, remote: str, vrf: str = DEFAULT_VRF
) -> DHCP | None:
    """A client's message as the relay sends it on; None when it has passed too many relays.

    RFC 3046, 2.1: "adding a Relay Agent option SHALL add it as the last option (but before 'End Option' 255,
    if present) in the DHCP options field". `circuit` is the port it came in by, `remote` who is there. The
    message must have neither giaddr nor option 82 of its own (a snooper rejects those). Of another `vrf` than
    the default one option 82 tells the name: there giaddr may be that of several.
    """
    if dhcp.hops >= MAX_HOPS:
        return None
    option = _suboption(CIRCUIT_ID, circuit.encode()) + _suboption(REMOTE_ID, remote.encode())
    if vrf != DEFAULT_VRF:
        option += _suboption(VIRTUAL_SUBNET, _NAMED + vrf.encode()) + _suboption(VIRTUAL_SUBNET_CONTROL, b"")
    return replace(dhcp, hops=dhcp.hops + 1, giaddr=giaddr).with_option(Option.RELAY_AGENT, option)


def toward_client(dhcp: DHCP) -> DHCP:
    """A server's answer as the client gets it.

    RFC 3046, 2.1: the option "echoed by a server MUST be removed by either the relay agent or the trusted
    downstream network element which added it when forwarding a server-to-client response back to the client".
    """
    return dhcp.without_option(Option.RELAY_AGENT)


def _suboption(code: int, value: bytes) -> bytes:
    value = value[:100]
    return bytes((code, len(value))) + value
