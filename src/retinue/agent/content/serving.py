"""What others take from this server's store: chunks, one after another, to any agent that knows the name.

Each connection is about one image, and asks for one chunk at a time, or several ahead. Who listens is told
what the store gains meanwhile, so that those who fetch the same image at once can fetch from each other.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import structlog

from retinue.agent.content.store import Store, StoredImage
from retinue.agent.content.threads import in_thread
from retinue.agent.content.wire import Word, number, send_bytes
from retinue.hypervisor.memory_channel import Channel, ChannelError

REQUEST_LIMIT = 60.0
"""Seconds for which a connection may ask for nothing."""
LIST_WAIT_LIMIT = 5.0
"""Seconds for which one who fetches waits until the list of the image is here, too."""
SEND_LIMIT = 30.0
"""Seconds for one chunk to be taken."""
MOST_READERS = 64
"""Connections at once; more are sent away, and come again."""
NOTICE_CHUNKS = 4096
"""Chunks in one notice: it stays within a message's limit."""

log = structlog.get_logger()


class _Reader:
    """One connection: answers and notices must not be mixed."""

    def __init__(self, channel: Channel, image: StoredImage) -> None:
        self.channel, self.image = channel, image
        self.gained: list[int] = []
        self.news = asyncio.Event()
        self.turn = asyncio.Lock()


class Serving:
    """Serves the chunks of a store."""

    def __init__(self, store: Store) -> None:
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

    @contextlib.contextmanager
    def expecting(self, image: str) -> Iterator[None]:
        """Inside the context the image's list is on its way: who wants to fetch from here may wait for it."""
        known = self._expected.setdefault(image, asyncio.Event())
        try:
            yield
        finally:
            self._expected.pop(image, None)
            known.set()

    async def _image(self, hello: dict[str, Any]) -> StoredImage | None:
        name = str(hello.get("image"))
        if name not in self._store.images and name in self._expected and hello.get("wait") is True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIST_WAIT_LIMIT):
                    await self._expected[name].wait()
        return self._store.images.get(name)

    async def serve(self, channel: Channel, hello: dict[str, Any]) -> None:
        """Until the other end hangs up. Raises ChannelError, TimeoutError."""
        image = await self._image(hello)
        if image is None or image.signed.list_digest != hello.get("list"):
            await channel.send_message(Word.ABSENT, reason="no such image is here")
            return
        if len(self._readers) >= MOST_READERS:
            await channel.send_message(Word.ABSENT, reason=f"{MOST_READERS} fetch here already")
            return
        reader = _Reader(channel, image)
        self._readers.add(reader)  # Before the bitmap is made: nothing that is gained meanwhile is missed.
        try:
            bitmap = await in_thread(self._store.bitmap, image)
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
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
        finally:
            self._readers.discard(reader)

    async def _answer(self, reader: _Reader, request: dict[str, Any]) -> None:
        channel, image = reader.channel, reader.image
        match request["type"]:
            case Word.LIST:
                await channel.send_message(Word.LIST)
                await send_bytes(channel, image.chunks.data)
            case Word.CHUNK:
                chunk = number(request, len(image.chunks))
                data = await in_thread(self._store.get_chunk, image, chunk)
                if not data:
                    await channel.send_message(Word.ABSENT, n=chunk)
                    return
                await channel.send_message(Word.CHUNK, n=chunk)
                await channel.send_memory(data[: image.chunks.manifest.length_of(chunk)])
                self.sent += len(data)
            case other:
                raise ChannelError(f"{other!r} is nothing that a holder is asked")

    async def _tell(self, reader: _Reader) -> None:
        while True:
            await reader.news.wait()
            reader.news.clear()
            while gained := reader.gained[:NOTICE_CHUNKS]:
                del reader.gained[:NOTICE_CHUNKS]
                async with reader.turn:
                    await reader.channel.send_message(Word.HAS, chunks=gained)
