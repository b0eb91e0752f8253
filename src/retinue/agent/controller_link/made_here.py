"""VMs that somebody else made at this server, reported with MAC, addresses and the server's own MAC.

Who says that there is one: libvirt (libvirt_reporter.py), or a person or a hook of another hypervisor manager
with `retinue agent report`. It goes to the controller, POST /v1/servers/SERVER/vm-reports, or to the manager
whose URL the configuration has (`report.manager`), at the same path, who passes it on as it is.

What was said is kept as long as the agent runs, or libvirt has the VM here, and said again to a controller
that is back: that may have started again, and know nothing of what no manager has confirmed. A VM that was
removed is not told again.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from retinue.agent.controller_link.reports import Rest
from retinue.agent.vms.local_vm import ended
from retinue.core.limits import MOST_REPORTED
from retinue.host.commands import run
from retinue.host.errors import HostError
from retinue.protocol.errors import ControllerAwayError, ControllerError, ErrorCode, RejectedError
from retinue.protocol.json_lines import RequestError
from retinue.protocol.routes import Route

AGAIN_SECONDS = 1.0
"""Until who was away is told again."""
LATER_SECONDS = 5.0
"""Until what was refused for now is told again: too much at once, or a VM on its way here."""
PAUSE_SECONDS = 0.02
"""Between two that are said again: a controller takes so many a second of one server."""

_FOR_NOW = frozenset({ErrorCode.TOO_OFTEN, ErrorCode.MIGRATION_UNDER_WAY})

log = structlog.get_logger()


async def mac_of(interface: str) -> str:
    """The MAC of one of this server's interfaces. Raises HostError."""
    found = json.loads(await run(["ip", "-json", "link", "show", "dev", interface]))
    return str(found[0]["address"])


class MadeHere:
    """Reports VMs of one server. Close it after use."""

    def __init__(
        self,
        server: str,
        rest: Rest,
        interface: str,
        own_mac: Callable[[str], Awaitable[str]] = mac_of,
    ) -> None:
        """`rest`: the controller, or the manager that passes on. `interface`: whose MAC is the server's."""
        self._path = Route.REPORT_MADE_VM.path(server)
        self._rest = rest
        self._interface = interface
        self._own_mac = own_mac
        self._said: dict[tuple[str, str], tuple[str, ...]] = {}
        """By VM and MAC: its addresses."""
        self._left: dict[tuple[str, str], None] = {}
        """Those that are to be said again, in this order."""
        self._again: asyncio.Task[None] | None = None

    def has(self, vm: str, mac: str) -> bool:
        """Whether this NIC has been said, with whatever addresses."""
        return (vm, mac) in self._said

    async def tell(
        self, vm: str, mac: str, addresses: Sequence[str] = (), *, gone: bool = False
    ) -> dict[str, Any]:
        """Say it now; the answer. What is refused is forgotten, but where it is refused for now.

        Raises RejectedError, ControllerAwayError, HostError, RequestError. What is refused for now, or nobody
        was there to hear, is said again until it is answered, but for `gone`.
        """
        key = (vm, mac)
        if key not in self._said and len(self._said) >= MOST_REPORTED:
            raise RequestError(f"{MOST_REPORTED} VMs of this server are reported already")
        self._said[key] = tuple(addresses)
        try:
            answer = await self._send(key, gone=gone)
        except (ControllerError, HostError) as error:
            if gone or not _may_be_taken(error):
                self._said.pop(key, None)
            else:
                self._left[key] = None
                if self._again is None or self._again.done():
                    self._start()
            raise
        if gone:
            self._said.pop(key, None)
        return answer

    async def _send(self, key: tuple[str, str], *, gone: bool = False) -> dict[str, Any]:
        vm, mac = key
        body: dict[str, Any] = {"vm": vm, "mac": mac, "server_mac": await self._own_mac(self._interface)}
        body |= {"gone": True} if gone else {"addresses": list(self._said.get(key, ()))}
        return await self._rest.post(self._path, body)

    def forget(self, vm: str, mac: str = "") -> None:
        """It has been removed, or, with `mac`, this NIC of it is not here any more."""
        gone = [key for key in self._said if key[0] == vm and mac in ("", key[1])]
        for key in gone:
            del self._said[key]

    def again(self) -> None:
        """The controller is back: tell it all, in the background."""
        if self._again is not None:
            self._again.cancel()
        self._left = dict.fromkeys(self._said)
        self._start()

    def _start(self) -> None:
        self._again = asyncio.create_task(self._tell_all(), name="VMs that were made here")

    async def _tell_all(self) -> None:
        while self._left:
            key = next(iter(self._left))
            del self._left[key]
            pause = PAUSE_SECONDS
            try:
                if key in self._said:
                    await self._send(key)
            except (ControllerError, HostError) as error:
                log.warning("made_here.not_reported", vm=key[0], reason=str(error))
                if _may_be_taken(error):
                    self._left[key] = None  # The others have their turn before.
                    pause = AGAIN_SECONDS if isinstance(error, ControllerAwayError) else LATER_SECONDS
                else:
                    self._said.pop(key, None)
            await asyncio.sleep(pause)

    async def close(self) -> None:
        await ended(self._again)


def _may_be_taken(error: Exception) -> bool:
    """Whether the same, said later, may be taken; else it is no news to anybody."""
    return isinstance(error, ControllerAwayError) or (
        isinstance(error, RejectedError) and error.code in _FOR_NOW
    )
