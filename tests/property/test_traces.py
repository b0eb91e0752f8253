"""A trace tells what the fake switches do, over random networks, in every state of a migration.

The switches of `FabricWorld` have their entries by the changes that the controller makes, and cables of their
own; a trace has the programs, and the cables that follow from the network.
"""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from property.test_pipeline_properties import Shape, shapes
from retinue.core.model import VMPort
from retinue.core.packets import BROADCAST, arp_request, dhcp_frame, discover
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, Reason, reason_of
from retinue.core.tracing import Fate, Trace, place_of_nic, trace
from support.examples import examples
from support.fabric import ipv6
from support.fabric.networks import GATEWAY, GATEWAY_MAC, moved, vm_ip, vm_mac, vm_port
from support.fabric.world import (
    EVERYWHERE,
    NOWHERE,
    OUTSIDE,
    FabricWorld,
    dhcp_answer,
    rarp,
    tagged,
    udp_frame,
)
from support.fakes.switch import Delivery

FALLBACK = "drops it"
"""What is said where no reason is known: never of entries of ours."""


def frames(sender: int, other: int, in_use: bool) -> list[bytes]:
    mac, ip = vm_mac(sender), vm_ip(sender)
    found = [
        *(
            udp_frame(mac, to, ip, dst)
            for to in (GATEWAY_MAC, vm_mac(other))
            for dst in (vm_ip(other), OUTSIDE)
        ),
        udp_frame(mac, GATEWAY_MAC, ip, vm_ip(99)),
        udp_frame(mac, GATEWAY_MAC, vm_ip(other), OUTSIDE),
        udp_frame(vm_mac(other), GATEWAY_MAC, ip, OUTSIDE),
        udp_frame(mac, BROADCAST, ip, EVERYWHERE),
        *(arp_request(mac, ip, wanted) for wanted in (GATEWAY, vm_ip(other), ip, vm_ip(99))),
        arp_request(mac, vm_ip(other), GATEWAY),
        dhcp_frame(discover(mac, 7), mac, BROADCAST, NOWHERE, EVERYWHERE, 68, 67),
        dhcp_answer(mac, GATEWAY_MAC, ip, other),
        rarp(mac, mac),
    ]
    found += [tagged(frame, vlan) for frame in found[:3] for vlan in (0, 666)]
    if in_use:
        found += [ipv6.udp6_frame(mac, GATEWAY_MAC, ipv6.vm_ip6(sender), ipv6.vm_ip6(other))]
        found += [*ipv6.questions(sender), *ipv6.forgeries(sender, other, thorough=False)]
    return found


def agrees(found: Trace, paths: list[Delivery]) -> None:
    """The way that is told is one that the switches have; ends are where frames come out, or nowhere."""
    by_hops = {tuple((hop.switch, hop.frame, hop.matched) for hop in path.hops): path for path in paths}
    assert len(by_hops) == found.ways
    told = [hop.matched for hop in found.hops]
    (path,) = [path for path in paths if [hop.matched for hop in path.hops] == told]
    handed_out = [end for end in found.ends if end.fate is Fate.DELIVERED]
    by_switch = [e for e in found.ends if e.fate is Fate.ANSWERED and "by itself" in e.text]
    assert len(handed_out) + len(by_switch) == len(path.arrivals)
    reasons = [reason_of(cookie) for _, cookie, _, _ in path.to_controller]
    spoofed = [reason for reason in reasons if reason in SPOOF_ATTEMPTS]
    reported = [end for end in found.ends if end.reported]
    assert len(reported) == len(spoofed)
    nowhere = [hop for hop in path.hops if not hop.result.outputs and not hop.result.to_controller]
    dropped = [end for end in found.ends if end.fate is Fate.DROPPED]
    expired = reasons.count(Reason.EXPIRED)
    unanswered = [end for end in dropped if "answers nothing" in end.text]
    assert len(dropped) == len(nowhere) + len(spoofed) + expired + len(unanswered)
    assert not [end.text for end in found.ends if end.text.endswith(FALLBACK)]
    assert not [entry for hop in found.hops for entry in hop.entries if entry.priority_name == "not ours"]


@settings(max_examples=examples(10), deadline=None)
@given(shapes(), st.sampled_from(("at rest", "admitted", "diverted", "paused", "closed")), st.data())
def test_a_trace_tells_what_switches_do(shape: Shape, state: str, data: st.DataObject) -> None:
    world = FabricWorld(shape.network())
    net, mover = world.net, world.net.vms["vm1"]
    home = shape.vms_at[0]
    target = data.draw(st.sampled_from([n for n in range(1, len(shape.servers_on) + 1) if n != home]))
    at = dict(enumerate(shape.vms_at, 1))
    if state != "at rest":
        for nic in mover.nics:
            port = net.port_of(nic, f"edge{home}")
            assert port is not None
            world.apply(net.set_vm_port(nic.port_id, f"edge{target}", VMPort(port.number, port.name)))
        placed = {
            "admitted": replace(mover, also=frozenset({f"server{target}"})),
            "diverted": replace(moved(mover, f"server{target}"), forwarded_from=f"server{home}"),
            "paused": replace(
                moved(mover, f"server{target}"),
                forwarded_from=f"server{home}",
                copied_to=f"server{home}",
            ),
            "closed": replace(mover, server=f"server{target}", forwarded_from=f"server{home}"),
        }[state]
        world.apply(net.put_vm(placed))
    sender = data.draw(st.sampled_from(sorted(at)))
    other = data.draw(st.sampled_from([number for number in at if number != sender]))
    vm = net.vms[f"vm{sender}"]
    place = place_of_nic(net, vm, vm.nic)
    assert place.port == vm_port(sender)
    for frame in frames(sender, other, shape.ipv6):
        found = trace(net, lambda name: world.compiler.program(name).values(), place, frame)
        agrees(found, world.fabric.all_paths(place.switch, place.port, frame))
