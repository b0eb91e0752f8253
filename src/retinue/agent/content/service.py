"""Content by name at one server: what the controller orders, what others ask for, and what is told of it all.

An order to fetch is kept with the image until the image is whole, over restarts. What is here is reported as
a whole whenever it has changed, and again to a controller that is back: the controller keeps no table of who
holds what, it is told.
"""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from retinue.agent.content.fetching import Fetching, Open, fetch_list
from retinue.agent.content.publishing import receive_upload
from retinue.agent.content.serving import Serving
from retinue.agent.content.store import Store, StoredImage, StoreError, make_base
from retinue.agent.content.threads import in_slow_thread, in_thread
from retinue.agent.content.wire import HELLOS, Word
from retinue.core.content import ContentError, Patience
from retinue.core.limits import LARGEST_REPORT
from retinue.core.text import cut, printable
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.memory_channel import Channel
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode, RejectedError
from retinue.protocol.events import ControllerEvent, EventType
from retinue.protocol.images import (
    HeldImage,
    ImageRecord,
    ImagesBody,
    ImageState,
    SignedManifest,
    StoreUse,
    Upkeep,
)
from retinue.protocol.records import record
from retinue.protocol.routes import Route
from retinue.security.signatures import SignatureError, check

REPORT_SECONDS = 0.5
"""Between two reports, at the least."""
SHORT_REASON = 100
"""Characters of a reason, in a report that would be too long."""
FETCH_AGAIN_SECONDS = 1.0
"""Before a fetch that could not begin is tried again."""

log = structlog.get_logger()


class Controller(Protocol):
    """What is needed of the controller (protocol.client). Raises ControllerError."""

    async def get(self, path: str) -> dict[str, Any]: ...

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]: ...


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
    ) -> None:
        """`ca`: whose managers may publish; None, without certificates: anybody. `address`: where this agent
        listens."""
        self.server, self.store = server, store
        self._controller, self._open, self._address, self._ca = controller, open, address, ca
        self._patience = patience
        self.serving = Serving(store)
        self._fetches: dict[str, Fetching] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._last: dict[str, Fetching] = {}
        """By image: the last fetch that has brought something."""
        self._reasons: dict[str, str] = {}
        """By image: why it cannot be fetched."""
        self._orders: dict[str, int] = {}
        """By image: the id of the last order to fetch it."""
        self._faults: Counter[str] = Counter()
        self._upkeep = Upkeep()
        self._held_bytes: dict[str, tuple[int, int]] = {}
        """By image: what it has of its size, and at which of the store's changes that was counted."""
        self._told: Any = None

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
        found = record(ImageRecord, await self._controller.get(Route.GET_IMAGE.path(name)))
        if found.manifest.name != name:
            raise ContentError(f"the controller was asked for {name}, and answers {found.manifest.name}")
        self._believe(found.manifest)
        return found

    def _believe(self, signed: SignedManifest) -> None:
        manifest = signed.manifest
        if self._ca is not None:
            check(manifest.signed, signed.signature, signed.certificate, self._ca, manifest.published_at)

    # ---- orders ----

    def on_event(self, event: ControllerEvent) -> None:
        """Act on an event of the controller, in the background."""
        match event.type:
            case EventType.IMAGE_FETCH if event.server == self.server:
                self._orders[event.image] = event.id
                self._reasons.pop(event.image, None)  # Of an earlier fetch.
                self._begin(event.image, lambda: self._ordered(event.image, event.pin, event.base))
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

    async def _ordered(self, name: str, pin: str, base: bool) -> None:
        image = self.store.images.get(name)
        if image is None:
            with self.serving.expecting(name):
                image = await self._known_in_the_end(name)
        if image is None:
            return
        if pin:
            await in_thread(self.store.pin, image, pin, on=True)
        image.wanted, image.base = True, image.base or base
        await in_thread(self.store.save, image)
        await self._fetch(image)

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
                self._reasons[name] = str(error)
            except (ControllerError, SignatureError, ContentError) as error:
                self._reasons[name] = str(error)
                log.warning("content.not_believed", image=name, reason=str(error))
                return None
            await asyncio.sleep(FETCH_AGAIN_SECONDS)

    async def _know(self, name: str) -> StoredImage | None:
        """An image of which nothing is here yet: its manifest, and its chunk list from some holder."""
        found = await self._record(name)
        for holder in found.holders:
            if holder.server == self.server:
                continue
            try:
                listed = await fetch_list(self._open, found.manifest.manifest, holder, self.server)
                return await in_thread(self.store.put_image, found.manifest, listed, found.origin)
            except ContentError as error:
                self._faults[holder.server] += 1
                log.warning("content.bad_list", image=name, holder=holder.server, reason=str(error))
            except (HypervisorError, TimeoutError) as error:
                log.info("content.no_list", image=name, holder=holder.server, reason=str(error))
        self._reasons[name] = "no server that can be reached holds it"
        return None

    async def _fetch(self, image: StoredImage) -> None:
        self._reasons.pop(image.name, None)
        fetching = Fetching(
            self.server,
            self.store,
            self._open,
            lambda: self._record(image.name),
            lambda chunk: self.serving.gained(image.name, chunk),
            self._bad,
            self._patience,
        )
        self._fetches[image.name] = fetching
        try:
            await fetching.run(image)
            if image.base:
                await self._make_base(image, fetching)
            image.wanted = False
            await in_thread(self.store.save, image)
        except StoreError as error:
            self._reasons[image.name] = str(error)
            raise
        finally:
            ended = self._fetches.pop(image.name)
            if ended.origins or image.name not in self._last:
                self._last[image.name] = ended

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
        self._faults[holder] += 1

    async def _unpin(self, name: str, pin: str) -> None:
        if image := self.store.images.get(name):
            await in_thread(self.store.pin, image, pin, on=False)

    async def _remove(self, name: str) -> None:
        if fetching := self._tasks.pop(name, None):
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        await self._let_go(name)

    async def _let_go(self, name: str) -> None:
        """Raises StoreError when it is pinned."""
        await in_thread(self.store.remove_image, name)
        self._last.pop(name, None)
        self._reasons.pop(name, None)
        self._orders.pop(name, None)
        self._held_bytes.pop(name, None)

    async def _collect(self) -> None:
        await self._remove_what_is_published_no_more()
        freed = await in_slow_thread(self.store.collect)
        self._upkeep = msgspec.structs.replace(self._upkeep, gcs=self._upkeep.gcs + 1, freed=freed)

    async def _remove_what_is_published_no_more(self) -> None:
        """What was removed while this agent was away."""
        here = list(self.store.images.values())  # Before it is asked: what is published meanwhile stays.
        try:
            answer = await self._controller.get(Route.LIST_IMAGES.path())
        except ControllerError as error:
            log.warning("content.gc_of_chunks_only", reason=str(error))
            return
        published = {image.get("name") for image in answer.get("images", [])}
        for image in here:
            if image.name not in published and not image.pins and image.name not in self._fetches:
                await self._let_go(image.name)

    async def _scrub(self) -> None:
        checked, bad = await in_slow_thread(self.store.scrub)
        scrubs = self._upkeep.scrubs + 1
        self._upkeep = msgspec.structs.replace(self._upkeep, scrubs=scrubs, checked=checked, bad=bad)
        for image in list(self.store.images.values()) if bad else []:
            if self.store.missing(image):  # What was removed is fetched from others.
                self._begin(image.name, functools.partial(self._ordered, image.name, "", False))

    # ---- reports ----

    def again(self) -> None:
        """The controller is back: tell it all."""
        self._told = None

    async def run(self) -> None:
        """Go on with what was wanted, and report, for ever."""
        for image in [image for image in self.store.images.values() if image.wanted]:
            self._begin(image.name, functools.partial(self._ordered, image.name, "", False))
        while True:
            body = await self._report()
            if body != self._told:
                await self._tell(body)
            await asyncio.sleep(REPORT_SECONDS)

    async def _tell(self, body: dict[str, Any]) -> None:
        self._told = body  # Before it is sent: `again` may come meanwhile.
        try:
            await self._controller.post(Route.REPORT_IMAGES.path(self.server), body)
        except ControllerAwayError:
            self.again()
        except ControllerError as error:
            if isinstance(error, RejectedError) and error.code == ErrorCode.UNKNOWN_SERVER:
                self.again()  # This server may be registered yet.
                return
            log.warning("content.report_not_accepted", reason=str(error))

    async def _report(self) -> dict[str, Any]:
        images = [await self._held(image) for image in list(self.store.images.values())]
        # Of images that nothing is known of here but that they are not there yet.
        images += [
            HeldImage(
                name,
                "",
                ImageState.FETCHING if self._goes_on(name) else ImageState.FAILED,
                0,
                cut(printable(self._reasons.get(name, ""))),
                order=self._orders.get(name, 0),
            )
            for name in {**self._reasons, **self._orders}
            if name not in self.store.images and (name in self._reasons or self._goes_on(name))
        ]
        use = StoreUse(self.store.used, self.store.quota, self.serving.sent)
        body = ImagesBody(self._address(), images, use, self._upkeep, dict(self._faults))
        return _fitting(body)

    def _goes_on(self, name: str) -> bool:
        task = self._tasks.get(name)
        return task is not None and not task.done()

    async def _held(self, image: StoredImage) -> HeldImage:
        changes, held = self._held_bytes.get(image.name, (-1, 0))
        if changes != self.store.changes:
            changes = self.store.changes
            held = await in_thread(self.store.held_bytes, image)
            self._held_bytes[image.name] = changes, held
        fetching = self._fetches.get(image.name) or self._last.get(image.name)
        under_way, reason = self._goes_on(image.name), self._reasons.get(image.name, "")
        if held == image.signed.size and not under_way and not reason:
            state = ImageState.HELD
        elif under_way:
            state = ImageState.FETCHING
            reason = fetching.trouble if fetching is not None and image.name in self._fetches else reason
        else:
            state = ImageState.FAILED if reason else ImageState.PARTIAL
        return HeldImage(
            image.name,
            image.signed.list_digest,
            state,
            held,
            cut(printable(reason)),
            rate=fetching.rate if fetching is not None and under_way else 0.0,
            origins=dict(fetching.origins) if fetching is not None else {},
            fallbacks=fetching.fallbacks if fetching is not None else 0,
            pins=list(image.pins),
            base=await in_thread(self.store.base_file(image.name).exists),
            order=self._orders.get(image.name, 0),
        )

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _fitting(body: ImagesBody) -> dict[str, Any]:
    """The report, without what is only good to know where it would be too long for the controller."""
    built: dict[str, Any] = msgspec.to_builtins(body)
    if len(msgspec.json.encode(built)) > LARGEST_REPORT:
        for image in built["images"]:
            image["origins"], image["pins"] = {}, image["pins"][:1]
            image["reason"] = cut(image["reason"], SHORT_REASON)
    return built
