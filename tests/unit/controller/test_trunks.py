"""A VM with a trunk before the controller: DHCP, ARP and neighbour discovery by VLAN, one port for all."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from retinue.controller.api import views
from retinue.controller.errors import RequestError
from retinue.controller.leases.renewal_orders import new_order
from retinue.controller.store.nic_documents import from_document, to_document
from retinue.core.migration.handing_back import addressed, not_copied
from retinue.core.model import NIC, VM, PortStatus, Subnet, VMPort, Vnet, Vrf
from retinue.core.model.link_local import ALL_ROUTERS, link_local
from retinue.core.packets import (
    ND,
    Ethernet,
    NDOptions,
    RouterAdvertisement,
    RouterSolicitation,
    arp_request,
    nd_frame,
    parse,
    parse_arp,
    parse_nd,
)
from retinue.protocol.hypervisor_events import EventKind
from retinue.protocol.vms import VMState
from retinue.southbound.ovsdb import BridgePort
from support.fabric.dhcp_lab import EVERYWHERE, NOWHERE, SERVER, SERVER_AT, DhcpLab
from support.fabric.ipv6 import advertises, asks
from support.fabric.networks import GATEWAY, GATEWAY_MAC, assignment, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import MARK, OUTSIDE, tagged, udp_frame
from support.fakes.session import FakeNetwork

CARRIER, INSIDE, RED = 1, 2, 3
"""fw's NICs: in vnet shop without a tag, in the default vnet with VLAN 30, and in VRF red with VLAN 60."""
AT = ("edge1", vm_port(CARRIER))
SHOP_IP, RED_IP = IPv4Address("10.2.50.1"), IPv4Address("10.1.0.102")


def nics() -> tuple[NIC, ...]:
    return (
        NIC(vm_mac(CARRIER), "fw", (SHOP_IP,), "shop"),
        NIC(vm_mac(INSIDE), "fw-2", (), "default", slot=0, trunk="fw"),
        NIC(vm_mac(RED), "fw-3", (RED_IP,), "reds", slot=0, trunk="fw"),
    )


def port(trunks: tuple[int, ...] = (), iface_id: str = "fw") -> BridgePort:
    return BridgePort(
        dpid=0x31, bridge="br0", name="tap1", number=vm_port(CARRIER), status=PortStatus.UP,
        iface_id=iface_id, attached_mac=vm_mac(CARRIER), trunks=trunks,
    )  # fmt: skip


class TrunkLab(DhcpLab):
    async def say_in(self, vlan: int, frame: bytes) -> list[bytes]:
        """A frame from fw's port; what comes back there."""
        before = len(self.fake.heard)
        self.fake.send(*AT, tagged(frame, vlan) if vlan else frame)
        await self.fake.settle()
        return [frame for switch, port, frame in self.fake.heard[before:] if (switch, port) == AT]


@pytest.fixture
async def lab() -> AsyncIterator[TrunkLab]:
    net = fabric()
    net.put_vrf(Vrf("red", 4000))
    net.put_vnet(Vnet("default", 30))
    net.put_vnet(Vnet("shop", 50))
    net.put_vnet(Vnet("reds", 60, vrf="red"))
    net.add_subnet(Subnet("shop1", IPv4Network("10.2.50.0/24"), IPv4Address("10.2.50.254"), vnet="shop"))
    net.add_subnet(Subnet("red1", IPv4Network("10.1.0.0/24"), GATEWAY, vnet="reds"))
    fake = FakeNetwork(net, lambda: found.now)
    found = TrunkLab(fake)
    fake.hosts[SERVER_AT] = found.serve
    await fake.start()
    found.controller.inventory.register_vms([VM("fw", nics(), "server1")])
    found.controller.inventory.ports.changed([], [port()])
    await fake.settle()
    yield found
    await fake.stop()


async def boot(lab: TrunkLab) -> list[bytes]:
    from retinue.core.packets import BROADCAST, dhcp_frame, discover, request

    heard = []
    for said in (discover(vm_mac(INSIDE), 7), request(vm_mac(INSIDE), 7, vm_ip(INSIDE), SERVER)):
        frame = dhcp_frame(said, vm_mac(INSIDE), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
        heard += await lab.say_in(30, frame)
    return heard


async def test_one_port_makes_all_its_nics_ready_and_carries_their_leases(lab: TrunkLab) -> None:
    assert lab.controller.inventory.state_of("fw") is VMState.READY
    heard = await boot(lab)
    assert [parse(frame).vlan for frame in heard] == [30, 30]
    assert {parse(frame).dst for frame in heard} == {vm_mac(INSIDE)}
    held = lab.fake.net.holder(vm_ip(INSIDE))
    assert held is not None and held.mac == vm_mac(INSIDE)
    router = lab.fake.net.servers["router"].mac
    sent = udp_frame(router, GATEWAY_MAC, OUTSIDE, vm_ip(INSIDE))
    for way in lab.fake.fabric.all_paths("leaf2", 91, sent):
        [(switch, number, came)] = way.arrivals
        assert (switch, number) == AT and parse(came).vlan == 30 and MARK in came


@pytest.mark.parametrize(("vlan", "mac"), [(0, vm_mac(CARRIER)), (30, vm_mac(INSIDE)), (60, vm_mac(RED))])
async def test_no_nic_of_a_trunk_is_a_router_and_each_hears_of_its_own(
    lab: TrunkLab, vlan: int, mac: str
) -> None:
    """RFC 6105: what a router says of itself comes from no VM, whatever its tag; the gateway's own comes with
    the tag of the VLAN that it is for."""
    subnets = {0: ("fd00:50::", "shop"), 30: ("fd00:30::", "default"), 60: ("fd00:60::", "reds")}
    for prefix, vnet in subnets.values():
        gateway = IPv6Address(f"{prefix}fe")
        subnet = Subnet(f"{vnet}6", IPv6Network(f"{prefix}/64"), gateway, vnet=vnet, slaac=True)
        await lab.controller.vnets.add_subnets([subnet])
    lab.fake.heard.clear()
    forged = nd_frame(advertises(link_local(mac), mac), mac)
    to_all_of_it = nd_frame(advertises(link_local(GATEWAY_MAC), mac), mac)
    for frame in (forged, to_all_of_it):
        assert await lab.say_in(vlan, frame) == []
    assert lab.fake.heard == []
    assert {row.kind for row in lab.controller.context.spoof_attempts.rows()} == {"nd"}
    looks = nd_frame(ND(link_local(mac), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac))), mac)
    (came,) = await lab.say_in(vlan, looks)
    ethernet = parse(came)
    assert (ethernet.vlan or 0, ethernet.dst) == (vlan, mac)
    said = parse_nd(ethernet.payload).message
    assert isinstance(said, RouterAdvertisement)
    assert [str(one.prefix) for one in said.options.prefixes] == [f"{subnets[vlan][0]}/64"]
    # Who asks for the gateway is answered by the switch, with the tag.
    asked = nd_frame(asks(link_local(mac), link_local(GATEWAY_MAC), mac), mac)
    (came,) = await lab.say_in(vlan, asked)
    assert (parse(came).vlan or 0, parse(came).dst, parse(came).src) == (vlan, mac, GATEWAY_MAC)
    assert lab.controller.context.counters["neighbour discovery answered"] == 0


async def test_a_card_that_filters_the_vlans_it_carries_is_warned_of(lab: TrunkLab) -> None:
    """QEMU 7.2 would forget them; of an interface that carries none nobody needs to know."""

    def says(*filters: str) -> list[str]:
        said = ("server1", "fw", EventKind.STARTED, 1000.0, filters)
        lab.controller.external_migrations.on_report(*said)
        shown = views.vm(lab.controller, lab.controller.net.vms["fw"])["warnings"]
        return [words for words in shown if "VLANs" in words]

    assert says("fw-9") == []
    (words,) = says("fw")
    assert words.startswith("the card of NIC fw, which carries VLANs, filters them")
    assert says() == [], "it was started anew, as it should be"


async def test_a_card_that_leaves_checksums_out_is_warned_of_where_they_are_not_filled_in(
    lab: TrunkLab,
) -> None:
    def says(*without: str) -> list[str]:
        said = ("server1", "fw", EventKind.STARTED, 1000.0, (), without)
        lab.controller.external_migrations.on_report(*said)
        shown = views.vm(lab.controller, lab.controller.net.vms["fw"])["warnings"]
        return [words for words in shown if "checksums" in words]

    assert says("fw-9") == []
    (words,) = says("fw")
    assert words.startswith("what the guest sends by NIC fw with TCP or UDP gets lost")
    assert says() == []


async def test_a_port_of_its_own_is_none_of_a_nic_in_a_trunk(lab: TrunkLab) -> None:
    lab.controller.inventory.ports.changed([], [replace(port(iface_id="fw-2"), name="tap9", number=99)])
    (rejected,) = lab.controller.inventory.ports.rejected.values()
    assert rejected.reason == "NIC fw-2 is in the trunk of fw, and goes by the port of that"


@pytest.mark.parametrize(
    ("trunks", "why"), [((30, 60), ""), ((50, 30, 60), "50"), ((30,), "has its trunk VLANs")]
)
async def test_trunks_of_libvirt_are_those_of_the_nic(
    lab: TrunkLab, trunks: tuple[int, ...], why: str
) -> None:
    lab.controller.inventory.ports.changed([], [port(trunks)])
    reasons = [one.reason for one in lab.controller.inventory.ports.rejected.values()]
    assert bool(reasons) == bool(why) and all(why in reason for reason in reasons)


async def test_what_it_asks_by_arp_is_answered_with_its_tag(lab: TrunkLab) -> None:
    await boot(lab)
    lab.fake.net.put_vm(VM.with_one_nic("vm4", vm_mac(4), "server1"))
    lab.fake.net.set_vm_port("vm4", "edge1", VMPort(vm_port(4)))
    lab.fake.net.assign(assignment(4))
    lab.fake.net.put_vm(VM.with_one_nic("vm5", vm_mac(5), "server2"))
    lab.fake.net.set_vm_port("vm5", "edge2", VMPort(vm_port(5)))
    lab.fake.net.assign(assignment(5))
    for number, mac in ((4, vm_mac(4)), (5, GATEWAY_MAC)):
        (said,) = await lab.say_in(30, arp_request(vm_mac(INSIDE), vm_ip(INSIDE), vm_ip(number)))
        assert (parse(said).vlan, parse_arp(parse(said).payload).sha) == (30, mac)
        assert await lab.say_in(60, arp_request(vm_mac(RED), RED_IP, vm_ip(number))) == [], "of another VRF"
    for vlan, mac, ip, gateway in (
        (0, vm_mac(CARRIER), SHOP_IP, IPv4Address("10.2.50.254")),
        (30, vm_mac(INSIDE), vm_ip(INSIDE), GATEWAY),
        (60, vm_mac(RED), RED_IP, GATEWAY),
    ):
        (said,) = await lab.say_in(vlan, arp_request(mac, ip, gateway))
        assert ((parse(said).vlan or 0), parse_arp(parse(said).payload).sha) == (vlan, GATEWAY_MAC)


async def test_what_is_handed_back_has_its_tag_and_no_other(lab: TrunkLab) -> None:
    await boot(lab)
    net, vm = lab.fake.net, lab.fake.net.vms["fw"]
    plain = udp_frame("02:00:00:00:00:02", vm_mac(INSIDE), OUTSIDE, vm_ip(INSIDE))
    waited = [tagged(plain, 30), tagged(plain, 60), plain]
    assert not_copied(waited, "02:00:00:00:00:09") == waited, "whose tag it is the agent does not know"
    assert not_copied(waited, "02:00:00:00:00:02") == []
    found = addressed(net, vm, waited[0])
    assert found is not None and found[0].port_id == "fw-2"
    assert (parse(found[1]).vlan, parse(found[1]).src) == (30, GATEWAY_MAC)
    assert addressed(net, vm, waited[1]) is None and addressed(net, vm, waited[2]) is None


async def test_its_lease_is_renewed_with_its_tag(lab: TrunkLab) -> None:
    await boot(lab)
    net, vm = lab.fake.net, lab.fake.net.vms["fw"]
    lease = net.holder(vm_ip(INSIDE))
    order = new_order(net, vm, vm.nics[1], lease, "server1", lab.now, lambda bits: 9)
    assert (order.port, order.port_number, order.vlan, order.mac) == ("tap1", AT[1], 30, vm_mac(INSIDE))


async def test_a_vlan_comes_and_goes_while_the_vm_runs_and_a_carrier_stays_while_it_carries(
    lab: TrunkLab,
) -> None:
    inventory = lab.controller.inventory
    assert inventory.nics.free_slot("fw", "fw") == 0 and inventory.nics.free_slot("fw") == 2
    assert inventory.nics.free_number("fw", 0) == inventory.nics.free_number("fw", 2) == 4
    inventory.nics.remove("fw", "fw-3")
    assert lab.fake.net.holder(RED_IP, "red") is None
    assert not lab.controller.context.state.left_ports, "the port is its carrier's"
    with pytest.raises(RequestError, match="known by its first NIC"):
        inventory.nics.remove("fw", "fw")
    inventory.nics.add("fw", NIC(vm_mac(9), "fw-9", slot=2))
    inventory.nics.add("fw", NIC(vm_mac(8), "fw-8", (RED_IP,), "reds", slot=0, trunk="fw-9"))
    with pytest.raises(RequestError, match="NIC fw-9 carries fw-8 in its trunk; take these out first"):
        inventory.nics.remove("fw", "fw-9")


def test_it_is_kept_as_it_was() -> None:
    assert [from_document(to_document(nic)) for nic in nics()] == list(nics())


async def test_its_ping_of_the_gateway_comes_back_with_its_tag_in_its_vrf(lab: TrunkLab) -> None:
    from support.fabric.sample_frames import icmp, ipv4

    ping = Ethernet(GATEWAY_MAC, vm_mac(RED), 0x0800, ipv4(RED_IP, GATEWAY, icmp(8, b"x"))).build()
    (said,) = await lab.say_in(60, ping)
    assert parse(said).vlan == 60
    assert await lab.say_in(30, ping) == []
