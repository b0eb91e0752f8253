"""An image brought to this server by a manager, who has published its manifest at the controller before.

Only what the controller knows as published here is taken, and only what the manifest's digests allow; chunks
that are here already are not sent. An upload that breaks off is taken up again by publishing once more.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from retinue.agent.content.store import Store, StoredImage, StoreError
from retinue.agent.content.threads import in_thread
from retinue.agent.content.wire import Word, number, receive_bytes
from retinue.core.content import ContentError
from retinue.hypervisor.memory_channel import Channel, ChannelError
from retinue.protocol.images import ImageRecord

UPLOAD_LIMIT = 60.0
"""Seconds for the publisher to send a chunk, or the list."""


async def receive_upload(
    channel: Channel, record: ImageRecord, server: str, store: Store, gained: Callable[[str, int], None]
) -> None:
    """Take an upload to its end. Raises ChannelError, TimeoutError when the publisher breaks off.

    What is wrong with it is told to the publisher; `gained` is called for each chunk that is stored.
    """
    try:
        if record.origin != server:
            raise StoreError(f"{record.manifest.name} is published at {record.origin}: bring it there")
        await channel.send_message(Word.ACCEPTED)
        async with asyncio.timeout(UPLOAD_LIMIT):
            listed = await receive_bytes(channel, record.manifest.manifest.list_bytes)
        image = await in_thread(store.put_image, record.manifest, listed, record.origin)
        await channel.send_memory(bytes(await in_thread(store.bitmap, image)))
        await _receive_chunks(channel, image, store, gained)
        if left := await in_thread(store.missing, image):
            raise StoreError(f"{len(left)} chunks of {image.name} were not sent: publish it again")
        await channel.send_message(Word.DONE)
    except (ContentError, StoreError) as error:
        await channel.send_message(Word.REJECTED, reason=str(error))


async def _receive_chunks(
    channel: Channel, image: StoredImage, store: Store, gained: Callable[[str, int], None]
) -> None:
    while True:
        async with asyncio.timeout(UPLOAD_LIMIT):
            message = await channel.receive_message()
            if message["type"] == Word.END:
                return
            if message["type"] != Word.CHUNK:
                raise ChannelError("the publisher sends something else than chunks")
            chunk: int = number(message, len(image.chunks))
            data: Any = await channel.receive()
        if not isinstance(data, bytes):
            raise ChannelError("the publisher sends no chunk where one was due")
        await in_thread(store.put_chunk, image, chunk, data)
        gained(image.name, chunk)
