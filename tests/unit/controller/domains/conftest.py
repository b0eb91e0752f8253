from collections.abc import AsyncIterator

import pytest

from retinue.core.model import VM
from support.fabric.domains import nic, server_of
from support.fabric.two_controllers import VM_ID, TwoDomains, two_domains


@pytest.fixture
async def domains() -> AsyncIterator[TwoDomains]:
    async with two_domains() as made:
        made.controller("a").inventory.register_vms(
            [VM(VM_ID, (nic("a", 1),), server_of("a", 1), memory_mib=128)]
        )
        made.plug("a", server_of("a", 1))
        await made.fakes["a"].settle()
        yield made
