"""Neighbour discovery that reaches the controller: VMs and routers are answered, and told of the gateway.

Who is answered what: `core.pipeline.responders.nd`. An edge switch has checked who a VM says it is, but for
the option of a router solicitation, which a switch cannot see.
"""

from collections.abc import Callable
from ipaddress import IPv6Address

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.neighbours.leaf_ports import leaf_port, look_for_gateways_mac
from retinue.controller.neighbours.own_addresses import OwnAddressBinder
from retinue.controller.neighbours.taking import Taking
from retinue.core.model import NIC, VM, Mac
from retinue.core.model.families import in_use
from retinue.core.model.link_local import ALL_NODES, UNSPECIFIED
from retinue.core.model.uplinks import places
from retinue.core.packets import (
    ND,
    Ethernet,
    FrameError,
    NeighbourAdvertisement,
    NeighbourSolicitation,
    RouterSolicitation,
    nd_frame,
    parse,
    parse_nd,
    tagged,
)
from retinue.core.pipeline.responders import nd
from retinue.core.pipeline.responders.announcements import claim_of_nd
from retinue.core.snooping import SpoofingKind
from retinue.core.snooping.relay import HOME_BURST, HOME_RATE, Shares
from retinue.protocol.events import EventType

MOST_CAUGHT_UP = 10
"""Seconds of advertisements that are made up for, after the controller was held up."""


class NdResponder:
    """Answers neighbour discovery, and speaks as the gateway."""

    def __init__(self, context: Context, taking: Taking) -> None:
        self._context = context
        self._taking = taking
        self._own_addresses = OwnAddressBinder(context)
        self._of_guests = Shares(HOME_RATE, HOME_BURST)
        self.heard: Callable[[str, int, str], None] = lambda switch, port, server: None
        """Called with where a server has spoken: a leaf, its port, and the server."""
        self._advertised_until: int | None = None
        """The second, by the controller's clock, whose turn is past."""

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A VM asks for a neighbour, or for a router; or it takes an address that it is allowed."""
        parsed = self._parse(frame, f"{switch} port {port}")
        net = self._context.net
        if parsed is None:
            return
        ethernet, asked = parsed
        vm, nic = net.vm_at(switch, port, ethernet.src), net.nic_at(switch, port, ethernet.src)
        if vm is None or nic is None:
            return
        if isinstance(asked.message, RouterSolicitation):
            self._searched(switch, port, vm, nic, asked)
            return
        if net.is_tunnel(switch, port):
            return  # What else a VM that is away asks is answered where it is.
        said = nd.answer_to_vm(net, switch, vm, asked, net.vrf_of(nic))
        claim = claim_of_nd(ethernet.src, asked)
        takes = claim is not None and self._taking.heard(vm, nic, ethernet.src, claim)
        if takes and (said is None or asked.src != UNSPECIFIED):
            return
        self._reply(switch, port, ethernet, said, net.vlan_in_trunk(nic))
        if said is None and asked.src == UNSPECIFIED and isinstance(asked.message, NeighbourSolicitation):
            self._own_addresses.checked(vm, nic, asked.message.target)

    def _searched(self, switch: str, port: int, vm: VM, nic: NIC, asked: ND) -> None:
        """A VM looks for a router."""
        assert isinstance(asked.message, RouterSolicitation)
        named = asked.message.options.source_mac
        if named is not None and named != nic.mac:
            self._note_spoofing(switch, port, vm, (named, str(asked.src)))
        elif vm.home:
            self._ask_home(vm, nic, asked)
        else:
            self._advertise(switch, port, vm, nic, asked)

    def _ask_home(self, vm: VM, nic: NIC, asked: ND) -> None:
        """A guest's router is at its home, which is asked by the tunnel and answers by it."""
        context = self._context
        tunnel = context.net.tunnel_to(vm.home)
        if tunnel is None:
            return
        if self._of_guests.spend(vm.id, 1, context.clock()):
            context.send_frame(*tunnel, nd_frame(asked, nic.mac))
        else:
            context.counters[Count.ASKED_HOME_TOO_MUCH] += 1

    def from_server(self, switch: str, port: int, frame: bytes, *, answered: bool = False) -> None:
        """A machine at a leaf's port asks; one that is not known there has no answer. `answered`: by its
        leaf."""
        parsed = self._parse(frame, f"{switch} port {port}")
        if parsed is None:
            return
        ethernet, asked = parsed
        net = self._context.net
        here = leaf_port(net, switch, port)
        server = net.server_of_mac(ethernet.src)
        if here is not None and server is None:
            look_for_gateways_mac(self._context, here, ethernet.src)
        if here is None or server is None or here not in places(net, server.id):
            return
        vlan = ethernet.vlan or 0
        vrf = net.vrf_at_port(server, vlan)
        if vrf is None:
            return
        self.heard(switch, port, server.id)
        if not answered and not isinstance(asked.message, NeighbourAdvertisement):
            self._reply(switch, port, ethernet, nd.answer_to_server(net, asked, vrf), vlan)

    def advertise(self) -> None:
        """Each second: the VMs whose turn it is hear of the gateway, each once in nd.ADVERTISED_EVERY."""
        net = self._context.net
        now = int(self._context.clock())
        first = max(now - MOST_CAUGHT_UP, self._advertised_until or now - 1) + 1
        self._advertised_until = now
        turns = {second % nd.ADVERTISED_EVERY for second in range(first, now + 1)}
        if nd.ADVERTISED_EVERY - 1 in turns:
            self._own_addresses.forget_the_gone()
        if not turns or not in_use(net, 6):
            return
        for turn in sorted(turns):
            for vm, nic in net.in_turn(turn):
                self._advertise_at_home(vm, nic)

    def _advertise_at_home(self, vm: VM, nic: NIC) -> None:
        """At the port where the VM is delivered, if its switch is there."""
        edge = self._context.net.servers[vm.server].edge
        port = self._context.net.port_of(nic, edge)
        if port is not None and self._context.is_connected(edge):
            self._advertise(edge, port.number, vm, nic)

    def _advertise(self, switch: str, port: int, vm: VM, nic: NIC, asked: ND | None = None) -> None:
        net = self._context.net
        mac = net.gateway_mac_of(net.server_of_edge(switch))
        to: IPv6Address | None = ALL_NODES if asked is None else asked.src
        if net.is_tunnel(switch, port):
            to = nd.away_to(net, vm, nic)
        told = None if to is None else nd.advertisement(net, vm, nic, mac, to)
        if told is None:
            return
        self._context.counters[Count.ROUTER_ADVERTISED] += 1
        # It goes to one VM alone, also where it names the group of all nodes.
        self._context.send_to_nic(switch, port, nic, nd_frame(told, mac, nic.mac))

    def _reply(self, switch: str, port: int, asker: Ethernet, said: ND | None, vlan: int) -> None:
        """`vlan`: the tag that the asker's frames have at the port; 0: none."""
        if said is None or not isinstance(said.message, NeighbourAdvertisement):
            self._context.counters[Count.ND_UNANSWERED] += 1
            return
        self._context.counters[Count.ND_ANSWERED] += 1
        mac = said.message.options.target_mac or self._context.net.gateway_mac
        self._context.send_frame(switch, port, tagged(nd_frame(said, mac, asker.src), vlan))

    def _note_spoofing(self, switch: str, port: int, vm: VM, claim: tuple[Mac, str]) -> None:
        context = self._context
        row = context.spoof_attempts.note(SpoofingKind.ND, switch, port, vm.id, claim, context.clock())
        about = (row.kind, row.claimed_mac, row.claimed_ip)
        context.events.tell((switch, port), EventType.SPOOFING, about=about, spoofing=row)

    def _parse(self, frame: bytes, where: str) -> tuple[Ethernet, ND] | None:
        try:
            ethernet = parse(frame)
            return ethernet, parse_nd(ethernet.payload)
        except FrameError as error:
            self._context.reject_frame("ND", where, error)
            return None
