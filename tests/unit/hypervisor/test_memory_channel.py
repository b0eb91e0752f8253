"""The connection over which memory goes: compressed where that helps, and never more than is agreed."""

import asyncio
import os
import zlib
from typing import Any

import pytest

from retinue.hypervisor.memory_channel import (
    COMPRESSED,
    LONGEST_MEMORY,
    Channel,
    ChannelError,
    channel_pair,
)


async def sent(nbytes: bytes, *, compress: bool) -> tuple[int, bytes]:
    """Bytes that went over, and what came of them."""
    here, there = await channel_pair()
    here.compress = compress
    went = 0
    write = here._writer.write

    def count(nbytes: Any) -> None:
        nonlocal went
        went += len(nbytes)
        write(nbytes)

    here._writer.write = count  # type: ignore[method-assign,assignment]
    sending = asyncio.create_task(here.send_memory(nbytes))
    received = await there.receive()
    await sending
    assert isinstance(received, bytes)
    return went, received


async def test_memory_that_can_be_made_smaller_is_and_comes_as_it_was() -> None:
    page = (b"a line that is repeated\n" * 200)[:4096]
    memory = page * (LONGEST_MEMORY // 4096)
    went, received = await sent(memory, compress=True)
    assert received == memory
    assert went < len(memory) / 10
    assert (await sent(memory, compress=False))[0] == len(memory) + 5


@pytest.mark.parametrize("memory", [os.urandom(1 << 16), b"short"])
async def test_memory_that_would_not_be_smaller_goes_as_it_is(memory: bytes) -> None:
    assert await sent(memory, compress=True) == (len(memory) + 5, memory)


async def raw(contents: bytes) -> Channel:
    here, there = await channel_pair()
    here._writer.write(COMPRESSED + len(contents).to_bytes(4, "big") + contents)
    await here.close()
    return there


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        (b"\xff" * 100, "damaged memory"),
        (zlib.compress(bytes(LONGEST_MEMORY + 1)), "too much at once"),
        (zlib.compress(b"page" * 100)[:-3], "not whole"),
        (zlib.compress(b"page") + b"more", "not whole"),
        (zlib.compress(b""), "not whole"),
    ],
    ids=["damaged", "a bomb", "cut short", "with something behind it", "nothing"],
)
async def test_what_cannot_be_read_or_is_too_large_is_rejected(contents: bytes, why: str) -> None:
    with pytest.raises(ChannelError, match=why):
        await (await raw(contents)).receive()
