"""Neighbour discovery with the controller behind the switches: answers, advertisements, forgeries told."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from retinue.controller.api import views
from retinue.core.model import VM
from retinue.core.model.link_local import ALL_NODES, ALL_ROUTERS, UNSPECIFIED, link_local
from retinue.core.model.network import Owner
from retinue.core.packets import (
    ND,
    Ethernet,
    EtherType,
    NDOptions,
    NeighbourAdvertisement,
    RouterAdvertisement,
    RouterSolicitation,
    build_icmpv6,
    nd_frame,
    parse,
    parse_ipv6,
    parse_nd,
)
from retinue.core.pipeline.cookies import Reason
from retinue.core.pipeline.entry import Change, Field, SetField
from retinue.core.pipeline.priorities import Answer
from retinue.core.pipeline.responders.nd import ADVERTISED_EVERY
from retinue.core.pipeline.tables import Table
from retinue.southbound.openflow.requests import Rejected
from support.fabric.ipv6 import (
    GATEWAY_LOCAL,
    OUTSIDE6,
    advertises,
    asks,
    frame6,
    says,
    udp6,
    vm_ip6,
    vm_local,
)
from support.fabric.networks import GATEWAY6, GATEWAY_MAC, add_ipv6, add_vm, fabric, holding6, vm_mac, vm_port
from support.fakes.session import FakeNetwork, FakeSession
from support.recent_events import recent


@pytest.fixture
async def fake() -> AsyncIterator[FakeNetwork]:
    """vm1 and vm4 on server1, vm2 on server2, with addresses of both families; vm3 with IPv4 alone."""
    made = FakeNetwork(fabric(), clock=lambda: 1000.0)
    add_ipv6(made.net)
    for number, at in ((1, 1), (2, 2), (3, 3), (4, 1)):
        add_vm(made.net, number, at=at)
        if number != 3:
            made.net.assign(holding6(number))
    await made.start()
    made.heard.clear()
    yield made
    await made.stop()


def heard(fake: FakeNetwork) -> list[tuple[str, int, Ethernet, ND]]:
    found = [(switch, port, parse(frame)) for switch, port, frame in fake.heard]
    fake.heard.clear()
    return [(switch, port, ethernet, parse_nd(ethernet.payload)) for switch, port, ethernet in found]


def count(fake: FakeNetwork, name: str) -> int:
    return fake.controller.context.counters[name]


@pytest.mark.parametrize(
    ("target", "mac"),
    [(GATEWAY6, GATEWAY_MAC), (GATEWAY_LOCAL, GATEWAY_MAC), (vm_ip6(4), vm_mac(4)), (vm_ip6(2), GATEWAY_MAC)],
)
@pytest.mark.parametrize("named", [vm_mac(1), None])
@pytest.mark.parametrize("can", [True, False])
async def test_a_vm_that_asks_is_answered(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch, target: Any, mac: str, named: str | None, can: bool
) -> None:
    """By its switch, of the gateway and of who is there, if it names its MAC and the switch can; else by the
    controller."""
    if not can:
        await cannot_answer(fake, monkeypatch, "edge1")
    fake.send("edge1", vm_port(1), nd_frame(asks(vm_ip6(1), target, named), vm_mac(1)))
    ((switch, port, ethernet, said),) = heard(fake)
    assert (switch, port) == ("edge1", vm_port(1))
    assert (ethernet.dst, ethernet.src) == (vm_mac(1), mac)
    assert (said.src, said.dst) == (target, vm_ip6(1))
    assert isinstance(said.message, NeighbourAdvertisement)
    assert (said.message.solicited, said.message.override) == (True, True)
    assert said.message.router == (target in (GATEWAY6, GATEWAY_LOCAL))
    assert said.message.options.target_mac == mac
    by_switch = bool(can and named and target != vm_ip6(2))
    assert count(fake, "neighbour discovery answered") == (not by_switch)


async def test_a_switch_that_cannot_answer_has_all_else_and_is_asked_again_when_it_is_back(
    fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel's datapath Open vSwitch rejects what writes these fields, and all that comes along."""
    before = len(fake.fabric["edge1"].flows)
    await cannot_answer(fake, monkeypatch, "edge1")
    wanted = fake.controller.context.compiler.program("edge1").whole()
    lacks = [key for key in wanted if isinstance(key[0], int) and key not in fake.fabric["edge1"].flows]
    assert {(key[0], key[1]) for key in lacks} == {
        (Table.ANSWER, Answer.GATEWAY), (Table.ANSWER, Answer.LOCAL_VM),
    }  # fmt: skip
    programmer = fake.controller.context.installer.switches["edge1"]
    assert (programmer.pending, programmer.rejection) == (set(), "")
    assert programmer.has_confirmed_of(Owner("vm", "vm1"))
    found = await programmer.audit(lambda: True)
    assert found is not None
    assert found.differing == 0
    shown = views.flows(fake.controller, "edge1")
    assert len(shown) == before - len(lacks)
    assert all(flow["confirmed"] for flow in shown)
    await fake.controller.context.install(fake.net.assign(holding6(1, 2e9)))
    assert (programmer.pending, programmer.rejection) == (set(), "")
    monkeypatch.undo()
    fake.sessions["edge1"].close("upgraded")
    fake.connect("edge1")
    await fake.settle()
    assert len(fake.fabric["edge1"].flows) == before


async def test_a_leaf_that_cannot_answer_asks(fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    await cannot_answer(fake, monkeypatch, "leaf2")
    router = fake.net.servers["router"].mac
    fake.send("leaf2", 91, nd_frame(asks(link_local(router), GATEWAY_LOCAL, router), router))
    ((_, _, ethernet, said),) = heard(fake)
    assert (ethernet.dst, said.src) == (router, GATEWAY_LOCAL)
    assert count(fake, "neighbour discovery answered") == 1


async def cannot_answer(fake: FakeNetwork, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The switch starts anew, and has a datapath that cannot."""
    apply = FakeSession.apply

    async def of_kernel(session: FakeSession, change: Change, now: float) -> None:
        if session.name == name and any(
            isinstance(a, SetField) and a.field in (Field.ND_RESERVED, Field.ND_OPTIONS_TYPE)
            for flow in change.add for a in flow.actions
        ):  # fmt: skip
            raise Rejected(("OFPET_BAD_ACTION OFPBAC_BAD_SET_ARGUMENT",))
        await apply(session, change, now)

    monkeypatch.setattr(FakeSession, "apply", of_kernel)
    fake.sessions[name].close("restarted")
    fake.fabric[name].flows.clear()
    fake.fabric[name]._index.clear()
    fake.connect(name)
    await fake.settle()
    fake.heard.clear()


async def test_nobody_is_answered_about_itself_or_about_nobody(fake: FakeNetwork) -> None:
    for target in (vm_ip6(1), vm_ip6(9), vm_local(1)):
        for src in (vm_ip6(1), UNSPECIFIED):
            fake.send("edge1", vm_port(1), nd_frame(asks(src, target, None), vm_mac(1)))
    assert not fake.heard
    assert count(fake, "neighbour discovery not answered: nobody has the address") == 6


async def test_a_check_of_an_address_that_another_holds_is_answered(fake: FakeNetwork) -> None:
    fake.send("edge1", vm_port(1), nd_frame(asks(UNSPECIFIED, vm_ip6(2), None), vm_mac(1)))
    ((_, port, ethernet, said),) = heard(fake)
    assert (port, ethernet.dst, said.dst) == (vm_port(1), vm_mac(1), ALL_NODES)
    assert isinstance(said.message, NeighbourAdvertisement)
    assert not said.message.solicited


async def test_who_looks_for_a_router_finds_the_gateway(fake: FakeNetwork) -> None:
    for src, mac in ((vm_local(1), vm_mac(1)), (vm_ip6(1), None), (UNSPECIFIED, None)):
        message = ND(src, ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=mac)))
        fake.send("edge1", vm_port(1), nd_frame(message, vm_mac(1)))
        ((switch, port, ethernet, said),) = heard(fake)
        assert (switch, port, ethernet.dst, ethernet.src) == ("edge1", vm_port(1), vm_mac(1), GATEWAY_MAC)
        assert isinstance(said.message, RouterAdvertisement)
        assert (said.src, said.dst) == (GATEWAY_LOCAL, ALL_NODES if src == UNSPECIFIED else src)
    for number in (3, 5):
        fake.send("edge3", vm_port(number), nd_frame(message, vm_mac(number)))
    assert not fake.heard


async def test_a_forged_router_solicitation_is_told_by_the_controller(fake: FakeNetwork) -> None:
    message = ND(vm_local(1), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=vm_mac(4))))
    fake.send("edge1", vm_port(1), nd_frame(message, vm_mac(1)))
    assert not fake.heard
    (row,) = fake.controller.context.spoof_attempts.rows()
    assert (row.kind, row.vm, row.port) == ("nd", "vm1", vm_port(1))
    assert (row.claimed_mac, row.claimed_ip) == (vm_mac(4), str(vm_local(1)))
    assert len(recent(fake.controller.events, "spoofing")) == 1


@pytest.mark.parametrize(
    ("frame", "kind", "claim"),
    [
        (nd_frame(says(vm_ip6(1), vm_ip6(2), vm_mac(1)), vm_mac(1)), "nd", (vm_mac(1), str(vm_ip6(2)))),
        (nd_frame(says(vm_ip6(1), GATEWAY6, vm_mac(1)), vm_mac(1)), "nd", (vm_mac(1), str(GATEWAY6))),
        (nd_frame(advertises(GATEWAY_LOCAL, vm_mac(1)), vm_mac(1)), "nd", (vm_mac(1), str(GATEWAY_LOCAL))),
        (nd_frame(asks(vm_ip6(2), GATEWAY6, vm_mac(1)), vm_mac(1)), "nd", (vm_mac(1), str(vm_ip6(2)))),
        (frame6(vm_mac(1), GATEWAY_MAC, udp6(vm_ip6(2), OUTSIDE6)), "ip", (vm_mac(1), str(vm_ip6(2)))),
        (frame6(vm_mac(4), GATEWAY_MAC, udp6(vm_ip6(1), OUTSIDE6)), "mac", (vm_mac(4), str(vm_ip6(1)))),
    ],
)
async def test_forgeries_are_told_with_what_they_claim(
    fake: FakeNetwork, frame: bytes, kind: str, claim: tuple[str, str]
) -> None:
    fake.send("edge1", vm_port(1), frame)
    assert not fake.heard
    (row,) = fake.controller.context.spoof_attempts.rows()
    assert (row.kind, row.switch, row.port, row.vm) == (kind, "edge1", vm_port(1), "vm1")
    assert (row.claimed_mac, row.claimed_ip) == claim


async def test_a_router_at_a_leaf_finds_the_gateway(fake: FakeNetwork) -> None:
    router = fake.net.servers["router"]
    local = link_local(router.mac)
    for named in (router.mac, None):
        fake.send("leaf2", 91, nd_frame(asks(local, GATEWAY_LOCAL, named), router.mac))
        ((switch, port, ethernet, said),) = heard(fake)
        assert (switch, port, ethernet.dst) == ("leaf2", 91, router.mac)
        assert (said.src, said.dst) == (GATEWAY_LOCAL, local)
    assert count(fake, "neighbour discovery answered") == 1, "the leaf has answered who has named its MAC"
    # One that is not known there, and what it says in the meantime, has no answer of the controller's.
    for mac in (vm_mac(7), fake.net.servers["dhcp"].mac):
        fake.send("leaf2", 91, nd_frame(asks(local, GATEWAY_LOCAL, None), mac))
    fake.send("leaf2", 91, nd_frame(asks(UNSPECIFIED, local, None), router.mac))
    assert not fake.heard


async def test_what_cannot_be_read_is_counted_and_goes_no_further(fake: FakeNetwork) -> None:
    twice = nd_frame(asks(vm_ip6(1), vm_ip6(2), vm_mac(1)), vm_mac(1))
    wrong = twice[:56] + bytes((twice[56] ^ 0xFF,)) + twice[57:]
    fake.send("edge1", vm_port(1), wrong)
    assert not fake.heard
    assert count(fake, "bad ND frames") == 1


async def test_the_gateway_speaks_to_each_vm_once_in_a_while(fake: FakeNetwork) -> None:
    """Whatever the clock skips; to those with an address of IPv6 alone, at the port where they are."""
    told: list[int] = []
    now = [1000.0]
    fake.controller.context.clock = lambda: now[0]
    while now[0] < 1000 + ADVERTISED_EVERY:
        fake.controller.nd.advertise()
        now[0] += 7
    for switch, port, ethernet, said in heard(fake):
        assert isinstance(said.message, RouterAdvertisement)
        assert (ethernet.src, said.dst) == (GATEWAY_MAC, ALL_NODES)
        assert switch == {vm_port(1): "edge1", vm_port(2): "edge2", vm_port(4): "edge1"}[port]
        told.append(port)
    assert sorted(told) == [vm_port(1), vm_port(2), vm_port(4)]
    assert count(fake, "router advertisements sent") == 3
    await fake.stop()


async def test_a_second_costs_what_its_turn_has_and_not_what_there_is(fake: FakeNetwork) -> None:
    """All VMs are walked through once in a round; who goes or comes meanwhile has no turn, or one."""
    walks = 0

    class Walked(dict[str, VM]):
        def values(self) -> Any:
            nonlocal walks
            walks += 1
            return super().values()

    net = fake.net
    now = [1000.0]
    fake.controller.context.clock = lambda: now[0]
    net.vms = Walked(net.vms)
    for _ in range(ADVERTISED_EVERY):
        fake.controller.nd.advertise()
        now[0] += 1
    assert count(fake, "router advertisements sent") == 3
    assert walks == 1
    assert net.held_by("vm4")
    net.remove_vm("vm4")
    add_vm(net, 5, at=2, bound=False)
    net.assign(holding6(5))
    for _ in range(ADVERTISED_EVERY):
        fake.controller.nd.advertise()
        now[0] += 1
    assert count(fake, "router advertisements sent") == 6
    await fake.controller.context.install(net.everything())


async def test_a_packet_whose_hop_limit_ends_is_answered_by_the_senders_gateway(fake: FakeNetwork) -> None:
    probe = udp6(vm_ip6(1), OUTSIDE6, 40000, 33434, hop_limit=1)
    fake.send("edge1", vm_port(1), frame6(vm_mac(1), GATEWAY_MAC, probe))
    ((switch, port, frame),) = fake.heard
    assert (switch, port) == ("edge1", vm_port(1))
    ethernet = parse(frame)
    answer = parse_ipv6(ethernet.payload)
    assert (ethernet.ethertype, ethernet.src, ethernet.dst) == (EtherType.IPV6, GATEWAY_MAC, vm_mac(1))
    assert (answer.src, answer.dst, answer.body[:2]) == (GATEWAY6, vm_ip6(1), bytes((3, 0)))
    assert answer.body[8:] == probe
    fake.heard.clear()
    too_big = build_icmpv6(vm_ip6(1), OUTSIDE6, bytes((2, *bytes(7))) + probe, 1)
    fake.send("edge1", vm_port(1), frame6(vm_mac(1), GATEWAY_MAC, too_big))
    assert not fake.heard


def test_the_reasons_of_ipv6_are_counted_as_those_of_ipv4_are() -> None:
    """The mask that picks the entries whose drops are counted has a bit of them, and none of the others."""
    assert Reason.SPOOFED_ND & 8
    assert not (Reason.VM_ND & 8 or Reason.SERVER_ND & 8)
