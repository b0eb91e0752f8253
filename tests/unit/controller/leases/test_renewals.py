"""The controller's renewals over fake switches: ordered, sent in at the VM's port, answered, told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

import aiohttp
import pytest

from retinue.controller.api import views
from retinue.controller.api.server import Api
from retinue.controller.app import Controller
from retinue.controller.leases.renewal_orders import RenewalError
from retinue.core.lease_renewal import Lease, request_frame
from retinue.core.model import VM, PortStatus, VMPort
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    MessageType,
    UDPDatagram,
    ack,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse_dhcp,
    parse_dhcp_frame,
    renewal,
    request,
)
from retinue.protocol.renewals import Order, OrderState, RenewalOrder, RenewalReport
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY, GATEWAY_MAC, fabric, vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SERVER, FAR = IPv4Address("10.1.0.2"), IPv4Address("10.0.0.2")
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")
CLIENT_ID = b"\x01\x52\x54\x00\x00\x00\x01"
LEASE = 600


@dataclass
class LeasedVM:
    """vm1 at server1, the DHCP server at leaf2, and a clock that tests turn."""

    fake: FakeNetwork
    server: IPv4Address = SERVER
    now: float = 1000.0
    answer: Callable[[DHCP], DHCP | None] = lambda asked: None
    served: list[tuple[UDPDatagram, DHCP]] = field(default_factory=list)

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.controller.events, kind, 1000)]

    def kinds(self) -> list[str]:
        return [e.type for e in recent(self.controller.events, "", 1000)]

    def grant(self, asked: DHCP) -> DHCP | None:
        if asked.message_type is MessageType.DISCOVER:
            return offer(asked, vm_ip(1), self.server, LEASE)
        return ack(asked, vm_ip(1), self.server, LEASE)

    def reject(self, asked: DHCP) -> DHCP | None:
        return nak(asked, self.server, "not today")

    def serve(self, frame: bytes) -> None:
        """The DHCP server's host. It answers a relay where it is told of one."""
        ethernet, datagram, asked = parse_dhcp_frame(frame)
        self.served.append((datagram, asked))
        reply = self.answer(asked)
        if reply is None:
            return
        mac = self.fake.net.servers["dhcp"].mac
        to, port = (vm_ip(1), 68) if asked.giaddr == NOWHERE else (asked.giaddr, 67)
        self.fake.send("leaf2", 90, dhcp_frame(reply, mac, ethernet.src, self.server, to, 67, port))

    async def boot(self) -> None:
        self.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
        self.port_at(1)
        await self.fake.settle()
        for message in (
            discover(vm_mac(1), 7, client_id=CLIENT_ID),
            request(vm_mac(1), 7, vm_ip(1), self.server, CLIENT_ID),
        ):
            frame = dhcp_frame(message, vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
            self.fake.send("edge1", vm_port(1), frame)
            await self.fake.settle()

    def port_at(self, edge: int, number: int = vm_port(1)) -> None:
        port = BridgePort(
            dpid=0x30 + edge, bridge="br0", name="tap1", number=number, status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip
        self.controller.inventory.ports.changed([], [port])

    async def agent_sends(self, order: Order, *, switch: str = "", port: int = 0) -> None:
        """What the agent does with an order: one request, in at the VM's port."""
        assert isinstance(order, RenewalOrder)
        lease = Lease(order.ip, order.mac, order.dhcp_server, bytes.fromhex(order.client_id), order.next_hop)
        self.now += 1
        self.fake.send(switch or order.switch, port or order.port_number, request_frame(lease, order.xid))
        await self.fake.settle()

    def heard_by_vm(self) -> list[tuple[UDPDatagram, DHCP]]:
        at = ("edge1", vm_port(1))
        return [parse_dhcp_frame(f)[1:] for s, p, f in self.fake.heard if (s, p) == at]

    @property
    def lease_end(self) -> float | None:
        return self.fake.net.assignments[vm_ip(1)].lease_end


async def made(relayed: bool = False) -> LeasedVM:
    net = fabric()
    lab: LeasedVM
    if relayed:
        net.subnets["blue"] = replace(net.subnets["blue"], dhcp=(FAR,))
        net.put_server(replace(net.servers["dhcp"], address=FAR))
    lab = LeasedVM(FakeNetwork(net, clock=lambda: lab.now), FAR if relayed else SERVER)
    lab.answer = lab.grant
    lab.fake.hosts["leaf2", 90] = lab.serve
    await lab.fake.start()
    await lab.boot()
    return lab


@pytest.fixture
async def lab() -> AsyncIterator[LeasedVM]:
    found = await made()
    yield found
    await found.fake.stop()


@pytest.fixture
async def relayed() -> AsyncIterator[LeasedVM]:
    found = await made(relayed=True)
    yield found
    await found.fake.stop()


async def test_an_order_says_all_the_agent_must_know(lab: LeasedVM) -> None:
    order = lab.controller.renewals.renew("vm1")
    assert (order.vm, order.server, order.switch, order.port, order.port_number) == (
        "vm1", "server1", "edge1", "tap1", vm_port(1),
    )  # fmt: skip
    assert isinstance(order, RenewalOrder)
    assert (order.ip, order.mac, order.dhcp_server) == (vm_ip(1), vm_mac(1), SERVER)
    assert order.client_id == CLIENT_ID.hex(), "as the VM gave it when it got the lease"
    assert order.next_hop == GATEWAY_MAC
    assert 0 <= order.xid < 1 << 32
    assert lab.events("vm.renew") == [{"renewal": order, "vm": "vm1", "server": "server1"}]
    assert lab.controller.renewals.renew("vm1").xid != order.xid


async def test_the_ack_makes_the_binding_and_goes_to_the_agent_not_to_the_vm(lab: LeasedVM) -> None:
    """The port is recorded, the server asked; its ACK makes the binding and ends at the agent."""
    before = len(lab.heard_by_vm())
    order = lab.controller.renewals.renew("vm1")
    waiting = asyncio.create_task(lab.controller.renewals.result(order.id))
    await lab.agent_sends(order)
    done = await waiting
    assert (done.state, done.lease_seconds, done.recorded_port) == (OrderState.ACKED, LEASE, vm_port(1))
    assert parse_dhcp(bytes.fromhex(done.answer)).message_type is MessageType.ACK
    assert lab.lease_end == done.lease_end == lab.now + LEASE
    assert lab.fake.net.assignments[vm_ip(1)].client_id == CLIENT_ID
    assert len(lab.heard_by_vm()) == before, "the guest has seen nothing"
    tail = [k for k in lab.kinds() if k.startswith(("renewal", "binding", "vm.renew"))][-4:]
    assert tail == ["vm.renew", "renewal.sent", "binding.renewed", "renewal.acked"]
    datagram, asked = lab.served[-1]
    assert (datagram.src, datagram.dst, asked.giaddr) == (vm_ip(1), SERVER, NOWHERE)


async def test_the_recorded_port_is_that_at_which_the_request_came_in(lab: LeasedVM) -> None:
    """The VM's port has another number by the time the ACK comes: that is where the VM is bound."""
    waiting: list[DHCP] = []
    lab.answer = lambda asked: waiting.append(asked)
    order = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(order)
    lab.port_at(1, number=77)
    await lab.fake.settle()
    mac = lab.fake.net.servers["dhcp"].mac
    reply = lab.grant(waiting[0])
    assert reply is not None
    lab.fake.send("leaf2", 90, dhcp_frame(reply, mac, GATEWAY_MAC, SERVER, vm_ip(1), 67, 68))
    await lab.fake.settle()
    done = lab.controller.renewals.get(order.id)
    assert (done.state, done.recorded_port) == (OrderState.ACKED, vm_port(1))
    (row,) = lab.fake.net.bindings(["vm1"])
    assert row.port == 77
    again = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(again)
    assert lab.controller.renewals.get(again.id).recorded_port == 77


async def test_a_lease_counts_from_when_its_ack_was_received(lab: LeasedVM) -> None:
    """However late the controller works on it: the DHCP server counts from when it sent it."""
    lab.fake.sessions["leaf2"].late = 7.0
    order = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(order)
    assert lab.lease_end == lab.now + LEASE - 7.0
    assert lab.controller.renewals.get(order.id).lease_end == lab.lease_end


async def test_name_servers_that_the_vm_has_not_heard_of_are_told_and_shown(lab: LeasedVM) -> None:
    dns = [bytes([10, 1, 0, 5])]
    lab.answer = lambda asked: ack(asked, vm_ip(1), SERVER, LEASE, ((6, dns[-1]),))
    own = renewal(vm_ip(1), vm_mac(1), 8, CLIENT_ID)
    frame = dhcp_frame(own, vm_mac(1), GATEWAY_MAC, vm_ip(1), SERVER, 68, 67)
    lab.fake.send("edge1", vm_port(1), frame)
    await lab.fake.settle()
    await lab.agent_sends(lab.controller.renewals.renew("vm1"))
    assert lab.events("lease.differs") == []
    dns.append(bytes([10, 1, 0, 6]))
    for _ in range(2):
        await lab.agent_sends(lab.controller.renewals.renew("vm1"))
    words = (
        f"{vm_ip(1)}: the DHCP server now names DNS 10.1.0.6; the VM was told DNS 10.1.0.5, and hears of it "
        "when it renews by itself"
    )
    assert lab.events("lease.differs") == [{"vm": "vm1", "ip": vm_ip(1), "reason": words}]
    vm = lab.fake.net.vms["vm1"]
    assert words in views.vm(lab.controller, vm)["warnings"]


async def test_the_ack_counts_when_the_switches_have_confirmed(lab: LeasedVM) -> None:
    lab.now += 300
    gate = lab.fake.sessions["edge1"].hold = asyncio.Event()
    order = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(order)
    assert lab.controller.renewals.get(order.id).state is OrderState.SENT
    gate.set()
    await lab.fake.settle()
    assert lab.controller.renewals.get(order.id).state is OrderState.ACKED


async def test_a_binding_a_switch_refuses_is_no_renewal(lab: LeasedVM) -> None:
    lab.now += 300
    lab.fake.sessions["edge1"].reject = 1
    order = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(order)
    done = lab.controller.renewals.get(order.id)
    assert done.state is OrderState.REJECTED
    assert "not confirmed" in done.reason


async def test_a_nak_to_the_agent_is_told_and_the_vm_keeps_its_lease(lab: LeasedVM) -> None:
    """The VM has asked nothing: it has its address till the lease ends, and asks by itself before that."""
    lab.answer = lab.reject
    before, end = len(lab.heard_by_vm()), lab.lease_end
    order = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(order)
    done = lab.controller.renewals.get(order.id)
    words = "rejected by DHCP server dhcp: not today; the VM keeps its address until the lease ends"
    assert (done.state, done.reason) == (OrderState.REJECTED, words)
    assert lab.lease_end == end
    assert not lab.events("binding.removed")
    assert lab.events("renewal.rejected")[0]["reason"] == done.reason
    assert len(lab.heard_by_vm()) == before


async def test_the_agents_word_of_silence_is_reported_and_the_binding_stays(lab: LeasedVM) -> None:
    lab.answer = lambda asked: None
    end = lab.lease_end
    order = lab.controller.renewals.renew("vm1")
    for _ in range(4):
        await lab.agent_sends(order)
    done = lab.controller.renewals.on_report(order.id, RenewalReport.SILENT, "no answer to 4 requests")
    assert (done.state, done.sent, done.reason) == (OrderState.SILENT, 4, "no answer to 4 requests")
    assert lab.events("renewal.silent")[0]["renewal"] == done
    assert lab.lease_end == end
    lab.answer = lab.grant
    await lab.agent_sends(order)
    assert lab.controller.renewals.get(order.id).state is OrderState.SILENT, "what comes too late is dropped"
    assert lab.lease_end == end


async def test_an_agent_that_is_dead_is_reported(lab: LeasedVM) -> None:
    lab.controller.renewals.limit = 0.01
    order = lab.controller.renewals.renew("vm1")
    done = await lab.controller.renewals.result(order.id)
    assert done.state is OrderState.SILENT
    assert "is the agent running?" in done.reason


async def test_a_lease_that_ended_on_the_way_is_put_to_the_server(lab: LeasedVM) -> None:
    """The DHCP server grants it again, or not; until then there is no binding."""
    lab.now = 1000.0 + LEASE
    await lab.controller.dhcp.expire()
    assert lab.fake.net.assignments == {}
    order = lab.controller.renewals.renew("vm1")
    assert (order.ip, order.client_id) == (vm_ip(1), CLIENT_ID.hex())
    lab.answer = lab.reject
    await lab.agent_sends(order)
    assert lab.controller.renewals.get(order.id).state is OrderState.REJECTED
    assert lab.fake.net.assignments == {}
    lab.answer = lab.grant
    order = lab.controller.renewals.renew("vm1")
    await lab.agent_sends(order)
    assert lab.controller.renewals.get(order.id).state is OrderState.ACKED
    assert lab.lease_end == lab.now + LEASE
    assert lab.events("binding.added")


async def test_a_lease_that_ended_and_went_to_another_is_not_asked_for(lab: LeasedVM) -> None:
    lab.now = 1000.0 + LEASE
    await lab.controller.dhcp.expire()
    lab.controller.inventory.register_vms(
        [VM.with_one_nic("vm2", vm_mac(2), "server1", addresses=(vm_ip(1),))]
    )
    with pytest.raises(RenewalError, match="no lease to renew"):
        lab.controller.renewals.renew("vm1")


async def test_a_renewal_from_another_port_moves_nothing(lab: LeasedVM) -> None:
    """Another VM knows the transaction id, and says everything right."""
    lab.controller.inventory.register_vms([VM.with_one_nic("vm2", vm_mac(2), "server2")])
    lab.fake.net.set_vm_port("vm2", "edge2", VMPort(vm_port(2), "tap2"))
    lab.controller.inventory.ports.changed([], [])
    await lab.controller.context.install(lab.fake.net.everything())
    order = lab.controller.renewals.renew("vm1")
    before, served = lab.fake.net.bindings(), len(lab.served)
    await lab.agent_sends(order, switch="edge2", port=vm_port(2))
    assert lab.fake.net.bindings() == before
    assert len(lab.served) == served, "nobody was asked"
    assert lab.controller.context.spoof_attempts.rows()[-1].vm == "vm2"
    assert lab.controller.renewals.get(order.id).state is OrderState.ORDERED


async def test_during_a_move_the_renewal_is_for_one_place(lab: LeasedVM) -> None:
    net = lab.fake.net
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))
    lab.port_at(2)
    await lab.fake.settle()
    order = lab.controller.renewals.renew("vm1", "server2")
    assert (order.server, order.switch) == ("server2", "edge2")
    await lab.agent_sends(order, switch="edge1", port=vm_port(1))
    assert lab.controller.renewals.get(order.id).state is OrderState.ORDERED
    await lab.agent_sends(order)
    assert lab.controller.renewals.get(order.id).state is OrderState.ACKED


async def test_a_new_renewal_takes_the_place_of_one_under_way(lab: LeasedVM) -> None:
    first, second = lab.controller.renewals.renew("vm1"), lab.controller.renewals.renew("vm1")
    assert lab.controller.renewals.get(first.id).state is OrderState.FAILED
    await lab.agent_sends(second)
    assert lab.controller.renewals.get(second.id).state is OrderState.ACKED


async def test_what_cannot_be_renewed_is_rejected_in_words(lab: LeasedVM) -> None:
    lab.controller.inventory.register_vms(
        [VM.with_one_nic("vm2", vm_mac(2), "server2", addresses=(vm_ip(2),))]
    )
    for vm, server, words in (
        ("nobody", "", "there is no VM nobody"),
        ("vm2", "", "has no port of VM vm2"),
        ("vm1", "server2", "may not be found at server2"),
    ):
        with pytest.raises(RenewalError, match=words):
            lab.controller.renewals.renew(vm, server)


async def test_a_vm_boots_and_is_renewed_through_our_relay(relayed: LeasedVM) -> None:
    """giaddr, hops and option 82 to the server; neither the option nor a stray packet to the VM."""
    lab = relayed
    assert lab.lease_end == 1000.0 + LEASE
    heard = lab.heard_by_vm()
    assert [d.message_type for _, d in heard] == [MessageType.OFFER, MessageType.ACK]
    for datagram, dhcp in heard:
        assert (datagram.src, datagram.dst, datagram.sport, datagram.dport) == (GATEWAY, vm_ip(1), 67, 68)
        assert dhcp.relay_agent is None
    order = lab.controller.renewals.renew("vm1")
    assert isinstance(order, RenewalOrder)
    assert order.dhcp_server == FAR
    await lab.agent_sends(order)
    assert lab.controller.renewals.get(order.id).state is OrderState.ACKED
    assert len(lab.heard_by_vm()) == len(heard)
    for datagram, dhcp in lab.served:
        assert (datagram.src, datagram.dst, datagram.sport, datagram.dport) == (GATEWAY, FAR, 67, 67)
        assert (dhcp.giaddr, dhcp.hops) == (GATEWAY, 1)
        assert dhcp.relay_agent == b"\x01\x08edge1:10\x02\x03vm1"
    assert lab.served[-1][1].ciaddr == vm_ip(1)


async def test_a_relayed_answer_for_a_relay_that_is_not_ours_is_rejected(relayed: LeasedVM) -> None:
    asked = replace(discover(vm_mac(1), 9), giaddr=IPv4Address("10.0.0.254"))
    frame = dhcp_frame(
        offer(asked, vm_ip(1), FAR, LEASE), "02:00:00:00:01:02", GATEWAY_MAC, FAR, GATEWAY, 67, 67
    )
    relayed.fake.send("leaf2", 90, frame)
    await relayed.fake.settle()
    assert "none of ours" in relayed.events("dhcp.rejected")[-1]["reason"]


async def test_renewals_over_rest(lab: LeasedVM) -> None:
    api = Api(lab.controller, dict)
    url = f"http://127.0.0.1:{await api.start('127.0.0.1', 0)}"
    try:
        async with aiohttp.ClientSession(url) as http:
            async with http.post("/v1/vms/vm1/renewals", json={"agent": True}) as answer:
                assert answer.status == 201
                order = await answer.json()
            assert (order["ip"], order["mac"], order["state"]) == (str(vm_ip(1)), vm_mac(1), "ordered")
            assert lab.events("vm.renew") == [], "whoever asks is the agent"
            waiting = asyncio.create_task(http.get(f"/v1/renewals/{order['id']}?wait=20"))
            await lab.agent_sends(lab.controller.renewals.get(order["id"]))
            found = await (await waiting).json()
            assert (found["state"], found["lease_seconds"]) == ("acked", LEASE)
            async with http.get("/v1/renewals") as answer:
                assert [o["id"] for o in (await answer.json())["renewals"]] == [order["id"]]
            for path, body, status, words in (
                ("vms/nobody/renewals", {}, 409, "no VM nobody"),
                ("vms/vm1/renewals", {"port": 7}, 400, "port"),
                ("renewals/renewal-9/events", {"event": "silent"}, 409, "no renewal renewal-9"),
                (f"renewals/{order['id']}/events", {"event": "sung"}, 400, "sung"),
            ):
                async with http.post(f"/v1/{path}", json=body) as answer:
                    assert answer.status == status
                    assert words in (await answer.json())["error"]
            async with http.get(f"/v1/renewals/{order['id']}?wait=ages") as answer:
                assert answer.status == 400
    finally:
        await api.stop()
