"""What the controller knows of images: what a name means, who holds what, and whose word counts for it."""

import time
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import pytest
from msgspec.structs import replace

from retinue.controller.app import Controller
from retinue.controller.content.holders import ORDER_SECONDS
from retinue.controller.content.images import Images
from retinue.controller.errors import RequestError
from retinue.core.limits import MOST_IMAGES
from retinue.core.model import ModelError, PortRef, Server, Service
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.images import HeldImage, ImagesBody, ImageState, SignedManifest, StoreUse
from retinue.security.signatures import sign
from support.fabric.networks import fabric
from support.fakes.memory_store import MemoryStore
from support.pki_files import Certificates

DIGEST = "ab" * 32
IMAGE = SignedManifest("debian-12", 5 << 20, DIGEST, 1_000)


def held(name: str = "debian-12", state: ImageState = ImageState.HELD, **more: Any) -> HeldImage:
    return HeldImage(name, DIGEST, state, more.pop("held", 5 << 20), **more)


def report(number: int, *images: HeldImage, used: int = 0, **more: Any) -> ImagesBody:
    return ImagesBody(f"192.0.2.{number}:7800", list(images), StoreUse(used), **more)


@pytest.fixture
def controller() -> Controller:
    """Agents of server1 and server2 have reported; server1's store is the emptier one."""
    made = Controller(fabric(), MemoryStore(), clock=lambda: 1000.0)
    made.images.holders.on_report("server1", report(1, used=7))
    made.images.holders.on_report("server2", report(2, used=9))
    return made


@pytest.fixture
def images(controller: Controller) -> Images:
    return controller.images


def told(controller: Controller, kind: EventType) -> list[dict[str, Any]]:
    listener = controller.events.listen(0, {kind})
    return [event.data for event in listener.at_once(1000)]


# ---- names ----


def test_a_name_is_given_once_and_the_image_comes_where_there_is_most_room(controller: Controller) -> None:
    made = controller.images.publish(IMAGE, "")
    assert (made.name, made.origin, made.publisher) == ("debian-12", "server1", "")
    assert controller.images.publish(replace(IMAGE, published_at=2_000), "server2") is made, "the same again"
    assert told(controller, EventType.IMAGE_PUBLISHED) == [
        {"image": "debian-12", "server": "server1", "publisher": ""}
    ]
    again = Controller(fabric(), clock=lambda: 1000.0)
    store = controller.context._store
    assert isinstance(store, MemoryStore)
    again.restore(store.load())
    assert again.images.get("debian-12") == made


@pytest.mark.parametrize("other", [{"size": 6}, {"list_digest": "cd" * 32}])
def test_a_name_never_changes_its_meaning(images: Images, other: dict[str, Any]) -> None:
    images.publish(IMAGE, "")
    with pytest.raises(RequestError, match="debian-12 is another image already") as caught:
        images.publish(replace(IMAGE, **other), "")
    assert caught.value.code == ErrorCode.NAME_TAKEN
    assert images.get("debian-12").signed == IMAGE


@pytest.mark.parametrize(
    "other", [{"name": "a/b"}, {"name": ""}, {"list_digest": "xy"}, {"size": 0}, {"name": "a\nb"}]
)
def test_what_is_no_manifest_is_not_believed(images: Images, other: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="the manifest is not believed") as caught:
        images.publish(replace(IMAGE, **other), "")
    assert caught.value.code == ErrorCode.NOT_BELIEVED
    assert not images.published


def test_so_many_images_and_no_more(images: Images) -> None:
    for number in range(MOST_IMAGES):
        images.publish(replace(IMAGE, name=f"i{number}"), "")
    with pytest.raises(RequestError, match="128 images are published already"):
        images.publish(IMAGE, "")


@pytest.mark.parametrize(
    ("server", "code"), [("server3", ErrorCode.PARTY_AWAY), ("nowhere", ErrorCode.UNKNOWN_SERVER)]
)
def test_an_image_comes_first_to_a_server_whose_agent_is_here(
    images: Images, server: str, code: ErrorCode
) -> None:
    with pytest.raises(RequestError) as caught:
        images.publish(IMAGE, server)
    assert caught.value.code == code


def test_without_any_agent_nothing_is_published() -> None:
    with pytest.raises(RequestError, match="no server's agent is here"):
        Controller(fabric(), clock=lambda: 1000.0).images.publish(IMAGE, "")


# ---- signatures ----


def test_where_there_are_certificates_only_managers_publish(
    images: Images, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pki = Certificates(tmp_path_factory.mktemp("pki"))
    images.authority = pki.authority.ca
    images._context.clock = time.time
    now = int(time.time())

    def signed(party: str, at: int = now) -> SignedManifest:
        certificate, key = pki.files(party)
        unsigned = replace(IMAGE, published_at=at)
        signature = sign(unsigned.manifest.signed, key)
        return replace(unsigned, signature=signature, certificate=certificate.read_text())

    good = signed("manager/anna")
    wrong = {
        "at another time than now": signed("manager/anna", now - 7200),
        "only a manager": signed("agent/server1"),
        "does not match": replace(good, size=6),
    }
    wrong["certificate is none"] = replace(IMAGE, published_at=now)
    for why, manifest in wrong.items():
        with pytest.raises(RequestError, match="not believed") as caught:
            images.publish(manifest, "")
        assert why in str(caught.value)
    assert images.publish(good, "").publisher == "anna"


# ---- holders ----


def test_who_fetches_is_a_holder_from_the_order_on(controller: Controller) -> None:
    images = controller.images
    images.publish(IMAGE, "server1")
    images.holders.on_report("server1", report(1, held()))
    assert images.fetch("debian-12", [], "vm1", base=True)[0] == ["server1", "server2"]
    assert [one.server for one in images.holders.who("debian-12", DIGEST, "server1")] == [
        "server1",
        "server2",
    ]
    assert told(controller, EventType.IMAGE_FETCH)[1] == {
        "image": "debian-12", "server": "server2", "pin": "vm1", "base": True, "order": order_of(controller),
    }  # fmt: skip
    failed = held(state=ImageState.FAILED, held=0, reason="full", order=order_of(controller))
    images.holders.on_report("server2", report(2, failed))
    assert [one.server for one in images.holders.who("debian-12", DIGEST, "server1")] == ["server1"]
    assert told(controller, EventType.IMAGE_FAILED)[0]["reason"] == "full"


def test_what_a_server_holds_is_told_once(controller: Controller) -> None:
    controller.images.publish(IMAGE, "")
    for _ in range(3):
        controller.images.holders.on_report("server1", report(1, held()))
    assert told(controller, EventType.IMAGE_HELD) == [{"image": "debian-12", "server": "server1"}]


def test_of_what_nobody_published_nothing_is_told(controller: Controller) -> None:
    """A server may say that it holds anything: what is none is not passed on, however often it changes."""
    for number in range(5):
        for state in (ImageState.HELD, ImageState.FAILED):
            controller.images.holders.on_report("server1", report(1, held(f"none{number}", state)))
    assert told(controller, EventType.IMAGE_HELD) == told(controller, EventType.IMAGE_FAILED) == []


# ---- an order, until the agent has said that it has it ----


def order_of(controller: Controller) -> int:
    """The number of the last order to fetch."""
    listener = controller.events.listen(0, {EventType.IMAGE_FETCH})
    return int(listener.at_once(1000)[-1].data["order"])


def test_what_an_agent_said_before_it_had_the_order_is_old(controller: Controller) -> None:
    images = controller.images
    images.publish(IMAGE, "server1")
    failed = held(state=ImageState.FAILED, held=3, reason="full", pins=["vm7"])
    images.holders.on_report("server2", report(2, failed))
    assert images.holders.of("debian-12") == {"server2": failed}
    images.fetch("debian-12", ["server2"], "", base=False)
    expected = replace(failed, state=ImageState.FETCHING, reason="")
    assert images.holders.of("debian-12") == {"server2": expected}
    images.holders.on_report("server2", report(2, failed))  # On its way when the order was given.
    assert images.holders.of("debian-12") == {"server2": expected}
    again = replace(failed, order=order_of(controller))
    images.holders.on_report("server2", report(2, again))
    assert images.holders.of("debian-12") == {"server2": again}, "and this is of the fetch that was ordered"
    images.fetch("debian-12", ["server2"], "", base=False)
    assert images.holders.of("debian-12") == {"server2": replace(again, state=ImageState.FETCHING, reason="")}


def test_what_an_agent_did_for_an_earlier_controller_is_no_answer_to_this_ones_order() -> None:
    """Events are counted anew by each controller, orders are not."""
    orders = []
    for started in (1000.0, 1000.5):
        controller = Controller(fabric(), MemoryStore(), clock=partial(float, started))
        for number in (1, 2):
            controller.images.holders.on_report(f"server{number}", report(number))
        controller.images.publish(IMAGE, "server1")
        for _ in range(3):
            controller.images.fetch("debian-12", ["server2"], "", base=False)
            orders.append(order_of(controller))
        failed = held(state=ImageState.FAILED, held=3, reason="full", order=orders[0])
        controller.images.holders.on_report("server2", report(2, failed))
        said = controller.images.holders.of("debian-12")["server2"]
        assert said == replace(failed, state=ImageState.FETCHING, reason="")
    assert len(set(orders)) == 6


def test_an_image_that_was_ordered_and_not_reported_yet_is_not_removed() -> None:
    now = 1000.0
    controller = Controller(fabric(), MemoryStore(), clock=lambda: now)
    images = controller.images
    for number in (1, 2):
        images.holders.on_report(f"server{number}", report(number))
    images.publish(IMAGE, "server1")
    images.fetch("debian-12", ["server2"], "vm1", base=False)
    assert images.holders.of("debian-12") == {"server2": HeldImage("debian-12", "", ImageState.FETCHING, 0)}
    with pytest.raises(RequestError, match="debian-12 is being fetched by server2") as caught:
        images.remove("debian-12")
    assert caught.value.code == ErrorCode.NEEDED
    now += ORDER_SECONDS - 1
    with pytest.raises(RequestError, match="being fetched by server2"):
        images.remove("debian-12")
    with controller.context.agents.listening("server2"):
        pass
    images.remove("debian-12")  # Its agent is away, and has heard of it or will hear that it is off.


def test_an_agent_that_finds_nobody_to_fetch_from_says_so_and_does_not_keep_the_image(
    controller: Controller,
) -> None:
    images = controller.images
    images.publish(IMAGE, "server1")
    images.fetch("debian-12", ["server2"], "vm1", base=False)
    why = "no server that can be reached holds it"
    stuck = HeldImage("debian-12", "", ImageState.FETCHING, 0, why, order=order_of(controller))
    images.holders.on_report("server2", report(2, stuck))
    assert images.holders.of("debian-12") == {"server2": stuck}
    assert len(images.holders.who("debian-12", DIGEST, "server1")) == 2, "and it may hold some soon"
    images.remove("debian-12")


def test_who_holds_another_image_of_the_name_is_no_holder(controller: Controller) -> None:
    """It was removed while its agent was away, and published anew."""
    controller.images.publish(IMAGE, "server1")
    controller.images.holders.on_report("server2", report(2, replace(held(), list_digest="cd" * 32)))
    assert [one.server for one in controller.images.holders.who("debian-12", DIGEST, "server1")] == [
        "server1"
    ]


def test_what_an_image_is_needed_for_is_an_id(controller: Controller) -> None:
    controller.images.publish(IMAGE, "server1")
    with pytest.raises(ModelError, match="cannot be what an image is needed for"):
        controller.images.fetch("debian-12", [], "a/b", base=False)
    assert told(controller, EventType.IMAGE_FETCH) == []


def test_an_order_that_was_missed_does_not_keep_the_image_for_ever() -> None:
    now = 1000.0
    controller = Controller(fabric(), MemoryStore(), clock=lambda: now)
    controller.images.holders.on_report("server1", report(1))
    controller.images.publish(IMAGE, "server1")
    controller.images.fetch("debian-12", ["server1"], "", base=False)
    now += ORDER_SECONDS
    assert controller.images.holders.of("debian-12") == {}
    controller.images.remove("debian-12")


def test_a_server_whose_agent_is_away_or_that_is_fenced_is_asked_for_nothing(controller: Controller) -> None:
    images = controller.images
    images.publish(IMAGE, "server1")
    for number in (1, 2):
        images.holders.on_report(f"server{number}", report(number, held()))
    with controller.context.agents.listening("server1"):
        assert len(images.holders.who("debian-12", DIGEST, "server1")) == 2
    controller.net.fence("server2")
    assert not images.holders.who("debian-12", DIGEST, "server1")
    with pytest.raises(RequestError, match="no agent of server1 is here"):
        images.fetch("debian-12", ["server1"], "", base=False)


def test_whose_chunks_are_rejected_is_counted_and_told(controller: Controller) -> None:
    holders = controller.images.holders
    holders.on_report("server1", report(1, faults={"server2": 2, "nowhere": 9}))
    holders.on_report("server1", report(1, faults={"server2": 2}))
    holders.on_report("server2", report(2, faults={"server1": 1}))
    assert holders.faults() == {"server1": 1, "server2": 2}
    assert told(controller, EventType.IMAGE_REJECTED)[0] == {
        "server": "server1", "holder": "server2", "chunks": 2,
    }  # fmt: skip
    holders.on_report("server1", report(1, faults={"server2": 7}))
    assert [each["server"] for each in told(controller, EventType.IMAGE_SCRUB)] == ["server2", "server1"]


def test_a_report_of_a_server_that_is_not_there_is_rejected(images: Images) -> None:
    with pytest.raises(RequestError, match="there is no server nowhere"):
        images.holders.on_report("nowhere", report(1))


# ---- removing ----


def test_what_is_needed_is_not_removed(controller: Controller) -> None:
    images = controller.images
    images.publish(IMAGE, "")
    images.holders.on_report("server2", report(2, held(pins=["vm1"])))
    with pytest.raises(RequestError, match="debian-12 is needed at server2 by vm1") as caught:
        images.remove("debian-12")
    assert caught.value.code == ErrorCode.NEEDED
    images.holders.on_report("server2", report(2, held(state=ImageState.FETCHING, held=0)))
    with pytest.raises(RequestError, match="being fetched by server2"):
        images.remove("debian-12")
    stuck = held(state=ImageState.FETCHING, held=0, reason="no other server holds it")
    images.holders.on_report("server2", report(2, stuck))
    images.remove("debian-12")
    assert told(controller, EventType.IMAGE_REMOVED) == [{"image": "debian-12"}]
    for wrong in (
        lambda: images.remove("debian-12"),
        lambda: images.fetch("debian-12", [], "", base=False),
        lambda: images.unpin("debian-12", "vm1", []),
    ):
        with pytest.raises(RequestError, match="there is no image debian-12"):
            wrong()


def test_orders_of_upkeep_go_to_one_server(controller: Controller) -> None:
    controller.images.collect("server1")
    controller.images.scrub("server2")
    assert told(controller, EventType.IMAGE_GC) == [{"server": "server1"}]
    assert told(controller, EventType.IMAGE_SCRUB) == [{"server": "server2"}]
    with pytest.raises(RequestError, match="no agent of server3"):
        controller.images.scrub("server3")


def test_a_server_that_was_removed_needs_nothing_any_more(controller: Controller) -> None:
    controller.images.publish(IMAGE, "server1")
    controller.images.holders.on_report("server2", report(2, held(pins=["vm1"])))
    with pytest.raises(RequestError, match="needed at server2 by vm1"):
        controller.images.remove("debian-12")
    controller.net.remove_server("server2")
    controller.images.remove("debian-12")
    assert not controller.images.published


# ---- caches ----


@pytest.fixture
def cached(controller: Controller) -> Controller:
    """With a cache at the leaf of server1 and server3, and debian-12 at server2, at the other leaf."""
    cache = Server(
        "cache1", "02:00:00:00:00:c1", IPv4Address("10.0.0.201"), services=frozenset({Service.CACHE})
    )
    controller.net.put_server(cache)
    controller.net.detect("cache1", PortRef("leaf1", "p9"))
    controller.images.holders.on_report("cache1", report(9))
    controller.images.publish(IMAGE, "server2")
    controller.images.holders.on_report("server2", report(2, held()))
    return controller


def who(controller: Controller, asker: str) -> dict[str, bool]:
    """By holder that the asker is told of: whether it is near."""
    told_of = controller.images.holders.who("debian-12", DIGEST, "server2", asker)
    return {holder.server: holder.near for holder in told_of}


def test_a_server_is_told_of_caches_and_which_holders_are_at_its_leaf(cached: Controller) -> None:
    assert who(cached, "server1") == {"cache1": True, "server2": False}
    assert who(cached, "server2") == {"cache1": False, "server2": True}
    assert who(cached, "") == {"server2": False}, "to a manager nothing is near"
    cached.net.detect("cache1", PortRef("leaf2", "p9"))
    assert who(cached, "server1") == {"cache1": False, "server2": False}, "it was moved to another leaf"


def test_a_cache_is_told_of_other_caches_only_where_they_hold_something(cached: Controller) -> None:
    assert who(cached, "cache1") == {"server2": False}
    cached.images.holders.on_report("cache1", report(9, held(held=1 << 20, state=ImageState.PARTIAL)))
    assert who(cached, "cache2") == {"cache1": False, "server2": False}


def test_nothing_is_published_at_a_cache_nor_fetched_there_unless_it_is_named(cached: Controller) -> None:
    images = cached.images
    with pytest.raises(RequestError, match="cache1 is a cache"):
        images.publish(replace(IMAGE, name="e"), "cache1")
    cached.images.holders.on_report("server2", report(2, held(), used=9))
    assert images.publish(replace(IMAGE, name="e"), "").origin == "server1", "the cache has more room"
    assert images.fetch("debian-12", [], "", base=False)[0] == ["server1", "server2"]
    assert images.fetch("debian-12", ["cache1"], "", base=False)[0] == ["cache1"]


# ---- segments ----


def test_a_segment_is_ordered_by_its_first_and_last_chunk(controller: Controller) -> None:
    images = controller.images
    images.publish(IMAGE, "server1")
    chosen, order = images.fetch("debian-12", ["server2"], "", base=False, segment=(1, 4))
    assert chosen == ["server2"]
    (event,) = told(controller, EventType.IMAGE_FETCH)
    assert (event["segment"], event["order"]) == ((1, 4), order)
    for segment in ((2, 1), (0, 5), (-1, 1)):
        with pytest.raises(RequestError, match="is no segment of debian-12: it has the chunks 0 to 4"):
            images.fetch("debian-12", ["server2"], "", base=False, segment=segment)
    with pytest.raises(RequestError, match="a file is made of a whole image"):
        images.fetch("debian-12", ["server2"], "", base=True, segment=(1, 4))


def test_who_has_an_image_is_found_without_a_look_at_what_others_hold(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many servers hold other images; and what a server holds no more it is not shown with."""
    holders = controller.images.holders
    holders.on_report("server1", report(1, held()))
    holders.on_report("server2", report(2, held("other")))
    looked_at: list[str] = []
    images_of = holders._images_of

    def counted(server: str) -> list[HeldImage]:
        looked_at.append(server)
        return images_of(server)

    monkeypatch.setattr(holders, "_images_of", counted)
    assert list(holders.of("debian-12")) == ["server1"]
    assert [holder.server for holder in holders.who("debian-12", DIGEST, "server1")] == ["server1"]
    assert looked_at == []
    holders.on_report("server1", report(1))
    assert holders.of("debian-12") == {} and holders._held.keys() == {"other"}
