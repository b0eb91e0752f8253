"""IPv6 of a VM that is away: who answers it where it is, and how it hears of the gateway at its home."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from retinue.core.model import IP, VM
from retinue.core.model.link_local import (
    ALL_NODES,
    ALL_ROUTERS,
    UNSPECIFIED,
    group_mac,
    link_local,
    solicited_node,
)
from retinue.core.packets import (
    ND,
    NDOptions,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    RouterAdvertisement,
    RouterSolicitation,
    nd_frame,
    parse,
    parse_nd,
)
from retinue.core.packets.dhcp6 import ALL_AGENTS_AND_SERVERS, DHCP6, MessageType6, dhcp6_frame
from retinue.core.packets.dhcp6_options import IA
from support.fabric.domains import GATEWAY_MACS, SUBNETS6, nic, port, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains
from support.virtual_time import run

NIC1 = nic("a", 1, dual=True)
OWN = NIC1.addresses[1]
GATEWAY = link_local(GATEWAY_MACS["a"])
EDGE, PORT = "b-edge2", port(NIC1)


@pytest.fixture
async def dual() -> AsyncIterator[TwoDomains]:
    """VM vm-a1, with addresses of both families, is in domain b."""
    async with two_domains(dual=True) as made:
        await settled(made)
        yield made


async def settled(made: TwoDomains, *checked: IPv6Address) -> None:
    """The VM has been moved to domain b; before that it has made addresses, and `checked` them."""
    vm = VM(VM_ID, (NIC1,), server_of("a", 1), memory_mib=128)
    made.controller("a").inventory.register_vms([vm])
    made.plug("a", server_of("a", 1))
    await made.fakes["a"].settle()
    for target in checked:
        frame = nd_frame(solicitation(target, UNSPECIFIED), NIC1.mac)
        made.fakes["a"].send("a-edge1", PORT, frame)
        await made.fakes["a"].settle()
    await made.move("a", "b", server_of("b", 2))
    await made.fakes["b"].settle()


def heard(made: TwoDomains) -> list[ND]:
    """What of neighbour discovery has come to the guest since it was asked last."""
    at_guest = [parse(frame).payload for *at, frame in made.fakes["b"].heard if at == [EDGE, PORT]]
    made.fakes["b"].heard.clear()
    return [parse_nd(payload) for payload in at_guest if not payload.startswith(b"retinue primer")]


async def asks(made: TwoDomains, asked: ND) -> list[ND]:
    heard(made)
    made.fakes["b"].send(EDGE, PORT, nd_frame(asked, NIC1.mac))
    for domain in "bab":
        await made.fakes[domain].settle()
    return heard(made)


def solicitation(target: IPv6Address, src: IPv6Address) -> ND:
    options = NDOptions() if src == UNSPECIFIED else NDOptions(source_mac=NIC1.mac)
    return ND(src, solicited_node(target), NeighbourSolicitation(target, options))


@pytest.mark.parametrize("target", [GATEWAY, SUBNETS6["a"][0xFE], SUBNETS6["a"][0x102], SUBNETS6["a"][0x777]])
async def test_its_gateway_and_neighbours_are_found_where_it_is(
    dual: TwoDomains, target: IPv6Address
) -> None:
    """Whoever it looks for, and each is a router: else it would give up its own."""
    assert isinstance(OWN, IPv6Address)
    (said,) = await asks(dual, solicitation(target, OWN))
    assert isinstance(said.message, NeighbourAdvertisement)
    assert (said.message.target, said.message.router) == (target, True)
    assert said.message.options.target_mac == GATEWAY_MACS["b"]


async def test_nobody_has_its_own_address(dual: TwoDomains) -> None:
    assert isinstance(OWN, IPv6Address)
    assert not await asks(dual, solicitation(OWN, UNSPECIFIED))
    assert not await asks(dual, solicitation(SUBNETS6["b"][0x102], UNSPECIFIED))


async def test_it_makes_no_address_of_the_subnets_where_it_is(dual: TwoDomains) -> None:
    """Also where VMs of that domain may."""
    net = dual.controller("b").net
    net.add_subnet(replace(net.subnets["blue6"], slaac=True))
    await asks(dual, solicitation(SUBNETS6["b"][0x999], UNSPECIFIED))
    assert {held.ip for held in net.held_by(VM_ID)} == set(NIC1.addresses)


def test_addresses_that_it_has_made_itself_go_along() -> None:
    """There they are not made: nobody checks them anew."""

    async def story() -> set[IP]:
        async with two_domains(dual=True) as made:
            a = made.controller("a")
            a.net.add_subnet(replace(a.net.subnets["blue6"], slaac=True))
            await settled(made, SUBNETS6["a"][0x999], IPv6Address("fe80::1234"))
            there = {held.ip for held in made.controller("b").net.held_by(VM_ID)}
            await made.move("b", "a", server_of("a", 1))
            assert {held.ip for held in a.net.held_by(VM_ID)} == there
            return there

    assert run(story()) == {*NIC1.addresses, SUBNETS6["a"][0x999], IPv6Address("fe80::1234")}


async def test_who_looks_for_a_router_hears_of_the_one_at_home(dual: TwoDomains) -> None:
    """As after it was started anew; with the prefix that is its own, and not that of where it is."""
    search = ND(link_local(NIC1.mac), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=NIC1.mac)))
    (said,) = await asks(dual, search)
    assert (said.src, said.dst) == (GATEWAY, OWN)
    assert isinstance(said.message, RouterAdvertisement)
    assert [one.prefix for one in said.message.options.prefixes] == [SUBNETS6["a"]]


async def test_it_asks_no_dhcpv6_server_where_it_is(dual: TwoDomains) -> None:
    """Also where VMs of that domain get their addresses so: its question goes home, by the controller."""
    b = dual.controller("b")
    b.net.add_subnet(replace(b.net.subnets["blue6"], dhcp6=True))
    await b.context.install(b.net.everything())
    solicit = DHCP6(MessageType6.SOLICIT, 7, b"\0\2guest", b"", (IA(1, ()),))
    to = ALL_AGENTS_AND_SERVERS
    frame = dhcp6_frame(solicit.build(), NIC1.mac, group_mac(to), link_local(NIC1.mac), to, 546, 547)
    for delivery in dual.fakes["b"].fabric.all_paths(EDGE, PORT, frame):
        assert not delivery.arrivals
    dual.fakes["b"].heard.clear()
    dual.fakes["b"].send(EDGE, PORT, frame)
    await dual.fakes["b"].settle()
    assert {one[0] for one in dual.fakes["b"].heard} == {"b-edge3"}


async def test_a_search_in_anothers_name_is_not_answered(dual: TwoDomains) -> None:
    """Neither by the domain where it is, nor, brought by the tunnel, by its home."""
    forged = ND(
        link_local(NIC1.mac), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac="52:54:00:00:00:99"))
    )
    assert not await asks(dual, forged)
    dual.fakes["a"].send("a-edge3", 2, nd_frame(forged, NIC1.mac))
    stranger = ND(link_local(NIC1.mac), ALL_ROUTERS, RouterSolicitation(NDOptions()))
    dual.fakes["a"].send("a-edge3", 2, nd_frame(stranger, "52:54:00:00:00:99"))
    await dual.fakes["a"].settle()
    assert not heard(dual)


def test_it_is_told_again_and_again_of_its_gateway_and_of_no_other() -> None:
    """A gateway is kept for 9000 s after it was heard of."""

    async def story() -> list[ND]:
        async with two_domains(dual=True) as made:
            await settled(made)
            net = made.controller("b").net
            net.add_subnet(replace(net.subnets["blue6"], slaac=True))
            heard(made)
            await asyncio.sleep(700)
            for domain in "ab":
                await made.fakes[domain].settle()
            return heard(made)

    told = run(story())
    assert len(told) >= 2
    assert {one.src for one in told} == {GATEWAY}
    assert ALL_NODES not in {one.dst for one in told}
