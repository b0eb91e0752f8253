"""Images: published under a name by a manager, fetched by servers on a manager's word.

A name never changes its meaning: what is published once stays so until it is removed, and only an image that
nobody needs can be removed. It is unique beside those of VMs, servers and services (mobility.entities).
The bytes never pass here: agents give them to each other.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from retinue.controller.content.holders import ImageHolders
from retinue.controller.context import Context
from retinue.controller.errors import RequestError, no_image, no_server
from retinue.controller.inventory.disks import based_on
from retinue.controller.marks import ImagePublished, ImageRemoved
from retinue.controller.state import Image
from retinue.core.content import ContentError
from retinue.core.limits import MOST_IMAGES
from retinue.core.model import entity_id
from retinue.core.placement import EntityKind
from retinue.protocol.errors import ErrorCode
from retinue.protocol.events import EventType
from retinue.protocol.images import ImageState, SignedManifest
from retinue.security.signatures import SignatureError, check

FRESH_SECONDS = 3600.0
"""By which the publisher's clock may differ from ours."""


class Images:
    """What is published, and orders about it. All raise RequestError, and then nothing has changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.published = context.state.images
        self.holders = ImageHolders(context)
        self._order = 0
        """The number of the last order to fetch."""
        self.name_free: Callable[[str, EntityKind], None] = lambda name, kind: None
        """Raises RequestError where something of another kind has the name."""
        self.authority: Path | None = None
        """Whose managers' signatures count; None, without certificates: none is asked for."""

    def get(self, name: str) -> Image:
        if name not in self.published:
            raise no_image(name)
        return self.published[name]

    def publish(self, signed: SignedManifest, server: str) -> Image:
        """Give the name its meaning. The same once more is no fault: what is published is answered."""
        known = self.published.get(signed.name)
        if known is not None:
            if known.domain:
                raise RequestError(
                    f"{signed.name} is an image of domain {known.domain} here, and a name never changes its "
                    f"meaning: publish under another name, or remove that one (`retinue image remove "
                    f"{signed.name}`)",
                    ErrorCode.NAME_TAKEN,
                )
            if (known.signed.size, known.signed.list_digest) == (signed.size, signed.list_digest):
                return known
            raise RequestError(
                f"{signed.name} is another image already, and a name never changes its meaning: publish "
                f"under another name, such as {signed.name[:55]}-2, or remove that one",
                ErrorCode.NAME_TAKEN,
            )
        age = abs(signed.published_at - self._context.clock())
        if self.authority is not None and age > FRESH_SECONDS:
            raise not_believed("it was signed at another time than now: set the publisher's clock")
        publisher = signer(signed, self.authority)
        image = Image(signed, self._first_holder(server), publisher)
        self.take_in(image)
        return image

    def take_in(self, image: Image) -> None:
        """It is published here from now on; nothing has its name yet."""
        if len(self.published) >= MOST_IMAGES:
            raise RequestError(f"{MOST_IMAGES} images are published already: remove one")
        self.name_free(image.name, EntityKind.IMAGE)
        self._context.apply(ImagePublished(image))

    def _first_holder(self, server: str) -> str:
        able = self.holders.servers() - self.holders.caches()
        if server and server not in self._context.net.servers:
            raise no_server(server)
        if server in self.holders.caches():
            raise RequestError(f"{server} is a cache, which may let go of an image: publish it at a server")
        if server and server not in able:
            raise RequestError(f"no agent of {server} is here to take the image", ErrorCode.PARTY_AWAY)
        if not able:
            raise RequestError("no server's agent is here to take the image", ErrorCode.PARTY_AWAY)
        return server or min(able, key=lambda one: (self.holders.used(one), one))

    def remove(self, name: str) -> None:
        """Servers let go of it; their chunks go with the next gc."""
        image = self.get(name)
        if vms := based_on(name, self._context.net.vms.values()):
            raise RequestError(
                f"disks of {', '.join(vms)} are based on {name}: remove these VMs first", ErrorCode.NEEDED
            )
        for server, held in self.holders.of(name).items():
            if held.pins:
                raise RequestError(
                    f"{name} is needed at {server} by {', '.join(held.pins)}: `retinue image unpin` first",
                    ErrorCode.NEEDED,
                )
            if held.state is ImageState.FETCHING and not held.reason:
                raise RequestError(f"{name} is being fetched by {server}: wait for that", ErrorCode.NEEDED)
        self._context.apply(ImageRemoved(image))
        self.holders.forget(name)

    def fetch(
        self,
        name: str,
        servers: Collection[str],
        pin: str,
        *,
        base: bool,
        segment: tuple[int, int] | None = None,
    ) -> tuple[list[str], int]:
        """Order that these servers fetch it ([]: all that can, but caches), or a segment of it: its first and
        last chunk. Who was ordered to, and the order's number."""
        chosen = self.may_fetch(self.get(name), servers, pin, base=base, segment=segment)
        publish = self._context.events.publish
        order = {"image": name, "pin": pin, "base": base, "order": self._next_order()}
        if segment is not None:
            order["segment"] = segment
        for server in chosen:
            publish(EventType.IMAGE_FETCH, server=server, **order)
        self.holders.expect(name, chosen, self._order)
        return chosen, self._order

    def may_fetch(
        self,
        image: Image,
        servers: Collection[str],
        pin: str,
        *,
        base: bool,
        segment: tuple[int, int] | None = None,
    ) -> list[str]:
        """Who would be ordered to. Nothing is ordered, and the image need not be published here yet."""
        if pin:
            entity_id(pin, "what an image is needed for")
        if segment is not None:
            _check_segment(segment, image.signed.manifest.chunks, image.name, base=base)
        chosen = self._chosen(servers)
        return chosen if servers else [server for server in chosen if server not in self.holders.caches()]

    def _next_order(self) -> int:
        """Microseconds of the controller's clock, which goes on over restarts: what is still done by an order
        of an earlier controller is no answer to one of this."""
        self._order = max(self._order + 1, int(self._context.clock() * 1e6))
        return self._order

    def unpin(self, name: str, pin: str, servers: Collection[str]) -> list[str]:
        """Order that these servers ([]: all that can) forget that it is needed for this."""
        self.get(name)
        chosen = self._chosen(servers)
        for server in chosen:
            self._context.events.publish(EventType.IMAGE_UNPINNED, image=name, server=server, pin=pin)
        return chosen

    def collect(self, server: str) -> None:
        """Order a gc."""
        self._chosen([server])
        self._context.events.publish(EventType.IMAGE_GC, server=server)

    def scrub(self, server: str) -> None:
        """Order a scrub."""
        self._chosen([server])
        self._context.events.publish(EventType.IMAGE_SCRUB, server=server)

    def _chosen(self, servers: Collection[str]) -> list[str]:
        able = self.holders.servers()
        for server in servers:
            if server not in self._context.net.servers:
                raise no_server(server)
            if server not in able:
                raise RequestError(f"no agent of {server} is here", ErrorCode.PARTY_AWAY)
        return sorted(set(servers) or able)


def signer(signed: SignedManifest, authority: Path | None) -> str:
    """Who published it: a manager of the authority; "": none is asked for. Raises RequestError."""
    try:
        manifest = signed.manifest
        if authority is None:
            return ""
        who = check(manifest.signed, signed.signature, signed.certificate, authority, manifest.published_at)
    except (ContentError, SignatureError) as error:
        raise not_believed(str(error)) from error
    return ", ".join(sorted(who.names))


def not_believed(why: str) -> RequestError:
    return RequestError(f"the manifest is not believed: {why}", ErrorCode.NOT_BELIEVED)


def _check_segment(segment: tuple[int, int], chunks: int, name: str, *, base: bool) -> None:
    first, last = segment
    if not 0 <= first <= last < chunks:
        raise RequestError(
            f"{first}-{last} is no segment of {name}: it has the chunks 0 to {chunks - 1}, of 1 MiB each"
        )
    if base:
        raise RequestError("a file is made of a whole image: leave out the segment, or the file")
