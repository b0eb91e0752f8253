"""ARP that reaches the controller: servers are found by theirs, VMs and servers are answered."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

from retinue.controller.context import Context
from retinue.controller.counters import Count
from retinue.controller.inventory.server_locations import ServerLocations
from retinue.controller.neighbours.leaf_ports import leaf_port, look_for_gateways_mac
from retinue.controller.neighbours.taking import Taking
from retinue.core.limits import MOST_UNKNOWN
from retinue.core.model import ModelError, PortRef, Server, mac_to_come
from retinue.core.packets import ARP, Ethernet, FrameError, arp_reply, parse, parse_arp, tagged
from retinue.core.pipeline.responders import arp
from retinue.core.pipeline.responders.announcements import claim_of_arp
from retinue.core.snooping import chassis
from retinue.protocol.events import EventType


async def _nobody(_: Collection[Server]) -> None:
    """Until the inventory is there."""


class ArpResponder:
    """Answers ARP where a switch does not answer by itself, and passes servers' ARP to ServerLocations.

    Which requests are answered: `core.pipeline.responders.arp`.
    """

    def __init__(self, context: Context, taking: Taking) -> None:
        self._context = context
        self.locations = ServerLocations(context)
        self._taking = taking
        self.put_servers: Callable[[Collection[Server]], Awaitable[None]] = _nobody
        """Changes servers as a manager does; ModelError where that cannot be."""
        self.heard: Callable[[str, int, str], None] = lambda switch, port, server: None
        """Called with where a server has spoken: a leaf, its port, and the server."""
        self._unknown: dict[PortRef, dict[str, None]] = {}
        """By leaf port: MACs that no server is registered with, the last ones seen there. The operator is
        shown what is missing; a port that invents MACs takes no other's place."""

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A VM asks for an address its edge switch does not answer for by itself."""
        parsed = self._parse(frame, f"{switch} port {port}")
        net = self._context.net
        vm = net.vm_at(switch, port)
        if parsed is None or vm is None:
            return
        ethernet, request = parsed
        nic = net.nic_at(switch, port, ethernet.src)
        if nic is None:
            return
        if self._taking.heard(vm, nic, ethernet.src, claim_of_arp(request)):
            return
        mac = arp.answer_to_vm(net, switch, nic, request, net.gateway_mac_of(net.server_of_edge(switch)))
        self._context.counters[Count.ARP_ANSWERED if mac else Count.ARP_UNANSWERED] += 1
        if mac:
            self._context.send_to_nic(switch, port, nic, arp_reply(request, mac))

    def from_server(self, switch: str, port: int, frame: bytes) -> None:
        """ARP at a leaf's port: its sender is there."""
        parsed = self._parse(frame, f"{switch} port {port}")
        if parsed is None:
            return
        ethernet, message = parsed
        net = self._context.net
        here = leaf_port(net, switch, port)
        if here is None:
            return
        server = net.server_of_mac(message.sha)
        if server is None or ethernet.src != message.sha:
            look_for_gateways_mac(self._context, here, ethernet.src, message.sha)
            self._note_unknown(message.sha, here)
            return
        vlan = ethernet.vlan or 0
        vrf = net.vrf_at_port(server, vlan)
        if vrf is None:
            return
        self.locations.seen(server.id, here)
        self.heard(switch, port, server.id)
        if arp.answers_server(net, message, vrf):
            self._context.send_frame(switch, port, tagged(arp_reply(message, net.gateway_mac), vlan))

    def from_missing_server(self, switch: str, port: int, frame: bytes) -> None:
        """Any frame but ARP at a leaf's port, from the MAC of a server whose place is not known; and
        LLDP, by whose chassis id a server may be known."""
        net = self._context.net
        try:
            source = parse(frame).src
        except FrameError as error:
            self._context.reject_frame("Ethernet", f"{switch} port {port}", error)
            return
        here, server = leaf_port(net, switch, port), net.server_of_mac(source)
        if here is None:
            return
        if server is not None and net.location(server.id) is None:
            self.locations.seen(server.id, here)
        try:
            verdict = chassis.judge(net, here, frame)
        except FrameError as error:
            self._context.reject_frame("LLDP", f"{switch} port {port}", error)
            return
        match verdict:
            case chassis.Becomes():
                self._context.spawn(self._becomes(verdict, here), f"MAC of server {verdict.server}")
            case chassis.Mistaken(name, reason):
                self.locations.reject(name, here, reason)

    async def _becomes(self, told: chassis.Becomes, here: PortRef) -> None:
        """Known by its chassis id: its MAC is changed as a manager changes it, then it is there.

        Unless it answers by the MAC that it has. A server's LLDP has the MAC of the NIC that sends it, which
        need not be that of the bridge above, by which the server is reached.
        """
        if told.server not in self._context.net.servers:
            return
        if not await self.locations.is_silent(told.server, here):
            return
        known = self._context.net.servers.get(told.server)
        if known is None or known.mac == told.mac:
            return
        try:
            await self.put_servers([replace(known, mac=told.mac)])
        except ModelError as error:
            self.locations.reject(told.server, here, str(error))
            return
        before = "" if known.mac == mac_to_come(known.id) else known.mac
        data = {"server": told.server, "mac": told.mac, "before": before, "location": str(here)}
        self._context.events.publish(EventType.SERVER_IDENTIFIED, **data)
        self.locations.seen(told.server, here)

    def _note_unknown(self, mac: str, here: PortRef) -> None:
        found = self._unknown.setdefault(here, {})
        if mac in found:
            return
        found[mac] = None
        if len(found) > MOST_UNKNOWN:
            del found[next(iter(found))]
        source = (here.switch, here.port)
        self._context.events.tell(source, EventType.SERVER_UNKNOWN, mac=mac, location=str(here))

    @property
    def unknown(self) -> dict[str, PortRef]:
        """MACs seen at leaf ports that no server is registered with, and where."""
        return {mac: here for here, macs in self._unknown.items() for mac in macs}

    def ask_for_servers(self) -> None:
        """Ask for the servers whose place is not known; may be called at any time."""
        self.locations.ask_for_missing()

    def _parse(self, frame: bytes, where: str) -> tuple[Ethernet, ARP] | None:
        try:
            ethernet = parse(frame)
            return ethernet, parse_arp(ethernet.payload)
        except FrameError as error:
            self._context.reject_frame("ARP", where, error)
            return None
