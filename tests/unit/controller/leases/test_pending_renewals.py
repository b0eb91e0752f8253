"""A VM that has moved owes a renewal: until a DHCP server has answered, whatever ends in between."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from retinue.controller.app import Controller
from retinue.controller.leases.renewals import AGAIN, LIMIT
from retinue.core.lease_renewal import Lease, request_frame
from retinue.core.migration import MigrationState
from retinue.core.model import PortStatus
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    MessageType,
    ack,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse_dhcp_frame,
    release,
    request,
)
from retinue.protocol.migrations import Report
from retinue.protocol.renewals import OrderState, RenewalOrder, RenewalReport
from retinue.protocol.vms import VMReport
from retinue.southbound.openflow.codec.messages import FlowRemoved
from retinue.southbound.ovsdb import BridgePort
from support import virtual_time
from support.fabric.networks import GATEWAY_MAC, add_vm, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.memory_store import MemoryStore
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SERVER = IPv4Address("10.1.0.2")
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")
CLIENT_ID = b"\x01\x52\x54\x00\x00\x00\x01"
LEASE = 600.0
WORDS = ("target_opened", "copy_started", "converged", "stopped", "resumed")


@dataclass
class Life:
    """vm1 with a lease, a DHCP server, and one controller after the other over the same switches' ports."""

    clock: Any
    store: MemoryStore = field(default_factory=MemoryStore)
    answers: str = "ack"
    lease: float = LEASE

    async def begin(self) -> None:
        """A controller starts; switches and ports come when they are told to."""
        self.fake = FakeNetwork(fabric(), self.clock, self.store)
        self.fake.hosts["leaf2", 90] = self.serve
        self.controller.restore(self.store.load())
        await self.controller.start()
        self.controller.orchestrator.resume_all()

    def switches(self, *but: str) -> None:
        for switch in self.fake.net.switches:
            if switch not in but:
                self.fake.connect(switch)

    async def again(self) -> None:
        """The controller is killed and started again; everything finds it."""
        await self.fake.stop()
        await self.begin()
        self.switches()
        for edge in (1, 2):
            self.port_at(edge)
        await self.fake.settle()

    async def boot(self) -> None:
        await self.begin()
        self.switches()
        vm = add_vm(fabric(), 1, at=1, bound=False)
        self.controller.inventory.register_vms([vm])
        self.port_at(1)
        await self.fake.settle()
        self.controller.inventory.power.on_report("vm1", VMReport.STARTED, "server1")
        await self.asks(discover(vm_mac(1), 7, client_id=CLIENT_ID), 1)
        await self.asks(request(vm_mac(1), 7, vm_ip(1), SERVER, CLIENT_ID), 1)
        assert vm_ip(1) in self.fake.net.assignments

    async def migration(self, *words: str) -> None:
        """To server2, as far as these words of the hypervisors go."""
        self.id = self.controller.orchestrator.start("vm1", target_server="server2").id
        await self.say(*words)

    async def say(self, *words: str) -> None:
        for word in words:
            if word == "target_opened":
                self.port_at(2)
            reason = "the hypervisor's reason"
            self.controller.orchestrator.reports.on_report(self.id, Report(word), self.clock(), reason)
            await self.fake.settle()

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    @property
    def state(self) -> MigrationState:
        return self.controller.orchestrator.migrations[self.id].state

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.controller.events, kind, 10_000)]

    def ordered(self) -> list[RenewalOrder]:
        """As agents are told; also those told once more."""
        return [event["renewal"] for event in self.events("vm.renew")]

    def port_at(self, edge: int, *, gone: bool = False) -> None:
        port = BridgePort(
            dpid=0x30 + edge, bridge="br0", name="tap1", number=vm_port(1), status=PortStatus.UP,
            iface_id="vm1", attached_mac=vm_mac(1),
        )  # fmt: skip
        self.controller.inventory.ports.changed([port] if gone else [], [] if gone else [port])

    async def asks(self, dhcp: DHCP, at: int) -> None:
        """vm1 itself says something to its DHCP server."""
        source = vm_ip(1) if dhcp.message_type is MessageType.RELEASE else NOWHERE
        frame = dhcp_frame(dhcp, vm_mac(1), BROADCAST, source, EVERYWHERE, 68, 67)
        self.fake.send(f"edge{at}", vm_port(1), frame)
        await self.fake.settle()

    async def agent_sends(self, order: RenewalOrder) -> None:
        lease = Lease(order.ip, order.mac, order.dhcp_server, bytes.fromhex(order.client_id), order.next_hop)
        self.fake.send(order.switch, order.port_number, request_frame(lease, order.xid))
        await self.fake.settle()

    def serve(self, frame: bytes) -> None:
        ethernet, _, asked = parse_dhcp_frame(frame)
        match asked.message_type, self.answers:
            case MessageType.DISCOVER, _:
                reply = offer(asked, vm_ip(1), SERVER, int(self.lease))
            case MessageType.REQUEST, "ack":
                reply = ack(asked, vm_ip(1), SERVER, int(self.lease))
            case MessageType.REQUEST, "nak":
                reply = nak(asked, SERVER, "not here")
            case _:
                return
        mac = self.fake.net.servers["dhcp"].mac
        self.fake.send("leaf2", 90, dhcp_frame(reply, mac, ethernet.src, SERVER, vm_ip(1), 67, 68))

    def passes(self, at: int) -> bool:
        """Whether what vm1 sends from this server with its address leaves the network."""
        frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
        return bool(self.fake.fabric.send(f"edge{at}", vm_port(1), frame).arrivals)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    found = Life(Clock())
    await found.boot()
    yield found
    await found.fake.stop()


# ---- over a restart ----


async def test_a_renewal_nobody_has_answered_is_ordered_again_when_everything_is_back(life: Life) -> None:
    await life.migration(*WORDS)
    (first,) = life.ordered()
    await life.fake.stop()
    await life.begin()
    life.switches("edge2")
    life.port_at(2)
    await life.fake.settle()
    assert life.ordered() == [], "its switch is not back"
    life.fake.connect("edge2")
    await life.fake.settle()
    (order,) = life.ordered()
    assert (order.ip, order.client_id, order.dhcp_server) == (first.ip, first.client_id, first.dhcp_server)
    assert (order.server, order.switch, order.port_number) == ("server2", "edge2", vm_port(1))
    await life.agent_sends(order)
    assert life.controller.renewals.get(order.id).state is OrderState.ACKED
    await life.again()
    assert life.ordered() == []


async def test_the_port_may_come_last(life: Life) -> None:
    await life.migration(*WORDS)
    await life.fake.stop()
    await life.begin()
    life.switches()
    await life.fake.settle()
    assert life.ordered() == []
    life.port_at(2)
    await life.fake.settle()
    assert len(life.ordered()) == 1


@pytest.mark.parametrize("answers", ["ack", "nak"])
async def test_what_a_dhcp_server_has_answered_is_not_ordered_again(life: Life, answers: str) -> None:
    life.answers = answers
    await life.migration(*WORDS)
    assert "PendingRenewal" in life.store.tables()
    await life.agent_sends(life.ordered()[0])
    assert "PendingRenewal" not in life.store.tables()
    await life.again()
    assert life.ordered() == []


async def test_the_vms_own_renewal_does_as_well(life: Life) -> None:
    await life.migration(*WORDS)
    await life.asks(request(vm_mac(1), 9, vm_ip(1), SERVER, CLIENT_ID), 2)
    await life.again()
    assert life.ordered() == []


async def test_silence_and_an_agents_failure_are_tried_again_by_the_next_controller(life: Life) -> None:
    life.answers = "nothing"
    await life.migration(*WORDS)
    for report in RenewalReport:
        (order,) = life.ordered()
        life.controller.renewals.on_report(order.id, report, "in vain")
        await life.fake.settle()
        assert len(life.ordered()) == 1, "but by this one it is not"
        await life.again()
    assert len(life.ordered()) == 1


async def test_an_ack_whose_binding_does_not_stand_is_no_end(life: Life) -> None:
    await life.migration(*WORDS)
    life.clock.now += 100
    life.fake.sessions["edge2"].reject = 1
    await life.agent_sends(life.ordered()[0])
    assert life.controller.renewals.get(life.ordered()[0].id).state is OrderState.REJECTED
    await life.again()
    assert len(life.ordered()) == 1


async def test_a_vm_that_was_removed_or_gave_its_lease_back_owes_nothing(life: Life) -> None:
    await life.migration(*WORDS)
    await life.asks(release(vm_ip(1), vm_mac(1), 9, SERVER), 2)
    await life.again()
    assert life.ordered() == [] and "PendingRenewal" not in life.store.tables()
    await life.asks(discover(vm_mac(1), 8, client_id=CLIENT_ID), 2)
    await life.asks(request(vm_mac(1), 8, vm_ip(1), SERVER, CLIENT_ID), 2)
    life.controller.renewals.vm_migrated("vm1")
    await life.fake.settle()
    (order,) = life.ordered()
    assert "PendingRenewal" in life.store.tables()
    await life.say("source_freed")
    await life.controller.inventory.remove_vm("vm1")
    await life.fake.settle()
    ended = life.controller.renewals.get(order.id)
    assert (ended.state, ended.reason) == (OrderState.FAILED, "VM vm1 was removed")
    assert "PendingRenewal" not in life.store.tables()
    await life.again()
    assert life.ordered() == []


async def test_a_vm_with_static_addresses_owes_nothing(life: Life) -> None:
    add = add_vm(fabric(), 2, at=1, bound=False)
    life.controller.inventory.register_vms([add])
    life.controller.renewals.vm_migrated("vm2")
    assert "PendingRenewal" not in life.store.tables()


async def test_a_move_the_controller_did_not_see_the_end_of(life: Life) -> None:
    await life.migration(*WORDS[:-1])
    life.fake.sessions["edge1"].hold = asyncio.Event()
    await life.say("resumed")
    assert (life.state, life.ordered()) == (MigrationState.SWITCHED, [])
    await life.again()
    assert life.state is MigrationState.CONFIRMED
    assert [order.server for order in life.ordered()] == ["server2"]


# ---- leases that run out ----


async def test_a_lease_that_ran_out_before_or_during_the_absence_is_asked_for(life: Life) -> None:
    await life.migration(*WORDS)
    life.clock.now += LEASE - 1
    await life.again()
    assert vm_ip(1) in life.fake.net.assignments
    for _ in range(2):  # First while it is away, then it has been known as ended.
        life.clock.now += 2
        await life.again()
        assert vm_ip(1) not in life.fake.net.assignments
        (order,) = life.ordered()
        assert (order.ip, order.client_id, order.dhcp_server) == (vm_ip(1), CLIENT_ID.hex(), SERVER)
    await life.agent_sends(order)
    assert life.controller.renewals.get(order.id).state is OrderState.ACKED
    assert life.passes(2)
    assert not {"PendingRenewal", "EndedLease"} & life.store.tables()


async def test_a_lease_that_ran_out_in_a_move_that_outlives_the_controller(life: Life) -> None:
    await life.migration("target_opened", "copy_started")
    life.clock.now += LEASE + 1
    await life.controller.dhcp.expire()
    await life.again()
    assert life.controller.net.assignments == {}
    await life.say("copy_started", "converged", "stopped", "resumed")
    (order,) = life.ordered()
    assert (order.ip, order.server) == (vm_ip(1), "server2")


async def test_an_address_that_went_to_another_is_not_asked_for(life: Life) -> None:
    await life.migration(*WORDS)
    life.clock.now += LEASE + 1
    await life.controller.dhcp.expire()
    other = add_vm(fabric(), 2, at=1, bound=False)
    with_address = replace(other, nics=(replace(other.nic, addresses=(vm_ip(1),)),))
    life.controller.inventory.register_vms([with_address])
    await life.fake.settle()
    await life.again()
    assert life.ordered() == []


# ---- an agent that is not there at once ----


def test_the_agent_is_told_again_until_its_request_comes_in() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        life = Life(loop.time)
        await life.boot()
        life.answers = "nothing"
        await life.migration(*WORDS)
        began = loop.time()
        await asyncio.sleep(2 * AGAIN + 1)
        told = life.ordered()
        assert len(told) == 3 and len({order.id for order in told}) == 1
        await life.agent_sends(told[0])
        await asyncio.sleep(2 * AGAIN + 1)
        assert len(life.ordered()) == 3, "it has begun"
        ended = await life.controller.renewals.result(told[0].id)
        assert ended.state is OrderState.SILENT
        assert loop.time() - began == pytest.approx(LIMIT, abs=0.1)
        await life.fake.stop()

    virtual_time.run(story())


# ---- a lease that ends while its VM moves, in the order in which it really happens ----


class Timeouts:
    """Switches that end entries by themselves and say so, `late` or early by the controller's clock."""

    def __init__(self, life: Life, late: float) -> None:
        self.life, self.late = life, late
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            fake = self.life.fake
            for name, session in fake.sessions.items():
                for flow in fake.fabric[name].expire(self.life.clock() - self.late):
                    gone = FlowRemoved(
                        xid=0, reason=1, table=flow.table, priority=flow.priority, match=flow.match,
                        cookie=flow.cookie, packets=0, bytes=0, duration_s=0.0, hard_timeout=5,
                    )  # fmt: skip
                    fake.controller.flow_removed(session, gone)  # type: ignore[arg-type]


@pytest.mark.parametrize("late", [-0.6, 0.6])
@pytest.mark.parametrize("before", range(len(WORDS) + 1))
def test_a_lease_ends_on_the_way(before: int, late: float) -> None:
    """`before`: how many words of the hypervisors have come when the lease ends."""

    async def story() -> None:
        life = Life(asyncio.get_running_loop().time, answers="ack", lease=5.0)
        await life.boot()
        timeouts = Timeouts(life, late)
        await life.migration(*WORDS[:before])
        asked_early = len(life.ordered())
        assert life.passes(1) or life.passes(2)
        await asyncio.sleep(8.0)
        assert life.fake.net.assignments == {}
        assert not life.passes(1) and not life.passes(2), "nobody speaks from an address nobody holds"
        assert len(life.events("binding.removed")) == 1
        await life.say(*WORDS[before:])
        assert life.state is MigrationState.CONFIRMED
        assert not life.controller.context.installer.pending()
        order = life.ordered()[-1]
        assert len({o.id for o in life.ordered()}) == 1 and (asked_early == 0) == (before < len(WORDS))
        assert (order.ip, order.server) == (vm_ip(1), "server2")
        life.lease = LEASE
        await life.agent_sends(order)
        assert life.controller.renewals.get(order.id).state is OrderState.ACKED
        (row,) = life.fake.net.bindings()
        assert (row.switch, row.ip) == ("edge2", vm_ip(1))
        assert life.passes(2) and not life.passes(1)
        assert not life.controller.context.counters["internal errors"]
        timeouts.task.cancel()
        await life.fake.stop()

    virtual_time.run(story())


def test_a_lease_ends_in_a_move_that_is_undone() -> None:
    """The VM stays where it was, and gets its address again when it asks for it itself."""

    async def story() -> None:
        life = Life(asyncio.get_running_loop().time, lease=5.0)
        await life.boot()
        timeouts = Timeouts(life, 0.6)
        await life.migration(*WORDS[:3])
        await asyncio.sleep(8.0)
        await life.say("failed", "rolled_back")
        assert (life.state, life.ordered()) == (MigrationState.UNDONE, [])
        assert life.fake.net.bindings() == [] and not life.controller.context.installer.pending()
        assert not life.passes(1) and not life.passes(2)
        life.lease = LEASE
        await life.asks(request(vm_mac(1), 9, vm_ip(1), SERVER, CLIENT_ID), 1)
        assert life.passes(1) and not life.passes(2)
        assert "EndedLease" not in life.store.tables()
        timeouts.task.cancel()
        await life.fake.stop()

    virtual_time.run(story())
