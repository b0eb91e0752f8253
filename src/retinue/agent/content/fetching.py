"""One image fetched by this server: connections to its holders; the pure `Fetch` says what to ask of whom.

Who holds the image is asked of the controller, again and again, since holders come and go; no list of places
is configured. Every chunk is checked before it is stored. What is here already, of this image or of another,
is not fetched.
"""

import asyncio
import contextlib
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import structlog

from retinue.agent.content.store import Store, StoredImage, StoreError
from retinue.agent.content.threads import in_thread
from retinue.agent.content.wire import Word, number, numbers, receive_bitmap, receive_bytes
from retinue.core.content import (
    Ask,
    ContentError,
    Distance,
    Effect,
    Fetch,
    HolderRejected,
    Manifest,
    Patience,
)
from retinue.core.histogram import QUICK, Histogram
from retinue.hypervisor import HypervisorError
from retinue.hypervisor.memory_channel import Channel, ChannelError
from retinue.protocol.errors import ControllerAwayError, ControllerError
from retinue.protocol.images import HolderRecord, ImageRecord, domain_of
from retinue.security.signatures import SignatureError

TICK_SECONDS = 0.25
HOLDERS_SECONDS = 1.0
"""Between two questions to the controller who holds the image."""
AGAIN_SECONDS = 1.0
"""Before a holder that could not be reached, or hung up, is tried again."""
ANSWER_LIMIT = 10.0
"""Seconds for a holder to say what it has."""
LIST_LIMIT = 30.0
"""Seconds for a holder to send the chunk list."""

log = structlog.get_logger()

Open = Callable[[str, str], Awaitable[Channel]]
"""A connection to the agent of a server at an address. Raises HypervisorError."""
Published = Callable[[], Awaitable[ImageRecord]]
"""The image as the controller has it now. Raises ControllerError, SignatureError, ContentError."""


class Fetching:
    """One fetch, from `run` to its end; what it has done can be looked at meanwhile."""

    def __init__(
        self,
        server: str,
        store: Store,
        open: Open,
        record: Published,
        gained: Callable[[int], None],
        rejected: Callable[[str], None],
        patience: Patience | None = None,
        times: Histogram | None = None,
        *,
        cache: bool = False,
    ) -> None:
        """`gained` is called with each chunk that is stored, `rejected` with who sent a bad one; `times` has
        how long each took from the question until it was stored. `cache`: this server is one."""
        self.server = server
        self.origins: Counter[str] = Counter()
        """Bytes that were stored, by the server that sent them."""
        self.began = 0.0
        self._trouble = ""
        self._store, self._open, self._record = store, open, record
        self._gained, self._rejected, self._cache = gained, rejected, cache
        self._times = times or Histogram(QUICK)
        self._asked_at: dict[str, dict[int, float]] = {}
        """By holder and chunk, while it is not answered."""
        self._fetch = Fetch([], zlib.crc32(server.encode()), patience)
        self._lasting = False
        self._origin = ""
        self._links: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[str, asyncio.Queue[int]] = {}
        self._over = asyncio.Event()
        self._failure: StoreError | None = None

    @property
    def rate(self) -> float:
        """Bytes a second, so far."""
        spent = asyncio.get_running_loop().time() - self.began
        return sum(self.origins.values()) / spent if self.began and spent > 0 else 0.0

    @property
    def trouble(self) -> str:
        """Why it does not go on, as far as is known; "" while there is somebody to ask."""
        now = asyncio.get_running_loop().time()
        if "good" in self._fetch.standing(now).values():
            return ""
        return self._trouble

    @property
    def fallbacks(self) -> int:
        return self._fetch.fallbacks

    async def run(self, image: StoredImage) -> None:
        """Fetch what is missing of what is wanted, however long it takes. Raises StoreError when there is no
        room."""
        missing = await in_thread(self._store.missing, image, image.segment)
        self._over.clear()
        self.want(missing)
        await self._run(image)

    async def run_on(self, image: StoredImage) -> None:
        """Fetch what is asked for (`want`), until it is cancelled. Raises StoreError: there is no room."""
        self._lasting = True
        await self._run(image)

    def want(self, chunks: Iterable[int]) -> None:
        """Fetch these, too."""
        self._do(self._fetch.want(chunks, asyncio.get_running_loop().time()))

    async def _run(self, image: StoredImage) -> None:
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        self._origin = image.origin
        looking = asyncio.create_task(self._look_for_holders(image))
        try:
            while (self._lasting or not self._fetch.done) and self._failure is None:
                self._do(self._fetch.tick(loop.time()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._over.wait()
        finally:
            work = [looking, *self._links.values()]
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask(holder, chunk):
                    if holder in self._asking:
                        self._asked_at[holder][chunk] = asyncio.get_running_loop().time()
                        self._asking[holder].put_nowait(chunk)
                case HolderRejected(holder, chunk):
                    log.warning("content.bad_chunk", holder=holder, chunk=chunk)
                    self._rejected(holder)
        if self._fetch.done and not self._lasting:
            self._over.set()

    # ---- holders ----

    async def _look_for_holders(self, image: StoredImage) -> None:
        while True:
            try:
                record = await self._record()
                self._meet(image, record.holders)
            except ControllerAwayError as error:  # Holders that are known are asked meanwhile.
                log.warning("content.controller_away", image=image.name, error=str(error))
            except (ControllerError, SignatureError, ContentError) as error:
                self._trouble = str(error)  # The next answer may be a better one.
            await asyncio.sleep(HOLDERS_SECONDS)

    def _meet(self, image: StoredImage, holders: list[HolderRecord]) -> None:
        others = [holder for holder in holders if holder.server != self.server and holder.address]
        self._trouble = "" if others else "no other server holds it"
        for holder in others:
            if self._distance(holder) is Distance.NEAR:
                self._fetch.expected(holder.server, asyncio.get_running_loop().time())
        for holder in others:
            if holder.server not in self._links or self._links[holder.server].done():
                self._links[holder.server] = asyncio.create_task(self._follow(image, holder))

    async def _follow(self, image: StoredImage, holder: HolderRecord) -> None:
        """One connection to a holder, until it ends."""
        loop, name = asyncio.get_running_loop(), holder.server
        try:
            try:
                channel = await self._open(holder.address, name)
            except HypervisorError:
                self._do(self._fetch.left(name, loop.time()))
                raise
            asking: asyncio.Queue[int] = asyncio.Queue()
            self._asking[name], self._asked_at[name] = asking, {}
            try:
                await greet(channel, image.signed.manifest, self.server, wait=True, cache=self._cache)
                async with asyncio.timeout(ANSWER_LIMIT):
                    has = await receive_bitmap(channel, len(image.chunks))
                self._do(self._fetch.joined(name, has, loop.time(), self._distance(holder)))
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._send_questions(channel, asking))
                    both.create_task(self._take_answers(channel, image, name))
            finally:
                del self._asking[name], self._asked_at[name]
                self._do(self._fetch.left(name, loop.time()))
                channel.abort()
        except* (HypervisorError, TimeoutError, OSError) as errors:
            why = str(_first(errors)) or "it says nothing"
            self._trouble = self._trouble or f"{name}: {why}"
            log.info("content.holder_lost", holder=name, error=why)
        except* StoreError as errors:
            failure = _first(errors)
            assert isinstance(failure, StoreError)
            self._failure = failure
            self._over.set()
        await asyncio.sleep(AGAIN_SECONDS)

    def _distance(self, holder: HolderRecord) -> Distance:
        if holder.server == self._origin or domain_of(holder.server):
            return Distance.ORIGIN  # What is between domains is spared as the origin is.
        return Distance.NEAR if holder.near else Distance.FAR

    async def _send_questions(self, channel: Channel, asking: "asyncio.Queue[int]") -> None:
        while True:
            await channel.send_message(Word.CHUNK, n=await asking.get())

    async def _take_answers(self, channel: Channel, image: StoredImage, name: str) -> None:
        loop, chunks = asyncio.get_running_loop(), len(image.chunks)
        while True:
            message = await channel.receive_message()
            match message["type"]:
                case Word.HAS:
                    self._do(self._fetch.gained(name, numbers(message, chunks), loop.time()))
                case Word.ABSENT:
                    chunk = number(message, chunks)
                    self._asked_at[name].pop(chunk, None)
                    self._do(self._fetch.absent(name, chunk, loop.time()))
                case Word.CHUNK:
                    chunk = number(message, chunks)
                    data = await channel.receive()
                    if not isinstance(data, bytes):
                        raise ChannelError("the other end sends no chunk where one was due")
                    await self._keep(image, name, chunk, data)
                case other:
                    raise ChannelError(f"{other!r} is no answer of a holder")

    async def _keep(self, image: StoredImage, name: str, chunk: int, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        asked_at = self._asked_at[name].pop(chunk, None)
        if chunk not in self._fetch.wanted:
            self._do(self._fetch.arrived(name, chunk, loop.time(), good=True))
            return  # The second answer of two, or one that nobody asked for: it is not even looked at.
        try:
            await in_thread(self._store.put_chunk, image, chunk, data)
        except ContentError as error:
            self._do(self._fetch.arrived(name, chunk, loop.time(), good=False))
            # Whatever else it sends on this connection is not even read.
            raise ChannelError(str(error)) from error
        self.origins[name] += len(data)
        if asked_at is not None:
            self._times.observe(loop.time() - asked_at)
        self._gained(chunk)
        self._do(self._fetch.arrived(name, chunk, loop.time(), good=True))


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def greet(
    channel: Channel, manifest: Manifest, server: str, *, wait: bool, cache: bool = False
) -> None:
    """Say which image a connection is about. Raises ChannelError when it is not there, TimeoutError.

    `wait`: until the other end, which has been ordered to fetch it too, has its list. `cache`: this end is
    one, and takes from another only what that has.
    """
    async with asyncio.timeout(ANSWER_LIMIT):
        await channel.send_message(
            Word.CONTENT,
            image=manifest.name,
            list=manifest.list_digest,
            server=server,
            wait=wait,
            cache=cache,
        )
        answer = await channel.receive_message()
    if answer["type"] != Word.ACCEPTED:
        raise ChannelError(str(answer.get("reason", "it does not hold the image"))[:200])


async def fetch_list(
    open: Open, manifest: Manifest, holder: HolderRecord, server: str, *, cache: bool = False
) -> bytes:
    """The chunk list, from one holder, unchecked. Raises HypervisorError, TimeoutError."""
    channel = await open(holder.address, holder.server)
    try:
        await greet(channel, manifest, server, wait=False, cache=cache)
        async with asyncio.timeout(LIST_LIMIT):
            await receive_bitmap(channel, manifest.chunks)
            await channel.send_message(Word.LIST)
            while (await channel.receive_message())["type"] == Word.HAS:
                pass
            return await receive_bytes(channel, manifest.list_bytes)
    finally:
        channel.abort()
