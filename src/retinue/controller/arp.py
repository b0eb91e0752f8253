"""ARP that reaches the controller: servers are found by theirs (D2), VMs and servers are answered (D5)."""

from ipaddress import IPv4Address

from retinue.controller.context import Context
from retinue.controller.places import Places
from retinue.flows.fabric import trunk_ports
from retinue.model import IP, PortRef
from retinue.packets import ARP, ArpOp, Ethernet, FrameError, arp_reply, parse, parse_arp


class ArpDesk:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.places = Places(context)
        self.unknown: dict[str, PortRef] = {}
        """MACs heard at leaf ports that no server is booked with (row D4: missing is shown)."""

    def from_vm(self, switch: str, port: int, frame: bytes) -> None:
        """A VM asks for an address its edge switch does not answer for by itself."""
        parsed = self._parse(frame, f"{switch} port {port}")
        net = self._context.net
        vm = net.vm_at(switch, port)
        if parsed is None or vm is None:
            return
        arp = parsed[1]
        holding = net.holdings.get(arp.tpa)
        local = holding is not None and net.servers[net.vms[holding.vm].server].edge == switch
        # Row C3: no proxy answer for a host on the asker's own edge switch.
        if arp.op == ArpOp.REQUEST and not local and self._is_neighbour(arp):
            self._context.counters["ARP answered"] += 1
            self._context.send_frame(switch, port, arp_reply(arp, net.gateway_mac))
        else:
            self._context.counters["ARP not answered: nobody has the address"] += 1

    def from_server(self, switch: str, port: int, frame: bytes) -> None:
        """ARP at a leaf's port: its sender is there."""
        parsed = self._parse(frame, f"{switch} port {port}")
        if parsed is None:
            return
        ethernet, arp = parsed
        net = self._context.net
        name = net.port_name(switch, port)
        if name is None or port in trunk_ports(net, switch):
            return
        here = PortRef(switch, name)
        server = net.server_of_mac(arp.sha)
        if server is None or ethernet.src != arp.sha:
            if len(self.unknown) < 1024 and arp.sha not in self.unknown:
                self._context.events.publish("server.unknown", mac=arp.sha, place=str(here))
                self.unknown[arp.sha] = here
            return
        self.places.seen(server.id, here)
        asks_gateway = net.subnet_of(arp.tpa) is not None and any(
            s.gateway == arp.tpa for s in net.subnets.values()
        )
        if arp.op == ArpOp.REQUEST and not asks_gateway and arp.tpa != arp.spa and self._is_neighbour(arp):
            self._context.send_frame(switch, port, arp_reply(arp, net.gateway_mac))

    def ask_for_servers(self) -> None:
        """Ask for the servers whose place is not known (row D2); may be called at any time."""
        self.places.ask_for_missing()

    def _is_neighbour(self, arp: ARP) -> bool:
        """True when the wanted address is known here, in the asker's subnet, and not the asker's own."""
        net = self._context.net
        subnet = net.subnet_of(arp.tpa)
        if subnet is None or not self._is_known(arp.tpa):
            return False
        asker = net.vm_of_mac(arp.sha)
        holder = net.holdings.get(arp.tpa)
        if asker is not None and holder is not None and holder.vm == asker.id:
            return False
        return arp.spa == IPv4Address(0) or arp.spa in subnet.prefix

    def _is_known(self, ip: IP) -> bool:
        net = self._context.net
        return ip in net.holdings or net.server_of_address(ip) is not None

    def _parse(self, frame: bytes, where: str) -> tuple[Ethernet, ARP] | None:
        try:
            ethernet = parse(frame)
            return ethernet, parse_arp(ethernet.payload)
        except FrameError as error:
            self._context.refuse_frame("ARP", where, error)
            return None
