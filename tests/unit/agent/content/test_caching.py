"""A cache at a leaf: what servers there fetch comes from it, and to it once; over real connections."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from retinue.agent.content.service import ContentService
from retinue.agent.content.store import make_base
from retinue.core.content import CHUNK_BYTES, Patience
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.images import ImageState
from support.agents.content import QUICK, BadHolder, ImageAgents
from support.content import some_bytes

DATA = some_bytes(24, zeros=(3, 4), tail=9)
FETCHED = len(DATA) - 2 * CHUNK_BYTES
LONG = Patience(deadline=60.0, patience=30.0)
"""Nobody is asked for a second copy because the machine is busy."""


@pytest.fixture
async def agents(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageAgents]:
    """Images are published at server1, at a leaf of its own; at the other: server2, server3 and a cache."""
    made = ImageAgents(tmp_path, patience=getattr(request, "param", LONG))
    await made.start("server1")
    for server in ("server2", "server3"):
        await made.start(server)
    await made.start("cache1", cache=True)
    made.controller.leaves = {"server1": "leaf1"} | dict.fromkeys(("server2", "server3", "cache1"), "leaf2")
    yield made
    await made.close()


def content(agents: ImageAgents, server: str, name: str) -> bytes:
    store = agents.services[server].store
    return make_base(store, store.images[name]).read_bytes()


def sent(agents: ImageAgents, server: str) -> int:
    return agents.services[server].serving.sent


async def reported(agents: ImageAgents, server: str) -> None:
    """Until the controller knows of the server: it has told of its store."""
    async with asyncio.timeout(60):
        while server not in agents.controller.reports:
            agents.controller.changed.clear()
            await agents.controller.changed.wait()


async def test_one_copy_comes_to_the_leaf_and_the_cache_keeps_it(agents: ImageAgents) -> None:
    await reported(agents, "cache1")
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    agents.order("server3", "d")
    two = await agents.controller.until("server2", "d")
    three = await agents.controller.until("server3", "d")
    assert content(agents, "server2", "d") == content(agents, "server3", "d") == DATA
    assert sent(agents, "server1") == FETCHED, "once, and to the cache"
    assert "server1" not in {**two["origins"], **three["origins"]}
    assert two["fallbacks"] == three["fallbacks"] == 0
    cache = await agents.controller.until("cache1", "d", ImageState.HELD)
    assert cache["origins"] == {"server1": FETCHED}
    # A server that comes later takes nothing from the origin either.
    await agents.start("server4")
    agents.controller.leaves["server4"] = "leaf2"
    agents.order("server4", "d")
    await agents.controller.until("server4", "d")
    assert sent(agents, "server1") == FETCHED


async def test_what_comes_while_it_is_looked_for_is_not_fetched_again(agents: ImageAgents) -> None:
    await reported(agents, "cache1")
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    await agents.controller.until("cache1", "d")
    cache = agents.services["cache1"]
    assert cache._caching is not None
    await cache._caching.fetch(cache.store.images["d"], 0)
    assert sent(agents, "server1") == FETCHED


async def test_a_chunk_that_has_gone_bad_in_the_cache_is_not_handed_on(agents: ImageAgents) -> None:
    await reported(agents, "cache1")
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    await agents.controller.until("cache1", "d")
    for path in (agents.services["cache1"].store.folder / "chunks").glob("??/*"):
        path.write_bytes(b"bad" + path.read_bytes()[3:])
    agents.controller.reports.pop("server2")  # Which could bring it, too.
    agents.order("server3", "d")
    await agents.controller.until("server3", "d")
    assert content(agents, "server3", "d") == DATA
    assert not agents.services["server3"].reports.faults
    # All of it, unless server3 had the rest from server1 before the cache had.
    assert FETCHED < sum(agents.services["cache1"].reports._fetches["d"].origins.values()) <= 2 * FETCHED


@pytest.mark.parametrize("agents", [QUICK], indirect=True, ids=["quick"])
@pytest.mark.parametrize("manner", ["flips", "hangs", "mute", "absent", "leaves", "list"])
async def test_a_cache_that_does_not_do_what_it_should_costs_time_only(
    agents: ImageAgents, manner: str
) -> None:
    chunks = await agents.publish("server1", "d", DATA)
    agents.controller.reports.pop("cache1", None)
    bad = await BadHolder(chunks, DATA, manner).start()
    agents.controller.more_holders = {"cache1": bad.address}
    agents.services["cache1"].server = "nobody"  # It tells nothing of itself any more.
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    assert content(agents, "server2", "d") == DATA
    faults = agents.services["server2"].reports.faults
    assert faults.keys() <= {"cache1"}
    if manner == "flips":
        assert faults["cache1"] >= 1 and len(bad.asked) <= 8, "noticed, told, and avoided"
    await bad.close()


async def test_a_cache_that_dies_in_the_middle_costs_time_only(agents: ImageAgents) -> None:
    await reported(agents, "cache1")
    data = some_bytes(80)
    await agents.publish("server1", "d", data)
    serving, some_sent = agents.services["cache1"].serving, asyncio.Event()
    send = serving._send

    async def counted(*answer: Any) -> None:
        await send(*answer)
        if serving.sent >= 4 * CHUNK_BYTES:
            some_sent.set()

    serving._send = counted  # type: ignore[method-assign, assignment]
    agents.order("server2", "d")
    async with asyncio.timeout(60):
        await some_sent.wait()
    await agents.transfers["cache1"].close()
    await agents.services["cache1"].close()
    for reader in list(serving._readers):
        reader.channel.abort()
    held = await agents.controller.until("server2", "d")
    assert content(agents, "server2", "d") == data
    assert held["origins"].get("cache1", 0) > 0
    assert held["origins"].get("server1", 0) > 0, "it died too late"


async def test_two_caches_do_not_wait_for_each_other(agents: ImageAgents) -> None:
    await agents.start("cache2", cache=True)
    await agents.start("server4")
    agents.controller.leaves |= {"cache2": "leaf3", "server4": "leaf3"}
    await reported(agents, "cache1")
    await reported(agents, "cache2")
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    agents.order("server4", "d")
    two = await agents.controller.until("server2", "d")
    four = await agents.controller.until("server4", "d")
    assert content(agents, "server2", "d") == content(agents, "server4", "d") == DATA
    assert {*two["origins"]} == {"cache1"} and {*four["origins"]} == {"cache2"}
    assert sent(agents, "server1") <= 2 * FETCHED


async def cache_of(agents: ImageAgents, chunks: int) -> ContentService:
    """Another cache in place of the first, with so little room."""
    agents.controller.leaves["cache1"] = ""
    made = await agents.start("small", chunks * CHUNK_BYTES, cache=True)
    agents.controller.leaves["small"] = "leaf2"
    await reported(agents, "small")
    return made


async def test_where_the_quota_is_used_up_what_was_used_last_stays(agents: ImageAgents) -> None:
    cache = await cache_of(agents, 12)
    first, second = some_bytes(10), some_bytes(22)[10 * CHUNK_BYTES :]
    await agents.publish("server1", "d", first)
    await agents.publish("server1", "e", second)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    await agents.controller.until("small", "d")
    agents.order("server2", "e")
    await agents.controller.until("server2", "e")
    await agents.controller.until("small", "e")
    assert content(agents, "server2", "e") == second
    assert cache.store.used <= cache.store.quota
    assert cache.store.held_bytes(cache.store.images["d"]) == 0, "its ten chunks were the oldest"
    assert sent(agents, "server1") == len(first) + len(second)


async def test_what_is_pinned_stays_and_a_cache_without_room_is_passed_by(agents: ImageAgents) -> None:
    cache = await cache_of(agents, 12)
    pinned, other = some_bytes(12), some_bytes(22)[12 * CHUNK_BYTES :]
    await agents.publish("server1", "d", pinned)
    await agents.publish("server1", "e", other)
    agents.order("small", "d", pin="vm1")
    await agents.controller.until("small", "d")
    agents.order("server2", "e")
    await agents.controller.until("server2", "e")
    assert content(agents, "server2", "e") == other
    assert not cache.store.missing(cache.store.images["d"])
    cache.on_event(ControllerEvent(EventType.IMAGE_UNPINNED, server="small", image="d", pin="vm1"))
    await cache._tasks["d unpin"]
    agents.order("server3", "e")
    await agents.controller.until("server3", "e")
    assert cache.store.missing(cache.store.images["d"]), "what is pinned no more makes room"


async def test_an_image_that_is_removed_is_fetched_by_the_cache_no_more(agents: ImageAgents) -> None:
    await reported(agents, "cache1")
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    cache = agents.services["cache1"]
    assert cache.reports.is_fetched("d"), "somebody may ask for more"
    cache.on_event(ControllerEvent(EventType.IMAGE_REMOVED, image="d"))
    await cache._tasks["d remove"]
    assert "d" not in cache.store.images
    assert not cache.reports.is_fetched("d")


async def test_a_segment_comes_from_two_holders_and_a_cache_at_once(agents: ImageAgents) -> None:
    await reported(agents, "cache1")
    data = some_bytes(60)
    await agents.publish("server1", "d", data)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    agents.controller.leaves = {}  # Nothing is near: all of them are asked.
    agents.services["server3"]._patience = None
    agents.order("server3", "d", segment=(10, 49), order=7)
    held = await agents.controller.until("server3", "d", ImageState.PARTIAL)
    store = agents.services["server3"].store
    assert list(store.bitmap(store.images["d"])) == list(range(10, 50)), "that, and no more"
    assert (held["held"], held["order"]) == (40 * CHUNK_BYTES, 7)
    assert held["origins"].keys() >= {"server2", "cache1"}
    # The rest, later: what is here is not fetched again.
    agents.order("server3", "d")
    held = await agents.controller.until("server3", "d")
    assert sum(held["origins"].values()) == 20 * CHUNK_BYTES
    assert content(agents, "server3", "d") == data
