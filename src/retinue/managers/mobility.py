"""The mobility manager of one domain: from the controller's request to the server that is best.

It keeps nothing. What the VM needs and what servers have left it asks the resource manager, each time anew.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import structlog

from retinue.core.placement import Snapshot, decide
from retinue.managers.door import RefusedError, Said
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode
from retinue.protocol.managers import (
    PRESENCES_PATH,
    REQUESTS_PATH,
    Decided,
    MatchAsked,
    Matched,
    Request,
)
from retinue.security.identity import PeerRole

log = structlog.get_logger()

MATCH_LIMIT = 1.0
"""Seconds for the resource manager's answer; the controller waits twice as long for ours."""
REST = 5.0
"""Seconds for which a resource manager that was silent is not asked again."""


class Nothing(msgspec.Struct, frozen=True):
    """{}"""


class Mobility:
    """`ask`: the resource manager; raises ControllerError."""

    def __init__(self, ask: Callable[[MatchAsked], Awaitable[Matched]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._not_before = 0.0

    def said(self) -> dict[str, Said]:
        async def present(_: Nothing) -> Nothing:
            return Nothing()

        controller = PeerRole.CONTROLLER
        return {
            REQUESTS_PATH: (Request, controller, self.decide),
            PRESENCES_PATH: (Nothing, controller, present),
        }

    async def decide(self, request: Request) -> Decided:
        """Raises RefusedError."""
        if self._clock() < self._not_before:
            raise RefusedError("the resource manager was silent just now", ErrorCode.PARTY_AWAY)
        try:
            matched = await self._ask(request.asked)
        except ControllerAwayError as error:
            self._not_before = self._clock() + REST
            raise RefusedError(f"the resource manager is away: {error}", ErrorCode.PARTY_AWAY) from error
        except ControllerError as error:
            raise RefusedError(f"the resource manager says: {error}") from error
        servers = [*matched.servers, *request.offers, *matched.offers]
        decision = decide(
            Snapshot(
                replace(matched.need.plain(), moved_ago=request.moved_ago),
                request.source,
                tuple(one.plain() for one in servers),
                request.wish.plain(),
                matched.policy.plain(),
                request.named,
                request.waited_ms,
            )
        )
        vm = request.asked.vm
        log.info("managers.decided", match=request.match, vm=vm, server=decision.target, reason=decision.text)
        offered = [one.server for one in matched.offers]
        return Decided(matched.need, servers, decision.outcome, decision.target, offered)
