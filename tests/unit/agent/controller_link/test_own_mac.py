"""The server's own MAC as its agent tells it: until it is taken, and again to a controller that is back."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from retinue.agent.controller_link.own_mac import OwnMac
from retinue.host.errors import HostError
from retinue.protocol.errors import ControllerAwayError, ErrorCode, RejectedError
from retinue.protocol.events import ControllerEvent
from retinue.protocol.migrations import MigrationRecord
from retinue.protocol.vms import VMsRecord

MAC = "02:00:00:00:00:01"


class Controller:
    """Answers what it is told to, one after the other; the last for ever."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.answered = asyncio.Event()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.heard.append((path, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if len(self.answers) == 1:
            self.answered.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def vms(self) -> VMsRecord:
        raise NotImplementedError

    async def migrations(self) -> list[MigrationRecord]:
        raise NotImplementedError

    def events(self, since: int | None) -> AsyncGenerator[ControllerEvent, None]:
        raise NotImplementedError


async def own(interface: str) -> str:
    assert interface == "br0"
    return MAC


def telling(controller: Controller) -> OwnMac:
    return OwnMac("server1", controller, "br0", own, pause=0.0)


TAKEN = {"server": "server1", "known": True, "reason": ""}
REFUSED = {"server": "server1", "known": False, "reason": "it answers by another"}


@pytest.mark.parametrize("first", [REFUSED, RejectedError("there is no server server1", status=404)])
async def test_it_is_told_until_it_is_taken(first: dict[str, Any] | Exception) -> None:
    controller = Controller(first, first, TAKEN)
    mac = telling(controller)
    mac.again()
    await controller.answered.wait()
    assert mac._telling is not None
    await mac._telling
    assert controller.heard == [("/v1/servers/server1/mac", {"mac": MAC})] * 3
    await mac.close()


async def test_a_controller_that_is_away_is_told_when_it_is_back() -> None:
    controller = Controller(ControllerAwayError("it is away"), TAKEN)
    mac = telling(controller)
    mac.again()
    assert mac._telling is not None
    await mac._telling
    assert len(controller.heard) == 1
    mac.again()
    await mac._telling
    assert len(controller.heard) == 2
    await mac.close()


@pytest.mark.parametrize("code", [ErrorCode.NOT_ALLOWED, ErrorCode.NO_SUCH_PATH])
async def test_a_controller_of_an_older_release_is_not_asked_again_and_again(code: ErrorCode) -> None:
    controller = Controller(RejectedError("that is a manager's", code, status=403), TAKEN)
    mac = telling(controller)
    mac.again()
    assert mac._telling is not None
    await mac._telling
    assert len(controller.heard) == 1
    mac.again()  # It may have been upgraded meanwhile.
    await mac._telling
    assert len(controller.heard) == 2
    await mac.close()


async def test_an_interface_that_is_not_there_yet_is_looked_at_again() -> None:
    there = False

    async def late(interface: str) -> str:
        nonlocal there
        if not there:
            there = True
            raise HostError("no such device")
        return MAC

    controller = Controller(TAKEN)
    mac = OwnMac("server1", controller, "br0", late, pause=0.0)
    mac.again()
    assert mac._telling is not None
    await mac._telling
    assert controller.heard == [("/v1/servers/server1/mac", {"mac": MAC})]
    await mac.close()


async def test_it_ends_in_the_middle() -> None:
    controller = Controller(REFUSED)
    mac = OwnMac("server1", controller, "br0", own)
    mac.again()
    await controller.answered.wait()
    await mac.close()
    assert len(controller.heard) == 1
