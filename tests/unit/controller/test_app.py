"""The controller over fake switches: what it does when frames, ports, managers and switches speak."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from retinue.controller import by_the_clock
from retinue.controller.app import Controller
from retinue.controller.context import Context
from retinue.controller.lease_changes import AddressAssigned
from retinue.controller.migrations.orchestrator import MigrationError
from retinue.controller.migrations.placing import PRIMERS
from retinue.controller.room import Room
from retinue.controller.state import ServerLocation, Stored
from retinue.core.limits import MOST_PREFIXES, MOST_WAITING
from retinue.core.migration import MigrationState, PlacementChange, begin, placement
from retinue.core.model import DEFAULT_VRF, VM, ModelError, Network, PortRef, PortStatus, VMPort
from retinue.core.model.network import Owner
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    Ethernet,
    MessageType,
    ack,
    arp_request,
    build_udp4,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse,
    parse_arp,
    parse_dhcp_frame,
    release,
    renewal,
    request,
)
from retinue.core.pipeline import building
from retinue.core.pipeline.compiler import Before
from retinue.core.pipeline.contributions import Contribution
from retinue.core.pipeline.cookies import Reason, cookie, reason_of
from retinue.core.pipeline.entry import Change, Flow, Output
from retinue.core.pipeline.underlay.fabric_switches import UP_GROUP
from retinue.core.snooping.spoofing import SpoofAttempt
from retinue.protocol.migrations import Report
from retinue.southbound.openflow.codec.messages import FlowStats
from retinue.southbound.openflow.server import Rejected
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import GATEWAY_MAC, UPLINK, fabric, vm_ip, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork
from support.fakes.switch import FakeSwitch
from support.recent_events import recent

DHCP_SERVER = IPv4Address("10.1.0.2")
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")
LEASE = 600


@dataclass
class ControlledNetwork:
    """The fake network with a clock that tests turn."""

    fake: FakeNetwork
    now: float = 1000.0
    rejects: bool = False

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    def events(self, kind: str) -> list[dict[str, object]]:
        return [event.data for event in recent(self.controller.events, kind, 1000)]

    def port(self, vm: int, edge: int, *, mac: str | None = None) -> BridgePort:
        return BridgePort(
            dpid=0x30 + edge, bridge="br0", name=f"tap{vm}", number=vm_port(vm), status=PortStatus.UP,
            iface_id=f"vm{vm}", attached_mac=mac or vm_mac(vm),
        )  # fmt: skip

    async def boot(self, vm: int, at: int) -> None:
        """Registered in advance, port reported, address by DHCP."""
        self.controller.inventory.register_vms([VM.with_one_nic(f"vm{vm}", vm_mac(vm), f"server{at}")])
        self.controller.inventory.ports.changed([], [self.port(vm, at)])
        await self.fake.settle()
        await self.lease(vm, at)

    async def lease(self, vm: int, at: int) -> None:
        await self.say(vm, at, discover(vm_mac(vm), 7))
        await self.say(vm, at, request(vm_mac(vm), 7, vm_ip(vm), DHCP_SERVER))

    async def say(self, vm: int, at: int, dhcp: DHCP, src: IPv4Address = NOWHERE) -> None:
        frame = dhcp_frame(dhcp, vm_mac(vm), BROADCAST, src, EVERYWHERE, 68, 67)
        self.fake.send(f"edge{at}", vm_port(vm), frame)
        await self.fake.settle()

    def serve_dhcp(self, frame: bytes) -> None:
        """The DHCP server's host: grants each VM N its address."""
        _, _, asked = parse_dhcp_frame(frame)
        number = int(asked.chaddr[-2:], 16)
        match asked.message_type:
            case MessageType.DISCOVER:
                reply = offer(asked, vm_ip(number), DHCP_SERVER, LEASE)
            case MessageType.REQUEST if self.rejects:
                reply = nak(asked, DHCP_SERVER, "go away")
            case MessageType.REQUEST:
                reply = ack(asked, vm_ip(number), DHCP_SERVER, LEASE)
            case _:
                return
        server = self.fake.net.servers["dhcp"]
        answer = dhcp_frame(reply, server.mac, asked.chaddr, DHCP_SERVER, vm_ip(number), 67, 68)
        self.fake.send("leaf2", 90, answer)

    def heard_by(self, vm: int, at: int) -> list[bytes]:
        return [
            frame for switch, port, frame in self.fake.heard if (switch, port) == (f"edge{at}", vm_port(vm))
        ]


@pytest.fixture
async def lab() -> AsyncIterator[ControlledNetwork]:
    fake: FakeNetwork
    lab: ControlledNetwork
    fake = FakeNetwork(fabric(), clock=lambda: lab.now)
    lab = ControlledNetwork(fake)
    fake.hosts["leaf2", 90] = lab.serve_dhcp
    await fake.start()
    yield lab
    await fake.stop()


async def test_a_vm_boots_by_dhcp_and_is_bound(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    (row,) = lab.controller.net.bindings()
    assert (row.ip, row.mac, row.switch, row.port, row.lease_end) == (
        vm_ip(1), vm_mac(1), "edge1", vm_port(1), 1000.0 + LEASE,
    )  # fmt: skip
    kinds = [parse_dhcp_frame(f)[2].message_type for f in lab.heard_by(1, 1)]
    assert kinds == [MessageType.OFFER, MessageType.ACK]
    assert not lab.controller.context.installer.pending()
    assert lab.events("binding.added")


async def test_the_ack_is_handed_on_only_when_the_binding_is_confirmed(lab: ControlledNetwork) -> None:
    """The binding stands before the VM uses it: the VM's first packet finds its way open."""
    lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    lab.controller.inventory.ports.changed([], [lab.port(1, 1)])
    await lab.fake.settle()
    await lab.say(1, 1, discover(vm_mac(1), 7))
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    await lab.say(1, 1, request(vm_mac(1), 7, vm_ip(1), DHCP_SERVER))
    assert len(lab.heard_by(1, 1)) == 1, "the ACK waits for spine1"
    gate.set()
    await lab.fake.settle()
    assert len(lab.heard_by(1, 1)) == 2


async def test_a_binding_a_switch_refuses_keeps_the_ack_back(lab: ControlledNetwork) -> None:
    lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    lab.controller.inventory.ports.changed([], [lab.port(1, 1)])
    await lab.fake.settle()
    await lab.say(1, 1, discover(vm_mac(1), 7))
    lab.fake.sessions["edge1"].reject = 1
    await lab.say(1, 1, request(vm_mac(1), 7, vm_ip(1), DHCP_SERVER))
    assert len(lab.heard_by(1, 1)) == 1, "the ACK is kept back"
    assert lab.events("binding.unconfirmed")
    assert not lab.events("binding.added")


async def test_vm_is_ready_only_when_given_and_detected_match_and_flows_stand(lab: ControlledNetwork) -> None:
    """What it waits for is told, and goes as it comes."""
    del lab.fake.net.detected["server1"]
    lab.controller.inventory.register_vms(
        [VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),))]
    )
    await lab.fake.settle()
    vm = lab.fake.net.vms["vm1"]
    assert len(lab.controller.inventory.missing_for(vm)) == 2
    lab.controller.inventory.ports.changed([], [lab.port(1, 1)])
    await lab.fake.settle()
    assert lab.controller.inventory.missing_for(vm) == ["server server1 has not been detected at any leaf"]
    assert lab.controller.context.state.vm_states["vm1"] == "registered"
    arp = arp_request("02:00:00:00:00:01", IPv4Address("10.0.0.11"), IPv4Address("10.0.0.254"))
    lab.fake.send("leaf1", 101, arp)
    await lab.fake.settle()
    assert lab.fake.net.location("server1") == PortRef("leaf1", "p1")
    assert lab.controller.inventory.missing_for(vm) == []
    assert lab.controller.context.state.vm_states["vm1"] == "ready"
    assert lab.events("vm.ready")


async def test_a_static_address_is_bound_before_the_vm_speaks(lab: ControlledNetwork) -> None:
    """The manager gives it: no packet-in is needed before traffic flows."""
    vms = [VM.with_one_nic(f"vm{n}", vm_mac(n), f"server{n}", addresses=(vm_ip(n),)) for n in (1, 2)]
    lab.controller.inventory.register_vms(vms)
    lab.controller.inventory.ports.changed([], [lab.port(1, 1), lab.port(2, 2)])
    await lab.fake.settle()
    delivery = lab.fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2)))
    assert [(a[0], a[1]) for a in delivery.arrivals] == [("edge2", vm_port(2))]
    assert not lab.controller.context.counters


async def test_bulk_booking_is_all_or_nothing(lab: ControlledNetwork) -> None:
    good, bad = (
        VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),)),
        VM.with_one_nic("vm2", vm_mac(1), "server1"),
    )
    with pytest.raises(ModelError, match="already belongs to VM vm1"):
        lab.controller.inventory.register_vms([good, bad])
    assert not lab.fake.net.vms
    assert not lab.fake.net.assignments


async def test_controller_answers_arp_from_what_it_holds(lab: ControlledNetwork) -> None:
    for number, at in ((1, 1), (2, 2), (3, 1)):
        await lab.boot(number, at)
    lab.fake.heard.clear()
    for tpa, expected in ((vm_ip(2), GATEWAY_MAC), (vm_ip(3), vm_mac(3)), (DHCP_SERVER, GATEWAY_MAC)):
        lab.fake.send("edge1", vm_port(1), arp_request(vm_mac(1), vm_ip(1), tpa))
        (frame,) = lab.heard_by(1, 1)
        reply = parse_arp(parse(frame).payload)
        assert (reply.sha, reply.spa) == (expected, tpa)
        lab.fake.heard.clear()
    lab.fake.send("edge1", vm_port(1), arp_request(vm_mac(1), vm_ip(1), IPv4Address("10.1.0.200")))
    lab.fake.send("edge1", vm_port(1), arp_request(vm_mac(1), NOWHERE, vm_ip(1)))
    assert not lab.fake.heard, "no answer for what nobody has, nor for the asker's own address"


async def test_spoofing_is_reported_with_who_where_what_how_often(lab: ControlledNetwork) -> None:
    def counts() -> list[int]:
        found = [told["spoofing"] for told in lab.events("spoofing")]
        return [row.count for row in found if isinstance(row, SpoofAttempt)]

    await lab.boot(1, at=1)
    await lab.boot(2, at=2)
    for _ in range(3):
        lab.fake.send("edge2", vm_port(2), udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(1), OUTSIDE))
    (row,) = lab.controller.context.spoof_attempts.rows()
    assert (row.kind, row.vm, row.switch, row.port) == ("ip", "vm2", "edge2", vm_port(2))
    assert (row.claimed_mac, row.claimed_ip, row.count) == (vm_mac(2), str(vm_ip(1)), 3)
    assert counts() == [1], "the first at once"
    lab.controller.events.flush()
    lab.controller.events.flush()
    assert counts() == [1, 3], "the rest in a second, once"


async def test_a_vm_that_asks_for_anothers_address_is_told_and_heard_by_the_dhcp_server(
    lab: ControlledNetwork,
) -> None:
    await lab.boot(1, at=1)
    await lab.boot(2, at=2)
    heard: list[bytes] = []
    lab.fake.hosts["leaf2", 90] = heard.append
    await lab.say(2, 2, request(vm_mac(2), 8, vm_ip(1), DHCP_SERVER))
    (row,) = lab.controller.context.spoof_attempts.rows()
    assert (row.kind, row.vm, row.switch, row.port) == ("dhcp", "vm2", "edge2", vm_port(2))
    assert (row.claimed_mac, row.claimed_ip, row.count) == (vm_mac(2), str(vm_ip(1)), 1)
    assert len(heard) == 1
    assert [(r.vm, r.ip) for r in lab.controller.net.bindings()] == [("vm1", vm_ip(1)), ("vm2", vm_ip(2))]


async def test_release_nak_and_lease_end_close_the_port(lab: ControlledNetwork) -> None:
    async def may_send() -> bool:
        await lab.fake.settle()
        frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
        return bool(lab.fake.send("edge1", vm_port(1), frame).arrivals)

    await lab.boot(1, at=1)
    assert await may_send()
    await lab.say(1, 1, release(vm_ip(1), vm_mac(1), 9, DHCP_SERVER), src=vm_ip(1))
    assert not await may_send()
    await lab.lease(1, 1)
    assert await may_send()
    lab.rejects = True
    await lab.say(1, 1, renewal(vm_ip(1), vm_mac(1), 10), src=vm_ip(1))
    assert not await may_send()
    lab.rejects = False
    await lab.lease(1, 1)
    assert await may_send()
    lab.now += LEASE + 1
    await lab.controller.dhcp.expire()
    assert not await may_send()
    reasons = [event["reason"] for event in lab.events("binding.removed")]
    assert reasons == ["released by the VM", "rejected by DHCP server dhcp", "the lease ended"]


async def migrate_to(lab: ControlledNetwork, target: int, *events: str) -> str:
    """Start a migration of vm1 by the manager's message; the hypervisor says `events`."""
    migration = lab.controller.orchestrator.start("vm1", target_server=f"server{target}")
    lab.controller.inventory.ports.changed([], [lab.port(1, target)])
    await lab.fake.settle()
    for event in events:
        lab.controller.orchestrator.reports.on_report(migration.id, Report(event), lab.now, "")
        await lab.fake.settle()
    return str(migration.id)


async def test_a_move_takes_binding_and_flows_along(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started")
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.COPYING
    rows = {(row.switch, row.active) for row in lab.controller.net.bindings(["vm1"])}
    assert rows == {("edge1", True), ("edge2", False)}
    lab.controller.orchestrator.reports.on_report(id, Report.RESUMED, lab.now, "")
    await lab.fake.settle()
    (row,) = lab.controller.net.bindings(["vm1"])
    assert (row.switch, row.active) == ("edge2", True)
    assert (
        lab.controller.orchestrator.reports.on_report(id, Report.SOURCE_FREED, lab.now, "").state
        is MigrationState.FREED
    )
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.DONE
    figures = lab.controller.orchestrator.figures_of(id)
    assert figures["flow_mods"] > 0
    assert figures["control_ms"] == 0.0
    types = [e.type for e in recent(lab.controller.events, "migration.", 100) if e.type != "migration.step"]
    assert types == ["migration.open_target", "migration.start_copy", "migration.free_source"]


async def test_how_long_things_took_is_counted(lab: ControlledNetwork) -> None:
    durations = lab.controller.context.durations
    await lab.boot(1, at=1)
    assert sum(durations.confirmation.counts) > 0 == sum(durations.migration.counts)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "stopped")
    lab.now += 0.3
    for report in (Report.RESUMED, Report.SOURCE_FREED):
        lab.controller.orchestrator.reports.on_report(id, report, lab.now, "")
        await lab.fake.settle()
    assert durations.ended == {"done": 1}
    for histogram in (durations.migration, durations.downtime, durations.switch_over):
        assert sum(histogram.counts) == 1
    assert durations.downtime.seconds == durations.migration.seconds == pytest.approx(0.3)
    id = await migrate_to(lab, 3, "target_opened", "copy_started")
    lab.controller.orchestrator.reports.on_report(id, Report.FAILED, lab.now, "no room")
    for report in (Report.TARGET_CLOSED, Report.ROLLED_BACK):
        lab.controller.orchestrator.reports.on_report(id, report, lab.now, "")
        await lab.fake.settle()
    assert durations.ended == {"done": 1, "undone": 1} and sum(durations.migration.counts) == 1


async def test_traffic_waits_at_the_target_from_the_moment_the_source_stops(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "stopped")
    migration = lab.controller.orchestrator.migrations[id]
    assert (migration.state, migration.diverted) == (MigrationState.DIVERTED, True)
    rows = {(row.switch, row.active) for row in lab.controller.net.bindings(["vm1"])}
    assert rows == {("edge1", False), ("edge2", True)}
    lab.controller.orchestrator.reports.on_report(id, Report.RESUMED, lab.now, "")
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.CONFIRMED
    assert [row.switch for row in lab.controller.net.bindings(["vm1"])] == ["edge2"]


async def test_what_comes_late_is_sent_on_and_what_comes_meanwhile_is_copied(lab: ControlledNetwork) -> None:
    """The source's edge forwards once all steer; from the stop to RESUME the target's sends it copies."""
    await lab.boot(1, at=1)
    to_vm1 = udp_frame(lab.fake.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(1))

    def comes_to() -> set[str]:
        arrivals = [way.arrivals for way in lab.fake.fabric.all_paths("leaf2", 91, to_vm1)]
        assert all(len(found) == len({switch for switch, _, _ in found}) for found in arrivals)
        return {switch for found in arrivals for switch, _, _ in found}

    id = await migrate_to(lab, 2, "target_opened", "copy_started", "converged")
    assert comes_to() == {"edge2"}
    forwards = asyncio.Event()

    def look(_: object = None) -> None:
        if lab.controller.net.vms["vm1"].forwarded_from:
            forwards.set()

    lab.controller.context.after_install(look)
    look()  # It may be so already.
    await asyncio.wait_for(forwards.wait(), 60)
    await lab.fake.settle()
    late = udp_frame(GATEWAY_MAC, lab.fake.net.servers["server1"].mac, OUTSIDE, vm_ip(1))
    for way in lab.fake.fabric.all_paths("edge1", UPLINK, late):
        assert [(switch, port) for switch, port, _ in way.arrivals] == [("edge2", vm_port(1))]
    before = {name: dict(switch.flows) for name, switch in lab.fake.fabric.switches.items()}
    lab.controller.orchestrator.reports.on_report(id, Report.STOPPED, lab.now, "")
    await lab.fake.settle()
    assert comes_to() == {"edge1", "edge2"}
    changed = [n for n, switch in lab.fake.fabric.switches.items() if dict(switch.flows) != before[n]]
    assert changed == ["edge2"]
    lab.controller.orchestrator.reports.on_report(id, Report.RESUMED, lab.now, "")
    await lab.fake.settle()
    assert comes_to() == {"edge2"}
    # A switch may follow its tables late: what it still sends to the source is sent on after the VM has gone.
    for way in lab.fake.fabric.all_paths("edge1", UPLINK, late):
        assert [(switch, port) for switch, port, _ in way.arrivals] == [("edge2", vm_port(1))]
    assert [row.switch for row in lab.controller.net.bindings(["vm1"])] == ["edge2"]
    lab.controller.orchestrator.reports.on_report(id, Report.SOURCE_FREED, lab.now, "")
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.DONE
    assert not any(way.arrivals for way in lab.fake.fabric.all_paths("edge1", UPLINK, late))


async def test_a_source_that_is_shut_down_at_once_does_not_hold_up_the_end_of_its_move(
    lab: ControlledNetwork,
) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "resumed", "source_freed")
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.DONE
    id = await migrate_to(lab, 1, "target_opened", "copy_started", "resumed")
    lab.fake.sessions["edge2"].close("the server was shut down")
    lab.controller.orchestrator.reports.on_report(id, Report.SOURCE_FREED, lab.now, "")
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.DONE


async def test_progress_of_the_copy_is_told_and_changes_nothing(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started")
    orchestrator, before = lab.controller.orchestrator, lab.controller.orchestrator.migrations[id]
    orchestrator.reports.on_copying(id, 2, 5 << 20, 20 << 20)
    (told,) = lab.events("migration.copying")
    told = {name: told[name] for name in ("migration_id", "vm", "copy_pass", "remaining", "written_a_second")}
    assert list(told.values()) == [id, "vm1", 2, 5 << 20, 20 << 20]
    assert orchestrator.migrations[id] is before
    assert orchestrator.figures_of(id)["passes"] == 2
    orchestrator.cancel(id)
    orchestrator.reports.on_copying(id, 9, 0, 0)
    assert orchestrator.figures_of(id)["passes"] == 2, "it comes too late"
    with pytest.raises(MigrationError, match="no migration"):
        orchestrator.reports.on_copying("migration-99", 1, 0, 0)


async def test_what_follows_a_vm_that_runs_at_the_target_is_told_until_all_is_there(
    lab: ControlledNetwork,
) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started")
    orchestrator = lab.controller.orchestrator
    orchestrator.reports.on_copying(id, 2, 5 << 20, 0, postcopy=True)
    assert lab.events("migration.copying") == [], "it runs at its source"
    for report in (Report.CONVERGED, Report.STOPPED, Report.RESUMED):
        orchestrator.reports.on_report(id, report, lab.now)
        await lab.fake.settle()
    orchestrator.reports.on_copying(id, 2, 5 << 20, 0, postcopy=True)
    (told,) = lab.events("migration.copying")
    assert (told["postcopy"], told["remaining"]) == (True, 5 << 20)
    assert orchestrator.figures_of(id)["postcopy_remaining"] == 5 << 20
    assert "the rest of the VM's memory, 5.0 MiB, to go over from server" in orchestrator.waits_for(id)
    with pytest.raises(MigrationError, match="there is no way back"):
        orchestrator.cancel(id)
    orchestrator.reports.on_copying(id, 2, 0, 0, postcopy=True)
    assert "report that nothing of the VM is left" in orchestrator.waits_for(id)


async def test_what_a_move_that_failed_has_lost_is_counted(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "stopped")
    orchestrator = lab.controller.orchestrator
    orchestrator.reports.on_report(id, Report.FAILED, lab.now, "the target is gone")
    orchestrator.reports.on_report(id, Report.ROLLED_BACK, lab.now, "", frames=30)
    orchestrator.reports.on_report(id, Report.TARGET_CLOSED, lab.now, "", frames=40 + PRIMERS)
    await lab.fake.settle()
    figures = orchestrator.figures_of(id)
    assert (figures["diverted"], figures["kept"], figures["lost_about"]) == (40, 30, 10)


async def test_what_waited_at_the_target_of_a_move_that_is_undone_comes_to_the_vm(
    lab: ControlledNetwork,
) -> None:
    """The target is answered when its traffic goes to the source again, with the mark of what is there."""
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "converged")
    reports = lab.controller.orchestrator.reports
    waited = [udp_frame(vm_mac(9), vm_mac(1), OUTSIDE, vm_ip(number)) for number in (1, 2)]
    with pytest.raises(MigrationError, match="what waits at server2 is for the VM there"):
        await reports.on_waited(id, waited, by=["server2"])
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    reports.on_report(id, Report.FAILED, lab.now, "the target is gone")
    asked = asyncio.create_task(reports.on_waited(id, [], by=["server2"]))
    await lab.fake.settle()
    assert not asked.done(), "spine1 may still send frames there"
    gate.set()
    assert (await asked).copies_from == lab.fake.net.servers["server2"].mac
    lab.fake.heard.clear()
    with pytest.raises(MigrationError, match="for its source or target to say"):
        await reports.on_waited(id, waited, by=["server3"])
    await reports.on_waited(id, waited, by=["server2"])
    assert lab.fake.heard == [("edge1", vm_port(1), udp_frame(GATEWAY_MAC, vm_mac(1), OUTSIDE, vm_ip(1)))]
    reports.on_report(id, Report.TARGET_CLOSED, lab.now, "", frames=40 + PRIMERS)
    figures = lab.controller.orchestrator.figures_of(id)
    assert (figures["handed_back"], figures["lost_about"]) == (1, 39)
    figures["handed_back"] = MOST_WAITING
    await reports.on_waited(id, waited, by=["server2"])
    assert len(lab.fake.heard) == 1, "no more than a tap holds"


async def test_what_is_on_its_way_to_the_target_of_a_move_that_is_undone_comes_as_from_the_gateway(
    lab: ControlledNetwork,
) -> None:
    """The source's edge is told first, and still knows a copy of the target's when it sees one; then the
    target's, which sends on what others still send there.
    """
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "stopped")
    progress = lab.controller.orchestrator.get(id)[0].progress
    await progress.is_confirmed(PlacementChange.FORWARDED).wait()
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    late = udp_frame(GATEWAY_MAC, lab.fake.net.servers["server2"].mac, OUTSIDE, vm_ip(1))

    def arrivals() -> dict[str, str]:
        """By the switch where it comes out: whom it comes from."""
        ways = lab.fake.fabric.all_paths("edge2", UPLINK, late)
        return {switch: parse(frame).src for way in ways for switch, _, frame in way.arrivals}

    marked = lab.fake.net.servers["server2"].mac
    both = {"edge1": GATEWAY_MAC, "edge2": marked}
    assert arrivals() == both
    lab.controller.orchestrator.reports.on_report(id, Report.FAILED, lab.now, "the target is gone")
    lab.controller.orchestrator.reports.on_report(id, Report.ROLLED_BACK, lab.now, "")
    await lab.fake.settle()
    assert arrivals() == {"edge1": GATEWAY_MAC}
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.ROLLING_BACK
    gate.set()
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.UNDONE
    assert arrivals() == {}


@pytest.mark.parametrize("last", ["target_opened", "copy_started", "stopped"])
async def test_a_failed_move_leaves_the_network_as_before(lab: ControlledNetwork, last: str) -> None:
    await lab.boot(1, at=1)
    before = {name: dict(switch.flows) for name, switch in lab.fake.fabric.switches.items()}
    rows = lab.controller.net.bindings()
    said = ["target_opened", "copy_started", "stopped"]
    id = await migrate_to(lab, 2, *said[: said.index(last) + 1], "failed", "rolled_back")
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.UNDONE
    assert lab.controller.net.bindings() == rows
    assert {name: dict(switch.flows) for name, switch in lab.fake.fabric.switches.items()} == before


async def test_a_move_waits_for_a_switch_that_does_not_confirm(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    gate = lab.fake.sessions["edge2"].hold = asyncio.Event()
    id = await migrate_to(lab, 2, "target_opened")
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.ADMITTING
    assert not lab.events("migration.start_copy")
    gate.set()
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.PREPARED


async def test_move_messages_that_do_not_fit_are_rejected(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    start = lab.controller.orchestrator.start
    for wrong, said in (
        ({"vm": "vm9", "target_server": "server2"}, "there is no VM vm9"),
        ({"vm": "vm1", "target_server": "server9"}, "there is no server server9"),
        ({"vm": "vm1", "target_server": "dhcp"}, "cannot run VMs"),
        ({"vm": "vm1", "target_server": "server1"}, "is at server1 already"),
        ({"vm": "vm1", "target_switch": "leaf2"}, "not the edge switch"),
        ({"vm": "vm1"}, "name the target once"),
        ({"vm": "vm1", "target_server": "server2", "source_server": "server3"}, "is at server1, not"),
        ({"vm": "vm1", "target_server": "server2", "mac": vm_mac(2)}, "has MAC"),
        ({"vm": "vm1", "target_server": "server2", "ip": vm_ip(2)}, "does not hold"),
    ):
        with pytest.raises(MigrationError, match=said):
            start(**wrong)
    assert start("vm1", target_switch="edge2", ip=vm_ip(1), mac=vm_mac(1)).target == "server2"
    with pytest.raises(MigrationError, match="being migrated already"):
        start("vm1", target_server="server3")


async def test_a_switch_that_comes_back_gets_the_difference_only(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    lab.fake.sessions["leaf1"].close("cable pulled")
    session = lab.fake.connect("leaf1")
    await lab.fake.settle()
    assert session.applied == [], "nothing differs, nothing is sent"
    session.close("again")
    await lab.boot(2, at=3)
    assert lab.controller.context.installer.pending() == {"leaf1": 2}
    stray = next(iter(lab.fake.fabric["leaf1"].flows.values()))
    lab.fake.fabric["leaf1"].take_out(stray.key)
    session = lab.fake.connect("leaf1")
    await lab.fake.settle()
    assert sum(change.flow_count for change in session.applied) == 3
    assert not lab.controller.context.installer.pending()


async def test_a_vm_reported_by_its_port_is_registered_and_goes_with_it(lab: ControlledNetwork) -> None:
    lab.controller.inventory.ports.changed([], [lab.port(3, 1)])
    await lab.fake.settle()
    await lab.lease(3, 1)
    assert [row.vm for row in lab.controller.net.bindings()] == ["vm3"]
    lab.controller.inventory.ports.changed([lab.port(3, 1)], [])
    await lab.fake.settle()
    assert not lab.fake.net.vms
    assert not lab.fake.net.assignments


async def test_a_removed_vm_is_not_registered_again_by_its_port(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    await lab.controller.inventory.remove_vm("vm1")
    lab.controller.inventory.ports.changed([], [lab.port(1, 1)])
    assert not lab.fake.net.vms
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
    assert not lab.fake.send("edge1", vm_port(1), frame).arrivals


async def test_a_port_with_another_mac_is_not_the_vms(lab: ControlledNetwork) -> None:
    lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    lab.controller.inventory.ports.changed([], [lab.port(1, 1, mac=vm_mac(9))])
    await lab.fake.settle()
    assert lab.events("vm.mismatch")
    assert not lab.fake.net.vm_ports.get("vm1")


async def test_bad_frames_are_counted_and_disturb_nothing(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    whole = dhcp_frame(discover(vm_mac(1), 7), vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
    for broken in (
        Ethernet(
            BROADCAST, vm_mac(1), 0x0800, build_udp4(NOWHERE, EVERYWHERE, 68, 67, whole[42:142])
        ).build(),
        whole[:42] + b"\x09" + whole[43:],  # op is neither request nor reply
        whole[:44] + b"\x07" + whole[45:],  # hlen 7
        whole[:278] + bytes(4) + whole[282:],  # no magic cookie
        whole[:283] + b"\xff" + whole[284:],  # an option that runs past the end
        whole[:24] + b"\0\0" + whole[26:],  # wrong IP checksum
    ):
        before = lab.controller.context.counters["bad DHCP frames"]
        lab.fake.send("edge1", vm_port(1), broken)
        assert lab.controller.context.counters["bad DHCP frames"] == before + 1, broken.hex()
    assert lab.controller.context.counters["internal errors"] == 0
    assert len(lab.controller.net.bindings()) == 1


async def test_a_step_asked_for_again_is_not_confirmed_by_having_nothing_to_send(
    lab: ControlledNetwork,
) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started")
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    lab.controller.orchestrator.reports.on_report(id, Report.RESUMED, lab.now, "")
    await lab.fake.settle()
    for _ in range(3):
        lab.now += 11
        lab.controller.orchestrator.tick()
        await lab.fake.settle()
        assert lab.controller.orchestrator.migrations[id].state is MigrationState.SWITCHING
        assert "trying again" in lab.controller.orchestrator.migrations[id].reason
    gate.set()
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.CONFIRMED


async def test_a_target_that_is_gone_does_not_hold_up_the_undo(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "stopped")
    lab.fake.sessions["edge2"].close("the server lost power")
    lab.controller.orchestrator.reports.on_report(id, Report.FAILED, lab.now, "the target is gone")
    lab.controller.orchestrator.reports.on_report(id, Report.ROLLED_BACK, lab.now, "")
    await lab.fake.settle()
    assert lab.controller.orchestrator.migrations[id].state is MigrationState.UNDONE
    assert lab.controller.context.installer.pending()["edge2"]
    lab.fake.connect("edge2")
    await lab.fake.settle()
    assert not lab.controller.context.installer.pending(), "what it still held is gone when it is back"


async def test_a_move_taken_up_after_a_restart_waits_for_its_switches(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started", "resumed")
    done = lab.controller.orchestrator.migrations[id]
    stored = Stored(
        vms=list(lab.fake.net.vms.values()),
        assignments=list(lab.fake.net.assignments.values()),
        migrations=[replace(done, state=MigrationState.SWITCHED)],
    )
    again = FakeNetwork(fabric(), clock=lambda: lab.now)
    again.controller.restore(stored)
    await again.controller.start()
    again.controller.orchestrator.resume_all()
    for switch in ("edge2", "leaf2", "spine1", "spine2", "leaf1"):
        again.connect(switch)
        await again.settle()
        assert again.controller.orchestrator.migrations[id].state is MigrationState.SWITCHED
    again.connect("edge1")
    await again.settle()
    assert again.controller.orchestrator.migrations[id].state is MigrationState.CONFIRMED
    await again.stop()


@pytest.mark.parametrize(
    "events",
    [
        ["target_opened", "copy_started", "converged", "stopped", "resumed", "source_freed"],
        ["target_opened", "copy_started", "resumed", "source_freed"],
        ["target_opened", "failed", "rolled_back"],
        ["target_opened", "copy_started", "converged", "stopped", "failed", "rolled_back"],
    ],
)
async def test_where_a_vm_is_placed_follows_from_its_server_and_its_migration(
    lab: ControlledNetwork, events: list[str]
) -> None:
    """So nothing else of it has to be stored."""
    await lab.boot(1, at=1)
    id = await migrate_to(lab, 2)
    net, seen = lab.fake.net, set()
    for event in events:
        lab.controller.orchestrator.reports.on_report(id, Report(event), lab.now, "why not")
        async with asyncio.timeout(60):  # It forwards a little later than it diverts.
            while True:
                await lab.fake.settle()
                migration, vm = lab.controller.orchestrator.migrations[id], net.vms["vm1"]
                stored = replace(vm, also=frozenset(), copied_to="", forwarded_from="")
                if placement(stored, migration) == vm:
                    break
                await asyncio.sleep(0.001)
        seen.add((vm.server, vm.also, vm.copied_to, vm.forwarded_from))
    assert len(seen) > 1


async def test_bulk_servers_are_all_or_nothing(lab: ControlledNetwork) -> None:
    before = dict(lab.fake.net.servers)
    good = replace(before["server1"], mac="02:00:00:00:00:77")
    bad = replace(before["server2"], mac=before["server3"].mac)
    with pytest.raises(ModelError, match="already belongs to server server3"):
        await lab.controller.inventory.put_servers([good, bad])
    assert lab.fake.net.servers == before
    await lab.controller.inventory.put_servers([good])
    assert lab.fake.net.server_of_mac("02:00:00:00:00:77") == good


async def test_frames_dropped_as_spoofed_are_summed_though_entries_are_made_anew(
    lab: ControlledNetwork,
) -> None:
    await lab.boot(1, at=1)
    session = lab.fake.sessions["edge1"]
    packets = [0]

    async def stats(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        flows = [f for f in lab.fake.fabric["edge1"].flows.values() if f.cookie & cookie_mask == cookie]
        return [FlowStats(flow, packets[0], 0, 0.0, 0) for flow in flows]

    session.read_flows = stats  # type: ignore[method-assign]
    totals = []
    for packets[0] in (0, 5, 7, 1):
        await asyncio.gather(*lab.controller.spoof_counts.begin())
        totals.append(lab.controller.spoof_counts.frames.get(("edge1", Reason.SPOOFED_IP), 0))
    assert totals == [0, 5, 7, 7]


async def test_a_database_that_does_not_fit_is_restored_without_what_does_not(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    taken, gateway = IPv4Address("10.0.0.12"), IPv4Address("10.1.0.254")
    held = lab.fake.net.assignments[vm_ip(1)]
    servers = lab.fake.net.servers
    stored = Stored(
        servers=[
            replace(servers["server3"], mac=GATEWAY_MAC),
            replace(servers["server2"], address=gateway),
            replace(servers["router"], id="router2", mac="02:00:00:00:09:09"),
        ],
        locations=[ServerLocation(server, at) for server, at in lab.fake.net.detected.items()],
        vms=[
            VM.with_one_nic("bad", vm_mac(9), "server1", addresses=(taken,)),
            VM.with_one_nic("worse", servers["dhcp"].mac, "server1"),
            *lab.fake.net.vms.values(),
        ],
        assignments=[
            replace(held, ip=taken),
            replace(held, ip=gateway),
            replace(held, ip=vm_ip(9), vm="bad", mac=vm_mac(9)),
            held,
        ],
    )
    again = FakeNetwork(fabric(), clock=lambda: lab.now)
    again.controller.restore(stored)
    await again.start()
    assert again.net.servers == servers
    assert list(again.net.vms) == ["vm1"]
    assert again.net.assignments == {vm_ip(1): held}
    assert not again.controller.context.counters["internal errors"]
    assert lab.fake.fabric["spine1"].flows.keys() == again.fabric["spine1"].flows.keys()
    await again.stop()


async def test_what_cannot_be_is_rejected_and_everything_goes_on(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    with pytest.raises(ModelError, match=r"10.0.0.12 is the address of server server2"):
        lab.controller.inventory.register_vms(
            [VM.with_one_nic("bad", vm_mac(9), "server1", addresses=(IPv4Address("10.0.0.12"),))]
        )
    with pytest.raises(ModelError, match=r"10.1.0.101 is held by VM vm1"):
        await lab.controller.inventory.put_servers(
            [replace(lab.fake.net.servers["server2"], address=vm_ip(1))]
        )
    await lab.boot(2, at=2)
    assert lab.controller.context.state.vm_states["vm2"] == "ready"
    assert not lab.controller.context.counters["internal errors"]


async def test_servers_that_changed_addresses_with_each_other_are_restored(lab: ControlledNetwork) -> None:
    one, two = lab.fake.net.servers["server1"], lab.fake.net.servers["server2"]
    swapped = [replace(one, address=two.address, mac=two.mac), replace(two, address=one.address, mac=one.mac)]
    lab.controller.restore(Stored(servers=swapped))
    assert [lab.fake.net.servers["server1"], lab.fake.net.servers["server2"]] == swapped


@pytest.mark.provokes_errors
async def test_background_work_that_fails_is_counted_and_goes_on(lab: ControlledNetwork) -> None:
    again = asyncio.Event()
    calls = 0

    async def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("once")
        again.set()

    by_the_clock.repeat(lab.controller.context, 0.0, fails_once, "failing work")
    async with asyncio.timeout(60):
        await again.wait()
    assert lab.controller.context.counters["internal errors"] == 1
    assert lab.events("controller.error") == [{"what": "failing work", "error": "RuntimeError('once')"}]


@pytest.mark.provokes_errors
async def test_leases_end_though_one_end_failed(
    lab: ControlledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue.controller.by_the_clock.PAUSE_AFTER_FAILURE", 0.0)
    await lab.boot(1, at=1)
    expire, calls, ended = lab.controller.dhcp.expire, 0, asyncio.Event()

    async def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("once")
        await expire()
        ended.set()

    monkeypatch.setattr(lab.controller.dhcp, "expire", fails_once)
    lab.now += LEASE + 1
    lab.controller._lease_clock.moved()
    async with asyncio.timeout(60):
        await ended.wait()
    assert not lab.fake.net.assignments
    assert lab.controller.context.counters["internal errors"] == 1


async def test_a_switch_that_does_not_tell_its_counters_does_not_hide_the_others(
    lab: ControlledNetwork,
) -> None:
    await lab.boot(1, at=1)
    await lab.boot(2, at=2)

    async def rejects(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        raise Rejected(("busy",))

    async def counts(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        flows = lab.fake.fabric["edge2"].flows.values()
        return [FlowStats(f, 3, 0, 0.0, 0) for f in flows if reason_of(f.cookie) is Reason.SPOOFED_MAC]

    lab.fake.sessions["edge1"].read_flows = rejects  # type: ignore[method-assign]
    lab.fake.sessions["edge2"].read_flows = counts  # type: ignore[method-assign]
    await asyncio.gather(*lab.controller.spoof_counts.begin())
    assert lab.controller.spoof_counts.frames["edge2", Reason.SPOOFED_MAC] == 3


async def report(lab: ControlledNetwork, vm: int, at: int) -> None:
    """A server has made a VM by itself; nobody registered it."""
    lab.controller.inventory.ports.changed([], [lab.port(vm, at)])
    await lab.fake.settle()


async def test_a_reported_vm_is_not_registered_in_the_middle_of_its_move(lab: ControlledNetwork) -> None:
    await report(lab, 1, at=1)
    await lab.lease(1, at=1)
    id = await migrate_to(lab, 2, "target_opened", "copy_started")
    before = lab.fake.net.vms["vm1"]
    with pytest.raises(ModelError, match=r"VM vm1 is being migrated: migration-1 is copying"):
        lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server3")])
    assert lab.fake.net.vms["vm1"] == before
    lab.controller.orchestrator.cancel(id)
    lab.controller.orchestrator.reports.on_report(id, Report.ROLLED_BACK, lab.now, "")
    await lab.fake.settle()
    lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    assert not lab.fake.net.vms["vm1"].reported


async def test_a_reported_vm_is_registered_with_the_mac_it_has(lab: ControlledNetwork) -> None:
    await report(lab, 1, at=1)
    with pytest.raises(ModelError, match=rf"VM vm1 runs at edge1 with MAC {vm_mac(1)}, not {vm_mac(7)}"):
        lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(7), "server1")])
    await lab.lease(1, at=1)
    held = dict(lab.fake.net.assignments)
    lab.controller.inventory.register_vms([VM.with_one_nic("vm1", vm_mac(1), "server1")])
    await lab.fake.settle()
    assert lab.fake.net.assignments == held, "it keeps its lease"
    assert lab.controller.context.state.vm_states["vm1"] == "ready"


async def test_one_vm_twice_in_a_bulk_is_rejected(lab: ControlledNetwork) -> None:
    with pytest.raises(ModelError, match="VM vm1 is given twice"):
        lab.controller.inventory.register_vms(
            [VM.with_one_nic("vm1", vm_mac(1), "server1"), VM.with_one_nic("vm1", vm_mac(2), "server2")]
        )
    assert not lab.fake.net.vms


async def test_a_bulk_booking_that_fails_takes_back_what_it_gave_to_reported_vms(
    lab: ControlledNetwork,
) -> None:
    for number in (1, 2, 3):
        await report(lab, number, at=1)
    await lab.lease(2, at=1)
    lab.controller.inventory.ports.changed([lab.port(3, 1)], [])
    lab.controller.restore(Stored(vms=[VM.with_one_nic("vm3", vm_mac(3), "server1", reported=True)]))
    before = dict(lab.fake.net.vms), dict(lab.fake.net.assignments)
    with pytest.raises(ModelError, match="in no subnet"):
        lab.controller.inventory.register_vms(
            [
                VM.with_one_nic("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),)),
                VM.with_one_nic("vm2", vm_mac(2), "server2", addresses=(vm_ip(2),)),
                VM.with_one_nic("vm3", vm_mac(7), "server3", addresses=(vm_ip(7),)),
                VM.with_one_nic("vm4", vm_mac(3), "server1", addresses=(vm_ip(3),)),
                VM.with_one_nic("vm5", vm_mac(5), "server1", addresses=(OUTSIDE,)),
            ]
        )
    assert (lab.fake.net.vms, lab.fake.net.assignments) == before
    await lab.fake.settle()
    lab.controller.inventory.register_vms(
        [VM.with_one_nic("vm6", vm_mac(6), "server1", addresses=(vm_ip(1),))]
    )


async def test_servers_that_took_each_others_macs_are_put_back(lab: ControlledNetwork) -> None:
    before = dict(lab.fake.net.servers)
    one, two, three = (before[f"server{n}"] for n in (1, 2, 3))
    with pytest.raises(ModelError, match="is the gateway of"):
        await lab.controller.inventory.put_servers(
            [
                replace(one, mac="02:00:00:00:00:77"),
                replace(two, mac=one.mac),
                replace(three, id="new", edge="", mac=two.mac, address=None),
                replace(three, address=IPv4Address("10.0.0.254")),
            ]
        )
    assert lab.fake.net.servers == before


# ---- reported VMs that went while the controller was down ----


async def test_a_reported_vm_without_a_port_is_forgotten_when_its_edge_has_been_read(
    lab: ControlledNetwork,
) -> None:
    reported = [
        VM.with_one_nic(f"vm{n}", vm_mac(n), f"server{at}", reported=True)
        for n, at in ((1, 1), (2, 1), (3, 2))
    ]
    registered = VM.with_one_nic("vm4", vm_mac(4), "server1")
    lab.controller.restore(Stored(vms=[*reported, registered]))
    lab.controller.inventory.ports.changed([], [lab.port(2, 1)])
    lab.controller.inventory.ports.edge_read([0x31])
    await lab.fake.settle()
    assert set(lab.fake.net.vms) == {"vm2", "vm3", "vm4"}
    assert [event["vm"].id for event in lab.events("vm.removed")] == ["vm1"]  # type: ignore[attr-defined]
    lab.controller.inventory.ports.edge_read([0x31, 0x32, 0x999])
    assert set(lab.fake.net.vms) == {"vm2", "vm4"}


async def test_a_reported_vm_being_moved_is_not_forgotten_before_both_its_edges_are_read(
    lab: ControlledNetwork,
) -> None:
    vm = VM.with_one_nic("vm1", vm_mac(1), "server1", reported=True)
    copying = replace(begin("migration-1", "vm1", "server1", "server2", 1.0), state=MigrationState.COPYING)
    lab.controller.restore(Stored(vms=[vm], migrations=[copying]))
    assert lab.fake.net.vms["vm1"].also == {"server2"}
    lab.controller.inventory.ports.edge_read([0x31])
    assert "vm1" in lab.fake.net.vms
    lab.controller.inventory.ports.changed([], [lab.port(1, 2)])
    lab.controller.inventory.ports.edge_read([0x32])
    assert "vm1" in lab.fake.net.vms


async def test_a_vm_whose_port_has_no_number_yet_is_not_forgotten(lab: ControlledNetwork) -> None:
    lab.controller.restore(Stored(vms=[VM.with_one_nic("vm1", vm_mac(1), "server1", reported=True)]))
    lab.controller.inventory.ports.changed([], [replace(lab.port(1, 1), number=None)])
    lab.controller.inventory.ports.edge_read([0x31], ["vm1"])
    assert "vm1" in lab.fake.net.vms


# ---- large changes ----


async def test_a_large_change_leaves_others_their_turn_and_ends_when_all_is_sent(
    lab: ControlledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, net = lab.controller.context, lab.fake.net
    context._room = Room(600)
    touched: set[Owner] = set()
    for n in range(600):
        vm = VM.with_one_nic(f"many{n}", f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}", "server1")
        touched |= net.put_vm(vm) | net.set_vm_port(vm.id, "edge1", VMPort(1000 + n, f"tap{n}"))
    before = len(lab.fake.fabric["edge1"].flows)
    sizes, turns, update = [], 0, context.compiler.update

    def counted(owners: Iterable[Owner]) -> Before:
        sizes.append((len(set(owners)), turns))
        return update(owners)

    monkeypatch.setattr(context.compiler, "update", counted)
    gate = lab.fake.sessions["edge1"].hold = asyncio.Event()
    told: list[Owner] = []
    context.after_install(told.extend)
    installing = asyncio.create_task(context.install(touched))
    for _ in range(100):
        await asyncio.sleep(0)
        turns += 1
    assert sum(size for size, _ in sizes) == 600
    assert max(size for size, _ in sizes) <= 250
    assert len({turn for _, turn in sizes}) == len(sizes), "others had their turn between"
    assert not installing.done()
    assert not told
    gate.set()
    report = await installing
    assert report.flow_mods == len(lab.fake.fabric["edge1"].flows) - before
    assert len(report.changed["edge1"]) > 600
    assert sorted(told) == sorted(touched)
    assert not context.installer.pending()


async def test_no_more_is_computed_than_switches_can_take(
    lab: ControlledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a switch takes memory: the rest of a large change waits before it is computed."""
    monkeypatch.setattr("retinue.controller.context.BATCH", 50)
    monkeypatch.setattr("retinue.controller.room.LONGEST_STAY", 1000.0)
    context, net = lab.controller.context, lab.fake.net
    context._room = Room(500)
    touched: set[Owner] = set()
    for n in range(50 * (10 + 3)):
        vm = VM.with_one_nic(f"many{n}", f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}", "server1")
        touched |= net.put_vm(vm) | net.set_vm_port(vm.id, "edge1", VMPort(1000 + n, f"tap{n}"))
    gate = lab.fake.sessions["edge1"].hold = asyncio.Event()
    context.not_installed |= touched
    installing = asyncio.create_task(context.install(touched))
    await lab.fake.settle()
    assert len(context.not_installed) == 50 * 3
    gate.set()
    report = await installing
    assert not report.missing
    assert not context.not_installed
    assert all(context.is_programmed(owner) for owner in touched)


async def test_others_have_their_turn_while_a_large_change_is_put_in_order(
    lab: ControlledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each switch would have is computed for that."""
    looked_at: Counter[int] = Counter()
    turn = 0

    def counted(net: Network, owner: Owner) -> Contribution:
        looked_at[turn] += 1
        return {}

    monkeypatch.setattr(building, "contribution", counted)
    installing = asyncio.create_task(
        lab.controller.context.install({Owner("switch", f"gone{n}") for n in range(600)})
    )
    while not installing.done():
        await asyncio.sleep(0)
        turn += 1
    assert looked_at.total() == 600
    assert max(looked_at.values()) <= 100
    await installing


async def test_a_leaf_with_many_prefixes_rejects_none_when_its_ways_up_come_and_go(
    lab: ControlledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prefixes' entries name the group of the ways up, which is the leaf's own."""
    context, net = lab.controller.context, lab.fake.net
    touched: set[Owner] = set()
    for n in range(40):
        vm = VM.with_one_nic(f"many{n}", f"52:54:01:00:00:{n:02x}", "server1")
        prefixes = tuple(IPv4Network(f"10.64.{n}.{16 * k}/28") for k in range(MOST_PREFIXES))
        touched |= net.put_vm(replace(vm, nics=(replace(vm.nic, prefixes=prefixes),)))
    await context.install(touched)
    rejected: list[str] = []
    apply, leaf = lab.fake.sessions["leaf1"].apply, lab.fake.fabric["leaf1"]
    ways: list[int] = []

    async def watched(change: Change, now: float) -> None:
        try:
            await apply(change, now)
        except Exception as error:
            rejected.append(str(error))
            raise
        ways.append(sum(flow.cookie in marks for flow in leaf.flows.values()))

    owners = [Owner.of_prefix(p, DEFAULT_VRF) for vm in net.vms.values() for p in vm.nic.prefixes]
    marks = {cookie(Reason.FORWARD, owner) for owner in owners}
    monkeypatch.setattr(lab.fake.sessions["leaf1"], "apply", watched)
    ports = dict(net._numbers["leaf1"])
    servers_only = {port: number for port, number in ports.items() if not port.startswith("s")}
    for there in (servers_only, ports):
        report = await context.install(net.set_ports("leaf1", there))
        assert not report.missing
        assert rejected == []
        assert (UP_GROUP in leaf.groups) == (there is ports)
        assert equals_wanted(context, "leaf1", leaf)
    assert set(ways) == {len(owners)}, "none has gone with the group"


async def test_a_router_with_many_prefixes_beside_it_moves_and_its_own_ways_do_not_wait(
    lab: ControlledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That no router may send as one of the prefixes is said at its port, for each of them."""
    context, net = lab.controller.context, lab.fake.net
    lab.fake.sessions["leaf1"].ports["new"] = 95
    touched = net.set_ports("leaf1", {**net._numbers["leaf1"], "new": 95})
    for n in range(40):
        vm = VM.with_one_nic(f"many{n}", f"52:54:01:00:00:{n:02x}", "server1")
        prefixes = tuple(IPv4Network(f"10.64.{n}.{16 * k}/28") for k in range(MOST_PREFIXES))
        touched |= net.put_vm(replace(vm, nics=(replace(vm.nic, prefixes=prefixes),)))
    await context.install(touched)
    session = lab.fake.sessions["leaf1"]
    session.applied.clear()
    router = replace(net.servers["router"], given_at=PortRef("leaf1", "new"))
    await context.install(net.put_server(router))
    ways = [sum(Output(95) in flow.actions for flow in change.add) for change in session.applied]
    assert len(ways) > 1, "told in batches"
    assert ways[0] > 0 and not any(ways[1:])
    assert equals_wanted(context, "leaf1", lab.fake.fabric["leaf1"])


def equals_wanted(context: Context, switch: str, has: FakeSwitch) -> bool:
    wanted = context.compiler.program(switch).whole()
    return {key: entry for key, entry in wanted.items() if isinstance(entry, Flow)} == dict(has.flows)


async def test_what_is_changed_and_not_yet_computed_does_not_stand(lab: ControlledNetwork) -> None:
    await lab.boot(1, at=1)
    assert lab.controller.context.is_programmed(Owner("vm", "vm1"))
    longer = replace(lab.fake.net.assignments[vm_ip(1)], lease_end=9e9)
    touched = lab.controller.context.apply(AddressAssigned(longer))
    assert not lab.controller.context.is_programmed(Owner("vm", "vm1"))
    await lab.controller.context.install(touched)
    assert lab.controller.context.is_programmed(Owner("vm", "vm1"))
