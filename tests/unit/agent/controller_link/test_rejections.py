"""What an agent has rejected, told to the controller: when it changed, not too often, again to a new one."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from retinue.agent.controller_link.rejections import PAUSE_SECONDS, Rejections
from retinue.agent.main import follow
from retinue.agent.migration.peer import Transfer
from retinue.protocol.errors import ControllerAwayError, RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.security.listener.rejections import Rejection
from support import virtual_time
from support.agents.world import bench_up
from support.fakes.reports_only import ReportsOnly

SINCE = 1234.5


class Controller(ReportsOnly):
    """Takes reports; `trouble` is raised instead, as long as it is there."""

    def __init__(self) -> None:
        self.rejected: Counter[Rejection] = Counter()
        self.heard: list[tuple[float, dict[str, int]]] = []
        """When, counted from the start, and what."""
        self.trouble: Exception | None = None
        self.tries = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.told = asyncio.Event()
        self._start = asyncio.get_running_loop().time()
        self.agent = Rejections("server 1", self.rejected, self, SINCE)
        self._running = asyncio.create_task(self.agent.run())

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (path, body["since"]) == ("/v1/servers/server%201/counters", SINCE)
        self.tries += 1
        self.meanwhile()
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        self.heard.append((asyncio.get_running_loop().time() - self._start, body["rejected"]))
        self.told.set()
        return {}

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
            controller.rejected[Rejection.TLS] += 1
            await asyncio.sleep(0.01)
        controller.rejected[Rejection.TIMEOUT] += 1
        await asyncio.sleep(60)

    heard = told(dialogue)
    assert [round(at, 6) for at, _ in heard] == [0, PAUSE_SECONDS, 2 * PAUSE_SECONDS, 3 * PAUSE_SECONDS]
    assert heard[-1][1] == {"tls": 250, "timeout": 1}
    assert sorted(totals["tls"] for _, totals in heard) == [totals["tls"] for _, totals in heard]


def test_a_controller_that_was_away_is_told_the_latest_and_that_once() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.trouble = ControllerAwayError("hung up")
        for _ in range(10):
            controller.rejected[Rejection.TLS] += 1
            await asyncio.sleep(1)
        assert 9 <= controller.tries <= 11
        controller.trouble = None
        await asyncio.sleep(60)

    assert [totals for _, totals in told(dialogue)] == [{"tls": 10}]


def test_a_controller_that_is_back_is_told_again_what_has_not_changed() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.rejected[Rejection.CROWDED] = 3
        await asyncio.sleep(10)
        controller.agent.again()
        await asyncio.sleep(10)

    assert [totals for _, totals in told(dialogue)] == [{"crowded": 3}] * 2


def test_one_that_comes_back_while_it_is_told_is_told_again() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.rejected[Rejection.CROWDED] = 3
        controller.meanwhile = controller.agent.again
        await asyncio.sleep(0.5)
        controller.meanwhile = lambda: None
        await asyncio.sleep(10)

    assert [totals for _, totals in told(dialogue)] == [{"crowded": 3}] * 2


def test_a_rejected_report_is_not_repeated_and_does_not_end_the_telling() -> None:
    async def dialogue(controller: Controller) -> None:
        controller.rejected[Rejection.CLOSED] = 1
        controller.trouble = RejectedError("there is no server server 1")
        await asyncio.sleep(60)
        assert controller.tries == 1
        controller.trouble = None
        controller.rejected[Rejection.CLOSED] = 2
        await asyncio.sleep(60)

    assert [totals for _, totals in told(dialogue)] == [{"closed": 2}]


async def test_each_hello_of_the_controller_has_it_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon does it: what the door counts, told to every controller that greets."""
    monkeypatch.setattr("retinue.agent.main.AGAIN_SECONDS", 0)
    monkeypatch.setattr("retinue.agent.controller_link.rejections.PAUSE_SECONDS", 0)
    controller = Controller()
    async with bench_up() as bench, asyncio.timeout(60):
        agent = bench.target
        controller.rejected.update(await knocked_at(agent.transfer))
        await controller.told.wait()
        following = asyncio.create_task(
            follow(agent.rest, agent.dispatcher, None, asyncio.Event(), controller.agent.again)  # type: ignore[arg-type]
        )
        for _ in "a controller", "another one":
            controller.told.clear()
            agent.rest.streams.put_nowait([ControllerEvent("hello", id=1)])
            await controller.told.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await controller.end()
    assert [totals for _, totals in controller.heard] == [{"malformed": 1}] * 3


async def knocked_at(door: Transfer) -> Counter[Rejection]:
    """What the door has counted when somebody has said something else than agents do."""
    host, _, port = door.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    return door.rejected
