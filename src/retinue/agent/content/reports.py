"""What an agent tells the controller of the images at its server.

It is told as a whole whenever it has changed, and again to a controller that is back: the controller keeps no
table of who holds what.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import structlog

from retinue.agent.content.fetching import Fetching
from retinue.agent.content.serving import Serving
from retinue.agent.content.store import Store, StoredImage
from retinue.agent.content.threads import in_thread
from retinue.core.histogram import QUICK, Histogram
from retinue.core.limits import LARGEST_REPORT
from retinue.core.text import cut, printable
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode, RejectedError
from retinue.protocol.images import ChunkTimes, HeldImage, ImagesBody, ImageState, StoreUse, Upkeep
from retinue.protocol.routes import Route

REPORT_SECONDS = 0.5
"""Between two reports, at the least."""
SHORT_REASON = 100
"""Characters of a reason, in a report that would be too long."""

log = structlog.get_logger()


class Controller(Protocol):
    """What is needed of the controller (protocol.client). Raises ControllerError."""

    async def get(self, path: str) -> dict[str, Any]: ...

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]: ...


class ContentReports:
    """What is told of one server's store beside what is in it, and the telling."""

    def __init__(
        self,
        server: str,
        store: Store,
        serving: Serving,
        controller: Controller,
        address: Callable[[], str],
        goes_on: Callable[[str], bool],
        doors: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """`address`: where this agent listens; `doors`: by domain, where it does for that domain's agents.
        `goes_on`: whether something is being done with an image."""
        self.server, self.store, self._serving = server, store, serving
        self._controller, self._address, self._goes_on = controller, address, goes_on
        self._doors = doors
        self.reasons: dict[str, str] = {}
        """By image: why it cannot be fetched."""
        self.orders: dict[str, int] = {}
        """By image: the number of the last order to fetch it."""
        self.faults: Counter[str] = Counter()
        """By server: chunks and lists that were not what they should be."""
        self.upkeep = Upkeep()
        self.times = Histogram(QUICK)
        """From the question for a chunk until it is stored."""
        self._fetches: dict[str, Fetching] = {}
        self._last: dict[str, Fetching] = {}
        """By image: the last fetch that has brought something."""
        self._held_bytes: dict[str, tuple[int, int]] = {}
        """By image: what it has of its size, and at which of the store's changes that was counted."""
        self._told: Any = None

    def began(self, image: str, fetching: Fetching) -> None:
        self._fetches[image] = fetching

    def ended(self, image: str, ended: Fetching) -> None:
        """The fetch has ended, whether it has brought something or not."""
        if self._fetches.get(image) is ended:
            del self._fetches[image]
        if ended.origins or image not in self._last:
            self._last[image] = ended

    def is_fetched(self, image: str) -> bool:
        return image in self._fetches

    def forget(self, image: str) -> None:
        """It is here no longer."""
        for known in (self._last, self.reasons, self.orders, self._held_bytes):
            known.pop(image, None)

    def again(self) -> None:
        """The controller is back: tell it all."""
        self._told = None

    async def run(self) -> None:
        """Report, for ever."""
        while True:
            body = await self.report()
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

    async def report(self) -> dict[str, Any]:
        """What is to be told now."""
        images = [await self._held(image) for image in list(self.store.images.values())]
        # Of images that nothing is known of here but that they are not there yet.
        images += [
            HeldImage(
                name,
                "",
                ImageState.FETCHING if self._goes_on(name) else ImageState.FAILED,
                0,
                cut(printable(self.reasons.get(name, ""))),
                order=self.orders.get(name, 0),
            )
            for name in {**self.reasons, **self.orders}
            if name not in self.store.images and (name in self.reasons or self._goes_on(name))
        ]
        use = StoreUse(self.store.used, self.store.quota, self._serving.sent)
        times = ChunkTimes(list(self.times.counts), self.times.seconds)
        body = ImagesBody(self._address(), images, use, self.upkeep, dict(self.faults), times, self._doors())
        return _fitting(body)

    async def _held(self, image: StoredImage) -> HeldImage:
        changes, held = self._held_bytes.get(image.name, (-1, 0))
        if changes != self.store.changes:
            changes = self.store.changes
            held = await in_thread(self.store.held_bytes, image)
            self._held_bytes[image.name] = changes, held
        fetching = self._fetches.get(image.name) or self._last.get(image.name)
        under_way, reason = self._goes_on(image.name), self.reasons.get(image.name, "")
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
            order=self.orders.get(image.name, 0),
        )


def _fitting(body: ImagesBody) -> dict[str, Any]:
    """The report, without what is only good to know where it would be too long for the controller."""
    built: dict[str, Any] = msgspec.to_builtins(body)
    if not body.doors:
        del built["doors"]
    if len(msgspec.json.encode(built)) > LARGEST_REPORT:
        for image in built["images"]:
            image["origins"], image["pins"] = {}, image["pins"][:1]
            image["reason"] = cut(image["reason"], SHORT_REASON)
    return built
