"""Two VMs and a DHCP server over a controller and fake switches: what each of them hears."""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from retinue.controller.app import Controller
from retinue.controller.context import Store
from retinue.core.model import VM, Network, PortStatus
from retinue.core.packets import (
    BROADCAST,
    DHCP,
    Ethernet,
    MessageType,
    UDPDatagram,
    ack,
    dhcp_frame,
    discover,
    offer,
    parse_dhcp_frame,
    request,
)
from retinue.southbound.ovsdb import BridgePort
from support.fabric.networks import fabric, vm_ip, vm_mac, vm_port
from support.fakes.session import FakeNetwork
from support.recent_events import recent

SERVER = IPv4Address("10.1.0.2")
NOWHERE, EVERYWHERE = IPv4Address(0), IPv4Address("255.255.255.255")
LEASE = 600
SERVER_AT = ("leaf2", 90)

Heard = tuple[Ethernet, UDPDatagram, DHCP]


@dataclass
class DhcpLab:
    """VM N at server N of the fabric; the DHCP server behind leaf2 grants it its address."""

    fake: FakeNetwork
    now: float = 1000.0
    served: list[Heard] = field(default_factory=list)
    grants: dict[str, IPv4Address] = field(default_factory=dict)
    """By MAC: another address than the VM's own."""
    says: Callable[[DHCP], DHCP | None] | None = None
    """What the server says instead."""
    eth_dst: Callable[[str], str] = lambda chaddr: chaddr
    """Whom the server's frames are for."""

    @property
    def controller(self) -> Controller:
        return self.fake.controller

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in recent(self.controller.events, kind, 1000)]

    def counted(self, name: str) -> int:
        return self.controller.context.counters[name]

    async def add(self, vm: int, at: int = 0, addresses: tuple[IPv4Address, ...] = ()) -> None:
        """Registered, and plugged in."""
        at = at or vm
        registered = VM.with_one_nic(f"vm{vm}", vm_mac(vm), f"server{at}", addresses=addresses)
        self.controller.inventory.register_vms([registered])
        await self.plug(vm, at)

    async def plug(self, vm: int, at: int) -> None:
        port = BridgePort(
            dpid=0x30 + at, bridge="br0", name=f"tap{vm}", number=vm_port(vm), status=PortStatus.UP,
            iface_id=f"vm{vm}", attached_mac=vm_mac(vm),
        )  # fmt: skip
        self.controller.inventory.ports.changed([], [port])
        await self.fake.settle()

    async def boot(self, vm: int, at: int = 0, xid: int = 7, *options: tuple[int, bytes]) -> None:
        for said in (discover(vm_mac(vm), xid), request(vm_mac(vm), xid, vm_ip(vm), SERVER)):
            for code, value in options:
                said = said.with_option(code, value)
            await self.say(vm, said, at=at)

    async def say(
        self,
        vm: int,
        dhcp: DHCP,
        src: IPv4Address = NOWHERE,
        dst: IPv4Address = EVERYWHERE,
        mac: str = BROADCAST,
        at: int = 0,
    ) -> None:
        await self.send(vm, dhcp_frame(dhcp, vm_mac(vm), mac, src, dst, 68, 67), at)

    async def send(self, vm: int, frame: bytes, at: int = 0) -> None:
        self.fake.send(f"edge{at or vm}", vm_port(vm), frame)
        await self.fake.settle()

    def serve(self, frame: bytes) -> None:
        heard = parse_dhcp_frame(frame)
        self.served.append(heard)
        reply = self.granted(heard[2]) if self.says is None else self.says(heard[2])
        if reply is not None:
            self.answer(reply)

    def granted(self, asked: DHCP) -> DHCP | None:
        ip = self.grants.get(asked.chaddr, vm_ip(int(asked.chaddr[-2:], 16)))
        if asked.message_type is MessageType.DISCOVER:
            return offer(asked, ip, SERVER, LEASE)
        return ack(asked, ip, SERVER, LEASE) if asked.message_type is MessageType.REQUEST else None

    def answer(self, reply: DHCP, dst: IPv4Address | None = None) -> None:
        """As the server's kernel sends it, to whatever MAC it has found."""
        mac = self.fake.net.servers["dhcp"].mac
        to = reply.yiaddr if dst is None else dst
        self.fake.send(*SERVER_AT, dhcp_frame(reply, mac, self.eth_dst(reply.chaddr), SERVER, to, 67, 68))

    def heard_by(self, vm: int, at: int = 0) -> list[Heard]:
        where = (f"edge{at or vm}", vm_port(vm))
        return [parse_dhcp_frame(f) for s, p, f in self.fake.heard if (s, p) == where]


async def dhcp_lab(net: Network | None = None, store: Store | None = None) -> DhcpLab:
    lab: DhcpLab
    lab = DhcpLab(FakeNetwork(net or fabric(), clock=lambda: lab.now, store=store))
    lab.fake.hosts[SERVER_AT] = lab.serve
    await lab.fake.start()
    return lab
