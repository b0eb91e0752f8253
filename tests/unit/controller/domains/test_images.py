"""Images of the other domain: looked up there by name; nobody gives a name of ours another meaning."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from retinue.controller.api.routes.images import handlers
from retinue.controller.content.images import Images
from retinue.controller.domains.images import AGAIN_SECONDS
from retinue.controller.errors import RequestError
from retinue.controller.state import Image
from retinue.core.model import ModelError, Server, Service, mac
from retinue.protocol.domains import ImageAsked, ImageFound, ImageHolder
from retinue.protocol.errors import ErrorCode
from retinue.protocol.images import HeldImage, ImagesBody, ImageState, SignedManifest
from retinue.protocol.routes import Route
from retinue.security.signatures import sign
from support.content import image, some_bytes
from support.fabric.domains import other, server_of
from support.fabric.two_controllers import TwoDomains, two_domains
from support.pki_files import Certificates
from support.recent_events import recent

DATA = some_bytes(3)
CACHE = Server("cache", mac("02:00:00:00:00:c1"), None, services=frozenset({Service.CACHE}))


@dataclass
class Shared:
    """Domain b publishes; domain a fetches."""

    domains: TwoDomains
    pki: dict[str, Certificates]

    def images(self, domain: str) -> Images:
        return self.domains.controller(domain).images

    async def adopt(self, name: str, domain: str = "") -> Any:
        return await self.domains.controller("a").domains.images.adopt(name, domain)

    def holders(self, asker: str = "") -> list[str]:
        a = self.domains.controller("a")
        found = a.domains.images.holders(a.images.published["d"], asker or server_of("a", 1))
        return [f"{one.server} {one.address}" for one in found]

    def signed(
        self, name: str, party: str = "manager/anna", domain: str = "b", data: bytes = DATA
    ) -> SignedManifest:
        manifest, _ = image(name, data)
        certificate, key = self.pki[domain].files(party)
        at = int(certificate.stat().st_mtime)
        bare = SignedManifest(name, manifest.size, manifest.list_digest, at)
        return msgspec.structs.replace(
            bare, signature=sign(bare.manifest.signed, key), certificate=certificate.read_text()
        )

    def publish(self, name: str, domain: str = "b", data: bytes = DATA) -> None:
        """At server 1, which holds it; server 2 holds it too, and hands nothing on to the other domain."""
        signed = self.signed(name, domain=domain, data=data)
        for number, doors in ((1, {other(domain): "192.0.2.1:7801"}), (2, {})):
            held = HeldImage(name, signed.list_digest, ImageState.HELD, len(data))
            report = ImagesBody(f"192.0.2.{number}:7800", [held], doors=doors)
            self.images(domain).holders.on_report(server_of(domain, number), report)
        self.images(domain).take_in(Image(signed, server_of(domain, 1), "anna"))

    def share(self, domain: str, *, images: bool = True) -> None:
        peers = self.domains.controller(domain).net.peers
        peers[other(domain)] = replace(peers[other(domain)], images=images)

    def answers(self, found: ImageFound) -> None:
        """What domain b says from now on, whatever it is asked."""

        async def image(asked: ImageAsked) -> ImageFound:
            return found

        self.domains.doors["b"].image = image  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificates]:
    return {domain: Certificates(tmp_path_factory.mktemp(domain)) for domain in "ab"}


@pytest.fixture
async def shared(pki: dict[str, Certificates]) -> AsyncIterator[Shared]:
    async with two_domains() as domains:
        made = Shared(domains, pki)
        for domain in "ab":
            made.share(domain)
            controller = domains.controller(domain)
            controller.images.authority = pki[domain].authority.ca
            controller.domains.images.authorities[other(domain)] = pki[other(domain)].authority.ca
        yield made


async def test_it_is_found_by_its_name_and_is_an_image_of_that_domain_here(shared: Shared) -> None:
    shared.publish("d")
    found = await shared.adopt("d")
    assert (found.origin, found.domain, found.publisher) == (f"b/{server_of('b', 1)}", "b", "anna")
    assert shared.images("a").published["d"].signed == shared.images("b").published["d"].signed
    assert shared.holders() == [f"b/{server_of('b', 1)} 192.0.2.1:7801"], "who hands on to domain a"
    assert await shared.adopt("d", "b") is found, "once more it is the same"
    seen = recent(shared.domains.controller("a").events, "domain.said")
    assert [event.data["said"] for event in seen] == ["image d"]


async def test_where_a_cache_is_here_only_it_asks_there(shared: Shared) -> None:
    shared.publish("d")
    await shared.adopt("d")
    a = shared.domains.controller("a")
    a.net.servers["cache"] = CACHE
    assert shared.holders(), "its agent is away"
    shared.images("a").holders.on_report("cache", ImagesBody("192.0.2.9:7800"))
    assert not shared.holders()
    assert shared.holders("cache")


async def test_caches_there_come_first(shared: Shared) -> None:
    shared.domains.controller("b").net.servers["cache"] = CACHE
    shared.publish("d")
    shared.images("b").holders.on_report("cache", ImagesBody("192.0.2.9:7800", doors={"a": "192.0.2.9:7801"}))
    await shared.adopt("d")
    assert shared.holders() == ["b/cache 192.0.2.9:7801", f"b/{server_of('b', 1)} 192.0.2.1:7801"]


@pytest.mark.parametrize(
    ("domain", "why"),
    [("c", "there is no domain c"), ("b", "images of domain b are not fetched here")],
)
async def test_of_a_domain_that_is_not_one_of_ours_nothing_is_fetched(
    shared: Shared, domain: str, why: str
) -> None:
    shared.publish("d")
    shared.share("a", images=False)
    with pytest.raises(RequestError, match=why):
        await shared.adopt("d", domain)
    with pytest.raises(RequestError, match="there is no image d") as error:
        await shared.adopt("d")
    assert error.value.code is ErrorCode.UNKNOWN_IMAGE
    assert "image" not in shared.domains.doors["b"].said
    assert not shared.images("a").published


async def test_to_a_domain_that_has_no_part_in_our_images_none_is_told(shared: Shared) -> None:
    shared.publish("d")
    shared.share("b", images=False)
    with pytest.raises(RequestError, match="domain b: our images are not for domain a"):
        await shared.adopt("d")
    assert not shared.images("a").published


async def test_what_is_not_there_either_is_told_with_every_reason(shared: Shared) -> None:
    with pytest.raises(
        RequestError, match="there is no image d here, nor elsewhere: domain b: no image d"
    ) as error:
        await shared.adopt("d")
    assert error.value.code is ErrorCode.UNKNOWN_IMAGE
    shared.domains.doors["b"].away = True
    with pytest.raises(RequestError, match="domain b: nobody answers"):
        await shared.adopt("d", "b")


async def test_one_that_is_another_domains_is_not_handed_on(shared: Shared) -> None:
    shared.publish("d")
    await shared.adopt("d")
    with pytest.raises(RequestError, match="no image d is published here"):
        shared.domains.controller("a").domains.images.answer("b", ImageAsked("d"))


@pytest.mark.parametrize(
    ("party", "domain"),
    [("manager/eve", "a"), ("agent/b-server1", "b"), ("controller/c1", "b")],
    ids=["our own manager", "its agent", "its controller"],
)
async def test_only_a_manager_there_vouches_for_it(shared: Shared, party: str, domain: str) -> None:
    shared.answers(ImageFound(shared.signed("d", party, domain), "server1"))
    with pytest.raises(RequestError, match="the manifest is not believed"):
        await shared.adopt("d")
    shared.answers(ImageFound(shared.signed("e"), "server1"))
    with pytest.raises(RequestError, match="it answers with another image"):
        await shared.adopt("d")
    forged = msgspec.structs.replace(shared.signed("d"), size=1 << 30)
    shared.answers(ImageFound(forged, "server1"))
    with pytest.raises(RequestError, match="not believed"):
        await shared.adopt("d")
    assert not shared.images("a").published


async def test_a_name_of_ours_keeps_its_meaning(shared: Shared) -> None:
    shared.publish("d", "a", data=some_bytes(2))
    shared.publish("d")
    ours = await shared.adopt("d")
    assert not ours.domain
    with pytest.raises(RequestError, match="d is an image of this domain here") as error:
        await shared.adopt("d", "b")
    assert error.value.code is ErrorCode.NAME_TAKEN
    server = server_of("a", 2)
    shared.publish(server)
    with pytest.raises(RequestError, match=f"{server} is the name of a server"):
        await shared.adopt(server)
    assert list(shared.images("a").published) == ["d"]


async def test_of_two_domains_that_have_it_one_is_to_be_named(shared: Shared) -> None:
    shared.publish("d")
    a = shared.domains.controller("a")
    a.net.peers["c"] = replace(a.net.peers["b"], id="c", images=True)
    a.domains.saying.doors["c"] = a.domains.saying.doors["b"]
    a.domains.images.authorities["c"] = shared.pki["b"].authority.ca
    with pytest.raises(RequestError, match="b and c each have an image d: say of which"):
        await shared.adopt("d")
    assert (await shared.adopt("d", "c")).domain == "c"


async def test_who_holds_it_is_asked_again_while_somebody_fetches(shared: Shared) -> None:
    shared.publish("d")
    await shared.adopt("d")
    a = shared.domains.controller("a")
    said = shared.domains.doors["b"].said

    async def looked() -> list[str]:
        shared.holders()
        for _ in range(5):
            await asyncio.sleep(0)
        return shared.holders()

    now = a.context.clock()
    a.context.clock = lambda: now
    assert await looked() and said.count("image") == 1, "not each second"
    one = [f"b/{server_of('b', 1)} 192.0.2.1:7801"]
    for number, (length, holders) in enumerate([(0, []), (4, []), (0, []), (3, one)], 1):
        if length:  # Of 4 chunks it is another one there by now.
            shared.publish("d", data=some_bytes(length))
        else:
            shared.images("b").remove("d")
        now += AGAIN_SECONDS
        assert await looked() == holders
        assert said.count("image") == 1 + number
    assert a.images.published["d"].signed.size == len(DATA)


async def test_no_agent_is_sent_to_doors_of_its_own_machine(shared: Shared) -> None:
    places = ["127.0.0.1:22", "localhost:22", "[::1]:22", "nonsense", "224.0.0.1:1", "192.0.2.7:7801"]
    holders = [ImageHolder("server1", place) for place in places] + [ImageHolder("a/../b", "192.0.2.8:1")]
    shared.answers(ImageFound(shared.signed("d"), "server1", holders))
    await shared.adopt("d")
    assert shared.holders() == ["b/server1 192.0.2.7:7801"]


async def test_it_stays_over_a_restart(shared: Shared) -> None:
    """Who holds it is asked when somebody fetches."""
    shared.publish("d")
    await shared.adopt("d")
    await shared.domains.kill("a")
    await shared.domains.start_again("a")
    a = shared.domains.controller("a")
    shared.share("a")
    a.domains.images.authorities["b"] = shared.pki["b"].authority.ca
    assert a.images.published["d"].domain == "b"
    assert shared.holders() == []
    for _ in range(5):
        await asyncio.sleep(0)
    assert shared.holders() == [f"b/{server_of('b', 1)} 192.0.2.1:7801"]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ({"servers": ["nowhere"]}, "there is no server nowhere"),
        ({"pin": "a/b"}, "what an image is needed for"),
        ({"segment": [0, 9]}, "0-9 is no segment of d"),
    ],
)
async def test_no_name_is_taken_for_an_order_that_is_refused(
    shared: Shared, wanted: dict[str, Any], why: str
) -> None:
    shared.publish("d")
    order = handlers(shared.domains.controller("a"))[Route.FETCH_IMAGE]
    request = make_mocked_request("POST", "/v1/images/d/fetch", match_info={"id": "d"})
    request._read_bytes = msgspec.json.encode(wanted)
    with pytest.raises(ModelError, match=why):
        await order(request)
    assert not shared.images("a").published
    request._read_bytes = b"{}"
    assert (await order(request)).status == 202
    assert shared.images("a").published["d"].domain == "b"


async def test_what_is_another_domains_is_not_published_as_ours(shared: Shared) -> None:
    """Nor is its content to be brought to a server there."""
    shared.publish("d")
    await shared.adopt("d")
    shared.images("a").authority = None
    with pytest.raises(RequestError, match="d is an image of domain b here") as error:
        shared.images("a").publish(shared.signed("d", "manager/eve", "a"), "")
    assert error.value.code is ErrorCode.NAME_TAKEN
