"""Images of another domain: looked up there by name, and fetched from its agents as from any holder.

Asked is the other domain's controller, when a manager has servers fetch an image that is not published here.
What it answers counts so far: the manifest must be signed by a manager of that domain's authority, and a name
keeps its meaning here from then on, whatever that domain says of it later. So no domain can give a name of
ours another meaning, nor change one that was fetched. The agents check the signature once more, each by the
authority in its own configuration.

Whom to ask there for chunks is asked again while somebody fetches. Of our servers only caches ask them, as
long as there is one: the others ask the cache, and of what all of them fetch one copy comes between domains.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from retinue.controller.content.images import Images, signer
from retinue.controller.context import Context
from retinue.controller.domains.peer_client import PeerDoor
from retinue.controller.errors import RequestError, no_image
from retinue.controller.state import Image
from retinue.core.limits import ID, MOST_IMAGE_HOLDERS
from retinue.core.model import ModelError
from retinue.core.text import cut
from retinue.protocol.domains import ImageAsked, ImageFound, ImageHolder
from retinue.protocol.errors import ControllerError, ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.images import HolderRecord
from retinue.socket_addresses import endpoint, may_be_another_host

log = structlog.get_logger()

AGAIN_SECONDS = 5.0
"""Between two questions to another domain who holds an image."""


@dataclass
class _Heard:
    """Who holds an image in its domain, as that said last."""

    holders: list[HolderRecord] = field(default_factory=list)
    asked_at: float | None = None
    reason: str = ""
    """Why it has not said so."""


class SharedImages:
    """Asks other domains for images, and answers them; `doors` as in Saying."""

    def __init__(self, context: Context, images: Images, doors: Mapping[str, PeerDoor]) -> None:
        self._context = context
        self._net = context.net
        self._images = images
        self._doors = doors
        self._heard: dict[str, _Heard] = {}
        """By image of another domain."""
        self.authorities: dict[str, Path] = {}
        """By domain: whose managers' signatures count; of a domain without one nothing is believed."""

    # ---- asking ----

    async def adopt(
        self, name: str, domain: str = "", may: Callable[[Image], object] = lambda image: None
    ) -> Image:
        """An image that is published here, or in another domain (""; in any whose images are fetched): then
        it has that meaning here from now on. `may` raises RequestError where what it is wanted for
        cannot be: then it is not adopted. Raises RequestError, and nothing has changed."""
        if name in self._images.published:
            return self._published(name, domain)
        asked = self._to_ask(domain)
        if not asked or not ID.fullmatch(name):
            raise no_image(name)
        for one in asked:
            self._context.events.publish(
                EventType.DOMAIN_SAID, domain=one, vm="", migration_id="", said=f"image {name}"
            )
        answers = await asyncio.gather(*(self._ask(one, name) for one in asked))
        found = [
            (one, said) for one, said in zip(asked, answers, strict=True) if isinstance(said, ImageFound)
        ]
        if len(found) > 1:
            raise RequestError(
                f"{' and '.join(one for one, _ in found)} each have an image {name}: say of which domain it "
                "is to be (`--from DOMAIN`)"
            )
        if not found:
            why = "; ".join(f"domain {one}: {said}" for one, said in zip(asked, answers, strict=True))
            raise RequestError(
                f"there is no image {name} here, nor elsewhere: {why}", ErrorCode.UNKNOWN_IMAGE
            )
        if name in self._images.published:  # Meanwhile.
            return self._published(name, domain)
        where, said = found[0]
        image = Image(said.manifest, f"{where}/{said.origin}", self._signer(where, said))
        may(image)
        self._images.take_in(image)
        kept = {one: heard for one, heard in self._heard.items() if one in self._images.published}
        self._heard = kept | {name: _Heard(_holders(where, said), self._context.clock())}
        return image

    def _published(self, name: str, domain: str) -> Image:
        known = self._images.published[name]
        if domain and known.domain != domain:
            where = f"domain {known.domain}" if known.domain else "this domain"
            raise RequestError(
                f"{name} is an image of {where} here, and a name never changes its meaning: remove it first "
                f"(`retinue image remove {name}`)",
                ErrorCode.NAME_TAKEN,
            )
        return known

    def _to_ask(self, domain: str) -> list[str]:
        """Raises RequestError for a domain whose images are not fetched."""
        if not domain:
            return sorted(id for id, peer in self._net.peers.items() if peer.images and id in self._doors)
        peer = self._net.peers.get(domain)
        if peer is None or domain not in self._doors:
            raise RequestError(
                f"there is no domain {cut(domain)}; `retinue domain list` shows those there are"
            )
        if not peer.images:
            raise RequestError(
                f"images of domain {domain} are not fetched here: `images` is not set for it (`[[domain]]`)"
            )
        return [domain]

    async def _ask(self, domain: str, name: str) -> ImageFound | str:
        """What it answers, with a signature that counts; or why it has no such image for us."""
        try:
            said = await self._doors[domain].image(ImageAsked(name))
            if said.manifest.name != name:
                raise RequestError("it answers with another image")
            self._signer(domain, said)
        except (ControllerError, RequestError) as error:
            log.info("domain.no_image", domain=domain, image=name, reason=str(error))
            return cut(str(error))
        return said

    def _signer(self, domain: str, said: ImageFound) -> str:
        if domain not in self.authorities:
            raise RequestError("its authority is not known here", ErrorCode.NOT_BELIEVED)
        return signer(said.manifest, self.authorities[domain])

    def holders(self, image: Image, asker: str) -> list[HolderRecord]:
        """Whom a server of ours may ask there, as heard last; heard again, meanwhile, if that is long ago."""
        caches = self._images.holders.caches()
        if not image.domain or (asker not in caches and caches & self._images.holders.servers()):
            return []
        heard = self._heard.setdefault(image.name, _Heard())
        now = self._context.clock()
        if heard.asked_at is None or now - heard.asked_at >= AGAIN_SECONDS:
            heard.asked_at = now
            self._context.spawn(self._look(image, heard), f"{image.name}: who holds it in {image.domain}")
        return heard.holders

    async def _look(self, image: Image, heard: _Heard) -> None:
        try:
            (domain,) = self._to_ask(image.domain)
            said = await self._ask(domain, image.name)
        except RequestError as error:
            said = str(error)
        if isinstance(said, ImageFound) and said.manifest.list_digest != image.signed.list_digest:
            said = "there it is another image by now"
        if isinstance(said, ImageFound):
            heard.holders, heard.reason = _holders(domain, said), ""
            return
        heard.holders = []
        if said != heard.reason:  # It may be so for days.
            log.warning("domain.image_not_to_be_had", domain=image.domain, image=image.name, reason=said)
        heard.reason = said

    # ---- answering ----

    def answer(self, peer: str, asked: ImageAsked) -> ImageFound:
        """Raises ModelError, RequestError: that domain has no part in our images, or there is none such.

        One that we have from elsewhere is not ours to hand on.
        """
        if not self._net.peers[peer].images:
            raise ModelError(f"our images are not for domain {peer}: `images` is not set for it here")
        image = self._images.published.get(asked.name)
        if image is None or image.domain:
            raise RequestError(f"no image {asked.name} is published here", ErrorCode.UNKNOWN_IMAGE)
        handing_on = self._images.holders.for_domain(peer, image.name, image.signed.list_digest)
        holders = [ImageHolder(server, address) for server, address in handing_on]
        return ImageFound(image.signed, image.origin, holders[:MOST_IMAGE_HOLDERS])


def _holders(domain: str, said: ImageFound) -> list[HolderRecord]:
    """Those that can be servers of another domain, by name and by where they are."""
    return [
        HolderRecord(f"{domain}/{one.server}", one.address)
        for one in said.holders
        if ID.fullmatch(one.server) and _is_elsewhere(one.address)
    ]


def _is_elsewhere(address: str) -> bool:
    """True for a place where another machine may listen: an agent is to knock at no door of its own."""
    try:
        host, _ = endpoint(address)
    except ValueError:
        return False
    return may_be_another_host(host)
