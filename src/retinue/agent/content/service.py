"""Content by name at one server: what the controller orders, and what others ask for.

An order to fetch is kept with the image until the image is whole, over restarts. What is told of it all is in
reports.py.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import structlog

from retinue.agent.content.caching import Caching
from retinue.agent.content.fetching import Fetching, Open, fetch_list
from retinue.agent.content.needed import need
from retinue.agent.content.publishing import receive_upload
from retinue.agent.content.reports import ContentReports, Controller
from retinue.agent.content.serving import Serving
from retinue.agent.content.store import Store, StoredImage, StoreError, make_base
from retinue.agent.content.threads import in_slow_thread, in_thread
from retinue.agent.content.wire import HELLOS, Word
from retinue.core.content import ContentError, Patience
from retinue.core.limits import MOST_FAR
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.memory_channel import Channel
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode, RejectedError
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.images import ImageRecord, SignedManifest, domain_of
from retinue.protocol.records import record
from retinue.protocol.routes import Route
from retinue.security.signatures import SignatureError, check

NO_DOMAINS: Mapping[str, Path] = MappingProxyType({})
FETCH_AGAIN_SECONDS = 1.0
"""Before a fetch that could not begin is tried again."""

log = structlog.get_logger()


class ContentService:
    """The chunk store of one server, and all that is done with it."""

    def __init__(
        self,
        server: str,
        store: Store,
        controller: Controller,
        open: Open,
        address: Callable[[], str],
        ca: Path | None,
        patience: Patience | None = None,
        *,
        cache: bool = False,
        domains: Mapping[str, Path] = NO_DOMAINS,
        doors: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """`ca`: whose managers may publish; None, without certificates: anybody. `address`: where this agent
        listens. `cache`: what it lacks it fetches when it is asked for it (see caching.py). `domains`: by
        another domain, whose managers may publish there; `doors`: where its agents fetch from this one."""
        self.server, self.store = server, store
        self._caching = Caching(store, self._known_by_now, self._fetching) if cache else None
        self._controller, self._open, self._ca, self._domains = controller, open, ca, domains
        self._patience = patience
        self.serving = Serving(store, self._caching)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.reports = ContentReports(server, store, self.serving, controller, address, self._goes_on, doors)

    # ---- what disks are made over (agent.vms.disks.Images) ----

    def base_file(self, name: str) -> Path:
        return self.store.base_file(name)

    async def need(self, name: str, pin: str, seconds: float) -> None:
        await need(self, name, pin, seconds)

    async def need_no_more(self, pin: str) -> None:
        for image in [image for image in self.store.images.values() if pin in image.pins]:
            await in_thread(self.store.pin, image, pin, on=False)

    def is_here(self, name: str, pin: str) -> bool:
        """As a file, and to stay for this."""
        image = self.store.images.get(name)
        return image is not None and pin in image.pins and self.base_file(name).exists()

    def fetch_base(self, name: str, pin: str) -> asyncio.Task[None]:
        """Fetch it, if nobody does already, and make a file of it."""
        if not self._goes_on(name):
            self.reports.reasons.pop(name, None)
            self._begin(name, functools.partial(self._ordered, name, pin, True))
        return self._tasks[name]

    def why_not(self, name: str) -> str:
        """Why it cannot be fetched."""
        return self.reports.reasons.get(name) or f"`retinue image list` shows no image {name}"

    # ---- connections (migration.peer.Visitors) ----

    def knows(self, hello: dict[str, Any]) -> bool:
        return hello["type"] in HELLOS

    async def visit(self, channel: Channel, hello: dict[str, Any], *, manager: bool) -> None:
        try:
            if hello["type"] == Word.CONTENT:
                await self.serving.serve(channel, hello)
            elif not manager:
                await channel.send_message(Word.REJECTED, reason="only a manager publishes")
            else:
                await self._take_upload(channel, str(hello.get("image")))
        except (HypervisorError, TimeoutError) as error:
            log.debug("content.connection_ended", reason=str(error))

    def far(self, domain: str) -> "FarVisitors":
        """For agents of another domain, at the listener for that domain alone."""
        return FarVisitors(self.serving, domain)

    async def _take_upload(self, channel: Channel, name: str) -> None:
        try:
            published = await self._record(name)
        except (ControllerError, SignatureError, ContentError) as error:
            await channel.send_message(Word.REJECTED, reason=str(error))
            return
        await receive_upload(channel, published, self.server, self.store, self.serving.gained)

    async def _record(self, name: str) -> ImageRecord:
        """An image as it is published, its signature checked. Raises ControllerError, SignatureError,
        ContentError."""
        path = Route.GET_IMAGE.path(name, server=self.server)
        found = record(ImageRecord, await self._controller.get(path))
        if found.manifest.name != name:
            raise ContentError(f"the controller was asked for {name}, and answers {found.manifest.name}")
        self._believe(found.manifest, domain_of(found.origin))
        return found

    def _believe(self, signed: SignedManifest, domain: str) -> None:
        """Whoever vouches for it in the domain where it was published; "": ours."""
        manifest, ca = signed.manifest, self._ca
        if domain:
            ca = self._domains.get(domain)
            if ca is None:
                raise ContentError(
                    f"{manifest.name} is an image of domain {domain}, from which this agent fetches none "
                    "(`images` in [[domain]])"
                )
        if ca is not None:
            check(manifest.signed, signed.signature, signed.certificate, ca, manifest.published_at)

    # ---- orders ----

    def on_event(self, event: ControllerEvent) -> None:
        """Act on an event of the controller, in the background."""
        match event.type:
            case EventType.IMAGE_FETCH if event.server == self.server:
                self.reports.orders[event.image] = event.order
                self.reports.reasons.pop(event.image, None)  # Of an earlier fetch.
                self._begin(
                    event.image,
                    lambda: self._ordered(event.image, event.pin, event.base, event.segment),
                )
            case EventType.IMAGE_UNPINNED if event.server == self.server:
                self._begin(f"{event.image} unpin", lambda: self._unpin(event.image, event.pin))
            case EventType.IMAGE_REMOVED:
                self._begin(f"{event.image} remove", lambda: self._remove(event.image))
            case EventType.IMAGE_GC if event.server == self.server:
                self._begin(" gc", self._collect)
            case EventType.IMAGE_SCRUB if event.server == self.server:
                self._begin(" scrub", self._scrub)
            case _:
                pass

    def _begin(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """One task for each thing; the same again waits for the one under way."""
        before = self._tasks.get(what)

        async def in_turn() -> None:
            try:
                if before is not None:
                    await asyncio.wait({before})
                await work()
            except asyncio.CancelledError:
                if before is not None:
                    before.cancel()
                raise
            except StoreError as error:
                log.warning("content.not_done", what=what, reason=str(error))
            except Exception:
                log.exception("content.failed", what=what)

        self._tasks[what] = asyncio.create_task(in_turn(), name=f"content: {what}")

    async def _ordered(self, name: str, pin: str, base: bool, segment: tuple[int, int] | None = None) -> None:
        await self._let_go_of_an_older_meaning(name)
        image = self.store.images.get(name)
        if image is None:
            with self.serving.expecting(name):
                image = await self._known_in_the_end(name)
        if image is None:
            return
        if pin:
            await in_thread(self.store.pin, image, pin, on=True)
        if segment is not None and not await in_thread(self.store.missing, image):
            segment = None  # It is whole, and to stay so.
        image.want(segment)
        image.base = image.base or base
        await in_thread(self.store.save, image)
        await self._fetch(image)

    async def _let_go_of_an_older_meaning(self, name: str) -> None:
        """It was removed while this agent was away, and something else has its name by now, of this domain or
        another. Raises StoreError where it is pinned: what it is needed for is over it."""
        image = self.store.images.get(name)
        if image is None:
            return
        try:
            published = await self._record(name)
        except (ControllerError, SignatureError, ContentError):
            return  # What follows asks again, and says so.
        if published.manifest.list_digest == image.signed.list_digest:
            return
        log.warning("content.older_meaning", image=name, origin=image.origin, now_of=published.origin)
        if self._caching is not None:
            await self._caching.forget(name)
        try:
            await self._let_go(name)
        except StoreError as error:
            self.reports.reasons[name] = f"an image that had this name before is here: {error}"
            raise

    async def _known_by_now(self, name: str) -> StoredImage | None:
        """What a cache has of a name, or can have. Raises as `_know`."""
        await self._let_go_of_an_older_meaning(name)
        return self.store.images.get(name) or await self._know(name)

    async def _known_in_the_end(self, name: str) -> StoredImage | None:
        """Asks until its list is here; None: there is no such image, or it is not believed."""
        while True:
            try:
                if image := await self._know(name):
                    return image
            except ControllerAwayError as error:
                log.warning("content.waits", image=name, reason=str(error))
            except RejectedError as error:
                if error.code == ErrorCode.UNKNOWN_IMAGE:
                    return None
                self.reports.reasons[name] = str(error)
            except (ControllerError, SignatureError, ContentError) as error:
                self.reports.reasons[name] = str(error)
                log.warning("content.not_believed", image=name, reason=str(error))
                return None
            await asyncio.sleep(FETCH_AGAIN_SECONDS)

    async def _know(self, name: str) -> StoredImage | None:
        """An image of which nothing is here yet: its manifest, and its chunk list from some holder."""
        found, cache = await self._record(name), self._caching is not None
        for holder in found.holders:
            if holder.server == self.server:
                continue
            try:
                listed = await fetch_list(
                    self._open, found.manifest.manifest, holder, self.server, cache=cache
                )
                return await in_thread(self.store.put_image, found.manifest, listed, found.origin)
            except ContentError as error:
                self.reports.faults[holder.server] += 1
                log.warning("content.bad_list", image=name, holder=holder.server, reason=str(error))
            except (HypervisorError, TimeoutError) as error:
                log.info("content.no_list", image=name, holder=holder.server, reason=str(error))
        self.reports.reasons[name] = "no server that can be reached holds it"
        return None

    @contextlib.contextmanager
    def _fetching(self, image: StoredImage) -> Iterator[Fetching]:
        """A fetch, which is reported inside the context."""
        fetching = Fetching(
            self.server,
            self.store,
            self._open,
            lambda: self._record(image.name),
            lambda chunk: self.serving.gained(image.name, chunk),
            self._bad,
            self._patience,
            self.reports.times,
            cache=self._caching is not None,
        )
        self.reports.began(image.name, fetching)
        try:
            yield fetching
        finally:
            self.reports.ended(image.name, fetching)

    async def _fetch(self, image: StoredImage) -> None:
        self.reports.reasons.pop(image.name, None)
        try:
            with self._fetching(image) as fetching:
                await fetching.run(image)
                if image.base:
                    await self._make_base(image, fetching)
            image.wanted = False
            await in_thread(self.store.save, image)
        except StoreError as error:
            self.reports.reasons[image.name] = str(error)
            raise

    async def _make_base(self, image: StoredImage, fetching: Fetching) -> None:
        try:
            await in_slow_thread(make_base, self.store, image)
        except StoreError:
            if not self.store.missing(image):
                raise
            # A chunk that was good when it came has gone bad here, and has been removed.
            await fetching.run(image)
            await in_slow_thread(make_base, self.store, image)

    def _bad(self, holder: str) -> None:
        self.reports.faults[holder] += 1

    async def _unpin(self, name: str, pin: str) -> None:
        if image := self.store.images.get(name):
            await in_thread(self.store.pin, image, pin, on=False)

    async def _remove(self, name: str) -> None:
        if fetching := self._tasks.pop(name, None):
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        if self._caching is not None:
            await self._caching.forget(name)
        await self._let_go(name)

    async def _let_go(self, name: str) -> None:
        """Raises StoreError when it is pinned."""
        await in_thread(self.store.remove_image, name)
        self.reports.forget(name)

    async def _collect(self) -> None:
        await self._remove_what_is_published_no_more()
        freed = await in_slow_thread(self.store.collect)
        before = self.reports.upkeep
        self.reports.upkeep = msgspec.structs.replace(before, gcs=before.gcs + 1, freed=freed)

    async def _remove_what_is_published_no_more(self) -> None:
        """What was removed while this agent was away."""
        here = list(self.store.images.values())  # Before it is asked: what is published meanwhile stays.
        try:
            answer = await self._controller.get(Route.LIST_IMAGES.path())
        except ControllerError as error:
            log.warning("content.gc_of_chunks_only", reason=str(error))
            return
        published = {
            (image.get("name"), image.get("manifest", {}).get("list_digest"))
            for image in answer.get("images", [])
        }
        for image in here:
            meaning = image.name, image.signed.list_digest
            if meaning not in published and not image.pins and not self.reports.is_fetched(image.name):
                await self._let_go(image.name)

    async def _scrub(self) -> None:
        checked, bad = await in_slow_thread(self.store.scrub)
        before = self.reports.upkeep
        self.reports.upkeep = msgspec.structs.replace(
            before, scrubs=before.scrubs + 1, checked=checked, bad=bad
        )
        if not bad or self._caching is not None:  # A cache fetches when it is asked.
            return
        for image in list(self.store.images.values()):
            if self.store.missing(image):  # What was removed is fetched from others.
                self._begin(
                    image.name, functools.partial(self._ordered, image.name, "", False, image.segment)
                )

    async def run(self) -> None:
        """Go on with what was wanted, and report, for ever."""
        for image in [image for image in self.store.images.values() if image.wanted]:
            again = functools.partial(self._ordered, image.name, "", False, image.segment)
            self._begin(image.name, again)
        await self.reports.run()

    def _goes_on(self, name: str) -> bool:
        task = self._tasks.get(name)
        return task is not None and not task.done()

    async def close(self) -> None:
        if self._caching is not None:
            await self._caching.close()
        for task in self._tasks.values():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class FarVisitors:
    """Agents of another domain, which take chunks of what is published in this one, and bring none."""

    def __init__(self, serving: Serving, domain: str) -> None:
        self._serving, self._domain = serving, domain
        self._here = 0

    def knows(self, hello: dict[str, Any]) -> bool:
        return hello["type"] in HELLOS

    async def visit(self, channel: Channel, hello: dict[str, Any], *, manager: bool) -> None:
        try:
            if manager or hello["type"] != Word.CONTENT:
                reason = f"of domain {self._domain} agents fetch here, and nobody publishes"
                await channel.send_message(Word.REJECTED, reason=reason)
            elif self._here >= MOST_FAR:
                await channel.send_message(
                    Word.ABSENT, reason=f"{MOST_FAR} of that domain fetch here already"
                )
            else:
                self._here += 1
                try:
                    await self._serving.serve(channel, hello, far=True)
                finally:
                    self._here -= 1
        except (HypervisorError, TimeoutError) as error:
            log.debug("content.connection_ended", domain=self._domain, reason=str(error))
