"""Images that VMs' disks are made over: there when they are needed, and as long as they are."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue.agent.content.store import StoreError
from retinue.agent.vms.disks import ImageAwayError
from retinue.host.errors import HostError
from support.agents.content import ImageAgents
from support.content import some_bytes

DATA = some_bytes(6, zeros=(3,), tail=9)


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[ImageAgents]:
    made = ImageAgents(tmp_path)
    await made.start("server1")
    await made.start("server2")
    yield made
    await made.close()


async def test_what_this_server_never_saw_is_fetched_kept_and_let_go(agents: ImageAgents) -> None:
    await agents.publish("server1", "debian", DATA)
    here = agents.services["server2"]
    await here.need("debian", "vm1", 60)
    assert here.base_file("debian").read_bytes() == DATA
    await here.need("debian", "vm2", 60)
    for left in ("vm1", "vm2"):
        with pytest.raises(StoreError, match="is needed by"):
            here.store.remove_image("debian")
        await here.need_no_more(left)
    here.store.remove_image("debian")
    assert not here.base_file("debian").exists()


async def test_a_file_is_made_also_where_the_image_is_published(agents: ImageAgents) -> None:
    await agents.publish("server1", "debian", DATA)
    await agents.services["server1"].need("debian", "vm1", 60)
    assert agents.services["server1"].base_file("debian").read_bytes() == DATA


async def test_who_needs_it_waits_no_longer_than_it_says_and_the_fetch_goes_on(agents: ImageAgents) -> None:
    chunks = await agents.publish("server1", "debian", DATA)
    here = agents.services["server2"]
    address = agents.transfers["server1"].address
    agents.controller.reports["server1"]["address"] = "127.0.0.1:1"  # Nobody is there.
    for _ in range(2):
        with pytest.raises(ImageAwayError, match="retinue image show debian"):
            await here.need("debian", "vm1", 0.1)
    agents.controller.reports["server1"]["address"] = address
    await here.need("debian", "vm1", 60)
    assert here.base_file("debian").read_bytes() == DATA
    assert len(chunks) == 7


async def test_why_it_cannot_be_is_said(agents: ImageAgents) -> None:
    here = agents.services["server2"]
    with pytest.raises(HostError, match=r"image debian is not here: .*shows no image debian") as raised:
        await here.need("debian", "vm1", 60)
    assert not isinstance(raised.value, ImageAwayError)
    await agents.publish("server1", "debian", DATA)
    here.store.quota = 1 << 20
    with pytest.raises(HostError, match="quota of 1 MiB is used up"):
        await here.need("debian", "vm1", 60)
    here.store.quota = 1 << 30
    await here.need("debian", "vm1", 60)
