"""A guest that asks its home without end: little of that goes into the tunnel (its own meter at home:
core/pipeline/test_gateway_shares.py)."""

import asyncio

import pytest

from retinue.core.model import VM
from retinue.core.model.link_local import ALL_ROUTERS, link_local
from retinue.core.packets import (
    BROADCAST,
    ND,
    NDOptions,
    RouterSolicitation,
    dhcp_frame,
    discover,
    nd_frame,
)
from retinue.core.snooping.messages import EVERYBODY, NO_ADDRESS
from retinue.core.snooping.relay import HOME_BURST, HOME_RATE
from support.fabric.domains import TUNNEL, nic, port, server_of
from support.fabric.two_controllers import VM_ID, two_domains
from support.virtual_time import run

NIC1 = nic("a", 1, dual=True)
TOO_MUCH = "questions not sent home: a guest of another domain asks too much"
SEARCH = nd_frame(
    ND(link_local(NIC1.mac), ALL_ROUTERS, RouterSolicitation(NDOptions(source_mac=NIC1.mac))), NIC1.mac
)
QUESTION = dhcp_frame(discover(NIC1.mac, 7), NIC1.mac, BROADCAST, NO_ADDRESS, EVERYBODY, 68, 67)


@pytest.mark.parametrize("asked", [SEARCH, QUESTION])
def test_of_one_guest_little_goes_into_the_tunnel(asked: bytes) -> None:
    async def story() -> None:
        async with two_domains(dual=True) as made:
            vm = VM(VM_ID, (NIC1,), server_of("a", 1), memory_mib=128)
            made.controller("a").inventory.register_vms([vm])
            made.plug("a", server_of("a", 1))
            await made.fakes["a"].settle()
            await made.move("a", "b", server_of("b", 2))
            await made.fakes["b"].settle()
            sent: list[bytes] = []
            made.fakes["b"].hosts["b-edge3", TUNNEL] = sent.append
            for _ in range(100):
                made.fakes["b"].send("b-edge2", port(NIC1), asked)
            await made.fakes["b"].settle()
            assert len(sent) == HOME_BURST
            assert made.controller("b").context.counters[TOO_MUCH] == 100 - HOME_BURST
            await asyncio.sleep(1.01)
            for _ in range(100):
                made.fakes["b"].send("b-edge2", port(NIC1), asked)
            await made.fakes["b"].settle()
            assert len(sent) == HOME_BURST + HOME_RATE

    run(story())
