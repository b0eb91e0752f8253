from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from retinue.core.model import VM
from support.fabric.domains import nic, server_of
from support.fabric.figure_8 import Figure8, figure_8
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains


@pytest.fixture
async def figure() -> AsyncIterator[Figure8]:
    async with figure_8() as made:
        yield made


@pytest.fixture
async def domains() -> AsyncIterator[TwoDomains]:
    """Two domains, each of which asks the other; vm-a1 runs in domain a."""
    async with two_domains() as made:
        a = made.controller("a")
        a.inventory.register_vms([VM(VM_ID, (nic("a", 1),), server_of("a", 1), memory_mib=128)])
        made.plug("a", server_of("a", 1))
        await made.fakes["a"].settle()
        for domain in "ab":
            peers = made.controller(domain).net.peers
            for id, peer in peers.items():
                peers[id] = replace(peer, match=True)
        yield made
