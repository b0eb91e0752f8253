"""A fake DHCP server behind the fabric, and clients that ask it: each REQUEST is answered with an ACK."""

import asyncio
import time
from ipaddress import IPv4Address

from bench.scale.fakes.ovsdb import FakeDatabase
from bench.scale.fakes.switch import FakeBulkSwitch, Switches
from bench.scale.plan import DHCP_PORT, DHCP_SERVER, DHCP_SERVER_MAC, VMPlan
from retinue.core.model import Mac, mac
from retinue.core.packets.dhcp import CLIENT_PORT, SERVER_PORT, MessageType, dhcp_frame, parse_dhcp_frame
from retinue.core.packets.dhcp_messages import ack, request
from retinue.core.pipeline.cookies import COOKIE_MARK, Reason

LEASE = 3600.0
AT_ONCE = 16
"""Requests that wait for their ACK at the same time."""
_NOBODY, _ALL, _BROADCAST = IPv4Address(0), IPv4Address("255.255.255.255"), mac("ff:ff:ff:ff:ff:ff")


class FakeDhcp:
    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self._leaf = switches.all["leaf0"]
        self._ip_of: dict[Mac, IPv4Address] = {}
        self._asked: dict[Mac, asyncio.Future[None]] = {}
        switches.on_packet_out = self._packet_out

    async def lease_to(self, vms: list[tuple[VMPlan, FakeDatabase]], limit: float) -> float:
        """Each of these VMs asks for its address, AT_ONCE at a time; ACKs a second that came out of the VMs'
        ports. Raises TimeoutError."""
        began = time.monotonic()
        free = asyncio.Semaphore(AT_ONCE)

        async def one(vm: VMPlan, database: FakeDatabase) -> None:
            async with free:
                await self._ask(vm, database)

        async with asyncio.timeout(limit):
            await asyncio.gather(*(one(*each) for each in vms))
        return len(vms) / (time.monotonic() - began)

    async def _ask(self, vm: VMPlan, database: FakeDatabase) -> None:
        address = mac(vm.mac)
        self._ip_of[address] = vm.ip
        came = self._asked[address] = asyncio.get_running_loop().create_future()
        asks = request(address, hash(vm.id) & 0xFFFFFFFF, vm.ip, None)
        frame = dhcp_frame(asks, address, _BROADCAST, _NOBODY, _ALL, CLIENT_PORT, SERVER_PORT)
        cookie = COOKIE_MARK | Reason.DHCP_CLIENT << 32
        database.switch.packet_in(frame, database.port_of(vm.id), cookie)
        await came

    def _packet_out(self, switch: FakeBulkSwitch, frame: bytes) -> None:
        if len(frame) < 280:  # No DHCP: an ARP request.
            return
        _, _, message = parse_dhcp_frame(frame)
        if switch is self._leaf and message.message_type is MessageType.REQUEST:
            ip = self._ip_of[message.chaddr]
            answer = ack(message, ip, DHCP_SERVER, LEASE)
            sent = dhcp_frame(
                answer, mac(DHCP_SERVER_MAC), message.chaddr, DHCP_SERVER, ip, SERVER_PORT, CLIENT_PORT
            )
            self._leaf.packet_in(sent, DHCP_PORT, COOKIE_MARK | Reason.DHCP_SERVER << 32)
        elif message.message_type is MessageType.ACK:
            came = self._asked.pop(message.chaddr, None)
            if came is not None and not came.done():
                came.set_result(None)
