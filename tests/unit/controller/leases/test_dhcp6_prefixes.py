"""Prefixes and temporary addresses by DHCPv6 (IA_PD, IA_TA): routed, moved, renewed, ended, not stolen."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from retinue.agent.renewal.service import lease6_of
from retinue.controller.api.views import plain
from retinue.controller.app import Controller
from retinue.core.lease_renewal import renew_frame
from retinue.core.model import NIC, VM, IAKind, PortStatus, VMPort
from retinue.core.packets.dhcp6 import DHCP6, MessageType6, Relayed6, parse_dhcp6
from retinue.core.packets.dhcp6_options import IA, IAAddress
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, reason_of
from retinue.protocol.migrations import Report
from retinue.protocol.renewals import RenewalOrder6, order_of
from retinue.southbound.ovsdb.vm_ports import BridgePort
from support.fabric.dhcp6 import SERVER_DUID, VALID, add_dhcp6, duid, from_vm, leased, read_relayed, to_relay
from support.fabric.ipv6 import OUTSIDE6, frame6, udp6, vm_local
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

PREFIX = IPv6Network("fd00:8::/60")
INSIDE = PREFIX[77]
SOLICIT, REQUEST, REPLY = MessageType6.SOLICIT, MessageType6.REQUEST, MessageType6.REPLY
ROUTER_AT = ("leaf2", 91)


def delegated(prefix: IPv6Network = PREFIX, valid: int = VALID, iaid: int = 7) -> IA:
    first = IAAddress(prefix.network_address, valid, valid, length=prefix.prefixlen)
    return IA(iaid, (first,), kind=IAKind.PD)


class Lab:
    """vm1 and vm2 ask; the DHCPv6 server grants whatever `grants` says."""

    def __init__(self, store: MemoryStore) -> None:
        self.now, self.store = 1000.0, store
        self.asked: list[tuple[Relayed6, DHCP6]] = []
        self.grants: tuple[IA, ...] = (delegated(),)
        self.fake = FakeNetwork(fabric(), lambda: self.now, store)
        add_dhcp6(self.fake.net)
        for number in (1, 2):
            add_vm(self.fake.net, number, at=number, bound=False)
        self.fake.hosts["leaf2", 90] = self.serve

    def serve(self, frame: bytes) -> None:
        try:
            envelope, asked = read_relayed(frame)
        except ValueError:
            return
        self.asked.append((envelope, asked))
        granted = () if asked.type in (MessageType6.RELEASE, MessageType6.DECLINE) else self.grants
        kind = MessageType6.ADVERTISE if asked.type is SOLICIT else REPLY
        answer = DHCP6(kind, asked.xid, asked.client_id, SERVER_DUID, granted)
        self.fake.send("leaf2", 90, to_relay(envelope, answer, self.fake.net.servers["dhcp"].mac))

    async def say(self, kind: MessageType6, *ias: IA, vm: int = 1, xid: int = 2, at: int = 0) -> None:
        names = kind not in (SOLICIT, MessageType6.REBIND, MessageType6.CONFIRM)
        dhcp = DHCP6(kind, xid, duid(vm), SERVER_DUID if names else b"", ias)
        self.fake.heard.clear()
        self.fake.send(f"edge{at or vm}", vm_port(vm), from_vm(dhcp, vm))
        await self.fake.settle()

    async def lease(self, *ias: IA, vm: int = 1) -> None:
        await self.say(SOLICIT, *ias, vm=vm, xid=1)
        await self.say(REQUEST, *ias, vm=vm)

    def sends_from(self, src: IPv6Address, vm: int = 1, at: int = 0) -> bool:
        """True when a packet comes to the router; else it is reported as forged."""
        frame = frame6(vm_mac(vm), GATEWAY_MAC, udp6(src, OUTSIDE6))
        sent = self.fake.fabric.send(f"edge{at or vm}", vm_port(vm), frame)
        forged = [reason_of(cookie) in SPOOF_ATTEMPTS for _, cookie, _, _ in sent.to_controller]
        comes = [arrival[:2] for arrival in sent.arrivals] == [ROUTER_AT]
        assert comes or forged == [True] or not sent.to_controller
        return comes

    def comes_to(self, ip: IPv6Address = INSIDE) -> list[tuple[str, int]]:
        """Where a packet for this address from outside comes out."""
        frame = frame6(self.fake.net.servers["router"].mac, GATEWAY_MAC, udp6(OUTSIDE6, ip))
        return [arrival[:2] for arrival in self.fake.fabric.send(*ROUTER_AT, frame).arrivals]

    @property
    def rejected(self) -> list[str]:
        return [event.data["reason"] for event in recent(self.fake.controller.events, "dhcp.rejected", 100)]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = Lab(MemoryStore())
    await made.fake.start()
    yield made
    await made.fake.stop()


HINT = IA(7, (IAAddress(IPv6Address(0), length=60),), kind=IAKind.PD)
AT1 = [("edge1", vm_port(1))]


async def test_a_prefix_is_routed_to_who_it_was_delegated_to_and_nobody_else_sends_from_it(lab: Lab) -> None:
    assert not lab.comes_to() and not lab.sends_from(INSIDE)
    await lab.lease(HINT)
    assert [ia.kind for _, asked in lab.asked for ia in asked.ias] == [IAKind.PD, IAKind.PD]
    assert lab.comes_to() == lab.comes_to(PREFIX[-1]) == AT1
    assert lab.sends_from(INSIDE) and lab.sends_from(PREFIX[0])
    assert not lab.sends_from(PREFIX[-1] + 1) and not lab.sends_from(INSIDE, vm=2)
    rows = [(str(row.ip), row.kind, row.lease_end, row.vm) for row in lab.fake.net.bindings()]
    assert rows == [("fd00:8::/60", "dynamic", lab.now + VALID, "vm1")]
    (said,) = [parse_dhcp6(frame[62:]) for at, port, frame in lab.fake.heard if (at, port) == AT1[0]]
    assert (said.type, said.ias) == (REPLY, (delegated(),))


async def test_it_ends_with_its_lease_by_a_release_and_with_the_vm(lab: Lab) -> None:
    await lab.lease(HINT)
    await lab.say(MessageType6.RELEASE, delegated(valid=0), xid=3)
    assert not lab.comes_to() and not lab.fake.net.assignments
    (gone,) = [plain(event.data["ip"]) for event in recent(lab.fake.controller.events, "binding.removed")]
    assert gone == "fd00:8::/60"
    assert not list(lab.fake.net.routed()) and not lab.sends_from(INSIDE)
    await lab.lease(HINT)
    assert lab.comes_to() == AT1
    lab.now += VALID + 1
    await lab.fake.controller.dhcp.expire()
    await lab.fake.settle()
    assert not lab.comes_to() and not lab.store.load().assignments
    await lab.lease(HINT)
    lab.grants = (delegated(valid=0),)
    await lab.say(MessageType6.RENEW, delegated(valid=0), xid=4)
    assert not lab.comes_to(), "the server takes it back"
    lab.grants = (delegated(),)
    await lab.lease(HINT)
    await lab.fake.controller.inventory.remove_vm("vm1")
    await lab.fake.settle()
    assert not lab.comes_to()
    (_, released) = lab.asked[-1]
    assert (released.type, released.ias) == (MessageType6.RELEASE, (delegated(valid=0),))


async def test_a_guest_gives_a_prefix_back_once_in_a_minute(lab: Lab) -> None:
    """Each costs entries on every leaf, spine and router; an address costs none there but its own."""
    for _ in range(2):
        await lab.lease(HINT)
        await lab.say(MessageType6.RELEASE, delegated(valid=0), xid=3)
    assert lab.comes_to() == AT1 and lab.asked[-1][1].type is REQUEST, "its server hears nothing either"
    assert lab.rejected == ["vm1 gives fd00:8:: back, 0 s after another: one in a minute is enough"]
    lab.now += 60
    await lab.say(MessageType6.RELEASE, delegated(valid=0), xid=4)
    assert not lab.comes_to()
    lab.grants = (IA(7, (IAAddress(leased(1), VALID, VALID),)),)
    for _ in range(2):
        await lab.lease(IA(7))
        await lab.say(MessageType6.RELEASE, IA(7, (IAAddress(leased(1)),)), xid=5)
        assert not lab.fake.net.assignments


async def test_a_prefix_that_cannot_be_routed_is_nobodys(lab: Lab) -> None:
    """Another's, a part of it, one of a subnet, and all there is: the REPLY goes to nobody."""
    await lab.lease(HINT)
    for wrong in ("fd00:8::/60", "fd00:8::/64", "fd00::/16", "fd00:1::/64", "::/0", "ff00::/8"):
        lab.grants = (delegated(IPv6Network(wrong)),)
        await lab.say(REQUEST, HINT, vm=2)
        assert not lab.fake.net.held_by("vm2"), wrong
        assert not [frame for at, _, frame in lab.fake.heard if at == "edge2"], "it hears nothing"
        lab.now += 10
    for words in ("vm1 holds it", "fd00:8::/60 is routed to VM vm1", "it has addresses of subnet blue6"):
        assert any(words in said for said in lab.rejected), (words, lab.rejected)
    assert lab.comes_to() == AT1


async def test_a_forged_release_or_renewal_moves_nothing(lab: Lab) -> None:
    await lab.lease(HINT)
    before = lab.fake.net.assignments.copy()
    for kind in (MessageType6.RELEASE, MessageType6.RENEW, MessageType6.DECLINE):
        await lab.say(kind, delegated(valid=0), vm=2, xid=9)
        part = delegated(IPv6Network("fd00:8:0:1::/64"), valid=0)
        await lab.say(kind, part, vm=2, xid=10)
    assert lab.fake.net.assignments == before and lab.comes_to() == AT1
    for ip in ("fd00:8::", "fd00:8:0:1::"):
        assert f"{ip} is held by another VM" in lab.rejected


async def test_another_vm_is_not_given_what_is_beside_a_delegated_prefix(lab: Lab) -> None:
    await lab.lease(HINT)
    nic = lab.fake.net.vms["vm2"].nic
    with pytest.raises(ValueError, match="fd00:8::/60 is routed to VM vm1"):
        lab.fake.net.change_nic("vm2", nic, replace(nic, prefixes=(IPv6Network("fd00:8::/64"),)))
    own = lab.fake.net.vms["vm1"].nic
    with pytest.raises(ValueError, match="fd00:8::/64 is routed to it already"):
        lab.fake.net.change_nic("vm1", own, replace(own, prefixes=(IPv6Network("fd00:8::/64"),)))
    assert lab.fake.net.routed_to(INSIDE) == (PREFIX, "vm1"), "it has what it had"


async def test_a_new_prefix_takes_the_place_of_the_one_before(lab: Lab) -> None:
    await lab.lease(HINT)
    other = IPv6Network("fd00:9::/56")
    lab.grants = (delegated(other),)
    await lab.lease(HINT)
    assert [held.prefix for held in lab.fake.net.held_by("vm1")] == [other]
    assert (lab.comes_to(), lab.comes_to(other[3])) == ([], AT1)
    wider = IPv6Network("fd00:9::/52")
    lab.grants = (delegated(wider),)
    await lab.lease(HINT)
    assert [held.prefix for held in lab.fake.net.held_by("vm1")] == [wider]
    assert lab.comes_to(wider[-1]) == AT1


async def test_it_moves_with_its_vm_and_is_renewed_from_there(lab: Lab) -> None:
    await lab.lease(HINT)
    controller = lab.fake.controller
    id = controller.orchestrator.start("vm1", target_server="server2").id
    for word in (Report.TARGET_OPENED, Report.CONVERGED, Report.STOPPED, Report.RESUMED, Report.SOURCE_FREED):
        if word is Report.TARGET_OPENED:
            port = BridgePort(
                dpid=0x32, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP,
                iface_id="vm1", attached_mac=vm_mac(1),
            )  # fmt: skip
            controller.inventory.ports.changed([], [port])
        lab.now += 1
        controller.orchestrator.reports.on_report(id, word, lab.now, "")
        await lab.fake.settle()
        came = lab.comes_to()
        assert came and set(came) <= {("edge1", vm_port(1)), ("edge2", vm_port(1))}, word
    assert lab.comes_to() == [("edge2", vm_port(1))]
    assert lab.sends_from(INSIDE, at=2) and not lab.sends_from(INSIDE, at=1)
    (ordered,) = [event.data["renewal"] for event in recent(controller.events, "vm.renew")]
    order = order_of(plain(ordered))
    assert isinstance(order, RenewalOrder6) and order == ordered
    lab.asked.clear()
    lab.fake.send("edge2", vm_port(1), renew_frame(lease6_of(order), order.xid))
    await lab.fake.settle()
    ((_, asked),) = lab.asked
    assert (asked.type, asked.ias) == (MessageType6.RENEW, (delegated(valid=0),))
    assert controller.renewals.get(order.id).state == "acked"


async def test_it_outlives_a_restart_of_the_controller(lab: Lab) -> None:
    await lab.lease(HINT)
    net = fabric()
    add_dhcp6(net)
    net.put_vm(VM("vm1", (NIC(vm_mac(1), "vm1"),), "server1"))
    net.set_vm_port("vm1", "edge1", VMPort(vm_port(1)))
    Controller(net, lab.store, clock=lambda: 1001.0).restore(lab.store.load())
    assert net.routed_to(INSIDE) == (PREFIX, "vm1")
    assert net.assignments == lab.fake.net.assignments


async def test_temporary_addresses_are_bound_as_others_are(lab: Lab) -> None:
    """Beside an IA_NA of the same number, and a prefix; renewed as what they are."""
    temporary, own = leased(0x99), leased(1)
    lab.grants = (
        IA(7, (IAAddress(own, 400, VALID),)),
        IA(7, (IAAddress(temporary, 400, VALID),), kind=IAKind.TA),
        delegated(),
    )
    await lab.lease(IA(7), IA(7, kind=IAKind.TA), HINT)
    held = {str(one.leads): one.lease6.ia for one in lab.fake.net.held_by("vm1") if one.lease6 is not None}
    assert held == {str(own): IAKind.NA, str(temporary): IAKind.TA, str(PREFIX): IAKind.PD}
    assert lab.sends_from(temporary) and lab.sends_from(own)
    assert lab.comes_to(temporary) == AT1
    assert not lab.sends_from(temporary, vm=2)
    order = lab.fake.controller.renewals.renew("vm1")
    assert isinstance(order, RenewalOrder6)
    lab.fake.controller.renewals.vm_migrated("vm1")
    await lab.fake.settle()
    orders = [one for one in lab.fake.controller.renewals.orders.values() if isinstance(one, RenewalOrder6)]
    made = {one.ia: parse_dhcp6(renew_frame(lease6_of(one), 5)[62:]).ias for one in orders}
    assert made[IAKind.TA] == (IA(7, (IAAddress(temporary),), kind=IAKind.TA),)
    lab.grants = (IA(7, (IAAddress(temporary, 0, 0),), kind=IAKind.TA),)
    await lab.say(MessageType6.RENEW, IA(7, (IAAddress(temporary),), kind=IAKind.TA), xid=8)
    assert not lab.sends_from(temporary) and lab.sends_from(own)
    assert vm_local(1) == lab.asked[-1][0].peer
