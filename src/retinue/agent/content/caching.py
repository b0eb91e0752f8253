"""What makes a server's store a cache: what it lacks it fetches when somebody asks for it, and keeps it.

To a server that fetches, a cache is a holder that has everything. It asks other holders for what it lacks,
once, however many wait for it; what has come is checked and stored before it is handed on. Another cache is
told only what it has: so no two ever wait for each other.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from retinue.agent.content.fetching import Fetching
from retinue.agent.content.store import Store, StoredImage, StoreError
from retinue.core.content import ContentError
from retinue.protocol.errors import ControllerError
from retinue.security.signatures import SignatureError

WAIT_LIMIT = 30.0
"""Seconds for which a chunk is waited for before who asks is told that it is not here."""
IDLE_SECONDS = 30.0
"""After which nobody has asked for an image, and its holders are let go of."""

log = structlog.get_logger()


class Caching:
    """Fetches on demand. `close` it after use."""

    def __init__(
        self,
        store: Store,
        know: Callable[[str], Awaitable[StoredImage | None]],
        fetching: Callable[[StoredImage], contextlib.AbstractContextManager[Fetching]],
    ) -> None:
        """`know` asks what an image is that is not known here, or not so (ControllerError, SignatureError,
        ContentError, StoreError); `fetching` makes a fetch, which counts as such inside the context."""
        self._store, self._know, self._fetching = store, know, fetching
        self._asking: dict[str, asyncio.Task[StoredImage | None]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._fetches: dict[str, Fetching] = {}
        self._idle: dict[str, asyncio.TimerHandle] = {}
        self._waiting: dict[tuple[str, int], asyncio.Future[None]] = {}
        """By image and chunk; done once the chunk is here, or the fetch over."""

    async def image(self, name: str, list_digest: object) -> StoredImage | None:
        """An image that somebody asks for; None where it is not published, or nobody has its list.

        Asked for by another list than it has here, it may be another image by now."""
        known = self._store.images.get(name)
        if known is None or known.signed.list_digest != list_digest:
            if name not in self._asking:
                self._asking[name] = asyncio.create_task(self._ask(name), name=f"cache: list of {name}")
            await asyncio.shield(self._asking[name])
        return self._store.images.get(name)

    async def _ask(self, name: str) -> StoredImage | None:
        try:
            return await self._know(name)
        except (ControllerError, SignatureError, ContentError, StoreError) as error:
            log.warning("cache.image_not_known", image=name, reason=str(error))
            return None
        finally:
            del self._asking[name]

    async def fetch(self, image: StoredImage, chunk: int) -> None:
        """Return when the chunk has been stored, or will not come in time."""
        loop, name = asyncio.get_running_loop(), image.name
        if self._store.has(image.chunks[chunk]):
            return  # It has come since it was looked for.
        if name not in self._running:
            self._begin(image)
        if name in self._idle:
            self._idle[name].cancel()
        self._idle[name] = loop.call_later(IDLE_SECONDS, self._running[name].cancel)
        waiting = self._waiting.setdefault((name, chunk), loop.create_future())
        self._fetches[name].want([chunk])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_LIMIT):
                await asyncio.shield(waiting)

    def _begin(self, image: StoredImage) -> None:
        made = contextlib.ExitStack()
        self._fetches[image.name] = made.enter_context(self._fetching(image))
        running = self._run(image, self._fetches[image.name], made)
        self._running[image.name] = asyncio.create_task(running, name=f"cache: {image.name}")

    async def _run(self, image: StoredImage, fetching: Fetching, made: contextlib.ExitStack) -> None:
        try:
            with made:
                await fetching.run_on(image)
        except StoreError as error:
            log.warning("cache.not_kept", image=image.name, reason=str(error))
        finally:
            self._ended(image.name)

    def _ended(self, name: str) -> None:
        for known in (self._running, self._fetches):
            known.pop(name, None)
        if (timer := self._idle.pop(name, None)) is not None:
            timer.cancel()
        for image, chunk in [key for key in self._waiting if key[0] == name]:
            self.gained(image, chunk)

    def gained(self, name: str, chunk: int) -> None:
        """A chunk is here: who waits for it can have it."""
        if (waiting := self._waiting.pop((name, chunk), None)) is not None:
            waiting.set_result(None)

    async def forget(self, name: str) -> None:
        """Nothing more is fetched of an image."""
        if (task := self._running.get(name)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        tasks: list[asyncio.Task[StoredImage | None] | asyncio.Task[None]] = [
            *self._asking.values(),
            *self._running.values(),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
