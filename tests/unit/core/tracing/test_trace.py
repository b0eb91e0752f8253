"""Traces as dialogues: who sends what from where; by which entries, to whom, and why not."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from retinue.core.model import (
    ModelError,
    Network,
    PortStatus,
    Subnet,
    VMPort,
    Vnet,
    Vrf,
)
from retinue.core.model.link_local import UNSPECIFIED
from retinue.core.packets import BROADCAST, Ethernet, dhcp_frame, discover, nd_frame, parse
from retinue.core.pipeline.compiler import Compiler
from retinue.core.pipeline.entry import Entry, Field, Flow, Meter, Output, PortNo, PushVlan, SetField, match
from retinue.core.tracing import (
    Fate,
    Kind,
    Place,
    Question,
    Trace,
    TraceError,
    frame_of,
    place_named,
    place_of_nic,
    trace,
)
from support.fabric import trunked
from support.fabric.ipv6 import asks, vm_ip6
from support.fabric.networks import (
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    add_ipv6,
    add_vm,
    fabric,
    holding6,
    moved,
    vm_ip,
    vm_mac,
    vm_port,
)
from support.fabric.ways_out import add_exits
from support.fabric.world import EVERYWHERE, NOWHERE, OUTSIDE, dhcp_answer, rarp, tagged, udp_frame

LOOPBACK, STRANGE = IPv4Address("127.0.0.1"), "02:00:00:00:00:99"
NOBODYS = IPv4Address("10.1.0.77")


class Operator:
    """vm1 and vm2 on server1 (leaf1), vm3 on server2 (leaf2); asks for traces."""

    def __init__(self) -> None:
        self.net = fabric()
        for number, at in ((1, 1), (2, 1), (3, 2)):
            add_vm(self.net, number, at)

    def vm(self, number: int, at: int | None = None) -> Place:
        vm = self.net.vms[f"vm{number}"]
        return place_of_nic(self.net, vm, vm.nic, f"server{at}" if at else "")

    def ask(self, at: Place, asked: Question) -> Trace:
        frame, self.notes = frame_of(self.net, at, asked)
        return self.follow(at, frame)

    def follow(self, at: Place, frame: bytes) -> Trace:
        compiler = Compiler(self.net)
        compiler.update(self.net.everything())
        return trace(self.net, lambda switch: compiler.program(switch).values(), at, frame)

    def send(self, sender: int, to: IPv4Address | IPv6Address, **more: object) -> Trace:
        return self.ask(self.vm(sender), replace(Question(to, Kind.UDP, 53), **more))  # type: ignore[arg-type]


@pytest.fixture
def op() -> Operator:
    return Operator()


def entries(found: Trace) -> list[str]:
    return [
        f"{hop.switch} {entry.table_name} {entry.priority_name}"
        for hop in found.hops
        for entry in hop.entries
    ]


def end(found: Trace) -> tuple[Fate, str]:
    (only,) = found.ends
    return only.fate, only.who


def why(found: Trace) -> str:
    (only,) = found.ends
    assert only.fate is Fate.DROPPED
    assert not found.passes
    return only.text


def advice(found: Trace) -> str:
    return "; ".join(found.ends[0].advice)


# ---- what passes ----


def test_to_a_neighbour_on_the_same_server(op: Operator) -> None:
    found = op.send(1, vm_ip(2))
    assert entries(found) == ["edge1 ADMIT BOUND", "edge1 FORWARD LOCAL_VM"]
    assert end(found) == (Fate.DELIVERED, "vm2")
    assert found.ends[0].text == "handed to vm2 at edge1:tap2"
    assert (found.passes, found.ways, found.others) == (True, 1, ())


def test_of_a_nic_in_a_trunk_with_its_tag_and_with_another(op: Operator) -> None:
    trunked.add_places(op.net, ipv6=False)
    members = [
        trunked.Member(20, "fw", None, 20),
        trunked.Member(21, "fw", trunked.SHOP, 20),
        trunked.Member(22, "fw", trunked.REDS, 20),
    ]
    vm = trunked.add_vm(op.net, "fw", 1, members)
    shop, red = (place_of_nic(op.net, vm, nic) for nic in vm.nics[1:])
    frame, _ = frame_of(op.net, shop, Question(vm_ip(3)))
    assert (parse(frame).vlan, parse(frame).src) == (5, vm_mac(21))
    assert end(op.follow(shop, frame)) == (Fate.DELIVERED, "vm3")
    assert end(op.send(3, members[1].ip)) == (Fate.DELIVERED, "fw")
    assert end(op.ask(shop, Question(trunked.SHOP.gateway, Kind.ARP)))[0] is Fate.ANSWERED
    assert "no subnet of VRF red" in why(op.ask(red, Question(OUTSIDE)))
    untagged = frame[:12] + frame[16:]
    for tag, has in ((6, "the VLAN tag 6"), (0, "no VLAN tag")):
        found = op.follow(shop, tagged(untagged, tag) if tag else untagged)
        assert f"it has {has}, and {vm_mac(21)} goes with VLAN 5 of its trunk" in why(found)
        assert advice(found) == "send it with the tag 5"
    assert "a NIC in a trunk, whose vnet does not flood" in why(
        op.ask(shop, Question(IPv4Address("224.0.0.5"), dst_mac=BROADCAST))
    )


def test_to_a_vm_of_another_server_hop_by_hop(op: Operator) -> None:
    found = op.send(1, vm_ip(3))
    assert entries(found) == [
        "edge1 ADMIT BOUND",
        "edge1 FORWARD UP",
        "leaf1 ADMIT TO_GATEWAY",
        "leaf1 ROUTE PREFIX/24",
        "spine1 ADMIT TO_GATEWAY",
        "spine1 ROUTE HOST",
        "spine1 SERVERS SERVER",
        "leaf2 ADMIT FROM_SPINE",
        "leaf2 SERVERS SERVER",
        "edge2 ADMIT SERVER",
        "edge2 DELIVER VM",
    ]
    assert [(hop.port, [sent.to for sent in hop.sent]) for hop in found.hops] == [
        ("tap1", ["leaf1:p1"]),
        ("p1", ["spine1:l1"]),
        ("l1", ["leaf2:s1"]),
        ("s1", ["edge2:up0"]),
        ("up0", [""]),
    ]
    assert end(found) == (Fate.DELIVERED, "vm3")
    assert (found.ways, found.others) == (2, ()), "by either spine, and it comes to the same"
    first = found.hops[0].entries[0]
    assert "ipv4_src=10.1.0.101" in first.match
    assert (first.actions, first.reason, first.meter) == ("goto_table:20", "forward", "")


def test_to_the_outside_and_from_there(op: Operator) -> None:
    found = op.send(1, OUTSIDE)
    assert end(found) == (Fate.DELIVERED, "router")
    assert "spine1 ROUTE PREFIX/0" in entries(found)
    router = place_named(op.net, "leaf2", "router")
    back = op.ask(router, Question(vm_ip(1), Kind.TCP, 80, src=OUTSIDE))
    assert end(back) == (Fate.DELIVERED, "vm1")
    assert [hop.switch for hop in back.hops] == ["leaf2", "spine1", "leaf1", "edge1"]


def test_a_server_speaks_for_itself_by_its_local_port(op: Operator) -> None:
    found = op.ask(place_named(op.net, "edge1", "local"), Question(IPv4Address("10.0.0.12")))
    assert entries(found)[:1] == ["edge1 ADMIT SERVER"]
    assert end(found) == (Fate.DELIVERED, "server2")


@pytest.mark.parametrize("kind", [Kind.ICMP, Kind.ARP])
def test_the_gateway_is_answered_for_by_the_switch_itself(op: Operator, kind: Kind) -> None:
    found = op.send(1, GATEWAY, kind=kind)
    assert end(found) == (Fate.ANSWERED, "")
    assert found.ends[0].text.startswith("edge1 answers by itself: 00:00:de:ad:be:ef > 52:54:00:00:00:01")
    assert [hop.switch for hop in found.hops] == ["edge1"]


def test_arp_for_a_neighbour_elsewhere_is_answered_by_the_controller(op: Operator) -> None:
    found = op.send(1, vm_ip(3), kind=Kind.ARP)
    assert end(found) == (Fate.ANSWERED, "")
    assert found.ends[0].text == f"the controller answers: 10.1.0.103 is at {GATEWAY_MAC}"
    assert found.hops[0].entries[-1].meter == "meter 57: up to 50 frames a second"


def test_dhcp_is_the_controllers(op: Operator) -> None:
    asked = dhcp_frame(discover(vm_mac(1), 7), vm_mac(1), BROADCAST, NOWHERE, EVERYWHERE, 68, 67)
    found = op.follow(op.vm(1), asked)
    assert end(found) == (Fate.TOLD, "")
    assert "hands it on to the DHCP servers" in found.ends[0].text


def test_ipv6_by_the_same_ways(op: Operator) -> None:
    add_ipv6(op.net)
    for number in (1, 2, 3):
        op.net.assign(holding6(number))
    for kind in (Kind.UDP, Kind.TCP, Kind.ICMP):
        assert end(op.send(1, vm_ip6(3), kind=kind)) == (Fate.DELIVERED, "vm3")
    assert end(op.send(1, vm_ip6(2))) == (Fate.DELIVERED, "vm2")
    assert end(op.send(1, GATEWAY6, kind=Kind.ICMP)) == (Fate.ANSWERED, "")
    asked = op.send(1, vm_ip6(3), kind=Kind.ARP)
    assert asked.ends[0].text == f"the controller answers: fd00:1::103 is at {GATEWAY_MAC}"
    assert "vm1 has no binding for fd00:1::99" in why(op.send(1, vm_ip6(3), src=IPv6Address("fd00:1::99")))
    assert "nobody has it" in why(op.send(1, IPv6Address("fd00:1::77"), kind=Kind.ARP))


# ---- what a VM may not ----


def test_a_forged_source(op: Operator) -> None:
    found = op.send(1, vm_ip(3), src=IPv4Address("10.0.0.9"))
    assert entries(found) == ["edge1 ADMIT SPOOFED"]
    assert why(found) == ("vm1 has no binding for 10.0.0.9: it holds 10.1.0.101. It is dropped, and reported")
    assert found.ends[0].reported == "spoofed_ip"
    assert "send from 10.1.0.101" in advice(found)
    assert "`retinue vm set vm1 --address 10.0.0.9`" in advice(found)


def test_another_vms_address_and_who_holds_it(op: Operator) -> None:
    found = op.send(1, vm_ip(3), src=vm_ip(2))
    assert "it holds 10.1.0.101; vm2 holds it." in why(found)
    assert "`retinue vm nic set vm1 --allow 10.1.0.102`" in advice(found)
    assert "--address" not in advice(found), "two cannot hold it"


def test_a_vm_without_any_address(op: Operator) -> None:
    add_vm(op.net, 4, 1, bound=False)
    found = op.send(4, vm_ip(3), src=vm_ip(4))
    assert "vm4 has no binding for 10.1.0.104: it holds no address at all" in why(found)
    assert "let it ask by DHCP" in advice(found)
    with pytest.raises(
        TraceError, match=r"vm4 has no IPv4 address to send to 10\.1\.0\.103 from: say from which"
    ):
        op.send(4, vm_ip(3))


def test_another_mac_than_the_nics(op: Operator) -> None:
    found = op.send(1, vm_ip(3), src_mac=vm_mac(2))
    assert entries(found) == ["edge1 ADMIT FOREIGN_MAC"]
    assert f"comes from {vm_mac(2)}, and the NIC at this port, of vm1, has {vm_mac(1)}" in why(found)


def test_arp_of_anothers_address_and_with_anothers_mac(op: Operator) -> None:
    assert "vm1 has no binding for 10.1.0.102" in why(op.send(1, GATEWAY, kind=Kind.ARP, src=vm_ip(2)))
    asked, _ = frame_of(op.net, op.vm(1), Question(GATEWAY, Kind.ARP))
    forged = asked[:22] + bytes.fromhex(vm_mac(2).replace(":", "")) + asked[28:]
    assert f"10.1.0.101 is at {vm_mac(2)}; vm1 has it at {vm_mac(1)}" in why(op.follow(op.vm(1), forged))


def test_a_tag(op: Operator) -> None:
    frame, _ = frame_of(op.net, op.vm(1), Question(vm_ip(3)))
    found = op.follow(op.vm(1), tagged(frame, 666))
    assert f"it has the VLAN tag 666, and {vm_mac(1)} goes with none: it is not in a trunk" in why(found)
    assert advice(found) == "send it untagged"
    assert end(op.follow(op.vm(1), tagged(frame, 0))) == (Fate.DELIVERED, "vm3"), "a priority alone is none"


def test_a_dhcp_server_that_is_none(op: Operator) -> None:
    found = op.follow(op.vm(1), dhcp_answer(vm_mac(1), vm_mac(2), vm_ip(1), 2))
    assert "vm1 is no DHCP server" in why(found)
    assert "`retinue vm nic set vm1 --trust`" in advice(found)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (rarp(vm_mac(1), vm_mac(1)), "a hypervisor's announcement"),
        (Ethernet(STRANGE, vm_mac(1), 0x88B5, bytes(50)).build(), "type 0x88b5 is neither IP nor ARP"),
        (udp_frame(vm_mac(1), BROADCAST, vm_ip(1), vm_ip(2)), "nothing is flooded"),
        (udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), LOOPBACK), "nothing that a router may forward"),
    ],
    ids=["RARP", "of another type", "to everybody", "to a loopback address"],
)
def test_what_ends_quietly(op: Operator, frame: bytes, said: str) -> None:
    assert said in why(op.follow(op.vm(1), frame))


def test_neighbour_discovery_that_its_switch_answers_and_what_it_does_not(op: Operator) -> None:
    add_ipv6(op.net)
    for number in (1, 3):
        op.net.assign(holding6(number))
    own, mac = vm_ip6(1), vm_mac(1)
    answered = op.follow(op.vm(1), nd_frame(asks(own, GATEWAY6, mac), mac))
    (only,) = answered.ends
    assert (only.fate, only.text.startswith("edge1 answers by itself")) == (Fate.ANSWERED, True)
    assert entries(answered)[-2:] == ["edge1 ANSWER GATEWAY", "edge1 ANSWER ADVERTISEMENT"]
    (only,) = op.follow(op.vm(1), nd_frame(asks(own, vm_ip6(3), mac), mac)).ends
    assert only.text.startswith("the controller answers")
    its_own = op.follow(op.vm(1), nd_frame(asks(own, own, mac), mac))
    assert "gets no answer: nobody else has it" in why(its_own)
    in_nobodys = op.follow(op.vm(1), nd_frame(asks(UNSPECIFIED, GATEWAY6, mac), mac))
    assert "it asks in nobody's name" in why(in_nobodys)


def test_a_question_for_oneself(op: Operator) -> None:
    assert "gets no answer: nobody else has it" in why(op.send(1, vm_ip(1), kind=Kind.ARP))


# ---- ports ----


def test_a_port_that_the_operator_has_shut(op: Operator) -> None:
    place, nic = op.vm(1), op.net.vms["vm1"].nic
    op.net.change_nic("vm1", nic, replace(nic, enabled=False))
    frame = udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(3))
    found = op.follow(place, frame)
    assert "the port of NIC vm1 of vm1 is disabled by the operator" in why(found)
    assert "`retinue vm nic set vm1 vm1 --enable`" in advice(found)
    into = op.send(3, vm_ip(1))
    assert "nobody on edge1 takes what is for 10.1.0.101" in why(into)
    assert "disabled" in why(into)


def test_a_port_that_is_not_there(op: Operator) -> None:
    op.net.set_vm_port("vm3", "edge2", None)
    with pytest.raises(ModelError, match="NIC vm3 of VM vm3 has no port on edge2: `retinue vm show vm3`"):
        op.vm(3)
    assert "NIC vm3 of vm3 has no port on edge2" in why(op.send(1, vm_ip(3)))


def test_a_link_that_is_down_is_told(op: Operator) -> None:
    op.net.set_vm_port("vm3", "edge2", VMPort(vm_port(3), "tap3", PortStatus.DOWN))
    assert op.send(1, vm_ip(3)).ends[0].text == "handed to vm3 at edge2:tap3, whose link is down"


def test_a_port_where_no_vm_is(op: Operator) -> None:
    place = place_named(op.net, "edge1", "77")
    with pytest.raises(TraceError, match="nobody is known at edge1:77: say as which MAC"):
        op.ask(place, Question(vm_ip(2), src=NOBODYS))
    found = op.ask(place, Question(vm_ip(2), src=NOBODYS, src_mac="02:00:00:00:00:77"))
    assert "no VM is known at port 77 of edge1" in why(found)
    for odd in ("up7", "0", "-1", "4294967294", "9" * 40, ""):
        with pytest.raises(ModelError, match="switch edge1 has no port"):
            place_named(op.net, "edge1", odd)


# ---- leaves, spines, destinations ----


def test_an_address_that_nobody_has(op: Operator) -> None:
    found = op.send(1, NOBODYS)
    assert (
        why(found) == "spine1 has no way to 10.1.0.77: it is of subnet blue (10.1.0.0/24), and nobody has it"
    )
    assert op.notes == ("nobody answers ARP for 10.1.0.77: a host would not even send this",)
    assert "`retinue vm set VM --address 10.1.0.77`" in advice(found)
    assert "nobody has it" in why(op.send(1, NOBODYS, kind=Kind.ARP))


def test_no_route(op: Operator) -> None:
    op.net.put_server(replace(op.net.servers["router"], routes=()))
    found = op.send(1, OUTSIDE)
    assert "it is in no subnet, and no router is known that leads to it" in why(found)


def test_a_time_to_live_that_ends(op: Operator) -> None:
    found = op.send(1, vm_ip(3), ttl=1)
    assert entries(found)[-1] == "leaf1 ROUTE EXPIRED"
    assert "its time to live ends at this hop, and its sender is told so" in why(found)
    assert "has run out" in why(op.send(1, vm_ip(3), ttl=0))
    assert end(op.send(1, vm_ip(2), ttl=1)) == (Fate.DELIVERED, "vm2"), "there is no hop to a neighbour"


def test_a_router_that_sends_from_inside(op: Operator) -> None:
    found = op.ask(place_named(op.net, "leaf2", "router"), Question(vm_ip(1), src=vm_ip(3)))
    assert entries(found) == ["leaf2 ADMIT SERVICE_SPOOFED"]
    assert "router may not send from 10.1.0.103: from its own address and from whatever is outside" in why(
        found
    )
    dhcp = op.ask(place_named(op.net, "leaf2", "dhcp"), Question(vm_ip(1), src=OUTSIDE))
    assert "dhcp may not send from 198.51.100.9: from its own address, and from no other" in why(dhcp)


def test_a_fenced_server(op: Operator) -> None:
    op.net.fence("server1")
    found = op.send(1, vm_ip(3))
    assert "the operator has said that server1 is dead" in why(found)
    assert "`retinue server unfence server1`" in advice(found)


def test_a_server_of_which_nobody_knows_where_it_is(op: Operator) -> None:
    op.net.detected.pop("server2")
    found = op.send(1, vm_ip(3))
    assert "vm3 has it, on server2, of which nobody knows where it is" in why(found)


def test_to_a_leaf_past_the_gateway(op: Operator) -> None:
    router = place_named(op.net, "leaf2", "router")
    found = op.ask(router, Question(vm_ip(1), src=OUTSIDE, dst_mac=vm_mac(1)))
    assert f"it is sent to {vm_mac(1)}" in why(found)
    assert GATEWAY_MAC in advice(found)


def test_two_vrfs(op: Operator) -> None:
    op.net.put_vrf(Vrf("red", 7))
    op.net.put_vnet(Vnet("reds", vrf="red"))
    op.net.add_subnet(Subnet("red1", IPv4Network("10.1.0.0/24"), GATEWAY, vnet="reds"))
    for number, at, ip in ((4, 1, NOBODYS), (5, 2, IPv4Address("10.1.0.78"))):
        vm = add_vm(op.net, number, at, bound=False)
        red = replace(vm.nic, vnet="reds")
        op.net.change_nic(vm.id, vm.nic, red)
        op.net.assign(op.net.static(vm.id, red, ip))
    assert end(op.send(4, IPv4Address("10.1.0.78"))) == (Fate.DELIVERED, "vm5")
    found = op.send(1, NOBODYS)
    assert "nobody has it in VRF default; in red somebody has, and nothing passes between" in why(found)
    assert "nobody has it in VRF red; in default somebody has" in why(op.send(4, vm_ip(1)))
    nowhere = op.send(4, OUTSIDE)
    assert "it is in no subnet of VRF red, and no router of it leads there" in why(nowhere)
    add_exits(op.net, {"red": 100}, apart=True)
    assert end(op.send(4, OUTSIDE)) == (Fate.DELIVERED, "exit")
    at_router = replace(place_named(op.net, "leaf1", "exit"), vlan=100)
    assert end(op.ask(at_router, Question(NOBODYS, src=OUTSIDE))) == (Fate.DELIVERED, "vm4")
    assert end(op.ask(at_router, Question(NOBODYS)))[0] is Fate.DELIVERED, "from its own address in red"
    assert why(op.ask(at_router, Question(vm_ip(1), src=OUTSIDE))).count("VRF red")
    forged = op.ask(at_router, Question(NOBODYS, src=IPv4Address("10.1.0.78")))
    assert forged.ends[0].reported == "spoofed_ip"
    assert any("in a VRF" in entry for entry in entries(op.send(4, OUTSIDE)))


# ---- migrations ----


def admitted(net: Network) -> None:
    net.set_vm_port("vm1", "edge2", VMPort(vm_port(1), "tap1"))
    net.put_vm(replace(net.vms["vm1"], also=frozenset({"server2"})))


def diverted(net: Network) -> None:
    admitted(net)
    net.put_vm(replace(moved(net.vms["vm1"], "server2"), forwarded_from="server1"))


def paused(net: Network) -> None:
    diverted(net)
    net.put_vm(replace(net.vms["vm1"], copied_to="server1"))


def source_closed(net: Network) -> None:
    diverted(net)
    net.put_vm(replace(net.vms["vm1"], also=frozenset()))


@pytest.mark.parametrize(
    ("state", "arrives"),
    [
        (admitted, ["vm1 at edge1:tap1"]),
        (diverted, ["vm1 at edge2:tap1"]),
        (paused, ["vm1 at edge1:tap1", "vm1 at edge2:tap1"]),
        (source_closed, ["vm1 at edge2:tap1"]),
    ],
)
def test_a_packet_for_a_vm_in_each_state_of_its_migration(
    op: Operator, state: Callable[[Network], None], arrives: list[str]
) -> None:
    """While the VM is paused it gets a copy at its source, too; else it is in one place."""
    state(op.net)
    for sender in (2, 3):
        found = op.send(sender, vm_ip(1))
        assert sorted(end.text for end in found.ends) == [f"handed to {where}" for where in arrives]
        assert found.passes


@pytest.mark.parametrize("state", [admitted, diverted, paused])
def test_and_it_may_send_at_both_ends(op: Operator, state: Callable[[Network], None]) -> None:
    state(op.net)
    for at in (1, 2):
        found = op.ask(op.vm(1, at), Question(vm_ip(3)))
        assert {end.who for end in found.ends} == {"vm3"}


def test_but_not_where_it_has_left(op: Operator) -> None:
    source_closed(op.net)
    found = op.ask(op.vm(1, 1), Question(vm_ip(3), src=vm_ip(1), src_mac=vm_mac(1)))
    assert "vm1 has a port on edge1, and is not at home there: it is on server2" in why(found)
    assert "`retinue move start vm1 --to SERVER`" in advice(found)


def test_what_is_late_at_the_source_is_sent_on(op: Operator) -> None:
    """A packet that was long on its way comes to edge1 after the diversion."""
    diverted(op.net)
    late = Ethernet("02:00:00:00:00:01", GATEWAY_MAC, 0x0800, parse(udp_frame(
        vm_mac(3), GATEWAY_MAC, vm_ip(3), vm_ip(1))).payload).build()  # fmt: skip
    found = op.follow(place_named(op.net, "edge1", "up0"), late)
    assert end(found) == (Fate.DELIVERED, "vm1")
    assert [hop.switch for hop in found.hops] == ["edge1", "leaf1", "spine1", "leaf2", "edge2"]


# ---- entries of others ----


def run_with(op: Operator, switch: str, *entries: Flow | Meter) -> Trace:
    compiler = Compiler(op.net)
    compiler.update(op.net.everything())
    at = op.vm(1)
    frame, _ = frame_of(op.net, at, Question(vm_ip(3)))

    def held(name: str) -> list[Entry]:
        return [*compiler.program(name).values(), *(entries if name == switch else ())]

    return trace(op.net, held, at, frame)


def test_an_entry_that_is_not_ours_is_called_so(op: Operator) -> None:
    found = run_with(op, "leaf1", Flow(0, 60000, match(), meter=9))
    assert entries(found)[-1] == "leaf1 ADMIT not ours"
    assert found.hops[-1].entries[-1].meter == "meter 9, which the switch does not have"
    assert why(found) == "an entry of leaf1 drops it"
    elsewhere = run_with(op, "leaf1", Flow(0, 60000, match(), goto=77), Flow(77, 1, match()))
    assert entries(elsewhere)[-1] == "leaf1 77 not ours"


def test_what_cannot_be_told_is_said_to_be_so(op: Operator) -> None:
    twice = run_with(op, "edge1", Flow(0, 150, match(in_port=vm_port(1)), (Output(2),)))
    assert "what becomes of it nobody can tell" in why(twice)
    tag_on_tag = (PushVlan(), SetField(Field.VLAN_VID, 0x1007), PushVlan(), Output(1))
    two = run_with(op, "edge1", Flow(0, 60000, match(), tag_on_tag))
    assert "an entry puts a second VLAN tag before a frame" in why(two)


def test_what_goes_round_is_said_to_do_so(op: Operator) -> None:
    back = (Output(PortNo.IN_PORT),)
    at_leaf, at_edge = Flow(0, 60000, match(), back), Flow(0, 60000, match(in_port=1), back)
    compiler = Compiler(op.net)
    compiler.update(op.net.everything())
    held: dict[str, list[Entry]] = {
        "leaf1": [at_leaf],
        "edge1": [*compiler.program("edge1").values(), at_edge],
    }
    frame, _ = frame_of(op.net, op.vm(1), Question(vm_ip(3)))
    found = trace(op.net, lambda name: held.get(name, []), op.vm(1), frame)
    assert "it goes round: edge1:10 > leaf1:101 > edge1:1 > leaf1:101" in why(found)


def test_a_switch_that_has_no_entries(op: Operator) -> None:
    found = trace(op.net, lambda name: [], op.vm(1), udp_frame(vm_mac(1), GATEWAY_MAC, vm_ip(1), vm_ip(3)))
    assert "edge1 has no entry that it meets" in why(found)
    assert "`retinue switch audit edge1`" in advice(found)


# ---- questions that are none ----


def test_questions_that_cannot_be_asked(op: Operator) -> None:
    for asked, said in (
        (Question(IPv6Address("fd00::1"), src=vm_ip(1)), "one is IPv4 and the other IPv6"),
        (Question(vm_ip(3), Kind.UDP, 70000), "there is no such frame"),
        (Question(vm_ip(3), Kind.TCP, -1), "there is no such frame"),
        (Question(vm_ip(3), ttl=256), "there is no such frame"),
    ):
        with pytest.raises(TraceError, match=said):
            op.ask(op.vm(1), asked)
