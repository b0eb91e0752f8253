"""The controller over fake switches: what it does when frames, ports, managers and switches speak."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest

from fake_session import FakeNetwork
from networks import GATEWAY_MAC, UPLINK, fabric, vm_ip, vm_mac, vm_port
from retinue.controller.controller import Controller
from retinue.controller.moving import MoveError
from retinue.controller.restore import restore, take_up_moves
from retinue.flows.compiler import Keys
from retinue.flows.pipeline import Reason, reason_of
from retinue.model import VM, ModelError, PortRef, PortStatus, VMPort
from retinue.model.network import Owner
from retinue.moves import MoveState
from retinue.openflow.messages import FlowStats
from retinue.openflow.session import Rejected
from retinue.ovsdb import BridgePort
from retinue.packets import (
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
from retinue.store import Place, Stored
from world import OUTSIDE, udp_frame

DHCP_SERVER = IPv4Address("10.1.0.2")
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")
LEASE = 600


@dataclass
class Lab:
    """The fake network with a clock that tests turn."""

    fake: FakeNetwork
    now: float = 1000.0
    refuses: bool = False

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    def events(self, kind: str) -> list[dict[str, object]]:
        return [event.data for event in self.controller.events.recent(kind, 1000)]

    def port(self, vm: int, edge: int, *, mac: str | None = None) -> BridgePort:
        return BridgePort(
            dpid=0x30 + edge, bridge="br0", name=f"tap{vm}", number=vm_port(vm), status=PortStatus.UP,
            iface_id=f"vm{vm}", attached_mac=mac or vm_mac(vm),
        )  # fmt: skip

    async def boot(self, vm: int, at: int) -> None:
        """Booked in advance, port reported, address by DHCP."""
        self.controller.book_vms([VM(f"vm{vm}", vm_mac(vm), f"server{at}")])
        self.controller.vm_ports_changed([], [self.port(vm, at)])
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
            case MessageType.REQUEST if self.refuses:
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
async def lab() -> AsyncIterator[Lab]:
    fake: FakeNetwork
    lab: Lab
    fake = FakeNetwork(fabric(), clock=lambda: lab.now)
    lab = Lab(fake)
    fake.hosts["leaf2", 90] = lab.serve_dhcp
    await fake.start()
    yield lab
    await fake.stop()


async def test_a_vm_boots_by_dhcp_and_is_bound(lab: Lab) -> None:
    await lab.boot(1, at=1)
    (row,) = lab.controller.net.bindings()
    assert (row.ip, row.mac, row.switch, row.port, row.lease_end) == (
        vm_ip(1), vm_mac(1), "edge1", vm_port(1), 1000.0 + LEASE,
    )  # fmt: skip
    kinds = [parse_dhcp_frame(f)[2].message_type for f in lab.heard_by(1, 1)]
    assert kinds == [MessageType.OFFER, MessageType.ACK]
    assert not lab.controller.context.installer.pending()
    assert lab.events("binding.added")


async def test_the_ack_is_handed_on_only_when_the_binding_is_confirmed(lab: Lab) -> None:
    """Row B3 in small: the VM's first packet finds its way open."""
    lab.controller.book_vms([VM("vm1", vm_mac(1), "server1")])
    lab.controller.vm_ports_changed([], [lab.port(1, 1)])
    await lab.fake.settle()
    await lab.say(1, 1, discover(vm_mac(1), 7))
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    await lab.say(1, 1, request(vm_mac(1), 7, vm_ip(1), DHCP_SERVER))
    assert len(lab.heard_by(1, 1)) == 1, "the ACK waits for spine1"
    gate.set()
    await lab.fake.settle()
    assert len(lab.heard_by(1, 1)) == 2


async def test_a_binding_a_switch_refuses_keeps_the_ack_back(lab: Lab) -> None:
    lab.controller.book_vms([VM("vm1", vm_mac(1), "server1")])
    lab.controller.vm_ports_changed([], [lab.port(1, 1)])
    await lab.fake.settle()
    await lab.say(1, 1, discover(vm_mac(1), 7))
    lab.fake.sessions["edge1"].refuse = 1
    await lab.say(1, 1, request(vm_mac(1), 7, vm_ip(1), DHCP_SERVER))
    assert len(lab.heard_by(1, 1)) == 1, "the ACK is kept back"
    assert lab.events("binding.unconfirmed")
    assert not lab.events("binding.added")


async def test_vm_is_ready_only_when_given_and_detected_match_and_flows_stand(lab: Lab) -> None:
    """Row D4, and D5 for what it waits for."""
    del lab.fake.net.detected["server1"]
    lab.controller.book_vms([VM("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),))])
    await lab.fake.settle()
    vm = lab.fake.net.vms["vm1"]
    assert len(lab.controller.missing_for(vm)) == 2
    lab.controller.vm_ports_changed([], [lab.port(1, 1)])
    await lab.fake.settle()
    assert lab.controller.missing_for(vm) == ["server server1 has not been detected at any leaf"]
    assert lab.controller.vm_states["vm1"] == "booked"
    arp = arp_request("02:00:00:00:00:01", IPv4Address("10.0.0.11"), IPv4Address("10.0.0.254"))
    lab.fake.send("leaf1", 101, arp)
    await lab.fake.settle()
    assert lab.fake.net.place("server1") == PortRef("leaf1", "p1")
    assert lab.controller.missing_for(vm) == []
    assert lab.controller.vm_states["vm1"] == "ready"
    assert lab.events("vm.ready")


async def test_a_static_address_is_bound_before_the_vm_speaks(lab: Lab) -> None:
    """Rows B4 (manager) and D: no packet-in is needed before traffic flows."""
    vms = [VM(f"vm{n}", vm_mac(n), f"server{n}", addresses=(vm_ip(n),)) for n in (1, 2)]
    lab.controller.book_vms(vms)
    lab.controller.vm_ports_changed([], [lab.port(1, 1), lab.port(2, 2)])
    await lab.fake.settle()
    delivery = lab.fake.send("edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(2)))
    assert [(a[0], a[1]) for a in delivery.arrivals] == [("edge2", vm_port(2))]
    assert not lab.controller.context.counters


async def test_bulk_booking_is_all_or_nothing(lab: Lab) -> None:
    good, bad = VM("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),)), VM("vm2", vm_mac(1), "server1")
    with pytest.raises(ModelError, match="already belongs to VM vm1"):
        lab.controller.book_vms([good, bad])
    assert not lab.fake.net.vms
    assert not lab.fake.net.holdings


async def test_controller_answers_arp_from_what_it_holds(lab: Lab) -> None:
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


async def test_forgery_is_reported_with_who_where_what_how_often(lab: Lab) -> None:
    await lab.boot(1, at=1)
    await lab.boot(2, at=2)
    for _ in range(3):
        lab.fake.send("edge2", vm_port(2), udp_frame(vm_mac(2), GATEWAY_MAC, vm_ip(1), OUTSIDE))
    (row,) = lab.controller.context.forgeries.rows()
    assert (row.kind, row.vm, row.switch, row.port) == ("ip", "vm2", "edge2", vm_port(2))
    assert (row.claimed_mac, row.claimed_ip, row.count) == (vm_mac(2), str(vm_ip(1)), 3)
    assert len(lab.events("forgery")) == 3


async def test_a_vm_that_asks_for_anothers_address_is_told_and_heard_by_the_dhcp_server(lab: Lab) -> None:
    await lab.boot(1, at=1)
    await lab.boot(2, at=2)
    heard: list[bytes] = []
    lab.fake.hosts["leaf2", 90] = heard.append
    await lab.say(2, 2, request(vm_mac(2), 8, vm_ip(1), DHCP_SERVER))
    (row,) = lab.controller.context.forgeries.rows()
    assert (row.kind, row.vm, row.switch, row.port) == ("dhcp", "vm2", "edge2", vm_port(2))
    assert (row.claimed_mac, row.claimed_ip, row.count) == (vm_mac(2), str(vm_ip(1)), 1)
    assert len(heard) == 1
    assert [(r.vm, r.ip) for r in lab.controller.net.bindings()] == [("vm1", vm_ip(1)), ("vm2", vm_ip(2))]


async def test_release_nak_and_lease_end_close_the_port(lab: Lab) -> None:
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
    lab.refuses = True
    await lab.say(1, 1, renewal(vm_ip(1), vm_mac(1), 10), src=vm_ip(1))
    assert not await may_send()
    lab.refuses = False
    await lab.lease(1, 1)
    assert await may_send()
    lab.now += LEASE + 1
    await lab.controller.dhcp.expire()
    assert not await may_send()
    reasons = [event["reason"] for event in lab.events("binding.removed")]
    assert reasons == ["released by the VM", "refused by DHCP server dhcp", "the lease ended"]


async def move_to(lab: Lab, target: int, *events: str) -> str:
    """Start a move of vm1 by the manager's message; the hypervisor says `events`."""
    move = lab.controller.mover.start("vm1", target_server=f"server{target}")
    lab.controller.vm_ports_changed([], [lab.port(1, target)])
    await lab.fake.settle()
    for event in events:
        lab.controller.mover.hypervisor_says(move.id, event, lab.now, "")
        await lab.fake.settle()
    return str(move.id)


async def test_a_move_takes_binding_and_flows_along(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying")
    assert lab.controller.mover.moves[id].state is MoveState.COPYING
    rows = {(row.switch, row.active) for row in lab.controller.net.bindings(["vm1"])}
    assert rows == {("edge1", True), ("edge2", False)}
    lab.controller.mover.hypervisor_says(id, "resumed", lab.now, "")
    await lab.fake.settle()
    (row,) = lab.controller.net.bindings(["vm1"])
    assert (row.switch, row.active) == ("edge2", True)
    assert lab.controller.mover.hypervisor_says(id, "source_gone", lab.now, "").state is MoveState.FREED
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.DONE
    figures = lab.controller.mover.figures[id]
    assert figures["flow_mods"] > 0
    assert figures["control_ms"] == 0.0
    types = [e.type for e in lab.controller.events.recent("move.", 100) if e.type != "move.step"]
    assert types == ["move.prepare", "move.copy", "move.cleanup"]


async def test_traffic_waits_at_the_target_from_the_moment_the_source_stops(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying", "stopped")
    move = lab.controller.mover.moves[id]
    assert (move.state, move.steered) == (MoveState.DIVERTED, True)
    rows = {(row.switch, row.active) for row in lab.controller.net.bindings(["vm1"])}
    assert rows == {("edge1", False), ("edge2", True)}
    lab.controller.mover.hypervisor_says(id, "resumed", lab.now, "")
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.CONFIRMED
    assert [row.switch for row in lab.controller.net.bindings(["vm1"])] == ["edge2"]


async def test_what_comes_late_is_sent_on_and_what_comes_meanwhile_is_copied(lab: Lab) -> None:
    """The source's edge forwards once all steer; from the stop to RESUME the target's sends it copies."""
    await lab.boot(1, at=1)
    to_vm1 = udp_frame(lab.fake.net.servers["router"].mac, GATEWAY_MAC, OUTSIDE, vm_ip(1))

    def comes_to() -> set[str]:
        arrivals = [way.arrivals for way in lab.fake.fabric.all_paths("leaf2", 91, to_vm1)]
        assert all(len(found) == len({switch for switch, _, _ in found}) for found in arrivals)
        return {switch for found in arrivals for switch, _, _ in found}

    id = await move_to(lab, 2, "target_open", "copying", "converged")
    assert comes_to() == {"edge2"}
    forwards = asyncio.Event()
    lab.controller.context.after_install(
        lambda _: forwards.set() if lab.controller.net.vms["vm1"].forwarded_from else None
    )
    await asyncio.wait_for(forwards.wait(), 5)
    await lab.fake.settle()
    late = udp_frame(GATEWAY_MAC, lab.fake.net.servers["server1"].mac, OUTSIDE, vm_ip(1))
    for way in lab.fake.fabric.all_paths("edge1", UPLINK, late):
        assert [(switch, port) for switch, port, _ in way.arrivals] == [("edge2", vm_port(1))]
    before = {name: dict(switch.flows) for name, switch in lab.fake.fabric.switches.items()}
    lab.controller.mover.hypervisor_says(id, "stopped", lab.now, "")
    await lab.fake.settle()
    assert comes_to() == {"edge1", "edge2"}
    changed = [n for n, switch in lab.fake.fabric.switches.items() if dict(switch.flows) != before[n]]
    assert changed == ["edge2"]
    lab.controller.mover.hypervisor_says(id, "resumed", lab.now, "")
    await lab.fake.settle()
    assert comes_to() == {"edge2"}
    # A switch may follow its tables late: what it still sends to the source is sent on after the VM has gone.
    for way in lab.fake.fabric.all_paths("edge1", UPLINK, late):
        assert [(switch, port) for switch, port, _ in way.arrivals] == [("edge2", vm_port(1))]
    assert [row.switch for row in lab.controller.net.bindings(["vm1"])] == ["edge2"]
    lab.controller.mover.hypervisor_says(id, "source_gone", lab.now, "")
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.DONE
    assert not any(way.arrivals for way in lab.fake.fabric.all_paths("edge1", UPLINK, late))


async def test_a_source_that_is_shut_down_at_once_does_not_hold_up_the_end_of_its_move(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying", "resumed", "source_gone")
    assert lab.controller.mover.moves[id].state is MoveState.DONE
    id = await move_to(lab, 1, "target_open", "copying", "resumed")
    lab.fake.sessions["edge2"].close("the server was shut down")
    lab.controller.mover.hypervisor_says(id, "source_gone", lab.now, "")
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.DONE


async def test_what_a_move_that_failed_has_lost_is_counted(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying", "stopped")
    mover = lab.controller.mover
    mover.hypervisor_says(id, "failed", lab.now, "the target is gone")
    mover.hypervisor_says(id, "rolled_back", lab.now, "", frames=30)
    mover.hypervisor_says(id, "target_gone", lab.now, "", frames=41)
    await lab.fake.settle()
    figures = mover.figures[id]
    assert (figures["diverted"], figures["kept"], figures["lost_about"]) == (40, 30, 10)


@pytest.mark.parametrize("last", ["target_open", "copying", "stopped"])
async def test_a_failed_move_leaves_the_network_as_before(lab: Lab, last: str) -> None:
    await lab.boot(1, at=1)
    before = {name: dict(switch.flows) for name, switch in lab.fake.fabric.switches.items()}
    rows = lab.controller.net.bindings()
    said = ["target_open", "copying", "stopped"]
    id = await move_to(lab, 2, *said[: said.index(last) + 1], "failed", "rolled_back")
    assert lab.controller.mover.moves[id].state is MoveState.UNDONE
    assert lab.controller.net.bindings() == rows
    assert {name: dict(switch.flows) for name, switch in lab.fake.fabric.switches.items()} == before


async def test_a_move_waits_for_a_switch_that_does_not_confirm(lab: Lab) -> None:
    await lab.boot(1, at=1)
    gate = lab.fake.sessions["edge2"].hold = asyncio.Event()
    id = await move_to(lab, 2, "target_open")
    assert lab.controller.mover.moves[id].state is MoveState.ADMITTING
    assert not lab.events("move.copy")
    gate.set()
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.PREPARED


async def test_move_messages_that_do_not_fit_are_refused(lab: Lab) -> None:
    await lab.boot(1, at=1)
    start = lab.controller.mover.start
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
        with pytest.raises(MoveError, match=said):
            start(**wrong)
    assert start("vm1", target_switch="edge2", ip=vm_ip(1), mac=vm_mac(1)).target == "server2"
    with pytest.raises(MoveError, match="being moved already"):
        start("vm1", target_server="server3")


async def test_a_switch_that_comes_back_gets_the_difference_only(lab: Lab) -> None:
    await lab.boot(1, at=1)
    lab.fake.sessions["leaf1"].close("cable pulled")
    session = lab.fake.connect("leaf1")
    await lab.fake.settle()
    assert session.applied == [], "nothing differs, nothing is sent"
    session.close("again")
    await lab.boot(2, at=3)
    assert lab.controller.context.installer.pending() == {"leaf1": 2}
    stray = next(iter(lab.fake.fabric["leaf1"].flows.values()))
    lab.fake.fabric["leaf1"]._remove(stray.key)
    session = lab.fake.connect("leaf1")
    await lab.fake.settle()
    assert sum(change.flow_count for change in session.applied) == 3
    assert not lab.controller.context.installer.pending()


async def test_a_vm_reported_by_its_port_is_booked_and_goes_with_it(lab: Lab) -> None:
    lab.controller.vm_ports_changed([], [lab.port(3, 1)])
    await lab.fake.settle()
    await lab.lease(3, 1)
    assert [row.vm for row in lab.controller.net.bindings()] == ["vm3"]
    lab.controller.vm_ports_changed([lab.port(3, 1)], [])
    await lab.fake.settle()
    assert not lab.fake.net.vms
    assert not lab.fake.net.holdings


async def test_a_removed_vm_is_not_booked_again_by_its_port(lab: Lab) -> None:
    await lab.boot(1, at=1)
    await lab.controller.remove_vm("vm1")
    lab.controller.vm_ports_changed([], [lab.port(1, 1)])
    assert not lab.fake.net.vms
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), OUTSIDE)
    assert not lab.fake.send("edge1", vm_port(1), frame).arrivals


async def test_a_port_with_another_mac_is_not_the_vms(lab: Lab) -> None:
    lab.controller.book_vms([VM("vm1", vm_mac(1), "server1")])
    lab.controller.vm_ports_changed([], [lab.port(1, 1, mac=vm_mac(9))])
    await lab.fake.settle()
    assert lab.events("vm.mismatch")
    assert not lab.fake.net.vm_ports.get("vm1")


async def test_bad_frames_are_counted_and_disturb_nothing(lab: Lab) -> None:
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


async def test_a_step_asked_for_again_is_not_confirmed_by_having_nothing_to_send(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying")
    gate = lab.fake.sessions["spine1"].hold = asyncio.Event()
    lab.controller.mover.hypervisor_says(id, "resumed", lab.now, "")
    await lab.fake.settle()
    for _ in range(3):
        lab.now += 11
        lab.controller.mover.tick()
        await lab.fake.settle()
        assert lab.controller.mover.moves[id].state is MoveState.SWITCHING
        assert "trying again" in lab.controller.mover.moves[id].reason
    gate.set()
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.CONFIRMED


async def test_a_target_that_is_gone_does_not_hold_up_the_undo(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying", "stopped")
    lab.fake.sessions["edge2"].close("the server lost power")
    lab.controller.mover.hypervisor_says(id, "failed", lab.now, "the target is gone")
    lab.controller.mover.hypervisor_says(id, "rolled_back", lab.now, "")
    await lab.fake.settle()
    assert lab.controller.mover.moves[id].state is MoveState.UNDONE
    assert lab.controller.context.installer.pending()["edge2"]
    lab.fake.connect("edge2")
    await lab.fake.settle()
    assert not lab.controller.context.installer.pending(), "what it still held is gone when it is back"


async def test_a_move_taken_up_after_a_restart_waits_for_its_switches(lab: Lab) -> None:
    await lab.boot(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying", "resumed")
    done = lab.controller.mover.moves[id]
    stored = Stored(
        vms=list(lab.fake.net.vms.values()),
        holdings=list(lab.fake.net.holdings.values()),
        moves=[replace(done, state=MoveState.SWITCHED)],
    )
    again = FakeNetwork(fabric(), clock=lambda: lab.now)
    restore(again.controller, stored)
    await again.controller.start()
    take_up_moves(again.controller)
    for switch in ("edge2", "leaf2", "spine1", "spine2", "leaf1"):
        again.connect(switch)
        await again.settle()
        assert again.controller.mover.moves[id].state is MoveState.SWITCHED
    again.connect("edge1")
    await again.settle()
    assert again.controller.mover.moves[id].state is MoveState.CONFIRMED
    await again.stop()


async def test_bulk_servers_are_all_or_nothing(lab: Lab) -> None:
    before = dict(lab.fake.net.servers)
    good = replace(before["server1"], mac="02:00:00:00:00:77")
    bad = replace(before["server2"], mac=before["server3"].mac)
    with pytest.raises(ModelError, match="already belongs to server server3"):
        await lab.controller.put_servers([good, bad])
    assert lab.fake.net.servers == before
    await lab.controller.put_servers([good])
    assert lab.fake.net.server_of_mac("02:00:00:00:00:77") == good


async def test_frames_dropped_as_forged_are_summed_though_entries_are_made_anew(lab: Lab) -> None:
    await lab.boot(1, at=1)
    session = lab.fake.sessions["edge1"]
    packets = [0]

    async def stats(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        flows = [f for f in lab.fake.fabric["edge1"].flows.values() if f.cookie & cookie_mask == cookie]
        return [FlowStats(flow, packets[0], 0, 0.0, 0) for flow in flows]

    session.read_flows = stats  # type: ignore[method-assign]
    totals = []
    for packets[0] in (0, 5, 7, 1):
        await lab.controller._count_forged()
        totals.append(lab.controller.forged_frames.get(("edge1", Reason.FORGED_IP), 0))
    assert totals == [0, 5, 7, 7]


async def test_a_database_that_does_not_fit_is_restored_without_what_does_not(lab: Lab) -> None:
    await lab.boot(1, at=1)
    taken, gateway = IPv4Address("10.0.0.12"), IPv4Address("10.1.0.254")
    held = lab.fake.net.holdings[vm_ip(1)]
    servers = lab.fake.net.servers
    stored = Stored(
        servers=[
            replace(servers["server3"], mac=GATEWAY_MAC),
            replace(servers["server2"], address=gateway),
            replace(servers["router"], id="router2", mac="02:00:00:00:09:09"),
        ],
        places=[Place(server, at) for server, at in lab.fake.net.detected.items()],
        vms=[
            VM("bad", vm_mac(9), "server1", addresses=(taken,)),
            VM("worse", servers["dhcp"].mac, "server1"),
            *lab.fake.net.vms.values(),
        ],
        holdings=[
            replace(held, ip=taken),
            replace(held, ip=gateway),
            replace(held, ip=vm_ip(9), vm="bad", mac=vm_mac(9)),
            held,
        ],
    )
    again = FakeNetwork(fabric(), clock=lambda: lab.now)
    restore(again.controller, stored)
    await again.start()
    assert again.net.servers == servers
    assert list(again.net.vms) == ["vm1"]
    assert again.net.holdings == {vm_ip(1): held}
    assert not again.controller.context.counters["internal errors"]
    assert lab.fake.fabric["spine1"].flows.keys() == again.fabric["spine1"].flows.keys()
    await again.stop()


async def test_what_cannot_be_is_refused_and_everything_goes_on(lab: Lab) -> None:
    await lab.boot(1, at=1)
    with pytest.raises(ModelError, match=r"10.0.0.12 is the address of server server2"):
        lab.controller.book_vms([VM("bad", vm_mac(9), "server1", addresses=(IPv4Address("10.0.0.12"),))])
    with pytest.raises(ModelError, match=r"10.1.0.101 is held by VM vm1"):
        await lab.controller.put_servers([replace(lab.fake.net.servers["server2"], address=vm_ip(1))])
    await lab.boot(2, at=2)
    assert lab.controller.vm_states["vm2"] == "ready"
    assert not lab.controller.context.counters["internal errors"]


async def test_servers_that_changed_addresses_with_each_other_are_restored(lab: Lab) -> None:
    one, two = lab.fake.net.servers["server1"], lab.fake.net.servers["server2"]
    swapped = [replace(one, address=two.address, mac=two.mac), replace(two, address=one.address, mac=one.mac)]
    restore(lab.controller, Stored(servers=swapped))
    assert [lab.fake.net.servers["server1"], lab.fake.net.servers["server2"]] == swapped


async def test_background_work_that_fails_is_counted_and_goes_on(lab: Lab) -> None:
    again = asyncio.Event()
    calls = 0

    async def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("once")
        again.set()

    lab.controller._repeat(0.0, fails_once, "failing work")
    async with asyncio.timeout(5):
        await again.wait()
    assert lab.controller.context.counters["internal errors"] == 1
    assert lab.events("controller.error") == [{"what": "failing work", "error": "RuntimeError('once')"}]


async def test_leases_end_though_one_end_failed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinue.controller.controller.PAUSE_AFTER_FAILURE", 0.0)
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
    lab.controller._lease_timer_moved.set()
    async with asyncio.timeout(5):
        await ended.wait()
    assert not lab.fake.net.holdings
    assert lab.controller.context.counters["internal errors"] == 1


async def test_a_switch_that_does_not_tell_its_counters_does_not_hide_the_others(lab: Lab) -> None:
    await lab.boot(1, at=1)
    await lab.boot(2, at=2)

    async def refuses(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        raise Rejected(("busy",))

    async def counts(cookie: int = 0, cookie_mask: int = 0) -> list[FlowStats]:
        flows = lab.fake.fabric["edge2"].flows.values()
        return [FlowStats(f, 3, 0, 0.0, 0) for f in flows if reason_of(f.cookie) is Reason.FORGED_MAC]

    lab.fake.sessions["edge1"].read_flows = refuses  # type: ignore[method-assign]
    lab.fake.sessions["edge2"].read_flows = counts  # type: ignore[method-assign]
    await lab.controller._count_forged()
    assert lab.controller.forged_frames["edge2", Reason.FORGED_MAC] == 3


async def report(lab: Lab, vm: int, at: int) -> None:
    """A server has made a VM by itself; nobody booked it."""
    lab.controller.vm_ports_changed([], [lab.port(vm, at)])
    await lab.fake.settle()


async def test_a_reported_vm_is_not_booked_in_the_middle_of_its_move(lab: Lab) -> None:
    await report(lab, 1, at=1)
    await lab.lease(1, at=1)
    id = await move_to(lab, 2, "target_open", "copying")
    before = lab.fake.net.vms["vm1"]
    with pytest.raises(ModelError, match=r"VM vm1 is being moved: move-1 is copying"):
        lab.controller.book_vms([VM("vm1", vm_mac(1), "server3")])
    assert lab.fake.net.vms["vm1"] == before
    lab.controller.mover.cancel(id)
    lab.controller.mover.hypervisor_says(id, "rolled_back", lab.now, "")
    await lab.fake.settle()
    lab.controller.book_vms([VM("vm1", vm_mac(1), "server1")])
    assert not lab.fake.net.vms["vm1"].reported


async def test_a_reported_vm_is_booked_with_the_mac_it_has(lab: Lab) -> None:
    await report(lab, 1, at=1)
    with pytest.raises(ModelError, match=rf"VM vm1 runs at edge1 with MAC {vm_mac(1)}, not {vm_mac(7)}"):
        lab.controller.book_vms([VM("vm1", vm_mac(7), "server1")])
    await lab.lease(1, at=1)
    held = dict(lab.fake.net.holdings)
    lab.controller.book_vms([VM("vm1", vm_mac(1), "server1")])
    await lab.fake.settle()
    assert lab.fake.net.holdings == held, "it keeps its lease"
    assert lab.controller.vm_states["vm1"] == "ready"


async def test_one_vm_twice_in_a_bulk_is_refused(lab: Lab) -> None:
    with pytest.raises(ModelError, match="VM vm1 is given twice"):
        lab.controller.book_vms([VM("vm1", vm_mac(1), "server1"), VM("vm1", vm_mac(2), "server2")])
    assert not lab.fake.net.vms


async def test_a_bulk_booking_that_fails_takes_back_what_it_gave_to_reported_vms(lab: Lab) -> None:
    for number in (1, 2, 3):
        await report(lab, number, at=1)
    await lab.lease(2, at=1)
    lab.controller.vm_ports_changed([lab.port(3, 1)], [])
    restore(lab.controller, Stored(vms=[VM("vm3", vm_mac(3), "server1", reported=True)]))
    before = dict(lab.fake.net.vms), dict(lab.fake.net.holdings)
    with pytest.raises(ModelError, match="in no subnet"):
        lab.controller.book_vms(
            [
                VM("vm1", vm_mac(1), "server1", addresses=(vm_ip(1),)),
                VM("vm2", vm_mac(2), "server2", addresses=(vm_ip(2),)),
                VM("vm3", vm_mac(7), "server3", addresses=(vm_ip(7),)),
                VM("vm4", vm_mac(3), "server1", addresses=(vm_ip(3),)),
                VM("vm5", vm_mac(5), "server1", addresses=(OUTSIDE,)),
            ]
        )
    assert (lab.fake.net.vms, lab.fake.net.holdings) == before
    await lab.fake.settle()
    lab.controller.book_vms([VM("vm6", vm_mac(6), "server1", addresses=(vm_ip(1),))])


async def test_servers_that_took_each_others_macs_are_put_back(lab: Lab) -> None:
    before = dict(lab.fake.net.servers)
    one, two, three = (before[f"server{n}"] for n in (1, 2, 3))
    with pytest.raises(ModelError, match="is the gateway of"):
        await lab.controller.put_servers(
            [
                replace(one, mac="02:00:00:00:00:77"),
                replace(two, mac=one.mac),
                replace(three, id="new", edge="", mac=two.mac, address=None),
                replace(three, address=IPv4Address("10.0.0.254")),
            ]
        )
    assert lab.fake.net.servers == before


# ---- reported VMs that went while the controller was down ----


async def test_a_reported_vm_without_a_port_is_forgotten_when_its_edge_has_been_read(lab: Lab) -> None:
    reported = [VM(f"vm{n}", vm_mac(n), f"server{at}", reported=True) for n, at in ((1, 1), (2, 1), (3, 2))]
    booked = VM("vm4", vm_mac(4), "server1")
    restore(lab.controller, Stored(vms=[*reported, booked]))
    lab.controller.vm_ports_changed([], [lab.port(2, 1)])
    lab.controller.edge_read([0x31])
    await lab.fake.settle()
    assert set(lab.fake.net.vms) == {"vm2", "vm3", "vm4"}
    assert [event["vm"].id for event in lab.events("vm.removed")] == ["vm1"]  # type: ignore[attr-defined]
    lab.controller.edge_read([0x31, 0x32, 0x999])
    assert set(lab.fake.net.vms) == {"vm2", "vm4"}


async def test_a_reported_vm_being_moved_is_not_forgotten_before_both_its_edges_are_read(lab: Lab) -> None:
    vm = VM("vm1", vm_mac(1), "server1", also=frozenset({"server2"}), reported=True)
    restore(lab.controller, Stored(vms=[vm]))
    lab.controller.edge_read([0x31])
    assert "vm1" in lab.fake.net.vms
    lab.controller.vm_ports_changed([], [lab.port(1, 2)])
    lab.controller.edge_read([0x32])
    assert "vm1" in lab.fake.net.vms


async def test_a_vm_whose_port_has_no_number_yet_is_not_forgotten(lab: Lab) -> None:
    restore(lab.controller, Stored(vms=[VM("vm1", vm_mac(1), "server1", reported=True)]))
    lab.controller.vm_ports_changed([], [replace(lab.port(1, 1), number=None)])
    lab.controller.edge_read([0x31], ["vm1"])
    assert "vm1" in lab.fake.net.vms


# ---- large changes ----


async def test_a_large_change_leaves_others_their_turn_and_ends_when_all_is_sent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, net = lab.controller.context, lab.fake.net
    touched: set[Owner] = set()
    for n in range(600):
        vm = VM(f"many{n}", f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}", "server1")
        touched |= net.put_vm(vm) | net.set_vm_port(vm.id, "edge1", VMPort(1000 + n, f"tap{n}"))
    before = len(lab.fake.fabric["edge1"].flows)
    sizes, turns, update = [], 0, context.compiler.update

    def counted(owners: Iterable[Owner]) -> Keys:
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


async def test_what_is_changed_and_not_yet_computed_does_not_stand(lab: Lab) -> None:
    await lab.boot(1, at=1)
    assert lab.controller.context.stands(Owner("vm", "vm1"))
    touched = lab.fake.net.hold(replace(lab.fake.net.holdings[vm_ip(1)], lease_end=9e9))
    assert not lab.controller.context.stands(Owner("vm", "vm1"))
    await lab.controller.context.install(touched)
    assert lab.controller.context.stands(Owner("vm", "vm1"))
