"""Agents fetch images from each other, over real connections: whatever holders do, what is kept is right."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from retinue.agent.content.store import Store, make_base
from retinue.core.content import CHUNK_BYTES
from retinue.core.limits import LARGEST_REPORT
from retinue.host.errors import HostError
from retinue.hypervisor.memory_channel import Channel
from retinue.protocol.errors import ErrorCode, RejectedError
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.images import ImageState, SignedManifest
from retinue.security.signatures import sign
from support.agents.content import BadHolder, ImageAgents
from support.content import image, parts, some_bytes
from support.pki_files import Certificates

DATA = some_bytes(12, zeros=(3, 4), tail=9)
FORGERS = ("flips", "truncates", "zeros")
FETCHED = len(DATA) - 2 * CHUNK_BYTES


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[ImageAgents]:
    made = ImageAgents(tmp_path)
    await made.start("server1")
    await made.start("server2")
    yield made
    await made.close()


def content(agents: ImageAgents, server: str, name: str) -> bytes:
    store = agents.services[server].store
    return make_base(store, store.images[name]).read_bytes()


async def test_an_image_is_fetched_by_name_with_a_file_of_it(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d", base=True)
    held = await agents.controller.until("server2", "d")
    assert held["origins"] == {"server1": FETCHED}
    assert (held["held"], held["base"], held["fallbacks"]) == (len(DATA), True, 0)
    assert agents.services["server2"].store.base_file("d").read_bytes() == DATA
    assert agents.services["server1"].serving.sent == FETCHED
    fetched = (await agents.services["server2"].reports.report())["fetched"]
    assert sum(fetched["counts"]) == FETCHED // CHUNK_BYTES + 1 and fetched["seconds"] > 0


async def test_two_who_fetch_at_once_fetch_from_each_other(agents: ImageAgents) -> None:
    await agents.start("server3")
    data = some_bytes(60)
    await agents.publish("server1", "d", data)
    agents.controller.more_holders = {
        server: agents.transfers[server].address for server in ("server2", "server3")
    }
    agents.order("server2", "d")
    agents.order("server3", "d")
    two = await agents.controller.until("server2", "d")
    three = await agents.controller.until("server3", "d")
    assert content(agents, "server2", "d") == content(agents, "server3", "d") == data
    assert two["origins"]["server3"] > 0
    assert three["origins"]["server2"] > 0
    assert agents.services["server1"].serving.sent < 1.7 * len(data)


async def test_the_end_does_not_wait_for_a_holder_to_say_goodbye(agents: ImageAgents) -> None:
    """Over TLS closing waits for the other end's word, which one that hangs does not give."""
    service = agents.services["server2"]
    real = service._open

    async def open(address: str, target: str) -> Channel:
        channel = await real(address, target)

        async def close() -> None:
            await asyncio.Event().wait()

        channel.close = close  # type: ignore[method-assign]
        return channel

    service._open = open
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")


async def test_a_second_image_costs_only_what_differs(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    agents.order("server2", "d", base=True)
    async with asyncio.timeout(60):
        while not agents.controller.held("server2", "d")["base"]:
            agents.controller.changed.clear()
            await agents.controller.changed.wait()
    assert agents.services["server1"].serving.sent == FETCHED, "what is here is not fetched again"
    await agents.publish("server1", "e", DATA + b"x" * CHUNK_BYTES)
    agents.order("server2", "e")
    held = await agents.controller.until("server2", "e")
    assert sum(held["origins"].values()) <= 2 * CHUNK_BYTES
    assert content(agents, "server2", "e") == DATA + b"x" * CHUNK_BYTES


@pytest.mark.parametrize(
    "manner",
    [
        "mute",
        "garbage",
        "bitmap",
        "notice",
        "hangs",
        "leaves",
        "absent",
        "number",
        "hangs late",
        *FORGERS,
    ],
)
async def test_a_holder_that_does_not_do_what_it_should_harms_nobody(
    agents: ImageAgents, manner: str
) -> None:
    chunks = await agents.publish("server1", "d", DATA)
    bad = await BadHolder(chunks, DATA, manner).start()
    await agents.start("server9")  # Whose place it takes.
    agents.controller.more_holders = {"server9": bad.address}
    try:
        agents.order("server2", "d")
        held = await agents.controller.until("server2", "d")
        assert content(agents, "server2", "d") == DATA
        assert sum(held["origins"].values()) == FETCHED
        assert manner == "hangs late" or "server9" not in held["origins"]
        if manner in FORGERS:
            assert agents.controller.reports["server2"]["faults"]["server9"] >= 1
            assert len(bad.asked) <= 8, "it is not asked again"
        if manner in ("hangs", "flips", "absent"):
            assert bad.asked
    finally:
        await bad.close()


async def test_a_list_that_is_forged_is_fetched_from_another(agents: ImageAgents) -> None:
    chunks = await agents.publish("server1", "d", DATA)
    bad = await BadHolder(chunks, DATA, "honest but for its list").start()
    agents.controller.more_holders = {"a-liar": bad.address}
    real = agents.controller.get

    async def liar_first(path: str) -> dict[str, object]:
        answer = await real(path)
        answer["holders"].sort(key=lambda holder: holder["server"])
        return answer

    agents.controller.get = liar_first  # type: ignore[method-assign]
    try:
        agents.order("server2", "d")
        await agents.controller.until("server2", "d")
        assert agents.controller.reports["server2"]["faults"] == {"a-liar": 1}
    finally:
        await bad.close()


async def test_where_there_is_no_room_the_fetch_ends_with_a_sentence_and_goes_on_when_there_is(
    agents: ImageAgents,
) -> None:
    small = await agents.start("server3", quota=6 * CHUNK_BYTES)
    await agents.publish("server1", "d", DATA)
    agents.order("server3", "d")
    held = await agents.controller.until("server3", "d", ImageState.FAILED)
    assert "the quota of 6 MiB is used up" in held["reason"]
    assert 0 < held["held"] < len(DATA)
    small.store.quota = 1 << 30
    agents.order("server3", "d")
    held = await agents.controller.until("server3", "d")
    assert sum(held["origins"].values()) <= FETCHED - 5 * CHUNK_BYTES, "what was there was not fetched again"


async def test_a_fetch_goes_on_after_a_restart(agents: ImageAgents, tmp_path: Path) -> None:
    await agents.publish("server1", "d", DATA)
    signed, origin = agents.controller.published["d"]
    store = Store(tmp_path / "server4", 1 << 30)
    begun = store.put_image(signed, image("d", DATA)[1].data, origin)
    begun.wanted = True
    store.save(begun)
    for chunk in store.missing(begun)[:8]:
        store.put_chunk(begun, chunk, parts(DATA)[chunk])
    await agents.start("server4")
    held = await agents.controller.until("server4", "d")
    assert sum(held["origins"].values()) == 2 * CHUNK_BYTES + 9


async def test_holders_that_come_later_are_found(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", DATA)
    reports = agents.controller.reports
    hidden = reports.pop("server1")
    agents.order("server2", "d")
    held = await agents.controller.until("server2", "d", ImageState.FETCHING)
    assert "no server that can be reached holds it" in held["reason"]
    reports["server1"] = hidden
    await agents.controller.until("server2", "d")


async def test_an_answer_that_is_not_believed_does_not_end_the_search(
    agents: ImageAgents,
) -> None:
    await agents.publish("server1", "d", DATA)
    service, store = agents.services["server2"], agents.services["server2"].store
    signed, origin = agents.controller.published["d"]
    store.put_image(signed, image("d", DATA)[1].data, origin)
    real, answers = agents.controller.get, 0

    async def forged_first(path: str) -> dict[str, object]:
        nonlocal answers
        answers += 1
        found = await real(path)
        if answers == 1:
            found["manifest"]["name"] = "another"
        return found

    agents.controller.get = forged_first  # type: ignore[method-assign]
    service.on_event(ControllerEvent(EventType.IMAGE_FETCH, server="server2", image="d"))
    await agents.controller.until("server2", "d")
    assert answers > 1


async def test_a_report_for_a_server_that_is_not_registered_yet_is_made_again(agents: ImageAgents) -> None:
    real, refused = agents.controller.post, 0

    async def unknown_first(path: str, body: dict[str, object]) -> dict[str, object]:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise RejectedError("there is no server server3", ErrorCode.UNKNOWN_SERVER, 400)
        return await real(path, body)

    agents.controller.post = unknown_first  # type: ignore[method-assign]
    await agents.start("server3")
    async with asyncio.timeout(60):
        while "server3" not in agents.controller.reports:
            agents.controller.changed.clear()
            await agents.controller.changed.wait()
    assert refused == 2


async def test_a_report_says_which_order_it_answers_and_nothing_of_earlier_ones(agents: ImageAgents) -> None:
    """What failed is not said once more of the order that has come since, not even in the next report."""
    await agents.publish("server1", "d", DATA)
    service = agents.services["server2"]
    service.store.quota = 1
    agents.order("server2", "d", order=7)
    failed = await agents.controller.until("server2", "d", ImageState.FAILED)
    assert (failed["order"], "the quota" in failed["reason"]) == (7, True)
    agents.order("server2", "d", order=8)
    said = (await service.reports.report())["images"][0]
    assert (said["order"], said["state"], said["reason"]) == (8, ImageState.FETCHING, "")
    service.store.quota = 1 << 30
    agents.order("server2", "d", order=9)
    assert (await agents.controller.until("server2", "d"))["order"] == 9
    service.on_event(ControllerEvent(EventType.IMAGE_FETCH, order=10, server="server1", image="d"))
    assert (await service.reports.report())["images"][0]["order"] == 9, "it was another server's"


async def test_an_order_is_said_to_be_carried_out_before_anything_is_known_of_the_image(
    agents: ImageAgents,
) -> None:
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d", order=7)
    (said,) = (await agents.services["server2"].reports.report())["images"]
    assert (said["name"], said["state"], said["order"], said["held"]) == ("d", ImageState.FETCHING, 7, 0)
    await agents.controller.until("server2", "d")
    agents.services["server2"].on_event(ControllerEvent(EventType.IMAGE_REMOVED, image="d"))
    await asyncio.gather(*agents.services["server2"]._tasks.values(), return_exceptions=True)
    assert (await agents.services["server2"].reports.report())["images"] == []


async def test_scrub_mends_what_has_gone_bad(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", DATA)
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    victim = next((agents.services["server2"].store.folder / "chunks").glob("??/*"))
    victim.write_bytes(b"")
    agents.services["server2"].on_event(ControllerEvent(EventType.IMAGE_SCRUB, server="server2"))
    async with asyncio.timeout(60):
        while agents.controller.reports["server2"]["upkeep"]["bad"] != 1:
            agents.controller.changed.clear()
            await agents.controller.changed.wait()
    await agents.controller.until("server2", "d")
    assert content(agents, "server2", "d") == DATA


async def test_an_order_for_another_server_or_image_is_left_alone(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", DATA)
    event = ControllerEvent(EventType.IMAGE_FETCH, server="server7", image="d")
    agents.services["server2"].on_event(event)
    agents.order("server2", "no-such-image")
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    assert set(agents.services["server2"].store.images) == {"d"}


# ---- whose word counts ----


@pytest.mark.parametrize("signer", ["manager/anna", "agent/server1", "nobody", "another"])
async def test_only_what_a_manager_signed_is_fetched(tmp_path: Path, signer: str) -> None:
    pki = Certificates(tmp_path / "pki")
    agents = ImageAgents(tmp_path, pki.authority.ca)
    try:
        await agents.start("server1")
        await agents.start("server2")
        await agents.publish("server1", "d", DATA)
        signed, origin = agents.controller.published["d"]
        whose = Certificates(tmp_path / "other") if signer == "another" else pki
        if signer != "nobody":
            certificate, key = whose.files("manager/anna" if signer == "another" else signer)
            signed = replace(signed, published_at=int(time.time()))
            signature = sign(signed.manifest.signed, key)
            signed = replace(signed, signature=signature, certificate=certificate.read_text())
        agents.controller.published["d"] = (signed, origin)
        agents.order("server2", "d")
        if signer == "manager/anna":
            await agents.controller.until("server2", "d")
        else:
            held = await agents.controller.until("server2", "d", ImageState.FAILED)
            assert "certificate" in held["reason"] or "manager" in held["reason"]
            assert not agents.services["server2"].store.images
    finally:
        await agents.close()


async def test_gc_lets_go_of_what_was_removed_while_the_agent_was_away(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", DATA)
    await agents.publish("server1", "e", some_bytes(14)[-CHUNK_BYTES:])
    store, controller = agents.services["server1"].store, agents.controller
    del controller.published["d"]
    agents.services["server1"].on_event(ControllerEvent(EventType.IMAGE_GC, server="server1"))
    async with asyncio.timeout(60):
        while controller.reports["server1"]["upkeep"]["gcs"] != 1:
            controller.changed.clear()
            await controller.changed.wait()
    assert set(store.images) == {"e"}
    assert store.used == CHUNK_BYTES


async def test_the_report_of_many_images_is_not_too_long_for_the_controller(agents: ImageAgents) -> None:
    service = agents.services["server1"]
    pins = [f"{n:063}" for n in range(64)]
    for number in range(128):
        manifest, chunks = image(f"{number:063}", b"x")
        made = service.store.put_image(
            SignedManifest(manifest.name, 1, manifest.list_digest, 7), chunks.data, "server1"
        )
        made.pins = pins
        service.reports.reasons[made.name] = "r" * 500
    assert len(msgspec.json.encode(await service.reports.report())) < LARGEST_REPORT


async def published_anew(agents: ImageAgents, name: str, data: bytes) -> None:
    """It was removed while the others were away: they still have what it was."""
    agents.services["server1"].store.remove_image(name)
    await agents.publish("server1", name, data)


async def test_under_a_name_that_means_something_else_by_now_the_old_file_is_not_used(
    agents: ImageAgents,
) -> None:
    """Such as one of another domain, in place of ours."""
    await agents.publish("server1", "d", some_bytes(3))
    agents.order("server2", "d", base=True)
    await agents.controller.until("server2", "d")
    await published_anew(agents, "d", DATA)
    here = agents.services["server2"]
    await here.need("d", "vm1", 30)
    assert here.base_file("d").read_bytes() == DATA
    await published_anew(agents, "d", some_bytes(5))
    with pytest.raises(HostError, match="an image that had this name before is here: d is needed by vm1"):
        await here.need("d", "vm2", 30)
    assert here.base_file("d").read_bytes() == DATA, "it is open"


async def test_a_cache_gives_what_a_name_means_by_now(agents: ImageAgents) -> None:
    cache = await agents.start("cache1", cache=True)
    for data in (some_bytes(3), DATA):
        if "d" in agents.services["server1"].store.images:
            await published_anew(agents, "d", data)
        else:
            await agents.publish("server1", "d", data)
        server = f"server{len(agents.services)}"
        await agents.start(server)
        agents.order(server, "d")
        await agents.controller.until(server, "d")
        assert content(agents, server, "d") == data
        assert cache.store.images["d"].signed.size == len(data)


async def test_a_gc_removes_what_a_name_no_longer_means(agents: ImageAgents) -> None:
    await agents.publish("server1", "d", some_bytes(3))
    agents.order("server2", "d")
    await agents.controller.until("server2", "d")
    await published_anew(agents, "d", DATA)
    await agents.services["server2"]._collect()
    assert "d" not in agents.services["server2"].store.images
    assert "d" in agents.services["server1"].store.images
