"""The proof: it follows frames as switches do, and finds what an entry broken on purpose makes wrong."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address

import pytest

pytest.importorskip("z3", reason="make install-prove")

from prove import words
from prove.moments import Moment, moments
from prove.networks import NETWORKS
from prove.properties import AMBIGUOUS, A, B, C, Counterexample, D, E, F, Tally, doors
from prove.reach import MAX_HOPS, Emission, Explorer, Fate, Hop
from prove.run import NothingProvedError, examine
from prove.terms import UNKNOWN, Sent
from prove.wire import build, real
from retinue.core.forwarding.header import read
from retinue.core.model import Role, mac_to_int
from retinue.core.packets.nd_options import TARGET_MAC
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Change,
    Field,
    Flow,
    Group,
    Meter,
    Output,
    PopVlan,
    PortNo,
    Program,
    key_of,
    set_field,
)
from retinue.core.pipeline.priorities import (
    TABLE_MISS,
    VRF_BAND,
    Deliver,
    EdgeAdmit,
    Forward,
    LeafAdmit,
    Route,
    Servers,
)
from retinue.core.pipeline.tables import Table
from retinue.core.pipeline.underlay import Near
from retinue.core.pipeline.underlay.fabric import LeafSpine
from support.fabric.networks import GATEWAY_MAC, UPLINK, vm_mac, vm_port
from support.fabric.ways_out import EXIT_PORT, RED_VLAN
from support.fakes.switch import FakeFabric, Loop


@cache
def at_rest(network: str) -> Moment:
    """The network as it is; "left": the small one, when a VM has moved away."""
    if network == "left":
        return [*moments(NETWORKS["small"]())][-1]
    return next(moments(NETWORKS[network]()))


# ---- it follows frames as switches do ----


def fake(moment: Moment, which: dict[str, int]) -> FakeFabric:
    """Switches that run the bytes, with the programs that a fate had."""
    made = FakeFabric()
    for switch, programs in moment.programs.items():
        entries = programs[which.get(switch, 0)].values()
        made.add(switch).apply(
            Change(
                add=tuple(e for e in entries if isinstance(e, Flow)),
                groups=tuple(e for e in entries if isinstance(e, Group)),
                meters=tuple(e for e in entries if isinstance(e, Meter)),
            )
        )
    for address, end in moment.tunnels.items():
        made.tunnel(end, IPv4Address(address))
    for one, other in moment.cables.items():
        if one < other:
            made.cable(one, other)
    return made


def value(emission: Emission, field: Field, frame: dict[Field, int]) -> int:
    held = emission.fields[field]
    return frame[held.field] - held.minus if isinstance(held, Sent) else held


def as_sent(emission: Emission, frame: dict[Field, int]) -> tuple[object, ...]:
    """Where and how it arrives, as the proof has it."""
    fields = {f: found for f in UNKNOWN if (found := value(emission, f, frame))}
    if fields.get(Field.ND_OPTIONS_TYPE) == TARGET_MAC:
        fields.pop(Field.IPV6_ND_SLL, None)  # The option that it was in is the other now.
    return emission.switch, emission.port, tuple(sorted(fields.items()))


def ways(fate: Fate) -> Iterator[tuple[Hop, ...]]:
    yield fate.hops
    yield from (one.hops for one in fate.sent)
    yield from (one.hops for one in fate.told)


Outcome = tuple[list[tuple[object, ...]], int]
"""What arrives where, and how much the controller gets."""


def outcomes(fabric: FakeFabric, switch: str, port: int, frame: bytes) -> list[Outcome]:
    """What may become of a frame of bytes, whatever the groups choose."""
    return [
        (
            sorted((at, out, tuple(sorted(read(got).fields.items()))) for at, out, got in delivery.arrivals),
            len(delivery.to_controller),
        )
        for delivery in fabric.all_paths(switch, port, frame)
    ]


@pytest.mark.parametrize("network", ["small", "dual", "vxlan", "ways_out", "flooded"])
def test_a_frame_has_the_fate_that_switches_give_it(network: str) -> None:
    """A frame is written down and sent through switches that run bytes: one at least that passes each entry,
    and one for each number of places to arrive at."""
    moment = at_rest(network)
    fabric, followed = fake(moment, {}), 0
    seen: set[object] = set()
    explorer = Explorer(moment.programs, moment.cables, moment.tunnels)
    for door in doors(moment):
        if door.vm is None and door.server is None:
            continue
        for fate in explorer.fates(door.at):
            passed: set[object] = {
                (one.switch, flow) for way in ways(fate) for one in way for flow in one.flows
            }
            passed.add((door.at, len(fate.arrived), len(fate.told)))
            if passed <= seen or (model := explorer.example(*real())) is None:
                continue
            seen |= passed
            frame = {f: model.eval(x, model_completion=True).as_long() for f, x in UNKNOWN.items()}
            sent = build(frame)
            assert read(sent).fields == {f: v for f, v in frame.items() if v}, (
                "it is the frame that was meant"
            )
            wanted = sorted(as_sent(one, frame) for one in fate.arrived), len(fate.told)
            assert wanted in outcomes(fabric, *door.at, sent), f"{fate.at}: {frame}"
            followed += 1
    assert followed > 50


# ---- it finds what is wrong ----

Break = Callable[[Moment], tuple[str, Flow, Flow | None]]


def broken(moment: Moment, switch: str, old: Flow, new: Flow | None) -> Moment:
    """The moment with one entry of one switch put in another's place, or taken away."""
    program: Program = dict(moment.programs[switch][0])
    del program[old.key]
    if new is not None:
        program[key_of(new)] = new
    return replace(moment, programs={**moment.programs, switch: (program,)})


def entry(moment: Moment, switch: str, table: Table, priority: int, **terms: int) -> Flow:
    """The one entry with these values in its match."""
    wanted = {(Field[name.upper()], number) for name, number in terms.items()}
    (found,) = (
        flow
        for flow in moment.programs[switch][0].values()
        if isinstance(flow, Flow)
        and (flow.table, flow.priority) == (table, priority)
        and wanted <= {(field, number) for field, number, _ in flow.match}
    )
    return found


def without(flow: Flow, *fields: Field) -> Flow:
    return replace(flow, match=tuple(term for term in flow.match if term[0] not in fields))


ONE = {"in_port": vm_port(1), "eth_type": 0x0800}


def any_source(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.BOUND, **ONE)
    return "edge1", flow, without(flow, Field.IPV4_SRC)


def any_mac(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.BOUND, **ONE)
    return "edge1", flow, without(flow, Field.ETH_SRC)


def tagged(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.BOUND, **ONE)
    return "edge1", flow, without(flow, Field.VLAN_VID)


def noise_goes_up(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.NOISE, in_port=vm_port(1))
    return "edge1", flow, replace(flow, actions=(Output(UPLINK),))


def port_left_open(m: Moment) -> tuple[str, Flow, Flow | None]:
    """The VM has moved away, and its old port may still send."""
    there = entry(m, "edge2", Table.ADMIT, EdgeAdmit.BOUND, **ONE)
    assert there.key not in m.programs["edge1"][0]
    return "edge1", entry(m, "edge1", Table.ADMIT, TABLE_MISS), there


def no_meter(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.SPOOFED, **ONE)
    return "edge1", flow, replace(flow, meter=None)


def a_routers_source(m: Moment) -> tuple[str, Flow, Flow | None]:
    """A router that may send as a VM."""
    flow = next(
        f
        for f in m.programs["leaf1"][0].values()
        if isinstance(f, Flow) and f.table == Table.ADMIT and f.actions == (CONTROLLER,)
        and (Field.IN_PORT, 91, None) in f.match and (Field.IPV4_SRC, 0x0A010000, 0xFFFFFF00) in f.match
    )  # fmt: skip
    return "leaf1", flow, None


def no_way(m: Moment) -> tuple[str, Flow, Flow | None]:
    return "leaf1", entry(m, "leaf1", Table.ROUTE, Route.HOST, ipv4_dst=0x0A010065), None


def other_port(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.DELIVER, Deliver.VM, ipv4_dst=0x0A010065)
    return "edge1", flow, replace(flow, actions=(*flow.actions[:-1], Output(PortNo.LOCAL)))


def doubled(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.DELIVER, Deliver.VM, ipv4_dst=0x0A010065)
    return "edge1", flow, replace(flow, actions=(*flow.actions, flow.actions[-1]))


def other_mac(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "edge1", Table.DELIVER, Deliver.VM, ipv4_dst=0x0A010065)
    wrong = set_field(Field.ETH_DST, vm_mac(2))
    return "edge1", flow, replace(flow, actions=(wrong, *flow.actions[1:]))


def sent_back(m: Moment) -> tuple[str, Flow, Flow | None]:
    """What was brought for the VM goes to the gateway again."""
    flow = entry(m, "edge1", Table.DELIVER, Deliver.VM, ipv4_dst=0x0A010065)
    back = (set_field(Field.ETH_DST, GATEWAY_MAC), Output(PortNo.IN_PORT))
    return "edge1", flow, replace(flow, actions=back)


def neighbour_of_all(m: Moment) -> tuple[str, Flow, Flow | None]:
    """By its MAC the VM is reached from every subnet."""
    mac = mac_to_int(vm_mac(4))
    flow = entry(m, "edge1", Table.FORWARD, Forward.LOCAL_VM, eth_dst=mac, eth_type=0x0800)
    return "edge1", flow, without(flow, Field.IPV4_SRC)


def no_ttl(m: Moment) -> tuple[str, Flow, Flow | None]:
    """The leaf forwards as a switch does."""
    flow = entry(m, "leaf1", Table.ROUTE, Route.HOST, ipv4_dst=0x0A010066)
    return "leaf1", flow, replace(flow, actions=flow.actions[1:])


def tie(m: Moment) -> tuple[str, Flow, Flow | None]:
    """The entry for all packets to the VM has the priority of the one for those from its own server."""
    flow = entry(m, "leaf1", Table.ROUTE, Route.HOST, ipv4_dst=0x0A010066)
    return "leaf1", flow, replace(flow, priority=Route.HAIRPIN)


IN_RED = {"vlan_vid": 0x1007}


def in_no_vrf(m: Moment) -> tuple[str, Flow, Flow | None]:
    """What a NIC of VRF red sends is let in as the default VRF's."""
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.BOUND, **ONE)
    return "edge1", flow, replace(flow, actions=())


def tag_left(m: Moment) -> tuple[str, Flow, Flow | None]:
    """The VRF's tag stays where a frame comes to a NIC."""
    flow = entry(m, "edge1", Table.DELIVER, VRF_BAND + Deliver.VM, ipv4_dst=0x0A010067, **IN_RED)
    kept = tuple(action for action in flow.actions if not isinstance(action, PopVlan))
    return "edge1", flow, replace(flow, actions=kept)


def all_of_a_prefix(m: Moment) -> tuple[str, Flow, Flow | None]:
    """From a prefix that is longer than the one routed to the NIC."""
    flow = entry(m, "edge1", Table.ADMIT, EdgeAdmit.BOUND, ipv4_src=0x0A090000, **ONE)
    wider = tuple((f, v, 0xFFFFFFE0 if f is Field.IPV4_SRC else mask) for f, v, mask in flow.match)
    return "edge1", flow, replace(flow, match=wider)


def prefix_lost(m: Moment) -> tuple[str, Flow, Flow | None]:
    return "edge1", entry(m, "edge1", Table.DELIVER, Deliver.VM, ipv4_dst=0x0A090000), None


AT_EXIT = {"in_port": EXIT_PORT, "vlan_vid": 0x1000 | RED_VLAN}


def exit_as_a_vm(m: Moment) -> tuple[str, Flow, Flow | None]:
    """A VRF's router that may send as a VM of the VRF."""
    (flow,) = (
        f
        for f in m.programs["leaf1"][0].values()
        if isinstance(f, Flow) and f.actions == (CONTROLLER,)
        and {(Field.IN_PORT, EXIT_PORT, None), (Field.IPV4_SRC, 0x0A010000, 0xFFFFFF00)} <= set(f.match)
    )  # fmt: skip
    return "leaf1", flow, None


def exit_in_no_vrf(m: Moment) -> tuple[str, Flow, Flow | None]:
    """What a VRF's router sends is taken for the default VRF's."""
    flow = entry(m, "leaf1", Table.ADMIT, LeafAdmit.TO_GATEWAY, eth_type=0x0800, **AT_EXIT)
    return "leaf1", flow, replace(flow, actions=(PopVlan(),))


def by_another_tag(m: Moment) -> tuple[str, Flow, Flow | None]:
    """What goes out keeps the fabric's own tag."""
    flow = entry(m, "leaf1", Table.SERVERS, Servers.SUBINTERFACE, vlan_vid=0x1007)
    return "leaf1", flow, replace(flow, actions=flow.actions[1:])


def no_way_out(m: Moment) -> tuple[str, Flow, Flow | None]:
    flow = entry(m, "leaf2", Table.ROUTE, VRF_BAND + Route.PREFIX, eth_type=0x0800, vlan_vid=0x1007)
    return "leaf2", flow, None


def not_to_one(m: Moment) -> tuple[str, Flow, Flow | None]:
    """vm2 is left out of the group at its edge."""
    flow = entry(m, "edge1", Table.DELIVER, VRF_BAND + Deliver.FLOODED, vlan_vid=0x102A)
    return "edge1", flow, replace(flow, actions=(Output(UPLINK),))


def to_another(m: Moment) -> tuple[str, Flow, Flow | None]:
    """vm5, which is in no vnet that floods, gets what is flooded."""
    flow = entry(m, "edge1", Table.DELIVER, VRF_BAND + Deliver.FLOODED, vlan_vid=0x102A)
    return "edge1", flow, replace(flow, actions=(*flow.actions, PopVlan(), Output(vm_port(5))))


@pytest.mark.parametrize(
    ("network", "wanted", "why", "breaks"),
    [
        ("small", A, "edge1 port 1", any_source),
        ("small", A, "edge1 port 1", any_mac),
        ("small", A, "edge1 port 1", tagged),
        ("small", A, "edge1 port 1", noise_goes_up),
        ("left", A, "edge1 port 1", port_left_open),
        ("small", A, "no meter", no_meter),
        ("small", A, "server router has sent it", a_routers_source),
        ("small", B, "it is lost", no_way),
        ("small", B, "it comes to edge1 port 4294967294", other_port),
        ("small", B, "twice to one port", doubled),
        ("small", B, "not the receiver's", other_mac),
        ("small", C, f"{MAX_HOPS} switches", sent_back),
        ("vnets", D, "its time to live is what it was", neighbour_of_all),
        ("small", D, "its time to live is what it was", no_ttl),
        ("tenants", E, "they are in different VRFs", in_no_vrf),
        ("tenants", E, "it has a tag", tag_left),
        ("routed", A, "edge1 port 1", all_of_a_prefix),
        ("routed", B, "it is lost", prefix_lost),
        ("ways_out", A, "server exit has sent it", exit_as_a_vm),
        ("ways_out", E, "they are in different VRFs", exit_in_no_vrf),
        ("ways_out", E, "another tag than there", by_another_tag),
        ("ways_out", B, "to outside: it comes to nowhere", no_way_out),
        ("flooded", F, "it does not come to NIC vm2", not_to_one),
        ("flooded", F, "not in a vnet that floods with it", to_another),
        ("small", AMBIGUOUS, "do not do the same", tie),
    ],
)
def test_one_broken_entry_is_found(network: str, wanted: str, why: str, breaks: Break) -> None:
    whole = at_rest(network)
    switch, old, new = breaks(whole)
    assert new != old
    moment = broken(whole, switch, old, new)
    found = next(one for one in all_wrong(moment) if one.property == wanted and why in one.why)
    said = words.text(found)
    assert wanted in said and why in said and build(found.frame).hex() in said
    if new is not None and "server router" not in why and breaks is not exit_in_no_vrf:
        assert words.named(moment.net, switch, new) in said, said
    happens(moment, found)


def test_switches_that_are_told_in_a_wrong_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An undone target that forwards already, while the source still does: frames go to and fro."""

    def target_first(self: LeafSpine, source: str, target: str) -> Near:
        return [{self.net.servers[target].edge}, {self.net.servers[source].edge}]

    monkeypatch.setattr(LeafSpine, "order_to_return", target_first)
    moment = next(m for m in moments(NETWORKS["small"]()) if m.name.startswith("returned: stage 1"))
    found = next(one for one in all_wrong(moment) if one.property == C)
    assert "edge2 has the change" in words.text(found)


def test_what_is_on_its_way_when_the_source_forwards_no_more_is_found_lost() -> None:
    forwards = next(m for m in moments(NETWORKS["small"]()) if m.name == "forwarded: done")
    send_on = entry(forwards, "edge1", Table.DELIVER, Deliver.VM, ipv4_dst=0x0A010065)
    found = [one for one in all_wrong(broken(forwards, "edge1", send_on, None)) if one.property == B]
    assert {(one.fate.at, one.why.split(": ")[1]) for one in found} == {(("edge1", UPLINK), "it is lost")}


def all_wrong(moment: Moment) -> Iterator[Counterexample]:
    try:
        yield from examine(moment, Tally())
    except NothingProvedError:
        return


def happens(moment: Moment, found: Counterexample) -> None:
    """Switches that run the bytes do the same with the frame: what was found is so."""
    frame, fabric = build(found.frame), fake(moment, dict(found.fate.which))
    if found.property == AMBIGUOUS:
        return
    if found.property == C:
        with pytest.raises(Loop):
            fabric.send(*found.fate.at, frame)
        return
    came = [{(at[0], at[1]) for at in arrived} for arrived, _ in outcomes(fabric, *found.fate.at, frame)]
    assert {(one.switch, one.port) for one in found.fate.arrived} in came


def test_what_was_never_looked_at_is_not_proved() -> None:
    """A VM without a port sends nothing, and so nothing that is wrong."""
    moment = at_rest("small")
    moment.net.vm_ports["vm1"], ports = {}, moment.net.vm_ports["vm1"]
    try:
        with pytest.raises(NothingProvedError, match="vm1"):
            list(examine(moment, Tally()))
    finally:
        moment.net.vm_ports["vm1"] = ports


def test_the_networks_have_every_role_and_every_step_of_a_migration() -> None:
    names = {moment.name.split(":")[0] for moment in moments(NETWORKS["dual"]())}
    assert names == {
        "at rest", "a port at the target", "admitted", "target_closed (undone before it is diverted)",
        "diverted (paused already)", "diverted", "forwarded", "copied", "returned", "target_closed (undone)",
        "source_closed", "settled",
    }  # fmt: skip
    net = at_rest("vnets").net
    assert {switch.role for switch in net.switches.values()} == set(Role) - {Role.CORE}
    assert Role.CORE in {switch.role for switch in at_rest("tiers").net.switches.values()}
    assert len(net.vnets) > 1
    assert net.gateway_groups
    assert any(nic.allowed for vm in net.vms.values() for nic in vm.nics)
    assert {a.ip.version for a in net.assignments.values()} == {4, 6}
    assert len(at_rest("dual").net.vms["vm1"].nics) == 2
    assert FakeFabric.max_hops == MAX_HOPS
