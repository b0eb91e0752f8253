"""The server's own MAC, as its agent tells it: who the server is, the agent's certificate says.

POST /v1/servers/SERVER/mac, as often as the controller is there anew: it may have been replaced meanwhile, or
the server's network card. Only the latest matters, so none is kept for a controller that is away.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from retinue.agent.controller_link.made_here import mac_of
from retinue.agent.controller_link.reports import Rest
from retinue.agent.vms.local_vm import ended
from retinue.host.errors import HostError
from retinue.protocol.errors import ControllerAwayError, ErrorCode, RejectedError
from retinue.protocol.routes import Route

AGAIN_SECONDS = 5.0
"""Until a server that nobody has registered yet is told again, and one that was not believed; later more."""
LONGEST_PAUSE = 60.0
NOT_HEARD = (ErrorCode.NO_SUCH_PATH, ErrorCode.NOT_ALLOWED)
"""To an agent a path that is none is one that it may not use (`controller.api.access`)."""

log = structlog.get_logger()


class OwnMac:
    """Tells the MAC of one of the server's interfaces. Close it after use."""

    def __init__(
        self,
        server: str,
        rest: Rest,
        interface: str,
        own_mac: Callable[[str], Awaitable[str]] = mac_of,
        pause: float = AGAIN_SECONDS,
    ) -> None:
        self._path = Route.REPORT_SERVER_MAC.path(server)
        self._rest = rest
        self._interface = interface
        self._own_mac = own_mac
        self._pause = pause
        self._telling: asyncio.Task[None] | None = None

    def again(self) -> None:
        """The controller is back: tell it, in the background."""
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.create_task(self._tell(), name="the server's own MAC")

    async def _tell(self) -> None:
        said, pause = "", self._pause
        while True:
            try:
                answer = await self._rest.post(self._path, {"mac": await self._own_mac(self._interface)})
                if answer.get("known", True):
                    return
                reason = str(answer.get("reason", ""))
            except ControllerAwayError:
                return  # Its next hello does it.
            except RejectedError as error:
                if error.code in NOT_HEARD:
                    return  # By a controller of an older release; each try would be a rejected access there.
                reason = str(error)
            except HostError as error:
                reason = str(error)
            if reason != said:
                log.warning("own_mac.not_taken", reason=reason)
                said = reason
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def close(self) -> None:
        await ended(self._telling)
