"""What an agent has refused, told to the controller: when it changed, not too often, again to a new one."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

import virtual_time
from agent_world import bench_up
from retinue.agent.daemon import follow
from retinue.agent.records import Happening, MoveRecord, VMRecord
from retinue.agent.refusals import PAUSE_SECONDS, Refusals
from retinue.agent.rest import ControllerAwayError, RefusedError
from retinue.agent.transfer import Transfer
from retinue.controller.refusals import Refusal

SINCE = 1234.5


class Controller:
    """Takes reports; `trouble` is raised instead, as long as it is there."""

    def __init__(self) -> None:
        self.refused: Counter[Refusal] = Counter()
        self.heard: list[tuple[float, dict[str, int]]] = []
        """When, counted from the start, and what."""
        self.trouble: Exception | None = None
        self.tries = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.told = asyncio.Event()
        self._start = asyncio.get_running_loop().time()
        self.agent = Refusals("server 1", self.refused, self, SINCE)
        self._running = asyncio.create_task(self.agent.run())

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (path, body["since"]) == ("/v1/servers/server%201/counters", SINCE)
        self.tries += 1
        self.meanwhile()
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        self.heard.append((asyncio.get_running_loop().time() - self._start, body["refused"]))
        self.told.set()
        return {}

    async def vms(self) -> list[VMRecord]:
        raise NotImplementedError

    async def moves(self) -> list[MoveRecord]:
        raise NotImplementedError

    def events(self, since: int | None) -> AsyncGenerator[Happening, None]:
        raise NotImplementedError

    async def end(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


def told(dialogue: Callable[[Controller], Coroutine[Any, Any, None]]) -> list[tuple[float, dict[str, int]]]:
    """What the controller has heard in the end; time passes only while everybody waits."""

    async def run() -> list[tuple[float, dict[str, int]]]:
        controller = Controller()
        await dialogue(controller)
        await controller.end()
        return controller.heard

    return virtual_time.run(run())


def test_an_agent_that_refuses_nobody_says_nothing() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.agent.again()
        await asyncio.sleep(60)

    assert told(dialogue) == []


def test_a_flood_is_told_once_a_second_and_to_its_end() -> None:
    async def dialogue(controller: Controller) -> None:
        for _ in range(250):
            controller.refused[Refusal.TLS] += 1
            await asyncio.sleep(0.01)
        controller.refused[Refusal.SILENT] += 1
        await asyncio.sleep(60)

    heard = told(dialogue)
    assert [round(at, 6) for at, _ in heard] == [0, PAUSE_SECONDS, 2 * PAUSE_SECONDS, 3 * PAUSE_SECONDS]
    assert heard[-1][1] == {"tls": 250, "silent": 1}
    assert sorted(totals["tls"] for _, totals in heard) == [totals["tls"] for _, totals in heard]


def test_a_controller_that_was_away_is_told_the_latest_and_that_once() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.trouble = ControllerAwayError("hung up")
        for _ in range(10):
            controller.refused[Refusal.TLS] += 1
            await asyncio.sleep(1)
        assert 9 <= controller.tries <= 11
        controller.trouble = None
        await asyncio.sleep(60)

    assert [totals for _, totals in told(dialogue)] == [{"tls": 10}]


def test_a_controller_that_is_back_is_told_again_what_has_not_changed() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.refused[Refusal.CROWDED] = 3
        await asyncio.sleep(10)
        controller.agent.again()
        await asyncio.sleep(10)

    assert [totals for _, totals in told(dialogue)] == [{"crowded": 3}] * 2


def test_one_that_comes_back_while_it_is_told_is_told_again() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.refused[Refusal.CROWDED] = 3
        controller.meanwhile = controller.agent.again
        await asyncio.sleep(0.5)
        controller.meanwhile = lambda: None
        await asyncio.sleep(10)

    assert [totals for _, totals in told(dialogue)] == [{"crowded": 3}] * 2


def test_a_refused_report_is_not_repeated_and_does_not_end_the_telling() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.refused[Refusal.GONE] = 1
        controller.trouble = RefusedError("there is no server server 1")
        await asyncio.sleep(60)
        assert controller.tries == 1
        controller.trouble = None
        controller.refused[Refusal.GONE] = 2
        await asyncio.sleep(60)

    assert [totals for _, totals in told(dialogue)] == [{"gone": 2}]


async def test_each_hello_of_the_controller_has_it_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon does it: what the door counts, told to every controller that greets."""
    monkeypatch.setattr("retinue.agent.daemon.AGAIN_SECONDS", 0)
    monkeypatch.setattr("retinue.agent.refusals.PAUSE_SECONDS", 0)
    controller = Controller()
    async with bench_up() as bench, asyncio.timeout(5):
        agent = bench.target
        controller.refused.update(await knocked_at(agent.transfer))
        await controller.told.wait()
        following = asyncio.create_task(
            follow(agent.rest, agent.keeper, None, asyncio.Event(), controller.agent.again)  # type: ignore[arg-type]
        )
        for _ in "a controller", "another one":
            controller.told.clear()
            agent.rest.streams.put_nowait([Happening("hello", id=1)])
            await controller.told.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await controller.end()
    assert [totals for _, totals in controller.heard] == [{"garbage": 1}] * 3


async def knocked_at(door: Transfer) -> Counter[Refusal]:
    """What the door has counted when somebody has said something else than agents do."""
    host, _, port = door.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    return door.refused
