"""What QEMU writes is held back, and all of it passed on after that, in order."""

import asyncio

import pytest

from retinue.hypervisor.libvirt import held_stream
from retinue.hypervisor.libvirt.held_stream import HeldStream
from retinue.hypervisor.throttle import Throttle


async def all_of(held: HeldStream, nbytes: int) -> bytes:
    found = b""
    async with asyncio.timeout(60):
        while len(found) < nbytes:
            found += await held.read(1 << 16)
    return found


async def test_what_came_while_it_was_waited_comes_first_and_nothing_is_lost() -> None:
    throttle = Throttle()
    held, happened = HeldStream(throttle), asyncio.Event()
    for number in range(3):
        happened.clear()
        holding = asyncio.create_task(held.until(happened.wait()))
        await asyncio.sleep(0)
        throttle.theirs.send(bytes([number]) * 1000)
        while throttle.read_bytes < 1000 * (number + 1):  # noqa: ASYNC110
            await asyncio.sleep(0)
        happened.set()
        assert await holding
    throttle.theirs.send(b"more")  # While a read goes on from before.
    throttle.theirs.close()
    assert await all_of(held, 3004) == bytes(1000) + b"\1" * 1000 + b"\2" * 1000 + b"more"
    assert await held.read(10) == b""
    throttle.close()


async def test_it_holds_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_stream, "MOST_HELD", 100)
    throttle = Throttle()
    held = HeldStream(throttle)
    throttle.theirs.send(bytes(200))
    async with asyncio.timeout(60):
        assert not await held.until(asyncio.Event().wait())
        assert (held.ended, len(await all_of(held, 200))) == (False, 200)
    await held.close()
    throttle.close()


async def test_a_stream_that_ends_is_held_to_its_end() -> None:
    throttle = Throttle()
    held = HeldStream(throttle)
    throttle.theirs.send(b"all")
    throttle.theirs.close()
    async with asyncio.timeout(60):
        assert not await held.until(asyncio.Event().wait())
        assert held.ended
        assert [await held.read(10) for _ in range(3)] == [b"all", b"", b""]
    throttle.close()


async def test_what_it_waits_for_may_fail() -> None:
    async def fails() -> None:
        raise OSError("no")

    throttle = Throttle()
    held = HeldStream(throttle)
    with pytest.raises(OSError, match="no"):
        await held.until(fails())
    await held.close()
    throttle.close()
