"""What others take from this server's store: chunks, one after another, to any agent that knows the name.

Each connection is about one image, and asks for one chunk at a time, or several ahead. Who listens is told
what the store gains meanwhile, so that those who fetch the same image at once can fetch from each other.

A cache tells servers that it has everything, and answers later what it has to fetch first (see caching.py).
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import structlog

from retinue.agent.content.caching import Caching
from retinue.agent.content.store import Store, StoredImage
from retinue.agent.content.threads import in_thread
from retinue.agent.content.wire import Word, number, send_bytes
from retinue.core.content import Bitmap
from retinue.core.limits import ID
from retinue.hypervisor.memory_channel import Channel, ChannelError
from retinue.protocol.images import domain_of

REQUEST_LIMIT = 60.0
"""Seconds for which a connection may ask for nothing."""
LIST_WAIT_LIMIT = 5.0
"""Seconds for which one who fetches waits until the list of the image is here, too."""
SEND_LIMIT = 30.0
"""Seconds for one chunk to be taken."""
MOST_READERS = 64
"""Connections at once; more are sent away, and come again."""
MOST_LATER = 16
"""Chunks that one connection may wait for while a cache fetches them."""
NOTICE_CHUNKS = 4096
"""Chunks in one notice: it stays within a message's limit."""

log = structlog.get_logger()


class _Reader:
    """One connection: answers and notices must not be mixed."""

    def __init__(self, channel: Channel, image: StoredImage, caching: Caching | None) -> None:
        self.channel, self.image, self.caching = channel, image, caching
        self.later: set[asyncio.Task[None]] = set()
        """Answers that are to come."""
        self.gained: list[int] = []
        self.news = asyncio.Event()
        self.turn = asyncio.Lock()


class Serving:
    """Serves the chunks of a store, a cache's with `caching`."""

    def __init__(self, store: Store, caching: Caching | None = None) -> None:
        self._caching = caching
        self.sent: int = 0
        """Bytes of chunks."""
        self._store = store
        self._readers: set[_Reader] = set()
        self._expected: dict[str, asyncio.Event] = {}
        """By image that is to be fetched, and whose list is not here yet."""

    def gained(self, image: str, chunk: int) -> None:
        """Tell those who fetch this image that a chunk more is here."""
        for reader in self._readers:
            if reader.image.name == image:
                reader.gained.append(chunk)
                reader.news.set()
        if self._caching is not None:
            self._caching.gained(image, chunk)

    @contextlib.contextmanager
    def expecting(self, image: str) -> Iterator[None]:
        """Inside the context the image's list is on its way: who wants to fetch from here may wait for it."""
        known = self._expected.setdefault(image, asyncio.Event())
        try:
            yield
        finally:
            self._expected.pop(image, None)
            known.set()

    async def _image(self, hello: dict[str, Any], caching: Caching | None) -> StoredImage | None:
        name = str(hello.get("image"))
        if not ID.fullmatch(name):
            return None  # A cache would ask the controller, and log it.
        if caching is not None:
            return await caching.image(name, hello.get("list"))
        if name not in self._store.images and name in self._expected and hello.get("wait") is True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIST_WAIT_LIMIT):
                    await self._expected[name].wait()
        return self._store.images.get(name)

    async def serve(self, channel: Channel, hello: dict[str, Any], *, far: bool = False) -> None:
        """Until the other end hangs up. Raises ChannelError, TimeoutError.

        `far`: an agent of another domain, which gets images of ours alone. A cache fetches for a cache there:
        what is published here it never asks for elsewhere, so that none waits for itself.
        """
        caching = self._caching if far or hello.get("cache") is not True else None
        image = await self._image(hello, caching)
        if image is not None and far and domain_of(image.origin):
            image = None
        if image is None or image.signed.list_digest != hello.get("list"):
            await channel.send_message(Word.ABSENT, reason="no such image is here")
            return
        if len(self._readers) >= MOST_READERS:
            await channel.send_message(Word.ABSENT, reason=f"{MOST_READERS} fetch here already")
            return
        reader = _Reader(channel, image, caching)
        self._readers.add(reader)  # Before the bitmap is made: nothing that is gained meanwhile is missed.
        try:
            if caching is None:
                bitmap = await in_thread(self._store.bitmap, image)
            else:
                bitmap = Bitmap.full(len(image.chunks))
            await channel.send_message(Word.ACCEPTED)
            await channel.send_memory(bytes(bitmap))
            telling = asyncio.create_task(self._tell(reader))
            try:
                while True:
                    async with asyncio.timeout(REQUEST_LIMIT):
                        request = await channel.receive_message()
                    async with asyncio.timeout(SEND_LIMIT), reader.turn:
                        await self._answer(reader, request)
            finally:
                work = [telling, *reader.later]
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
        finally:
            self._readers.discard(reader)

    async def _answer(self, reader: _Reader, request: dict[str, Any]) -> None:
        match request["type"]:
            case Word.LIST:
                await reader.channel.send_message(Word.LIST)
                await send_bytes(reader.channel, reader.image.chunks.data)
            case Word.CHUNK:
                chunk = number(request, len(reader.image.chunks))
                data = await self._read(reader, chunk)
                if not data and reader.caching is not None and len(reader.later) < MOST_LATER:
                    later = asyncio.create_task(self._answer_later(reader, reader.caching, chunk))
                    reader.later.add(later)
                    later.add_done_callback(reader.later.discard)
                    return
                await self._send(reader, chunk, data)
            case other:
                raise ChannelError(f"{other!r} is nothing that a holder is asked")

    async def _read(self, reader: _Reader, chunk: int) -> bytes | None:
        """A cache hands on nothing that has gone bad on its disk."""
        get = self._store.get_chunk if reader.caching is None else self._store.get_good_chunk
        return await in_thread(get, reader.image, chunk)

    async def _send(self, reader: _Reader, chunk: int, data: bytes | None) -> None:
        if not data:
            await reader.channel.send_message(Word.ABSENT, n=chunk)
            return
        await reader.channel.send_message(Word.CHUNK, n=chunk)
        await reader.channel.send_memory(data[: reader.image.chunks.manifest.length_of(chunk)])
        self.sent += len(data)

    async def _answer_later(self, reader: _Reader, caching: Caching, chunk: int) -> None:
        await caching.fetch(reader.image, chunk)
        try:
            async with asyncio.timeout(SEND_LIMIT), reader.turn:
                await self._send(reader, chunk, await self._read(reader, chunk))
        except (ChannelError, TimeoutError):
            reader.channel.abort()  # Half an answer may be on its way.

    async def _tell(self, reader: _Reader) -> None:
        while True:
            await reader.news.wait()
            reader.news.clear()
            while gained := reader.gained[:NOTICE_CHUNKS]:
                del reader.gained[:NOTICE_CHUNKS]
                async with reader.turn:
                    await reader.channel.send_message(Word.HAS, chunks=gained)
