"""Where a frame ends: handed to somebody, answered, told to the controller, or dropped and why."""

from collections.abc import Container
from dataclasses import dataclass, replace
from enum import StrEnum

from retinue.core.forwarding import Delivery, End, Hop
from retinue.core.model import IP, Role
from retinue.core.model.link_local import UNSPECIFIED
from retinue.core.model.network import Network
from retinue.core.model.nic import is_mirror_port
from retinue.core.packets import (
    ARP,
    ND,
    EtherType,
    FrameError,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    RouterSolicitation,
    parse,
    parse_arp,
    parse_nd,
    summarize,
)
from retinue.core.pipeline.cookies import SPOOF_ATTEMPTS, Reason, reason_of
from retinue.core.pipeline.entry import PortNo
from retinue.core.pipeline.responders import arp, nd
from retinue.core.tracing.places import port_name, servers_at
from retinue.core.tracing.who_has import link_down, vrf_of, where_it_is
from retinue.core.tracing.why import why_it_ends, why_unplaced
from retinue.core.tracing.words import TOLD


class Fate(StrEnum):
    DELIVERED = "delivered"
    """It is handed to a VM, a server, or whoever is at a leaf's port."""
    ANSWERED = "answered"
    """The switch itself, or the controller, sends an answer back."""
    TOLD = "told"
    """The controller gets it, and does what its kind needs."""
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Ending:
    fate: Fate
    switch: str
    port: str
    who: str
    """The VM or server that has it; "": nobody."""
    text: str
    advice: tuple[str, ...] = ()
    """What would make it pass, one sentence each."""
    reported: str = ""
    """As what it is reported, of a spoofing attempt: "spoofed_ip"."""


def ends_of(net: Network, joined: Container[End], delivery: Delivery) -> tuple[Ending, ...]:
    """All of a delivery's ends, those first where somebody gets something; `joined`: ports with a cable."""
    found: list[Ending] = []
    for number, hop in enumerate(delivery.hops):
        left = [(port, frame) for port, frame in hop.result.outputs if (hop.switch, port) not in joined]
        found += [_handed_out(net, hop, port, frame, at_once=number == 0) for port, frame in left]
        told = [_told(net, hop, cookie, frame) for cookie, _, frame in hop.result.to_controller]
        found += told
        if not hop.result.outputs and not told:
            why = why_it_ends(net, hop)
            found.append(_dropped(net, hop, why.text, why.advice))
    return tuple(sorted(found, key=lambda ending: ending.fate is Fate.DROPPED))


def _dropped(net: Network, hop: Hop, text: str, advice: tuple[str, ...]) -> Ending:
    return Ending(Fate.DROPPED, hop.switch, port_name(net, hop.switch, hop.in_port), "", text, advice)


def _handed_out(net: Network, hop: Hop, port: int, frame: bytes, *, at_once: bool) -> Ending:
    """It leaves the fabric here."""
    name = port_name(net, hop.switch, port)
    if at_once and port == hop.in_port:
        text = f"{hop.switch} answers by itself: {summarize(frame)}"
        return Ending(Fate.ANSWERED, hop.switch, name, "", text)
    if net.switches[hop.switch].role is Role.EDGE and is_mirror_port(name):
        return Ending(
            Fate.DELIVERED, hop.switch, name, "", f"a copy goes out of {hop.switch}:{name}, a mirror"
        )
    who = _who_is_at(net, hop.switch, port)
    to = who or "whoever is there"
    text = f"handed to {to} at {hop.switch}:{name}{link_down(net, hop.switch, port)}"
    return Ending(Fate.DELIVERED, hop.switch, name, who, text)


def _who_is_at(net: Network, switch: str, port: int) -> str:
    if net.switches[switch].role is Role.EDGE:
        server = net.server_of_edge(switch)
        if port == PortNo.LOCAL and server is not None:
            return server.id
        vm = net.vm_at(switch, port)
        return "" if vm is None else vm.id
    return ", ".join(server.id for server in servers_at(net, switch, port))


def _told(net: Network, hop: Hop, cookie: int, frame: bytes) -> Ending:
    reason = reason_of(cookie)
    name = port_name(net, hop.switch, hop.in_port)
    if reason is None:
        text = "an entry that is not ours sends it to the controller, which heeds no such entry"
        return _dropped(net, hop, text, (f"mend the switch: `retinue switch audit {hop.switch}`",))
    if reason in SPOOF_ATTEMPTS:
        why = why_it_ends(net, hop)
        ending = _dropped(net, hop, f"{why.text}. It is dropped, and reported", why.advice)
        return replace(ending, reported=reason.name.lower())
    if reason is Reason.EXPIRED:
        text = "its time to live ends at this hop, and its sender is told so (ICMP time exceeded)"
        return _dropped(net, hop, text, ("send it with a larger one",))
    if reason is Reason.UNPLACED:
        why = why_unplaced(net, hop)
        text = f"{why.text}. It is held for a moment, and goes on if the server is found"
        return _dropped(net, hop, text, why.advice)
    if reason in (Reason.VM_ARP, Reason.VM_ND):
        return _asked(net, hop, frame)
    return Ending(Fate.TOLD, hop.switch, name, "", TOLD.get(reason, "the controller is told"))


def _asked(net: Network, hop: Hop, frame: bytes) -> Ending:
    """A VM's ARP or neighbour discovery that the controller answers, if anybody does."""
    try:
        ethernet = parse(frame)
        if ethernet.ethertype == EtherType.ARP:
            return _asked_by_arp(net, hop, parse_arp(ethernet.payload))
        return _asked_by_nd(net, hop, parse_nd(ethernet.payload))
    except FrameError as error:
        return _dropped(net, hop, f"the controller cannot read it: {error}", ())


def _asked_by_arp(net: Network, hop: Hop, question: ARP) -> Ending:
    gateway = net.gateway_mac_of(net.server_of_edge(hop.switch))
    nic = net.nic_at(hop.switch, hop.in_port, question.sha)
    mac = arp.answer_to_vm(net, hop.switch, nic, question, gateway)
    if mac:
        return _controller(net, hop, Fate.ANSWERED, f"the controller answers: {question.tpa} is at {mac}")
    if question.is_announcement:
        return _controller(net, hop, Fate.TOLD, f"the controller is told who has {question.tpa} now")
    return _unanswered(net, hop, question.tpa)


def _asked_by_nd(net: Network, hop: Hop, asked: ND) -> Ending:
    vm = net.vm_at(hop.switch, hop.in_port)
    said = None if vm is None else nd.answer_to_vm(net, hop.switch, vm, asked, vrf_of(net, hop))
    if said is not None and isinstance(said.message, NeighbourAdvertisement):
        text = f"the controller answers: {said.message.target} is at {said.message.options.target_mac}"
        return _controller(net, hop, Fate.ANSWERED, text)
    match asked.message:
        case RouterSolicitation():
            return _controller(net, hop, Fate.ANSWERED, "the controller answers as the gateway")
        case NeighbourSolicitation(target) if asked.src != UNSPECIFIED:
            return _unanswered(net, hop, target)
        case NeighbourSolicitation(target):
            text = f"it checks that nobody has {target}, and nobody objects: the controller may bind it"
            return _controller(net, hop, Fate.TOLD, text)
        case _:
            return _controller(net, hop, Fate.TOLD, "the controller is told who has the address now")


def _controller(net: Network, hop: Hop, fate: Fate, text: str) -> Ending:
    return Ending(fate, hop.switch, port_name(net, hop.switch, hop.in_port), "", text)


def _unanswered(net: Network, hop: Hop, wanted: IP) -> Ending:
    found = where_it_is(net, wanted, vrf_of(net, hop))
    return _dropped(
        net, hop, f"the controller is asked for {wanted}, and answers nothing: {found.text}", found.advice
    )
