"""What two ends say to each other about an image, on a connection between agents (see migration/peer.py).

one who fetches                              a holder
content image list wait                   -> accepted, and its bitmap    or  absent reason, and it hangs up
list                                      -> list, and the chunk list in parts
chunk n                                   -> chunk n, and its content    or  absent n
                                          <- has chunks: what it has gained meanwhile, unasked

one who publishes                            the agent it is published at
publish image                             -> accepted                    or  rejected reason
the chunk list in parts                   -> its bitmap                  or  rejected reason
chunk n, and its content; for each missing
end                                       -> done                        or  rejected reason, at any time
"""

from enum import StrEnum
from typing import Any

from retinue.core.content import Bitmap
from retinue.hypervisor.memory_channel import LONGEST_MEMORY, Channel, ChannelError


class Word(StrEnum):
    CONTENT = "content"
    PUBLISH = "publish"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    ABSENT = "absent"
    LIST = "list"
    CHUNK = "chunk"
    HAS = "has"
    END = "end"
    DONE = "done"


HELLOS = frozenset({Word.CONTENT, Word.PUBLISH})
"""First messages of a connection that is about an image."""


async def send_bytes(channel: Channel, data: bytes) -> None:
    """A chunk list, in parts. Raises ChannelError."""
    for at in range(0, len(data), LONGEST_MEMORY):
        await channel.send_memory(data[at : at + LONGEST_MEMORY])
    await channel.send_memory(b"")


async def receive_bytes(channel: Channel, length: int) -> bytes:
    """Exactly so many bytes, sent by `send_bytes`. Raises ChannelError."""
    found = bytearray()
    while part := await channel.receive():
        if not isinstance(part, bytes) or len(found) + len(part) > length:
            raise ChannelError("the other end sends something else than the chunk list")
        found += part
    if len(found) != length:
        raise ChannelError(f"a chunk list of {len(found)} bytes, where {length} are right")
    return bytes(found)


async def receive_bitmap(channel: Channel, chunks: int) -> Bitmap:
    """Raises ChannelError."""
    received = await channel.receive()
    try:
        if not isinstance(received, bytes) or not received:
            raise ValueError("no bitmap")
        return Bitmap(chunks, received)
    except ValueError as error:
        raise ChannelError(f"the other end sends no bitmap: {error}") from error


def number(message: dict[str, Any], chunks: int) -> int:
    """The chunk that a message is about. Raises ChannelError."""
    found = message.get("n")
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < chunks:
        raise ChannelError("the other end names a chunk that the image has not")
    return found


def numbers(message: dict[str, Any], chunks: int) -> list[int]:
    """The chunks that a notice is about. Raises ChannelError."""
    found = message.get("chunks")
    if not isinstance(found, list):
        raise ChannelError("the other end sends a notice without chunks")
    return [number({"n": one}, chunks) for one in found]
