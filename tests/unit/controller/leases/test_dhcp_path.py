"""DHCP through the controller: who is told what when a server, a VM or a migration's target oversteps."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
import structlog

from retinue.core.model import PortRef, Server, Service, Subnet
from retinue.core.packets import (
    BROADCAST,
    MessageType,
    build_udp4,
    decline,
    dhcp_frame,
    discover,
    nak,
    parse_dhcp_frame,
    release,
    renewal,
    request,
)
from retinue.core.packets.ethernet import Ethernet
from retinue.protocol.migrations import Report
from support.fabric.dhcp_lab import EVERYWHERE, NOWHERE, SERVER, DhcpLab, dhcp_lab
from support.fabric.networks import fabric, vm_ip, vm_mac, vm_port

TAKEN = IPv4Address("10.1.0.112")


@pytest.fixture
async def lab() -> AsyncIterator[DhcpLab]:
    found = await dhcp_lab()
    yield found
    await found.fake.stop()


# ---- a server that gives what another VM holds ----


async def test_server_and_operator_are_told_that_an_address_is_anothers(lab: DhcpLab) -> None:
    """The VM gets the next offer, when the server has struck that address off; nobody is booked for it."""
    await lab.add(1)
    await lab.add(2, addresses=(TAKEN,))
    lab.grants[vm_mac(1)] = TAKEN
    for xid in range(5):
        await lab.say(1, discover(vm_mac(1), xid))
        await lab.say(1, request(vm_mac(1), xid, TAKEN, SERVER))
        lab.now += 5
    told = [(d, m) for _, d, m in lab.served if m.message_type is MessageType.DECLINE]
    assert [(m.requested_address, m.server_id, m.chaddr) for _, m in told] == [(TAKEN, SERVER, vm_mac(1))]
    assert (told[0][0].src, told[0][0].dst) == (NOWHERE, EVERYWHERE)
    assert not lab.heard_by(1), "it is led to nothing that it cannot have"
    assert [(e["vm"], e["ip"]) for e in lab.events("binding.rejected")] == [("vm1", TAKEN)]
    assert lab.events("spoofing") == []
    assert lab.controller.context.spoof_attempts.of_vm("vm1") == 0
    del lab.grants[vm_mac(1)]
    await lab.boot(1, 0, 9)
    assert lab.fake.net.assignments[vm_ip(1)].vm == "vm1"


# ---- where a VM is open, and does not run ----


async def migrating(lab: DhcpLab, *reports: Report) -> Callable[[Report], Awaitable[None]]:
    """vm1, with its lease, on its way from server1 to server2; what tells more of it."""
    await lab.add(1)
    await lab.boot(1)
    orchestrator = lab.controller.orchestrator
    migration = orchestrator.start("vm1", target_server="server2")
    await lab.plug(1, 2)

    async def told(report: Report) -> None:
        orchestrator.reports.on_report(migration.id, report, lab.now, "")
        await lab.fake.settle()

    for report in (Report.TARGET_OPENED, Report.COPY_STARTED, *reports):
        await told(report)
    return told


async def gives_back(lab: DhcpLab, edge: int) -> bool:
    """What becomes of a RELEASE and a DECLINE of vm1's that come from there."""
    before = len(lab.served)
    for said in (release(vm_ip(1), vm_mac(1), 9, SERVER), decline(vm_mac(1), 9, vm_ip(1), SERVER)):
        await lab.say(1, said, said.ciaddr, at=edge)
    return len(lab.served) > before


async def test_a_target_that_has_only_been_opened_gives_back_nothing(lab: DhcpLab) -> None:
    told = await migrating(lab)
    for report in (Report.CONVERGED, Report.STOPPED, None):
        assert not await gives_back(lab, 2)
        assert vm_ip(1) in lab.fake.net.assignments
        if report is not None:
            await told(report)
    attempts = lab.fake.controller.context.spoof_attempts.rows()
    assert sum(row.count for row in attempts) == 6, "each is noted"
    assert not await gives_back(lab, 1), "it has stopped"
    await told(Report.RESUMED)
    assert await gives_back(lab, 2)
    assert vm_ip(1) not in lab.fake.net.assignments


async def test_until_it_stops_a_vm_speaks_at_its_source(lab: DhcpLab) -> None:
    """Even when all that is for it goes to the target already."""
    await migrating(lab, Report.CONVERGED)
    assert lab.fake.net.vms["vm1"].server == "server2"
    assert await gives_back(lab, 1)
    assert vm_ip(1) not in lab.fake.net.assignments


# ---- what is much ----


FAR = IPv4Address("10.0.0.2")


async def test_a_question_for_many_subnets_uses_up_nobody_elses_dhcp() -> None:
    """25 relayed subnets: a DISCOVER is 25 messages, and the server's leaf lets 500 a second by for all."""
    net = fabric()
    net.put_server(replace(net.servers["dhcp"], address=FAR))
    net.subnets["blue"] = replace(net.subnets["blue"], dhcp=(FAR,))
    for number in range(24):
        prefix = IPv4Network(f"10.2.{number}.0/24")
        net.add_subnet(Subnet(f"s{number}", prefix, prefix[254], dhcp=(FAR,)))
    lab = await dhcp_lab(net)
    lab.says = lambda asked: None
    for vm in (1, 2):
        await lab.add(vm)
    for tick in range(200):
        lab.now += 0.05
        await lab.say(1, discover(vm_mac(1), tick))
    of_one = len(lab.served)
    assert of_one <= 25 + 20 * 10, "in 10 s"
    assert of_one % 25 == 0, "a question goes whole or not at all"
    assert lab.counted("DHCP dropped: a VM asks too much of relayed subnets") == 200 - of_one // 25
    await lab.say(2, discover(vm_mac(2), 7))
    assert len(lab.served) == of_one + 25
    await lab.say(2, request(vm_mac(2), 7, vm_ip(2), FAR))
    assert len(lab.served) == of_one + 26, "a REQUEST follows at once, and goes one way"
    await lab.fake.stop()


async def test_what_cannot_be_read_is_counted_and_logged_now_and_then(lab: DhcpLab) -> None:
    for vm in (1, 2):
        await lab.add(vm)

    def junk(vm: int) -> bytes:
        packet = build_udp4(NOWHERE, EVERYWHERE, 68, 67, b"junk")
        return Ethernet(BROADCAST, vm_mac(vm), 0x0800, packet).build()

    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            await lab.send(1, junk(1))
            lab.now += 0.1
        await lab.send(2, junk(2))
    places = [line["where"] for line in logs if line["event"] == "frame.rejected"]
    assert places == [f"edge1 port {vm_port(1)}", f"edge2 port {vm_port(2)}"]
    assert lab.counted("bad DHCP frames") == 101
    with structlog.testing.capture_logs() as logs:
        lab.now += 0.1
        await lab.send(1, junk(1))
    assert len(logs) == 1


async def test_places_of_bad_frames_are_bounded(lab: DhcpLab) -> None:
    context = lab.controller.context
    with structlog.testing.capture_logs():
        for number in range(1100):
            context.reject_frame("DHCP", f"place {number}", ValueError("x"))
    assert len(context._frames_rejected) == 1000


# ---- two servers ----


async def test_only_the_server_that_was_chosen_ends_what_it_granted() -> None:
    """Another, behind another port, says NAK before the chosen one's ACK each time."""
    net = fabric()
    net.set_ports("leaf1", {**net._numbers["leaf1"], "dhcp2": 92})
    other = IPv4Address("10.1.0.3")
    net.put_server(
        Server("second", "02:00:00:00:01:03", other, services=frozenset({Service.DHCP}),
               given_at=PortRef("leaf1", "dhcp2"))
    )  # fmt: skip
    lab = await dhcp_lab(net)
    await lab.add(1)

    def says_no(frame: bytes) -> None:
        asked = parse_dhcp_frame(frame)[2]
        if asked.message_type is MessageType.REQUEST:
            no = dhcp_frame(
                nak(asked, other), net.servers["second"].mac, BROADCAST, other, EVERYWHERE, 67, 68
            )
            lab.fake.send("leaf1", 92, no)

    lab.fake.hosts["leaf1", 92] = says_no
    await lab.boot(1)
    await lab.say(1, renewal(vm_ip(1), vm_mac(1), 8), vm_ip(1), SERVER)
    await lab.say(1, renewal(vm_ip(1), vm_mac(1), 9), vm_ip(1))
    assert lab.fake.net.assignments[vm_ip(1)].server == SERVER
    assert [m.message_type for _, _, m in lab.heard_by(1)] == [
        MessageType.OFFER, *[MessageType.ACK] * 3,
    ]  # fmt: skip
    await lab.fake.stop()
