"""Guests that were removed here: their home, where they are registered, is told until it has heard it.

Who is to be told is stored with the removal, so that a restart between the two changes nothing.
"""

import asyncio
from collections.abc import Mapping

import structlog

from retinue.controller.context import Context
from retinue.controller.domains.peer_client import PeerDoor
from retinue.controller.marks import GuestRemovalHeard
from retinue.controller.state import RemovedGuest
from retinue.protocol.domains import Removed
from retinue.protocol.errors import ControllerError
from retinue.protocol.events import EventType

log = structlog.get_logger()

FIRST_PAUSE, LONGEST_PAUSE = 0.3, 30.0
"""Seconds until it is said again, doubled each time."""


class Removals:
    """Tells them; `doors` as in Saying."""

    def __init__(self, context: Context, doors: Mapping[str, PeerDoor]) -> None:
        self._context = context
        self._doors = doors
        self._telling: dict[str, asyncio.Task[None]] = {}

    def tell(self) -> None:
        """There may be one that nobody tells yet: after a removal, and after a restart."""
        for key, guest in self._context.state.removed_guests.items():
            if key not in self._telling or self._telling[key].done():
                what = f"{guest.vm}: removed, told to domain {guest.home}"
                self._telling[key] = self._context.spawn(self._tell(guest), what)

    def heard(self, vm: str, home: str) -> None:
        """Its home knows: it has answered, or brings the VM anew."""
        removed = RemovedGuest(vm, home)
        self._context.apply(GuestRemovalHeard(removed))
        self._telling.pop(removed.key, None)

    async def _tell(self, guest: RemovedGuest) -> None:
        pause = FIRST_PAUSE
        # Of a domain that is not configured any more nobody will ask.
        while guest.key in self._context.state.removed_guests and (door := self._doors.get(guest.home)):
            self._context.events.publish(
                EventType.DOMAIN_SAID, domain=guest.home, vm=guest.vm, migration_id="", said="removed"
            )
            try:
                await door.removed(Removed(guest.vm))
            except ControllerError as error:
                log.warning("domain.removal_not_heard", domain=guest.home, vm=guest.vm, reason=str(error))
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self.heard(guest.vm, guest.home)
