"""DHCPv6 with the controller behind the switches: from a VM's frame to the server's, and back, and moved."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from retinue.agent.renewal.service import lease6_of
from retinue.controller.api.views import plain
from retinue.controller.leases.renewal_orders import RenewalError
from retinue.core.lease_renewal import renew_frame
from retinue.core.model import PortStatus, VMPort
from retinue.core.model.link_local import ALL_ROUTERS, link_local
from retinue.core.packets import (
    ND,
    NDOptions,
    RouterAdvertisement,
    RouterSolicitation,
    nd_frame,
    parse,
    parse_nd,
)
from retinue.core.packets.dhcp6 import (
    ALL_AGENTS_AND_SERVERS,
    DHCP6,
    MessageType6,
    Relayed6,
    dhcp6_frame,
    parse_dhcp6,
    parse_udp6_frame,
)
from retinue.core.packets.dhcp6_options import Option6
from retinue.protocol.migrations import Report
from retinue.protocol.renewals import OrderState, RenewalOrder6, order_of
from retinue.southbound.ovsdb.vm_ports import BridgePort
from support.fabric.dhcp6 import (
    IAID,
    SERVER_DUID,
    VALID,
    add_dhcp6,
    answers,
    asks,
    duid,
    from_vm,
    leased,
    read_relayed,
    to_relay,
)
from support.fabric.ipv6 import OUTSIDE6, frame6, udp6, vm_local
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, add_vm, fabric, vm_mac, vm_port
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

RELAY = link_local(GATEWAY_MAC)
OPTIONS = ((int(Option6.OPTION_REQUEST), b"\0\x17"),)


class Lab:
    """Two VMs, and a DHCPv6 server that answers, unless it is told otherwise."""

    def __init__(self, store: MemoryStore) -> None:
        self.now, self.store = 1000.0, store
        self.answers = True
        self.asked: list[tuple[Relayed6, DHCP6]] = []
        self.fake = FakeNetwork(fabric(), lambda: self.now, store)

    async def start(self, *vms: int) -> "Lab":
        add_dhcp6(self.fake.net)
        for number in vms:
            add_vm(self.fake.net, number, at=number, bound=False)
        self.fake.hosts["leaf2", 90] = self.serve
        await self.fake.start()
        return self

    def serve(self, frame: bytes) -> None:
        try:
            envelope, asked = read_relayed(frame)
        except ValueError:
            return
        self.asked.append((envelope, asked))
        if self.answers:
            vm = next(n for n in (1, 2) if envelope.peer == vm_local(n))
            ips = () if asked.type in (MessageType6.RELEASE, MessageType6.DECLINE) else (leased(vm),)
            self.says(envelope, answers(asked, *ips))

    def says(self, envelope: Relayed6, answer: DHCP6, mac: str = "") -> None:
        mac = mac or self.fake.net.servers["dhcp"].mac
        self.fake.send("leaf2", 90, to_relay(envelope, answer, mac))

    async def send(self, frame: bytes, vm: int = 1) -> None:
        self.fake.send(f"edge{vm}", vm_port(vm), frame)
        await self.fake.settle()

    async def lease(self, vm: int = 1) -> None:
        await self.send(from_vm(asks(MessageType6.SOLICIT, vm, options=OPTIONS), vm), vm)
        await self.send(from_vm(asks(MessageType6.REQUEST, vm, leased(vm), xid=2, options=OPTIONS), vm), vm)

    def heard(self, vm: int = 1) -> list[DHCP6]:
        """What the VM has got of DHCPv6, from the gateway."""
        found = []
        for switch, port, frame in self.fake.heard:
            if (switch, port) == (f"edge{vm}", vm_port(vm)):
                ethernet, datagram = parse_udp6_frame(frame)
                assert (ethernet.src, ethernet.dst) == (GATEWAY_MAC, vm_mac(vm))
                assert (datagram.src, datagram.dst, datagram.sport, datagram.dport) == (
                    RELAY, vm_local(vm), 547, 546,
                )  # fmt: skip
                found.append(parse_dhcp6(datagram.payload))
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.fake.controller.events, kind, 1000)]

    def count(self, name: str) -> int:
        return self.fake.controller.context.counters[name]

    def sends_from(self, src: IPv6Address, vm: int = 1) -> bool:
        """True when a packet to the outside comes to the router."""
        self.fake.heard.clear()
        self.fake.send(f"edge{vm}", vm_port(vm), frame6(vm_mac(vm), GATEWAY_MAC, udp6(src, OUTSIDE6)))
        return [(switch, port) for switch, port, _ in self.fake.heard] == [("leaf2", 91)]

    def port_at(self, edge: int) -> None:
        port = BridgePort(
            dpid=0x30 + edge, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip
        self.fake.controller.inventory.ports.changed([], [port])


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    made = await Lab(MemoryStore()).start(1, 2)
    yield made
    await made.fake.stop()


async def test_a_vm_gets_an_address_and_may_use_it(lab: Lab) -> None:
    assert not lab.sends_from(leased(1))
    await lab.lease()
    assert [said.type.name for said in lab.heard()] == ["ADVERTISE", "REPLY"]
    for (envelope, asked), xid in zip(lab.asked, (1, 2), strict=True):
        assert (envelope.link, envelope.peer, envelope.hops) == (GATEWAY6, vm_local(1), 0)
        assert envelope.interface_id == f"edge1:{vm_port(1)}".encode()
        assert envelope.options == ((79, b"\0\1" + duid(1)[4:]),), "the server is told the MAC"
        assert (asked.xid, asked.client_id, asked.options) == (xid, duid(1), OPTIONS)
    assert lab.sends_from(leased(1))
    (added,) = lab.events("binding.added")
    (row,) = [row for row in added["bindings"] if row.ip == leased(1)]
    assert (row.kind, row.lease_end, row.switch) == ("dynamic", lab.now + VALID, "edge1")
    (stored,) = lab.store.load().assignments
    assert stored == lab.fake.net.assignments[leased(1)]
    assert stored.lease6 is not None
    assert (stored.lease6.server, stored.lease6.iaid, stored.lease6.options) == (SERVER_DUID, IAID, OPTIONS)


async def test_what_is_handed_on_is_made_anew(lab: Lab) -> None:
    """Without addresses and prefixes of no IA, and what would be about another way to the server."""
    extra = tuple((code, bytes(12)) for code in (5, 12, 19, 20, 26, 68, 79))
    await lab.send(from_vm(asks(MessageType6.SOLICIT, options=(*OPTIONS, *extra))))
    ((envelope, asked),) = lab.asked
    assert asked.options == OPTIONS
    assert len(envelope.options) == 1
    lab.fake.heard.clear()
    lab.says(envelope, answers(asked, leased(1), options=((23, bytes(16)), *extra)))
    await lab.fake.settle()
    (said,) = lab.heard()
    assert said.options == ((23, bytes(16)),)


async def test_the_reply_waits_for_the_switches(lab: Lab) -> None:
    await lab.send(from_vm(asks(MessageType6.SOLICIT)))
    lab.fake.sessions["edge1"].reject = 1
    await lab.send(from_vm(asks(MessageType6.REQUEST, 1, leased(1), xid=2)))
    assert [said.type.name for said in lab.heard()] == ["ADVERTISE"]
    assert lab.events("binding.unconfirmed")
    await lab.send(from_vm(asks(MessageType6.REQUEST, 1, leased(1), xid=3)))
    assert [said.type.name for said in lab.heard()] == ["ADVERTISE", "REPLY"]


async def test_it_ends_by_release_and_by_itself(lab: Lab) -> None:
    await lab.lease()
    await lab.send(from_vm(asks(MessageType6.RELEASE, 1, leased(1), xid=3)))
    assert lab.asked[-1][1].type is MessageType6.RELEASE
    assert not lab.sends_from(leased(1))
    assert [event["reason"] for event in lab.events("binding.removed")] == ["released by the VM"]
    await lab.lease()
    assert lab.fake.controller.dhcp.next_end() == lab.now + VALID
    lab.now += VALID
    await lab.fake.controller.dhcp.expire()
    assert not lab.sends_from(leased(1))
    assert lab.events("binding.removed")[-1]["reason"] == "the lease ended"
    assert not lab.store.load().ended_leases
    with pytest.raises(RenewalError):
        lab.fake.controller.renewals.renew("vm1")


async def test_a_vm_that_is_removed_gives_back_what_it_has(lab: Lab) -> None:
    await lab.lease()
    await lab.fake.controller.inventory.remove_vm("vm1")
    await lab.fake.settle()
    envelope, said = lab.asked[-1]
    assert (said.type, said.addresses, said.server_id) == (MessageType6.RELEASE, (leased(1),), SERVER_DUID)
    assert (said.client_id, [ia.iaid for ia in said.ias], envelope.peer) == (duid(1), [IAID], vm_local(1))


async def test_a_server_speaks_by_its_port_and_to_the_relay_alone(lab: Lab) -> None:
    lab.answers = False
    await lab.lease()
    envelope, asked = lab.asked[-1]
    reply, mac = answers(asked, leased(1)), lab.fake.net.servers["dhcp"].mac
    own = link_local(mac)
    # From another port of a leaf, and from VMs: to the relay, to the client, by the server's name.
    for switch, port, src in (("leaf2", 91, own), ("edge2", vm_port(2), vm_local(2))):
        its = vm_mac(2) if switch == "edge2" else lab.fake.net.servers["router"].mac
        to_client = dhcp6_frame(reply.build(), its, vm_mac(1), src, vm_local(1), 547, 546)
        for frame in (to_client, to_relay(envelope, reply, its)):
            lab.fake.send(switch, port, frame)
        await lab.fake.settle()
        assert lab.events("spoofing")[-1]["spoofing"].kind == "rogue-dhcp", switch
    # By its own port, but past the relay, or as a relay of its own.
    lab.fake.send("leaf2", 90, dhcp6_frame(reply.build(), mac, vm_mac(1), own, vm_local(1), 547, 546))
    await lab.fake.settle()
    assert lab.count("packet-ins rogue_dhcp") > 0
    for other in (
        replace(envelope, link=IPv6Address("fd00:1::1")),
        replace(envelope, interface_id=b"edge2:10"),
        replace(envelope, hops=1),
    ):
        lab.says(other, reply)
        await lab.fake.settle()
    said = replace(envelope, type=MessageType6.RELAY_REPL, message=reply.build(), options=())
    lab.fake.send("leaf2", 90, dhcp6_frame(said.build(), mac, GATEWAY_MAC, own, GATEWAY6, 547, 547))
    await lab.fake.settle()
    assert not lab.heard()
    assert lab.count("DHCP rejected") == 4
    lab.fake.send("leaf2", 90, dhcp6_frame(b"\x0d\0", mac, GATEWAY_MAC, own, RELAY, 547, 547))
    cut_short = dhcp6_frame(b"\1ab", vm_mac(1), "33:33:00:01:00:02", vm_local(1), RELAY, 546, 547)
    lab.fake.send("edge1", vm_port(1), cut_short)
    await lab.fake.settle()
    assert lab.count("bad DHCPv6 frames") == 2
    lab.says(envelope, reply)
    await lab.fake.settle()
    assert [said.type.name for said in lab.heard()] == ["REPLY"]


async def test_a_vm_asks_for_nobody_else(lab: Lab) -> None:
    await lab.lease(2)
    lab.asked.clear()
    await lab.send(from_vm(asks(MessageType6.RELEASE, 2, leased(2)), 2, src=vm_local(1)), 2)
    await lab.send(from_vm(asks(MessageType6.RENEW, 2, leased(2))))
    assert not lab.asked
    claims = [(event["spoofing"].vm, event["spoofing"].claimed_ip) for event in lab.events("spoofing")]
    assert claims == [("vm2", str(leased(2))), ("vm1", str(leased(2)))]
    assert leased(2) in lab.fake.net.assignments
    # From another port than a client's it would reach a server past the controller.
    frame = dhcp6_frame(
        asks(MessageType6.SOLICIT).build(), vm_mac(1), "33:33:00:01:00:02", vm_local(1),
        ALL_AGENTS_AND_SERVERS, 5000, 547,
    )  # fmt: skip
    await lab.send(frame)
    assert not lab.asked
    assert lab.events("spoofing")[-1]["spoofing"].kind == "rogue-dhcp"


async def test_the_gateway_says_that_there_is_dhcpv6(lab: Lab) -> None:
    question = ND(vm_local(1), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=vm_mac(1))))
    for has in (True, False):
        lab.fake.net.subnets["blue6"] = replace(lab.fake.net.subnets["blue6"], dhcp6=has, slaac=not has)
        lab.fake.heard.clear()
        await lab.send(nd_frame(question, vm_mac(1)))
        ((_, _, frame),) = lab.fake.heard
        said = parse_nd(parse(frame).payload).message
        assert isinstance(said, RouterAdvertisement)
        assert (said.managed, said.options.prefixes[0].autonomous) == (has, not has)


async def test_after_a_migration_it_is_renewed_on_the_vms_behalf() -> None:
    lab = await Lab(MemoryStore()).start(1)
    await lab.lease()
    lab.fake.heard.clear()
    controller = lab.fake.controller
    id = controller.orchestrator.start("vm1", target_server="server2").id
    words = [
        Report.TARGET_OPENED, Report.CONVERGED, Report.STOPPED, Report.RESUMED, Report.SOURCE_FREED,
    ]  # fmt: skip
    for word in words:
        if word is Report.TARGET_OPENED:
            lab.port_at(2)
        lab.now += 1
        controller.orchestrator.reports.on_report(id, word, lab.now, "")
        await lab.fake.settle()
    assert controller.net.vms["vm1"].server == "server2"
    ordered = [event["renewal"] for event in lab.events("vm.renew")]
    (order,) = ordered
    assert isinstance(order, RenewalOrder6)
    assert (order.ip, order.iaid, order.server_duid, order.switch) == (
        leased(1), IAID, SERVER_DUID.hex(), "edge2",
    )  # fmt: skip
    assert order_of(plain(order)) == order, "as the agent reads it"
    assert lab.store.load().pending_renewals
    lab.asked.clear()
    lab.fake.send("edge2", vm_port(1), renew_frame(lease6_of(order), order.xid, 1.5))
    await lab.fake.settle()
    ((envelope, asked),) = lab.asked
    assert envelope.interface_id == f"edge2:{vm_port(1)}".encode()
    assert (asked.type, asked.client_id, asked.server_id) == (MessageType6.RENEW, duid(1), SERVER_DUID)
    assert (asked.ias[0].iaid, asked.addresses) == (IAID, (leased(1),))
    assert set(OPTIONS) <= set(asked.options)
    done = controller.renewals.get(order.id)
    assert (done.state, done.lease_seconds, done.lease_end) == (OrderState.ACKED, VALID, lab.now + VALID)
    assert parse_dhcp6(bytes.fromhex(done.answer)).type is MessageType6.REPLY
    assert not lab.heard(), "the guest has asked nothing, and hears nothing"
    assert not lab.store.load().pending_renewals
    await lab.fake.stop()


async def test_an_interrupted_renewal_is_ordered_again_after_a_restart() -> None:
    store = MemoryStore()
    lab = await Lab(store).start(1)
    await lab.lease()
    before = lab.fake.net.assignments[leased(1)]
    lab.fake.controller.renewals.vm_migrated("vm1")
    await lab.fake.settle()
    assert len(lab.events("vm.renew")) == 1
    await lab.fake.stop()
    again = Lab(store)
    add_dhcp6(again.fake.net)
    again.fake.hosts["leaf2", 90] = again.serve
    stored = store.load()
    again.fake.controller.restore(replace(stored, vms=[add_vm(fabric(), 1, at=1, bound=False)]))
    assert again.fake.net.assignments[leased(1)] == before
    again.fake.net.set_vm_port("vm1", "edge1", VMPort(vm_port(1), "tap1"))
    await again.fake.start()
    await again.fake.settle()
    (order,) = [event["renewal"] for event in again.events("vm.renew")]
    assert (order.ip, order.client_id) == (leased(1), duid(1).hex())
    await again.fake.stop()
