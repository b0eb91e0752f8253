"""The examples of US 9,479,611: table 1's row before and after a migration, and step 304's message.

A controller over fake switches; the VM has the document's addresses, and its port on either switch is 24.
"""

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from retinue.core.lease_renewal import Lease, request_frame
from retinue.core.model import VM, Network, PortRef, PortStatus, Server, Service, Subnet
from retinue.core.packets import (
    BROADCAST,
    MessageType,
    ack,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse,
    parse_dhcp_frame,
    parse_udp4,
    request,
)
from retinue.protocol.migrations import Report
from retinue.protocol.renewals import RenewalOrder
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import fabric
from support.fabric.world import OUTSIDE, udp_frame
from support.fakes.session import FakeNetwork

IP, MAC, PORT = IPv4Address("10.85.28.193"), "00:e0:4c:97:6f:e8", 24
"""Table 1: IP Address, MAC Address, Accessed Port Number."""
GATEWAY, SERVER = IPv4Address("10.85.28.254"), IPv4Address("10.85.28.2")
FAR_SERVER = IPv4Address("10.0.0.2")
NOBODY, EVERYBODY = IPv4Address(0), IPv4Address("255.255.255.255")
LEASE = 600
SWITCH_1, SWITCH_2 = "edge1", "edge2"


def figure_1(server: IPv4Address) -> Network:
    """VM servers 1 and 2 with switches 1 and 2, and a DHCP server; one of another subnet is relayed to."""
    net = fabric()
    net.remove_server("dhcp")
    relayed = (server,) if server == FAR_SERVER else ()
    net.add_subnet(Subnet("blue", IPv4Network("10.85.28.0/24"), GATEWAY, dhcp=relayed))
    net.put_server(
        Server(
            "dhcp", "02:00:00:00:01:02", server, services=frozenset({Service.DHCP}),
            given_at=PortRef("leaf2", "dhcp"),
        )
    )  # fmt: skip
    return net


@dataclass
class Figure1:
    fake: FakeNetwork
    server: IPv4Address
    now: float = 1000.0
    heard: list[bytes] = field(default_factory=list)
    """UDP payloads that the DHCP server has received."""
    refuses: bool = False

    def serve(self, frame: bytes) -> None:
        ethernet, _, asked = parse_dhcp_frame(frame)
        self.heard.append(parse_udp4(parse(frame).payload).payload)
        if self.refuses:
            reply = nak(asked, self.server, "not here")
        else:
            answer = offer if asked.message_type is MessageType.DISCOVER else ack
            reply = answer(asked, IP, self.server, LEASE)
        to, port = (asked.giaddr, 67) if asked.giaddr != NOBODY else (IP, 68)
        answered = dhcp_frame(reply, "02:00:00:00:01:02", ethernet.src, self.server, to, 67, port)
        self.fake.send("leaf2", 90, answered)

    async def plug(self, edge: int) -> None:
        port = BridgePort(
            dpid=0x30 + edge, bridge="br0", name="tap", number=PORT, status=PortStatus.UP, iface_id="vm",
            attached_mac=MAC,
        )  # fmt: skip
        self.fake.controller.inventory.ports.changed([], [port])
        await self.fake.settle()

    async def boot(self) -> None:
        self.fake.controller.inventory.register_vms([VM.with_one_nic("vm", MAC, "server1")])
        await self.plug(1)
        for message in (discover(MAC, 7), request(MAC, 7, IP, self.server)):
            frame = dhcp_frame(message, MAC, BROADCAST, NOBODY, EVERYBODY, 68, 67)
            self.fake.send(SWITCH_1, PORT, frame)
            await self.fake.settle()

    async def migrate(self, to: int) -> None:
        orchestrator = self.fake.controller.orchestrator
        id = orchestrator.start("vm", target_server=f"server{to}").id
        await self.plug(to)
        for report in (
            *(Report.TARGET_OPENED, Report.COPY_STARTED, Report.CONVERGED),
            *(Report.STOPPED, Report.RESUMED, Report.SOURCE_FREED),
        ):
            self.now += 1
            orchestrator.reports.on_report(id, report, self.now, "")
            await self.fake.settle()

    def ordered(self) -> RenewalOrder:
        """The renewal that the controller has ordered of the agent, last."""
        found = [o for o in self.fake.controller.renewals.orders.values() if isinstance(o, RenewalOrder)]
        return found[-1]

    async def renew(self) -> RenewalOrder:
        """Steps 304 and 305: the agent builds the message, and it goes in at the VM's port."""
        order = self.ordered()
        lease = Lease(order.ip, order.mac, order.dhcp_server, bytes.fromhex(order.client_id), order.next_hop)
        self.fake.send(order.switch, order.port_number, request_frame(lease, order.xid))
        await self.fake.settle()
        return order

    def rows(self) -> list[tuple[str, str, int, str]]:
        """Table 1 as it stands: IP, MAC, port number, and the switch."""
        return [(str(row.ip), row.mac, row.port, row.switch) for row in self.fake.net.bindings()]

    def passes(self, switch: str) -> bool:
        """Whether the VM's packets are let in at its port there."""
        frame = udp_frame(MAC, "00:00:de:ad:be:ef", IP, OUTSIDE)
        return bool(self.fake.fabric.send(switch, PORT, frame).arrivals)


async def stands(server: IPv4Address) -> AsyncIterator[Figure1]:
    made: Figure1
    fake = FakeNetwork(figure_1(server), clock=lambda: made.now)
    made = Figure1(fake, server)
    fake.hosts["leaf2", 90] = made.serve
    await fake.start()
    await made.boot()
    yield made
    await fake.stop()


@pytest.fixture
async def figure() -> AsyncIterator[Figure1]:
    async for made in stands(SERVER):
        yield made


@pytest.fixture
async def relayed() -> AsyncIterator[Figure1]:
    async for made in stands(FAR_SERVER):
        yield made


async def test_table_1_has_exactly_this_row(figure: Figure1) -> None:
    assert figure.rows() == [("10.85.28.193", "00:e0:4c:97:6f:e8", 24, SWITCH_1)]


async def test_figure_1_the_row_is_in_switch_1_before_and_in_switch_2_after(figure: Figure1) -> None:
    """And switch 1 has none any more: packets of the VM's are let in where it is, and nowhere else."""
    assert (figure.passes(SWITCH_1), figure.passes(SWITCH_2)) == (True, False)
    await figure.migrate(2)
    order = await figure.renew()
    assert (order.switch, order.port_number) == (SWITCH_2, 24)
    assert figure.rows() == [("10.85.28.193", "00:e0:4c:97:6f:e8", 24, SWITCH_2)]
    assert (figure.passes(SWITCH_1), figure.passes(SWITCH_2)) == (False, True)


FORMAT = struct.Struct("!BBBB4sHH4s4s4s4s16s64s128s")
"""Step 304: op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file."""


async def message(figure: Figure1) -> tuple[tuple[Any, ...], bytes]:
    """The fields of a renewal's message in the document's order, as the server has it, and its options."""
    figure.heard.clear()
    await figure.renew()
    (payload,) = figure.heard
    return FORMAT.unpack_from(payload), payload[FORMAT.size :]


@pytest.mark.parametrize("case", ["straight", "by a relay"])
async def test_step_304_the_message_field_by_field(figure: Figure1, relayed: Figure1, case: str) -> None:
    where = figure if case == "straight" else relayed
    await where.migrate(2)
    fields, options = await message(where)
    op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file = fields
    assert op == 1, "1. op: request message"
    assert (htype, hlen) == (1, 6), "2. hardware address type and length"
    assert hops == (0 if case == "straight" else 1), "3. relays that it has passed"
    assert xid != bytes(4), "4. xid"
    assert secs == 0, "5. secs: the request has just begun"
    assert flags == 0, "6. flags: answered by unicast"
    assert IPv4Address(ciaddr) == IP, "7. ciaddr: IP address of the virtual machine"
    assert yiaddr == siaddr == bytes(4), "8., 9. yiaddr and siaddr are the server's to fill in"
    assert IPv4Address(giaddr) == (NOBODY if case == "straight" else GATEWAY), "10. giaddr: first relay"
    assert chaddr == bytes.fromhex(MAC.replace(":", "")) + bytes(10), "11. chaddr: hardware address"
    assert (sname, file) == (bytes(64), bytes(128)), "12., 13. sname and file are empty"
    assert options[:4] == bytes.fromhex("63825363"), "14. options"
    assert bytes((53, 1, MessageType.REQUEST)) in options, "the type of the message"


async def test_step_304_xid_is_another_for_each_request(figure: Figure1) -> None:
    await figure.migrate(2)
    first, _ = await message(figure)
    await figure.migrate(1)
    second, _ = await message(figure)
    assert first[4] != second[4]


async def test_steps_305_to_312_an_ack_extends_the_lease_and_the_row_at_switch_2(figure: Figure1) -> None:
    await figure.migrate(2)
    (row,) = figure.fake.net.bindings()
    before = row.lease_end
    figure.now += 100
    order = await figure.renew()
    (row,) = figure.fake.net.bindings()
    assert before is not None and row.lease_end is not None
    assert (row.switch, row.lease_end) == (SWITCH_2, figure.now + LEASE)
    assert row.lease_end > before
    assert str(figure.fake.controller.renewals.orders[order.id].state) == "acked"


async def test_steps_305_to_312_the_dhcp_server_judges_and_a_nak_binds_nothing(figure: Figure1) -> None:
    """Whether it "is a valid message" is for the DHCP server to say, and for nobody else."""
    await figure.migrate(2)
    figure.refuses = True
    (before,) = figure.fake.net.bindings()
    figure.now += 100
    order = await figure.renew()
    assert str(figure.fake.controller.renewals.orders[order.id].state) == "rejected"
    assert all(row.lease_end == before.lease_end for row in figure.fake.net.bindings()), "nothing is extended"
