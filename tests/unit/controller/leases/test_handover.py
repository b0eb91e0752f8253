"""What goes on to DHCP servers and to VMs is built anew: whom it comes from, and whom it is for."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from retinue.core.model import Assignment, BindingKind, Origin, PortStatus
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    Ethernet,
    EtherType,
    MessageType,
    Option,
    ack,
    build_dhcp,
    checksum,
    dhcp_frame,
    discover,
    nak,
    offer,
    parse,
    release,
    renewal,
    request,
)
from retinue.southbound.ovsdb import BridgePort
from support.fabric.dhcp_lab import EVERYWHERE, NOWHERE, SERVER, DhcpLab, dhcp_lab
from support.fabric.networks import GATEWAY, GATEWAY_MAC, vm_ip, vm_mac, vm_port

OUTSIDE, LOOPBACK, GROUP = (IPv4Address(text) for text in ("203.0.113.9", "127.0.0.1", "224.0.0.1"))
FREE = IPv4Address("10.1.0.77")


@pytest.fixture
async def lab() -> AsyncIterator[DhcpLab]:
    found = await dhcp_lab()
    for vm in (1, 2):
        await found.add(vm)
        await found.boot(vm)
    found.served.clear()
    yield found
    await found.fake.stop()


OWN, OTHERS = vm_ip(1), vm_ip(2)
DISCOVERS = discover(vm_mac(1), 99)
RENEWS, INFORMS = renewal(OWN, vm_mac(1), 99), renewal(OWN, vm_mac(1), 99).with_option(53, b"\x08")

ROUTES = [
    # question, source, destination -> how many servers hear it, how many spoofing attempts are told
    (DISCOVERS, NOWHERE, EVERYWHERE, 1, 0),
    (DISCOVERS, OWN, EVERYWHERE, 1, 0),
    (DISCOVERS, NOWHERE, SERVER, 1, 0),
    (RENEWS, OWN, SERVER, 1, 0),
    (RENEWS, OWN, EVERYWHERE, 1, 0),
    (RENEWS, NOWHERE, EVERYWHERE, 1, 0),
    (INFORMS, OWN, EVERYWHERE, 1, 0),
    *(
        (DISCOVERS, src, EVERYWHERE, 0, 1)
        for src in (OTHERS, GATEWAY, SERVER, FREE, OUTSIDE, LOOPBACK, GROUP)
    ),
    (DISCOVERS, EVERYWHERE, EVERYWHERE, 0, 1),
    *((RENEWS, src, SERVER, 0, 1) for src in (OTHERS, GATEWAY, SERVER, FREE, OUTSIDE)),
    (INFORMS, FREE, EVERYWHERE, 0, 1),
    *(
        (DISCOVERS, NOWHERE, dst, 0, 0)
        for dst in (OTHERS, GATEWAY, OUTSIDE, GROUP, IPv4Address("10.1.0.255"))
    ),
    (RENEWS, OWN, OUTSIDE, 0, 0),
]


@pytest.mark.parametrize("mac", [BROADCAST, GATEWAY_MAC, vm_mac(2), "01:00:5e:00:00:01"])
async def test_source_and_destination_decide_whether_a_server_hears_a_vm(lab: DhcpLab, mac: str) -> None:
    attempts = lab.fake.controller.context.spoof_attempts
    for dhcp, src, dst, heard, told in ROUTES:
        lab.served.clear()
        before = attempts.of_vm("vm1")
        await lab.say(1, dhcp, src, dst, mac)
        assert (len(lab.served), attempts.of_vm("vm1") - before) == (heard, told), (src, dst)
        if told and dhcp.ciaddr == NOWHERE:
            assert str(src) in {row.claimed_ip for row in attempts.rows()}, (
                "the report names what was claimed"
            )
        for ethernet, datagram, _ in lab.served:
            assert datagram.src in (NOWHERE, OWN)
            assert (ethernet.dst, datagram.dst) in (
                (BROADCAST, EVERYWHERE), (lab.fake.net.servers["dhcp"].mac, SERVER),
            )  # fmt: skip


async def test_a_renewal_of_what_nobody_holds_asks_as_one_without_an_address(lab: DhcpLab) -> None:
    """The controller may have lost what the VM has, or its lease has just ended here: the server decides."""
    await lab.say(1, renewal(FREE, vm_mac(1), 98), FREE, SERVER)
    ((_, datagram, dhcp),) = lab.served
    assert (datagram.src, datagram.dst, dhcp.ciaddr) == (NOWHERE, EVERYWHERE, FREE)
    assert not lab.events("spoofing")
    lab.served.clear()
    await lab.say(1, release(FREE, vm_mac(1), 96, SERVER), FREE, SERVER)
    assert not lab.served, "there is nothing to give back"
    assert not lab.events("spoofing")
    for nobodys in (OUTSIDE, GATEWAY, SERVER, OTHERS, IPv4Address("10.1.0.255"), IPv4Address("10.1.0.0")):
        await lab.say(1, renewal(nobodys, vm_mac(1), 97), nobodys, SERVER)
    assert not lab.served


async def test_a_server_behind_anothers_relay_is_known_by_the_lease_it_granted(lab: DhcpLab) -> None:
    """After a restart of the controller, too: nothing but the binding tells of that server."""
    behind = IPv4Address("192.0.2.7")
    lab.fake.net.assign(
        Assignment(OWN, vm_mac(1), "vm1", BindingKind.DYNAMIC, Origin.CONTROLLER, 2000.0, behind)
    )
    await lab.say(1, RENEWS, OWN, behind)
    ((ethernet, datagram, _),) = lab.served
    assert (ethernet.dst, datagram.dst) == (lab.fake.net.servers["dhcp"].mac, behind)
    await lab.say(2, renewal(vm_ip(2), vm_mac(2), 9), vm_ip(2), behind)
    assert len(lab.served) == 1, "another VM has nothing from there"


def with_ip_options(frame: bytes, options: bytes) -> bytes:
    ethernet = parse(frame)
    head = bytearray(ethernet.payload[:20] + options)
    head[0] = 0x40 | len(head) // 4
    total = int.from_bytes(head[2:4], "big") + len(options)
    head[2:4], head[10:12] = total.to_bytes(2, "big"), bytes(2)
    head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return Ethernet(ethernet.dst, ethernet.src, EtherType.IPV4, bytes(head) + ethernet.payload[20:]).build()


async def test_nothing_that_was_not_judged_goes_on(lab: DhcpLab) -> None:
    """Neither IP options nor what follows the datagram, nor what only a server may say."""
    said = replace(DISCOVERS, yiaddr=OTHERS, siaddr=OUTSIDE)
    frame = dhcp_frame(said, vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
    await lab.send(1, frame + b"behind" * 150)
    await lab.send(1, with_ip_options(frame, bytes.fromhex("8307040a010066000000")[:8]))
    ((ethernet, datagram, dhcp),) = lab.served
    assert b"behind" not in ethernet.payload
    assert dhcp == DISCOVERS
    assert datagram.payload == build_dhcp(DISCOVERS)
    assert [row["spoofing"].vm for row in lab.events("spoofing")] == ["vm1"]


VICTIM_ID = b"\x01" + bytes.fromhex(vm_mac(2).replace(":", ""))


@pytest.mark.parametrize(
    "hidden",
    [
        replace(
            DISCOVERS.with_option(61, VICTIM_ID).with_option(52, b"\1"),
            file=b"\x3d\x012\xff".ljust(128, b"\0"),
        ),
        replace(DISCOVERS.with_option(52, b"\2"), sname=(b"\x3d\x07" + VICTIM_ID + b"\xff").ljust(64, b"\0")),
        DISCOVERS.with_option(52, b"\1"),
        replace(DISCOVERS, options=(*DISCOVERS.options, (61, VICTIM_ID), (61, b"2"))),
        replace(DISCOVERS, options=(*DISCOVERS.options, (61, b"2"), (61, VICTIM_ID))),
        replace(DISCOVERS, options=(*DISCOVERS.options, (60, b"a"), (60, b"a"))),
        replace(DISCOVERS, options=(*DISCOVERS.options, (12, b""), (12, b"b"))),
    ],
)
async def test_what_two_readers_could_read_in_two_ways_is_dropped(lab: DhcpLab, hidden: DHCP) -> None:
    await lab.say(1, hidden)
    assert not lab.served
    assert len(lab.events("spoofing")) == 1


@pytest.mark.parametrize("to", [GATEWAY_MAC, vm_mac(1), vm_mac(2), BROADCAST, "02:00:00:00:00:01"])
async def test_whatever_comes_out_at_a_vms_port_is_for_the_vm(lab: DhcpLab, to: str) -> None:
    """The server's kernel sends to the MAC that it gets by ARP, which is the gateway's."""
    lab.eth_dst = lambda chaddr: to
    for kind, said in {
        MessageType.OFFER: discover(vm_mac(1), 50),
        MessageType.ACK: renewal(OWN, vm_mac(1), 51),
        MessageType.NAK: request(vm_mac(1), 52, FREE, SERVER),
    }.items():
        lab.says = lambda asked, kind=kind: {
            MessageType.OFFER: offer(asked, OWN, SERVER, 600),
            MessageType.ACK: ack(asked, OWN, SERVER, 600),
            MessageType.NAK: nak(asked, SERVER),
        }[kind]
        before = len(lab.heard_by(1))
        await lab.say(1, said, said.ciaddr)
        ((ethernet, datagram, dhcp),) = lab.heard_by(1)[before:]
        assert dhcp.message_type is kind
        assert ethernet.dst == (BROADCAST if kind is MessageType.NAK else vm_mac(1))
        assert datagram.dst == (EVERYWHERE if kind is MessageType.NAK else OWN)
        assert (ethernet.src, datagram.src, datagram.sport, datagram.dport) == (GATEWAY_MAC, SERVER, 67, 68)


async def test_what_a_server_broadcasts_is_broadcast(lab: DhcpLab) -> None:
    """Its client has said so, or it knows better."""
    lab.says = lambda asked: None
    for flags, dst in ((0x8000, OWN), (0, EVERYWHERE)):
        asked = replace(discover(vm_mac(1), 60), flags=flags)
        await lab.say(1, asked)
        before = len(lab.heard_by(1))
        lab.answer(offer(asked, OWN, SERVER, 600), dst)
        await lab.fake.settle()
        ((ethernet, datagram, _),) = lab.heard_by(1)[before:]
        assert (ethernet.dst, datagram.dst) == (BROADCAST, EVERYWHERE)


async def test_a_vm_that_is_removed_gives_its_lease_back(lab: DhcpLab) -> None:
    """Else the server keeps the address for nobody, until the lease ends; only the manager's word counts."""
    await lab.boot(1, 0, 70, (Option.CLIENT_ID, b"\x00me"))
    lab.served.clear()
    await lab.controller.inventory.remove_vm("vm1")
    await lab.fake.settle()
    ((ethernet, datagram, dhcp),) = lab.served
    assert (dhcp.message_type, dhcp.ciaddr, dhcp.server_id) == (MessageType.RELEASE, OWN, SERVER)
    assert (dhcp.client_id, dhcp.chaddr, dhcp.requested_address) == (b"\x00me", vm_mac(1), None)
    assert (ethernet.dst, datagram.src, datagram.dst) == (lab.fake.net.servers["dhcp"].mac, OWN, SERVER)
    assert OWN not in lab.fake.net.assignments


async def test_a_static_address_is_not_given_back_to_a_server(lab: DhcpLab) -> None:
    await lab.add(3, addresses=(vm_ip(3),))
    await lab.controller.inventory.remove_vm("vm3")
    assert not lab.served


async def test_a_reported_vm_whose_port_goes_keeps_its_lease_at_the_server(lab: DhcpLab) -> None:
    """It may only be restarted there, and comes back."""
    registered = lab.fake.net.vms["vm1"]
    lab.fake.net.put_vm(replace(registered, reported=True))
    gone = BridgePort(0x31, "br0", "tap1", vm_port(1), PortStatus.UP, "vm1", vm_mac(1))
    lab.controller.inventory.ports.changed([gone], [])
    await lab.fake.settle()
    assert "vm1" not in lab.fake.net.vms
    assert not lab.served


async def test_a_release_of_the_vms_own_goes_on_as_it_is(lab: DhcpLab) -> None:
    await lab.say(1, release(OWN, vm_mac(1), 9, SERVER), OWN, SERVER, GATEWAY_MAC)
    ((_, datagram, dhcp),) = lab.served
    assert (datagram.src, datagram.dst, dhcp.message_type) == (OWN, SERVER, MessageType.RELEASE)
    assert [e["reason"] for e in lab.events("binding.removed")] == ["released by the VM"]
