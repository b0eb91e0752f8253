"""What the snooping table does about a VM that is after another's lease."""

from ipaddress import IPv4Address

import pytest

from retinue.core.model import Assignment, BindingKind, Network, Origin
from retinue.core.packets import (
    ARP,
    BROADCAST,
    DHCP,
    Ethernet,
    EtherType,
    decline,
    discover,
    nak,
    release,
    renewal,
    request,
)
from retinue.core.snooping import ClientMessage, Rejected, ServerMessage, Snooper, Suspicious, ToServers, ToVM
from retinue.core.snooping.spoofing import interpret
from support.fabric import networks

SERVER = IPv4Address("10.1.0.2")
VICTIM, THIEF = networks.vm_mac(1), networks.vm_mac(2)
IP, OWN = networks.vm_ip(1), networks.vm_ip(2)
CHOSEN = b"\xff" + bytes(range(18))
"""A client identifier that is no hardware address (RFC 4361)."""


def id_of(mac: str) -> bytes:
    return b"\x01" + bytes.fromhex(mac.replace(":", ""))


@pytest.fixture
def net() -> Network:
    """The victim has a lease, under an identifier of its own choice; so has the thief, elsewhere."""
    net = networks.fabric()
    networks.add_vm(net, 1, at=1, bound=False)
    networks.add_vm(net, 2, at=2)
    net.assign(Assignment(IP, VICTIM, "vm1", BindingKind.DYNAMIC, Origin.CONTROLLER, 2000.0, SERVER, CHOSEN))
    return net


def said(net: Network, dhcp: DHCP, vm: int = 2, at: int = 2) -> list[object]:
    message = ClientMessage(f"edge{at}", networks.vm_port(vm), networks.vm_mac(vm), dhcp)
    return list(Snooper(net).client(message, 1000.0))


@pytest.mark.parametrize("client_id", [CHOSEN, id_of(VICTIM)], ids=["chosen", "hardware address"])
@pytest.mark.parametrize("kind", ["discover", "request", "renewal", "release", "decline"])
def test_another_vms_client_identifier_is_spoofing(net: Network, kind: str, client_id: bytes) -> None:
    """A DHCP server knows a client by it, whatever the hardware address, and would hand its lease over."""
    messages = {
        "discover": discover(THIEF, 7, client_id=client_id),
        "request": request(THIEF, 7, OWN, SERVER, client_id),
        "renewal": renewal(OWN, THIEF, 7, client_id),
        "release": release(OWN, THIEF, 7, SERVER, client_id),
        "decline": decline(THIEF, 7, OWN, SERVER, client_id),
    }
    before = dict(net.assignments)
    assert said(net, messages[kind]) == [Rejected("the DHCP client identifier of vm1", "vm2", spoofed=True)]
    assert net.assignments == before


def test_a_vm_that_has_no_lease_yet_owns_its_hardware_addresss_identifier(net: Network) -> None:
    """Otherwise a thief could have a lease under it first, and the owner none."""
    net.unassign(IP)
    assert said(net, discover(THIEF, 7, client_id=id_of(VICTIM))) == [
        Rejected("the DHCP client identifier of vm1", "vm2", spoofed=True)
    ]
    assert said(net, discover(VICTIM, 7, client_id=id_of(VICTIM)), vm=1, at=1) == [ToServers("vm1")]


@pytest.mark.parametrize(
    "client_id",
    [None, id_of(THIEF), b"\x01", b"\x00name", b"\x01\x52", id_of("52:54:00:99:99:99"), CHOSEN + b"2"],
)
def test_an_identifier_of_its_own_is_nobodys_business(net: Network, client_id: bytes | None) -> None:
    assert said(net, discover(THIEF, 7, client_id=client_id)) == [ToServers("vm2")]


def test_the_victims_own_identifier_is_its_own(net: Network) -> None:
    assert said(net, renewal(IP, VICTIM, 7, CHOSEN), vm=1, at=1) == [ToServers("vm1")]


@pytest.mark.parametrize("dhcp", [request(THIEF, 7, IP, SERVER), request(THIEF, 7, IP, None)])
def test_asking_for_what_another_holds_is_told_and_left_to_the_server(net: Network, dhcp: DHCP) -> None:
    """An honest VM may have had the address long ago, and needs the NAK; the NAK ends nothing of either."""
    snooper, before = Snooper(net), dict(net.assignments)
    message = ClientMessage("edge2", networks.vm_port(2), THIEF, dhcp)
    assert snooper.client(message, 1000.0) == [
        Suspicious(f"asks for {IP}, which another VM holds", "vm2"),
        ToServers("vm2"),
    ]
    assert snooper.server(ServerMessage("dhcp", nak(dhcp, SERVER)), 1000.0) == [ToVM("vm2")]
    assert net.assignments == before


def test_declining_what_another_holds_is_spoofing_and_declining_what_nobody_holds_is_not(
    net: Network,
) -> None:
    (another,) = said(net, decline(THIEF, 7, IP, SERVER))
    (nobody,) = said(net, decline(THIEF, 7, networks.vm_ip(9), SERVER))
    assert isinstance(another, Rejected) and another.spoofed
    assert isinstance(nobody, Rejected) and not nobody.spoofed


def test_what_a_rarp_claims_is_read(net: Network) -> None:
    body = ARP(3, VICTIM, IP, VICTIM, IP).build()
    assert interpret(Ethernet(BROADCAST, THIEF, EtherType.RARP, body).build()) == (VICTIM, str(IP))
